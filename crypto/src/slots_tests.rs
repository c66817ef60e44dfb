//! Slots under torn writes, damage and any bytes.

use super::*;
use crate::secret::{DataKey, KeyEncryptionKey};
use crate::wrap::KekId;
use proptest::prelude::*;

const STORE: StoreId = StoreId(77);

fn kek() -> KeyEncryptionKey {
    KeyEncryptionKey::filled(|bytes| bytes.fill(9))
}

/// A wrapped key of volume `volume`; another `nonce` gives another wrapping of the same DEK.
fn key(volume: u128, nonce: u8) -> WrappedKey {
    let dek = DataKey::filled(|bytes| bytes[..16].copy_from_slice(&volume.to_le_bytes()));
    let id = KekId::new("file:0123456789abcdef").unwrap();
    let (volume, key) = (VolumeId(volume), KeyId::new(1).unwrap());
    WrappedKey::seal(&kek(), id, &dek, volume, key, [nonce; 12])
}

fn blank() -> Vec<u8> {
    vec![0; AREA_BYTES]
}

fn write(device: &mut [u8], page: &PageWrite) {
    device[page.offset..page.offset + BLOCK_SIZE].copy_from_slice(&page.page);
}

fn carry_out(device: &mut [u8], overwrite: &Overwrite) {
    for page in &overwrite.0 {
        write(device, page);
    }
}

fn open(device: &[u8]) -> Opened {
    SlotArea::open(STORE, device).unwrap()
}

/// The keys on a device, which must need no mending.
fn keys(device: &[u8]) -> Vec<WrappedKey> {
    let opened = open(device);
    assert!(opened.mend.0.is_empty() && opened.lost.is_empty());
    opened.area.keys().map(|(_, key)| key.clone()).collect()
}

#[test]
fn keys_are_added_replaced_and_destroyed() {
    let mut device = blank();
    let mut area = open(&device).area;
    for volume in 0..20 {
        let (_, overwrite) = area.add(key(volume, 1)).unwrap();
        carry_out(&mut device, &overwrite);
    }
    let third = area.find(VolumeId(3), KeyId::new(1).unwrap()).unwrap();
    let overwrite = area.replace(third, key(3, 2));
    carry_out(&mut device, &overwrite);
    let fifth = area.find(VolumeId(5), KeyId::new(1).unwrap()).unwrap();
    let overwrite = area.destroy(fifth);
    carry_out(&mut device, &overwrite);

    let mut expected: Vec<_> = (0..20).map(|volume| key(volume, 1)).collect();
    expected[3] = key(3, 2);
    expected.remove(5);
    assert_eq!(keys(&device), expected);
    assert_eq!(open(&device).area, area);
    let (again, _) = area.add(key(99, 1)).unwrap();
    assert_eq!(again, fifth, "its slot is used again");
}

/// Nothing of a destroyed or replaced wrapping is left anywhere in the area.
#[test]
fn what_is_destroyed_is_nowhere_any_more() {
    let mut device = blank();
    let mut area = open(&device).area;
    let sealed = |key: &WrappedKey| key.encode()[49..].to_vec(); // nonce, DEK, tag
    let holds = |device: &[u8], key: &WrappedKey| {
        let sealed = sealed(key);
        device
            .windows(8)
            .any(|window| sealed.windows(8).any(|part| part == window))
    };
    let (index, overwrite) = area.add(key(1, 1)).unwrap();
    carry_out(&mut device, &overwrite);
    assert!(holds(&device, &key(1, 1)));
    let overwrite = area.replace(index, key(1, 2));
    carry_out(&mut device, &overwrite);
    assert!(!holds(&device, &key(1, 1)) && holds(&device, &key(1, 2)));
    let overwrite = area.destroy(index);
    carry_out(&mut device, &overwrite);
    assert!(!holds(&device, &key(1, 2)));
    assert_eq!(keys(&device), []);
}

