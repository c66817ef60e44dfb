//! Folders, daemons and commands of a test. Each ends with its test, and only what the test
//! started is ended.

use crate::client::Client;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{mpsc, Once};
use std::time::{Duration, Instant};

/// Longest a daemon may take to say that it is ready, before the test gives up.
const READY_MAX: Duration = Duration::from_secs(30);
/// Longest a command may take.
const COMMAND_SECONDS_MAX: u32 = 120;

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// The folder cargo builds into.
fn target() -> PathBuf {
    let exe = std::env::current_exe().unwrap(); // TARGET/PROFILE/deps/real_parts-HASH
    exe.ancestors().nth(3).unwrap().to_path_buf()
}

/// A program of this repository.
pub fn program(name: &str) -> PathBuf {
    static BUILD: Once = Once::new();
    let folder =
        std::env::var_os("ESKER_BIN_DIR").map_or_else(|| target().join("release"), PathBuf::from);
    BUILD.call_once(|| {
        if !folder.join("eskerd").exists() || !folder.join("esker").exists() {
            let words = [
                "build",
                "--release",
                "-p",
                "esker-daemon",
                "-p",
                "esker-cli",
            ];
            let status = Command::new(env!("CARGO"))
                .args(words)
                .current_dir(repository())
                .status();
            assert!(status.unwrap().success(), "the programs do not build");
        }
    });
    folder.join(name)
}

/// True when all these commands exist; otherwise the test is skipped, with its reason told.
pub fn has(commands: &[&str]) -> bool {
    for command in commands {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let found = path
            .split(':')
            .any(|folder| Path::new(folder).join(command).is_file());
        if !found {
            skip(&format!("{command} is not installed"));
            return false;
        }
    }
    true
}

/// Tells that this test is skipped, and why.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("test").to_string();
    let line = format!("SKIPPED {name}: {reason}\n");
    eprint!("{line}");
    if let Some(log) = std::env::var_os("ESKER_SKIP_LOG") {
        let mut log = File::options().append(true).create(true).open(log).unwrap();
        log.write_all(line.as_bytes()).unwrap();
    }
}

/// A number a person may set.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name}={text}"))
    })
}

