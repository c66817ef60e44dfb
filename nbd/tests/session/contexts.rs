//! Metadata contexts: listed, selected, asked for.

use crate::client::{
    chunk_in, contexts, export, extended, info, messages, only_error, option, option_replies,
    option_reply, request, request_in, Form, OptionReply, Peer, DONE, PAYLOAD, SIZE,
};
use esker_nbd::{
    Action, ContextsAsked, Export, ExportError, Extent, Operation, Reply, Request, RequestError,
    SessionLimits, META_QUERIES_MAX, STATUS_EXTENTS_MAX,
};
use std::sync::Arc;

const STATUS: u16 = 7;
const REQ_ONE: u16 = 8;
const ACK: u32 = 1;
const META_CONTEXT: u32 = 4;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;
const LIST: u32 = 9;
const SET: u32 = 10;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
const ALLOCATION: &str = "base:allocation";
const CHUNKS: [Form; 2] = [Form::Structured, Form::Extended];

fn haggling(form: Form) -> Peer {
    let mut peer = Peer::haggling();
    peer.send(&form.options());
    peer.output();
    peer
}

fn found(code: u32, id: u32, name: &str) -> OptionReply {
    let data = [&id.to_be_bytes()[..], name.as_bytes()].concat();
    option_reply(code, META_CONTEXT, &data)
}

/// Asks, and answers with the usual export.
fn ask(peer: &mut Peer, code: u32, name: &str, queries: &[&str]) -> Vec<OptionReply> {
    let actions = peer.send(&option(code, &contexts(name, queries)));
    let name = name.to_owned();
    let attach = false;
    let wildcard = |query: &&&str| code == LIST && query.ends_with(':');
    let names = queries.iter().filter(|query| !wildcard(query));
    let contexts = ContextsAsked {
        names: names.copied().map(Arc::from).collect(),
        of: None,
        list: code == LIST && (queries.is_empty() || queries.iter().any(|q| wildcard(&q))),
    };

    let expected = Action::Export {
        name,
        attach,
        contexts,
    };
    assert_eq!(actions, [expected]);
    peer.0.export(Ok(export()));
    option_replies(&peer.output())
}

fn attached(form: Form, selected: &[&str]) -> Peer {
    Peer::attached_to(SessionLimits::default(), form, export(), selected)
}

fn flags_told(peer: &mut Peer, code: u32) -> u16 {
    peer.send(&option(code, &info("vol", &[])));
    peer.0.export(Ok(export()));
    let data = &option_replies(&peer.output())[0].data;
    u16::from_be_bytes([data[10], data[11]])
}

fn asks_about(names: &[&str], one: bool) -> Operation {
    let contexts = names.iter().copied().map(Arc::from).collect();
    Operation::BlockStatus { contexts, one }
}

fn extents(list: &[(u64, u32)]) -> Vec<Extent> {
    let extent = |(length, flags): &(u64, u32)| Extent {
        length: *length,
        flags: *flags,
    };
    list.iter().map(extent).collect()
}

/// Payload of a status chunk.
fn status(form: Form, id: u32, list: &[(u64, u32)]) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    if form == Form::Extended {
        out.extend(u32::try_from(list.len()).expect("few").to_be_bytes());
    }
    for (length, flags) in list {
        if form == Form::Extended {
            out.extend(length.to_be_bytes());
            out.extend(u64::from(*flags).to_be_bytes());
        } else {
            out.extend(u32::try_from(*length).expect("short").to_be_bytes());
            out.extend(flags.to_be_bytes());
        }
    }
    out
}

fn status_kind(form: Form) -> u16 {
    if form == Form::Extended {
        6
    } else {
        5
    }
}

fn filtered(flags: u16, length: u64, ids: &[u32]) -> Vec<u8> {
    let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    let payload = [&length.to_be_bytes()[..], &ids].concat();
    let carried = u64::try_from(payload.len()).expect("short");
    extended(flags | PAYLOAD, STATUS, 42, 4096, carried, &payload)
}

