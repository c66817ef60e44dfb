//! Cuts through several volumes: an operator has their leaders hold back what would change them, and when all do, every
//! snapshot that comes to be is what its volume was at that moment.

use super::catalog::Change;
use super::oracle::Frozen;
use super::snapshots::SNAPSHOTS_MAX;
use super::world::{Purpose, World};
use crate::sim::SimRng;
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use esker_node::hold::HoldStep;
use std::collections::BTreeMap;

/// Cuts, and the one that is being taken.
pub(crate) struct Cuts {
    rng: SimRng,
    begun: u64,
    now: Option<Cutting>,
}

/// A cut that is being taken.
#[derive(Debug)]
struct Cutting {
    id: u128,
    parts: BTreeMap<usize, Part>,
    /// All volumes are held.
    is_held: bool,
    /// Per mille of a chance, again and again, that a snapshot is asked for.
    pace: u64,
}

/// A volume of it.
#[derive(Debug)]
struct Part {
    /// Names change, and so do volumes.
    volume: String,
    born: u64,
    snapshot: String,
    host: usize,
    /// The request that is on its way.
    asking: Option<u64>,
    is_held: bool,
    /// What it was when all were held.
    frozen: Option<Frozen>,
    is_placed: bool,
    is_over: bool,
}

/// What an operator asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CutAsk {
    id: u128,
    slot: usize,
    places: bool,
}

impl Cuts {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SimRng::new(seed, 11),
            begun: 0,
            now: None,
        }
    }
}

impl World {
    /// Goes on with a cut, or begins one.
    pub(crate) fn pursue_cuts(&mut self) {
        if !self.plan.cuts {
            return;
        }
        let Some(mut cutting) = self.cuts.now.take() else {
            if !self.is_calm() && self.cuts.rng.chance(60) {
                self.begin_cut();
            }
            return;
        };
        let admin = &self.admin;
        for part in cutting.parts.values_mut() {
            if part.asking.is_some_and(|token| !admin.contains_key(&token)) {
                (part.asking, part.is_over) = (None, true); // whoever was asked has gone
            }
        }
        let is_lost = cutting
            .parts
            .values()
            .any(|part| part.is_over && !part.is_held);
        let all_over = cutting.parts.values().all(|part| part.is_over);
        if all_over || (is_lost && !cutting.is_held) {
            return self.end_cut(cutting);
        }
        if !cutting.is_held && cutting.parts.values().all(|part| part.is_held) {
            cutting.is_held = true;
            for (slot, part) in &mut cutting.parts {
                let volume = self.slots[*slot].volume.as_ref();
                part.frozen = volume.map(|v| v.oracle.freeze(self.step));
            }
        }
        let mut asked = Vec::new();
        for (slot, part) in &cutting.parts {
            if cutting.is_held && !part.is_placed && self.cuts.rng.chance(cutting.pace) {
                asked.push(*slot);
            }
        }
        let id = cutting.id;
        self.cuts.now = Some(cutting);
        asked.into_iter().for_each(|slot| self.place(id, slot));
    }

    fn begin_cut(&mut self) {
        self.cuts.begun += 1;
        let id = u128::from(self.cuts.begun);
        let mut parts = BTreeMap::new();
        for slot in 0..self.slots.len() {
            let Some(volume) = &self.slots[slot].volume else {
                continue;
            };
            let name = volume.name.clone();
            let host = self.leader_of(&name).filter(|h| self.may_be_told(*h));
            let (Some(host), Some(volume)) = (host, self.slots[slot].volume.as_mut()) else {
                continue;
            };
            if volume.kept.sure.len() >= SNAPSHOTS_MAX {
                continue;
            }
            let snapshot = volume.kept.fresh_name();
            volume.kept.asked.insert(snapshot.clone());
            let part = Part {
                volume: name,
                born: volume.born,
                snapshot,
                host,
                asking: None,
                is_held: false,
                frozen: None,
                is_placed: false,
                is_over: false,
            };
            parts.insert(slot, part);
        }
        if parts.len() < 2 {
            return;
        }
        let asks: Vec<_> = parts
            .iter()
            .map(|(slot, part)| (*slot, part.host, part.volume.clone(), part.snapshot.clone()))
            .collect();
        let pace = [500, 100, 15][self.cuts.rng.index(3)];
        self.cuts.now = Some(Cutting {
            id,
            parts,
            is_held: false,
            pace,
        });
        for (slot, host, volume, name) in asks {
            let request = AdminRequest::VolumeHold {
                volume,
                name,
                cut: id,
                step: HoldStep::Begin,
            };
            self.ask_of_cut(
                host,
                request,
                CutAsk {
                    id,
                    slot,
                    places: false,
                },
            );
        }
    }

