//! The header of a peer frame. Payload bytes follow it on the wire, in the order of its list.
//!
//! ```text
//! offset  bytes  field (integers little-endian)
//!      0      1  version, 1
//!      1      1  QoS class
//!      2      2  reserved, zero
//!      4      4  CRC-32 of the whole header with this field zero
//!      8      4  operation version (gated by the oldest node of the cluster)
//!     12      4  M, length of the Raft message
//!     16      4  P, number of payloads
//!     20      4  reserved, zero
//!     24      8  group id
//!     32      8  sender's replica id
//!     40      8  receiver's replica id
//!     48      8  request id
//!     56     16  trace id
//!     72     16  P  payload list: raft index (8), length (4, not zero), CRC-32 (4)
//!   72+16P    M  Raft message (eraftpb.Message), opaque to everything but raft-rs
//! ```
//!
//! QoS class, operation version, request id and trace id are reserved: written as zero today and
//! not interpreted.

use crate::error::GroupError;
use bytes::{BufMut, Bytes, BytesMut};
use esker_base::checksum::crc32_of;
use esker_base::num::to_u64;
use esker_base::{GroupId, RaftIndex, ReplicaId};

/// The version of the frame header this build writes and reads.
pub const FRAME_VERSION: u8 = 1;
/// Length of the fixed part of a header, in bytes.
pub const FRAME_FIXED_BYTES: usize = 72;
/// Longest header, in bytes; longer ones are refused before anything is allocated.
pub const FRAME_HEADER_BYTES_MAX: usize = 16 << 20;
/// Most payloads in one frame.
pub const FRAME_PAYLOADS_MAX: usize = 65_536;

const PAYLOAD_REF_BYTES: usize = 16;
const CHECKSUM_AT: std::ops::Range<usize> = 4..8;

/// One payload that follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadRef {
    /// The entry it belongs to.
    pub index: RaftIndex,
    /// Its length in bytes; not 0.
    pub length: u32,
    /// CRC-32 of its bytes: the header's own checksum does not cover them.
    pub crc: u32,
}

/// A decoded header: enough to route it and to read its payloads into buffers of the right sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The group it is for.
    pub group: GroupId,
    /// The sender.
    pub from: ReplicaId,
    /// The receiver.
    pub to: ReplicaId,
    /// Reserved: quality-of-service class.
    pub qos_class: u8,
    /// Reserved: version of the operations in it.
    pub operation_version: u32,
    /// Reserved: the client's request.
    pub request_id: u64,
    /// Reserved: the trace it belongs to.
    pub trace_id: u128,
    /// The payloads that follow, in order.
    pub payloads: Vec<PayloadRef>,
    /// The Raft message, opaque.
    pub message: &'a [u8],
}

impl Frame<'_> {
    /// Bytes of payload that follow the header.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payloads
            .iter()
            .map(|payload| u64::from(payload.length))
            .sum()
    }

    /// The header's bytes, or `None` when a part of it exceeds its maximum.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        let length =
            FRAME_FIXED_BYTES + PAYLOAD_REF_BYTES * self.payloads.len() + self.message.len();
        if length > FRAME_HEADER_BYTES_MAX || self.payloads.len() > FRAME_PAYLOADS_MAX {
            return None;
        }
        let mut out = BytesMut::with_capacity(length);
        out.put_u8(FRAME_VERSION);
        out.put_u8(self.qos_class);
        out.put_u16_le(0);
        out.put_u32_le(0);
        out.put_u32_le(self.operation_version);
        out.put_u32_le(u32::try_from(self.message.len()).ok()?);
        out.put_u32_le(u32::try_from(self.payloads.len()).ok()?);
        out.put_u32_le(0);
        out.put_u64_le(self.group.0);
        out.put_u64_le(self.from.0);
        out.put_u64_le(self.to.0);
        out.put_u64_le(self.request_id);
        out.put_u128_le(self.trace_id);
        for payload in &self.payloads {
            out.put_u64_le(payload.index.0);
            out.put_u32_le(payload.length);
            out.put_u32_le(payload.crc);
        }
        out.put_slice(self.message);
        let checksum = esker_base::checksum::crc32(&out);
        out[CHECKSUM_AT].copy_from_slice(&checksum.to_le_bytes());
        Some(out.freeze())
    }
}

/// Reads integers off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], GroupError> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(GroupError::Malformed("header too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, GroupError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GroupError> {
        self.take().map(u64::from_le_bytes)
    }
}

/// Decodes a frame header. The Raft message in it is checked by `Group::receive`.
///
/// # Errors
/// [`GroupError::Malformed`] for anything but a well-formed header of version 1.
pub fn decode_frame_header(header: &[u8]) -> Result<Frame<'_>, GroupError> {
    if header.len() > FRAME_HEADER_BYTES_MAX {
        return Err(GroupError::Malformed("header too long"));
    }
    let mut reader = Reader(header);
    let [version, qos_class] = reader.take()?;
    if version != FRAME_VERSION {
        return Err(GroupError::Malformed("unknown frame version"));
    }
    let reserved: [u8; 2] = reader.take()?;
    let checksum = reader.u32()?;
    let operation_version = reader.u32()?;
    let message_length = reader.u32()?;
    let payload_count = reader.u32()?;
    let reserved_too = reader.u32()?;
    let (group, from, to) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let request_id = reader.u64()?;
    let trace_id = reader.take().map(u128::from_le_bytes)?;
    let expected = to_u64(FRAME_FIXED_BYTES)
        + to_u64(PAYLOAD_REF_BYTES) * u64::from(payload_count)
        + u64::from(message_length);
    if expected != to_u64(header.len()) {
        return Err(GroupError::Malformed("header length"));
    }
    let (Some(before), Some(after)) = (
        header.get(..CHECKSUM_AT.start),
        header.get(CHECKSUM_AT.end..),
    ) else {
        return Err(GroupError::Malformed("header too short"));
    };
    if crc32_of(&[before, &[0; 4], after]) != checksum {
        return Err(GroupError::Malformed("header checksum"));
    }
    if reserved != [0; 2] || reserved_too != 0 {
        return Err(GroupError::Malformed("reserved bytes"));
    }
    let payload_count = usize::try_from(payload_count).unwrap_or(usize::MAX);
    if payload_count > FRAME_PAYLOADS_MAX {
        return Err(GroupError::Malformed("too many payloads"));
    }
    let mut payloads = Vec::with_capacity(payload_count);
    for _ in 0..payload_count {
        let (index, length, crc) = (RaftIndex(reader.u64()?), reader.u32()?, reader.u32()?);
        if length == 0 {
            return Err(GroupError::Malformed("payload list"));
        }
        payloads.push(PayloadRef { index, length, crc });
    }
    Ok(Frame {
        group: GroupId(group),
        from: ReplicaId(from),
        to: ReplicaId(to),
        qos_class,
        operation_version,
        request_id,
        trace_id,
        payloads,
        message: reader.0,
    })
}

