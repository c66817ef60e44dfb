//! Every command, with simple and with structured replies, in good and bad shape.

use crate::client::{
    chunk_in, closed, done, export, messages, messages_with, only_error, request, request_in,
    requests, simple, write, Form, Peer, DONE, FORMS, PAYLOAD, SIZE,
};
use bytes::Bytes;
use esker_nbd::{Action, Operation, ReadPiece, Reply, RequestError, SessionLimits};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const FAST: u16 = 16;
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ESHUTDOWN: u32 = 108;
const MIB: u32 = 1 << 20;

/// A request; a write carries `length` bytes of sevens.
fn raw(form: Form, flags: u16, command: u16, offset: u64, length: u32) -> Vec<u8> {
    let carried = if command == WRITE {
        usize::try_from(length).expect("64-bit")
    } else {
        0
    };
    request_in(
        form,
        flags,
        command,
        (42, offset),
        length,
        &vec![7; carried],
    )
}

fn data(bytes: &'static [u8]) -> ReadPiece {
    ReadPiece::Data(Bytes::from_static(bytes))
}

fn at(offset: u64, rest: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], rest].concat()
}

/// Sends a request that the session answers itself; gives the error number.
fn refused(peer: &mut Peer, form: Form, raw: &[u8]) -> u32 {
    assert_eq!(peer.send(raw), []);
    let offset = u64::from_be_bytes(raw[16..24].try_into().expect("eight bytes"));
    let error = only_error(form, &peer.output(), (42, offset));
    still_serves(peer, form);
    error
}

/// The stream is in step: the next request is understood and answered.
fn still_serves(peer: &mut Peer, form: Form) {
    let flush = peer.one(&request_in(form, 0, FLUSH, (7, 0), 0, &[]));
    assert_eq!(flush.op, Operation::Flush);
    peer.0.complete(flush.id, Ok(Reply::Done));
    assert_eq!(messages(&peer.output()), [done(form, 7, 0)]);
}

#[test]
fn commands_without_data_are_handed_out_and_answered() {
    let zeroes = |no_hole, fast| Operation::WriteZeroes { no_hole, fast };
    let write_op = Operation::Write {
        payload: Bytes::from(vec![7; 100]),
    };
    let table = [
        (0, WRITE, write_op.clone(), false),
        (FUA, WRITE, write_op, true),
        (0, TRIM, Operation::Trim, false),
        (FUA, TRIM, Operation::Trim, true),
        (0, CACHE, Operation::Cache, false),
        (FUA, CACHE, Operation::Cache, false),
        (0, ZEROES, zeroes(false, false), false),
        (NO_HOLE, ZEROES, zeroes(true, false), false),
        (FAST, ZEROES, zeroes(false, true), false),
        (FUA | NO_HOLE | FAST, ZEROES, zeroes(true, true), true),
    ];
    for form in FORMS {
        let mut peer = Peer::attached(form);
        for (flags, command, op, fua) in &table {
            let asked = peer.one(&raw(form, *flags, *command, 5000, 100));
            assert_eq!((&asked.op, asked.fua), (op, *fua));
            assert_eq!((asked.offset, asked.length), (5000, 100));
            peer.0.complete(asked.id, Ok(Reply::Done));
            assert_eq!(messages(&peer.output()), [done(form, 42, 5000)]);
        }
        let flush = peer.one(&raw(form, FUA, FLUSH, 0, 0));
        assert_eq!((flush.op, flush.fua), (Operation::Flush, false));
    }
}

#[test]
fn every_error_reaches_the_client_in_the_right_form() {
    let errors = [
        (RequestError::ReadOnly, EPERM),
        (RequestError::Io, EIO),
        (RequestError::NoMemory, 12),
        (RequestError::Invalid, EINVAL),
        (RequestError::NoSpace, ENOSPC),
        (RequestError::TooBig, EOVERFLOW),
        (RequestError::NotSupported, 95),
        (RequestError::Shutdown, ESHUTDOWN),
    ];
    for form in FORMS {
        let mut peer = Peer::attached(form);
        for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
            for (error, number) in errors {
                let asked = peer.one(&raw(form, 0, command, 0, 512));
                peer.0.complete(asked.id, Err(error));
                assert_eq!(only_error(form, &peer.output(), (42, 0)), number);
            }
        }
        let flush = peer.one(&raw(form, 0, FLUSH, 0, 0));
        peer.0.complete(flush.id, Err(RequestError::Io));
        assert_eq!(only_error(form, &peer.output(), (42, 0)), EIO);
    }
}

