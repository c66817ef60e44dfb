//! Connections: order, back-pressure, ends, hand-over.
#![allow(clippy::unwrap_used)] // tests may unwrap
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // patterns of bytes

mod common;

use bytes::Bytes;
use common::{echo, eventually, fresh_socket, nudge, obey, Running, PATIENCE};
use esker_base::ConnId;
use esker_nbd::{Session, SessionLimits};
use esker_node::{Effect, Event, Transport};
use esker_runtime::{link, Inbound, Listener, LoopConfig, Outbound, RuntimeError};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn numbered(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n / 3 % 253) as u8 ^ seed).collect()
}

/// A client that sends numbered bytes in odd pieces and expects them back in order.
fn echoed(path: &Path, length: usize, seed: u8) -> std::thread::JoinHandle<()> {
    let mut reader = connect(path);
    let mut writer = reader.try_clone().unwrap();
    std::thread::spawn(move || {
        let sent = numbered(length, seed);
        let expected = sent.clone();
        let sender = std::thread::spawn(move || {
            for piece in sent.chunks(4_096 + usize::from(seed) * 2_111) {
                writer.write_all(piece).unwrap();
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        sender.join().unwrap();
        assert!(got == expected, "client {seed}: {} bytes", got.len());
    })
}

#[test]
fn many_connections_echo_under_load() {
    let path = fresh_socket();
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, |_, e, fx| echo(e, fx));
    let clients: Vec<_> = (0..32)
        .map(|seed| echoed(&path, 1_000_000 + usize::from(seed), seed))
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    eventually("the end of all connections", || {
        running.handle.connections() == 0
    });
    assert!(matches!(running.stop(), Outbound::Stopped));
    assert!(!path.exists(), "the socket file is removed at the end");
}

#[test]
fn tcp_tells_the_peer_address_and_refuses_a_busy_port() {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = format!("127.0.0.1:{}", listener.port().unwrap());
    assert_eq!(listener.local_addr(), address);
    let busy = Listener::tcp(address.parse().unwrap()).unwrap_err();
    assert!(matches!(busy, RuntimeError::InUse { .. }), "{busy}");
    let (seen, transports) = channel();
    let step = move |_, event, effects: &mut Vec<Effect>| {
        if let Event::Connected { transport, .. } = &event {
            seen.send(transport.clone()).unwrap();
        }
        echo(event, effects);
    };
    let _running = Running::start(LoopConfig::new(0), vec![listener], step);
    let mut client = TcpStream::connect(&address).unwrap();
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    let expected = Transport::Tcp(client.local_addr().unwrap().to_string());
    assert_eq!(transports.recv_timeout(PATIENCE).unwrap(), expected);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let path = fresh_socket();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // leaves its file
    let live = Listener::unix(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o660
    );
    let refused = Listener::unix(&path).unwrap_err();
    assert!(matches!(refused, RuntimeError::InUse { .. }), "{refused}");
    drop(live);
    // A regular file refuses a connection just like a stale socket does, and was once removed.
    std::fs::write(&path, b"not a socket").unwrap();
    assert!(Listener::unix(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"not a socket");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_slow_reader_queues_its_own_output_only() {
    let path = fresh_socket();
    // A byte asks for 8 MiB; `Sent` says when the kernel has taken them.
    let (report, sent) = channel();
    let big = Bytes::from(vec![7; 8 << 20]);
    let step = move |_, event, effects: &mut Vec<Effect>| {
        obey(&event, effects);
        match event {
            Event::Received { conn, data } if data[0] == b'b' => {
                effects.push(Effect::Send {
                    conn,
                    bufs: vec![big.clone()],
                });
            }
            Event::Received { conn, data } => effects.push(Effect::Send {
                conn,
                bufs: vec![data],
            }),
            Event::Sent { conn } => drop(report.send(conn)),
            _ => {}
        }
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, step);
    let mut slow = connect(&path);
    slow.write_all(b"b").unwrap();
    let queued = || running.handle.inspect().unwrap().connections[0].queued_bytes;
    eventually("a full socket", || queued() > 0 && queued() < 8 << 20);
    let stuck = queued();
    // Others are served as if nothing were.
    let mut quick = connect(&path);
    for _ in 0..200 {
        quick.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        quick.read_exact(&mut got).unwrap();
    }
    assert_eq!(queued(), stuck, "nobody read, so nothing moved");
    let slow_conn = running.handle.inspect().unwrap().connections[0].conn;
    assert!(sent.try_iter().all(|conn| conn != slow_conn));
    let mut got = vec![0; 8 << 20];
    slow.read_exact(&mut got).unwrap();
    assert!(got.iter().all(|b| *b == 7));
    assert_eq!(sent.recv_timeout(PATIENCE).unwrap(), slow_conn);
    assert_eq!(queued(), 0);
}

#[test]
fn nothing_is_received_between_pause_and_resume() {
    let path = fresh_socket();
    let (report, received) = channel();
    let mut paused = None;
    let step = move |_, event, effects: &mut Vec<Effect>| {
        obey(&event, effects);
        match event {
            Event::Received { conn, data } => {
                report.send(data).unwrap();
                effects.push(Effect::PauseReceive { conn });
                paused = Some(conn);
            }
            Event::Peer { .. } => {
                effects.extend(paused.map(|conn| Effect::ResumeReceive { conn }));
            }
            _ => {}
        }
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, step);
    let mut client = connect(&path);
    client
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    client.write_all(b"first").unwrap();
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), "first");
    // The kernel's buffers fill up, and then the client has to wait.
    let piece = [1; 65_536];
    let mut written = 0;
    let blocked = loop {
        match client.write(&piece) {
            Ok(count) => written += count,
            Err(error) => break error.kind(),
        }
        assert!(written < 64 << 20, "a paused connection takes everything");
    };
    assert_eq!(blocked, ErrorKind::WouldBlock);
    assert!(received.try_recv().is_err(), "received while paused");
    assert!(running.handle.inspect().unwrap().connections[0].is_paused);
    // The machine pauses again after each piece: one piece per resume.
    let mut got = 0;
    while got < written {
        nudge(&running.handle);
        got += received.recv_timeout(PATIENCE).unwrap().len();
        assert!(received.recv_timeout(Duration::from_millis(1)).is_err());
    }
    assert_eq!(got, written);
}

#[test]
fn close_delivers_what_is_queued_and_tells_the_machine_once() {
    let path = fresh_socket();
    let (report, ends) = channel();
    let step = move |_, event, effects: &mut Vec<Effect>| {
        obey(&event, effects);
        match event {
            Event::Received { conn, .. } => {
                for _ in 0..4 {
                    let bufs = vec![Bytes::from(vec![3; 1 << 20]); 2];
                    effects.push(Effect::Send { conn, bufs });
                }
                let reason = "enough".to_string();
                effects.push(Effect::Close { conn, reason });
                let bufs = vec![Bytes::from_static(b"too late")];
                effects.push(Effect::Send { conn, bufs });
            }
            Event::Disconnected { reason, .. } => report.send(reason).unwrap(),
            _ => {}
        }
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, step);
    let mut client = connect(&path);
    // Bytes that the machine never reads must not cost the reply.
    client.write_all(&[0; 100_000]).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 8 << 20);
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), "enough");
    drop(client);
    eventually("the end of the connection", || {
        running.handle.connections() == 0
    });
    assert!(ends.try_recv().is_err());
}

