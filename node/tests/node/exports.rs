//! What clients attach to, and how long they may take for it.

use crate::harness::{
    extents, option, queries, request, World, FLUSH, MIB, READ, STATUS, TRIM, VOLUME_BYTES, WRITE,
};
use esker_base::num::to_usize;
use esker_base::{limits, ConnId};
use esker_node::admin::{AdminError, AdminRequest};
use esker_node::Event;

const ACK: u32 = 1;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ALLOCATION: &str = "base:allocation";
const SINCE_S: &str = "qemu:dirty-bitmap:since=s";

/// A client that connected and said nothing held its place for ever: 4096 of them, and nobody got in.
#[test]
fn a_handshake_has_its_time() {
    let mut world = World::new();
    let attached = world.attach(1);
    let silent = world.connect(2);
    let limit = limits::HANDSHAKE_TIME_MAX.as_secs();
    world.pass(limit / 2 + 1);
    let slow = world.connect(3);
    world.give(slow, option(3, &[])); // LIST
    world.pass(limit / 2);
    assert_eq!(world.closed.keys().collect::<Vec<_>>(), [&silent]);
    assert!(world.closed[&silent].contains("handshake"));
    world.give(slow, option(1, b"v"));
    world.pass(limit * 3);
    assert_eq!(world.closed.len(), 1, "who is attached may rest for ever");
    for conn in [attached, slow] {
        world.replies.remove(&conn);
        world.give(conn, request(READ, 0, 4096, 0));
        world.rest_a_little();
        assert_eq!(world.replied(conn), 16 + 4096);
    }
}

fn attached(told: &[(u32, Vec<u8>)]) -> bool {
    told.last().is_some_and(|(kind, _)| *kind == ACK)
}

fn data(chunks: &[(u16, Vec<u8>)]) -> &[u8] {
    assert_eq!((chunks.len(), chunks[0].0), (1, 1), "{chunks:?}");
    &chunks[0].1[8..]
}

/// A world whose volume has a mebibyte of 1s at 8 MiB, is cut as `s`, and then has 2s over their second half and
/// behind it.
fn cut() -> (World, ConnId) {
    let mut world = World::new();
    assert!(attached(&world.go(1, "v", &[])));
    let head = ConnId(1);
    world.answered(head, request(WRITE, 8 * MIB, MIB, 1));
    world.snapshot("s").unwrap();
    world.answered(head, request(WRITE, 8 * MIB + MIB / 2, MIB, 2));
    (world, head)
}

#[test]
fn a_snapshot_is_read_at_its_cut_and_refuses_every_change() {
    for merged in [false, true] {
        let (mut world, head) = cut();
        if merged {
            world.ask(AdminRequest::Checkpoint).unwrap();
        }
        let told = world.go(2, "v@s", &[ALLOCATION]);
        assert!(attached(&told), "{told:?}");
        // Size and READ_ONLY.
        let info = &told.iter().find(|(kind, _)| *kind == 3).unwrap().1;
        assert_eq!(info[2..10], VOLUME_BYTES.to_be_bytes());
        assert_eq!(info[11] & 2, 2);
        let cut = ConnId(2);
        let read = world.answered(cut, request(READ, 8 * MIB + 100, MIB - 100, 0));
        assert!(data(&read).iter().all(|byte| *byte == 1));
        let holes = (8 * MIB, 3);
        let rest = (to_usize(VOLUME_BYTES) - 9 * MIB, 3);
        let all = world.status(cut, to_usize(VOLUME_BYTES));
        assert_eq!(all, [vec![holes, (MIB, 0), rest]]);
        for command in [WRITE, TRIM, 6] {
            let refused = world.answered(cut, request(command, 0, 4096, 1));
            assert_eq!(refused[0].1[..4], 1u32.to_be_bytes(), "EPERM: {refused:?}");
        }
        assert_eq!(
            world.answered(cut, request(FLUSH, 0, 0, 0)),
            [(0, vec![0; 4])]
        );
        // The volume goes on meanwhile.
        world.answered(head, request(TRIM, 8 * MIB, MIB, 0));
        world.ask(AdminRequest::Checkpoint).unwrap();
        let again = world.answered(cut, request(READ, 8 * MIB, MIB, 0));
        assert!(data(&again).iter().all(|byte| *byte == 1));
    }
}

