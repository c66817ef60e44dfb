//! A node over a device in memory, and clients by hand.

use bytes::Bytes;
use esker_base::{AlignedBuf, ConnId, DiskError, DiskErrorKind, DiskOp, IoId, Moment, WallClock};
use esker_engine::EngineConfig;
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use esker_node::{AdminToken, Effect, Event, KeyAsk, Machine, Node, NodeConfig, Transport};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const DEVICE_BYTES: usize = 1 << 30;
pub const VOLUME_BYTES: u64 = 256 << 20;
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const STATUS: u16 = 7;
pub const MIB: usize = 1 << 20;

/// A node over a device that completes operations when it is told to, in order.
pub struct World {
    pub node: Node,
    pub now: u64,
    pub device: Vec<u8>,
    pub queue: VecDeque<(IoId, DiskOp)>,
    pub events: Vec<Event>,
    pub effects: Vec<Effect>,
    /// What each client was sent.
    pub replies: BTreeMap<ConnId, Vec<u8>>,
    /// Clients that take nothing.
    pub deaf: BTreeSet<ConnId>,
    pub closed: BTreeMap<ConnId, String>,
    /// What operators were answered, by token.
    answers: BTreeMap<u64, Result<AdminReply, AdminError>>,
    /// What the node asked of key providers, and is not answered.
    pub key_asks: Vec<KeyAsk>,
    asked: u64,
    /// Writes of these bytes, and syncs after them, fail.
    pub failing: Option<std::ops::Range<u64>>,
    pub fenced: Option<String>,
}

fn config() -> NodeConfig {
    let engine = EngineConfig {
        device_bytes: DEVICE_BYTES as u64,
        format_if_blank: true,
        ..EngineConfig::default()
    };
    NodeConfig {
        engine,
        keys: true,
        note_seals: true,
        ..NodeConfig::default()
    }
}

impl World {
    pub fn new() -> Self {
        let mut effects = Vec::new();
        let node = Node::new(config(), Moment(1), WallClock(1), &mut effects);
        let mut world = Self {
            node,
            now: 1,
            device: vec![0; DEVICE_BYTES],
            queue: VecDeque::new(),
            events: Vec::new(),
            effects,
            replies: BTreeMap::new(),
            deaf: BTreeSet::new(),
            closed: BTreeMap::new(),
            answers: BTreeMap::new(),
            key_asks: Vec::new(),
            asked: 0,
            failing: None,
            fenced: None,
        };
        world.interpret();
        world.rest();
        let request = AdminRequest::VolumeCreate {
            name: "v".into(),
            size_bytes: VOLUME_BYTES,
            labels: BTreeMap::new(),
            encrypted: false,
        };
        world.ask(request).unwrap();
        world
    }

    /// The process ends at once, and a new one opens what the device holds.
    pub fn reopen(&mut self) {
        self.queue.clear();
        self.events.clear();
        self.key_asks.clear();
        let (now, wall) = (Moment(self.now), WallClock(self.now / 1000));
        self.node = Node::new(config(), now, wall, &mut self.effects);
        self.interpret();
    }

    /// An operator asks; the number of the answer.
    pub fn begin(&mut self, request: AdminRequest) -> u64 {
        let number = self.asked + 1;
        self.asked = number;
        let token = AdminToken(number);
        self.events.push(Event::Admin { token, request });
        number
    }

    /// What an operator was answered.
    pub fn answer(&self, number: u64) -> Option<Result<AdminReply, AdminError>> {
        self.answers.get(&number).cloned()
    }

    /// An operator asks, and is answered.
    pub fn ask(&mut self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let number = self.begin(request);
        for _ in 0..100 {
            self.rest_a_little();
            if let Some(answer) = self.answers.get(&number) {
                return answer.clone();
            }
        }
        panic!("an operator is never answered")
    }

    /// One turn, a hundred microseconds after the last.
    pub fn turn(&mut self) {
        self.now += 100_000;
        let (now, wall) = (Moment(self.now), WallClock(self.now / 1000));
        for event in self.events.drain(..) {
            self.node.step(now, wall, event, &mut self.effects);
        }
        self.node.settle(now, wall, &mut self.effects);
        self.interpret();
    }

