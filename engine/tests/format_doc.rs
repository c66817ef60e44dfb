//! `docs/format.md` is held against the encoders: every row of its tables names a field, its offset
//! and its size; a structure is encoded with a different value in every field, and the value must
//! be found where the row says.

use bytes::Bytes;
use esker_base::{
    BlockRange, ClusterId, Epoch, GroupId, NodeId, RaftIndex, Seq, SessionId, Stamp, StoreId, Term,
    VolumeId, WallClock,
};
use esker_engine::format::checkpoint::Checkpoint;
use esker_engine::format::codec::Writer;
use esker_engine::format::dead::{self, DeadEntry, DeadKind};
use esker_engine::format::ingest::{Run, RunContent};
use esker_engine::format::node::{
    ChildPointer, LeafEntry, LeafKind, NodeHead, NodePage, ENTRY_BYTES, HEAD_BYTES,
};
use esker_engine::format::operation::{BlockInfo, BlockKind, Operation, RequestId};
use esker_engine::format::record::{EntryKind, Item, ItemBody, RecordHeader};
use esker_engine::format::superblock::{Chunk, LogStart, Superblock};
use esker_engine::format::survivors::{Owner, Survivor, SurvivorsHeader};
use esker_engine::format::table::{
    PageBuilder, PageHead, PagePointer, Place, TableId, CONTENT_MAX,
};
use esker_engine::format::VAddr;
use std::collections::BTreeMap;

type Rows = BTreeMap<String, Vec<(usize, usize, String)>>;

fn tables() -> Rows {
    let text = include_str!("../../docs/format.md");
    let mut rows = Rows::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            section = title.to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let [_, offset, size, field, ..] = cells.as_slice() {
            if let (Ok(offset), Ok(size)) = (offset.parse(), size.parse()) {
                rows.entry(section.clone())
                    .or_default()
                    .push((offset, size, (*field).to_owned()));
            }
        }
    }
    rows
}

/// Checks the rows of `section` whose field is in `fields` or begins with one of `prefixes`.
fn check(section: &str, bytes: &[u8], fields: &[(&str, Vec<u8>)]) {
    let rows = tables();
    let rows = rows
        .get(section)
        .unwrap_or_else(|| panic!("no table for {section}"));
    for (field, expected) in fields {
        let row = rows.iter().find(|(_, _, f)| f == field);
        let (offset, size, _) = row.unwrap_or_else(|| panic!("{section}: no row for {field}"));
        assert_eq!(*size, expected.len(), "{section}: size of {field}");
        assert_eq!(
            &bytes[*offset..offset + size],
            &expected[..],
            "{section}: place of {field}"
        );
    }
}

/// Every row of the section is checked by some call of this test.
fn all_named(section: &str, fields: &[&str]) {
    let rows = tables();
    let mut named: Vec<&str> = rows[section].iter().map(|(_, _, f)| f.as_str()).collect();
    let mut fields = fields.to_vec();
    named.sort_unstable();
    fields.sort_unstable();
    assert_eq!(named, fields, "{section}");
}

fn le<const N: usize>(value: [u8; N]) -> Vec<u8> {
    value.to_vec()
}

