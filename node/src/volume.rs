//! A volume on this node: its Raft group, its open epoch, and the requests on their way.

use bytes::Bytes;
use esker_base::num::to_usize;
use esker_base::{BlockRange, ConnId, Epoch, GroupId, Moment, RaftIndex, Stamp, Term, VolumeId};
use esker_engine::event::ReadPiece;
use esker_engine::format::checkpoint::MemberPlace;
use esker_engine::format::record::HardState;
use esker_nbd::RequestId;
use esker_replication::Group;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::admin::VolumeState;
use crate::door::{Caller, Route};
use crate::event::AdminToken;
use crate::keys::Lock;
use crate::membership::Growth;
use crate::meters::VolumeMeter;
use crate::rewind::Rewind;
use crate::snapshots::SnapshotAsk;
use crate::status::Status;

/// Identifies a client request on this node.
pub(crate) type OpId = u64;
/// Stands for the connection of requests that other nodes have from their clients.
pub(crate) const NOBODY: ConnId = ConnId(u64::MAX);

/// Whether stamps can be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EpochState {
    /// None is open; the first write opens one.
    None,
    /// Proposed under this nonce, in this term.
    Opening { nonce: u64, term: Term },
    /// Open; the next counter. A counter is never resumed: a new leadership opens a new epoch.
    Open { epoch: Epoch, counter: u32 },
}

/// What a request does.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Read,
    /// What metadata contexts say.
    Status(Status),
    Write(Bytes),
    Flush,
    Trim,
    Zeroes {
        no_hole: bool,
    },
}

/// A client request on its way.
#[derive(Debug)]
pub(crate) struct Op {
    pub conn: ConnId,
    pub request: RequestId,
    pub group: GroupId,
    /// Of the snapshot with this cut; of the head without.
    pub at: Option<Stamp>,
    pub action: Action,
    pub offset: u64,
    pub length: u64,
    /// Answered once written instead of once durable.
    pub early: bool,
    /// Entries proposed, or pieces being read, and not answered yet.
    pub outstanding: usize,
    /// Bytes of its blocks that have entered, from the first on.
    pub granted: u64,
    /// Those of them that are proposed, or asked for.
    pub taken: u64,
    /// What counts as inside the engine (see [`crate::turns`]).
    pub inside: usize,
    /// It is among [`Volume::waiting`] or [`Volume::locked`].
    pub is_queued: bool,
    /// Entries made of it.
    pub entries: u16,
    /// The blocks that it changes in part are proposed.
    pub edges_proposed: bool,
    /// What was read, by piece.
    pub pieces: Vec<Vec<ReadPiece>>,
    /// All its entries are proposed, or all its pieces asked for.
    pub proposed: bool,
    /// Old contents of the first and the last block of a request that covers them in part.
    pub head: Option<Bytes>,
    pub tail: Option<Bytes>,
    /// Parts of a read of its edges that are still on their way.
    pub edges_awaited: usize,
    /// A read of its edges failed, at this byte of the volume if that is known.
    pub failed: Option<Option<u64>>,
    /// Bytes it counts against the node's limit.
    pub bytes_counted: usize,
    /// When it was taken on.
    pub since: Moment,
    /// Where the volume spans nodes: its number among this process's, or the caller's, requests that
    /// change it.
    pub sequence: u64,
    /// The number of the attachment that its session belongs to.
    pub attachment: u64,
    /// The node that has it from its client, when that is another one.
    pub caller: Option<Caller>,
    /// It is for the leader, although it could be carried out here.
    pub is_forwarded: bool,
    /// Checkpoints that had ended when it found no room.
    pub full_since: Option<u64>,
}

