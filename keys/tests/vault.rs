//! The `vault` provider against OpenBao, whose Transit engine, AppRole and namespaces speak Vault's API.
//! HashiCorp's own server is not to be had from a package registry and was not run.
#![allow(clippy::unwrap_used)] // helpers of tests

mod support;

use esker_crypto::WrappedKey;
use esker_keys::random::data_key;
use esker_keys::{KeyErrorKind, Provider};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{name, port, provider, servers, write_secret, Authority, Server};

const ROOT: &str = "root-token-of-the-test";
const POLICY: &str = r#"
path "transit/keys/esker" { capabilities = ["create", "read", "update"] }
path "transit/keys/esker/rotate" { capabilities = ["update"] }
path "transit/encrypt/esker" { capabilities = ["update"] }
path "transit/decrypt/esker" { capabilities = ["update"] }
"#;

/// OpenBao in its development mode, with TLS or without: in memory, open at once.
struct Bao {
    server: Server,
    program: PathBuf,
    address: String,
    authority: Option<PathBuf>,
}

impl Bao {
    fn start(programs: &Path, folder: &Path, is_tls: bool) -> Self {
        let (port, program) = (port(), programs.join("bin/bao"));
        let mut command = Command::new(&program);
        command.args(["server", "-dev", "-dev-no-store-token"]);
        command.arg(format!("-dev-root-token-id={ROOT}"));
        command.arg(format!("-dev-listen-address=127.0.0.1:{port}"));
        if is_tls {
            command
                .arg("-dev-tls")
                .arg(format!("-dev-tls-cert-dir={}", folder.display()));
        }
        let scheme = if is_tls { "https" } else { "http" };
        let bao = Self {
            server: Server::start(&mut command, port, folder.join("bao.log")),
            program,
            address: format!("{scheme}://127.0.0.1:{port}"),
            authority: is_tls.then(|| folder.join("vault-ca.pem")),
        };
        bao.until_open();
        bao
    }

    /// Listening comes before being open.
    fn until_open(&self) {
        for _ in 0..200 {
            if self.try_run(&["secrets", "list"]).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!(
            "OpenBao does not open: {:?}",
            self.try_run(&["secrets", "list"])
        );
    }

    fn try_run(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .env("BAO_ADDR", &self.address)
            .env("BAO_TOKEN", ROOT);
        if let Some(authority) = &self.authority {
            command.env("BAO_CACERT", authority);
        }
        let done = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match done.status.success() {
            true => Ok(text(&done.stdout)),
            false => Err(text(&done.stderr)),
        }
    }

    fn run(&self, words: &[&str]) -> String {
        self.try_run(words)
            .unwrap_or_else(|e| panic!("bao {words:?}: {e}"))
    }

    /// A role that may do what a node does; its id and a secret.
    fn role(&self, folder: &Path, settings: &[&str]) -> (String, String) {
        let policy = folder.join("policy.hcl");
        fs::write(&policy, POLICY).unwrap();
        self.run(&["policy", "write", "esker", policy.to_str().unwrap()]);
        self.run(&["auth", "enable", "approle"]);
        let path = "auth/approle/role/esker";
        self.run(&[&["write", path, "token_policies=esker"][..], settings].concat());
        let id = self.run(&["read", "-field=role_id", &format!("{path}/role-id")]);
        let secret = self.run(&[
            "write",
            "-f",
            "-field=secret_id",
            &format!("{path}/secret-id"),
        ]);
        (id, secret)
    }

    fn config(&self, rest: &str) -> String {
        let address = &self.address;
        let mut text = format!("provider = 'vault'\n[vault]\nurl = '{address}'\n{rest}\n");
        if let Some(authority) = &self.authority {
            text += &format!("ca_file = '{}'\n", authority.display());
        }
        text
    }
}

fn kind_of<T>(result: Result<T, esker_keys::KeyError>) -> (KeyErrorKind, String) {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => (error.kind, error.to_string()),
    }
}

