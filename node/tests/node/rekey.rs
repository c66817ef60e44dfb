//! Another data key for a volume, and what it wrote before under it.

use crate::encryption::{bytes_of, keys, BLOCK};
use crate::harness::{request, World, READ, TRIM, WRITE};
use esker_base::{ConnId, DiskOp};
use esker_engine::keys::{KEY_SLOTS_BYTES, KEY_SLOTS_OFFSET};
use esker_node::admin::{AdminError, AdminReply, AdminRequest, KeyReport, ResealPage, VolumeState};
use esker_node::Event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

const PART_BYTES: u64 = 1 << 20;

impl World {
    fn rotate(&mut self, name: &str) -> Vec<KeyReport> {
        keys(self.ask_with_keys(AdminRequest::KeyRotate {
            volume: name.into(),
            data_key: true,
        }))
    }

    fn part(&mut self) -> Option<ResealPage> {
        match self.ask(AdminRequest::Reseal).unwrap() {
            AdminReply::Resealed(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// All parts of a pass; what they sealed anew, in bytes.
    fn reseal(&mut self) -> u64 {
        let mut bytes = 0;
        for _ in 0..1000 {
            let page = self.part().expect("nothing to do");
            bytes += page.bytes;
            assert!(page.bytes <= PART_BYTES);
            if page.ended {
                self.rest_a_little(); // the checkpoint
                return bytes;
            }
        }
        panic!("a pass that never ends")
    }

    fn key_show(&mut self, name: &str) -> Vec<KeyReport> {
        let volume = name.into();
        keys(self.ask(AdminRequest::KeyShow { volume }).unwrap())
    }

    fn key_numbers(&self) -> Vec<u32> {
        let numbers: BTreeSet<u32> = self.slots().iter().map(|k| k.name().key.get()).collect();
        numbers.into_iter().collect()
    }

    fn old_wrapping(&self) -> Vec<u8> {
        let slots = self.slots();
        let old = slots.iter().find(|k| k.name().key.get() == 1).unwrap();
        bytes_of(old)
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        self.device.windows(bytes.len()).any(|w| w == bytes)
    }

    fn take(&mut self, volume: &str, name: &str) {
        let (volume, name) = (volume.into(), name.into());
        let labels = BTreeMap::new();
        let request = AdminRequest::SnapshotCreate {
            volume,
            name,
            labels,
        };
        self.ask(request).unwrap();
    }

    fn drop_snapshot(&mut self, volume: &str, name: &str) {
        let (volume, name) = (volume.into(), name.into());
        self.ask(AdminRequest::SnapshotDelete { volume, name })
            .unwrap();
        self.pass(1); // deletions of a while share a checkpoint
        self.rest_a_little();
    }

    fn leave(&mut self, conn: ConnId) {
        let reason = String::from("gone");
        self.events.push(Event::Disconnected { conn, reason });
        self.rest_a_little();
    }
}

/// A volume of 600 blocks of three writes, in the map and not only in the log.
fn begin() -> (World, ConnId, Vec<u8>) {
    let mut world = World::new();
    world.create_encrypted("s");
    let conn = world.open(1, "s");
    world.write(conn, 0, 400 * BLOCK, 1);
    world.write(conn, 1000 * BLOCK, 200 * BLOCK, 2);
    world.write(conn, 10 * BLOCK, 5 * BLOCK, 3);
    world.ask(AdminRequest::Settle).unwrap();
    let mut expected = vec![0; 1200 * BLOCK];
    expected[..400 * BLOCK].fill(1);
    expected[1000 * BLOCK..].fill(2);
    expected[10 * BLOCK..15 * BLOCK].fill(3);
    (world, conn, expected)
}

#[test]
fn a_new_data_key_is_in_force_at_once_and_the_old_one_is_gone_when_nothing_is_under_it() {
    let (mut world, conn, mut expected) = begin();
    assert_eq!(world.part(), None, "nothing to do before");
    let old = world.old_wrapping();
    let told = world.rotate("s");
    let newest: Vec<_> = told
        .iter()
        .map(|k| (k.key_id, k.needed_by.is_some()))
        .collect();
    assert_eq!(newest, [(1, true), (2, false)]);
    assert!(told[0].needed_by.as_ref().unwrap().volume);
    world.write(conn, 20 * BLOCK, BLOCK, 4);
    expected[20 * BLOCK..21 * BLOCK].fill(4);
    assert_eq!(world.key_show("s")[1].epochs.map(|e| e.count), Some(1));
    assert_eq!(world.key_numbers(), [1, 2]);
    let clients = client_bytes(&mut world);

    assert_eq!(
        world.reseal(),
        599 * 4096,
        "what was written since is under the new key"
    );
    assert_eq!(world.part(), None);
    assert_eq!(
        client_bytes(&mut world),
        clients,
        "no client has written that"
    );
    assert_eq!(world.key_numbers(), [2]);
    assert!(!world.holds(&old), "the old key is still there");
    assert_eq!(world.key_show("s").len(), 1);
    assert_eq!(world.show("s").reseal, None);
    assert_eq!(world.read(conn, 0, 1200 * BLOCK), Some(expected.clone()));
    world.restart(0);
    let conn = world.open(2, "s");
    assert_eq!(world.read(conn, 0, 1200 * BLOCK), Some(expected));
    assert_eq!(world.show("s").used_bytes, 600 * 4096);
    // And once more.
    world.rotate("s");
    world.reseal();
    assert_eq!(world.key_numbers(), [3]);
}

fn client_bytes(world: &mut World) -> u64 {
    match world.ask(AdminRequest::Space { volume: None }).unwrap() {
        AdminReply::Space(space) => space.client_bytes_written,
        other => panic!("{other:?}"),
    }
}

/// A read was under way for as long as a whole pass took. When its blocks came, nobody knew their key any more, and
/// the client got an error. Found by the simulator, with a disk that was slow for a while.
#[test]
fn a_read_that_is_under_way_for_long_still_opens() {
    let (mut world, conn, _) = begin();
    world.give(conn, request(READ, 0, BLOCK, 0));
    world.turn();
    let slow: Vec<_> = world.queue.drain(..).collect();
    assert!(matches!(slow[..], [(_, DiskOp::Read { .. })]), "{slow:?}");
    world.rotate("s");
    world.reseal();
    assert_eq!(
        world.key_numbers(),
        [1, 2],
        "somebody reads what is under it"
    );
    // Another key comes into force before that read ends: the first one does not come back.
    world.rotate("s");
    world.ask(AdminRequest::Checkpoint).unwrap();
    world.queue.extend(slow);
    world.rest_a_little();
    let told = world.chunks(conn);
    assert!(told.iter().all(|(kind, _)| *kind != 0x8002), "{told:?}");
    assert!(told.iter().any(|(_, bytes)| bytes.ends_with(&[1; 100])));
    assert_eq!(world.key_numbers(), [2, 3]);
    world.restart(0);
    assert_eq!(world.open(2, "s"), ConnId(2));
    world.reseal();
    assert_eq!(world.key_numbers(), [3]);
}

#[test]
fn a_pass_goes_on_after_a_crash_with_what_is_left() {
    let (mut world, _, expected) = begin();
    world.rotate("s");
    let first = world.part().unwrap();
    assert_eq!((first.bytes, first.ended), (PART_BYTES, false));
    let shown = world.show("s").reseal.unwrap();
    assert_eq!((shown.key_id, shown.resealed_bytes), (2, PART_BYTES));
    assert!(shown.through_bytes >= PART_BYTES && shown.problem.is_empty());
    world.restart(0);
    assert!(world.show("s").reseal.is_some());
    assert_eq!(world.reseal(), 600 * 4096 - PART_BYTES);
    assert_eq!(world.key_numbers(), [2]);
    let conn = world.open(2, "s");
    assert_eq!(world.read(conn, 0, 1200 * BLOCK), Some(expected));
}

/// The slot of a new key is durable, its epoch is not in the log: the process ends there.
#[test]
fn a_key_that_never_came_into_force_is_passed_over() {
    let (mut world, ..) = begin();
    let number = world.begin(AdminRequest::KeyRotate {
        volume: "s".into(),
        data_key: true,
    });
    world.rest_a_little();
    world.provide(0);
    world.turn();
    // Both copies of the slot, each with its sync; what follows is on its way at most.
    for _ in 0..4 {
        world.disk(1);
        world.turn();
    }
    assert_eq!(world.key_numbers(), [1, 2]);
    assert_eq!(world.answer(number), None);
    world.reopen();
    world.restart(0);
    assert_eq!(world.key_show("s").len(), 1, "one key is in force");
    world.pass(2);
    assert_eq!(world.key_numbers(), [1, 2], "its epoch may be in a log");
    let told = world.rotate("s");
    assert_eq!(told[1].key_id, 3);
    world.reseal();
    assert_eq!(world.key_numbers(), [3]);
}

#[test]
fn snapshots_and_clones_keep_a_key_and_a_rollback_brings_the_pass_back() {
    let (mut world, conn, expected) = begin();
    world.take("s", "before");
    world.rotate("s");
    world.part().unwrap();
    world.take("s", "during");
    world.reseal();
    world.take("s", "after");
    let need = world.key_show("s")[0].needed_by.clone().unwrap();
    assert_eq!((need.volume, need.snapshots), (false, 2));
    world.drop_snapshot("s", "during");
    assert_eq!(world.key_numbers(), [1, 2]);
    world.leave(conn);

    let rollback = |name: &str| AdminRequest::SnapshotRollback {
        volume: "s".into(),
        name: name.into(),
        keep: Some(None),
        force: false,
    };
    // To where nothing old is: nothing to do.
    world.ask(rollback("after")).unwrap();
    assert_eq!(world.part(), None);
    world.ask(rollback("before")).unwrap();
    let conn = world.open(2, "s");
    assert_eq!(world.read(conn, 0, 1200 * BLOCK), Some(expected.clone()));
    world.drop_snapshot("s", "before");
    assert_eq!(
        world.key_numbers(),
        [1, 2],
        "the volume itself is under it again"
    );
    world.take("s", "again");
    world.ask_with_keys(AdminRequest::VolumeClone {
        volume: "s".into(),
        snapshot: "again".into(),
        name: "c".into(),
        labels: BTreeMap::new(),
        born: None,
    });
    assert_eq!(world.reseal(), 600 * 4096);
    world.drop_snapshot("s", "again");
    // It was taken under the new key; that is forgotten when the volume goes back behind it.
    world.drop_snapshot("s", "after");
    assert_eq!(
        world.slots().len(),
        3,
        "what the clone reads with, and its own"
    );
    assert_eq!(world.key_show("s").len(), 1);
    // The clone is given another key of its own, and needs nobody's then.
    world.rotate("c");
    assert_eq!(world.reseal(), 600 * 4096);
    let slots: Vec<_> = world.slots().iter().map(|k| k.name().key.get()).collect();
    assert_eq!(slots, [2, 2]);
    for name in ["s", "c"] {
        let conn = world.open(if name == "s" { 3 } else { 4 }, name);
        assert_eq!(world.read(conn, 0, 1200 * BLOCK), Some(expected.clone()));
    }
}

/// A clone of a snapshot that holds nothing old begins without the old key.
#[test]
fn a_clone_of_what_is_under_the_new_key_does_not_have_the_old_one() {
    let (mut world, _, expected) = begin();
    world.take("s", "old");
    world.rotate("s");
    world.reseal();
    world.take("s", "new");
    world.ask_with_keys(AdminRequest::VolumeClone {
        volume: "s".into(),
        snapshot: "new".into(),
        name: "c".into(),
        labels: BTreeMap::new(),
        born: None,
    });
    let shown: Vec<u32> = world.key_show("c").iter().map(|k| k.key_id).collect();
    assert_eq!(shown.len(), 2, "the origin's newest, and its own");
    world.drop_snapshot("s", "old");
    let mut left: Vec<u32> = world.slots().iter().map(|k| k.name().key.get()).collect();
    left.sort_unstable();
    assert_eq!(left, [1, 2], "the clone's first, and the origin's second");
    world.restart(0);
    let conn = world.open(2, "c");
    assert_eq!(world.read(conn, 0, 1200 * BLOCK), Some(expected));
}

/// Clients write, trim and are answered at any moment of a pass, and what they wrote stays.
#[test]
fn what_clients_do_meanwhile_is_never_undone() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut world, conn, mut expected) = begin();
        world.rotate("s");
        let mut asked: Option<u64> = None;
        let mut fill = 10;
        let mut seals = BTreeSet::new();
        for _ in 0..1500 {
            if asked.is_none_or(|number| world.answer(number).is_some()) {
                asked = Some(world.begin(AdminRequest::Reseal));
            }
            // Often several at a time: some are proposed and not in the store when blocks are read.
            let begins = if rng.random_bool(0.05) {
                rng.random_range(1..5)
            } else {
                0
            };
            for _ in 0..begins {
                let from = rng.random_range(0..420 * BLOCK);
                let length = rng.random_range(1..40 * BLOCK);
                let range = from..(from + length).min(1200 * BLOCK);
                fill = fill % 200 + 1;
                if rng.random_bool(0.2) {
                    world.give(conn, request(TRIM, range.start, range.len(), 0));
                    // Blocks that it covers in part stay.
                    let (first, last) = (range.start.div_ceil(BLOCK), range.end / BLOCK);
                    if first < last {
                        expected[first * BLOCK..last * BLOCK].fill(0);
                    }
                } else {
                    world.give(conn, request(WRITE, range.start, range.len(), fill));
                    expected[range].fill(fill);
                }
            }
            let count = rng.random_range(0..3);
            world.disk(count);
            world.turn();
            for (epoch, stamp) in world.node.take_seals() {
                let seal = (epoch.volume, epoch.epoch, epoch.salt, stamp);
                assert!(seals.insert(seal), "a nonce twice: {seal:?}");
            }
        }
        world.rest_a_little();
        world.replies.remove(&conn);
        if world.show("s").reseal.is_some() {
            world.reseal();
        }
        let found = world.read(conn, 0, 1200 * BLOCK).unwrap();
        let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs.map(|at| at / BLOCK), None, "seed {seed}");
        world.rest_a_little();
        assert_eq!(world.key_numbers(), [2], "seed {seed}");
        world.restart(0);
        let conn = world.open(2, "s");
        assert!(
            world.read(conn, 0, 1200 * BLOCK) == Some(expected),
            "seed {seed}"
        );
    }
}

