//! What operators ask about keys: which a volume has, and to wrap them anew.

use crate::admin::{AdminError, AdminReply, EpochReport, KeyNeed, KeyReport};
use crate::control::Outcome;
use crate::event::{AdminToken, Effect, KeyAsk};
use crate::keys::{first_key, name_of, Area, Dek, Rotation, Then, SLOTS_FULL};
use crate::node::Node;
use esker_base::num::to_u64;
use esker_base::{GroupId, VolumeId};
use esker_crypto::{KeyName, WrappedKey};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a key that another node has placed is kept for a volume that does not begin.
const PLACED_TIME_MAX: Duration = Duration::from_secs(10 * 60);
/// Rotations on their way; further ones are refused.
const ROTATIONS_MAX: usize = 64;

impl Node {
    pub(crate) fn encrypted(&self, name: &str) -> Result<GroupId, AdminError> {
        let id = self.find(name)?;
        match self.volumes.get(&id).is_some_and(|v| v.key_id != 0) {
            true => Ok(id),
            false => Err(AdminError::Refused(format!(
                "volume {name} is not encrypted and has no keys"
            ))),
        }
    }

    fn keys_of_volume(&self, id: GroupId) -> BTreeSet<KeyName> {
        let keys = self.engine.keys_of(id).into_iter();
        keys.filter_map(name_of).collect()
    }

    fn wrapped(&self, name: KeyName) -> Option<&WrappedKey> {
        let Area::Open(area) = &self.keys.area else {
            return None;
        };
        area.keys().map(|(_, key)| key).find(|k| k.name() == name)
    }

    /// The keys that a volume reads and writes with.
    pub(crate) fn key_show(&self, name: &str) -> Outcome {
        let id = self.encrypted(name)?;
        let own = self.volumes.get(&id).map(|v| v.id);
        let epochs = self.engine.epochs(id);
        let reports = self.keys_of_volume(id).into_iter().map(|key| {
            let wrapped = self.wrapped(key);
            let kek = wrapped.map_or("", |w| w.kek().as_str());
            let with = |e: &&esker_engine::format::checkpoint::EpochEntry| {
                (e.volume, e.key_id) == (key.volume, key.key.get())
            };
            let of: Vec<u32> = epochs.iter().filter(with).map(|e| e.epoch.0).collect();
            let (state, reason) = match self.keys.deks.get(&key) {
                Some(Dek::Here(_)) => ("open", ""),
                Some(Dek::Away(why)) => ("locked", why.as_str()),
                Some(Dek::Asked) | None => ("waiting", ""),
            };
            KeyReport {
                volume_uuid: key.volume.to_string(),
                key_id: key.key.get(),
                is_own: own == Some(key.volume),
                provider: kek.split(':').next().unwrap_or("").into(),
                kek: kek.into(),
                state: state.into(),
                reason: reason.into(),
                needed_by: self.needed_by(id, key),
                epochs: of.first().zip(of.last()).map(|(first, last)| EpochReport {
                    first: *first,
                    last: *last,
                    count: to_u64(of.len()),
                }),
            }
        });
        Ok(Some(AdminReply::Keys(reports.collect())))
    }

    /// The keys that a volume reads and writes with, as this store keeps them; the one that a new copy begins with first.
    pub(crate) fn keys_wrapped(&self, name: &str) -> Outcome {
        let id = self.encrypted(name)?;
        let all = self.keys_of_volume(id);
        let first = self.volumes.get(&id).and_then(|volume| {
            let newest = name_of((volume.id, volume.key_id));
            let first = first_key(volume.id);
            newest.map(|newest| if all.contains(&first) { first } else { newest })
        });
        let others = all.into_iter().filter(|key| Some(*key) != first);
        let all = first.into_iter().chain(others);
        let wrapped = all.map(|key| self.wrapped(key).cloned());
        match wrapped.collect::<Option<Vec<_>>>() {
            Some(wrapped) => Ok(Some(AdminReply::Wrapped(wrapped))),
            None => Err(AdminError::Refused(format!(
                "a key of volume {name} is in no slot of this store"
            ))),
        }
    }

    /// Keeps keys that another node gives: what is in a slot already stays as it is. A key that was made just now is
    /// refused where another one has its number: it was made by whoever led before, and did not come into force.
    pub(crate) fn keys_place(
        &mut self,
        token: AdminToken,
        keys: Vec<WrappedKey>,
        fresh: bool,
    ) -> Outcome {
        self.writable()?;
        let taken = keys.iter().map(WrappedKey::name);
        let taken = taken.filter(|name| fresh && self.wrapped(*name).is_some());
        if let Some(name) = taken.last() {
            return Err(AdminError::Exists(format!(
                "another key {} of volume {} is there already; try again",
                name.key, name.volume
            )));
        }
        let refused = |why: &str| AdminError::Refused(format!("no key can be kept: {why}"));
        if let Some(why) = self.keys.refusal() {
            return Err(refused(&why));
        }
        self.forget_old_places();
        let (mut changes, mut is_full) = (Vec::new(), false);
        for wrapped in keys {
            let name = wrapped.name();
            if self.wrapped(name).is_some() {
                continue;
            }
            let Area::Open(area) = &mut self.keys.area else {
                return Err(refused("its slots are not open"));
            };
            let Some((_, pages)) = area.add(wrapped.clone()) else {
                is_full = true;
                break;
            };
            changes.extend(pages.0);
            self.keys.reserved.insert(name);
            self.keys.placed.insert(name, self.now);
            self.keys.deks.insert(name, Dek::Asked);
            self.keys.asks.push(KeyAsk::Open(wrapped));
        }
        if is_full {
            // What has a slot by now has to be there on the device, too.
            if !changes.is_empty() {
                self.keys.change(changes, Then::Nothing);
            }
            return Err(refused(SLOTS_FULL));
        }
        if !changes.is_empty() {
            self.keys.change(changes, Then::Answer(token));
            return Ok(None);
        }
        match self.keys.is_durable() {
            true => Ok(Some(AdminReply::Done)),
            false => Err(refused("others are on their way to the device; try again")),
        }
    }

