//! The members of a cluster as they are agreed on, and this node's own note of them, `DIR/members.json`.
//!
//! They are labels of a small volume of the cluster's ([`METADATA_VOLUME`]), one for each node, so that its log decides in
//! which order changes take effect, and its copies go where nodes are as those of any volume do. Each change raises the
//! revision. Every node keeps the newest list that it has heard of, and goes by it from its start on: volumes that are open
//! need no majority of that group, and no node that starts does.
//!
//! [`METADATA_VOLUME`]: esker_base::limits::METADATA_VOLUME

use super::config::{check_members, Member, MEMBERS_MAX};
use super::placement::Labels;
use crate::config::ListenOn;
use crate::data_dir::write_durably;
use crate::error::DaemonError;
use crate::identity::NODE_ID_MAX;
use esker_api::cluster as v1;
use esker_base::{limits, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const FILE: &str = "members.json";
const VERSION: u32 = 1;
/// Label of a member, before its id.
const NODE_LABEL: &str = "esker.node.";
/// Label with the number of the last change.
const REVISION_LABEL: &str = "esker.members.revision";
/// Label with the highest id that a member ever had.
const LAST_ID_LABEL: &str = "esker.members.last";

/// Ids from here on are those that nodes draw for themselves.
const DRAWN_MIN: u64 = 1 << 20;

/// Labels of the metadata volume that a change sets, or takes away.
pub(super) type Changes = BTreeMap<String, Option<String>>;

/// The members of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Which of the changes is the last one; 0 before there is a cluster.
    pub revision: u64,
    /// They, by id.
    pub members: Vec<Member>,
    /// The highest id that one ever had, drawn ones aside; 0 when it is not known here.
    last_id: u64,
}

/// A member as it is written, without its id.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    address: String,
    control: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
}

/// `members.json` as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: u32,
    revision: u64,
    members: BTreeMap<u64, RawMember>,
}

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// With id 0 it gets the next one that nobody ever had. One that is a member gets other labels, if it is given some.
    Add(Member),
    Remove(NodeId),
}

impl Agreed {
    /// A cluster of one node.
    ///
    /// # Errors
    /// One line: when it cannot be written down.
    pub fn first(member: Member) -> Result<Self, String> {
        check_fits(&member)?;
        let last_id = counted(member.id);
        Self::checked(1, vec![member], last_id)
    }

    /// What the labels of the metadata volume say.
    ///
    /// # Errors
    /// One line.
    pub fn of_labels(labels: &Labels) -> Result<Self, String> {
        let number = |key: &str| {
            let text = labels.get(key).ok_or_else(|| format!("no label {key}"))?;
            let number = text.parse::<u64>();
            number.map_err(|_| format!("{key}: `{text}` is no number"))
        };
        let mut members = Vec::new();
        for (key, text) in labels {
            let Some(id) = key.strip_prefix(NODE_LABEL) else {
                continue;
            };
            let id = id.parse().map_err(|_| format!("no node's id: {key}"))?;
            let raw = serde_json::from_str(text).map_err(|e| format!("{key}: {e}"))?;
            members.push(member(id, raw)?);
        }
        Self::checked(number(REVISION_LABEL)?, members, number(LAST_ID_LABEL)?)
    }

    fn checked(revision: u64, mut members: Vec<Member>, last_id: u64) -> Result<Self, String> {
        if members.len() > MEMBERS_MAX {
            return Err(format!("{} members; at most {MEMBERS_MAX}", members.len()));
        }
        check_members(&members)?;
        members.sort_by_key(|member| member.id);
        Ok(Self {
            revision,
            members,
            last_id,
        })
    }

    /// What another node says.
    ///
    /// # Errors
    /// One line.
    pub fn of_told(told: &v1::MemberList) -> Result<Self, String> {
        let members = told.members.iter().map(told_member);
        Self::checked(told.revision, members.collect::<Result<_, _>>()?, 0)
    }

    /// To tell it to another node.
    pub fn to_told(&self) -> v1::MemberList {
        v1::MemberList {
            revision: self.revision,
            members: self.members.iter().map(to_told).collect(),
        }
    }

    /// The labels of a metadata volume that says this.
    pub fn labels(&self) -> Labels {
        let nodes = self.members.iter().map(node_label);
        let mut labels: Labels = nodes.collect();
        labels.insert(REVISION_LABEL.into(), self.revision.to_string());
        labels.insert(LAST_ID_LABEL.into(), self.last_id.to_string());
        labels
    }

