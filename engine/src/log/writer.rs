//! The log's writing end: natural batching, a few records in flight, one sync at a time.

use crate::format::codec::Writer;
use crate::format::record::{
    header_pages_for, Item, ItemBody, RecordHeader, HEAD_BYTES, ITEMS_BYTES_MAX, PAYLOAD_PAGES_MAX,
};
use crate::format::superblock::LogStart;
use crate::format::PAGE;
use bytes::Bytes;
use esker_base::{AlignedBuf, GroupId, Moment, RaftIndex, Seq, Term};
use std::collections::VecDeque;

/// Whom to tell when a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notify {
    /// An append.
    Append { group: GroupId, ticket: u64 },
    /// A catalog operation: done only when a checkpoint holds it. Were its record alone to say it,
    /// damage to that record would take a whole volume away, or bring one back, without a trace.
    Catalog { token: u64 },
    /// An accepted loss: done when its record is durable. Were that lost, the group would be
    /// suspended again and nothing else.
    AcceptedLoss { token: u64 },
}

/// An item that waits for its record.
#[derive(Debug)]
pub(crate) struct PendingItem {
    pub item: Item,
    pub payload: Vec<Bytes>,
    pub payload_pages: u32,
    /// Map nodes that applying it can make a checkpoint write.
    pub nodes: u64,
    /// Several when items before it were taken back.
    pub notify: Vec<Notify>,
    pub urgent: bool,
}

/// What of the waiting items goes into the next record.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Batch {
    pub count: usize,
    pub items_bytes: usize,
    pub payload_pages: u32,
    /// Map nodes that applying them can make a checkpoint write.
    pub nodes: u64,
}

/// An entry that is in a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub group: GroupId,
    pub index: RaftIndex,
    pub term: Term,
    /// Slot of its payload in the segment.
    pub slot: u32,
    pub payload_pages: u32,
}

/// A record between being built and being durable.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub seq: Seq,
    pub written: bool,
    pub urgent: bool,
    pub bytes: u64,
    pub entries: Vec<Placed>,
    pub notify: Vec<Notify>,
    /// When it was written.
    pub since: Moment,
}

/// A record ready to be written.
#[derive(Debug)]
pub(crate) struct Built {
    pub seq: Seq,
    pub segment: u32,
    pub slot: u32,
    pub generation: u64,
    pub pages: u32,
    pub bufs: Vec<Bytes>,
    pub entries: Vec<Placed>,
}

/// The writing end.
#[derive(Debug, Default)]
pub(crate) struct LogWriter {
    /// Where the next record goes.
    pub position: LogStart,
    /// Waiting for a record.
    pub pending: VecDeque<PendingItem>,
    /// Being written, by seq.
    pub in_flight: VecDeque<InFlight>,
    /// Written, not durable, by seq.
    pub unsynced: VecDeque<InFlight>,
    /// Everything up to this seq is written.
    pub written: Seq,
    /// Everything up to this seq is durable.
    pub durable: Seq,
    /// Bytes of records since the last checkpoint began.
    pub bytes_since_checkpoint: u64,
    /// Bytes of items since then.
    pub items_since_checkpoint: u64,
    /// Records since then.
    pub records_since_checkpoint: u64,
    /// What they say: entries and all else.
    pub count_since_checkpoint: u64,
    /// The last record was a closing one.
    pub closed: bool,
    /// When the log last became durable, for the closing record.
    pub quiet_since: Moment,
}

impl LogWriter {
    /// What of the waiting items goes into one record, at most `count_max`; one item always does. A record takes at most
    /// a quarter of a segment's `slots` for payload and an eighth for its header, so that a segment
    /// holds several: each names the next segment, and a single damaged header cannot hide it.
    pub fn next_batch(&self, slots: usize, count_max: usize) -> Batch {
        let payload_max = slots / 4;
        let items_max = (slots / 8 * PAGE).saturating_sub(HEAD_BYTES);
        let mut batch = Batch::default();
        for p in self.pending.iter().take(count_max.max(1)) {
            let bytes = batch.items_bytes + p.item.encoded_len();
            let total = batch.payload_pages + p.payload_pages;
            let fits = bytes <= ITEMS_BYTES_MAX.min(items_max)
                && total as usize <= payload_max.clamp(1, PAYLOAD_PAGES_MAX);
            if !fits && batch.count > 0 {
                break;
            }
            batch = Batch {
                count: batch.count + 1,
                items_bytes: bytes,
                payload_pages: total,
                nodes: batch.nodes + p.nodes,
            };
        }
        batch
    }