#[test]
fn superblock() {
    let sb = Superblock {
        compat: 0x11,
        read_only_compat: 0,
        incompat: 0,
        cluster: ClusterId(0x12),
        node: NodeId(0x13),
        store: StoreId(0x14),
        segment_bytes: 1 << 20,
        segment_count: 77,
        created: WallClock(0x15),
        sequence: 0x16,
        next_generation: 0x17,
        log: LogStart {
            segment: 0x18,
            slot: 0x19,
            generation: 0x1a,
            next_segment: 0x1b,
            next_generation: 0x1c,
            seq: Seq(0x1d),
            prev_hash: 0x1e,
        },
        checkpoint_bytes: 0x1f,
        chunks: vec![Chunk {
            segment: 0x20,
            slot: 0x21,
            pages: 1,
            crc: 0x22,
        }],
    };
    let bytes = sb.encode(3);
    let chunk = [0x20u32, 0x21, 1, 0x22]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let fields = [
        ("magic", b"ESKERSTO".to_vec()),
        ("version", le(8u32.to_le_bytes())),
        ("crc", bytes[12..16].to_vec()),
        ("copy", le(3u32.to_le_bytes())),
        ("chunk_count", le(1u32.to_le_bytes())),
        ("compat", le(0x11u64.to_le_bytes())),
        ("read_only_compat", le(0u64.to_le_bytes())),
        ("incompat", le(0u64.to_le_bytes())),
        ("cluster", le(0x12u128.to_le_bytes())),
        ("node", le(0x13u64.to_le_bytes())),
        ("store", le(0x14u128.to_le_bytes())),
        ("segment_bytes", le((1u64 << 20).to_le_bytes())),
        ("segment_count", le(77u64.to_le_bytes())),
        ("created", le(0x15u64.to_le_bytes())),
        ("sequence", le(0x16u64.to_le_bytes())),
        ("next_generation", le(0x17u64.to_le_bytes())),
        ("log.segment", le(0x18u32.to_le_bytes())),
        ("log.slot", le(0x19u32.to_le_bytes())),
        ("log.generation", le(0x1au64.to_le_bytes())),
        ("log.next_segment", le(0x1bu32.to_le_bytes())),
        ("log.next_generation", le(0x1cu64.to_le_bytes())),
        ("log.seq", le(0x1du64.to_le_bytes())),
        ("log.prev_hash", le(0x1eu64.to_le_bytes())),
        ("checkpoint_bytes", le(0x1fu64.to_le_bytes())),
        ("chunks", chunk),
    ];
    check("superblock", &bytes, &fields);
    all_named(
        "superblock",
        &fields.iter().map(|f| f.0).collect::<Vec<_>>(),
    );
}

#[test]
fn record_and_item() {
    let item = Item {
        group: GroupId(0x31),
        group_prev_seq: Seq(0x32),
        body: ItemBody::Entry {
            term: Term(0x33),
            index: RaftIndex(0x34),
            kind: EntryKind::ConfChangeV2,
            payload_page: 0x35,
            payload_pages: 0x36,
            data: Bytes::from_static(b"operation"),
        },
    };
    let mut w = Writer::new();
    item.encode(&mut w);
    let fields = [
        ("tag", vec![1]),
        (
            "length",
            le(u32::try_from(w.bytes.len()).expect("small").to_le_bytes()),
        ),
        ("group", le(0x31u64.to_le_bytes())),
        ("group_prev_seq", le(0x32u64.to_le_bytes())),
        ("entry.term", le(0x33u64.to_le_bytes())),
        ("entry.index", le(0x34u64.to_le_bytes())),
        ("entry.kind", vec![3]),
        ("entry.payload_page", le(0x35u32.to_le_bytes())),
        ("entry.payload_pages", le(0x36u32.to_le_bytes())),
        ("entry.data_length", le(9u32.to_le_bytes())),
    ];
    check("item", &w.bytes, &fields);
    all_named("item", &fields.iter().map(|f| f.0).collect::<Vec<_>>());

    let header = RecordHeader {
        header_pages: 2,
        payload_pages: 0x41,
        store: StoreId(0x42),
        generation: 0x43,
        segment: 0x44,
        slot: 0x45,
        seq: Seq(0x46),
        prev_hash: 0x47,
        durable_seq: Seq(0x48),
        wall: WallClock(0x49),
        flags: 1,
        next_segment: 0x4a,
        next_generation: 0x4b,
    };
    let (bytes, _) = header.encode(1, &w.bytes);
    let fields = [
        ("magic", b"ESRK".to_vec()),
        ("version", le(1u16.to_le_bytes())),
        ("header_pages", le(2u16.to_le_bytes())),
        ("crc", bytes[8..12].to_vec()),
        ("payload_pages", le(0x41u32.to_le_bytes())),
        ("store", le(0x42u128.to_le_bytes())),
        ("generation", le(0x43u64.to_le_bytes())),
        ("seq", le(0x46u64.to_le_bytes())),
        ("prev_hash", le(0x47u64.to_le_bytes())),
        ("durable_seq", le(0x48u64.to_le_bytes())),
        ("wall", le(0x49u64.to_le_bytes())),
        ("item_count", le(1u32.to_le_bytes())),
        (
            "items_length",
            le(u32::try_from(w.bytes.len()).expect("small").to_le_bytes()),
        ),
        ("segment", le(0x44u32.to_le_bytes())),
        ("slot", le(0x45u32.to_le_bytes())),
        ("flags", le(1u32.to_le_bytes())),
        ("next_segment", le(0x4au32.to_le_bytes())),
        ("next_generation", le(0x4bu64.to_le_bytes())),
    ];
    check("record", &bytes, &fields);
    all_named("record", &fields.iter().map(|f| f.0).collect::<Vec<_>>());
    assert_eq!(
        &bytes[128..128 + w.bytes.len()],
        &w.bytes[..],
        "items begin at byte 128"
    );
}

