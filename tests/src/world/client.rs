//! A simulated NBD client: what it is at, and which request it makes next.

use super::plan::Plan;
use super::wire::{Command, Decoder, DF, FUA, NO_HOLE};
use crate::sim::SimRng;
use esker_base::BLOCK_SIZE_U64;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// What a client is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Not connected.
    Away,
    /// In the handshake.
    Greeting,
    /// Attached.
    Attached,
    /// Has said DISC and waits for the end.
    Leaving,
    /// Will never come back.
    Gone,
}

/// A request, before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub command: Command,
    pub flags: u16,
    pub offset: u64,
    pub length: u64,
}

/// A request on its way.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub wish: Wish,
    /// The write's id, for the oracle.
    pub write: Option<u64>,
    pub cells: Range<usize>,
    /// Number of the event at which it was asked.
    pub at: u64,
    /// The same in virtual time.
    pub at_ns: u64,
    /// What came of a read.
    pub data: Vec<u8>,
    /// Bytes of it that came.
    pub got: u64,
}

/// A client.
pub(crate) struct Client {
    /// Volume it uses.
    pub slot: usize,
    pub tcp: bool,
    pub structured: bool,
    pub mood: Mood,
    pub conn: Option<u64>,
    pub decoder: Decoder,
    pub size_bytes: u64,
    /// The snapshot of its volume that it reads, and which volume that is; none when it uses the volume.
    pub snapshot: Option<(String, u64)>,
    /// The attachment that it named; 0 for none.
    pub attachment: u64,
    /// Changes of hands of which nothing more was to come when it asked for its volume.
    pub asks_seen: u64,
    /// The volume it has asked for.
    pub name: String,
    /// Sizes the volume may have had when it connected: the answer may be older than a resize.
    pub sizes_before: BTreeSet<u64>,
    pub asked: BTreeMap<u64, Asked>,
    pub next_cookie: u64,
    pub depth: usize,
    /// Requests of a client that follows a script; others draw theirs.
    pub script: Option<VecDeque<Wish>>,
    /// Results of a script's requests: error numbers.
    pub results: Vec<(Wish, u32)>,
    /// When it last tried to attach, in virtual time.
    pub since_ns: u64,
    /// Which node it tries next.
    pub next_host: usize,
    /// A wake-up of it is queued.
    pub thinking: bool,
}

impl Client {
    pub fn new(slot: usize, plan: &Plan, rng: &mut SimRng) -> Self {
        let structured = rng.chance(500);
        Self {
            slot,
            tcp: rng.chance(plan.tcp),
            structured,
            mood: Mood::Away,
            conn: None,
            decoder: Decoder::new(structured),
            size_bytes: 0,
            snapshot: None,
            attachment: 0,
            asks_seen: 0,
            name: String::new(),
            sizes_before: BTreeSet::new(),
            asked: BTreeMap::new(),
            next_cookie: rng.next(),
            depth: plan.depth,
            script: None,
            results: Vec::new(),
            since_ns: 0,
            next_host: rng.index(plan.nodes),
            thinking: false,
        }
    }

    /// Answers come when durable.
    pub fn is_durable(&self, asked: &Asked, replicated: bool) -> bool {
        self.tcp || replicated || asked.wish.flags & FUA != 0
    }

    /// The next request by chance.
    pub fn wish(&self, plan: &Plan, rng: &mut SimRng) -> Wish {
        let command = match rng.below(100) {
            0..35 => Command::Read,
            35..70 => Command::Write,
            70..80 => Command::Flush,
            80..88 => Command::Trim,
            88..97 => Command::WriteZeroes,
            _ => Command::Cache,
        };
        if command == Command::Flush {
            let (flags, offset, length) = (0, 0, 0);
            return Wish {
                command,
                flags,
                offset,
                length,
            };
        }
        let mut flags = 0;
        if rng.chance(200) && command != Command::Cache {
            flags |= FUA;
        }
        if command == Command::WriteZeroes && rng.chance(400) {
            flags |= NO_HOLE;
        }
        if command == Command::Read && self.structured && rng.chance(300) {
            flags |= DF;
        }
        let blocks = self.size_bytes / BLOCK_SIZE_U64;
        let most = plan.request_blocks_max.min(blocks);
        // Where the store is to run full, much is written all over the volume.
        let fills = plan.overfull && command == Command::Write && rng.chance(700);
        let count = match rng.chance(600) {
            _ if fills => most,
            true => 1,
            false => rng.range(1, most),
        };
        // A few blocks are hot, so that requests meet.
        let reach = if rng.chance(400) && !fills {
            blocks.min(8)
        } else {
            blocks
        };
        let first = rng.below(reach.saturating_sub(count) + 1);
        let (mut from, mut to) = (first * BLOCK_SIZE_U64, (first + count) * BLOCK_SIZE_U64);
        if rng.chance(plan.odd) {
            let per = plan.grid.per_block();
            from = plan
                .grid
                .start(usize::try_from(first).unwrap_or(0) * per + rng.index(per));
            let last = usize::try_from(first + count - 1).unwrap_or(0);
            to = plan.grid.start(last * per + 1 + rng.index(per));
            if to <= from {
                to = (first + count) * BLOCK_SIZE_U64;
            }
        }
        let (offset, length) = (from, to - from);
        Wish {
            command,
            flags,
            offset,
            length,
        }
    }
}

/// The bytes that a request changes: trims leave blocks alone that they cover in part.
pub(crate) fn changes(wish: &Wish) -> (u64, u64) {
    let end = wish.offset + wish.length;
    match wish.command {
        Command::Write | Command::WriteZeroes => (wish.offset, end),
        Command::Trim => {
            let from = wish.offset.next_multiple_of(BLOCK_SIZE_U64);
            let to = end - end % BLOCK_SIZE_U64;
            (from, to.max(from))
        }
        _ => (0, 0),
    }
}

/// A connection, between a client and a process.
pub(crate) struct Conn {
    /// None once the client has left.
    pub client: Option<usize>,
    pub host: usize,
    /// Bytes on their way to the node.
    pub to_node: VecDeque<bytes::Bytes>,
    /// Bytes on their way to the client.
    pub to_client: VecDeque<Vec<bytes::Bytes>>,
    /// The node takes no bytes now.
    pub paused: bool,
    /// A delivery to the node is queued.
    pub delivering: bool,
    /// The last thing queued towards the client arrives then.
    pub client_hears_ns: u64,
    /// The node has closed it.
    pub closed: bool,
}
