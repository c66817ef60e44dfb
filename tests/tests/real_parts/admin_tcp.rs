//! The admin API over TCP: who gets in, what each role may do, and what is said to those who may not.

use crate::harness::{free_address, program, run, Daemon, Done, Start};
use crate::tls::{esker, wait, Certificates};
use esker_keys::ca::{Authority, Request, Role};
use esker_keys::{AdminRole, Rights};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Certificates of a node and of one client for each role, and a daemon that serves them.
struct Node {
    certificates: Certificates,
    daemon: Daemon,
    address: String,
}

impl Node {
    fn new() -> Self {
        let certificates = Certificates::new();
        for role in ["viewer", "operator", "admin"] {
            bundle(&certificates, role, role);
        }
        let address = free_address();
        let daemon = start(&certificates, "server", &address).ready();
        let told = format!(", admin {address}");
        assert!(
            daemon.ready_line.ends_with(&told),
            "{:?}",
            daemon.ready_line
        );
        Self {
            certificates,
            daemon,
            address,
        }
    }

    /// `esker` over TCP with the certificate of this bundle.
    fn ask(&self, client: &str, words: &[&str]) -> Done {
        ask(&self.address, &self.certificates.path(client), words)
    }
}

fn start(certificates: &Certificates, name: &str, address: &str) -> Start {
    start_in(certificates, "d", name, address)
}

fn start_in(certificates: &Certificates, folder: &str, name: &str, address: &str) -> Start {
    let tls = certificates.words(name);
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let start = Start::new(&certificates.0.join(folder)).with(&tls);
    start.with(&["--admin", address, "--store-size", "1GiB"])
}

fn bundle(certificates: &Certificates, name: &str, role: &str) {
    let (authority, bundle) = (certificates.path("ca"), certificates.path(name));
    let words = ["cert", "client", name, "--authority", &authority];
    esker(&[&words[..], &["--role", role, "--bundle", &bundle]].concat()).ok();
}

fn ask(address: &str, certs: &str, words: &[&str]) -> Done {
    let which = ["--admin", address, "--certs", certs];
    esker(&[&which[..], words].concat())
}

#[test]
fn each_role_may_do_what_the_table_says() {
    let node = Node::new();
    for name in ["v", "gone"] {
        node.ask("operator", &["volume", "create", name, "--size", "16MiB"])
            .ok();
    }
    let roles = ["viewer", "operator", "admin"];
    // The least role of each, in an order in which each can be done once.
    for (least, words) in [
        (0, "volume list"),
        (0, "volume show v"),
        (0, "status --why"),
        (0, "space"),
        (1, "snapshot create v@ROLE"),
        (0, "snapshot list v"),
        (0, "snapshot list v --graph"),
        (1, "clone v@operator clone-ROLE"),
        (1, "volume resize v --size 32MiB"),
        (1, "volume set v --label by=ROLE"),
        (1, "volume create new-ROLE --size 1MiB"),
        (1, "volume scrub v"),
        (1, "volume set v --snapshot-schedule hourly_keep_3"),
        (1, "snapshot prune v"),
        (1, "snapshot rollback v@operator --keep left-ROLE"),
        (0, "snapshot diff v@operator"),
        (1, "snapshot delete v@left-ROLE"),
        (1, "volume attach new-operator --holder ROLE --fence"),
        (1, "volume detach new-operator"),
        (1, "volume rename new-ROLE newer-ROLE"),
        (2, "volume delete gone --yes"),
    ] {
        for (has, role) in roles.iter().enumerate() {
            let words = words.replace("ROLE", role);
            let words: Vec<String> = words
                .split(' ')
                .map(|word| word.replace('_', " "))
                .collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let done = node.ask(role, &words);
            if has >= least {
                done.ok();
                continue;
            }
            let line = done.line(1);
            let needs = format!("the role {role}, and ");
            let remedy = format!("needs {}", roles[least]);
            assert!(
                line.contains(&needs) && line.contains(&remedy),
                "{words:?}: {line}"
            );
        }
    }
    // What is refused by its state and not by the role.
    let lose = |role: &str| node.ask(role, &["volume", "accept-loss", "v", "--yes"]);
    let line = lose("operator").line(1);
    assert!(line.contains("AcceptLoss needs admin"), "{line}");
    let line = lose("admin").line(1);
    assert!(
        line.contains("suspended") && !line.contains("needs"),
        "{line}"
    );
    for (role, word) in [("viewer", "needs operator"), ("operator", "not encrypted")] {
        let line = node.ask(role, &["key", "rotate", "v"]).line(1);
        assert!(line.contains(word), "{line}");
    }
    let line = node.ask("viewer", &["key", "show", "v"]).line(1);
    assert!(line.contains("not encrypted"), "{line}");

    // Who asked for what stands in the log; on the unix socket all of it goes without a certificate.
    let log = node.daemon.log();
    assert!(
        log.contains("DeleteVolume") && log.contains("caller=admin"),
        "{log}"
    );
    let socket = node.daemon.json(&["volume", "list"]);
    assert_eq!(
        socket,
        serde_json::from_str::<serde_json::Value>(
            &node.ask("viewer", &["volume", "list", "-o", "json"]).ok()
        )
        .unwrap()
    );
    node.daemon.stop();
}

