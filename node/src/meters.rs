//! What the node counts for metrics, and its warnings about slow requests. The counters are plain
//! integers of the store's thread; a scrape takes a copy of them ([`StoreSample`]).
//!
//! A request takes from the turn of the loop that parsed it to the turn that queued its reply: the
//! loop's clock is read once per turn.

use crate::admin::{AdminReply, SpaceReport, Tuning, VolumeState};
use crate::node::Node;
use crate::volume::{Action, Op, OpId};
use esker_base::num::to_u64;
use esker_base::{GroupId, Histogram, Moment, BLOCK_SIZE_U64};
use esker_engine::meters::EngineSample;
use esker_nbd::RequestError;
use std::time::Duration;

/// Operations of clients, in the order of [`Requests::took`].
pub const OPERATIONS: [&str; 7] = [
    "read",
    "write",
    "flush",
    "trim",
    "write_zeroes",
    "cache",
    "block_status",
];
const WRITE: usize = 1;
const CACHE: usize = 5;
/// How a request failed, in the order of [`Requests::errors`].
pub const REQUEST_ERRORS: [&str; 8] = [
    "io",
    "no_space",
    "invalid",
    "read_only",
    "not_supported",
    "shutdown",
    "too_big",
    "no_memory",
];
/// States of volumes, in the order of [`StoreSample::volume_states`].
pub const VOLUME_STATES: [&str; 5] = ["ready", "starting", "suspended", "fenced", "locked"];
/// Warnings about slow requests per [`SLOW_WINDOW`]; further ones are only counted.
pub const SLOW_WARNINGS_MAX: u64 = 5;
/// See [`SLOW_WARNINGS_MAX`].
pub const SLOW_WINDOW: Duration = Duration::from_secs(10);

/// Requests of clients that were answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// How long each took, in nanoseconds, by [`OPERATIONS`]; failed ones included.
    pub took: [Histogram; 7],
    /// Bytes asked for, by [`OPERATIONS`]; failed ones included.
    pub bytes: [u64; 7],
    /// Failures, by [`REQUEST_ERRORS`].
    pub errors: [u64; 8],
    /// Requests that were on their way already when one arrived.
    pub depth: Histogram,
    /// Those that took longer than [`Tuning::slow_request`].
    pub slow: u64,
}

/// What is counted for each volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeCounts {
    /// Requests answered, by [`OPERATIONS`].
    pub requests: [u64; 7],
    /// Bytes asked for, by [`OPERATIONS`].
    pub bytes: [u64; 7],
    /// Those of them that failed.
    pub errors: u64,
}

/// A volume in a sample, or the sum of those that have no place of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeSample {
    /// Its name; empty for the sum.
    pub name: String,
    /// Volumes in it.
    pub volumes: u64,
    /// What clients asked of it since it was opened.
    pub counts: VolumeCounts,
    /// Size in bytes, as clients see it.
    pub size_bytes: u64,
    /// Bytes of live data, as of the last checkpoint.
    pub used_bytes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes that only snapshots hold, as of the last checkpoint.
    pub snapshot_bytes: u64,
    /// Attached sessions.
    pub sessions: u64,
    /// How many of them are in each state, by [`VOLUME_STATES`].
    pub in_state: [u64; 5],
}

/// Sessions and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Sessions that attached to a volume.
    pub attached: u64,
    /// Sessions that ended because another attachment took the place of theirs.
    pub fenced: u64,
    /// Connections that ended because the client broke the protocol.
    pub broken: u64,
}

/// Cuts through several volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldCounts {
    /// Times that changes of a volume were held back.
    pub begun: u64,
    /// Those of them that ended because it took too long.
    pub expired: u64,
    /// For how long, together.
    pub time: std::time::Duration,
}

