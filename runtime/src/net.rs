//! Sockets: what the machine asks of connections, and what the kernel reports about them.
//!
//! Every change marks a connection as touched; [`Net::settle`] then brings the kernel's side of
//! each touched connection in line with its phase, once per turn.

use crate::connection::{Connection, Leaving, Phase};
use crate::handle::{ConnectionStatus, Inbound, Shared};
use crate::ring::{Completion, Op, Owner, ReceiveBuffers, Ring, Vectors};
use crate::tls::{End, Tls, TlsSlot};
use bytes::Bytes;
use esker_base::{limits, ConnId, Moment};
use esker_nbd::Session;
use esker_node::{Event, TlsPolicy, Transport};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How long queued output may take after a close.
pub const CLOSE_DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the client's end of stream is awaited after ours.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
/// Output queued for one connection past which it is cut off. The machine admits far less
/// ([`limits::SESSION_BYTES_MAX`]); this bounds what a mistake there can cost.
pub const SEND_QUEUE_BYTES_MAX: usize = 4 * limits::SESSION_BYTES_MAX;
/// How often in a row a socket operation may be interrupted.
const TRIES_MAX: u32 = 64;
/// Idle time after which TCP asks whether the peer is still there, and between two questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// The connections of a loop.
pub(crate) struct Net {
    connections: HashMap<ConnId, Connection>,
    next_conn: u64,
    touched: Vec<ConnId>,
    deadlines: BinaryHeap<Reverse<(Moment, ConnId)>>,
    buffers: ReceiveBuffers,
    tls: TlsSlot,
    shared: Arc<Shared>,
    name: String,
}

/// Events for the machine, in order.
pub(crate) type Events = VecDeque<Event>;

impl Net {
    pub(crate) fn new(
        shared: Arc<Shared>,
        name: String,
        receive_buffer_bytes: usize,
        tls: TlsSlot,
    ) -> Self {
        // The store's index is part of each id, so that ids are unique in the node.
        let next_conn = (esker_base::num::to_u64(shared.store_index) << 48) + 1;
        Self {
            connections: HashMap::new(),
            next_conn,
            touched: Vec::new(),
            deadlines: BinaryHeap::new(),
            buffers: ReceiveBuffers::new(receive_buffer_bytes),
            tls,
            shared,
            name,
        }
    }

    /// Takes in a connected socket.
    pub(crate) fn connect(
        &mut self,
        fd: OwnedFd,
        transport: Transport,
        tls: TlsPolicy,
        events: &mut Events,
    ) {
        let conn = self.add(fd, &transport);
        events.push_back(Event::Connected {
            conn,
            transport,
            tls,
        });
    }

