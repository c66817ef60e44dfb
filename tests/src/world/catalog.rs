//! The volumes as an operator knows them, and what is unsure about them after a crash.

use super::oracle::{Frozen, Oracle};
use super::snapshots::Kept;
use esker_crypto::WrappedKey;
use esker_node::admin::{AdminRequest, VolumeReport};
use std::collections::BTreeSet;

/// A change that an operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Create {
        name: String,
        size_bytes: u64,
        encrypted: bool,
    },
    /// A volume that begins as this snapshot of another one, or as that was at a moment in microseconds
    /// since the Unix epoch; what that may hold.
    Clone {
        name: String,
        volume: String,
        snapshot: String,
        at_us: Option<u64>,
        frozen: Frozen,
    },
    Resize {
        size_bytes: u64,
    },
    Rename {
        name: String,
    },
    Delete,
    /// To a snapshot; under which name what is left is kept, and when it was asked for.
    Rollback {
        snapshot: String,
        keep: Option<String>,
        asked: u64,
    },
}

/// A volume that exists.
pub(crate) struct Volume {
    pub name: String,
    /// Sizes it may have: more than one after an unanswered resize, none when nothing is known.
    pub sizes: BTreeSet<u64>,
    pub oracle: Oracle,
    /// A loss is to be accepted, and no answer has come.
    pub loss_asked: bool,
    /// Tells it from others of its slot.
    pub born: u64,
    /// Its snapshots.
    pub kept: Kept,
}

/// A place for a volume.
#[derive(Default)]
pub(crate) struct Slot {
    pub volume: Option<Volume>,
    /// Asked for and not answered; after a crash, unsure.
    pub change: Option<(u64, Change)>,
    /// To be asked for once no client is attached.
    pub wanted: Option<Change>,
    /// The size of a resize on its way whose volume was to go: after a crash, unsure.
    pub resizing: Option<u64>,
    pub names: u64,
    /// The key of a volume of three that is encrypted.
    pub key: Option<WrappedKey>,
    /// Last names of volumes that were deleted.
    pub gone: BTreeSet<String>,
}

impl Volume {
    fn new(name: String, sizes: BTreeSet<u64>, oracle: Oracle, born: u64) -> Self {
        Self {
            name,
            sizes,
            oracle,
            loss_asked: false,
            born,
            kept: Kept {
                is_known: true,
                ..Kept::default()
            },
        }
    }

    /// It has this size, or one it had before: nothing new where nothing is known.
    pub fn may_have(&mut self, size_bytes: u64) {
        if !self.sizes.is_empty() {
            self.sizes.insert(size_bytes);
        }
    }
}

impl Slot {
    /// A name that was never used.
    pub fn fresh_name(&mut self, slot: usize) -> String {
        self.names += 1;
        format!("v{slot}-{}", self.names)
    }

    /// Clients may attach.
    pub fn is_open(&self) -> bool {
        let quiet = matches!(self.change, None | Some((_, Change::Resize { .. })));
        self.volume.is_some() && quiet && self.wanted.is_none()
    }

    /// A change was made.
    pub fn done(&mut self, change: Change, step: u64, oracle: impl FnOnce() -> Oracle) {
        let born = self.names;
        match (change, &mut self.volume) {
            (
                Change::Create {
                    name, size_bytes, ..
                },
                none,
            ) => {
                let sizes = BTreeSet::from([size_bytes]);
                *none = Some(Volume::new(name, sizes, oracle(), born));
            }
            (Change::Clone { name, frozen, .. }, none) => {
                let mut oracle = oracle();
                oracle.rolled_back(&frozen, true, step);
                // As large as its origin was then: an attachment tells.
                *none = Some(Volume::new(name, BTreeSet::new(), oracle, born));
            }
            (Change::Delete, any) => self.gone.extend(any.take().map(|v| v.name)),
            (Change::Resize { size_bytes }, Some(volume)) => {
                volume.sizes = BTreeSet::from([size_bytes]);
            }
            (Change::Rename { name }, Some(volume)) => volume.name = name,
            (
                Change::Rollback {
                    snapshot,
                    keep,
                    asked,
                },
                Some(volume),
            ) => {
                let left = volume.oracle.freeze(asked);
                if let Some(to) = volume.kept.sure.get(&snapshot) {
                    volume.oracle.rolled_back(to, true, step);
                }
                volume.kept.sure.extend(keep.map(|keep| (keep, left)));
            }
            (Change::Resize { .. } | Change::Rename { .. } | Change::Rollback { .. }, None) => {}
        }
    }

