//! What vouches for the maps of encrypted volumes: a MAC over the roots of each of them, in the checkpoint.
//!
//! Nodes of such a volume are named by cryptographic hashes (`map::tree`), which need no key, so its roots stand for
//! all that is below them. What a checkpoint says of them is the *statement*; the MAC over it is computed by a
//! [`RootSigner`], which the node gives for each key of the volume once it has that. Such a key opens
//! nothing.
//!
//! 1. An opening takes the statement and the MAC from the checkpoint, before anything of the log is replayed:
//!    the group's roots are *claimed*. Whatever changes them from then on is this process's own doing, and every
//!    node that it reads is compared with the hash that names it.
//! 2. With the keys, [`Engine::vouch`] compares the MAC with the statement. Only then may the volume be served.
//! 3. A checkpoint signs the statement it makes, if the keys are here. While they are not, it keeps the MAC as
//!    long as the statement is what it was, and has none afterwards: the next opening will not know the roots.
//! 4. So that this comes about rarely, entries are not applied while the roots are claimed: they stay in the log, as
//!    on the device. The log of a group with other replicas grows meanwhile; past a bound it goes on. An entry from
//!    which on another key signs waits for that one in the same way.
//! 5. Roots without a MAC are refused until an operator accepts them; unless nothing was ever written, or they are
//!    a clone's and still those of the snapshot that it began from, for which its origin's MAC vouches, also when that
//!    snapshot was deleted since. Behind such roots nothing may have been written: a volume is served once a checkpoint
//!    has signed for it.

use crate::engine::Engine;
use crate::format::checkpoint::{GroupEntry, RootMac};
use crate::format::node::ChildPointer;
use crate::format::operation::Operation;
use crate::format::versions::{Version, VersionId, VersionKind};
use crate::group::{Group, LogEntry};
use crate::snapshot::forest::Forest;
use aws_lc_rs::digest;
use esker_base::num::to_u64;
use esker_base::{GroupId, RaftIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use thiserror::Error;

/// What a pointer to a node says of it, for who makes one by himself.
pub use crate::map::tree::summarise;

/// Entries that a group with other replicas holds back at most until its keys are here.
const HELD_MAX: u64 = 1024;

/// What a MAC is computed over: SHA-256 of all that a checkpoint says of a volume's roots.
pub type Statement = [u8; 32];

/// Computes MACs over statements under one key of a volume.
pub trait RootSigner: Debug + Send + Sync {
    /// The MAC.
    fn mac(&self, group: GroupId, statement: &Statement) -> RootMac;
    /// Whether it is this one, found out in constant time.
    fn is_right(&self, group: GroupId, statement: &Statement, mac: &RootMac) -> bool;
}

/// Signers of a volume, by the number of the key.
pub type RootSigners = BTreeMap<u32, Arc<dyn RootSigner>>;

/// Why roots are not vouched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RootRefusal {
    /// There is none.
    #[error("nothing vouches for its map: the MAC over its roots is missing")]
    Missing,
    /// It is another statement's, or another key's.
    #[error("its map is not the one that was written: the MAC over its roots does not match")]
    Wrong,
    /// The group that it was cloned from is to be vouched for first.
    #[error("nothing vouches yet for the map of the volume that it was cloned from")]
    Origin,
}

/// How sure it is that a group's roots are what this software made of them.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// It began in this process, or nothing was ever written to it.
    Fresh,
    /// It began in this process, from a snapshot of this group.
    Origin(GroupId),
    /// An opening found this, and nobody has compared it yet.
    Claimed(Claim),
    /// They are, and these sign for them.
    Vouched(RootSigners),
}

/// What an opening found of a group's roots.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The key of the MAC.
    pub key_id: u32,
    pub statement: Statement,
    pub mac: Option<RootMac>,
}

impl Claim {
    /// Whether the key that is said to have signed has.
    fn compare(&self, group: GroupId, signers: &RootSigners) -> Result<(), RootRefusal> {
        let mac = self.mac.ok_or(RootRefusal::Missing)?;
        let signer = signers.get(&self.key_id).ok_or(RootRefusal::Wrong)?;
        let is_right = signer.is_right(group, &self.statement, &mac);
        is_right.then_some(()).ok_or(RootRefusal::Wrong)
    }
}

impl Proof {
    /// Of a group that a checkpoint has, as nothing of the log is replayed yet.
    pub fn claimed(entry: &GroupEntry, forest: &Forest, relied: &Relied) -> Self {
        let was_written = entry.max_stamp.0 != 0 || !entry.root.vaddr.is_none();
        match entry.meta.key_id {
            0 => Self::Fresh,
            _ if entry.meta.feeds.0 != 0 => Self::Fresh,
            _ if entry.mac.is_none() && !was_written => Self::Fresh,
            key_id => match untouched_clone(entry, forest) {
                Some(base) if entry.mac.is_none() => Self::Origin(base.group),
                _ => Self::Claimed(Claim {
                    key_id,
                    statement: statement(entry, forest, relied),
                    mac: entry.mac,
                }),
            },
        }
    }

