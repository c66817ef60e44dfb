//! Who this node is: `DIR/node.toml`, written once at the first start.

use crate::data_dir::write_durably;
use crate::error::DaemonError;
use esker_base::{ClusterId, NodeId};
use serde::Deserialize;
use std::io;
use std::path::Path;

/// Node ids stay below 2^53, so that a JSON reader that holds numbers as doubles keeps them whole,
/// and above 0, which stands for no node.
pub const NODE_ID_MAX: u64 = (1 << 53) - 1;

/// The ids of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This node. Never reused.
    pub node: NodeId,
    /// The cluster it belongs to: one of its own until it joins another.
    pub cluster: ClusterId,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    node_id: u64,
    cluster_id: String,
}

impl Identity {
    /// Reads `node.toml` in `data`, or writes it with the ids that are given and draws the others: whole or not at
    /// all, and durable.
    ///
    /// # Errors
    /// When the file cannot be read, understood or written, or says something else than what is given.
    pub fn load_or_create(data: &Path, given: &Given) -> Result<Self, DaemonError> {
        let path = data.join("node.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let found = parse(&text);
                let found = found.map_err(|reason| DaemonError::Identity {
                    path: path.clone(),
                    reason,
                })?;
                given
                    .check(&found)
                    .map_err(|what| DaemonError::OtherIdentity { path, what })?;
                Ok(found)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let drawn = Self::draw()?;
                let identity = Self {
                    node: given.node.or(given.certified).unwrap_or(drawn.node),
                    cluster: given.cluster.unwrap_or(drawn.cluster),
                };
                write_durably(data, "node.toml", &identity.to_text())
                    .map_err(DaemonError::file("write", &path))?;
                Ok(identity)
            }
            Err(e) => Err(DaemonError::file("read", &path)(e)),
        }
    }

    fn draw() -> Result<Self, DaemonError> {
        let node = u64::from_le_bytes(random()?) % NODE_ID_MAX + 1;
        let cluster = ClusterId::from_random(u128::from_le_bytes(random()?));
        Ok(Self {
            node: NodeId(node),
            cluster,
        })
    }

    fn to_text(self) -> String {
        format!(
            "# Who this node is. Written at its first start; its stores carry the same ids.\n\
             node_id = {}\ncluster_id = \"{}\"\n",
            self.node, self.cluster
        )
    }
}

/// Ids that the configuration gives a node at its first start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The node's.
    pub node: Option<NodeId>,
    /// The cluster's.
    pub cluster: Option<ClusterId>,
    /// The node that the certificate names: a new one is that, unless another is said.
    pub certified: Option<NodeId>,
}

impl Given {
    fn check(&self, found: &Identity) -> Result<(), String> {
        if let Some(other) = self.node.filter(|node| *node != found.node) {
            let node = found.node;
            return Err(format!(
                "this is node {node}, and the configuration says node {other}"
            ));
        }
        match self.cluster.filter(|cluster| *cluster != found.cluster) {
            None => Ok(()),
            Some(other) => Err(format!(
                "this node is of cluster {}, and the configuration says {other}",
                found.cluster
            )),
        }
    }
}

/// Random bytes from the operating system.
///
/// # Errors
/// When it gives none.
pub fn random<const N: usize>() -> Result<[u8; N], DaemonError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                let operation = "get random bytes from the system";
                return Err(DaemonError::System {
                    operation,
                    source: e.into(),
                });
            }
        }
    }
    Ok(bytes)
}

fn parse(text: &str) -> Result<Identity, String> {
    let raw: RawIdentity =
        toml::from_str(text).map_err(|e| e.message().replace('\n', " ").to_string())?;
    if raw.node_id == 0 || raw.node_id > NODE_ID_MAX {
        return Err(format!(
            "node_id {} is not in 1..={NODE_ID_MAX}",
            raw.node_id
        ));
    }
    Ok(Identity {
        node: NodeId(raw.node_id),
        cluster: parse_cluster(&raw.cluster_id).map_err(|why| format!("cluster_id {why}"))?,
    })
}

/// A cluster's id in the one way in which it is written.
pub(crate) fn parse_cluster(text: &str) -> Result<ClusterId, String> {
    let cluster = u128::from_str_radix(&text.replace('-', ""), 16);
    let cluster = cluster.map(ClusterId).ok();
    let cluster = cluster.filter(|c| c.0 != 0 && c.to_string() == text);
    cluster.ok_or_else(|| format!("`{text}` is not a UUID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(folder.path(), &Given::default()).unwrap();
        assert_eq!(
            Identity::load_or_create(folder.path(), &Given::default()).unwrap(),
            first
        );
        let other = tempfile::tempdir().unwrap();
        assert_ne!(
            Identity::load_or_create(other.path(), &Given::default()).unwrap(),
            first
        );
    }

    #[test]
    fn given_ids_are_taken_once_and_others_are_refused_later() {
        let folder = tempfile::tempdir().unwrap();
        let given = |node, cluster| Given {
            node: Some(NodeId(node)),
            cluster: Some(ClusterId::from_random(cluster)),
            certified: Some(NodeId(9)),
        };
        let load = |given: &Given| Identity::load_or_create(folder.path(), given);
        let first = load(&given(5, 6)).unwrap();
        assert_eq!(
            (first.node, first.cluster),
            (NodeId(5), ClusterId::from_random(6))
        );
        assert_eq!(load(&given(5, 6)).unwrap(), first);
        assert_eq!(load(&Given::default()).unwrap(), first);
        let certified = Given {
            certified: Some(NodeId(9)),
            ..Given::default()
        };
        assert_eq!(load(&certified).unwrap(), first);
        let new = tempfile::tempdir().unwrap();
        let new = Identity::load_or_create(new.path(), &certified).unwrap();
        assert_eq!(new.node, NodeId(9));
        for (other, part) in [(given(7, 6), "node 7"), (given(5, 7), "cluster")] {
            let message = load(&other).unwrap_err().to_string();
            assert!(
                message.contains(part) && message.contains("node.toml"),
                "{message}"
            );
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_damaged_file_is_not_replaced() {
        for text in [
            "",
            "node_id = 0\ncluster_id = 'x'",
            "node_id = 7\ncluster_id = 'x'",
            "\u{1}",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("node.toml");
            std::fs::write(&path, text).unwrap();
            let message = Identity::load_or_create(folder.path(), &Given::default())
                .unwrap_err()
                .to_string();
            assert!(
                message.contains("node.toml") && !message.contains('\n'),
                "{message}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