/// Everything a store counts, and what it holds, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreSample {
    /// The engine's part.
    pub engine: EngineSample,
    /// Requests answered.
    pub requests: Requests,
    /// Sessions.
    pub sessions: SessionCounts,
    /// Cuts through several volumes.
    pub holds: HoldCounts,
    /// Sessions attached now.
    pub sessions_now: u64,
    /// Connections now, attached or not.
    pub connections_now: u64,
    /// Requests on their way now.
    pub requests_now: u64,
    /// Their payload bytes.
    pub request_bytes_now: u64,
    /// Age of the oldest of them, in nanoseconds.
    pub oldest_request_ns: u64,
    /// What needs an operator: 0 when the store is healthy.
    pub problems: u64,
    /// Rewind points now.
    pub rewind_points: u64,
    /// Rewind points deleted for want of room.
    pub rewind_points_given_up: u64,
    /// Times a sealed block did not open.
    pub blocks_refused: u64,
    /// Maps of encrypted volumes that nothing vouched for.
    pub maps_refused: u64,
    /// Replicas that catch up by versions.
    pub catch_ups: crate::CatchUps,
    /// Space.
    pub space: SpaceReport,
    /// Volumes, by [`VOLUME_STATES`].
    pub volume_states: [u64; 5],
    /// Volumes with series of their own, at most [`Tuning::metrics_volumes_max`].
    pub volumes: Vec<VolumeSample>,
    /// The sum of the others.
    pub others: VolumeSample,
    /// What the opening found.
    pub ready: crate::ReadyReport,
    /// How long it took, in nanoseconds.
    pub recovery_ns: u64,
}

/// The node's counters.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub tuning: Tuning,
    pub sessions: SessionCounts,
    pub holds: HoldCounts,
    recovery_ns: u64,
    requests: Requests,
    others: VolumeCounts,
    /// Volumes with counts of their own, at most; exact after each sample.
    own: usize,
    slow_window: Moment,
    slow_warned: u64,
    slow_silent: u64,
    /// The log was told that the store is full, when.
    full_since: Option<Moment>,
    began: Moment,
}

/// The counts of a volume.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VolumeMeter {
    counts: VolumeCounts,
    /// It has series of its own; otherwise it is counted with the others.
    is_own: bool,
}

impl Meters {
    pub fn new(tuning: Tuning, began: Moment) -> Self {
        Self {
            tuning,
            began,
            ..Self::default()
        }
    }

    /// The counts of a new volume.
    pub fn volume(&mut self) -> VolumeMeter {
        let is_own = self.own < self.tuning.metrics_volumes_max;
        self.own += usize::from(is_own);
        VolumeMeter {
            is_own,
            ..VolumeMeter::default()
        }
    }

    /// The store is open.
    pub fn opened(&mut self, now: Moment) {
        self.recovery_ns = now.0.saturating_sub(self.began.0);
    }

    /// A request was slow. When that is to be told, how many were not told before it.
    fn slow(&mut self, now: Moment) -> Option<u64> {
        self.requests.slow += 1;
        if now.since(self.slow_window) >= SLOW_WINDOW {
            (self.slow_window, self.slow_warned) = (now, 0);
        }
        if self.slow_warned >= SLOW_WARNINGS_MAX {
            self.slow_silent += 1;
            return None;
        }
        self.slow_warned += 1;
        Some(std::mem::take(&mut self.slow_silent))
    }

    /// A request arrived while so many were on their way.
    pub fn arrived(&mut self, depth: usize) {
        self.requests.depth.observe(to_u64(depth));
    }
}

impl VolumeCounts {
    fn add(&mut self, operation: usize, bytes: u64, is_error: bool) {
        self.requests[operation] += 1;
        self.bytes[operation] += bytes;
        self.errors += u64::from(is_error);
    }

    fn merge(&mut self, other: &Self) {
        for operation in 0..OPERATIONS.len() {
            self.requests[operation] += other.requests[operation];
            self.bytes[operation] += other.bytes[operation];
        }
        self.errors += other.errors;
    }
}

fn operation_of(action: &Action) -> usize {
    match action {
        Action::Read => 0,
        Action::Write(_) => WRITE,
        Action::Flush => 2,
        Action::Trim => 3,
        Action::Zeroes { .. } => 4,
        Action::Status(_) => 6,
    }
}

fn error_of(error: RequestError) -> usize {
    match error {
        RequestError::Io => 0,
        RequestError::NoSpace => 1,
        RequestError::Invalid => 2,
        RequestError::ReadOnly => 3,
        RequestError::NotSupported => 4,
        RequestError::Shutdown => 5,
        RequestError::TooBig => 6,
        RequestError::NoMemory => 7,
    }
}

fn state_index(state: VolumeState) -> usize {
    match state {
        VolumeState::Ready => 0,
        VolumeState::Starting => 1,
        VolumeState::Suspended => 2,
        VolumeState::Fenced => 3,
        VolumeState::Locked => 4,
    }
}

