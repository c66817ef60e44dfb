//! Limits slow a session; they never end it, and never lose a request.

use crate::client::{export, messages, request, requests, write, Form, Peer};
use bytes::Bytes;
use esker_nbd::{
    Operation, ReadPiece, Reply, Request, RequestError, SessionLimits, INPUT_QUEUED_BYTES_MAX,
};
use proptest::prelude::*;

const READ: u16 = 0;
const FLUSH: u16 = 3;

fn limits(requests: usize, bytes: usize) -> SessionLimits {
    SessionLimits {
        request_bytes_max: 1 << 20,
        requests_in_flight_max: requests,
        bytes_in_flight_max: bytes,
    }
}

fn peer(requests: usize, bytes: usize) -> Peer {
    Peer::attached_with(limits(requests, bytes), Form::Structured, export())
}

fn reads(count: u64, length: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|cookie| request(0, READ, cookie, 0, length, &[]))
        .collect()
}

fn answer(peer: &mut Peer, request: &Request) {
    let reply = match request.op {
        Operation::Read { .. } => Reply::Data(vec![ReadPiece::Zeros(request.length)]),
        _ => Reply::Done,
    };
    peer.0.complete(request.id, Ok(reply));
}

#[test]
fn the_number_of_requests_is_limited() {
    let mut peer = peer(3, 1 << 20);
    let first = requests(peer.send(&reads(5, 16)));
    assert_eq!(
        (
            first.len(),
            peer.0.requests_in_flight(),
            peer.0.bytes_in_flight()
        ),
        (3, 3, 48)
    );
    assert!(!peer.0.wants_input());
    answer(&mut peer, &first[1]);
    assert_eq!(requests(peer.actions()).len(), 1);
    assert!(!peer.0.wants_input());
    for request in [&first[0], &first[2]] {
        answer(&mut peer, request);
    }
    assert_eq!(requests(peer.actions()).len(), 1);
    assert!(peer.0.wants_input());
}

#[test]
fn bytes_are_limited_but_one_request_is_always_admitted() {
    let mut peer = peer(100, 1000);
    let big = requests(peer.send(&reads(2, 5000)));
    assert_eq!((big.len(), peer.0.bytes_in_flight()), (1, 5000));
    assert!(!peer.0.wants_input());
    answer(&mut peer, &big[0]);
    assert_eq!(requests(peer.actions()).len(), 1);
    let mut peer = self::peer(100, 1000);
    assert_eq!(requests(peer.send(&reads(4, 400))).len(), 2);
    assert!(!peer.0.wants_input());
    let mut none = self::peer(0, 0);
    assert!(none.0.wants_input());
    assert_eq!(requests(none.send(&reads(2, 400))).len(), 1);
}

#[test]
fn at_a_limit_nothing_more_is_read_even_if_nothing_waits() {
    let mut peer = peer(2, 1000);
    let held = requests(peer.send(&reads(2, 10)));
    assert!(!peer.0.wants_input());
    answer(&mut peer, &held[0]);
    assert!(peer.0.wants_input());
    let mut peer = self::peer(9, 1000);
    peer.one(&reads(1, 1000));
    assert!(!peer.0.wants_input());
}

#[test]
fn requests_without_payload_cost_no_bytes() {
    let mut peer = peer(100, 10);
    for command in [4, 5, 6] {
        let request = peer.one(&request(0, command, 1, 0, u32::MAX, &[]));
        assert_eq!(peer.0.bytes_in_flight(), 0);
        answer(&mut peer, &request);
    }
}

#[test]
fn a_write_beyond_the_limits_waits_outside() {
    let mut peer = peer(2, 1000);
    let first = peer.one(&request(0, READ, 1, 0, 900, &[]));
    let message = write(0, 2, 0, &[5; 800]);
    assert_eq!(peer.send(&message[..128]), []);
    assert!(!peer.0.wants_input());
    assert_eq!(
        (peer.0.requests_in_flight(), peer.0.bytes_in_flight()),
        (1, 900)
    );
    answer(&mut peer, &first);
    assert_eq!(peer.actions(), []);
    assert!(peer.0.wants_input(), "its payload may come now");
    assert_eq!(
        (peer.0.requests_in_flight(), peer.0.bytes_in_flight()),
        (1, 800)
    );
    let second = peer.one(&message[128..]);
    assert_eq!(
        second.op,
        Operation::Write {
            payload: Bytes::from(vec![5; 800])
        }
    );
    peer.0.complete(second.id, Err(RequestError::NoSpace));
    assert_eq!(peer.0.bytes_in_flight(), 0);
}

