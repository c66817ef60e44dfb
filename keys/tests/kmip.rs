//! The `kmip` provider against PyKMIP's server.
#![allow(clippy::unwrap_used)] // helpers of tests

mod support;

use esker_keys::random::data_key;
use esker_keys::KeyErrorKind;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{name, port, provider, servers, Authority, Server};

/// A server whose database and log are in `folder`.
fn start(programs: &Path, folder: &Path, authority: &Authority, server: &str) -> Server {
    let port = port();
    let (certificate, key) = (
        folder.join(format!("{server}.pem")),
        folder.join(format!("{server}.key")),
    );
    let config = folder.join("server.conf");
    let text = format!(
        "[server]\nhostname=127.0.0.1\nport={port}\ncertificate_path={}\nkey_path={}\nca_path={}\n\
         auth_suite=TLS1.2\nenable_tls_client_auth=True\nlogging_level=INFO\ndatabase_path={}\n\
         tls_cipher_suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\n",
        certificate.display(),
        key.display(),
        authority.certificate().display(),
        folder.join("kmip.db").display(),
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(programs.join("bin/pykmip-server"));
    command
        .arg("-f")
        .arg(&config)
        .arg("-l")
        .arg(folder.join("server.log"));
    Server::start(&mut command, port, folder.join("server.out"))
}

/// The configuration of a client with this certificate.
fn config(port: u16, authority: &Authority, client: &str) -> String {
    format!(
        "provider = 'kmip'\n[kmip]\naddress = '127.0.0.1:{port}'\nca_file = '{}'\n\
         cert_file = '{client}.pem'\nkey_file = '{client}.key'\n",
        authority.certificate().display()
    )
}

#[tokio::test]
async fn keys_are_made_found_and_fetched_on_a_real_server() {
    let Some(programs) = servers() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = Authority::new(folder, "ca");
    authority.issue("server", 30);
    authority.issue("node", 30);
    let mut server = start(programs, folder, &authority, "server");
    let node = provider(&config(server.port, &authority, "node"), folder);

    node.health().await.unwrap();
    let dek = data_key().unwrap();
    let first = node.wrap(name(1), &dek).await.unwrap();
    assert!(first.kek().as_str().starts_with("kmip:"));
    assert_eq!(
        &node.newest().await.unwrap(),
        first.kek(),
        "one key is made, not one each time"
    );
    assert_eq!(node.unwrap(&first).await.unwrap(), dek);

    let second = node.create().await.unwrap();
    assert_ne!(&second, first.kek());
    assert_eq!(node.newest().await.unwrap(), second);
    for _ in 0..9 {
        node.create().await.unwrap();
    }
    let newest = node.create().await.unwrap();
    assert_eq!(node.newest().await.unwrap(), newest, "12 is newer than 9");
    let last = node.wrap(name(1), &dek).await.unwrap();
    assert_eq!(last.kek(), &newest);
    assert_eq!(node.unwrap(&first).await.unwrap(), dek, "old keys stay");

    // Another group has keys of its own, and another owner does not see these.
    let text = config(server.port, &authority, "node") + "group = 'other'\n";
    let other = provider(&text, folder).newest().await.unwrap();
    assert_ne!(other, newest);
    assert_eq!(node.newest().await.unwrap(), newest);
    authority.issue("stranger", 30);
    let stranger = provider(&config(server.port, &authority, "stranger"), folder);
    let error = stranger.unwrap(&first).await.unwrap_err();
    assert!(
        matches!(error.kind, KeyErrorKind::KeyMissing | KeyErrorKind::Denied),
        "{error}"
    );

    // The server goes away, and comes back with what it had.
    server.stop();
    let error = node.unwrap(&first).await.unwrap_err();
    assert_eq!(error.kind, KeyErrorKind::Unreachable);
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    let server = start(programs, folder, &authority, "server");
    let node = provider(&config(server.port, &authority, "node"), folder);
    assert_eq!(node.unwrap(&last).await.unwrap(), dek);
}

#[tokio::test]
async fn certificates_count_on_both_sides() {
    let Some(programs) = servers() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = Authority::new(folder, "ca");
    let foreign = Authority::new(folder, "foreign");
    authority.issue("server", 30);
    authority.issue("node", 30);
    authority.issue("expired", -1);
    foreign.issue("intruder", 30);
    let server = start(programs, folder, &authority, "server");
    let refused = async |text: &str, parts: &[&str]| {
        let error = provider(text, folder).health().await.unwrap_err();
        assert_eq!(error.kind, KeyErrorKind::Denied, "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part} in: {error}");
        }
    };
    let good = config(server.port, &authority, "node");
    provider(&good, folder).health().await.unwrap();
    refused(
        &config(server.port, &foreign, "node"),
        &["certificate", "ca_file"],
    )
    .await;
    refused(&config(server.port, &authority, "expired"), &["cert_file"]).await;
    refused(&config(server.port, &authority, "intruder"), &["cert_file"]).await;

    let missing = good.replace("node.pem", "nobody.pem");
    let error = provider(&missing, folder).health().await.unwrap_err();
    assert_eq!(error.kind, KeyErrorKind::Config);
    assert!(error.to_string().contains("keys.kmip.cert_file"), "{error}");
    drop(server);

    authority.issue("old", -1);
    let server = start(programs, folder, &authority, "old");
    refused(
        &config(server.port, &authority, "node"),
        &["certificate", "xpired"],
    )
    .await;
}

/// A server that takes a connection and says nothing.
#[tokio::test]
async fn a_silent_server_ends_with_the_time_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = Authority::new(folder, "ca");
    authority.issue("node", 30);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let text = config(port, &authority, "node") + "timeout_ms = 200\n";
    let began = Instant::now();
    let error = provider(&text, folder).newest().await.unwrap_err();
    assert_eq!(error.kind, KeyErrorKind::Unreachable);
    assert!(error.to_string().contains("within 200 ms"), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(200));
}
