//! `docs/format.md` is held against the encoders of key slots and wrapped keys.
#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::{StoreId, VolumeId};
use esker_crypto::slots::{SlotArea, AREA_BYTES, SLOT_BYTES};
use esker_crypto::{DataKey, KekId, KeyEncryptionKey, KeyId, WrappedKey};
use std::collections::BTreeMap;

const STORE: StoreId = StoreId(0x1111_2222_3333_4444_5555_6666_7777_8888);
const VOLUME: VolumeId = VolumeId(0x99aa_bbcc_ddee_ff00_1234_5678_9abc_def0);

/// The rows of a section: fields with what stands at their place in `bytes`.
fn told(section: &str, bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let text = include_str!("../../docs/format.md");
    let title = format!("### {section}\n");
    let (_, text) = text.split_once(&title).expect("the section");
    let table = text.lines().take_while(|line| !line.starts_with('#'));
    let field = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (at, size): (usize, usize) = (cells.get(1)?.parse().ok()?, cells.get(2)?.parse().ok()?);
        Some((cells[3].to_owned(), bytes[at..at + size].to_vec()))
    };
    table.filter_map(field).collect()
}

fn wrapped(volume: VolumeId, key: u32) -> WrappedKey {
    let kek = KeyEncryptionKey::filled(|bytes| bytes.fill(1));
    let dek = DataKey::filled(|bytes| bytes.fill(2));
    let id = KekId::new("file:0123456789abcdef").unwrap();
    WrappedKey::seal(&kek, id, &dek, volume, KeyId::new(key).unwrap(), [3; 12])
}

fn expected(fields: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
    let fields = fields.iter();
    fields.map(|(f, v)| ((*f).to_owned(), v.to_vec())).collect()
}

#[test]
fn a_wrapped_key_is_as_the_document_says() {
    let bytes = wrapped(VOLUME, 0x0708_090a).encode();
    let fields = expected(&[
        ("version", &1u16.to_le_bytes()),
        ("method", &[1]),
        ("key", &0x0708_090au32.to_le_bytes()),
        ("volume", &VOLUME.0.to_le_bytes()),
        ("kek_length", &21u16.to_le_bytes()),
        ("body_length", &60u16.to_le_bytes()),
    ]);
    assert_eq!(told("wrapped key", &bytes), fields);
    assert_eq!(bytes[28..49], *b"file:0123456789abcdef");
    assert_eq!((&bytes[49..61], bytes.len()), (&[3; 12][..], 28 + 21 + 60));
}

#[test]
fn a_key_slot_is_as_the_document_says() {
    let blank = vec![0; AREA_BYTES];
    let mut area = SlotArea::open(STORE, &blank).unwrap().area;
    // The last of several, so that its place is told from the first one's.
    let mut pages = Vec::new();
    for n in 0..10u8 {
        let key = wrapped(VolumeId(n.into()), 1);
        let (index, overwrite) = area.add(key.clone()).unwrap();
        let again = area.replace(index, key);
        pages = overwrite.0.into_iter().chain(again.0).skip(2).collect();
    }
    let offsets: Vec<usize> = pages.iter().map(|page| page.offset).collect();
    assert_eq!(offsets, [4096, 4096 + AREA_BYTES / 2]);
    let mut content = wrapped(VolumeId(9), 1).encode();
    let length = u16::try_from(content.len()).unwrap();
    content.resize(472, 0);
    for (copy, page) in (0u8..).zip(&pages) {
        let slot = &page.page[SLOT_BYTES..2 * SLOT_BYTES];
        let mut sealed = slot.to_vec();
        sealed[8..12].fill(0);
        let fields = expected(&[
            ("magic", b"ESKY"),
            ("version", &1u16.to_le_bytes()),
            ("state", &[1]),
            ("copy", &[copy]),
            ("crc", &esker_base::checksum::crc32(&sealed).to_le_bytes()),
            ("slot", &9u16.to_le_bytes()),
            ("length", &length.to_le_bytes()),
            ("store", &STORE.0.to_le_bytes()),
            ("sequence", &2u64.to_le_bytes()),
            ("key", &content),
        ]);
        assert_eq!(told("key slot", slot), fields);
    }
    let end = area.destroy(area.find(VolumeId(9), KeyId::new(1).unwrap()).unwrap());
    let slot = &end.0[0].page[SLOT_BYTES..2 * SLOT_BYTES];
    let fields = told("key slot", slot);
    assert_eq!(
        (&fields["state"][..], &fields["length"][..]),
        (&[2][..], &[0, 0][..])
    );
    assert!(fields["key"].iter().all(|byte| *byte == 0));
}
