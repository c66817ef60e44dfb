//! Clients and their connections: bytes both ways, and what answers mean to the oracle.

use super::client::{changes, Asked, Client, Conn, Mood, Wish};
use super::content::fill;
use super::host::State;
use super::wire::{self, Command, Decoder, Said};
use super::world::{Ev, World};
use bytes::Bytes;
use esker_base::ConnId;
use esker_node::{Event, Transport};
use std::collections::VecDeque;

/// Error numbers of the protocol.
const EIO: u32 = 5;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;
/// A client that has waited so long for an attachment tries elsewhere.
const ATTACH_NS_MAX: u64 = 3_000_000_000;

impl World {
    pub(crate) fn think_soon(&mut self, client: usize) {
        if self.clients[client].thinking || self.clients[client].mood == Mood::Gone {
            return;
        }
        let Some(usual) = self.pause_ns(client) else {
            return;
        };
        self.clients[client].thinking = true;
        let delay = self.latency(usual);
        self.at(delay, Ev::Think(client));
    }

    /// How long a client does nothing. None: until it is answered.
    fn pause_ns(&self, client: usize) -> Option<u64> {
        let c = &self.clients[client];
        let hushed = self.quiet_damage || self.now < self.hush_until;
        match c.mood {
            Mood::Away if self.plan.options.extras && self.plan.nodes > 1 => Some(5_000_000),
            Mood::Away => Some(2_000_000),
            _ if !self.plan.options.extras => Some(self.plan.think_ns),
            Mood::Greeting | Mood::Leaving => Some(2_000_000),
            Mood::Attached if c.asked.len() >= c.depth => None,
            Mood::Attached if hushed && c.script.is_none() => Some(5_000_000),
            Mood::Attached | Mood::Gone => Some(self.plan.think_ns),
        }
    }

    pub(crate) fn think(&mut self, client: usize) {
        let c = &mut self.clients[client];
        c.thinking = false;
        match c.mood {
            Mood::Gone => return,
            Mood::Away => self.attach(client),
            Mood::Greeting => {
                if self.now > c.since_ns + ATTACH_NS_MAX {
                    self.greeting_overdue(client);
                    self.client_leaves(client);
                }
            }
            Mood::Attached => self.request_something(client),
            Mood::Leaving => {}
        }
        self.think_soon(client);
    }

    /// A client was not answered: its volume may be starting, but not gone.
    fn greeting_overdue(&mut self, client: usize) {
        let c = &self.clients[client];
        let gone = self.slots[c.slot].gone.contains(&c.name);
        let host = c.conn.and_then(|id| Some(self.conns.get(&id)?.host));
        let serving = host.is_some_and(|h| self.may_be_told(h));
        if self.plan.options.extras && gone && serving && self.plan.nodes == 1 {
            self.violate(format!(
                "an attachment to {} is not answered",
                self.clients[client].name
            ));
        }
    }

    fn attach(&mut self, client: usize) {
        let c = &self.clients[client];
        let open = self.slots[c.slot].is_open();
        let host = c.next_host;
        let state = self.hosts[host].state;
        let up = matches!(state, State::Serving | State::Opening) && !self.is_held_up(host);
        if self.plan.nodes > 1 {
            self.clients[client].next_host = (host + 1) % self.plan.nodes;
        }
        let idle = self.is_calm() && self.clients[client].script.is_none();
        if !open || !up || idle {
            return;
        }
        let id = self.next_conn;
        self.next_conn += 1;
        self.conns.insert(
            id,
            Conn {
                client: Some(client),
                host,
                to_node: VecDeque::new(),
                to_client: VecDeque::new(),
                paused: false,
                delivering: false,
                client_hears_ns: self.now,
                closed: false,
            },
        );
        self.choose_export(client);
        let c = &mut self.clients[client];
        c.conn = Some(id);
        c.mood = Mood::Greeting;
        c.since_ns = self.now;
        let volume = self.slots[c.slot].volume.as_ref();
        c.sizes_before = volume.map(|v| v.sizes.clone()).unwrap_or_default();
        c.decoder = Decoder::new(c.structured);
        c.name.clear();
        let transport = match c.tcp {
            true => Transport::Tcp(format!("192.0.2.1:{id}")),
            false => Transport::Unix,
        };
        self.stats.did("connections");
        let conn = ConnId(id);
        let tls = esker_node::TlsPolicy::Off;
        let connected = Event::Connected {
            conn,
            transport,
            tls,
        };
        self.step_node(host, connected);
    }

