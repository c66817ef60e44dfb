//! The demo's nodes: daemons of this machine, all in one folder.

use super::failed;
use crate::error::{CliError, Client};
use esker_api::client;
use esker_base::NodeId;
use esker_keys::ca::{Authority, Request, Role};
use esker_keys::Rights;
use rustix::process::{kill_process, Pid, Signal};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Each node's store file, which is allocated in full.
pub const STORE_BYTES: u64 = 1 << 30;
/// A start takes well under a second; the machine may be busy.
const READY_WAIT_MAX: Duration = Duration::from_secs(30);
/// A stop in order, with a hand-over and a last checkpoint.
const STOP_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long the metrics may take.
const METRICS_WAIT_MAX: Duration = Duration::from_secs(5);
/// Days that the demo's certificates are valid.
const DAYS: u32 = 30;
/// Lines of each daemon's log that are kept when something fails.
const LOG_LINES_KEPT: usize = 60;

/// A node.
pub struct Node {
    /// Its number.
    pub id: u64,
    /// Its folder.
    pub data: PathBuf,
    metrics: SocketAddr,
    child: Option<Child>,
}

/// All of them.
pub struct Nodes {
    folder: PathBuf,
    eskerd: PathBuf,
    /// In the order of their numbers, from 1.
    pub list: Vec<Node>,
}

