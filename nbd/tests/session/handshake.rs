//! The handshake, every option of it, in good and bad shape.

use crate::client::{
    closed, export, info, len32, option, option_lying, option_replies, option_reply, Peer, SIZE,
};
use esker_nbd::{Action, ContextsAsked, ExportError, SessionLimits, HANDSHAKE_OPTIONS_MAX};

const ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_SHUTDOWN: u32 = 0x8000_0007;
const ERR_TOO_BIG: u32 = 0x8000_0009;
/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 0b1101_0110_1101;
const SEND_DF: u16 = 1 << 7;

fn asks(name: &str, attach: bool) -> Vec<Action> {
    vec![Action::Export {
        name: name.to_owned(),
        attach,
        contexts: ContextsAsked::default(),
    }]
}

fn info_export(flags: u16) -> Vec<u8> {
    [
        &0u16.to_be_bytes()[..],
        &SIZE.to_be_bytes(),
        &flags.to_be_bytes(),
    ]
    .concat()
}

/// The only reply, which must be an error with a readable text.
fn only_error(peer: &mut Peer, option: u32) -> u32 {
    let replies = option_replies(&peer.output());
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!(replies[0].option, option);
    assert!(!replies[0].data.is_empty() && std::str::from_utf8(&replies[0].data).is_ok());
    replies[0].kind
}

/// True when the session still answers options.
fn goes_on(peer: &mut Peer) -> bool {
    let actions = peer.send(&option(3, &[]));
    peer.0.list_exports(&[]);
    actions == [Action::ListExports]
        && option_replies(&peer.output()) == [option_reply(3, ACK, &[])]
}

#[test]
fn unknown_client_flags_end_the_session() {
    for flags in [4u32, 0x8000_0001, u32::MAX] {
        let mut peer = Peer::new(SessionLimits::default());
        assert_eq!(closed(&peer.send(&flags.to_be_bytes())), Some(false));
        assert!(!peer.0.wants_input());
        assert_eq!(peer.send(&option(3, &[])), []);
        assert_eq!(peer.output(), []);
    }
}

#[test]
fn without_fixed_newstyle_only_export_name_is_valid() {
    let mut peer = Peer::new(SessionLimits::default());
    peer.send(&2u32.to_be_bytes());
    assert_eq!(peer.send(&option(1, b"vol")), asks("vol", true));
    let mut peer = Peer::new(SessionLimits::default());
    peer.send(&0u32.to_be_bytes());
    assert_eq!(closed(&peer.send(&option(3, &[]))), Some(false));
}

#[test]
fn bad_option_magic_ends_the_session() {
    let mut peer = Peer::haggling();
    let mut bad = option(3, &[]);
    bad[7] ^= 1;
    assert_eq!(closed(&peer.send(&bad)), Some(false));
}

#[test]
fn list_gives_every_export() {
    let mut peer = Peer::haggling();
    assert_eq!(peer.send(&option(3, &[])), [Action::ListExports]);
    assert_eq!(peer.output(), []);
    let long = "x".repeat(4097);
    peer.0
        .list_exports(&[("a".to_owned(), 1), (long, 3), ("vol@snap".to_owned(), 2)]);
    let expected = [
        option_reply(3, REP_SERVER, b"\0\0\0\x01a"),
        option_reply(3, REP_SERVER, b"\0\0\0\x08vol@snap"),
        option_reply(3, ACK, &[]),
    ];
    assert_eq!(option_replies(&peer.output()), expected);
    assert!(goes_on(&mut peer));
}

#[test]
fn options_without_data_refuse_data() {
    for code in [3, 8, 11] {
        let mut peer = Peer::haggling();
        assert_eq!(peer.send(&option(code, b"surplus")), []);
        assert_eq!(only_error(&mut peer, code), ERR_INVALID);
        assert!(goes_on(&mut peer));
    }
}

