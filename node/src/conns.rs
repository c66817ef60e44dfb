//! Connections: sessions, what they attach to, and the limits that slow them.

use crate::event::{Effect, Transport};
use crate::node::{Node, Phase};
use crate::status::{Context, Status};
use crate::volume::{Action, Op};
use bytes::Bytes;
use esker_base::num::to_usize;
use esker_base::Moment;
use esker_base::{limits, ConnId, GroupId, Stamp};
use esker_nbd as nbd;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

/// Bytes given out to be sent and not sent yet; past it the session is not served.
const UNSENT_BYTES_MAX: usize = 8 << 20;

/// Bytes of requests that a session hands out before others are served; one request always is.
const SERVED_BYTES_MAX: usize = 1 << 20;
/// Requests, likewise.
const SERVED_REQUESTS_MAX: usize = 64;
/// For whom the node has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    All,
    /// For sessions with less than [`limits::SESSION_MODEST_BYTES_MAX`] on their way.
    Modest,
    Nobody,
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub session: nbd::Session,
    pub transport: Transport,
    /// The volume it is attached to.
    pub volume: Option<GroupId>,
    /// To the snapshot of it with this cut.
    pub at: Option<Stamp>,
    /// The number of the attachment that it belongs to.
    pub attachment: u64,
    /// The metadata contexts that the client has selected.
    pub contexts: Vec<(Arc<str>, Context)>,
    /// When it is ended, unless it has attached.
    pub handshake_until: Moment,
    /// Identifies its requests in the log.
    pub session_id: u64,
    pub closing: bool,
    /// Output of this step; it leaves in one piece at the step's end.
    output: Vec<Bytes>,
    /// Bytes of `output`.
    output_bytes: usize,
    /// What is being sent: bytes, and since when each is the first.
    pub unsent: VecDeque<usize>,
    pub sending_since: Moment,
    /// The payload that is arriving, and since when it does.
    pub payload_since: Option<(u64, Moment)>,
    /// Bytes of `output` and of what was sent and has not left.
    unsent_bytes: usize,
    paused: bool,
    /// What its session has in flight, as counted in the node's sums.
    pub counted: (usize, usize),
}

impl Conn {
    /// Tells the session what the node has room for.
    fn make_room(&mut self, room: Room) {
        self.session.hold(room == Room::Nobody);
        let allowed = match room {
            Room::All => usize::MAX,
            _ => limits::SESSION_MODEST_BYTES_MAX.saturating_sub(self.unsent_bytes),
        };
        self.session.allow(allowed);
    }
}

impl Node {
    fn new_conn(&mut self, session: nbd::Session, transport: Transport) -> Conn {
        Conn {
            session,
            transport,
            volume: None,
            at: None,
            attachment: 0,
            contexts: Vec::new(),
            handshake_until: self.now + limits::HANDSHAKE_TIME_MAX,
            session_id: self.random(),
            closing: false,
            output: Vec::new(),
            output_bytes: 0,
            unsent: VecDeque::new(),
            sending_since: Moment(0),
            payload_since: None,
            unsent_bytes: 0,
            paused: false,
            counted: (0, 0),
        }
    }

    /// A client connected.
    pub(crate) fn connected(&mut self, id: ConnId, transport: Transport, tls: nbd::TlsPolicy) {
        let mut session = nbd::Session::new(self.config.session_limits.clone());
        session.offer_tls(tls);
        if self.phase != Phase::Serving && self.phase != Phase::Opening {
            session.shutdown();
        }
        let conn = self.new_conn(session, transport);
        self.handshakes.insert((conn.handshake_until, id));
        self.conns.insert(id, conn);
        self.conns_dirty.insert(id);
    }

    /// Another store's loop handed a connection over.
    pub(crate) fn adopted(&mut self, id: ConnId, transport: Transport, session: nbd::Session) {
        let asked = session.export_asked().map(|(name, ..)| name.clone());
        let conn = self.new_conn(session, transport);
        self.handshakes.insert((conn.handshake_until, id));
        self.conns.insert(id, conn);
        if let Some(name) = asked {
            self.answer_adopted(id, &name);
        }
        self.conns_dirty.insert(id);
    }

    /// TLS is established.
    pub(crate) fn secured(&mut self, id: ConnId, access: nbd::Access) {
        if let Some(conn) = self.conns.get_mut(&id).filter(|c| !c.closing) {
            tracing::debug!(conn = id.0, ?access, "TLS is established");
            conn.session.secured(access);
            self.conns_dirty.insert(id);
        }
    }

    /// Bytes arrived.
    pub(crate) fn received(&mut self, id: ConnId, data: Bytes) {
        if let Some(conn) = self.conns.get_mut(&id).filter(|c| !c.closing) {
            conn.session.receive(data);
            self.conns_dirty.insert(id);
        }
    }

