//! NBD over TLS with the clients people have: libnbd's tools and nbd-client.

use crate::harness::{has, program, run, Daemon, Folder, Start};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A folder with an authority, a node's certificate and bundles of clients: `vm` may open `vm-*`, `all`
/// everything.
pub struct Certificates(pub Folder);

pub fn esker(words: &[&str]) -> crate::harness::Done {
    run(program("esker").to_str().unwrap(), words)
}

impl Certificates {
    pub fn new() -> Self {
        let made = Self(Folder::new());
        let authority = made.path("ca");
        esker(&["cert", "init", "--out", &authority]).ok();
        made.server("server");
        made.client("vm", "vm-*");
        made.client("all", "*");
        made
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn server(&self, name: &str) {
        let authority = self.path("ca");
        let words = ["cert", "server", "--authority", &authority, "--name", name];
        let hosts = ["--host", "localhost", "--host", "127.0.0.1"];
        esker(&[&words[..], &hosts].concat()).ok();
    }

    fn client(&self, name: &str, pattern: &str) {
        let (authority, bundle) = (self.path("ca"), self.path(name));
        let words = ["cert", "client", name, "--authority", &authority];
        let more = ["--volume", pattern, "--bundle", &bundle];
        esker(&[&words[..], &more].concat()).ok();
    }

    /// What tells a daemon to use them.
    pub fn words(&self, name: &str) -> Vec<String> {
        let file = |file: String| self.path(&format!("ca/{file}"));
        let (cert, key) = (file(format!("{name}.pem")), file(format!("{name}.key")));
        let files = [
            ("--tls-cert", cert),
            ("--tls-key", key),
            ("--tls-ca", file("ca.pem".into())),
        ];
        let words = files.into_iter().map(|(word, file)| [word.into(), file]);
        words.flatten().collect()
    }

    /// A daemon with volumes `vm-1` and `db` that uses them.
    fn start(&self, words: &[&str]) -> Daemon {
        let tls = self.words("server");
        let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
        let start = Start::new(&self.0.join("d")).with(&tls).with(words);
        let daemon = start.with(&["--store-size", "1GiB"]).ready();
        for name in ["vm-1", "db"] {
            daemon
                .esker(&["volume", "create", name, "--size", "64MiB"])
                .ok();
        }
        daemon
    }

    fn uri(&self, daemon: &Daemon, client: &str, export: &str) -> String {
        let bundle = self.path(client);
        format!(
            "nbds://127.0.0.1:{}/{export}?tls-certificates={bundle}",
            port(daemon)
        )
    }
}

fn port(daemon: &Daemon) -> u16 {
    let (_, rest) = daemon.ready_line.split_once("://127.0.0.1:").unwrap();
    rest.split(',').next().unwrap().parse().unwrap()
}

#[test]
fn libnbd_reads_and_writes_what_its_certificate_is_for() {
    if !has(&["nbdinfo", "nbdcopy", "cmp"]) {
        return;
    }
    let certificates = Certificates::new();
    let daemon = certificates.start(&["--nbd-socket-tls", "allow"]);
    assert!(
        daemon.ready_line.contains("nbds://127.0.0.1:"),
        "{}",
        daemon.ready_line
    );

    let uri = |client: &str, export: &str| certificates.uri(&daemon, client, export);
    let listed = |client| run("nbdinfo", &["--list", &uri(client, "")]).ok();
    assert!(listed("vm").contains("vm-1") && !listed("vm").contains("\"db\""));
    assert!(listed("all").contains("vm-1") && listed("all").contains("\"db\""));
    let told = run("nbdinfo", &[&uri("vm", "vm-1")]).ok();
    assert!(told.contains("with TLS"), "{told}");
    assert_ne!(run("nbdinfo", &[&uri("vm", "db")]).code, Some(0));
    assert_ne!(run("nbdinfo", &[&uri("vm", "")]).code, Some(0));

    // More than the kernel takes at once, in both directions, over several connections.
    let (before, after) = (certificates.path("before"), certificates.path("after"));
    let content: Vec<u8> = (0..16u32 << 20)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect();
    fs::write(&before, content).unwrap();
    run("nbdcopy", &[&before, &uri("vm", "vm-1")]).ok();
    run("nbdcopy", &[&uri("all", "vm-1"), &after]).ok();
    run("cmp", &[&before, &after]).ok();

    // Without TLS: not on TCP; on the unix socket as ever, or with it.
    let plain = format!("nbd://127.0.0.1:{}/vm-1", port(&daemon));
    assert_ne!(run("nbdinfo", &[&plain]).code, Some(0));
    run("nbdinfo", &[&daemon.uri("db")]).ok();
    let socket = daemon.socket();
    let unix = format!(
        "nbds+unix:///vm-1?socket={}&tls-certificates={}&tls-hostname=localhost",
        socket.display(),
        certificates.path("vm")
    );
    assert!(run("nbdinfo", &[&unix]).ok().contains("with TLS"));

    // From another authority of the same name.
    let others = Certificates::new();
    let uri = |folder: PathBuf| {
        format!(
            "nbds://127.0.0.1:{}/vm-1?tls-certificates={}",
            port(&daemon),
            folder.display()
        )
    };
    let own = certificates.0.join("vm");
    assert_ne!(run("nbdinfo", &[&uri(others.0.join("vm"))]).code, Some(0));
    fs::copy(own.join("ca-cert.pem"), others.0.join("vm/ca-cert.pem")).unwrap();
    assert_ne!(run("nbdinfo", &[&uri(others.0.join("vm"))]).code, Some(0));
    // A thread of its own writes the log.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !daemon.log().contains("TLS: ") {
        assert!(std::time::Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    run("nbdinfo", &[&uri(own)]).ok();
}

#[test]
fn nbd_client_lists_over_tls() {
    if !has(&["nbd-client"]) {
        return;
    }
    let certificates = Certificates::new();
    let daemon = certificates.start(&[]);
    let (port, file) = (port(&daemon).to_string(), |name| certificates.path(name));
    let words = ["-l", "localhost", &port];
    let (cert, key) = (file("vm/client-cert.pem"), file("vm/client-key.pem"));
    let ca = file("vm/ca-cert.pem");
    let tls = ["-certfile", &cert, "-keyfile", &key, "-cacertfile", &ca];
    let listed = run("nbd-client", &[&words[..], &tls].concat()).ok();
    assert!(
        listed.contains("vm-1") && !listed.contains("db"),
        "{listed}"
    );
    let plain = run("nbd-client", &words);
    let told = plain.out + &plain.err;
    assert!(told.contains("needs TLS"), "{told}");
}

#[test]
fn certificates_are_exchanged_while_it_runs() {
    if !has(&["nbdinfo"]) {
        return;
    }
    let certificates = Certificates::new();
    let daemon = certificates.start(&[]);
    let uri = certificates.uri(&daemon, "vm", "vm-1");
    run("nbdinfo", &[&uri]).ok();

    // What is no certificate changes nothing, and is told.
    let cert = certificates.path("ca/server.pem");
    fs::write(&cert, "no certificate").unwrap();
    wait(&daemon, "the old certificates stay in use");
    run("nbdinfo", &[&uri]).ok();

    // Another authority: its clients are taken, the old ones are not.
    let others = Certificates::new();
    for name in ["server.key", "ca.pem", "server.pem"] {
        let to = certificates.0.join("ca").join(name);
        fs::copy(others.0.join("ca").join(name), to).unwrap();
    }
    wait(&daemon, "new certificates are in use");
    assert_ne!(run("nbdinfo", &[&uri]).code, Some(0));
    run("nbdinfo", &[&others.uri(&daemon, "vm", "vm-1")]).ok();
}

#[test]
fn the_commands_of_the_document_work_as_they_stand() {
    if !has(&["bash"]) {
        return;
    }
    let folder = Folder::new();
    let blocks = crate::readme::blocks("docs/security.md");
    assert_eq!(blocks.len(), 1, "tell this test about a new one");
    let bin = crate::harness::program("esker")
        .parent()
        .unwrap()
        .display()
        .to_string();
    let script = format!(
        "set -eu; cd {}; PATH={bin}:$PATH\n{}",
        folder.0.display(),
        blocks[0]
    );
    let told = run("bash", &["-c", &script]).ok();
    assert!(told.contains("vm-*"), "{told}");
    assert!(folder.join("vm-host/client-key.pem").exists());
}

/// Waits until the daemon has logged this.
pub fn wait(daemon: &Daemon, text: &str) {
    wait_for(daemon, text, 1);
}

/// Waits until the daemon has logged this so many times.
pub fn wait_for(daemon: &Daemon, text: &str, times: usize) {
    let begin = Instant::now();
    while daemon.log().matches(text).count() < times {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn certificates_are_never_overwritten_and_keys_are_for_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let certificates = Certificates::new();
    let authority = certificates.path("ca");
    let refused = esker(&["cert", "init", "--out", &authority]).line(1);
    assert!(refused.contains("never replaced"), "{refused}");
    let words = ["cert", "client", "vm", "--authority", &authority];
    let again = esker(&[&words[..], &["--volume", "x"]].concat()).line(1);
    assert!(again.contains("is there already"), "{again}");
    let words = ["cert", "client", "new", "--authority", &authority];
    assert!(esker(&words).line(2).contains("--volume"));
    let odd = esker(&[&words[..], &["--volume", "a/b"]].concat()).line(1);
    assert!(odd.contains("a/b"), "{odd}");
    for key in [
        "ca/ca.key",
        "ca/server.key",
        "ca/vm.key",
        "vm/client-key.pem",
    ] {
        let mode = fs::metadata(certificates.path(key))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let shown = esker(&[
        "cert",
        "show",
        &certificates.path("ca/vm.pem"),
        "-o",
        "json",
    ])
    .ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["volumes"], serde_json::json!(["vm-*"]));
    assert_eq!(shown["kind"], "client");
}
