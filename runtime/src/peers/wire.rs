//! Bytes of a link between nodes: a fixed prelude, a header, a payload; see `docs/peers.md`.
//!
//! ```text
//! offset  bytes  field (integers little-endian)
//!      0      4  magic, "EsPL"
//!      4      1  version, 1
//!      5      1  kind: 1 hello, 2 group, 3 door, 4 catch-up
//!      6      2  reserved, zero
//!      8      2  sending store, an index in its node
//!     10      2  receiving store, an index in its node
//!     12      4  H, length of the header
//!     16      4  P, length of the payload
//!     20      4  CRC-32 of the header
//!     24      4  reserved, zero
//!     28      4  CRC-32 of bytes 0 to 27
//!     32      H  header
//!   32+H      P  payload
//! ```
//!
//! The payload has no checksum here: headers carry one for each of its parts.

use bytes::{BufMut, Bytes, BytesMut};
use esker_base::checksum::crc32;
use esker_base::num::{to_u32_saturating, to_usize};
use prost::Message;

/// The version of the wire format that this build speaks.
pub const WIRE_VERSION: u8 = 1;
/// Length of a prelude, in bytes.
pub const PRELUDE_BYTES: usize = 32;
/// Longest header of a frame, in bytes.
pub const PEER_HEADER_BYTES_MAX: usize = 16 << 20;
/// Longest payload of a frame, in bytes.
pub const PEER_PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Longest header of a hello, in bytes.
pub const HELLO_BYTES_MAX: usize = 1024;

const MAGIC: [u8; 4] = *b"EsPL";
const CHECKSUM_AT: usize = PRELUDE_BYTES - 4;

/// Why bytes are not those of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Something else speaks here.
    #[error("not a link between nodes")]
    Magic,
    /// Bytes have changed on their way.
    #[error("the checksum of a frame's {0} does not fit")]
    Checksum(&'static str),
    /// Of a later version.
    #[error("frames of version {0}; this build speaks version {WIRE_VERSION}")]
    Version(u8),
    /// No such kind.
    #[error("an unknown kind of frame: {0}")]
    Kind(u8),
    /// A field that has to be zero is not.
    #[error("a reserved field of a frame is not zero")]
    Reserved,
    /// More than a frame may have.
    #[error(
        "a frame of {header_bytes} bytes of header and {payload_bytes} of payload is too long"
    )]
    TooLong {
        /// Length of its header.
        header_bytes: u32,
        /// Length of its payload.
        payload_bytes: u32,
    },
    /// The first frame is the hello, and no other one is.
    #[error("a link begins with a hello and has no other one")]
    Order,
    /// The hello cannot be understood.
    #[error("the hello cannot be understood")]
    Hello,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireKind {
    /// Who sends; the first frame of a link.
    Hello,
    /// Of a Raft group.
    Group,
    /// Of a client's request on its way to the leader, or of the answer.
    Door,
    /// Of a replica that lags behind the retained log.
    CatchUp,
}

