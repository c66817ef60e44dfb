//! Wrapped keys and key slots: no bytes make decoding panic, and what decodes comes back from its own
//! encoding.

use crate::formats::seal;
use esker_base::{StoreId, VolumeId};
use esker_crypto::slots::{Overwrite, SlotArea, AREA_BYTES, SLOTS_MAX, SLOT_BYTES};
use esker_crypto::{DataKey, KekId, KeyEncryptionKey, KeyId, WrappedKey};
use esker_keys::keyring::{Keyring, Sealed};
use esker_keys::ttlv::Item;

/// The store that the slots of the corpus belong to.
const STORE: StoreId = StoreId(7);

/// A wrapped key.
pub(crate) fn wrapped_key(data: &[u8]) {
    let Ok(wrapped) = WrappedKey::decode(data) else {
        return;
    };
    assert!(wrapped.encode() == data, "a wrapped key has one encoding");
    let kek = KeyEncryptionKey::filled(|bytes| bytes.fill(3));
    _ = wrapped.open(&kek);
}

fn carry_out(device: &mut [u8], overwrite: &Overwrite) {
    for write in &overwrite.0 {
        device[write.offset..write.offset + write.page.len()].copy_from_slice(&write.page);
    }
}

/// Copies of slots, one of either kind in turn: as they are, and with their checksums mended.
pub(crate) fn key_slots(data: &[u8]) {
    let mut device = vec![0; AREA_BYTES];
    for mended in [false, true] {
        for (n, bytes) in data.chunks(SLOT_BYTES).take(16).enumerate() {
            let at = n / 2 * SLOT_BYTES + n % 2 * (AREA_BYTES / 2);
            let slot = &mut device[at..at + SLOT_BYTES];
            slot[..bytes.len()].copy_from_slice(bytes);
            if mended && bytes.len() > 12 {
                seal(slot, 8);
            }
        }
        let Ok(opened) = SlotArea::open(STORE, &device) else {
            continue;
        };
        let mut area = opened.area;
        carry_out(&mut device, &opened.mend);
        let again = SlotArea::open(STORE, &device).expect("it was opened before");
        assert!(again.mend.0.is_empty(), "what is mended is even");
        assert!(again.area == area && again.lost == opened.lost);
        assert!(area.keys().count() + opened.lost.len() <= SLOTS_MAX);
        let first = area.keys().next().map(|(index, _)| index);
        if let Some(index) = first {
            let destroyed = area.destroy(index);
            carry_out(&mut device, &destroyed);
            let again = SlotArea::open(STORE, &device).expect("it was opened before");
            assert!(again.area == area && again.mend.0.is_empty());
        }
    }
}

/// A keyring file, as it is and with its checksum mended.
pub(crate) fn keyring(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(sealed) = Sealed::decode(bytes) {
            assert!(sealed.encode()[..] == *bytes, "a keyring has one encoding");
            let key = KeyEncryptionKey::filled(|bytes| bytes.fill(3));
            _ = sealed.open(Some(&key));
            assert_eq!(sealed.open(None).is_ok(), sealed.kdf().is_none());
        }
    };
    check(data);
    if data.len() > 16 {
        let mut mended = data.to_vec();
        seal(&mut mended, 12);
        check(&mended);
    }
}

/// A message of KMIP.
pub(crate) fn ttlv(data: &[u8]) {
    if let Ok(item) = Item::decode(data) {
        assert!(item.encode()[..] == *data, "a message has one encoding");
    }
}

/// Keyrings to begin with: one that lies open.
pub(crate) fn keyring_seeds() -> Vec<Vec<u8>> {
    let mut ring = Keyring::new(None);
    let mut seeds = Vec::new();
    for created in 0..2 {
        ring.add(created).expect("room");
        let sealed = ring.seal(None).expect("no passphrase");
        seeds.push(sealed.encode().to_vec());
    }
    seeds
}

/// Messages to begin with.
pub(crate) fn ttlv_seeds() -> Vec<Vec<u8>> {
    let version = vec![Item::integer(0x42_006a, 1), Item::integer(0x42_006b, 2)];
    let header = Item::structure(0x42_0069, version);
    let name = Item::text(0x42_0094, "a key");
    let batch = vec![Item::enumeration(0x42_005c, 10), name];
    let batch = Item::structure(0x42_000f, batch);
    let message = Item::structure(0x42_0078, vec![header, batch.clone()]);
    vec![message.encode().to_vec(), batch.encode().to_vec()]
}

/// Wrapped keys to begin with, of both methods.
pub(crate) fn wrapped_seeds() -> Vec<Vec<u8>> {
    let kek = KeyEncryptionKey::filled(|bytes| bytes.fill(3));
    let dek = DataKey::filled(|bytes| bytes.fill(4));
    let id = KekId::new("file:0123456789abcdef").expect("a plain name");
    let (volume, key) = (VolumeId(9), KeyId::new(1).expect("not zero"));
    let sealed = WrappedKey::seal(&kek, id, &dek, volume, key, [5; 12]);
    let id = KekId::new("vault:transit/esker:v3").expect("a plain name");
    let provided = WrappedKey::provided(id, volume, key, b"vault:v3:abcd".to_vec());
    vec![sealed.encode(), provided.expect("short").encode()]
}

/// Slots to begin with: a key, one that another wrapping replaced, one that was destroyed.
pub(crate) fn slot_seeds() -> Vec<Vec<u8>> {
    let blank = vec![0; AREA_BYTES];
    let mut area = SlotArea::open(STORE, &blank).expect("blank").area;
    let mut device = blank;
    let keys = wrapped_seeds();
    let key = |n: usize| WrappedKey::decode(&keys[n]).expect("a seed");
    let (index, overwrite) = area.add(key(0)).expect("room");
    carry_out(&mut device, &overwrite);
    let mut seeds = vec![slots(&device)];
    let overwrite = area.replace(index, key(1));
    carry_out(
        &mut device,
        &Overwrite(overwrite.0.into_iter().take(1).collect()),
    );
    seeds.push(slots(&device));
    let overwrite = area.destroy(index);
    carry_out(&mut device, &overwrite);
    seeds.push(slots(&device));
    seeds
}

/// Both copies of the first slot.
fn slots(device: &[u8]) -> Vec<u8> {
    let second = &device[AREA_BYTES / 2..];
    [&device[..SLOT_BYTES], &second[..SLOT_BYTES]].concat()
}
