//! Which requests are valid. Everything a client sends is checked here, once, before it costs
//! anything.

use crate::export::Export;
use crate::headers::Headers;
use crate::limits::STATUS_EXTENTS_MAX;
use crate::request::RequestError;
use crate::wire::{command, command_flag as flag, RequestHeader};
use esker_base::num::to_usize;

/// A command that a client may send and that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read { dont_fragment: bool },
    Write,
    Flush,
    Trim,
    WriteZeroes { no_hole: bool, fast: bool },
    Cache,
    BlockStatus { one: bool },
}

impl Command {
    /// True when it changes the export.
    pub(crate) const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes { .. })
    }

    /// True when its length is that of a payload, in either direction.
    pub(crate) const fn has_payload(self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write)
    }

    /// Bytes it counts against the session's limit: those of its payload, or the most that its reply
    /// can need for each of `contexts`.
    pub(crate) fn cost(self, length: u64, contexts: usize) -> usize {
        match self {
            Self::Read { .. } | Self::Write => to_usize(length),
            Self::BlockStatus { one: true } => EXTENT_BYTES * contexts,
            Self::BlockStatus { one: false } => EXTENT_BYTES * STATUS_EXTENTS_MAX * contexts,
            Self::Flush | Self::Trim | Self::WriteZeroes { .. } | Self::Cache => 0,
        }
    }
}

/// Bytes of an extent in a reply with extended headers.
const EXTENT_BYTES: usize = 16;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub error: RequestError,
    /// One line for the client's user.
    pub text: &'static str,
}

const fn refusal(error: RequestError, text: &'static str) -> Refusal {
    Refusal { error, text }
}

/// What requests are held against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    pub export: &'a Export,
    pub headers: Headers,
    /// Metadata contexts are selected.
    pub contexts: bool,
    /// Longest read or write in bytes.
    pub payload_bytes_max: u32,
}

impl Rules<'_> {
    /// Checks a request other than `NBD_CMD_DISC`.
    pub(crate) fn check(&self, header: &RequestHeader) -> Result<Command, Refusal> {
        let command = self.command(header)?;
        if command == Command::Flush {
            if header.offset != 0 || header.length != 0 {
                let text = "a flush has neither offset nor length";
                return Err(refusal(RequestError::Invalid, text));
            }
            return Ok(command);
        }
        if command.writes() && self.export.read_only {
            return Err(refusal(RequestError::ReadOnly, "the export is read-only"));
        }
        self.check_length(command, header)?;
        self.check_bounds(command, header)?;
        Ok(command)
    }

    /// The command, with the flags it may carry.
    fn command(&self, header: &RequestHeader) -> Result<Command, Refusal> {
        let has = |bit: u16| header.flags & bit != 0;
        let (command, allowed) = match header.command {
            command::READ => {
                let df = if self.headers.chunks() { flag::DF } else { 0 };
                (
                    Command::Read {
                        dont_fragment: has(flag::DF),
                    },
                    df,
                )
            }
            command::WRITE if !self.headers.extended() => (Command::Write, 0),
            // QEMU (10.0 at least) leaves the flag out of its writes, against the text, and its own
            // server bears with that; a write has a payload in any case.
            command::WRITE => (Command::Write, flag::PAYLOAD_LEN),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => (
                Command::WriteZeroes {
                    no_hole: has(flag::NO_HOLE),
                    fast: has(flag::FAST_ZERO),
                },
                flag::NO_HOLE | flag::FAST_ZERO,
            ),
            command::BLOCK_STATUS if self.contexts => (
                Command::BlockStatus {
                    one: has(flag::REQ_ONE),
                },
                flag::REQ_ONE,
            ),
            command::BLOCK_STATUS => {
                let text = "no metadata context is negotiated";
                return Err(refusal(RequestError::Invalid, text));
            }
            _ => return Err(refusal(RequestError::Invalid, "unknown command")),
        };
        // FUA is valid with every command once the server offers it, and this one always does.
        if header.flags & !(allowed | flag::FUA) != 0 {
            let text = "a command flag does not belong to the command";
            return Err(refusal(RequestError::Invalid, text));
        }
        Ok(command)
    }

    fn check_length(&self, command: Command, header: &RequestHeader) -> Result<(), Refusal> {
        if header.length == 0 && matches!(command, Command::BlockStatus { .. }) {
            // A successful answer has an extent, and none is empty.
            let text = "the status of no bytes";
            return Err(refusal(RequestError::Invalid, text));
        }
        if !command.has_payload() || header.length <= u64::from(self.payload_bytes_max) {
            return Ok(());
        }
        // EOVERFLOW is documented for reads that are answered in chunks only.
        let error = match command {
            Command::Read { .. } if self.headers.chunks() => RequestError::TooBig,
            _ => RequestError::Invalid,
        };
        Err(refusal(error, "longer than the largest payload"))
    }

    fn check_bounds(&self, command: Command, header: &RequestHeader) -> Result<(), Refusal> {
        let length = header.length;
        let inside = header.offset.checked_add(length);
        if inside.is_none_or(|end| end > self.export.size_bytes) {
            let error = if command.writes() {
                RequestError::NoSpace
            } else {
                RequestError::Invalid
            };
            return Err(refusal(error, "past the end of the export"));
        }
        let unit = u64::from(self.export.block_size_min.max(1));
        if !header.offset.is_multiple_of(unit) || !length.is_multiple_of(unit) {
            let text = "not aligned to the minimum block size";
            return Err(refusal(RequestError::Invalid, text));
        }
        Ok(())
    }
}
