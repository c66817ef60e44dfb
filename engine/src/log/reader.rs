//! The log's reading end: finds records in a segment's bytes, also behind damaged ones.

use crate::format::operation::Operation;
use crate::format::record::{Item, ItemBody, RecordHeader, HEADER_PAGES_MAX, MAGIC};
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

/// Finds every record in `bytes`, see [`Scanner`].
#[must_use]
pub fn scan(place: &Place, bytes: &[u8]) -> Scan {
    let pages = u32::try_from(bytes.len() / PAGE).unwrap_or(u32::MAX);
    let mut scanner = Scanner::new(*place, place.first_slot.saturating_add(pages));
    scanner.feed(bytes);
    scanner.finish()
}

/// Finds every record in a segment's pages, which come in order and piece by piece. Where no record
/// begins, the next page is tried: a damaged header hides its own length. A page counts as a header
/// only when store, generation and its very place match, so stale records and copies of records in
/// clients' data do not.
#[derive(Debug)]
pub struct Scanner {
    place: Place,
    /// The page that comes next.
    slot: u32,
    /// One past the last page that will come.
    end: u32,
    /// The last record found, or what comes before the first that counts.
    last: Seq,
    state: State,
    out: Scan,
}

#[derive(Debug)]
enum State {
    /// The next page may be a record's first.
    Search,
    /// What may be a record began at this slot; its header pages are not all there.
    Header { slot: u32, pages: Vec<u8> },
    /// In the payload of a record.
    Payload { found: Found, checks: Checks },
}

/// What the payload pages that are still to come must hold.
#[derive(Debug)]
struct Checks {
    /// Payload page, CRC, group, LBA; by page.
    blocks: Vec<(u32, u32, GroupId, u64)>,
    /// How many of them were looked at.
    done: usize,
    /// The payload page that comes next, and their number.
    page: u32,
    pages: u32,
}

impl Scanner {
    /// A scanner of the pages from `place.first_slot` up to slot `end`.
    #[must_use]
    pub fn new(place: Place, end: u32) -> Self {
        Self {
            slot: place.first_slot,
            end,
            last: Seq(place.from.0.saturating_sub(1)),
            state: State::Search,
            out: Scan::default(),
            place,
        }
    }

    /// Where the pages come from.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Takes the next pages; what follows the last whole one is ignored.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while bytes.len() >= PAGE && self.slot < self.end {
            let used = match &mut self.state {
                State::Search => self.search(bytes),
                State::Header { slot, pages } => {
                    let (page, rest) = bytes.split_at(PAGE);
                    pages.extend_from_slice(page);
                    if pages.len() < header_bytes(pages) {
                        self.slot += 1;
                        PAGE
                    } else {
                        // All there: as if it had come in one piece. Without a record in it, the
                        // search goes on behind its first page.
                        bytes = rest;
                        let pages = std::mem::take(pages);
                        self.slot = *slot;
                        self.state = State::Search;
                        self.feed(&pages);
                        0
                    }
                }
                State::Payload { found, checks } => {
                    let used = checks.take(bytes, &mut found.bad_blocks);
                    self.slot += u32::try_from(used / PAGE).unwrap_or(u32::MAX);
                    self.end_record_if_done();
                    used
                }
            };
            bytes = &bytes[used..];
        }
    }

    /// Looks at the first of these pages, and at all of a header that begins there; gives the bytes
    /// that are done with.
    fn search(&mut self, bytes: &[u8]) -> usize {
        let slot = self.slot;
        self.slot += 1;
        if bytes[..4] != MAGIC.to_le_bytes() {
            return PAGE;
        }
        let size = header_bytes(bytes);
        let fits = to_usize(u64::from(self.end - slot)) * PAGE >= size;
        if fits && size > bytes.len() {
            let pages = bytes[..bytes.len() / PAGE * PAGE].to_vec();
            self.slot = slot + u32::try_from(pages.len() / PAGE).unwrap_or(u32::MAX);
            let used = pages.len();
            self.state = State::Header { slot, pages };
            return used;
        }
        let Some((found, checks)) = self.record_at(slot, &bytes[..size.min(bytes.len())]) else {
            self.out.broken_headers.push(slot);
            return PAGE;
        };
        self.last = found.header.seq;
        self.slot = slot + u32::from(found.header.header_pages);
        self.state = State::Payload { found, checks };
        self.end_record_if_done();
        size
    }

    fn record_at(&self, slot: u32, bytes: &[u8]) -> Option<(Found, Checks)> {
        let (header, items, hash) = RecordHeader::decode(bytes).ok()?;
        let place = &self.place;
        let here = header.store == place.store
            && header.generation == place.generation
            && header.segment == place.segment
            && header.slot == slot
            && header.seq > self.last
            && header.pages() <= self.end - slot;
        if !here {
            return None;
        }
        let checks = Checks::of(&items, header.payload_pages)?;
        let found = Found {
            header,
            items,
            hash,
            bad_blocks: Vec::new(),
        };
        Some((found, checks))
    }

    fn end_record_if_done(&mut self) {
        let is_whole = |checks: &Checks| checks.page >= checks.pages;
        if !matches!(&self.state, State::Payload { checks, .. } if is_whole(checks)) {
            return;
        }
        if let State::Payload { found, .. } = std::mem::replace(&mut self.state, State::Search) {
            self.out.records.push(found);
        }
    }

    /// Everything that was found. All pages must have come: a record of which some have not is
    /// left out.
    #[must_use]
    pub fn finish(self) -> Scan {
        self.out
    }
}

/// Bytes of the header that begins here, as its first page says; at least a page.
fn header_bytes(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[6], bytes[7]])).clamp(1, HEADER_PAGES_MAX) * PAGE
}

impl Checks {
    /// None when the items contradict the payload's length.
    fn of(items: &[Item], pages: u32) -> Option<Self> {
        let mut blocks = Vec::with_capacity(to_usize(u64::from(pages)));
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
            let end = payload_page.checked_add(*payload_pages)?;
            let (operation, _) = Operation::decode(data).ok()?;
            let new = operation.payload_crcs();
            if new.len() != *payload_pages as usize || end > pages {
                return None;
            }
            let new = (*payload_page..).zip(new);
            blocks.extend(new.map(|(page, (lba, crc))| (page, crc, item.group, lba)));
        }
        blocks.sort_by_key(|(page, ..)| *page); // as they are, but for records of other writers
        Some(Self {
            blocks,
            done: 0,
            page: 0,
            pages,
        })
    }

    /// Checks the payload pages that `bytes` begins with; gives their bytes.
    fn take(&mut self, bytes: &[u8], bad: &mut Vec<(GroupId, u64)>) -> usize {
        let mut used = 0;
        for stored in bytes.chunks_exact(PAGE) {
            if self.page >= self.pages {
                break;
            }
            let mut crc = None;
            while let Some((page, expected, group, lba)) = self.blocks.get(self.done) {
                if *page != self.page {
                    break;
                }
                if *crc.get_or_insert_with(|| crc32(stored)) != *expected {
                    bad.push((*group, *lba));
                }
                self.done += 1;
            }
            self.page += 1;
            used += PAGE;
        }
        used
    }
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