#[test]
fn a_block_that_does_not_open_keeps_the_key_and_is_told() {
    let (mut world, conn, expected) = begin();
    let page = expected_page(&world);
    world.device[page + 5] ^= 1;
    world.rotate("s");
    let mut problem = String::new();
    for _ in 0..20 {
        if world.part().is_none() {
            break;
        }
        let report = world.show("s").reseal.unwrap();
        problem = report.problem;
    }
    assert!(
        problem.contains("volume s") && problem.contains("scrub"),
        "{problem}"
    );
    assert_eq!(world.key_numbers(), [1, 2]);
    let status = match world.ask(AdminRequest::Status).unwrap() {
        AdminReply::Status(status) => status,
        other => panic!("{other:?}"),
    };
    assert!(
        !status.healthy && status.problems.contains(&problem),
        "{status:?}"
    );
    // It is written anew: a later pass does the rest.
    world.write(conn, 0, 400 * BLOCK, 1);
    assert_eq!(world.part(), None, "not at once");
    world.pass(601);
    world.reseal();
    assert_eq!(world.key_numbers(), [2]);
    let mut expected = expected;
    expected[..400 * BLOCK].fill(1);
    assert_eq!(world.read(conn, 0, 1200 * BLOCK), Some(expected));
}

/// Where a block of the volume's beginning lies.
fn expected_page(world: &World) -> usize {
    let pages = world.sealed_since(&BTreeMap::new());
    pages[30]
}

