//! Scrubs as operators ask for them, a part at a time: of one volume with everything it goes back to, or
//! of the whole store.

use crate::admin::{AdminError, AdminReply, ScrubDamage, ScrubPage, ScrubPlace};
use crate::control::Outcome;
use crate::event::{AdminToken, Effect};
use crate::node::{Node, ReadFor};
use esker_base::{BlockRange, GroupId, Stamp, BLOCK_SIZE_U64};
use esker_engine::event::{
    self as engine_event, ReadRequest, ScrubPart, ScrubRequest, ScrubTarget,
};
use esker_engine::format::versions::POINT_PREFIX;
use esker_engine::ReadError;

/// Parts on their way in a store; further ones are refused.
const SCRUBS_MAX: usize = 16;

/// A part on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScrubAsk {
    token: AdminToken,
    volume: Option<GroupId>,
    target: ScrubTarget,
}

/// A part that is checked, but for what is damaged: other replicas are asked for that.
#[derive(Debug)]
pub(crate) struct ScrubHeld {
    token: AdminToken,
    page: ScrubPage,
    missing: usize,
}

/// A snapshot's name, or what a rewind point is called.
fn shown_name(name: &str) -> String {
    match name.starts_with(POINT_PREFIX) {
        true => "(rewind point)".into(),
        false => name.into(),
    }
}

impl Node {
    /// Checks a part: from the beginning, or where the part before it ended.
    pub(crate) fn scrub(
        &mut self,
        token: AdminToken,
        volume: Option<&str>,
        place: Option<ScrubPlace>,
    ) -> Outcome {
        let volume = volume.map(|name| self.find(name)).transpose()?;
        if self.scrubs.len() + self.scrubs_held.len() >= SCRUBS_MAX {
            return Err(AdminError::Refused(format!(
                "{SCRUBS_MAX} scrubs are under way already; try again"
            )));
        }
        let place = match place {
            Some(place) => Some(place),
            None => self.scrub_target_after(volume, None),
        };
        let Some(ScrubPlace { target, block }) = place else {
            return Ok(Some(AdminReply::Scrub(ScrubPage::default())));
        };
        let number = self.next_admin;
        self.next_admin += 1;
        let ask = ScrubAsk {
            token,
            volume,
            target,
        };
        self.scrubs.insert(number, ask);
        self.tell_engine(engine_event::Event::Scrub(ScrubRequest {
            token: number,
            target,
            from: block,
        }));
        Ok(None)
    }

    /// The version to look at behind one, from its beginning.
    fn scrub_target_after(
        &self,
        volume: Option<GroupId>,
        after: Option<ScrubTarget>,
    ) -> Option<ScrubPlace> {
        let target = self.engine.scrub_target_after(volume, after)?;
        Some(ScrubPlace { target, block: 0 })
    }

    /// The engine has checked a part.
    pub(crate) fn scrub_done(
        &mut self,
        token: u64,
        result: Result<ScrubPart, ReadError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(ask) = self.scrubs.remove(&token) else {
            return;
        };
        let part = match result {
            Ok(part) => part,
            // It was deleted meanwhile, or is so young that no checkpoint has merged it: its blocks
            // are checked the next time.
            Err(_) => ScrubPart {
                ended: true,
                ..ScrubPart::default()
            },
        };
        let next = match part.ended {
            true => self.scrub_target_after(ask.volume, Some(ask.target)),
            false => Some(ScrubPlace {
                target: ask.target,
                block: part.through,
            }),
        };
        let name = self.engine.scrub_target_name(ask.target);
        let owner = name.and_then(|(group, _)| self.volumes.get(&group));
        let snapshot = name.and_then(|(_, snapshot)| snapshot);
        let damaged = part.damaged.iter().map(|damage| ScrubDamage {
            volume: owner.map_or(String::new(), |v| v.name.clone()),
            snapshot: snapshot.map(shown_name),
            offset: damage.lba * BLOCK_SIZE_U64,
            length: damage.count * BLOCK_SIZE_U64,
            in_map: damage.in_map,
            repaired: false,
        });
        let page = ScrubPage {
            next,
            checked_bytes: (part.blocks + part.nodes) * BLOCK_SIZE_U64,
            total_bytes: self.scrub_total(ask.volume),
            damaged: damaged.collect(),
        };
        let at = self.engine.scrub_target_cut(ask.target);
        match at.filter(|(group, _)| self.volumes.get(group).is_some_and(|v| v.spans)) {
            Some((group, at)) => self.scrub_repairs(ask.token, page, group, at, effects),
            None => Self::answer(ask.token, Ok(AdminReply::Scrub(page)), effects),
        }
    }

    /// Reads what is damaged once more, like a client: what other replicas have is repaired then.
    fn scrub_repairs(
        &mut self,
        token: AdminToken,
        page: ScrubPage,
        group: GroupId,
        at: Option<Stamp>,
        effects: &mut Vec<Effect>,
    ) {
        let places = page.damaged.iter().enumerate().filter(|(_, d)| !d.in_map);
        let places: Vec<(usize, u64)> = places
            .map(|(n, damage)| (n, damage.offset / BLOCK_SIZE_U64))
            .collect();
        if places.is_empty() {
            return Self::answer(token, Ok(AdminReply::Scrub(page)), effects);
        }
        let number = self.next_admin;
        self.next_admin += 1;
        let missing = places.len();
        let held = ScrubHeld {
            token,
            page,
            missing,
        };
        self.scrubs_held.insert(number, held);
        for (n, lba) in places {
            let request = ReadRequest {
                token: 0,
                group,
                range: BlockRange::new(lba, 1),
                latest: false,
                at,
            };
            self.read_blocks(ReadFor::Check(number, n), request);
        }
    }

    /// A place that was damaged was read again.
    pub(crate) fn scrub_checked(&mut self, number: u64, place: usize, is_good: bool) {
        let Some(held) = self.scrubs_held.get_mut(&number) else {
            return;
        };
        held.missing -= 1;
        if let Some(damage) = held.page.damaged.get_mut(place) {
            damage.repaired = is_good;
        }
        if held.missing > 0 {
            return;
        }
        if let Some(held) = self.scrubs_held.remove(&number) {
            self.scrubs_over.push((held.token, held.page));
        }
    }

    /// Answers what ended without a way to answer.
    pub(crate) fn answer_scrubs(&mut self, effects: &mut Vec<Effect>) {
        for (token, page) in std::mem::take(&mut self.scrubs_over) {
            Self::answer(token, Ok(AdminReply::Scrub(page)), effects);
        }
    }

    /// About what there is to check, for those who show how far it is.
    fn scrub_total(&self, volume: Option<GroupId>) -> u64 {
        let of_volume = volume.and_then(|id| self.engine.volume_space(id));
        match of_volume {
            // Blocks of its own, and those that it shares with what it was cloned from.
            Some(space) => space.own_blocks.max(space.referenced_blocks) * BLOCK_SIZE_U64,
            None => self.engine.space().live_bytes,
        }
    }
}
