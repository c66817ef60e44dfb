//! Versions and deadlists as records of tables: see docs/format.md. Up to version 5 checkpoints held
//! them whole.
//!
//! A version takes as many records as its name and labels need: the first one has everything else. A
//! deadlist takes one for its sums, and one for each chunk and each subtree.

use super::checkpoint::{decode_pointer, encode_pointer};
use super::codec::{FormatError, Reader, Writer};
use super::node::LEVEL_MAX;
use super::table::{read_varint, varint, Key};
use super::vaddr::VAddr;
use super::versions::{
    decode_meta, encode_meta, kind_of, Chunk, Deadlist, DeadlistId, Subtree, Version, VersionId,
    VersionKind, LEVELS,
};
use esker_base::num::{to_u64, to_usize};
use esker_base::{GroupId, Stamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of name and labels in one record, at most.
pub const META_PART_MAX: usize = 1024;
/// Bits of a version's key that tell its records apart.
pub const PART_BITS: u32 = 8;
/// Bits of a deadlist's key that tell its records apart.
pub const LIST_BITS: u32 = 64;
/// Bits of those that count the chunks, or the subtrees.
const POSITION_BITS: u32 = 56;
const HEADER: u64 = 0;
const CHUNK: u64 = 1;
const SUBTREE: u64 = 2;

/// Key of a version's first record.
#[must_use]
pub fn version_key(id: VersionId) -> Key {
    Key::from(id.0) << PART_BITS
}

fn list_key(id: DeadlistId, what: u64, position: usize) -> Key {
    Key::from(id.0) << LIST_BITS | Key::from(what << POSITION_BITS | to_u64(position))
}

/// Key of a deadlist's sums.
#[must_use]
pub fn list_header_key(id: DeadlistId) -> Key {
    list_key(id, HEADER, 0)
}

/// Key of a chunk.
#[must_use]
pub fn chunk_key(id: DeadlistId, position: usize) -> Key {
    list_key(id, CHUNK, position)
}

/// Key of a subtree.
#[must_use]
pub fn subtree_key(id: DeadlistId, position: usize) -> Key {
    list_key(id, SUBTREE, position)
}

fn number(w: &mut Writer, value: u64) {
    varint(w, value.into());
}

fn read_number(r: &mut Reader<'_>) -> Result<u64, FormatError> {
    let value = read_varint(r)?;
    u64::try_from(value).map_err(|_| r.error("number is out of range"))
}

fn read_small(r: &mut Reader<'_>) -> Result<u16, FormatError> {
    let value = read_varint(r)?;
    u16::try_from(value).map_err(|_| r.error("number is out of range"))
}

/// Gives the records of a version.
pub fn encode_version(v: &Version, each: &mut dyn FnMut(Key, &[u8])) {
    let mut meta = Writer::new();
    encode_meta(&mut meta, &v.meta);
    let mut w = Writer::new();
    for value in [v.group.0, v.parent.0, v.cut.0, v.deadlist.0] {
        number(&mut w, value);
    }
    v.grown.iter().for_each(|stamp| number(&mut w, stamp.0));
    w.u8(v.kind as u8);
    let (root, level) = v.root.unwrap_or_default();
    w.u8(level);
    encode_pointer(&mut w, &root);
    for value in [v.released, v.released_nodes, to_u64(meta.bytes.len())] {
        number(&mut w, value);
    }
    let mut parts = meta.bytes.chunks(META_PART_MAX);
    w.raw(parts.next().unwrap_or_default());
    each(version_key(v.id), &w.bytes);
    for (n, part) in (1..).zip(parts) {
        each(version_key(v.id) + n, part);
    }
}

/// Gives the records of a deadlist whose keys are not below `from`, and below `to`.
pub fn encode_deadlist(
    id: DeadlistId,
    d: &Deadlist,
    from: Key,
    to: Option<Key>,
    each: &mut dyn FnMut(Key, &[u8]),
) {
    let header = list_header_key(id);
    if header >= from && to.is_none_or(|to| header < to) {
        let mut w = Writer::new();
        let counts = [to_u64(d.chunks.len()), to_u64(d.subtrees.len())];
        for value in [d.data, d.exclusive].into_iter().chain(counts) {
            number(&mut w, value);
        }
        each(header, &w.bytes);
    }
    // The positions of keys between the two bounds.
    let within = |first: Key, count: usize| {
        let at = |key: Key| {
            let distance = usize::try_from(key.saturating_sub(first));
            distance.unwrap_or(count).min(count)
        };
        at(from)..to.map_or(count, at).max(at(from))
    };
    let first = chunk_key(id, 0);
    for n in within(first, d.chunks.len()) {
        let mut w = Writer::new();
        encode_chunk(&mut w, &d.chunks[n]);
        each(first + n as Key, &w.bytes);
    }
    let first = subtree_key(id, 0);
    for n in within(first, d.subtrees.len()) {
        let s = &d.subtrees[n];
        let mut w = Writer::new();
        encode_pointer(&mut w, &s.node);
        w.u8(s.level);
        number(&mut w, s.first_lba);
        number(&mut w, s.death.0);
        each(first + n as Key, &w.bytes);
    }
}

fn encode_chunk(w: &mut Writer, c: &Chunk) {
    w.u64(c.page.0);
    w.u32(c.crc);
    for value in [c.first, c.count, c.data] {
        number(w, value.into());
    }
    number(w, c.oldest.0);
    number(w, c.youngest.0.saturating_sub(c.oldest.0));
}

fn decode_chunk(r: &mut Reader<'_>) -> Result<Chunk, FormatError> {
    let (page, crc) = (VAddr(r.u64()?), r.u32()?);
    let (first, count, data) = (read_small(r)?, read_small(r)?, read_small(r)?);
    let oldest = read_number(r)?;
    let youngest = oldest.checked_add(read_number(r)?);
    let inside = usize::from(first) + usize::from(count) <= super::dead::ENTRIES_MAX;
    match youngest.filter(|_| inside && count > 0 && data <= count) {
        Some(youngest) => Ok(Chunk {
            page,
            crc,
            first,
            count,
            data,
            oldest: Stamp(oldest),
            youngest: Stamp(youngest),
        }),
        None => Err(r.error("chunk of a deadlist is out of range")),
    }
}

fn decode_subtree(r: &mut Reader<'_>) -> Result<Subtree, FormatError> {
    let (node, level) = (decode_pointer(r)?, r.u8()?);
    if level > LEVEL_MAX {
        return Err(r.error("level of a subtree is out of range"));
    }
    Ok(Subtree {
        node,
        level,
        first_lba: read_number(r)?,
        death: Stamp(read_number(r)?),
    })
}

/// A deadlist whose records come in any order.
#[derive(Debug, Default)]
struct Parts {
    /// Sums, and numbers of chunks and subtrees.
    header: Option<[u64; 4]>,
    chunks: Vec<(u64, Chunk)>,
    subtrees: Vec<(u64, Subtree)>,
}

/// Records of both tables, as they come.
#[derive(Debug, Default)]
pub struct VersionRecords {
    versions: BTreeMap<Key, Vec<u8>>,
    deadlists: BTreeMap<DeadlistId, Parts>,
}

const NAME: &str = "record of a version";

impl VersionRecords {
    /// A record of the table of versions.
    pub fn version(&mut self, key: Key, bytes: &[u8]) {
        self.versions.insert(key, bytes.to_vec());
    }

    /// A record of the table of deadlists.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn deadlist(&mut self, key: Key, bytes: &[u8]) -> Result<(), FormatError> {
        let mut r = Reader::new("record of a deadlist", bytes);
        let low = u64::try_from(key & Key::from(u64::MAX)).unwrap_or(u64::MAX);
        let (what, position) = (low >> POSITION_BITS, low & ((1 << POSITION_BITS) - 1));
        let Some(id) = u64::try_from(key >> LIST_BITS).ok().filter(|id| *id > 0) else {
            return Err(r.error("names no deadlist"));
        };
        let parts = self.deadlists.entry(DeadlistId(id)).or_default();
        match (what, position) {
            (HEADER, 0) => {
                let mut header = [0; 4];
                for value in &mut header {
                    *value = read_number(&mut r)?;
                }
                parts.header = Some(header);
            }
            (CHUNK, _) => parts.chunks.push((position, decode_chunk(&mut r)?)),
            (SUBTREE, _) => parts.subtrees.push((position, decode_subtree(&mut r)?)),
            _ => return Err(r.error("has an unknown key")),
        }
        r.finish()
    }

    /// What they say, once all have come: versions and deadlists by number.
    ///
    /// # Errors
    /// When something is malformed or missing.
    #[allow(clippy::type_complexity)] // two lists
    pub fn finish(self) -> Result<(Vec<Version>, Vec<(DeadlistId, Deadlist)>), FormatError> {
        let mut versions = Vec::new();
        let mut records = self.versions.into_iter().peekable();
        while let Some((key, bytes)) = records.next() {
            let mut parts = vec![bytes];
            while let Some((_, bytes)) =
                records.next_if(|(next, _)| *next == key + parts.len() as Key)
            {
                parts.push(bytes);
            }
            versions.push(decode_version(key, &parts)?);
        }
        let lists = self.deadlists.into_iter();
        let lists = lists.map(|(id, parts)| Ok((id, parts.whole()?)));
        Ok((versions, lists.collect::<Result<_, _>>()?))
    }
}

