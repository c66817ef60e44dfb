//! Encrypted volumes through the daemon: kills, a keyring that is away, keys wrapped anew, and what the store
//! file shows to whoever has it.

use crate::harness::{run, signal, Daemon, Done, Folder, Start};
use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
/// What no other part of a store looks like.
const PATTERN: &[u8] = b"Nobody reads this who has only the disk. ";

fn start(folder: &Folder) -> Start {
    Start::new(&folder.join("d")).with(&["--store-size", "1GiB", "--scrub-rate", "none"])
}

fn create(daemon: &Daemon, name: &str) {
    let words = ["volume", "create", name, "--size", "16MiB", "--encrypt"];
    daemon.esker(&words).ok();
}

/// A text, over and over, that begins anew in every block.
fn text(blocks: u64) -> Vec<u8> {
    let block = PATTERN.iter().copied().cycle().take(BLOCK as usize);
    let block: Vec<u8> = block.collect();
    block.repeat(blocks as usize)
}

fn write(daemon: &Daemon, name: &str, offset: u64, data: &[u8]) {
    let mut client = daemon.client(name);
    client.write(offset, data, 0).unwrap().unwrap();
    client.flush().unwrap().unwrap();
}

fn read(daemon: &Daemon, name: &str, offset: u64, length: u32) -> Option<Vec<u8>> {
    daemon.client(name).read(offset, length).unwrap().ok()
}

fn contains(store: &[u8], pattern: &[u8]) -> bool {
    let mut starts = store.iter().enumerate().filter(|(_, b)| **b == pattern[0]);
    starts.any(|(at, _)| store[at..].starts_with(pattern))
}

/// Pages of the store that are not zero, one after the other.
fn store(folder: &Folder) -> Vec<u8> {
    let mut file = fs::File::open(folder.join("d/store-0.esker")).unwrap();
    let mut pages = Vec::new();
    let mut page = vec![0; 1 << 20];
    let zeros = page.clone();
    while file.read_exact(&mut page).is_ok() {
        if page != zeros {
            let used = page
                .chunks(BLOCK as usize)
                .filter(|p| **p != zeros[..p.len()]);
            used.for_each(|p| pages.extend_from_slice(p));
        }
    }
    pages
}

fn state(daemon: &Daemon, name: &str) -> String {
    let shown = daemon.json(&["volume", "show", name]);
    shown["state"].as_str().unwrap().into()
}

/// Within a generous time.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn data_survives_a_kill_and_the_store_file_shows_none_of_it() {
    let folder = Folder::new();
    let daemon = start(&folder).ready();
    create(&daemon, "s");
    daemon.create("plain", "16MiB");
    assert_eq!(daemon.json(&["volume", "show", "s"])["encrypted"], true);
    assert_eq!(
        daemon.json(&["volume", "show", "plain"])["encrypted"],
        false
    );
    write(&daemon, "s", 0, &text(256));
    // Zeros that somebody wrote look like anything else.
    write(&daemon, "s", 4 << 20, &vec![0; 1 << 20]);
    write(&daemon, "s", 8 << 20, &text(1)[..100]);
    write(&daemon, "plain", 0, &text(1)[..2000]);
    daemon.kill();
    let keyring = folder.join("d/keyring");
    let mode = fs::metadata(&keyring).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let daemon = start(&folder).ready();
    assert_eq!(read(&daemon, "s", 0, 1 << 20), Some(text(256)));
    assert_eq!(read(&daemon, "s", 4 << 20, 1 << 20), Some(vec![0; 1 << 20]));
    let odd = [&text(1)[..100], &[0; 100]].concat();
    assert_eq!(read(&daemon, "s", 8 << 20, 200), Some(odd));
    daemon.esker(&["volume", "delete", "plain", "--yes"]).ok();
    daemon.stop();
    let bytes = store(&folder);
    let (mut seen, mut pages, mut copies) = (HashSet::new(), HashSet::new(), 0);
    let (mut sealed, mut in_the_clear) = (0, 0);
    for page in bytes.chunks(BLOCK as usize) {
        in_the_clear += u32::from(contains(page, PATTERN));
        let distinct: HashSet<&u8> = page.iter().collect();
        // Headers, nodes and tables, whose rest is zeros.
        let has_zeros = page.chunks(16).any(|cell| cell.iter().all(|b| *b == 0));
        if page.starts_with(b"ES") || distinct.len() < 230 || has_zeros {
            continue;
        }
        // The checkpoint has two copies, in pages that look like this.
        if !pages.insert(page) {
            copies += 1;
            continue;
        }
        sealed += 1;
        for cell in page.chunks(16) {
            assert!(seen.insert(cell), "16 bytes come twice in what is sealed");
        }
    }
    // The plain volume's one block shows that the search finds what is there.
    assert_eq!(in_the_clear, 1, "of the plain volume alone");
    assert!(copies <= 16, "{copies} pages come twice");
    assert!(sealed >= 512, "{sealed} sealed blocks");
    crate::harness::verify(&folder.join("d/store-0.esker"));
}