impl WireKind {
    fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Group => 2,
            Self::Door => 3,
            Self::CatchUp => 4,
        }
    }

    fn of(code: u8) -> Result<Self, WireError> {
        match code {
            1 => Ok(Self::Hello),
            2 => Ok(Self::Group),
            3 => Ok(Self::Door),
            4 => Ok(Self::CatchUp),
            other => Err(WireError::Kind(other)),
        }
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prelude {
    /// What it is.
    pub kind: WireKind,
    /// The sending store's index in its node.
    pub from_store: u16,
    /// The receiving store's index in its node.
    pub to_store: u16,
    /// Length of the header, in bytes.
    pub header_bytes: usize,
    /// Length of the payload, in bytes.
    pub payload_bytes: usize,
    /// CRC-32 of the header.
    pub header_crc: u32,
}

impl Prelude {
    /// Its bytes, or `None` when a length passes its maximum.
    #[must_use]
    pub fn encode(&self) -> Option<[u8; PRELUDE_BYTES]> {
        let header_bytes = u32::try_from(self.header_bytes).ok()?;
        let payload_bytes = u32::try_from(self.payload_bytes).ok()?;
        check_lengths(self.kind, header_bytes, payload_bytes).ok()?;
        let mut out = [0; PRELUDE_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = WIRE_VERSION;
        out[5] = self.kind.code();
        out[8..10].copy_from_slice(&self.from_store.to_le_bytes());
        out[10..12].copy_from_slice(&self.to_store.to_le_bytes());
        out[12..16].copy_from_slice(&header_bytes.to_le_bytes());
        out[16..20].copy_from_slice(&payload_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.header_crc.to_le_bytes());
        let checksum = crc32(&out[..CHECKSUM_AT]);
        out[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        Some(out)
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is not a prelude of this version, is damaged, or announces too much.
    pub fn decode(bytes: &[u8; PRELUDE_BYTES]) -> Result<Self, WireError> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        if crc32(&bytes[..CHECKSUM_AT]) != word(CHECKSUM_AT) {
            return Err(WireError::Checksum("prelude"));
        }
        if bytes[4] != WIRE_VERSION {
            return Err(WireError::Version(bytes[4]));
        }
        let kind = WireKind::of(bytes[5])?;
        if half(6) != 0 || word(24) != 0 {
            return Err(WireError::Reserved);
        }
        let (header_bytes, payload_bytes) = (word(12), word(16));
        check_lengths(kind, header_bytes, payload_bytes)?;
        Ok(Self {
            kind,
            from_store: half(8),
            to_store: half(10),
            header_bytes: to_usize(u64::from(header_bytes)),
            payload_bytes: to_usize(u64::from(payload_bytes)),
            header_crc: word(20),
        })
    }
}

fn check_lengths(kind: WireKind, header_bytes: u32, payload_bytes: u32) -> Result<(), WireError> {
    let (header_max, payload_max) = match kind {
        WireKind::Hello => (HELLO_BYTES_MAX, 0),
        WireKind::Group | WireKind::Door | WireKind::CatchUp => {
            (PEER_HEADER_BYTES_MAX, PEER_PAYLOAD_BYTES_MAX)
        }
    };
    let fits = header_bytes <= to_u32_saturating(header_max)
        && payload_bytes <= to_u32_saturating(payload_max);
    match fits {
        true => Ok(()),
        false => Err(WireError::TooLong {
            header_bytes,
            payload_bytes,
        }),
    }
}

/// Headers up to this size go into one piece with their prelude.
const JOINED_BYTES_MAX: usize = 4096;

/// A frame as pieces to send, in order, or `None` when it passes a maximum.
#[must_use]
pub fn frame(
    kind: WireKind,
    (from_store, to_store): (u16, u16),
    header: &Bytes,
    payloads: Vec<Bytes>,
) -> Option<Vec<Bytes>> {
    let prelude = Prelude {
        kind,
        from_store,
        to_store,
        header_bytes: header.len(),
        payload_bytes: payloads.iter().map(Bytes::len).sum(),
        header_crc: crc32(header),
    };
    let prelude = prelude.encode()?;
    let mut pieces = Vec::with_capacity(2 + payloads.len());
    if header.len() <= JOINED_BYTES_MAX {
        let mut joined = BytesMut::with_capacity(PRELUDE_BYTES + header.len());
        joined.put_slice(&prelude);
        joined.put_slice(header);
        pieces.push(joined.freeze());
    } else {
        pieces.push(Bytes::copy_from_slice(&prelude));
        pieces.push(header.clone());
    }
    pieces.extend(payloads.into_iter().filter(|payload| !payload.is_empty()));
    Some(pieces)
}

/// Who sends on a link, and to whom; the header of its first frame.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// The cluster of both, 16 bytes, big-endian.
    #[prost(bytes = "vec", tag = "1")]
    pub cluster: Vec<u8>,
    /// The node that sends.
    #[prost(uint64, tag = "2")]
    pub from_node: u64,
    /// The index of its store that sends.
    #[prost(uint32, tag = "3")]
    pub from_store: u32,
    /// The node that is meant.
    #[prost(uint64, tag = "4")]
    pub to_node: u64,
    /// When the sending process began, in microseconds since the Unix epoch.
    #[prost(uint64, tag = "5")]
    pub started_us: u64,
    /// Number of the link among those of its process and store; rises.
    #[prost(uint64, tag = "6")]
    pub link: u64,
    /// Oldest version of the wire format that the sender speaks.
    #[prost(uint32, tag = "7")]
    pub version_min: u32,
    /// The newest one.
    #[prost(uint32, tag = "8")]
    pub version_max: u32,
}

impl Hello {
    /// The frame that carries it.
    #[must_use]
    pub fn to_frame(&self) -> Vec<Bytes> {
        let header = Bytes::from(self.encode_to_vec());
        let store = u16::try_from(self.from_store).unwrap_or(u16::MAX);
        // Of a few dozen bytes, whatever its numbers are.
        frame(WireKind::Hello, (store, 0), &header, Vec::new()).unwrap_or_default()
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it cannot be understood, or speaks no version that this build does.
    pub fn of_header(header: &[u8]) -> Result<Self, WireError> {
        let hello = <Self as Message>::decode(header).map_err(|_| WireError::Hello)?;
        let own = u32::from(WIRE_VERSION);
        if !(hello.version_min..=hello.version_max).contains(&own) {
            let newest = u8::try_from(hello.version_max).unwrap_or(u8::MAX);
            return Err(WireError::Version(newest));
        }
        Ok(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prelude() -> Prelude {
        Prelude {
            kind: WireKind::Group,
            from_store: 1,
            to_store: 2,
            header_bytes: 3,
            payload_bytes: 4096,
            header_crc: 5,
        }
    }

    #[test]
    fn the_layout_is_fixed_and_every_flipped_bit_is_seen() {
        let bytes = prelude().encode().unwrap();
        let expected = [
            b'E', b's', b'P', b'L', 1, 2, 0, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0, 16, 0, 0, 5, 0, 0, 0, 0,
            0, 0, 0,
        ];
        assert_eq!(bytes[..28], expected);
        assert_eq!(Prelude::decode(&bytes), Ok(prelude()));
        for at in 0..PRELUDE_BYTES {
            for bit in 0..8 {
                let mut damaged = bytes;
                damaged[at] ^= 1 << bit;
                assert!(Prelude::decode(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn lengths_are_bounded_on_both_sides() {
        let too_long = |prelude: Prelude| {
            assert_eq!(prelude.encode(), None);
            let fits = Prelude {
                header_bytes: 0,
                payload_bytes: 0,
                ..prelude
            };
            let mut bytes = fits.encode().unwrap();
            let number = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
            bytes[12..16].copy_from_slice(&number(prelude.header_bytes));
            bytes[16..20].copy_from_slice(&number(prelude.payload_bytes));
            let checksum = crc32(&bytes[..CHECKSUM_AT]);
            bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
            let refused = Prelude::decode(&bytes).unwrap_err();
            assert!(matches!(refused, WireError::TooLong { .. }), "{refused}");
        };
        too_long(Prelude {
            header_bytes: PEER_HEADER_BYTES_MAX + 1,
            ..prelude()
        });
        too_long(Prelude {
            payload_bytes: PEER_PAYLOAD_BYTES_MAX + 1,
            ..prelude()
        });
        too_long(Prelude {
            kind: WireKind::Hello,
            payload_bytes: 1,
            ..prelude()
        });
        too_long(Prelude {
            kind: WireKind::Hello,
            header_bytes: HELLO_BYTES_MAX + 1,
            payload_bytes: 0,
            ..prelude()
        });
    }

    #[test]
    fn a_hello_of_other_versions_alone_is_refused() {
        let hello = |version_min, version_max| Hello {
            cluster: vec![7; 16],
            from_node: 1,
            version_min,
            version_max,
            ..Hello::default()
        };
        let read = |hello: &Hello| Hello::of_header(&hello.encode_to_vec());
        assert_eq!(read(&hello(1, 9)), Ok(hello(1, 9)));
        assert_eq!(read(&hello(2, 9)), Err(WireError::Version(9)));
        assert_eq!(Hello::of_header(b"\xff\xff"), Err(WireError::Hello));
    }
}