#[test]
fn operations() {
    let request = RequestId {
        session: SessionId(0x51),
        sequence: 0x52,
        part: 0x5d,
        behind: Some(0x5e),
    };
    let (stamp, range) = (Stamp::new(Epoch(1), 0x53), BlockRange::new(0x54, 0x55));
    let plain = BlockInfo::plain(0x56);
    let write = Operation::Write {
        lba: 0x57,
        stamp,
        key_id: 0x58,
        blocks: vec![plain],
    };
    let stamp_bytes = le(stamp.0.to_le_bytes());
    let common = [
        ("tag", vec![1]),
        ("version", vec![2]),
        ("part", le(0x5du16.to_le_bytes())),
        ("behind", le(0x5eu32.to_le_bytes())),
        ("session", le(0x51u64.to_le_bytes())),
        ("sequence", le(0x52u64.to_le_bytes())),
        ("write.lba", le(0x57u64.to_le_bytes())),
        ("write.stamp", stamp_bytes.clone()),
        ("write.key_id", le(0x58u32.to_le_bytes())),
        ("write.count", le(1u32.to_le_bytes())),
        ("write.crc", le(0x56u32.to_le_bytes())),
    ];
    check("operation", &write.encode(request), &common);
    let hollow = [
        ("range.lba", le(0x54u64.to_le_bytes())),
        ("range.count", le(0x55u64.to_le_bytes())),
        ("range.stamp", stamp_bytes),
    ];
    check(
        "operation",
        &Operation::Discard { range, stamp }.encode(request),
        &hollow,
    );
    check(
        "operation",
        &Operation::Zero { range, stamp }.encode(request),
        &hollow,
    );
    let epoch = [
        ("epoch.salt", le(0x59u128.to_le_bytes())),
        ("epoch.nonce", le(0x5au64.to_le_bytes())),
        ("epoch.key_id", le(0x5bu32.to_le_bytes())),
        ("epoch.resealed", vec![1]),
    ];
    let open = Operation::OpenEpoch {
        salt: 0x59,
        key_id: 0x5b,
        nonce: 0x5a,
        resealed: true,
    };
    check("operation", &open.encode(request), &epoch);
    let resize = [("resize.size_bytes", le(0x5cu64.to_le_bytes()))];
    check(
        "operation",
        &Operation::Resize { size_bytes: 0x5c }.encode(request),
        &resize,
    );
    let snapshot = [
        ("snapshot.stamp", le(stamp.0.to_le_bytes())),
        ("snapshot.created", le(0x5eu64.to_le_bytes())),
        ("snapshot.name_length", le(3u32.to_le_bytes())),
    ];
    let take = Operation::Snapshot {
        stamp,
        created_us: 0x5e,
        name: "abc".into(),
        labels: BTreeMap::new(),
    };
    check("operation", &take.encode(request), &snapshot);
    let rename = [("rename.name_length", le(3u32.to_le_bytes()))];
    let name = "abc".into();
    check(
        "operation",
        &Operation::Rename { name }.encode(request),
        &rename,
    );
    let relabel = [
        ("relabel.labels", le(1u32.to_le_bytes())),
        ("relabel.stays", le(1u8.to_le_bytes())),
        ("relabel.key_length", le(3u32.to_le_bytes())),
    ];
    let labels = BTreeMap::from([("key".into(), Some("value".into()))]);
    let operation = Operation::Relabel { labels };
    check("operation", &operation.encode(request), &relabel);
    let ingest = [
        ("ingest.runs", le(1u32.to_le_bytes())),
        ("ingest.lba", le(0x54u64.to_le_bytes())),
        ("ingest.count", le(0x55u64.to_le_bytes())),
        ("ingest.kind", vec![3]),
        ("ingest.stamp", le(stamp.0.to_le_bytes())),
    ];
    let zeros = RunContent::Hollow {
        count: 0x55,
        kind: LeafKind::Zero,
        stamp,
    };
    let runs = vec![Run {
        lba: 0x54,
        content: zeros,
    }];
    let operation = Operation::Ingest { runs };
    check("operation", &operation.encode(request), &ingest);
    let branch = [("branch.to", le(stamp.0.to_le_bytes()))];
    let operation = Operation::Branch { to: stamp };
    check("operation", &operation.encode(request), &branch);
    let delete = [("delete.cut", le(stamp.0.to_le_bytes()))];
    let operation = Operation::DeleteSnapshot { cut: stamp };
    check("operation", &operation.encode(request), &delete);
    let rollback = [
        ("rollback.stamp", le(stamp.0.to_le_bytes())),
        ("rollback.created", le(0x5fu64.to_le_bytes())),
        ("rollback.to", le(0x60u64.to_le_bytes())),
        ("rollback.name_length", le(4u32.to_le_bytes())),
    ];
    let operation = Operation::Rollback {
        stamp,
        created_us: 0x5f,
        to: Stamp(0x60),
        keep: Some("left".into()),
    };
    check("operation", &operation.encode(request), &rollback);
    let clone = [
        ("clone.cut", le(stamp.0.to_le_bytes())),
        ("clone.group", le(0x6bu64.to_le_bytes())),
        ("clone.volume", le(0x6cu128.to_le_bytes())),
        ("clone.created", le(0x6du64.to_le_bytes())),
        ("clone.name_length", le(5u32.to_le_bytes())),
    ];
    let operation = Operation::Clone {
        cut: stamp,
        group: GroupId(0x6b),
        volume: VolumeId(0x6c),
        created_us: 0x6d,
        name: "other".into(),
        labels: BTreeMap::new(),
        members: Vec::new(),
    };
    check("operation", &operation.encode(request), &clone);
    let lists = [
        &common[..],
        &hollow[..],
        &epoch[..],
        &resize[..],
        &snapshot[..],
        &relabel[..],
        &rename[..],
        &ingest[..],
        &branch[..],
        &delete[..],
        &rollback[..],
        &clone[..],
    ];
    let named: Vec<&str> = lists
        .iter()
        .flat_map(|list| list.iter().map(|f| f.0))
        .collect();
    all_named("operation", &named);

    let block = BlockInfo {
        kind: BlockKind::Compressed,
        stored_length: 0x61,
        crc: 0x62,
        auth: BlockInfo::sealed(0x62, &[0x63; 12]).auth,
    };
    let full = Operation::Write {
        lba: 0,
        stamp,
        key_id: 1,
        blocks: vec![block],
    }
    .encode(request);
    let fields = [
        ("kind", vec![2]),
        ("stored_length", le(0x61u16.to_le_bytes())),
        ("crc", le(0x62u32.to_le_bytes())),
        ("auth", block.auth.to_vec()),
    ];
    check("block", &full[48..], &fields);
    all_named("block", &fields.iter().map(|f| f.0).collect::<Vec<_>>());
}

