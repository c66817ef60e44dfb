//! The payload of a block status request: how many bytes it is about, and which of the selected
//! metadata contexts are to be answered.

use crate::input::Input;
use crate::limits::CONTEXTS_SELECTED_MAX;
use crate::request::RequestError;
use crate::validate::Refusal;
use esker_base::num::{to_u64, to_usize};

/// Bytes before the ids: the length of the range.
const FIXED_BYTES: usize = 8;
/// Bytes of an id.
const ID_BYTES: usize = 4;

/// True when a payload of so many bytes can name contexts: at least one, and none twice.
pub(crate) fn is_length(length: u64) -> bool {
    let ids = length.saturating_sub(to_u64(FIXED_BYTES));
    let id = to_u64(ID_BYTES);
    ids >= id && ids.is_multiple_of(id) && ids / id <= to_u64(CONTEXTS_SELECTED_MAX)
}

/// Collects such a payload.
#[derive(Debug)]
pub(crate) struct Filter {
    bytes: Vec<u8>,
    length: usize,
}

impl Filter {
    /// For `length` bytes, which [`is_length`] has found to be few.
    pub(crate) fn new(length: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(length),
            length,
        }
    }

    /// Takes what is there; true when the payload is complete.
    pub(crate) fn fill(&mut self, input: &mut Input) -> bool {
        let missing = self.length - self.bytes.len();
        input.append_to(&mut self.bytes, missing);
        self.bytes.len() == self.length
    }

    /// Length of the range in bytes.
    pub(crate) fn effect_length(&self) -> u64 {
        let first = self.bytes.first_chunk().copied();
        u64::from_be_bytes(first.unwrap_or_default())
    }

    /// The ids, of `selected` contexts in all.
    pub(crate) fn ids(&self, selected: usize) -> Result<Vec<u32>, Refusal> {
        let refusal = |text| Refusal {
            error: RequestError::Invalid,
            text,
        };
        let mut ids = Vec::new();
        for raw in self.bytes[FIXED_BYTES.min(self.bytes.len())..].chunks_exact(ID_BYTES) {
            let id = raw.iter().fold(0, |id, byte| id << 8 | u32::from(*byte));
            if to_usize(u64::from(id)) >= selected {
                return Err(refusal("a metadata context that is not selected"));
            }
            if ids.contains(&id) {
                return Err(refusal("a metadata context is named twice"));
            }
            ids.push(id);
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_one_to_sixteen_ids() {
        let valid: Vec<u64> = (0..100).filter(|n| is_length(*n)).collect();
        let expected: Vec<u64> = (1..=16).map(|n| 8 + 4 * n).collect();
        assert_eq!(valid, expected);
        assert!(!is_length(u64::MAX) && !is_length(u64::MAX - 3));
    }
}
