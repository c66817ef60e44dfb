//! Volumes that one holder has alone: who comes after fences who was before.

use crate::client::{Client, WRITE};
use crate::cluster::{holds, serving, until, write, Members};
use crate::harness::{signal, Daemon, Folder, Start};
use crate::pattern::{fill, BLOCK};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Attaches for a holder; gives the name of the export.
fn attach(daemon: &Daemon, volume: &str, holder: &str, fence: bool) -> String {
    let mut words = vec!["volume", "attach", volume, "--holder", holder];
    words.extend(fence.then_some("--fence"));
    let shown = daemon.json(&words);
    assert_eq!(shown["attachment"]["holder"], holder, "{shown}");
    let export = format!("{volume}:{}", shown["attachment"]["number"]);
    let uri = shown["uri"].as_str().unwrap();
    assert!(uri.contains(&format!("/{export}?")), "{uri}");
    export
}

fn refused(daemon: &Daemon, export: &str) -> String {
    match Client::unix(&daemon.socket(), export) {
        Ok(_) => panic!("{export} attached"),
        Err(error) => error.to_string(),
    }
}

/// The session has been ended; what is still on its way may be answered before.
fn has_ended(mut client: Client) {
    let block = fill(1, 0, 99);
    for _ in 0..1000 {
        let sent = client.send(0, WRITE, 0, BLOCK as u32, &block);
        if sent.is_err() || client.reply().is_err() {
            return;
        }
    }
    panic!("the session goes on");
}

#[test]
fn one_holder_has_a_volume_alone_until_another_one_fences_it() {
    let folder = Folder::new();
    let how = Start::new(&folder.join("d")).with(&["--store-size", "1GiB"]);
    let daemon = how.ready();
    daemon.create("v", "16MiB");
    let mut plain = daemon.client("v");
    write(&mut plain, 0..16, 1);
    let told = daemon
        .esker(&["volume", "attach", "v", "--holder", "a"])
        .line(1);
    assert!(
        told.contains("1 session") && told.contains("--fence"),
        "{told}"
    );
    let a = attach(&daemon, "v", "a", true);
    has_ended(plain);
    let told = refused(&daemon, "v");
    assert!(
        told.contains(&format!("a holds volume v alone, as {a}")),
        "{told}"
    );

    // Every session of a holder is as good as the others, and the command may be given again.
    let (mut first, mut second) = (daemon.client(&a), daemon.client(&a));
    assert_eq!(attach(&daemon, "v", "a", false), a);
    write(&mut first, 0..16, 2);
    holds(&mut second, 0..16, 2);
    let told = daemon
        .esker(&["volume", "attach", "v", "--holder", "b"])
        .line(1);
    assert!(
        told.contains("a holds volume v") && told.contains("--fence"),
        "{told}"
    );
    let told = daemon.esker(&["volume", "delete", "v", "--yes"]).line(1);
    assert!(told.contains("session"), "{told}");
    // What only reads it concerns nobody.
    daemon.esker(&["snapshot", "create", "v@s"]).ok();
    holds(&mut daemon.client("v@s"), 0..16, 2);

    let b = attach(&daemon, "v", "b", true);
    assert_ne!(a, b);
    has_ended(first);
    has_ended(second);
    let told = refused(&daemon, &a);
    assert!(told.contains("has ended: b holds it since"), "{told}");
    let told = refused(&daemon, "v:77");
    assert!(told.contains("volume v has no attachment 77"), "{told}");
    let mut client = daemon.client(&b);
    holds(&mut client, 0..16, 2);
    write(&mut client, 0..16, 3);
    drop(client);

    // It stays so when the daemon is killed, and nobody deletes what somebody holds.
    daemon.kill();
    let daemon = how.ready();
    let told = refused(&daemon, "v");
    assert!(told.contains("b holds volume v alone"), "{told}");
    let mut client = daemon.client(&b);
    holds(&mut client, 0..16, 3);
    let told = daemon
        .esker(&["volume", "detach", "v", "--attachment", "1"])
        .line(1);
    assert!(
        told.contains("attachment 1 of volume v is not in force: b holds it"),
        "{told}"
    );
    write(&mut client, 0..16, 4);
    let shown = daemon.json(&["volume", "detach", "v"]);
    assert!(shown["attachment"].is_null(), "{shown}");
    has_ended(client);
    let told = refused(&daemon, &b);
    assert!(told.contains("has ended, and nobody holds it"), "{told}");
    holds(&mut daemon.client("v"), 0..16, 4);
    // Again changes nothing.
    daemon.esker(&["volume", "detach", "v"]).ok();
    let c = attach(&daemon, "v", "c", false);
    let told = daemon
        .esker(&["volume", "delete", "v", "--with-snapshots", "--yes"])
        .line(1);
    assert!(
        told.contains("c holds volume v") && told.contains("detach"),
        "{told}"
    );
    assert_eq!(c, "v:4");
    daemon
        .esker(&["volume", "detach", "v", "--attachment", "4"])
        .ok();
    daemon
        .esker(&["volume", "delete", "v", "--with-snapshots", "--yes"])
        .ok();
    for bad in ["", "a b", "\u{e4}"] {
        daemon.create("w", "16MiB");
        let told = daemon
            .esker(&["volume", "attach", "w", "--holder", bad])
            .line(1);
        assert!(told.contains("is no holder"), "{told}");
        daemon.esker(&["volume", "delete", "w", "--yes"]).ok();
    }
    daemon.stop();
}