impl Node {
    /// A request is taken on.
    pub(crate) fn request_begins(&mut self, id: OpId, op: &Op) {
        self.meters.arrived(self.ops.len());
        tracing::debug!(
            request = id,
            conn = op.conn.0,
            session = self.session_of(op),
            cookie = self.cookie_of(op),
            operation = OPERATIONS[operation_of(&op.action)],
            offset = op.offset,
            length = op.length,
            "request"
        );
    }

    /// A hint is answered as it arrives.
    pub(crate) fn hint_answered(&mut self, group: GroupId, length: u64) {
        self.meters.arrived(self.ops.len());
        self.count_request(group, CACHE, length, Duration::ZERO, None);
    }

    /// A request is answered.
    pub(crate) fn request_ends(&mut self, id: OpId, op: &Op, error: Option<RequestError>) {
        let took = self.now.since(op.since);
        let operation = operation_of(&op.action);
        self.count_request(op.group, operation, op.length, took, error);
        tracing::debug!(
            request = id,
            conn = op.conn.0,
            session = self.session_of(op),
            cookie = self.cookie_of(op),
            operation = OPERATIONS[operation],
            took_us = took.as_micros(),
            error = error.map(tracing::field::display),
            "reply"
        );
        if took >= self.meters.tuning.slow_request {
            self.slow_request(op, operation, took);
        }
    }

    fn count_request(
        &mut self,
        group: GroupId,
        operation: usize,
        bytes: u64,
        took: Duration,
        error: Option<RequestError>,
    ) {
        let meters = &mut self.meters;
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        meters.requests.took[operation].observe(nanos);
        meters.requests.bytes[operation] += bytes;
        if let Some(error) = error {
            meters.requests.errors[error_of(error)] += 1;
        }
        let own = self.volumes.get_mut(&group).filter(|v| v.meter.is_own);
        let counts = own.map_or(&mut meters.others, |v| &mut v.meter.counts);
        counts.add(operation, bytes, error.is_some());
        if error == Some(RequestError::NoSpace) || meters.full_since.is_some() {
            self.note_room(operation, error);
        }
    }

    /// Tells the log when the store begins to refuse writes for want of room, and when it takes them
    /// again; not more often than once per [`SLOW_WINDOW`].
    fn note_room(&mut self, operation: usize, error: Option<RequestError>) {
        let store = self.config.store_index;
        match (error, self.meters.full_since) {
            (Some(RequestError::NoSpace), None) => {
                self.meters.full_since = Some(self.now);
                let space = self.engine.space();
                tracing::warn!(
                    store,
                    live_bytes = space.live_bytes,
                    garbage_bytes = space.garbage_bytes,
                    free_bytes = space.free_bytes,
                    total_bytes = space.total_bytes,
                    "the store is full: writes are refused; trim or delete volumes"
                );
            }
            (None, Some(since)) if operation == WRITE && self.now.since(since) >= SLOW_WINDOW => {
                self.meters.full_since = None;
                tracing::info!(store, "the store takes writes again");
            }
            _ => {}
        }
    }

    /// Warns of a slow request, a few times at most; the rest is told as a number.
    fn slow_request(&mut self, op: &Op, operation: usize, took: Duration) {
        let Some(not_told) = self.meters.slow(self.now) else {
            return;
        };
        tracing::warn!(
            store = self.config.store_index,
            volume = self.volumes.get(&op.group).map(|v| v.name.as_str()),
            conn = op.conn.0,
            session = self.session_of(op),
            cookie = self.cookie_of(op),
            operation = OPERATIONS[operation],
            offset = op.offset,
            length = op.length,
            took_ms = took.as_millis(),
            not_told,
            "slow request"
        );
    }

    fn session_of(&self, op: &Op) -> Option<u64> {
        self.conns.get(&op.conn).map(|c| c.session_id)
    }

    fn cookie_of(&self, op: &Op) -> Option<u64> {
        self.conns.get(&op.conn)?.session.cookie(op.request)
    }