impl Op {
    /// A request of so many bytes from one on, as it comes.
    pub fn new(
        conn: ConnId,
        group: GroupId,
        action: Action,
        (offset, length): (u64, u64),
        since: Moment,
    ) -> Self {
        let bytes_counted = match &action {
            Action::Write(payload) => payload.len(),
            Action::Read => to_usize(length),
            Action::Status(_) | Action::Flush | Action::Trim | Action::Zeroes { .. } => 0,
        };
        Self {
            conn,
            request: RequestId(0),
            group,
            at: None,
            action,
            offset,
            length,
            early: false,
            outstanding: 0,
            granted: 0,
            taken: 0,
            inside: 0,
            is_queued: false,
            entries: 0,
            edges_proposed: false,
            pieces: Vec::new(),
            proposed: false,
            head: None,
            tail: None,
            edges_awaited: 0,
            failed: None,
            bytes_counted,
            since,
            sequence: 0,
            attachment: 0,
            caller: None,
            is_forwarded: false,
            full_since: None,
        }
    }

    /// The same request, as if nothing of it had been done.
    pub fn anew(self) -> Self {
        let Self {
            request,
            at,
            early,
            sequence,
            attachment,
            caller,
            is_forwarded,
            ..
        } = self;
        let place = (self.offset, self.length);
        let action = match self.action {
            Action::Status(status) => Action::Status(status.anew()),
            other => other,
        };
        Self {
            request,
            at,
            early,
            sequence,
            attachment,
            caller,
            is_forwarded,
            ..Self::new(self.conn, self.group, action, place, self.since)
        }
    }

    /// The blocks it touches, partly touched ones included.
    pub fn range(&self) -> BlockRange {
        BlockRange::covering(self.offset, self.length).unwrap_or(BlockRange::new(0, 0))
    }

    /// Whether it changes only a part of its first block.
    pub fn head_is_partial(&self) -> bool {
        !self.offset.is_multiple_of(4096) || (self.length < 4096 && self.length > 0)
    }

    /// Whether it changes only a part of its last block, and that is not its first.
    pub fn tail_is_partial(&self) -> bool {
        let range = self.range();
        range.count > 1 && !(self.offset + self.length).is_multiple_of(4096)
    }

    /// It changes blocks.
    pub fn mutates(&self) -> bool {
        !self.reads() && !matches!(self.action, Action::Flush)
    }

    /// It tells what is in the volume, and needs nothing of the log.
    pub fn reads(&self) -> bool {
        matches!(self.action, Action::Read | Action::Status(_))
    }
}

/// An entry proposed here.
#[derive(Clone, Debug)]
pub(crate) enum Proposal {
    /// A part of a request.
    Op(OpId),
    /// A new size, for an operator.
    Resize(AdminToken),
    /// A new name, for an operator.
    Rename(AdminToken),
    /// New labels, for an operator.
    Relabel(AdminToken),
    /// A change of snapshots, for an operator.
    Snapshot(AdminToken, SnapshotAsk),
    /// Blocks under a new data key, for this part of a pass.
    Reseal(u64),
    /// Another membership, for an operator.
    Membership(AdminToken),
    /// A membership without one of the replicas, for an operator.
    Removal(AdminToken),
    /// A learner's vote.
    Promotion,
}

impl Proposal {
    /// The operator who waits for it.
    pub fn operator(&self) -> Option<AdminToken> {
        match self {
            Self::Op(_) | Self::Reseal(_) | Self::Promotion => None,
            Self::Resize(token)
            | Self::Rename(token)
            | Self::Relabel(token)
            | Self::Membership(token)
            | Self::Removal(token)
            | Self::Snapshot(token, _) => Some(*token),
        }
    }
}

