//! Rewind: a volume with a window can be had as it was at any second of it.
//!
//! While such a volume is written to, it gets a *point* each second: a snapshot that nobody sees
//! (`docs/adr/0013-rewind-points-are-snapshots-nobody-sees.md`). Points that the window has passed are deleted, some at a time. When the
//! store has little room left, the oldest points go before any write is refused, and writes that find no room
//! wait for that.

use crate::admin::AdminError;
use crate::control::Outcome;
use crate::event::AdminToken;
use crate::node::{Node, Phase};
use crate::snapshots::SnapshotAsk;
use crate::volume::Volume;
use esker_base::num::to_u64;
use esker_base::{GroupId, Moment, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The label of a volume that holds its window, in seconds.
pub const REWIND_LABEL: &str = "esker.rewind";
/// The longest window in seconds: its points are among the snapshots that a volume can have, of which a third is
/// left for others.
pub const WINDOW_SECONDS_MAX: u64 = 12 * 3600;
/// Time between two points.
const POINT_INTERVAL_US: u64 = 1_000_000;
/// Points are deleted once they are so much older than the window, as a part of it, and within these bounds: each
/// time takes a checkpoint.
const SLIDE_SHARE: u64 = 32;
const SLIDE_MIN: Duration = Duration::from_secs(10);
const SLIDE_MAX: Duration = Duration::from_secs(600);
/// Points of one volume that are deleted at a time.
const DROPS_MAX: usize = 512;
/// Windows are shortened when less than this part of what clients may use is free.
const ROOM_SHARE: u64 = 16;
/// Between two lines of the log that tell of shortened windows.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// Whose requests are answered to nobody.
pub(crate) const NOBODY: AdminToken = AdminToken(u64::MAX);

/// Rewind of one volume.
#[derive(Debug, Default)]
pub(crate) struct Rewind {
    /// The window in seconds; none without.
    pub window: Option<u64>,
    /// Stamps the volume had taken after its last point; none before the first one since it serves.
    pub taken: Option<u64>,
    /// A point is on its way.
    pub asked: bool,
    /// Another replica may have led since this one looked at the window.
    pub is_new: bool,
    /// When points are looked at that the window has passed.
    slide_at: Moment,
    /// Points went for want of room: how far it reaches back is told until the window is whole again.
    shortened: bool,
}

/// Rewind of all volumes of a store.
#[derive(Debug, Default)]
pub(crate) struct Rewinds {
    /// Volumes with a window, or with points left of one.
    volumes: BTreeSet<GroupId>,
    /// When to look at them.
    pub due: Option<Moment>,
    /// Points deleted for want of room since the start.
    pub shortened: u64,
    warned: Option<Moment>,
    /// When the log's last record was written before this start, in microseconds since the Unix epoch.
    pub last_wall_us: u64,
}

impl Node {
    /// A volume is there, or its labels have changed.
    pub(crate) fn note_rewind(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let window = volume.labels.get(REWIND_LABEL);
        let window = window.and_then(|text| text.parse::<u64>().ok());
        volume.rewind.window = window.map(|seconds| seconds.clamp(1, WINDOW_SECONDS_MAX));
        if window.is_some() || self.engine.rewind_points(id).count > 0 {
            volume.rewind.slide_at = self.now;
            self.rewinds.volumes.insert(id);
            self.rewinds.due = Some(self.now);
        }
    }

    /// A volume is about to change: it is looked at when the second ends.
    pub(crate) fn rewind_soon(&mut self, id: GroupId) {
        if self.rewinds.volumes.contains(&id) {
            let at = self.second_end();
            self.rewinds.due = Some(self.rewinds.due.map_or(at, |due| due.min(at)));
        }
    }

    /// When this second of the wall clock ends.
    fn second_end(&self) -> Moment {
        let left_us = POINT_INTERVAL_US - self.wall.0 % POINT_INTERVAL_US;
        self.now + Duration::from_micros(left_us)
    }

    /// Looks at all windows, if it is time.
    pub(crate) fn rewind_if_due(&mut self) {
        if self.rewinds.due.is_none_or(|at| at > self.now) {
            return;
        }
        self.rewinds.due = None;
        if !matches!(self.phase, Phase::Serving | Phase::Draining(_)) {
            return;
        }
        let mut next: Option<Moment> = None;
        for id in self.rewinds.volumes.clone() {
            let at = self.rewind_volume(id);
            next = next.into_iter().chain(at).min();
        }
        self.make_room();
        if self.is_short_of_room() || !self.parking.is_empty() {
            next = Some(self.second_end());
        }
        let due = self.rewinds.due; // set meanwhile
        self.rewinds.due = due.into_iter().chain(next).min();
    }

    /// Takes a point if something was written, and deletes those that the window has passed. Tells when to look
    /// again, if something is left to do without a write.
    fn rewind_volume(&mut self, id: GroupId) -> Option<Moment> {
        let soon = Some(self.second_end());
        let volume = self.volumes.get(&id).filter(|v| !v.deleting);
        let Some(volume) = volume else {
            self.rewinds.volumes.remove(&id);
            return None;
        };
        if self.fenced.is_some() {
            return None;
        }
        if !volume.is_serving() || volume.is_rolling_back {
            // Otherwise the next write tells.
            return soon.filter(|_| volume.is_starting() || volume.is_rolling_back);
        }
        let points = self.engine.rewind_points(id);
        let rewind = &volume.rewind;
        let Some(window) = rewind.window else {
            if volume.source.is_active() {
                return soon; // replicas that lag need them
            }
            let left = self.engine.rewind_points_oldest(id, DROPS_MAX);
            if left.is_empty() {
                self.rewinds.volumes.remove(&id);
                return None;
            }
            self.drop_points(id, left);
            return soon;
        };
        let written = rewind.taken != Some(volume.stamps_taken);
        if written && !rewind.asked && self.engine.has_room_for_metadata() {
            self.take_point(id);
        }
        let from_us = self.wall.0.saturating_sub(window * POINT_INTERVAL_US);
        let slide = Duration::from_secs(window) / u32::try_from(SLIDE_SHARE).unwrap_or(1);
        let slide = slide.clamp(SLIDE_MIN, SLIDE_MAX);
        let volume = self.volumes.get_mut(&id)?;
        if volume.rewind.shortened && points.oldest_us <= from_us && points.count > 0 {
            volume.rewind.shortened = false;
        }
        if self.now >= volume.rewind.slide_at {
            let passed = self.engine.rewind_points_before(id, from_us, DROPS_MAX);
            let more = passed.len() == DROPS_MAX;
            volume.rewind.slide_at = if more { self.now } else { self.now + slide };
            self.drop_points(id, passed);
            if more {
                return soon;
            }
        }
        // Without a write, only as long as there is more than the one that tells how it is now.
        let volume = self.volumes.get(&id)?;
        let slides = points.count > 1 || volume.rewind.asked;
        let at = slides.then_some(volume.rewind.slide_at);
        // What has come in and has no stamp yet is for the next point.
        let changes = self.ops.values().any(|op| op.group == id && op.mutates());
        let waits = volume.rewind.taken.is_none() || volume.rewind.asked || changes;
        at.into_iter().chain(soon.filter(|_| waits)).min()
    }

    /// A volume that begins to serve gets its point before anything is written.
    pub(crate) fn first_point(&mut self, id: GroupId) {
        let has_window = self.rewinds.volumes.contains(&id);
        if let Some(volume) = self.volumes.get_mut(&id).filter(|_| has_window) {
            if volume.rewind.is_new && volume.is_serving() {
                // What the leader before this one wrote after its last point is in no point yet.
                (volume.rewind.is_new, volume.rewind.taken) = (false, None);
                self.look_at_windows_soon();
            }
        }
        let begins = |v: &Volume| {
            let rewind = &v.rewind;
            rewind.window.is_some() && rewind.taken.is_none() && !rewind.asked && v.is_serving()
        };
        let has_window = self.rewinds.volumes.contains(&id) && self.fenced.is_none();
        if has_window && self.volumes.get(&id).is_some_and(begins) {
            self.take_point(id);
        }
    }

    fn take_point(&mut self, id: GroupId) {
        let asked = self.ask(NOBODY, id, SnapshotAsk::Point { created_us: 0 });
        if let Some(volume) = self.volumes.get_mut(&id).filter(|_| asked.is_ok()) {
            // It is in the log: what is written from now on is for the next one.
            volume.rewind.asked &= volume.rewind.taken != Some(volume.stamps_taken);
        }
    }

    /// When what a point holds was whole. Before the first write since the start, that is when the log's last
    /// record was written; there may have been none for long.
    pub(crate) fn point_time_us(&self, id: GroupId, volume: &Volume) -> u64 {
        let born_us = self.engine.group(id).map_or(0, |view| view.meta.created_us);
        match (volume.stamps_taken, self.rewinds.last_wall_us) {
            (0, last) if last > 0 && volume.is_single() => last.max(born_us).min(self.wall.0),
            _ => self.wall.0,
        }
    }

    fn drop_points(&mut self, id: GroupId, cuts: Vec<esker_base::Stamp>) {
        for cut in cuts {
            let leaves = |v: &Volume| v.leaving.contains(&cut);
            if self.volumes.get(&id).is_none_or(leaves) {
                continue;
            }
            let name = String::new(); // nobody is told
            if self
                .ask(NOBODY, id, SnapshotAsk::Delete { name, cut })
                .is_err()
            {
                return; // the queue is full: the next look goes on
            }
        }
    }

    fn is_short_of_room(&self) -> bool {
        let little = self.engine.capacity_bytes() / ROOM_SHARE;
        (self.engine.room_bytes() < little || !self.parking.is_empty())
            && self
                .rewinds
                .volumes
                .iter()
                .any(|id| self.engine.rewind_points(*id).count > 0)
    }

    /// Deletes the older half of all points when the store has little room left, once what was deleted before is
    /// given back. True when any were.
    pub(crate) fn make_room(&mut self) -> bool {
        let leaving = |id: &GroupId| self.volumes.get(id).is_some_and(|v| !v.leaving.is_empty());
        let is_busy = self.rewinds.volumes.iter().any(leaving) || self.engine.reclaims();
        if self.fenced.is_some() || is_busy || !self.is_short_of_room() {
            return false;
        }
        let mut dropped = 0;
        for id in self.rewinds.volumes.clone() {
            let serves = self.volumes.get(&id).is_some_and(Volume::is_serving);
            let count = self.engine.rewind_points(id).count;
            let half = usize::try_from(count.div_ceil(2)).unwrap_or(usize::MAX);
            let oldest = self.engine.rewind_points_oldest(id, half.min(DROPS_MAX));
            if oldest.is_empty() || !serves {
                continue;
            }
            dropped += to_u64(oldest.len());
            self.drop_points(id, oldest);
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.rewind.shortened = volume.rewind.window.is_some();
            }
        }
        self.rewinds.shortened += dropped;
        let told = |at: Moment| self.now.since(at) < WARN_INTERVAL;
        if dropped > 0 && !self.rewinds.warned.is_some_and(told) {
            self.rewinds.warned = Some(self.now);
            tracing::warn!(
                store = self.config.store_index,
                points = dropped,
                "the store has little room left: rewind windows are shortened; trim or delete volumes, or \
                 make windows shorter with `esker volume set`"
            );
        }
        dropped > 0
    }

    /// Whether deleting points may make room for a write.
    pub(crate) fn points_may_give_room(&self) -> bool {
        let gives = |id: &GroupId| {
            let serves = self.volumes.get(id).is_some_and(Volume::is_serving);
            serves && self.engine.rewind_points(*id).count > 0
        };
        let volumes = &self.rewinds.volumes;
        !volumes.is_empty() && (self.engine.reclaims() || volumes.iter().any(gives))
    }

    /// Looks at all windows when this second ends, at the latest.
    pub(crate) fn look_at_windows_soon(&mut self) {
        let end = self.second_end();
        self.rewinds.due = Some(self.rewinds.due.map_or(end, |due| due.min(end)));
    }

    /// Makes a volume that begins as another one was at a moment, in microseconds since the Unix epoch.
    pub(crate) fn volume_clone_at(
        &mut self,
        token: AdminToken,
        (volume, at_us): (&str, u64),
        clone: String,
        labels: BTreeMap<String, String>,
        born: Option<VolumeId>,
    ) -> Outcome {
        let id = self.find(volume)?;
        self.require_serving(id)?;
        let refused = |text: String| Err(AdminError::Refused(text));
        let v = self.volumes.get(&id);
        if v.is_none_or(|v| v.rewind.window.is_none()) {
            return refused(format!(
                "volume {volume} cannot be rewound: give it a window with `esker volume set {volume} --rewind 6h`, \
                 or clone a snapshot of it"
            ));
        }
        if at_us > self.wall.0 {
            return Err(AdminError::Invalid(format!(
                "volume {volume} cannot be had as of a time to come"
            )));
        }
        let Some(from) = self.engine.rewound_to(id, at_us) else {
            let points = self.engine.rewind_points(id);
            let ago = |us: u64| self.wall.0.saturating_sub(us) / POINT_INTERVAL_US;
            return refused(match points.count {
                0 => format!("volume {volume} has nothing yet to be rewound to; try again in a second"),
                _ => format!(
                    "volume {volume} can be rewound by {} seconds and not by {}; clone a snapshot that is older",
                    ago(points.oldest_us),
                    ago(at_us)
                ),
            });
        };
        self.begin_clone(token, (id, &from), clone, labels, born)
    }

    /// Rewind points of all volumes.
    pub(crate) fn rewind_points(&self) -> u64 {
        let volumes = self.rewinds.volumes.iter();
        volumes.map(|id| self.engine.rewind_points(*id).count).sum()
    }

    /// What an operator should know of windows that are not whole.
    pub(crate) fn rewind_problems(&self) -> impl Iterator<Item = String> + '_ {
        let volumes = self.rewinds.volumes.iter();
        volumes.filter_map(|id| {
            let volume = self.volumes.get(id).filter(|v| v.rewind.shortened)?;
            let window = volume.rewind.window?;
            let points = self.engine.rewind_points(*id);
            let reaches = match points.count {
                0 => 0,
                _ => self.wall.0.saturating_sub(points.oldest_us) / POINT_INTERVAL_US,
            };
            (reaches < window).then(|| {
                format!(
                    "volume {} can be rewound by {reaches} of {window} seconds: the store had too little room for \
                     more. Trim or delete volumes, or give it a shorter window with `esker volume set`",
                    volume.name
                )
            })
        })
    }
}
