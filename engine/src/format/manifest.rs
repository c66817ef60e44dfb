//! What a replica needs to know of a volume to become what another one was at an index of their log: the
//! versions that there were, and everything of the group that is not in its map.

use super::codec::{FormatError, Reader, Writer};
use super::group::{text, GroupEntry, Jump};
use super::versions::SnapshotMeta;
use esker_base::{limits, Stamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"ESKERMAN";
/// Version of the structure: of one that ends with a snapshot.
pub const VERSION: u32 = 1;
/// Version of one whose head goes on behind its newest snapshot.
pub const VERSION_OF_HEADS: u32 = 2;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestVersion {
    /// Its stamp.
    pub cut: Stamp,
    /// Stamp of the nearest snapshot of the volume that it goes back to; zero for none.
    pub parent: Stamp,
    /// What it is.
    pub meta: Arc<SnapshotMeta>,
}

/// A volume at an index of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The group, without its map, its log and its hard state. `truncated_index` and `applied` are the index.
    /// `max_stamp` is the stamp of the newest version, and the head is the same as that; or the highest stamp of the head.
    pub state: GroupEntry,
    /// Snapshots, rising by stamp.
    pub versions: Vec<ManifestVersion>,
    /// Where the head is not the same as the newest snapshot: the stamp of the snapshot that it goes back to; zero for none.
    pub head: Option<Stamp>,
}

impl Manifest {
    /// The stamp that names it: of the newest version, or of its head.
    #[must_use]
    pub fn pin(&self) -> Stamp {
        self.state.max_stamp
    }

    /// A version by its stamp.
    #[must_use]
    pub fn at(&self, cut: Stamp) -> Option<&ManifestVersion> {
        let found = self.versions.binary_search_by_key(&cut, |v| v.cut).ok()?;
        self.versions.get(found)
    }

    /// Size of the volume at a version or at the head, in bytes.
    #[must_use]
    pub fn size_at(&self, cut: Stamp) -> u64 {
        match self.at(cut) {
            Some(version) => version.meta.size_bytes,
            None => self.state.meta.size_bytes,
        }
    }

    /// The last thing that happened was a rollback: the head is what that went back to, and its highest stamp may be that of
    /// the snapshot that was kept of what it left.
    #[must_use]
    pub fn is_rolled_back(&self) -> bool {
        let newest = self.state.jumps.last();
        newest.is_some_and(|jump| jump.at == self.state.max_stamp)
    }

    /// Whether a head that holds nothing above `reach`, and everything before it, leads to a version: no
    /// rollback on the way to that one has left it behind. A head that holds a rollback's own stamp is what that left;
    /// what went on from there holds nothing above the snapshot that it went back to.
    #[must_use]
    pub fn leads_to(&self, reach: Stamp, cut: Stamp) -> bool {
        if reach.0 > 0 && reach < self.state.jumps_since {
            return false; // rollbacks that nobody remembers may lie between
        }
        let mut until = cut;
        for jump in self.state.jumps.iter().rev().filter(|j| j.at < cut) {
            if jump.at >= until {
                continue; // of a branch that is not on the way
            }
            if reach > jump.at {
                break;
            }
            until = jump.to;
        }
        reach <= until
    }

