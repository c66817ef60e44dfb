//! Clients that lie, stop in the middle, or never listen: each is refused or dropped with a reason
//! in the log, others notice nothing, and nothing of them stays.

use crate::client::{
    connect_tcp, connect_unix, exact, go_data, option, request, Stream, EINVAL, OPTION_GO, READ,
    WRITE,
};
use crate::harness::{setting, verify, Daemon, Folder, Start};
use crate::pattern::Dice;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn hello(client_flags: u32) -> Vec<u8> {
    client_flags.to_be_bytes().to_vec()
}

/// All the lies of this file over one transport.
fn tell_lies(connect: &dyn Fn() -> Box<dyn Stream>, dice: &mut Dice) {
    let greeted = || {
        let mut stream = connect();
        let _: [u8; 18] = exact(&mut *stream).unwrap();
        stream
    };
    let attached = || {
        let mut stream = greeted();
        let mut bytes = hello(3);
        bytes.extend(option(OPTION_GO, &go_data("v")));
        stream.write_all(&bytes).unwrap();
        // EXPORT (20 + 12) and ACK (20).
        let _: [u8; 52] = exact(&mut *stream).unwrap();
        stream
    };
    // Ends: the server closes in the end, whatever is still on its way.
    let ends = |mut stream: Box<dyn Stream>, what: &str| {
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "{what}: {error}"
            ),
        }
    };

    // Before the handshake: nothing, half a greeting, no NBD at all.
    drop(connect());
    let mut stream = connect();
    let _: [u8; 5] = exact(&mut *stream).unwrap();
    drop(stream);
    let mut stream = greeted();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    ends(stream, "HTTP");
    let mut stream = greeted();
    stream.write_all(&hello(0xffff_ffff)).unwrap();
    ends(stream, "unknown client flags");
    let mut stream = greeted();
    stream.write_all(&hello(3)[..2]).unwrap();
    drop(stream);

    // Options: a bad magic, lengths that lie, a flood, a name that is not text.
    let mut stream = greeted();
    let mut bytes = hello(3);
    bytes.extend([0xee; 64]);
    stream.write_all(&bytes).unwrap();
    ends(stream, "bad option magic");
    let mut stream = greeted();
    let mut bytes = hello(3);
    bytes.extend(option(OPTION_GO, &[])); // shorter than its fixed part
    bytes.extend(option(OPTION_GO, &[0xff; 10])); // a name of 4 GiB
    bytes.extend(option(OPTION_GO, &go_data("\u{fffd}x")[..7])); // a cut name
    bytes.extend(option(0xdead_beef, &[7; 1000]));
    bytes.extend(option(OPTION_GO, &go_data("nobody")));
    bytes.extend(option(OPTION_GO, &go_data("v")));
    stream.write_all(&bytes).unwrap();
    let mut answers = Vec::new();
    loop {
        let head: [u8; 20] = exact(&mut *stream).unwrap();
        let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
        let length = u32::from_be_bytes(head[16..].try_into().unwrap());
        assert!(length <= 8192, "a reply of {length} bytes");
        let mut text = vec![0; length as usize];
        stream.read_exact(&mut text).unwrap();
        answers.push(kind);
        if kind == 1 {
            break;
        }
    }
    let (invalid, unsupported, unknown) = (0x8000_0003, 0x8000_0001, 0x8000_0006);
    assert_eq!(
        answers,
        [invalid, invalid, invalid, unsupported, unknown, 3, 1]
    );
    drop(stream);
    let mut stream = greeted();
    let mut bytes = hello(3);
    bytes.extend(0x4948_4156_454f_5054u64.to_be_bytes());
    bytes.extend(9999u32.to_be_bytes());
    bytes.extend(u32::MAX.to_be_bytes());
    stream.write_all(&bytes).unwrap();
    ends(stream, "an option of 4 GiB");
    let mut stream = greeted();
    let mut bytes = hello(3);
    for _ in 0..5000 {
        bytes.extend(option(9999, &[]));
    }
    let _ = stream.write_all(&bytes); // it may have been ended while this is written
    ends(stream, "a flood of options");
    // The same, and the answers are never read.
    let mut stream = greeted();
    let _ = stream.write_all(&bytes);
    drop(stream);

    // Transmission: a bad magic, half a header, half a payload, a payload of 4 GiB.
    let mut stream = attached();
    stream.write_all(&[0x5a; 28]).unwrap();
    ends(stream, "bad request magic");
    let mut stream = attached();
    stream
        .write_all(&request(0, READ, 1, 0, 4096)[..17])
        .unwrap();
    drop(stream);
    let mut stream = attached();
    stream.write_all(&request(0, WRITE, 1, 0, 1 << 20)).unwrap();
    stream.write_all(&vec![0x66; 300_000]).unwrap();
    drop(stream);
    let mut stream = attached();
    stream
        .write_all(&request(0, WRITE, 1, 0, u32::MAX))
        .unwrap();
    ends(stream, "a payload of 4 GiB");
    // Too long, but short enough to be read and refused; then an answer to the next one.
    let mut stream = attached();
    let length = 33u32 << 20;
    stream.write_all(&request(0, WRITE, 7, 0, length)).unwrap();
    stream.write_all(&vec![0; length as usize]).unwrap();
    stream.write_all(&request(0, 77, 8, 0, 0)).unwrap();
    let replies: [u8; 32] = exact(&mut *stream).unwrap();
    for (reply, cookie) in replies.chunks(16).zip([7, 8]) {
        assert_eq!(reply[4..8], EINVAL.to_be_bytes());
        assert_eq!(reply[15], cookie);
    }
    drop(stream);
    // Asks for much and reads nothing of it, then goes.
    let mut stream = attached();
    for cookie in 0..64 {
        stream
            .write_all(&request(0, READ, cookie, 0, 8 << 20))
            .unwrap();
    }
    std::thread::sleep(Duration::from_millis(30));
    drop(stream);
    let mut stream = attached();
    stream.write_all(&request(0, READ, 1, 0, 16 << 20)).unwrap();
    let _: [u8; 70_000] = exact(&mut *stream).unwrap();
    drop(stream);

    // Noise, after the greeting and in transmission.
    let noise: Vec<u8> = (0..512).map(|_| dice.below(256) as u8).collect();
    let mut stream = greeted();
    let _ = stream.write_all(&noise);
    drop(stream);
    let mut stream = attached();
    // Requests whose every field but the magic is noise; long payloads make it end.
    for _ in 0..50 {
        let kind = dice.below(9) as u16;
        if kind == 1 || kind == 2 {
            continue;
        }
        let (flags, length) = (dice.below(64) as u16, dice.below(1 << 14) as u32);
        // The first MiB is what the others do not look at.
        let offset = match dice.below(3) {
            0 => dice.next(),
            _ => dice.below(1 << 20),
        };
        let _ = stream.write_all(&request(flags, kind, dice.next(), offset, length));
    }
    drop(stream);
}

