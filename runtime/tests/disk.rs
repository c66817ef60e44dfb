//! Disk operations on a real filesystem.
#![allow(clippy::unwrap_used)] // tests may unwrap
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // patterns of bytes

mod common;

use bytes::Bytes;
use common::{fresh_path, nudge, Commanded, PATIENCE};
use esker_base::{AlignedBuf, DiskErrorKind, DiskOp, IoId};
use esker_node::{Effect, Event};
use esker_runtime::{LoopConfig, Outbound, RuntimeError, StoreFile};
use std::collections::HashSet;

fn pattern(length: usize, seed: u8) -> Bytes {
    let mut buf = AlignedBuf::zeroed(length);
    for (index, byte) in buf.iter_mut().enumerate() {
        *byte = (index / 512 % 251) as u8 ^ seed;
    }
    buf.freeze()
}

#[test]
fn what_was_written_reads_back_from_small_and_large_vectored_writes() {
    let mut config = LoopConfig::new(0);
    config.staged_bytes_max = 256 << 10;
    let mut disk = Commanded::start(config);
    // Small: gathered into a registered buffer. Large: 1,500 separate pieces, more than one
    // operation takes.
    let small = vec![pattern(4096, 1), pattern(8192, 2)];
    let large: Vec<_> = (0..1_500).map(|n| pattern(4096, (n % 256) as u8)).collect();
    for (offset, bufs) in [(0, small), (1 << 20, large)] {
        let length = bufs.iter().map(Bytes::len).sum();
        let expected: Vec<u8> = bufs.concat();
        assert_eq!(disk.run(DiskOp::Write { offset, bufs }), Ok(Bytes::new()));
        assert_eq!(disk.run(DiskOp::Sync), Ok(Bytes::new()));
        let read = disk.run(DiskOp::Read { offset, length }).unwrap();
        assert!(read == expected, "bytes at {offset} differ");
        assert!(esker_base::buf::is_aligned(&read));
    }
    let counts = disk.running.handle.inspect().unwrap().disk;
    assert_eq!(
        (
            counts.writes,
            counts.writes_staged,
            counts.reads,
            counts.syncs
        ),
        (2, 1, 2, 2)
    );
    assert!(
        counts.continued >= 1,
        "1,500 pieces need a second operation"
    );
    assert_eq!((counts.in_flight, counts.writes_realigned), (0, 0));
    assert!(matches!(disk.running.stop(), Outbound::Stopped));
}

#[test]
fn unaligned_memory_is_copied_rather_than_refused() {
    let mut disk = Commanded::start(LoopConfig::new(0));
    // One fits a registered buffer, the other does not.
    for (index, length) in [64 << 10, 1 << 20].into_iter().enumerate() {
        let whole = pattern(length, 9);
        let bufs = vec![whole.slice(..100), whole.slice(100..)];
        assert!(disk.run(DiskOp::Write { offset: 0, bufs }).is_ok());
        let read = disk.run(DiskOp::Read { offset: 0, length });
        assert_eq!(read.unwrap(), whole);
        let counts = disk.running.handle.inspect().unwrap().disk;
        let realigned = u64::try_from(index + 1).unwrap();
        assert_eq!(
            (counts.writes_realigned, counts.writes_staged),
            (realigned, 1)
        );
    }
    assert!(disk
        .run(DiskOp::Write {
            offset: 0,
            bufs: vec![pattern(4096, 1)]
        })
        .is_ok());
    assert_eq!(disk.running.handle.inspect().unwrap().disk.writes_staged, 1);
}

#[test]
fn operations_past_the_end_are_short_and_do_not_grow_the_file() {
    let mut disk = Commanded::start(LoopConfig::new(0));
    let end = 64 << 20;
    let short = |result: Result<Bytes, esker_base::DiskError>| result.unwrap_err().kind;
    let read = DiskOp::Read {
        offset: end - 4096,
        length: 8192,
    };
    assert_eq!(short(disk.run(read)), DiskErrorKind::Short);
    let write = DiskOp::Write {
        offset: end,
        bufs: vec![pattern(4096, 0)],
    };
    assert_eq!(short(disk.run(write)), DiskErrorKind::Short);
    let wrapped = DiskOp::Read {
        offset: u64::MAX - 4095,
        length: 4096,
    };
    assert_eq!(short(disk.run(wrapped)), DiskErrorKind::Short);
    let crooked = disk
        .run(DiskOp::Read {
            offset: 1,
            length: 4096,
        })
        .unwrap_err();
    assert_eq!(
        (crooked.kind, crooked.errno),
        (DiskErrorKind::Io, libc::EINVAL)
    );
}

