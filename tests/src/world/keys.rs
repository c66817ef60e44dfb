//! Keys in the world: a provider that takes its time, fails and cannot be reached, and the record of all that
//! was sealed, over every life of every node.

use super::world::{Ev, Purpose, World};
use crate::sim::SimRng;
use esker_base::{Stamp, VolumeId};
use esker_crypto::{DataKey, EpochId, KekId, KeyEncryptionKey, KeyId, KeyName, WrappedKey};
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use esker_node::{Event, KeyAnswer, KeyAsk};
use std::collections::{HashMap, HashSet};

/// How the provider of keys behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyFaults {
    /// Usual time it takes, in nanoseconds.
    pub delay_ns: u64,
    /// Per mille of requests that fail.
    pub fails: u64,
    /// For how long it can at most not be reached when a node starts, in nanoseconds.
    pub away_ns: u64,
}

/// What was sealed. A nonce is a stamp; a key is named by what it is derived from.
#[derive(Clone, Debug, Default)]
pub(crate) struct SealWatch {
    seen: HashMap<EpochId, HashSet<u64>>,
    /// Stamps of all keys.
    stamps: HashSet<u64>,
    pub count: u64,
}

impl SealWatch {
    /// Takes what a node has sealed.
    ///
    /// # Errors
    /// When a nonce was used before with its key.
    pub fn note(&mut self, seals: Vec<(EpochId, Stamp)>) -> Result<(), String> {
        self.count += seals.len() as u64;
        for (epoch, stamp) in seals {
            self.stamps.insert(stamp.0);
            if !self.seen.entry(epoch).or_default().insert(stamp.0) {
                return Err(format!(
                    "nonce used twice: stamp {stamp} of volume {}, epoch {}",
                    epoch.volume, epoch.epoch.0
                ));
            }
        }
        Ok(())
    }

    /// Whether any block was sealed under a stamp.
    pub fn knows(&self, stamp: u64) -> bool {
        self.stamps.contains(&stamp)
    }
}

/// The provider, which outlives every node.
pub(crate) struct Provider {
    rng: SimRng,
    /// KEKs made so far: a key that is wrapped anew gets another one.
    keks: u64,
    pub seals: SealWatch,
    /// Volumes that could be encrypted.
    pub encrypted: SimRng,
    /// An operator went on without damaged records. One of them may have opened an epoch, and what was sealed in it does not open
    /// any more: its salt was there alone.
    pub loss_accepted: bool,
}

impl Provider {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SimRng::new(seed, 5),
            keks: 1,
            seals: SealWatch::default(),
            encrypted: SimRng::new(seed, 6),
            loss_accepted: false,
        }
    }

    fn wrap(&mut self, name: KeyName, dek: &DataKey) -> WrappedKey {
        let kek = KekId::new(&format!("sim:{}", self.keks)).expect("a short name");
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        WrappedKey::seal(&kek_of(&kek), kek, dek, name.volume, name.key, nonce)
    }

    pub(crate) fn make(&mut self, name: KeyName) -> (DataKey, WrappedKey) {
        let dek = DataKey::filled(|bytes| {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&self.rng.next().to_le_bytes());
            }
        });
        let wrapped = self.wrap(name, &dek);
        (dek, wrapped)
    }

    fn answer(&mut self, ask: &KeyAsk, fails: bool) -> KeyAnswer {
        const AWAY: &str = "the provider cannot be reached";
        match ask {
            KeyAsk::Make(name) if fails => KeyAnswer::Made(*name, Err(AWAY.into())),
            KeyAsk::Make(name) => KeyAnswer::Made(*name, Ok(self.make(*name))),
            KeyAsk::Open(wrapped) => {
                let opened = match fails {
                    true => Err(AWAY.into()),
                    false => open(wrapped).map_err(|e| e.to_string()),
                };
                KeyAnswer::Opened(wrapped.name(), opened)
            }
            KeyAsk::Rewrap(wrapped) => {
                self.keks += 1;
                let rewrapped = match (fails, open(wrapped)) {
                    (true, _) => Err(AWAY.into()),
                    (false, Ok(dek)) => Ok(self.wrap(wrapped.name(), &dek)),
                    (false, Err(error)) => Err(error.to_string()),
                };
                KeyAnswer::Rewrapped(wrapped.name(), rewrapped)
            }
        }
    }
}

fn kek_of(id: &KekId) -> KeyEncryptionKey {
    KeyEncryptionKey::filled(|bytes| {
        let name = id.as_str().as_bytes();
        bytes[..name.len()].copy_from_slice(name);
    })
}

fn open(wrapped: &WrappedKey) -> Result<DataKey, esker_crypto::UnwrapError> {
    wrapped.open(&kek_of(wrapped.kek()))
}

impl World {
    /// Gives a volume another data key, wraps the one it has anew, or seals what is under older ones.
    pub(crate) fn tend_keys(&mut self, host: usize, name: Option<String>) {
        let (request, purpose) = match (name, self.rng.below(4)) {
            (Some(volume), 0) => {
                let data_key = true;
                (AdminRequest::KeyRotate { volume, data_key }, Purpose::Rekey)
            }
            (Some(volume), 1) => {
                let data_key = false;
                (AdminRequest::KeyRotate { volume, data_key }, Purpose::Info)
            }
            _ => (AdminRequest::Reseal, Purpose::Reseal),
        };
        self.ask_operator(host, request, purpose);
    }