    /// The manifest as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&MAGIC);
        w.u32(self.head.map_or(VERSION, |_| VERSION_OF_HEADS));
        w.zeros(4);
        w.bytes32(&self.state.encode());
        w.u32(u32::try_from(self.versions.len()).unwrap_or(u32::MAX));
        for v in &self.versions {
            w.u64(v.cut.0);
            w.u64(v.parent.0);
            w.u64(v.meta.created_us);
            w.u64(v.meta.size_bytes);
            w.bytes32(v.meta.name.as_bytes());
            w.u32(u32::try_from(v.meta.labels.len()).unwrap_or(u32::MAX));
            for (key, value) in &v.meta.labels {
                w.bytes32(key.as_bytes());
                w.bytes32(value.as_bytes());
            }
        }
        if let Some(parent) = self.head {
            w.u64(parent.0);
        }
        w.bytes
    }

    /// Decodes a manifest that another node sent.
    ///
    /// # Errors
    /// On anything that `encode` does not produce, and when it contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("manifest", bytes);
        if r.raw(8)? != MAGIC {
            return Err(r.error("has no magic"));
        }
        let version = r.u32()?;
        if version != VERSION_OF_HEADS {
            r.version(VERSION, version)?;
        }
        r.zeros(4)?;
        let state = GroupEntry::decode(r.bytes32()?)?;
        let count = r.count32(40)?;
        if count > limits::VOLUME_SNAPSHOTS_MAX {
            return Err(r.error("has too many versions"));
        }
        let mut versions: Vec<ManifestVersion> = Vec::with_capacity(count);
        for _ in 0..count {
            let (cut, parent) = (Stamp(r.u64()?), Stamp(r.u64()?));
            let (created_us, size_bytes) = (r.u64()?, r.u64()?);
            let name = text(&mut r)?;
            if name.is_empty() || name.len() > limits::SNAPSHOT_NAME_BYTES_MAX {
                return Err(r.error("name of a snapshot is empty or too long"));
            }
            let mut labels = BTreeMap::new();
            for _ in 0..r.count32(8)? {
                labels.insert(text(&mut r)?, text(&mut r)?);
            }
            let rises = versions.last().is_none_or(|last| last.cut < cut);
            let known = parent.0 == 0 || versions.binary_search_by_key(&parent, |v| v.cut).is_ok();
            if !rises || !known || size_bytes > limits::VOLUME_BYTES_MAX {
                return Err(r.error("version is out of order or out of range"));
            }
            versions.push(ManifestVersion {
                cut,
                parent,
                meta: Arc::new(SnapshotMeta {
                    name,
                    created_us,
                    size_bytes,
                    labels,
                }),
            });
        }
        let head = match version {
            VERSION_OF_HEADS => Some(Stamp(r.u64()?)),
            _ => None,
        };
        r.finish()?;
        let pin = versions.last().map(|v| v.cut);
        let ends = match head {
            None => pin == Some(state.max_stamp),
            Some(parent) => {
                let known = |p| versions.binary_search_by_key(&p, |v| v.cut).is_ok();
                let rolled_back = state.jumps.last().map(|jump| jump.at);
                let is_newer = pin.is_none_or(|pin| pin < state.max_stamp)
                    || (pin == rolled_back && pin == Some(state.max_stamp));
                is_newer && (parent.0 == 0 || known(parent))
            }
        };
        let jumps = &state.jumps;
        let rise = jumps.windows(2).all(|two| two[0].at < two[1].at);
        let back = jumps.iter().all(|jump: &Jump| jump.to < jump.at);
        if !ends || !rise || !back || !state.log.is_empty() {
            return Err(Reader::new("manifest", &[]).error("contradicts itself"));
        }
        Ok(Self {
            state,
            versions,
            head,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let version = |cut, parent| ManifestVersion {
            cut: Stamp(cut),
            parent: Stamp(parent),
            meta: Arc::new(SnapshotMeta {
                name: format!("s{cut}"),
                created_us: 5,
                size_bytes: 4096,
                labels: BTreeMap::from([("by".into(), "hand".into())]),
            }),
        };
        let jump = |at, to| Jump {
            at: Stamp(at),
            to: Stamp(to),
        };
        Manifest {
            state: GroupEntry {
                max_stamp: Stamp(60),
                jumps: vec![jump(30, 10), jump(50, 20)],
                meta: super::super::group::GroupMeta {
                    block_bytes: 4096,
                    ..super::super::group::GroupMeta::default()
                },
                ..GroupEntry::default()
            },
            versions: vec![
                version(10, 0),
                version(20, 10),
                version(40, 10),
                version(60, 20),
            ],
            head: None,
        }
    }

    #[test]
    fn comes_back_and_what_is_cut_is_refused() {
        let mut of_a_head = sample();
        of_a_head.state.max_stamp = Stamp(70);
        of_a_head.head = Some(Stamp(60));
        let mut of_the_first = of_a_head.clone();
        (of_the_first.head, of_the_first.versions) = (Some(Stamp(0)), Vec::new());
        for manifest in [sample(), of_a_head, of_the_first] {
            let bytes = manifest.encode();
            assert_eq!(Manifest::decode(&bytes), Ok(manifest));
            for at in 0..bytes.len() {
                assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn a_head_goes_back_to_a_snapshot_and_is_newer_than_all() {
        let refused = |max_stamp, head| {
            let mut manifest = sample();
            manifest.state.max_stamp = Stamp(max_stamp);
            manifest.head = head;
            Manifest::decode(&manifest.encode()).is_err()
        };
        assert!(!refused(70, Some(Stamp(40))));
        let mut kept = sample();
        kept.state.jumps.push(Jump {
            at: Stamp(60),
            to: Stamp(40),
        });
        kept.head = Some(Stamp(40));
        assert_eq!(Manifest::decode(&kept.encode()), Ok(kept));
        assert!(refused(70, None), "no snapshot is the head");
        assert!(refused(60, Some(Stamp(40))), "a snapshot is the head");
        assert!(refused(70, Some(Stamp(41))), "no such snapshot");
    }

    #[test]
    fn a_head_leads_only_where_no_rollback_left_it_behind() {
        let m = sample();
        // 0 .. 10 .. 20 .. 29 | 30: back to 10 .. 40 .. 49 | 50: back to 20 .. 60
        let leads = |reach, cut| m.leads_to(Stamp(reach), Stamp(cut));
        assert!(leads(0, 10) && leads(5, 10) && leads(10, 20) && leads(15, 20));
        assert!(leads(0, 40) && leads(10, 40) && leads(31, 40) && leads(35, 40));
        assert!(!leads(11, 40) && !leads(20, 40) && !leads(29, 40) && !leads(30, 40));
        assert!(leads(5, 60) && leads(15, 60) && leads(20, 60) && leads(51, 60) && leads(55, 60));
        assert!(!leads(25, 60) && !leads(30, 60) && !leads(40, 60) && !leads(50, 60));
    }

    #[test]
    fn what_nobody_remembers_leads_nowhere() {
        let mut m = sample();
        m.state.jumps_since = Stamp(15);
        assert!(!m.leads_to(Stamp(12), Stamp(20)));
        assert!(m.leads_to(Stamp(0), Stamp(20)) && m.leads_to(Stamp(15), Stamp(20)));
    }
}
