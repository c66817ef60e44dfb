//! The handshake as a table: what each option leads to in each state. The table is the expectation;
//! print the one that is so with `cargo test -p esker-nbd the_handshake_is -- --nocapture`.

use crate::client::{closed, contexts, export, info, option, option_replies, Form, Peer, FORMS};
use esker_nbd::{Action, SessionLimits};

const TABLE: &str = "\
option                 none               structured         extended           shutting down
EXPORT_NAME            attach             attach             close: violation   close: clean
ABORT                  ACK, close: clean  ACK, close: clean  ACK, close: clean  ACK, close: clean
LIST                   ACK                ACK                ACK                SHUTDOWN
LIST with data         INVALID            INVALID            INVALID            INVALID
STARTTLS               UNSUP              UNSUP              UNSUP              SHUTDOWN
INFO                   INFO ACK           INFO ACK           INFO ACK           SHUTDOWN
INFO cut short         INVALID            INVALID            INVALID            SHUTDOWN
GO                     INFO ACK, attach   INFO ACK, attach   INFO ACK, attach   SHUTDOWN
STRUCTURED_REPLY       ACK                INVALID            EXT_HEADER_REQD    SHUTDOWN
LIST_META_CONTEXT      INVALID            META ACK           META ACK           SHUTDOWN
SET_META_CONTEXT       INVALID            META ACK           META ACK           SHUTDOWN
EXTENDED_HEADERS       ACK                ACK                INVALID            SHUTDOWN
EXTENDED_HEADERS data  INVALID            INVALID            INVALID            INVALID
PEEK_EXPORT            UNSUP              UNSUP              UNSUP              SHUTDOWN
12                     UNSUP              UNSUP              UNSUP              SHUTDOWN
12 with data           UNSUP              UNSUP              UNSUP              SHUTDOWN
";

fn options() -> Vec<(&'static str, u32, Vec<u8>)> {
    let query = contexts("vol", &["base:allocation"]);
    let name = b"vol".to_vec();
    vec![
        ("EXPORT_NAME", 1, name),
        ("ABORT", 2, vec![]),
        ("LIST", 3, vec![]),
        ("LIST with data", 3, vec![0]),
        ("STARTTLS", 5, vec![]),
        ("INFO", 6, info("vol", &[])),
        ("INFO cut short", 6, vec![0; 5]),
        ("GO", 7, info("vol", &[])),
        ("STRUCTURED_REPLY", 8, vec![]),
        ("LIST_META_CONTEXT", 9, query.clone()),
        ("SET_META_CONTEXT", 10, query),
        ("EXTENDED_HEADERS", 11, vec![]),
        ("EXTENDED_HEADERS data", 11, vec![1, 2]),
        ("PEEK_EXPORT", 4, vec![]),
        ("12", 12, vec![]),
        ("12 with data", 12, vec![0; 100]),
    ]
}

fn reply_name(kind: u32) -> String {
    let names = [
        (1, "ACK"),
        (3, "INFO"),
        (4, "META"),
        (0x8000_0001, "UNSUP"),
        (0x8000_0003, "INVALID"),
        (0x8000_0007, "SHUTDOWN"),
        (0x8000_000a, "EXT_HEADER_REQD"),
    ];
    let known = names.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("{kind:#x}"), |(_, name)| (*name).to_owned())
}

/// What an option leads to, in a few words.
fn outcome(form: Form, shutting_down: bool, code: u32, data: &[u8]) -> String {
    let mut peer = Peer::new(SessionLimits::default());
    peer.send(&3u32.to_be_bytes());
    peer.send(&form.options());
    peer.output();
    if shutting_down {
        peer.0.shutdown();
    }
    let mut actions = peer.send(&option(code, data));
    let mut words = Vec::new();
    match actions.first() {
        Some(Action::ListExports) => peer.0.list_exports(&[]),
        Some(Action::Export { .. }) => peer.0.export(Ok(export())),
        _ => {}
    }
    let raw = peer.output();
    let attached = peer.0.export_name().is_some();
    if code != 1 {
        let replies = option_replies(&raw);
        assert!(replies.iter().all(|reply| reply.option == code));
        let names: Vec<String> = replies.iter().map(|r| reply_name(r.kind)).collect();
        words.push(names.join(" "));
    }
    if attached {
        words.push("attach".to_owned());
    }
    actions.retain(|action| matches!(action, Action::Close { .. }));
    if let Some(clean) = closed(&actions) {
        words.push(format!(
            "close: {}",
            if clean { "clean" } else { "violation" }
        ));
    }
    words.join(", ")
}

#[test]
fn the_handshake_is_the_table() {
    let mut table = format!(
        "{:<23}{:<19}{:<19}{:<19}{}\n",
        "option", "none", "structured", "extended", "shutting down"
    );
    for (name, code, data) in options() {
        let [none, structured, extended] = FORMS.map(|form| outcome(form, false, code, &data));
        let shutdown = outcome(Form::Simple, true, code, &data);
        table += &format!("{name:<23}{none:<19}{structured:<19}{extended:<19}{shutdown}\n");
    }
    println!("{table}");
    assert_eq!(table, TABLE);
}
