//! The keyring file as an operator meets it.
#![allow(clippy::unwrap_used)] // helpers of tests

mod support;

use esker_keys::file::FileProvider;
use esker_keys::random::data_key;
use esker_keys::{KeyErrorKind, Provider, Providers};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use support::{name, write_secret};
use tempfile::TempDir;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keyring");
    (folder, path)
}

fn with_passphrase(folder: &Path, passphrase: &str) -> FileProvider {
    let file = folder.join("passphrase");
    write_secret(&file, passphrase);
    FileProvider::new(folder.join("keyring"), Some(file))
}

#[tokio::test]
async fn the_first_key_makes_the_file_and_only_its_owner_reads_it() {
    let (folder, path) = folder();
    let provider = FileProvider::new(path.clone(), None);
    provider.health().await.unwrap();
    assert!(!path.exists(), "asking makes no file");
    let dek = data_key().unwrap();
    let wrapped = provider.wrap(name(1), &dek).await.unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!(provider.unwrap(&wrapped).await.unwrap(), dek);
    assert_eq!(wrapped.kek(), &provider.newest().await.unwrap());
    // Another process opens it.
    let again = FileProvider::new(path, None);
    assert_eq!(again.unwrap(&wrapped).await.unwrap(), dek);
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(!left.contains(&"keyring.new".into()), "{left:?}");
}

#[tokio::test]
async fn wider_permissions_are_refused_with_the_remedy() {
    let (_folder, path) = folder();
    let provider = FileProvider::new(path.clone(), None);
    let wrapped = provider.wrap(name(1), &data_key().unwrap()).await.unwrap();
    for mode in [0o640, 0o604, 0o620, 0o660, 0o666, 0o601] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = provider.unwrap(&wrapped).await.unwrap_err();
        assert_eq!(error.kind, KeyErrorKind::Denied);
        let message = error.to_string();
        assert!(message.contains(&format!("mode {mode:03o}")), "{message}");
        assert!(message.contains("chmod 600"), "{message}");
        assert_eq!(
            provider.create().await.unwrap_err().kind,
            KeyErrorKind::Denied
        );
    }
    fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    provider.unwrap(&wrapped).await.unwrap();
}

#[tokio::test]
async fn rotation_adds_a_key_and_keeps_the_old_ones() {
    let (_folder, path) = folder();
    let provider = FileProvider::new(path.clone(), None);
    let dek = data_key().unwrap();
    let old = provider.wrap(name(1), &dek).await.unwrap();
    let second = provider.create().await.unwrap();
    assert_ne!(old.kek(), &second);
    assert_eq!(provider.newest().await.unwrap(), second);
    let new = provider.wrap(name(1), &dek).await.unwrap();
    assert_eq!(new.kek(), &second);
    for wrapped in [&old, &new] {
        assert_eq!(provider.unwrap(wrapped).await.unwrap(), dek);
    }
    let providers = Providers::new(vec![Box::new(provider)]).unwrap();
    assert_eq!(providers.rewrap(&old).await.unwrap().kek(), &second);
}

