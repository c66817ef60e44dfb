//! The `eskerd` binary on stores that it has had in use and that are not what they were: none is
//! formatted again; and on those that it has not, which are.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

use esker_base::checksum::crc32;
use rustix::fs::{seek, SeekFrom};
use rustix::process::{kill_process, Pid, Signal};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SIZE: u64 = 1 << 30;
const MIB: usize = 1 << 20;

/// A folder with a node's data directory in it.
struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn list(&self) -> PathBuf {
        self.path("data/stores.toml")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eskerd"));
        command.arg("--data").arg(self.path("data"));
        command.args(["--nbd=none", "--metrics=none", "--store-size=1GiB"]);
        command.args(more).env_remove("RUST_LOG");
        command
    }

    /// Starts a daemon, stops it, and gives its log.
    fn runs(&self, more: &[&str]) -> String {
        self.runs_until(more, Signal::TERM)
    }

    fn runs_until(&self, more: &[&str], signal: Signal) -> String {
        let mut command = self.command(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        if !line.is_empty() {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with("eskerd ready: "), "{log}");
        let code = Some(0).filter(|_| signal == Signal::TERM);
        assert_eq!(output.status.code(), code, "{log}");
        log
    }

    /// Starts a daemon that refuses to run, and gives its line. It must change nothing at all.
    fn refusal(&self, more: &[&str]) -> String {
        let before = contents(self.folder.path());
        let output = self.command(more).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert_eq!(output.stdout, b"", "never ready");
        assert_eq!(contents(self.folder.path()), before, "{log}");
        let line = log.lines().last().unwrap();
        assert!(line.starts_with("eskerd: "), "{log}");
        line.to_string()
    }

    /// Has an identity and no store.
    fn begins(&self) {
        let output = self.command(&["--store=/dev/null"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(self.path("data/node.toml").exists());
    }

    fn knows(&self, path: &Path) -> bool {
        let list = fs::read_to_string(self.list()).unwrap();
        list.contains(path.to_str().unwrap()) && list.contains("\"known\"")
    }

    fn forgets_all(&self) {
        fs::write(self.list(), "").unwrap();
    }
}

/// The checksums of all files, with their names; not of the lock, which tells the last pid.
fn contents(folder: &Path) -> Vec<(PathBuf, Option<(u64, u32)>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if !path.ends_with("lock") {
            found.push((path.clone(), checksum(&path)));
        }
    }
    found.sort();
    found
}

/// Length, and a checksum that leaves out what is zero.
fn checksum(path: &Path) -> Option<(u64, u32)> {
    let file = File::open(path).ok()?; // a socket has none
    let (mut sums, mut piece, mut offset) = (Vec::new(), vec![0; MIB], 0);
    while let Ok(next) = seek(&file, SeekFrom::Data(offset)) {
        offset = next - next % MIB as u64;
        let count = file.read_at(&mut piece, offset).unwrap();
        if piece[..count].iter().any(|byte| *byte != 0) {
            sums.extend(offset.to_le_bytes());
            sums.extend(crc32(&piece[..count]).to_le_bytes());
        }
        offset += MIB as u64;
    }
    Some((file.metadata().unwrap().len(), crc32(&sums)))
}

fn wipe(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; MIB], 0).unwrap();
}

fn blank(path: &Path, size_bytes: u64) {
    File::create(path).unwrap().set_len(size_bytes).unwrap();
}

fn head_is_blank(path: &Path) -> bool {
    let mut head = vec![0; MIB];
    File::open(path).unwrap().read_exact(&mut head).unwrap();
    head.iter().all(|byte| *byte == 0)
}

#[track_caller]
fn assert_names(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "no {part} in: {line}");
    }
}

#[test]
fn a_wiped_default_store_is_refused() {
    let node = Node::new();
    let store = node.path("data/store-0.esker");
    node.runs(&[]);
    assert!(node.knows(&store));
    assert!(!head_is_blank(&store));
    node.runs_until(&[], Signal::KILL);
    node.runs(&[]);
    wipe(&store);
    for _ in 0..2 {
        let line = node.refusal(&[]);
        let list = format!("remove its entry from {}", node.list().display());
        let name = format!("store {} was in use", store.display());
        assert_names(
            &line,
            &[&name, "is now blank", "restore it from a copy", &list],
        );
    }
    // Also when it is named, and by another name.
    let link = node.path("link");
    std::os::unix::fs::symlink(&store, &link).unwrap();
    for path in [&store, &link] {
        let line = node.refusal(&["--store", path.to_str().unwrap()]);
        assert_names(&line, &["is now blank"]);
    }
    // The remedy, one half at a time.
    node.forgets_all();
    let line = node.refusal(&[]);
    assert_names(
        &line,
        &["was not made by this node", "delete it", "--store"],
    );
    fs::remove_file(&store).unwrap();
    node.runs(&[]);
    assert!(node.knows(&store) && !head_is_blank(&store));
}

#[test]
fn an_emptied_or_missing_default_store_is_refused() {
    let node = Node::new();
    let store = node.path("data/store-0.esker");
    node.runs(&[]);
    let copy = node.path("copy");
    fs::copy(&store, &copy).unwrap();
    blank(&store, 0);
    assert_names(&node.refusal(&[]), &["is now blank"]);
    fs::remove_file(&store).unwrap();
    let line = node.refusal(&[]);
    assert_names(
        &line,
        &["is now missing", store.to_str().unwrap(), "stores.toml"],
    );
    assert!(!store.exists());
    // It comes back from a copy.
    fs::rename(&copy, &store).unwrap();
    node.runs(&[]);
    // Or is given up.
    fs::remove_file(&store).unwrap();
    node.forgets_all();
    node.runs(&[]);
}

