//! Volumes of several copies that one holder has alone: an operator gives them to another one, or takes them back, whatever is on its
//! way. From the answer on nothing of an earlier holder takes effect.

use super::client::Client;
use super::world::{Purpose, World};
use crate::sim::SimRng;
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use std::collections::BTreeMap;

/// What an operator knows of who holds volumes.
pub(crate) struct Holders {
    rng: SimRng,
    of: BTreeMap<usize, Held>,
}

/// Who holds a volume, as far as an operator knows.
#[derive(Debug, Default)]
struct Held {
    /// The highest number that was told.
    number: u64,
    /// Somebody holds it under that, or may: a change was not answered.
    is_held: bool,
    /// Nobody can tell.
    is_unsure: bool,
    /// The change that is on its way.
    asking: Option<u64>,
    /// Changes asked for.
    asks: u64,
    /// Those of which nothing comes any more.
    settled: u64,
    /// The attachment by which each write was asked for; 0 for none.
    writes: BTreeMap<u64, u64>,
}

impl Holders {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SimRng::new(seed, 10),
            of: BTreeMap::new(),
        }
    }
}

impl World {
    /// Somebody gets a volume, or it is taken back; in the end anybody may have each.
    pub(crate) fn pursue_holders(&mut self) {
        if !self.plan.holders {
            return;
        }
        for slot in 0..self.slots.len() {
            let is_calm = self.is_calm();
            let held = self.holders.of.entry(slot).or_default();
            if held.asking.is_some_and(|t| self.admin.contains_key(&t)) {
                continue;
            }
            if held.asking.take().is_some() {
                held.is_unsure = true; // whoever was asked has gone
            }
            let due = is_calm && !self.is_free(slot);
            if !(due || !is_calm && self.holders.rng.chance(12)) {
                continue;
            }
            let Some(name) = self.slots[slot].volume.as_ref().map(|v| v.name.clone()) else {
                continue;
            };
            let Some(host) = self.leader_of(&name).filter(|h| self.may_be_told(*h)) else {
                continue;
            };
            let held = self.holders.of.entry(slot).or_default();
            held.asks += 1;
            let gives_back = is_calm || (held.is_held && self.holders.rng.chance(300));
            let holder = (!gives_back).then(|| format!("holder-{}", held.asks));
            held.asking = Some(self.next_token);
            let request = AdminRequest::VolumeAttach {
                name,
                holder,
                only: None,
                fence: true,
            };
            self.ask_operator(host, request, Purpose::Holder(slot));
        }
    }

    /// Anybody may attach to a volume, as far as the operator knows.
    pub(crate) fn is_free(&self, slot: usize) -> bool {
        let held = self.holders.of.get(&slot);
        held.is_none_or(|h| !h.is_held && !h.is_unsure && h.asking.is_none())
    }

    pub(crate) fn holder_answered(&mut self, slot: usize, result: Result<AdminReply, AdminError>) {
        let is_calm = self.is_calm();
        let held = self.holders.of.entry(slot).or_default();
        held.asking = None;
        let now = match result {
            Ok(AdminReply::Volume(report)) => report.attachment,
            Err(AdminError::Refused(_) | AdminError::NotLeading(_)) => {
                if !held.is_unsure {
                    held.settled = held.asks; // nothing was done
                }
                return;
            }
            Err(AdminError::Unsure(_)) => {
                held.is_unsure = true;
                return;
            }
            other => return self.violate(format!("a volume does not change hands: {other:?}")),
        };
        // A leader that is none any more may say that it is free.
        let is_news = now.number > held.number;
        let is_gone = is_calm && now.holder.is_none();
        if !is_news && !is_gone {
            return;
        }
        (held.number, held.is_held) = (now.number, now.holder.is_some());
        (held.is_unsure, held.settled) = (false, held.asks);
        let (number, is_held) = (held.number, held.is_held);
        if !is_news {
            return;
        }
        // Of those without a number some may have come since it was given back.
        let stays = |of: u64| match is_held {
            true => of == number,
            false => of == 0,
        };
        let fenced = |id: u64| held.writes.get(&id).is_some_and(|of| !stays(*of));
        let step = self.step;
        if let Some(volume) = self.slots[slot].volume.as_mut() {
            let count = volume.oracle.fenced(fenced, step);
            self.stats.did(match is_held {
                true => "volumes given to a holder",
                false => "volumes taken back",
            });
            if count > 0 {
                self.stats.did("changes of hands over writes on their way");
            }
        }
    }

    /// The name by which a client asks for its volume.
    pub(crate) fn export_of_holder(&mut self, client: usize, name: &str) -> String {
        let c = &mut self.clients[client];
        (c.attachment, c.asks_seen) = (0, 0);
        if !self.plan.holders || c.snapshot.is_some() {
            return name.to_owned();
        }
        let held = self.holders.of.entry(c.slot).or_default();
        c.asks_seen = held.settled;
        if !held.is_held || self.holders.rng.chance(50) {
            return name.to_owned();
        }
        c.attachment = held.number;
        format!("{name}:{}", held.number)
    }

    /// A client asks for a write.
    pub(crate) fn holder_writes(&mut self, client: usize, write: u64) {
        if self.plan.holders {
            let Client {
                slot, attachment, ..
            } = self.clients[client];
            let held = self.holders.of.entry(slot).or_default();
            held.writes.insert(write, attachment);
        }
    }

    /// A client's session may have been fenced since it asked for its volume.
    pub(crate) fn may_be_fenced(&self, client: usize) -> bool {
        let c = &self.clients[client];
        let held = self.holders.of.get(&c.slot);
        self.plan.holders && held.is_some_and(|h| h.asks > c.asks_seen)
    }
}