#[test]
fn a_write_that_takes_the_last_place_still_gets_its_payload() {
    let mut peer = peer(2, 1000);
    let first = peer.one(&request(0, FLUSH, 1, 0, 0, &[]));
    let message = write(0, 2, 0, &[5; 1000]);
    assert_eq!(peer.send(&message[..28]), []);
    assert!(peer.0.wants_input());
    let second = peer.one(&message[28..]);
    assert!(!peer.0.wants_input());
    answer(&mut peer, &first);
    answer(&mut peer, &second);
    assert!(peer.0.wants_input());
}

#[test]
fn input_that_nobody_polls_for_is_not_wanted() {
    let mut peer = Peer::haggling();
    peer.0
        .receive(Bytes::from(vec![0; INPUT_QUEUED_BYTES_MAX - 1]));
    assert!(peer.0.wants_input());
    peer.0.receive(Bytes::from_static(&[0]));
    assert!(!peer.0.wants_input());
}

#[test]
fn shutdown_releases_a_request_that_waits_for_room() {
    let mut peer = peer(1, 1000);
    let first = peer.one(&request(0, READ, 1, 0, 10, &[]));
    assert_eq!(peer.send(&reads(1, 10)), []);
    peer.0.shutdown();
    assert_eq!(peer.actions(), []);
    assert_eq!(messages(&peer.output()).len(), 1);
    answer(&mut peer, &first);
    assert_eq!(crate::client::closed(&peer.actions()), Some(true));
}

proptest! {
    /// Whatever the limits, the splits and the order of the answers: the limits hold, the owner who
    /// obeys `wants_input` never gets stuck, and every request is answered once.
    #[test]
    fn a_slowed_session_serves_everything(
        requests_max in 0usize..6,
        bytes_max in 0usize..5000,
        sizes in prop::collection::vec((0u16..7, 0u32..3000), 1..40),
        split in 1usize..4000,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 1..50),
    ) {
        let mut stream = Vec::new();
        let mut expected = 0usize;
        for (command, length) in &sizes {
            if *command == 2 {
                continue; // a disconnect would end the stream
            }
            let data = vec![1; if *command == 1 { usize::try_from(*length).unwrap() } else { 0 }];
            stream.extend(request(0, *command, 1, 0, *length, &data));
            expected += 1;
        }
        let mut peer = peer(requests_max, bytes_max);
        let mut parts = stream.chunks(split);
        let (mut held, mut picks) = (Vec::<Request>::new(), picks.iter().cycle());
        let mut replies = 0;
        loop {
            let fed = peer.0.wants_input().then(|| parts.next()).flatten();
            let actions = fed.map_or_else(Vec::new, |part| peer.send(part));
            held.extend(requests(actions));
            prop_assert!(peer.0.requests_in_flight() <= requests_max.max(1));
            prop_assert!(
                peer.0.bytes_in_flight() <= bytes_max || peer.0.requests_in_flight() == 1
            );
            if fed.is_none() {
                if held.is_empty() {
                    break;
                }
                let pick = picks.next().unwrap().index(held.len());
                let request = held.swap_remove(pick);
                answer(&mut peer, &request);
                held.extend(requests(peer.actions()));
            }
            let done = messages(&peer.output());
            replies += done.iter().filter(|message| is_last(message)).count();
        }
        prop_assert!(parts.next().is_none(), "stuck with input left");
        prop_assert_eq!(replies, expected);
        prop_assert_eq!((peer.0.requests_in_flight(), peer.0.bytes_in_flight()), (0, 0));
    }
}

fn is_last(message: &crate::client::Message) -> bool {
    match message {
        crate::client::Message::Simple { .. } => true,
        crate::client::Message::Chunk { flags, .. }
        | crate::client::Message::Extended { flags, .. } => flags & 1 == 1,
    }
}
