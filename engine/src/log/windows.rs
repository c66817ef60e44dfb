//! Reading a segment of the log for recovery: a few windows are read ahead, whatever order they come
//! in, and scanned in the order of their slots. So neither the whole segment is in memory, nor does
//! the device wait while a window is scanned.

use super::reader::{Place, Scan, Scanner};
use crate::format::{PAGE, PAGE_U64};
use bytes::Bytes;
use esker_base::num::to_usize;
use std::collections::VecDeque;

/// Pages of a window (1 MiB).
const WINDOW_PAGES: u32 = 256;
/// Windows that are being read or wait to be scanned.
const WINDOWS_MAX: usize = 8;
/// How often a page that cannot be read is tried.
const READ_ATTEMPTS_MAX: u32 = 3;
/// Parts of a window: the whole, then each of its pages.
const PARTS: usize = WINDOW_PAGES as usize + 1;

/// A read: what it is called, its first slot and its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub part: usize,
    pub slot: u32,
    pub pages: u32,
}

impl Ask {
    /// Its length in bytes.
    pub fn length(&self) -> usize {
        to_usize(u64::from(self.pages) * PAGE_U64)
    }
}

#[derive(Debug)]
enum Content {
    Awaited,
    Came(Bytes),
    /// What could not be read in one piece is read page by page.
    Pages {
        bytes: Vec<u8>,
        missing: u32,
        tries: Vec<u32>,
    },
}

#[derive(Debug)]
struct Window {
    slot: u32,
    pages: u32,
    content: Content,
}

/// A segment being read.
#[derive(Debug)]
pub(crate) struct Windows {
    scanner: Scanner,
    end: u32,
    /// The first slot that was not asked for.
    next: u32,
    /// The number of the first window in the queue, counted from the segment's first.
    first: usize,
    queue: VecDeque<Window>,
}

impl Windows {
    /// Reads from `place` up to slot `end`.
    pub fn new(place: Place, end: u32) -> Self {
        Self {
            scanner: Scanner::new(place, end),
            end,
            next: place.first_slot,
            first: 0,
            queue: VecDeque::with_capacity(WINDOWS_MAX),
        }
    }

    /// Where it reads.
    pub fn place(&self) -> &Place {
        self.scanner.place()
    }

    /// The next window to be read, as long as few are.
    pub fn ask(&mut self) -> Option<Ask> {
        if self.next >= self.end || self.queue.len() >= WINDOWS_MAX {
            return None;
        }
        let (slot, pages) = (self.next, WINDOW_PAGES.min(self.end - self.next));
        let part = (self.first + self.queue.len()) * PARTS;
        self.queue.push_back(Window {
            slot,
            pages,
            content: Content::Awaited,
        });
        self.next += pages;
        Some(Ask { part, slot, pages })
    }

    /// A part came, or could not be read (none). Gives what is to be read for that, and the slot
    /// that is given up: it is scanned as zeros.
    pub fn came(&mut self, part: usize, bytes: Option<Bytes>) -> (Vec<Ask>, Option<u32>) {
        let (number, page) = (part / PARTS, part % PARTS);
        let at = number.checked_sub(self.first);
        let Some(window) = at.and_then(|at| self.queue.get_mut(at)) else {
            return (Vec::new(), None);
        };
        let (mut again, mut given_up) = (Vec::new(), None);
        match (&mut window.content, bytes) {
            (Content::Awaited, Some(bytes)) => window.content = Content::Came(bytes),
            (Content::Awaited, None) => {
                window.content = Content::Pages {
                    bytes: vec![0; to_usize(u64::from(window.pages) * PAGE_U64)],
                    missing: window.pages,
                    tries: vec![0; to_usize(u64::from(window.pages))],
                };
                again.extend((0..window.pages).map(|page| window.page(number, page)));
            }
            (
                Content::Pages {
                    bytes: all,
                    missing,
                    tries,
                },
                came,
            ) if page > 0 => {
                let page = page - 1;
                match came {
                    Some(came) => {
                        all[page * PAGE..(page + 1) * PAGE].copy_from_slice(&came);
                        *missing -= 1;
                    }
                    None => {
                        tries[page] += 1;
                        let page = u32::try_from(page).unwrap_or(u32::MAX);
                        if tries[page as usize] < READ_ATTEMPTS_MAX {
                            again.push(window.page(number, page));
                        } else {
                            *missing -= 1;
                            given_up = Some(window.slot + page);
                        }
                    }
                }
            }
            (Content::Pages { .. } | Content::Came(_), _) => {}
        }
        self.scan();
        (again, given_up)
    }

