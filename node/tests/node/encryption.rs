//! Encrypted volumes: what reaches the device, what opens again, and what does not.

use crate::harness::{request, World, MIB, READ, TRIM, WRITE};
use esker_base::ConnId;
use esker_crypto::slots::SlotArea;
use esker_crypto::{DataKey, KekId, KeyEncryptionKey, KeyName, WrappedKey};
use esker_engine::keys::{KEY_SLOTS_BYTES, KEY_SLOTS_OFFSET};
use esker_node::admin::{AdminReply, AdminRequest, KeyReport, VolumeReport, VolumeState};
use esker_node::{Event, KeyAnswer, KeyAsk};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const BLOCK: usize = 4096;
const EIO: [u8; 4] = [0, 0, 0, 5];

pub(crate) fn dek(name: KeyName, salt: u8) -> DataKey {
    let first = name.volume.0.to_le_bytes()[0];
    let number = name.key.get().to_le_bytes()[0];
    DataKey::filled(|bytes| {
        bytes.fill(first ^ salt);
        bytes[0] = number;
    })
}

pub(crate) fn wrapped(name: KeyName, version: u8) -> WrappedKey {
    let kek = KeyEncryptionKey::filled(|bytes| bytes.fill(version));
    let id = KekId::new(&format!("file:{version}")).unwrap();
    WrappedKey::seal(
        &kek,
        id,
        &dek(name, 0),
        name.volume,
        name.key,
        [version; 12],
    )
}

impl World {
    /// The provider answers everything that was asked, with these keys.
    pub(crate) fn provide(&mut self, salt: u8) {
        for ask in std::mem::take(&mut self.key_asks) {
            let answer = match ask {
                KeyAsk::Make(name) => {
                    KeyAnswer::Made(name, Ok((dek(name, salt), wrapped(name, 1))))
                }
                KeyAsk::Open(wrapped) => {
                    let name = wrapped.name();
                    KeyAnswer::Opened(name, Ok(dek(name, salt)))
                }
                KeyAsk::Rewrap(old) => {
                    let name = old.name();
                    KeyAnswer::Rewrapped(name, Ok(wrapped(name, 2)))
                }
            };
            self.events.push(Event::Keys(answer));
        }
    }

    /// As [`World::ask`], with a provider.
    pub(crate) fn ask_with_keys(&mut self, request: AdminRequest) -> AdminReply {
        let number = self.begin(request);
        for _ in 0..100 {
            self.rest_a_little();
            self.provide(0);
            if let Some(answer) = self.answer(number) {
                return answer.unwrap();
            }
        }
        panic!("an operator is never answered")
    }

    pub(crate) fn create_encrypted(&mut self, name: &str) {
        self.ask_with_keys(create(name));
    }

    pub(crate) fn restart(&mut self, salt: u8) {
        self.rest_a_little();
        self.reopen();
        self.rest_a_little();
        self.provide(salt);
        self.rest_a_little();
    }

    pub(crate) fn open(&mut self, number: u64, name: &str) -> ConnId {
        let told = self.go(number, name, &[]);
        assert_eq!(told.last().map(|(kind, _)| *kind), Some(1), "{told:?}");
        ConnId(number)
    }

    pub(crate) fn write(&mut self, conn: ConnId, offset: usize, length: usize, fill: u8) {
        let done = self.answered(conn, request(WRITE, offset, length, fill));
        assert_eq!(done, [(0, vec![0; 4])]);
    }

    /// What is read; none when that fails.
    pub(crate) fn read(&mut self, conn: ConnId, offset: usize, length: usize) -> Option<Vec<u8>> {
        let chunks = self.answered(conn, request(READ, offset, length, 0));
        let mut data = vec![0; length];
        for (kind, bytes) in chunks {
            match kind {
                1 => {
                    let at = u64::from_be_bytes(bytes[..8].try_into().unwrap());
                    let at = usize::try_from(at).unwrap() - offset;
                    data[at..at + bytes.len() - 8].copy_from_slice(&bytes[8..]);
                }
                2 => {}
                _ => {
                    assert!(bytes.starts_with(&EIO), "{kind}: {bytes:?}");
                    return None;
                }
            }
        }
        Some(data)
    }