#[test]
fn what_a_session_uses_is_not_deleted() {
    let (mut world, head) = cut();
    world.snapshot("t").unwrap();
    assert!(attached(&world.go(2, "v@s", &[])));
    let refused = world.delete_snapshot("s").unwrap_err().to_string();
    assert!(refused.contains("session 2"), "{refused}");
    // Compared with is used as well.
    assert!(attached(&world.go(3, "v@t", &[SINCE_S])));
    let gone = |world: &mut World, number| {
        let (conn, reason) = (ConnId(number), String::from("gone"));
        world.events.push(Event::Disconnected { conn, reason });
        world.rest_a_little();
    };
    gone(&mut world, 2);
    let refused = world.delete_snapshot("s").unwrap_err().to_string();
    assert!(refused.contains("session 3"), "{refused}");
    gone(&mut world, 3);
    // Selected and deleted before the attachment: the client is told.
    let conn = world.connect(4);
    world.give(conn, option(8, &[]));
    world.give(conn, option(10, &queries("v", &[SINCE_S])));
    world.rest_a_little();
    world.delete_snapshot("s").unwrap();
    world.told(conn);
    world.give(conn, option(7, b"\0\0\0\x01v\0\0"));
    world.rest_a_little();
    let told = world.told(conn);
    assert_eq!((told.len(), told[0].0), (1, ERR_UNKNOWN), "{told:?}");
    let told = world.go(5, "v@s", &[]);
    assert!(
        told.iter().any(|(kind, _)| *kind == ERR_UNKNOWN),
        "{told:?}"
    );
    let whole = world.answered(head, request(READ, 8 * MIB, MIB, 0));
    assert_eq!((data(&whole)[0], data(&whole)[MIB - 1]), (1, 2));
}

#[test]
fn what_changed_is_told_of_volumes_and_of_snapshots() {
    for merged in [false, true] {
        let (mut world, head) = cut();
        world.snapshot("t").unwrap();
        world.answered(head, request(WRITE, 0, 4096, 3));
        if merged {
            world.ask(AdminRequest::Checkpoint).unwrap();
        }
        assert!(attached(&world.go(2, "v@t", &[SINCE_S, ALLOCATION])));
        assert!(attached(&world.go(3, "v", &[SINCE_S])));
        // Answered as soon as it is on the device, and not in the map yet: it counts.
        world.give(head, request(WRITE, 64 * MIB, 4096, 3));
        let size = to_usize(VOLUME_BYTES);
        let changed = [
            (8 * MIB + MIB / 2, 0),
            (MIB, 1),
            (size - 9 * MIB - MIB / 2, 0),
        ];
        let held = [
            (8 * MIB, 3),
            (MIB + MIB / 2, 0),
            (size - 9 * MIB - MIB / 2, 3),
        ];
        let told = world.status(ConnId(2), size);
        assert_eq!(told, [held.to_vec(), changed.to_vec()]);
        let told = world.status(ConnId(3), size);
        let dirty: Vec<usize> = told[0].iter().filter(|e| e.1 == 1).map(|e| e.0).collect();
        assert_eq!(dirty, [4096, MIB, 4096]);
        // One extent, where that is asked for.
        let mut one = request(STATUS, 0, size, 0);
        one[5] = 8;
        let told = world.answered(ConnId(3), one);
        assert_eq!(extents(&told), [vec![(4096, 1)]]);
    }
}

/// Questions that wait for a checkpoint do not stand before reads, and each is answered in the end.
#[test]
fn who_waits_for_a_checkpoint_holds_nobody_up() {
    let (mut world, head) = cut();
    assert!(attached(&world.go(2, "v", &[SINCE_S])));
    world.replies.clear();
    for _ in 0..200 {
        world.give(ConnId(2), request(STATUS, 0, 64 * MIB, 0));
    }
    world.turn();
    // Nothing of the device ends but reads: no checkpoint does.
    for _ in 0..20 {
        world.give(head, request(READ, 8 * MIB, MIB, 0));
        for _ in 0..50 {
            world.disk_reads();
            world.turn();
        }
        assert_eq!(world.chunks(head).len(), 1);
        assert_eq!(world.replied(ConnId(2)), 0);
    }
    world.rest();
    assert_eq!(world.chunks(ConnId(2)).len(), 200);
}

