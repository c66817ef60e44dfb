//! How much room there is, and for whom. The log gives way to the checkpoint: without room for a
//! checkpoint nothing ever becomes free again.
//!
//! From the lowest need to the highest:
//! 1. *Checkpoint*: the nodes of the merge in progress and of the next one, and their tables.
//! 2. *Opening* after a crash: two segments for the log and one for the tables.
//! 3. *Operations without payload*: trims and deletions make room, so a segment is kept for them.
//! 4. *Client data*: everything else, less the configured reserve.

use crate::engine::{Engine, SpaceUse};
use crate::format::checkpoint::SegmentKind;
use crate::format::PAGE_U64;
use esker_base::num::to_u64;

/// Segments an opening takes: the log's, its successor, and one for the tables.
const OPENING_SEGMENTS: u64 = 3;
/// Pages in a checkpoint that nothing else accounts for: raised roots, rounding.
const SLACK_PAGES: u64 = 8;

impl Engine {
    fn slots(&self) -> u64 {
        u64::from(self.sb.slots())
    }

    /// Map nodes that checkpoints will write for what is in records now.
    pub(crate) fn nodes_needed(&self) -> u64 {
        let next: usize = self.groups.values().map(|g| g.footprint.len()).sum();
        to_u64(next) + self.map.nodes_frozen
    }

    /// Pages of the next checkpoint's tables.
    fn tables_needed(&self) -> u64 {
        let chunks = self.sb.chunks.iter().map(|c| u64::from(c.pages));
        let since = self.log.items_since_checkpoint + self.log.bytes_since_checkpoint / PAGE_U64;
        chunks.sum::<u64>() * 5 / 4 + since.div_ceil(PAGE_U64) + SLACK_PAGES
    }

    /// Slots that the map can still take: its open segment and the free ones.
    fn map_room(&self) -> u64 {
        let open = match self.map.is_open() {
            true => self.slots() - u64::from(self.map.slot),
            false => 0,
        };
        to_u64(self.segs.free_count()) * self.slots() + open
    }

    /// Slots that must stay for checkpoints and openings.
    fn floor(&self) -> u64 {
        // This checkpoint's tables, the opening's and the one's after it.
        self.nodes_needed() + 3 * self.tables_needed() + OPENING_SEGMENTS * self.slots()
    }

    /// Whether a record of `pages` may be written that makes checkpoints write up to `nodes`
    /// more map nodes; `payload` says whether it carries data.
    pub(crate) fn record_fits(&self, pages: u32, nodes: u64, payload: bool) -> bool {
        let crosses = self.log.position.slot + pages > self.sb.slots();
        let segments = u64::from(crosses) + u64::from(payload);
        self.map_room() >= self.floor() + nodes + segments * self.slots()
    }

    /// Whether a checkpoint could make room: something is to be merged, removed or released.
    pub(crate) fn checkpoint_helps(&self) -> bool {
        let ours = |number: u32| self.sb.chunks.iter().any(|c| c.segment == number);
        // A deletion that waits for the log itself is not done by a checkpoint.
        let waits = |id| self.log.pending.iter().any(|p| p.item.group == id);
        self.groups
            .values()
            .any(|g| !g.active.is_empty() || (g.deleting && !waits(g.meta.group)))
            // Only if something died since the last one: its own tables die with the next, so that
            // a full store would write checkpoints without end.
            || self.segs.deaths != self.map.deaths_frozen
                && (0..).zip(self.segs.iter()).any(|(number, s)| {
                s.sealed
                    && s.kind != SegmentKind::Free
                    && s.live_count() == 0
                    && s.generation < self.log.position.generation
                    && !ours(number)
            })
    }

    /// Room is short: clients are refused, or the next checkpoint needs much of what is left.
    pub(crate) fn room_is_short(&self) -> bool {
        let merge_soon = self.nodes_needed() * 3 >= self.map_room();
        merge_soon || self.client_room() < self.slots()
    }

    /// Segments kept back from client writes, besides what checkpoints need.
    pub(crate) fn reserve_segments(&self) -> u64 {
        (self.sb.segment_count * self.config.reserve_percent / 100).max(2)
    }

    /// Slots for client data.
    fn client_room(&self) -> u64 {
        let kept = self.floor() + (self.reserve_segments() + 1) * self.slots();
        self.map_room().saturating_sub(kept)
    }

    /// Whether `bytes` of client data still fit without touching the reserve.
    #[must_use]
    pub fn has_room_for(&self, bytes: u64) -> bool {
        let pending = |p: &crate::log::writer::PendingItem| u64::from(p.payload_pages) + p.nodes;
        let pending: u64 = self.log.pending.iter().map(pending).sum();
        let room = self.client_room().saturating_sub(pending) * PAGE_U64;
        self.fenced.is_none() && room > 0 && room >= bytes
    }

    /// Whether operations without payload (trims, deletions) still fit: they may use the reserve,
    /// because they make room.
    #[must_use]
    pub fn has_room_for_metadata(&self) -> bool {
        let pending: u64 = self.log.pending.iter().map(|p| p.nodes).sum();
        self.fenced.is_none() && self.map_room() >= self.floor() + pending + self.slots()
    }

    /// What is on its way, in words, for tests and logs.
    #[must_use]
    pub fn progress(&self) -> String {
        format!(
            "pending {} in flight {} unsynced {} stalled {} checkpoint {} wanted {} free {} room {} floor {} deadline {:?}",
            self.log.pending.len(),
            self.log.in_flight.len(),
            self.log.unsynced.len(),
            self.stalled,
            self.checkpoint.is_some(),
            self.checkpoint_wanted,
            self.segs.free_count(),
            self.map_room(),
            self.floor(),
            self.deadline(),
        )
    }

    /// Space of the store.
    #[must_use]
    pub fn space(&self) -> SpaceUse {
        let slots = self.slots();
        let total = self.sb.segment_count * slots;
        let open = 2 * slots - u64::from(self.log.position.slot);
        let free = self.map_room() + open;
        let live = self.segs.live_slots();
        SpaceUse {
            live_bytes: live * PAGE_U64,
            free_bytes: free.min(total - live) * PAGE_U64,
            garbage_bytes: total.saturating_sub(live + free) * PAGE_U64,
            total_bytes: total * PAGE_U64,
            reserve_bytes: (self.floor() + self.reserve_segments() * slots) * PAGE_U64,
            device_bytes_written: self.counters.device_bytes_written,
            client_bytes_written: self.counters.client_bytes_written,
        }
    }
}
