//! Sessions beside each other: turns, memory, and those that let nothing through.

use crate::harness::{request, World, MIB, READ, WRITE};
use esker_base::{limits, ConnId};
use esker_node::Event;

/// Turns and bytes of the device until a client is answered, at 128 KiB a turn.
fn waited(world: &mut World, conn: ConnId) -> usize {
    let before = world.replied(conn);
    for turns in 0..10_000 {
        if world.replied(conn) > before {
            return turns;
        }
        let mut bytes = 0;
        while bytes < 128 << 10 && !world.queue.is_empty() {
            let queued = world.queued_bytes();
            world.disk(1);
            bytes += queued - world.queued_bytes();
        }
        world.turn();
    }
    panic!("never answered")
}

/// Before turns, whatever a client asked for went to the device at once: 32 MiB at a time, and everybody
/// else's block after it.
#[test]
fn a_flood_of_maximal_requests_does_not_stand_before_a_single_block() {
    for command in [READ, WRITE] {
        let mut world = World::new();
        let (greedy, modest) = (world.attach(1), world.attach(2));
        world.fill(greedy);
        world.rest();
        let mut longest = 0;
        for round in 0..40 {
            let length = limits::REQUEST_BYTES_MAX;
            if round % 8 == 0 {
                world.give(greedy, request(command, 0, length, 1));
            }
            world.give(modest, request(READ, 200 * MIB + round * 4096, 4096, 0));
            let turns = waited(&mut world, modest);
            // The first ones find what was there before them.
            if round > 2 {
                longest = longest.max(turns);
            }
        }
        assert!(longest <= 10, "{command}: {longest} turns");
        let reply = if command == READ { 32 * MIB } else { 16 };
        for _ in 0..400 {
            world.disk(16);
            world.events.push(Event::Timer);
            world.turn();
        }
        assert!(world.replied(greedy) >= reply, "the flood is served, too");
    }
}

/// A request that enters in pieces is one request: what it writes lies where it belongs, and what was
/// read of the blocks it changes in part holds.
#[test]
fn a_request_in_pieces_is_whole() {
    let mut world = World::new();
    let (greedy, modest) = (world.attach(1), world.attach(2));
    world.fill(greedy);
    let (offset, length) = (5 * MIB + 1000, 3 * MIB + 333);
    world.give(modest, request(READ, 0, 4096, 0));
    world.rest_a_little();
    let mut write = request(WRITE, offset, length, 0);
    let pattern = |i: usize| u8::try_from((i / 512 + i % 251) % 251).unwrap();
    let payload = write.len() - length;
    (0..length).for_each(|i| write[payload + i] = pattern(i));
    world.give(greedy, write);
    for _ in 0..200 {
        world.give(modest, request(READ, 0, 4096, 0));
        world.disk(2);
        world.turn();
    }
    world.rest_a_little();
    assert_eq!(world.replied(greedy), 16);
    world.replies.remove(&greedy);
    world.give(modest, request(READ, 0, 4096, 0));
    world.give(greedy, request(READ, 5 * MIB, 4 * MIB, 0));
    for _ in 0..200 {
        world.disk(1);
        world.turn();
    }
    world.rest_a_little();
    let read = &world.replies[&greedy][16..];
    assert_eq!(read.len(), 4 * MIB);
    for (i, byte) in read.iter().enumerate() {
        let inside = (1000..1000 + length).contains(&i);
        let expected = if inside { pattern(i - 1000) } else { 7 };
        assert_eq!(*byte, expected, "at {i}");
    }
}

/// Sessions with the lowest numbers got all the room there was.
#[test]
fn room_goes_round_whatever_the_number_of_a_session() {
    let mut world = World::new();
    let filler = world.attach(1);
    world.fill(filler);
    let conns: Vec<ConnId> = (2..18).map(|n| world.attach(n)).collect();
    for conn in &conns {
        let many = (0..20).flat_map(|i| request(READ, i * MIB, MIB, 0));
        let many = many.collect();
        world.give(*conn, many);
    }
    // A quarter of what they ask for.
    let quarter = 16 * 20 * MIB / 4;
    while conns.iter().map(|c| world.replied(*c)).sum::<usize>() < quarter {
        world.disk(4);
        world.turn();
    }
    let replied: Vec<usize> = conns.iter().map(|c| world.replied(*c)).collect();
    let (least, most) = (replied.iter().min().unwrap(), replied.iter().max().unwrap());
    assert!(*least > 0 && *most <= 3 * *least, "{replied:?}");
}

/// Who lets nothing through is ended when others want for memory, and not before; who rests between
/// requests, never.
#[test]
fn only_who_holds_what_others_want_for_is_cut() {
    let mut world = World::new();
    let filler = world.attach(1);
    world.fill(filler);
    let idle = world.attach(2);
    let deaf = world.attach(3);
    world.deaf.insert(deaf);
    world.give(deaf, request(READ, 0, 16 * MIB, 0));
    let half = world.attach(4);
    let mut part = request(WRITE, 0, 16 * MIB, 1);
    part.truncate(5000);
    world.give(half, part);
    world.rest_a_little();
    let limit = limits::STALL_TIME_MAX.as_secs();
    world.pass(limit + 10);
    assert!(world.closed.is_empty(), "there is room: {:?}", world.closed);
    // Two more take what is left of the room, and take their replies slowly but surely.
    let mut more: Vec<ConnId> = Vec::new();
    for n in 5..8 {
        let conn = world.attach(n);
        world.deaf.insert(conn);
        world.give(conn, request(READ, 0, 16 * MIB, 0));
        more.push(conn);
    }
    world.rest_a_little();
    world.pass(5);
    let cut: Vec<ConnId> = world.closed.keys().copied().collect();
    assert_eq!(cut, [deaf, half], "{:?}", world.closed);
    assert!(world.closed[&deaf].contains("did not take a reply"));
    assert!(world.closed[&half].contains("did not send the rest"));
    // The others are served.
    world.give(idle, request(READ, 0, 4 * MIB, 0));
    world.rest_a_little();
    assert_eq!(world.replied(idle), 16 + 4 * MIB);
}