/// Writes and reads back in its own part while others lie; gives how often.
fn honest(daemon: &Daemon, base: u64, stop: &AtomicBool, slowest_us: &AtomicU64) -> u64 {
    let mut client = daemon.client("v");
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        rounds += 1;
        let data = vec![(rounds % 251) as u8; 16384];
        let offset = base + (rounds % 64) * 16384;
        let began = Instant::now();
        client.write(offset, &data, 0).unwrap().unwrap();
        assert_eq!(client.read(offset, 16384).unwrap().unwrap(), data);
        let took = began.elapsed().as_micros() as u64;
        slowest_us.fetch_max(took, Ordering::Relaxed);
    }
    rounds
}

#[test]
fn liars_are_dropped_and_nobody_else_notices() {
    let folder = Folder::new();
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "2GiB"])
        .ready();
    daemon.create("v", "128MiB");
    let (stop, slowest_us) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = setting("ESKER_LIAR_ROUNDS", 8);
    let mut dice = Dice::new(11);
    let lie = |dice: &mut Dice| {
        tell_lies(&|| connect_unix(&daemon.socket()).unwrap(), dice);
        tell_lies(&|| connect_tcp(daemon.port()).unwrap(), dice);
    };
    let (first, last, served) = std::thread::scope(|scope| {
        let honest: Vec<_> = [64 << 20, 96 << 20]
            .map(|base| {
                scope.spawn({
                    let (daemon, stop, slowest) = (&daemon, &stop, &slowest_us);
                    move || honest(daemon, base, stop, slowest)
                })
            })
            .into();
        // Once, so that caches are as large as they get.
        lie(&mut dice);
        let first = measure(&daemon, 3);
        for _ in 0..rounds {
            lie(&mut dice);
        }
        let last = measure(&daemon, 3);
        stop.store(true, Ordering::Relaxed);
        let served: u64 = honest.into_iter().map(|h| h.join().unwrap()).sum();
        (first, last, served)
    });
    println!(
        "{} lying connections; descriptors {} to {}, memory {} to {} MiB; {served} honest rounds, \
         slowest {} ms",
        (rounds + 1) * 2 * 22,
        first.0,
        last.0,
        first.1 >> 20,
        last.1 >> 20,
        slowest_us.load(Ordering::Relaxed) / 1000
    );
    assert_eq!(first.0, last.0, "descriptors leak");
    assert!(
        last.1 < first.1 + (64 << 20),
        "memory leaks: {first:?} to {last:?}"
    );
    assert!(served > 100, "honest clients starve: {served} rounds");
    let log = daemon.log();
    for reason in [
        "of an option",
        "unknown client flags",
        "announces",
        "more than 4096 options",
        "of a request",
        "Connection reset",
    ] {
        assert!(
            log.lines().any(|l| l
                .split_once("reason=")
                .is_some_and(|(_, told)| told.contains(reason))),
            "no {reason} among the reasons: {log}"
        );
    }
    for bad in ["panicked", "ERROR"] {
        assert!(!log.contains(bad), "{log}");
    }
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
}

