//! What the owner of a certificate may do, as the certificate itself says it: names of the kind URI
//! among its subject's alternative names.
//!
//! | name | gives |
//! |---|---|
//! | `urn:esker:role:ROLE` | administration over TCP: `viewer`, `operator` or `admin` |
//! | `urn:esker:volume:PATTERN` | the volumes that match, over NBD; `*` stands for any characters |
//! | `urn:esker:node:ID` | being that node of the cluster, towards the others |
//!
//! A certificate without such names gives nothing.

use crate::error::KeyError;
use esker_base::NodeId;
use std::fmt;
use std::str::FromStr;
use x509_parser::extensions::GeneralName;

const ROLE: &str = "urn:esker:role:";
const VOLUME: &str = "urn:esker:volume:";
const NODE: &str = "urn:esker:node:";
/// Largest number of a node: what a JSON reader that holds numbers as doubles keeps whole.
pub const NODE_ID_MAX: u64 = (1 << 53) - 1;
/// Patterns of one certificate.
pub const PATTERNS_MAX: usize = 64;
/// Longest pattern, in bytes: that of a volume's name.
pub const PATTERN_BYTES_MAX: usize = 128;

/// What an administrator may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdminRole {
    /// Looks: lists, states, space, differences.
    Viewer,
    /// Daily work: also creates and changes volumes, takes, deletes and goes back to snapshots, clones,
    /// scrubs, rotates keys.
    Operator,
    /// Everything: also deletes volumes, accepts losses, changes the cluster.
    Admin,
}

impl AdminRole {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for AdminRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AdminRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Viewer, Self::Operator, Self::Admin];
        let found = all.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is not viewer, operator nor admin"))
    }
}

/// What a certificate gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Administration; of several, the highest.
    pub role: Option<AdminRole>,
    /// Patterns of volumes.
    pub volumes: Vec<String>,
    /// The node that its owner is.
    pub node: Option<NodeId>,
}

impl Rights {
    /// The names that say it.
    ///
    /// # Errors
    /// When there are too many patterns, or one can match no volume.
    pub fn names(&self) -> Result<Vec<String>, KeyError> {
        if self.volumes.len() > PATTERNS_MAX {
            return Err(KeyError::config(format!("at most {PATTERNS_MAX} patterns")));
        }
        if let Some(odd) = self.volumes.iter().find(|pattern| !is_pattern(pattern)) {
            return Err(KeyError::config(format!(
                "`{odd}` is no pattern for volumes: 1 to {PATTERN_BYTES_MAX} of A-Z a-z 0-9 . _ - and *"
            )));
        }
        let role = self.role.iter().map(|role| format!("{ROLE}{role}"));
        let volumes = self.volumes.iter().map(|name| format!("{VOLUME}{name}"));
        if let Some(odd) = self.node.filter(|node| !is_node(node.0)) {
            return Err(KeyError::config(format!(
                "{odd} is no number of a node: 1 to {NODE_ID_MAX}"
            )));
        }
        let node = self.node.iter().map(|node| format!("{NODE}{node}"));
        Ok(role.chain(volumes).chain(node).collect())
    }

    /// What a certificate says, in DER.
    ///
    /// # Errors
    /// When it cannot be read, or names a role, a pattern or a node that there is not, or two nodes:
    /// somebody meant something by it.
    pub fn of(certificate: &[u8]) -> Result<Self, KeyError> {
        let bad = |_| KeyError::denied("the certificate cannot be read");
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| KeyError::denied("the certificate cannot be read"))?;
        let names = parsed.subject_alternative_name().map_err(bad)?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let mut rights = Self::default();
        for name in names {
            let GeneralName::URI(uri) = name else {
                continue;
            };
            let odd =
                || KeyError::denied(format!("the certificate names {uri}, which means nothing"));
            if let Some(role) = uri.strip_prefix(ROLE) {
                let role = role.parse().map_err(|_| odd())?;
                rights.role = rights.role.max(Some(role));
            } else if let Some(pattern) = uri.strip_prefix(VOLUME) {
                if !is_pattern(pattern) || rights.volumes.len() == PATTERNS_MAX {
                    return Err(odd());
                }
                rights.volumes.push(pattern.to_owned());
            } else if let Some(number) = uri.strip_prefix(NODE) {
                let node = node_of(number).filter(|_| rights.node.is_none());
                rights.node = Some(node.ok_or_else(odd)?);
            }
        }
        Ok(rights)
    }
}

const fn is_node(number: u64) -> bool {
    number >= 1 && number <= NODE_ID_MAX
}

/// A node's number in the one way in which it is written.
fn node_of(text: &str) -> Option<NodeId> {
    let number: u64 = text.parse().ok()?;
    (is_node(number) && number.to_string() == text).then_some(NodeId(number))
}

fn is_pattern(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-*".contains(&b);
    (1..=PATTERN_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
}
