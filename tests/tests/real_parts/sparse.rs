//! Where data is: what libnbd's tools and QEMU make of block status, and what it saves them.

use crate::harness::{has, python, run, verify, Daemon, Folder, Start};

const MIB: u64 = 1 << 20;

/// Runs Python with libnbd, if it is there.
fn python_runs(code: &str) -> bool {
    let Some(python) = python() else {
        return false;
    };
    run(&python, &["-c", code]).ok();
    true
}

fn served(folder: &Folder, size: &str) -> Daemon {
    let start = Start::new(&folder.join("d")).with(&["--store-size", "4GiB"]);
    let daemon = start.ready();
    daemon.create("v", size);
    daemon
}

/// What `nbdinfo --map` says: offset, length and type of each extent.
fn map_of(uri: &str) -> Vec<(u64, u64, u64)> {
    let text = run("nbdinfo", &["--map", "--json", uri]).ok();
    let extents: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let number = |extent: &serde_json::Value, key| extent[key].as_u64().unwrap();
    let mut map: Vec<(u64, u64, u64)> = Vec::new();
    for e in &extents {
        let (offset, length, kind) = (number(e, "offset"), number(e, "length"), number(e, "type"));
        match map.last_mut() {
            // An answer may end between two questions, within an extent.
            Some(last) if last.2 == kind && last.0 + last.1 == offset => last.1 += length,
            _ => map.push((offset, length, kind)),
        }
    }
    map
}

/// Writes, zeroes and trims, then reads the map over the same connection before any flush.
const CHANGE: &str = r#"
h.add_meta_context("base:allocation")
h.connect_uri(uri)
MIB = 1 << 20
h.pwrite(b"x" * MIB, 1 * MIB)
h.pwrite(b"y" * 5000, 8 * MIB + 100)
h.zero(2 * MIB, 16 * MIB, nbd.CMD_FLAG_NO_HOLE)
h.pwrite(b"z" * MIB, 32 * MIB)
h.trim(MIB // 2, 32 * MIB)
h.zero(MIB // 4, 32 * MIB + 3 * MIB // 4)
seen, at = [], 0
def note(context, offset, entries, error):
    global at
    assert context == "base:allocation" and offset == at
    for length, flags in zip(entries[::2], entries[1::2]):
        if seen and seen[-1][1] == flags: seen[-1][0] += length
        else: seen.append([length, flags])
        at += length
while at < h.get_size():
    h.block_status(h.get_size() - at, at, note)
K = 1024
want = [[1024*K, 3], [1024*K, 0], [6144*K, 3], [8*K, 0], [8184*K, 3], [2048*K, 2],
        [14848*K, 3], [256*K, 0], [h.get_size() - 32*MIB - 768*K, 3]]
assert seen == want, seen
# One extent when one is asked for, no longer than the question; odd offsets are fine.
one = []
h.block_status(3 * MIB, 1 * MIB + 77, lambda c, o, e, err: one.extend(e), nbd.CMD_FLAG_REQ_ONE)
assert one == [MIB - 77, 0], one
"#;

#[test]
fn the_map_shows_what_was_written_and_what_was_not() {
    if !has(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "256MiB");
    let uri = daemon.uri("v");
    assert_eq!(map_of(&uri), [(0, 256 * MIB, 3)]);
    let change = format!("import nbd\nh = nbd.NBD()\nuri = {uri:?}\n{CHANGE}");
    if !python_runs(&change) {
        return;
    }
    let data = [(MIB, MIB), (8 * MIB, 8192), (32 * MIB + MIB / 2, MIB / 4)];
    let data_in = |map: Vec<(u64, u64, u64)>| -> Vec<(u64, u64)> {
        let data = map.into_iter().filter(|e| e.2 == 0);
        data.map(|(offset, length, _)| (offset, length)).collect()
    };
    assert_eq!(data_in(map_of(&uri)), data);
    // The same, once it is in the tree and the node has started anew.
    let path = daemon.data.clone();
    daemon.stop();
    let daemon = Start::new(&path).ready();
    assert_eq!(data_in(map_of(&daemon.uri("v"))), data);
    let text = run("qemu-img", &["map", "--output=json", &daemon.uri("v")]).ok();
    let extents: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let seen: Vec<(u64, u64)> = extents
        .iter()
        .filter(|e| e["data"] == true)
        .map(|e| (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(seen, data, "{text}");
    let store = daemon.data.join("store-0.esker");
    daemon.stop();
    verify(&store);
}

#[test]
fn a_copy_of_a_sparse_volume_moves_only_its_data() {
    if !has(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "1TiB");
    let uri = daemon.uri("v");
    let write = format!(
        "import nbd\nh = nbd.NBD()\nh.connect_uri({uri:?})\n\
         for i in range(8): h.pwrite(bytes([i + 1]) * 65536, i << 36)\n\
         h.pwrite(b'end!', (1 << 40) - 4)"
    );
    if !python_runs(&write) {
        return;
    }
    let copy = folder.join("copy");
    let path = copy.display().to_string();
    // A terabyte: it ends in time only if its holes cost nothing.
    run("nbdcopy", &[uri.as_str(), &path]).ok();
    let read = format!(
        "f = open({path:?}, 'rb')\n\
         for i in range(8):\n    f.seek(i << 36)\n    assert f.read(65537) == bytes([i + 1]) * 65536 + b'\\0'\n\
         f.seek((1 << 40) - 5)\nassert f.read() == b'\\0end!'"
    );
    assert!(python_runs(&read));
    let used = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&copy).unwrap()) * 512;
    assert!(used < 8 * MIB, "the copy has {used} bytes");
}

#[test]
fn who_attaches_again_sees_a_volume_that_has_grown() {
    if !has(&["nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder, "64MiB");
    let uri = daemon.uri("v");
    let size = || run("nbdinfo", &["--size", &uri]).ok().trim().to_owned();
    assert_eq!(size(), "67108864");
    daemon
        .esker(&["volume", "resize", "v", "--size", "128MiB"])
        .ok();
    assert_eq!(size(), "134217728");
    assert_eq!(map_of(&uri), [(0, 128 * MIB, 3)]);
    let last = format!(
        "import nbd\nh = nbd.NBD()\nh.connect_uri({uri:?})\n\
         h.pwrite(b'new', (128 << 20) - 3)\nassert h.pread(3, (128 << 20) - 3) == b'new'"
    );
    python_runs(&last);
}
