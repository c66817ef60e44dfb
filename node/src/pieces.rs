//! Requests enter the engine in pieces, when it is their session's turn (see [`crate::turns`]); a read is
//! put together again here.

use crate::io::cut;
use crate::node::Node;
use crate::status::place_of;
use crate::turns;
use crate::volume::{OpId, Volume};
use esker_base::num::to_u64;
use esker_base::GroupId;
use esker_engine::event::ReadPiece;
use esker_engine::ReadError;
use esker_nbd::{Reply, RequestError};

impl Node {
    /// Lets requests enter the engine whose turn it is. False when there is none.
    pub(crate) fn take_turns(&mut self) -> bool {
        let mut any = false;
        while let Some(turn) = self.turns.next(self.now, |id| self.ops.contains_key(&id)) {
            any = true;
            if let Some(op) = self.ops.get_mut(&turn.op) {
                op.inside += turns::cost_of(turn.bytes);
            }
            self.enter(turn.op, to_u64(turn.bytes), turn.is_last);
        }
        any
    }

    /// So many bytes of a request enter.
    pub(crate) fn enter(&mut self, id: OpId, bytes: u64, is_last: bool) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let group = op.group;
        // It may have stopped serving since the request was taken on.
        let volume = self.volumes.get(&group);
        let serves = volume.is_some_and(Volume::is_serving);
        let spans = volume.is_some_and(|v| v.spans);
        let sees = spans && op.reads();
        if !serves && !sees {
            return match spans {
                true => self.reroute(id),
                false => self.fail_op(id, RequestError::Io),
            };
        }
        op.granted = match is_last {
            true => op.range().bytes(),
            false => op.granted + bytes,
        };
        if op.reads() {
            return self.begin_read(id, group);
        }
        if !std::mem::replace(&mut op.is_queued, true) {
            if let Some(volume) = self.volumes.get_mut(&group) {
                volume.waiting.push_back(id);
            }
        }
        self.volume_progress(group);
    }

    /// A part of a request has left the engine, before `outstanding` is counted down.
    pub(crate) fn part_left(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let share = op.inside / op.outstanding.max(1);
        op.inside -= share;
        self.turns.left(op.conn, share);
    }

    /// Brings the node's sum up to date with what a volume has proposed.
    pub(crate) fn count_uncommitted(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let now = volume
            .group
            .as_ref()
            .map_or(0, |group| group.uncommitted_bytes());
        let before = std::mem::replace(&mut volume.uncommitted_counted, now);
        self.uncommitted_bytes = self.uncommitted_bytes + now - before;
    }

    /// A piece of a read request came.
    pub(crate) fn piece_read(
        &mut self,
        id: OpId,
        piece: usize,
        result: Result<Vec<ReadPiece>, ReadError>,
    ) {
        self.part_left(id);
        if let Some(op) = self.ops.get_mut(&id) {
            op.outstanding -= 1;
        }
        if matches!(&result, Err(error) if self.read_elsewhere(id, error)) {
            return;
        }
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        match result {
            Ok(data) => {
                if let Some(place) = op.pieces.get_mut(piece) {
                    *place = data;
                }
                if op.outstanding == 0 && op.proposed {
                    let all = std::mem::take(&mut op.pieces).into_iter().flatten();
                    let pieces = cut(all.collect(), op.offset, op.length);
                    self.finish_op(id, Ok(Reply::Data(pieces)));
                }
            }
            Err(error) => {
                let at = place_of(&error, op.offset);
                self.without_key(&error);
                self.fail_op_at(id, RequestError::Io, at);
            }
        }
    }
}