#[test]
fn simple_reads_spell_out_zeros() {
    let mut peer = Peer::attached(Form::Simple);
    let asked = peer.one(&raw(Form::Simple, 0, READ, 10, 9));
    assert_eq!(
        asked.op,
        Operation::Read {
            dont_fragment: false
        }
    );
    let pieces = vec![
        data(b"abc"),
        ReadPiece::Zeros(4),
        ReadPiece::Zeros(0),
        data(b"de"),
    ];
    peer.0.complete(asked.id, Ok(Reply::Data(pieces)));
    let replies = messages_with(&peer.output(), |_| 9);
    let crate::client::Message::Simple {
        error: 0,
        cookie: 42,
        data,
    } = &replies[0]
    else {
        panic!("{replies:?}")
    };
    assert_eq!(data, b"abc\0\0\0\0de");
}

#[test]
fn structured_reads_join_neighbours_and_keep_holes() {
    let mut peer = Peer::attached(Form::Structured);
    let asked = peer.one(&raw(Form::Structured, 0, READ, 100, 20));
    let pieces = vec![
        ReadPiece::Zeros(3),
        ReadPiece::Zeros(2),
        data(b"abc"),
        data(b""),
        data(b"defg"),
        ReadPiece::Zeros(8),
    ];
    peer.0.complete(asked.id, Ok(Reply::Data(pieces)));
    let expected = [
        chunk_in(Form::Structured, 0, 2, (42, 0), &at(100, &[0, 0, 0, 5])),
        chunk_in(Form::Structured, 0, 1, (42, 0), &at(105, b"abcdefg")),
        chunk_in(Form::Structured, DONE, 2, (42, 0), &at(112, &[0, 0, 0, 8])),
    ];
    assert_eq!(messages(&peer.output()), expected);
}

#[test]
fn unfragmented_reads_come_in_one_chunk() {
    let mut peer = Peer::attached(Form::Structured);
    let asked = peer.one(&raw(Form::Structured, DF, READ, 100, 6));
    assert_eq!(
        asked.op,
        Operation::Read {
            dont_fragment: true
        }
    );
    let pieces = vec![ReadPiece::Zeros(2), data(b"ab"), ReadPiece::Zeros(2)];
    peer.0.complete(asked.id, Ok(Reply::Data(pieces)));
    assert_eq!(
        messages(&peer.output()),
        [chunk_in(
            Form::Structured,
            DONE,
            1,
            (42, 0),
            &at(100, b"\0\0ab\0\0")
        )]
    );
    let asked = peer.one(&raw(Form::Structured, DF, READ, 100, 6));
    peer.0.complete(
        asked.id,
        Ok(Reply::Data(vec![ReadPiece::Zeros(2), ReadPiece::Zeros(4)])),
    );
    assert_eq!(
        messages(&peer.output()),
        [chunk_in(
            Form::Structured,
            DONE,
            2,
            (42, 0),
            &at(100, &[0, 0, 0, 6])
        )]
    );
}

#[test]
fn read_payload_is_passed_through() {
    for form in FORMS {
        let mut peer = Peer::attached(form);
        let asked = peer.one(&raw(form, 0, READ, 0, 4096));
        let bytes = Bytes::from(vec![3; 4096]);
        peer.0.complete(
            asked.id,
            Ok(Reply::Data(vec![ReadPiece::Data(bytes.clone())])),
        );
        let mut out = Vec::new();
        peer.0.take_output(&mut out);
        assert!(out
            .iter()
            .any(|piece| piece.as_ptr() == bytes.as_ptr() && piece.len() == 4096));
    }
}

#[test]
fn a_read_answer_of_the_wrong_length_is_an_error_not_a_broken_stream() {
    let wrong = [
        Reply::Done,
        Reply::Data(vec![]),
        Reply::Data(vec![data(b"abc")]),
        Reply::Data(vec![data(b"abc"), ReadPiece::Zeros(2)]),
        Reply::Data(vec![ReadPiece::Zeros(u64::MAX), ReadPiece::Zeros(5)]),
        Reply::Data(vec![ReadPiece::Zeros((1 << 32) + 4)]),
    ];
    for form in FORMS {
        for flags in [0, if form.chunks() { DF } else { 0 }] {
            for reply in &wrong {
                let mut peer = Peer::attached(form);
                let asked = peer.one(&raw(form, flags, READ, 0, 4));
                peer.0.complete(asked.id, Ok(reply.clone()));
                assert_eq!(only_error(form, &peer.output(), (42, 0)), EIO);
                still_serves(&mut peer, form);
            }
        }
    }
}

