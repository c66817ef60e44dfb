//! Decoded dumps of what is on the device, without opening the store.

use crate::error::OpenError;
use crate::format::checkpoint::{Checkpoint, PieceEntry, SegmentKind};
use crate::format::dead;
use crate::format::node::{LeafKind, NodePage, FANOUT};
use crate::format::operation::Operation;
use crate::format::record::{ItemBody, RecordHeader, HEADER_PAGES_MAX};
use crate::format::superblock::{Superblock, COPIES};
use crate::format::survivors::SurvivorsHeader;
use crate::format::table::{self, DecodedPage, TableRoot, CONTENT_MAX};
use crate::format::versions::WholeVersions;
use crate::format::{PAGE, SEGMENTS_OFFSET};
use crate::log::reader::{scan, slots_bytes, Place};
use crate::space::load::{load_all, SpaceLoader};
use crate::space::TableShape;
use crate::superblock_io::{choose, Choice};
use crate::verify::ReadAt;
use esker_base::num::{to_u32_saturating, to_usize};
use esker_base::Seq;
use std::fmt::Write;

/// What to dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// All superblock copies.
    Superblock,
    /// The newest checkpoint.
    Checkpoint,
    /// The records or nodes of a segment.
    Segment(u32),
    /// The record at a slot of a segment.
    Record(u32, u32),
    /// The map node at a slot of a segment.
    Node(u32, u32),
}

/// Dumps a part of the store on `device`.
///
/// # Errors
/// When the store has no usable superblock, or the part cannot be read or decoded.
pub fn inspect(device: &mut dyn ReadAt, what: What) -> Result<String, OpenError> {
    let read = |device: &mut dyn ReadAt, offset: u64, length: usize| {
        device
            .read_at(offset, length)
            .map_err(|error| OpenError::Read { offset, error })
    };
    let area = read(device, 0, to_usize(SEGMENTS_OFFSET))?;
    let page = |n: usize| area[to_usize(Superblock::copy_offset(n))..][..PAGE].to_vec();
    let pages: Vec<Vec<u8>> = (0..COPIES).map(page).collect();
    let mut out = String::new();
    if what == What::Superblock {
        for (n, page) in pages.iter().enumerate() {
            match Superblock::decode(page) {
                Ok((sb, _)) => _ = writeln!(out, "copy {n}: {sb:#?}"),
                Err(error) => _ = writeln!(out, "copy {n}: {error}"),
            }
        }
        return Ok(out);
    }
    let sb = match choose(&pages, area.iter().all(|b| *b == 0))? {
        Choice::Store(sb, _) => *sb,
        Choice::Blank => return Err(OpenError::Blank),
    };
    let needed = SEGMENTS_OFFSET + sb.segment_count * sb.segment_bytes;
    let actual = device.size_bytes();
    if actual < needed && what == What::Checkpoint {
        return Err(OpenError::Truncated { needed, actual });
    }
    let mut slots_at = |segment: u32, slot: u32, slots: u32| {
        if u64::from(segment) >= sb.segment_count || slot >= sb.slots() {
            return Err(OpenError::Nothing(format!(
                "no slot {slot} in segment {segment}: the store has {} segments of {} slots",
                sb.segment_count,
                sb.slots()
            )));
        }
        let slots = slots.min(sb.slots() - slot);
        read(device, sb.offset_of(segment, slot), slots_bytes(slots))
    };
    match what {
        What::Superblock => {}
        What::Checkpoint => {
            let mut body = Vec::new();
            for c in &sb.chunks {
                body.extend(slots_at(c.segment, c.slot, c.pages)?);
            }
            body.truncate(to_usize(sb.checkpoint_bytes));
            let checkpoint = Checkpoint::decode(&body).map_err(OpenError::Checkpoint)?;
            let mut page = |segment, slot| slots_at(segment, slot, 1).ok();
            let mut tables = load_tables(&sb, &checkpoint, &mut page)?;
            dump_tables(&mut out, &checkpoint.tables, &tables);
            dump_checkpoint(&mut out, &checkpoint);
            let whole = checkpoint.versions.whole;
            let versions = whole.map_or_else(|| tables.take_versions(), Ok);
            dump_versions(&mut out, &versions.map_err(OpenError::Checkpoint)?);
        }
        What::Segment(segment) => {
            let bytes = slots_at(segment, 0, sb.slots())?;
            dump_segment(&mut out, &sb, segment, &bytes);
        }
        What::Record(segment, slot) => {
            let bytes = slots_at(segment, slot, to_u32_saturating(HEADER_PAGES_MAX))?;
            let (header, items, hash) = RecordHeader::decode(&bytes).map_err(|error| {
                let place = format!("slot {slot} of segment {segment}");
                OpenError::Nothing(format!("{place} holds no record: {error}"))
            })?;
            _ = writeln!(out, "{header:#?}\nhash: {hash:#018x}");
            items.iter().for_each(|item| dump_item(&mut out, item));
        }
        What::Node(segment, slot) => {
            let bytes = slots_at(segment, slot, 1)?;
            dump_node(&mut out, &bytes)?;
        }
    }
    Ok(out)
}