#[test]
fn a_volume_is_locked_while_its_keyring_is_away() {
    let folder = Folder::new();
    let daemon = start(&folder).ready();
    create(&daemon, "s");
    daemon.create("plain", "16MiB");
    write(&daemon, "s", 0, &text(4));
    daemon.kill();
    let (keyring, away) = (folder.join("d/keyring"), folder.join("away"));
    fs::rename(&keyring, &away).unwrap();
    let daemon = start(&folder).ready();
    until("it is locked", || state(&daemon, "s") == "locked");
    write(&daemon, "plain", 0, &text(1));
    let refused = crate::client::Client::unix(&daemon.socket(), "s");
    assert!(refused.is_err(), "a locked volume was attached");
    let status = daemon.esker(&["status", "--why"]).out;
    assert!(
        status.contains("locked") && status.contains("keyring"),
        "{status}"
    );
    let words = ["volume", "create", "t", "--size", "1MiB", "--encrypt"];
    let line = daemon.esker(&words).line(1);
    assert!(line.contains("locked"), "{line}");
    assert!(
        !keyring.exists(),
        "another keyring took the place of the right one"
    );
    let shown = daemon.json(&["key", "show", "s"]);
    assert_eq!(shown[0]["state"], "locked");
    // Back again; a reload asks at once.
    fs::rename(&away, &keyring).unwrap();
    signal(daemon.pid(), "HUP");
    until("it opens", || state(&daemon, "s") == "ready");
    assert_eq!(read(&daemon, "s", 0, 4 * BLOCK as u32), Some(text(4)));
    daemon.stop();
}

/// The wrapped key as it lies in the first slot.
fn wrapped(folder: &Folder) -> Vec<u8> {
    let file = fs::File::open(folder.join("d/store-0.esker")).unwrap();
    let mut slot = [0; 512];
    file.read_exact_at(&mut slot, 1 << 20).unwrap();
    assert!(slot.starts_with(b"ESKY"));
    // Behind the heads of the slot and of the wrapped key, and the name of the key that wrapped it.
    let name = usize::from(u16::from_le_bytes([slot[64], slot[65]]));
    slot[68 + name..68 + name + 60].to_vec()
}

#[test]
fn keys_are_wrapped_anew_under_io_and_destroyed_with_the_volume() {
    let folder = Folder::new();
    let daemon = start(&folder).ready();
    create(&daemon, "s");
    write(&daemon, "s", 0, &text(1));
    let before = daemon.json(&["key", "show", "s"]);
    assert_eq!(
        (&before[0]["provider"], &before[0]["state"]),
        (&"file".into(), &"open".into())
    );
    let old = wrapped(&folder);
    let mut client = daemon.client("s");
    for round in 0..3 {
        let socket = daemon.data.display().to_string();
        let rotation = std::thread::spawn(move || {
            let esker = crate::harness::program("esker");
            run(
                esker.to_str().unwrap(),
                &["--data", &socket, "key", "rotate", "s"],
            )
            .ok()
        });
        let mut at = 0;
        while !rotation.is_finished() || at < 20 {
            let (offset, data) = ((1 + at % 200) * BLOCK, text(1));
            client.write(offset, &data, 0).unwrap().unwrap();
            assert_eq!(
                client.read(offset, BLOCK as u32).unwrap(),
                Ok(data),
                "{round}"
            );
            at += 1;
        }
        rotation.join().unwrap();
    }
    drop(client);
    let after = daemon.json(&["key", "show", "s"]);
    assert_ne!(before[0]["kek"], after[0]["kek"]);
    assert!(
        !contains(&store(&folder), &old),
        "the old wrapping is still there"
    );
    daemon.kill();
    let daemon = start(&folder).ready();
    assert_eq!(read(&daemon, "s", 0, BLOCK as u32), Some(text(1)));
    let last = wrapped(&folder);
    assert!(contains(&store(&folder), &last));
    daemon.esker(&["volume", "delete", "s", "--yes"]).ok();
    assert!(
        !contains(&store(&folder), &last),
        "the key outlived its volume"
    );
    daemon.stop();
}

fn rotate_data_key(daemon: &Daemon, more: &[&str]) -> Done {
    daemon.esker(&[&["key", "rotate", "s", "--data-key"], more].concat())
}

