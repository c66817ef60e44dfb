//! Replaying the log: records are judged, and what they say is done again.

use crate::config::Sabotage;
use crate::engine::Engine;
use crate::error::{OpenError, StoreError};
use crate::event::Effect;
use crate::format::checkpoint::GroupMeta;
use crate::format::record::{Item, ItemBody};
use crate::format::vaddr::VAddr;
use crate::group::{liveness, Group, LogEntry};
use crate::log::reader::{judge, Found, Verdict};
use crate::recovery::{OpenReport, Probe};
use esker_base::num::to_u64;
use esker_base::{DiskError, DiskErrorKind, GroupId, Seq};
use std::collections::BTreeSet;

impl Engine {
    /// Judges what was found, replays it, and opens the log behind it.
    pub(crate) fn replay(&mut self, effects: &mut Vec<Effect>) -> Result<(), OpenError> {
        let Some(r) = &mut self.recovery else {
            return Ok(());
        };
        let records = std::mem::take(&mut r.records);
        let chain = std::mem::take(&mut r.chain);
        let broken_at_end = r.broken_at_end;
        for (segment, generation) in chain {
            self.segs.adopt(segment, generation);
        }
        let log = self.sb.log;
        self.segs.adopt(log.segment, log.generation);
        let ignore = self.config.sabotage == Sabotage::IgnoreDurableSeq;
        let verdict = judge(&records, log.seq, log.prev_hash, ignore);
        let hidden = self.judge_unreadable(&records, &verdict)?;
        let mut report = OpenReport {
            torn_tail: verdict.torn,
            durable_seq: verdict.durable,
            ..OpenReport::default()
        };
        self.probes.insert(match (verdict.torn, broken_at_end) {
            (true, _) => Probe::TornTail,
            (false, true) => Probe::TornHeader,
            (false, false) => Probe::CleanEnd,
        });
        let mut doubted: BTreeSet<GroupId> = BTreeSet::new();
        let mut prev_hash = log.prev_hash;
        for at in &verdict.accepted {
            if verdict.lost.iter().any(|(before, ..)| before == at) {
                doubted.extend(self.groups.keys().copied());
            }
            let found = &records[*at];
            report.records_replayed += 1;
            report.last_wall = report.last_wall.max(found.header.wall);
            report.damaged_blocks += to_u64(found.bad_blocks.len());
            for (group, lba) in &found.bad_blocks {
                self.damages.found(*group, *lba);
            }
            prev_hash = found.hash;
            self.replay_record(found, &mut doubted)
                .map_err(|e| OpenError::Fenced(e.to_string()))?;
        }
        // A loss at the very end: nothing accepted follows it.
        let last = verdict.accepted.last().copied();
        if verdict
            .lost
            .iter()
            .any(|(before, ..)| last.is_none_or(|last| *before > last))
        {
            doubted.extend(self.groups.keys().copied());
        }
        report.damaged_blocks = report.damaged_blocks.saturating_sub(hidden);
        report.damaged_records = verdict.lost.iter().map(|(_, a, b)| b.0 + 1 - a.0).sum();
        if let Some(r) = &mut self.recovery {
            doubted.append(&mut r.lost);
        }
        self.suspend(&doubted);
        self.doubt_replayed();
        if !verdict.lost.is_empty() {
            self.doubt_clones();
        }
        let mended = self.mend_feeds();
        mended.map_err(|e| OpenError::Fenced(e.to_string()))?;
        self.note_damage(&report);
        let suspended = |g: &&Group| g.suspended && !g.deleting;
        report.suspended_groups = to_u64(self.groups.values().filter(suspended).count());
        if let Some(r) = &mut self.recovery {
            report.bytes_scanned = r.report.bytes_scanned;
            report.unreadable_pages = r.report.unreadable_pages;
            r.report = report;
        }
        let highest = records.iter().map(|f| f.header.seq).max().unwrap_or(Seq(0));
        let highest = Seq(highest.0.max(log.seq.0.saturating_sub(1)));
        self.start_log(highest, prev_hash, effects)
    }

    /// Pages that could not be read, and what that means. In the payload of an accepted record
    /// they are blocks that reads will fail on or not; behind the last record nothing was. Anywhere
    /// else they may hold a record that is whole: then opening is refused, because a device that
    /// fails for a moment must not cost what it holds. Gives the number of pages in accepted payload.
    fn judge_unreadable(&self, records: &[Found], verdict: &Verdict) -> Result<u64, OpenError> {
        let Some(r) = self.recovery.as_ref().filter(|r| !r.unreadable.is_empty()) else {
            return Ok(0);
        };
        let mut rest = r.unreadable.clone();
        for found in verdict.accepted.iter().map(|at| &records[*at]) {
            let h = &found.header;
            for slot in h.slot + u32::from(h.header_pages)..h.slot + h.pages() {
                rest.remove(&(h.segment, slot));
            }
        }
        let in_payload = to_u64(r.unreadable.len() - rest.len());
        let end = |segment: &u32| r.ends.get(segment).copied().unwrap_or(0);
        rest.retain(|(segment, slot)| *slot <= end(segment));
        let Some((segment, slot)) = rest.first() else {
            return Ok(in_payload);
        };
        let at = self.sb.offset_of(*segment, *slot);
        let unknown = DiskError {
            kind: DiskErrorKind::Io,
            errno: 0,
        };
        let (offset, error) = r.read_error.clone().unwrap_or((at, unknown));
        Err(OpenError::Read { offset, error })
    }

