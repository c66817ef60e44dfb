//! Another data key for a volume: made and wrapped outside, durable in a slot, and then in force with the epoch that
//! the volume's log opens under it. What was written before is sealed anew behind it ([`crate::reseal`]).

use crate::admin::{AdminError, AdminReply};
use crate::control::Outcome;
use crate::event::{AdminToken, Effect};
use crate::groups::unsure;
use crate::keys::{name_of, Area, Dek, KeyFor, Lock};
use crate::node::Node;
use crate::volume::{EpochState, Volume};
use esker_base::{GroupId, ReplicaId, VolumeId};
use esker_crypto::{KeyId, KeyName};
use std::collections::BTreeSet;

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
                "volume {name} has several copies, whose nodes are all to have the key first; ask again"
            )));
        }
        let key = self.next_key_name(id)?;
        self.set_rekey(token, id, key.key.get(), false)?;
        self.make_key(key, KeyFor::Rotation(token, id));
        Ok(None)
    }

    /// The key that a volume with several copies gets next, where this node leads it.
    pub(crate) fn key_next(&self, name: &str) -> Outcome {
        let id = self.encrypted(name)?;
        self.writable()?;
        self.require_keys()?;
        self.can_rekey(id)?;
        Ok(Some(AdminReply::NextKey(self.next_key_name(id)?)))
    }

    /// Opens an epoch under a key that lies in slots of these replicas' nodes, this one included.
    ///
    /// No other key can have its number: each of these nodes has refused that. And it stays in their slots, since it
    /// may be in a log as long as no newer one is in force.
    pub(crate) fn key_in_force(
        &mut self,
        token: AdminToken,
        name: &str,
        key_id: u32,
        replicas: &BTreeSet<ReplicaId>,
    ) -> Outcome {
        let id = self.encrypted(name)?;
        self.writable()?;
        self.require_keys()?;
        self.can_rekey(id)?;
        let refuse = |why: &str| Err(AdminError::NotLeading(format!("volume {name} {why}")));
        let membership = self.leading(id)?;
        let voters = membership.voters.iter().chain(&membership.voters_outgoing);
        let all = voters
            .chain(&membership.learners)
            .chain(&membership.learners_next);
        if !all.into_iter().all(|replica| replicas.contains(replica)) {
            return refuse("has got another copy meanwhile; try again");
        }
        let volume = self.volumes.get(&id).map(|v| (v.id, v.key_id));
        let Some((volume, _)) = volume.filter(|(_, newest)| *newest < key_id) else {
            return refuse("has got another data key meanwhile; try again");
        };
        let Some(key) = name_of((volume, key_id)).filter(|_| self.keys.is_durable()) else {
            return refuse("has a key that is not on the device yet; try again");
        };
        match self.keys.deks.get(&key) {
            Some(Dek::Here(_)) => {
                self.set_rekey(token, id, key_id, false)?;
                self.rekey_durable(token, id);
            }
            Some(Dek::Asked) => {
                self.set_rekey(token, id, key_id, false)?;
                let what = KeyFor::Rotation(token, id);
                self.keys.begin_later.push((key, what));
            }
            Some(Dek::Away(why)) => {
                let text = format!("the new key of volume {name} cannot be had: {why}");
                return Err(AdminError::Refused(text));
            }
            None => return refuse("has a new key that is not here; try again"),
        }
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

    fn can_rekey(&self, id: GroupId) -> Result<(), AdminError> {
        let Some(volume) = self.volumes.get(&id) else {
            return Ok(());
        };
        let name = &volume.name;
        if !volume.is_serving() || volume.lock != Lock::Open {
            let text = format!("volume {name} does not serve now");
            return Err(match volume.spans {
                true => AdminError::NotLeading(text),
                false => AdminError::Refused(text),
            });
        }
        if volume.rekey.is_some() {
            return Err(AdminError::Refused(format!(
                "volume {name} is being given another data key; try again"
            )));
        }
        Ok(())
    }

    fn set_rekey(
        &mut self,
        token: AdminToken,
        id: GroupId,
        key_id: u32,
        is_durable: bool,
    ) -> Result<(), AdminError> {
        self.can_rekey(id)?;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Ok(());
        };
        volume.rekey = Some(Rekey {
            token,
            key_id,
            is_durable,
        });
        Ok(())
    }

    /// The key lies in its slot.
    pub(crate) fn rekey_durable(&mut self, token: AdminToken, id: GroupId) {
        let asked = self
            .volumes
            .get(&id)
            .and_then(|v| Some((v.id, v.rekey.as_ref()?)));
        let asked = asked.and_then(|(volume, rekey)| name_of((volume, rekey.key_id)));
        if let Some(Dek::Away(why)) = asked.and_then(|name| self.keys.deks.get(&name)) {
            let error = AdminError::Refused(format!("the new key cannot be had: {why}"));
            if self.rekey_failed(token, id) {
                self.answers.push((token, Err(error)));
            }
            return;
        }
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