#[test]
fn lists_are_bounded_and_everything_is_found_by_its_name() {
    let mut world = World::new();
    for i in 0..100 {
        world.snapshot(&format!("s{i}")).unwrap();
    }
    let conn = world.connect(1);
    world.give(conn, option(8, &[]));
    world.give(conn, option(3, &[]));
    world.rest_a_little();
    let told = world.told(conn);
    let names: Vec<&[u8]> = told[1..]
        .iter()
        .filter(|t| t.0 == 2)
        .map(|t| &t.1[4..])
        .collect();
    assert_eq!(names.len(), 17);
    assert_eq!(
        (names[0], names[1], names[16]),
        (&b"v"[..], &b"v@s99"[..], &b"v@s84"[..])
    );
    let mut list = |export: &str, asked: &[&str]| -> Vec<String> {
        world.give(conn, option(9, &queries(export, asked)));
        world.rest_a_little();
        let told = world.told(conn);
        assert!(attached(&told), "{told:?}");
        let names = told[..told.len() - 1].iter();
        names
            .map(|(_, raw)| String::from_utf8_lossy(&raw[4..]).into_owned())
            .collect()
    };
    let since = |i: usize| format!("qemu:dirty-bitmap:since=s{i}");
    let all = list("v", &[]);
    assert_eq!((all.len(), all[0].as_str()), (65, ALLOCATION));
    assert_eq!((&all[1], &all[64]), (&since(99), &since(36)));
    assert_eq!(list("v", &["qemu:dirty-bitmap:"]), all[1..]);
    assert_eq!(list("v", &["base:"]), [ALLOCATION]);
    assert_eq!(
        list("v", &[&since(0), "qemu:dirty-bitmap:since=none"]),
        [since(0)]
    );
    // Of a snapshot: those before it.
    assert_eq!(list("v@s2", &["qemu:"]), [since(1), since(0)]);
    assert_eq!(list("v@s2", &[&since(2), &since(3)]), Vec::<String>::new());
    assert!(attached(&world.go(2, "v@s0", &[])));
}

/// Who decides by labels that were seen does nothing when they are others by then.
#[test]
fn labels_change_only_from_what_they_were_seen_as() {
    let mut world = World::new();
    let mut set = |value: &str, expects: Option<(&str, &str)>| {
        let text = |(key, value): (&str, &str)| (key.to_string(), value.to_string());
        world.ask(AdminRequest::VolumeRelabel {
            name: "v".into(),
            labels: [("n".to_string(), Some(value.to_string()))].into(),
            expects: expects.map(text),
        })
    };
    let is_refused = |answer| matches!(answer, Err(AdminError::NotLeading(_)));
    assert!(is_refused(set("1", Some(("n", "0")))), "there is none");
    set("1", None).unwrap();
    set("2", Some(("n", "1"))).unwrap();
    assert!(is_refused(set("3", Some(("n", "1")))), "it is 2");
    set("3", Some(("n", "2"))).unwrap();
}

/// What a cluster keeps its members in is nobody's export, nor the only volume.
#[test]
fn the_metadata_volume_is_no_export() {
    let mut world = World::new();
    let name = limits::METADATA_VOLUME;
    let created = world.ask(AdminRequest::VolumeCreate {
        name: name.into(),
        size_bytes: 4096,
        labels: [].into(),
        encrypted: false,
    });
    created.unwrap();
    assert!(attached(&world.go(1, "", &[])), "the only other one");
    let refused = world.go(2, name, &[]);
    assert_eq!(refused.last().unwrap().0, ERR_UNKNOWN);
    let refused = world.go(3, &format!("{name}@s"), &[]);
    assert_eq!(refused.last().unwrap().0, ERR_UNKNOWN);
}