/// A destruction that a crash cut in half is completed by the next opening.
#[test]
fn a_destruction_that_has_begun_is_completed() {
    let mut device = blank();
    let mut area = open(&device).area;
    let (index, overwrite) = area.add(key(1, 1)).unwrap();
    carry_out(&mut device, &overwrite);
    let overwrite = area.destroy(index);
    write(&mut device, &overwrite.0[0]);
    let opened = open(&device);
    assert_eq!(opened.area.keys().count(), 0);
    carry_out(&mut device, &opened.mend);
    assert_eq!(keys(&device), []);
}

#[test]
fn as_many_keys_as_there_are_slots() {
    let mut area = open(&blank()).area;
    for volume in 0..SLOTS_MAX {
        area.add(key(volume as u128, 1)).unwrap();
    }
    assert!(area.add(key(u128::MAX, 1)).is_none());
}

#[test]
#[should_panic(expected = "does not replace")]
fn a_key_is_replaced_by_itself_only() {
    let mut area = open(&blank()).area;
    let (index, _) = area.add(key(1, 1)).unwrap();
    area.replace(index, key(2, 1));
}

/// Either copy of every slot may be damaged, in any byte; both are told as lost and left as they are.
#[test]
fn one_damaged_copy_is_mended_and_two_are_told() {
    let mut good = blank();
    let mut area = open(&good).area;
    let (_, overwrite) = area.add(key(1, 1)).unwrap();
    carry_out(&mut good, &overwrite);
    let copies = [0, AREA_BYTES / 2];
    for byte in 0..SLOT_BYTES {
        for copy in copies {
            let mut device = good.clone();
            device[copy + byte] ^= 0x40;
            let opened = open(&device);
            assert_eq!(opened.area, area, "byte {byte}");
            carry_out(&mut device, &opened.mend);
            assert!(device == good);
        }
    }
    let mut device = good.clone();
    for copy in copies {
        device[copy + 100] ^= 1;
    }
    let opened = open(&device);
    assert_eq!(opened.lost, [SlotIndex(0)]);
    let mut area = opened.area;
    let before = device.clone();
    let (index, overwrite) = area.add(key(2, 1)).unwrap();
    assert_ne!(index, SlotIndex(0), "what was lost is not written over");
    carry_out(&mut device, &overwrite);
    for copy in copies {
        let slot = copy..copy + SLOT_BYTES;
        assert_eq!(device[slot.clone()], before[slot]);
    }
}

/// A copy that a misdirected write put to another slot, another copy or another store is not taken.
#[test]
fn a_copy_in_the_wrong_place_is_damage() {
    let mut device = blank();
    let mut area = open(&device).area;
    let (_, overwrite) = area.add(key(1, 1)).unwrap();
    carry_out(&mut device, &overwrite);
    let slot = device[..SLOT_BYTES].to_vec();
    let other = AREA_BYTES / 2;
    for at in [SLOT_BYTES, other + SLOT_BYTES] {
        let mut device = device.clone();
        device[at..at + SLOT_BYTES].copy_from_slice(&slot);
        assert_eq!(open(&device).area, area);
    }
    let mut both = device.clone();
    both[other..other + SLOT_BYTES].copy_from_slice(&slot);
    assert_eq!(open(&both).mend.0.len(), 1);
    let foreign = SlotArea::open(StoreId(78), &device).unwrap();
    assert_eq!((foreign.lost.len(), foreign.area.keys().count()), (1, 0));
}

#[test]
fn a_newer_version_is_refused_whole() {
    let mut device = blank();
    let mut area = open(&device).area;
    let (_, overwrite) = area.add(key(1, 1)).unwrap();
    carry_out(&mut device, &overwrite);
    device[4] = 2;
    device[CRC_AT..CRC_AT + 4].fill(0);
    let crc = crc32(&device[..SLOT_BYTES]);
    device[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    let refused = SlotArea::open(STORE, &device);
    assert_eq!(refused.err(), Some(SlotsError::Newer(2)));
}

/// One change, by numbers that the test draws.
#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Replace(u8, u8),
    Destroy(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..24).prop_map(Step::Add),
        3 => ((0u8..24), any::<u8>()).prop_map(|(v, n)| Step::Replace(v, n)),
        2 => (0u8..24).prop_map(Step::Destroy),
    ]
}

