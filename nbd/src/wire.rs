//! Constants and layouts of the protocol. Bytes only; all integers are big-endian.

/// First eight bytes of the greeting, `NBDMAGIC`.
pub const MAGIC_GREETING: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting and start of every option, `IHAVEOPT`.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Start of every option reply.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Start of every compact request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Start of every request once extended headers are negotiated.
pub const MAGIC_EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// Start of a simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Start of a reply chunk once extended headers are negotiated.
pub const MAGIC_EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// Bytes of zero after the answer to `NBD_OPT_EXPORT_NAME`, unless the client declined them.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// Flags of the greeting and of the client's answer; both sides use the same bits.
pub mod handshake_flag {
    /// `NBD_FLAG_FIXED_NEWSTYLE`, `NBD_FLAG_C_FIXED_NEWSTYLE`.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// `NBD_FLAG_NO_ZEROES`, `NBD_FLAG_C_NO_ZEROES`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options (`NBD_OPT_*`).
pub mod option {
    /// Attach to an export; has no error reply.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Upgrade to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and attach to it.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies (`NBD_REP_*`).
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// Forbidden here.
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    /// Malformed.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// Not without TLS.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// Too long.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    /// Extended headers are needed, or are negotiated and cannot be left.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Facts about an export (`NBD_INFO_*`).
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Description.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum and preferred block size, largest payload.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags (`NBD_FLAG_*`).
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// The export is read-only.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF works.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see each other's flushed writes.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS takes a payload that names the contexts to answer.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands (`NBD_CMD_*`).
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows the request.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Trim.
    pub const TRIM: u16 = 4;
    /// Cache.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Block status.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags (`NBD_CMD_FLAG_*`).
pub mod command_flag {
    /// Answer when durable.
    pub const FUA: u16 = 1 << 0;
    /// Keep space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One content chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The header's length is that of a payload, which follows it. Extended headers only.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Reply chunks (`NBD_REPLY_TYPE_*`, `NBD_REPLY_FLAG_DONE`).
pub mod chunk {
    /// Flag: last chunk of the reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No content.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context, with 32 bits each for length and flags.
    pub const BLOCK_STATUS: u16 = 5;
    /// The same with 64 bits each; the only form with extended headers.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The request failed.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// The request failed at an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// Header of an option, as the client sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Must be [`MAGIC_OPTION`].
    pub magic: u64,
    /// Which option.
    pub option: u32,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Encoded size in bytes.
    pub const SIZE: usize = 16;

    /// Reads a header.
    #[must_use]
    pub fn decode(raw: &[u8; Self::SIZE]) -> Self {
        let mut fields = Fields(raw);
        Self {
            magic: fields.u64(),
            option: fields.u32(),
            length: fields.u32(),
        }
    }
}

/// The metadata context that every export offers, and its flags (`NBD_STATE_*`).
pub mod allocation {
    /// Its name.
    pub const NAME: &str = "base:allocation";
    /// Nothing is stored for the range.
    pub const HOLE: u32 = 1 << 0;
    /// The range reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// Header of a request, as the client sends it in either form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Must be [`MAGIC_REQUEST`] or [`MAGIC_EXTENDED_REQUEST`], as negotiated.
    pub magic: u32,
    /// Command flags.
    pub flags: u16,
    /// Which command.
    pub command: u16,
    /// Returned with the reply, otherwise without meaning.
    pub cookie: u64,
    /// Byte offset in the export.
    pub offset: u64,
    /// Length in bytes: of the range, or with [`command_flag::PAYLOAD_LEN`] of the payload. At most
    /// `u32::MAX` in the compact form.
    pub length: u64,
}

impl RequestHeader {
    /// Encoded size of the compact form in bytes.
    pub const COMPACT_SIZE: usize = 28;
    /// Encoded size of the extended form in bytes.
    pub const EXTENDED_SIZE: usize = 32;

    /// Reads a compact header.
    #[must_use]
    pub fn decode_compact(raw: &[u8; Self::COMPACT_SIZE]) -> Self {
        Self::decode(Fields(raw), |fields| u64::from(fields.u32()))
    }

    /// Reads an extended header.
    #[must_use]
    pub fn decode_extended(raw: &[u8; Self::EXTENDED_SIZE]) -> Self {
        Self::decode(Fields(raw), |fields| fields.u64())
    }

    fn decode(mut fields: Fields<'_>, length: fn(&mut Fields<'_>) -> u64) -> Self {
        Self {
            magic: fields.u32(),
            flags: fields.u16(),
            command: fields.u16(),
            cookie: fields.u64(),
            offset: fields.u64(),
            length: length(&mut fields),
        }
    }
}

/// Reads integers off the front of a header whose size its type fixes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut raw = [0; N];
        // A header shorter than its fields cannot be: the sum of the fields is its `SIZE`.
        if let Some((head, rest)) = self.0.split_first_chunk::<N>() {
            raw = *head;
            self.0 = rest;
        }
        raw
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_field_by_field() {
        let mut raw = [0u8; RequestHeader::EXTENDED_SIZE];
        for (i, byte) in raw.iter_mut().enumerate() {
            *byte = u8::try_from(i).unwrap();
        }
        let extended = RequestHeader::decode_extended(&raw);
        assert_eq!(extended.magic, 0x0001_0203);
        assert_eq!((extended.flags, extended.command), (0x0405, 0x0607));
        assert_eq!(extended.cookie, 0x0809_0a0b_0c0d_0e0f);
        assert_eq!(extended.offset, 0x1011_1213_1415_1617);
        assert_eq!(extended.length, 0x1819_1a1b_1c1d_1e1f);
        let compact = raw.first_chunk().unwrap();
        let length = 0x1819_1a1b;
        let expected = RequestHeader { length, ..extended };
        assert_eq!(RequestHeader::decode_compact(compact), expected);
    }

    #[test]
    fn magics_spell_what_they_should() {
        assert_eq!(&MAGIC_GREETING.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&MAGIC_OPTION.to_be_bytes(), b"IHAVEOPT");
    }
}
