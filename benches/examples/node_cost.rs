//! What a request costs in the node's logic alone: no kernel, no device, no client. Each turn brings
//! `TURN` requests, completes the disk operations of the turn before, and settles. The best of many
//! rounds is printed, so that other work on the machine changes little.
//!
//! `node_cost [write|read] [REQUESTS_PER_TURN] [ROUNDS]`

use bytes::Bytes;
use esker_base::{ConnId, DiskOp, Moment, WallClock};
use esker_engine::EngineConfig;
use esker_node::admin::AdminRequest;
use esker_node::{AdminToken, Effect, Event, Machine, Node, NodeConfig, Transport};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc; // as the daemon

const DEVICE_BYTES: usize = 3 << 30;
/// Small, so that segments die by themselves and the store never fills.
const VOLUME_BYTES: u64 = 128 << 20;
const CONN: ConnId = ConnId(1);
/// Requests of one round.
const ROUND: u64 = 4096;

struct World {
    node: Node,
    now: u64,
    device: Vec<u8>,
    keeps_payload: bool,
    /// Time in the node.
    spent: Duration,
    /// Completions of the next turn.
    next: Vec<Event>,
    replied: usize,
    effects: Vec<Effect>,
    random: u64,
}

impl World {
    fn new(keeps_payload: bool) -> Self {
        let config = NodeConfig {
            engine: EngineConfig {
                device_bytes: DEVICE_BYTES as u64,
                format_if_blank: true,
                ..EngineConfig::default()
            },
            ..NodeConfig::default()
        };
        let mut effects = Vec::new();
        let node = Node::new(config, Moment(1), WallClock(1), &mut effects);
        let mut world = Self {
            node,
            now: 1,
            device: vec![0; DEVICE_BYTES],
            keeps_payload,
            spent: Duration::ZERO,
            next: Vec::new(),
            replied: 0,
            effects,
            random: 1,
        };
        world.interpret();
        world
    }

    fn turn(&mut self, data: Option<Bytes>, nanos: u64) {
        self.now += nanos;
        let (now, wall) = (Moment(self.now), WallClock(self.now / 1000));
        let begin = Instant::now();
        for event in self.next.drain(..) {
            self.node.step(now, wall, event, &mut self.effects);
        }
        if let Some(data) = data {
            let event = Event::Received { conn: CONN, data };
            self.node.step(now, wall, event, &mut self.effects);
        }
        self.node.settle(now, wall, &mut self.effects);
        self.spent += begin.elapsed();
        self.interpret();
    }

    /// A second in which nothing new arrives.
    fn rest(&mut self) {
        for _ in 0..1000 {
            self.next.push(Event::Timer);
            self.turn(None, 1_000_000);
        }
    }

    fn interpret(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Disk { io, op } => {
                    let result = match op {
                        DiskOp::Write { offset, bufs } => {
                            let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
                            // Nobody reads what is written here, but for the map: payload is
                            // not kept, so that the memory for it is not what is measured.
                            let kept = if self.keeps_payload || bufs.len() == 1 {
                                bufs.len()
                            } else {
                                0
                            };
                            for buf in &bufs[..kept] {
                                self.device[at..at + buf.len()].copy_from_slice(buf);
                                at += buf.len();
                            }
                            Bytes::new()
                        }
                        DiskOp::Read { offset, length } => {
                            let at = usize::try_from(offset).unwrap_or(usize::MAX);
                            esker_base::AlignedBuf::copy_of(&self.device[at..at + length]).freeze()
                        }
                        DiskOp::Sync => Bytes::new(),
                    };
                    let result = Ok(result);
                    self.next.push(Event::Disk { io, result });
                }
                Effect::Send { conn, bufs } => {
                    self.replied += bufs.iter().map(Bytes::len).sum::<usize>();
                    self.next.push(Event::Sent { conn });
                }
                Effect::OpenFailed { message } | Effect::Fenced { message } => panic!("{message}"),
                _ => {}
            }
        }
    }

    /// Headers of `count` random requests, with payloads for writes.
    fn requests(&mut self, command: u16, count: u64) -> Bytes {
        let mut bytes = Vec::new();
        for n in 0..count {
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let block = (self.random >> 33) % (VOLUME_BYTES / 4096);
            bytes.extend(0x2560_9513u32.to_be_bytes());
            bytes.extend(0u16.to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend(n.to_be_bytes());
            bytes.extend((block * 4096).to_be_bytes());
            bytes.extend(4096u32.to_be_bytes());
            if command == 1 {
                bytes.resize(bytes.len() + 4096, 7);
            }
        }
        bytes.into()
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: u64| arguments.get(at).and_then(|a| a.parse().ok()).unwrap_or(or);
    let is_read = arguments.first().is_some_and(|a| a == "read");
    let (per_turn, rounds) = (number(1, 16), number(2, 50));
    let mut world = World::new(is_read);
    let request = AdminRequest::VolumeCreate {
        name: "bench".into(),
        size_bytes: VOLUME_BYTES,
        labels: BTreeMap::new(),
        encrypted: false,
    };
    let token = AdminToken(1);
    world.rest();
    world.next.push(Event::Admin { token, request });
    world.next.push(Event::Connected {
        conn: CONN,
        transport: Transport::Unix,
        tls: esker_node::TlsPolicy::Off,
    });
    world.rest();
    let mut hello = Vec::from(3u32.to_be_bytes());
    hello.extend(*b"IHAVEOPT");
    hello.extend(1u32.to_be_bytes());
    hello.extend(5u32.to_be_bytes());
    hello.extend(*b"bench");
    world.turn(Some(hello.into()), 1_000);
    world.rest();
    let mut best = f64::MAX;
    for round in 0..=rounds {
        // There must be something to read.
        let command = u16::from(!is_read || round == 0);
        let batches: Vec<Bytes> = (0..ROUND / per_turn)
            .map(|_| world.requests(command, per_turn))
            .collect();
        let before = world.replied;
        world.spent = Duration::ZERO;
        for batch in batches {
            world.turn(Some(batch), 10_000 * per_turn);
        }
        let spent = world.spent;
        for _ in 0..4 {
            world.turn(None, 1_000);
        }
        let reply = if command == 0 { 4096 + 16 } else { 16 };
        let done = (world.replied - before) / reply;
        assert_eq!(
            done as u64,
            ROUND / per_turn * per_turn,
            "every request is answered"
        );
        if round > 0 {
            best = best.min(spent.as_secs_f64() * 1e6 / done as f64);
        }
    }
    println!("{best:.2} µs per request, {per_turn} in each turn");
}
