//! The oracle of one group: what its log and its blocks may be. Knows operations and nothing of how
//! the engine keeps them.

use super::Violation;
use bytes::Bytes;
use esker_base::{BlockRange, GroupId, RaftIndex, ReplicaId, Term, BLOCK_SIZE};
use esker_engine::event::{
    ExtentKind, ExtentRun, Outcome, ReadPiece, RecoveredGroup, SnapshotRefusal,
};
use esker_engine::format::checkpoint::GroupMeta;
use esker_engine::format::operation::Operation;
use esker_engine::format::record::{EntryKind, HardState};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// An entry as it was given to the engine.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// Raft's term.
    pub term: Term,
    /// The encoded operation, or nothing.
    pub data: Bytes,
    /// The operation.
    pub operation: Option<Operation>,
    /// One page per block.
    pub pages: Vec<Bytes>,
}

/// A change of the log in the order of appending.
#[derive(Clone, Debug)]
enum Change {
    Cut(usize),
    Push(Arc<ModelEntry>),
    Hard(HardState),
}

/// Blocks that are not zero.
pub type Blocks = BTreeMap<u64, Bytes>;

/// A group that was or is: its id may come back under another replica.
pub type Instance = (GroupId, ReplicaId);

/// A version of a group: its stamp, or [`HEAD`].
pub type VersionKey = (Instance, u64);

/// The stamp of a head.
pub const HEAD: u64 = u64::MAX;

/// What a clone is one of.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The snapshot.
    pub base: VersionKey,
    /// The entry of the origin's log that made it.
    pub index: u64,
}

/// What applying has made of a group.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Through which index.
    pub index: u64,
    /// Blocks that do not read as zeros.
    pub blocks: Blocks,
    /// Open epoch.
    pub epoch: u32,
    /// Highest stamp.
    pub max_stamp: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The name that an entry gave the volume.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Snapshots, by stamp.
    pub snapshots: BTreeMap<u64, SnapshotModel>,
    /// Deleted versions, whether something begins at them or not.
    pub hidden: BTreeMap<u64, SnapshotModel>,
    /// Where each version begins; zero for nowhere.
    pub parents: BTreeMap<u64, u64>,
    /// Where the head begins.
    pub head_parent: u64,
}

/// A snapshot: a copy of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotModel {
    /// Its name.
    pub name: String,
    /// Blocks that do not read as zeros.
    pub blocks: Blocks,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Applied {
    /// The state before the first entry.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            ..Self::default()
        }
    }

    /// Applies the next entry.
    pub fn apply(&mut self, entry: &ModelEntry) -> Outcome {
        self.index += 1;
        let Some(operation) = &entry.operation else {
            return Outcome::Done;
        };
        write_blocks(&mut self.blocks, operation, &entry.pages);
        match operation {
            Operation::Write { stamp, blocks, .. } => {
                self.max_stamp = stamp.0 + blocks.len() as u64 - 1;
            }
            Operation::Discard { stamp, .. } | Operation::Zero { stamp, .. } => {
                self.max_stamp = stamp.0;
            }
            Operation::OpenEpoch { nonce, .. } => {
                let last = u32::try_from(self.max_stamp >> 32).unwrap_or(u32::MAX);
                self.epoch = self.epoch.max(last) + 1;
                return Outcome::EpochOpened {
                    epoch: esker_base::Epoch(self.epoch),
                    nonce: *nonce,
                };
            }
            Operation::Resize { size_bytes } => {
                self.size_bytes = self.size_bytes.max(*size_bytes);
                return Outcome::Resized(self.size_bytes);
            }
            Operation::Rename { name } => {
                self.name = Some(name.clone());
                return Outcome::Renamed;
            }
            Operation::Relabel { labels } => {
                for (key, value) in labels {
                    self.labels.remove(key);
                    self.labels
                        .extend(value.clone().map(|value| (key.clone(), value)));
                }
                return Outcome::Relabelled(true);
            }
            Operation::Snapshot { stamp, name, .. } => {
                self.max_stamp = stamp.0;
                if self.snapshots.values().any(|s| s.name == *name) {
                    return Outcome::SnapshotRefused(SnapshotRefusal::NameTaken);
                }
                let snapshot = SnapshotModel {
                    name: name.clone(),
                    blocks: self.blocks.clone(),
                    size_bytes: self.size_bytes,
                };
                self.snapshots.insert(stamp.0, snapshot);
                self.parents.insert(stamp.0, self.head_parent);
                self.head_parent = stamp.0;
                return Outcome::SnapshotTaken(*stamp);
            }
            Operation::DeleteSnapshot { cut } => {
                let Some(snapshot) = self.snapshots.remove(&cut.0) else {
                    return Outcome::SnapshotRefused(SnapshotRefusal::Unknown);
                };
                self.hidden.insert(cut.0, snapshot);
                return Outcome::SnapshotDeleted(*cut);
            }
            Operation::Rollback {
                stamp, to, keep, ..
            } => return self.roll_back(*stamp, to.0, keep.as_deref()),
            Operation::Clone { cut, group, .. } => {
                return match self.snapshots.contains_key(&cut.0) {
                    true => Outcome::Cloned(*group),
                    false => Outcome::SnapshotRefused(SnapshotRefusal::Unknown),
                };
            }
            // Only feeds have them.
            Operation::Ingest { .. } | Operation::Branch { .. } => {}
        }
        Outcome::Done
    }
}