#[test]
fn contexts_are_listed_by_name_and_by_namespace() {
    for form in CHUNKS {
        let all = [
            found(LIST, 0, ALLOCATION),
            found(LIST, 0, "x-test:one"),
            found(LIST, 0, "x-test:two"),
            option_reply(LIST, ACK, &[]),
        ];
        let mut peer = haggling(form);
        assert_eq!(ask(&mut peer, LIST, "vol", &[]), all);
        assert_eq!(ask(&mut peer, LIST, "", &["x-test:", "base:"]), all);
        assert_eq!(
            ask(&mut peer, LIST, "vol", &["x-test:one", "base:", "y:"]),
            [all[0].clone(), all[1].clone(), all[3].clone()]
        );
        let none = [all[3].clone()];
        for queries in [&["base:unknown"][..], &["elsewhere:"], &["x-test:o"]] {
            assert_eq!(ask(&mut peer, LIST, "vol", queries), none);
        }
        // Listing selects nothing.
        assert_eq!(flags_told(&mut peer, 6) & BLOCK_STATUS_PAYLOAD, 0);
    }
}

#[test]
fn selecting_gives_each_context_an_id_of_its_own() {
    for form in CHUNKS {
        let mut peer = haggling(form);
        assert_eq!(
            ask(
                &mut peer,
                SET,
                "vol",
                &["x-test:two", ALLOCATION, ALLOCATION]
            ),
            [
                found(SET, 0, ALLOCATION),
                found(SET, 1, "x-test:two"),
                option_reply(SET, ACK, &[]),
            ]
        );
        let payload = flags_told(&mut peer, 7) & BLOCK_STATUS_PAYLOAD != 0;
        assert_eq!(payload, form == Form::Extended);
        let raw = request_in(form, 0, STATUS, (42, 0), 512, &[]);
        let asked = peer.one(&raw);
        assert_eq!(asked.op, asks_about(&[ALLOCATION, "x-test:two"], false));
    }
}

/// Whether block status requests are served after these options and GO.
fn serves_status(form: Form, options: &[(u32, &str, &[&str])], name: &str) -> bool {
    let mut peer = haggling(form);
    for (code, name, queries) in options {
        for _ in peer.send(&option(*code, &contexts(name, queries))) {
            let answer = match *name {
                "gone" => Err(ExportError::Unknown("gone".to_owned())),
                "other" => Ok(Export {
                    name: "other".to_owned(),
                    ..export()
                }),
                _ => Ok(export()),
            };
            peer.0.export(answer);
        }
        assert_eq!(peer.actions(), []);
    }
    peer.send(&option(7, &info(name, &[])));
    peer.0.export(Ok(export()));
    peer.output();
    let raw = request_in(form, 0, STATUS, (42, 0), 512, &[]);
    let actions = peer.send(&raw);
    if actions.is_empty() {
        assert_eq!(only_error(form, &peer.output(), (42, 0)), EINVAL);
    }
    !actions.is_empty()
}

