//! The commands of the README are run as they stand there, but for ports and folders, so that what
//! a newcomer types is what works.

use crate::harness::{free_address, has, program, repository, run, run_for, Folder};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The blocks of shell commands in a document, in order.
pub fn blocks(document: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(document)).unwrap();
    let mut blocks = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, after)) = rest.split_once("```sh\n") {
        let (block, after) = after.split_once("```").unwrap();
        blocks.push(block.to_string());
        rest = after;
    }
    blocks
}

/// `run.sh` on its own folder and port.
fn run_sh(folder: &Folder, once: bool) -> Command {
    let command = blocks("README.md")[1].trim().to_string();
    assert_eq!(command, "./scripts/run.sh");
    let mut run = Command::new("bash");
    run.args(["-c", &format!("exec {command}")])
        .current_dir(repository())
        .env("ESKER_BIN_DIR", program("eskerd").parent().unwrap())
        .env("ESKER_DATA", folder.join("d"))
        .env("ESKER_NBD", free_address())
        .env("ESKER_METRICS", "none")
        .env("ESKER_STORE_SIZE", "2GiB")
        .env_remove("RUST_LOG");
    if once {
        run.env("ESKER_ONCE", "1");
    }
    run
}

#[test]
fn the_demo_kills_a_leader_loses_nothing_and_leaves_nothing() {
    let command = blocks("README.md")[0].trim().to_string();
    assert_eq!(command, "./scripts/demo.sh");
    let folder = Folder::new();
    let text = run_for(
        100,
        "env",
        &[
            format!(
                "ESKER_BIN_DIR={}",
                program("eskerd").parent().unwrap().display()
            ),
            format!("TMPDIR={}", folder.0.display()),
            "bash".into(),
            "-c".into(),
            format!("cd {} && exec {command}", repository().display()),
        ],
    )
    .ok();
    for part in [
        "3 nodes run, with certificates and TLS",
        "encrypted, 3 copies",
        "snapshot demo@before",
        "which led, was killed (SIGKILL)",
        "has caught up",
        "node 1: its copy has every block",
        "node 3: its copy has every block",
        "acknowledged blocks lost   0 of",
    ] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    crate::demo::nothing_is_left(&folder);
}

#[test]
fn the_first_command_serves_until_interrupted_and_opens_its_data_again() {
    if !has(&["nbdcopy", "jq", "bash", "nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let first = run_sh(&folder, true).output().unwrap();
    let text = String::from_utf8_lossy(&first.stdout);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    for part in [
        "0 volumes",
        "read back: the same",
        "nbd+unix:///demo",
        "nbd-client 127.0.0.1 ",
    ] {
        assert!(text.contains(part), "no {part} in: {text}");
    }

    let mut second = run_sh(&folder, false)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(second.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in &mut lines {
        seen.push(line.unwrap());
        if seen.last().unwrap().starts_with("serving;") {
            break;
        }
    }
    assert!(seen[0].contains("1 volume,"), "{seen:?}");
    let uri = format!(
        "nbd+unix:///demo?socket={}",
        folder.join("d/nbd.sock").display()
    );
    assert_eq!(run("nbdinfo", &["--size", &uri]).ok().trim(), "1073741824");
    // As Ctrl-C for whom started it: SIGINT is ignored by background jobs, so SIGTERM.
    crate::harness::signal(second.id(), "TERM");
    assert_eq!(end(&mut second), Some(0));
    assert!(
        !folder.join("d/nbd.sock").exists(),
        "the daemon has stopped"
    );
}

/// Waits for a child, in bounded time.
fn end(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    panic!("it does not end");
}

#[test]
fn the_commands_by_hand_work_as_they_stand() {
    if !has(&["nbdcopy", "nbdinfo", "bash"]) {
        return;
    }
    let blocks = blocks("README.md");
    assert_eq!(
        blocks.len(),
        6,
        "every block is run by a test: tell this one about a new one"
    );
    assert_eq!(blocks[2].trim(), "./scripts/test.sh", "what runs this test");
    let (build, daemon) = blocks[3].trim().split_once('\n').unwrap();
    assert_eq!(build, "cargo build --release");

    // A folder that looks like the repository after the build.
    let folder = Folder::new();
    fs::create_dir_all(folder.join("target/release")).unwrap();
    for name in ["eskerd", "esker"] {
        std::os::unix::fs::symlink(program(name), folder.join("target/release").join(name))
            .unwrap();
    }
    fs::copy(repository().join("README.md"), folder.join("README.md")).unwrap();
    let ports = format!(" --nbd {} --metrics none", free_address());
    let mut served = Command::new("bash")
        .args(["-c", &format!("exec {}{ports}", daemon.trim())])
        .current_dir(&folder.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(served.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("eskerd ready"), "{line}");
    shell(&folder.0, "", &blocks[4]);
    crate::harness::signal(served.id(), "TERM");
    assert_eq!(end(&mut served), Some(0));
    let alias = "alias esker=target/release/esker\n";
    assert!(blocks[4].starts_with(alias));
    shell(&folder.0, alias, &blocks[5]);
}

/// Runs a block; the first command that fails fails it.
pub fn shell(folder: &Path, before: &str, block: &str) {
    let script = format!("set -e\nshopt -s expand_aliases\n{before}{block}");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder)
        .env_remove("ESKER_DATA")
        .output()
        .unwrap();
    assert!(output.status.success(), "{block}: {output:?}");
}

#[test]
fn documents_that_the_readme_names_exist() {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    for (_, link) in text
        .match_indices("](")
        .map(|(at, _)| text[at + 2..].split_at(0))
    {
        let target = link.split(')').next().unwrap();
        if !target.starts_with("http") {
            assert!(repository().join(target).exists(), "{target}");
        }
    }
    // Documents with commands of their own would have to be run as well.
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "md") {
            let name = format!("docs/{}", path.file_name().unwrap().to_str().unwrap());
            if ["docs/operating.md", "docs/security.md"].contains(&name.as_str()) {
                continue; // their commands have tests of their own
            }
            assert!(
                blocks(&name).is_empty(),
                "{name} has commands that no test runs"
            );
        }
    }
}