/// Issues a client's certificate `days` days ago for one day, as a bundle.
fn issue_at(certificates: &Certificates, name: &str, role: Option<AdminRole>, days: i64) {
    let folder = certificates.0.join("ca");
    let request = Request {
        role: Role::Client,
        name: name.into(),
        hosts: Vec::new(),
        rights: Rights {
            role,
            ..Rights::default()
        },
        days: 1,
    };
    let then = OffsetDateTime::now_utc() - time::Duration::days(days);
    let authority = Authority::open(&folder).unwrap();
    authority.issue(&request, then).unwrap();
    fs::create_dir(certificates.0.join(name)).unwrap();
    for (from, to) in [
        ("ca.pem".to_owned(), "ca-cert.pem"),
        (format!("{name}.pem"), "client-cert.pem"),
        (format!("{name}.key"), "client-key.pem"),
    ] {
        fs::copy(folder.join(from), certificates.0.join(name).join(to)).unwrap();
    }
}

#[test]
fn what_does_not_get_in_is_told_why_in_one_line() {
    let node = Node::new();
    let status = |client: &str| node.ask(client, &["status"]);
    status("viewer").ok();
    let told = |line: String, parts: &[&str]| {
        for part in parts {
            assert!(line.contains(part), "{part} in: {line}");
        }
    };

    issue_at(&node.certificates, "late", Some(AdminRole::Admin), 2);
    told(
        status("late").line(1),
        &[&node.address, "has ended", "renew"],
    );
    issue_at(&node.certificates, "nobody", None, 0);
    told(
        status("nobody").line(1),
        &["nobody", "no role", "needs viewer"],
    );
    // For volumes, and no role; and of a node.
    told(status("vm").line(1), &["vm", "no role"]);

    // Another authority of the same name: in the client's eyes, and in the node's.
    let others = Certificates::new();
    bundle(&others, "admin", "admin");
    let stranger = others.path("admin");
    told(
        ask(&node.address, &stranger, &["status"]).line(1),
        &["another authority", "--ca"],
    );
    let own_ca = node.certificates.path("ca/ca.pem");
    let words = ["status", "--ca", &own_ca];
    told(
        ask(&node.address, &stranger, &words).line(1),
        &["takes no certificates", "tls_ca"],
    );

    // No certificate, somebody else's key, an open key.
    let nothing = node.certificates.path("nothing");
    told(
        ask(&node.address, &nothing, &["status"]).line(1),
        &["client-cert.pem", "--certs"],
    );
    let key = node.certificates.path("operator/client-key.pem");
    told(
        node.ask("viewer", &["status", "--key", &key]).line(1),
        &["--cert"],
    );

    // Elsewhere: nobody there, a name that is not in the certificate, a listener without TLS.
    let nobody = free_address();
    let certs = node.certificates.path("viewer");
    told(
        ask(&nobody, &certs, &["status"]).line(1),
        &[&nobody, "no daemon answers"],
    );
    let metrics = free_address();
    let plain = Start::new(&node.certificates.0.join("p")).metrics(&metrics);
    let plain = plain.with(&["--store-size", "1GiB"]).ready();
    told(
        ask(&metrics, &certs, &["status"]).line(1),
        &[&metrics, "does not speak TLS"],
    );
    plain.stop();
    let port = node.address.rsplit(':').next().unwrap();
    let elsewhere = format!("127.0.0.2:{port}");
    let second = start_in(&node.certificates, "e", "server", &elsewhere).ready();
    told(
        ask(&elsewhere, &certs, &["status"]).line(1),
        &["127.0.0.2", "other names"],
    );
    second.stop();

    // Without TLS, over it, and halfway: the daemon goes on.
    let mut raw = TcpStream::connect(&node.address).unwrap();
    raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    raw.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = raw.read_to_end(&mut answer); // an alert, or nothing
    assert!(
        answer.len() < 64 && !answer.starts_with(b"PRI"),
        "{answer:?}"
    );
    let begun = Instant::now();
    let mut silent = TcpStream::connect(&node.address).unwrap();
    silent
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let _ = silent.read_to_end(&mut answer);
    assert!(begun.elapsed() < Duration::from_secs(25), "it is cut off");
    status("viewer").ok();
    node.daemon.stop();
}