/// What a step asks for, when it can be done.
fn begin(area: &mut SlotArea, step: &Step) -> Option<Overwrite> {
    let one = KeyId::new(1).unwrap();
    let found = |area: &SlotArea, volume: u8| area.find(VolumeId(volume.into()), one);
    match *step {
        Step::Add(volume) if found(area, volume).is_none() => area
            .add(key(volume.into(), 0))
            .map(|(_, overwrite)| overwrite),
        Step::Add(_) => None,
        Step::Replace(volume, nonce) => {
            found(area, volume).map(|index| area.replace(index, key(volume.into(), nonce)))
        }
        Step::Destroy(volume) => found(area, volume).map(|index| area.destroy(index)),
    }
}

/// A page that a power cut met: each of its runs of `grain` bytes is as before or as it was to be.
fn tear(device: &mut [u8], page: &PageWrite, grain: usize, which: u64) {
    let before = &mut device[page.offset..page.offset + BLOCK_SIZE];
    let runs = before.chunks_mut(grain).zip(page.page.chunks(grain));
    for (run, (old, new)) in runs.enumerate() {
        if which >> (run % 64) & 1 == 1 {
            old.copy_from_slice(new);
        }
    }
}

/// Writes pages up to a cut in one of them; true when there was a cut.
fn cut_short(device: &mut [u8], pages: &[PageWrite], cut: usize, grain: usize, which: u64) -> bool {
    for (number, page) in pages.iter().enumerate() {
        if number == cut {
            tear(device, page, grain, which);
            return true;
        }
        write(device, page);
    }
    false
}

fn contents(area: &SlotArea) -> Vec<(SlotIndex, WrappedKey)> {
    area.keys().map(|(i, key)| (i, key.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any sequence of changes, the last of them cut short at any place, and mending cut short too: what
    /// is opened is the state before the last change or after it; other keys are there in either.
    #[test]
    fn a_torn_overwrite_leaves_before_or_after(
        steps in proptest::collection::vec(step(), 1..12),
        cut in 0usize..2,
        grain in prop_oneof![Just(1usize), Just(16), Just(512), Just(4096)],
        which: u64,
        mend_cut in 0usize..3,
        mend_which: u64,
    ) {
        let mut device = blank();
        let mut area = open(&device).area;
        let (last, earlier) = steps.split_last().expect("at least one");
        for step in earlier {
            if let Some(overwrite) = begin(&mut area, step) {
                carry_out(&mut device, &overwrite);
            }
        }
        let before = contents(&area);
        if let Some(overwrite) = begin(&mut area, last) {
            cut_short(&mut device, &overwrite.0, cut, grain, which);
        }
        let after = contents(&area);

        let opened = open(&device);
        prop_assert!(opened.lost.is_empty());
        let found = contents(&opened.area);
        prop_assert!(found == before || found == after, "{:?}", found);
        if cut == 1 {
            prop_assert_eq!(&found, &after, "the first page was written");
        }

        if cut_short(&mut device, &opened.mend.0, mend_cut, grain, mend_which) {
            let opened = open(&device);
            prop_assert!(opened.lost.is_empty());
            prop_assert_eq!(contents(&opened.area), found.clone());
            carry_out(&mut device, &opened.mend);
        }
        let mended = open(&device);
        prop_assert!(mended.mend.0.is_empty());
        prop_assert_eq!(contents(&mended.area), found);
    }

    /// Any bytes in any slots: no panic, and an area that can be used.
    #[test]
    fn no_bytes_make_opening_panic(
        pieces in proptest::collection::vec(
            (0..AREA_BYTES - 600, proptest::collection::vec(any::<u8>(), 1..600)),
            1..8,
        ),
    ) {
        let mut device = blank();
        for (at, bytes) in pieces {
            device[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        if let Ok(opened) = SlotArea::open(STORE, &device) {
            carry_out(&mut device, &opened.mend);
            let again = open(&device);
            prop_assert!(again.mend.0.is_empty());
            prop_assert_eq!(again.lost, opened.lost);
        }
    }
}
