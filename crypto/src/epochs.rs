//! The block keys in use. Each is derived from a DEK when it is first needed and kept here, a bounded
//! number of them; what is dropped is wiped and can be derived again.

use crate::block::BlockKey;
use esker_base::{Epoch, VolumeId};
use rustc_hash::FxHashMap;

/// Names a block key. The salt belongs to the name: an older image of a store that is opened again
/// gives an epoch's number a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EpochId {
    /// The volume that wrote the blocks.
    pub volume: VolumeId,
    /// The epoch they were written in.
    pub epoch: Epoch,
    /// The salt of the epoch's entry.
    pub salt: u128,
}

struct Kept {
    id: EpochId,
    key: BlockKey,
    /// Used since the hand passed last.
    used: bool,
}

/// Block keys, at most as many as it was made for. What was not used for longest goes first, roughly:
/// a hand goes round and takes what was not used since it last came by.
pub struct EpochKeys {
    capacity: usize,
    places: FxHashMap<EpochId, usize>,
    kept: Vec<Kept>,
    hand: usize,
}

impl EpochKeys {
    /// Room for `capacity` keys, at least one. A key takes about 1 KiB.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            places: FxHashMap::default(),
            kept: Vec::new(),
            hand: 0,
        }
    }

    /// The key, made by `derive` unless it is here.
    ///
    /// # Errors
    /// What `derive` returns: the DEK may not be unlocked.
    pub fn get<E>(
        &mut self,
        id: EpochId,
        derive: impl FnOnce() -> Result<BlockKey, E>,
    ) -> Result<&BlockKey, E> {
        let place = match self.places.get(&id) {
            Some(place) => {
                self.kept[*place].used = true;
                *place
            }
            None => self.keep(id, derive()?),
        };
        Ok(&self.kept[place].key)
    }

    /// Wipes every key of a volume: it is locked, or gone.
    pub fn forget(&mut self, volume: VolumeId) {
        self.kept.retain(|kept| kept.id.volume != volume);
        let places = self.kept.iter().enumerate();
        self.places = places.map(|(place, kept)| (kept.id, place)).collect();
        self.hand = 0;
    }

    /// Keys that are here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn keep(&mut self, id: EpochId, key: BlockKey) -> usize {
        let used = false; // a scan over many epochs does not drive out what is used again and again
        let kept = Kept { id, key, used };
        let place = if self.kept.len() < self.capacity {
            self.kept.push(kept);
            self.kept.len() - 1
        } else {
            let place = self.oldest();
            self.places.remove(&self.kept[place].id);
            self.kept[place] = kept;
            place
        };
        self.places.insert(id, place);
        place
    }

    /// Goes round once at most: after a round nothing is marked as used.
    fn oldest(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = (place + 1) % self.kept.len();
            if !std::mem::take(&mut self.kept[place].used) {
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::Backend;
    use crate::secret::DataKey;

    fn id(volume: u128, epoch: u32) -> EpochId {
        let (volume, epoch) = (VolumeId(volume), Epoch(epoch));
        let salt = 5;
        EpochId {
            volume,
            epoch,
            salt,
        }
    }

    fn key(id: EpochId) -> Result<BlockKey, ()> {
        let dek = DataKey::filled(|_| ());
        let backend = Backend::AwsLc;
        Ok(BlockKey::derive(
            backend, &dek, id.volume, id.epoch, id.salt,
        ))
    }

    fn is_here(keys: &mut EpochKeys, id: EpochId) -> bool {
        keys.get(id, || Err(())).is_ok()
    }

    #[test]
    fn no_more_than_the_capacity_and_what_is_used_stays() {
        let mut keys = EpochKeys::new(8);
        for epoch in 1..=100 {
            let busy = id(1, 1);
            assert_eq!(keys.get(busy, || key(busy)).unwrap().epoch(), Epoch(1));
            let id = id(2, epoch);
            assert_eq!(keys.get(id, || key(id)).unwrap().epoch(), Epoch(epoch));
            assert!(keys.len() <= 8);
            assert!(is_here(&mut keys, busy), "what is always used stays");
        }
        assert!(!is_here(&mut keys, id(2, 1)));
        assert!(is_here(&mut keys, id(2, 100)));
    }

    #[test]
    fn another_salt_is_another_key() {
        let mut keys = EpochKeys::new(8);
        let one = id(1, 1);
        keys.get(one, || key(one)).unwrap();
        assert!(!is_here(&mut keys, EpochId { salt: 6, ..one }));
    }

    #[test]
    fn a_volume_is_forgotten_whole_and_others_are_not() {
        let mut keys = EpochKeys::new(8);
        for n in 0..8 {
            let id = id(u128::from(n % 2), n);
            keys.get(id, || key(id)).unwrap();
        }
        keys.forget(VolumeId(1));
        assert_eq!(keys.len(), 4);
        for n in 0..8 {
            let epoch = id(u128::from(n % 2), n);
            assert_eq!(is_here(&mut keys, epoch), n % 2 == 0);
            let found = keys.get(epoch, || key(epoch)).unwrap();
            assert_eq!(found.epoch(), Epoch(n), "places are right afterwards");
        }
    }

    #[test]
    fn a_locked_volume_has_no_key() {
        let mut keys = EpochKeys::new(0);
        assert!(keys.get(id(1, 1), || Err("locked")).is_err());
        assert!(keys.is_empty());
    }
}