#[test]
fn unknown_commands_and_flags_are_invalid() {
    for form in FORMS {
        let mut peer = Peer::attached(form);
        for command in [7, 8, 9, 255, u16::MAX] {
            assert_eq!(
                refused(&mut peer, form, &raw(form, 0, command, 0, 512)),
                EINVAL
            );
        }
        let allowed = |command| match command {
            READ if form.chunks() => FUA | DF,
            WRITE if form == Form::Extended => FUA | PAYLOAD,
            ZEROES => FUA | NO_HOLE | FAST,
            _ => FUA,
        };
        for command in [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES] {
            let length = if command == FLUSH { 0 } else { 512 };
            for bit in 0..16 {
                let flags = 1u16 << bit;
                if form == Form::Extended && command != WRITE && flags == PAYLOAD {
                    continue; // a payload follows then; see the tests of extended headers
                }
                let message = raw(form, flags, command, 0, length);
                if flags & allowed(command) == 0 {
                    assert_eq!(refused(&mut peer, form, &message), EINVAL);
                } else {
                    peer.one(&message);
                }
            }
        }
    }
}

#[test]
fn a_flush_with_offset_or_length_is_invalid() {
    for form in FORMS {
        let mut peer = Peer::attached(form);
        assert_eq!(refused(&mut peer, form, &raw(form, 0, FLUSH, 1, 0)), EINVAL);
        assert_eq!(refused(&mut peer, form, &raw(form, 0, FLUSH, 0, 1)), EINVAL);
    }
}

#[test]
fn the_end_of_the_export_is_a_wall() {
    let beyond = [
        (SIZE, 1),
        (SIZE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 5, 512),
        (SIZE + 1, 0),
    ];
    for form in FORMS {
        let mut peer = Peer::attached(form);
        for (command, error) in [
            (READ, EINVAL),
            (CACHE, EINVAL),
            (WRITE, ENOSPC),
            (TRIM, ENOSPC),
            (ZEROES, ENOSPC),
        ] {
            for (offset, length) in beyond {
                let message = raw(form, 0, command, offset, length);
                assert_eq!(
                    refused(&mut peer, form, &message),
                    error,
                    "{command} {offset}"
                );
            }
            assert_eq!(peer.one(&raw(form, 0, command, SIZE - 2, 2)).length, 2);
        }
    }
}

#[test]
fn read_only_exports_refuse_every_change() {
    for form in FORMS {
        let mut export = export();
        export.read_only = true;
        let mut peer = Peer::attached_with(SessionLimits::default(), form, export);
        for command in [WRITE, TRIM, ZEROES] {
            for length in [0, 512] {
                let message = raw(form, 0, command, 0, length);
                assert_eq!(refused(&mut peer, form, &message), EPERM);
            }
        }
        for command in [READ, CACHE] {
            peer.one(&raw(form, 0, command, 0, 512));
        }
    }
}

#[test]
fn the_minimum_block_size_is_enforced() {
    let mut export = export();
    export.block_size_min = 512;
    let mut peer = Peer::attached_with(SessionLimits::default(), Form::Structured, export);
    for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
        assert_eq!(
            refused(
                &mut peer,
                Form::Structured,
                &raw(Form::Structured, 0, command, 256, 512)
            ),
            EINVAL
        );
        assert_eq!(
            refused(
                &mut peer,
                Form::Structured,
                &raw(Form::Structured, 0, command, 512, 100)
            ),
            EINVAL
        );
        peer.one(&raw(Form::Structured, 0, command, 512, 512));
    }
}

#[test]
fn empty_requests_succeed_at_once() {
    for form in FORMS {
        let mut peer = Peer::attached(form);
        for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
            for offset in [0, SIZE] {
                assert_eq!(peer.send(&raw(form, FUA, command, offset, 0)), []);
                let expected = match command {
                    READ if form.chunks() => chunk_in(form, DONE, 0, (42, offset), &[]),
                    _ => done(form, 42, offset),
                };
                assert_eq!(messages(&peer.output()), [expected]);
            }
        }
        still_serves(&mut peer, form);
    }
}

