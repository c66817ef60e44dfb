//! What a replica that lags and its leader say to each other: the header of a frame of
//! [`crate::FrameKind::CatchUp`], a CRC-32 and a protobuf message like a door's. A part of a manifest, or blocks
//! as they are stored, follow beside it; the note holds their CRC-32.

use crate::envelope;
use bytes::Bytes;
use prost::Message;

/// To a replica: the log that is left does not reach back to it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Behind {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
}

/// To a replica that speaks for a group: it is not a member of it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Outsider {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
    /// The replica.
    #[prost(fixed64, tag = "2")]
    pub replica: u64,
    /// The index that the sender has applied.
    #[prost(uint64, tag = "3")]
    pub applied: u64,
}

/// What a [`Fetch`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum FetchKind {
    /// Nothing: of a newer version.
    Unknown = 0,
    /// A part of the manifest.
    Manifest = 1,
    /// What a snapshot has above a stamp.
    Blocks = 2,
}

/// To the leader: something of a volume.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Fetch {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
    /// Comes back in the answer.
    #[prost(fixed64, tag = "2")]
    pub number: u64,
    /// What is asked for.
    #[prost(enumeration = "FetchKind", tag = "3")]
    pub kind: i32,
    /// Stamp that names the manifest; 0 for a fresh one.
    #[prost(uint64, tag = "4")]
    pub pin: u64,
    /// First byte of the manifest, or first block.
    #[prost(uint64, tag = "5")]
    pub from: u64,
    /// With [`FetchKind::Blocks`]: the block before which it ends.
    #[prost(uint64, tag = "6")]
    pub until: u64,
    /// With [`FetchKind::Blocks`]: stamp of the snapshot.
    #[prost(uint64, tag = "7")]
    pub cut: u64,
    /// With [`FetchKind::Blocks`]: what is not above this stamp is there already.
    #[prost(uint64, tag = "8")]
    pub floor: u64,
    /// With [`FetchKind::Blocks`]: most blocks of data that the answer may bring.
    #[prost(uint64, tag = "9")]
    pub blocks_max: u64,
    /// With [`FetchKind::Manifest`]: the index that this replica has applied; an older manifest is of no use.
    #[prost(uint64, tag = "10")]
    pub applied: u64,
}

/// How a [`Fetch`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum PartKind {
    /// Nothing: of a newer version.
    Unknown = 0,
    /// It is beside the header.
    Here = 1,
    /// Not here and now: ask again.
    Later = 2,
    /// It does not exist any more: begin with a fresh manifest.
    Gone = 3,
}

/// The answer to a [`Fetch`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Part {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
    /// Which fetch.
    #[prost(fixed64, tag = "2")]
    pub number: u64,
    /// How it ended.
    #[prost(enumeration = "PartKind", tag = "3")]
    pub kind: i32,
    /// Stamp that names the manifest.
    #[prost(uint64, tag = "4")]
    pub pin: u64,
    /// Bytes of the whole manifest; or the block before which everything is told.
    #[prost(uint64, tag = "5")]
    pub through: u64,
    /// An entry for the feed that brings the blocks; empty when there are none.
    #[prost(bytes = "bytes", tag = "6")]
    pub entry: Bytes,
    /// CRC-32 of the payload.
    #[prost(fixed32, tag = "7")]
    pub crc: u32,
}

/// A replica's question for a block that is damaged there, to any other replica.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Want {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
    /// Which block.
    #[prost(uint64, tag = "2")]
    pub lba: u64,
    /// Of an entry that is not applied, if there is one.
    #[prost(bool, tag = "3")]
    pub latest: bool,
    /// Of the snapshot with this cut, in place of the head.
    #[prost(uint64, optional, tag = "4")]
    pub at: Option<u64>,
}

/// How a [`Want`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum CopyKind {
    /// Nothing: of a newer version.
    Unknown = 0,
    /// It is beside the header, as stored.
    Here = 1,
    /// Not here and now.
    Later = 2,
    /// It is damaged here, too.
    Damaged = 3,
}

/// The answer to a [`Want`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Copy {
    /// The group.
    #[prost(fixed64, tag = "1")]
    pub group: u64,
    /// Which block, as it was asked for.
    #[prost(uint64, tag = "2")]
    pub lba: u64,
    /// The same.
    #[prost(bool, tag = "3")]
    pub latest: bool,
    /// The same.
    #[prost(uint64, optional, tag = "4")]
    pub at: Option<u64>,
    /// How it ended.
    #[prost(enumeration = "CopyKind", tag = "5")]
    pub kind: i32,
    /// The stamp of what is stored.
    #[prost(uint64, tag = "6")]
    pub stamp: u64,
    /// Its tag; zeros for a plain block.
    #[prost(bytes = "bytes", tag = "7")]
    pub tag: Bytes,
    /// CRC-32 of the payload.
    #[prost(fixed32, tag = "8")]
    pub crc: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Envelope {
    #[prost(oneof = "Note", tags = "1, 2, 3, 4, 5, 6")]
    note: Option<Note>,
}

/// One of the six.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum Note {
    /// From a leader.
    #[prost(message, tag = "1")]
    Behind(Behind),
    /// To it.
    #[prost(message, tag = "2")]
    Fetch(Fetch),
    /// And back.
    #[prost(message, tag = "3")]
    Part(Part),
    /// From any member.
    #[prost(message, tag = "4")]
    Outsider(Outsider),
    /// From any member to any other.
    #[prost(message, tag = "5")]
    Want(Want),
    /// And back.
    #[prost(message, tag = "6")]
    Copy(Copy),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_and_one_flipped_bit_does_not() {
        let note = Note::Part(Part {
            group: 7,
            number: u64::MAX,
            kind: PartKind::Here.into(),
            pin: 3,
            through: 5,
            entry: Bytes::from_static(b"entry"),
            crc: 9,
        });
        comes_back(note);
        comes_back(Note::Want(Want {
            group: 7,
            lba: 1 << 33,
            latest: true,
            at: Some(9),
        }));
        comes_back(Note::Copy(Copy {
            group: 7,
            lba: 1 << 33,
            latest: false,
            at: None,
            kind: CopyKind::Here.into(),
            stamp: u64::MAX,
            tag: Bytes::from_static(&[3; 12]),
            crc: 11,
        }));
    }

    fn comes_back(note: Note) {
        let header = note.clone().pack();
        assert_eq!(Note::unpack(&header), Ok(note));
        for bit in 0..header.len() * 8 {
            let mut bad = header.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Note::unpack(&bad).is_err(), "bit {bit}");
        }
    }
}