impl Applied {
    fn roll_back(&mut self, stamp: esker_base::Stamp, to: u64, keep: Option<&str>) -> Outcome {
        self.max_stamp = stamp.0;
        let Some(target) = self.snapshots.get(&to).cloned() else {
            return Outcome::SnapshotRefused(SnapshotRefusal::Unknown);
        };
        if self
            .snapshots
            .values()
            .any(|s| Some(s.name.as_str()) == keep)
        {
            return Outcome::SnapshotRefused(SnapshotRefusal::NameTaken);
        }
        let left = SnapshotModel {
            name: keep.unwrap_or_default().into(),
            blocks: std::mem::replace(&mut self.blocks, target.blocks),
            size_bytes: self.size_bytes,
        };
        self.parents.insert(stamp.0, self.head_parent);
        self.head_parent = to;
        match keep {
            Some(_) => _ = self.snapshots.insert(stamp.0, left),
            None => _ = self.hidden.insert(stamp.0, left),
        }
        Outcome::RolledBack(stamp)
    }
}

/// Brings an operation into blocks.
pub fn write_blocks(blocks: &mut Blocks, operation: &Operation, pages: &[Bytes]) {
    match operation {
        Operation::Write { lba, .. } => {
            for (at, page) in (*lba..).zip(pages) {
                blocks.insert(at, page.clone());
            }
        }
        Operation::Discard { range, .. } | Operation::Zero { range, .. } => {
            let dead: Vec<u64> = blocks
                .range(range.start.0..range.end())
                .map(|(lba, _)| *lba)
                .collect();
            dead.iter().for_each(|lba| _ = blocks.remove(lba));
        }
        Operation::OpenEpoch { .. }
        | Operation::Resize { .. }
        | Operation::Snapshot { .. }
        | Operation::Rollback { .. }
        | Operation::DeleteSnapshot { .. }
        | Operation::Clone { .. }
        | Operation::Relabel { .. }
        | Operation::Rename { .. }
        | Operation::Ingest { .. }
        | Operation::Branch { .. } => {}
    }
}