    /// So many operations of the device end.
    pub fn disk(&mut self, count: usize) {
        for (io, op) in self.queue.drain(..count.min(self.queue.len())) {
            let fails = match (&op, &self.failing) {
                (DiskOp::Write { offset, .. }, Some(range)) => range.contains(offset),
                _ => false,
            };
            let result = match op {
                DiskOp::Write { offset, bufs } => {
                    let mut at = usize::try_from(offset).unwrap();
                    for buf in bufs {
                        self.device[at..at + buf.len()].copy_from_slice(&buf);
                        at += buf.len();
                    }
                    Bytes::new()
                }
                DiskOp::Read { offset, length } => {
                    let at = usize::try_from(offset).unwrap();
                    AlignedBuf::copy_of(&self.device[at..at + length]).freeze()
                }
                DiskOp::Sync => Bytes::new(),
            };
            let result = match fails {
                true => Err(DiskError {
                    kind: DiskErrorKind::Io,
                    errno: 5,
                }),
                false => Ok(result),
            };
            self.events.push(Event::Disk { io, result });
        }
    }

    /// Reads of the device end, and nothing else does.
    pub fn disk_reads(&mut self) {
        let (reads, rest): (Vec<_>, Vec<_>) = self
            .queue
            .drain(..)
            .partition(|(_, op)| matches!(op, DiskOp::Read { .. }));
        let count = reads.len();
        self.queue = reads.into_iter().chain(rest).collect();
        self.disk(count);
    }

    /// Until nothing is left to do but what waits for clients.
    pub fn rest(&mut self) {
        for _ in 0..2000 {
            self.disk(usize::MAX);
            self.events.push(Event::Timer);
            self.turn();
        }
    }

    pub fn interpret(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Disk { io, op } => self.queue.push_back((io, op)),
                Effect::Send { conn, bufs } => {
                    let reply = self.replies.entry(conn).or_default();
                    bufs.iter().for_each(|buf| reply.extend_from_slice(buf));
                    if !self.deaf.contains(&conn) {
                        self.events.push(Event::Sent { conn });
                    }
                }
                Effect::Close { conn, reason } => {
                    let gone = reason.clone();
                    self.events.push(Event::Disconnected { conn, reason });
                    self.closed.insert(conn, gone);
                }
                Effect::Fenced { message } if self.failing.is_some() => self.fenced = Some(message),
                Effect::OpenFailed { message } | Effect::Fenced { message } => panic!("{message}"),
                Effect::AdminReply { token, result } => {
                    self.answers.insert(token.0, result);
                }
                Effect::Keys(ask) => self.key_asks.push(ask),
                _ => {}
            }
        }
    }

    pub fn attach(&mut self, number: u64) -> ConnId {
        let conn = self.connect(number);
        self.give(conn, option(1, b"v"));
        (0..20).for_each(|_| self.turn());
        self.replies.remove(&conn);
        conn
    }

    /// A client that has sent its flags.
    pub fn connect(&mut self, number: u64) -> ConnId {
        let conn = ConnId(number);
        let transport = Transport::Unix;
        self.events.push(Event::Connected {
            conn,
            transport,
            tls: esker_node::TlsPolicy::Off,
        });
        self.give(conn, Vec::from(3u32.to_be_bytes()));
        conn
    }

    /// The volume's snapshot `name` is taken.
    pub fn snapshot(&mut self, name: &str) -> Result<AdminReply, AdminError> {
        self.ask(AdminRequest::SnapshotCreate {
            volume: "v".into(),
            name: name.into(),
            labels: BTreeMap::new(),
        })
    }

    pub fn delete_snapshot(&mut self, name: &str) -> Result<AdminReply, AdminError> {
        self.ask(AdminRequest::SnapshotDelete {
            volume: "v".into(),
            name: name.into(),
        })
    }

    /// A client that has asked for structured replies, selected contexts of an export and attached to
    /// it; the kinds and the data of what it was told.
    pub fn go(&mut self, number: u64, export: &str, contexts: &[&str]) -> Vec<(u32, Vec<u8>)> {
        let conn = self.connect(number);
        self.give(conn, option(8, &[]));
        if !contexts.is_empty() {
            self.give(conn, option(10, &queries(export, contexts)));
        }
        let go = [text(export), vec![0, 0]].concat();
        self.give(conn, option(7, &go));
        self.rest_a_little();
        self.told(conn)
    }

    /// What a client in its handshake was told.
    pub fn told(&mut self, conn: ConnId) -> Vec<(u32, Vec<u8>)> {
        let replies = self.replies.remove(&conn).unwrap_or_default();
        let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
        let mut rest = replies
            .strip_prefix(b"NBDMAGICIHAVEOPT\0\x03")
            .unwrap_or(&replies);
        let mut told = Vec::new();
        while let Some(after) = rest.strip_prefix(&magic) {
            let kind = u32::from_be_bytes(after[4..8].try_into().unwrap());
            let length = u32::from_be_bytes(after[8..12].try_into().unwrap()) as usize;
            told.push((kind, after[12..12 + length].to_vec()));
            rest = &after[12 + length..];
        }
        assert!(rest.is_empty(), "{rest:?}");
        told
    }

    /// Chunks of one reply, as kinds and data; a simple reply is its error number.
    pub fn chunks(&mut self, conn: ConnId) -> Vec<(u16, Vec<u8>)> {
        let replies = self.replies.remove(&conn).unwrap_or_default();
        let mut rest = replies.as_slice();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix(&0x6744_6698u32.to_be_bytes()) {
                chunks.push((0, after[..4].to_vec()));
                rest = &after[12..];
                continue;
            }
            let after = rest.strip_prefix(&0x668e_33efu32.to_be_bytes()).unwrap();
            let kind = u16::from_be_bytes(after[2..4].try_into().unwrap());
            let length = u32::from_be_bytes(after[12..16].try_into().unwrap()) as usize;
            chunks.push((kind, after[16..16 + length].to_vec()));
            rest = &after[16 + length..];
        }
        chunks
    }

    /// A request and its answer.
    pub fn answered(&mut self, conn: ConnId, request: Vec<u8>) -> Vec<(u16, Vec<u8>)> {
        self.give(conn, request);
        self.rest_a_little();
        self.chunks(conn)
    }

    /// Extents by context, asked on and on through `length` bytes.
    pub fn status(&mut self, conn: ConnId, length: usize) -> Vec<Vec<(usize, u32)>> {
        self.give(conn, request(STATUS, 0, length, 0));
        self.rest_a_little();
        extents(&self.chunks(conn))
    }

    /// Time passes.
    pub fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.now += 500_000_000;
            self.events.push(Event::Timer);
            self.rest_a_little();
        }
    }

    /// A client sends.
    pub fn give(&mut self, conn: ConnId, data: Vec<u8>) {
        let data = data.into();
        self.events.push(Event::Received { conn, data });
    }

    pub fn replied(&self, conn: ConnId) -> usize {
        self.replies.get(&conn).map_or(0, Vec::len)
    }

    pub fn queued_bytes(&self) -> usize {
        let bytes = |(_, op): &(IoId, DiskOp)| match op {
            DiskOp::Read { length, .. } => *length,
            DiskOp::Write { bufs, .. } => bufs.iter().map(Bytes::len).sum(),
            DiskOp::Sync => 0,
        };
        self.queue.iter().map(bytes).sum()
    }

    pub fn fill(&mut self, conn: ConnId) {
        for at in 0..usize::try_from(VOLUME_BYTES).unwrap() / (8 * MIB) {
            self.give(conn, request(WRITE, at * 8 * MIB, 8 * MIB, 7));
            self.rest_a_little();
        }
        self.replies.remove(&conn);
    }

    pub fn rest_a_little(&mut self) {
        for _ in 0..50 {
            self.disk(usize::MAX);
            self.events.push(Event::Timer);
            self.turn();
        }
    }
}

