//! What a door and a leader say to each other: the header of a frame of [`crate::FrameKind::Door`].
//!
//! ```text
//! offset  bytes  field
//!      0      4  CRC-32 of the rest, little-endian
//!      4         a `Note`, protobuf
//! ```
//!
//! The payload of a write, or what a read found, follows beside it; the note holds its CRC-32.

use crate::envelope;
pub(crate) use crate::envelope::{crc_of, joined};
use bytes::Bytes;
use esker_base::num::{to_u64, to_usize};
use prost::Message;

/// What an [`Ask`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum AskKind {
    /// Nothing: of a newer version.
    Unknown = 0,
    /// Write the payload.
    Write = 1,
    /// Write zeros; room may be given back.
    Zeroes = 2,
    /// Write zeros; room is kept.
    ZeroesAllocated = 3,
    /// Forget what is there.
    Trim = 4,
    /// Read.
    Read = 5,
}

/// A client's request, to the leader of its volume's group.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Ask {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
    /// The term whose leader it is for. Another one carries nothing out: whatever was asked in an earlier
    /// term is in the log when that one serves, or never will be.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// The process that asks.
    #[prost(fixed64, tag = "3")]
    pub session: u64,
    /// Comes back in the answer.
    #[prost(uint64, tag = "4")]
    pub ask: u64,
    /// The request's number among those of the session that change the volume; the same whenever it is
    /// asked again. 0 for a read.
    #[prost(uint64, tag = "5")]
    pub sequence: u64,
    /// What is asked.
    #[prost(enumeration = "AskKind", tag = "6")]
    pub kind: i32,
    /// First byte in the volume.
    #[prost(uint64, tag = "7")]
    pub offset: u64,
    /// Bytes.
    #[prost(uint64, tag = "8")]
    pub length: u64,
    /// Of the snapshot with this cut, in place of the head.
    #[prost(uint64, optional, tag = "9")]
    pub at: Option<u64>,
    /// CRC-32 of the payload.
    #[prost(fixed32, tag = "10")]
    pub crc: u32,
    /// How many numbers right below `sequence` may be without an answer.
    #[prost(uint32, tag = "11")]
    pub behind: u32,
    /// The number of the attachment that its client's session belongs to.
    #[prost(uint64, tag = "12")]
    pub attachment: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum AnswerKind {
    /// Nothing: of a newer version.
    Unknown = 0,
    /// Done, and durable on a majority.
    Done = 1,
    /// Read.
    Data = 2,
    /// Not carried out here and now: ask again, whoever leads.
    Again = 3,
    /// The store is full.
    NoSpace = 4,
    /// An error, perhaps of a certain byte.
    Failed = 5,
}

/// The answer to an [`Ask`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Answer {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
    /// The process that asked.
    #[prost(fixed64, tag = "2")]
    pub session: u64,
    /// Which ask.
    #[prost(uint64, tag = "3")]
    pub ask: u64,
    /// How it ended.
    #[prost(enumeration = "AnswerKind", tag = "4")]
    pub kind: i32,
    /// With [`AnswerKind::Again`]: the term that the answering replica knows.
    #[prost(uint64, tag = "5")]
    pub term: u64,
    /// With [`AnswerKind::Again`]: that term's leader; 0 for none.
    #[prost(uint64, tag = "6")]
    pub leader: u64,
    /// With [`AnswerKind::Failed`]: where.
    #[prost(uint64, optional, tag = "7")]
    pub place: Option<u64>,
    /// With [`AnswerKind::Data`]: runs of bytes, in order: twice their length, and one more where they are
    /// zeros and not beside the header.
    #[prost(uint64, repeated, tag = "8")]
    pub runs: Vec<u64>,
    /// CRC-32 of the payload.
    #[prost(fixed32, tag = "9")]
    pub crc: u32,
}

/// What a frame's header holds.
#[derive(Clone, PartialEq, Eq, Message)]
struct Envelope {
    #[prost(oneof = "Note", tags = "1, 2")]
    note: Option<Note>,
}