#[test]
fn the_last_selection_counts_even_when_it_fails() {
    type Step<'a> = (u32, &'a str, &'a [&'a str]);
    const GOOD: Step<'_> = (SET, "vol", &[ALLOCATION]);
    let table: [(&[Step<'_>], bool); 10] = [
        (&[], false),
        (&[GOOD], true),
        (&[(LIST, "vol", &[ALLOCATION])], false),
        (&[GOOD, (LIST, "vol", &[])], true),
        (&[GOOD, (SET, "vol", &[])], false),
        (&[GOOD, (SET, "vol", &["base:"])], false),
        (&[GOOD, (SET, "gone", &[ALLOCATION])], false),
        (&[GOOD, (SET, "other", &[ALLOCATION])], false),
        (&[(SET, "other", &[ALLOCATION]), GOOD], true),
        (&[GOOD, (SET, "vol", &["nocolon"])], false),
    ];
    for form in CHUNKS {
        for (steps, expected) in table {
            assert_eq!(serves_status(form, steps, "vol"), expected, "{steps:?}");
        }
        // The default export and its name are the same export.
        assert!(serves_status(form, &[(SET, "", &[ALLOCATION])], "vol"));
        assert!(serves_status(form, &[GOOD], ""));
    }
}

#[test]
fn an_oversized_selection_takes_the_former_one_back() {
    let mut peer = haggling(Form::Extended);
    ask(&mut peer, SET, "vol", &[ALLOCATION]);
    peer.send(&option(SET, &vec![0; 64 * 1024 + 1]));
    assert_eq!(option_replies(&peer.output())[0].kind, ERR_TOO_BIG);
    assert_eq!(flags_told(&mut peer, 6) & BLOCK_STATUS_PAYLOAD, 0);
}

#[test]
fn contexts_need_replies_in_chunks() {
    for code in [LIST, SET] {
        let mut peer = haggling(Form::Simple);
        assert_eq!(
            peer.send(&option(code, &contexts("vol", &[ALLOCATION]))),
            []
        );
        assert_eq!(option_replies(&peer.output())[0].kind, ERR_INVALID);
    }
    let raw = request(0, STATUS, 42, 0, 512, &[]);
    let mut peer = Peer::attached(Form::Simple);
    assert_eq!(peer.send(&raw), []);
    assert_eq!(only_error(Form::Simple, &peer.output(), (42, 0)), EINVAL);
}

#[test]
fn malformed_queries_are_invalid() {
    let good = contexts("vol", &["base:", "x:y"]);
    let mut cases: Vec<Vec<u8>> = (0..good.len()).map(|end| good[..end].to_vec()).collect();
    cases.push([&good[..], &[0]].concat());
    cases.push(contexts(&"x".repeat(4097), &[]));
    cases.push(contexts("vol", &["no colon"]));
    cases.push(contexts("vol", &[&format!("x:{}", "y".repeat(4095))]));
    let mut not_text = contexts("vol", &["x:y"]);
    not_text.splice(15.., *b"\xff:y");
    cases.push(not_text);
    let mut lying = contexts("vol", &[]);
    lying[7..].copy_from_slice(&u32::MAX.to_be_bytes());
    cases.push(lying);
    for code in [LIST, SET] {
        for case in &cases {
            let mut peer = haggling(Form::Structured);
            assert_eq!(peer.send(&option(code, case)), []);
            let replies = option_replies(&peer.output());
            assert_eq!(replies.len(), 1);
            assert_eq!(replies[0].kind, ERR_INVALID, "{case:?}");
            assert_eq!(ask(&mut peer, LIST, "vol", &["none:"]).len(), 1);
        }
        let mut peer = haggling(Form::Structured);
        let many = vec!["x:y"; META_QUERIES_MAX + 1];
        assert_eq!(peer.send(&option(code, &contexts("vol", &many))), []);
        assert_eq!(option_replies(&peer.output())[0].kind, ERR_TOO_BIG);
        assert_eq!(ask(&mut peer, code, "vol", &many[1..]).len(), 1);
    }
}

#[test]
fn too_many_contexts_at_once_are_refused() {
    let mut rich = export();
    let names: Vec<String> = (0..17).map(|i| format!("x:{i}")).collect();
    rich.contexts = names.iter().map(|name| Arc::from(name.as_str())).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut peer = haggling(Form::Structured);
    for (queries, kind) in [(&names[..], ERR_TOO_BIG), (&names[1..], META_CONTEXT)] {
        peer.send(&option(SET, &contexts("vol", queries)));
        peer.0.export(Ok(rich.clone()));
        assert_eq!(option_replies(&peer.output())[0].kind, kind);
    }
    peer.send(&option(LIST, &contexts("vol", &[])));
    peer.0.export(Ok(rich));
    assert_eq!(option_replies(&peer.output()).len(), 18);
}

#[test]
fn the_contexts_of_an_unknown_export_are_unknown() {
    for code in [LIST, SET] {
        let mut peer = haggling(Form::Structured);
        peer.send(&option(code, &contexts("gone", &[])));
        let why = ExportError::Unknown("no such volume".to_owned());
        peer.0.export(Err(why));
        let expected = [option_reply(code, ERR_UNKNOWN, b"no such volume")];
        assert_eq!(option_replies(&peer.output()), expected);
    }
}

#[test]
fn every_context_is_answered_in_a_chunk() {
    for form in CHUNKS {
        let mut peer = attached(form, &[ALLOCATION, "x-test:two"]);
        let asked = peer.one(&request_in(form, 0, STATUS, (42, 4096), 1000, &[]));
        assert_eq!((asked.offset, asked.length), (4096, 1000));
        let lists = [&[(100, 3), (200, 0), (700, 2)][..], &[(64, 7)]];
        let reply = Reply::BlockStatus(lists.iter().map(|list| extents(list)).collect());
        peer.0.complete(asked.id, Ok(reply));
        let to = (42, 4096);
        let kind = status_kind(form);
        let expected = [
            chunk_in(form, 0, kind, to, &status(form, 0, lists[0])),
            chunk_in(form, DONE, kind, to, &status(form, 1, lists[1])),
        ];
        assert_eq!(messages(&peer.output()), expected);
        assert_eq!(peer.0.bytes_in_flight(), 0);
    }
}

#[test]
fn one_extent_when_one_is_asked_for() {
    for form in CHUNKS {
        let mut peer = attached(form, &[ALLOCATION]);
        let asked = peer.one(&request_in(form, REQ_ONE, STATUS, (42, 0), 1000, &[]));
        assert_eq!(asked.op, asks_about(&[ALLOCATION], true));
        let list = extents(&[(600, 3), (400, 0)]);
        peer.0
            .complete(asked.id, Ok(Reply::BlockStatus(vec![list])));
        let payload = status(form, 0, &[(600, 3)]);
        let expected = [chunk_in(form, DONE, status_kind(form), (42, 0), &payload)];
        assert_eq!(messages(&peer.output()), expected);
    }
}

#[test]
fn long_lists_are_cut() {
    let mut peer = attached(Form::Extended, &[ALLOCATION]);
    let asked = peer.one(&extended(0, STATUS, 42, 0, SIZE, &[]));
    assert_eq!(asked.length, SIZE);
    let list = vec![(1u64, 0u32); STATUS_EXTENTS_MAX + 5];
    let reply = Reply::BlockStatus(vec![extents(&list)]);
    peer.0.complete(asked.id, Ok(reply));
    let payload = status(Form::Extended, 0, &list[..STATUS_EXTENTS_MAX]);
    let expected = [chunk_in(Form::Extended, DONE, 6, (42, 0), &payload)];
    assert_eq!(messages(&peer.output()), expected);
}

#[test]
fn an_answer_of_another_form_is_an_error_not_a_broken_stream() {
    let wrong = [
        Reply::Done,
        Reply::BlockStatus(vec![]),
        Reply::BlockStatus(vec![vec![]]),
        Reply::BlockStatus(vec![extents(&[(512, 0)]), extents(&[(512, 0)])]),
        Reply::BlockStatus(vec![extents(&[(512, 0), (1, 0)])]),
        Reply::BlockStatus(vec![extents(&[(256, 0), (0, 0)])]),
        Reply::BlockStatus(vec![extents(&[(u64::MAX, 0), (2, 0)])]),
    ];
    for form in CHUNKS {
        for reply in &wrong {
            let mut peer = attached(form, &[ALLOCATION]);
            let asked = peer.one(&request_in(form, 0, STATUS, (42, 0), 512, &[]));
            peer.0.complete(asked.id, Ok(reply.clone()));
            assert_eq!(only_error(form, &peer.output(), (42, 0)), EIO);
        }
    }
}

#[test]
fn invalid_status_requests_are_refused() {
    let mut coarse = export();
    coarse.block_size_min = 512;
    for form in CHUNKS {
        let limits = SessionLimits::default();
        let mut peer = Peer::attached_to(limits, form, coarse.clone(), &[ALLOCATION]);
        let mut refuse = |flags, offset, length| {
            let raw = request_in(form, flags, STATUS, (42, offset), length, &[]);
            assert_eq!(peer.send(&raw), []);
            only_error(form, &peer.output(), (42, offset))
        };
        for (offset, length) in [
            (0, 0),
            (SIZE, 512),
            (SIZE - 512, 1024),
            (256, 512),
            (0, 100),
        ] {
            assert_eq!(refuse(0, offset, length), EINVAL);
        }
        for bit in [1, 2, 4, 6, 15] {
            assert_eq!(refuse(1 << bit, 0, 512), EINVAL, "bit {bit}");
        }
        let raw = request_in(form, 1, STATUS, (42, 0), 512, &[]);
        let fua = peer.one(&raw);
        assert!(!fua.fua);
        peer.0.complete(fua.id, Err(RequestError::Io));
        assert_eq!(only_error(form, &peer.output(), (42, 0)), EIO);
    }
}

#[test]
fn a_payload_names_the_contexts_to_answer() {
    let selected = [ALLOCATION, "x-test:one", "x-test:two"];
    let mut peer = attached(Form::Extended, &selected);
    for (ids, one) in [(&[2u32, 0][..], false), (&[1], true), (&[0, 1, 2], false)] {
        let names: Vec<&str> = ids
            .iter()
            .map(|id| selected[usize::try_from(*id).expect("small")])
            .collect();
        let flags = if one { REQ_ONE } else { 0 };
        let asked = peer.one(&filtered(flags, SIZE - 4096, ids));
        assert_eq!((asked.offset, asked.length), (4096, SIZE - 4096));
        assert_eq!(asked.op, asks_about(&names, one));
        let lists = ids.iter().map(|_| extents(&[(512, 1)])).collect();
        peer.0.complete(asked.id, Ok(Reply::BlockStatus(lists)));
        let told: Vec<u32> = messages(&peer.output())
            .iter()
            .map(|message| match message {
                crate::client::Message::Extended {
                    kind: 6, payload, ..
                } => u32::from_be_bytes(payload[..4].try_into().expect("four bytes")),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, ids);
    }
    assert_eq!(peer.0.bytes_in_flight(), 0);
}

#[test]
fn bad_payloads_are_read_dropped_and_refused() {
    let raw_filter = |payload: &[u8]| {
        let length = u64::try_from(payload.len()).expect("short");
        extended(PAYLOAD, STATUS, 42, 4096, length, payload)
    };
    let mut bad = vec![
        filtered(0, 512, &[]),
        filtered(0, 512, &[3]),
        filtered(0, 512, &[u32::MAX]),
        filtered(0, 512, &[0, 1, 0]),
        filtered(0, 0, &[0]),
        filtered(0, SIZE, &[0]),
        filtered(0, u64::MAX, &[0]),
        filtered(0, 512, &[0; 17]),
        filtered(2, 512, &[0]),
    ];
    bad.extend([0usize, 1, 7, 11, 13, 5000].map(|length| raw_filter(&vec![0; length])));
    let selected = [ALLOCATION, "x-test:one", "x-test:two"];
    for raw in &bad {
        let mut peer = attached(Form::Extended, &selected);
        for part in raw.chunks(9) {
            assert_eq!(peer.send(part), []);
        }
        let error = only_error(Form::Extended, &peer.output(), (42, 4096));
        assert_eq!(error, EINVAL, "{raw:?}");
        peer.one(&filtered(0, 512, &[2]));
    }
    // Without a selection no payload is understood.
    let mut peer = Peer::attached(Form::Extended);
    assert_eq!(peer.send(&filtered(0, 512, &[0])), []);
    assert_eq!(
        only_error(Form::Extended, &peer.output(), (42, 4096)),
        EINVAL
    );
}

#[test]
fn status_requests_count_against_the_limits() {
    let limits = SessionLimits {
        bytes_in_flight_max: 16 * STATUS_EXTENTS_MAX * 2,
        ..SessionLimits::default()
    };
    let mut peer = Peer::attached_to(limits, Form::Structured, export(), &[ALLOCATION]);
    let raw = request(0, STATUS, 1, 0, 512, &[]);
    let three = [raw.clone(), raw.clone(), raw].concat();
    let held: Vec<Request> = crate::client::requests(peer.send(&three));
    assert_eq!(held.len(), 2);
    assert!(!peer.0.wants_input());
    peer.0.complete(held[0].id, Err(RequestError::Io));
    assert_eq!(peer.actions().len(), 1);
}
