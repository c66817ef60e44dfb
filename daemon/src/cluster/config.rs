//! The part of the configuration that makes a node a member of a cluster.
//!
//! ```toml
//! [node]
//! id = 1                                    # taken at the first start; without it one is drawn
//!
//! [cluster]
//! id = "0d2f4a9e-…"                         # UUID, the same on all members; taken at the first start
//! listen = "10.0.0.1:10811"                 # for the links of other members
//! control = "10.0.0.1:10812"                # for what members ask of each other
//! insecure = false                          # plain connections between machines; for trials
//! join = false                              # a new node waits until `esker node add` at another one makes it a member
//! spread = ["zone", "rack"]                 # labels in which the copies of a volume differ, the first one most of all
//! read_leases = true                        # who leads a volume answers reads alone; false where guests are paused or moved
//! replace_after = "30m"                     # copies of a node that is away for so long are made anew elsewhere, or "none"
//!
//! [[cluster.node]]                          # every member, this node included; or none, and `esker cluster init`
//! id = 1
//! address = "10.0.0.1:10811"
//! control = "10.0.0.1:10812"
//! labels = { zone = "a", rack = "r7" }
//! ```

use super::placement::Labels;
use crate::config::{ConfigError, ListenOn, Source};
use crate::identity::{parse_cluster, NODE_ID_MAX};
use crate::retention::policy::{duration, parse_duration};
use esker_base::{ClusterId, NodeId};
use esker_node::admin::one_line;
use serde::Deserialize;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use toml::Spanned;

/// Members of a cluster.
pub const MEMBERS_MAX: usize = 64;

/// Labels of one member, and of a list of them.
const LABELS_MAX: usize = 16;
/// Longest label or value, in bytes.
const LABEL_BYTES_MAX: usize = 128;
/// Shortest time that a node has to be away: a restart is none.
const REPLACE_AFTER_SECONDS_MIN: u64 = 10;

/// How long a node has to be away until its copies are made anew elsewhere; none when never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaceAfter(pub Option<Duration>);

impl Default for ReplaceAfter {
    fn default() -> Self {
        Self(Some(Duration::from_secs(30 * 60)))
    }
}

impl FromStr for ReplaceAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, parse_duration(text)) {
            ("none", _) => Ok(Self(None)),
            (_, Some(seconds)) if seconds >= REPLACE_AFTER_SECONDS_MIN => {
                Ok(Self(Some(Duration::from_secs(seconds))))
            }
            _ => Err(format!(
                "`{}` is no such time: one like 30m or 6h, at least {REPLACE_AFTER_SECONDS_MIN}s, or `none`",
                one_line(text)
            )),
        }
    }
}

impl fmt::Display for ReplaceAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(time) => f.write_str(&duration(time.as_secs())),
        }
    }
}

/// `[cluster]` and `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// This node's id, if it is said.
    pub node: Option<NodeId>,
    /// The cluster's, if it is said.
    pub id: Option<ClusterId>,
    /// Where links of other members are taken.
    pub listen: ListenOn,
    /// Where members are answered.
    pub control: ListenOn,
    /// Connections between members may be plain beyond this machine.
    pub insecure: bool,
    /// A node without an id yet waits until a cluster gives it one.
    pub join: bool,
    /// Who leads a volume answers reads without asking the others for each.
    pub read_leases: bool,
    /// Labels in which the copies of a volume differ, as far as can be; the first one matters most.
    pub spread: Vec<String>,
    /// How long a node has to be away until its copies are made anew elsewhere.
    pub replace_after: ReplaceAfter,
    /// All members; none outside a cluster, nor in a file where members are agreed on ([`super::agreed`]).
    pub members: Vec<Member>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Where it takes links: HOST:PORT.
    pub address: ListenOn,
    /// Where it answers other members.
    pub control: ListenOn,
    /// Where it stands.
    pub labels: Labels,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            node: None,
            id: None,
            listen: ListenOn::None,
            control: ListenOn::None,
            insecure: false,
            join: false,
            read_leases: true,
            spread: vec!["zone".into(), "rack".into()],
            replace_after: ReplaceAfter::default(),
            members: Vec::new(),
        }
    }
}