#[test]
fn info_describes_and_go_attaches() {
    for (code, attach) in [(6, false), (7, true)] {
        let mut peer = Peer::haggling();
        let items = [3, 1, 99, 2, 0, 3];
        assert_eq!(
            peer.send(&option(code, &info("", &items))),
            asks("", attach)
        );
        peer.0.export(Ok(export()));
        let sizes = [&[0, 3][..], &[0, 0, 0, 1], &[0, 0, 16, 0], &[2, 0, 0, 0]].concat();
        let expected = [
            option_reply(code, REP_INFO, &info_export(FLAGS)),
            option_reply(code, REP_INFO, b"\0\x01vol"),
            option_reply(code, REP_INFO, b"\0\x02a volume"),
            option_reply(code, REP_INFO, &sizes),
            option_reply(code, ACK, &[]),
        ];
        assert_eq!(option_replies(&peer.output()), expected);
        assert_eq!(peer.0.export_name(), attach.then_some("vol"));
        assert_eq!(goes_on_or_attached(&mut peer), attach);
    }
}

/// True when attached: then an option is a request with bad magic.
fn goes_on_or_attached(peer: &mut Peer) -> bool {
    let attached = peer.0.export_name().is_some();
    if !attached {
        assert!(goes_on(peer));
    }
    attached
}

#[test]
fn only_what_was_asked_for_is_told() {
    let mut peer = Peer::haggling();
    peer.send(&option(6, &info("vol", &[])));
    peer.0.export(Ok(export()));
    let expected = [
        option_reply(6, REP_INFO, &info_export(FLAGS)),
        option_reply(6, ACK, &[]),
    ];
    assert_eq!(option_replies(&peer.output()), expected);
    peer.send(&option(6, &info("vol", &[2])));
    let mut undescribed = export();
    undescribed.description.clear();
    peer.0.export(Ok(undescribed));
    assert_eq!(option_replies(&peer.output()), expected);
}

#[test]
fn transmission_flags_follow_the_export_and_the_handshake() {
    let mut peer = Peer::haggling();
    peer.send(&option(8, &[]));
    assert_eq!(option_replies(&peer.output()), [option_reply(8, ACK, &[])]);
    let mut plain = export();
    plain.multi_conn = false;
    plain.read_only = true;
    peer.send(&option(6, &info("vol", &[])));
    peer.0.export(Ok(plain));
    let flags = (FLAGS & !(1 << 8)) | (1 << 1) | SEND_DF;
    let replies = option_replies(&peer.output());
    assert_eq!(replies[0], option_reply(6, REP_INFO, &info_export(flags)));
}

#[test]
fn the_smaller_payload_limit_is_told() {
    let limits = SessionLimits {
        request_bytes_max: 1 << 20,
        ..SessionLimits::default()
    };
    for (own, told) in [(32u32 << 20, 1u32 << 20), (1 << 16, 1 << 16), (0, 1 << 20)] {
        let mut peer = Peer::new(limits.clone());
        peer.send(&3u32.to_be_bytes());
        peer.send(&option(6, &info("vol", &[3])));
        let mut export = export();
        export.block_size_max = own;
        peer.0.export(Ok(export));
        let replies = option_replies(&peer.output());
        assert_eq!(replies[1].data[10..], told.to_be_bytes());
    }
}

#[test]
fn refused_exports_say_why_and_the_handshake_goes_on() {
    let table = [
        (ExportError::Unknown("no volume".to_owned()), ERR_UNKNOWN),
        (
            ExportError::Unavailable("suspended".to_owned()),
            ERR_UNKNOWN,
        ),
        (ExportError::Policy("not for you".to_owned()), ERR_POLICY),
        (ExportError::Shutdown("ending".to_owned()), ERR_SHUTDOWN),
    ];
    for code in [6, 7] {
        for (error, kind) in &table {
            let mut peer = Peer::haggling();
            peer.send(&option(code, &info("nope", &[3])));
            peer.0.export(Err(error.clone()));
            let text = error.to_string();
            let expected = [option_reply(code, *kind, text.as_bytes())];
            assert_eq!(option_replies(&peer.output()), expected);
            assert_eq!(peer.0.export_name(), None);
            assert!(goes_on(&mut peer));
        }
    }
}

