//! One cut through several volumes: what was answered before anything else was asked for is in it, wherever that is in it.
//!
//! Whoever takes one has every volume's leader hold back what would change it ([`HOLD_TIME_MAX`] at most), and when all have said
//! that they do, there is a moment at which nothing new is answered anywhere. Each leader then puts the snapshot into its log, behind
//! what is there and before what it holds back, and goes on. A snapshot made that way is the volume at that moment, whether the others
//! come to be or not.
//!
//! A hold is worth something in the term of the leader that gave it. If another one led in between, the entry of the first one
//! either is in that one's log before anything it answered, or never takes effect.

use crate::admin::{AdminError, AdminReply};
use crate::control::{check_label_set, check_word, Outcome};
use crate::event::AdminToken;
use crate::node::Node;
use crate::snapshots::{SnapshotAsk, ASKS_MAX};
use crate::volume::Volume;
use esker_base::{limits, GroupId, Moment, Term};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long changes of a volume are held back for a cut. One that takes longer is abandoned.
pub const HOLD_TIME_MAX: Duration = Duration::from_millis(500);

/// Holds of a volume that are remembered when they are over: what was asked for them may come late, and twice.
const OVER_MAX: usize = 64;

/// Changes of a volume are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// For this cut.
    pub cut: u128,
    /// By the leader of this term.
    pub term: Term,
    pub since: Moment,
    pub until: Moment,
    /// It is over, and does not begin again.
    pub is_over: bool,
}

/// What is to be done with a volume before its snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldStep {
    /// Find out whether it can be taken.
    Check,
    /// Hold back changes.
    Begin,
    /// Go on without it.
    End,
}

impl Volume {
    /// Its hold, if it is in force.
    pub(crate) fn held(&self, now: Moment) -> Option<Hold> {
        let term = self.group.as_ref().map(esker_replication::Group::term);
        self.hold
            .filter(|hold| !hold.is_over && hold.until > now && Some(hold.term) == term)
    }
}

impl Node {
    /// Something of a cut, before its snapshots are taken.
    pub(crate) fn volume_hold(
        &mut self,
        name: &str,
        snapshot: &str,
        cut: u128,
        step: HoldStep,
    ) -> Outcome {
        let id = self.find(name)?;
        if step == HoldStep::End {
            self.end_hold(id, cut);
            return Ok(Some(AdminReply::Done));
        }
        self.writable()?;
        check_word("snapshot", snapshot, limits::SNAPSHOT_NAME_BYTES_MAX)?;
        self.require_serving(id)?;
        self.require_room(id)?;
        if self.engine.snapshot_named(id, snapshot).is_some() {
            return Err(crate::snapshots::name_taken(name, snapshot));
        }
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Ok(None);
        };
        let other = volume.held(now).filter(|hold| hold.cut != cut);
        if other.is_some() || volume.is_rolling_back || volume.asks.len() >= ASKS_MAX {
            return Err(AdminError::Refused(format!(
                "snapshots of volume {name} are being taken, or it is being rolled back; try again"
            )));
        }
        let term = volume.group.as_ref().map(esker_replication::Group::term);
        if let (HoldStep::Begin, Some(term)) = (step, term) {
            let before = volume.hold.filter(|hold| hold.cut == cut);
            if before.is_some() || volume.holds_over.contains(&cut) {
                // Asked a second time, perhaps long after the first.
                return self.held_for(id, cut).map(|_| Some(AdminReply::Done));
            }
            let until = now + HOLD_TIME_MAX;
            volume.hold = Some(Hold {
                cut,
                term,
                since: now,
                until,
                is_over: false,
            });
            self.holds.insert((until, id));
            self.meters.holds.begun += 1;
        }
        Ok(Some(AdminReply::Done))
    }

    /// Takes a volume's snapshot of a cut.
    pub(crate) fn snapshot_cut(
        &mut self,
        token: AdminToken,
        (volume, cut): (&str, u128),
        name: String,
        created_us: u64,
        labels: BTreeMap<String, String>,
    ) -> Outcome {
        let id = self.find(volume)?;
        check_word("snapshot", &name, limits::SNAPSHOT_NAME_BYTES_MAX)?;
        check_label_set("snapshot", &labels)?;
        self.require_serving(id)?;
        self.held_for(id, cut)?;
        if self.engine.snapshot_named(id, &name).is_some() {
            return Err(crate::snapshots::name_taken(volume, &name));
        }
        let ask = SnapshotAsk::Create {
            name,
            created_us,
            labels,
            cut: Some((cut, Duration::ZERO)),
        };
        self.ask(token, id, ask)
    }

    /// The hold of a cut, if it is in force still.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn held_for(&self, id: GroupId, cut: u128) -> Result<Hold, AdminError> {
        let volume = self.volumes.get(&id);
        let hold = volume.and_then(|v| v.held(self.now));
        hold.filter(|hold| hold.cut == cut).ok_or_else(|| {
            let name = volume.map_or("", |v| v.name.as_str());
            AdminError::Refused(format!(
                "changes of volume {name} are not held back for this cut any more: it took longer than {} ms, or another node leads",
                HOLD_TIME_MAX.as_millis()
            ))
        })
    }

    /// Goes on with what was held back for a cut; tells for how long that was.
    pub(crate) fn end_hold(&mut self, id: GroupId, cut: u128) -> Duration {
        let now = self.now;
        let hold = self.volumes.get_mut(&id).and_then(|v| v.hold.as_mut());
        let Some(hold) = hold.filter(|hold| hold.cut == cut && !hold.is_over) else {
            return Duration::ZERO;
        };
        hold.is_over = true;
        let hold = *hold;
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.holds_over.push_back(cut);
            if volume.holds_over.len() > OVER_MAX {
                volume.holds_over.pop_front();
            }
        }
        self.holds.remove(&(hold.until, id));
        self.dirty.insert(id);
        let held = now.min(hold.until).since(hold.since);
        self.meters.holds.time += held;
        held
    }

    /// Ends what was held back for too long.
    pub(crate) fn end_holds(&mut self) {
        while let Some((until, id)) = self.holds.first().copied() {
            if until > self.now {
                return;
            }
            self.holds.pop_first();
            let hold = self.volumes.get(&id).and_then(|v| v.hold);
            if let Some(hold) = hold.filter(|hold| hold.until <= self.now) {
                self.meters.holds.expired += 1;
                self.end_hold(id, hold.cut);
            }
        }
    }
}
