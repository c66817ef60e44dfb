//! How much room there is, and for whom. The log gives way to the checkpoint: without room for a
//! checkpoint nothing ever becomes free again.
//!
//! From the lowest need to the highest:
//! 1. *Checkpoint*: the nodes of the merge in progress and of the next one, and their tables.
//! 2. *Opening* after a crash: two segments for the log and one for the tables.
//! 3. *Garbage collection*, which may use what an opening needs: a crash gives back what it took.
//! 4. *Records* wait until all of that is there.
//!
//! Who is refused is another matter: clients when as many slots are live as the capacity allows, trims
//! and deletions when half the reserve is used as well.

use crate::engine::{Engine, SpaceUse};
use crate::format::checkpoint::SegmentKind;
use crate::format::superblock::CHECKPOINT_COPIES;
use crate::format::PAGE_U64;
use crate::gc::streams_count;
use crate::group::Group;
use esker_base::num::to_u64;

/// Segments an opening takes: the log's, its successor, and one for the tables.
const OPENING_SEGMENTS: u64 = 3;
/// Pages in a checkpoint that nothing else accounts for: raised roots, rounding.
const SLACK_PAGES: u64 = 4;
/// Versions with their deadlists in a page of a checkpoint, at least.
const VERSIONS_PER_PAGE: u64 = 12;
/// Pages of deadlists that a checkpoint may write beside those that its merges need, and the first pages
/// of the tables of versions and deadlists.
const RECLAIM_PAGES: u64 = 5;
/// Bytes by which a slot that is written makes the tables grow at most, on average.
const TABLE_BYTES_PER_SLOT: u64 = 4;
/// Open at a time beside those of survivors: the log's and its successor, the map's, and three that an
/// opening takes.
const OPEN_SEGMENTS: u64 = 3 + OPENING_SEGMENTS;
/// Fewest segments in the reserve.
const RESERVE_SEGMENTS_MIN: u64 = 2;
/// Room is short when the log could open no more than this.
const SHORT_SEGMENTS: u64 = 3;
/// A checkpoint is due after this part of the store, if that comes before the configured bytes.
const CHECKPOINT_SHARE: u64 = 16;
/// A checkpoint that writes one map node for this many blocks or more need not wait for a longer log. Nor
/// need one whose nodes are as many bytes as may be written before it ends: those who write would
/// wait for them.
const NODES_SHARE: u64 = 16;
/// Garbage collection works when less than this share of the store is free above the floor.
const COLLECT_PERCENT: u64 = 8;
/// And at least so many segments.
const COLLECT_SEGMENTS_MIN: u64 = 3;

impl Engine {
    fn slots(&self) -> u64 {
        u64::from(self.sb.slots())
    }

    /// Map nodes that checkpoints will write for what is in records now.
    pub(crate) fn nodes_needed(&self) -> u64 {
        self.load.nodes + self.map.nodes_frozen
    }

    /// Pages of the next checkpoint's tables, all copies of them.
    fn tables_needed(&self) -> u64 {
        let last = self.sb.checkpoint_bytes.div_ceil(PAGE_U64);
        let since = self.log.items_since_checkpoint + self.log.bytes_since_checkpoint / PAGE_U64;
        // Versions that the last one did not have, and what taking subtrees apart may write.
        let versions = match self.forest.is_empty() {
            true => 0,
            false => {
                (self.load.cuts + 2 * self.clones_begun).div_ceil(VERSIONS_PER_PAGE) + RECLAIM_PAGES
            }
        };
        // All pages of the tables may change, and records grow with what is written.
        let tables = self.segs.tables();
        let slots = self.log.bytes_since_checkpoint / PAGE_U64;
        let grown = slots * TABLE_BYTES_PER_SLOT / to_u64(tables.content_max());
        let pages = to_u64(tables.pages_max()) + grown;
        let one = last * 5 / 4 + since.div_ceil(PAGE_U64) + pages + SLACK_PAGES + versions;
        one * to_u64(CHECKPOINT_COPIES)
    }

    /// Slots that this checkpoint and the one after it may take.
    pub(crate) fn checkpoint_room(&self) -> u64 {
        self.nodes_needed() + 2 * self.tables_needed()
    }

    /// Room at which garbage collection rests.
    pub(crate) fn collection_target(&self) -> u64 {
        let slots = self.slots();
        let share = self.sb.segment_count * slots * COLLECT_PERCENT / 100;
        self.floor() + share.max(COLLECT_SEGMENTS_MIN * slots)
    }

