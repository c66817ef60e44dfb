//! Identifiers. Each is a type of its own, so that one can't be passed for another.

use std::fmt;

macro_rules! id64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// The id made of 16 random bytes, in the layout of a version 4 UUID (RFC 9562).
            #[must_use]
            pub fn from_random(random: u128) -> Self {
                let version = (random & !(0xf << 76)) | (0x4 << 76);
                Self((version & !(0x3 << 62)) | (0x2 << 62))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let h = format!("{:032x}", self.0);
                write!(f, "{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
            }
        }
    };
}

id128!(/// A cluster. Written into every store of it.
    ClusterId);
id128!(/// A store: one device or file. Never reused.
    StoreId);
id128!(/// A volume, for ever; names can change.
    VolumeId);
id64!(/// A node: one process that serves stores.
    NodeId);
id64!(/// A Raft group. One volume is one group.
    GroupId);
id64!(/// A peer's identity in a group. Never zero and never reused: a blank disk gets a new one.
    ReplicaId);
id64!(/// Raft's term.
    Term);
id64!(/// Position in a group's Raft log.
    RaftIndex);
id64!(/// Position in a store's log: the number of a record. Never reused.
    Seq);
id64!(/// A client session, for deduplicating retries; unique within a volume.
    SessionId);
id64!(/// A connection of a client to this node; never reused while the process lives.
    ConnId);
id64!(/// An outstanding disk operation; never reused while the process lives.
    IoId);

/// A store of a node: where a replica lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// The store's index in it.
    pub store: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.store {
            0 => write!(f, "{}", self.node),
            store => write!(f, "{}/{store}", self.node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_has_version_and_variant() {
        let text = VolumeId::from_random(u128::MAX).to_string();
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