#[test]
fn a_closed_connection_whose_client_does_not_read_ends_in_time() {
    let path = fresh_socket();
    let (report, ends) = channel();
    let step = move |_, event, effects: &mut Vec<Effect>| {
        obey(&event, effects);
        match event {
            Event::Received { conn, .. } => {
                let bufs = vec![Bytes::from(vec![3; 8 << 20])];
                effects.push(Effect::Send { conn, bufs });
                effects.push(Effect::Close {
                    conn,
                    reason: "enough".into(),
                });
            }
            Event::Disconnected { reason, .. } => report.send(reason).unwrap(),
            _ => {}
        }
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, step);
    let mut client = connect(&path);
    client.write_all(b"x").unwrap();
    let started = Instant::now();
    let reason = ends.recv_timeout(PATIENCE).unwrap();
    assert!(reason.contains("not read"), "{reason}");
    assert!(started.elapsed() > Duration::from_secs(4) && started.elapsed() < PATIENCE);
    eventually("the end of the connection", || {
        running.handle.connections() == 0
    });
}

#[test]
fn a_client_that_vanishes_is_reported_once() {
    let path = fresh_socket();
    let (report, ends) = channel();
    let step = move |_, event, effects: &mut Vec<Effect>| {
        if let Event::Disconnected { conn, reason } = &event {
            report.send((*conn, reason.clone())).unwrap();
        }
        echo(event, effects);
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, step);
    drop(connect(&path));
    let (first, reason) = ends.recv_timeout(PATIENCE).unwrap();
    assert_eq!(reason, "end of stream");
    drop(connect(&path));
    let (second, _) = ends.recv_timeout(PATIENCE).unwrap();
    assert_ne!(first, second, "ids are never reused");
    eventually("no connections", || running.handle.connections() == 0);
}