/// CRC-32 of a payload in pieces.
pub(crate) fn payload_crc(pieces: &[Bytes]) -> u32 {
    let parts: Vec<&[u8]> = pieces.iter().map(AsRef::as_ref).collect();
    crc32_of(&parts)
}

/// Cuts `pieces` (however they are chunked) into the payloads that `refs` announces, without
/// copying, and checks each: what is stored here will be acknowledged, so bytes that changed on the
/// way must not be.
pub(crate) fn split_payloads(
    refs: &[PayloadRef],
    pieces: Vec<Bytes>,
) -> Result<Vec<Vec<Bytes>>, GroupError> {
    let mut pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
    let mut rest = Bytes::new();
    let mut payloads = Vec::with_capacity(refs.len());
    for payload in refs {
        let mut missing = usize::try_from(payload.length).unwrap_or(usize::MAX);
        let mut parts = Vec::new();
        while missing > 0 {
            if rest.is_empty() {
                rest = pieces.next().ok_or(GroupError::Payload(payload.index))?;
            }
            let part = rest.split_to(missing.min(rest.len()));
            missing -= part.len();
            parts.push(part);
        }
        if payload_crc(&parts) != payload.crc {
            return Err(GroupError::Payload(payload.index));
        }
        payloads.push(parts);
    }
    if !rest.is_empty() || pieces.next().is_some() {
        let index = refs.last().map_or(RaftIndex(0), |payload| payload.index);
        return Err(GroupError::Payload(index));
    }
    Ok(payloads)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of both payloads of [`frame`].
    fn all() -> Vec<u8> {
        (0..4097u32)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect()
    }

    fn frame() -> Frame<'static> {
        Frame {
            group: GroupId(7),
            from: ReplicaId(1),
            to: ReplicaId(2),
            qos_class: 3,
            operation_version: 4,
            request_id: 5,
            trace_id: 6,
            payloads: vec![
                PayloadRef {
                    index: RaftIndex(10),
                    length: 4096,
                    crc: crc32_of(&[&all()[..4096]]),
                },
                PayloadRef {
                    index: RaftIndex(12),
                    length: 1,
                    crc: crc32_of(&[&all()[4096..]]),
                },
            ],
            message: b"opaque",
        }
    }

    #[test]
    fn a_header_comes_back_and_every_damaged_or_cut_one_is_an_error() {
        let header = frame().encode().unwrap();
        assert_eq!(decode_frame_header(&header), Ok(frame()));
        assert_eq!(frame().payload_bytes(), 4097);
        for cut in 0..header.len() {
            assert!(decode_frame_header(&header[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..header.len() {
            for bit in 0..8 {
                let mut damaged = header.to_vec();
                damaged[at] ^= 1 << bit;
                assert!(
                    decode_frame_header(&damaged).is_err(),
                    "bit {bit} of byte {at}"
                );
            }
        }
    }

    #[test]
    fn the_layout_is_fixed() {
        let header = frame().encode().unwrap();
        assert_eq!(header.len(), 72 + 2 * 16 + 6);
        assert_eq!(header[..4], [1, 3, 0, 0]);
        assert_eq!(
            header[8..24],
            [4, 0, 0, 0, 6, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(header[24..32], 7u64.to_le_bytes());
        assert_eq!(header[72..84], [10, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(header[84..88], crc32_of(&[&all()[..4096]]).to_le_bytes());
        assert_eq!(header[104..], *b"opaque");
    }

    #[test]
    fn payloads_are_cut_wherever_the_pieces_end() {
        let all = all();
        for chunk in [1, 7, 4096, 5000] {
            let pieces = all.chunks(chunk).map(Bytes::copy_from_slice).collect();
            let payloads = split_payloads(&frame().payloads, pieces).unwrap();
            assert_eq!(payloads[0].concat(), all[..4096]);
            assert_eq!(payloads[1].concat(), all[4096..]);
        }
        let short = vec![Bytes::copy_from_slice(&all[..4096])];
        assert_eq!(
            split_payloads(&frame().payloads, short),
            Err(GroupError::Payload(RaftIndex(12)))
        );
        let mut flipped = all.clone();
        flipped[4000] ^= 1;
        assert_eq!(
            split_payloads(&frame().payloads, vec![Bytes::from(flipped)]),
            Err(GroupError::Payload(RaftIndex(10))),
            "a bit that changed on the way is noticed"
        );
        let long = vec![Bytes::copy_from_slice(&all), Bytes::from_static(b"x")];
        assert!(split_payloads(&frame().payloads, long).is_err());
    }
}