/// A folder of a test under target/; removed at its end unless it failed. Its name is short, since
/// sockets lie in it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = target()
            .join("real")
            .join(format!("{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&path); // of an older process with the same id
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what is left of the test: {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Its output, when it went well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// Its one line of error, when it ended with this code.
    #[track_caller]
    pub fn line(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let told: Vec<_> = self.err.lines().filter(|line| !is_log(line)).collect();
        assert_eq!(told.len(), 1, "one clear line: {self:#?}");
        told[0].to_string()
    }
}

/// True for lines of the daemon's log, which start with a time.
fn is_log(line: &str) -> bool {
    line.starts_with("20") && line.contains('T')
}

/// Runs a command to its end, in bounded time.
#[track_caller]
pub fn run<S: AsRef<std::ffi::OsStr>>(command: &str, words: &[S]) -> Done {
    run_for(COMMAND_SECONDS_MAX, command, words)
}

/// Runs a command to its end, for at most this long.
#[track_caller]
pub fn run_for<S: AsRef<std::ffi::OsStr>>(seconds: u32, command: &str, words: &[S]) -> Done {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new("timeout")
        .args(["-k", "5", &seconds.to_string(), command])
        .args(words)
        .env("PATH", path)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Done {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// How a daemon is started.
pub struct Start {
    data: PathBuf,
    words: Vec<String>,
    env: Vec<(String, PathBuf)>,
    /// Name of a network namespace.
    network: Option<String>,
}

impl Start {
    /// On this folder, with a new port for NBD and no metrics.
    pub fn new(data: &Path) -> Self {
        let words = ["--nbd", "127.0.0.1:0", "--metrics", "none"];
        Self {
            data: data.to_path_buf(),
            words: words.map(String::from).to_vec(),
            env: Vec::new(),
            network: None,
        }
    }

    pub fn with(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(ToString::to_string));
        self
    }

    /// With metrics on this address.
    pub fn metrics(mut self, address: &str) -> Self {
        self.words[3] = address.into();
        self
    }

    /// On this address for NBD instead.
    pub fn nbd(mut self, address: &str) -> Self {
        self.words[1] = address.into();
        self
    }

    pub fn env(mut self, name: &str, value: &Path) -> Self {
        self.env.push((name.into(), value.to_path_buf()));
        self
    }

    /// In this network namespace.
    pub fn within(mut self, network: Option<String>) -> Self {
        self.network = network;
        self
    }

    /// Starts it without waiting.
    pub fn spawn(&self) -> Child {
        fs::create_dir_all(&self.data).unwrap();
        let log = File::options()
            .append(true)
            .create(true)
            .open(log_of(&self.data))
            .unwrap();
        let mut command = match &self.network {
            None => Command::new(program("eskerd")),
            Some(name) => {
                // It becomes the daemon: the process is the same.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}"));
                command.arg(program("eskerd"));
                command
            }
        };
        command
            .arg("--data")
            .arg(&self.data)
            .args(&self.words)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn ready(&self) -> Daemon {
        let mut child = self.spawn();
        let out = child.stdout.take().unwrap();
        let mut daemon = Daemon {
            child: Some(child),
            data: self.data.clone(),
            ready_line: String::new(),
        };
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(out).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(READY_MAX).unwrap_or_default();
        assert!(
            line.starts_with("eskerd ready: "),
            "not ready: {line:?}; its log: {}",
            daemon.log()
        );
        daemon.ready_line = line.trim_end().to_string();
        daemon
    }

    /// Runs it where it must refuse to start; gives its one line.
    #[track_caller]
    pub fn refusal(&self, code: i32) -> String {
        let daemon = program("eskerd");
        let mut words = vec!["--data".into(), self.data.display().to_string()];
        words.extend(self.words.iter().cloned());
        run_for(30, daemon.to_str().unwrap(), &words).line(code)
    }
}

fn log_of(data: &Path) -> PathBuf {
    data.with_extension("log")
}

/// A running daemon; killed when its test ends.
pub struct Daemon {
    child: Option<Child>,
    pub data: PathBuf,
    pub ready_line: String,
}

impl Daemon {
    /// One that is not there any more, or not yet.
    pub fn gone(data: &Path) -> Self {
        Self {
            child: None,
            data: data.to_path_buf(),
            ready_line: String::new(),
        }
    }

    /// Everything it and its predecessors on this folder have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(log_of(&self.data)).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn port(&self) -> u16 {
        let (_, rest) = self.ready_line.split_once("nbd://127.0.0.1:").unwrap();
        rest.split(',').next().unwrap().parse().unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub fn tcp_uri(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port())
    }

    #[track_caller]
    pub fn client(&self, export: &str) -> Client {
        Client::unix(&self.socket(), export)
            .unwrap_or_else(|e| panic!("no client of {export}: {e}"))
    }

    #[track_caller]
    pub fn tcp_client(&self, export: &str) -> Client {
        Client::tcp(self.port(), export).unwrap_or_else(|e| panic!("no client of {export}: {e}"))
    }

    /// Runs `esker` with its data folder and these words.
    #[track_caller]
    pub fn esker(&self, words: &[&str]) -> Done {
        let data = self.data.display().to_string();
        let words: Vec<&str> = ["--data", &data]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        run(program("esker").to_str().unwrap(), &words)
    }

    #[track_caller]
    pub fn create(&self, name: &str, size: &str) {
        self.esker(&["volume", "create", name, "--size", size]).ok();
    }

    /// A JSON answer of `esker`.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.esker(&words).ok()).unwrap()
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.pid());
        fs::read_dir(folder).unwrap().count()
    }

    /// Resident memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        signal(self.pid(), "TERM");
    }

    /// Waits for its end; gives its exit code.
    #[track_caller]
    pub fn wait(mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > end {
                let _ = child.kill();
                panic!("the daemon does not end: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it cleanly.
    #[track_caller]
    pub fn stop(self) {
        self.terminate();
        let data = self.data.clone();
        assert_eq!(
            self.wait(),
            Some(0),
            "{:?}",
            fs::read_to_string(log_of(&data))
        );
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            for line in tail.iter().rev() {
                eprintln!("eskerd: {line}");
            }
        }
    }
}

/// An address that was free a moment ago. Below the ports the system gives to clients, so that it
/// stays free.
pub fn free_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (std::process::id() * 16 + count) % 18_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// Sends a signal to a process of this test.
pub fn signal(pid: u32, name: &str) {
    run("kill", &[format!("-{name}"), pid.to_string()]).ok();
}

/// Debian's Python, which has the bindings of libnbd; other installations do not.
pub fn python() -> Option<String> {
    let python = std::env::var("ESKER_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".into());
    let done = run(&python, &["-c", "import nbd; nbd.NBD()"]);
    if done.code == Some(0) {
        return Some(python);
    }
    skip("python3-libnbd is not installed");
    None
}

/// A script beside these tests.
pub fn script(name: &str) -> String {
    let path = repository().join("tests/real").join(name);
    path.display().to_string()
}

/// Offline check of a store: nothing may be wrong.
#[track_caller]
pub fn verify(store: &Path) {
    let words = ["verify", store.to_str().unwrap()];
    run(program("esker").to_str().unwrap(), &words).ok();
}