#[test]
fn nodes_and_their_entries() {
    let head = NodeHead {
        level: 2,
        store: StoreId(0x71),
        group: GroupId(0x72),
        first_lba: 0x73,
        is_strong: false,
    };
    let mut inner = NodePage::empty(&head);
    let pointer = ChildPointer {
        vaddr: VAddr::new(0x74, 0x75),
        max_stamp: Stamp(0x76),
        logical_hash: 0x77,
        is_strong: false,
        crc: 0x78,
        live: 0x79,
    };
    inner.set_child(0, &pointer);
    inner.seal();
    assert!(NodePage::is_whole(&inner.bytes) && inner.bytes[40..44] != [0; 4]);
    let address = |kind: u64, vaddr: VAddr| (vaddr.0 | kind << 50).to_le_bytes()[..7].to_vec();
    let entry = inner.bytes[HEAD_BYTES..HEAD_BYTES + ENTRY_BYTES].to_vec();
    let fields = [
        ("magic", b"ESND".to_vec()),
        ("version", le(2u16.to_le_bytes())),
        ("level", vec![2]),
        ("store", le(0x71u128.to_le_bytes())),
        ("group", le(0x72u64.to_le_bytes())),
        ("first_lba", le(0x73u64.to_le_bytes())),
        ("crc", inner.bytes[40..44].to_vec()),
        ("entries", entry.clone()),
    ];
    check("node", &inner.bytes, &fields);
    all_named("node", &fields.iter().map(|f| f.0).collect::<Vec<_>>());
    let fields = [
        ("address", address(1, pointer.vaddr)),
        ("max_stamp", le(0x76u64.to_le_bytes())),
        ("logical_hash", le(0x77u64.to_le_bytes())),
        ("crc", le(0x78u32.to_le_bytes())),
        ("live", le(0x79u32.to_le_bytes())),
    ];
    check("child pointer", &entry, &fields);
    let mut strong = NodePage::empty(&NodeHead {
        is_strong: true,
        ..head
    });
    let of_strong = ChildPointer {
        is_strong: true,
        ..pointer
    };
    strong.set_child(0, &of_strong);
    assert_eq!(strong.bytes[4..6], 3u16.to_le_bytes());
    assert_eq!(
        strong.bytes[HEAD_BYTES..HEAD_BYTES + 7],
        address(2, pointer.vaddr)[..]
    );
    all_named(
        "child pointer",
        &fields.iter().map(|f| f.0).collect::<Vec<_>>(),
    );

    let mut leaf = NodePage::empty(&NodeHead { level: 0, ..head });
    let block = LeafEntry {
        kind: LeafKind::Data,
        vaddr: VAddr::new(0x7a, 0x7b),
        stamp: Stamp(0x7c),
        auth: [0x7d; 16],
    };
    leaf.set_leaf(0, &block);
    let fields = [
        ("address", address(1, block.vaddr)),
        ("stamp", le(0x7cu64.to_le_bytes())),
        ("auth", vec![0x7d; 16]),
    ];
    check("leaf entry", &leaf.bytes[HEAD_BYTES..], &fields);
    all_named(
        "leaf entry",
        &fields.iter().map(|f| f.0).collect::<Vec<_>>(),
    );
}