    /// The logs of a restarted store are applied: whether a clone that nobody was told of is there.
    pub fn look_for_clone(&mut self, reports: &[VolumeReport], step: u64, oracle: Oracle) {
        let clone = |c: &Change| match c {
            Change::Clone { name, .. } => Some(name.clone()),
            _ => None,
        };
        // One that was asked of this process is answered by it.
        let unsure = self.change.as_ref().filter(|(token, _)| *token == 0);
        let Some(name) = unsure.and_then(|(_, c)| clone(c)) else {
            return;
        };
        let change = self.change.take().map(|(_, change)| change);
        if reports.iter().any(|r| r.name == name) {
            change
                .into_iter()
                .for_each(|c| self.done(c, step, || oracle.clone()));
        }
    }

    /// Holds what a restarted store lists against what it must have.
    ///
    /// # Errors
    /// A sentence about what is missing, or should not be there.
    pub fn reconcile(
        &mut self,
        slot: usize,
        reports: &[VolumeReport],
        step: u64,
        oracle: impl FnOnce() -> Oracle,
    ) -> Result<(), String> {
        let prefix = format!("v{slot}-");
        let mut here = reports.iter().filter(|r| r.name.starts_with(&prefix));
        let report = here.next();
        if let Some(second) = here.next() {
            return Err(format!(
                "{} is there beside another of its slot",
                second.name
            ));
        }
        let unsure = self.change.take().map(|c| c.1);
        self.wanted = None;
        if let (Some(size_bytes), Some(volume)) = (self.resizing.take(), &mut self.volume) {
            volume.may_have(size_bytes);
        }
        match (&mut self.volume, report, unsure) {
            // It is an entry of its origin's log, and that is not applied yet: unsure until it is.
            (None, None, Some(change @ Change::Clone { .. })) => self.change = Some((0, change)),
            (None, None, _) => {}
            (None, Some(r), Some(change @ Change::Create { .. })) if matches!(&change, Change::Create { name, .. } if *name == r.name) =>
            {
                self.done(change, step, oracle);
            }
            (None, Some(r), Some(change @ Change::Clone { .. })) if matches!(&change, Change::Clone { name, .. } if *name == r.name) =>
            {
                self.done(change, step, oracle);
            }
            (None, Some(r), _) => return Err(format!("{} is back after its end", r.name)),
            (Some(_), None, Some(Change::Delete)) => self.volume = None,
            (Some(v), None, _) => return Err(format!("{} is gone", v.name)),
            (Some(v), Some(r), unsure) => {
                match unsure {
                    Some(Change::Rename { name }) if name == r.name => v.name = name,
                    Some(Change::Resize { size_bytes }) => {
                        v.may_have(size_bytes);
                    }
                    Some(Change::Rollback { snapshot, .. }) => {
                        if let Some(to) = v.kept.sure.get(&snapshot) {
                            v.oracle.rolled_back(to, false, step);
                        }
                    }
                    _ => {}
                }
                // The size is known once the log is applied: an attachment tells.
                if v.name != r.name {
                    return Err(format!("{} is listed as {}", v.name, r.name));
                }
            }
        }
        Ok(())
    }
}

/// The request that makes a change.
pub(crate) fn request_of(change: &Change, name: &str) -> AdminRequest {
    let name = name.to_owned();
    match change {
        Change::Create {
            name,
            size_bytes,
            encrypted,
        } => AdminRequest::VolumeCreate {
            name: name.clone(),
            size_bytes: *size_bytes,
            labels: std::collections::BTreeMap::new(),
            encrypted: *encrypted,
        },
        Change::Clone {
            name,
            volume,
            at_us: Some(at_us),
            ..
        } => AdminRequest::VolumeCloneAt {
            volume: volume.clone(),
            at_us: *at_us,
            name: name.clone(),
            labels: std::collections::BTreeMap::new(),
            born: None,
        },
        Change::Clone {
            name,
            volume,
            snapshot,
            ..
        } => AdminRequest::VolumeClone {
            volume: volume.clone(),
            snapshot: snapshot.clone(),
            name: name.clone(),
            labels: std::collections::BTreeMap::new(),
            born: None,
        },
        Change::Resize { size_bytes } => AdminRequest::VolumeResize {
            name,
            size_bytes: *size_bytes,
        },
        Change::Rename { name: new_name } => AdminRequest::VolumeRename {
            name,
            new_name: new_name.clone(),
        },
        Change::Rollback { snapshot, keep, .. } => AdminRequest::SnapshotRollback {
            volume: name,
            name: snapshot.clone(),
            keep: Some(keep.clone()),
            force: false,
        },
        Change::Delete => AdminRequest::VolumeDelete {
            name,
            with_snapshots: true,
        },
    }
}