/// The oracle of one group.
#[derive(Clone, Debug)]
pub struct GroupModel {
    /// What it is, but for the size, which [`Applied`] has.
    pub meta: GroupMeta,
    /// What it began as; none for a volume that began empty.
    pub origin: Option<Origin>,
    /// The state before its first entry.
    pub initial: Applied,
    /// Names the volume may have after a crash.
    pub names: Vec<String>,
    /// One of them came from an operation of the store, and may be younger than that of an entry.
    pub is_renamed_by_store: bool,
    /// The log as appended, from index 1.
    pub log: Vec<Arc<ModelEntry>>,
    /// The log as it is durable for certain.
    durable: Vec<Arc<ModelEntry>>,
    changes: VecDeque<(u64, Change)>,
    /// Tickets through this one are durable.
    acknowledged: u64,
    hard_durable: HardState,
    /// Hard state as given last.
    pub hard: HardState,
    /// What is applied.
    pub applied: Applied,
    /// Highest index ever applied, also before a crash.
    pub applied_max: u64,
    /// Highest index that may be applied.
    pub commit: u64,
    /// Created, and that is durable.
    pub created: bool,
    /// To be deleted, and that is not durable.
    pub deleting: bool,
    /// Term of the next entries.
    pub term: u64,
    /// Nonce of the epoch that is awaited.
    pub epoch_nonce: Option<u64>,
    /// Open epoch and its next counter.
    pub epoch: Option<(u32, u32)>,
    /// The engine says it is suspended.
    pub suspended: bool,
}

impl GroupModel {
    /// A group that is about to be created.
    #[must_use]
    pub fn new(meta: GroupMeta) -> Self {
        Self {
            names: vec![meta.name.clone()],
            is_renamed_by_store: false,
            applied: Applied::new(meta.size_bytes),
            initial: Applied::new(meta.size_bytes),
            origin: None,
            meta,
            log: Vec::new(),
            durable: Vec::new(),
            changes: VecDeque::new(),
            acknowledged: 0,
            hard_durable: HardState::default(),
            hard: HardState::default(),
            applied_max: 0,
            commit: 0,
            created: false,
            deleting: false,
            term: 0,
            epoch_nonce: None,
            epoch: None,
            suspended: false,
        }
    }

    /// A group that begins as a clone; `meta` says what is its own.
    #[must_use]
    pub fn cloned(meta: GroupMeta, origin: Origin, snapshot: &SnapshotModel) -> Self {
        let mut model = Self::new(GroupMeta {
            size_bytes: snapshot.size_bytes,
            ..meta
        });
        model.initial = Applied {
            index: 1,
            blocks: snapshot.blocks.clone(),
            max_stamp: origin.base.1,
            ..Applied::new(snapshot.size_bytes)
        };
        model.applied = model.initial.clone();
        // Its log begins behind an entry that nobody ever saw.
        let first = Arc::new(ModelEntry {
            term: Term(1),
            data: Bytes::new(),
            operation: None,
            pages: Vec::new(),
        });
        (model.log, model.durable) = (vec![first.clone()], vec![first]);
        model.hard = HardState {
            term: Term(1),
            vote: ReplicaId(0),
            commit: RaftIndex(1),
        };
        model.hard_durable = model.hard;
        (model.applied_max, model.commit, model.term) = (1, 1, 1);
        model.origin = Some(origin);
        model.created = true;
        model
    }

    /// Names it for good.
    #[must_use]
    pub fn instance(&self) -> Instance {
        (self.meta.group, self.meta.replica)
    }