    /// The label that says of which revision it is: what a change of it expects.
    pub(super) fn mark(&self) -> (String, String) {
        (REVISION_LABEL.into(), self.revision.to_string())
    }

    /// Tells lists of one revision apart.
    pub fn crc(&self) -> u32 {
        let text = serde_json::to_string(&self.raw()).unwrap_or_default();
        crc32fast::hash(text.as_bytes())
    }

    /// The member of this id.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == node)
    }

    /// What a change does, and how it is written: nothing, where it has been made before.
    ///
    /// # Errors
    /// One line: when what comes of it cannot be.
    pub(super) fn change(&self, change: &Change) -> Result<Option<(Self, Changes)>, String> {
        let mut next = self.clone();
        match change {
            Change::Add(member) => {
                let mut member = member.clone();
                let known = self.members.iter().find(|m| m.control == member.control);
                if member.id.0 == 0 {
                    member.id = known.map_or(NodeId(self.last_id + 1), |known| known.id);
                    // Of nodes that drew theirs.
                    while known.is_none() && self.member(member.id).is_some() {
                        member.id.0 += 1;
                    }
                }
                if let Some(old) = self.member(member.id) {
                    if old.control != member.control {
                        let (id, at) = (member.id, &old.control);
                        return Err(format!(
                            "node {id} is the one at {at} already: remove that one first (`esker node remove {id}`)"
                        ));
                    }
                    if member.labels.is_empty() {
                        member.labels.clone_from(&old.labels);
                    }
                    if *old == member {
                        return Ok(None);
                    }
                    next.members.retain(|other| other.id != member.id);
                }
                check_fits(&member)?;
                next.last_id = next.last_id.max(counted(member.id));
                next.members.push(member);
            }
            Change::Remove(node) => {
                if self.member(*node).is_none() {
                    return Ok(None);
                }
                next.members.retain(|member| member.id != *node);
                if next.members.is_empty() {
                    return Err(format!("node {node} is the only one"));
                }
            }
        }
        next = Self::checked(self.revision + 1, next.members, next.last_id)?;
        let changes = next.changes_from(self);
        Ok(Some((next, changes)))
    }

    /// The same members as a change of their own, later than another one: so that whoever holds that other one takes these.
    pub(super) fn above(&self, revision: u64) -> (Self, Changes) {
        let mut next = self.clone();
        next.revision = revision.max(self.revision) + 1;
        let changes = next.changes_from(self);
        (next, changes)
    }

    fn changes_from(&self, before: &Self) -> Changes {
        let (old, new) = (before.labels(), self.labels());
        let gone = old.keys().filter(|key| !new.contains_key(*key));
        let mut changes: Changes = gone.map(|key| (key.clone(), None)).collect();
        let differs = |(key, value): &(&String, &String)| old.get(*key) != Some(*value);
        let set = new.iter().filter(differs);
        changes.extend(set.map(|(key, value)| (key.clone(), Some(value.clone()))));
        changes
    }

    fn raw(&self) -> Raw {
        let raw = |member: &Member| (member.id.0, raw_member(member));
        Raw {
            version: VERSION,
            revision: self.revision,
            members: self.members.iter().map(raw).collect(),
        }
    }
}

/// That a member can be written into a label.
fn check_fits(member: &Member) -> Result<(), String> {
    let (bytes, most) = (node_label(member).1.len(), limits::LABEL_BYTES_MAX);
    match bytes > most {
        true => Err(format!(
            "its addresses and labels take {bytes} bytes; at most {most}"
        )),
        false => Ok(()),
    }
}

/// An id that others are counted on from: one that a node has drawn is far above all that are ever given.
fn counted(node: NodeId) -> u64 {
    match node.0 < DRAWN_MIN {
        true => node.0,
        false => 0,
    }
}

fn raw_member(member: &Member) -> RawMember {
    RawMember {
        address: member.address.to_string(),
        control: member.control.to_string(),
        labels: member.labels.clone(),
    }
}

fn node_label(member: &Member) -> (String, String) {
    let text = serde_json::to_string(&raw_member(member));
    (
        format!("{NODE_LABEL}{}", member.id),
        text.unwrap_or_default(),
    )
}

fn member(id: u64, raw: RawMember) -> Result<Member, String> {
    if !(1..=NODE_ID_MAX).contains(&id) {
        return Err(format!("{id} is no node's id"));
    }
    Ok(Member {
        id: NodeId(id),
        address: place(&raw.address)?,
        control: place(&raw.control)?,
        labels: raw.labels,
    })
}

