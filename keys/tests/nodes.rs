//! Nodes know each other by their certificates, and take nobody else.
#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::NodeId;
use esker_keys::ca::{Authority, Request, Role};
use esker_keys::{node_of, AdminRole, NodeTls, Rights, ServerFiles};
use rustls::{ClientConnection, ServerConnection};
use std::path::Path;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

/// An authority with certificates of nodes 1 and 2 (`node-1`, `node-2`), of a server without a number and of an
/// administrator, and one of node 3 that ended yesterday.
fn authority() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::init(folder.path(), "esker", 100, now).unwrap();
    let issue = |role, name: &str, rights: Rights, at| {
        let hosts = match role {
            Role::Node => vec!["localhost".to_owned()],
            Role::Client => Vec::new(),
        };
        let request = Request {
            role,
            name: name.into(),
            hosts,
            rights,
            days: 1,
        };
        authority.issue(&request, at).unwrap();
    };
    let node = |number| Rights {
        node: Some(NodeId(number)),
        ..Rights::default()
    };
    issue(Role::Node, "node-1", node(1), now);
    issue(Role::Node, "node-2", node(2), now);
    issue(Role::Node, "node-3", node(3), now - Duration::days(2));
    issue(Role::Node, "server", Rights::default(), now);
    let role = Some(AdminRole::Admin);
    let admin = Rights {
        role,
        ..Rights::default()
    };
    issue(Role::Client, "admin", admin, now);
    folder
}

fn files(folder: &Path, name: &str) -> ServerFiles {
    ServerFiles {
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
        ca: Some(folder.join("ca.pem")),
    }
}

fn tls(folder: &TempDir, name: &str) -> NodeTls {
    NodeTls::load(&files(folder.path(), name)).unwrap()
}