impl ClusterConfig {
    /// Whether there are others.
    #[must_use]
    pub fn is_member(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether members are agreed on by the cluster: this one listens for others and the file names none.
    #[must_use]
    pub fn is_agreed(&self) -> bool {
        !self.is_member() && self.listen != ListenOn::None
    }

    /// The other members.
    pub fn others(&self, own: NodeId) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.id != own)
    }

    /// Whether one of the settings differs that only a restart changes.
    #[must_use]
    pub fn needs_restart(&self, other: &Self) -> bool {
        let fixed = |of: &Self| {
            (
                of.node,
                of.id,
                of.listen.clone(),
                of.control.clone(),
                of.insecure,
                of.join,
                of.read_leases,
                of.is_member(),
            )
        };
        fixed(self) != fixed(other)
    }

    /// That the settings fit together.
    ///
    /// # Errors
    /// One line.
    pub fn check(&self) -> Result<(), String> {
        let listens = [&self.listen, &self.control].map(|on| *on != ListenOn::None);
        if !self.is_member() {
            if listens[0] != listens[1] {
                return Err("cluster.listen and cluster.control: set both or none".into());
            }
            if self.join && !listens[0] {
                return Err(
                    "cluster.join without cluster.listen and cluster.control: say where this \
                            node is reached"
                        .into(),
                );
            }
            return check_labels("cluster.spread", &self.spread);
        }
        if self.join {
            return Err(
                "cluster.join and [[cluster.node]]: a node that joins learns the members; name \
                        none"
                    .into(),
            );
        }
        if self.members.len() > MEMBERS_MAX {
            let count = self.members.len();
            return Err(format!(
                "{count} of [[cluster.node]]; at most {MEMBERS_MAX}"
            ));
        }
        if self.id.is_none() {
            return Err(
                "[[cluster.node]] without cluster.id: give all members the same UUID, as \
                        `uuidgen` makes one"
                    .into(),
            );
        }
        if listens != [true; 2] {
            return Err(
                "[[cluster.node]] without cluster.listen and cluster.control: say where this \
                        node listens for the others"
                    .into(),
            );
        }
        check_labels("cluster.spread", &self.spread)?;
        check_members(&self.members).map_err(|why| format!("[[cluster.node]]: {why}"))?;
        self.node.map_or(Ok(()), |node| self.check_member(node))
    }

    /// That this node is one of the members.
    ///
    /// # Errors
    /// One line.
    pub fn check_member(&self, own: NodeId) -> Result<(), String> {
        let is_named = self.members.iter().any(|member| member.id == own);
        match !self.is_member() || is_named {
            true => Ok(()),
            false => Err(format!(
                "this is node {own}, and no [[cluster.node]] has that id; add it, on all members"
            )),
        }
    }
}

/// That each member has an id and addresses of its own.
///
/// # Errors
/// One line.
pub(super) fn check_members(members: &[Member]) -> Result<(), String> {
    for (index, member) in members.iter().enumerate() {
        let labels = member.labels.iter().flat_map(|(key, value)| [key, value]);
        check_labels("labels", &Vec::from_iter(labels.cloned()))?;
        let before = &members[..index];
        if before.iter().any(|other| other.id == member.id) {
            return Err(format!("node {} is named twice", member.id));
        }
        for address in [&member.address, &member.control] {
            let is_taken = |m: &Member| m.address == *address || m.control == *address;
            let own = member.address == member.control;
            if own || before.iter().any(is_taken) {
                return Err(format!("{address} is named twice"));
            }
        }
    }
    Ok(())
}

fn check_labels(key: &str, labels: &[String]) -> Result<(), String> {
    if labels.len() > 2 * LABELS_MAX {
        return Err(format!("{key}: at most {LABELS_MAX}"));
    }
    let is_odd =
        |l: &&String| l.is_empty() || l.len() > LABEL_BYTES_MAX || l.chars().any(char::is_control);
    match labels.iter().find(is_odd) {
        None => Ok(()),
        Some(odd) => Err(format!(
            "{key}: `{}` is not 1 to {LABEL_BYTES_MAX} bytes of one line",
            one_line(odd)
        )),
    }
}

/// `[node]` as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNode {
    id: Option<Spanned<u64>>,
}

/// `[cluster]` as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCluster {
    id: Option<Spanned<String>>,
    listen: Option<Spanned<String>>,
    control: Option<Spanned<String>>,
    insecure: Option<bool>,
    join: Option<bool>,
    read_leases: Option<bool>,
    spread: Option<Vec<String>>,
    replace_after: Option<Spanned<String>>,
    #[serde(default)]
    node: Vec<RawMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    id: Spanned<u64>,
    address: Spanned<String>,
    control: Spanned<String>,
    #[serde(default)]
    labels: Labels,
}