    /// Bytes left.
    pub(crate) fn sent(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.unsent_bytes -= conn.unsent.pop_front().unwrap_or(0);
            conn.sending_since = self.now;
            self.conns_dirty.insert(id);
        }
    }

    /// The connection is gone. Its requests on their way are finished without an answer.
    pub(crate) fn disconnected(&mut self, id: ConnId, reason: &str) {
        self.paused.remove(&id);
        self.limited.remove(&id);
        self.conns_dirty.remove(&id);
        let Some(conn) = self.forget(id) else {
            return;
        };
        if let Some(volume) = conn.volume.and_then(|g| self.volumes.get_mut(&g)) {
            volume.detach(id);
            tracing::info!(conn = id.0, volume = volume.name, reason, "session ended");
        }
        for volume in self.volumes.values_mut() {
            volume.attaching.retain(|conn| *conn != id);
            volume.route.detach(id);
        }
    }

    /// Takes a connection out, and what it has in flight out of the sums.
    pub(crate) fn forget(&mut self, id: ConnId) -> Option<Conn> {
        self.handshake_over(id);
        let conn = self.conns.remove(&id)?;
        self.turns.gone(id);
        self.in_flight.0 -= conn.counted.0;
        self.in_flight.1 -= conn.counted.1;
        Some(conn)
    }

    /// For whom the node takes further requests.
    pub(crate) fn room(&self) -> Room {
        let (requests, bytes) = self.in_flight;
        // Requests of clients that have gone are only among the operations.
        let bytes = bytes.max(self.op_bytes);
        if requests.max(self.ops.len()) >= limits::NODE_REQUESTS_MAX
            || bytes >= limits::NODE_BYTES_MAX
        {
            Room::Nobody
        } else if bytes >= limits::NODE_BYTES_MAX - limits::NODE_BYTES_RESERVED {
            Room::Modest
        } else {
            Room::All
        }
    }

    /// Brings the node's sums up to date with what a session has in flight. A write counts from its
    /// header on, when the memory for its payload is promised; an answer counts until it has left.
    fn count(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let now = (
            conn.session.requests_in_flight(),
            conn.session.bytes_in_flight() + conn.unsent_bytes,
        );
        let before = std::mem::replace(&mut conn.counted, now);
        self.in_flight.0 = self.in_flight.0 + now.0 - before.0;
        self.in_flight.1 = self.in_flight.1 + now.1 - before.1;
        conn.payload_since = match conn.session.payload_arriving() {
            Some(number) if conn.payload_since.is_none_or(|(known, _)| known != number) => {
                Some((number, self.now))
            }
            Some(_) => conn.payload_since,
            None => None,
        };
    }

    /// The next session with something to parse or to send: after the one that was served last, so that
    /// none comes before others for its number.
    pub(crate) fn next_to_serve(&mut self) -> Option<ConnId> {
        let after = (Bound::Excluded(self.served_last), Bound::Unbounded);
        let next = self.conns_dirty.range(after).next();
        let id = *next.or_else(|| self.conns_dirty.first())?;
        self.conns_dirty.remove(&id);
        self.served_last = id;
        Some(id)
    }

    /// Parses what a session received, for a while, and sends what it has to say.
    pub(crate) fn serve_conn(&mut self, id: ConnId, effects: &mut Vec<Effect>) {
        let (mut bytes, mut requests) = (0, 0);
        loop {
            if bytes >= SERVED_BYTES_MAX || requests >= SERVED_REQUESTS_MAX {
                self.conns_dirty.insert(id);
                break;
            }
            let room = self.room();
            self.touched.insert(id);
            let Some(conn) = self.conns.get_mut(&id).filter(|c| !c.closing) else {
                return;
            };
            conn.make_room(room);
            if room == Room::Nobody || conn.unsent_bytes >= UNSENT_BYTES_MAX {
                self.paused.insert(id);
            } else if room == Room::Modest {
                self.limited.insert(id);
            }
            if conn.unsent_bytes >= UNSENT_BYTES_MAX {
                break;
            }
            let Some(action) = conn.session.poll() else {
                break;
            };
            self.count(id);
            match action {
                nbd::Action::StartTls => {
                    self.send_output(id, effects);
                    effects.push(Effect::StartTls { conn: id });
                }
                nbd::Action::ListExports => {
                    let list = self.listed_exports();
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.session.list_exports(&list);
                    }
                }
                nbd::Action::Export { name, .. } => {
                    if self.export_asked(id, &name, effects) {
                        return; // handed over
                    }
                }
                nbd::Action::Request(request) => {
                    bytes = bytes.saturating_add(to_usize(request.length));
                    requests += 1;
                    self.request(id, request);
                }
                nbd::Action::Close { reason, clean } => {
                    if clean {
                        tracing::debug!(conn = id.0, reason, "session closed");
                    } else {
                        self.meters.sessions.broken += 1;
                        tracing::warn!(conn = id.0, reason, "client disconnected");
                    }
                    self.close(id, reason, effects);
                    return;
                }
            }
        }
        self.gather_output(id);
        self.count(id);
    }

    /// Takes what a session has to say; it is sent when the step ends.
    fn gather_output(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let before = conn.output.len();
        conn.session.take_output(&mut conn.output);
        let bytes: usize = conn.output[before..].iter().map(Bytes::len).sum();
        conn.output_bytes += bytes;
        conn.unsent_bytes += bytes;
    }

    /// Sends what was gathered.
    pub(crate) fn send_output(&mut self, id: ConnId, effects: &mut Vec<Effect>) {
        self.gather_output(id);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if !conn.output.is_empty() {
            if conn.unsent.is_empty() {
                conn.sending_since = self.now;
            }
            conn.unsent
                .push_back(std::mem::take(&mut conn.output_bytes));
            let bufs = std::mem::take(&mut conn.output);
            effects.push(Effect::Send { conn: id, bufs });
        }
    }

    /// Ends a connection after what is queued for it has left.
    pub(crate) fn close(&mut self, id: ConnId, reason: String, effects: &mut Vec<Effect>) {
        let Some(conn) = self.conns.get_mut(&id).filter(|c| !c.closing) else {
            return;
        };
        conn.closing = true;
        self.paused.remove(&id);
        self.limited.remove(&id);
        self.send_output(id, effects);
        effects.push(Effect::Close { conn: id, reason });
    }

    /// Stops reading from sessions that are ahead of their limits, and goes on with those that are
    /// no longer; sends what sessions have to say.
    pub(crate) fn pace(&mut self, effects: &mut Vec<Effect>) {
        let room = self.room();
        for id in std::mem::take(&mut self.touched) {
            // What an answer that was still on its way adds after the close is for nobody.
            if self.conns.get(&id).is_none_or(|c| c.closing) {
                continue;
            }
            self.send_output(id, effects);
            let Some(conn) = self.conns.get_mut(&id) else {
                continue;
            };
            conn.make_room(room);
            let wants = conn.unsent_bytes < UNSENT_BYTES_MAX && conn.session.wants_input();
            if wants == conn.paused {
                conn.paused = !wants;
                effects.push(if wants {
                    Effect::ResumeReceive { conn: id }
                } else {
                    Effect::PauseReceive { conn: id }
                });
            }
        }
    }

    /// Sessions that were held up and can go on are served again. True when there are any.
    pub(crate) fn resume_paused(&mut self) -> bool {
        let room = self.room();
        if room == Room::Nobody || (self.paused.is_empty() && self.limited.is_empty()) {
            return false;
        }
        if room == Room::All {
            let limited = std::mem::take(&mut self.limited);
            self.paused.extend(limited);
        }
        let conns = &self.conns;
        let ready: Vec<ConnId> = self
            .paused
            .iter()
            .filter(|id| {
                conns
                    .get(id)
                    .is_none_or(|c| c.closing || c.unsent_bytes < UNSENT_BYTES_MAX)
            })
            .copied()
            .collect();
        for id in &ready {
            self.paused.remove(id);
            self.conns_dirty.insert(*id);
        }
        !ready.is_empty()
    }

    /// A request of an attached client.
    fn request(&mut self, id: ConnId, request: nbd::Request) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let (single_unix, conn_at) = (conn.transport == Transport::Unix, conn.at);
        let attachment = conn.attachment;
        let Some(group) = conn.volume else {
            conn.session
                .complete(request.id, Err(nbd::RequestError::Shutdown));
            return;
        };
        let action = match request.op {
            nbd::Operation::Read { .. } => Action::Read,
            nbd::Operation::BlockStatus { contexts, one } => {
                let known = contexts.iter().map(|name| conn.context(name));
                let Some(contexts) = known.collect() else {
                    let gone = Err(nbd::RequestError::Invalid);
                    conn.session.complete(request.id, gone);
                    return;
                };
                Action::Status(Status::new(one, contexts))
            }
            nbd::Operation::Write { payload } => Action::Write(payload),
            nbd::Operation::Flush => Action::Flush,
            nbd::Operation::Trim => Action::Trim,
            nbd::Operation::WriteZeroes { no_hole, .. } => Action::Zeroes { no_hole },
            nbd::Operation::Cache => {
                // A hint: there is no cache of data to fill.
                conn.session.complete(request.id, Ok(nbd::Reply::Done));
                self.hint_answered(group, request.length);
                return;
            }
        };
        let single = self
            .volumes
            .get(&group)
            .is_some_and(crate::volume::Volume::is_single);
        let place = (request.offset, request.length);
        let mut op = Op::new(id, group, action, place, self.now);
        (op.request, op.at, op.attachment) = (request.id, conn_at, attachment);
        op.early = single_unix && !request.fua && single;
        self.submit(op);
    }
}
