//! Decoders of what is on the device: no bytes make them panic, and what decodes comes back from
//! its own encoding. Checksums are mended first where they would stop a fuzzer at the door.

use esker_base::checksum::crc32;
use esker_base::Stamp;
use esker_engine::format::checkpoint::{self, Checkpoint, GroupMeta};
use esker_engine::format::codec::Writer;
use esker_engine::format::manifest::Manifest;
use esker_engine::format::node::{NodePage, FANOUT, LEVEL_MAX};
use esker_engine::format::operation::Operation;
use esker_engine::format::record::{RecordHeader, HEADER_PAGES_MAX};
use esker_engine::format::space::{decode_deaths, PieceEntry, SegmentEntry};
use esker_engine::format::superblock::{self, Superblock};
use esker_engine::format::table::{self, PageBuilder, CONTENT_MAX};
use esker_engine::format::PAGE;

/// The bytes as one page: cut, or filled with zeros.
fn page(data: &[u8]) -> Vec<u8> {
    let mut page = data[..data.len().min(PAGE)].to_vec();
    page.resize(PAGE, 0);
    page
}

/// Puts the CRC of everything into the four bytes at `at`, which count as zeros.
pub(crate) fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let crc = crc32(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A superblock's page, as it is and with its checksum mended.
pub(crate) fn superblock(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok((superblock, copy)) = Superblock::decode(bytes) {
            // An older version is read, and written as the present one: what differs is that.
            let mut present = bytes.to_vec();
            present[8..12].copy_from_slice(&superblock::VERSION.to_le_bytes());
            seal(&mut present, 12);
            let again = superblock.encode(copy);
            assert!(again == present, "a superblock has one encoding");
            for chunks in superblock.checkpoint_copies() {
                let pages: u64 = chunks.iter().map(|c| u64::from(c.pages)).sum();
                assert!(pages * 4096 >= superblock.checkpoint_bytes);
            }
            for chunk in &superblock.chunks {
                let end = superblock.offset_of(chunk.segment, chunk.slot + chunk.pages);
                let size = superblock
                    .segment_count
                    .checked_mul(superblock.segment_bytes);
                assert!(size.is_none_or(|size| end <= size + (2 << 20)));
            }
        }
    };
    check(data);
    let mut sealed = page(data);
    seal(&mut sealed, 12);
    check(&sealed);
}

/// A record's header pages, as they are and with their length and checksum mended.
pub(crate) fn record(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok((header, items, hash)) = RecordHeader::decode(bytes) {
            let mut w = Writer::new();
            for item in &items {
                let before = w.bytes.len();
                item.encode(&mut w);
                assert_eq!(w.bytes.len() - before, item.encoded_len());
            }
            let count = u32::try_from(items.len()).expect("bounded by the header");
            let (again, hash_again) = header.encode(count, &w.bytes);
            assert_eq!(again, bytes[..again.len()], "a record has one encoding");
            assert_eq!(hash_again, hash);
        }
    };
    check(data);
    let pages = data.len().div_ceil(PAGE).clamp(1, HEADER_PAGES_MAX);
    let mut sealed = data[..data.len().min(pages * PAGE)].to_vec();
    sealed.resize(pages * PAGE, 0);
    let count = u16::try_from(pages).expect("few");
    sealed[6..8].copy_from_slice(&count.to_le_bytes());
    seal(&mut sealed, 8);
    check(&sealed);
}

/// An operation.
pub(crate) fn operation(data: &[u8]) {
    let Ok((operation, request)) = Operation::decode(data) else {
        return;
    };
    let again = operation.encode(request);
    // Two forms of a write exist; the shorter one is written where it will do.
    assert!(again.len() <= data.len());
    assert_eq!(Operation::decode(&again), Ok((operation.clone(), request)));
    let blocks = operation.range().map_or(0, |range| range.count);
    assert!(operation.payload_blocks() <= blocks);
    _ = operation.epoch();
}