/// Understands both.
pub(crate) fn of_raw(
    source: &Source<'_>,
    node: Option<RawNode>,
    cluster: Option<RawCluster>,
) -> Result<ClusterConfig, ConfigError> {
    let raw = cluster.unwrap_or_default();
    let default = ClusterConfig::default();
    let id = |key: &str, id: Spanned<u64>| match (1..=NODE_ID_MAX).contains(id.get_ref()) {
        true => Ok(NodeId(*id.get_ref())),
        false => Err(source.line_error(
            &id.span(),
            format!("{key}: {} is not in 1..={NODE_ID_MAX}", id.get_ref()),
        )),
    };
    let needed = |key: &str, value: Spanned<String>| {
        let place = source.value(key, Some(value), |text| match text {
            "none" => Err(format!("{key} of a member is HOST:PORT")),
            text => ListenOn::from_str(text),
        })?;
        Ok::<_, ConfigError>(place.unwrap_or(ListenOn::None))
    };
    let members = raw.node.into_iter().map(|member| {
        Ok(Member {
            id: id("cluster.node.id", member.id)?,
            address: needed("cluster.node.address", member.address)?,
            control: needed("cluster.node.control", member.control)?,
            labels: member.labels,
        })
    });
    Ok(ClusterConfig {
        node: node
            .unwrap_or_default()
            .id
            .map(|number| id("node.id", number))
            .transpose()?,
        id: source.value("cluster.id", raw.id, parse_cluster)?,
        listen: source
            .value("cluster.listen", raw.listen, ListenOn::from_str)?
            .unwrap_or(default.listen),
        control: source
            .value("cluster.control", raw.control, ListenOn::from_str)?
            .unwrap_or(default.control),
        insecure: raw.insecure.unwrap_or(default.insecure),
        join: raw.join.unwrap_or(default.join),
        read_leases: raw.read_leases.unwrap_or(default.read_leases),
        spread: raw.spread.unwrap_or(default.spread),
        replace_after: source
            .value(
                "cluster.replace_after",
                raw.replace_after,
                ReplaceAfter::from_str,
            )?
            .unwrap_or(default.replace_after),
        members: members.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::path::Path;

    const UUID: &str = "ffffffff-ffff-4fff-bfff-ffffffffffff";

    fn of(text: &str) -> Result<Config, String> {
        let text = format!("data = '/d'\n{text}");
        Config::of_text(Path::new("/e.toml"), &text).map_err(|e| e.to_string())
    }

    fn members(ids: &[u64]) -> String {
        let member = |id: &u64| {
            format!("[[cluster.node]]\nid = {id}\naddress = 'h:{id}1'\ncontrol = 'h:{id}2'\n")
        };
        ids.iter().map(member).collect()
    }

    #[test]
    fn all_of_it_is_read() {
        let text = format!(
            "[node]\nid = 2\n[cluster]\nid = '{UUID}'\nlisten = '[::1]:7'\ncontrol = 'h:8'\n\
             insecure = true\nread_leases = false\nspread = ['rack']\nreplace_after = '90s'\n{}labels = {{ rack = 'r1' }}\n",
            members(&[1, 2, 3])
        );
        let cluster = of(&text).unwrap().cluster;
        assert_eq!(cluster.node.map(|n| n.0), Some(2));
        assert_eq!(cluster.id.unwrap().to_string(), UUID);
        assert_eq!(cluster.listen.to_string(), "[::1]:7");
        assert!(cluster.insecure && !cluster.read_leases);
        assert_eq!(cluster.spread, ["rack"]);
        assert_eq!(cluster.replace_after.to_string(), "90s");
        assert_eq!(cluster.members[2].labels["rack"], "r1");
        assert!(cluster.members[0].labels.is_empty());
        let others: Vec<_> = cluster.others(esker_base::NodeId(2)).collect();
        assert_eq!(others.len(), 2);
        assert_eq!(
            (others[1].id.0, others[1].control.to_string().as_str()),
            (3, "h:32")
        );
        assert!(!of("").unwrap().cluster.is_member());
    }

    #[test]
    fn what_cannot_work_is_refused_in_one_line() {
        let head = format!("[cluster]\nid = '{UUID}'\nlisten = 'h:7'\ncontrol = 'h:8'\n");
        for (text, part) in [
            (
                "[cluster]\nlisten = 'h:7'\n".to_string(),
                "cluster.listen and cluster.control: set both",
            ),
            ("[cluster]\njoin = true\n".to_string(), "cluster.join"),
            (format!("{head}join = true\n{}", members(&[1])), "name none"),
            (
                format!("[cluster]\nid = 'x'\n{}", members(&[1])),
                "cluster.id: `x` is not a UUID",
            ),
            (
                format!("[cluster]\nlisten = 'h:7'\n{}", members(&[1])),
                "cluster.id",
            ),
            (
                format!("[cluster]\nid = '{UUID}'\n{}", members(&[1])),
                "cluster.listen",
            ),
            (
                format!("{head}{}", members(&[1, 1])),
                "node 1 is named twice",
            ),
            (format!("{head}{}", members(&[0])), "cluster.node.id: 0"),
            (
                format!("[node]\nid = 9\n{head}{}", members(&[1, 2])),
                "this is node 9",
            ),
            (
                format!("{head}[[cluster.node]]\nid = 1\naddress = 'h:1'\ncontrol = 'h:1'\n"),
                "h:1 is named twice",
            ),
            (
                format!("{head}[[cluster.node]]\nid = 1\naddress = 'none'\ncontrol = 'h:1'\n"),
                "cluster.node.address",
            ),
            (format!("{head}[[cluster.node]]\nid = 1\n"), "address"),
            (
                format!("{head}{}labels = {{ zone = '' }}\n", members(&[1])),
                "labels",
            ),
            (
                format!("{head}spread = ['']\n{}", members(&[1])),
                "cluster.spread",
            ),
            (
                format!("{head}replace_after = '9s'\n{}", members(&[1])),
                "at least 10s",
            ),
            ("[node]\nid = 0\n".to_string(), "node.id: 0"),
            ("[cluster]\nsecure = 1\n".to_string(), "secure"),
        ] {
            let message = of(&text).unwrap_err();
            assert!(message.contains(part), "{part} in: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