    pub(crate) fn rekeyed(&mut self, host: usize, result: &Result<AdminReply, AdminError>) {
        if result.is_ok() {
            self.stats.did("data keys exchanged");
            if self.plan.rekeys {
                self.ask_operator(host, AdminRequest::Reseal, Purpose::Reseal);
            }
        }
    }

    /// Most passes go on to their end.
    pub(crate) fn resealed(&mut self, host: usize, result: &Result<AdminReply, AdminError>) {
        let Ok(AdminReply::Resealed(Some(page))) = result else {
            return;
        };
        if page.bytes > 0 {
            self.stats.did("parts sealed anew");
        }
        if page.ended {
            self.stats.did(match self.plan.nodes {
                1 => "volumes sealed anew",
                _ => "volumes of three sealed anew",
            });
        }
        if self.rng.below(8) != 0 {
            self.ask_operator(host, AdminRequest::Reseal, Purpose::Reseal);
        }
    }

    /// A node asks for a key.
    pub(crate) fn key_effect(&mut self, host: usize, ask: KeyAsk) {
        if self.plan.encrypted == 0 {
            return self.violate(format!("a key is asked for in a world without: {ask:?}"));
        }
        self.log(|| format!("node {host} asks for keys: {ask:?}"));
        let delay = self.latency(self.plan.key_faults.delay_ns);
        let incarnation = self.hosts[host].incarnation;
        let ask = Box::new(ask);
        self.at(
            delay,
            Ev::Key {
                host,
                incarnation,
                ask,
            },
        );
    }

    /// The provider answers. Keys that exist are asked for until they come.
    pub(crate) fn provider_answers(&mut self, host: usize, incarnation: u64, ask: Box<KeyAsk>) {
        if self.hosts[host].incarnation != incarnation {
            return;
        }
        let away = self.now < self.hosts[host].keys_away_until;
        let fails = away || self.provider.rng.chance(self.plan.key_faults.fails);
        let fails = fails && !self.is_calm();
        let answer = self.provider.answer(&ask, fails);
        if let KeyAnswer::Made(_, Ok((_, wrapped))) = &answer {
            self.clone_keys.push(wrapped.clone()); // copies of the volume get it
        }
        self.stats.did(match (&*ask, fails) {
            (_, true) => "keys: provider failed",
            (KeyAsk::Make(_), _) => "keys made",
            (KeyAsk::Open(_), _) => "keys opened",
            (KeyAsk::Rewrap(_), _) => "keys wrapped anew",
        });
        self.log(|| format!("provider to node {host}: {answer:?}"));
        self.step_node(host, Event::Keys(answer));
        if matches!(*ask, KeyAsk::Open(_)) && !fails {
            self.accept_maps(host);
        }
        if fails && matches!(*ask, KeyAsk::Open(_)) && self.hosts[host].incarnation == incarnation {
            let delay = self.latency(self.plan.key_faults.delay_ns.max(1_000_000));
            self.at(
                delay,
                Ev::Key {
                    host,
                    incarnation,
                    ask,
                },
            );
        }
    }

    /// The provider may be out of reach of a node that starts.
    pub(crate) fn keys_at_start(&mut self, host: usize) {
        let away = self.provider.rng.below(self.plan.key_faults.away_ns + 1);
        let away = away * self.provider.rng.below(2);
        self.hosts[host].keys_away_until = self.now + away;
    }

    /// Whether the next new volume is encrypted.
    pub(crate) fn draw_encrypted(&mut self) -> bool {
        self.plan.encrypted > 0 && self.provider.encrypted.chance(self.plan.encrypted)
    }

    /// Takes what a node has sealed in a step, before anything of it can be lost.
    pub(crate) fn watch_seals(&mut self, host: usize) {
        let Some(node) = self.hosts[host].node.as_mut() else {
            return;
        };
        let (seals, refused) = (node.take_seals(), node.blocks_refused());
        if let Err(text) = self.provider.seals.note(seals) {
            self.violate(text);
        }
        if refused > 0 && !self.provider.loss_accepted {
            self.violate(format!(
                "node {host}: a sealed block does not open, and nobody has changed it"
            ));
        }
    }

    /// Draws which volumes of three are encrypted.
    pub(crate) fn make_replica_keys(&mut self) {
        for slot in 0..self.slots.len() {
            if self.draw_encrypted() {
                let volume = volume_of(slot);
                let key = KeyId::new(1).expect("not zero");
                let (_, wrapped) = self.provider.make(KeyName { volume, key });
                self.log(|| format!("{} is encrypted", self.group_of(slot)));
                self.slots[slot].key = Some(wrapped);
            }
        }
    }
}

/// The volume of three of a slot.
pub(crate) fn volume_of(slot: usize) -> VolumeId {
    VolumeId(77 + slot as u128)
}