/// Where a member is reached: a host that means the same everywhere, and a port.
///
/// # Errors
/// One line.
pub(super) fn place(text: &str) -> Result<ListenOn, String> {
    let on = ListenOn::from_str(text)?;
    let ListenOn::Address { host, port } = &on else {
        return Err("an address that others reach is HOST:PORT".into());
    };
    let is_any = host
        .parse::<std::net::IpAddr>()
        .is_ok_and(|ip| ip.is_unspecified());
    match is_any || *port == 0 {
        true => Err(format!(
            "others cannot reach `{text}`: say under which address and port they do"
        )),
        false => Ok(on),
    }
}

pub(super) fn to_told(member: &Member) -> v1::MemberNode {
    v1::MemberNode {
        node: member.id.0,
        address: member.address.to_string(),
        control: member.control.to_string(),
        labels: member.labels.clone(),
    }
}

/// A member that may have no id yet.
pub(super) fn told_new(told: &v1::MemberNode) -> Result<Member, String> {
    let mut known = told.clone();
    known.node = known.node.max(1);
    let id = NodeId(told.node);
    told_member(&known).map(|member| Member { id, ..member })
}

fn told_member(told: &v1::MemberNode) -> Result<Member, String> {
    let raw = RawMember {
        address: told.address.clone(),
        control: told.control.clone(),
        labels: told.labels.clone(),
    };
    member(told.node, raw)
}

/// Where this node keeps what it heard last.
#[derive(Clone, Debug)]
pub struct Note(PathBuf);

impl Note {
    /// In this node's folder.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        Self(data.to_path_buf())
    }

    /// What is there; none when there is nothing.
    ///
    /// # Errors
    /// When it cannot be read or understood: without it no other node would be found.
    pub fn load(&self) -> Result<Option<Agreed>, DaemonError> {
        let path = self.0.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(DaemonError::file("read", &path)(e)),
        };
        of_bytes(&bytes).map(Some).map_err(|reason| {
            let path = path.display();
            DaemonError::Cluster(format!(
                "{path}: {reason}; put another member's in its place"
            ))
        })
    }

    /// Keeps it: whole or not at all, and durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, agreed: &Agreed) -> Result<(), DaemonError> {
        let path = self.0.join(FILE);
        let text = serde_json::to_string_pretty(&agreed.raw()).unwrap_or_default();
        write_durably(&self.0, FILE, &text).map_err(DaemonError::file("write", &path))
    }
}

