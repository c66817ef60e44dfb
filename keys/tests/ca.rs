//! Certificates that this makes are what OpenSSL takes them for.
#![allow(clippy::unwrap_used)] // helpers of tests

use esker_keys::ca::{inspect, Authority, Request, Role};
use esker_keys::{KeyErrorKind, Rights};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use time::OffsetDateTime;

const DAY: i64 = 86_400;

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn request(role: Role, name: &str, hosts: &[&str], days: u32) -> Request {
    Request {
        role,
        name: name.into(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        rights: Rights::default(),
        days,
    }
}

/// Whether `openssl verify` accepts `NAME.pem` for this purpose, at this second if one is given.
fn verifies(folder: &Path, name: &str, words: &[&str]) -> Result<(), String> {
    let mut command = Command::new("openssl");
    command.arg("verify").arg("-x509_strict").args(words);
    command.arg("-CAfile").arg(folder.join("ca.pem"));
    let done = command
        .arg(folder.join(format!("{name}.pem")))
        .output()
        .unwrap();
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}

fn shown(folder: &Path, name: &str, words: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command
        .args(["x509", "-noout", "-in"])
        .arg(folder.join(format!("{name}.pem")));
    let done = command.args(words).output().unwrap();
    assert!(done.status.success());
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn openssl_accepts_each_for_its_purpose_and_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = Authority::init(folder, "esker-test", 100, now()).unwrap();
    let hosts = ["node-1.example", "127.0.0.1", "::1"];
    let node = authority
        .issue(&request(Role::Node, "node-1", &hosts, 10), now())
        .unwrap();
    let client = authority
        .issue(&request(Role::Client, "backup@ops", &[], 5), now())
        .unwrap();

    verifies(folder, "ca", &["-check_ss_sig"]).unwrap();
    verifies(folder, "node-1", &["-purpose", "sslserver"]).unwrap();
    verifies(folder, "node-1", &["-purpose", "sslclient"]).unwrap();
    verifies(folder, "node-1", &["-verify_hostname", "node-1.example"]).unwrap();
    verifies(folder, "node-1", &["-verify_ip", "127.0.0.1"]).unwrap();
    verifies(folder, "node-1", &["-verify_ip", "::1"]).unwrap();
    verifies(folder, "node-1", &["-verify_hostname", "node-2.example"]).unwrap_err();
    verifies(folder, "backup@ops", &["-purpose", "sslclient"]).unwrap();
    verifies(folder, "backup@ops", &["-purpose", "sslserver"]).unwrap_err();
    let at = |seconds: i64| (now().unix_timestamp() + seconds).to_string();
    verifies(folder, "node-1", &["-attime", &at(9 * DAY)]).unwrap();
    let late = verifies(folder, "node-1", &["-attime", &at(11 * DAY)]).unwrap_err();
    assert!(late.contains("expired"), "{late}");
    verifies(folder, "node-1", &["-attime", &at(-DAY)]).unwrap_err();

    let serial = shown(folder, "node-1", &["-serial"]).trim().to_lowercase();
    assert_eq!(serial, format!("serial={}", node.serial));
    assert_ne!(node.serial, client.serial);
    let end = |days: i64| now().unix_timestamp() + days * DAY;
    assert!((end(10) - node.not_after_unix).abs() < 60);
    assert_eq!((&node.name[..], &node.issuer[..]), ("node-1", "esker-test"));
    assert_eq!(node.hosts, hosts);
    assert!(!node.is_authority && authority.certificate().is_authority);
    let issued = fs::read_to_string(folder.join("issued")).unwrap();
    let lines: Vec<&str> = issued.lines().collect();
    assert_eq!(
        lines[0],
        format!("{} node node-1 {}", node.serial, node.not_after_unix)
    );
    assert_eq!(
        lines[1],
        format!(
            "{} client backup@ops {}",
            client.serial, client.not_after_unix
        )
    );
}

/// A certificate that another authority issued, or that a client issued to itself, is refused.
#[test]
fn nobody_else_issues_for_the_authority() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::init(folder.path(), "esker", 100, now()).unwrap();
    let stranger = Authority::init(other.path(), "esker", 100, now()).unwrap();
    stranger
        .issue(&request(Role::Node, "node", &["a"], 1), now())
        .unwrap();
    fs::copy(
        other.path().join("node.pem"),
        folder.path().join("node.pem"),
    )
    .unwrap();
    verifies(folder.path(), "node", &[]).unwrap_err();
    verifies(other.path(), "node", &[]).unwrap();
}

#[test]
fn keys_are_private_and_nothing_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = Authority::init(folder, "esker", 100, now()).unwrap();
    let node = request(Role::Node, "node", &["localhost"], 10);
    authority.issue(&node, now()).unwrap();
    for (file, mode) in [("ca.key", 0o600), ("node.key", 0o600), ("node.pem", 0o644)] {
        let meta = fs::metadata(folder.join(file)).unwrap();
        assert_eq!(meta.mode() & 0o777, mode, "{file}");
    }
    let before = fs::read(folder.join("ca.key")).unwrap();
    assert!(Authority::init(folder, "esker", 100, now()).is_err());
    assert!(authority.issue(&node, now()).is_err());
    assert_eq!(fs::read(folder.join("ca.key")).unwrap(), before);

    let again = Authority::open(folder).unwrap();
    again
        .issue(&request(Role::Client, "later", &[], 10), now())
        .unwrap();
    verifies(folder, "later", &["-purpose", "sslclient"]).unwrap();

    let wide = fs::Permissions::from_mode(0o640);
    fs::set_permissions(folder.join("ca.key"), wide).unwrap();
    let error = Authority::open(folder).err().unwrap();
    assert_eq!(error.kind, KeyErrorKind::Denied);
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let error = Authority::open(folder).err().unwrap();
    assert!(
        error.to_string().contains("no certificate authority"),
        "{error}"
    );
    let authority = Authority::init(folder, "esker", 20, now()).unwrap();
    for (request, part) in [
        (request(Role::Node, "../x", &["a"], 1), "letters"),
        (request(Role::Node, "ca", &["a"], 1), "not `ca`"),
        (request(Role::Node, "n", &[], 1), "host"),
        (request(Role::Node, "n", &["a b"], 1), "a b"),
        (request(Role::Node, "n", &["-a"], 1), "-a"),
        (request(Role::Client, "n", &["a"], 1), "leave them out"),
        (request(Role::Client, "n", &[], 0), "36500"),
        (request(Role::Client, "n", &[], 30), "past the end"),
    ] {
        let error = authority.issue(&request, now()).unwrap_err();
        assert_eq!(error.kind, KeyErrorKind::Config);
        assert!(error.to_string().contains(part), "{part} in: {error}");
    }
    assert!(!folder.join("issued").exists());
    fs::write(folder.join("odd.pem"), "hello").unwrap();
    assert!(inspect(&folder.join("odd.pem")).is_err());
}
