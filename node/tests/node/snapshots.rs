//! Rollbacks beside clients.

use crate::harness::{option, request, World, MIB, READ, TRIM, WRITE, WRITE_ZEROES};
use esker_base::ConnId;
use esker_node::admin::{AdminError, AdminReply, AdminRequest, SnapshotReport};
use esker_node::{AdminToken, Event};
use std::collections::BTreeMap;

/// A volume whose first block is 1 in its snapshot `a` and 2 now, and a client.
fn world() -> (World, ConnId) {
    let mut world = World::new();
    let conn = world.attach(1);
    world.give(conn, request(WRITE, 0, 4096, 1));
    world.rest_a_little();
    let request_of_a = AdminRequest::SnapshotCreate {
        volume: "v".into(),
        name: "a".into(),
        labels: BTreeMap::new(),
    };
    world.ask(request_of_a).unwrap();
    world.give(conn, request(WRITE, 0, 4096, 2));
    world.rest_a_little();
    world.ask(AdminRequest::Checkpoint).unwrap();
    (world, conn)
}

fn begin_rollback(world: &mut World) {
    let request = AdminRequest::SnapshotRollback {
        volume: "v".into(),
        name: "a".into(),
        keep: None,
        force: true,
    };
    let token = AdminToken(9999);
    world.events.push(Event::Admin { token, request });
    world.turn();
}

fn first_block(world: &mut World, conn: ConnId) -> Vec<u8> {
    world.replies.remove(&conn);
    world.give(conn, request(READ, 0, 4096, 0));
    world.rest_a_little();
    world.replies[&conn][16..].to_vec()
}

/// What is read of a block to change a part of it is of the state that is left: laid over what came back,
/// it would bring that state into it.
#[test]
fn a_write_that_is_not_in_the_log_ends_with_the_rollback() {
    let (mut world, conn) = world();
    world.give(conn, request(WRITE, 100, 10, 9));
    world.turn();
    assert!(world.queued_bytes() > 0, "its block is being read");
    begin_rollback(&mut world);
    world.rest();
    assert!(world.closed[&conn].contains("rolled back"));
    let conn = world.attach(2);
    assert_eq!(first_block(&mut world, conn), [1; 4096]);
}

#[test]
fn who_attaches_during_a_rollback_sees_what_came_back() {
    let (mut world, _) = world();
    begin_rollback(&mut world);
    let conn = world.connect(2);
    (0..5).for_each(|_| world.turn());
    world.replies.remove(&conn);
    world.give(conn, option(1, b"v"));
    (0..5).for_each(|_| world.turn());
    assert_eq!(world.replied(conn), 0, "the device has done nothing yet");
    world.rest();
    assert!(world.replied(conn) > 0);
    assert_eq!(first_block(&mut world, conn), [1; 4096]);
    // What was left is a snapshot under a name that nobody gave.
    let list = AdminRequest::SnapshotList {
        volume: None,
        after: None,
    };
    let Ok(AdminReply::Snapshots(page)) = world.ask(list) else {
        panic!("no list");
    };
    let names: Vec<&str> = page.snapshots.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names.len(), 2);
    assert!(names[1].starts_with("before-rollback-"), "{names:?}");
}

fn listed(world: &mut World) -> Vec<SnapshotReport> {
    let list = AdminRequest::SnapshotList {
        volume: Some("v".into()),
        after: None,
    };
    match world.ask(list) {
        Ok(AdminReply::Snapshots(page)) => page.snapshots,
        other => panic!("no list: {other:?}"),
    }
}