#[test]
fn long_ranges_are_never_cut() {
    for length in [64 * MIB + 1, u32::MAX] {
        let mut peer = Peer::attached(Form::Structured);
        for command in [TRIM, ZEROES, CACHE] {
            let asked = peer.one(&raw(Form::Structured, 0, command, 4096, length));
            assert_eq!((asked.offset, asked.length), (4096, u64::from(length)));
            assert_eq!(peer.0.bytes_in_flight(), 0);
        }
    }
}

#[test]
fn long_reads_are_refused_with_the_documented_error() {
    for (form, error) in FORMS.into_iter().zip([EINVAL, EOVERFLOW, EOVERFLOW]) {
        let mut peer = Peer::attached(form);
        for length in [32 * MIB + 1, u32::MAX] {
            assert_eq!(
                refused(&mut peer, form, &raw(form, 0, READ, 0, length)),
                error
            );
        }
        assert_eq!(
            peer.one(&raw(form, 0, READ, 0, 32 * MIB)).length,
            u64::from(32 * MIB)
        );
    }
}

#[test]
fn long_writes_are_read_dropped_and_refused() {
    for form in [Form::Simple, Form::Structured] {
        let mut peer = Peer::attached(form);
        assert_eq!(
            refused(&mut peer, form, &raw(form, 0, WRITE, 0, 32 * MIB + 1)),
            EINVAL
        );
        let largest = peer.one(&raw(form, 0, WRITE, 0, 32 * MIB));
        assert_eq!(largest.length, u64::from(32 * MIB));
    }
}

#[test]
fn the_refusal_of_a_write_follows_its_payload() {
    let mut peer = Peer::attached(Form::Structured);
    let message = raw(Form::Structured, 0, WRITE, SIZE, 1000);
    assert_eq!(peer.send(&message[..1027]), []);
    assert_eq!((peer.output(), peer.0.bytes_in_flight()), (vec![], 0));
    assert!(peer.0.wants_input());
    assert_eq!(peer.send(&message[1027..]), []);
    assert_eq!(
        only_error(Form::Structured, &peer.output(), (42, SIZE)),
        ENOSPC
    );
}

#[test]
fn a_write_that_announces_too_much_ends_the_session() {
    for length in [256 * MIB + 1, u32::MAX] {
        let mut peer = Peer::attached(Form::Structured);
        let header = request(0, WRITE, 1, 0, length, &[]);
        assert_eq!(closed(&peer.send(&header)), Some(false));
        assert_eq!(peer.output(), []);
    }
    let mut peer = Peer::attached(Form::Structured);
    assert_eq!(peer.send(&request(0, WRITE, 1, 0, 256 * MIB, &[])), []);
    assert!(peer.0.wants_input());
}

#[test]
fn bad_request_magic_ends_the_session() {
    let mut peer = Peer::attached(Form::Structured);
    let asked = peer.one(&raw(Form::Structured, 0, READ, 0, 512));
    let mut bad = raw(Form::Structured, 0, READ, 0, 512);
    bad[0] ^= 1;
    assert_eq!(closed(&peer.send(&bad)), Some(false));
    assert_eq!(peer.0.export_name(), Some("vol"));
    // The owner may still answer what it was given.
    peer.0.complete(asked.id, Err(RequestError::Io));
    assert_eq!(
        (peer.actions(), peer.output(), peer.0.wants_input()),
        (vec![], vec![], false)
    );
}

#[test]
fn whole_blocks_of_a_write_are_page_aligned() {
    for offset in [0u64, 1, 512, 4095, 4096, 3 * 4096 + 100] {
        let mut peer = Peer::attached(Form::Simple);
        let bytes: Vec<u8> = (0..20_000u32).map(|i| i.to_le_bytes()[0]).collect();
        let message = write(0, 1, offset, &bytes);
        let mut actions = Vec::new();
        for part in message.chunks(777) {
            actions.extend(peer.send(part));
        }
        let asked = requests(actions).remove(0);
        let Operation::Write { payload } = asked.op else {
            panic!("{asked:?}")
        };
        assert_eq!(payload, bytes);
        let address = u64::try_from(payload.as_ptr().addr()).expect("64-bit");
        assert_eq!(address % 4096, offset % 4096);
    }
}

