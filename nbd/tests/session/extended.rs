//! Extended headers: 64-bit lengths, payloads where a flag says so, every reply a chunk.

use crate::client::{
    chunk_in, closed, done, export, extended, info, messages, only_error, option, option_replies,
    option_reply, request, requests, Form, Message, Peer, DONE, PAYLOAD, SIZE,
};
use bytes::Bytes;
use esker_nbd::{Operation, ReadPiece, Reply, RequestError, SessionLimits};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;
const EXTENDED: Form = Form::Extended;

fn refused(peer: &mut Peer, raw: &[u8]) -> u32 {
    assert_eq!(peer.send(raw), []);
    let offset = u64::from_be_bytes(raw[16..24].try_into().expect("eight bytes"));
    let error = only_error(EXTENDED, &peer.output(), (42, offset));
    still_serves(peer);
    error
}

fn still_serves(peer: &mut Peer) {
    let flush = peer.one(&extended(0, FLUSH, 7, 0, 0, &[]));
    peer.0.complete(flush.id, Ok(Reply::Done));
    assert_eq!(messages(&peer.output()), [done(EXTENDED, 7, 0)]);
}

#[test]
fn they_replace_structured_replies_and_cannot_be_left() {
    for first in [&[][..], &[8]] {
        let mut peer = Peer::haggling();
        for code in first {
            peer.send(&option(*code, &[]));
        }
        peer.output();
        peer.send(&option(11, &[]));
        assert_eq!(option_replies(&peer.output()), [option_reply(11, 1, &[])]);
        peer.send(&option(8, &[]));
        assert_eq!(option_replies(&peer.output())[0].kind, ERR_EXT_HEADER_REQD);
        peer.send(&option(7, &info("vol", &[])));
        peer.0.export(Ok(export()));
        peer.output();
        still_serves(&mut peer);
    }
}

#[test]
fn export_name_after_them_ends_the_session() {
    let mut peer = Peer::haggling();
    peer.send(&option(11, &[]));
    peer.output();
    assert_eq!(closed(&peer.send(&option(1, b"vol"))), Some(false));
    assert_eq!(peer.output(), []);
}

#[test]
fn ranges_have_sixty_four_bits() {
    let mut huge = export();
    huge.size_bytes = 1 << 46;
    for command in [TRIM, ZEROES, CACHE] {
        let mut peer = Peer::attached_with(SessionLimits::default(), EXTENDED, huge.clone());
        for length in [1 << 32, (1 << 46) - 4096] {
            let asked = peer.one(&extended(0, command, 42, 4096, length, &[]));
            assert_eq!((asked.offset, asked.length), (4096, length));
            assert_eq!(peer.0.bytes_in_flight(), 0);
            peer.0.complete(asked.id, Ok(Reply::Done));
            assert_eq!(messages(&peer.output()), [done(EXTENDED, 42, 4096)]);
        }
        let past = if command == CACHE { EINVAL } else { ENOSPC };
        for length in [1 << 46, u64::MAX, u64::MAX - 4095] {
            let raw = extended(0, command, 42, 4096, length, &[]);
            assert_eq!(refused(&mut peer, &raw), past);
        }
    }
}

#[test]
fn reads_stay_limited() {
    let mut peer = Peer::attached(EXTENDED);
    for length in [(32 << 20) + 1, 1 << 32, u64::MAX] {
        let raw = extended(0, READ, 42, 0, length, &[]);
        assert_eq!(refused(&mut peer, &raw), EOVERFLOW);
    }
    assert_eq!(
        peer.one(&extended(0, READ, 42, 0, 32 << 20, &[])).length,
        32 << 20
    );
}

#[test]
fn reads_are_chunks_that_repeat_the_requests_offset() {
    let mut peer = Peer::attached(EXTENDED);
    let asked = peer.one(&extended(0, READ, 42, 100, 7, &[]));
    let data = ReadPiece::Data(Bytes::from_static(b"abc"));
    let pieces = vec![data, ReadPiece::Zeros(4)];
    peer.0.complete(asked.id, Ok(Reply::Data(pieces)));
    let at = |offset: u64, rest: &[u8]| [&offset.to_be_bytes()[..], rest].concat();
    let expected = [
        chunk_in(EXTENDED, 0, 1, (42, 100), &at(100, b"abc")),
        chunk_in(EXTENDED, DONE, 2, (42, 100), &at(103, &[0, 0, 0, 4])),
    ];
    assert_eq!(messages(&peer.output()), expected);
}