    /// Takes in a connection of another loop, with the bytes that were on their way.
    pub(crate) fn adopt(
        &mut self,
        fd: OwnedFd,
        transport: Transport,
        session: Box<Session>,
        (tls, unread, unsent): (Option<Box<Tls>>, Vec<Bytes>, Vec<Bytes>),
        events: &mut Events,
    ) {
        let conn = self.add(fd, &transport);
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.tls = tls;
            connection.queue.push_unanswered(unsent);
            connection.held = Some(joined(unread)).filter(|data| !data.is_empty());
        }
        events.push_back(Event::Adopted {
            conn,
            transport,
            session,
        });
    }

    pub(crate) fn send(&mut self, conn: ConnId, bufs: Vec<Bytes>, events: &mut Events) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        match &connection.phase {
            Phase::Open
            | Phase::Closing {
                is_asked: false, ..
            } => {
                let bufs = match &mut connection.tls {
                    None => bufs,
                    Some(tls) => tls.seal(&bufs),
                };
                connection.queue.push(bufs);
            }
            _ => return,
        }
        if connection.queue.bytes() > SEND_QUEUE_BYTES_MAX {
            self.disconnect(conn, "it does not read its replies", events);
        }
        self.touch(conn);
    }

    pub(crate) fn pause(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.is_paused = true;
        }
    }

    pub(crate) fn resume(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.is_paused = false;
        self.touch(conn);
    }

    /// Ends a connection once its queue is sent.
    pub(crate) fn close(&mut self, conn: ConnId, reason: String, now: Moment, events: &mut Events) {
        let is_received = |e: &Event| matches!(e, Event::Received { conn: of, .. } if *of == conn);
        events.retain(|event| !is_received(event));
        if let Some(connection) = self.connections.get_mut(&conn) {
            if let Some(tls) = &mut connection.tls {
                let bytes = tls.close();
                connection.queue.push_unanswered(vec![bytes]);
            }
        }
        self.begin_close(conn, reason, true, now);
    }

    /// Begins TLS on a connection.
    pub(crate) fn start_tls(&mut self, conn: ConnId, now: Moment, events: &mut Events) {
        let tls = Tls::new(&self.tls);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        match tls {
            Ok(tls) => connection.tls = Some(Box::new(tls)),
            Err(why) => return self.begin_close(conn, format!("TLS: {why}"), false, now),
        }
        // What has come meanwhile was meant for TLS, or was put there by somebody else: never plaintext.
        let mut early = take_received(conn, events);
        early.extend(connection.held.take());
        for data in early {
            self.open(conn, &data, now, events);
        }
    }

    /// Takes bytes of a connection with TLS.
    fn open(&mut self, conn: ConnId, data: &[u8], now: Moment, events: &mut Events) {
        self.touch(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let Some(tls) = &mut connection.tls else {
            return;
        };
        let (opened, secured) = tls.open(data);
        let may_send = match connection.phase {
            Phase::Open | Phase::Leaving(_) => true,
            Phase::Closing { .. } | Phase::Lingering { .. } | Phase::Dead => false,
        };
        if may_send {
            connection.queue.push_unanswered(vec![opened.answer]);
        }
        if let (Some(access), Phase::Open) = (secured, &connection.phase) {
            events.push_back(Event::Secured { conn, access });
        }
        if !opened.plaintext.is_empty() {
            connection.receive(conn, opened.plaintext.into(), events);
        }
        match opened.end {
            None => {}
            Some(End::Closed) => {
                connection.is_at_end = true;
                if matches!(connection.phase, Phase::Open) {
                    self.begin_close(conn, "end of stream".into(), false, now);
                }
            }
            Some(End::Failed(why)) => {
                connection.is_at_end = true;
                tracing::info!("{}: connection {conn}: {why}", self.name);
                self.begin_close(conn, why, false, now);
            }
        }
    }

    /// Hands a connection to the loop of another store.
    pub(crate) fn hand_over(
        &mut self,
        conn: ConnId,
        store: usize,
        transport: Transport,
        session: Box<Session>,
        (ring, events): (&mut Ring, &mut Events),
    ) {
        let mut unread = forget(conn, events);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        // After the client's end of stream the other loop will see that end again.
        if !matches!(
            connection.phase,
            Phase::Open
                | Phase::Closing {
                    is_asked: false,
                    ..
                }
        ) {
            return self.abandon(conn);
        }
        unread.extend(connection.held.take());
        let leaving = Leaving {
            store,
            transport,
            session,
            unread,
        };
        connection.phase = Phase::Leaving(Box::new(leaving));
        for key in [connection.receive, connection.send].into_iter().flatten() {
            ring.cancel(key);
        }
        self.touch(conn);
    }

    /// Begins the end of all connections.
    pub(crate) fn close_all(&mut self, reason: &str, now: Moment) {
        let all: Vec<_> = self.connections.keys().copied().collect();
        for conn in all {
            self.begin_close(conn, reason.to_string(), true, now);
        }
    }

    /// True when no connection is left, not even a lingering one.
    pub(crate) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Takes the completion of a receive.
    pub(crate) fn received(
        &mut self,
        conn: ConnId,
        completion: Completion,
        now: Moment,
        events: &mut Events,
    ) {
        self.touch(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.receive = None;
        let Some(Op::Receive { buf, .. }) = completion.op else {
            return;
        };
        let data = match completion.result {
            Ok(0) => {
                self.buffers.give_back(buf);
                connection.is_at_end = true;
                if matches!(connection.phase, Phase::Open) {
                    self.begin_close(conn, "end of stream".into(), false, now);
                }
                return;
            }
            Ok(length) => {
                connection.learn_of_receive(length, buf.len());
                connection.tries = 0;
                if connection.tls.is_some() {
                    self.open(conn, &buf[..length], now, events);
                    self.buffers.give_back(buf);
                    return;
                }
                self.buffers.hand_up(buf, length)
            }
            Err(errno) => {
                self.buffers.give_back(buf);
                return self.failed(conn, errno, events);
            }
        };
        connection.receive(conn, data, events);
    }

    /// Takes the completion of a send.
    pub(crate) fn sent(&mut self, conn: ConnId, result: Result<usize, i32>, events: &mut Events) {
        self.touch(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.send = None;
        match result {
            Ok(count) => {
                connection.tries = 0;
                let completed = connection.queue.advance(count);
                if matches!(connection.phase, Phase::Open | Phase::Closing { .. }) {
                    events.extend((0..completed).map(|_| Event::Sent { conn }));
                }
            }
            Err(errno) => self.failed(conn, errno, events),
        }
    }

    /// The next moment at which [`Net::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.deadlines.peek().map(|Reverse((at, _))| *at)
    }

    /// Ends what has taken too long.
    pub(crate) fn expire(&mut self, now: Moment, events: &mut Events) {
        while let Some(Reverse((at, conn))) = self.deadlines.peek().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop();
            match self
                .connections
                .get(&conn)
                .map(|connection| &connection.phase)
            {
                Some(Phase::Closing {
                    deadline, reason, ..
                }) if *deadline <= now => {
                    let reason = format!("{reason} (its last replies were not read)");
                    self.disconnect(conn, &reason, events);
                }
                Some(Phase::Lingering { deadline }) if *deadline <= now => self.abandon(conn),
                _ => {}
            }
        }
    }

    /// Brings the kernel's side of every touched connection in line with its phase.
    pub(crate) fn settle(&mut self, ring: &mut Ring, now: Moment, events: &mut Events) {
        while let Some(conn) = self.touched.pop() {
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.is_touched = false;
                self.settle_one(conn, ring, now, events);
            }
        }
    }

    /// The state of all connections the machine knows.
    pub(crate) fn status(&self) -> Vec<ConnectionStatus> {
        let known = |c: &&Connection| matches!(c.phase, Phase::Open | Phase::Closing { .. });
        let mut all: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, c)| known(c))
            .map(|(conn, c)| ConnectionStatus {
                conn: *conn,
                queued_bytes: c.queue.bytes(),
                is_paused: c.is_paused,
                is_closing: !matches!(c.phase, Phase::Open),
            })
            .collect();
        all.sort_by_key(|status| status.conn);
        all
    }

    fn settle_one(&mut self, conn: ConnId, ring: &mut Ring, now: Moment, events: &mut Events) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let fd = connection.fd.as_raw_fd();
        if matches!(connection.phase, Phase::Open) && !connection.is_paused {
            events.extend(
                connection
                    .held
                    .take()
                    .map(|data| Event::Received { conn, data }),
            );
        }
        if connection.wants_receive() && connection.receive.is_none() {
            let op = Op::Receive {
                fd,
                buf: self.buffers.take(connection.receives_much),
            };
            connection.receive = Some(ring.submit(op, Owner::Receive(conn)));
        }
        if connection.wants_send() && connection.send.is_none() {
            if connection.queue.bytes() > 0 {
                let bufs = connection.queue.front();
                let op = Op::Send {
                    fd,
                    bufs,
                    vectors: Vectors::default(),
                };
                connection.send = Some(ring.submit(op, Owner::Send(conn)));
            } else {
                let completed = connection.queue.advance(0);
                events.extend((0..completed).map(|_| Event::Sent { conn }));
            }
        }
        match &mut connection.phase {
            Phase::Closing { reason, .. } if connection.queue.is_empty() => {
                let reason = std::mem::take(reason);
                events.push_back(Event::Disconnected { conn, reason });
                shut_down(&connection.fd, Shutdown::Write);
                if connection.is_at_end {
                    connection.phase = Phase::Dead;
                } else {
                    let deadline = now + LINGER_TIME_MAX;
                    connection.phase = Phase::Lingering { deadline };
                    self.deadlines.push(Reverse((deadline, conn)));
                }
            }
            Phase::Lingering { .. } if connection.is_at_end => connection.phase = Phase::Dead,
            _ => {}
        }
        if connection.is_busy() {
            if matches!(connection.phase, Phase::Dead) {
                // Ends a receive and a send in flight: both complete soon.
                shut_down(&connection.fd, Shutdown::Both);
            }
            return;
        }
        match connection.phase {
            Phase::Dead => drop(self.remove(conn)),
            Phase::Leaving(_) => self.deliver(conn),
            _ => {}
        }
    }

    /// Gives a leaving connection, of which the kernel has let go, to its new loop.
    fn deliver(&mut self, conn: ConnId) {
        let Some(mut connection) = self.remove(conn) else {
            return;
        };
        let Phase::Leaving(leaving) = connection.phase else {
            unreachable!("only leaving connections are delivered")
        };
        let Leaving {
            store,
            transport,
            session,
            unread,
        } = *leaving;
        let unsent = connection.queue.take_all();
        let adopt = Inbound::Adopt {
            fd: connection.fd,
            transport,
            session,
            tls: connection.tls,
            unread,
            unsent,
        };
        if !self.shared.send_to_peer(store, adopt) {
            tracing::warn!(
                "{}: connection {conn} closed: store {store} has no loop",
                self.name
            );
        }
    }

    fn add(&mut self, fd: OwnedFd, transport: &Transport) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        if let Err(error) = prepare(&fd, transport) {
            tracing::debug!("{}: connection {conn}: {error}", self.name);
        }
        self.connections.insert(conn, Connection::new(fd));
        self.shared.set_connections(self.connections.len());
        self.touch(conn);
        conn
    }

    fn remove(&mut self, conn: ConnId) -> Option<Connection> {
        let removed = self.connections.remove(&conn);
        self.shared.set_connections(self.connections.len());
        removed
    }

    fn touch(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            if !connection.is_touched {
                connection.is_touched = true;
                self.touched.push(conn);
            }
        }
    }

    fn begin_close(&mut self, conn: ConnId, reason: String, is_asked: bool, now: Moment) {
        self.touch(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        match &mut connection.phase {
            Phase::Open => {
                let deadline = now + CLOSE_DRAIN_TIME_MAX;
                connection.phase = Phase::Closing {
                    deadline,
                    reason,
                    is_asked,
                };
                connection.held = None;
                self.deadlines.push(Reverse((deadline, conn)));
            }
            Phase::Closing {
                is_asked: asked, ..
            } => *asked |= is_asked,
            Phase::Lingering { .. } | Phase::Leaving(_) | Phase::Dead => {}
        }
    }

    /// A receive or a send failed.
    fn failed(&mut self, conn: ConnId, errno: i32, events: &mut Events) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let is_interrupted = matches!(errno, libc::EINTR | libc::EAGAIN);
        if is_interrupted && connection.tries < TRIES_MAX {
            connection.tries += 1;
            return;
        }
        match connection.phase {
            Phase::Leaving(_) => {} // cancelled; a real error will show in the other loop
            Phase::Lingering { .. } | Phase::Dead => self.abandon(conn),
            Phase::Open | Phase::Closing { .. } => {
                let reason = std::io::Error::from_raw_os_error(errno).to_string();
                self.disconnect(conn, &reason, events);
            }
        }
    }

    /// Ends a connection the machine knows, at once.
    fn disconnect(&mut self, conn: ConnId, reason: &str, events: &mut Events) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if matches!(connection.phase, Phase::Open | Phase::Closing { .. }) {
            events.push_back(Event::Disconnected {
                conn,
                reason: reason.into(),
            });
        }
        self.abandon(conn);
    }

    /// Ends a connection the machine does not know any more.
    fn abandon(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.phase = Phase::Dead;
            connection.queue.take_all();
            connection.held = None;
        }
        self.touch(conn);
    }
}