    /// Scans what came, in order.
    fn scan(&mut self) {
        while let Some(window) = self.queue.front() {
            match &window.content {
                Content::Came(bytes) => self.scanner.feed(bytes),
                Content::Pages {
                    bytes, missing: 0, ..
                } => self.scanner.feed(bytes),
                Content::Awaited | Content::Pages { .. } => return,
            }
            self.queue.pop_front();
            self.first += 1;
        }
    }

    /// Everything was read and scanned.
    pub fn is_done(&self) -> bool {
        self.next >= self.end && self.queue.is_empty()
    }

    /// What was found.
    pub fn finish(self) -> Scan {
        self.scanner.finish()
    }
}

impl Window {
    fn page(&self, number: usize, page: u32) -> Ask {
        Ask {
            part: number * PARTS + to_usize(u64::from(page)) + 1,
            slot: self.slot + page,
            pages: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::operation::{BlockInfo, Operation, RequestId};
    use crate::format::record::{header_pages_for, EntryKind, Item, ItemBody, RecordHeader};
    use crate::log::reader::scan;
    use esker_base::checksum::crc32;
    use esker_base::num::{to_u32_saturating, to_u64};
    use esker_base::{GroupId, RaftIndex, Seq, Stamp, StoreId, Term};

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005) | 1;
            self.0 = self.0.wrapping_add(1 << 40);
            (self.0 >> 33) % bound
        }
        fn index(&mut self, bound: usize) -> usize {
            to_usize(self.below(to_u64(bound)))
        }
    }

    fn place() -> Place {
        Place {
            store: StoreId(7),
            segment: 3,
            generation: 9,
            first_slot: 5,
            from: Seq(10),
        }
    }

    /// A record of writes of `sizes` blocks; headers of many pages come from writes of many blocks.
    fn record(seq: u64, slot: u32, sizes: &[u32], random: &mut Random) -> Vec<u8> {
        let mut items = crate::format::codec::Writer::new();
        let mut payload = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            let payload_page = to_u32_saturating(payload.len() / PAGE);
            let mut blocks = Vec::new();
            for _ in 0..*size {
                let page = vec![u8::try_from(random.below(256)).expect("small"); PAGE];
                blocks.push(BlockInfo::plain(crc32(&page)));
                payload.extend(page);
            }
            let (lba, stamp, key_id) = (random.below(1 << 30), Stamp(seq << 20), 0);
            let operation = Operation::Write {
                lba,
                stamp,
                key_id,
                blocks,
            };
            let data = operation.encode(RequestId::default());
            let body = ItemBody::Entry {
                term: Term(1),
                index: RaftIndex(seq * 1000 + to_u64(n)),
                kind: EntryKind::Normal,
                payload_page,
                payload_pages: *size,
                data: data.into(),
            };
            let (group, group_prev_seq) = (GroupId(1), Seq(0));
            let item = Item {
                group,
                group_prev_seq,
                body,
            };
            item.encode(&mut items);
        }
        let header = RecordHeader {
            header_pages: u16::try_from(header_pages_for(items.bytes.len())).expect("small"),
            payload_pages: to_u32_saturating(payload.len() / PAGE),
            store: place().store,
            generation: place().generation,
            segment: place().segment,
            slot,
            seq: Seq(seq),
            ..RecordHeader::default()
        };
        let (mut bytes, _) = header.encode(to_u32_saturating(sizes.len()), &items.bytes);
        bytes.extend(payload);
        bytes
    }

    /// Records of all sizes, some of them damaged, and what begins like one and is none.
    fn image(random: &mut Random) -> Vec<u8> {
        let mut image = Vec::new();
        for seq in 10..40 {
            let slot = place().first_slot + to_u32_saturating(image.len() / PAGE);
            let sizes: Vec<u32> = match random.below(4) {
                0 => vec![256],
                1 => vec![1; 1 + random.index(200)],
                2 => vec![0; 1 + random.index(600)],
                _ => vec![1 + to_u32_saturating(random.index(8)); 3],
            };
            let mut bytes = record(seq, slot, &sizes, random);
            match random.below(4) {
                0 => {
                    let at = random.index(bytes.len());
                    bytes[at] ^= 1;
                }
                1 => {
                    let (bytes_max, at) = (bytes.len(), random.index(4));
                    let copy = bytes[..PAGE].to_vec();
                    bytes.resize(bytes_max + at * PAGE, 0);
                    bytes.extend(copy);
                }
                _ => {}
            }
            image.extend(bytes);
        }
        image.resize(image.len() + random.index(300) * PAGE, 0);
        image
    }

    /// Whatever order windows come in, and whatever cannot be read in one piece, the scan is that
    /// of the whole segment.
    #[test]
    fn windows_are_scanned_like_the_whole_segment() {
        let mut seen = [0; 4];
        for seed in 1..40 {
            let mut random = Random(seed);
            let mut image = image(&mut random);
            let first = place().first_slot;
            let end = first + to_u32_saturating(image.len() / PAGE);
            // Page, and how often reading it fails.
            let mut fails: Vec<(u32, u32)> = (0..random.below(4))
                .map(|_| {
                    let page = first + to_u32_saturating(random.index(image.len() / PAGE));
                    (page, 1 + to_u32_saturating(random.index(4)))
                })
                .collect();
            let mut windows = Windows::new(place(), end);
            let (mut asked, mut given_up) = (Vec::new(), Vec::new());
            while !windows.is_done() {
                asked.extend(std::iter::from_fn(|| windows.ask()));
                assert!(windows.queue.len() <= WINDOWS_MAX && !asked.is_empty());
                let ask = asked.swap_remove(random.index(asked.len()));
                let mut failing = fails
                    .iter_mut()
                    .filter(|(page, n)| (ask.slot..ask.slot + ask.pages).contains(page) && *n > 0);
                let bytes = if let Some((_, left)) = failing.next() {
                    *left -= 1;
                    None
                } else {
                    let at = to_usize(u64::from(ask.slot - first)) * PAGE;
                    Some(Bytes::copy_from_slice(&image[at..at + ask.length()]))
                };
                let (again, lost) = windows.came(ask.part, bytes);
                asked.extend(again);
                given_up.extend(lost);
            }
            for slot in &given_up {
                let at = to_usize(u64::from(slot - first)) * PAGE;
                image[at..at + PAGE].fill(0);
            }
            let (found, whole) = (windows.finish(), scan(&place(), &image));
            assert_eq!(format!("{found:?}"), format!("{whole:?}"));
            let long = |f: &&crate::log::reader::Found| f.header.header_pages > 1;
            seen[0] += given_up.len();
            seen[1] += whole.broken_headers.len();
            seen[2] += whole.records.iter().filter(long).count();
            seen[3] += whole
                .records
                .iter()
                .map(|f| f.bad_blocks.len())
                .sum::<usize>();
        }
        assert!(seen.iter().all(|n| *n > 5), "{seen:?}");
    }

    /// What a scan finds is known here without a scan: every record, where it was put.
    #[test]
    fn records_are_found_where_they_are() {
        let mut random = Random(5);
        let (mut image, mut expected) = (Vec::new(), Vec::new());
        for seq in 10..80 {
            let slot = place().first_slot + to_u32_saturating(image.len() / PAGE);
            let sizes = vec![to_u32_saturating(random.index(9)); 1 + random.index(28)];
            image.extend(record(seq, slot, &sizes, &mut random));
            expected.push((Seq(seq), slot, sizes.len()));
            image.resize(image.len() + random.index(3) * PAGE, 0);
        }
        let found = scan(&place(), &image);
        let found: Vec<_> = found
            .records
            .iter()
            .inspect(|f| assert!(f.bad_blocks.is_empty()))
            .map(|f| (f.header.seq, f.header.slot, f.items.len()))
            .collect();
        assert_eq!(found, expected);
    }
}