impl Nodes {
    /// Gives each its folder, configuration and certificate; starts none.
    ///
    /// # Errors
    /// When there is no `eskerd`, or files cannot be written.
    pub fn new(folder: &Path, count: usize) -> Result<Self, CliError> {
        let eskerd = eskerd()?;
        let ports = free_addresses(count * 3)
            .map_err(|e| failed(format!("no free port on 127.0.0.1: {e}")))?;
        let members: Vec<_> = ports.chunks_exact(3).collect();
        let list: String = (1..)
            .zip(&members)
            .map(|(id, of)| {
                let (links, control) = (of[0], of[1]);
                format!("[[cluster.node]]\nid = {id}\naddress = '{links}'\ncontrol = '{control}'\n")
            })
            .collect();
        let certs = folder.join("certs");
        let now = OffsetDateTime::now_utc();
        let authority = Authority::init(&certs, "esker-demo", DAYS, now)?;
        let cluster = random_uuid().map_err(|e| failed(format!("no random numbers: {e}")))?;
        let mut nodes = Vec::new();
        for (id, of) in (1..).zip(&members) {
            let name = format!("n{id}");
            let rights = Rights {
                node: Some(NodeId(id)),
                ..Rights::default()
            };
            let request = Request {
                role: Role::Node,
                name: name.clone(),
                hosts: vec!["localhost".into(), "127.0.0.1".into()],
                rights,
                days: DAYS,
            };
            authority.issue(&request, now)?;
            let (links, control) = (of[0], of[1]);
            let config = format!(
                "tls_cert = 'certs/{name}.pem'\ntls_key = 'certs/{name}.key'\ntls_ca = 'certs/ca.pem'\n\
                 [node]\nid = {id}\n[cluster]\nid = '{cluster}'\nlisten = '{links}'\ncontrol = '{control}'\n{list}"
            );
            let file = folder.join(format!("{name}.toml"));
            fs::write(file, config).map_err(|source| CliError::Folder {
                path: folder.to_path_buf(),
                source,
            })?;
            nodes.push(Node {
                id,
                data: folder.join(name),
                metrics: of[2],
                child: None,
            });
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            eskerd,
            list: nodes,
        })
    }

    /// Starts one and waits until it serves.
    ///
    /// # Errors
    /// When it does not; with what it said last.
    pub async fn start(&mut self, id: u64) -> Result<(), CliError> {
        let out = self.spawn(id)?;
        self.ready(id, out).await
    }

    /// Starts all of them.
    ///
    /// # Errors
    /// As [`Nodes::start`].
    pub async fn start_all(&mut self) -> Result<(), CliError> {
        let ids: Vec<_> = self.list.iter().map(|node| node.id).collect();
        let spawned: Result<Vec<_>, _> = ids.iter().map(|id| self.spawn(*id)).collect();
        for (id, out) in ids.into_iter().zip(spawned?) {
            self.ready(id, out).await?;
        }
        Ok(())
    }

    fn spawn(&mut self, id: u64) -> Result<Box<dyn Read + Send>, CliError> {
        let (folder, eskerd) = (&self.folder, &self.eskerd);
        let unusable = |source| CliError::Folder {
            path: folder.clone(),
            source,
        };
        let path = log_of(folder, id);
        let log = File::options().append(true).create(true).open(path);
        let log = log.map_err(unusable)?;
        let config = folder.join(format!("n{id}.toml"));
        let node = self.list.iter_mut().find(|node| node.id == id);
        let node = node.ok_or_else(|| failed(format!("there is no node {id}")))?;
        let mut command = Command::new(eskerd);
        command
            .args([Path::new("--config"), &config, Path::new("--data")])
            .arg(&node.data)
            .args(["--store-size", &STORE_BYTES.to_string(), "--nbd", "none"])
            .args(["--metrics", &node.metrics.to_string()])
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0); // Ctrl-C is the demo's: it stops them in order
        let mut child = command
            .spawn()
            .map_err(|e| failed(format!("cannot start {}: {e}", eskerd.display())))?;
        let out = child.stdout.take();
        node.child = Some(child);
        out.map(|out| Box::new(out) as _)
            .ok_or_else(|| failed("eskerd has no output"))
    }

    async fn ready(&mut self, id: u64, out: Box<dyn Read + Send>) -> Result<(), CliError> {
        let (sender, line) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(out).read_line(&mut line);
            let _ = sender.send(line); // nobody waits any more after an interruption
        });
        let line = match tokio::time::timeout(READY_WAIT_MAX, line).await {
            Ok(line) => line.unwrap_or_default(),
            Err(_) => String::new(),
        };
        match line.starts_with("eskerd ready") {
            true => Ok(()),
            false => {
                let said = tail(&log_of(&self.folder, id), 1);
                Err(failed(format!("node {id} does not start: {}", said.trim())))
            }
        }
    }

    /// The node with this number.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, id: u64) -> Result<&Node, CliError> {
        let node = self.list.iter().find(|node| node.id == id);
        node.ok_or_else(|| failed(format!("there is no node {id}")))
    }

    /// Ends one without warning, as a crash would.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self, id: u64) -> Result<(), CliError> {
        let node = self.list.iter_mut().find(|node| node.id == id);
        let child = node.and_then(|node| node.child.take());
        let killed = child.map(|mut child| child.kill().and_then(|()| child.wait()));
        match killed {
            Some(Ok(_)) => Ok(()),
            _ => Err(failed(format!("node {id} was not running"))),
        }
    }

    /// Fails when one has ended by itself.
    ///
    /// # Errors
    /// That one, and what it said last.
    pub fn all_run(&mut self) -> Result<(), CliError> {
        for node in &mut self.list {
            let ended = node.child.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                let said = tail(&log_of(&self.folder, node.id), 1);
                let text = format!("node {} ended ({status}): {}", node.id, said.trim());
                return Err(failed(text));
            }
        }
        Ok(())
    }

    /// Stops those that run, in order; those that do not end are killed.
    ///
    /// # Errors
    /// When one had to be killed, or ended with an error.
    pub async fn stop(&mut self) -> Result<(), CliError> {
        for node in &self.list {
            if let Some(child) = &node.child {
                terminate(child.id());
            }
        }
        let end = Instant::now() + STOP_WAIT_MAX;
        let mut result = Ok(());
        for node in &mut self.list {
            let Some(mut child) = node.child.take() else {
                continue;
            };
            let status = loop {
                match child.try_wait() {
                    Ok(None) if Instant::now() < end => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(status) => break status,
                    Err(_) => break None,
                }
            };
            if !status.is_some_and(|status| status.success()) {
                let _ = child.kill(); // it may have ended by now
                let _ = child.wait();
                result = Err(failed(format!("node {} did not stop in order", node.id)));
            }
        }
        result
    }

    /// The processes of those that run.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let children = self.list.iter().filter_map(|node| node.child.as_ref());
        children.map(Child::id).collect()
    }

    /// Gives them up: they run on.
    pub fn leave(&mut self) {
        for node in &mut self.list {
            node.child = None;
        }
    }

    /// The last lines of what each has logged.
    #[must_use]
    pub fn logs(&self) -> String {
        let one = |node: &Node| {
            let lines = tail(&log_of(&self.folder, node.id), LOG_LINES_KEPT);
            format!("== node {}\n{lines}", node.id)
        };
        self.list.iter().map(one).collect()
    }
}