    /// There is something to be compared, and the keys are not here.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Claimed(claim) if claim.mac.is_some())
    }

    /// That; or an epoch begins under a key that nobody could
    /// sign with.
    fn lacks_key_for(&self, operation: &Operation) -> bool {
        match (self, operation) {
            (Self::Claimed(_), _) => self.is_open(),
            (_, Operation::OpenEpoch { key_id: 0, .. }) => false,
            (Self::Vouched(signers), Operation::OpenEpoch { key_id, .. }) => {
                !signers.contains_key(key_id)
            }
            (Self::Fresh | Self::Origin(_), Operation::OpenEpoch { .. }) => true,
            _ => false,
        }
    }
}

/// Deleted snapshots that clones without a MAC of their own still are as they began from: their groups vouch for them, too.
pub(crate) type Relied = BTreeSet<(GroupId, VersionId)>;

/// Those of a checkpoint's groups.
pub(crate) fn relied<'a>(
    entries: impl IntoIterator<Item = &'a GroupEntry>,
    forest: &Forest,
) -> Relied {
    let sealed = entries.into_iter().filter(|e| is_sealed(e));
    let bare = sealed.filter(|e| e.mac.is_none());
    let bases = bare.filter_map(|entry| untouched_clone(entry, forest));
    let hidden = bases.filter(|base| !forest.is_frozen_snapshot(base));
    hidden.map(|base| (base.group, base.id)).collect()
}

/// The snapshot that a clone was made from, if the clone still is what it began as: then the other group's
/// statement has its root. One whose group is gone has nobody to vouch for it.
fn untouched_clone<'f>(entry: &GroupEntry, forest: &'f Forest) -> Option<&'f Version> {
    let id = entry.meta.group;
    let parent = forest.frozen_parent(id);
    let base = forest.get(parent.or_else(|| Some(forest.head(id)?.parent))?)?;
    let is_same = base.root == Some((entry.root, entry.root_level)) && base.cut == entry.max_stamp;
    let is_told = base.kind != VersionKind::Head && base.group != id && base.group.0 != 0;
    (is_same && is_told).then_some(base)
}

/// All that a checkpoint says of a volume's roots, without what is no replica's business but this one's: where
/// they lie (though not whether they lie anywhere), and the checksums of pages with addresses in them.
fn statement(entry: &GroupEntry, forest: &Forest, relied: &Relied) -> Statement {
    let id = entry.meta.group;
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"esker roots 1");
    hash.update(&entry.meta.volume.0.to_le_bytes());
    hash.update(&entry.meta.key_id.to_le_bytes());
    hash.update(&entry.meta.size_bytes.to_le_bytes());
    hash.update(&entry.epoch.0.to_le_bytes());
    hash.update(&entry.max_stamp.0.to_le_bytes());
    root(&mut hash, Some((&entry.root, entry.root_level)));
    let mut count = 0u64;
    forest.frozen_snapshots(id, |version| {
        snapshot(&mut hash, version);
        count += 1;
    });
    hash.update(&count.to_le_bytes());
    let own = relied.range((id, VersionId(0))..=(id, VersionId(u64::MAX)));
    for version in own.filter_map(|(_, version)| forest.get(*version)) {
        snapshot(&mut hash, version);
    }
    let mut statement = Statement::default();
    statement.copy_from_slice(hash.finish().as_ref());
    statement
}

fn root(hash: &mut digest::Context, root: Option<(&ChildPointer, u8)>) {
    let Some((pointer, level)) = root else {
        return hash.update(&[0]);
    };
    let is_there = !pointer.vaddr.is_none();
    hash.update(&[1, level, u8::from(pointer.is_strong), u8::from(is_there)]);
    hash.update(&pointer.max_stamp.0.to_le_bytes());
    hash.update(&pointer.logical_hash.to_le_bytes());
    hash.update(&pointer.live.to_le_bytes());
}

fn snapshot(hash: &mut digest::Context, version: &Version) {
    hash.update(&version.cut.0.to_le_bytes());
    hash.update(&version.meta.created_us.to_le_bytes());
    hash.update(&version.meta.size_bytes.to_le_bytes());
    hash.update(&to_u64(version.meta.name.len()).to_le_bytes());
    hash.update(version.meta.name.as_bytes());
    let at = version.root.as_ref().map(|(root, level)| (root, *level));
    root(hash, at);
}