/// Removes what a connection has received from the events.
fn take_received(conn: ConnId, events: &mut Events) -> Vec<Bytes> {
    let mut received = Vec::new();
    events.retain(|event| match event {
        Event::Received { conn: of, data } if *of == conn => {
            received.push(data.clone());
            false
        }
        _ => true,
    });
    received
}

/// Removes all events that name this connection; returns the bytes they had received.
fn forget(conn: ConnId, events: &mut Events) -> Vec<Bytes> {
    let received = take_received(conn, events);
    events.retain(|event| match event {
        Event::Sent { conn: of } | Event::Disconnected { conn: of, .. } => *of != conn,
        _ => true,
    });
    received
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.swap_remove(0),
        _ => Bytes::from(pieces.concat()),
    }
}

fn shut_down(fd: &OwnedFd, how: Shutdown) {
    // Fails when the peer is gone already, which is what is wanted.
    let _ = socket2::SockRef::from(fd).shutdown(how);
}

/// Sets a socket's options. The ring waits for readiness by itself; with `O_NONBLOCK` it would
/// report EAGAIN instead.
fn prepare(fd: &OwnedFd, transport: &Transport) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(fd);
    socket.set_nonblocking(false)?;
    if let Transport::Tcp(_) = transport {
        socket.set_tcp_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_TRIES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    Ok(())
}
