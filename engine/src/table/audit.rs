//! For tests: what the pages of a table on the device hold, beside what the table's owner has. A record
//! that changed and was not told to the table is in no page that is written, and nothing would notice
//! before the store is opened again.

use crate::format::table::{decode, Key};
use esker_base::checksum::crc32;
use std::collections::BTreeMap;

/// A checksum of the records of every page of level 0, by its first key.
#[derive(Debug, Default)]
pub(super) struct Audit(BTreeMap<Key, u32>);

/// Of records, in the order of their keys.
pub(super) fn sum<'a>(records: impl Iterator<Item = (Key, &'a [u8])>) -> u32 {
    let mut all = Vec::new();
    for (key, bytes) in records {
        all.extend_from_slice(&key.to_le_bytes());
        all.extend_from_slice(&(bytes.len() as u128).to_le_bytes());
        all.extend_from_slice(bytes);
    }
    crc32(&all)
}

impl Audit {
    /// A page was written or read.
    pub fn has(&mut self, first: Key, page: &[u8]) {
        if let Ok(decoded) = decode(page) {
            let records = decoded.records.iter();
            let records = records.map(|(key, at)| (*key, &page[at.clone()]));
            self.0.insert(first, sum(records));
        }
    }

    /// A page is gone.
    pub fn has_not(&mut self, first: Key) {
        self.0.remove(&first);
    }

    /// The page's checksum.
    pub fn of(&self, first: Key) -> Option<u32> {
        self.0.get(&first).copied()
    }
}