    /// Builds the record of the first `count` waiting items at the current position.
    /// `prev_seq_of` gives, and then becomes, the last record of each group.
    pub fn build(
        &mut self,
        count: usize,
        items_bytes: usize,
        mut header: RecordHeader,
        mut prev_seq_of: impl FnMut(GroupId, Seq) -> Seq,
    ) -> Built {
        let seq = self.position.seq;
        let header_pages = header_pages_for(items_bytes);
        let mut w = Writer {
            bytes: Vec::with_capacity(items_bytes),
        };
        let mut record = InFlight {
            seq,
            written: false,
            urgent: false,
            bytes: 0,
            entries: Vec::new(),
            notify: Vec::new(),
            since: Moment(0),
        };
        let mut payload = Vec::new();
        let mut page = 0u32;
        let header_pages_u32 = u32::try_from(header_pages).unwrap_or(u32::MAX);
        for mut p in self.pending.drain(..count) {
            p.item.group_prev_seq = prev_seq_of(p.item.group, seq);
            if let ItemBody::Entry {
                payload_page,
                term,
                index,
                ..
            } = &mut p.item.body
            {
                *payload_page = page;
                record.entries.push(Placed {
                    group: p.item.group,
                    index: *index,
                    term: *term,
                    slot: self.position.slot + header_pages_u32 + page,
                    payload_pages: p.payload_pages,
                });
                page += p.payload_pages;
            }
            p.item.encode(&mut w);
            payload.append(&mut p.payload);
            record.notify.extend(p.notify);
            record.urgent |= p.urgent;
        }
        header.header_pages = u16::try_from(header_pages).unwrap_or(u16::MAX);
        header.payload_pages = page;
        header.generation = self.position.generation;
        header.segment = self.position.segment;
        header.slot = self.position.slot;
        header.seq = seq;
        header.prev_hash = self.position.prev_hash;
        header.durable_seq = self.durable;
        header.next_segment = self.position.next_segment;
        header.next_generation = self.position.next_generation;
        let (bytes, hash) = header.encode(u32::try_from(count).unwrap_or(u32::MAX), &w.bytes);
        let mut bufs = vec![AlignedBuf::copy_of(&bytes).freeze()];
        bufs.append(&mut payload);
        record.bytes = crate::format::record::pages_bytes(header.pages());
        let built = Built {
            seq,
            segment: self.position.segment,
            slot: self.position.slot,
            generation: self.position.generation,
            pages: header.pages(),
            bufs,
            entries: record.entries.clone(),
        };
        self.bytes_since_checkpoint += record.bytes;
        self.items_since_checkpoint += esker_base::num::to_u64(items_bytes);
        self.records_since_checkpoint += 1;
        self.count_since_checkpoint += esker_base::num::to_u64(count);
        self.closed = header.flags & crate::format::record::FLAG_CLOSING != 0;
        self.position.slot += header.pages();
        self.position.seq = Seq(seq.0 + 1);
        self.position.prev_hash = hash;
        self.in_flight.push_back(record);
        built
    }

    /// A record's write ended. Returns the records that are now written in order.
    pub fn record_written(&mut self, seq: Seq, now: Moment) -> usize {
        if let Some(record) = self.in_flight.iter_mut().find(|r| r.seq == seq) {
            record.written = true;
        }
        let mut moved = 0;
        while self.in_flight.front().is_some_and(|r| r.written) {
            let Some(mut record) = self.in_flight.pop_front() else {
                break;
            };
            self.written = record.seq;
            record.since = now;
            self.unsynced.push_back(record);
            moved += 1;
        }
        moved
    }

    /// Takes back the waiting entries of a group from `index` on: another leader's take their
    /// place. Who waits for them is told with the group's next item; what is left over, because
    /// none waits, is returned for the item that comes.
    pub fn take_back(&mut self, group: GroupId, index: RaftIndex) -> Vec<Notify> {
        let cut = |p: &PendingItem| {
            let ItemBody::Entry { index: at, .. } = &p.item.body else {
                return false;
            };
            p.item.group == group && *at >= index
        };
        let mut orphans = Vec::new();
        if !self.pending.iter().any(cut) {
            return orphans;
        }
        for mut p in std::mem::take(&mut self.pending) {
            if cut(&p) {
                orphans.append(&mut p.notify);
                continue;
            }
            if p.item.group == group && !orphans.is_empty() {
                orphans.append(&mut p.notify);
                p.notify = std::mem::take(&mut orphans);
                p.urgent = true;
            }
            self.pending.push_back(p);
        }
        orphans
    }

    /// Everything handed over so far is waited for.
    pub fn urge(&mut self) {
        if let Some(p) = self.pending.back_mut() {
            p.urgent = true;
        } else if let Some(r) = self.in_flight.back_mut() {
            r.urgent = true;
        } else if let Some(r) = self.unsynced.back_mut() {
            r.urgent = true;
        }
    }

    /// What is on the device is waited for; what is still on its way to it is not.
    pub fn urge_written(&mut self) {
        if let Some(r) = self.unsynced.back_mut() {
            r.urgent = true;
        }
    }

    /// Nothing is waiting, being written or unsynced.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_empty() && self.unsynced.is_empty()
    }

    /// Bytes written and not durable.
    pub fn unsynced_bytes(&self) -> u64 {
        self.unsynced.iter().map(|r| r.bytes).sum()
    }
}
