//! Volumes as disks of a real kernel: Debian's, with its own nbd.ko and nbd-client, in a virtual
//! machine that is emulated in software, so that no right and no module of this machine is needed.
//! What happens inside is one file, `tests/guest/scenario.sh`; this test serves its volumes, kills
//! the daemon when it is asked to, and expects each of its steps.

use crate::examples::blocks;
use crate::harness::{free_address, repository, run_for, skip, verify, Daemon, Folder, Start};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// What the scenario must say is ok, in this order.
const STEPS: [&str; 9] = [
    "boot",
    "ext4",
    "fstrim",
    "reattach",
    "examples",
    "qemu-drive",
    "xfs-four-connections",
    "killed-while-mounted",
    "killed-under-nbd-client",
];
/// A guest that says nothing for so long hangs. Steps take seconds; this is a safety net.
const SILENCE_MAX: Duration = Duration::from_secs(240);
/// Space that a trim frees is counted once the entry is applied.
const TRIM_MAX: Duration = Duration::from_secs(30);
/// The packages may have to be fetched first.
const FETCH_SECONDS_MAX: u32 = 570;

/// The folder with QEMU, the kernel and the guest's files; None when they are not to be had.
fn parts() -> Option<PathBuf> {
    let script = repository().join("scripts/setup_guest.sh");
    let done = run_for::<&str>(FETCH_SECONDS_MAX, script.to_str().unwrap(), &[]);
    if done.code == Some(0) {
        return Some(PathBuf::from(done.out.trim()));
    }
    let reason = done.err.lines().last().unwrap_or("no reason").to_string();
    skip(&format!("no kernel and no QEMU to run it: {reason}"));
    None
}

/// The guest's files, with the scenario as its first process.
fn initrd(parts: &Path, folder: &Folder) -> PathBuf {
    let over = folder.join("over");
    fs::create_dir_all(&over).unwrap();
    let file = |name: &str| fs::read_to_string(repository().join(name)).unwrap();
    let blocks: Vec<String> = blocks("examples/README.md")
        .into_iter()
        .filter_map(|(place, block)| (place == "in the guest").then_some(block))
        .collect();
    assert_eq!(blocks.len(), 3);
    for (name, text) in [
        ("init", file("tests/guest/scenario.sh")),
        ("nbd-attach.py", file("examples/nbd-attach.py")),
        ("nbdtab", file("examples/nbdtab")),
        ("examples.sh", blocks.concat()),
    ] {
        fs::write(over.join(name), text).unwrap();
    }
    run_for(10, "chmod", &["0755", over.join("init").to_str().unwrap()]).ok();
    let initrd = folder.join("initrd");
    fs::copy(parts.join("guest.cpio"), &initrd).unwrap();
    // The kernel unpacks one archive after the other.
    let mut cpio = Command::new(parts.join("busybox"))
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&over)
        .stdin(Stdio::piped())
        .stdout(File::options().append(true).open(&initrd).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let names = b"init\nnbd-attach.py\nnbdtab\nexamples.sh\n";
    cpio.stdin.take().unwrap().write_all(names).unwrap();
    assert!(cpio.wait().unwrap().success());
    initrd
}

/// A running guest; ended with its test.
struct Guest {
    qemu: Child,
    said: Receiver<String>,
    console: PathBuf,
}

impl Guest {
    fn boot(parts: &Path, folder: &Folder, daemon: &Daemon) -> Self {
        let data = parts.join("debian/usr/share");
        let console = folder.join("console");
        let (port, socket) = (daemon.port(), daemon.socket());
        let drive = format!(
            "driver=nbd,node-name=disk,export=q,server.type=unix,server.path={},reconnect-delay=60,\
             discard=unmap",
            socket.display()
        );
        let mut qemu = Command::new(parts.join("run"))
            .arg("usr/bin/qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "768", "-nodefaults", "-no-reboot"])
            .args(["-display", "none"])
            .arg("-L")
            .arg(data.join("qemu"))
            .arg("-L")
            .arg(data.join("seabios"))
            .arg("-kernel")
            .arg(parts.join("vmlinuz"))
            .arg("-initrd")
            .arg(initrd(parts, folder))
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 esker_port={port}"))
            .args(["-netdev", "user,id=net"])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-blockdev", &drive])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .env(
                "QEMU_MODULE_DIR",
                parts.join("debian/usr/lib/x86_64-linux-gnu/qemu"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("qemu.log")).unwrap())
            .spawn()
            .unwrap();
        let out = BufReader::new(qemu.stdout.take().unwrap());
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            qemu,
            said,
            console,
        }
    }

    /// What the guest says next; None at its end.
    fn next(&self) -> Option<String> {
        match self.said.recv_timeout(SILENCE_MAX) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the guest says nothing any more"),
        }
    }

    fn answer(&mut self, word: &str) {
        let stdin = self.qemu.stdin.as_mut().unwrap();
        stdin
            .write_all(format!("{word} done\n").as_bytes())
            .unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            let console = fs::read(&self.console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let lines: Vec<_> = console.lines().collect();
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("guest: {line}");
            }
        }
    }
}

fn used_bytes(daemon: &Daemon, volume: &str) -> u64 {
    let shown = daemon.json(&["volume", "show", volume]);
    shown["used_bytes"].as_u64().unwrap()
}

#[test]
fn a_real_kernel_mounts_writes_trims_and_outlives_kills() {
    let Some(parts) = parts() else { return };
    let folder = Folder::new();
    let address = free_address();
    let how = Start::new(&folder.join("d"))
        .with(&["--store-size", "2GiB"])
        .nbd(&address);
    let mut daemon = how.ready();
    for name in ["e", "x", "q", "disk"] {
        daemon.create(name, "320MiB");
    }
    let began = Instant::now();
    let mut guest = Guest::boot(&parts, &folder, &daemon);

    let (mut steps, mut kills, mut before, mut passed) = (Vec::new(), 0, 0, false);
    while let Some(line) = guest.next() {
        let at = began.elapsed().as_secs();
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("ok", step) => {
                println!("guest: {at} s: {step} ok");
                steps.push(step.to_string());
            }
            ("note", text) => println!("guest: {at} s: {text}"),
            ("host", word) => {
                match word {
                    "kill" => {
                        daemon.kill();
                        daemon = how.ready();
                        kills += 1;
                    }
                    "used-before-trim" => before = used_bytes(&daemon, "e"),
                    "used-after-trim" => {
                        let until = Instant::now() + TRIM_MAX;
                        while used_bytes(&daemon, "e") > before - (24 << 20) {
                            let used = used_bytes(&daemon, "e");
                            assert!(Instant::now() < until, "trim: {before} to {used} bytes");
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                    _ => panic!("the guest asks for {word}"),
                }
                guest.answer(word);
            }
            ("passed", _) => passed = true,
            _ => panic!("{}", failure(&guest, &line)),
        }
    }
    assert!(passed, "the guest ended after {steps:?}");
    assert_eq!(steps, STEPS);
    assert_eq!(kills, 4);
    drop(guest);
    let log = daemon.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
    println!("kernel: all steps in {} s", began.elapsed().as_secs());
}

/// All that the guest says about what went wrong.
fn failure(guest: &Guest, first: &str) -> String {
    let mut text = first.to_string();
    while let Ok(line) = guest.said.recv_timeout(Duration::from_secs(5)) {
        text += "\n";
        text += &line;
    }
    text
}