    /// Pages of the device that are not zero, by place.
    pub(crate) fn pages(&self) -> BTreeMap<usize, Vec<u8>> {
        let pages = self.device.chunks(BLOCK).enumerate();
        let used = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
        used.map(|(n, page)| (n * BLOCK, page.to_vec())).collect()
    }

    /// Places of pages that were written since, and look random.
    pub(crate) fn sealed_since(&self, before: &BTreeMap<usize, Vec<u8>>) -> Vec<usize> {
        let pages = self.pages();
        let new = pages
            .iter()
            .filter(|(at, page)| before.get(at) != Some(page));
        let random = |page: &[u8]| {
            !page.starts_with(b"ES") && page.iter().collect::<BTreeSet<_>>().len() > 240
        };
        new.filter(|(_, page)| random(page))
            .map(|(at, _)| *at)
            .collect()
    }

    pub(crate) fn show(&mut self, name: &str) -> VolumeReport {
        let name = name.into();
        match self.ask(AdminRequest::VolumeShow { name }).unwrap() {
            AdminReply::Volume(report) => report,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn slots(&self) -> Vec<WrappedKey> {
        let from = usize::try_from(KEY_SLOTS_OFFSET).unwrap();
        let area = &self.device[from..from + usize::try_from(KEY_SLOTS_BYTES).unwrap()];
        let opened = SlotArea::open(self.node.engine().store_id(), area).unwrap();
        assert!(opened.mend.0.is_empty() && opened.lost.is_empty());
        opened.area.keys().map(|(_, key)| key.clone()).collect()
    }

    fn refused(&mut self) -> u64 {
        match self.ask(AdminRequest::Metrics).unwrap() {
            AdminReply::Metrics(sample) => sample.blocks_refused,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn create(name: &str) -> AdminRequest {
    AdminRequest::VolumeCreate {
        name: name.into(),
        size_bytes: 16 << 20,
        labels: BTreeMap::new(),
        encrypted: true,
    }
}

fn delete(name: &str) -> AdminRequest {
    AdminRequest::VolumeDelete {
        name: name.into(),
        with_snapshots: true,
    }
}

#[test]
fn what_is_written_comes_back_and_is_nowhere_in_the_clear() {
    let mut world = World::new();
    world.create_encrypted("s");
    assert!(world.show("s").encrypted && !world.show("v").encrypted);
    let conn = world.open(1, "s");
    world.write(conn, 0, 64 * BLOCK, 0x5a);
    // A part of two blocks: what is around it stays.
    world.write(conn, 3 * BLOCK + 100, BLOCK, 0x3c);
    // Zeros that are written are data like any other.
    world.write(conn, 100 * BLOCK, 8 * BLOCK, 0);
    for restarted in [false, true] {
        let conn = if restarted { world.open(2, "s") } else { conn };
        let data = world.read(conn, 0, 64 * BLOCK).unwrap();
        let inside = 3 * BLOCK + 100..4 * BLOCK + 100;
        for (at, byte) in data.iter().enumerate() {
            let expected = if inside.contains(&at) { 0x3c } else { 0x5a };
            assert_eq!(*byte, expected, "at {at}");
        }
        let zeros = world.read(conn, 100 * BLOCK, 8 * BLOCK).unwrap();
        assert!(zeros.iter().all(|byte| *byte == 0));
        if !restarted {
            world.ask(AdminRequest::Settle).unwrap();
            world.restart(0);
        }
    }
    for fill in [0x5a, 0x3c] {
        let pattern = [fill; 64];
        let found = world.device.windows(64).any(|window| window == pattern);
        assert!(!found, "{fill:x} is on the device in the clear");
    }
    let data = usize::try_from(esker_engine::format::SEGMENTS_OFFSET).unwrap();
    let sealed: Vec<Vec<u8>> = {
        let none = BTreeMap::new();
        let places = world.sealed_since(&none);
        let places = places.into_iter().filter(|at| *at >= data);
        places
            .map(|at| world.device[at..at + BLOCK].to_vec())
            .collect()
    };
    assert!(sealed.len() >= 72, "{} sealed pages", sealed.len());
    let mut seen = BTreeSet::new();
    for page in &sealed {
        for cell in page.chunks(16) {
            assert!(seen.insert(cell.to_vec()), "16 bytes come twice");
        }
    }
}

#[test]
fn no_stamp_is_used_twice_with_a_key() {
    let mut world = World::new();
    world.create_encrypted("s");
    let mut seen = BTreeSet::new();
    for round in 0..4 {
        let conn = world.open(10 + round, "s");
        for at in 0..8 {
            world.write(conn, at * BLOCK + 7, 2 * BLOCK, 1);
        }
        let seals = world.node.take_seals();
        assert!(seals.len() >= 24);
        for (epoch, stamp) in seals {
            let name = (epoch.volume, epoch.epoch, epoch.salt, stamp);
            assert!(seen.insert(name), "{name:?} comes twice");
        }
        world.restart(0);
    }
}

#[test]
fn another_key_opens_nothing_and_is_told() {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    world.write(conn, 0, 4 * BLOCK, 9);
    world.restart(1);
    let shown = world.show("s");
    assert_eq!(shown.state, VolumeState::Locked);
    let told = world.go(9, "s", &[]);
    let text = String::from_utf8_lossy(&told.last().unwrap().1).into_owned();
    assert!(text.contains("MAC over its roots does not match"), "{text}");
    // An operator who knows better gets no further than the blocks.
    let name = String::from("s");
    world.ask(AdminRequest::VolumeAcceptLoss { name }).unwrap();
    let conn = world.open(2, "s");
    assert_eq!(world.read(conn, 0, BLOCK), None);
    assert_eq!(world.refused(), 1);
    // Half a block is read before it is written: that fails as well, and changes nothing.
    let failed = world.answered(conn, request(WRITE, 100, 200, 1));
    assert!(
        failed.len() == 1 && failed[0].1.starts_with(&EIO),
        "{failed:?}"
    );
    assert_eq!(world.refused(), 2);
    // Now the other key has signed.
    world.restart(0);
    assert_eq!(world.show("s").state, VolumeState::Locked);
    let name = String::from("s");
    world.ask(AdminRequest::VolumeAcceptLoss { name }).unwrap();
    let conn = world.open(3, "s");
    assert_eq!(world.read(conn, 0, 4 * BLOCK), Some(vec![9; 4 * BLOCK]));
}

/// Changed, exchanged and older blocks are found by everybody, with and without a key.
#[test]
fn blocks_that_were_changed_moved_or_replayed_are_refused() {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    let before = world.pages();
    world.write(conn, 0, BLOCK, 1);
    let older = world.sealed_since(&before)[0];
    let before = world.pages();
    world.write(conn, 0, 2 * BLOCK, 2);
    let newer = world.sealed_since(&before);
    assert_eq!(newer.len(), 2);
    world.ask(AdminRequest::Settle).unwrap();
    let intact = world.device.clone();
    for tamper in 0..3 {
        world.device.clone_from(&intact);
        let page = |at: usize| intact[at..at + BLOCK].to_vec();
        match tamper {
            0 => world.device[newer[0] + 1000] ^= 1,
            1 => {
                world.device[newer[0]..newer[0] + BLOCK].copy_from_slice(&page(newer[1]));
                world.device[newer[1]..newer[1] + BLOCK].copy_from_slice(&page(newer[0]));
            }
            _ => world.device[newer[0]..newer[0] + BLOCK].copy_from_slice(&page(older)),
        }
        // Nobody has the key now.
        world.rest_a_little();
        world.reopen();
        world.rest_a_little();
        let (volume, place) = (Some("s".to_string()), None);
        let scrub = world.ask(AdminRequest::Scrub { volume, place }).unwrap();
        let AdminReply::Scrub(page) = scrub else {
            panic!("{scrub:?}")
        };
        assert!(
            page.damaged.iter().any(|d| d.offset == 0),
            "{tamper}: {page:?}"
        );
        world.provide(0);
        world.rest_a_little();
        let conn = world.open(10 + tamper, "s");
        assert_eq!(world.read(conn, 0, BLOCK), None, "{tamper}");
        assert!(world.node.engine().damaged_blocks() > 0);
    }
}

#[test]
fn a_volume_without_its_key_is_locked_and_the_others_serve() {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    world.write(conn, 0, BLOCK, 4);
    world.rest_a_little();
    world.reopen();
    world.rest_a_little();
    // On its way: who attaches waits.
    assert_eq!(world.show("s").state, VolumeState::Starting);
    let [KeyAsk::Open(key)] = &world.key_asks[..] else {
        panic!("{:?}", world.key_asks)
    };
    let name = key.name();
    let away = || Event::Keys(KeyAnswer::Opened(name, Err("the server is on fire".into())));
    world.events.push(away());
    assert_eq!(world.show("s").state, VolumeState::Locked);
    let told = world.go(2, "s", &[]);
    let (kind, text) = told.last().unwrap();
    assert!(*kind > 0x8000_0000);
    let text = String::from_utf8_lossy(text);
    assert!(
        text.contains("locked") && text.contains("on fire"),
        "{text}"
    );
    let plain = world.open(3, "v");
    world.write(plain, 0, BLOCK, 1);
    let AdminReply::Status(status) = world.ask(AdminRequest::Status).unwrap() else {
        panic!()
    };
    assert!(!status.healthy && status.problems[0].contains("on fire"));
    // A new key now might come from a keyring that only takes the place of the right one.
    let refused = world.ask(create("t")).unwrap_err().to_string();
    assert!(refused.contains("locked"), "{refused}");
    world.provide(0);
    world.rest_a_little();
    assert_eq!(world.show("s").state, VolumeState::Ready);
    let conn = world.open(4, "s");
    assert_eq!(world.read(conn, 0, BLOCK), Some(vec![4; BLOCK]));
    // A failure that comes late changes nothing.
    world.events.push(away());
    assert_eq!(world.show("s").state, VolumeState::Ready);
}

#[test]
fn a_clone_writes_under_its_own_key_and_keeps_its_origins() {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    world.write(conn, 0, 8 * BLOCK, 1);
    world
        .ask(AdminRequest::SnapshotCreate {
            volume: "s".into(),
            name: "a".into(),
            labels: BTreeMap::new(),
        })
        .unwrap();
    world.write(conn, 0, BLOCK, 2);
    world.ask_with_keys(AdminRequest::VolumeClone {
        volume: "s".into(),
        snapshot: "a".into(),
        name: "c".into(),
        labels: BTreeMap::new(),
        born: None,
    });
    assert!(world.show("c").encrypted);
    let clone = world.open(2, "c");
    world.write(clone, BLOCK, BLOCK, 3);
    let expected = [vec![1; BLOCK], vec![3; BLOCK], vec![1; 6 * BLOCK]].concat();
    assert_eq!(world.read(clone, 0, 8 * BLOCK), Some(expected.clone()));
    let keys: BTreeSet<_> = world.slots().iter().map(WrappedKey::name).collect();
    assert_eq!(keys.len(), 2);
    world.restart(0);
    let snapshot = world.open(3, "s@a");
    assert_eq!(world.read(snapshot, 0, BLOCK), Some(vec![1; BLOCK]));
    // The origin goes; what the clone reads of it stays readable.
    let conn = snapshot;
    let reason = String::from("gone");
    world.events.push(Event::Disconnected { conn, reason });
    world.rest_a_little();
    world.ask(delete("s")).unwrap();
    assert_eq!(world.slots().len(), 2);
    world.restart(0);
    let clone = world.open(4, "c");
    assert_eq!(world.read(clone, 0, 8 * BLOCK), Some(expected));
    let reason = String::from("gone");
    world.events.push(Event::Disconnected {
        conn: clone,
        reason,
    });
    world.rest_a_little();
    world.ask(delete("c")).unwrap();
    assert_eq!(world.slots().len(), 0);
}

/// A clone was in its origin's log and nowhere else when the process ended: the next one learned of it after
/// it had read the key slots, had not asked for its key, and it waited for ever.
#[test]
fn a_clone_that_begins_late_gets_its_key() {
    let mut world = World::new();
    world.create_encrypted("s");
    let name = String::from("a");
    let (volume, labels) = (String::from("s"), BTreeMap::new());
    world
        .ask(AdminRequest::SnapshotCreate {
            volume,
            name,
            labels,
        })
        .unwrap();
    let mut here = 0;
    for steps in 0..24 {
        world.begin(AdminRequest::VolumeClone {
            volume: "s".into(),
            snapshot: "a".into(),
            name: "c".into(),
            labels: BTreeMap::new(),
            born: None,
        });
        for _ in 0..steps {
            world.disk(1);
            world.turn();
            world.provide(0);
        }
        world.reopen();
        for _ in 0..3 {
            world.rest_a_little();
            world.provide(0);
        }
        let name = String::from("c");
        if world.ask(AdminRequest::VolumeFind { name }).is_ok() {
            assert_eq!(world.show("c").state, VolumeState::Ready, "{steps} steps");
            world.ask(delete("c")).unwrap();
            here += 1;
        }
        world.pass(2); // until the key of one that did not begin is destroyed
    }
    assert!((1..24).contains(&here), "{here}");
}

/// The key slots are on the device that has the log: what fails there is no matter of keys alone.
#[test]
fn a_key_slot_that_cannot_be_written_fences_the_store() {
    let mut world = World::new();
    world.failing = Some(KEY_SLOTS_OFFSET..KEY_SLOTS_OFFSET + KEY_SLOTS_BYTES);
    let number = world.begin(create("s"));
    for _ in 0..10 {
        world.rest_a_little();
        world.provide(0);
    }
    let answer = world.answer(number).expect("somebody waits");
    assert!(answer.is_err(), "{answer:?}");
    let why = world.fenced.take().expect("it goes on writing");
    assert!(why.contains("offset 1048576"), "{why}");
}

/// A volume that the map calls plain and that has a key is somebody's work; others are what they are.
#[test]
fn a_volume_marked_as_plain_with_a_key_in_a_slot_is_locked() {
    let mut world = World::new();
    world.create_encrypted("s");
    let uuid = world.show("v").uuid;
    let volume = u128::from_str_radix(&uuid.replace('-', ""), 16).unwrap();
    let volume = esker_base::VolumeId(volume);
    let name = KeyName {
        volume,
        key: esker_crypto::KeyId::new(1).unwrap(),
    };
    let store = world.node.engine().store_id();
    let from = usize::try_from(KEY_SLOTS_OFFSET).unwrap();
    let area = &world.device[from..from + usize::try_from(KEY_SLOTS_BYTES).unwrap()];
    let mut area = SlotArea::open(store, area).unwrap().area;
    for write in area.add(wrapped(name, 1)).unwrap().1 .0 {
        let at = from + write.offset;
        world.device[at..at + BLOCK].copy_from_slice(&write.page);
    }
    for _ in 0..2 {
        world.restart(0);
        assert_eq!(world.show("v").state, VolumeState::Locked);
        assert_eq!(world.show("s").state, VolumeState::Ready);
        assert_eq!(world.slots().len(), 2, "its key stays");
    }
}

/// Key bytes as they are stored.
pub(crate) fn bytes_of(key: &WrappedKey) -> Vec<u8> {
    key.encode()[28..].to_vec()
}

#[test]
fn a_deleted_volume_leaves_no_wrapped_key() {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    world.write(conn, 0, MIB, 1);
    let key = bytes_of(&world.slots()[0]);
    let at = |world: &World| {
        world
            .device
            .windows(key.len())
            .filter(|w| **w == key)
            .count()
    };
    assert_eq!(at(&world), 2);
    let reason = String::from("gone");
    world.events.push(Event::Disconnected { conn, reason });
    world.rest_a_little();
    world.ask(delete("s")).unwrap();
    assert_eq!(at(&world), 0, "as soon as it is answered");
}

/// A crash between a key and its volume leaves a key that nobody needs.
#[test]
fn an_orphan_is_destroyed_at_the_next_start() {
    let mut world = World::new();
    world.begin(create("s"));
    for _ in 0..3 {
        world.turn();
    }
    world.provide(0);
    // The volume's own record is never written.
    for _ in 0..100 {
        if world.slots_written() {
            break;
        }
        world.turn();
        world.disk(1);
    }
    assert_eq!(world.slots_now().len(), 1);
    world.reopen();
    world.rest_a_little();
    assert!(world.key_asks.is_empty(), "{:?}", world.key_asks);
    world.pass(3);
    assert_eq!(world.slots().len(), 0);
    let shown = world.ask(AdminRequest::VolumeShow { name: "s".into() });
    assert!(shown.is_err());
    world.create_encrypted("s");
    assert_eq!(world.slots().len(), 1);
}

impl World {
    /// The slots as they are, even or not.
    fn slots_now(&self) -> Vec<WrappedKey> {
        let from = usize::try_from(KEY_SLOTS_OFFSET).unwrap();
        let area = &self.device[from..from + usize::try_from(KEY_SLOTS_BYTES).unwrap()];
        let opened = SlotArea::open(self.node.engine().store_id(), area).unwrap();
        opened.area.keys().map(|(_, key)| key.clone()).collect()
    }

    fn slots_written(&self) -> bool {
        !self.slots_now().is_empty()
    }
}

#[test]
fn a_provider_that_refuses_makes_no_volume() {
    let mut world = World::new();
    let number = world.begin(create("s"));
    world.rest_a_little();
    let Some(KeyAsk::Make(name)) = world.key_asks.pop() else {
        panic!("nothing was asked")
    };
    let why = String::from("the policy forbids it");
    world
        .events
        .push(Event::Keys(KeyAnswer::Made(name, Err(why))));
    world.rest_a_little();
    let refused = world.answer(number).unwrap().unwrap_err().to_string();
    assert!(refused.contains("policy"), "{refused}");
    assert_eq!(world.slots().len(), 0);
    world.create_encrypted("s");
}

pub(crate) fn keys(reply: AdminReply) -> Vec<KeyReport> {
    match reply {
        AdminReply::Keys(keys) => keys,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_is_wrapped_anew_and_the_old_wrapping_is_gone() {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    world.write(conn, 0, BLOCK, 7);
    let old = bytes_of(&world.slots()[0]);
    let show = || AdminRequest::KeyShow { volume: "s".into() };
    let shown = keys(world.ask(show()).unwrap());
    assert_eq!((shown.len(), shown[0].kek.as_str()), (1, "file:1"));
    assert!(shown[0].is_own && shown[0].state == "open");
    assert_eq!(shown[0].epochs.map(|e| e.count), Some(1));
    let rotate = |data_key| AdminRequest::KeyRotate {
        volume: "s".into(),
        data_key,
    };
    let done = keys(world.ask_with_keys(rotate(false)));
    assert_eq!(done[0].kek, "file:2");
    let found = world.device.windows(old.len()).any(|w| w == old);
    assert!(!found, "the old wrapping is still there");
    world.write(conn, BLOCK, BLOCK, 8);
    world.restart(0);
    let conn = world.open(2, "s");
    let expected = [vec![7; BLOCK], vec![8; BLOCK]].concat();
    assert_eq!(world.read(conn, 0, 2 * BLOCK), Some(expected));
    let plain = world.ask(AdminRequest::KeyShow { volume: "v".into() });
    assert!(plain.unwrap_err().to_string().contains("not encrypted"));
}

#[test]
fn trims_and_zeroes_need_no_key_and_read_as_zeros() {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    world.write(conn, 0, 4 * BLOCK, 7);
    world.answered(conn, request(TRIM, BLOCK, BLOCK, 0));
    let expected = [vec![7; BLOCK], vec![0; BLOCK], vec![7; 2 * BLOCK]].concat();
    assert_eq!(world.read(conn, 0, 4 * BLOCK), Some(expected));
}
