//! Somebody changes the map of an encrypted volume on the device: older entries, other places, nothing at all. Each page is right
//! by itself, as far as no key is needed to make it so.

use crate::client::{Client, EIO};
use crate::harness::Folder;
use crate::tampering::{
    block, forge_checkpoint, log_of, made, metric, scrubbed, start, unreadable, verify, Written,
    BLOCK, BLOCKS, REPLAYED,
};
use esker_base::checksum::crc32;
use esker_base::Stamp;
use esker_engine::format::node::{ChildPointer, LeafEntry, LeafKind, NodeHead, NodePage};
use esker_engine::format::vaddr::VAddr;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::vouch::summarise;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What an attacker makes fit who puts an older block back together with its map entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Checksums of pages.
    Checksums,
    /// Hashes up to the root as well.
    Hashes,
    /// And the MAC over the roots is taken away.
    HashesWithoutMac,
}

/// Where the page is that a pointer names, of a store that was never collected.
fn page_of(file: &File, pointer: &ChildPointer) -> (u64, Vec<u8>) {
    let size = file.metadata().unwrap().len();
    let mut page = vec![0; BLOCK as usize];
    let mut all = (SEGMENTS_OFFSET..size).step_by(BLOCK as usize);
    let at = all.find(|at| {
        file.read_exact_at(&mut page, *at).unwrap();
        NodePage::check(&page).is_ok() && crc32(&page) == pointer.crc
    });
    (at.expect("the node is there"), page)
}

/// Puts a page in a node's place; gives the pointer to it.
fn put_page(
    file: &File,
    at: u64,
    mut page: NodePage,
    old: &ChildPointer,
    fit: Fit,
) -> ChildPointer {
    page.seal();
    file.write_all_at(&page.bytes, at).unwrap();
    let sums = match fit {
        Fit::Checksums => *old,
        Fit::Hashes | Fit::HashesWithoutMac => summarise(&page),
    };
    ChildPointer {
        vaddr: old.vaddr,
        crc: crc32(&page.bytes),
        ..sums
    }
}

/// Puts the older version of a block back: its map entry as it was, and whatever names that.
fn put_back(store: &Path, fit: Fit) {
    let file = File::options().read(true).write(true).open(store).unwrap();
    let (_, written) = log_of(&file);
    let is_it =
        |w: &&Written| w.is_sealed && (w.lba..w.lba + w.blocks.len() as u64).contains(&REPLAYED);
    let first = written.iter().find(is_it).unwrap();
    let n = REPLAYED - first.lba;
    let older = LeafEntry {
        kind: LeafKind::Data,
        vaddr: first.vaddr.plus(n),
        stamp: Stamp(first.stamp.0 + n),
        auth: first.blocks[n as usize].auth,
    };
    forge_checkpoint(store, |checkpoint| {
        let mut groups = checkpoint.groups.iter_mut();
        let group = groups.find(|g| g.meta.name == "sealed").unwrap();
        assert!(group.root_level == 1 && group.mac.is_some());
        let (root_at, root) = page_of(&file, &group.root);
        let mut root = NodePage::of(root.into());
        let old = root.child(0);
        let (leaf_at, leaf) = page_of(&file, &old);
        let mut leaf = NodePage::of(leaf.into());
        assert!(leaf.leaf(REPLAYED as usize).stamp > older.stamp);
        leaf.set_leaf(REPLAYED as usize, &older);
        root.set_child(0, &put_page(&file, leaf_at, leaf, &old, fit));
        group.root = put_page(&file, root_at, root, &group.root, fit);
        if fit == Fit::HashesWithoutMac {
            group.mac = None;
        }
    });
}

/// Refused to be attached, in every run, with a line that holds these words.
fn is_refused(folder: &Folder, store: &Path, words: &str) {
    for _ in 0..2 {
        let address = crate::harness::free_address();
        let daemon = start(folder, store).metrics(&address).ready();
        let refused = Client::unix(&daemon.socket(), "sealed");
        let error = refused.err().expect("it was attached").to_string();
        assert!(error.contains(words) && error.contains("sealed"), "{error}");
        let status = daemon.esker(&["status", "--why"]).out;
        assert!(
            status.contains(words) && status.contains("accept-loss sealed"),
            "{status}"
        );
        assert_eq!(metric(&address, "esker_maps_refused_total"), 1);
        let mut wrong = Vec::new();
        assert!(unreadable(&daemon, "plain", &mut wrong).is_empty() && wrong.is_empty());
        daemon.stop();
    }
}