#[test]
fn stop_delivers_last_replies_and_ends() {
    let path = fresh_socket();
    let mut last_conn = None;
    let step = move |_, event, effects: &mut Vec<Effect>| match event {
        Event::Connected { conn, .. } => last_conn = Some(conn),
        Event::Stop => {
            let conn = last_conn.unwrap();
            let bufs = vec![Bytes::from(vec![5; 2 << 20])];
            effects.push(Effect::Send { conn, bufs });
            effects.push(Effect::Stopped);
        }
        _ => {}
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, step);
    let mut client = connect(&path);
    eventually("a connection", || running.handle.connections() == 1);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        got.len()
    });
    let handle = running.handle.clone();
    assert!(matches!(running.stop(), Outbound::Stopped));
    assert_eq!(reader.join().unwrap(), 2 << 20);
    assert!(
        !handle.send(Inbound::Stop),
        "a loop that has ended takes nothing"
    );
}

#[test]
fn a_panic_of_the_machine_ends_the_loop_with_a_message() {
    let path = fresh_socket();
    let step = move |_, event, _: &mut Vec<Effect>| {
        assert!(!matches!(event, Event::Received { .. }), "a bug");
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let mut running = Running::start(LoopConfig::new(0), listeners, step);
    let mut client = connect(&path);
    client.write_all(b"x").unwrap();
    let Outbound::LoopFailed { message } = running.join() else {
        panic!()
    };
    assert!(
        message.contains("store-0") && message.contains("a bug"),
        "{message}"
    );
    let mut got = Vec::new();
    // A reset or an end; in any case not a hang.
    let _ = client.read_to_end(&mut got);
}

/// Two loops; the first gives each connection away once it has seen `give_after` bytes, with
/// output queued before, and the second goes on echoing.
fn hand_over(give_after: usize, client_bytes: usize) {
    let path = fresh_socket();
    let mut seen = std::collections::HashMap::<ConnId, usize>::new();
    let giver = move |_, event, effects: &mut Vec<Effect>| {
        obey(&event, effects);
        if let Event::Received { conn, data } = event {
            let count = seen.entry(conn).or_default();
            assert!(*count < give_after, "it never hears of it again");
            *count += data.len();
            effects.push(Effect::Send {
                conn,
                bufs: vec![data],
            });
            if *count >= give_after {
                let session = Box::new(Session::new(SessionLimits::default()));
                let transport = Transport::Unix;
                effects.push(Effect::HandOver {
                    conn,
                    store: 1,
                    transport,
                    session,
                });
            }
        }
    };
    let (report, adopted) = channel();
    let taker = move |_, event, effects: &mut Vec<Effect>| {
        if let Event::Adopted { conn, .. } = &event {
            report.send(*conn).unwrap();
        }
        echo(event, effects);
    };
    let listeners = vec![Listener::unix(&path).unwrap()];
    let first = Running::start(LoopConfig::new(0), listeners, giver);
    let second = Running::start(LoopConfig::new(1), vec![], taker);
    link(&[first.handle.clone(), second.handle.clone()]);
    let clients: Vec<_> = (0..8)
        .map(|seed| echoed(&path, client_bytes, seed))
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(adopted.try_iter().count(), 8);
    assert!(matches!(first.stop(), Outbound::Stopped));
    assert!(matches!(second.stop(), Outbound::Stopped));
}

#[test]
fn a_connection_handed_over_loses_and_swaps_no_byte() {
    hand_over(1, 3_000_000);
    hand_over(500_000, 3_000_000);
}

#[test]
fn an_idle_loop_uses_no_processor_time() {
    let path = fresh_socket();
    let mut config = LoopConfig::new(0);
    config.name = "idle-loop".into();
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(config, listeners, |_, e, fx| echo(e, fx));
    let _clients: Vec<_> = (0..16).map(|_| connect(&path)).collect();
    eventually("16 connections", || running.handle.connections() == 16);
    let used = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let of_loop = |task: &std::path::PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "idle-loop")
        };
        let task = tasks.map(|t| t.unwrap().path()).find(of_loop).unwrap();
        let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_millis(50));
    let before = used();
    std::thread::sleep(Duration::from_millis(300));
    let nanos = used() - before;
    assert!(
        nanos < 3_000_000,
        "{nanos} ns of processor time in 300 ms of nothing"
    );
}