/// Descriptors and memory, once the liars' connections have ended and only these stay.
fn measure(daemon: &Daemon, sessions_max: u64) -> (usize, u64) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let sessions = daemon.json(&["volume", "show", "v"])["sessions"].as_u64();
        if sessions.unwrap() < sessions_max {
            break;
        }
        assert!(Instant::now() < end, "sessions stay: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(200));
    (daemon.descriptors(), daemon.memory_bytes())
}

#[test]
fn more_connections_than_fit_are_closed_and_come_back() {
    let folder = Folder::new();
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "1GiB"])
        .ready();
    daemon.create("v", "16MiB");
    let mut first = daemon.client("v");
    let many: Vec<_> = (0..300).map(|_| daemon.tcp_client("v")).collect();
    first.write(0, &[1; 4096], 0).unwrap().unwrap();
    let sessions = daemon.json(&["volume", "show", "v"])["sessions"].as_u64();
    assert_eq!(sessions, Some(301));
    drop(many);
    let mut again = daemon.tcp_client("v");
    assert_eq!(again.read(0, 4096).unwrap().unwrap(), [1; 4096]);
    measure(&daemon, 3);
    daemon.stop();
}

/// Eight clients that each announced a write of 32 MiB and sent nothing of it once held all the
/// room a node has for requests, and nobody was answered any more until they went. Clients that
/// asked for much and took nothing of it cost 70 MiB each, without an end.
#[test]
fn greedy_clients_leave_room_for_others_and_memory_within_bounds() {
    let folder = Folder::new();
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "1GiB"])
        .ready();
    daemon.create("v", "256MiB");
    let mut client = daemon.client("v");
    for at in 0..16 {
        client.write(at << 20, &[9; 1 << 20], 0).unwrap().unwrap();
    }
    let attached = || {
        let mut stream = connect_tcp(daemon.port()).unwrap();
        let _: [u8; 18] = exact(&mut *stream).unwrap();
        let mut bytes = hello(3);
        bytes.extend(option(OPTION_GO, &go_data("v")));
        stream.write_all(&bytes).unwrap();
        let _: [u8; 52] = exact(&mut *stream).unwrap();
        stream
    };
    let mut greedy = Vec::new();
    for i in 0..40 {
        let mut stream = attached();
        if i % 2 == 0 {
            let head = request(0, WRITE, 1, 128 << 20, 32 << 20);
            stream.write_all(&head).unwrap();
            stream.write_all(&[7; 4096]).unwrap();
        } else {
            for cookie in 0..64 {
                let head = request(0, READ, cookie, 0, 8 << 20);
                stream.write_all(&head).unwrap();
            }
        }
        greedy.push(stream);
    }
    // Those who were there before and those who come now are answered.
    for mut client in [client, daemon.client("v"), daemon.tcp_client("v")] {
        for at in 0..50 {
            let data = [at as u8; 8192];
            client.write(at * 8192, &data, 0).unwrap().unwrap();
            assert_eq!(client.read(at * 8192, 8192).unwrap().unwrap(), data);
        }
        client.flush().unwrap().unwrap();
    }
    // What is counted, one request over it, and what a daemon takes with nothing to do.
    let bound = (96 + 32 + 128) << 20;
    let memory = daemon.memory_bytes();
    assert!(memory < bound, "{} MiB", memory >> 20);
    drop(greedy);
    // All the room is there again.
    let mut client = daemon.client("v");
    let large = vec![3; 32 << 20];
    client.write(64 << 20, &large, 0).unwrap().unwrap();
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
}