/// One writes without a pause through one node, and another one takes the volume over through the second and reads it through the
/// third: from the answer to that on, nothing changes but by the new holder.
#[test]
fn nothing_of_a_fenced_holder_comes_after_who_took_its_place() {
    const BLOCKS: u64 = 32;
    let members = Members::new(3);
    let nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let node = |at: usize| nodes[at % 3].as_ref().unwrap();
    node(0)
        .esker(&[
            "volume",
            "create",
            "v",
            "--size",
            "16MiB",
            "--replicas",
            "3",
        ])
        .ok();
    let leader = serving(&nodes, "v");
    let written = AtomicU64::new(0);
    for round in 0..6 {
        // Through the leader and through others, by turns.
        let through = leader + round;
        let holder = format!("holder-{round}");
        let export = attach(node(leader + 1), "v", &holder, true);
        let mut client = node(through).client(&export);
        write(&mut client, 0..BLOCKS, 1);
        std::thread::scope(|scope| {
            let before = written.load(Ordering::Relaxed);
            let writer = scope.spawn(|| {
                let mut client = client;
                let version = |at: u64| 1000 * (round as u64 + 1) + at / BLOCKS;
                let send = |client: &mut Client, at: u64| {
                    let lba = at % BLOCKS;
                    let block = fill(1, lba, version(at));
                    client.send(0, WRITE, lba * BLOCK as u64, BLOCK as u32, &block)
                };
                for at in 0.. {
                    if send(&mut client, at).is_err() {
                        break;
                    }
                    // As many as there are blocks on their way.
                    if at >= BLOCKS && !matches!(client.reply(), Ok((_, 0))) {
                        break;
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
            until("it writes", || {
                written.load(Ordering::Relaxed) > before + 200
            });
            let other = attach(node(through + 1), "v", "taker", true);
            let mut taker = node(through + 2).client(&other);
            let read = |taker: &mut Client| {
                taker
                    .read(0, (BLOCKS * BLOCK as u64) as u32)
                    .unwrap()
                    .unwrap()
            };
            let seen = read(&mut taker);
            for _ in 0..4 {
                std::thread::sleep(Duration::from_millis(50));
                assert!(
                    read(&mut taker) == seen,
                    "a write of a fenced holder came late"
                );
            }
            write(&mut taker, 0..BLOCKS, 7);
            writer.join().unwrap();
            holds(&mut taker, 0..BLOCKS, 7);
        });
        assert!(refused(node(through), &export).contains("taker holds it since"));
    }
    for at in 0..3 {
        let told = node(at).esker(&["volume", "delete", "v", "--yes"]).line(1);
        assert!(told.contains("taker holds volume v"), "{told}");
    }
    node(0).esker(&["volume", "detach", "v"]).ok();
    until("it is deleted", || {
        node(0).esker(&["volume", "delete", "v", "--yes"]).code == Some(0)
    });
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}

/// The node through which a holder writes stops for a while, with writes of the holder on their way, and knows nothing of who
/// takes over meanwhile. When it goes on, it leads or it does not.
#[test]
fn a_node_that_was_held_up_brings_nothing_of_a_fenced_holder() {
    // What a socket takes without anybody at its other end.
    const BLOCKS: u64 = 16;
    let members = Members::new(3);
    let nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let node = |at: usize| nodes[at % 3].as_ref().unwrap();
    node(0)
        .esker(&[
            "volume",
            "create",
            "v",
            "--size",
            "16MiB",
            "--replicas",
            "3",
        ])
        .ok();
    for round in 0..4u64 {
        // A follower first, then the leader.
        let held_up = serving(&nodes, "v") + usize::from(round % 2 == 0);
        let export = attach(node(held_up + 1), "v", &format!("holder-{round}"), true);
        let mut client = node(held_up).client(&export);
        write(&mut client, 0..BLOCKS, 1);
        signal(node(held_up).pid(), "STOP");
        for lba in 0..BLOCKS {
            let block = fill(1, lba, 1000 + round);
            client
                .send(0, WRITE, lba * BLOCK as u64, BLOCK as u32, &block)
                .unwrap();
        }
        let words = ["volume", "attach", "v", "--holder", "taker", "--fence"];
        // Whoever led does not answer, and who leads after it does: nobody waits for the first until it is given up.
        let asked = Instant::now();
        until("it is taken over", || {
            node(held_up + 1).esker(&words).code == Some(0)
        });
        assert!(asked.elapsed() < Duration::from_secs(30));
        let other = attach(node(held_up + 1), "v", "taker", false);
        let mut taker = node(held_up + 2).client(&other);
        holds(&mut taker, 0..BLOCKS, 1);
        signal(node(held_up).pid(), "CONT");
        has_ended(client);
        std::thread::sleep(Duration::from_millis(200));
        holds(&mut taker, 0..BLOCKS, 1);
        assert!(refused(node(held_up), &export).contains("taker holds it since"));
    }
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}