/// A volume.
pub(crate) struct Volume {
    pub id: VolumeId,
    /// The key that its epochs are opened under; 0 when its blocks are not encrypted.
    pub key_id: u32,
    /// Nothing vouches for its map, so it is not served.
    pub map_refused: bool,
    /// Whether its keys are here.
    pub lock: Lock,
    pub name: String,
    pub size_bytes: u64,
    pub labels: BTreeMap<String, String>,
    /// Who holds it, as the labels say.
    pub attachment: crate::attachment::Attachment,
    /// The last change of that which this replica proposed.
    pub changing_hands: Option<crate::attachment::Changing>,
    /// The last cut that changes were held back for.
    pub hold: Option<crate::hold::Hold>,
    /// Those whose holds are over, the last ones.
    pub holds_over: VecDeque<u128>,
    /// None while the volume is suspended and alone: there is nobody to catch up with.
    pub group: Option<Group>,
    pub epoch: EpochState,
    /// Proposed here and not applied, with the term they were proposed in.
    pub proposals: BTreeMap<RaftIndex, (Term, Proposal)>,
    /// Entries through this index are on the device.
    pub written: RaftIndex,
    pub applied: RaftIndex,
    /// Entries through this index were handed to the store.
    pub driven: RaftIndex,
    /// The last entry when this replica began to lead: its own first one, or one after it.
    pub leads_from: RaftIndex,
    /// Requests that wait for an epoch, for room among the proposals, or for a block.
    pub waiting: VecDeque<OpId>,
    /// Changes of snapshots that wait for an epoch or for room among the proposals.
    pub asks: VecDeque<(AdminToken, SnapshotAsk)>,
    /// A rollback is on its way: nobody attaches, and nothing is written, until it is in force.
    pub is_rolling_back: bool,
    /// Where members live, as the log says so far.
    pub member_places: Vec<MemberPlace>,
    /// This replica is one of its members, as the log says so far.
    pub is_member: bool,
    /// It was removed from its group, and its clients are served by the others.
    pub removed: bool,
    /// It is about to span nodes.
    pub growth: Option<Box<Growth>>,
    /// A clone of what this node leads: for so many ticks it tries to be elected.
    pub stands_ticks_left: u64,
    /// Requests whose edges are being read: no other may change their blocks meanwhile.
    pub locked: BTreeMap<OpId, BlockRange>,
    /// Flushes, with the index they wait for.
    pub flushes: Vec<(OpId, RaftIndex)>,
    /// Reads that wait for an index to be applied.
    pub read_waits: Vec<(OpId, RaftIndex)>,
    /// A hard state in which only the commit index moved; goes with the next append.
    pub lazy_hard_state: Option<HardState>,
    /// Somebody waits for durability of what is proposed next.
    pub urgent: bool,
    pub sessions: BTreeSet<ConnId>,
    /// Sessions that read a snapshot, by its cut; none of them is empty.
    pub readers: BTreeMap<Stamp, BTreeSet<ConnId>>,
    /// Snapshots whose deletion is on its way: nobody attaches to them any more.
    pub leaving: BTreeSet<Stamp>,
    /// Attachments that wait for the volume to start.
    pub attaching: Vec<ConnId>,
    /// Being deleted.
    pub deleting: bool,
    /// Why it does not serve, when its state says so.
    pub trouble: Option<String>,
    /// Its counts.
    pub meter: VolumeMeter,
    /// The state that the log was told of.
    pub state_told: Option<VolumeState>,
    /// Stamps taken since it serves.
    pub stamps_taken: u64,
    /// What [`Volume::return_stamps`] gave back last.
    pub given_back: Option<Stamp>,
    /// Its rewind window.
    pub rewind: Rewind,
    /// What of it is in the node's sum of uncommitted bytes.
    pub uncommitted_counted: u64,
    /// Its group has members on other nodes.
    pub spans: bool,
    /// Requests on their way to whoever leads, where it spans nodes.
    pub route: Route,
    /// This replica lags behind the log and catches up by versions.
    pub sink: Option<crate::catchup::Sink>,
    /// What this leader keeps for replicas that lag.
    pub source: crate::catchup::Source,
    /// Blocks that are asked of other replicas.
    pub repairs: BTreeMap<crate::repair::Spot, crate::repair::Repairing>,
    /// Another data key that is to be in force.
    pub rekey: Option<crate::rekey::Rekey>,
    /// The pass that seals anew what is under older ones.
    pub reseal: Option<crate::reseal::Reseal>,
}

