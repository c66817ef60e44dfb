//! Which slots of a run are live, in as little memory as the set allows: nothing when all or none
//! are, a list when few are or few are not, else a bit each.

use std::sync::Arc;

/// A set of ranks below a bound.
#[derive(Clone, Debug)]
pub struct Live {
    slots: u32,
    count: u32,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// None.
    None,
    /// All of them.
    All,
    /// Sorted: those that are live, or those that are not.
    List { live: bool, ranks: Arc<Vec<u16>> },
    /// A bit each.
    Bits(Arc<Vec<u64>>),
}

impl Live {
    /// None of so many slots.
    #[must_use]
    pub fn none(slots: u32) -> Self {
        let (count, form) = (0, Form::None);
        Self { slots, count, form }
    }

    /// All of them.
    #[must_use]
    pub fn all(slots: u32) -> Self {
        let (count, form) = (slots, Form::All);
        Self { slots, count, form }
    }

    /// From bits, 64 to a word; none when there are not as many words as slots need, or bits beyond.
    #[must_use]
    pub fn from_words(slots: u32, words: Vec<u64>) -> Option<Self> {
        let beyond = words
            .last()
            .is_some_and(|word| !slots.is_multiple_of(64) && word >> (slots % 64) != 0);
        if words.len() != (slots as usize).div_ceil(64) || beyond {
            return None;
        }
        let count = words.iter().map(|word| word.count_ones()).sum();
        let form = Form::Bits(Arc::new(words));
        let mut this = Self { slots, count, form };
        this.fit();
        Some(this)
    }

