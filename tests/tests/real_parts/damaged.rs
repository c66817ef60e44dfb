//! Stores that were truncated, written by a newer version, or have flipped bits: never wrong data.
//! Either the store is refused with one line and stays as it is, or what is damaged reads as EIO.

use crate::client::EIO;
use crate::harness::{program, run, setting, Folder, Start};
use crate::pattern::{content, fill, Content, Dice, BLOCK};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const BLOCKS: u64 = 4096;
/// Superblock copies lie this far apart, at the start.
const COPY_STRIDE: u64 = 256 << 10;
const SEGMENTS_OFFSET: u64 = 2 << 20;
const SEGMENT: u64 = 64 << 20;

/// A store with two versions of a volume's blocks, stopped or killed.
fn made(folder: &Folder, is_clean: bool) -> PathBuf {
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "1GiB"])
        .ready();
    daemon.create("v", "32MiB");
    let mut client = daemon.client("v");
    for version in [1, 2] {
        for lba in (0..BLOCKS).step_by(8) {
            // The second time only half of them.
            if version == 2 && lba % 16 == 0 {
                continue;
            }
            let data: Vec<u8> = (0..8).flat_map(|i| fill(1, lba + i, version)).collect();
            client.write(lba * 4096, &data, 0).unwrap().unwrap();
        }
        client.flush().unwrap().unwrap();
    }
    drop(client);
    if is_clean {
        daemon.stop();
    } else {
        // Once the store is idle its closing record tells what is durable. Before that, damage to
        // what was synced last cannot be told from a write that the end of power tore.
        std::thread::sleep(std::time::Duration::from_millis(300));
        daemon.kill();
    }
    // Without the preallocated rest, so that copies are quick.
    let sparse = folder.join("good.esker");
    copy(&folder.join("d/store-0.esker"), &sparse);
    sparse
}

fn newest(lba: u64) -> Content {
    Content::Version(if (lba / 8).is_multiple_of(2) { 1 } else { 2 })
}

/// A copy of a store that shares nothing with it.
fn copy(from: &Path, to: &Path) {
    let words = [
        "--sparse=always",
        "--reflink=auto",
        from.to_str().unwrap(),
        to.to_str().unwrap(),
    ];
    run("cp", &words).ok();
}

/// Runs of the store file that hold something.
fn used(store: &Path) -> Vec<(u64, u64)> {
    let file = File::open(store).unwrap();
    let size = file.metadata().unwrap().len();
    let mut runs = vec![(0, SEGMENTS_OFFSET)];
    let mut start = SEGMENTS_OFFSET;
    while start < size {
        let mut end = start;
        let mut page = vec![0; 64 << 10];
        while end < size {
            let count = file.read_at(&mut page, end).unwrap();
            if count == 0 || page[..count].iter().all(|b| *b == 0) {
                break;
            }
            end += count as u64;
        }
        if end > start {
            runs.push((start, end));
        }
        // Data of a segment begins at its start.
        start =
            SEGMENTS_OFFSET + ((end.max(start + 1) - SEGMENTS_OFFSET).div_ceil(SEGMENT)) * SEGMENT;
    }
    runs
}

/// A daemon that may refuse to start; killed in the end.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What came of starting on a store.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Served { unreadable: u64 },
}

/// Starts a daemon on a damaged store. What it serves must be right or EIO; a refusal must be one
/// line and leave the file as it was.
fn try_start(folder: &Folder, store: &Path, what: &str) -> Outcome {
    let before = store.with_extension("before");
    copy(store, &before);
    let how = Start::new(&folder.join("d")).with(&["--store", store.to_str().unwrap()]);
    let mut child = Killed(how.spawn());
    let child = &mut child.0;
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    if line.is_empty() {
        assert_eq!(child.wait().unwrap().code(), Some(1), "{what}");
        let log = fs::read_to_string(folder.join("d.log")).unwrap();
        let told = log.lines().last().unwrap();
        assert!(
            told.starts_with("eskerd: ") && told.contains("store"),
            "{what}: {told}"
        );
        assert!(!log.contains("panicked"), "{what}: {log}");
        assert!(same(store, &before), "{what}: refused, and yet changed");
        return Outcome::Refused;
    }
    let mut unreadable = 0;
    let socket = folder.join("d/nbd.sock");
    match crate::client::Client::unix(&socket, "v") {
        // The volume as a whole may be suspended.
        Err(error) => {
            assert!(!error.to_string().is_empty());
            unreadable = BLOCKS;
        }
        Ok(mut client) => {
            for lba in 0..BLOCKS {
                match client.read(lba * 4096, BLOCK as u32).unwrap() {
                    Ok(data) => {
                        let found =
                            content(1, lba, &data).unwrap_or_else(|e| panic!("{what}: {e}"));
                        assert_eq!(found, newest(lba), "{what}: block {lba}");
                    }
                    Err(error) => {
                        assert_eq!(error, EIO, "{what}: block {lba}");
                        unreadable += 1;
                    }
                }
            }
        }
    }
    crate::harness::signal(child.id(), "TERM");
    let code = child.wait().unwrap().code();
    let log = fs::read_to_string(folder.join("d.log")).unwrap();
    assert!(
        matches!(code, Some(0 | 1)) && !log.contains("panicked"),
        "{what}: {code:?}: {log}"
    );
    Outcome::Served { unreadable }
}

