//! Block status requests, and where an error of a read lies.

use crate::node::{Node, ReadFor};
use crate::volume::{Action, OpId};
use esker_base::{Lba, BLOCK_SIZE_U64};
use esker_engine::event::{self as engine_event, ExtentKind, ExtentRun, ExtentsRequest};
use esker_engine::ReadError;
use esker_nbd::wire::allocation;
use esker_nbd::{Extent, Reply, RequestError};
use std::sync::Arc;

// The answers of the engine fit the replies of a session.
const _: () = assert!(esker_engine::EXTENT_RUNS_MAX <= esker_nbd::STATUS_EXTENTS_MAX);

/// The metadata contexts of a volume.
pub(crate) fn contexts() -> Vec<Arc<str>> {
    vec![Arc::from(allocation::NAME)]
}

/// Whether these contexts can be answered.
pub(crate) fn can_answer(contexts: &[Arc<str>]) -> bool {
    contexts.iter().all(|name| &**name == allocation::NAME)
}

impl Node {
    /// Asks the engine where data is, for a block status request.
    pub(crate) fn read_extents(&mut self, id: OpId, latest: bool) {
        let Some(op) = self.ops.get(&id) else { return };
        let Action::Status { one } = op.action else {
            return;
        };
        let (group, range) = (op.group, op.range());
        let token = self.read_token(ReadFor::Status(id));
        let request = ExtentsRequest {
            token,
            group,
            range,
            latest,
            at: None,
            one,
        };
        self.tell_engine(engine_event::Event::Extents(request));
    }

    /// The engine has told where data is.
    pub(crate) fn extents_done(&mut self, token: u64, result: Result<Vec<ExtentRun>, ReadError>) {
        let Some(ReadFor::Status(id)) = self.reads.remove(&token) else {
            return;
        };
        let Some(op) = self.ops.get(&id) else { return };
        match result {
            Ok(runs) => {
                let extents = allocation_of(&runs, op.offset, op.length);
                self.finish_op(id, Ok(Reply::BlockStatus(vec![extents])));
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