    /// Slots that the map can still take: its open segment and the free ones.
    pub(crate) fn map_room(&self) -> u64 {
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

    /// Map nodes that a checkpoint may write beside those that it must, without taking room from records.
    pub(crate) fn spare_nodes(&self) -> u64 {
        let kept = self.floor() + SHORT_SEGMENTS * self.slots();
        self.map_room().saturating_sub(kept)
    }

    /// Whether a record of `pages` may be written that makes checkpoints write up to `nodes`
    /// more map nodes; `payload` says whether it carries data.
    pub(crate) fn record_fits(&self, pages: u32, nodes: u64, payload: bool) -> bool {
        let crosses = self.log.position.slot + pages > self.sb.slots();
        let segments = u64::from(crosses) + u64::from(payload);
        self.map_room() >= self.floor() + nodes + segments * self.slots()
    }

    /// Whether a checkpoint could make room: something is to be merged, removed or released, or may
    /// be collected once a checkpoint is newer.
    pub(crate) fn checkpoint_helps(&self) -> bool {
        // A deletion that waits for the log itself is not done by a checkpoint.
        let waits = |id| self.log.pending.iter().any(|p| p.item.group == id);
        self.groups
            .values()
            .any(|g| g.deleting && !waits(g.meta.group))
            || self.load.extents > 0
            || self.has_to_reclaim()
            || self.frees_segments()
            || self.makes_victims()
    }

    /// Whether the next checkpoint frees segments.
    fn frees_segments(&self) -> bool {
        let ours = |number: u32| self.sb.chunks.iter().any(|c| c.segment == number);
        // Only if something died since the last one: its own tables die with the next, so that
        // a full store would write checkpoints without end.
        self.segs.deaths != self.map.deaths_frozen
            && (0..).zip(self.segs.iter()).any(|(number, s)| {
                s.sealed
                    && s.kind != SegmentKind::Free
                    && s.live_count() == 0
                    && s.generation < self.log.position.generation
                    && !ours(number)
            })
    }

    /// Whether segments of the log that recovery still reads would be worth collecting: the next
    /// checkpoint begins behind them, so that this is asked once for each. Headers alone may be what
    /// fills them: of what is appended and not applied nothing dies.
    fn makes_victims(&self) -> bool {
        let live_max = self.slots() - self.urgent_gain();
        self.config.collect
            && self.segs.iter().any(|s| {
                s.sealed
                    && s.kind == SegmentKind::Log
                    && (self.sb.log.generation..self.log.position.generation)
                        .contains(&s.generation)
                    && u64::from(s.live_count()) <= live_max
            })
    }

    /// Slots that collecting a segment must give when somebody waits for room.
    pub(crate) fn urgent_gain(&self) -> u64 {
        (self.slots() / 16).max(2)
    }

    /// Room is short: the next checkpoint needs much of what is left, or the log soon waits.
    pub(crate) fn room_is_short(&self) -> bool {
        let room = self.map_room();
        self.nodes_needed() * 3 >= room || room < self.floor() + SHORT_SEGMENTS * self.slots()
    }

    /// As much has been written since the last checkpoint began as the next one can be due for: the
    /// time an opening takes and the memory it needs go with it.
    pub(crate) fn log_is_long(&self) -> bool {
        self.log_is_full()
            || self.log.bytes_since_checkpoint >= self.checkpoint_bytes()
            || self.log.count_since_checkpoint >= self.config.checkpoint_entries
    }

    /// Neither records nor extents may become more before a checkpoint.
    fn log_is_full(&self) -> bool {
        self.log.records_since_checkpoint >= self.config.checkpoint_records
            || self.load.extents >= to_u64(self.config.delta_extents_max)
    }

    /// A checkpoint is due: a long log, unless waiting for a longer one spares map nodes.
    pub(crate) fn checkpoint_is_due(&self) -> bool {
        // What an opening found in the log is in memory only, and the next one finds it again.
        let unmerged = self.load.blocks * PAGE_U64;
        let bytes = self.log.bytes_since_checkpoint.max(unmerged);
        let (entries, stretch) = (
            self.log.count_since_checkpoint,
            self.config.checkpoint_stretch,
        );
        let (least, most) = (
            self.checkpoint_bytes(),
            self.checkpoint_bytes_times(stretch),
        );
        let is_long = bytes >= least || entries >= self.config.checkpoint_entries;
        let is_longest =
            bytes >= most || entries >= self.config.checkpoint_entries.saturating_mul(stretch);
        let nodes = self.load.nodes;
        let worth = nodes * NODES_SHARE > entries.max(bytes / PAGE_U64) && nodes * PAGE_U64 < least;
        self.log_is_full() || is_longest || is_long && !worth
    }

    /// Bytes of records after which a checkpoint can be due: what recovery reads, and what a small
    /// store cannot use meanwhile.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint_bytes_times(1)
    }

    fn checkpoint_bytes_times(&self, stretch: u64) -> u64 {
        let store = self.sb.segment_count * self.slots() * PAGE_U64;
        let bytes = self.config.checkpoint_bytes.saturating_mul(stretch);
        bytes.min(store / CHECKPOINT_SHARE)
    }

