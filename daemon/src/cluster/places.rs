//! Where replicas live: `DIR/replicas.json`. The stores hold which replicas a group has; where they are is known to
//! whoever placed them, and told to each member when its replica is made.

use crate::data_dir::write_durably;
use crate::error::DaemonError;
use esker_base::{NodeId, Place, ReplicaId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "replicas.json";
const VERSION: u32 = 1;

/// The replicas of one volume, all of them.
pub type Replicas = BTreeMap<ReplicaId, Place>;

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: u32,
    volumes: BTreeMap<String, Vec<RawReplica>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReplica {
    replica: u64,
    node: u64,
    store: u16,
}

/// All places that this node knows, durable.
#[derive(Debug)]
pub struct Places {
    data: PathBuf,
    /// By the volume's UUID.
    volumes: BTreeMap<String, Replicas>,
}

impl Places {
    /// Reads them; none when there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or understood: without it no replica would find the others.
    pub fn load(data: &Path) -> Result<Self, DaemonError> {
        let path = data.join(FILE);
        let volumes = match std::fs::read(&path) {
            Ok(bytes) => of_bytes(&bytes).map_err(|reason| {
                let path = path.display();
                DaemonError::Cluster(format!(
                    "{path}: {reason}; restore it from a backup, or have another member's at hand"
                ))
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(DaemonError::file("read", &path)(e)),
        };
        let data = data.to_path_buf();
        Ok(Self { data, volumes })
    }

    /// Where each replica lives.
    #[must_use]
    pub fn all(&self) -> Replicas {
        let all = self.volumes.values().flatten();
        all.map(|(replica, place)| (*replica, *place)).collect()
    }

    /// The replicas of a volume; none of one that lives on this node alone.
    #[must_use]
    pub fn of(&self, volume: &str) -> Option<&Replicas> {
        self.volumes.get(volume)
    }

    /// Adds a volume, durably.
    ///
    /// # Errors
    /// When that cannot be written; nothing has changed then.
    pub fn add(&mut self, volume: String, replicas: Replicas) -> Result<(), DaemonError> {
        let before = self.volumes.insert(volume.clone(), replicas);
        self.write().inspect_err(|_| match before {
            None => _ = self.volumes.remove(&volume),
            Some(before) => _ = self.volumes.insert(volume, before),
        })
    }

    /// Forgets a volume, durably.
    ///
    /// # Errors
    /// When that cannot be written; it is forgotten until the next start only.
    pub fn remove(&mut self, volume: &str) -> Result<(), DaemonError> {
        match self.volumes.remove(volume) {
            None => Ok(()),
            Some(_) => self.write(),
        }
    }

    fn write(&self) -> Result<(), DaemonError> {
        let raw = |(replica, place): (&ReplicaId, &Place)| RawReplica {
            replica: replica.0,
            node: place.node.0,
            store: place.store,
        };
        let volumes = self.volumes.iter();
        let volumes = volumes.map(|(volume, of)| (volume.clone(), of.iter().map(raw).collect()));
        let raw = Raw {
            version: VERSION,
            volumes: volumes.collect(),
        };
        let path = self.data.join(FILE);
        let text = serde_json::to_string_pretty(&raw).map_err(io::Error::other);
        text.and_then(|text| write_durably(&self.data, FILE, &text))
            .map_err(DaemonError::file("write", &path))
    }
}

fn of_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Replicas>, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if raw.version != VERSION {
        return Err(format!(
            "version {}; this build reads {VERSION}",
            raw.version
        ));
    }
    let place = |raw: RawReplica| {
        let node = NodeId(raw.node);
        let store = raw.store;
        (ReplicaId(raw.replica), Place { node, store })
    };
    let volumes = raw.volumes.into_iter();
    Ok(volumes
        .map(|(volume, of)| (volume, of.into_iter().map(place).collect()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_there_after_a_restart_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let place = |node, store| Place {
            node: NodeId(node),
            store,
        };
        let replicas = Replicas::from([
            (ReplicaId(u64::MAX >> 2), place(1, 0)),
            (ReplicaId(7), place(2, 3)),
        ]);
        let mut places = Places::load(folder.path()).unwrap();
        assert!(places.all().is_empty());
        places.add("a".into(), replicas.clone()).unwrap();
        places
            .add("b".into(), Replicas::from([(ReplicaId(9), place(1, 1))]))
            .unwrap();
        let mut again = Places::load(folder.path()).unwrap();
        assert_eq!(again.of("a"), Some(&replicas));
        assert_eq!(again.all().len(), 3);
        again.remove("a").unwrap();
        assert_eq!(Places::load(folder.path()).unwrap().all().len(), 1);
        std::fs::write(
            folder.path().join(FILE),
            "{\"version\": 2, \"volumes\": {}}",
        )
        .unwrap();
        let refused = Places::load(folder.path()).unwrap_err().to_string();
        assert!(
            refused.contains("version 2") && !refused.contains('\n'),
            "{refused}"
        );
    }
}
