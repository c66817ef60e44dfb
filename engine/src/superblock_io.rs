//! Choosing among superblock copies, and the order in which they are rewritten.
//!
//! Copies 0 and 1 are written and synced before copies 2 and 3 are touched, so that whatever
//! happens two intact copies agree: the old ones until the first sync, the new ones after it. Before
//! the next update all four agree again, because recovery rewrites them all.

use crate::error::OpenError;
use crate::format::codec::FormatError;
use crate::format::superblock::{Superblock, COPIES};

/// What the copies say.
#[derive(Clone, Debug)]
pub enum Choice {
    /// A store; the number of copies that agree on it.
    Store(Box<Superblock>, usize),
    /// Nothing was ever written here.
    Blank,
}

/// Chooses the newest superblock that at least two copies agree on. `blank` says whether the
/// area in front of the segments is all zeros.
///
/// # Errors
/// When the pages are neither blank nor a store that can be opened.
pub fn choose(pages: &[Vec<u8>], blank: bool) -> Result<Choice, OpenError> {
    let mut valid: Vec<Superblock> = Vec::new();
    let mut first_error: Option<FormatError> = None;
    let mut newer = None;
    for (number, page) in pages.iter().enumerate() {
        match Superblock::decode(page) {
            Ok((sb, copy)) if copy as usize == number => valid.push(sb),
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
                first_error.get_or_insert(error);
            }
        }
    }
    let mut best: Option<(Superblock, usize)> = None;
    for sb in &valid {
        let agree = valid.iter().filter(|other| *other == sb).count();
        if agree >= 2 && best.as_ref().is_none_or(|(b, _)| b.sequence < sb.sequence) {
            best = Some((sb.clone(), agree));
        }
    }
    if let Some((sb, agree)) = best {
        return Ok(Choice::Store(Box::new(sb), agree));
    }
    if let Some(error) = newer {
        return Err(OpenError::Newer(error));
    }
    if blank {
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
