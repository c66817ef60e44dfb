//! `NBD_OPT_LIST`: the names of the exports.

use super::{acknowledge, Outcome};
use crate::limits::STRING_BYTES_MAX;
use crate::output::Output;
use crate::wire::{option, option_reply};
use esker_base::num::to_u32_saturating;

pub(crate) fn run() -> Outcome {
    Outcome::List
}

/// Answers with one reply per export. A name longer than the protocol's strings cannot be told and
/// is left out.
pub(crate) fn answer<'a>(output: &mut Output, exports: impl Iterator<Item = &'a (String, u64)>) {
    for (name, _size_bytes) in exports {
        if name.len() > STRING_BYTES_MAX {
            continue;
        }
        let length = to_u32_saturating(name.len());
        output.option_reply(option::LIST, option_reply::SERVER, length + 4);
        output.u32(length);
        output.bytes(name.as_bytes());
    }
    acknowledge(output, option::LIST);
}