impl Engine {
    /// The keys of an encrypted volume are here. From then on checkpoints sign for its roots; may be called again
    /// when there are others.
    ///
    /// # Errors
    /// When what was found at the opening is not what one of them has signed.
    pub fn vouch(&mut self, id: GroupId, signers: RootSigners) -> Result<(), RootRefusal> {
        let Some(group) = self.groups.get(&id) else {
            return Ok(());
        };
        self.compare(group, &signers)?;
        if let Some(group) = self.groups.get_mut(&id) {
            group.proof = Proof::Vouched(signers);
        }
        Ok(())
    }

    fn compare(&self, group: &Group, signers: &RootSigners) -> Result<(), RootRefusal> {
        match &group.proof {
            Proof::Fresh | Proof::Vouched(_) => Ok(()),
            Proof::Origin(origin) => match self.groups.get(origin).map(|g| &g.proof) {
                Some(Proof::Fresh | Proof::Vouched(_)) => Ok(()),
                Some(Proof::Origin(_) | Proof::Claimed(_)) => Err(RootRefusal::Origin),
                None => Err(RootRefusal::Missing),
            },
            Proof::Claimed(claim) => claim.compare(group.meta.group, signers),
        }
    }

    /// The names of volumes whose roots an opening found without a MAC, and nobody has accepted since.
    pub fn without_mac(&self) -> impl Iterator<Item = &str> {
        let is_bare = |group: &&Group| matches!(&group.proof, Proof::Claimed(c) if c.mac.is_none());
        let groups = self.groups.values().filter(is_bare);
        groups.filter(|g| !g.suspended).map(|g| &*g.meta.name)
    }

    /// An operator takes a group's roots as they are, whoever made them.
    pub fn accept_roots(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.proof = Proof::Fresh;
        }
    }

    /// Whether an entry of a group is to be applied only once keys are here: what it does to the map
    /// would be in the next checkpoint, and nobody there to sign for it.
    pub(crate) fn waits_for_keys(group: &Group, operation: Option<&Operation>) -> bool {
        let behind = group.last_index().0.saturating_sub(group.applied.0);
        let lacks_key = operation.is_some_and(|operation| group.proof.lacks_key_for(operation));
        lacks_key && group.meta.feeds.0 == 0 && (group.is_single() || behind <= HELD_MAX)
    }

    /// The key that the next entry of a group brings, if that entry waits for it.
    pub(crate) fn key_waited_for(group: &Group) -> Option<u32> {
        let next = group.entry(RaftIndex(group.applied.0 + 1))?;
        let operation = next.operation.as_deref()?;
        match operation {
            Operation::OpenEpoch { key_id, .. } if Self::waits_for_keys(group, Some(operation)) => {
                Some(*key_id)
            }
            _ => None,
        }
    }

    /// Whether a durable checkpoint has a MAC over the roots of a group. Until then nothing may be written to it: a
    /// log with writes behind roots that nobody signed could be anybody's.
    #[must_use]
    pub fn is_signed(&self, id: GroupId) -> bool {
        let signed_in = self.groups.get(&id).and_then(|g| g.signed_in);
        signed_in.is_some_and(|number| number <= self.checkpoints_done)
    }

    /// Whether nothing may be written behind the roots of a group because they never had a MAC: they are those of a volume
    /// that begins. Somebody else may lead it, who has its key; entries of it that were in the log here would be anybody's
    /// after a restart.
    #[must_use]
    pub fn awaits_first_mac(&self, id: GroupId) -> bool {
        let Some(group) = self.groups.get(&id) else {
            return false;
        };
        let is_sealed = group.meta.key_id != 0 && group.meta.feeds.0 == 0;
        let had_one = group
            .first_mac_in
            .is_some_and(|n| n <= self.checkpoints_done);
        is_sealed && !had_one && !matches!(group.proof, Proof::Claimed(_))
    }

    /// The log is replayed. Where no MAC vouches for roots without data, or for those of a snapshot, nobody has
    /// written behind them: [`Engine::is_signed`].
    pub(crate) fn doubt_replayed(&mut self) {
        let writes = |e: &LogEntry| matches!(e.operation.as_deref(), Some(Operation::Write { .. }));
        let sealed = self.groups.values_mut();
        for group in sealed.filter(|g| g.meta.key_id != 0 && g.meta.feeds.0 == 0) {
            let is_bare = matches!(group.proof, Proof::Fresh | Proof::Origin(_));
            if is_bare && group.log.iter().any(writes) {
                group.proof = Proof::Claimed(Claim {
                    key_id: group.meta.key_id,
                    statement: Statement::default(),
                    mac: None,
                });
            }
        }
    }

    /// Signs for the roots in what a checkpoint says of groups, or keeps what vouched for them.
    pub(crate) fn sign(&mut self, entries: &mut BTreeMap<GroupId, GroupEntry>) {
        // Which deleted snapshots a group vouches for depends on which clones have no MAC, and clones have clones.
        let mut known = Relied::new();
        loop {
            for entry in entries.values_mut() {
                entry.mac = self.signature(entry, &known);
            }
            let now = relied(entries.values(), &self.forest);
            if now == known {
                break;
            }
            known = now;
        }
        let number = self.counters.checkpoints;
        for entry in entries.values().filter(|e| is_sealed(e)) {
            if let Some(group) = self.groups.get_mut(&entry.meta.group) {
                group.signed_in = entry.mac.map(|_| group.signed_in.unwrap_or(number));
                group.first_mac_in = group.first_mac_in.or(group.signed_in);
            }
        }
    }

    fn signature(&self, entry: &GroupEntry, relied: &Relied) -> Option<RootMac> {
        let meta = &entry.meta;
        let group = self.groups.get(&meta.group).filter(|_| is_sealed(entry));
        let Some(group) = group else {
            return entry.mac;
        };
        let statement = statement(entry, &self.forest, relied);
        match &group.proof {
            Proof::Vouched(signers) => {
                let signer = signers.get(&meta.key_id);
                signer.map(|signer| signer.mac(meta.group, &statement))
            }
            Proof::Claimed(claim) if claim.statement == statement => claim.mac,
            Proof::Claimed(_) | Proof::Fresh | Proof::Origin(_) => None,
        }
    }
}