    /// A group of one voter.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.meta.membership.voters.len() == 1
    }

    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.log.len() as u64
    }

    /// Index of the last entry that is durable for certain.
    #[must_use]
    pub fn durable_last(&self) -> u64 {
        self.durable.len() as u64
    }

    /// Index of the last entry that is durable and not to be overwritten: what may be applied.
    #[must_use]
    pub fn durable_common(&self) -> u64 {
        let cuts = self.changes.iter().filter_map(|(_, change)| match change {
            Change::Cut(keep) => Some(*keep as u64),
            _ => None,
        });
        cuts.fold(self.durable_last(), u64::min)
    }

    /// Entries and hard state were handed to the engine under `ticket`.
    pub fn appended(
        &mut self,
        ticket: u64,
        hard: Option<HardState>,
        first: u64,
        entries: &[Arc<ModelEntry>],
    ) {
        if let Some(hard) = hard {
            self.hard = hard;
            self.changes.push_back((ticket, Change::Hard(hard)));
        }
        let keep = index(first) - 1;
        if keep < self.log.len() {
            self.log.truncate(keep);
            self.changes.push_back((ticket, Change::Cut(keep)));
        }
        for entry in entries {
            self.log.push(entry.clone());
            self.changes
                .push_back((ticket, Change::Push(entry.clone())));
        }
    }

    /// The engine says that `ticket` is durable.
    ///
    /// # Errors
    /// When tickets come out of order.
    pub fn ticket_durable(&mut self, ticket: u64) -> Result<(), Violation> {
        let next = self.changes.iter().find(|(at, _)| *at > self.acknowledged);
        if next.is_none_or(|(at, _)| *at != ticket) {
            return Err(Violation::new(format!(
                "group {}: ticket {ticket} is durable out of order",
                self.meta.group
            )));
        }
        self.acknowledged = ticket;
        let (mut log, mut hard) = (self.durable.clone(), self.hard_durable);
        let acknowledged = self.changes.partition_point(|(at, _)| *at <= ticket);
        for (_, change) in self.changes.iter().take(acknowledged) {
            if let Change::Hard(given) = change {
                hard = *given;
            }
            change_log(&mut log, change);
        }
        self.hard_durable = hard;
        // What a later append overwrites need not be there, whatever was said: the rest is known
        // when that append is durable.
        let mut later = self.changes.iter().skip(acknowledged);
        let overwritten =
            later.any(|(_, change)| matches!(change, Change::Cut(keep) if *keep < log.len()));
        if !overwritten {
            self.durable = log;
            self.changes.drain(..acknowledged);
        }
        Ok(())
    }

    /// Applies through `index`, as far as the log goes.
    pub fn apply_through(&mut self, through: u64) {
        while self.applied.index < through {
            let Some(entry) = self.log.get(index(self.applied.index)).cloned() else {
                return;
            };
            self.applied.apply(&entry);
        }
        self.applied_max = self.applied_max.max(self.applied.index);
    }

    /// Blocks of `range` as a read must give them; with entries not applied if `latest`.
    #[must_use]
    pub fn expected(&self, range: BlockRange, latest: bool) -> Blocks {
        let mut blocks: Blocks = self
            .applied
            .blocks
            .range(range.start.0..range.end())
            .map(|(lba, page)| (*lba, page.clone()))
            .collect();
        if latest {
            for entry in self.log.iter().skip(index(self.applied.index)) {
                if let Some(operation) = &entry.operation {
                    write_blocks(&mut blocks, operation, &entry.pages);
                }
            }
            blocks = blocks.split_off(&range.start.0);
            blocks.split_off(&range.end());
        }
        blocks
    }

    /// Blocks of `range` of a snapshot, if it is there.
    #[must_use]
    pub fn expected_at(&self, range: BlockRange, cut: u64) -> Option<Blocks> {
        let snapshot = self.applied.snapshots.get(&cut)?;
        let blocks = snapshot.blocks.range(range.start.0..range.end());
        Some(blocks.map(|(lba, page)| (*lba, page.clone())).collect())
    }

    /// Takes over what recovery found, if the rules allow it: everything durable, and of the rest
    /// a prefix in the order of appending.
    ///
    /// # Errors
    /// When they do not.
    pub fn recovered(&mut self, found: &RecoveredGroup) -> Result<(), Violation> {
        let id = self.meta.group;
        let fail = |text: String| Err(Violation::new(format!("group {id}: {text}")));
        let applied = found.applied.0;
        if applied > self.applied_max {
            return fail(format!("applied {applied} was never applied"));
        }
        if found.truncated.0 .0 > applied {
            return fail("the log is cut past what is applied".into());
        }
        let Some(candidate) = self.candidate(found) else {
            return fail(format!(
                "recovered log (cut at {:?}, {} entries) is not durable ({}) plus a prefix of {} \
                 changes",
                found.truncated,
                found.entries.len(),
                self.durable.len(),
                self.changes.len(),
            ));
        };
        let hard = found.hard_state;
        let later = self.changes.iter().filter_map(|(_, change)| match change {
            Change::Hard(hard) => Some(*hard),
            _ => None,
        });
        let known = std::iter::once(self.hard_durable)
            .chain(later)
            .any(|h| (h.term, h.vote) == (hard.term, hard.vote));
        let last_term = candidate.last().map_or(Term(0), |e| e.term);
        if !known || hard.term < last_term {
            return fail(format!("hard state {hard:?} was never given or is older"));
        }
        if hard.commit.0 > candidate.len() as u64 || hard.commit.0 < applied {
            return fail(format!(
                "commit {} is not between applied and last",
                hard.commit
            ));
        }
        self.durable = candidate.clone();
        self.log = candidate;
        self.changes.clear();
        (self.hard, self.hard_durable) = (hard, hard);
        self.applied = self.initial.clone();
        self.apply_through(applied);
        let is_last = self.applied.name.as_ref() == Some(&found.meta.name);
        let by_store = self.applied.name.is_none() || self.is_renamed_by_store;
        let is_right = is_last || by_store && self.names.contains(&found.meta.name);
        if !is_right {
            return fail(format!("has the name {:?}", found.meta.name));
        }
        self.meta.name = found.meta.name.clone();
        self.names = vec![self.meta.name.clone()];
        if found.meta.labels != self.applied.labels {
            return fail(format!("has labels {:?}", found.meta.labels));
        }
        if found.meta.size_bytes != self.applied.size_bytes {
            return fail(format!("has size {}", found.meta.size_bytes));
        }
        self.commit = match self.is_single() {
            true => self.last(),
            false => self.commit.max(applied).min(self.last()),
        };
        (self.epoch, self.epoch_nonce) = (None, None);
        self.term = self.term.max(hard.term.0);
        Ok(())
    }

    /// The log that recovery may have found: what is durable and a prefix of the changes after it.
    /// Entries that a later change cuts may be missing already, because the engine need not write
    /// what is overwritten before its turn came.
    fn candidate(&self, found: &RecoveredGroup) -> Option<Vec<Arc<ModelEntry>>> {
        let last = index(found.truncated.0 .0) + found.entries.len();
        let mut log = self.durable.clone();
        for done in 0..=self.changes.len() {
            let later = self.changes.iter().skip(done);
            let cuts = later.filter_map(|(_, change)| match change {
                Change::Cut(keep) => Some(*keep),
                _ => None,
            });
            let floor = cuts.fold(log.len(), usize::min);
            if (floor..=log.len()).contains(&last) && matches(&log[..last], found).is_ok() {
                log.truncate(last);
                return Some(log);
            }
            if let Some((_, change)) = self.changes.get(done) {
                change_log(&mut log, change);
            }
        }
        None
    }

    /// Entries that recovery found in a group that lost some: the log becomes what is left of it.
    pub fn accept(&mut self, log: Vec<Arc<ModelEntry>>) {
        self.durable = log.clone();
        self.log = log;
        self.changes.clear();
    }
}

