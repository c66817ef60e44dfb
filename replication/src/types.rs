//! Log entries and hard state in this crate's own words, and their conversion to raft-rs's.

use bytes::Bytes;
use esker_base::{RaftIndex, ReplicaId, Term};
use raft::eraftpb;

/// What an entry is. The numbers are stable: they are written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A descriptor of the caller's. Empty data marks the entry a new leader opens its term with.
    Normal = 1,
    /// A membership change in raft-rs's first format. Never proposed here, accepted from peers.
    ConfChange = 2,
    /// A membership change (joint consensus).
    ConfChangeV2 = 3,
}

impl EntryKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Normal),
            2 => Some(Self::ConfChange),
            3 => Some(Self::ConfChangeV2),
            _ => None,
        }
    }

    /// The stable number of this kind.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Normal => 1,
            Self::ConfChange => 2,
            Self::ConfChangeV2 => 3,
        }
    }

    pub(crate) fn from_raft(number: i32) -> Option<Self> {
        // Not `get_entry_type`: raft-proto's accessor panics on a number it does not know.
        match eraftpb::EntryType::from_i32(number)? {
            eraftpb::EntryType::EntryNormal => Some(Self::Normal),
            eraftpb::EntryType::EntryConfChange => Some(Self::ConfChange),
            eraftpb::EntryType::EntryConfChangeV2 => Some(Self::ConfChangeV2),
        }
    }

    fn to_raft(self) -> eraftpb::EntryType {
        match self {
            Self::Normal => eraftpb::EntryType::EntryNormal,
            Self::ConfChange => eraftpb::EntryType::EntryConfChange,
            Self::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
        }
    }
}

/// One entry of a group's Raft log, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The term of the leader that appended it.
    pub term: Term,
    /// Its position in the group's log.
    pub index: RaftIndex,
    /// What it is.
    pub kind: EntryKind,
    /// The descriptor, opaque to this crate.
    pub data: Bytes,
    /// Length of the payload that travels beside the entry, in bytes; 0 when there is none.
    pub payload_length: u32,
}

/// What Raft must not forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// The replica voted for in this term; 0 when none.
    pub vote: ReplicaId,
    /// A lower bound of the commit index.
    pub commit: RaftIndex,
}

impl HardState {
    pub(crate) fn from_raft(state: &eraftpb::HardState) -> Self {
        Self {
            term: Term(state.term),
            vote: ReplicaId(state.vote),
            commit: RaftIndex(state.commit),
        }
    }

    pub(crate) fn to_raft(self) -> eraftpb::HardState {
        eraftpb::HardState {
            term: self.term.0,
            vote: self.vote.0,
            commit: self.commit.0,
        }
    }
}

/// The payload length an entry's context carries, or `None` when the context is malformed.
pub(crate) fn payload_length(entry: &eraftpb::Entry) -> Option<u32> {
    match <[u8; 4]>::try_from(entry.context.as_slice()) {
        // Zero has one encoding, the empty context.
        Ok(bytes) => Some(u32::from_le_bytes(bytes)).filter(|length| *length != 0),
        Err(_) => entry.context.is_empty().then_some(0),
    }
}

/// The context that carries `length`.
pub(crate) fn payload_context(length: u32) -> Vec<u8> {
    if length == 0 {
        Vec::new()
    } else {
        length.to_le_bytes().to_vec()
    }
}

/// The entry in this crate's words, or `None` when its kind or context is malformed.
pub(crate) fn entry_from_raft(entry: eraftpb::Entry) -> Option<LogEntry> {
    Some(LogEntry {
        term: Term(entry.term),
        index: RaftIndex(entry.index),
        kind: EntryKind::from_raft(entry.entry_type)?,
        payload_length: payload_length(&entry)?,
        data: Bytes::from(entry.data),
    })
}

pub(crate) fn entry_to_raft(entry: &LogEntry) -> eraftpb::Entry {
    let mut raft_entry = eraftpb::Entry {
        term: entry.term.0,
        index: entry.index.0,
        data: entry.data.to_vec(),
        context: payload_context(entry.payload_length),
        ..eraftpb::Entry::default()
    };
    raft_entry.set_entry_type(entry.kind.to_raft());
    raft_entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_conversion() {
        for (kind, payload_length) in [
            (EntryKind::Normal, 0),
            (EntryKind::Normal, 4096),
            (EntryKind::ConfChangeV2, 0),
        ] {
            let entry = LogEntry {
                term: Term(3),
                index: RaftIndex(9),
                kind,
                data: Bytes::from_static(b"descriptor"),
                payload_length,
            };
            let raft_entry = entry_to_raft(&entry);
            assert_eq!(entry_from_raft(raft_entry), Some(entry));
            assert_eq!(EntryKind::from_number(kind.number()), Some(kind));
        }
    }

    #[test]
    fn a_malformed_context_is_refused() {
        let mut entry = eraftpb::Entry {
            context: vec![1, 2, 3],
            ..eraftpb::Entry::default()
        };
        assert_eq!(payload_length(&entry), None);
        entry.context = vec![0; 4];
        assert_eq!(payload_length(&entry), None, "zero has one encoding");
    }
}