/// Whether two files hold the same.
fn same(a: &Path, b: &Path) -> bool {
    run("cmp", &[a, b]).code == Some(0)
}

fn flip(store: &Path, at: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(store).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn flipped_bits_never_give_wrong_data() {
    let rounds = setting("ESKER_FLIP_ROUNDS", 24);
    for is_clean in [true, false] {
        let folder = Folder::new();
        let good = made(&folder, is_clean);
        let bad = folder.join("bad.esker");
        let runs = used(&good);
        let mut dice = Dice::new(3 + u64::from(is_clean));
        let (mut refused, mut whole, mut partly) = (0, 0, 0);
        for round in 0..rounds {
            copy(&good, &bad);
            let count = [1, 1, 2, 8, 64][round as usize % 5];
            let mut places = Vec::new();
            for _ in 0..count {
                let (start, end) = runs[dice.below(runs.len() as u64) as usize];
                let at = start + dice.below(end - start);
                // Half of those in the first region hit a superblock copy itself.
                let at = match (start, dice.below(2)) {
                    (0, 0) => dice.below(4) * COPY_STRIDE + dice.below(4096),
                    _ => at,
                };
                flip(&bad, at, dice.below(8) as u8);
                places.push(at);
            }
            let what = format!("clean: {is_clean}, round {round}, flipped at {places:?}");
            match try_start(&folder, &bad, &what) {
                Outcome::Refused => refused += 1,
                Outcome::Served { unreadable: 0 } => whole += 1,
                Outcome::Served { .. } => partly += 1,
            }
        }
        println!("clean {is_clean}: {rounds} damaged stores: {refused} refused, {whole} served whole, {partly} in part");
        assert!(partly > 0 && whole > 0, "the flips hit nothing");
    }
}

#[test]
fn a_superblock_survives_the_loss_of_two_copies_and_not_of_three() {
    let folder = Folder::new();
    let good = made(&folder, true);
    let bad = folder.join("bad.esker");
    for lost in [
        &[0u64][..],
        &[3],
        &[0, 1],
        &[1, 3],
        &[0, 1, 2],
        &[1, 2, 3],
        &[0, 1, 2, 3],
    ] {
        copy(&good, &bad);
        for copy in lost {
            flip(&bad, copy * COPY_STRIDE + 100, 3);
        }
        let expected = match lost.len() {
            0..=2 => Outcome::Served { unreadable: 0 },
            _ => Outcome::Refused,
        };
        assert_eq!(
            try_start(&folder, &bad, &format!("{lost:?}")),
            expected,
            "{lost:?}"
        );
    }
}

#[test]
fn a_newer_or_truncated_store_is_refused_and_stays_as_it_is() {
    let folder = Folder::new();
    let good = made(&folder, true);
    let bad = folder.join("bad.esker");

    copy(&good, &bad);
    let file = File::options().read(true).write(true).open(&bad).unwrap();
    for copy in 0..4 {
        // Version at 8, CRC-32 of the page without itself at 12.
        let mut page = vec![0; BLOCK];
        file.read_exact_at(&mut page, copy * COPY_STRIDE).unwrap();
        page[8] += 1;
        page[12..16].fill(0);
        let crc = esker_base::checksum::crc32(&page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&page, copy * COPY_STRIDE).unwrap();
    }
    let before = folder.join("before");
    copy(&bad, &before);
    let words = ["--store", bad.to_str().unwrap()];
    let line = Start::new(&folder.join("d")).with(&words).refusal(1);
    assert!(
        line.contains("newer version") && line.contains("upgrade"),
        "{line}"
    );
    assert!(same(&bad, &before));
    let line = run(program("esker").to_str().unwrap(), &["verify", words[1]]).line(1);
    assert!(line.contains("newer version"), "{line}");

    // Its last segment ends here; what is left of the file beyond is not part of the store.
    let size = fs::metadata(&good).unwrap().len();
    let needed = SEGMENTS_OFFSET + (size - SEGMENTS_OFFSET) / SEGMENT * SEGMENT;
    for length in [
        needed - 4096,
        needed - SEGMENT,
        size / 2,
        4 << 20,
        1 << 20,
        4096,
        100,
    ] {
        copy(&good, &bad);
        File::options()
            .write(true)
            .open(&bad)
            .unwrap()
            .set_len(length)
            .unwrap();
        copy(&bad, &before);
        let line = Start::new(&folder.join("d")).with(&words).refusal(1);
        assert!(line.contains("bad.esker"), "{length}: {line}");
        if length >= 4 << 20 {
            assert!(line.contains("truncated"), "{length}: {line}");
        }
        assert!(same(&bad, &before), "{length}");
    }
}
