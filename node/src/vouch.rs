//! Whether the map of an encrypted volume is the one that was written: asked once its keys are here, before
//! anybody is served. See `esker_engine::vouch`.

use crate::control::{AdminPending, Outcome};
use crate::event::AdminToken;
use crate::keys::{Dek, Lock};
use crate::node::Node;
use esker_base::{GroupId, StoreId, VolumeId};
use esker_crypto::RootKey;
use esker_engine::event as engine_event;
use esker_engine::format::checkpoint::RootMac;
use esker_engine::vouch::{RootRefusal, RootSigner, RootSigners, Statement};
use std::sync::Arc;

/// Signs with what is derived from one data key. It opens no block.
#[derive(Debug)]
struct Signer {
    key: RootKey,
    store: StoreId,
}

impl RootSigner for Signer {
    fn mac(&self, group: GroupId, statement: &Statement) -> RootMac {
        self.key.mac(self.store, group, statement)
    }

    fn is_right(&self, group: GroupId, statement: &Statement, mac: &RootMac) -> bool {
        self.key.vouches(mac, self.store, group, statement)
    }
}

/// What an operator is told of a map that is refused.
fn remedy(refusal: RootRefusal, name: &str) -> String {
    let what = match refusal {
        RootRefusal::Origin => return refusal.to_string(),
        RootRefusal::Missing => {
            "It was made by a version that had none, or merged while its key was away and eskerd ended then, or \
             somebody has changed the store"
        }
        RootRefusal::Wrong => {
            "Somebody has changed the store, or the key provider gives another key than the one that was made"
        }
    };
    format!(
        "{refusal}. {what}. Restore the device from a copy, or take the map as it is with esker volume accept-loss {name}"
    )
}

impl Node {
    /// What signs with the data keys of a volume that are here.
    fn signers(&self, volume: VolumeId) -> RootSigners {
        let store = self.engine.store_id();
        let own = self
            .keys
            .deks
            .iter()
            .filter(|(name, _)| name.volume == volume);
        let signer = |dek| -> Arc<dyn RootSigner> {
            let key = RootKey::derive(dek, volume);
            Arc::new(Signer { key, store })
        };
        own.filter_map(|(name, dek)| match dek {
            Dek::Here(dek) => Some((name.key.get(), signer(dek))),
            Dek::Asked | Dek::Away(_) => None,
        })
        .collect()
    }

    /// From now on checkpoints sign for a volume's roots, with all of its keys that are here. Gives why not.
    pub(crate) fn vouch(&mut self, id: GroupId, volume: VolumeId) -> Result<(), RootRefusal> {
        let signers = self.signers(volume);
        self.engine_told = true; // what waited for this is applied
        self.engine.vouch(id, signers)
    }

    /// The lock of a volume whose keys are all here.
    pub(crate) fn lock_of_map(&mut self, id: GroupId) -> Lock {
        let Some(volume) = self.volumes.get(&id) else {
            return Lock::Open;
        };
        let (of, key_id, was_refused) = (volume.id, volume.key_id, volume.map_refused);
        if key_id == 0 {
            return Lock::Open;
        }
        let result = self.vouch(id, of); // also with keys that came later
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Lock::Open;
        };
        volume.map_refused = result.is_err();
        let Err(refusal) = result else {
            return self.lock_until_signed(id);
        };
        let why = remedy(refusal, &volume.name);
        if !was_refused && refusal != RootRefusal::Origin {
            tracing::error!(volume = volume.name, why, "a map is refused");
            self.keys.maps_refused += 1;
        }
        Lock::Away(why)
    }

    /// A volume is served once a checkpoint has signed for it.
    fn lock_until_signed(&mut self, id: GroupId) -> Lock {
        if self.engine.is_signed(id) {
            return Lock::Open;
        }
        if !std::mem::replace(&mut self.keys.awaits_signing, true) {
            let token = self.admin_token(AdminPending::Sign);
            self.tell_engine(engine_event::Event::Checkpoint { token });
        }
        Lock::Waits
    }

    /// A checkpoint that was to sign is durable. One that was on its way when it was asked for may have come too
    /// early for some.
    pub(crate) fn signed(&mut self) {
        self.keys.awaits_signing = false;
        self.keys_changed();
    }

    /// An operator takes the map of a volume as it is. Answered when a checkpoint has signed for it.
    pub(crate) fn accept_map(&mut self, token: AdminToken, id: GroupId) -> Outcome {
        self.engine.accept_roots(id);
        if let Some(volume) = self.volumes.get_mut(&id) {
            tracing::warn!(volume = volume.name, "its map is taken as it is");
            volume.map_refused = false;
        }
        self.keys_changed();
        let token = self.admin_token(AdminPending::AcceptLoss(token, id));
        self.tell_engine(engine_event::Event::Checkpoint { token });
        Ok(None)
    }
}