/// `value` as an index into memory.
#[must_use]
pub fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn change_log(log: &mut Vec<Arc<ModelEntry>>, change: &Change) {
    match change {
        Change::Cut(keep) => log.truncate(*keep),
        Change::Push(entry) => log.push(entry.clone()),
        Change::Hard(_) => {}
    }
}

fn matches(log: &[Arc<ModelEntry>], found: &RecoveredGroup) -> Result<(), String> {
    let (cut, cut_term) = found.truncated;
    let term_at = |index: RaftIndex| match index.0 {
        0 => Some(Term(0)),
        n => log.get(self::index(n) - 1).map(|e| e.term),
    };
    if term_at(cut) != Some(cut_term) {
        return Err(format!("term at the cut point {cut} is not {cut_term}"));
    }
    let rest = &log[self::index(cut.0)..];
    if rest.len() != found.entries.len() {
        return Err(format!(
            "{} entries instead of {}",
            found.entries.len(),
            rest.len()
        ));
    }
    for ((n, want), (term, index, kind, data, payload)) in (1..).zip(rest).zip(&found.entries) {
        let same = want.term == *term
            && index.0 == cut.0 + n
            && *kind == EntryKind::Normal
            && want.data == *data
            && want.pages.len() * BLOCK_SIZE == *payload as usize;
        if !same {
            return Err(format!("entry {index} is another one"));
        }
    }
    Ok(())
}

