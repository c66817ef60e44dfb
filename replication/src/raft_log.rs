//! The in-memory mirror of a group's retained log: descriptors only.
//!
//! The durable home of the log is the store. raft-rs reads entries it has handed out (durable or
//! not yet) from here.

use crate::types::payload_length;
use esker_base::num::{to_u64, to_usize};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

/// Retained entries and what precedes them.
pub(crate) struct RaftLog {
    initial_hard_state: HardState,
    initial_conf_state: ConfState,
    /// The last entry that was cut; (0, 0) when none was.
    truncated: (u64, u64),
    entries: VecDeque<Entry>,
    payload_bytes_per_message_max: u64,
    /// Peers raft-rs wanted to send a snapshot to: they lie behind the truncated log. The trait
    /// hands out `&self`, hence the cell.
    behind: RefCell<BTreeSet<u64>>,
}

impl RaftLog {
    /// `entries` must follow `truncated` without a gap (validated by `recovery`).
    pub(crate) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        truncated: (u64, u64),
        entries: VecDeque<Entry>,
        payload_bytes_per_message_max: u64,
    ) -> Self {
        Self {
            initial_hard_state: hard_state,
            initial_conf_state: conf_state,
            truncated,
            entries,
            payload_bytes_per_message_max,
            behind: RefCell::new(BTreeSet::new()),
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.truncated.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.truncated.0 + to_u64(self.entries.len())
    }

    /// The entry at `index`, if it is retained.
    pub(crate) fn get(&self, index: u64) -> Option<&Entry> {
        self.entries.get(to_usize(index.checked_sub(self.first())?))
    }

    /// Appends entries, replacing any suffix from the first one's index on.
    ///
    /// # Panics
    /// When they would leave a gap or reach into the truncated part: raft-rs never does that.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(start) = entries.first().map(|entry| entry.index) else {
            return;
        };
        assert!(
            start >= self.first() && start <= self.last() + 1,
            "append at {start} to a log of [{}, {}]",
            self.first(),
            self.last()
        );
        self.entries.truncate(to_usize(start - self.first()));
        self.entries.extend(entries.iter().cloned());
    }

    /// Cuts everything up to and including `index`, which must not lie beyond the last entry.
    pub(crate) fn truncate(&mut self, index: u64) {
        while self.truncated.0 < index {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.truncated = (entry.index, entry.term);
        }
    }

    /// Peers found behind the truncated log since the last call, in order.
    pub(crate) fn take_behind(&mut self) -> BTreeSet<u64> {
        std::mem::take(self.behind.get_mut())
    }
}

impl Storage for RaftLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState {
            hard_state: self.initial_hard_state.clone(),
            conf_state: self.initial_conf_state.clone(),
        })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 || low > high {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let range = to_usize(low - self.first())..to_usize(high - self.first());
        let max_size = max_size.into().unwrap_or(u64::MAX);
        // Only reads that fill a message for a peer may be asynchronous: those carry payloads.
        let payload_max = if context.can_async() {
            self.payload_bytes_per_message_max
        } else {
            u64::MAX
        };
        let (mut size, mut payload, mut taken) = (0u64, 0u64, Vec::new());
        for entry in self.entries.range(range) {
            size = size.saturating_add(to_u64(prost::Message::encoded_len(entry)));
            payload = payload.saturating_add(u64::from(payload_length(entry).unwrap_or(0)));
            if !taken.is_empty() && (size > max_size || payload > payload_max) {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.get(index)
            .map(|entry| entry.term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // Esker has no Raft snapshots: catch-up by versions takes their place. "Temporarily
        // unavailable" is the one answer that raft-rs neither panics over nor sends.
        self.behind.borrow_mut().insert(to);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, payload: u32) -> Entry {
        Entry {
            index,
            term,
            context: crate::types::payload_context(payload),
            ..Entry::default()
        }
    }

    fn log() -> RaftLog {
        let entries = (6..=9).map(|i| entry(i, 2, 4096)).collect();
        RaftLog::new(
            HardState::default(),
            ConfState::default(),
            (5, 1),
            entries,
            8192,
        )
    }

    #[test]
    fn append_replaces_the_suffix_and_truncate_keeps_the_term() {
        let mut log = log();
        log.append(&[entry(8, 3, 0)]);
        assert_eq!((log.first(), log.last(), log.term(8)), (6, 8, Ok(3)));
        log.truncate(7);
        assert_eq!((log.first(), log.term(7)), (8, Ok(2)));
        assert!(log.term(6).is_err() && log.get(7).is_none() && log.get(9).is_none());
        log.truncate(100);
        assert_eq!((log.first(), log.last(), log.term(8)), (9, 8, Ok(3)));
    }

    #[test]
    fn entries_honours_limits_and_bounds() {
        let log = log();
        let all = log.entries(6, 10, None, GetEntriesContext::empty(false));
        assert_eq!(all.map(|e| e.len()), Ok(4));
        let for_peer = log.entries(6, 10, None, GetEntriesContext::empty(true));
        assert_eq!(
            for_peer.map(|e| e.len()),
            Ok(2),
            "two payloads of 4096 fill a message"
        );
        let one = log.entries(6, 10, 0, GetEntriesContext::empty(false));
        assert_eq!(
            one.map(|e| e.len()),
            Ok(1),
            "one entry is always let through"
        );
        assert!(log
            .entries(5, 7, None, GetEntriesContext::empty(false))
            .is_err());
        assert!(log
            .entries(6, 11, None, GetEntriesContext::empty(false))
            .is_err());
    }
}
