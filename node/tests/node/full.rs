//! Stores that run full, and find room again.

use crate::harness::{option, request, World, FLUSH, MIB, TRIM, VOLUME_BYTES, WRITE};
use esker_base::ConnId;
use esker_node::admin::AdminRequest;
use std::collections::BTreeMap;

const PART: usize = 4 * MIB;
const NO_SPACE: u32 = 28;

/// A node with a second volume, and clients of both.
fn world() -> (World, ConnId, ConnId) {
    let mut world = World::new();
    let request = AdminRequest::VolumeCreate {
        name: "ballast".into(),
        size_bytes: VOLUME_BYTES,
        labels: BTreeMap::new(),
        encrypted: false,
    };
    world.ask(request).unwrap();
    let (files, ballast) = (world.attach(1), world.connect(2));
    world.give(ballast, option(1, b"ballast"));
    world.rest_a_little();
    world.replies.remove(&ballast);
    (world, files, ballast)
}

/// Asks, and waits for the answer, at most for so many turns of the device; its error.
fn ask(world: &mut World, conn: ConnId, request: Vec<u8>) -> u32 {
    world.replies.remove(&conn);
    world.give(conn, request);
    for _ in 0..4000 {
        world.disk(1);
        world.events.push(esker_node::Event::Timer);
        world.turn();
        if world.replied(conn) > 0 {
            let reply = &world.replies[&conn];
            return u32::from_be_bytes(reply[4..8].try_into().unwrap());
        }
    }
    panic!("no answer: {}", world.node.engine().progress());
}

/// Writes parts one after the other; the number of the first that finds no room.
fn fill(world: &mut World, conn: ConnId) -> Option<usize> {
    let parts = usize::try_from(VOLUME_BYTES).unwrap() / PART;
    let write = |n: usize| request(WRITE, n * PART, PART, 7);
    (0..parts).find(|n| ask(world, conn, write(*n)) == NO_SPACE)
}

/// What a trim gives back is there once the checkpoint that merges it has ended. Until then the store's sums
/// say that it is full, and they rise while others' writes are merged: a client was told ENOSPC after it had
/// been told that there was room. Now it waits.
#[test]
fn a_write_behind_the_trim_that_makes_room_waits_for_it() {
    let (mut world, files, ballast) = world();
    assert_eq!(fill(&mut world, ballast), None, "half the store holds it");
    world.rest();
    let refused = fill(&mut world, files).expect("it runs full");
    let length = usize::try_from(VOLUME_BYTES).unwrap();
    assert_eq!(ask(&mut world, ballast, request(TRIM, 0, length, 0)), 0);
    for n in refused..(length / PART).min(refused + 24) {
        let error = ask(&mut world, files, request(WRITE, n * PART, PART, 8));
        assert_eq!(error, 0, "write {n} after {refused}");
    }
    assert_eq!(ask(&mut world, files, request(FLUSH, 0, 0, 0)), 0);
}

/// A store that is full and stays so says that, whatever else goes on.
#[test]
fn a_full_store_refuses_soon() {
    let (mut world, files, ballast) = world();
    assert_eq!(fill(&mut world, ballast), None);
    let refused = fill(&mut world, files).expect("it runs full");
    for n in 0..20 {
        let began = world.now;
        let error = ask(&mut world, files, request(WRITE, refused * PART, PART, 8));
        assert_eq!(error, NO_SPACE, "write {n}");
        assert!(
            world.now - began < 1_000_000_000,
            "it is told within a second"
        );
    }
}