/// One of the two.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum Note {
    /// From a door to a leader.
    #[prost(message, tag = "1")]
    Ask(Ask),
    /// And back.
    #[prost(message, tag = "2")]
    Answer(Answer),
}

impl Note {
    /// The header's bytes.
    pub fn pack(self) -> Bytes {
        envelope::pack(&Envelope { note: Some(self) })
    }

    /// Reads a header.
    ///
    /// # Errors
    /// Why it is none.
    pub fn unpack(header: &[u8]) -> Result<Self, &'static str> {
        let envelope: Envelope = envelope::unpack(header)?;
        envelope.note.ok_or("a note of a newer version")
    }
}

/// Runs and payload of what a read found.
pub(crate) fn runs_of(pieces: Vec<esker_nbd::ReadPiece>) -> (Vec<u64>, Vec<Bytes>) {
    let (mut runs, mut payloads) = (Vec::new(), Vec::new());
    for piece in pieces {
        match piece {
            esker_nbd::ReadPiece::Data(data) => {
                runs.push(to_u64(data.len()) << 1);
                payloads.push(data);
            }
            esker_nbd::ReadPiece::Zeros(bytes) => runs.push(bytes << 1 | 1),
        }
    }
    (runs, payloads)
}

/// What a read of `length` bytes found.
///
/// # Errors
/// When runs and payload are not of that length.
pub(crate) fn pieces_of(
    runs: &[u64],
    payload: &Bytes,
    length: u64,
) -> Result<Vec<esker_nbd::ReadPiece>, &'static str> {
    let (mut at, mut sum) = (0, 0u64);
    let mut pieces = Vec::with_capacity(runs.len());
    for run in runs {
        let bytes = run >> 1;
        sum = sum.checked_add(bytes).ok_or("runs too long")?;
        if sum > length {
            return Err("runs too long");
        }
        pieces.push(if run & 1 == 1 {
            esker_nbd::ReadPiece::Zeros(bytes)
        } else {
            let end = at + to_usize(bytes);
            if end > payload.len() {
                return Err("payload too short");
            }
            let data = payload.slice(at..end);
            at = end;
            esker_nbd::ReadPiece::Data(data)
        });
    }
    match sum == length && at == payload.len() {
        true => Ok(pieces),
        false => Err("runs of another length"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_nbd::ReadPiece;

    #[test]
    fn notes_come_back_and_one_flipped_bit_does_not() {
        let note = Note::Ask(Ask {
            group: 7,
            term: 3,
            session: u64::MAX,
            ask: 9,
            sequence: 12,
            kind: AskKind::Write.into(),
            offset: 4096,
            length: 8192,
            at: None,
            crc: 5,
            behind: 1,
            attachment: 6,
        });
        let header = note.clone().pack();
        assert_eq!(Note::unpack(&header), Ok(note));
        for bit in 0..header.len() * 8 {
            let mut bad = header.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Note::unpack(&bad).is_err(), "bit {bit}");
        }
        assert!(Note::unpack(&[]).is_err());
    }

    #[test]
    fn what_was_read_comes_back_or_is_refused() {
        let data = |n: usize| Bytes::from(vec![u8::try_from(n % 251).unwrap_or(0); n]);
        let pieces = vec![
            ReadPiece::Data(data(100)),
            ReadPiece::Zeros(4096),
            ReadPiece::Data(data(3)),
        ];
        let (runs, payloads) = runs_of(pieces.clone());
        let payload = joined(payloads);
        assert_eq!(pieces_of(&runs, &payload, 4199), Ok(pieces));
        assert!(pieces_of(&runs, &payload, 4200).is_err());
        assert!(pieces_of(&runs, &payload, 4198).is_err());
        assert!(pieces_of(&runs, &payload.slice(1..), 4199).is_err());
        assert!(pieces_of(&[u64::MAX, u64::MAX], &payload, 4199).is_err());
    }
}
