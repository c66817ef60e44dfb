//! The `eskerd` binary up to the point where it opens its stores: exit codes and the one line.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};

fn eskerd(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eskerd"));
    command.args(words).env_remove("RUST_LOG").output().unwrap()
}

/// The line on stderr that says why, without what was logged before it.
fn reason(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("eskerd: "))
        .collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(text.ends_with(&format!("{}\n", lines[0])), "{text}");
    lines[0].to_string()
}

fn data_of(folder: &Path) -> String {
    folder.join("data").to_str().unwrap().to_string()
}

#[test]
fn wrong_usage_is_code_2() {
    for words in [
        &[][..],
        &["--data", "d", "--store-size", "10GB"],
        &["--data", "d", "--nbd", "nowhere"],
        &["--data", "d", "--metrics", "127.0.0.1:99999"],
        &["--data", "d", "--frobnicate"],
    ] {
        assert_eq!(eskerd(words).status.code(), Some(2), "{words:?}");
    }
    assert_eq!(eskerd(&["--version"]).status.code(), Some(0));
}

#[test]
fn check_config_says_so_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = data_of(folder.path());
    let output = eskerd(&["--data", &data, "--check-config"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("configuration is valid: ") && text.contains(&data),
        "{text}"
    );
    assert!(!Path::new(&data).exists());

    let file = folder.path().join("esker.toml");
    fs::write(&file, "data = 'data'\nndb = 'none'\n").unwrap();
    let output = eskerd(&["--config", file.to_str().unwrap(), "--check-config"]);
    assert_eq!(output.status.code(), Some(1));
    let line = reason(&output);
    assert!(
        line.contains("esker.toml:2: ") && line.contains("`ndb`"),
        "{line}"
    );
    assert!(line.contains("`nbd`"), "what is allowed: {line}");
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = data_of(folder.path());
    fs::create_dir(&data).unwrap();
    let lock = fs::File::create(Path::new(&data).join("lock")).unwrap();
    rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    fs::write(Path::new(&data).join("lock"), "4711\n").unwrap();
    let output = eskerd(&["--data", &data]);
    assert_eq!(output.status.code(), Some(1));
    let line = reason(&output);
    assert!(line.contains(&data) && line.contains("pid 4711"), "{line}");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "only the lock");
}

#[test]
fn what_is_busy_or_in_the_way_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = data_of(folder.path());
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let cases = [
        ["--metrics", &address, "--nbd", "none"],
        ["--metrics", "none", "--nbd", &address],
    ];
    for case in cases {
        let output = eskerd(&[&["--data", data.as_str()][..], &case].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(reason(&output).contains(&address));
        assert!(
            !Path::new(&data).join("store-0.esker").exists(),
            "nothing was created"
        );
        assert!(!Path::new(&data).join("nbd.sock").exists());
        assert!(!Path::new(&data).join("admin.sock.new").exists());
    }
    fs::write(Path::new(&data).join("admin.sock"), "precious").unwrap();
    let output = eskerd(&["--data", &data, "--nbd", "none", "--metrics", "none"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(reason(&output).contains("admin.sock"));
    assert_eq!(
        fs::read_to_string(Path::new(&data).join("admin.sock")).unwrap(),
        "precious"
    );
}

#[test]
fn a_store_that_cannot_be_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = data_of(folder.path());
    let quiet = ["--nbd", "none", "--metrics", "none", "--store"];
    let store = folder.path().to_str().unwrap();
    let output = eskerd(&[&["--data", data.as_str()][..], &quiet, &[store]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(reason(&output).contains("neither a regular file nor a block device"));
}
