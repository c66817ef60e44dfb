//! Block status requests, and where an error of a read lies.

use crate::node::{Node, ReadFor};
use crate::volume::{Action, OpId};
use esker_base::{Lba, Stamp, BLOCK_SIZE_U64};
use esker_engine::event::{self as engine_event, ExtentKind, ExtentRun, ExtentsRequest};
use esker_engine::ReadError;
use esker_nbd::wire::allocation;
use esker_nbd::{Extent, Reply, RequestError};
// The answers of the engine fit the replies of a session.
const _: () = assert!(esker_engine::EXTENT_RUNS_MAX <= esker_nbd::STATUS_EXTENTS_MAX);

/// The name of a metadata context that tells what changed since a snapshot, before the snapshot's name.
pub(crate) const SINCE_PREFIX: &str = "qemu:dirty-bitmap:since=";

/// What a metadata context tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// Where data is.
    Allocation,
    /// What changed since the snapshot with this cut.
    Since(Stamp),
}

impl Context {
    /// The snapshot it needs.
    pub fn since(self) -> Option<Stamp> {
        match self {
            Self::Allocation => None,
            Self::Since(cut) => Some(cut),
        }
    }
}

/// A block status request: one context is answered after the other.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// The first extent of each is enough.
    pub one: bool,
    contexts: Vec<Context>,
    told: Vec<Vec<Extent>>,
    /// What the volume has in its log and not in its map counts, too.
    latest: bool,
    /// What was answered before it came is in the map.
    is_settled: bool,
}

impl Status {
    pub fn new(one: bool, contexts: Vec<Context>) -> Self {
        Self {
            one,
            contexts,
            told: Vec::new(),
            latest: false,
            is_settled: false,
        }
    }

    /// The same question, with nothing told.
    pub fn anew(self) -> Self {
        Self::new(self.one, self.contexts)
    }

    /// The answer of a replica that knows nothing: everything may be data, and may have changed.
    pub fn everything(&self, length: u64) -> Vec<Vec<Extent>> {
        let extent = |context: &Context| Extent {
            length,
            flags: match context {
                Context::Allocation => 0,
                Context::Since(_) => crate::comparisons::DIRTY,
            },
        };
        self.contexts.iter().map(|c| vec![extent(c)]).collect()
    }

    /// The context that is to be answered next.
    pub fn next(&self) -> Option<Context> {
        self.contexts.get(self.told.len()).copied()
    }
}

impl Node {
    /// Begins or goes on with a block status request.
    pub(crate) fn tell_status(&mut self, id: OpId, latest: bool) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let is_head = op.at.is_none();
        let Action::Status(status) = &mut op.action else {
            return;
        };
        if status.told.is_empty() && !status.is_settled {
            status.latest = latest;
            // Versions are compared as they are in the map, which what was answered early is not yet.
            let compares = status.contexts.iter().any(|c| c.since().is_some());
            status.is_settled = true;
            if is_head && compares && self.wait_until_answered_is_applied(id) {
                return;
            }
        }
        self.tell_next_context(id);
    }

    /// False when there is nothing to wait for.
    fn wait_until_answered_is_applied(&mut self, id: OpId) -> bool {
        let Some(op) = self.ops.get_mut(&id) else {
            return true;
        };
        let Some(volume) = self.volumes.get_mut(&op.group) else {
            return false;
        };
        let answered = volume.answered();
        // Where it spans nodes, a read waits for what is in force before it comes here.
        if volume.applied >= answered || volume.spans {
            return false;
        }
        if self.fenced.is_some() {
            self.fail_op(id, RequestError::Io);
            return true;
        }
        self.turns.left(op.conn, std::mem::take(&mut op.inside));
        volume.read_waits.push((id, answered));
        self.flush_after_drive.insert(op.group);
        true
    }

    fn tell_next_context(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let Action::Status(status) = &mut op.action else {
            return;
        };
        match status.next() {
            Some(Context::Allocation) => self.read_extents(id),
            Some(Context::Since(_)) => self.compare(id),
            None => {
                let told = std::mem::take(&mut status.told);
                self.finish_op(id, Ok(Reply::BlockStatus(told)));
            }
        }
    }

    /// A context of a block status request is answered.
    pub(crate) fn context_told(&mut self, id: OpId, extents: Vec<Extent>) {
        if let Some(Action::Status(status)) = self.ops.get_mut(&id).map(|op| &mut op.action) {
            status.told.push(extents);
            self.tell_next_context(id);
        }
    }

    /// Asks the engine where data is, for a block status request.
    fn read_extents(&mut self, id: OpId) {
        let Some(op) = self.ops.get(&id) else { return };
        let Action::Status(Status { one, latest, .. }) = op.action else {
            return;
        };
        let (group, at, range) = (op.group, op.at, op.range());
        let token = self.read_token(ReadFor::Status(id));
        let request = ExtentsRequest {
            token,
            group,
            range,
            latest,
            at,
            one,
            old_keys: false,
        };
        self.tell_engine(engine_event::Event::Extents(request));
    }

    /// The engine has told where data is.
    pub(crate) fn extents_done(&mut self, token: u64, result: Result<Vec<ExtentRun>, ReadError>) {
        let id = match self.reads.remove(&token) {
            Some(ReadFor::Status(id)) => id,
            Some(ReadFor::ResealFind(group, part)) => {
                return self.reseal_found(group, part, result)
            }
            _ => return,
        };
        let Some(op) = self.ops.get(&id) else { return };
        match result {
            Ok(runs) => {
                let extents = allocation_of(&runs, op.offset, op.length);
                self.context_told(id, extents);
            }
            Err(error) => {
                tracing::error!(%error, op = id, "block status failed");
                let at = place_of(&error, op.offset);
                self.fail_op_at(id, RequestError::Io, at);
            }
        }
    }
}

