//! The log's reading end: finds records in a segment's bytes, also behind damaged ones.

use crate::format::operation::Operation;
use crate::format::record::{Item, ItemBody, RecordHeader, MAGIC};
use crate::format::PAGE;
use esker_base::checksum::crc32;
use esker_base::num::to_usize;
use esker_base::{GroupId, Seq, StoreId};

/// A record whose header is whole.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its header.
    pub header: RecordHeader,
    /// What it says.
    pub items: Vec<Item>,
    /// Hash of its header pages.
    pub hash: u64,
    /// Blocks whose stored bytes do not match: group, LBA.
    pub bad_blocks: Vec<(GroupId, u64)>,
}

/// What a segment's bytes hold.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Records with a whole header, by slot.
    pub records: Vec<Found>,
    /// Slots at which something begins like a record and is none.
    pub broken_headers: Vec<u32>,
}

/// Where a segment's bytes come from.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The store.
    pub store: StoreId,
    /// The segment.
    pub segment: u32,
    /// Its generation.
    pub generation: u64,
    /// Slot of the first byte.
    pub first_slot: u32,
    /// Records before this seq are not looked for.
    pub from: Seq,
}

/// Finds every record in `bytes`. Where no record begins, the next page is tried: a damaged header
/// hides its own length. A page counts as a header only when store, generation and its very place
/// match, so stale records and copies of records in clients' data do not.
#[must_use]
pub fn scan(place: &Place, bytes: &[u8]) -> Scan {
    let mut out = Scan::default();
    let mut page = 0;
    let mut last = Seq(place.from.0.saturating_sub(1));
    while (page + 1) * PAGE <= bytes.len() {
        let rest = &bytes[page * PAGE..];
        let slot = place.first_slot + u32::try_from(page).unwrap_or(u32::MAX);
        page += 1;
        if rest[..4] != MAGIC.to_le_bytes() {
            continue;
        }
        let Some(found) = record_at(place, slot, rest, last) else {
            out.broken_headers.push(slot);
            continue;
        };
        last = found.header.seq;
        page += found.header.pages() as usize - 1;
        out.records.push(found);
    }
    out
}

fn record_at(place: &Place, slot: u32, bytes: &[u8], after: Seq) -> Option<Found> {
    let (header, items, hash) = RecordHeader::decode(bytes).ok()?;
    let here = header.store == place.store
        && header.generation == place.generation
        && header.segment == place.segment
        && header.slot == slot
        && header.seq > after
        && header.pages() as usize * PAGE <= bytes.len();
    if !here {
        return None;
    }
    let payload = &bytes[usize::from(header.header_pages) * PAGE..header.pages() as usize * PAGE];
    let bad_blocks = check_payload(&items, payload)?;
    Some(Found {
        header,
        items,
        hash,
        bad_blocks,
    })
}

/// The blocks whose bytes do not match; none when the items contradict the payload's length.
fn check_payload(items: &[Item], payload: &[u8]) -> Option<Vec<(GroupId, u64)>> {
    let mut bad = Vec::new();
    for item in items {
        let ItemBody::Entry {
            payload_page,
            payload_pages,
            data,
            ..
        } = &item.body
        else {
            continue;
        };
        if *payload_pages == 0 {
            continue;
        }
        let (operation, _) = Operation::decode(data).ok()?;
        let Operation::Write { lba, blocks, .. } = operation else {
            return None;
        };
        if blocks.len() != *payload_pages as usize {
            return None;
        }
        for (i, block) in blocks.iter().enumerate() {
            let at = (*payload_page as usize + i) * PAGE;
            let stored = payload.get(at..at + PAGE)?;
            if crc32(stored) != block.crc {
                bad.push((item.group, lba + i as u64));
            }
        }
    }
    Some(bad)
}

/// What to do with the records found, given the first seq expected.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Records to replay, by position in the list given.
    pub accepted: Vec<usize>,
    /// Seqs of durable records whose headers are damaged, before the accepted one at that position
    /// (or at the end).
    pub lost: Vec<(usize, Seq, Seq)>,
    /// Something after the last accepted record was cut.
    pub torn: bool,
    /// Highest seq known durable.
    pub durable: Seq,
}

