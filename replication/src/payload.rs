//! Payloads that are still needed in memory, by index.

use bytes::Bytes;
use std::collections::BTreeMap;

/// Largest payload of one entry, in bytes. A request that is larger is split by the node.
pub const ENTRY_PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// Largest descriptor of one entry, in bytes.
pub const ENTRY_DATA_BYTES_MAX: usize = 256 << 10;

/// Total length of payload pieces, in bytes.
pub(crate) fn length_of(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

struct Held {
    term: u64,
    pieces: Vec<Bytes>,
    length: usize,
    handed_out: bool,
}

/// The payloads of entries that are not yet handed out for appending, and on a leader also of
/// those its peers have not acknowledged.
#[derive(Default)]
pub(crate) struct PayloadCache {
    held: BTreeMap<u64, Held>,
    /// Bytes of the payloads that were handed out: what the budget is about. Payloads not yet
    /// handed out are bounded by the caps on proposals and messages.
    handed_out_bytes: usize,
}

impl PayloadCache {
    pub(crate) fn insert(&mut self, index: u64, term: u64, pieces: Vec<Bytes>) {
        self.remove(index);
        let length = length_of(&pieces);
        self.held.insert(
            index,
            Held {
                term,
                pieces,
                length,
                handed_out: false,
            },
        );
    }

    pub(crate) fn get(&self, index: u64, term: u64) -> Option<&[Bytes]> {
        self.held
            .get(&index)
            .filter(|held| held.term == term)
            .map(|held| held.pieces.as_slice())
    }

    /// The pieces for the store's log; the cache keeps a reference only when `keep` says so.
    pub(crate) fn hand_out(&mut self, index: u64, term: u64, keep: bool) -> Option<Vec<Bytes>> {
        if !keep {
            let held = self.remove(index)?;
            return (held.term == term).then_some(held.pieces);
        }
        let held = self.held.get_mut(&index).filter(|held| held.term == term)?;
        if !held.handed_out {
            held.handed_out = true;
            self.handed_out_bytes += held.length;
        }
        Some(held.pieces.clone())
    }

    /// Drops what nobody needs any more: handed out, and at or below `index`.
    pub(crate) fn release_through(&mut self, index: u64) {
        self.drop_oldest(index, 0);
    }

    /// Drops the oldest handed-out payloads at or below `durable` until the rest fits `bytes_max`.
    pub(crate) fn shrink(&mut self, bytes_max: usize, durable: u64) {
        self.drop_oldest(durable, bytes_max);
    }

    fn drop_oldest(&mut self, through: u64, bytes_max: usize) {
        while self.handed_out_bytes > bytes_max {
            match self.held.first_key_value() {
                Some((&index, held)) if index <= through && held.handed_out => {
                    self.remove(index);
                }
                _ => break,
            }
        }
    }

    /// Drops everything from `index` on.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        for (_, held) in self.held.split_off(&index) {
            self.forget(&held);
        }
    }

    /// Drops everything that was handed out.
    pub(crate) fn drop_handed_out(&mut self) {
        self.held.retain(|_, held| !held.handed_out);
        self.handed_out_bytes = 0;
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.held.len()
    }

    /// Bytes held for peers.
    pub(crate) fn handed_out_bytes(&self) -> usize {
        self.handed_out_bytes
    }

    fn remove(&mut self, index: u64) -> Option<Held> {
        let held = self.held.remove(&index)?;
        self.forget(&held);
        Some(held)
    }

    fn forget(&mut self, held: &Held) {
        if held.handed_out {
            self.handed_out_bytes -= held.length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(length: usize) -> Vec<Bytes> {
        vec![Bytes::from(vec![1; length])]
    }

    #[test]
    fn the_budget_drops_the_oldest_durable_payloads_only() {
        let mut cache = PayloadCache::default();
        for index in 1..=4 {
            cache.insert(index, 1, piece(100));
            assert!(cache.hand_out(index, 1, true).is_some());
        }
        cache.shrink(250, 1);
        assert_eq!(
            (cache.count(), cache.handed_out_bytes()),
            (3, 300),
            "2 is not durable yet"
        );
        cache.shrink(250, 4);
        assert_eq!((cache.count(), cache.handed_out_bytes()), (2, 200));
        cache.release_through(3);
        assert!(cache.get(3, 1).is_none() && cache.get(4, 1).is_some());
        cache.insert(4, 2, piece(10));
        assert!(cache.get(4, 1).is_none() && cache.get(4, 2).is_some());
        assert_eq!(cache.handed_out_bytes(), 0);
        assert!(cache.hand_out(4, 2, false).is_some() && cache.count() == 0);
    }
}