#[tokio::test]
async fn a_passphrase_protects_the_keys() {
    let (folder, path) = folder();
    let provider = with_passphrase(folder.path(), "correct horse\n");
    let dek = data_key().unwrap();
    let wrapped = provider.wrap(name(1), &dek).await.unwrap();
    provider.create().await.unwrap();
    assert_eq!(provider.unwrap(&wrapped).await.unwrap(), dek);

    let again = with_passphrase(folder.path(), "correct horse");
    assert_eq!(
        again.unwrap(&wrapped).await.unwrap(),
        dek,
        "a line's end does not count"
    );

    let wrong = with_passphrase(folder.path(), "correct Horse");
    let error = wrong.unwrap(&wrapped).await.unwrap_err();
    assert_eq!(error.kind, KeyErrorKind::Denied);
    assert!(
        error.to_string().contains("passphrase does not open"),
        "{error}"
    );
    let before = fs::read(&path).unwrap();
    assert_eq!(wrong.create().await.unwrap_err().kind, KeyErrorKind::Denied);
    assert_eq!(fs::read(&path).unwrap(), before, "nothing is touched");
    // The passphrase is corrected while the node runs.
    write_secret(&folder.path().join("passphrase"), "correct horse");
    assert_eq!(wrong.unwrap(&wrapped).await.unwrap(), dek);

    let without = FileProvider::new(path, None);
    let error = without.unwrap(&wrapped).await.unwrap_err();
    assert_eq!(error.kind, KeyErrorKind::Denied);
    assert!(
        error.to_string().contains("keys.file.passphrase_file"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_wrong_is_one_line_that_names_the_remedy() {
    let (folder, path) = folder();
    let provider = FileProvider::new(path.clone(), None);
    let wrapped = provider.wrap(name(1), &data_key().unwrap()).await.unwrap();
    let whole = fs::read(&path).unwrap();
    let said = |path: &Path| FileProvider::new(path.to_owned(), None);
    let check = |error: esker_keys::KeyError, kind, part: &str| {
        assert_eq!(error.kind, kind);
        let message = error.to_string();
        assert!(
            message.contains(part) && !message.contains('\n'),
            "{message}"
        );
    };

    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = said(&path).unwrap(&wrapped).await.unwrap_err();
    check(error, KeyErrorKind::Damaged, "restore it from a backup");
    fs::write(&path, b"hello").unwrap();
    let error = said(&path).create().await.unwrap_err();
    check(error, KeyErrorKind::Damaged, "too short");
    assert_eq!(
        fs::read(&path).unwrap(),
        b"hello",
        "what is not a keyring is not replaced"
    );

    fs::remove_file(&path).unwrap();
    let error = said(&path).unwrap(&wrapped).await.unwrap_err();
    check(error, KeyErrorKind::KeyMissing, "is not there");
    assert!(!path.exists(), "opening makes no keyring");
    said(&path).newest().await.unwrap();
    let error = said(&path).unwrap(&wrapped).await.unwrap_err();
    check(error, KeyErrorKind::KeyMissing, wrapped.kek().as_str());

    let nowhere = folder.path().join("absent/keyring");
    let error = said(&nowhere).newest().await.unwrap_err();
    check(error, KeyErrorKind::Config, "create it");
    let error = said(&nowhere).health().await.unwrap_err();
    check(error, KeyErrorKind::Config, "create it");
    let error = said(folder.path()).newest().await.unwrap_err();
    check(error, KeyErrorKind::Denied, "is not a file");
}

/// Both of two that make the keyring at once get the same one, and no rotation is lost.
#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_lose_nothing() {
    let (_folder, path) = folder();
    let tasks: Vec<_> = (0..16u128)
        .map(|n| {
            let provider = FileProvider::new(path.clone(), None);
            tokio::spawn(async move {
                let dek = data_key().unwrap();
                let wrapped = provider.wrap(name(n), &dek).await.unwrap();
                let made = provider.create().await.unwrap();
                (dek, wrapped, made)
            })
        })
        .collect();
    let provider = FileProvider::new(path.clone(), None);
    let mut made = Vec::new();
    for task in tasks {
        let (dek, wrapped, id) = task.await.unwrap();
        assert_eq!(provider.unwrap(&wrapped).await.unwrap(), dek);
        made.push(id);
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 16, "each made a key of its own");
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 56 + 80 * 17, "the first and one for each");
}

/// Whoever reads while the file is replaced sees a whole one.
#[tokio::test(flavor = "multi_thread")]
async fn readers_never_see_half_a_file() {
    let (_folder, path) = folder();
    let provider = FileProvider::new(path.clone(), None);
    let dek = data_key().unwrap();
    let wrapped = provider.wrap(name(1), &dek).await.unwrap();
    let writer = tokio::spawn(async move {
        for _ in 0..30 {
            provider.create().await.unwrap();
        }
    });
    let reader = FileProvider::new(path, None);
    while !writer.is_finished() {
        assert_eq!(reader.unwrap(&wrapped).await.unwrap(), dek);
    }
    writer.await.unwrap();
}
