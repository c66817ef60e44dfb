//! What clients attach to, and how long they may take for it.

use crate::harness::{option, request, World, READ};
use esker_base::limits;

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