/// A map node.
pub(crate) fn node(data: &[u8]) {
    _ = NodePage::check(data);
    let bytes = page(data);
    let Ok(head) = NodePage::check(&bytes) else {
        return;
    };
    assert!(head.level <= LEVEL_MAX);
    let mut again = NodePage::empty(&head);
    let node = NodePage::of(bytes.into_boxed_slice());
    assert_eq!(
        (node.level(), node.first_lba()),
        (head.level, head.first_lba)
    );
    for i in 0..FANOUT {
        if head.level == 0 {
            again.set_leaf(i, &node.leaf(i));
        } else {
            again.set_child(i, &node.child(i));
        }
    }
    // The page's own checksum is looked at elsewhere.
    again.bytes[40..44].copy_from_slice(&node.bytes[40..44]);
    assert!(again == node, "a node has one encoding");
}

/// A page of a table, as it is and with its checksum mended, and the records on it.
fn table_page(data: &[u8]) {
    let check = |bytes: &[u8]| {
        let Ok(decoded) = table::decode(bytes) else {
            return;
        };
        let mut again = PageBuilder::new(&decoded.head, CONTENT_MAX);
        for (key, at) in decoded.records {
            let record = &bytes[at];
            assert!(again.push(key, record), "what was on a page fits one");
            if let Ok(piece) = PieceEntry::decode(record) {
                let mut w = Writer::new();
                piece.encode(&mut w);
                assert_eq!(PieceEntry::decode(&w.bytes), Ok(piece));
            }
            if let Ok(segment) = SegmentEntry::decode(record) {
                let mut w = Writer::new();
                segment.encode(&mut w);
                assert_eq!(w.bytes, record, "a segment has one encoding");
            }
            if let Ok(runs) = decode_deaths(key, record) {
                assert!(runs.windows(2).all(|pair| pair[0].0 < pair[1].0));
            }
        }
        assert_eq!(again.finish(), bytes, "a page of a table has one encoding");
    };
    let mut bytes = page(data);
    check(&bytes);
    seal(&mut bytes, 56);
    check(&bytes);
}

/// A checkpoint, as it is and with its checksum mended; a group's meta alone; a page of a table.
pub(crate) fn checkpoint(data: &[u8]) {
    table_page(data);
    let check = |bytes: &[u8]| {
        if let Ok(mut checkpoint) = Checkpoint::decode(bytes) {
            checkpoint.versions.whole = None; // is written to tables of its own today
            let again = checkpoint.encode();
            assert_eq!(Checkpoint::decode(&again), Ok(checkpoint));
        }
    };
    check(data);
    if data.len() >= checkpoint::HEAD_BYTES {
        let mut sealed = data.to_vec();
        let crc = crc32(&sealed[checkpoint::HEAD_BYTES..]);
        sealed[12..16].copy_from_slice(&crc.to_le_bytes());
        check(&sealed);
    }
    if let Ok(meta) = GroupMeta::decode(data) {
        assert_eq!(GroupMeta::decode(&meta.encode()), Ok(meta));
    }
}

/// What another node says a volume was: whoever sent it, nothing of it may stop the replica that asked.
pub(crate) fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::decode(data) else {
        return;
    };
    let again = manifest.encode();
    for version in &manifest.versions {
        assert!(manifest.at(version.cut).is_some());
        assert!(version.parent.0 == 0 || manifest.at(version.parent).is_some());
        let above = Stamp(version.cut.0.saturating_add(1));
        assert!(
            above == version.cut || !manifest.leads_to(above, version.cut),
            "what is above a version does not lead to it"
        );
    }
    if let Some(parent) = manifest.head {
        assert!(manifest.at(manifest.pin()).is_none() || manifest.is_rolled_back());
        assert!(parent.0 == 0 || manifest.at(parent).is_some());
    }
    assert_eq!(Manifest::decode(&again), Ok(manifest));
}