impl Drop for Nodes {
    /// For a demo that ends oddly: otherwise none of them runs any more.
    fn drop(&mut self) {
        for node in &mut self.list {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

impl Node {
    /// Whether it was started and not killed.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its NBD socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }

    /// A connection to its admin API.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn admin(&self) -> Result<Client, CliError> {
        Ok(client::connect(&self.data.join("admin.sock")).await?)
    }

    /// The sum of a metric over the lines whose labels hold `label`.
    ///
    /// # Errors
    /// When the node does not tell.
    pub fn metric(&self, name: &str, label: &str) -> Result<u64, CliError> {
        let text = http_get(self.metrics)
            .map_err(|e| failed(format!("node {} does not tell its metrics: {e}", self.id)))?;
        sum_of(&text, name, label)
            .ok_or_else(|| failed(format!("node {} does not tell {name}", self.id)))
    }
}

/// Asks a process to stop, when it is there.
pub fn terminate(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, Signal::TERM)); // it may have ended
}

fn http_get(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, METRICS_WAIT_MAX)?;
    stream.set_read_timeout(Some(METRICS_WAIT_MAX))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// None when no line has the name. Only whole numbers are summed.
fn sum_of(text: &str, name: &str, label: &str) -> Option<u64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_it = rest.starts_with(['{', ' ']) && rest.contains(label);
        let value = rest.rsplit(' ').next()?;
        is_it.then(|| value.parse::<u64>().ok()).flatten()
    });
    let values: Vec<_> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

fn log_of(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("n{id}.log"))
}

/// The last lines of a file; nothing of one that cannot be read.
fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    let last = &all[all.len().saturating_sub(lines)..];
    last.iter().map(|line| format!("{line}\n")).collect()
}

/// The daemon: beside this program, or else on the PATH.
fn eskerd() -> Result<PathBuf, CliError> {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|path| Some(path.parent()?.to_path_buf()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = beside
        .clone()
        .into_iter()
        .chain(std::env::split_paths(&path));
    let found = folders
        .find(|folder| folder.join("eskerd").is_file())
        .map(|folder| folder.join("eskerd"));
    found.ok_or_else(|| {
        let beside = beside.unwrap_or_default();
        failed(format!(
            "there is no eskerd in {} nor on the PATH: build it there with `cargo build --release`, or install it",
            beside.display()
        ))
    })
}

/// Addresses that nobody listens on; held together, so that they differ.
fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    let listeners: io::Result<Vec<_>> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect();
    listeners?.iter().map(TcpListener::local_addr).collect()
}

/// Random bytes.
///
/// # Errors
/// When the system gives none.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn random_uuid() -> io::Result<String> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| &hex[range];
    let parts = [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ];
    Ok(parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_by_name_and_label() {
        let text = "# TYPE a counter\na_total{direction=\"in\",node=\"2\"} 5\na_total{direction=\"in\",node=\"3\"} 7\n\
                    a_total{direction=\"out\"} 100\na_total_more{direction=\"in\"} 1000\nb 3\n";
        assert_eq!(sum_of(text, "a_total", "direction=\"in\""), Some(12));
        assert_eq!(sum_of(text, "b", ""), Some(3));
        assert_eq!(sum_of(text, "c", ""), None);
    }

    #[test]
    fn ports_differ_and_ids_are_uuids() {
        let mut ports = free_addresses(20).unwrap();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 20);
        let id = random_uuid().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
    }
}