/// Runs of blocks as `base:allocation` names them, cut to the bytes that were asked about.
fn allocation_of(runs: &[ExtentRun], offset: u64, length: u64) -> Vec<Extent> {
    let mut from = offset - offset % BLOCK_SIZE_U64;
    let end = offset + length;
    let mut extents = Vec::with_capacity(runs.len());
    for run in runs {
        let to = from.saturating_add(run.count.saturating_mul(BLOCK_SIZE_U64));
        let (lo, hi) = (from.max(offset), to.min(end));
        if lo < hi {
            extents.push(Extent {
                length: hi - lo,
                flags: match run.kind {
                    ExtentKind::Hole => allocation::HOLE | allocation::ZERO,
                    ExtentKind::Zero => allocation::ZERO,
                    ExtentKind::Data => 0,
                },
            });
        }
        from = to;
    }
    extents
}

/// The first byte, of those from `offset` on, that an error is about.
pub(crate) fn place_of(error: &ReadError, offset: u64) -> Option<u64> {
    let (ReadError::Damaged(Lba(lba))
    | ReadError::MapDamaged(Lba(lba))
    | ReadError::Refused(Lba(lba))
    | ReadError::NoKey(Lba(lba))
    | ReadError::Disk { lba: Lba(lba), .. }) = error
    else {
        return None;
    };
    Some(lba.checked_mul(BLOCK_SIZE_U64)?.max(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_to_the_bytes_asked_about() {
        let run = |kind, count| ExtentRun { kind, count };
        let runs = [
            run(ExtentKind::Data, 1),
            run(ExtentKind::Hole, 2),
            run(ExtentKind::Zero, 1),
        ];
        let told = |offset, length| {
            let extents = allocation_of(&runs, offset, length);
            extents
                .iter()
                .map(|e| (e.length, e.flags))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(8192, 16384), [(4096, 0), (8192, 3), (4096, 2)]);
        assert_eq!(told(8192 + 4000, 97), [(96, 0), (1, 3)]);
        assert_eq!(told(8192 + 100, 4096 * 3), [(3996, 0), (8192, 3), (100, 2)]);
    }

    #[test]
    fn an_error_lies_in_the_request_or_nowhere() {
        let damaged = |lba| ReadError::Damaged(Lba(lba));
        assert_eq!(place_of(&damaged(3), 100), Some(12288));
        assert_eq!(place_of(&damaged(3), 12300), Some(12300));
        assert_eq!(place_of(&damaged(u64::MAX), 0), None);
        assert_eq!(place_of(&ReadError::OutOfRange, 0), None);
    }
}