#[test]
fn survivors() {
    let header = SurvivorsHeader {
        store: StoreId(0x81),
        segment: 0x82,
        slot: 0x83,
        generation: 0x84,
        entries: vec![Survivor {
            vaddr: VAddr(0x85),
            crc: 0x86,
            owner: Owner {
                group: GroupId(0x87),
                lba: 0x88,
            },
        }],
    };
    let bytes = header.encode();
    let fields = [
        ("magic", b"ESSV".to_vec()),
        ("version", le(2u16.to_le_bytes())),
        ("count", le(1u16.to_le_bytes())),
        ("crc", bytes[8..12].to_vec()),
        ("segment", le(0x82u32.to_le_bytes())),
        ("store", le(0x81u128.to_le_bytes())),
        ("generation", le(0x84u64.to_le_bytes())),
        ("slot", le(0x83u32.to_le_bytes())),
        ("entry.vaddr", le(0x85u64.to_le_bytes())),
        ("entry.crc", le(0x86u32.to_le_bytes())),
        ("entry.group", le(0x87u64.to_le_bytes())),
        ("entry.lba", le(0x88u64.to_le_bytes())),
    ];
    check("survivors", &bytes, &fields);
    all_named("survivors", &fields.iter().map(|f| f.0).collect::<Vec<_>>());
}