#[test]
fn the_timer_fires_at_its_moment_and_is_replaced() {
    let (report, fired) = channel();
    let mut asked = None;
    let step = move |now: esker_base::Moment, event, effects: &mut Vec<Effect>| {
        obey(&event, effects);
        match event {
            Event::Peer { .. } => {
                effects.push(Effect::SetTimer {
                    at: now + Duration::from_millis(5),
                });
                let at = now + Duration::from_millis(80);
                asked = Some(at);
                effects.push(Effect::SetTimer { at });
            }
            Event::Timer => report.send((now, asked.unwrap())).unwrap(),
            _ => {}
        }
    };
    let running = Running::start(LoopConfig::new(0), vec![], step);
    nudge(&running.handle);
    let (at, wanted) = fired.recv_timeout(PATIENCE).unwrap();
    assert!(at >= wanted && at.since(wanted) < Duration::from_secs(1));
    assert!(
        fired.recv_timeout(Duration::from_millis(150)).is_err(),
        "it fires once"
    );
}

#[test]
fn a_socket_can_be_given_to_a_loop_directly() {
    let running = Running::start(LoopConfig::new(0), vec![], |_, e, fx| echo(e, fx));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap(); // the loop must not mind
    running
        .handle
        .send(Inbound::NewConnection(theirs.into(), Transport::Unix));
    ours.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    ours.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn a_connection_that_travels_all_the_time_keeps_its_order() {
    // Loops 0 and 2 give a connection to the next loop after every 200,000 bytes; loop 1 gives it
    // on before it has read anything, with all the bytes that came along.
    let path = fresh_socket();
    let mut loops: Vec<Running> = Vec::new();
    for index in 0..3_usize {
        let mut seen = std::collections::HashMap::<ConnId, usize>::new();
        let step = move |_, event, effects: &mut Vec<Effect>| {
            obey(&event, effects);
            let session = Box::new(Session::new(SessionLimits::default()));
            let store = (index + 1) % 3;
            let transport = Transport::Unix;
            let gone = match event {
                Event::Adopted { conn, .. } if index == 1 => conn,
                Event::Received { conn, data } => {
                    assert_ne!(index, 1, "it gave the connection on before");
                    let count = seen.entry(conn).or_default();
                    *count += data.len();
                    effects.push(Effect::Send {
                        conn,
                        bufs: vec![data],
                    });
                    if *count < 200_000 {
                        return;
                    }
                    seen.remove(&conn);
                    conn
                }
                _ => return,
            };
            effects.push(Effect::HandOver {
                conn: gone,
                store,
                transport,
                session,
            });
        };
        let is_first = index == 0;
        let listeners = is_first.then(|| Listener::unix(&path).unwrap());
        let config = LoopConfig::new(index);
        loops.push(Running::start(
            config,
            listeners.into_iter().collect(),
            step,
        ));
    }
    let handles: Vec<_> = loops.iter().map(|l| l.handle.clone()).collect();
    link(&handles);
    let clients: Vec<_> = (0..4).map(|seed| echoed(&path, 4_000_000, seed)).collect();
    for client in clients {
        client.join().unwrap();
    }
    let open = || handles.iter().map(|h| h.connections()).sum::<usize>();
    eventually("the end of all connections", || open() == 0);
}

#[test]
fn connections_past_the_limit_are_closed_at_once() {
    let path = fresh_socket();
    let mut config = LoopConfig::new(0);
    config.connections_max = 3;
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(config, listeners, |_, e, fx| echo(e, fx));
    let mut kept: Vec<_> = (0..3).map(|_| connect(&path)).collect();
    eventually("three connections", || running.handle.connections() == 3);
    for _ in 0..10 {
        assert_eq!(connect(&path).read(&mut [0]).unwrap(), 0);
    }
    kept[0].write_all(b"x").unwrap();
    kept[0].read_exact(&mut [0]).unwrap();
    drop(kept.pop());
    eventually("room", || running.handle.connections() == 2);
    let mut next = connect(&path);
    next.write_all(b"x").unwrap();
    next.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_loop_stops_while_clients_keep_connecting() {
    let path = fresh_socket();
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, |_, e, fx| echo(e, fx));
    let storm = {
        let path = path.clone();
        std::thread::spawn(move || {
            let mut count = 0;
            while let Ok(mut stream) = UnixStream::connect(&path) {
                let _ = stream.write_all(b"x");
                count += 1;
            }
            count
        })
    };
    eventually("a storm", || running.handle.connections() > 0);
    std::thread::sleep(Duration::from_millis(50));
    assert!(matches!(running.stop(), Outbound::Stopped));
    assert!(storm.join().unwrap() > 0);
}