#[test]
fn malformed_info_and_go_are_invalid() {
    let good = info("vol", &[3]);
    let long_name = info(&"x".repeat(4097), &[]);
    let not_text = [&len32(b"\xff\xff")[..], b"\xff\xff", &[0, 0]].concat();
    let mut cases = vec![long_name, not_text, [&good[..], &[0]].concat()];
    cases.extend((0..good.len()).map(|end| good[..end].to_vec()));
    for code in [6, 7] {
        for case in &cases {
            let mut peer = Peer::haggling();
            assert_eq!(peer.send(&option(code, case)), []);
            assert_eq!(only_error(&mut peer, code), ERR_INVALID, "{case:?}");
            assert!(goes_on(&mut peer));
        }
    }
}

#[test]
fn oversized_options_are_dropped_or_end_the_session() {
    for (code, kind) in [
        (6, ERR_TOO_BIG),
        (7, ERR_TOO_BIG),
        (99, ERR_UNSUP),
        (9, ERR_TOO_BIG),
        (10, ERR_TOO_BIG),
    ] {
        let mut peer = Peer::haggling();
        assert_eq!(peer.send(&option(code, &vec![0; 64 * 1024 + 1])), []);
        assert_eq!(only_error(&mut peer, code), kind);
        assert!(goes_on(&mut peer));
        for lie in [1024 * 1024 + 1, u32::MAX] {
            let mut peer = Peer::haggling();
            assert_eq!(
                closed(&peer.send(&option_lying(code, lie, &[]))),
                Some(false)
            );
        }
    }
    let mut peer = Peer::haggling();
    assert_eq!(
        closed(&peer.send(&option_lying(1, 64 * 1024 + 1, &[]))),
        Some(false)
    );
}

#[test]
fn unsupported_options_are_refused_with_or_without_data() {
    for code in [0, 4, 5, 12, 77, u32::MAX] {
        for data in [&b""[..], b"some data"] {
            let mut peer = Peer::haggling();
            assert_eq!(peer.send(&option(code, data)), []);
            assert_eq!(only_error(&mut peer, code), ERR_UNSUP);
            assert!(goes_on(&mut peer));
        }
    }
}

#[test]
fn structured_replies_are_negotiated_once() {
    let mut peer = Peer::haggling();
    peer.send(&option(8, &[]));
    assert_eq!(option_replies(&peer.output()), [option_reply(8, ACK, &[])]);
    peer.send(&option(8, &[]));
    assert_eq!(only_error(&mut peer, 8), ERR_INVALID);
    peer.send(&option(6, &info("vol", &[])));
    peer.0.export(Ok(export()));
    let replies = option_replies(&peer.output());
    assert_eq!(
        replies[0].data,
        info_export(FLAGS | SEND_DF),
        "still negotiated"
    );
}

#[test]
fn abort_is_acknowledged_and_ends() {
    for data in [&b""[..], b"bye"] {
        let mut peer = Peer::haggling();
        assert_eq!(closed(&peer.send(&option(2, data))), Some(true));
        assert_eq!(option_replies(&peer.output()), [option_reply(2, ACK, &[])]);
        assert_eq!(peer.actions(), []);
    }
}

#[test]
fn export_name_answers_with_and_without_zeroes() {
    for (client_flags, zeroes) in [(3u32, 0), (1, 124), (0, 124), (2, 0)] {
        let mut peer = Peer::new(SessionLimits::default());
        peer.send(&client_flags.to_be_bytes());
        assert_eq!(peer.send(&option(1, b"vol")), asks("vol", true));
        peer.0.export(Ok(export()));
        let expected = [
            &SIZE.to_be_bytes()[..],
            &FLAGS.to_be_bytes(),
            &vec![0; zeroes],
        ]
        .concat();
        assert_eq!(peer.output(), expected);
        assert_eq!(peer.0.export_name(), Some("vol"));
    }
}