#[test]
fn many_operations_at_once_are_each_answered_once() {
    let mut config = LoopConfig::new(0);
    config.ring_entries = 8; // far fewer than the operations: the submission queue overflows
    let mut disk = Commanded::start(config);
    let mut expected = HashSet::new();
    for n in 0..1_000_u64 {
        let bufs = vec![pattern(4096, (n % 256) as u8)];
        expected.insert(disk.submit(DiskOp::Write {
            offset: n * 4096,
            bufs,
        }));
        if n % 10 == 0 {
            expected.insert(disk.submit(DiskOp::Sync));
        }
    }
    nudge(&disk.running.handle);
    while !expected.is_empty() {
        let (io, result) = disk.outcomes.recv_timeout(PATIENCE).unwrap();
        assert!(result.is_ok() && expected.remove(&io));
    }
    let read = disk
        .run(DiskOp::Read {
            offset: 0,
            length: 1_000 * 4096,
        })
        .unwrap();
    for (n, block) in read.chunks(4096).enumerate() {
        assert!(block == pattern(4096, (n % 256) as u8), "block {n}");
    }
}

#[test]
fn a_store_belongs_to_one_opener() {
    let path = fresh_path("locked");
    let first = StoreFile::create(&path, 1 << 20).unwrap();
    assert_eq!(
        (first.size_bytes(), first.path()),
        (1 << 20, path.as_path())
    );
    let refused = StoreFile::open(&path).unwrap_err();
    assert!(matches!(refused, RuntimeError::InUse { .. }), "{refused}");
    assert!(refused
        .to_string()
        .ends_with("is in use by another process"));
    drop(first);
    assert_eq!(StoreFile::open(&path).unwrap().size_bytes(), 1 << 20);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_store_that_cannot_be_made_leaves_nothing_behind() {
    let path = fresh_path("too-large");
    // 8 EiB fit no filesystem, whatever it is and however full.
    let refused = StoreFile::create(&path, 1 << 62).unwrap_err();
    assert!(matches!(refused, RuntimeError::NoRoom { .. }), "{refused}");
    assert!(!path.exists());
    let refused = StoreFile::create(&path, 1000).unwrap_err();
    assert!(
        matches!(refused, RuntimeError::Unsuitable { .. }),
        "{refused}"
    );
    assert!(!path.exists());
    std::fs::write(&path, b"mine").unwrap();
    let refused = StoreFile::create(&path, 4096).unwrap_err();
    assert!(
        matches!(
            refused,
            RuntimeError::File {
                operation: "create",
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    std::fs::remove_file(&path).unwrap();
    assert!(StoreFile::open(&path).is_err());
    assert!(StoreFile::open("/").is_err());
}

#[test]
fn a_store_is_free_as_soon_as_its_loop_has_ended() {
    // The kernel takes a ring apart some time after it was closed; a registered file that nobody
    // unregistered stayed open, and locked, until then.
    let path = fresh_path("again");
    drop(StoreFile::create(&path, 1 << 20).unwrap());
    for _ in 0..20 {
        let store = StoreFile::open(&path).unwrap();
        let (sender, ended) = std::sync::mpsc::channel();
        let make = |_, _, effects: &mut Vec<Effect>| {
            effects.push(Effect::Stopped);
            common::Toy(|_, _, _: &mut Vec<Effect>| {})
        };
        let outbound = Box::new(move |message| drop(sender.send(message)));
        let config = LoopConfig::new(0);
        let (_, thread) = esker_runtime::spawn(config, store, vec![], make, outbound).unwrap();
        assert!(matches!(
            ended.recv_timeout(PATIENCE).unwrap(),
            Outbound::Stopped
        ));
        drop(StoreFile::open(&path).unwrap()); // with the last message, before the thread's end
        thread.join().unwrap();
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_loop_that_breaks_with_operations_in_flight_ends_in_order() {
    let step = |_, event, effects: &mut Vec<Effect>| {
        if let Event::Peer { .. } = event {
            for n in 0..200 {
                let bufs = vec![pattern(64 << 10, 3)];
                let op = match n % 3 {
                    0 => DiskOp::Read {
                        offset: 0,
                        length: 1 << 20,
                    },
                    1 => DiskOp::Write {
                        offset: 1 << 20,
                        bufs,
                    },
                    _ => DiskOp::Sync,
                };
                effects.push(Effect::Disk { io: IoId(n), op });
            }
        }
        assert!(
            !matches!(event, Event::Disk { .. }),
            "the first answer is too much"
        );
    };
    let mut running = common::Running::start(LoopConfig::new(0), vec![], step);
    nudge(&running.handle);
    let Outbound::LoopFailed { message } = running.join() else {
        panic!()
    };
    assert!(message.contains("the first answer"), "{message}");
}

#[test]
fn a_store_that_cannot_be_opened_ends_the_loop() {
    let path = fresh_path("foreign");
    let store = StoreFile::create(&path, 1 << 20).unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    let make = |_, _, effects: &mut Vec<Effect>| {
        let message = "a foreign store".to_string();
        effects.push(Effect::OpenFailed { message });
        common::Toy(|_, _, _: &mut Vec<Effect>| {})
    };
    let outbound = Box::new(move |message| drop(sender.send(message)));
    let config = LoopConfig::new(0);
    let (_, thread) = esker_runtime::spawn(config, store, vec![], make, outbound).unwrap();
    thread.join().unwrap();
    let all: Vec<_> = ended.iter().collect();
    assert!(matches!(&all[..], [Outbound::OpenFailed { message }] if message == "a foreign store"));
    std::fs::remove_file(&path).unwrap();
}