/// QEMU's client leaves the flag out of its writes. The payload was then taken for the next request, which
/// ended the session.
#[test]
fn a_write_has_its_payload_with_and_without_the_flag() {
    let mut peer = Peer::attached(EXTENDED);
    for flags in [PAYLOAD, 0] {
        let asked = peer.one(&extended(flags, WRITE, 42, 8, 3, b"abc"));
        let payload = Bytes::from_static(b"abc");
        assert_eq!(asked.op, Operation::Write { payload });
        assert_eq!((asked.offset, asked.length), (8, 3));
    }
    // A refused one is read to its end as well.
    let past = extended(0, WRITE, 42, SIZE, 512, &[7; 512]);
    assert_eq!(refused(&mut peer, &past), ENOSPC);
}

#[test]
fn payloads_nobody_expects_are_dropped() {
    let mut peer = Peer::attached(EXTENDED);
    for command in [READ, FLUSH, TRIM, CACHE, ZEROES, STATUS, 8, 99] {
        for length in [0u64, 1, 12, 1000] {
            let data = vec![0x25; usize::try_from(length).expect("small")];
            let raw = extended(PAYLOAD, command, 42, 0, length, &data);
            assert_eq!(refused(&mut peer, &raw), EINVAL, "{command} {length}");
        }
    }
    // The refusal follows the payload.
    let raw = extended(PAYLOAD, READ, 42, 0, 100, &[1; 100]);
    assert_eq!(peer.send(&raw[..131]), []);
    assert_eq!(peer.output(), []);
    assert_eq!(peer.send(&raw[131..]), []);
    assert_eq!(only_error(EXTENDED, &peer.output(), (42, 0)), EINVAL);
}

#[test]
fn a_payload_past_the_maximum_ends_the_session() {
    let limits = SessionLimits {
        request_bytes_max: 1 << 20,
        ..SessionLimits::default()
    };
    for command in [READ, WRITE, TRIM, STATUS, 99] {
        for length in [(32 << 20) + 1, 1 << 32, u64::MAX] {
            let mut peer = Peer::attached_with(limits.clone(), EXTENDED, export());
            let header = extended(PAYLOAD, command, 1, 0, length, &[]);
            assert_eq!(closed(&peer.send(&header)), Some(false));
            assert_eq!(peer.output(), []);
        }
    }
    // Up to 2^25 bytes are no attack, even past the maximum that was told.
    let mut peer = Peer::attached_with(limits, EXTENDED, export());
    let long = vec![0; 32 << 20];
    let raw = extended(PAYLOAD, WRITE, 42, 0, 32 << 20, &long);
    assert_eq!(refused(&mut peer, &raw), EINVAL);
}

#[test]
fn a_larger_maximum_of_the_servers_is_honoured() {
    let limits = SessionLimits {
        request_bytes_max: 64 << 20,
        ..SessionLimits::default()
    };
    let mut roomy = export();
    roomy.block_size_max = 0;
    let mut peer = Peer::attached_with(limits, EXTENDED, roomy);
    assert_eq!(
        peer.send(&extended(PAYLOAD, WRITE, 1, 0, 64 << 20, &[])),
        []
    );
    assert!(peer.0.wants_input());
}

#[test]
fn the_other_magic_ends_the_session() {
    let mut peer = Peer::attached(EXTENDED);
    let compact = [request(0, READ, 1, 0, 512, &[]), vec![0; 4]].concat();
    assert_eq!(closed(&peer.send(&compact)), Some(false));
    for form in [Form::Simple, Form::Structured] {
        let mut peer = Peer::attached(form);
        let raw = extended(0, READ, 1, 0, 512, &[]);
        assert_eq!(closed(&peer.send(&raw)), Some(false));
    }
}