fn of_bytes(bytes: &[u8]) -> Result<Agreed, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if raw.version != VERSION {
        return Err(format!(
            "it is of version {}, and this eskerd reads {VERSION}",
            raw.version
        ));
    }
    let members = raw.members.into_iter().map(|(id, raw)| member(id, raw));
    Agreed::checked(raw.revision, members.collect::<Result<_, _>>()?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> Member {
        Member {
            id: NodeId(id),
            address: place(&format!("10.0.0.{id}:1")).unwrap(),
            control: place(&format!("10.0.0.{id}:2")).unwrap(),
            labels: Labels::from([("zone".into(), format!("z{id}"))]),
        }
    }

    fn changed(agreed: &Agreed, change: &Change) -> Agreed {
        let (next, changes) = agreed.change(change).unwrap().unwrap();
        let mut labels = agreed.labels();
        for (key, value) in changes {
            match value {
                Some(value) => drop(labels.insert(key, value)),
                None => drop(labels.remove(&key)),
            }
        }
        assert_eq!(Agreed::of_labels(&labels).unwrap(), next);
        next
    }

    #[test]
    fn members_come_and_go_and_ids_are_not_given_twice() {
        let one = Agreed::first(node(7)).unwrap();
        let any = |id| Member {
            id: NodeId(0),
            ..node(id)
        };
        let two = changed(&one, &Change::Add(any(9)));
        assert_eq!((two.revision, two.members[1].id), (2, NodeId(8)));
        let three = changed(&two, &Change::Add(node(3)));
        assert_eq!(
            three.members.iter().map(|m| m.id.0).collect::<Vec<_>>(),
            [3, 7, 8]
        );
        let back = changed(&three, &Change::Remove(NodeId(8)));
        assert_eq!((back.revision, back.members.len()), (4, 2));
        let drawn = Agreed::first(Member {
            id: NodeId(NODE_ID_MAX - 1),
            ..node(1)
        })
        .unwrap();
        let first = changed(&drawn, &Change::Add(any(2)));
        assert_eq!(first.members[0].id, NodeId(1));
        // Not 8, which another node was.
        assert_eq!(
            changed(&back, &Change::Add(any(9))).members[2].id,
            NodeId(9)
        );
    }

    #[test]
    fn what_was_done_is_not_done_again() {
        let two = changed(&Agreed::first(node(1)).unwrap(), &Change::Add(node(2)));
        assert_eq!(two.change(&Change::Add(node(2))), Ok(None));
        let any = Member {
            id: NodeId(0),
            ..node(2)
        };
        assert_eq!(two.change(&Change::Add(any)), Ok(None));
        let bare = Member {
            labels: Labels::new(),
            ..node(2)
        };
        assert_eq!(two.change(&Change::Add(bare)), Ok(None), "labels stay");
        let moved = Member {
            labels: Labels::from([("zone".into(), "other".into())]),
            ..node(2)
        };
        let after = changed(&two, &Change::Add(moved));
        assert_eq!(after.members[1].labels["zone"], "other");
        assert_eq!((after.members.len(), after.revision), (2, 3));
        assert_eq!(two.change(&Change::Remove(NodeId(5))), Ok(None));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let two = changed(&Agreed::first(node(1)).unwrap(), &Change::Add(node(2)));
        let refused = |member: Member| two.change(&Change::Add(member)).unwrap_err();
        let other = Member {
            id: NodeId(2),
            ..node(3)
        };
        assert!(refused(other).contains("node 2 is the one at 10.0.0.2:2 already"));
        let other = Member {
            id: NodeId(3),
            ..node(2)
        };
        assert!(refused(other).contains("named twice"));
        let mut long = node(3);
        long.labels.insert("x".into(), "y".repeat(127));
        long.labels.insert("z".into(), "y".repeat(127));
        assert!(refused(long).contains("bytes; at most 256"));
        let last = Agreed::first(node(1)).unwrap();
        let gone = last.change(&Change::Remove(NodeId(1))).unwrap_err();
        assert!(gone.contains("the only one"), "{gone}");
        // What could not be read again is not written either.
        let empty = Labels::from([("zone".into(), String::new())]);
        let twice = Member {
            control: node(1).address,
            ..node(1)
        };
        for (odd, part) in [
            (
                Member {
                    labels: empty,
                    ..node(1)
                },
                "labels",
            ),
            (twice, "named twice"),
        ] {
            assert!(Agreed::first(odd).unwrap_err().contains(part), "{part}");
        }
        for (text, part) in [
            ("0.0.0.0:1", "cannot reach"),
            ("h:0", "cannot reach"),
            ("none", "HOST:PORT"),
        ] {
            assert!(place(text).unwrap_err().contains(part), "{text}");
        }
    }

    #[test]
    fn the_most_members_fit() {
        let mut agreed = Agreed::first(node(1)).unwrap();
        for id in 2..=MEMBERS_MAX as u64 {
            agreed = changed(&agreed, &Change::Add(node(id)));
        }
        assert!(agreed.labels().len() <= limits::METADATA_LABELS_MAX);
        let more = Member {
            control: place("h:9").unwrap(),
            ..node(255)
        };
        assert!(agreed
            .change(&Change::Add(more))
            .unwrap_err()
            .contains("at most 64"));
    }

    #[test]
    fn a_list_is_told_and_noted_as_it_is() {
        let two = changed(&Agreed::first(node(1)).unwrap(), &Change::Add(node(2)));
        let heard = Agreed::of_told(&two.to_told()).unwrap();
        assert_eq!(
            (heard.revision, &heard.members, heard.crc()),
            (2, &two.members, two.crc())
        );
        let (later, _) = two.above(9);
        assert_eq!((later.revision, &later.members), (10, &two.members));
        assert_ne!(later.crc(), two.crc());

        let folder = tempfile::tempdir().unwrap();
        let note = Note::new(folder.path());
        assert_eq!(note.load().unwrap(), None);
        note.save(&two).unwrap();
        assert_eq!(note.load().unwrap(), Some(heard));
        for text in [
            "",
            "{}",
            r#"{"version":2,"revision":1,"members":{}}"#,
            r#"{"version":1,"revision":1,"members":{"0":{"address":"h:1","control":"h:2"}}}"#,
        ] {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            let message = note.load().unwrap_err().to_string();
            assert!(message.contains("members.json"), "{message}");
        }
    }
}
