//! `NBD_OPT_STARTTLS`: when it is offered, when it is demanded, what is forgotten, and that nothing sent
//! without protection counts afterwards.

use crate::client::{closed, contexts, export, info, option, option_replies, option_reply, Peer};
use bytes::Bytes;
use esker_nbd::{Access, Action, Session, SessionLimits, TlsPolicy};

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;
const STARTTLS: u32 = 5;

fn peer(policy: TlsPolicy) -> Peer {
    let mut session = Session::new(SessionLimits::default());
    session.offer_tls(policy);
    let mut peer = Peer(session);
    peer.output();
    assert_eq!(peer.send(&3u32.to_be_bytes()), []);
    peer
}

/// With TLS, for a client that may open these volumes.
fn secured(policy: TlsPolicy, access: Access) -> Peer {
    let mut peer = peer(policy);
    assert_eq!(peer.send(&option(STARTTLS, &[])), [Action::StartTls]);
    assert_eq!(
        option_replies(&peer.output()),
        [option_reply(STARTTLS, ACK, &[])]
    );
    peer.0.secured(access);
    peer
}

fn kinds(peer: &mut Peer) -> Vec<(u32, u32)> {
    let replies = option_replies(&peer.output());
    replies.iter().map(|r| (r.option, r.kind)).collect()
}

#[test]
fn it_is_refused_where_it_is_not_offered_and_when_it_is_there() {
    let mut off = peer(TlsPolicy::Off);
    assert_eq!(off.send(&option(STARTTLS, &[])), []);
    assert_eq!(kinds(&mut off), [(STARTTLS, ERR_UNSUP)]);
    for policy in [TlsPolicy::Allow, TlsPolicy::Require] {
        let mut twice = secured(policy, Access::all());
        assert_eq!(twice.send(&option(STARTTLS, &[])), []);
        assert_eq!(kinds(&mut twice), [(STARTTLS, ERR_INVALID)]);
        let mut with_data = peer(policy);
        assert_eq!(with_data.send(&option(STARTTLS, &[1, 2])), []);
        assert_eq!(kinds(&mut with_data), [(STARTTLS, ERR_INVALID)]);
        assert_eq!(with_data.send(&option(STARTTLS, &[])), [Action::StartTls]);
    }
}

#[test]
fn a_listener_that_requires_it_serves_nothing_else_before() {
    let all = [
        (3, vec![]),
        (6, info("vol", &[])),
        (7, info("vol", &[])),
        (8, vec![]),
        (9, contexts("vol", &[])),
        (10, contexts("vol", &["base:allocation"])),
        (11, vec![]),
        (77, vec![0; 9]),
    ];
    let mut peer = peer(TlsPolicy::Require);
    for (code, data) in &all {
        assert_eq!(peer.send(&option(*code, data)), [], "option {code}");
        assert_eq!(kinds(&mut peer), [(*code, ERR_TLS_REQD)]);
    }
    assert_eq!(closed(&peer.send(&option(2, &[]))), Some(true));

    // It has no error reply.
    let mut peer = self::peer(TlsPolicy::Require);
    assert_eq!(closed(&peer.send(&option(1, b"vol"))), Some(false));
    assert_eq!(peer.output(), []);

    let mut peer = secured(TlsPolicy::Require, Access::all());
    assert_eq!(peer.send(&option(3, &[])), [Action::ListExports]);
}

#[test]
fn a_listener_that_allows_it_serves_without() {
    let mut peer = peer(TlsPolicy::Allow);
    assert_eq!(peer.send(&option(3, &[])), [Action::ListExports]);
}

/// Somebody between client and server adds options after STARTTLS: they would be taken for the client's
/// once TLS is there.
#[test]
fn bytes_behind_it_end_the_session() {
    for behind in [&b"I"[..], &option(7, &info("vol", &[]))] {
        let mut peer = peer(TlsPolicy::Allow);
        let both = [&option(STARTTLS, &[])[..], behind].concat();
        assert_eq!(closed(&peer.send(&both)), Some(false));
        assert_eq!(peer.output(), [], "not even acknowledged");
    }
}

/// An owner that hands on what came before TLS was there.
#[test]
fn bytes_between_its_answer_and_tls_end_the_session() {
    let mut peer = peer(TlsPolicy::Allow);
    assert_eq!(peer.send(&option(STARTTLS, &[])), [Action::StartTls]);
    peer.0.receive(Bytes::from_static(b"IHAVEOPT"));
    assert!(matches!(
        peer.0.poll(),
        Some(Action::Close { clean: false, .. })
    ));
    peer.0.secured(Access::all());
    assert_eq!(peer.send(&option(3, &[])), []);
}

#[test]
fn what_was_negotiated_before_is_forgotten() {
    let mut peer = peer(TlsPolicy::Allow);
    assert_eq!(peer.send(&option(8, &[])), []);
    peer.send(&option(10, &contexts("vol", &["base:allocation"])));
    peer.0.export(Ok(export()));
    peer.output();
    assert_eq!(peer.send(&option(STARTTLS, &[])), [Action::StartTls]);
    peer.0.secured(Access::all());
    peer.output();
    // Contexts need structured replies, which are to be negotiated anew.
    assert_eq!(peer.send(&option(9, &contexts("vol", &[]))), []);
    assert_eq!(kinds(&mut peer), [(9, ERR_INVALID)]);
    assert_eq!(peer.send(&option(8, &[])), []);
    assert_eq!(kinds(&mut peer), [(8, ACK)]);
    match &peer.send(&option(7, &info("vol", &[])))[..] {
        [Action::Export { contexts, .. }] => assert!(contexts.names.is_empty(), "{contexts:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_sees_and_opens_what_its_certificate_is_for() {
    let access = || Access::only(["vm-*".to_owned()]);
    let mut peer = secured(TlsPolicy::Require, access());
    assert_eq!(peer.send(&option(3, &[])), [Action::ListExports]);
    let all = ["db", "db@vm-1", "vm-1", "vm-1@s", "xvm-1"];
    peer.0.list_exports(&all.map(|name| (name.to_owned(), 1)));
    let replies = option_replies(&peer.output());
    let names = replies.iter().filter(|r| r.kind == 2);
    let names: Vec<_> = names
        .map(|r| String::from_utf8_lossy(&r.data[4..]).into_owned())
        .collect();
    assert_eq!(names, ["vm-1", "vm-1@s"]);

    for (name, may) in [("vm-1", true), ("vm-1@s", true), ("db", false), ("", false)] {
        for code in [6, 7] {
            let mut peer = secured(TlsPolicy::Allow, access());
            let asked = peer.send(&option(code, &info(name, &[])));
            assert_eq!(!asked.is_empty(), may, "{name}");
            if !may {
                assert_eq!(kinds(&mut peer), [(code, ERR_POLICY)], "{name}");
                assert_eq!(peer.send(&option(3, &[])), [Action::ListExports]);
            }
        }
    }
    let mut peer = secured(TlsPolicy::Require, access());
    peer.send(&option(8, &[]));
    peer.output();
    assert_eq!(
        peer.send(&option(10, &contexts("db", &["base:allocation"]))),
        []
    );
    assert_eq!(kinds(&mut peer), [(10, ERR_POLICY)]);
    assert_eq!(closed(&peer.send(&option(1, b"db"))), Some(false));
}