    /// Logs the state of a volume when it has changed.
    pub(crate) fn note_state(&mut self, id: GroupId) {
        let is_fenced = self.fenced.is_some();
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| !v.deleting) else {
            return;
        };
        let state = volume.state(is_fenced);
        if volume.state_told == Some(state) {
            return;
        }
        let before = volume.state_told.replace(state);
        tracing::info!(
            store = self.config.store_index,
            volume = volume.name,
            uuid = %volume.id,
            state = VOLUME_STATES[state_index(state)],
            before = before.map(|state| VOLUME_STATES[state_index(state)]),
            why = volume.trouble,
            "volume changes state"
        );
    }

    /// What can be changed while the store is in use.
    pub(crate) fn tune(&mut self, tuning: Tuning) -> AdminReply {
        self.meters.tuning = tuning;
        AdminReply::Done
    }

    /// The counters now.
    pub(crate) fn sample(&mut self) -> StoreSample {
        let mut sample = StoreSample {
            engine: self.engine.sample(),
            requests: self.meters.requests.clone(),
            sessions: self.meters.sessions,
            holds: self.meters.holds,
            connections_now: to_u64(self.conns.len()),
            requests_now: to_u64(self.in_flight.0.max(self.ops.len())),
            request_bytes_now: to_u64(self.in_flight.1.max(self.op_bytes)),
            // Ids of requests rise.
            oldest_request_ns: self
                .ops
                .values()
                .next()
                .map_or(0, |op| self.now.0.saturating_sub(op.since.0)),
            problems: to_u64(self.problems().len()),
            rewind_points: self.rewind_points(),
            rewind_points_given_up: self.rewinds.shortened,
            blocks_refused: self.keys.refused,
            maps_refused: self.keys.maps_refused,
            catch_ups: self.catch_ups(),
            space: self.store_space(),
            ready: self.report.clone(),
            recovery_ns: self.meters.recovery_ns,
            ..StoreSample::default()
        };
        let is_fenced = self.fenced.is_some();
        let most = self.meters.tuning.metrics_volumes_max;
        self.meters.own = 0;
        let held = self.engine.snapshot_blocks();
        for (id, volume) in &mut self.volumes {
            if volume.deleting {
                continue;
            }
            if volume.meter.is_own && self.meters.own >= most {
                // The maximum was lowered: what it has counted goes to the others.
                volume.meter.is_own = false;
                let counts = std::mem::take(&mut volume.meter.counts);
                self.meters.others.merge(&counts);
            }
            self.meters.own += usize::from(volume.meter.is_own);
            let state = volume.state(is_fenced);
            sample.volume_states[state_index(state)] += 1;
            let sessions = to_u64(volume.attached().len());
            sample.sessions_now += sessions;
            let used_bytes = self.engine.used_blocks_at_checkpoint(*id) * BLOCK_SIZE_U64;
            let seen = if volume.meter.is_own {
                sample.volumes.push(VolumeSample {
                    name: volume.name.clone(),
                    counts: volume.meter.counts,
                    ..VolumeSample::default()
                });
                sample.volumes.last_mut()
            } else {
                Some(&mut sample.others)
            };
            if let Some(seen) = seen {
                seen.volumes += 1;
                seen.size_bytes += volume.size_bytes;
                seen.used_bytes += used_bytes;
                seen.snapshots += self.engine.snapshot_count(*id);
                seen.snapshot_bytes += held.get(id).map_or(0, |blocks| blocks * BLOCK_SIZE_U64);
                seen.sessions += sessions;
                seen.in_state[state_index(state)] += 1;
            }
        }
        sample.others.counts = self.meters.others;
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_few_and_count_what_they_leave_out() {
        let mut meters = Meters::new(Tuning::default(), Moment(0));
        let first = Moment(0) + SLOW_WINDOW;
        let told: Vec<_> = (0..20).map(|_| meters.slow(first)).collect();
        assert_eq!(told.iter().flatten().count(), 5);
        assert_eq!(told[..5], [Some(0); 5]);
        assert_eq!(meters.slow(first + SLOW_WINDOW), Some(15));
        assert_eq!(meters.slow(first + SLOW_WINDOW), Some(0));
        assert_eq!(meters.requests.slow, 22);
    }

    #[test]
    fn places_of_their_own_are_bounded() {
        let tuning = Tuning {
            metrics_volumes_max: 2,
            ..Tuning::default()
        };
        let mut meters = Meters::new(tuning, Moment(0));
        let own: Vec<bool> = (0..4).map(|_| meters.volume().is_own).collect();
        assert_eq!(own, [true, true, false, false]);
    }
}
