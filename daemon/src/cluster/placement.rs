//! Which nodes get copies of a volume: as far apart as labels say, then where there is most room.

use esker_base::Place;
use std::collections::BTreeMap;

/// What an operator says about where a node stands: `zone = "a"`.
pub type Labels = BTreeMap<String, String>;

/// A store that would take a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one; of a node that has none yet.
    pub place: Place,
    /// Its free space in bytes.
    pub free_bytes: u64,
    /// Where its node stands.
    pub labels: Labels,
    /// It is of the node that was asked, which is taken when nothing speaks for another one.
    pub is_here: bool,
}

/// The best ones for so many more copies beside those on nodes with the labels `others`; fewer when there are not so many.
///
/// `spread` names labels, the one that matters most first: copies share as few values of the first one as can be, then of the
/// second one, and so on. Nodes without a label count as sharing it with each other. Of equals the one with most free
/// space is taken.
#[must_use]
pub fn choose(
    mut candidates: Vec<Candidate>,
    others: &[&Labels],
    spread: &[String],
    count: usize,
) -> Vec<Place> {
    let mut taken: Vec<Labels> = others.iter().map(|labels| (*labels).clone()).collect();
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let shared = |candidate: &Candidate, key: &String| {
            let own = candidate.labels.get(key);
            taken.iter().filter(|labels| labels.get(key) == own).count()
        };
        let best = candidates.iter().enumerate().min_by_key(|(_, candidate)| {
            let shares: Vec<usize> = spread.iter().map(|key| shared(candidate, key)).collect();
            (shares, !candidate.is_here, u64::MAX - candidate.free_bytes)
        });
        let Some((index, _)) = best else {
            break;
        };
        let best = candidates.swap_remove(index);
        candidates.retain(|other| other.place.node != best.place.node);
        taken.push(best.labels);
        chosen.push(best.place);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_base::NodeId;

    fn labels(text: &str) -> Labels {
        let pairs = text
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='));
        pairs.map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    /// Nodes from 1 on, with their labels and free space; the first one is asked.
    fn nodes(of: &[(&str, u64)]) -> Vec<Candidate> {
        let candidate = |(index, (text, free_bytes)): (usize, &(&str, u64))| Candidate {
            place: Place {
                node: NodeId(index as u64 + 1),
                store: 0,
            },
            free_bytes: *free_bytes,
            labels: labels(text),
            is_here: index == 0,
        };
        of.iter().enumerate().map(candidate).collect()
    }

    fn chosen(of: &[(&str, u64)], others: &[&str], count: usize) -> Vec<u64> {
        let others: Vec<Labels> = others.iter().map(|text| labels(text)).collect();
        let others: Vec<&Labels> = others.iter().collect();
        let spread = ["zone".to_string(), "rack".to_string()];
        let places = choose(nodes(of), &others, &spread, count);
        places.iter().map(|place| place.node.0).collect()
    }

    #[test]
    fn without_labels_room_decides_and_the_one_that_was_asked_comes_first() {
        let of = [("", 1), ("", 5), ("", 9), ("", 7)];
        assert_eq!(chosen(&of, &[], 3), [1, 3, 4]);
        assert_eq!(chosen(&of, &[], 9), [1, 3, 4, 2]);
        assert_eq!(chosen(&[], &[], 1), [0; 0]);
    }

    #[test]
    fn zones_come_before_racks_and_both_before_room() {
        let of = [
            ("zone=a rack=1", 5),
            ("zone=a rack=2", 99),
            ("zone=b rack=1", 1),
            ("zone=b rack=2", 2),
        ];
        // One of each zone, and the racks differ.
        assert_eq!(chosen(&of, &[], 2), [1, 4]);
        // Of the third both zones have one: the rack that has none, then the room.
        assert_eq!(chosen(&of, &[], 3), [1, 4, 2]);
    }

    #[test]
    fn copies_that_are_there_count() {
        let of = [("zone=a", 9), ("zone=b", 1)];
        assert_eq!(chosen(&of, &["zone=a"], 1), [2]);
        assert_eq!(chosen(&of, &["zone=a", "zone=b", "zone=b"], 1), [1]);
        // A node that says nothing is in one zone with others that say nothing.
        assert_eq!(chosen(&[("", 9), ("zone=a", 1)], &[""], 1), [2]);
    }

    #[test]
    fn a_node_gets_one_copy_however_many_stores_it_has() {
        let mut of = nodes(&[("", 5), ("", 1)]);
        let mut second = of[0].clone();
        second.place.store = 1;
        of.push(second);
        let places = choose(of, &[], &[], 3);
        assert_eq!(places.len(), 2);
    }
}