/// The tables that a checkpoint names.
fn load_tables(
    sb: &Superblock,
    checkpoint: &Checkpoint,
    page: &mut dyn FnMut(u32, u32) -> Option<Vec<u8>>,
) -> Result<SpaceLoader, OpenError> {
    let shape = TableShape {
        content_max: CONTENT_MAX,
        rewrite_min: 0,
        audit: false,
    };
    let loaded = SpaceLoader::new(checkpoint, sb.store, sb.segment_count, sb.slots(), shape);
    let mut loader = loaded.map_err(OpenError::Checkpoint)?;
    load_all(&mut loader, page).map_err(OpenError::Checkpoint)?;
    Ok(loader)
}

fn dump_tables(out: &mut String, roots: &[TableRoot], tables: &SpaceLoader) {
    for root in roots {
        _ = writeln!(
            out,
            "table {:?}: {} pages at level {}",
            root.table,
            root.pages.len(),
            root.level
        );
    }
    let (segments, pieces) = tables.entries();
    for (n, s) in segments.iter().enumerate() {
        let here = |p: &&PieceEntry| p.segment as usize == n;
        let live: u32 = pieces.values().filter(here).map(|p| p.live.count()).sum();
        _ = writeln!(
            out,
            "segment {n}: {:?} generation {} written {} live {live}",
            s.kind, s.generation, s.written
        );
    }
    for (first, p) in pieces {
        let segment = segments.get(p.segment as usize);
        if segment.is_some_and(|s| s.kind == SegmentKind::Survivors) {
            _ = writeln!(
                out,
                "piece {first}: {} slots at {}:{} live {}",
                p.kept.count(),
                p.segment,
                p.base,
                p.live.count()
            );
        }
    }
}

fn dump_checkpoint(out: &mut String, c: &Checkpoint) {
    _ = writeln!(out, "{:#?}", c.counters);
    for g in &c.groups {
        _ = writeln!(out, "group {}: {:#?}", g.meta.group, g.meta);
        _ = writeln!(
            out,
            "  {:?} cut at {} (term {}) applied {} epoch {} max stamp {} last record {}{}",
            g.hard_state,
            g.truncated_index,
            g.truncated_term,
            g.applied,
            g.epoch.0,
            g.max_stamp,
            g.last_seq,
            if g.suspended { " SUSPENDED" } else { "" }
        );
        _ = writeln!(
            out,
            "  root level {}: {:?}, {} entries",
            g.root_level,
            g.root,
            g.log.len()
        );
        if let Some(mac) = &g.mac {
            let hex: String = mac.iter().map(|b| format!("{b:02x}")).collect();
            _ = writeln!(out, "  MAC over its roots: {hex}");
        }
    }
    _ = writeln!(out, "discards: {:?}", c.discards);
}

fn dump_versions(out: &mut String, all: &WholeVersions) {
    for v in &all.versions {
        _ = writeln!(out, "version {}: {v:?}", v.id.0);
    }
    for (id, list) in &all.deadlists {
        _ = writeln!(out, "deadlist {}: {list:?}", id.0);
    }
}