    fn note_damage(&mut self, report: &OpenReport) {
        if report.damaged_blocks > 0 {
            self.probes.insert(Probe::DamagedPayload);
        }
        if report.damaged_records > 0 {
            self.probes.insert(Probe::DamagedHeader);
        }
    }

    /// A group has lost something, as its log shows. It stays suspended whatever is replayed after
    /// this, but for its end.
    fn lost(&mut self, id: GroupId) {
        self.suspend(&BTreeSet::from([id]));
        if let Some(r) = &mut self.recovery {
            r.lost.insert(id);
        }
    }

    /// The group's history begins or ends here: what was lost before is none of its business.
    fn forget_loss(&mut self, id: GroupId) {
        if let Some(r) = &mut self.recovery {
            r.lost.remove(&id);
        }
    }

    fn suspend(&mut self, doubted: &BTreeSet<GroupId>) {
        for id in doubted {
            if let Some(group) = self.groups.get_mut(id) {
                group.suspended = true;
                self.probes.insert(Probe::GroupSuspended);
            }
        }
    }

    fn replay_record(
        &mut self,
        found: &Found,
        doubted: &mut BTreeSet<GroupId>,
    ) -> Result<(), StoreError> {
        let h = &found.header;
        if h.flags & crate::format::record::FLAG_CLOSING != 0 {
            self.probes.insert(Probe::ClosingRecordRead);
        }
        self.segs.set_written(h.segment, h.slot + h.pages());
        let payload_slot = h.slot + u32::from(h.header_pages);
        for item in &found.items {
            if doubted.remove(&item.group) {
                let known = self.groups.get(&item.group).map_or(Seq(0), |g| g.last_seq);
                if item.group_prev_seq == known {
                    self.probes.insert(Probe::GroupCleared);
                } else {
                    self.lost(item.group);
                }
            }
            self.replay_item(item, h.seq, h.generation, payload_slot)?;
            if let Some(group) = self.groups.get_mut(&item.group) {
                group.last_seq = h.seq;
            }
        }
        Ok(())
    }

    fn replay_item(
        &mut self,
        item: &Item,
        seq: Seq,
        generation: u64,
        payload_slot: u32,
    ) -> Result<(), StoreError> {
        let id = item.group;
        match &item.body {
            ItemBody::GroupCreate(bytes) => {
                let meta = GroupMeta::decode(bytes)
                    .map_err(|e| StoreError::Invariant(format!("group {id}: {e}")))?;
                // A replica that left and came back, with its end in a record that was lost: the
                // old one is none of the new one's business.
                let old = self.groups.get(&id);
                if old.is_some_and(|g| g.meta.replica != meta.replica || g.ended) {
                    self.remove_group(id)?;
                    self.forget_loss(id);
                }
                let feed = self.feed_begins(&meta);
                self.groups.entry(id).or_insert_with(|| {
                    let mut group = Group::new(meta);
                    group.feed = feed;
                    group
                });
            }
            ItemBody::GroupDelete => {
                self.probes.insert(Probe::DeleteReplayed);
                self.forget_loss(id);
                self.end_group(id)?;
            }
            ItemBody::GroupClone { origin, entry } => self.replay_clone(id, *origin, *entry)?,
            ItemBody::Entry { payload_page, .. } => {
                let vaddr = VAddr::new(generation, payload_slot + payload_page);
                self.replay_entry(item, seq, vaddr)?;
            }
            ItemBody::AcceptLoss => {
                self.probes.insert(Probe::AcceptLossReplayed);
                self.accept_loss_now(id)?;
            }
            ItemBody::HardState(_) | ItemBody::Rename(_) | ItemBody::Resume => {
                let Some(group) = self.groups.get_mut(&id) else {
                    return Ok(());
                };
                match &item.body {
                    ItemBody::HardState(hs) => group.hard_state = *hs,
                    ItemBody::Rename(name) => {
                        group.meta.name = String::from_utf8_lossy(name).into_owned();
                    }
                    _ => group.suspended = false,
                }
            }
        }
        Ok(())
    }

    fn replay_entry(&mut self, item: &Item, seq: Seq, vaddr: VAddr) -> Result<(), StoreError> {
        let ItemBody::Entry {
            term,
            index,
            kind,
            payload_pages,
            data,
            ..
        } = &item.body
        else {
            return Ok(());
        };
        let Some(group) = self.groups.get_mut(&item.group) else {
            return Ok(());
        };
        let (operation, request) = LogEntry::decode(*kind, data)
            .map_err(|e| StoreError::Invariant(format!("entry {index}: {e}")))?;
        if index.0 > group.last_index().0 + 1 {
            self.lost(item.group);
        }
        let Some(group) = self.groups.get_mut(&item.group) else {
            return Ok(());
        };
        if *index <= group.last_index() {
            self.probes.insert(Probe::ConflictReplayed);
        }
        group.cut_from(*index, &mut self.segs)?;
        if *payload_pages > 0 && self.config.sabotage != Sabotage::LiveBitLate {
            self.segs
                .set_live(vaddr, u64::from(*payload_pages))
                .map_err(liveness)?;
        }
        self.probes.insert(Probe::UnappliedReplayed);
        // What checkpoints will write for it is counted by the one that ends the opening.
        group.push(LogEntry {
            term: *term,
            index: *index,
            kind: *kind,
            data: data.clone(),
            operation,
            request,
            payload_pages: *payload_pages,
            vaddr: if *payload_pages > 0 {
                vaddr
            } else {
                VAddr::NONE
            },
            seq,
            memory: None,
            live: self.config.sabotage != Sabotage::LiveBitLate,
        });
        Ok(())
    }
}