    fn request_something(&mut self, client: usize) {
        let c = &mut self.clients[client];
        if c.asked.len() >= c.depth {
            return;
        }
        let scripted = c.script.as_mut().map(VecDeque::pop_front);
        let leave = match scripted {
            None => self.is_in_the_way(client) || self.is_calm() || self.rng.chance(3),
            Some(None) => self.clients[client].asked.is_empty(),
            Some(Some(_)) => false,
        };
        if leave {
            self.stats.did("DISC");
            self.clients[client].mood = Mood::Leaving;
            let bytes = wire::request(Command::Disc, 0, 0, 0, 0, &[]);
            return self.send_bytes(client, bytes);
        }
        let wish = match scripted {
            Some(Some(wish)) => wish,
            Some(None) => return,
            None if self.quiet_damage || self.now < self.hush_until => return,
            None => {
                let wish = self.clients[client].wish(&self.plan, &mut self.rng);
                let is_reader = self.clients[client].snapshot.is_some();
                let reads = is_reader && self.rng.chance(900);
                self.clients[client].tame(wish, reads)
            }
        };
        self.ask(client, wish);
    }

    fn ask(&mut self, client: usize, wish: Wish) {
        let c = &mut self.clients[client];
        let cookie = c.next_cookie;
        c.next_cookie = c.next_cookie.wrapping_add(1);
        let grid = &self.plan.grid;
        let (from, to) = match wish.command {
            Command::Read => (wish.offset, wish.offset + wish.length),
            _ => changes(&wish),
        };
        let cells = grid.cells(from, to);
        let mut payload = Vec::new();
        let mut write = None;
        let is_reader = c.snapshot.is_some();
        let Some(volume) = self.slots[c.slot].volume.as_mut() else {
            return;
        };
        match wish.command {
            // Refused: what it would change is no matter for the volume.
            Command::Write if is_reader => {
                payload = vec![0x5a; usize::try_from(wish.length).unwrap_or(0)];
            }
            _ if is_reader => {}
            Command::Write | Command::WriteZeroes | Command::Trim => {
                let id = self.next_write;
                self.next_write += 1;
                write = Some(id);
                let zero = wish.command != Command::Write;
                volume
                    .oracle
                    .write_asked(id, cells.clone(), zero, self.step);
                if !zero {
                    payload = fill(id, wish.offset, usize::try_from(wish.length).unwrap_or(0));
                }
            }
            Command::Read => volume.oracle.read_asked(self.step),
            _ => {}
        }
        if let Some(id) = write {
            self.holder_writes(client, id);
        }
        let length = u32::try_from(wish.length).unwrap_or(0);
        let bytes = wire::request(
            wish.command,
            wish.flags,
            cookie,
            wish.offset,
            length,
            &payload,
        );
        let is_read = wish.command == Command::Read;
        let room = if is_read {
            usize::try_from(wish.length).unwrap_or(0)
        } else {
            0
        };
        let asked = Asked {
            wish,
            write,
            cells,
            at: self.step,
            at_ns: self.now,
            data: vec![0xee; room],
            got: 0,
        };
        self.log(|| format!("client {client} asks {cookie:x}: {wish:?}, write {write:?}"));
        self.clients[client].asked.insert(cookie, asked);
        self.stats.did(match wish.command {
            Command::Read => "READ",
            Command::Write => "WRITE",
            Command::Flush => "FLUSH",
            Command::Trim => "TRIM",
            Command::WriteZeroes => "WRITE_ZEROES",
            Command::Cache => "CACHE",
            Command::Disc => "DISC",
        });
        self.send_bytes(client, bytes);
    }

