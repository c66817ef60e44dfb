//! Sockets that systemd opens and hands over.

use crate::client::Client;
use crate::harness::{has, program, run, Folder, Start};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Does what systemd does: opens sockets, puts them at 3 and up, names them, becomes the daemon.
/// Prints the ports first.
const ACTIVATE: &str = r#"
import os, socket, sys
program, data, path = sys.argv[1:4]
def tcp(family, host):
    s = socket.socket(family); s.bind((host, 0)); s.listen(5); return s
unix = socket.socket(socket.AF_UNIX); unix.bind(path); unix.listen(5)
four, metrics = tcp(socket.AF_INET, "127.0.0.1"), tcp(socket.AF_INET, "127.0.0.1")
given = [("nbd", four), ("nbd-unix", unix), ("metrics", metrics)]
six = 0
try:
    given.append(("esker.socket", tcp(socket.AF_INET6, "::1")))
    six = given[-1][1].getsockname()[1]
except OSError:
    pass # a machine without IPv6
print(four.getsockname()[1], metrics.getsockname()[1], six, flush=True)
moved = [os.dup(s.fileno()) for _, s in given]
high = [os.dup2(fd, 100 + i) for i, fd in enumerate(moved)]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
    os.set_inheritable(3 + i, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)),
                  LISTEN_FDNAMES=os.environ.get("NAMES") or ":".join(n for n, _ in given))
os.execv(program, [program, "--data", data, "--store-size", "1GiB"])
"#;

#[test]
fn handed_over_sockets_are_served() {
    if !has(&["python3", "nbdinfo", "curl"]) {
        return;
    }
    let folder = Folder::new();
    let (data, path) = (folder.join("d"), folder.join("n.sock"));
    let mut daemon = Command::new("python3")
        .args(["-c", ACTIVATE])
        .arg(program("eskerd"))
        .args([&data, &path])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let ports = lines.next().unwrap().unwrap();
    let ports: Vec<&str> = ports.split(' ').collect();
    let ready = lines.next().unwrap().unwrap();
    assert!(
        ready.contains(&format!("127.0.0.1:{}", ports[0])),
        "{ready}"
    );
    let made = Command::new(program("esker"))
        .arg("--data")
        .arg(&data)
        .args(["volume", "create", "v", "--size", "64MiB"])
        .status();
    assert!(made.unwrap().success());
    let mut uris = vec![
        format!("nbd://127.0.0.1:{}/v", ports[0]),
        format!("nbd+unix:///v?socket={}", path.display()),
        format!("nbd+unix:///v?socket={}", data.join("nbd.sock").display()),
    ];
    if ports[2] != "0" {
        uris.push(format!("nbd://[::1]:{}/v", ports[2]));
    }
    for uri in &uris {
        assert_eq!(run("nbdinfo", &["--size", uri]).ok().trim(), "67108864");
    }
    let metrics = format!("http://127.0.0.1:{}/metrics", ports[1]);
    assert!(run("curl", &["-sf", &metrics]).ok().contains("esker_"));
    let pid = daemon.id().to_string();
    run("kill", &["-TERM", &pid]).ok();
    assert!(daemon.wait().unwrap().success());
    assert!(path.exists(), "the file is of whoever made the socket");
}

#[test]
fn sockets_of_unknown_names_are_refused() {
    if !has(&["python3"]) {
        return;
    }
    let folder = Folder::new();
    let (data, path) = (folder.join("d"), folder.join("n.sock"));
    let output = Command::new("python3")
        .args(["-c", ACTIVATE])
        .arg(program("eskerd"))
        .args([&data, &path])
        .env("NAMES", "nbd")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("LISTEN_FDNAMES has 1 names"), "{text}");
}

#[test]
fn nbd_is_served_at_every_address_that_is_named() {
    let folder = Folder::new();
    let words = ["--store-size", "1GiB", "--nbd", "localhost:0"];
    let daemon = Start::new(&folder.join("d")).with(&words).ready();
    daemon.create("v", "64MiB");
    let addresses: Vec<&str> = daemon
        .ready_line
        .split("nbd://")
        .skip(1)
        .filter_map(|rest| rest.split(',').next())
        .collect();
    assert_eq!(addresses.len(), 2, "{}", daemon.ready_line);
    for address in addresses {
        if let Some(port) = address.strip_prefix("127.0.0.1:") {
            let mut client = Client::tcp(port.parse().unwrap(), "v").unwrap();
            assert_eq!(client.read(0, 4096).unwrap().unwrap(), [0; 4096]);
        } else {
            assert!(address.starts_with("[::1]:"), "{address}");
        }
    }
    daemon.stop();
}
