//! Rollbacks beside clients.

use crate::harness::{option, request, World, READ, WRITE};
use esker_base::ConnId;
use esker_node::admin::{AdminReply, AdminRequest};
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