/// Extents of an answer, by context.
pub fn extents(chunks: &[(u16, Vec<u8>)]) -> Vec<Vec<(usize, u32)>> {
    let number = |raw: &[u8]| u32::from_be_bytes(raw.try_into().unwrap());
    let of = |(kind, data): &(u16, Vec<u8>)| {
        assert_eq!(*kind, 5, "{data:?}");
        let pairs = data[4..].chunks(8);
        pairs
            .map(|p| (number(&p[..4]) as usize, number(&p[4..])))
            .collect()
    };
    chunks.iter().map(of).collect()
}

fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&length, text.as_bytes()].concat()
}

/// Payload of an option about metadata contexts.
pub fn queries(export: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes().to_vec();
    let queries: Vec<u8> = queries.iter().flat_map(|q| text(q)).collect();
    [text(export), count, queries].concat()
}

/// An option of the handshake.
pub fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let header = [b"IHAVEOPT", &code.to_be_bytes()[..], &length.to_be_bytes()];
    [&header.concat(), data].concat()
}

pub fn request(command: u16, offset: usize, length: usize, fill: u8) -> Vec<u8> {
    let mut bytes = Vec::from(0x2560_9513u32.to_be_bytes());
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    bytes.extend((offset as u64).to_be_bytes());
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    if command == WRITE {
        bytes.resize(bytes.len() + length, fill);
    }
    bytes
}