/// Lets two sides talk until neither has anything to say; what either refuses.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), String> {
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server
                .process_new_packets()
                .map_err(|e| format!("server: {e}"))?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client
                .process_new_packets()
                .map_err(|e| format!("client: {e}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

/// `from` connects to `to`, which it expects to be `expected`: which nodes each sees in the other.
fn meet(from: &NodeTls, to: &NodeTls, expected: Option<u64>) -> Result<(NodeId, NodeId), String> {
    let config = from.client(expected.map(NodeId)).unwrap();
    let mut client = ClientConnection::new(config, NodeTls::server_name()).unwrap();
    let mut server = ServerConnection::new(to.server()).unwrap();
    shake(&mut client, &mut server)?;
    let seen = |certificates| node_of(certificates).unwrap();
    Ok((
        seen(client.peer_certificates()),
        seen(server.peer_certificates()),
    ))
}

#[test]
fn each_sees_which_node_the_other_is() {
    let folder = authority();
    let (one, two) = (tls(&folder, "node-1"), tls(&folder, "node-2"));
    assert_eq!((one.node(), two.node()), (NodeId(1), NodeId(2)));
    let seen = Ok((NodeId(2), NodeId(1)));
    assert_eq!(meet(&one, &two, Some(2)), seen);
    assert_eq!(meet(&one, &two, None), seen);
    let refused = meet(&one, &two, Some(7)).unwrap_err();
    assert!(
        refused.starts_with("client: ") && refused.contains("this is node 2, not node 7"),
        "{refused}"
    );
}

#[test]
fn nobody_but_a_node_of_the_same_authority_is_taken_at_its_time() {
    let (folder, other) = (authority(), authority());
    let (one, stranger) = (tls(&folder, "node-1"), tls(&other, "node-2"));
    let refused = meet(&one, &stranger, None).unwrap_err();
    assert!(refused.starts_with("client: "), "{refused}");
    // One that takes any server is refused as a client.
    let mut blind = files(other.path(), "node-2");
    blind.ca = Some(folder.path().join("ca.pem"));
    let refused = meet(&NodeTls::load(&blind).unwrap(), &one, None).unwrap_err();
    assert!(refused.starts_with("server: "), "{refused}");

    let late = tls(&folder, "node-3");
    let refused = meet(&one, &late, None).unwrap_err();
    assert!(
        refused.starts_with("client: ") && refused.contains("expired"),
        "{refused}"
    );
    let refused = meet(&late, &one, None).unwrap_err();
    assert!(
        refused.starts_with("server: ") && refused.contains("expired"),
        "{refused}"
    );
}

/// With the same authority, whatever else the certificate gives.
#[test]
fn a_certificate_without_a_number_is_no_node() {
    let folder = authority();
    let one = tls(&folder, "node-1");
    for name in ["server", "admin"] {
        let refused = NodeTls::load(&files(folder.path(), name)).unwrap_err();
        assert!(refused.to_string().contains("esker cert node"), "{refused}");
    }
    // As a client: with a usual configuration of TLS.
    let admin = esker_keys::ClientFiles {
        cert: folder.path().join("admin.pem"),
        key: folder.path().join("admin.key"),
        ca: folder.path().join("ca.pem"),
    };
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(admin.load().unwrap(), name).unwrap();
    let mut server = ServerConnection::new(one.server()).unwrap();
    let refused = shake(&mut client, &mut server).unwrap_err();
    assert!(
        refused.starts_with("server: ") && refused.contains("names no node"),
        "{refused}"
    );
    // As a server.
    let config = one.client(None).unwrap();
    let server = files(folder.path(), "server").load().unwrap();
    let mut client = ClientConnection::new(config, NodeTls::server_name()).unwrap();
    let refused = shake(&mut client, &mut ServerConnection::new(server).unwrap()).unwrap_err();
    assert!(
        refused.starts_with("client: ") && refused.contains("names no node"),
        "{refused}"
    );
    // Without an authority there are no nodes.
    let mut alone = files(folder.path(), "node-1");
    alone.ca = None;
    assert!(NodeTls::load(&alone).is_err());
}

#[test]
fn numbers_of_nodes_have_one_way_to_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::init(folder.path(), "esker", 100, now).unwrap();
    for number in [0, 1 << 53] {
        let rights = Rights {
            node: Some(NodeId(number)),
            ..Rights::default()
        };
        let request = Request {
            role: Role::Node,
            name: "n".into(),
            hosts: vec!["localhost".into()],
            rights,
            days: 1,
        };
        let refused = authority.issue(&request, now).unwrap_err();
        assert!(refused.to_string().contains("no number"), "{refused}");
    }
    for names in [
        &["urn:esker:node:01"][..],
        &["urn:esker:node:+1"],
        &["urn:esker:node:0"],
        &["urn:esker:node:9007199254740992"],
        &["urn:esker:node:"],
        &["urn:esker:node:1", "urn:esker:node:2"],
        &["urn:esker:role:root"],
        &["urn:esker:volume:a/b"],
    ] {
        let certificate = with_names(names);
        let refused = Rights::of(certificate.der()).unwrap_err();
        assert!(refused.to_string().contains("means nothing"), "{refused}");
    }
    let certificate = with_names(&["urn:esker:node:9007199254740991", "urn:other:x"]);
    let rights = Rights::of(certificate.der()).unwrap();
    assert_eq!(rights.node, Some(NodeId((1 << 53) - 1)));
}

fn with_names(names: &[&str]) -> rcgen::Certificate {
    let mut params = rcgen::CertificateParams::default();
    for name in names {
        let name = (*name).try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(name));
    }
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap()
}

/// New files count at the next handshake, in configurations that were handed out before.
#[test]
fn new_files_count_at_the_next_handshake() {
    let (folder, other) = (authority(), authority());
    let (one, two) = (tls(&folder, "node-1"), tls(&folder, "node-2"));
    let (asks, answers) = (one.client(Some(NodeId(2))).unwrap(), two.server());
    let meet = || {
        let mut client = ClientConnection::new(asks.clone(), NodeTls::server_name()).unwrap();
        let mut server = ServerConnection::new(answers.clone()).unwrap();
        shake(&mut client, &mut server)
    };
    assert_eq!(meet(), Ok(()));
    one.take_over(&tls(&other, "node-1"));
    let refused = meet().unwrap_err();
    assert!(refused.starts_with("client: "), "{refused}");
    two.take_over(&tls(&other, "node-2"));
    assert_eq!(meet(), Ok(()));
    // Its own certificate, too: one that has ended is refused.
    two.take_over(&tls(&other, "node-3"));
    let refused = meet().unwrap_err();
    assert!(
        refused.contains("expired") || refused.contains("node 3"),
        "{refused}"
    );
}