    /// Slots kept back from clients, so that garbage collection finds segments that are worth it.
    fn reserve(&self) -> u64 {
        let share = self.sb.segment_count * self.slots() * self.config.reserve_percent / 100;
        share.max(RESERVE_SEGMENTS_MIN * self.slots())
    }

    /// Slots that may be live before clients are refused.
    fn capacity(&self) -> u64 {
        // The tables that are there, and those of the floor: less, and what is accepted could not be
        // written although nothing is left to collect.
        self.left_beside(4 * self.tables_needed() + self.reserve())
    }

    /// Slots that may be live before trims and deletions are refused: the log is there for them when it
    /// is for nobody else, and the tables become no larger by them.
    fn metadata_capacity(&self) -> u64 {
        self.left_beside(2 * self.tables_needed() + self.reserve() / 2)
    }

    /// Slots beside the open segments and these.
    fn left_beside(&self, kept: u64) -> u64 {
        let open = OPEN_SEGMENTS + to_u64(streams_count(self.sb.segment_count));
        let kept = open * self.slots() + kept;
        (self.sb.segment_count * self.slots()).saturating_sub(kept)
    }

    /// Live slots, as they will be once what is applied is merged: until then an overwritten block
    /// counts twice. At most half the reserve is taken on trust.
    fn used(&self) -> u64 {
        let doubtful = self.load.blocks.min(self.reserve() / 2);
        self.segs.live_slots().saturating_sub(doubtful)
    }

    /// Whether `bytes` more of client data fit without touching the reserve. It may take a
    /// checkpoint and garbage collection until they do: the log waits for those.
    #[must_use]
    pub fn has_room_for(&self, bytes: u64) -> bool {
        let fits = self.finds_room(bytes);
        self.refused.set(self.refused.get() || !fits);
        self.fenced.is_none() && fits
    }

    /// The same, as a question that makes no checkpoint due.
    #[must_use]
    pub fn finds_room(&self, bytes: u64) -> bool {
        let pending: u64 = self
            .log
            .pending
            .iter()
            .map(|p| u64::from(p.payload_pages))
            .sum();
        let wanted = bytes.div_ceil(PAGE_U64) + pending;
        self.used() + wanted <= self.capacity()
    }

    /// Whether fewer slots may be live when checkpoints have merged what is applied, or about to be: until then the
    /// sums count what was replaced and trimmed, and take other writes on trust, so that they rise and fall.
    #[must_use]
    pub fn merging_may_give_room(&self) -> bool {
        self.load.extents > 0 || self.checkpoint.is_some() || self.entries_wait()
    }

    /// Whether what was deleted is being taken apart.
    #[must_use]
    pub fn takes_apart(&self) -> bool {
        !self.discards.is_empty()
            || self.has_to_reclaim()
            || self.groups.values().any(|g| g.deleting)
    }

    /// Whether clients may have been answered for entries that are not applied.
    pub(crate) fn entries_wait(&self) -> bool {
        let waits = |g: &Group| g.is_single() && !g.suspended && g.applied < g.last_index();
        self.groups.values().any(waits)
    }

    /// Checkpoints that have ended, of this store's life.
    #[must_use]
    pub fn checkpoints_done(&self) -> u64 {
        self.checkpoints_done
    }

    /// Bytes of client data that fit without touching the reserve.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.capacity().saturating_sub(self.used()) * PAGE_U64
    }

    /// Bytes that all client data may take.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity() * PAGE_U64
    }

    /// Whether operations without payload (trims, deletions) still fit: they may use half the
    /// reserve, because they make room.
    #[must_use]
    pub fn has_room_for_metadata(&self) -> bool {
        let pending: u64 = self.log.pending.iter().map(|p| p.nodes).sum();
        let more = pending + self.nodes_needed();
        let fits = self.used() + more <= self.metadata_capacity();
        self.refused.set(self.refused.get() || !fits);
        self.fenced.is_none() && fits
    }

    /// What is on its way, in words, for tests and logs.
    #[must_use]
    pub fn progress(&self) -> String {
        format!(
            "pending {} in flight {} unsynced {} stalled {} checkpoint {} wanted {} free {} room {} floor {} deadline {:?} live {} used {} capacity {} nodes {} tables {} discards {} collector {}",
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
            self.segs.live_slots(),
            self.used(),
            self.capacity(),
            self.nodes_needed(),
            self.tables_needed(),
            self.discards.len(),
            self.collector.progress(),
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
            reserve_bytes: (total - self.capacity().min(total)) * PAGE_U64,
            device_bytes_written: self.counters.device_bytes_written,
            client_bytes_written: self.counters.client_bytes_written,
        }
    }
}