    /// Keys that were placed long ago for volumes that have not begun are not reserved any more.
    fn forget_old_places(&mut self) {
        let now = self.now;
        let (kept, old): (Vec<_>, Vec<_>) = std::mem::take(&mut self.keys.placed)
            .into_iter()
            .partition(|(_, at)| *at + PLACED_TIME_MAX > now);
        self.keys.placed = kept.into_iter().collect();
        for (name, _) in old {
            self.keys.reserved.remove(&name);
            self.keys.sweep();
        }
    }

    /// Whether the first key of a volume that is about to begin is here.
    pub(crate) fn has_first_key(&self, volume: VolumeId) -> bool {
        self.wrapped(first_key(volume)).is_some()
    }

    /// Whether a volume of this name is here and a key of it is in no slot.
    #[must_use]
    pub fn lacks_keys_of(&self, name: &str) -> bool {
        self.find(name).is_ok_and(|id| self.lacks_keys(id))
    }

    /// Whether a key of a volume is in no slot: another node has to give it.
    pub(crate) fn lacks_keys(&self, id: GroupId) -> bool {
        let is_open = matches!(self.keys.area, Area::Open(_));
        let mut keys = self.keys_of_volume(id).into_iter();
        is_open && keys.any(|key| self.wrapped(key).is_none())
    }

    /// What keeps an older key of a volume.
    fn needed_by(&self, id: GroupId, key: KeyName) -> Option<KeyNeed> {
        let newest = self.volumes.get(&id).map(|v| (v.id, v.key_id));
        if newest == Some((key.volume, key.key.get())) {
            return None;
        }
        let older = self.engine.older_keys(id);
        let others = self
            .volumes
            .iter()
            .filter(|(other, v)| **other != id && !v.deleting);
        let others = others.filter(|(other, _)| self.keys_of_volume(**other).contains(&key));
        Some(KeyNeed {
            volume: older.head,
            snapshots: to_u64(older.snapshots),
            rewind_points: to_u64(older.points),
            volumes: others.map(|(_, v)| v.name.clone()).collect(),
        })
    }

    /// Has the keys of a volume wrapped under their provider's newest KEK, which leaves them what they are; or
    /// gives it another data key.
    pub(crate) fn key_rotate(&mut self, token: AdminToken, name: &str, data_key: bool) -> Outcome {
        let group = self.encrypted(name)?;
        self.writable()?;
        self.require_keys()?;
        if data_key {
            return self.rekey(token, group);
        }
        if self.keys.rotations.len() >= ROTATIONS_MAX {
            return Err(AdminError::Refused(format!(
                "{ROTATIONS_MAX} rotations are on their way; try again"
            )));
        }
        let left = self.keys_of_volume(group);
        let mut asks = Vec::new();
        for key in &left {
            match self.wrapped(*key) {
                Some(wrapped) => asks.push(KeyAsk::Rewrap(wrapped.clone())),
                None => {
                    return Err(AdminError::Refused(format!(
                        "key {} of volume {} is in no key slot of the store",
                        key.key, key.volume
                    )))
                }
            }
        }
        self.keys.asks.extend(asks);
        self.keys.rotations.push(Rotation { token, group, left });
        Ok(None)
    }

    /// A provider has wrapped a key anew, or has not.
    pub(crate) fn key_rewrapped(
        &mut self,
        name: KeyName,
        result: Result<WrappedKey, String>,
        effects: &mut Vec<Effect>,
    ) {
        let pages = match (result, &mut self.keys.area) {
            (Ok(wrapped), Area::Open(area)) if wrapped.name() == name => {
                match area.find(name.volume, name.key) {
                    Some(slot) => Ok(area.replace(slot, wrapped)),
                    None => Err("the volume has gone".into()),
                }
            }
            (Err(why), _) => Err(why),
            (Ok(_), _) => Err("the key slots of the store cannot be written".into()),
        };
        match pages {
            Ok(pages) => self.keys.change(pages.0, Then::Rewrapped(name)),
            Err(why) => {
                let rotations = std::mem::take(&mut self.keys.rotations).into_iter();
                let (failed, rest): (Vec<_>, Vec<_>) =
                    rotations.partition(|r| r.left.contains(&name));
                self.keys.rotations = rest;
                for rotation in failed {
                    let refused = AdminError::Refused(why.clone());
                    Self::answer(rotation.token, Err(refused), effects);
                }
            }
        }
    }

    /// The new wrapping is durable, and the old one is gone.
    pub(crate) fn rewrapped(&mut self, name: KeyName, effects: &mut Vec<Effect>) {
        for rotation in &mut self.keys.rotations {
            rotation.left.remove(&name);
        }
        let rotations = std::mem::take(&mut self.keys.rotations).into_iter();
        let (done, rest): (Vec<_>, Vec<_>) = rotations.partition(|r| r.left.is_empty());
        self.keys.rotations = rest;
        for Rotation { token, group, .. } in done {
            let shown = self.volumes.get(&group).map(|v| v.name.clone());
            let shown = shown.map(|name| self.key_show(&name));
            let reply = match shown {
                Some(Ok(Some(reply))) => Ok(reply),
                _ => Ok(AdminReply::Done),
            };
            Self::answer(token, reply, effects);
        }
    }
}