#[test]
fn labels_stay_with_a_snapshot() {
    let (mut world, _) = world();
    let labels = BTreeMap::from([("by".to_owned(), "backup".to_owned())]);
    let create = AdminRequest::SnapshotCreate {
        volume: "v".into(),
        name: "b".into(),
        labels: labels.clone(),
    };
    let Ok(AdminReply::Snapshot(created)) = world.ask(create) else {
        panic!("no snapshot");
    };
    assert_eq!(created.labels, labels);
    let of = |world: &mut World| listed(world).into_iter().map(|s| s.labels);
    let all = [BTreeMap::new(), labels];
    assert!(of(&mut world).eq(all.clone()));
    // Whether the log says so after a crash, or a checkpoint.
    world.reopen();
    world.rest();
    assert!(of(&mut world).eq(all.clone()));
    world.ask(AdminRequest::Checkpoint).unwrap();
    world.reopen();
    world.rest();
    assert!(of(&mut world).eq(all));
}

fn differs(world: &mut World, to: Option<&str>) -> Vec<(u64, u64, bool)> {
    let diff = AdminRequest::SnapshotDiff {
        volume: "v".into(),
        of: None,
        from: "a".into(),
        to: to.map(str::to_owned),
        offset: 0,
    };
    match world.ask(diff) {
        Ok(AdminReply::Diff(page)) => {
            assert_eq!(page.through_bytes, page.size_bytes, "one page is enough");
            let mut all: Vec<(u64, u64, bool)> = Vec::new();
            for e in page.extents {
                match all.last_mut() {
                    // Neighbours of one kind may be in two.
                    Some((at, length, kind)) if (*at + *length, *kind) == (e.offset, e.is_data) => {
                        *length += e.length;
                    }
                    _ => all.push((e.offset, e.length, e.is_data)),
                }
            }
            all
        }
        other => panic!("no comparison: {other:?}"),
    }
}

/// A backup that misses what was trimmed brings it back.
#[test]
fn a_comparison_tells_what_was_trimmed_and_zeroed() {
    let (mut world, conn) = world();
    for offset in [1, 2] {
        world.give(conn, request(WRITE, offset * MIB, MIB, 3));
    }
    world.rest_a_little();
    world.delete_snapshot("a").unwrap();
    world.snapshot("a").unwrap();
    world.give(conn, request(TRIM, MIB, MIB, 0));
    world.give(conn, request(WRITE_ZEROES, 2 * MIB + 4096, 8192, 0));
    world.give(conn, request(WRITE, 8192, 4096, 4));
    world.rest_a_little();
    world.snapshot("b").unwrap();
    let mib = u64::try_from(MIB).unwrap();
    let expected = [
        (8192, 4096, true),
        (mib, mib, false),
        (2 * mib + 4096, 8192, false),
    ];
    for merged in [false, true] {
        if merged {
            world.ask(AdminRequest::Checkpoint).unwrap();
        }
        assert_eq!(differs(&mut world, Some("b")), expected, "merged: {merged}");
        assert_eq!(differs(&mut world, None), expected, "merged: {merged}");
    }
}

/// A client that has cached blocks would write them over what came back.
#[test]
fn a_rollback_is_refused_while_somebody_is_attached() {
    let (mut world, conn) = world();
    let rollback = |force| AdminRequest::SnapshotRollback {
        volume: "v".into(),
        name: "a".into(),
        keep: None,
        force,
    };
    let refused = world.ask(rollback(false));
    let Err(AdminError::Refused(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        why.contains("attached by") && why.contains("--force"),
        "{why}"
    );
    assert!(world.closed.is_empty());
    assert_eq!(listed(&mut world).len(), 1, "nothing was left behind");
    assert_eq!(
        first_block(&mut world, conn),
        [2; 4096],
        "it goes on as it was"
    );
    world.ask(rollback(true)).unwrap();
    assert!(world.closed[&conn].contains("rolled back"));
    let conn = world.attach(2);
    assert_eq!(first_block(&mut world, conn), [1; 4096]);
    // Nor does anybody who has left stand in the way.
    world.events.push(Event::Disconnected {
        conn,
        reason: "left".into(),
    });
    world.rest_a_little();
    world.ask(rollback(false)).unwrap();
}
