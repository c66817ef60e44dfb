//! The checkpoint itself: pages of tables that changed, then the body that names them.

use super::{Checkpointing, Phase};
use crate::config::Sabotage;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::event::Effect;
use crate::format::checkpoint::{Checkpoint, LogEntryMeta};
use crate::format::superblock::{Chunk, CHECKPOINT_COPIES, CHUNKS_MAX};
use crate::format::table::{Key, Place, TableId};
use crate::format::vaddr::VAddr;
use crate::format::version_records::version_key;
use crate::format::versions::VersionTable;
use crate::format::PAGE;
use crate::group::liveness;
use crate::table::{Batch, PageContext};
use esker_base::checksum::crc32;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::AlignedBuf;
use std::collections::BTreeSet;

/// Pages of tables in one write.
const TABLE_WRITE_PAGES: usize = 256;

impl Engine {
    /// Writes the checkpoint itself.
    pub(crate) fn write_body(&mut self, effects: &mut Vec<Effect>) {
        let Some(mut c) = self.checkpoint.take() else {
            return;
        };
        self.map.gather();
        if self.config.sabotage == Sabotage::ForgetTablePage {
            self.segs.forget_one_page(TableId::Pieces);
        }
        let mut failed = match self.write_tables(c.counters.checkpoints) {
            Ok(has_room) => !has_room,
            Err(error) => {
                self.checkpoint = Some(c);
                return self.fence(error, effects);
            }
        };
        let keep = self.collector.unpublished_segments();
        c.freed = self.segs.emptied(c.log.generation, &keep);
        self.cut_logs_before_reuse(&mut c, effects);
        let (next_version, next_deadlist) = self.forest.frozen_numbers();
        self.sign(&mut c.entries);
        self.forest.thaw();
        let body = Checkpoint {
            versions: VersionTable {
                next_version,
                next_deadlist,
                whole: None,
            },
            counters: c.counters,
            tables: match failed {
                true => Vec::new(),
                false => self.segs.table_roots(),
            },
            groups: std::mem::take(&mut c.entries).into_values().collect(),
            discards: std::mem::take(&mut c.discards),
            doubtful: std::mem::take(&mut c.doubtful),
        }
        .encode();
        c.phase = Phase::Body;
        c.superblock.checkpoint_bytes = to_u64(body.len());
        c.superblock.chunks.clear();
        for _ in 0..CHECKPOINT_COPIES {
            match self.write_body_copy(&body) {
                Some(chunks) => c.superblock.chunks.extend(chunks),
                None => failed = true,
            }
        }
        failed |= c.superblock.chunks.len() > CHUNKS_MAX;
        c.superblock.sequence += 1;
        c.superblock.log = c.log;
        if self.config.sabotage == Sabotage::ReuseBeforeCheckpoint {
            self.segs.release(&std::mem::take(&mut c.freed));
        }
        self.checkpoint = Some(c);
        if failed {
            return self.fence(StoreError::NoSegment, effects);
        }
        self.issue_map_writes(effects);
    }

    /// Writes the pages of the tables that changed. False without room.
    fn write_tables(&mut self, sequence: u64) -> Result<bool, StoreError> {
        let store = self.sb.store;
        let context = PageContext { store, sequence };
        self.segs.begin_tables(sequence).map_err(liveness)?;
        self.versions_changed();
        if self.config.sabotage == Sabotage::ForgetVersionPage {
            self.segs.forget_one_page(TableId::Versions);
        }
        for id in [
            TableId::Versions,
            TableId::Deadlists,
            TableId::Deaths,
            TableId::Pieces,
            TableId::Segments,
        ] {
            while let Some(batch) = self.next_batch(id, &context) {
                let pages: Vec<&[u8]> = batch.pages().collect();
                let Some(places) = self.place_pages(&pages, id == TableId::Deaths) else {
                    return Ok(false);
                };
                let placed = self.segs.placed(id, batch, &places);
                placed.map_err(liveness)?;
            }
        }
        if self.config.table_audit {
            self.audit_tables()?;
        }
        Ok(true)
    }

    /// For tests: a page of versions or deadlists that does not say what it should, as if it had been read.
    fn audit_tables(&mut self) -> Result<(), StoreError> {
        let (forest, dead) = (&self.forest, &self.dead);
        let (_, next_deadlist) = forest.frozen_numbers();
        let tables = self.segs.tables_mut();
        let mut versions = |from, to, each: &mut dyn FnMut(Key, &[u8])| {
            forest.frozen_records(from, to, each);
        };
        let mut lists = |from, to, each: &mut dyn FnMut(Key, &[u8])| {
            dead.records(next_deadlist, from, to, each);
        };
        let stale = tables.stale_page(TableId::Versions, &mut versions);
        match stale.or_else(|| tables.stale_page(TableId::Deadlists, &mut lists)) {
            None => Ok(()),
            Some(key) => Err(StoreError::Invariant(format!(
                "page {key:#x} of versions or deadlists is not what it should be"
            ))),
        }
    }

