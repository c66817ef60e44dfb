//! The commands of examples/README.md, as they stand there. Those for a kernel with nbd.ko run in
//! the guest of `kernel.rs`.

use crate::disk::NEEDS;
use crate::harness::{
    has, program, python, repository, run, run_for, skip, verify, Daemon, Folder, Start,
};
use std::fs;
use std::path::Path;

/// A document's blocks of shell commands, each with where it is to be run: nothing, `as root`,
/// `in the guest`.
pub fn blocks(document: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(repository().join(document)).unwrap();
    let mut blocks = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, after)) = rest.split_once("```sh") {
        let (place, after) = after.split_once('\n').unwrap();
        let (block, after) = after.split_once("```").unwrap();
        blocks.push((place.trim().to_string(), block.to_string()));
        rest = after;
    }
    blocks
}

/// The block that holds these words, and no other does.
fn block(place: &str, words: &str) -> String {
    let mut found = blocks("examples/README.md");
    found.retain(|(_, block)| block.contains(words));
    assert_eq!(found.len(), 1, "{words}");
    assert_eq!(found[0].0, place, "{words}");
    found.remove(0).1
}

/// A daemon on `esker-data`, and the folder in which a reader would be.
fn served(folder: &Folder, store_size: &str) -> Daemon {
    let how = Start::new(&folder.join("esker-data")).with(&["--store-size", store_size]);
    let examples = repository().join("examples").display().to_string();
    run("cp", &["-r", &examples, &folder.0.display().to_string()]).ok();
    how.ready()
}

/// Runs a block; the first command that fails fails it. `before` says what a reader's shell knows.
fn shell(folder: &Folder, before: &str, block: &str) -> String {
    let bin = program("esker");
    let bin = bin.parent().unwrap().display();
    let script = format!(
        "set -e\ncd '{}'\nexport PATH=\"$PATH:/usr/sbin:/sbin:{bin}\"\n{before}\n{block}",
        folder.0.display()
    );
    run_for(240, "bash", &["-c", &script]).ok()
}

#[test]
fn every_example_is_run() {
    let mut places: Vec<_> = blocks("examples/README.md")
        .into_iter()
        .map(|(place, _)| place)
        .collect();
    places.sort();
    let (here, guest, root) = ("", "in the guest", "as root");
    let run = [
        here, here, here, here, here, root, root, guest, guest, guest,
    ];
    assert_eq!(places, run, "tell the tests about a new block");
    for entry in fs::read_dir(repository().join("examples/fio")).unwrap() {
        let name = entry.unwrap().file_name();
        let named = format!("examples/fio/{}\n", name.to_str().unwrap());
        assert!(block("", "prefill").contains(&named), "{named}");
    }
}

