//! Snapshots as exports, and what changed since one, as real clients see it.

use crate::harness::{has, python, run, verify, Daemon, Folder, Start};

const MIB: u64 = 1 << 20;

fn served(folder: &Folder, size: &str) -> Daemon {
    let how = Start::new(&folder.join("data")).with(&["--store-size", "2GiB"]);
    let daemon = how.ready();
    daemon.create("v", size);
    daemon
}

/// A client's script; `h` is attached to the export, with these contexts selected.
fn client(uri: &str, contexts: &[&str], script: &str) -> Option<String> {
    let python = python()?;
    let text = format!(
        "import nbd\nh = nbd.NBD()\nfor c in {contexts:?}: h.add_meta_context(c)\n\
         h.connect_uri({uri:?})\n{script}"
    );
    Some(run(&python, &["-c", &text]).ok())
}

#[test]
fn a_snapshot_is_a_read_only_export_that_nothing_changes() {
    if !has(&["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "64MiB");
    let (head, cut) = (daemon.uri("v"), daemon.uri("v@s"));
    let first = "for i in range(16): h.pwrite(bytes([i + 1]) * (1 << 20), i << 21)\nh.flush()";
    if client(&head, &[], first).is_none() {
        return;
    }
    daemon.esker(&["snapshot", "create", "v@s"]).ok();
    let copy = |name: &str| {
        let path = folder.join(name).display().to_string();
        run("nbdcopy", &[cut.as_str(), &path]).ok();
        std::fs::read(path).unwrap()
    };
    let before = copy("before");
    assert_eq!((before.len(), before[0], before[2 << 20]), (64 << 20, 1, 2));
    let map = run("nbdinfo", &["--map", &cut]).ok();
    let told = run("nbdinfo", &["--json", &cut]).ok();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let told = &told["exports"][0];
    assert_eq!(told["export-name"], "v@s");
    assert_eq!(told["export-size"], 64 * MIB);
    assert_eq!(told["is_read_only"], true);
    assert_eq!(told["can_multi_conn"], true);
    // A client that stays attached while the volume is written, grows, goes back, and is merged.
    let refused = "import errno\n\
         for change in (lambda: h.pwrite(b'x' * 4096, 0), lambda: h.trim(4096, 0), lambda: h.zero(4096, 0)):\n\
         \x20   try: change()\n\
         \x20   except nbd.Error as e: assert e.errno == 'EPERM', e.errno\n\
         \x20   else: raise SystemExit('a snapshot was changed')\n\
         h.flush()";
    // libnbd itself keeps a client from changing what is read-only.
    let strict = "h.set_strict_mode(0)\n";
    client(&cut, &[], &format!("{strict}{refused}"));
    let mut attached = daemon.client("v@s");
    let again = "h.pwrite(b'!' * (30 << 20), 0)\nh.trim(1 << 20, 4 << 20)\nh.flush()";
    client(&head, &[], again);
    let line = daemon.esker(&["snapshot", "delete", "v@s"]).line(1);
    assert!(line.contains("session"), "{line}");
    daemon
        .esker(&["volume", "resize", "v", "--size", "128MiB"])
        .ok();
    daemon.esker(&["snapshot", "create", "v@later"]).ok();
    let size = |export: &str| run("nbdinfo", &["--size", &daemon.uri(export)]).ok();
    assert_eq!(size("v@s").trim(), (64 * MIB).to_string());
    assert_eq!(size("v@later").trim(), (128 * MIB).to_string());
    daemon.esker(&["snapshot", "rollback", "v@s"]).ok();
    let read = attached.read(2 * MIB, 4096).unwrap();
    assert_eq!(read, Ok(vec![2; 4096]));
    assert!(before == copy("after") && map == run("nbdinfo", &["--map", &cut]).ok());
    drop(attached);
    // The same after a start; the volume has gone back to it.
    let (data, store) = (daemon.data.clone(), daemon.data.join("store-0.esker"));
    daemon.stop();
    let daemon = Start::new(&data).ready();
    let path = folder.join("before").display().to_string();
    let same = [
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        &path,
        &daemon.uri("v@s"),
    ];
    assert!(run("qemu-img", &same).ok().contains("identical"));
    daemon.esker(&["snapshot", "delete", "v@s"]).ok();
    let gone = run("nbdinfo", &[&daemon.uri("v@s")]);
    assert_ne!(gone.code, Some(0));
    daemon.stop();
    verify(&store);
}

#[test]
fn snapshots_are_listed_up_to_a_maximum_and_found_beyond_it() {
    if !has(&["nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "64MiB");
    for i in 0..20 {
        daemon
            .esker(&["snapshot", "create", &format!("v@s{i}")])
            .ok();
    }
    let list = run("nbdinfo", &["--list", "--json", &daemon.uri("")]).ok();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<&str> = exports
        .iter()
        .filter_map(|e| e["export-name"].as_str())
        .collect();
    let newest = (4..20).rev().map(|i| format!("v@s{i}"));
    let expected: Vec<String> = std::iter::once("v".to_owned()).chain(newest).collect();
    assert_eq!(names, expected);
    let oldest = daemon.uri("v@s0");
    assert_eq!(
        run("nbdinfo", &["--size", &oldest]).ok().trim(),
        (64 * MIB).to_string()
    );
    let contexts = exports[0]["contexts"].as_array().unwrap();
    assert_eq!(contexts.len(), 21, "{contexts:?}");
}

/// Writes and trims at random, and tells what that changed. Nothing is flushed.
const CHANGES: &str = r#"
import random
random.seed(SEED)
BLOCKS = h.get_size() // 4096
before = set()
def note(context, offset, entries, error):
    pos = offset
    for length, flags in zip(entries[::2], entries[1::2]):
        if not flags & 1: before.update(range(pos // 4096, (pos + length) // 4096))
        pos += length
h.block_status(h.get_size(), 0, note)
data, touched = set(before), set()
for i in range(60):
    at, count = random.randrange(BLOCKS - 64), random.choice([1, 1, 2, 7, 64])
    some = range(at, at + count)
    touched.update(some)
    if random.randrange(4) < 3:
        h.pwrite(bytes([random.randrange(1, 256)]) * (4096 * count), at * 4096)
        data.update(some)
    else:
        h.trim(count * 4096, at * 4096)
        data.difference_update(some)
print(sorted(b for b in touched if b in data or b in before))
"#;

const DIRTY: &str = r#"
seen, at = set(), 0
while at < h.get_size():
    told = {}
    h.block_status(min(h.get_size() - at, 1 << 30), at, lambda c, o, e, err: told.__setitem__(c, list(e)))
    assert set(told) == {"base:allocation", CHANGES}, told
    pos = at
    entries = told[CHANGES]
    for length, flags in zip(entries[::2], entries[1::2]):
        assert flags in (0, 1) and length > 0
        if flags: seen.update(range(pos // 4096, (pos + length) // 4096))
        pos += length
    at = pos
print(sorted(seen))
"#;

fn blocks(text: &str) -> std::collections::BTreeSet<u64> {
    let list: Vec<u64> = serde_json::from_str(text.trim()).unwrap();
    list.into_iter().collect()
}

#[test]
fn what_changed_since_a_snapshot_is_a_dirty_bitmap() {
    let folder = Folder::new();
    let daemon = served(&folder, "256MiB");
    let head = daemon.uri("v");
    let write = |seed: u32| {
        let script = format!("SEED = {seed}\n{CHANGES}");
        Some(blocks(&client(&head, &["base:allocation"], &script)?))
    };
    let changed = |export: &str, since: &str| {
        let name = format!("qemu:dirty-bitmap:since={since}");
        let script = format!("CHANGES = {name:?}\n{DIRTY}");
        let text = client(&daemon.uri(export), &["base:allocation", &name], &script);
        blocks(&text.unwrap())
    };
    if write(1).is_none() {
        return;
    }
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    assert!(changed("v", "a").is_empty());
    let second = write(2).unwrap();
    assert!(second.len() > 50);
    // No checkpoint has merged it: the question waits for one.
    assert_eq!(changed("v", "a"), second);
    daemon.esker(&["snapshot", "create", "v@b"]).ok();
    let third = write(3).unwrap();
    assert_eq!(changed("v@b", "a"), second);
    assert_eq!(changed("v", "b"), third);
    let both: std::collections::BTreeSet<u64> = changed("v", "a");
    assert!(both.is_subset(&second.union(&third).copied().collect()) && both.len() > second.len());
    // The other way round there is nothing to select.
    let script = "print(h.can_meta_context('qemu:dirty-bitmap:since=b'))";
    let text = client(&daemon.uri("v@a"), &["qemu:dirty-bitmap:since=b"], script);
    assert_eq!(text.unwrap().trim(), "False");
    let store = daemon.data.join("store-0.esker");
    daemon.stop();
    verify(&store);
}

#[test]
fn a_terabyte_is_compared_by_what_changed() {
    if !has(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "1TiB");
    let head = daemon.uri("v");
    let at = |i: u64| i << 36;
    let write = |byte: u64, places: &[u64]| {
        let script = places.iter().fold(String::new(), |script, i| {
            script + &format!("h.pwrite(bytes([{byte}]) * 65536, {})\n", at(*i))
        });
        client(&head, &[], &(script + "h.flush()"))
    };
    if write(1, &[0, 1, 2, 3, 4, 5, 6, 7]).is_none() {
        return;
    }
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    write(2, &[2, 5, 9]);
    let expected: Vec<(u64, u64)> = [2, 5, 9].map(|i| (at(i), 65536)).to_vec();
    // It ends in time only if what is the same costs nothing.
    let map = run(
        "nbdinfo",
        &["--json", "--map=qemu:dirty-bitmap:since=a", &head],
    )
    .ok();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let extents = map.as_array().unwrap();
    let dirty = extents.iter().filter(|e| e["type"] == 1);
    let place = |key: &str, e: &serde_json::Value| (e[key].as_u64(), e["length"].as_u64());
    let dirty: Vec<_> = dirty.map(|e| place("offset", e)).collect();
    let told: Vec<_> = expected
        .iter()
        .map(|(at, n)| (Some(*at), Some(*n)))
        .collect();
    assert_eq!(dirty, told);
    // QEMU asks with extended headers, for one extent at a time.
    let socket = daemon.socket().display().to_string();
    let options = format!(
        "driver=nbd,server.type=unix,server.path={socket},export=v,\
         x-dirty-bitmap=qemu:dirty-bitmap:since=a"
    );
    let map = run(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &options],
    )
    .ok();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let extents = map.as_array().unwrap();
    let dirty = extents.iter().filter(|e| e["data"] == false);
    let dirty: Vec<_> = dirty.map(|e| place("start", e)).collect();
    assert_eq!(dirty, told);
}
