//! `esker verify` and `esker inspect` on files that are no good store.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

use rustix::fs::{flock, FlockOperation};
use std::fs::File;
use std::path::Path;
use std::process::Command;

fn refusal(words: &[&str], store: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    let output = command.args(words).arg(store).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(store.to_str().unwrap()), "{text}");
    text
}

#[test]
fn what_is_no_store_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let dangling = folder.path().join("dangling");
    std::os::unix::fs::symlink(&missing, &dangling).unwrap();
    let inside = Path::new("/dev/null/store");
    for verb in ["verify", "inspect"] {
        for path in [&missing, &dangling] {
            let line = refusal(&[verb], path);
            assert!(line.contains("there is no such file"), "{line}");
            assert!(!line.contains("os error"), "{line}");
        }
        assert!(refusal(&[verb], inside).contains("not a folder"));
        assert!(refusal(&[verb], Path::new("/dev/null")).contains("neither a regular file"));
        let line = refusal(&[verb], folder.path());
        assert!(
            line.contains("neither a regular file") && line.contains("store-0.esker"),
            "{line}"
        );
    }
    let blank = folder.path().join("blank");
    File::create(&blank).unwrap().set_len(64 << 20).unwrap();
    assert!(refusal(&["verify"], &blank).contains("blank"));
    std::fs::write(&blank, vec![7; 4 << 20]).unwrap();
    assert!(refusal(&["verify"], &blank).contains("not an Esker store"));
    std::fs::write(&blank, "short").unwrap();
    refusal(&["verify"], &blank);
    refusal(&["inspect"], &blank);
}

#[test]
fn a_store_that_a_daemon_has_open_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let held = File::create(&path).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    assert!(refusal(&["verify"], &path).contains("a daemon has it open"));
    assert!(refusal(&["inspect"], &path).contains("a daemon has it open"));
}
