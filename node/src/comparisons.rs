//! Questions of clients for what changed between two versions of a volume: each holds map nodes while it
//! is answered and may wait for a checkpoint, so only a few are in the engine at a time, and sessions take
//! turns. They do not count as inside the engine (see [`crate::turns`]): what waits for a checkpoint must
//! not keep the place of what could be served.

use crate::node::{Node, ReadFor};
use crate::status::Context;
use crate::volume::{Action, OpId};
use esker_base::{ConnId, BLOCK_SIZE_U64};
use esker_engine::event::{self as engine_event, Diff, DiffRequest};
use esker_engine::ReadError;
use esker_nbd::{Extent, RequestError};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// Questions in the engine at a time; further ones wait.
const INSIDE_MAX: usize = 8;
/// Marks the engine's tokens of these questions: operators' have the others.
pub(crate) const TOKEN: u64 = 1 << 63;
/// What a block that changed is, in the words of QEMU's dirty bitmaps.
pub(crate) const DIRTY: u32 = 1;

/// Questions that wait, by session, and how many do not.
#[derive(Debug, Default)]
pub(crate) struct Comparisons {
    waiting: BTreeMap<ConnId, VecDeque<OpId>>,
    /// Whose turn it was last.
    last: ConnId,
    inside: usize,
}

impl Comparisons {
    fn push(&mut self, conn: ConnId, op: OpId) {
        self.waiting.entry(conn).or_default().push_back(op);
    }

    /// The next question that may enter.
    fn next(&mut self) -> Option<OpId> {
        if self.inside >= INSIDE_MAX {
            return None;
        }
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let next = self.waiting.range(after).next();
        let conn = *next.or_else(|| self.waiting.first_key_value())?.0;
        self.last = conn;
        let queue = self.waiting.get_mut(&conn)?;
        let op = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&conn);
        }
        op
    }
}

impl Node {
    /// A block status request asks what changed.
    pub(crate) fn compare(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        self.turns.left(op.conn, std::mem::take(&mut op.inside));
        self.comparisons.push(op.conn, id);
        self.compare_on();
    }

    /// Lets questions into the engine for which there is room.
    fn compare_on(&mut self) {
        while let Some(id) = self.comparisons.next() {
            let Some(op) = self.ops.get(&id) else {
                continue; // it has failed meanwhile
            };
            let Action::Status(status) = &op.action else {
                continue;
            };
            let Some(Context::Since(from)) = status.next() else {
                continue;
            };
            let (group, to, range, one) = (op.group, op.at, op.range(), status.one);
            let token = self.read_token(ReadFor::Changes(id)) | TOKEN;
            self.comparisons.inside += 1;
            let request = DiffRequest {
                token,
                group,
                old: group,
                from,
                to,
                range,
                one,
            };
            self.tell_engine(engine_event::Event::Diff(request));
        }
    }

    /// The engine has told what changed.
    pub(crate) fn changes_done(&mut self, token: u64, result: Result<Diff, ReadError>) {
        let Some(ReadFor::Changes(id)) = self.reads.remove(&(token & !TOKEN)) else {
            return;
        };
        self.comparisons.inside -= 1;
        self.compare_on();
        let Some(op) = self.ops.get(&id) else { return };
        match result {
            Ok(diff) => {
                let extents = changes_of(&diff, op.offset, op.length);
                self.context_told(id, extents);
            }
            Err(error) => {
                tracing::error!(%error, op = id, "block status failed");
                self.fail_op(id, RequestError::Io);
            }
        }
    }
}

/// What differs, as a dirty bitmap has it, cut to the bytes that were asked about.
fn changes_of(diff: &Diff, offset: u64, length: u64) -> Vec<Extent> {
    let end = diff.through.saturating_mul(BLOCK_SIZE_U64);
    let end = end.min(offset.saturating_add(length));
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = offset;
    let mut push = |to: u64, flags: u32| {
        let to = to.min(end);
        if to <= at {
            return;
        }
        let length = to - at;
        at = to;
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ => extents.push(Extent { length, flags }),
        }
    };
    for run in &diff.runs {
        push(run.lba * BLOCK_SIZE_U64, 0);
        push((run.lba + run.count) * BLOCK_SIZE_U64, DIRTY);
    }
    push(end, 0);
    extents
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_engine::event::DiffRun;

    #[test]
    fn runs_are_a_bitmap_of_the_bytes_asked_about() {
        let run = |lba, count, is_data| DiffRun {
            lba,
            count,
            is_data,
        };
        let diff = Diff {
            runs: vec![run(2, 1, true), run(3, 2, false), run(9, 1, true)],
            through: 12,
        };
        let told = |offset, length| {
            let extents = changes_of(&diff, offset, length);
            extents
                .iter()
                .map(|e| (e.length, e.flags))
                .collect::<Vec<_>>()
        };
        let all = [
            (8192, 0),
            (3 * 4096, 1),
            (4 * 4096, 0),
            (4096, 1),
            (8192, 0),
        ];
        assert_eq!(told(0, 12 * 4096), all);
        // As far as was looked, and no further than was asked.
        assert_eq!(told(0, 100 * 4096), all);
        assert_eq!(told(8200, 100), [(100, 1)]);
        assert_eq!(told(100, 8192), [(8092, 0), (100, 1)]);
        assert_eq!(told(5 * 4096, 4096), [(4096, 0)]);
    }

    #[test]
    fn sessions_take_turns_and_few_are_inside() {
        let mut all = Comparisons::default();
        (0..20).for_each(|op| all.push(ConnId(1), op));
        all.push(ConnId(2), 100);
        let mut entered = Vec::new();
        while let Some(op) = all.next() {
            all.inside += 1;
            entered.push(op);
        }
        assert_eq!(entered, [0, 100, 1, 2, 3, 4, 5, 6]);
        all.inside -= 1;
        assert_eq!(all.next(), Some(7));
    }
}