/// An older block with the map entry that it had: each part is right by itself, and the key opens it. The MAC over the
/// roots is what knows.
#[test]
fn an_older_block_with_its_map_entry_is_refused() {
    let folder = Folder::new();
    let store = made(&folder, true);
    let good = folder.join("copy");
    fs::copy(&store, &good).unwrap();

    put_back(&store, Fit::Checksums);
    let (code, out) = verify(&store);
    assert!(code == Some(1) && out.contains("volume sealed"), "{out}");
    let daemon = start(&folder, &store).ready();
    let mut wrong = Vec::new();
    let refused = unreadable(&daemon, "sealed", &mut wrong);
    assert!(
        refused.contains(&REPLAYED) && wrong.is_empty(),
        "{refused:?} {wrong:?}"
    );
    assert!(scrubbed(&daemon, "sealed").contains(&REPLAYED));
    daemon.stop();

    for (fit, words) in [
        (Fit::Hashes, "does not match"),
        (Fit::HashesWithoutMac, "is missing"),
    ] {
        fs::copy(&good, &store).unwrap();
        put_back(&store, fit);
        // The block's slot is dead, which verify sees; who goes on to rewrite the tables of slots hides that too.
        is_refused(&folder, &store, words);
        // An operator may take it as it is: then nobody else hides what happened.
        let mut daemon = start(&folder, &store).ready();
        // Who asks to be served waits until the keys are here: only then is there something to accept.
        assert!(Client::unix(&daemon.socket(), "sealed").is_err());
        daemon
            .esker(&["volume", "accept-loss", "--yes", "sealed"])
            .ok();
        for is_first in [true, false] {
            let mut wrong = Vec::new();
            assert!(unreadable(&daemon, "sealed", &mut wrong).is_empty());
            assert_eq!(wrong, [REPLAYED]);
            if is_first {
                daemon.kill();
                daemon = start(&folder, &store).ready();
            }
        }
        daemon.kill();
    }
}

/// Blocks of the second leaf, which are trimmed once one of them was written.
const TRIMMED: u64 = 128;
const TRIMMED_WRITTEN: u64 = 200;

/// A range without blocks gets a leaf from before it was trimmed, of the version whose hash nobody compares. In what is
/// hashed of the root, a child without blocks is not.
fn fill(store: &Path) {
    let file = File::options().read(true).write(true).open(store).unwrap();
    let (_, written) = log_of(&file);
    let older = written.iter().find(|w| w.lba == TRIMMED_WRITTEN).unwrap();
    let older = LeafEntry {
        kind: LeafKind::Data,
        vaddr: older.vaddr,
        stamp: older.stamp,
        auth: older.blocks[0].auth,
    };
    forge_checkpoint(store, |checkpoint| {
        let root_of = |name| {
            let mut groups = checkpoint.groups.iter();
            groups.find(|g| g.meta.name == name).unwrap().root
        };
        // Somewhere it has to be.
        let (_, plain) = page_of(&file, &root_of("plain"));
        let place = NodePage::of(plain.into()).child(0);
        let (leaf_at, _) = page_of(&file, &place);
        let (root_at, root) = page_of(&file, &root_of("sealed"));
        let head = NodeHead {
            level: 0,
            is_strong: false,
            first_lba: TRIMMED,
            ..NodePage::check(&root).unwrap()
        };
        let mut leaf = NodePage::empty(&head);
        leaf.set_leaf((TRIMMED_WRITTEN - TRIMMED) as usize, &older);
        let leaf = put_page(&file, leaf_at, leaf, &place, Fit::Checksums);
        let mut root = NodePage::of(root.into());
        let (before, empty) = (summarise(&root), root.child(1));
        assert!(empty.vaddr.is_none());
        let filled = ChildPointer {
            vaddr: leaf.vaddr,
            crc: leaf.crc,
            ..empty
        };
        root.set_child(1, &filled);
        assert_eq!(summarise(&root), before);
        let mut groups = checkpoint.groups.iter_mut();
        let sealed = groups.find(|g| g.meta.name == "sealed").unwrap();
        sealed.root = put_page(&file, root_at, root, &sealed.root, Fit::Checksums);
    });
}

/// Where a node lies is in no hash. So what says that it lies anywhere has to fit what says how many blocks it has: or a
/// range that was trimmed has its blocks again, and the root of a volume becomes that of an empty one.
#[test]
fn nothing_is_put_into_empty_ranges_nor_ranges_emptied() {
    let folder = Folder::new();
    let store = made(&folder, true);
    let daemon = start(&folder, &store).ready();
    let mut client = daemon.client("sealed");
    let at = TRIMMED_WRITTEN * BLOCK;
    client
        .write(at, &block(TRIMMED_WRITTEN, 1), 0)
        .unwrap()
        .unwrap();
    client.flush().unwrap().unwrap();
    client
        .trim(TRIMMED * BLOCK, 128 * BLOCK as u32)
        .unwrap()
        .unwrap();
    client.flush().unwrap().unwrap();
    drop(client);
    daemon.stop();
    let good = folder.join("copy");
    fs::copy(&store, &good).unwrap();

    fill(&store);
    let (code, out) = verify(&store);
    assert!(code == Some(1) && out.contains("volume sealed"), "{out}");
    let daemon = start(&folder, &store).ready();
    let read = daemon.client("sealed").read(at, BLOCK as u32).unwrap();
    assert_eq!(read, Err(EIO));
    daemon.stop();

    fs::copy(&good, &store).unwrap();
    forge_checkpoint(&store, |checkpoint| {
        let mut groups = checkpoint.groups.iter_mut();
        let group = groups.find(|g| g.meta.name == "sealed").unwrap();
        assert!(group.root.live == BLOCKS && group.mac.is_some());
        group.root.vaddr = VAddr::NONE;
    });
    // Its nodes are live in the tables of slots, and nothing names them.
    assert_eq!(verify(&store).0, Some(1));
    is_refused(&folder, &store, "does not match");
}