/// A client writes and reads the first MiB of a volume until it is told to stop; how often it did.
fn busy(daemon: &Daemon, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (mut client, stop) = (daemon.client("s"), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            let offset = round * 7 % 256 * BLOCK;
            client.write(offset, &text(1), 0).unwrap().unwrap();
            let read = client.read(offset, BLOCK as u32).unwrap();
            assert_eq!(read, Ok(text(1)), "round {round}");
            round += 1;
        }
        round
    })
}

/// A volume is given another data key under load; a kill in the middle of sealing anew costs nothing; a snapshot keeps
/// the old key, and with the snapshot it is gone from the device.
#[test]
fn a_data_key_is_exchanged_under_io_and_the_old_one_destroyed() {
    let folder = Folder::new();
    let config = folder.join("eskerd.toml");
    fs::write(&config, "reseal_rate = \"2MiB\"\n").unwrap();
    let slow = || start(&folder).with(&["--config", config.to_str().unwrap()]);
    let daemon = slow().ready();
    create(&daemon, "s");
    write(&daemon, "s", 0, &text(4096));
    let old = wrapped(&folder);
    assert!(contains(&store(&folder), &old));
    let stop = Arc::new(AtomicBool::new(false));
    let client = busy(&daemon, &stop);
    rotate_data_key(&daemon, &["--no-wait"]).ok();
    let keys = daemon.json(&["key", "show", "s"]);
    assert_eq!(
        (&keys[0]["key_id"], &keys[1]["key_id"]),
        (&1.into(), &2.into())
    );
    assert_eq!(keys[0]["needed_by"]["volume"], true);
    assert!(keys[1]["needed_by"].is_null());
    let progress = |daemon: &Daemon| daemon.json(&["volume", "show", "s"])["reseal"].clone();
    until("it has begun", || {
        progress(&daemon)["resealed_bytes"].as_u64() > Some(1 << 20)
    });
    let shown = progress(&daemon);
    assert_eq!(
        (&shown["key_id"], &shown["size_bytes"]),
        (&2.into(), &(16 << 20).into())
    );
    daemon.esker(&["snapshot", "create", "s@during"]).ok();
    stop.store(true, Ordering::Relaxed);
    assert!(client.join().unwrap() > 10);
    daemon.kill();

    let daemon = start(&folder).ready();
    stop.store(false, Ordering::Relaxed);
    let client = busy(&daemon, &stop);
    let started = Instant::now();
    until("all is under the new key", || progress(&daemon).is_null());
    assert!(started.elapsed() < Duration::from_secs(30));
    stop.store(true, Ordering::Relaxed);
    assert!(client.join().unwrap() > 10);
    let keys = daemon.json(&["key", "show", "s"]);
    let need = &keys[0]["needed_by"];
    assert_eq!(
        (&need["volume"], &need["snapshots"]),
        (&false.into(), &1.into())
    );
    let table = daemon.esker(&["key", "show", "s"]).out;
    assert!(
        table.contains("1 snapshot") && table.contains("new blocks"),
        "{table}"
    );
    assert!(
        contains(&store(&folder), &old),
        "a snapshot is under the old key"
    );
    assert_eq!(read(&daemon, "s@during", 0, 16 << 20), Some(text(4096)));
    daemon.esker(&["snapshot", "delete", "s@during"]).ok();
    until("the old key is destroyed", || {
        !contains(&store(&folder), &old)
    });
    assert_eq!(daemon.json(&["key", "show", "s"])[0]["key_id"], 2);
    assert_eq!(read(&daemon, "s", 0, 16 << 20), Some(text(4096)));

    // Once more, and the command waits until the key is gone.
    rotate_data_key(&daemon, &[]).ok();
    let keys = daemon.json(&["key", "show", "s"]);
    assert_eq!(
        (keys.as_array().unwrap().len(), &keys[0]["key_id"]),
        (1, &3.into())
    );
    daemon.kill();
    let daemon = start(&folder).ready();
    assert_eq!(read(&daemon, "s", 0, 16 << 20), Some(text(4096)));
    daemon.stop();
    crate::harness::verify(&folder.join("d/store-0.esker"));
}

#[test]
fn what_is_said_of_keys_is_checked() {
    let folder = Folder::new();
    let file = folder.join("eskerd.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let eskerd = crate::harness::program("eskerd");
        let data = folder.join("d").display().to_string();
        let words = ["--data", &data, "--config", &file, "--check-config"];
        run(eskerd.to_str().unwrap(), &words)
    };
    check("[keys]\nprovider = \"file\"\n").ok();
    let line = check("[keys]\nprovider = \"vault\"\n").line(1);
    assert!(line.contains("keys.vault"), "{line}");
    let line = check("[keys]\nprovider = \"paper\"\n").line(1);
    assert!(line.contains("paper"), "{line}");
    assert!(!Path::new(&folder.join("d")).exists(), "nothing is touched");
}
