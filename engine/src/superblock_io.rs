//! Choosing among superblock copies, and the order in which they are rewritten.
//!
//! Two copies are written and synced before the other two are touched, so that whatever happens two
//! intact copies agree: the old ones until the first sync, the new ones after it. An opening that
//! finds copies that do not agree with the chosen ones begins with those: were it to begin with
//! copies 0 and 1 after a crash between the two halves, a second crash would leave the older pair
//! as the only quorum, and segments it needs may be overwritten by then.

use crate::error::OpenError;
use crate::format::codec::FormatError;
use crate::format::superblock::{Superblock, COPIES};

/// What the copies say.
#[derive(Clone, Debug)]
pub enum Choice {
    /// A store, and in which order its copies are to be rewritten: first those that differ.
    Store(Box<Superblock>, [u32; COPIES]),
    /// Nothing was ever written here.
    Blank,
}

/// Chooses the newest superblock that at least two copies agree on. `blank` says whether the
/// area in front of the segments is all zeros.
///
/// # Errors
/// When the pages are neither blank nor a store that can be opened.
pub fn choose(pages: &[Vec<u8>], blank: bool) -> Result<Choice, OpenError> {
    let mut valid: Vec<(u32, Superblock)> = Vec::new();
    let mut first_error: Option<FormatError> = None;
    let mut newer = None;
    let mut older = None;
    for (number, page) in pages.iter().enumerate() {
        match Superblock::decode(page) {
            Ok((sb, copy)) if copy as usize == number => valid.push((copy, sb)),
            Ok(_) => {
                let structure = "superblock";
                first_error.get_or_insert(FormatError {
                    structure,
                    problem: "copy is misplaced",
                });
            }
            Err(error) => {
                if error.problem.contains("newer version") {
                    newer.get_or_insert(error.clone());
                }
                if error.problem.contains("older version") {
                    older.get_or_insert(error.clone());
                }
                first_error.get_or_insert(error);
            }
        }
    }
    let mut best: Option<&Superblock> = None;
    for (_, sb) in &valid {
        let agree = valid.iter().filter(|(_, other)| other == sb).count();
        if agree >= 2 && best.is_none_or(|b| b.sequence < sb.sequence) {
            best = Some(sb);
        }
    }
    if let Some(sb) = best {
        let agrees = |copy: &u32| valid.iter().any(|(n, other)| n == copy && other == sb);
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(agrees); // stable: those that differ come first
        return Ok(Choice::Store(Box::new(sb.clone()), order));
    }
    if let Some(error) = newer {
        return Err(OpenError::Newer(error));
    }
    if let Some(error) = older {
        return Err(OpenError::Older(error));
    }
    if blank || half_formatted(pages, &valid) {
        return Ok(Choice::Blank);
    }
    let looks_like_ours = pages
        .iter()
        .any(|p| p.starts_with(&crate::format::superblock::MAGIC));
    match first_error {
        Some(first) if looks_like_ours => Err(OpenError::NoQuorum {
            valid: valid.len(),
            first,
        }),
        _ => Err(OpenError::Foreign),
    }
}

const _: () = assert!(COPIES == 4);

/// Formatting was cut short: the first superblock ever reached one of the copies written first, or
/// two attempts one each, and the others are as blank as they were. Nothing was ever written to
/// the log of such a store.
fn half_formatted(pages: &[Vec<u8>], valid: &[(u32, Superblock)]) -> bool {
    let is_first = |(copy, sb): &(u32, Superblock)| *copy < 2 && sb.sequence == 1;
    let others_blank = pages.iter().enumerate().all(|(n, page)| {
        valid.iter().any(|(copy, _)| *copy as usize == n) || page.iter().all(|b| *b == 0)
    });
    !valid.is_empty() && valid.iter().all(is_first) && others_blank
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sb(sequence: u64) -> Superblock {
        Superblock {
            segment_bytes: 1 << 20,
            segment_count: 64,
            sequence,
            ..Superblock::default()
        }
    }

    fn pages(copies: [Option<u64>; 4]) -> Vec<Vec<u8>> {
        let page = |(n, c): (usize, Option<u64>)| {
            c.map_or(vec![1; 4096], |s| {
                sb(s).encode(u32::try_from(n).expect("small"))
            })
        };
        copies.into_iter().enumerate().map(page).collect()
    }

    fn chosen(copies: [Option<u64>; 4]) -> Option<u64> {
        match choose(&pages(copies), false) {
            Ok(Choice::Store(sb, _)) => Some(sb.sequence),
            _ => None,
        }
    }

    #[test]
    fn every_crash_during_an_update_leaves_a_quorum() {
        assert_eq!(chosen([Some(2), None, Some(1), Some(1)]), Some(1));
        assert_eq!(chosen([None, None, Some(1), Some(1)]), Some(1));
        assert_eq!(chosen([Some(2), Some(2), Some(1), Some(1)]), Some(2));
        assert_eq!(chosen([Some(2), Some(2), None, None]), Some(2));
        assert_eq!(chosen([Some(2), Some(2), None, Some(1)]), Some(2));
        assert_eq!(chosen([Some(2), None, None, Some(1)]), None);
    }

    #[test]
    fn copies_that_differ_are_rewritten_first() {
        let order = |copies| match choose(&pages(copies), false) {
            Ok(Choice::Store(_, order)) => order,
            other => panic!("{other:?}"),
        };
        assert_eq!(order([Some(2); 4]), [0, 1, 2, 3]);
        assert_eq!(order([Some(2), Some(2), Some(1), Some(1)]), [2, 3, 0, 1]);
        assert_eq!(order([Some(2), None, Some(2), Some(2)]), [1, 0, 2, 3]);
    }

    #[test]
    fn a_format_cut_short_is_blank_and_a_store_that_lost_copies_is_not() {
        let zeros = vec![0; 4096];
        let blank = |copies: [Option<u64>; 2]| {
            let mut pages = pages([copies[0], copies[1], None, None]);
            for n in 0..4 {
                if n >= 2 || copies[n].is_none() {
                    pages[n] = zeros.clone();
                }
            }
            matches!(choose(&pages, false), Ok(Choice::Blank))
        };
        assert!(blank([Some(1), None]) && blank([None, Some(1)]));
        assert!(!blank([Some(2), None]));
    }

    #[test]
    fn foreign_blank_and_damaged_are_told_apart() {
        assert!(matches!(
            choose(&pages([None; 4]), false),
            Err(OpenError::Foreign)
        ));
        assert!(matches!(
            choose(&vec![vec![0; 4096]; 4], true),
            Ok(Choice::Blank)
        ));
        let damaged = choose(&pages([Some(1), None, None, None]), false);
        assert!(matches!(damaged, Err(OpenError::NoQuorum { valid: 1, .. })));
    }
}