    /// From sorted ranks that are live, or that are not; none when they are out of order or range.
    #[must_use]
    pub fn from_list(slots: u32, live: bool, ranks: Vec<u16>) -> Option<Self> {
        let rises = ranks.windows(2).all(|pair| pair[0] < pair[1]);
        if !rises || ranks.last().is_some_and(|last| u32::from(*last) >= slots) {
            return None;
        }
        let listed = u32::try_from(ranks.len()).ok()?;
        let count = if live { listed } else { slots - listed };
        let ranks = Arc::new(ranks);
        let form = Form::List { live, ranks };
        let mut this = Self { slots, count, form };
        this.fit();
        Some(this)
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Number of live ones.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether a rank is live.
    #[must_use]
    pub fn get(&self, rank: u32) -> bool {
        if rank >= self.slots {
            return false;
        }
        match &self.form {
            Form::None => false,
            Form::All => true,
            Form::List { live, ranks } => {
                let listed = u16::try_from(rank).is_ok_and(|r| ranks.binary_search(&r).is_ok());
                listed == *live
            }
            Form::Bits(words) => words[rank as usize / 64] >> (rank % 64) & 1 == 1,
        }
    }

    /// Makes a rank live or dead; false when it was so already, or is out of range.
    pub fn set(&mut self, rank: u32, live: bool) -> bool {
        if rank >= self.slots || self.get(rank) == live {
            return false;
        }
        let Ok(short) = u16::try_from(rank) else {
            return false;
        };
        match &mut self.form {
            Form::None | Form::All => {
                let ranks = Arc::new(vec![short]);
                self.form = Form::List { live, ranks };
            }
            Form::List {
                live: listed,
                ranks,
            } => {
                let ranks = Arc::make_mut(ranks);
                match ranks.binary_search(&short) {
                    Err(at) if *listed == live => ranks.insert(at, short),
                    Ok(at) => _ = ranks.remove(at),
                    Err(_) => return false,
                }
            }
            Form::Bits(words) => {
                Arc::make_mut(words)[rank as usize / 64] ^= 1 << (rank % 64);
            }
        }
        if live {
            self.count += 1;
        } else {
            self.count -= 1;
        }
        self.fit();
        true
    }

    /// Chooses the form anew when another is clearly smaller.
    fn fit(&mut self) {
        if self.count == 0 {
            self.form = Form::None;
        } else if self.count == self.slots {
            self.form = Form::All;
        }
        let few = self.count.min(self.slots - self.count);
        match &self.form {
            Form::Bits(_) if few * 32 < self.slots => {
                let live = self.count * 2 <= self.slots;
                let ranks = Arc::new(self.ranks(live));
                self.form = Form::List { live, ranks };
            }
            Form::List { ranks, .. } if ranks.len() * 16 > self.slots as usize => {
                self.form = Form::Bits(Arc::new(self.words()));
            }
            _ => {}
        }
    }

    /// The live ranks, or the others, in order.
    #[must_use]
    pub fn ranks(&self, live: bool) -> Vec<u16> {
        if let Form::List {
            live: listed,
            ranks,
        } = &self.form
        {
            if *listed == live {
                return ranks.to_vec();
            }
        }
        let all = 0..u16::try_from(self.slots).unwrap_or(u16::MAX);
        let chosen = |rank: &u16| self.get(u32::from(*rank)) == live;
        match (&self.form, live) {
            (Form::None, true) | (Form::All, false) => Vec::new(),
            (Form::None, false) | (Form::All, true) => all.collect(),
            (Form::List { .. } | Form::Bits(_), _) => all.filter(chosen).collect(),
        }
    }

    /// The bits, 64 to a word.
    #[must_use]
    pub fn words(&self) -> Vec<u64> {
        if let Form::Bits(words) = &self.form {
            return words.to_vec();
        }
        let mut words = vec![0u64; (self.slots as usize).div_ceil(64)];
        for rank in self.ranks(true) {
            words[usize::from(rank) / 64] |= 1 << (rank % 64);
        }
        words
    }
}

impl PartialEq for Live {
    fn eq(&self, other: &Self) -> bool {
        let same = self.slots == other.slots && self.count == other.count;
        same && self.words() == other.words()
    }
}

impl Eq for Live {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Whatever the form: what is in the set is what was put there.
        #[test]
        fn a_set_of_any_form_is_a_set(
            slots in 1u32..700,
            fill in any::<bool>(),
            changes in prop::collection::vec((0u32..700, any::<bool>()), 0..900),
        ) {
            let mut live = if fill { Live::all(slots) } else { Live::none(slots) };
            let mut model: BTreeSet<u32> = if fill { (0..slots).collect() } else { BTreeSet::new() };
            for (rank, to) in changes {
                let changed = rank < slots && if to { model.insert(rank) } else { model.remove(&rank) };
                prop_assert_eq!(live.set(rank, to), changed);
                prop_assert_eq!(live.count() as usize, model.len());
            }
            let ranks: Vec<u32> = live.ranks(true).into_iter().map(u32::from).collect();
            prop_assert_eq!(&ranks, &model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(live.ranks(false).len() + model.len(), slots as usize);
            for rank in 0..701 {
                prop_assert_eq!(live.get(rank), model.contains(&rank));
            }
            prop_assert_eq!(Live::from_words(slots, live.words()), Some(live.clone()));
            for listed in [true, false] {
                prop_assert_eq!(Live::from_list(slots, listed, live.ranks(listed)), Some(live.clone()));
            }
        }
    }

    #[test]
    fn whole_sets_take_no_memory_and_bits_go_when_few_are_left() {
        let mut live = Live::none(16384);
        for rank in 0..16384 {
            assert!(live.set(rank, true));
        }
        assert!(matches!(live.form, Form::All));
        for rank in 0..16000 {
            assert!(live.set(rank, false));
            if rank == 8000 {
                assert!(matches!(live.form, Form::Bits(_)));
            }
        }
        assert!(matches!(live.form, Form::List { live: true, .. }));
    }

    #[test]
    fn bits_beyond_and_lists_out_of_order_are_refused() {
        assert!(Live::from_words(3, vec![0b111]).is_some());
        assert!(Live::from_words(3, vec![0b1111]).is_none());
        assert!(Live::from_words(3, vec![]).is_none());
        assert!(Live::from_list(3, true, vec![1, 1]).is_none());
        assert!(Live::from_list(3, false, vec![3]).is_none());
    }
}