fn dump_segment(out: &mut String, sb: &Superblock, segment: u32, bytes: &[u8]) {
    let first = bytes.chunks(PAGE).find_map(|page| {
        let (header, ..) = RecordHeader::decode(page).ok()?;
        Some(header.generation)
    });
    if let Some(generation) = first {
        let place = Place {
            store: sb.store,
            segment,
            generation,
            first_slot: 0,
            from: Seq(1),
        };
        for found in scan(&place, bytes).records {
            let h = &found.header;
            _ = writeln!(
                out,
                "slot {}: record seq {} generation {} D {} items {} payload pages {}{}",
                h.slot,
                h.seq,
                h.generation,
                h.durable_seq,
                found.items.len(),
                h.payload_pages,
                if found.bad_blocks.is_empty() {
                    ""
                } else {
                    " DAMAGED PAYLOAD"
                }
            );
        }
    }
    for (slot, page) in bytes.chunks(PAGE).enumerate() {
        if let Ok(batch) = SurvivorsHeader::decode(page) {
            let (count, generation) = (batch.entries.len(), batch.generation);
            _ = writeln!(
                out,
                "slot {slot}: survivors generation {generation}, {count} pages"
            );
        }
        if let Ok(entries) = dead::decode(page) {
            let count = entries.len();
            _ = writeln!(out, "slot {slot}: {count} entries of deadlists");
        }
        if let Ok(DecodedPage { head, records }) = table::decode(page) {
            _ = writeln!(
                out,
                "slot {slot}: page of table {:?} level {} checkpoint {} first key {:#x}, {} records",
                head.table,
                head.level,
                head.sequence,
                head.first_key,
                records.len()
            );
        }
        if let Ok(head) = NodePage::check(page) {
            _ = writeln!(
                out,
                "slot {slot}: node level {} group {} first lba {}",
                head.level, head.group, head.first_lba
            );
        }
    }
}

fn dump_item(out: &mut String, item: &crate::format::record::Item) {
    _ = writeln!(
        out,
        "group {} (before: record {})",
        item.group, item.group_prev_seq
    );
    match &item.body {
        ItemBody::Entry {
            term,
            index,
            kind,
            payload_page,
            payload_pages,
            data,
        } => {
            _ = writeln!(
                out,
                "  entry {index} term {term} {kind:?} payload {payload_pages} pages at {payload_page}"
            );
            match Operation::decode(data) {
                Ok((
                    Operation::Write {
                        lba,
                        stamp,
                        key_id,
                        blocks,
                    },
                    request,
                )) => {
                    let count = blocks.len();
                    _ = writeln!(
                        out,
                        "  write {count} blocks at lba {lba} stamp {stamp} key {key_id} {request:?}"
                    );
                }
                Ok((operation, request)) => _ = writeln!(out, "  {operation:?} {request:?}"),
                Err(_) => _ = writeln!(out, "  {} bytes of data", data.len()),
            }
        }
        other => _ = writeln!(out, "  {other:?}"),
    }
}

fn dump_node(out: &mut String, bytes: &[u8]) -> Result<(), OpenError> {
    if let Ok(entries) = dead::decode(bytes) {
        for (i, e) in entries.iter().enumerate() {
            _ = writeln!(out, "{i:3}: {e:?}");
        }
        return Ok(());
    }
    let head = NodePage::check(bytes)
        .map_err(|error| OpenError::Nothing(format!("no map node is there: {error}")))?;
    _ = writeln!(out, "{head:#?}");
    let page = NodePage::of(bytes.to_vec().into_boxed_slice());
    for i in 0..FANOUT {
        if head.level == 0 {
            let e = page.leaf(i);
            if e.kind != LeafKind::Absent {
                _ = writeln!(
                    out,
                    "{i:3}: {:?} {} stamp {} {:02x?}",
                    e.kind, e.vaddr, e.stamp, e.auth
                );
            }
        } else {
            let c = page.child(i);
            if !c.vaddr.is_none() || c.max_stamp.0 != 0 {
                _ = writeln!(out, "{i:3}: {c:?}");
            }
        }
    }
    Ok(())
}
