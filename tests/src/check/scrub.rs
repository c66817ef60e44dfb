//! Scrubs: asked of the engine part by part, and held against what the models say is stored.

use super::world::World;
use super::Violation;
use esker_base::GroupId;
use esker_engine::event::{Damage, ScrubPart, ScrubRequest, ScrubTarget};
use esker_engine::{Event, ReadError};

/// What scrubs found so far.
#[derive(Clone, Debug, Default)]
pub struct Scrubbed {
    /// Blocks read.
    pub blocks: u64,
    /// Map nodes read.
    pub nodes: u64,
    /// Damage, with what it was found in.
    pub damaged: Vec<(ScrubTarget, Damage)>,
}

impl World {
    /// Begins a scrub of one version somewhere; it goes on by itself to the end.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn scrub(&mut self, target: ScrubTarget, from: u64) -> Result<(), Violation> {
        let token = self.token();
        self.scrubs.insert(token, target);
        self.step(Event::Scrub(ScrubRequest {
            token,
            target,
            from,
        }))
    }

    /// Begins one where the seed says.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn scrub_something(&mut self, id: GroupId) -> Result<(), Violation> {
        let targets = self.engine.scrub_targets(Some(id));
        if targets.is_empty() {
            return Ok(());
        }
        let (target, from) = (self.rng.pick(&targets), self.rng.below(300));
        self.scrub(target, from)
    }

    /// A part of a scrub is done.
    ///
    /// # Errors
    /// When it found damage where none was done.
    pub(super) fn scrub_done(
        &mut self,
        token: u64,
        result: Result<ScrubPart, ReadError>,
    ) -> Result<(), Violation> {
        let Some(target) = self.scrubs.remove(&token) else {
            return Err(Violation::new(format!("scrub {token} ended twice")));
        };
        let part = match result {
            Ok(part) => part,
            // It is gone, or a checkpoint has yet to merge it.
            Err(ReadError::UnknownGroup | ReadError::UnknownSnapshot | ReadError::NotMerged) => {
                return Ok(());
            }
            Err(error) => return Err(Violation::new(format!("a scrub failed: {error}"))),
        };
        let excused = self.damaged || self.disk.faults.read_error > 0;
        if !part.damaged.is_empty() && !excused {
            let text = format!("scrub of {target:?}: {:?}", part.damaged);
            return Err(Violation::new(text));
        }
        self.scrubbed.blocks += part.blocks;
        self.scrubbed.nodes += part.nodes;
        let found = part.damaged.into_iter().map(|d| (target, d));
        self.scrubbed.damaged.extend(found);
        match part.ended {
            true => Ok(()),
            false => self.scrub(target, part.through),
        }
    }

    /// Scrubs everything while nothing else goes on.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn scrub_all(&mut self) -> Result<Scrubbed, Violation> {
        self.scrubbed = Scrubbed::default();
        self.targets_follow_each_other()?;
        for target in self.engine.scrub_targets(None) {
            self.scrub(target, 0)?;
            self.run(false)?;
        }
        match self.scrubs.is_empty() {
            true => Ok(std::mem::take(&mut self.scrubbed)),
            false => Err(Violation::new("a scrub does not end")),
        }
    }

    /// Whoever asks for one target after the other is given all of them.
    fn targets_follow_each_other(&self) -> Result<(), Violation> {
        let groups = self.groups.keys().map(|id| Some(*id));
        for volume in groups.chain([None]) {
            let next = |after: Option<ScrubTarget>| self.engine.scrub_target_after(volume, after);
            let given: Vec<_> = std::iter::successors(next(None), |at| next(Some(*at))).collect();
            let all = self.engine.scrub_targets(volume);
            if given != all {
                let text = format!("a scrub of {volume:?} is given {given:?} of {all:?}");
                return Err(Violation::new(text));
            }
        }
        Ok(())
    }

    /// Scrubs everything, and counts: each stored block was read, once; more than once only if it belongs
    /// to a deleted version, whose map may have gaps.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn check_scrub(&mut self) -> Result<(), Violation> {
        let found = self.scrub_all()?;
        if !self
            .groups
            .values()
            .all(|m| m.created && !m.deleting && !m.suspended)
        {
            return Ok(());
        }
        let forest = self.forest();
        let (stored, deleted) = (
            forest.stored(),
            forest.versions.values().any(|v| !v.visible),
        );
        match found.blocks == stored || deleted && found.blocks > stored {
            true => Ok(()),
            false => Err(Violation::new(format!(
                "{} blocks are stored, a scrub read {}",
                stored, found.blocks
            ))),
        }
    }
}