    /// What this checkpoint did to versions and deadlists is in it.
    fn versions_changed(&mut self) {
        let versions = self.forest.take_changed_in_checkpoint();
        let lists = self.dead.take_changed();
        let tables = self.segs.tables_mut();
        tables.versions_changed(TableId::Versions, versions.into_iter().map(version_key));
        tables.versions_changed(TableId::Deadlists, lists);
    }

    /// The pages of the next level of a table that are to be written.
    fn next_batch(&mut self, id: TableId, context: &PageContext) -> Option<Batch> {
        let (forest, dead) = (&self.forest, &self.dead);
        let (_, next_deadlist) = forest.frozen_numbers();
        let tables = self.segs.tables_mut();
        match id {
            TableId::Versions => {
                let mut source = |from, to, each: &mut dyn FnMut(Key, &[u8])| {
                    forest.frozen_records(from, to, each);
                };
                tables.next_versions(id, context, &mut source)
            }
            TableId::Deadlists => {
                let mut source = |from, to, each: &mut dyn FnMut(Key, &[u8])| {
                    dead.records(next_deadlist, from, to, each);
                };
                tables.next_versions(id, context, &mut source)
            }
            TableId::Segments | TableId::Pieces | TableId::Deaths => {
                self.segs.next_batch(id, context)
            }
        }
    }

    /// Writes pages, first one copy of all of them, then the second. None without room.
    fn place_pages(&mut self, pages: &[&[u8]], at_vaddrs: bool) -> Option<Vec<[Place; 2]>> {
        let mut copies = [Vec::new(), Vec::new()];
        for places in &mut copies {
            while places.len() < pages.len() {
                let rest = &pages[places.len()..];
                let wanted = to_u32_saturating(rest.len().min(TABLE_WRITE_PAGES));
                let taken = self.map.take(wanted, &mut self.segs, self.sb.slots());
                let (segment, generation, first, count) = taken?;
                let mut buf = AlignedBuf::zeroed(count as usize * PAGE);
                for ((page, to), slot) in rest.iter().zip(buf.chunks_mut(PAGE)).zip(first..) {
                    to.copy_from_slice(page);
                    places.push(match at_vaddrs {
                        true => Place::virtual_at(VAddr::new(generation, slot)),
                        false => Place::physical(segment, slot),
                    });
                }
                let write = (segment, first, Vec::new(), buf.freeze());
                self.map.ready.push(write);
            }
        }
        let [first, second] = copies;
        let places = first.into_iter().zip(second).map(|(a, b)| [a, b]).collect();
        Some(places)
    }

    /// Hands one copy of the checkpoint to the map's writer. None without room.
    fn write_body_copy(&mut self, body: &[u8]) -> Option<Vec<Chunk>> {
        let mut chunks = Vec::new();
        let mut rest = body;
        while !rest.is_empty() {
            let wanted = to_u32_saturating(rest.len().div_ceil(PAGE));
            let taken = self.map.take(wanted, &mut self.segs, self.sb.slots());
            let (segment, _, slot, pages) = taken?;
            let bytes = (pages as usize * PAGE).min(rest.len());
            let mut buf = AlignedBuf::zeroed(pages as usize * PAGE);
            buf[..bytes].copy_from_slice(&rest[..bytes]);
            rest = &rest[bytes..];
            let crc = crc32(&buf);
            chunks.push(Chunk {
                segment,
                slot,
                pages,
                crc,
            });
            let write = (segment, slot, Vec::new(), buf.freeze());
            self.map.ready.push(write);
        }
        Some(chunks)
    }

    /// Entries whose payload lies in a segment about to be reused leave the retained Raft log: a
    /// follower that far behind catches up by versions.
    fn cut_logs_before_reuse(&mut self, c: &mut Checkpointing, effects: &mut Vec<Effect>) {
        let freed: BTreeSet<u32> = c.freed.iter().copied().collect();
        for (id, entry) in &mut c.entries {
            // Not to be found where it will be in use again, or left behind when survivors moved.
            let lost = |e: &&LogEntryMeta| {
                let runs = self.segs.locate_run(e.payload, u64::from(e.payload_pages));
                runs.is_none_or(|runs| runs.iter().any(|(segment, ..)| freed.contains(segment)))
            };
            let last = entry
                .log
                .iter()
                .filter(|e| e.payload_pages > 0 && e.index <= entry.applied)
                .filter(lost)
                .map(|e| e.index)
                .max();
            let Some(last) = last else {
                continue;
            };
            let cut = entry.log.iter().take_while(|e| e.index <= last).count();
            for e in entry.log.drain(..cut) {
                (entry.truncated_index, entry.truncated_term) = (e.index, e.term);
            }
            if let Some(group) = self.groups.get_mut(id) {
                group.truncate(last);
            }
            let (index, term) = (entry.truncated_index, entry.truncated_term);
            effects.push(Effect::LogTruncated {
                group: *id,
                index,
                term,
            });
        }
    }
}
