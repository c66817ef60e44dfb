//! Headers of frames between nodes: a checksum, and a protobuf message behind it; and the payload beside them.

use bytes::{BufMut, Bytes, BytesMut};
use esker_base::checksum::{crc32, crc32_of};
use esker_base::AlignedBuf;
use prost::Message;

/// Longest header, in bytes.
pub(crate) const NOTE_BYTES_MAX: usize = 1 << 20;

/// The header's bytes.
pub(crate) fn pack(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + message.encoded_len());
    out.put_u32_le(0);
    out.put_slice(&message.encode_to_vec());
    let crc = crc32(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// Reads a header.
///
/// # Errors
/// Why it is none.
pub(crate) fn unpack<M: Message + Default>(header: &[u8]) -> Result<M, &'static str> {
    if header.len() > NOTE_BYTES_MAX {
        return Err("header too long");
    }
    let (crc, body) = header.split_first_chunk::<4>().ok_or("header too short")?;
    if u32::from_le_bytes(*crc) != crc32(body) {
        return Err("header checksum");
    }
    M::decode(body).map_err(|_| "not a note")
}

/// The CRC-32 of a payload in pieces.
pub(crate) fn crc_of(payloads: &[Bytes]) -> u32 {
    let pieces: Vec<&[u8]> = payloads.iter().map(AsRef::as_ref).collect();
    crc32_of(&pieces)
}

/// A payload as one piece, copied only where it came in several.
pub(crate) fn joined(mut payloads: Vec<Bytes>) -> Bytes {
    payloads.retain(|piece| !piece.is_empty());
    match payloads.len() {
        0 => Bytes::new(),
        1 => payloads.swap_remove(0),
        _ => {
            let mut all = AlignedBuf::zeroed(payloads.iter().map(Bytes::len).sum());
            let mut at = 0;
            for piece in &payloads {
                all[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
            all.freeze()
        }
    }
}
