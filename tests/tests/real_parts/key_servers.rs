//! Encrypted volumes whose keys a server wraps, or a keyring under a passphrase: what is said while they are not
//! to be had, that nothing is touched meanwhile, and that volumes open when they are back.

use crate::client::Client;
use crate::harness::{signal, verify, Daemon, Folder, Start};
use crate::servers::{servers, write_secret, Authority, Server};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const BLOCK: u32 = 4096;
/// Longest a change may take to show. The daemon asks by itself after 1, 2, 4, 8 … seconds.
const WAIT: Duration = Duration::from_secs(90);

/// A daemon whose keys are somebody else's matter, with an encrypted volume `s` and a plain one `p`.
struct Node {
    folder: Folder,
    daemon: Option<Daemon>,
}

impl Node {
    /// With this `[keys]` in its configuration, relative to the test's folder.
    fn new(folder: Folder, keys: &str) -> Self {
        fs::write(folder.join("eskerd.toml"), format!("[keys]\n{keys}")).unwrap();
        let mut node = Self {
            folder,
            daemon: None,
        };
        node.start();
        let words = ["volume", "create", "s", "--size", "16MiB", "--encrypt"];
        node.daemon().esker(&words).ok();
        node.daemon().create("p", "16MiB");
        node.write("s", 0);
        node
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn start(&mut self) {
        let config = self.folder.join("eskerd.toml").display().to_string();
        let start = Start::new(&self.folder.join("d"));
        let words = ["--store-size", "1GiB", "--config", &config];
        self.daemon = Some(start.with(&words).ready());
    }

    /// Ends the daemon without a word.
    fn kill(&mut self) {
        self.daemon.take().unwrap().kill();
    }

    fn write(&self, volume: &str, block: u64) {
        let mut client = self.daemon().client(volume);
        let data = content(block);
        let offset = block * u64::from(BLOCK);
        client.write(offset, &data, 0).unwrap().unwrap();
        client.flush().unwrap().unwrap();
    }

    fn reads(&self, volume: &str, block: u64) {
        let offset = block * u64::from(BLOCK);
        let read = self.daemon().client(volume).read(offset, BLOCK).unwrap();
        assert!(read == Ok(content(block)), "block {block} of {volume}");
    }

    fn key(&self) -> (String, String) {
        let shown = self.daemon().json(&["key", "show", "s"]);
        let text = |field: &str| shown[0][field].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }

    /// `s` is locked with a reason of one line that holds these words; it is listed and refused, `p` serves, no
    /// new key is made, and the log has said it.
    fn is_locked(&self, parts: &[&str]) {
        let begun = Instant::now();
        let (state, reason) = loop {
            let (state, reason) = self.key();
            let fits = parts.iter().all(|part| reason.contains(part));
            if (state == "locked" && fits) || begun.elapsed() > WAIT {
                break (state, reason);
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(state, "locked", "{reason}");
        for part in parts {
            assert!(reason.contains(part), "{part} in: {reason}");
        }
        assert!(!reason.contains('\n') && reason.len() <= 500, "{reason}");
        let daemon = self.daemon();
        let shown = daemon.json(&["volume", "show", "s"]);
        assert_eq!(
            (&shown["state"], &shown["encrypted"]),
            (&"locked".into(), &true.into())
        );
        let status = daemon.esker(&["status", "--why"]).out;
        assert!(status.contains(&reason), "{reason} in: {status}");
        assert!(Client::unix(&daemon.socket(), "s").is_err(), "it is served");
        let words = ["volume", "create", "t", "--size", "1MiB", "--encrypt"];
        let line = daemon.esker(&words).line(1);
        assert!(line.contains("locked"), "{line}");
        self.write("p", 3);
        self.reads("p", 3);
        assert!(daemon.log().contains(parts[0]), "{}", daemon.log());
    }

    /// `s` opens, by itself or when the daemon is told to ask again, with what it held.
    fn opens(&self, is_told: bool) {
        if is_told {
            signal(self.daemon().pid(), "HUP");
        }
        let begun = Instant::now();
        while self.key().0 != "open" {
            assert!(begun.elapsed() < WAIT, "{:?}", self.key());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.reads("s", 0);
        self.write("s", 1);
        self.reads("s", 1);
    }

    /// The end: what the store holds is whole.
    fn end(mut self) {
        self.reads("s", 0);
        self.daemon.take().unwrap().stop();
        verify(&self.folder.join("d/store-0.esker"));
    }
}

fn content(block: u64) -> Vec<u8> {
    let numbers = 0..u64::from(BLOCK) / 8;
    let words = numbers.flat_map(|at| (at * 0x9e37_79b9 + block).to_le_bytes());
    words.collect()
}

/// PyKMIP's server at this port, with a certificate and a database of these names.
fn kmip(
    programs: &Path,
    folder: &Path,
    port: u16,
    (certificate, database): (&str, &str),
) -> Server {
    let file = |name: String| folder.join(name).display().to_string();
    let text = format!(
        "[server]\nhostname=127.0.0.1\nport={port}\ncertificate_path={}\nkey_path={}\nca_path={}\n\
         auth_suite=TLS1.2\nenable_tls_client_auth=True\nlogging_level=INFO\ndatabase_path={}\n\
         tls_cipher_suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\n",
        file(format!("{certificate}.pem")),
        file(format!("{certificate}.key")),
        file("ca.pem".into()),
        file(format!("{database}.db")),
    );
    let config = folder.join("server.conf");
    fs::write(&config, text).unwrap();
    let mut command = Command::new(programs.join("bin/pykmip-server"));
    command.arg("-f").arg(&config);
    command.arg("-l").arg(folder.join("server.log"));
    Server::start(&mut command, port, folder.join("server.out"))
}

fn free_port() -> u16 {
    let address = crate::harness::free_address();
    address.rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
fn a_kmip_server_goes_away_and_comes_back() {
    let Some(programs) = servers() else { return };
    let folder = Folder::new();
    let at = folder.0.clone();
    let authority = Authority::new(&at, "ca");
    for (name, days) in [("server", 30), ("node", 30), ("ended", -1)] {
        authority.issue(name, days);
    }
    let port = free_port();
    let mut server = kmip(programs, &at, port, ("server", "keys"));
    let shown = at.display();
    let keys = format!(
        "provider = 'kmip'\n[keys.kmip]\naddress = '127.0.0.1:{port}'\nca_file = '{shown}/ca.pem'\n\
         cert_file = '{shown}/node.pem'\nkey_file = '{shown}/node.key'\ntimeout_ms = 1500\n"
    );
    let mut node = Node::new(folder, &keys);
    let here = format!("127.0.0.1:{port}");

    // Gone. A volume whose key is here stays open; after a restart it is locked.
    server.stop();
    node.reads("s", 0);
    node.kill();
    node.start();
    node.is_locked(&[&here, "cannot be reached"]);
    let server = kmip(programs, &at, port, ("server", "keys"));
    node.opens(false);
    drop(server);

    // There, and silent.
    node.kill();
    let silent = TcpListener::bind(("127.0.0.1", port)).unwrap();
    node.start();
    node.is_locked(&[&here, "did not answer within 1500 ms"]);
    drop(silent);
    let server = kmip(programs, &at, port, ("server", "keys"));
    node.opens(false);

    // This node's certificate has ended; the new one counts at once.
    let file = |name: &str| at.join(name);
    for end in ["pem", "key"] {
        fs::copy(file(&format!("node.{end}")), file(&format!("good.{end}"))).unwrap();
        fs::copy(file(&format!("ended.{end}")), file(&format!("node.{end}"))).unwrap();
    }
    node.kill();
    node.start();
    node.is_locked(&[&here, "cert_file", "dates"]);
    for end in ["pem", "key"] {
        fs::copy(file(&format!("good.{end}")), file(&format!("node.{end}"))).unwrap();
    }
    node.opens(true);
    drop(server);

    // The server's has.
    node.kill();
    let server = kmip(programs, &at, port, ("ended", "keys"));
    node.start();
    node.is_locked(&[&here, "certificate", "xpired"]);
    drop(server);

    // A server without the key, and one with another key of its name.
    let server = kmip(programs, &at, port, ("server", "empty"));
    signal(node.daemon().pid(), "HUP");
    node.is_locked(&[&here, "does not have the key"]);
    let other = Node::new(Folder::new(), &keys);
    other.end();
    signal(node.daemon().pid(), "HUP");
    node.is_locked(&[&here, "does not open"]);
    drop(server);
    let server = kmip(programs, &at, port, ("server", "keys"));
    node.opens(true);
    drop(server);
    node.end();
}

/// OpenBao in its development mode.
struct Bao {
    _server: Server,
    program: std::path::PathBuf,
    address: String,
}

const ROOT: &str = "root-token-of-the-test";

impl Bao {
    fn start(programs: &Path, folder: &Path, port: u16) -> Self {
        let program = programs.join("bin/bao");
        let mut command = Command::new(&program);
        command.args(["server", "-dev", "-dev-no-store-token"]);
        command.arg(format!("-dev-root-token-id={ROOT}"));
        command.arg(format!("-dev-listen-address=127.0.0.1:{port}"));
        let bao = Self {
            _server: Server::start(&mut command, port, folder.join("bao.log")),
            program,
            address: format!("http://127.0.0.1:{port}"),
        };
        let begun = Instant::now();
        while bao.run(&["secrets", "enable", "transit"]).is_err() {
            assert!(begun.elapsed() < WAIT, "OpenBao does not open");
            std::thread::sleep(Duration::from_millis(100));
        }
        bao
    }

    fn run(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(words);
        command
            .env("BAO_ADDR", &self.address)
            .env("BAO_TOKEN", ROOT);
        let done = command.output().unwrap();
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
        }
    }
}

#[test]
fn vault_refuses_is_sealed_and_serves_again() {
    let Some(programs) = servers() else { return };
    let folder = Folder::new();
    let at = folder.0.clone();
    let port = free_port();
    let bao = Bao::start(programs, &at, port);
    let token = at.join("token");
    write_secret(&token, ROOT);
    let keys = format!(
        "provider = 'vault'\n[keys.vault]\nurl = '{}'\ntoken_file = 'token'\ntimeout_ms = 1500\n",
        bao.address
    );
    let mut node = Node::new(folder, &keys);

    // A token that is not known. The answer to it never holds it.
    write_secret(&token, "hvs.nobody-knows-this");
    node.kill();
    node.start();
    node.is_locked(&[&bao.address, "token"]);
    assert!(
        !node.daemon().log().contains("nobody-knows"),
        "a secret is logged"
    );
    write_secret(&token, ROOT);
    node.opens(true);

    // A token that everybody may read.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    node.kill();
    node.start();
    node.is_locked(&["token", "chmod 600"]);
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    node.opens(true);

    // Its version of the key is retired, and taken back.
    let config = |version: &str| {
        let version = format!("min_decryption_version={version}");
        bao.run(&["write", "transit/keys/esker/config", &version])
            .unwrap();
    };
    bao.run(&["write", "-f", "transit/keys/esker/rotate"])
        .unwrap();
    config("2");
    node.kill();
    node.start();
    node.is_locked(&["esker", "version"]);
    config("1");
    node.opens(true);

    // Sealed: in this mode nothing opens it again but a new one, which has another key of the same name.
    bao.run(&["operator", "seal"]).unwrap();
    node.kill();
    node.start();
    node.is_locked(&[&bao.address]);
    drop(bao);
    let other = Bao::start(programs, &at, port);
    other.run(&["write", "-f", "transit/keys/esker"]).unwrap();
    signal(node.daemon().pid(), "HUP");
    node.is_locked(&["does not open"]);
    node.daemon.take().unwrap().stop();
    verify(&node.folder.join("d/store-0.esker"));
}

#[test]
fn a_keyring_opens_with_its_passphrase_alone() {
    let folder = Folder::new();
    let passphrase = folder.join("passphrase");
    write_secret(&passphrase, "the right one");
    let keys = "provider = 'file'\n[keys.file]\npath = 'keyring'\npassphrase_file = 'passphrase'\n";
    let mut node = Node::new(folder, keys);
    let keyring = node.folder.join("d/keyring");
    let keyring = if keyring.exists() {
        keyring
    } else {
        node.folder.join("keyring")
    };
    let before = fs::read(&keyring).unwrap();
    write_secret(&passphrase, "another one");
    node.kill();
    node.start();
    node.is_locked(&["the passphrase does not open keyring", "passphrase_file"]);
    assert!(
        !node.daemon().log().contains("another one"),
        "a secret is logged"
    );
    fs::remove_file(&passphrase).unwrap();
    signal(node.daemon().pid(), "HUP");
    node.is_locked(&["keys.file.passphrase_file"]);
    write_secret(&passphrase, "the right one");
    node.opens(true);

    // Another keyring in its place: the key of that name is not the one that wrapped.
    node.kill();
    let (away, other) = (node.folder.join("away"), Folder::new());
    fs::rename(&keyring, &away).unwrap();
    write_secret(&other.join("passphrase"), "the right one");
    let stranger = Node::new(other, keys);
    let made = ["d/keyring", "keyring"].map(|name| stranger.folder.join(name));
    let made = made.iter().find(|path| path.exists()).unwrap();
    fs::copy(made, &keyring).unwrap();
    stranger.end();
    node.start();
    node.is_locked(&["key"]);
    fs::rename(&away, &keyring).unwrap();
    node.opens(true);
    assert_eq!(
        fs::read(&keyring).unwrap(),
        before,
        "the keyring is untouched"
    );
    node.end();
}

/// A data key lies in memory that is locked: for each encrypted volume 4 KiB, for a plain one nothing.
#[test]
fn data_keys_are_locked_in_memory() {
    let folder = Folder::new();
    let start = Start::new(&folder.join("d"));
    let daemon = start.with(&["--store-size", "1GiB"]).ready();
    let locked_kib = |daemon: &Daemon| -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmLck")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    daemon.create("p", "1MiB");
    let before = locked_kib(&daemon);
    for count in 1..=5 {
        let name = format!("s{count}");
        let words = ["volume", "create", &name, "--size", "1MiB", "--encrypt"];
        daemon.esker(&words).ok();
        // What keys of the keyring are here beside them may come and go.
        let now = locked_kib(&daemon);
        assert!(now >= before + 4 * count, "{before} KiB, {now} KiB");
    }
    let with_five = locked_kib(&daemon);
    daemon.esker(&["volume", "delete", "s1", "--yes"]).ok();
    assert!(
        locked_kib(&daemon) < with_five,
        "a deleted volume's key stays"
    );
    // Only who may look into any process sees more.
    let maps = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap_or_default();
    let flags: Vec<&str> = maps
        .lines()
        .filter(|line| line.starts_with("VmFlags:") && line.contains(" lo"))
        .collect();
    assert!(maps.is_empty() || !flags.is_empty(), "no locked page");
    for flags in flags {
        assert!(
            flags.contains(" dd"),
            "a page with keys may be dumped: {flags}"
        );
    }
    daemon.stop();
}