#[test]
fn dead_pages() {
    let entry = DeadEntry {
        birth: Stamp(0x91),
        vaddr: VAddr(0x92),
        death: Stamp(0x93),
        lba: 0x94,
        kind: DeadKind::Node,
    };
    let bytes = dead::encode(StoreId(0x95), &[entry]);
    let fields = [
        ("magic", b"ESDP".to_vec()),
        ("version", le(1u16.to_le_bytes())),
        ("count", le(1u16.to_le_bytes())),
        ("store", le(0x95u128.to_le_bytes())),
        ("crc", bytes[40..44].to_vec()),
        ("entry.address", le((0x92u64 | 2 << 50).to_le_bytes())),
        ("entry.birth", le(0x91u64.to_le_bytes())),
        ("entry.death", le(0x93u64.to_le_bytes())),
        ("entry.lba", le(0x94u64.to_le_bytes())),
    ];
    assert!(NodePage::is_whole(&bytes));
    check("dead page", &bytes, &fields);
    all_named("dead page", &fields.iter().map(|f| f.0).collect::<Vec<_>>());
}

#[test]
fn pages_of_tables() {
    let head = PageHead {
        table: TableId::Deaths,
        level: 4,
        store: StoreId(0x91),
        sequence: 0x92,
        first_key: 0x93,
    };
    let mut page = PageBuilder::new(&head, CONTENT_MAX);
    assert!(page.push(0x94, b"record"));
    let bytes = page.finish();
    let fields = [
        ("magic", b"ESTB".to_vec()),
        ("version", le(1u16.to_le_bytes())),
        ("table", le(3u16.to_le_bytes())),
        ("store", le(0x91u128.to_le_bytes())),
        ("sequence", le(0x92u64.to_le_bytes())),
        ("first_key", le(0x93u128.to_le_bytes())),
        ("level", vec![4]),
        ("count", le(1u16.to_le_bytes())),
        ("length", le(8u32.to_le_bytes())),
        ("crc", bytes[56..60].to_vec()),
    ];
    check("page of a table", &bytes, &fields);
    let names: Vec<&str> = fields.iter().map(|f| f.0).collect();
    all_named("page of a table", &names);
    assert_eq!(&bytes[64..72], b"\x01\x06record");
    let pointer = PagePointer {
        places: [Place::physical(2, 7), Place(0x95)],
        crc: 0x96,
    };
    let mut w = Writer::new();
    pointer.encode(&mut w);
    let fields = [
        ("places.0", le((3u64 << 14 | 7).to_le_bytes())),
        ("places.1", le(0x95u64.to_le_bytes())),
        ("crc", le(0x96u32.to_le_bytes())),
    ];
    check("page pointer", &w.bytes, &fields);
    let names: Vec<&str> = fields.iter().map(|f| f.0).collect();
    all_named("page pointer", &names);
}

#[test]
fn checkpoint_head() {
    let bytes = Checkpoint::default().encode();
    let fields = [
        ("magic", b"ESKERCKP".to_vec()),
        ("version", le(8u32.to_le_bytes())),
        ("crc", bytes[12..16].to_vec()),
    ];
    check("checkpoint", &bytes, &fields);
    all_named(
        "checkpoint",
        &fields.iter().map(|f| f.0).collect::<Vec<_>>(),
    );
}
