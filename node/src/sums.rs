//! What operators ask about and what must first come to rest: what differs between two versions of a
//! volume, and sums that are exact.

use crate::admin::{AdminError, AdminReply, AdminRequest, DiffExtent, DiffPage};
use crate::control::{AdminPending, Outcome};
use crate::event::{AdminToken, Effect};
use crate::node::Node;
use crate::volume::Volume;
use esker_base::{BlockRange, GroupId, RaftIndex, BLOCK_SIZE_U64};
use esker_engine::event::{self as engine_event, Diff, DiffRequest};
use esker_engine::ReadError;
use std::collections::{BTreeMap, BTreeSet};

/// Comparisons on their way in a store; further ones are refused.
const DIFFS_MAX: usize = 64;
/// Requests that wait for volumes to start; further ones are refused.
const DEFERRED_MAX: usize = 1024;
/// Checkpoints that one question for exact sums waits for. What a large discard left takes several.
const SETTLE_CHECKPOINTS_MAX: u8 = 16;

/// A comparison on its way.
#[derive(Debug)]
pub(crate) struct DiffAsk {
    token: AdminToken,
    request: DiffRequest,
    size_bytes: u64,
    /// The head is compared once this is applied, so that what was acknowledged counts.
    from: RaftIndex,
    asked: bool,
}

/// A question for exact sums.
#[derive(Debug)]
pub(crate) struct Settle {
    token: AdminToken,
    /// What was acknowledged when it came, and is to be applied first.
    waits: BTreeMap<GroupId, RaftIndex>,
    /// Volumes that were starting: their log may hold more.
    starting: BTreeSet<GroupId>,
}

impl Node {
    /// Compares a version of a volume with a snapshot, given by its volume and its name, from a byte on.
    pub(crate) fn snapshot_diff(
        &mut self,
        token: AdminToken,
        volume: &str,
        (of, from): (&str, &str),
        to: Option<&str>,
        offset: u64,
    ) -> Outcome {
        let id = self.find(volume)?;
        self.require_serving(id)?;
        let old_id = self.find(of)?;
        self.require_serving(old_id)?;
        let old = self.find_snapshot(old_id, from)?;
        let new = to.map(|name| self.find_snapshot(id, name)).transpose()?;
        if self.diffs.len() >= DIFFS_MAX {
            return Err(AdminError::Refused(format!(
                "{DIFFS_MAX} comparisons are on their way already; try again"
            )));
        }
        if !offset.is_multiple_of(BLOCK_SIZE_U64) {
            return Err(AdminError::Invalid(format!(
                "a comparison cannot begin at byte {offset}: use a multiple of 4096"
            )));
        }
        let Some(v) = self.volumes.get(&id) else {
            return Ok(None);
        };
        let newer = new.as_ref().map_or(v.size_bytes, |new| new.meta.size_bytes);
        let size_bytes = newer.max(old.meta.size_bytes);
        let first = offset / BLOCK_SIZE_U64;
        let count = (size_bytes / BLOCK_SIZE_U64).saturating_sub(first);
        if count == 0 {
            let page = DiffPage {
                extents: Vec::new(),
                through_bytes: size_bytes,
                size_bytes,
            };
            return Ok(Some(AdminReply::Diff(page)));
        }
        let from = if new.is_none() {
            v.answered()
        } else {
            RaftIndex(0)
        };
        let number = self.next_admin;
        self.next_admin += 1;
        let request = DiffRequest {
            token: number,
            group: id,
            old: old_id,
            from: old.cut,
            to: new.map(|new| new.cut),
            range: BlockRange::new(first, count),
            one: false,
        };
        let ask = DiffAsk {
            token,
            request,
            size_bytes,
            from,
            asked: false,
        };
        self.diffs.insert(number, ask);
        self.waits_for_rest = true;
        self.tell_engine(engine_event::Event::SyncSoon);
        Ok(None)
    }

    /// The engine has compared a part.
    pub(crate) fn diff_done(
        &mut self,
        token: u64,
        result: Result<Diff, ReadError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(ask) = self.diffs.remove(&token) else {
            return;
        };
        let answer = match result {
            Ok(diff) => Ok(AdminReply::Diff(page_of(&diff, ask.size_bytes))),
            Err(ReadError::UnknownGroup | ReadError::UnknownSnapshot) => Err(AdminError::NotFound(
                "one of what was to be compared was deleted meanwhile".into(),
            )),
            Err(error) => Err(AdminError::Refused(format!("not compared: {error}"))),
        };
        Self::answer(ask.token, answer, effects);
    }

    /// Lets everything come to rest that sums wait for.
    pub(crate) fn settle_sums(&mut self, token: AdminToken) -> Outcome {
        if self.fenced.is_some() {
            return Ok(Some(AdminReply::Done));
        }
        let behind = |v: &crate::volume::Volume| v.is_serving() && v.applied < v.answered();
        let waits = self.volumes.iter().filter(|(_, v)| behind(v));
        let waits: BTreeMap<_, _> = waits.map(|(id, v)| (*id, v.answered())).collect();
        let starting = self.volumes.iter().filter(|(_, v)| v.is_starting());
        let starting: BTreeSet<_> = starting.map(|(id, _)| *id).collect();
        if waits.is_empty() && starting.is_empty() && self.engine.sums_are_exact() {
            return Ok(Some(AdminReply::Done));
        }
        self.settles.push(Settle {
            token,
            waits,
            starting,
        });
        self.waits_for_rest = true;
        self.tell_engine(engine_event::Event::SyncSoon);
        Ok(None)
    }