/// Tells a torn tail from corruption. D is the largest `durable_seq` of any valid header: a bad
/// record above it was never acknowledged and ends the log; one at or below it is damage, and the
/// log goes on behind it.
#[must_use]
pub fn judge(records: &[Found], first: Seq, prev_hash: u64, ignore_durable: bool) -> Verdict {
    let durable = if ignore_durable {
        Seq(0)
    } else {
        records
            .iter()
            .map(|f| f.header.durable_seq)
            .max()
            .unwrap_or(Seq(0))
    };
    let mut verdict = Verdict {
        durable,
        ..Verdict::default()
    };
    let mut expected = first;
    let mut hash = Some(prev_hash);
    for (at, found) in records.iter().enumerate() {
        let seq = found.header.seq;
        if seq < expected {
            continue;
        }
        // A record that follows directly must carry the hash of the one before it.
        if seq == expected && hash.is_some_and(|hash| hash != found.header.prev_hash) {
            continue;
        }
        if seq > expected {
            if expected > durable {
                verdict.torn = true;
                return verdict;
            }
            let last = Seq(durable.0.min(seq.0 - 1));
            verdict.lost.push((at, expected, last));
            if seq.0 > durable.0 + 1 {
                verdict.torn = true;
                return verdict;
            }
        }
        if seq > durable && !found.bad_blocks.is_empty() {
            verdict.torn = true;
            return verdict;
        }
        verdict.accepted.push(at);
        expected = Seq(seq.0 + 1);
        hash = Some(found.hash);
    }
    if expected <= durable {
        verdict.lost.push((records.len(), expected, durable));
    }
    verdict
}

/// Length of `slots` slots in bytes.
#[must_use]
pub fn slots_bytes(slots: u32) -> usize {
    to_usize(u64::from(slots)) * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, durable: u64, prev_hash: u64, bad: bool) -> Found {
        Found {
            header: RecordHeader {
                seq: Seq(seq),
                durable_seq: Seq(durable),
                prev_hash,
                ..RecordHeader::default()
            },
            items: Vec::new(),
            hash: seq,
            bad_blocks: if bad {
                vec![(GroupId(1), 1)]
            } else {
                Vec::new()
            },
        }
    }

    fn seqs(records: &[Found], verdict: &Verdict) -> Vec<u64> {
        verdict
            .accepted
            .iter()
            .map(|i| records[*i].header.seq.0)
            .collect()
    }

    #[test]
    fn a_gap_above_what_is_durable_ends_the_log() {
        let records = [record(1, 0, 0, false), record(3, 0, 2, false)];
        let verdict = judge(&records, Seq(1), 0, false);
        assert!(verdict.torn && verdict.lost.is_empty());
        assert_eq!(seqs(&records, &verdict), vec![1]);
    }

    #[test]
    fn a_gap_of_durable_records_is_damage_and_the_log_goes_on() {
        let records = [
            record(1, 0, 0, false),
            record(3, 2, 2, false),
            record(4, 2, 3, false),
        ];
        let verdict = judge(&records, Seq(1), 0, false);
        assert!(!verdict.torn);
        assert_eq!(verdict.lost, vec![(1, Seq(2), Seq(2))]);
        assert_eq!(seqs(&records, &verdict), vec![1, 3, 4]);
    }

    #[test]
    fn a_gap_that_reaches_past_what_is_durable_is_damage_and_the_end() {
        let records = [record(1, 0, 0, false), record(5, 2, 4, false)];
        let verdict = judge(&records, Seq(1), 0, false);
        assert!(verdict.torn);
        assert_eq!(verdict.lost, vec![(1, Seq(2), Seq(2))]);
        assert_eq!(seqs(&records, &verdict), vec![1]);
    }

    #[test]
    fn a_bad_payload_is_torn_or_damage_by_the_same_rule() {
        let torn = [
            record(1, 0, 0, false),
            record(2, 1, 1, true),
            record(3, 1, 2, false),
        ];
        assert_eq!(seqs(&torn, &judge(&torn, Seq(1), 0, false)), vec![1]);
        let damage = [
            record(1, 0, 0, false),
            record(2, 1, 1, true),
            record(3, 2, 2, false),
        ];
        let verdict = judge(&damage, Seq(1), 0, false);
        assert_eq!(seqs(&damage, &verdict), vec![1, 2, 3]);
        assert!(!verdict.torn);
    }

    #[test]
    fn a_record_that_does_not_carry_the_hash_before_it_is_not_accepted() {
        let records = [record(1, 0, 0, false), record(2, 0, 99, false)];
        assert_eq!(seqs(&records, &judge(&records, Seq(1), 0, false)), vec![1]);
    }
}