#[tokio::test]
async fn keys_are_wrapped_rotated_and_unwrapped_by_a_real_server() {
    let Some(programs) = servers() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut bao = Bao::start(programs, folder, false);
    bao.run(&["secrets", "enable", "transit"]);
    write_secret(&folder.join("token"), ROOT);
    let node = provider(&bao.config("token_file = 'token'"), folder);

    node.health().await.unwrap();
    let made = bao.try_run(&["read", "transit/keys/esker"]);
    assert!(made.is_err(), "asking makes no key");
    let dek = data_key().unwrap();
    let first = node.wrap(name(1), &dek).await.unwrap();
    assert_eq!(first.kek().as_str(), "vault:transit/esker:v1");
    assert_eq!(node.unwrap(&first).await.unwrap(), dek);
    assert_eq!(
        node.create().await.unwrap().as_str(),
        "vault:transit/esker:v2"
    );
    let second = node.wrap(name(1), &dek).await.unwrap();
    assert_eq!(second.kek().as_str(), "vault:transit/esker:v2");
    for wrapped in [&first, &second] {
        let again = WrappedKey::decode(&wrapped.encode()).unwrap();
        assert_eq!(node.unwrap(&again).await.unwrap(), dek);
    }

    binding_counts(node.as_ref(), &first).await;

    // Old versions are retired.
    bao.run(&[
        "write",
        "transit/keys/esker/config",
        "min_decryption_version=2",
    ]);
    let (kind, said) = kind_of(node.unwrap(&first).await);
    assert_eq!(kind, KeyErrorKind::KeyMissing, "{said}");
    assert_eq!(node.unwrap(&second).await.unwrap(), dek);

    // A token is refused, and replaced in its file.
    write_secret(&folder.join("token"), "hvs.nobody");
    let (kind, said) = kind_of(node.unwrap(&second).await);
    assert_eq!(kind, KeyErrorKind::Denied, "{said}");
    assert!(!said.contains("hvs.nobody"), "{said}");
    write_secret(&folder.join("token"), ROOT);
    node.unwrap(&second).await.unwrap();

    // Sealed, then gone.
    bao.run(&["operator", "seal"]);
    assert_eq!(
        kind_of(node.unwrap(&second).await).0,
        KeyErrorKind::Unreachable
    );
    bao.server.stop();
    let (kind, said) = kind_of(node.health().await);
    assert_eq!(kind, KeyErrorKind::Unreachable);
    assert!(said.contains(&bao.address), "{said}");
}

/// What Transit made opens for the volume, the key and the version it was made for, and no other.
async fn binding_counts(node: &dyn Provider, wrapped: &WrappedKey) {
    let made = wrapped.provided_bytes().unwrap().to_vec();
    let kek = |name: &str| esker_crypto::KekId::new(name).unwrap();
    let own = wrapped.kek().clone();
    let (one, two) = (wrapped.key(), esker_crypto::KeyId::new(2).unwrap());
    let mut changed = made.clone();
    *changed.last_mut().unwrap() ^= 1;
    let other_volume = esker_base::VolumeId(2);
    for (kek, volume, key, bytes) in [
        (own.clone(), other_volume, one, made.clone()),
        (own.clone(), wrapped.volume(), two, made.clone()),
        (
            kek("vault:transit/esker:v2"),
            wrapped.volume(),
            one,
            made.clone(),
        ),
        (own, wrapped.volume(), one, changed),
    ] {
        let moved = WrappedKey::provided(kek, volume, key, bytes).unwrap();
        let (kind, said) = kind_of(node.unwrap(&moved).await);
        assert_eq!(kind, KeyErrorKind::Damaged, "{said}");
    }
    let elsewhere = kek("vault:transit/other:v1");
    let moved = WrappedKey::provided(elsewhere, wrapped.volume(), one, made).unwrap();
    assert_eq!(
        kind_of(node.unwrap(&moved).await).0,
        KeyErrorKind::KeyMissing
    );
}