#[test]
fn it_is_served_with_certificates_on_both_sides_or_not_at_all() {
    let certificates = Certificates::new();
    let address = free_address();
    let start = Start::new(&certificates.0.join("d")).with(&["--admin", &address]);
    let line = start.refusal(1);
    assert!(
        line.contains(&address) && line.contains("tls_cert, tls_key and tls_ca"),
        "{line}"
    );
    let words = certificates.words("server");
    let words: Vec<&str> = words[..4].iter().map(String::as_str).collect();
    let line = start.with(&words).refusal(1);
    assert!(line.contains("set tls_ca"), "{line}");
    assert!(!certificates.0.join("d/node.toml").exists());
    // In the file, with its line.
    let file = certificates.0.join("eskerd.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let (file, data) = (file.display().to_string(), certificates.path("d"));
        let words = ["--data", &data, "--config", &file, "--check-config"];
        run(program("eskerd").to_str().unwrap(), &words)
    };
    let line = check("[admin]\nlisten = \"here\"\n").line(1);
    assert!(
        line.contains("eskerd.toml:2: admin.listen") && line.contains("HOST:PORT"),
        "{line}"
    );
    let line = check("[admin]\nport = 1\n").line(1);
    assert!(line.contains("port"), "{line}");
    let tls = "tls_cert = 'ca/server.pem'\ntls_key = 'ca/server.key'\ntls_ca = 'ca/ca.pem'\n";
    let told = check(&format!("{tls}[admin]\nlisten = '127.0.0.1:1'\n")).ok();
    assert!(told.contains("admin 127.0.0.1:1"), "{told}");
}

#[test]
fn certificates_are_exchanged_while_it_runs() {
    let node = Node::new();
    node.ask("viewer", &["status"]).ok();
    let others = Certificates::new();
    bundle(&others, "viewer", "viewer");
    for name in ["server.key", "ca.pem", "server.pem"] {
        let to = node.certificates.0.join("ca").join(name);
        fs::copy(others.0.join("ca").join(name), to).unwrap();
    }
    wait(&node.daemon, "new certificates are in use");
    let line = node.ask("viewer", &["status"]).line(1);
    assert!(line.contains("another authority"), "{line}");
    ask(&node.address, &others.path("viewer"), &["status"]).ok();
    node.daemon.stop();
}

/// A new node is the one that its certificate names; another certificate does not do any more.
#[test]
fn a_node_is_who_its_certificate_says() {
    let certificates = Certificates::new();
    let authority = certificates.path("ca");
    let issue = |name: &str, id: &str| {
        let words = ["cert", "node", name, "--id", id, "--authority", &authority];
        esker(&[&words[..], &["--host", "127.0.0.1", "-o", "json"]].concat())
    };
    let shown: serde_json::Value = serde_json::from_str(&issue("five", "5").ok()).unwrap();
    assert_eq!(
        (&shown["kind"], &shown["node"]),
        (&"node".into(), &5.into())
    );
    issue("six", "6").ok();
    let line = issue("none", "0").line(1);
    assert!(line.contains("no number of a node"), "{line}");

    bundle(&certificates, "viewer", "viewer");
    let address = free_address();
    let daemon = start(&certificates, "five", &address).ready();
    let status = ask(
        &address,
        &certificates.path("viewer"),
        &["status", "-o", "json"],
    );
    let status: serde_json::Value = serde_json::from_str(&status.ok()).unwrap();
    assert_eq!(status["nodes"][0]["id"], "5");
    // Its certificate is no administrator's.
    let (cert, key) = (
        certificates.path("ca/five.pem"),
        certificates.path("ca/five.key"),
    );
    let ca = certificates.path("ca/ca.pem");
    let words = ["--cert", &cert, "--key", &key, "--ca", &ca, "status"];
    let line = ask(&address, "/nowhere", &words).line(1);
    assert!(line.contains("no role"), "{line}");
    // Another node's certificate in the place of its own changes nothing.
    for end in ["key", "pem"] {
        let from = certificates.path(&format!("ca/six.{end}"));
        fs::copy(from, certificates.path(&format!("ca/five.{end}"))).unwrap();
    }
    wait(&daemon, "is for node 6, and this is node 5");
    ask(&address, &certificates.path("viewer"), &["status"]).ok();
    daemon.stop();
    let line = start(&certificates, "six", &address).refusal(1);
    assert!(line.contains("is for node 6, and this is node 5"), "{line}");
}