#[test]
fn replies_leave_in_the_order_of_completion_and_cookies_may_repeat() {
    let mut peer = Peer::attached(Form::Structured);
    let both = [
        raw(Form::Structured, 0, READ, 0, 1),
        raw(Form::Structured, 0, READ, 8, 1),
        raw(Form::Structured, 0, TRIM, 0, 1),
    ]
    .concat();
    let asked = requests(peer.send(&both));
    assert!(asked[0].id < asked[1].id && asked[1].id < asked[2].id);
    peer.0.complete(asked[2].id, Ok(Reply::Done));
    peer.0
        .complete(asked[1].id, Ok(Reply::Data(vec![data(b"b")])));
    peer.0
        .complete(asked[0].id, Ok(Reply::Data(vec![data(b"a")])));
    let expected = [
        simple(0, 42),
        chunk_in(Form::Structured, DONE, 1, (42, 8), &at(8, b"b")),
        chunk_in(Form::Structured, DONE, 1, (42, 0), &at(0, b"a")),
    ];
    assert_eq!(messages(&peer.output()), expected);
}

#[test]
fn disconnect_waits_for_what_is_in_flight() {
    let mut peer = Peer::attached(Form::Simple);
    let asked = peer.one(&raw(Form::Simple, 0, TRIM, 0, 512));
    // What follows a disconnect is ignored, garbage included.
    let tail = [
        raw(Form::Simple, 0, DISC, 0, 0),
        b"garbage that is longer than any header".to_vec(),
    ]
    .concat();
    assert_eq!(peer.send(&tail), []);
    assert!(!peer.0.wants_input());
    peer.0.complete(asked.id, Ok(Reply::Done));
    assert_eq!(closed(&peer.actions()), Some(true));
    assert_eq!(messages(&peer.output()), [simple(0, 42)]);
    for leaving in [
        raw(Form::Simple, 0, DISC, 0, 0),
        raw(Form::Simple, u16::MAX, DISC, SIZE + 1, 512),
    ] {
        let mut peer = Peer::attached(Form::Simple);
        assert_eq!(closed(&peer.send(&leaving)), Some(true));
        assert_eq!(peer.output(), []);
    }
}

#[test]
fn shutdown_answers_what_is_in_flight_and_refuses_the_rest() {
    for form in FORMS {
        let mut peer = Peer::attached(form);
        let asked = peer.one(&raw(form, 0, READ, 0, 4));
        peer.0.shutdown();
        assert_eq!(peer.actions(), []);
        for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
            assert_eq!(peer.send(&raw(form, 0, command, 0, 512)), []);
            assert_eq!(only_error(form, &peer.output(), (42, 0)), ESHUTDOWN);
        }
        assert_eq!(peer.send(&raw(form, 0, FLUSH, 0, 0)), []);
        assert_eq!(only_error(form, &peer.output(), (42, 0)), ESHUTDOWN);
        peer.0
            .complete(asked.id, Ok(Reply::Data(vec![data(b"last")])));
        assert_eq!(closed(&peer.actions()), Some(true));
        assert!(peer.output().ends_with(b"last"));
    }
}

#[test]
fn shutdown_does_not_wait_for_a_payload() {
    let mut peer = Peer::attached(Form::Simple);
    let message = raw(Form::Simple, 0, WRITE, 0, 1000);
    assert_eq!(peer.send(&message[..500]), []);
    assert_eq!(
        (peer.0.requests_in_flight(), peer.0.bytes_in_flight()),
        (1, 1000)
    );
    peer.0.shutdown();
    assert_eq!(closed(&peer.actions()), Some(true));
    // With a request in flight there is time for the rest of it, which is refused.
    let mut peer = Peer::attached(Form::Simple);
    peer.one(&raw(Form::Simple, 0, TRIM, 0, 512));
    peer.send(&message[..500]);
    peer.0.shutdown();
    assert_eq!(peer.actions(), []);
    assert_eq!(
        (peer.0.requests_in_flight(), peer.0.bytes_in_flight()),
        (1, 0)
    );
    assert_eq!(peer.send(&message[500..]), []);
    assert_eq!(only_error(Form::Simple, &peer.output(), (42, 0)), ESHUTDOWN);
    let mut idle = Peer::attached(Form::Simple);
    idle.0.shutdown();
    assert_eq!(closed(&idle.actions()), Some(true));
}

#[test]
fn an_attachment_granted_during_a_shutdown_ends_at_once() {
    let mut peer = Peer::haggling();
    let go = crate::client::option(7, &crate::client::info("vol", &[]));
    assert!(matches!(
        peer.send(&go)[..],
        [Action::Export { attach: true, .. }]
    ));
    peer.0.shutdown();
    peer.0.export(Ok(export()));
    assert_eq!(closed(&peer.actions()), Some(true));
}