    /// Sends bytes to the node, in whatever pieces.
    pub(crate) fn send_bytes(&mut self, client: usize, bytes: Vec<u8>) {
        let Some(id) = self.clients[client].conn else {
            return;
        };
        let mut rest = Bytes::from(bytes);
        while rest.len() > 1 && self.rng.chance(150) {
            let at = 1 + self.rng.index(rest.len() - 1);
            let piece = rest.split_to(at);
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.to_node.push_back(piece);
            }
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.to_node.push_back(rest);
        }
        self.deliver_soon(id);
    }

    pub(crate) fn deliver_soon(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if conn.delivering || conn.paused || conn.to_node.is_empty() {
            return;
        }
        conn.delivering = true;
        let delay = self.latency(10_000);
        self.at(delay, Ev::ToNode(id));
    }

    pub(crate) fn deliver_to_node(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.delivering = false;
        if conn.paused || conn.closed {
            return;
        }
        let host = conn.host;
        if let Some(data) = conn.to_node.pop_front() {
            let conn = ConnId(id);
            self.step_node(host, Event::Received { conn, data });
        }
        self.deliver_soon(id);
    }

    pub(crate) fn send_effect(&mut self, id: u64, bufs: Vec<Bytes>) {
        for buf in &bufs {
            self.trace.note(&[id, buf.len() as u64]);
        }
        let delay = self.latency(10_000);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if conn.closed {
            return self.violate(format!("a send on connection {id} after its close"));
        }
        conn.to_client.push_back(bufs);
        conn.client_hears_ns = conn.client_hears_ns.max(self.now + delay);
        let at = conn.client_hears_ns;
        self.at_time(at, Ev::ToClient(id));
    }

    pub(crate) fn close_effect(&mut self, id: u64, reason: &str) {
        self.log(|| format!("connection {id} closed by the node: {reason}"));
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.closed = true;
        let at = conn.client_hears_ns;
        let (client, host) = (conn.client, conn.host);
        let stopping = self.hosts[host].state == State::Stopping;
        let leaving = client.is_none_or(|c| self.clients[c].mood == Mood::Leaving);
        let fenced = reason.starts_with("fenced: ");
        let fenced = fenced && client.is_some_and(|c| self.may_be_fenced(c));
        if fenced {
            self.stats.did("sessions fenced");
        }
        if !stopping && !leaving && !fenced {
            self.violate(format!("the node closed connection {id}: {reason}"));
        }
        self.at_time(at, Ev::Closed(id));
    }

    pub(crate) fn connection_closed(&mut self, id: u64) {
        // The end of a stream comes after all of it. What was on its way while the process was held up
        // may be due later than the end.
        while self.conns.get(&id).is_some_and(|c| !c.to_client.is_empty()) {
            self.deliver_to_client(id);
        }
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        if let Some(client) = conn.client {
            let c = &self.clients[client];
            let stopping = self.hosts[conn.host].state == State::Stopping;
            let fenced = self.may_be_fenced(client);
            if c.mood == Mood::Leaving && !c.asked.is_empty() && !stopping && !fenced {
                self.violate(format!(
                    "{} requests were not answered before the session ended",
                    self.clients[client].asked.len()
                ));
            }
            self.detach(client);
        }
        let event = Event::Disconnected {
            conn: ConnId(id),
            reason: "closed".into(),
        };
        self.step_node(conn.host, event);
    }

    /// A client goes away without a word; the node learns of it a little later.
    pub(crate) fn client_leaves(&mut self, client: usize) {
        let Some(id) = self.clients[client].conn else {
            return;
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.client = None;
        }
        self.detach(client);
        let delay = self.latency(50_000);
        self.at(delay, Ev::Gone(id));
    }

    pub(crate) fn connection_gone(&mut self, id: u64) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        let event = Event::Disconnected {
            conn: ConnId(id),
            reason: "end of stream".into(),
        };
        self.step_node(conn.host, event);
    }

    /// A client without a connection: what it asked for stays unanswered.
    pub(crate) fn detach(&mut self, client: usize) {
        let c = &mut self.clients[client];
        c.conn = None;
        let done = c.mood == Mood::Leaving && c.script.is_some() && c.asked.is_empty();
        c.mood = if done { Mood::Gone } else { Mood::Away };
        let (slot, is_reader) = (c.slot, c.snapshot.is_some());
        for asked in std::mem::take(&mut c.asked).into_values() {
            if let Some(volume) = self.slots[slot].volume.as_mut() {
                if asked.wish.command == Command::Read && !is_reader {
                    volume.oracle.read_dropped(asked.at);
                }
            }
        }
        self.wake(client);
    }

    /// A client that waited for an answer goes on.
    fn wake(&mut self, client: usize) {
        if self.plan.options.extras {
            self.think_soon(client);
        }
    }

    pub(crate) fn deliver_to_client(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let Some(bufs) = conn.to_client.pop_front() else {
            return;
        };
        let (client, host) = (conn.client, conn.host);
        if let Some(client) = client {
            self.client_hears(client, &bufs);
        }
        drop(bufs);
        if self.conns.contains_key(&id) {
            let conn = ConnId(id);
            self.step_node(host, Event::Sent { conn });
        }
    }

    /// A client takes bytes in and acts on them.
    pub(crate) fn client_hears(&mut self, client: usize, bufs: &[Bytes]) {
        for buf in bufs {
            self.clients[client].decoder.receive(buf);
            loop {
                let Client { decoder, asked, .. } = &mut self.clients[client];
                let read_of = |cookie: u64| {
                    let asked = asked.get(&cookie)?;
                    let read = asked.wish.command == Command::Read;
                    let length = u32::try_from(asked.wish.length).unwrap_or(0);
                    read.then_some((asked.wish.offset, length))
                };
                match decoder.next(&read_of) {
                    Ok(Some(said)) => self.client_told(client, said),
                    Ok(None) => break,
                    Err(text) => return self.violate(format!("client {client}: {text}")),
                }
                if self.clients[client].conn.is_none() {
                    return;
                }
            }
        }
    }

    fn client_told(&mut self, client: usize, said: Said) {
        match said {
            Said::Greeting => {
                let c = &self.clients[client];
                let structured = c.structured;
                let Some(volume) = &self.slots[c.slot].volume else {
                    return self.client_leaves(client);
                };
                let name = volume.name.clone();
                let export = match &c.snapshot {
                    None => self.export_of_holder(client, &name),
                    Some((snapshot, _)) => format!("{name}@{snapshot}"),
                };
                let bytes = wire::hello(&export, structured);
                self.clients[client].name = name;
                self.send_bytes(client, bytes);
            }
            Said::Size(size) => {
                self.clients[client].size_bytes = size;
                if self.clients[client].snapshot.is_some() {
                    return; // as large as the volume was then
                }
                let slot = self.clients[client].slot;
                if let Some(growth) = self.growth.get(slot) {
                    if !growth.asked.contains(&size) {
                        self.violate(format!("an export of {size} bytes: nobody asked for that"));
                    }
                    return;
                }
                let slot = &mut self.slots[slot];
                let quiet = slot.change.is_none() && slot.resizing.is_none();
                let Some(volume) = slot.volume.as_mut().filter(|_| quiet) else {
                    return;
                };
                if volume.sizes.is_empty() || volume.sizes.contains(&size) {
                    volume.sizes.insert(size);
                    volume.sizes.retain(|s| *s == size);
                } else if !self.clients[client].sizes_before.contains(&size) {
                    let known = format!("{:?}", volume.sizes);
                    self.violate(format!("an export of {size} bytes should have {known}"));
                }
            }
            Said::OptionOk(7) => {
                self.clients[client].mood = Mood::Attached;
                if let Some(conn) = self.clients[client]
                    .conn
                    .filter(|_| self.plan.options.extras)
                {
                    // It tries this node first when it comes again.
                    let host = self.conns.get(&conn).map(|conn| conn.host);
                    self.clients[client].next_host = host.unwrap_or(0);
                }
                self.stats.did("attachments");
            }
            Said::OptionOk(_) => {}
            Said::OptionError(..) => self.client_leaves(client),
            Said::Data(cookie, offset, data) => {
                self.content(client, cookie, offset, Content::Bytes(&data));
            }
            Said::Hole(cookie, offset, length) => {
                self.content(client, cookie, offset, Content::Hole(length));
            }
            Said::Done(cookie, error) => self.answered(client, cookie, error),
        }
    }

    fn content(&mut self, client: usize, cookie: u64, offset: u64, content: Content<'_>) {
        let length = match content {
            Content::Bytes(data) => data.len(),
            Content::Hole(length) => length as usize,
        };
        let Some(asked) = self.clients[client].asked.get_mut(&cookie) else {
            return self.violate(format!("content for {cookie}, which nobody asked"));
        };
        let at = offset
            .checked_sub(asked.wish.offset)
            .map(|at| usize::try_from(at).unwrap_or(0));
        let target = at.and_then(|at| asked.data.get_mut(at..at + length));
        let Some(target) = target else {
            return self.violate(format!("content at {offset} is outside of what was asked"));
        };
        match content {
            Content::Bytes(data) => target.copy_from_slice(data),
            Content::Hole(_) => target.fill(0),
        }
        asked.got += length as u64;
    }

    fn answered(&mut self, client: usize, cookie: u64, error: u32) {
        let Some(asked) = self.clients[client].asked.remove(&cookie) else {
            return self.violate(format!("an answer to {cookie}, which nobody asked"));
        };
        self.trace.note(&[cookie, u64::from(error)]);
        self.log(|| format!("client {client} is answered {cookie:x}: {error}"));
        self.wake(client);
        let c = &mut self.clients[client];
        if c.script.is_some() {
            c.results.push((asked.wish, error));
        }
        if c.snapshot.is_some() {
            return self.reader_answered(client, &asked, error);
        }
        let slot = c.slot;
        let durable = self.clients[client].is_durable(&asked, self.plan.nodes > 1);
        if error != 0 {
            let fenced = self.may_be_fenced(client);
            return self.refused(slot, &asked, error, fenced);
        }
        let step = self.step;
        let Some(volume) = self.slots[slot].volume.as_mut() else {
            return;
        };
        let held = match asked.wish.command {
            Command::Flush => {
                volume.oracle.flushed(asked.at);
                Ok(())
            }
            Command::Read if asked.got != asked.wish.length => {
                Err(format!("{} of {} bytes", asked.got, asked.wish.length))
            }
            Command::Read => {
                volume
                    .oracle
                    .read_answered(asked.cells.clone(), &asked.data, asked.at, step)
            }
            _ => {
                if let Some(id) = asked.write {
                    volume.oracle.write_answered(id, durable, step);
                }
                Ok(())
            }
        };
        if let Err(text) = held {
            let name = volume.name.clone();
            self.violate(format!(
                "volume {name}, client {client}, {:?}: {text}",
                asked.wish
            ));
        }
    }

    /// A request failed: it must have had a reason.
    fn refused(&mut self, slot: usize, asked: &Asked, error: u32, fenced: bool) {
        if asked.wish.command == Command::Read {
            if let Some(volume) = self.slots[slot].volume.as_mut() {
                volume.oracle.read_dropped(asked.at);
            }
        }
        let faulty = self.plan.weights.disk_errors > 0 || self.plan.damages();
        let expected = match error {
            EIO => faulty || fenced,
            // Segments with a few live slots each can fill a store before its volumes do: nothing
            // moves survivors yet.
            ENOSPC => true,
            ESHUTDOWN if fenced => true,
            ESHUTDOWN => self.hosts.iter().any(|h| h.state == State::Stopping),
            _ => false,
        };
        self.stats.did(match error {
            EIO => "answers EIO",
            ENOSPC => "answers ENOSPC",
            ESHUTDOWN => "answers ESHUTDOWN",
            _ => "other errors",
        });
        if !expected {
            self.violate(format!(
                "{:?} failed with {error} for no reason",
                asked.wish
            ));
        }
    }
}

enum Content<'a> {
    Bytes(&'a [u8]),
    Hole(u32),
}