#[test]
fn export_name_has_no_error_reply() {
    let mut peer = Peer::haggling();
    peer.send(&option(1, b"nope"));
    peer.0
        .export(Err(ExportError::Unknown("no such volume".to_owned())));
    assert!(!peer.0.wants_input());
    assert_eq!(closed(&peer.actions()), Some(false));
    assert_eq!(peer.output(), []);
    for name in [&b"\xff"[..], &[b'x'; 4097]] {
        let mut peer = Peer::haggling();
        assert_eq!(closed(&peer.send(&option(1, name))), Some(false));
    }
}

#[test]
fn options_come_in_any_order_before_go() {
    let steps = [3u32, 5, 6, 8, 9, 10, 11];
    for first in steps {
        for second in steps {
            let mut peer = Peer::haggling();
            for code in [first, second] {
                let data = if code == 6 {
                    info("vol", &[3])
                } else {
                    Vec::new()
                };
                for action in peer.send(&option(code, &data)) {
                    match action {
                        Action::ListExports => peer.0.list_exports(&[]),
                        Action::Export { attach: false, .. } => peer.0.export(Ok(export())),
                        other => panic!("{other:?}"),
                    }
                }
                assert_eq!(peer.actions(), []);
            }
            peer.output();
            assert_eq!(peer.send(&option(7, &info("vol", &[]))), asks("vol", true));
            peer.0.export(Ok(export()));
            assert_eq!(peer.0.export_name(), Some("vol"), "{first} then {second}");
        }
    }
}

#[test]
fn pipelined_options_wait_for_the_answer() {
    let mut peer = Peer::haggling();
    let both = [option(6, &info("a", &[])), option(7, &info("b", &[]))].concat();
    assert_eq!(peer.send(&both), asks("a", false));
    peer.0.export(Err(ExportError::Unknown("none".to_owned())));
    assert_eq!(peer.actions(), asks("b", true));
    peer.0.export(Ok(export()));
    assert_eq!(option_replies(&peer.output()).len(), 3);
}

#[test]
fn a_handshake_has_a_maximum_of_options() {
    let mut peer = Peer::haggling();
    for _ in 0..HANDSHAKE_OPTIONS_MAX {
        assert_eq!(peer.send(&option(99, &[])), []);
    }
    assert_eq!(closed(&peer.send(&option(99, &[]))), Some(false));
}

#[test]
fn shutdown_refuses_options_until_the_client_aborts() {
    let mut peer = Peer::haggling();
    peer.0.shutdown();
    for (code, data) in [
        (3, vec![]),
        (7, info("vol", &[])),
        (8, vec![]),
        (99, vec![1]),
    ] {
        assert_eq!(peer.send(&option(code, &data)), []);
        assert_eq!(only_error(&mut peer, code), ERR_SHUTDOWN);
    }
    assert_eq!(closed(&peer.send(&option(2, &[]))), Some(true));
    assert_eq!(option_replies(&peer.output()), [option_reply(2, ACK, &[])]);
    let mut peer = Peer::haggling();
    peer.0.shutdown();
    assert_eq!(closed(&peer.send(&option(1, b"vol"))), Some(true));
}

#[test]
fn answers_nobody_asked_for_are_ignored() {
    let mut peer = Peer::haggling();
    peer.0.export(Ok(export()));
    peer.0.list_exports(&[("x".to_owned(), 1)]);
    peer.send(&option(3, &[]));
    peer.0.export(Ok(export()));
    assert_eq!((peer.output(), peer.0.export_name()), (vec![], None));
}

#[test]
fn a_session_moves_between_threads() {
    fn is_send<T: Send + std::fmt::Debug>(_: &T) {}
    let mut peer = Peer::haggling();
    is_send(&peer.0);
    // The client does not wait for the answer to GO: its read travels with the session.
    let read = crate::client::request(0, 0, 9, 0, 512, &[]);
    peer.send(&[option(7, &info("vol", &[])), read].concat());
    peer.0.export(Ok(export()));
    let actions = std::thread::spawn(move || peer.actions())
        .join()
        .expect("no panic");
    assert_eq!(crate::client::requests(actions)[0].length, 512);
}
