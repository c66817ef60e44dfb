//! A keyed MAC over what a checkpoint says of a volume.
//!
//! Who can write to a device can put an older block back together with the map entry that named it. Each
//! part is right by itself; what is not is that they go together with the rest. A MAC over the root shows
//! it. What the caller hashes into `root` decides what it vouches for: a hash that can be forged without a key
//! vouches for nothing.

use crate::derive;
use crate::secret::DataKey;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use esker_base::{GroupId, StoreId, VolumeId};
use std::fmt;

const KEY_SALT: &[u8] = b"esker root key 1";
const DOMAIN: &[u8] = b"esker root 2";

/// A MAC over a root: HMAC-SHA256, whole.
pub type RootMac = [u8; 32];

/// The key that vouches for the roots of a volume: HKDF-SHA256(DEK; "esker root key 1"; volume). It has
/// nothing in common with any block key.
pub struct RootKey(hmac::Key);

impl RootKey {
    /// The root key of a volume.
    #[must_use]
    pub fn derive(dek: &DataKey, volume: VolumeId) -> Self {
        let key = derive::key(KEY_SALT, dek.expose(), &[&volume.0.to_le_bytes()]);
        Self(hmac::Key::new(HMAC_SHA256, &key[..]))
    }

    /// The MAC over "esker root 2", store, group, and `root`.
    #[must_use]
    pub fn mac(&self, store: StoreId, group: GroupId, root: &[u8]) -> RootMac {
        let mut mac = RootMac::default();
        mac.copy_from_slice(self.of(store, group, root).as_ref());
        mac
    }

    /// Whether `mac` is the one over this, found out in constant time.
    #[must_use]
    pub fn vouches(&self, mac: &RootMac, store: StoreId, group: GroupId, root: &[u8]) -> bool {
        let right = self.mac(store, group, root);
        aws_lc_rs::constant_time::verify_slices_are_equal(&right, mac).is_ok()
    }

    fn of(&self, store: StoreId, group: GroupId, root: &[u8]) -> hmac::Tag {
        let mut message = hmac::Context::with_key(&self.0);
        message.update(DOMAIN);
        message.update(&store.0.to_le_bytes());
        message.update(&group.0.to_le_bytes());
        message.update(root);
        message.sign()
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::tests::count_from;

    const VOLUME: VolumeId = VolumeId(0x0011_2233_4455_4677_8899_aabb_ccdd_eeff);

    fn key() -> RootKey {
        let dek = DataKey::filled(count_from(0));
        RootKey::derive(&dek, VOLUME)
    }

    /// Computed apart with Python's `hmac`.
    #[test]
    fn the_mac_is_what_the_format_says() {
        let mac = key().mac(StoreId(5), GroupId(9), b"a root");
        let hex: String = mac.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "43cb65ab7d97bc3f5c43ab4491a07295bb3e263edb00ee015cf03b7386936032"
        );
    }

    #[test]
    fn it_vouches_for_this_root_of_this_group_alone() {
        let key = key();
        let mac = key.mac(StoreId(5), GroupId(9), b"a root");
        assert!(key.vouches(&mac, StoreId(5), GroupId(9), b"a root"));
        assert!(!key.vouches(&mac, StoreId(6), GroupId(9), b"a root"));
        assert!(!key.vouches(&mac, StoreId(5), GroupId(8), b"a root"));
        assert!(!key.vouches(&mac, StoreId(5), GroupId(9), b"a Root"));
        let mut forged = mac;
        forged[31] ^= 1;
        assert!(!key.vouches(&forged, StoreId(5), GroupId(9), b"a root"));
        let dek = DataKey::filled(|_| ());
        let other = RootKey::derive(&dek, VOLUME);
        assert!(!other.vouches(&mac, StoreId(5), GroupId(9), b"a root"));
    }
}