#[test]
fn a_named_blank_store_is_formatted_once() {
    let node = Node::new();
    let store = node.path("device");
    let named = ["--store", store.to_str().unwrap()];
    blank(&store, SIZE);
    node.runs(&named);
    assert!(node.knows(&store) && !head_is_blank(&store));
    node.runs(&named);
    wipe(&store);
    let line = node.refusal(&named);
    assert_names(&line, &["is now blank", "or clear it and remove its entry"]);
    blank(&store, SIZE);
    node.refusal(&named);
    node.forgets_all();
    node.runs(&named);
    // A device that is not there is not replaced by a file of its name.
    fs::remove_file(&store).unwrap();
    assert_names(&node.refusal(&named), &["is now missing"]);
}

#[test]
fn a_refused_store_keeps_the_others_as_they_are() {
    let node = Node::new();
    let stores = ["a", "b", "c"].map(|name| node.path(name));
    let named = stores
        .each_ref()
        .map(|path| format!("--store={}", path.display()));
    let [a, b, c] = named.each_ref().map(String::as_str);
    node.runs(&[a]);
    blank(&stores[1], SIZE);
    wipe(&stores[0]);
    let line = node.refusal(&[c, b, a]);
    assert_names(&line, &["/a was in use"]);
    assert!(head_is_blank(&stores[1]) && !stores[2].exists());
    // Without it, the others begin.
    node.runs(&[c, b]);
    assert!(node.knows(&stores[1]) && node.knows(&stores[2]));
}

#[test]
fn a_store_that_was_begun_is_finished() {
    // (what the list says besides, size of the file that was left; none when it was not made)
    for (more, left_bytes) in [
        ("", Some(SIZE)),
        ("made_here = true\n", Some(SIZE)),
        ("made_here = true\n", Some(SIZE / 2)),
        ("made_here = true\n", Some(12345)),
        ("made_here = true\n", Some(0)),
        ("made_here = true\n", None),
    ] {
        let node = Node::new();
        node.begins();
        let store = node.path("data/store-0.esker");
        let path = store.display();
        let list = format!("[[store]]\npath = \"{path}\"\nstate = \"new\"\n{more}");
        fs::write(node.list(), list).unwrap();
        if let Some(bytes) = left_bytes {
            blank(&store, bytes);
        }
        node.runs(&[]);
        assert!(node.knows(&store), "{more}{left_bytes:?}");
        assert_eq!(fs::metadata(&store).unwrap().len(), SIZE);
        assert!(!fs::read_to_string(node.list()).unwrap().contains("new\""));
        wipe(&store);
        assert_names(&node.refusal(&[]), &["is now blank"]);
    }
}

#[test]
fn what_was_put_where_a_store_was_begun_is_kept() {
    let node = Node::new();
    node.begins();
    let store = node.path("data/store-0.esker");
    let list = format!(
        "[[store]]\npath = \"{}\"\nstate = \"new\"\nmade_here = true\n",
        store.display()
    );
    fs::write(node.list(), list).unwrap();
    fs::write(&store, vec![7; 3 * MIB]).unwrap();
    assert_names(&node.refusal(&[]), &["not an Esker store"]);
}

#[test]
fn a_store_that_could_not_be_made_is_not_in_the_way() {
    let node = Node::new();
    let config = node.path("small.toml");
    fs::write(
        &config,
        "data = 'data'\nstore_size = '64MiB'\nnbd = 'none'\nmetrics = 'none'\n",
    )
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_eskerd"))
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_names(&String::from_utf8(output.stderr).unwrap(), &["at least"]);
    node.runs(&[]);
    let store = node.path("data/store-0.esker");
    assert_eq!(fs::metadata(store).unwrap().len(), SIZE);

    let node = Node::new();
    let store = node.path("no/folder/store");
    let words = ["--store", store.to_str().unwrap()];
    assert!(!node.command(&words).output().unwrap().status.success());
    let list = fs::read_to_string(node.list()).unwrap();
    assert!(!list.contains("[[store]]"), "{list}");
}

#[test]
fn without_the_list_nothing_is_formatted() {
    let node = Node::new();
    let store = node.path("data/store-0.esker");
    node.runs(&[]);
    fs::remove_file(node.list()).unwrap();
    node.runs(&[]);
    assert!(node.knows(&store), "a whole store is listed again");

    fs::remove_file(node.list()).unwrap();
    wipe(&store);
    let line = node.refusal(&[]);
    assert_names(&line, &["is blank", "stores.toml", "restore them"]);
    let line = node.refusal(&["--store", store.to_str().unwrap()]);
    assert_names(&line, &["is blank", "make an empty"]);
    fs::remove_file(&store).unwrap();
    assert_names(&node.refusal(&[]), &["is missing", "make an empty"]);
    node.forgets_all();
    node.runs(&[]);

    fs::write(node.list(), "[[store]]\n").unwrap();
    assert_names(&node.refusal(&[]), &["stores.toml:", "restore it"]);
}