#[test]
fn images_go_in_and_out() {
    if !has(&["nbdcopy", "cmp", "qemu-img", "qemu-io"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "1GiB");
    shell(&folder, "", &block("", "nbdcopy --flush"));
    let out = shell(&folder, "", &block("", "qemu-img convert"));
    assert!(out.contains("Images are identical"), "{out}");
    assert!(!out.contains("verification failed"), "{out}");
    daemon.stop();
    verify(&folder.join("esker-data/store-0.esker"));
}

#[test]
fn a_backup_copies_what_changed() {
    let Some(python) = python() else { return };
    if !has(&["qemu-io", "qemu-img", "nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "2GiB");
    // The Python that has libnbd, whatever else is installed.
    let before = format!("mkdir bin && ln -s '{python}' bin/python3 && PATH=\"$PWD/bin:$PATH\"");
    let out = shell(&folder, &before, &block("", "--since monday"));
    let copied: Vec<&str> = out.lines().filter(|l| l.contains("bytes copied")).collect();
    assert_eq!(
        copied,
        [
            "71303168 bytes copied of 1073741824",
            "1048576 bytes copied of 1073741824"
        ],
        "{out}"
    );
    assert!(out.contains("Images are identical"), "{out}");
    let out = shell(&folder, "", &block("", "--map=qemu"));
    let words: Vec<Vec<&str>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let dirty = ["8388608", "1048576", "1", "dirty"];
    assert!(words.iter().any(|line| line == &dirty), "{out}");
    let json = &out[out.find('[').unwrap()..];
    let extents: Vec<serde_json::Value> = serde_json::from_str(json).unwrap();
    let changed: Vec<_> = extents.iter().filter(|e| e["data"] == false).collect();
    assert_eq!(changed.len(), 1, "{json}");
    assert_eq!(changed[0]["start"], 8 << 20);
    assert_eq!(changed[0]["length"], 1 << 20);
    daemon.stop();
    verify(&folder.join("esker-data/store-0.esker"));
}

/// Each job file, for a second and on a part of the volume.
#[test]
fn fio_has_a_job_for_every_row() {
    if !has(&["fio"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "4GiB");
    for entry in fs::read_dir(folder.join("examples/fio")).unwrap() {
        let path = entry.unwrap().path();
        let mut text = fs::read_to_string(&path).unwrap();
        for (long, short) in [
            ("size=4g", "size=64m"),
            ("runtime=20", "runtime=1"),
            ("ramp_time=2", "ramp_time=0"),
        ] {
            assert!(text.contains(long) || path.ends_with("prefill.fio"));
            text = text.replace(long, short);
        }
        fs::write(&path, text).unwrap();
    }
    let out = shell(&folder, "", &block("", "prefill"));
    assert_eq!(out.matches("err= 0").count(), 8, "{out}");
    assert!(!out.contains("error"), "{out}");
    daemon.stop();
}

/// Undoes what a block that failed has left.
struct Attached<'a>(&'a Folder, &'a str);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if self.0.join(self.1).join("device").exists() {
            let (folder, name) = (self.0 .0.display(), self.1);
            let undo = format!(
                "cd '{folder}' && {{ umount {name}/mnt; timeout 20 examples/mount.sh detach {name}; }}"
            );
            let _ = run("bash", &["-c", &undo]);
        }
    }
}

/// True when this machine lets the tests mount.
fn may_mount() -> bool {
    if !has(&NEEDS) || !has(&["nbdkit", "fstrim", "unshare"]) {
        return false;
    }
    let root = run("id", &["-u"]).ok().trim() == "0";
    let able = root && Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    if !able {
        skip("mounting needs root, /dev/fuse and /dev/loop-control");
    }
    able
}

#[test]
fn files_lie_on_a_volume_without_nbd_ko() {
    if !may_mount() {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "1GiB");
    fs::write(folder.join("image.raw"), vec![7; 32 << 20]).unwrap();
    let attached = Attached(&folder, "files");
    shell(&folder, "", &block("as root", "fstrim"));
    drop(attached);
    daemon.stop();
    verify(&folder.join("esker-data/store-0.esker"));
}

#[test]
fn postgres_works_on_a_volume() {
    if !may_mount() {
        return;
    }
    let Some(programs) = crate::postgres::programs() else {
        return;
    };
    let folder = Folder::new();
    let daemon = served(&folder, "3GiB");
    // The programs as if they were installed.
    let wrap = format!(
        "mkdir pgbin; for p in {programs}/bin/*; do\n\
         printf '#!/bin/sh\\nLD_LIBRARY_PATH={programs}/lib exec %s \"$@\"\\n' \"$p\" >pgbin/${{p##*/}}\n\
         done; chmod +x pgbin/*; export PG_BIN=$PWD/pgbin PG_SECONDS=3",
        programs = programs.display()
    );
    let attached = Attached(&folder, "pg");
    let out = shell(&folder, &wrap, &block("as root", "postgres.sh"));
    drop(attached);
    for part in [
        "fdatasync",
        "number of failed transactions: 0",
        "nothing is wrong",
    ] {
        assert!(out.contains(part), "no {part} in: {out}");
    }
    daemon.stop();
    verify(&folder.join("esker-data/store-0.esker"));
}
