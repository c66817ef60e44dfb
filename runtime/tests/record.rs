//! Recording: the trace tells the truth, and power cuts can be replayed from it.
#![allow(clippy::unwrap_used)] // tests may unwrap
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // patterns of bytes

mod common;

use bytes::Bytes;
use common::{fresh_path, obey, Running, PATIENCE};
use esker_base::{AlignedBuf, ConnId, DiskOp, IoId, BLOCK_SIZE, BLOCK_SIZE_U64};
use esker_node::{Effect, Event, Transport};
use esker_runtime::replay::{Fate, PowerCut};
use esker_runtime::{Inbound, LoopConfig, Outbound, TraceEvent, TraceReader};
use rand::{Rng, SeedableRng};
use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

const BLOCKS: usize = 200;

fn block(number: u64) -> Bytes {
    let mut buf = AlignedBuf::zeroed(BLOCK_SIZE);
    for sector in buf.chunks_mut(512) {
        sector[..8].copy_from_slice(&(number + 1).to_le_bytes());
    }
    buf.freeze()
}

/// A little store: each received byte writes the next block, one sync at a time covers what has
/// completed, and each block is acknowledged with a byte: when it is durable, or too early.
fn appender(is_honest: bool) -> impl FnMut(esker_base::Moment, Event, &mut Vec<Effect>) {
    let mut conn = ConnId(0);
    let (mut next, mut next_sync) = (0_u64, 1_u64 << 32);
    let mut completed = 0;
    let mut syncing: Option<(IoId, usize)> = None;
    let mut waiting = VecDeque::new();
    move |_, event, effects| {
        obey(&event, effects);
        let acknowledge = |count: usize, effects: &mut Vec<Effect>| {
            if count > 0 {
                effects.push(Effect::Send {
                    conn,
                    bufs: vec![Bytes::from(vec![b'k'; count])],
                });
            }
        };
        match event {
            Event::Connected { conn: new, .. } => conn = new,
            Event::Received { data, .. } => waiting.extend(data),
            Event::Disk { io, result } if syncing.is_some_and(|(sync, _)| sync == io) => {
                result.unwrap();
                let (_, covered) = syncing.take().unwrap();
                completed -= covered;
                if is_honest {
                    acknowledge(covered, effects);
                }
            }
            Event::Disk { result, .. } => {
                result.unwrap();
                completed += 1;
                if !is_honest {
                    acknowledge(1, effects);
                }
            }
            _ => {}
        }
        // In order and one at a time, so that n acknowledgements stand for the first n blocks.
        while waiting.pop_front().is_some() {
            let op = DiskOp::Write {
                offset: next * BLOCK_SIZE_U64,
                bufs: vec![block(next)],
            };
            effects.push(Effect::Disk { io: IoId(next), op });
            next += 1;
        }
        if syncing.is_none() && completed > 0 {
            syncing = Some((IoId(next_sync), completed));
            effects.push(Effect::Disk {
                io: IoId(next_sync),
                op: DiskOp::Sync,
            });
            next_sync += 1;
        }
    }
}

fn recorded(is_honest: bool) -> PathBuf {
    let path = fresh_path("trace");
    let mut config = LoopConfig::new(0);
    config.record = Some(path.clone());
    let running = Running::start(config, vec![], appender(is_honest));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    running
        .handle
        .send(Inbound::NewConnection(theirs.into(), Transport::Unix));
    // One request at a time: completions come in order, so the count of acknowledgements tells
    // which blocks they mean. (Several are in flight at the ends of the bursts only.)
    for _ in 0..BLOCKS {
        ours.write_all(b"w").unwrap();
        ours.read_exact(&mut [0]).unwrap();
    }
    assert!(matches!(running.stop(), Outbound::Stopped));
    path
}

/// Cuts the power after every step, with random fates; returns how many cuts lost a block that had
/// been acknowledged.
fn cuts_that_lose_data(path: &PathBuf) -> usize {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut device = PowerCut::default();
    let (mut acknowledged, mut bad) = (0, 0);
    for event in TraceReader::open(path).unwrap() {
        device.apply(&event);
        if let TraceEvent::Sent { data, .. } = &event {
            acknowledged += data.len();
        }
        let image = device.image(|_| match random.random_range(0..3) {
            0 => Fate::Lost,
            1 => Fate::Whole,
            _ => Fate::Torn((0..8).map(|_| random.random()).collect()),
        });
        let is_intact = |n: usize| {
            let number = u64::try_from(n).unwrap();
            image.read(number * BLOCK_SIZE_U64, BLOCK_SIZE) == block(number)
        };
        bad += usize::from(!(0..acknowledged).all(is_intact));
    }
    assert_eq!(acknowledged, BLOCKS);
    bad
}

#[test]
fn a_power_cut_at_any_step_keeps_what_was_acknowledged_when_durable() {
    let path = recorded(true);
    assert_eq!(cuts_that_lose_data(&path), 0);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    let path = recorded(false);
    assert!(cuts_that_lose_data(&path) > 0);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn the_trace_holds_everything_in_a_truthful_order() {
    let path = recorded(true);
    let mut reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.store_bytes(), 64 << 20);
    let events: Vec<_> = reader.by_ref().collect();
    assert!(!reader.is_cut_off());
    let mut submitted = HashMap::new();
    let (mut received, mut sent) = (0, 0);
    for (index, event) in events.iter().enumerate() {
        match event {
            TraceEvent::Write { io, data, offset } => {
                assert_eq!((data, *offset), (&block(io.0), io.0 * BLOCK_SIZE_U64));
                assert!(submitted.insert(*io, index).is_none());
            }
            TraceEvent::Sync { io } => assert!(submitted.insert(*io, index).is_none()),
            TraceEvent::Completed { io, result } => {
                assert!(result.is_ok() && submitted.remove(io).is_some());
            }
            TraceEvent::Received { data, .. } => received += data.len(),
            TraceEvent::Sent { data, .. } => sent += data.len(),
            TraceEvent::Read { .. }
            | TraceEvent::Connected { .. }
            | TraceEvent::Disconnected { .. } => {}
        }
    }
    assert_eq!((received, sent, submitted.len()), (BLOCKS, BLOCKS, 0));
    assert!(matches!(events[0], TraceEvent::Connected { .. }));

    // Cut off anywhere, it reads up to the last whole frame; damaged, up to the damage.
    let bytes = std::fs::read(&path).unwrap();
    let mut cut = TraceReader::new(&bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(cut.by_ref().count(), events.len() - 1);
    assert!(cut.is_cut_off());
    let mut damaged = bytes.clone();
    damaged[5_000] ^= 1;
    let mut cut = TraceReader::new(&damaged[..]).unwrap();
    let before: Vec<_> = cut.by_ref().collect();
    assert!(cut.is_cut_off() && before.len() < events.len());
    assert_eq!(before, events[..before.len()]);
    assert!(TraceReader::new(&b"ESKTRACE\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]).is_err());
    assert!(TraceReader::new(&bytes[..20]).is_err());
    std::fs::remove_file(&path).unwrap();
}