impl Parts {
    fn whole(self) -> Result<Deadlist, FormatError> {
        let r = Reader::new("record of a deadlist", &[]);
        let Some([data, exclusive, chunks, subtrees]) = self.header else {
            return Err(r.error("its sums are missing"));
        };
        let in_order =
            |count: u64, positions: &mut dyn Iterator<Item = u64>| positions.eq(0..count);
        let (mut c, mut s) = (self.chunks, self.subtrees);
        c.sort_unstable_by_key(|(position, _)| *position);
        s.sort_unstable_by_key(|(position, _)| *position);
        let whole = in_order(chunks, &mut c.iter().map(|(n, _)| *n))
            && in_order(subtrees, &mut s.iter().map(|(n, _)| *n));
        if !whole || chunks + subtrees == 0 {
            return Err(r.error("chunks or subtrees are missing"));
        }
        Ok(Deadlist {
            chunks: c.into_iter().map(|(_, chunk)| chunk).collect(),
            subtrees: s.into_iter().map(|(_, subtree)| subtree).collect(),
            data,
            exclusive,
        })
    }
}

fn decode_version(key: Key, parts: &[Vec<u8>]) -> Result<Version, FormatError> {
    let mut r = Reader::new(NAME, parts.first().map_or(&[][..], Vec::as_slice));
    let id = u64::try_from(key >> PART_BITS).ok();
    let id = id.filter(|id| *id > 0 && version_key(VersionId(*id)) == key);
    let Some(id) = id else {
        return Err(r.error("names no version"));
    };
    let mut next = || read_number(&mut r);
    let (group, parent, cut, deadlist) = (next()?, next()?, next()?, next()?);
    let mut grown = [Stamp(0); LEVELS];
    for stamp in &mut grown {
        *stamp = Stamp(next()?);
    }
    let kind = kind_of(&mut r)?;
    let level = r.u8()?;
    let root = decode_pointer(&mut r)?;
    if level > LEVEL_MAX || deadlist == 0 {
        return Err(r.error("version is malformed"));
    }
    let (released, released_nodes) = (read_number(&mut r)?, read_number(&mut r)?);
    let length = read_number(&mut r)?;
    let mut meta = r.raw(r.remaining())?.to_vec();
    parts[1..]
        .iter()
        .for_each(|part| meta.extend_from_slice(part));
    if meta.len() != to_usize(length) || meta.len().div_ceil(META_PART_MAX) != parts.len() {
        return Err(r.error("name or labels are missing"));
    }
    let mut r = Reader::new(NAME, &meta);
    let meta = decode_meta(&mut r)?;
    r.finish()?;
    Ok(Version {
        id: VersionId(id),
        group: GroupId(group),
        kind,
        parent: VersionId(parent),
        cut: Stamp(cut),
        deadlist: DeadlistId(deadlist),
        grown,
        root: (kind != VersionKind::Head).then_some((root, level)),
        meta: Arc::new(meta),
        released,
        released_nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::super::node::ChildPointer;
    use super::super::versions::SnapshotMeta;
    use super::*;

    fn version(id: u64, labels: usize) -> Version {
        let label = |n| (format!("key{n}"), "x".repeat(200));
        Version {
            id: VersionId(id),
            group: GroupId(u64::MAX),
            kind: VersionKind::Snapshot,
            parent: VersionId(id - 1),
            cut: Stamp(77),
            deadlist: DeadlistId(id),
            grown: [Stamp(0), Stamp(3), Stamp(0), Stamp(0), Stamp(u64::MAX)],
            root: Some((ChildPointer::default(), 3)),
            meta: Arc::new(SnapshotMeta {
                name: "name".into(),
                created_us: 5,
                size_bytes: 1 << 40,
                labels: (0..labels).map(label).collect(),
            }),
            released: 1,
            released_nodes: 2,
        }
    }

    fn deadlist() -> Deadlist {
        let chunk = |n: u16| Chunk {
            page: VAddr(u64::from(n) + 9),
            crc: 0x1234_5678,
            first: n,
            count: 2,
            data: 1,
            oldest: Stamp(4),
            youngest: Stamp(1 << 40),
        };
        Deadlist {
            chunks: (0..5).map(chunk).collect(),
            subtrees: vec![Subtree {
                node: ChildPointer::default(),
                level: 2,
                first_lba: 1 << 20,
                death: Stamp(9),
            }],
            data: 5,
            exclusive: 3,
        }
    }

    #[test]
    fn versions_come_back_whatever_the_length_of_their_labels() {
        let versions: Vec<Version> = [(1, 0), (2, 32), (3, 4), (9, 5)]
            .into_iter()
            .map(|(id, labels)| version(id, labels))
            .collect();
        let mut records = VersionRecords::default();
        let mut count = 0;
        for v in versions.iter().rev() {
            encode_version(v, &mut |key, bytes| {
                assert!(bytes.len() <= super::super::table::RECORD_MAX / 3);
                records.version(key, bytes);
                count += 1;
            });
        }
        assert!(count > versions.len() + 6);
        assert_eq!(records.finish().expect("decodes").0, versions);
    }

    #[test]
    fn a_record_that_is_missing_or_cut_short_is_noticed() {
        let v = version(7, 32);
        let mut all: Vec<(Key, Vec<u8>)> = Vec::new();
        encode_version(&v, &mut |key, bytes| all.push((key, bytes.to_vec())));
        for n in 0..all.len() {
            let mut records = VersionRecords::default();
            for (m, (key, bytes)) in all.iter().enumerate() {
                if m != n {
                    records.version(*key, bytes);
                }
            }
            assert!(records.finish().is_err(), "without part {n}");
            let mut records = VersionRecords::default();
            for (m, (key, bytes)) in all.iter().enumerate() {
                let cut = usize::from(m == n);
                records.version(*key, &bytes[..bytes.len() - cut]);
            }
            assert!(records.finish().is_err(), "part {n} cut short");
        }
        let id = DeadlistId(4);
        let mut all: Vec<(Key, Vec<u8>)> = Vec::new();
        encode_deadlist(id, &deadlist(), 0, None, &mut |key, bytes| {
            all.push((key, bytes.to_vec()));
        });
        assert_eq!(all.len(), 7);
        for n in 0..all.len() {
            let mut records = VersionRecords::default();
            for (_, (key, bytes)) in all.iter().enumerate().filter(|(m, _)| *m != n) {
                records.deadlist(*key, bytes).expect("decodes");
            }
            assert!(records.finish().is_err(), "without record {n}");
        }
    }

    #[test]
    fn every_range_of_keys_gives_the_records_in_it() {
        let (id, list) = (DeadlistId(4), deadlist());
        let mut all = Vec::new();
        encode_deadlist(id, &list, 0, None, &mut |key, bytes| {
            all.push((key, bytes.to_vec()));
        });
        let mut bounds: Vec<Key> = all.iter().flat_map(|(key, _)| [*key, *key + 1]).collect();
        bounds.extend([0, Key::from(id.0) << LIST_BITS, Key::MAX]);
        for from in &bounds {
            for to in bounds.iter().copied().map(Some).chain([None]) {
                let mut found = Vec::new();
                encode_deadlist(id, &list, *from, to, &mut |key, bytes| {
                    found.push((key, bytes.to_vec()));
                });
                let inside =
                    |(key, _): &&(Key, Vec<u8>)| key >= from && to.is_none_or(|to| *key < to);
                let expected: Vec<_> = all.iter().filter(inside).cloned().collect();
                assert_eq!(found, expected, "{from:#x} to {to:x?}");
            }
        }
        let mut records = VersionRecords::default();
        for (key, bytes) in all.iter().rev() {
            records.deadlist(*key, bytes).expect("decodes");
        }
        assert_eq!(records.finish().expect("decodes").1, [(id, list)]);
    }
}