    /// Keeps a request about a volume's snapshots until the volume serves, if it is starting: only then
    /// is what its log holds in force. Gives the request back otherwise.
    pub(crate) fn defer(
        &mut self,
        token: AdminToken,
        request: AdminRequest,
    ) -> Option<AdminRequest> {
        let (AdminRequest::SnapshotCreate { volume, .. }
        | AdminRequest::SnapshotDelete { volume, .. }
        | AdminRequest::VolumeClone { volume, .. }
        | AdminRequest::VolumeCloneAt { volume, .. }
        | AdminRequest::SnapshotRollback { volume, .. }
        | AdminRequest::SnapshotDiff { volume, .. }) = &request
        else {
            return Some(request);
        };
        let id = self.by_name.get(volume).copied();
        let id = id.filter(|id| self.volumes.get(id).is_some_and(Volume::is_starting));
        let Some(id) = id.filter(|_| self.fenced.is_none() && self.deferred.len() < DEFERRED_MAX)
        else {
            return Some(request); // refused, as one that does not serve
        };
        self.deferred.push((id, token, request));
        self.waits_for_rest = true;
        None
    }

    /// Goes on with questions that waited for writes to be applied. True when any did.
    pub(crate) fn rest_reached(&mut self, effects: &mut Vec<Effect>) -> bool {
        if !self.waits_for_rest {
            return false;
        }
        let volumes = &self.volumes;
        let starts = |id: &GroupId| volumes.get(id).is_some_and(Volume::is_starting);
        let (deferred, started): (Vec<_>, Vec<_>) = std::mem::take(&mut self.deferred)
            .into_iter()
            .partition(|(id, ..)| starts(id));
        self.deferred = deferred;
        let applied = |id: &GroupId, index: RaftIndex| {
            let volume = volumes.get(id).filter(|v| v.is_serving());
            volume.is_none_or(|v| v.applied >= index)
        };
        let ready = |ask: &&mut DiffAsk| !ask.asked && applied(&ask.request.group, ask.from);
        let mut requests = Vec::new();
        for ask in self.diffs.values_mut().filter(ready) {
            ask.asked = true;
            requests.push(ask.request.clone());
        }
        let rested = |s: &mut Settle| {
            let mut waits = s.waits.iter();
            waits.all(|(id, index)| applied(id, *index)) && !s.starting.iter().any(starts)
        };
        let settled: Vec<Settle> = self.settles.extract_if(.., rested).collect();
        self.waits_for_rest = !self.settles.is_empty()
            || !self.deferred.is_empty()
            || self.diffs.values().any(|ask| !ask.asked);
        let any = !requests.is_empty() || !settled.is_empty() || !started.is_empty();
        for (_, token, request) in started {
            self.admin_request(token, request, effects);
        }
        for request in requests {
            self.tell_engine(engine_event::Event::Diff(request));
        }
        for settle in settled {
            self.settle_round(settle.token, SETTLE_CHECKPOINTS_MAX);
        }
        any
    }

    /// Asks for a checkpoint, after which sums are exact unless more is to be taken apart.
    pub(crate) fn settle_round(&mut self, token: AdminToken, rounds: u8) {
        let token = self.admin_token(AdminPending::Settle(token, rounds));
        self.tell_engine(engine_event::Event::Checkpoint { token });
    }

    /// Questions that wait for writes that will never be applied.
    pub(crate) fn fail_rest(&mut self, effects: &mut Vec<Effect>) {
        for settle in std::mem::take(&mut self.settles) {
            Self::answer(settle.token, Ok(AdminReply::Done), effects);
        }
        let (asked, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.diffs)
            .into_iter()
            .partition(|(_, ask)| ask.asked);
        self.diffs = asked;
        for (_, ask) in gone {
            let text = "the store stopped taking writes; compare two snapshots instead";
            Self::answer(ask.token, Err(AdminError::Refused(text.into())), effects);
        }
        for (_, token, request) in std::mem::take(&mut self.deferred) {
            self.admin_request(token, request, effects); // which says that the store is fenced
        }
        self.waits_for_rest = false;
    }
}

fn page_of(diff: &Diff, size_bytes: u64) -> DiffPage {
    let extents = diff.runs.iter().map(|run| DiffExtent {
        offset: run.lba * BLOCK_SIZE_U64,
        length: run.count * BLOCK_SIZE_U64,
        is_data: run.is_data,
    });
    DiffPage {
        extents: extents.collect(),
        through_bytes: (diff.through * BLOCK_SIZE_U64).min(size_bytes),
        size_bytes,
    }
}