    fn ask_of_cut(&mut self, host: usize, request: AdminRequest, ask: CutAsk) {
        let token = self.next_token;
        if let Some(part) = self.cuts.part(ask.id, ask.slot) {
            part.asking = Some(token);
        }
        self.ask_operator(host, request, Purpose::Cut(ask));
    }

    fn place(&mut self, id: u128, slot: usize) {
        let Some(part) = self.cuts.part(id, slot) else {
            return;
        };
        let (volume, name, first) = (part.volume.clone(), part.snapshot.clone(), part.host);
        part.is_placed = true;
        // Who held it is asked, or who leads by now.
        let leads = self
            .leader_of(&volume)
            .filter(|_| self.cuts.rng.chance(300));
        let host = leads.unwrap_or(first);
        if !self.may_be_told(host) {
            if let Some(part) = self.cuts.part(id, slot) {
                part.is_over = true;
            }
            return;
        }
        let request = AdminRequest::SnapshotCut {
            volume,
            name,
            cut: id,
            created_us: 1_700_000_000_000_000 + self.now / 1000,
            labels: BTreeMap::new(),
        };
        self.ask_of_cut(
            host,
            request,
            CutAsk {
                id,
                slot,
                places: true,
            },
        );
    }

    /// Some are gone on with at once, others when their time is over.
    fn end_cut(&mut self, cutting: Cutting) {
        for part in cutting.parts.values() {
            if part.is_held
                && !part.is_placed
                && self.may_be_told(part.host)
                && self.cuts.rng.chance(500)
            {
                let request = AdminRequest::VolumeHold {
                    volume: part.volume.clone(),
                    name: part.snapshot.clone(),
                    cut: cutting.id,
                    step: HoldStep::End,
                };
                self.ask_operator(part.host, request, Purpose::Info);
            }
        }
        self.stats.did(match cutting.is_held {
            true => "cuts through volumes of three",
            false => "cuts through volumes of three that were abandoned",
        });
    }

    pub(crate) fn cut_answered(&mut self, ask: CutAsk, result: Result<AdminReply, AdminError>) {
        let Some(part) = self.cuts.part(ask.id, ask.slot) else {
            return;
        };
        part.asking = None;
        match result {
            Ok(AdminReply::Done) if !ask.places => part.is_held = true,
            Ok(AdminReply::Cut(..)) if ask.places => {
                part.is_over = true;
                let (name, born, frozen) = (part.snapshot.clone(), part.born, part.frozen.take());
                let volume = self.slots[ask.slot].volume.as_mut();
                let volume = volume.filter(|v| v.born == born && !v.kept.deleted.contains(&name));
                if let (Some(volume), Some(frozen)) = (volume, frozen) {
                    volume.kept.sure.insert(name, frozen);
                    self.stats.did("snapshots of cuts");
                }
            }
            // It took too long, another one leads, the copy has gone, or another cut was faster.
            Err(
                AdminError::Refused(_)
                | AdminError::NotLeading(_)
                | AdminError::Unsure(_)
                | AdminError::NotFound(_),
            ) => {
                part.is_over = true;
                if ask.places {
                    self.stats.did("snapshots of cuts that came too late");
                }
            }
            other => self.violate(format!("a part of a cut gave {other:?}")),
        }
    }

    /// At the end volumes go back to what they were at a cut, so that clients read all of it.
    pub(crate) fn go_back_to_cuts(&mut self) {
        for slot in 0..self.slots.len() {
            let Some(volume) = &self.slots[slot].volume else {
                continue;
            };
            let names: Vec<String> = volume.kept.sure.keys().cloned().collect();
            if self.plan.cuts && self.slots[slot].wanted.is_none() && !names.is_empty() {
                let at = self.cuts.rng.index(names.len());
                let back = Change::Rollback {
                    snapshot: names[at].clone(),
                    keep: None,
                    asked: 0,
                };
                self.want(slot, back);
            }
        }
    }
}

impl Cuts {
    fn part(&mut self, id: u128, slot: usize) -> Option<&mut Part> {
        let cutting = self.now.as_mut().filter(|cutting| cutting.id == id);
        cutting.and_then(|cutting| cutting.parts.get_mut(&slot))
    }
}