/// Checks what a read gave against what it may give, block by block. `allowed` has every state the
/// range went through while the read was on its way.
///
/// # Errors
/// When a block has a content of none of them, or the pieces do not cover the range.
pub fn check_read(
    range: BlockRange,
    allowed: &[Blocks],
    pieces: &[ReadPiece],
) -> Result<(), String> {
    let mut at = range.start.0;
    let zero = |blocks: &Blocks, lba: u64| {
        blocks
            .get(&lba)
            .is_none_or(|page| page.iter().all(|b| *b == 0))
    };
    for piece in pieces {
        match piece {
            ReadPiece::Zeros(count) => {
                let end = at.saturating_add(*count);
                let mut doubtful: Vec<u64> = Vec::new();
                for blocks in allowed {
                    doubtful.extend(blocks.range(at..end).map(|(lba, _)| *lba));
                }
                if let Some(lba) = doubtful
                    .iter()
                    .find(|lba| !allowed.iter().any(|blocks| zero(blocks, **lba)))
                {
                    return Err(format!("lba {lba} reads as zeros"));
                }
                at = end;
            }
            ReadPiece::Data(data) | ReadPiece::Sealed { data, .. } => {
                for page in data.chunks(BLOCK_SIZE) {
                    let known = allowed.iter().any(|blocks| match blocks.get(&at) {
                        Some(want) => want.as_ref() == page,
                        None => page.iter().all(|b| *b == 0),
                    });
                    if !known {
                        return Err(format!("lba {at} has a content it must not have"));
                    }
                    at += 1;
                }
            }
        }
    }
    if at != range.end() {
        return Err(format!("the read ends at lba {at}"));
    }
    Ok(())
}

/// Checks what a query of extents told against where data may be, block by block; gives the number
/// of blocks told about. `allowed` as for [`check_read`].
///
/// # Errors
/// When it told something that never was so, or an answer of a wrong form.
pub fn check_extents(
    range: BlockRange,
    allowed: &[Blocks],
    runs: &[ExtentRun],
    first: bool,
) -> Result<u64, String> {
    let mut at = range.start.0;
    if runs.is_empty() || (first && runs.len() > 1) {
        return Err(format!("{} runs of extents", runs.len()));
    }
    for (i, run) in runs.iter().enumerate() {
        let same = runs.get(i + 1).is_some_and(|next| next.kind == run.kind);
        if run.count == 0 || run.count > range.end() - at || same {
            return Err(format!("run {i} of {runs:?} from lba {at}, of {range:?}"));
        }
        let end = at + run.count;
        let wrong = if run.kind == ExtentKind::Data {
            (at..end).find(|lba| !allowed.iter().any(|blocks| blocks.contains_key(lba)))
        } else {
            // Only blocks that some state has can be told of wrongly: volumes are mostly empty.
            let some = allowed.iter().flat_map(|blocks| blocks.range(at..end));
            some.map(|(lba, _)| *lba)
                .find(|lba| allowed.iter().all(|blocks| blocks.contains_key(lba)))
        };
        if let Some(lba) = wrong {
            return Err(format!("lba {lba} is told to be {:?}", run.kind));
        }
        at += run.count;
    }
    Ok(at - range.start.0)
}
