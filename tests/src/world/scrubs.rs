//! Scrubs in the world: parts of what is stored are read and checked among everything else. Where nothing was
//! damaged nothing is told to be, and each gets to its end.

use super::world::{Purpose, World};
use esker_node::admin::{AdminError, AdminReply, AdminRequest, ScrubPlace};

/// Parts of one scrub; it is given up then.
const PARTS_MAX: u32 = 200;

/// A part of a scrub that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Scrub {
    /// Of this volume; of the store without.
    volume: Option<String>,
    place: Option<ScrubPlace>,
    part: u32,
}

impl World {
    /// A scrub begins, of a volume or of all.
    pub(crate) fn scrub(&mut self, host: usize) {
        if !self.may_be_told(host) {
            return;
        }
        let slot = self.rng.index(self.slots.len());
        let volume = self.slots[slot].volume.as_ref().map(|v| v.name.clone());
        let scrub = Scrub {
            volume: volume.filter(|_| self.rng.chance(500)),
            place: None,
            part: 0,
        };
        self.ask_scrub(host, scrub);
    }

    fn ask_scrub(&mut self, host: usize, scrub: Scrub) {
        let request = AdminRequest::Scrub {
            volume: scrub.volume.clone(),
            place: scrub.place,
        };
        self.ask_operator(host, request, Purpose::Scrub(scrub));
    }

    pub(crate) fn scrub_answered(
        &mut self,
        host: usize,
        scrub: Scrub,
        result: Result<AdminReply, AdminError>,
    ) {
        let page = match result {
            Ok(AdminReply::Scrub(page)) => page,
            // Too many at a time, a store that is fenced, a volume that has another name or is gone.
            Err(
                AdminError::Refused(_)
                | AdminError::NotLeading(_)
                | AdminError::Unsure(_)
                | AdminError::NotFound(_),
            ) => return,
            other => return self.violate(format!("{scrub:?} gave {other:?}")),
        };
        let excused = self.plan.spoils() || self.plan.weights.disk_errors > 0;
        if !page.damaged.is_empty() && !excused {
            return self.violate(format!("a scrub finds damage: {:?}", page.damaged));
        }
        self.stats.did("parts of scrubs");
        let Some(next) = page.next else {
            return self.stats.did("scrubs that got to their end");
        };
        if scrub.place == Some(next) {
            return self.violate(format!("{scrub:?} stands still"));
        }
        if scrub.part < PARTS_MAX && self.may_be_told(host) {
            let part = Scrub {
                place: Some(next),
                part: scrub.part + 1,
                ..scrub
            };
            self.ask_scrub(host, part);
        }
    }
}