#[test]
fn the_payload_flag_means_nothing_without_them() {
    for form in [Form::Simple, Form::Structured] {
        let mut peer = Peer::attached(form);
        for (command, data) in [(READ, &[][..]), (TRIM, &[]), (WRITE, &[1; 512])] {
            assert_eq!(peer.send(&request(PAYLOAD, command, 42, 0, 512, data)), []);
            assert_eq!(only_error(form, &peer.output(), (42, 0)), EINVAL);
        }
    }
}

#[test]
fn disconnect_and_shutdown_are_as_ever() {
    let mut peer = Peer::attached(EXTENDED);
    let asked = peer.one(&extended(0, TRIM, 42, 8, 512, &[]));
    assert_eq!(peer.send(&extended(0, DISC, 1, 0, 0, &[])), []);
    peer.0.complete(asked.id, Ok(Reply::Done));
    assert_eq!(closed(&peer.actions()), Some(true));
    assert_eq!(messages(&peer.output()), [done(EXTENDED, 42, 8)]);
    let mut peer = Peer::attached(EXTENDED);
    let held = peer.one(&extended(0, TRIM, 42, 8, 512, &[]));
    peer.send(&extended(PAYLOAD, WRITE, 43, 8, 512, &[7; 100]));
    peer.0.shutdown();
    assert_eq!(peer.actions(), []);
    assert_eq!(peer.send(&[7; 412]), []);
    assert_eq!(only_error(EXTENDED, &peer.output(), (43, 8)), 108);
    peer.0.complete(held.id, Ok(Reply::Done));
    assert_eq!(closed(&peer.actions()), Some(true));
}

/// Error chunk with a place: error (32 bits), length of the text (16 bits), text, offset (64 bits).
fn place_of(payload: &[u8]) -> (u32, u64) {
    let error = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
    let text = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
    assert_eq!(payload.len(), 6 + text + 8);
    let offset = payload[6 + text..].try_into().expect("eight bytes");
    (error, u64::from_be_bytes(offset))
}

#[test]
fn an_error_says_where_it_is() {
    let mut peer = Peer::attached(Form::Structured);
    let asked = peer.one(&request(0, READ, 42, 4096, 8192, &[]));
    peer.0.fail_at(asked.id, RequestError::Io, 8192);
    let replies = messages(&peer.output());
    let [Message::Chunk {
        flags: DONE,
        kind: 0x8002,
        cookie: 42,
        payload,
    }] = replies.as_slice()
    else {
        panic!("{replies:?}")
    };
    assert_eq!(place_of(payload), (EIO, 8192));

    let mut peer = Peer::attached(EXTENDED);
    let write = extended(PAYLOAD, WRITE, 42, 4096, 512, &[1; 512]);
    let asked = peer.one(&write);
    peer.0.fail_at(asked.id, RequestError::Io, 4607);
    let replies = messages(&peer.output());
    let [Message::Extended {
        flags: DONE,
        kind: 0x8002,
        cookie: 42,
        offset: 4096,
        payload,
    }] = replies.as_slice()
    else {
        panic!("{replies:?}")
    };
    assert_eq!(place_of(payload), (EIO, 4607));
    assert_eq!(peer.0.bytes_in_flight(), 0);
    // A place outside of the request is not told, nor one to a client that has no words for it.
    for place in [0, 4095, 4608, u64::MAX] {
        let asked = peer.one(&write);
        peer.0.fail_at(asked.id, RequestError::Io, place);
        assert_eq!(only_error(EXTENDED, &peer.output(), (42, 4096)), EIO);
    }
    let mut peer = Peer::attached(Form::Simple);
    let asked = peer.one(&request(0, READ, 42, 4096, 512, &[]));
    peer.0.fail_at(asked.id, RequestError::Io, 4096);
    assert_eq!(only_error(Form::Simple, &peer.output(), (42, 0)), EIO);
}

#[test]
fn compact_and_extended_requests_mean_the_same() {
    for command in [READ, TRIM, CACHE, ZEROES] {
        let mut compact = Peer::attached(Form::Structured);
        let mut wide = Peer::attached(EXTENDED);
        let a = requests(compact.send(&request(1, command, 5, 10, 20, &[])));
        let b = requests(wide.send(&extended(1, command, 5, 10, 20, &[])));
        assert_eq!(a, b);
    }
}