#[test]
fn a_volume_is_given_one_key_at_a_time_and_only_when_it_serves() {
    let (mut world, ..) = begin();
    let rotate = || AdminRequest::KeyRotate {
        volume: "s".into(),
        data_key: true,
    };
    world.begin(rotate());
    let refused = world.ask(rotate());
    assert!(matches!(refused, Err(AdminError::Refused(why)) if why.contains("another data key")));
    let plain = world.ask(AdminRequest::KeyRotate {
        volume: "v".into(),
        data_key: true,
    });
    assert!(plain.unwrap_err().to_string().contains("not encrypted"));
    world.provide(0);
    world.rest_a_little();
    assert_eq!(world.key_show("s").len(), 2);
}

/// Two clients' blocks are being read, both within what is to be sealed anew; what they write is proposed, and not in the
/// store, when the second lock goes.
#[test]
fn what_is_proposed_is_in_the_store_before_blocks_are_read_to_be_sealed_anew() {
    let (mut world, conn, mut expected) = begin();
    world.rotate("s");
    for (lba, fill) in [(3, 50), (5, 51)] {
        let from = lba * BLOCK + 10;
        world.give(conn, request(WRITE, from, 100, fill));
        expected[from..from + 100].fill(fill);
    }
    world.turn();
    let number = world.begin(AdminRequest::Reseal);
    world.turn();
    assert_eq!(world.answer(number), None);
    world.disk_reads();
    world.turn();
    world.rest_a_little();
    world.replies.remove(&conn);
    assert!(world.answer(number).is_some());
    world.reseal();
    assert!(world.read(conn, 0, 1200 * BLOCK) == Some(expected));
}

/// The process ends when everything but the new key's slot is on the device.
#[test]
fn no_epoch_is_opened_before_its_key_lies_in_its_slot() {
    let (mut world, conn, _) = begin();
    world.begin(AdminRequest::KeyRotate {
        volume: "s".into(),
        data_key: true,
    });
    world.rest_a_little();
    // Whatever drives the volume meanwhile.
    world.write(conn, 0, BLOCK, 9);
    world.provide(0);
    let slots = KEY_SLOTS_OFFSET..KEY_SLOTS_OFFSET + KEY_SLOTS_BYTES;
    for _ in 0..20 {
        world.turn();
        let of_slots =
            |op: &DiskOp| matches!(op, DiskOp::Write { offset, .. } if slots.contains(offset));
        world.queue.retain(|(_, op)| !of_slots(op));
        world.disk(usize::MAX);
    }
    world.reopen();
    world.restart(0);
    assert_eq!(world.show("s").state, VolumeState::Ready);
    assert_eq!(world.key_show("s").len(), 1);
}