/// Whether there is something to sign: a feed's blocks are its group's.
fn is_sealed(entry: &GroupEntry) -> bool {
    entry.meta.key_id != 0 && entry.meta.feeds.0 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::VAddr;
    use esker_base::Stamp;

    fn of(root: ChildPointer) -> Statement {
        let entry = GroupEntry {
            root,
            root_level: 1,
            ..GroupEntry::default()
        };
        statement(&entry, &Forest::default(), &Relied::new())
    }

    /// Signs with a group's number and a key's in front of the statement.
    #[derive(Debug)]
    struct Plainly(u8);

    impl RootSigner for Plainly {
        fn mac(&self, group: GroupId, statement: &Statement) -> RootMac {
            let mut mac = *statement;
            mac[0] ^= self.0;
            mac[1] ^= group.0.to_le_bytes()[0];
            mac
        }

        fn is_right(&self, group: GroupId, statement: &Statement, mac: &RootMac) -> bool {
            self.mac(group, statement) == *mac
        }
    }

    #[test]
    fn a_claim_holds_with_the_mac_of_its_own_key_alone() {
        let group = GroupId(9);
        let signer = |n| -> (u32, Arc<dyn RootSigner>) { (u32::from(n), Arc::new(Plainly(n))) };
        let signers = RootSigners::from([signer(1), signer(2)]);
        let claim = |mac| Claim {
            key_id: 2,
            statement: [7; 32],
            mac,
        };
        let compare = |claim: &Claim, signers| claim.compare(group, signers);
        let right = claim(Some(signers[&2].mac(group, &[7; 32])));
        assert_eq!(compare(&right, &signers), Ok(()));
        assert_eq!(compare(&claim(None), &signers), Err(RootRefusal::Missing));
        for (key, of, statement) in [
            (1, group, [7; 32]),
            (2, GroupId(8), [7; 32]),
            (2, group, [6; 32]),
        ] {
            let mac = signers[&key].mac(of, &statement);
            assert_eq!(
                compare(&claim(Some(mac)), &signers),
                Err(RootRefusal::Wrong)
            );
        }
        let others = RootSigners::from([signer(1)]);
        assert_eq!(compare(&right, &others), Err(RootRefusal::Wrong));
    }

    /// Replicas and garbage collection have other addresses; but a root without one is an empty volume, and an empty
    /// one's root may get one.
    #[test]
    fn a_statement_says_whether_a_root_lies_anywhere_and_not_where() {
        let whole = ChildPointer {
            vaddr: VAddr(9),
            max_stamp: Stamp(4),
            logical_hash: 5,
            is_strong: true,
            live: 6,
            crc: 7,
        };
        let elsewhere = ChildPointer {
            vaddr: VAddr(10),
            crc: 8,
            ..whole
        };
        assert_eq!(of(whole), of(elsewhere));
        let emptied = ChildPointer {
            vaddr: VAddr::default(),
            ..whole
        };
        let weak = ChildPointer {
            is_strong: false,
            ..whole
        };
        let fewer = ChildPointer { live: 5, ..whole };
        let hashed = ChildPointer {
            logical_hash: 6,
            ..whole
        };
        let older = ChildPointer {
            max_stamp: Stamp(3),
            ..whole
        };
        for other in [emptied, weak, fewer, hashed, older] {
            assert_ne!(of(whole), of(other), "{other:?}");
        }
        let empty = ChildPointer::default();
        let filled = ChildPointer {
            vaddr: VAddr(9),
            ..empty
        };
        assert_ne!(of(empty), of(filled));
    }
}
