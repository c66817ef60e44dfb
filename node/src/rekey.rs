//! Another data key for a volume: made and wrapped outside, durable in a slot, and then in force with the epoch that
//! the volume's log opens under it. What was written before is sealed anew behind it ([`crate::reseal`]).

use crate::admin::{AdminError, AdminReply};
use crate::control::Outcome;
use crate::event::{AdminToken, Effect};
use crate::groups::unsure;
use crate::keys::{Area, KeyFor, Lock};
use crate::node::Node;
use crate::volume::{EpochState, Volume};
use esker_base::{GroupId, VolumeId};
use esker_crypto::{KeyId, KeyName};

/// A data key that is to be in force.
#[derive(Debug)]
pub(crate) struct Rekey {
    /// Who waits for it.
    pub token: AdminToken,
    /// Its number.
    pub key_id: u32,
    /// It lies in its slot: an epoch may be opened under it.
    pub is_durable: bool,
}

impl Volume {
    /// The key that the next epoch is opened under.
    pub(crate) fn next_key(&self) -> u32 {
        let next = self.rekey.as_ref().filter(|r| r.is_durable);
        next.map_or(self.key_id, |r| r.key_id)
    }
}

impl Node {
    /// Gives a volume another data key.
    pub(crate) fn rekey(&mut self, token: AdminToken, id: GroupId) -> Outcome {
        if let Some(volume) = self.volumes.get(&id).filter(|v| v.spans) {
            let name = &volume.name;
            return Err(AdminError::Refused(format!(
                "volume {name} has several copies, and this version cannot give such a volume another data key; \
                 leave --data-key away to wrap the one it has anew"
            )));
        }
        let key = self.next_key_name(id)?;
        self.set_rekey(token, id, key.key.get(), false)?;
        self.make_key(key, KeyFor::Rotation(token, id));
        Ok(None)
    }

    /// The first number that no key of a volume has, in its log or in a slot.
    fn next_key_name(&self, id: GroupId) -> Result<KeyName, AdminError> {
        let volume = self.volumes.get(&id).map(|v| (v.id, v.key_id));
        let (volume, key_id) = volume.unwrap_or((VolumeId(0), 0));
        let mut last = key_id;
        if let Area::Open(area) = &self.keys.area {
            let names = area.keys().map(|(_, key)| key.name());
            let own = names.filter(|name| name.volume == volume);
            last = own.map(|name| name.key.get()).fold(last, u32::max);
        }
        let key = last.checked_add(1).and_then(KeyId::new);
        let key =
            key.ok_or_else(|| AdminError::Refused("the volume has used all key numbers".into()))?;
        Ok(KeyName { volume, key })
    }

    fn set_rekey(
        &mut self,
        token: AdminToken,
        id: GroupId,
        key_id: u32,
        is_durable: bool,
    ) -> Result<(), AdminError> {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Ok(());
        };
        let name = &volume.name;
        if !volume.is_serving() || volume.lock != Lock::Open {
            return Err(AdminError::Refused(format!(
                "volume {name} does not serve now"
            )));
        }
        if volume.rekey.is_some() {
            return Err(AdminError::Refused(format!(
                "volume {name} is being given another data key; try again"
            )));
        }
        volume.rekey = Some(Rekey {
            token,
            key_id,
            is_durable,
        });
        Ok(())
    }

    /// The key lies in its slot.
    pub(crate) fn rekey_durable(&mut self, token: AdminToken, id: GroupId) {
        let volume = self.volumes.get_mut(&id);
        let rekey = volume.and_then(|v| v.rekey.as_mut().map(|r| (v.id, r)));
        if let Some((volume, rekey)) = rekey.filter(|(_, r)| r.token == token) {
            rekey.is_durable = true;
            let key_id = rekey.key_id;
            // Checkpoints sign with it from the epoch on.
            _ = self.vouch(id, volume);
            // From now on it stays for as long as the volume may have it in its log.
            self.keys.unreserve((volume, key_id));
            self.dirty.insert(id);
        } else {
            self.keys.sweep(); // it was given up meanwhile
        }
    }

    /// No key could be made. Whether anybody still waits for it: what was given up was answered then.
    pub(crate) fn rekey_failed(&mut self, token: AdminToken, id: GroupId) -> bool {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return false;
        };
        let failed = volume.rekey.take_if(|r| r.token == token);
        if let Some(rekey) = &failed {
            let key = (volume.id, rekey.key_id);
            self.keys.unreserve(key);
        }
        failed.is_some()
    }

    /// Opens an epoch under a key that is ready.
    pub(crate) fn rekey_progress(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let is_ready = volume.rekey.as_ref().is_some_and(|r| r.is_durable);
        if !is_ready || !volume.is_serving() {
            return;
        }
        if matches!(volume.epoch, EpochState::Open { .. }) {
            volume.epoch = EpochState::None;
        }
        self.open_epoch(id); // unless one is on its way: then behind it
    }

    /// An epoch was opened, perhaps under another key.
    pub(crate) fn epoch_opened(&mut self, id: GroupId, effects: &mut Vec<Effect>) {
        let newest = self.engine.group(id).map(|view| view.meta.key_id);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let newest = newest.unwrap_or(volume.key_id);
        if newest != volume.key_id {
            volume.key_id = newest;
            tracing::info!(
                volume = volume.name,
                key = newest,
                "a new data key is in force"
            );
            let done = volume.rekey.take_if(|r| r.key_id <= newest);
            let name = volume.name.clone();
            self.reseal_stop(id);
            if let Some(done) = done {
                let shown = self.key_show(&name);
                let reply = shown.map(|reply| reply.unwrap_or(AdminReply::Done));
                Self::answer(done.token, reply, effects);
            }
            self.key_changed(id);
        }
        self.reseal_epoch_opened(id);
    }

    /// Nothing of this comes about any more, as far as this node knows.
    pub(crate) fn rekey_stop(&mut self, id: GroupId) {
        let volume = self.volumes.get_mut(&id);
        if let Some((volume, rekey)) = volume.and_then(|v| v.rekey.take().map(|r| (v.id, r))) {
            self.keys.unreserve((volume, rekey.key_id));
            let why = unsure();
            self.answers.push((rekey.token, Err(why)));
        }
        self.reseal_stop(id);
    }
}