impl Volume {
    /// Whether it can serve I/O here and now.
    pub fn is_serving(&self) -> bool {
        let caught_up = self.applied >= self.leads_from;
        !self.deleting && caught_up && self.group.as_ref().is_some_and(serves)
    }

    /// A change of its labels is in the log and not in force yet.
    pub fn is_relabelled(&self) -> bool {
        let mut proposals = self.proposals.values();
        proposals.any(|(_, proposal)| matches!(proposal, Proposal::Relabel(_)))
    }

    /// It will serve soon, without any other node: what its log holds may not be in force yet.
    pub fn is_starting(&self) -> bool {
        let alone = self.group.is_some() && self.is_single();
        alone && !self.deleting && self.trouble.is_none() && !self.is_serving()
    }

    /// Its group has this replica as the only member.
    pub fn is_single(&self) -> bool {
        !self.spans
    }

    /// Its state, for reports.
    pub fn state(&self, fenced: bool) -> VolumeState {
        match &self.group {
            _ if fenced => VolumeState::Fenced,
            Some(_) if matches!(self.lock, Lock::Away(_)) => VolumeState::Locked,
            None => VolumeState::Suspended,
            Some(group) if group.is_suspended() => VolumeState::Suspended,
            Some(_) if self.lock != Lock::Open => VolumeState::Starting,
            Some(_) if self.is_serving() => VolumeState::Ready,
            // Its clients are served, whoever leads.
            Some(group) if self.spans && group.leader().is_some() => VolumeState::Ready,
            Some(_) => VolumeState::Starting,
        }
    }

    /// The last entry that may have been acknowledged: what is applied, and early answers, which are
    /// given for entries on the device.
    pub fn answered(&self) -> RaftIndex {
        // Another leader may have cut what was written here.
        let last = self.group.as_ref().map(|g| g.last_index());
        self.written.min(last.unwrap_or_default()).max(self.applied)
    }

    /// Attaches a session to the snapshot with this cut. False when that one is being deleted.
    pub fn attach_reader(&mut self, cut: Stamp, conn: ConnId) -> bool {
        let stays = !self.leaving.contains(&cut);
        if stays {
            self.readers.entry(cut).or_default().insert(conn);
        }
        stays
    }

    /// A session is gone, whatever it was attached to.
    pub fn detach(&mut self, conn: ConnId) {
        self.route.detach(conn);
        self.sessions.remove(&conn);
        self.readers.retain(|_, conns| {
            conns.remove(&conn);
            !conns.is_empty()
        });
    }

    /// All sessions, those that read snapshots included.
    pub fn attached(&self) -> BTreeSet<ConnId> {
        let readers = self.readers.values().flatten();
        self.sessions.iter().chain(readers).copied().collect()
    }

    /// As if stamps had not been taken: a defect, which tests must notice.
    pub fn return_stamps(&mut self, first: Stamp, count: u64) {
        self.given_back = Some(first);
        if let (EpochState::Open { counter, .. }, Ok(count)) =
            (&mut self.epoch, u32::try_from(count))
        {
            *counter -= count;
        }
    }

    /// Takes `count` stamps. None when no epoch is open or its counter is used up; then a new
    /// epoch has to be opened.
    pub fn take_stamps(&mut self, count: u64) -> Option<Stamp> {
        let EpochState::Open { epoch, counter } = &mut self.epoch else {
            return None;
        };
        let first = *counter;
        let next = u32::try_from(count)
            .ok()
            .and_then(|count| first.checked_add(count));
        match next {
            Some(next) => {
                *counter = next;
                self.stamps_taken += count;
                Some(Stamp::new(*epoch, first))
            }
            None => {
                self.epoch = EpochState::None;
                None
            }
        }
    }
}

/// A leader serves once everything that was in its log when it was elected is applied: its own
/// first entry shows that.
fn serves(group: &Group) -> bool {
    let leads = matches!(group.role(), esker_replication::Role::Leader);
    leads && group.has_committed_in_term()
}