/// A role whose tokens serve one request: every further one takes a new login.
#[tokio::test]
async fn a_role_logs_in_again_when_its_token_ends() {
    let Some(programs) = servers() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bao = Bao::start(programs, folder, true);
    bao.run(&["secrets", "enable", "transit"]);
    let (role, secret) = bao.role(folder, &["token_num_uses=2", "token_ttl=60"]);
    write_secret(&folder.join("secret"), &secret);
    let text = bao.config(&format!("role_id = '{role}'\nsecret_id_file = 'secret'"));
    let node = provider(&text, folder);
    let dek = data_key().unwrap();
    for volume in 1..6 {
        let wrapped = node.wrap(name(volume), &dek).await.unwrap();
        assert_eq!(node.unwrap(&wrapped).await.unwrap(), dek);
    }
    node.create().await.unwrap();

    // What the role may not do is refused after one new login, not after many.
    let other = provider(&(text.clone() + "key = 'other'\n"), folder);
    let (kind, said) = kind_of(other.newest().await);
    assert_eq!(kind, KeyErrorKind::Denied);
    assert!(said.contains("policy"), "{said}");

    write_secret(
        &folder.join("secret"),
        "00000000-0000-0000-0000-000000000000",
    );
    let wrong = provider(&text, folder);
    let (kind, said) = kind_of(wrong.health().await);
    assert_eq!(kind, KeyErrorKind::Denied);
    assert!(said.contains("keys.vault.role_id"), "{said}");
}

#[tokio::test]
async fn namespaces_mounts_types_and_certificates_count() {
    let Some(programs) = servers() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bao = Bao::start(programs, folder, true);
    bao.run(&["namespace", "create", "team"]);
    bao.run(&[
        "secrets",
        "enable",
        "-namespace=team",
        "-path=wraps",
        "transit",
    ]);
    bao.run(&["secrets", "enable", "transit"]);
    write_secret(&folder.join("token"), ROOT);
    let text = bao.config("token_file = 'token'\nmount = 'wraps'");
    let node = provider(&(text.clone() + "namespace = 'team'\n"), folder);
    let dek = data_key().unwrap();
    let wrapped = node.wrap(name(1), &dek).await.unwrap();
    assert_eq!(wrapped.kek().as_str(), "vault:wraps/esker:v1");
    assert_eq!(node.unwrap(&wrapped).await.unwrap(), dek);
    bao.run(&["read", "-namespace=team", "wraps/keys/esker"]);
    let outside = provider(&text, folder);
    let (kind, said) = kind_of(outside.newest().await);
    assert_eq!(kind, KeyErrorKind::KeyMissing, "{said}");
    assert!(said.contains("keys.vault.mount"), "{said}");

    // A type that does not authenticate what it wraps for is refused.
    bao.run(&["write", "-f", "transit/keys/signs", "type=ed25519"]);
    let text = bao.config("token_file = 'token'");
    let signs = provider(&(text.clone() + "key = 'signs'\n"), folder);
    let (kind, said) = kind_of(signs.newest().await);
    assert_eq!(kind, KeyErrorKind::Config, "{said}");

    let foreign = Authority::new(folder, "foreign");
    let own = bao.authority.as_ref().unwrap().display().to_string();
    let text = text.replace(&own, &foreign.certificate().display().to_string());
    let (kind, said) = kind_of(provider(&text, folder).health().await);
    assert_eq!(kind, KeyErrorKind::Denied, "{said}");
    assert!(said.contains("certificate"), "{said}");
}

#[tokio::test]
async fn secrets_that_others_may_read_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("token"), ROOT).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder.join("token"), fs::Permissions::from_mode(0o644)).unwrap();
    let text = "provider = 'vault'\n[vault]\nurl = 'http://127.0.0.1:1'\ntoken_file = 'token'\n";
    let (kind, said) = kind_of(provider(text, folder).health().await);
    assert_eq!(kind, KeyErrorKind::Denied);
    assert!(said.contains("chmod 600") && !said.contains(ROOT), "{said}");
}
