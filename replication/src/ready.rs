//! Draining raft-rs's readies into outputs, and feeding durability back.

use crate::codec::{payload_crc, Frame, PayloadRef};
use crate::group::{Group, Pending};
use crate::membership::Membership;
use crate::output::{Output, Ticket};
use crate::peer::Sendable;
use crate::receive::decode_change;
use crate::types::{entry_from_raft, payload_length, HardState, LogEntry};
use bytes::Bytes;
use esker_base::{Moment, RaftIndex, ReplicaId};
use prost::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{ProgressState, ReadState};

/// Payload of a message that finds out where a peer's log ends, in bytes.
const PROBE_BYTES_MAX: u64 = 64 << 10;

/// Leaves the first entry, and of the others as many as such a message may carry. raft-rs counts no payload, so it would take all
/// that the peer lacks for one message, and send it again with each heartbeat until the first answer.
fn cut_probe(message: &mut Message, bytes_max: u64) {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        bytes += u64::from(payload_length(entry).unwrap_or(0));
        bytes <= bytes_max.min(PROBE_BYTES_MAX)
    };
    let fitting = message.entries.iter().take_while(fits).count();
    message.entries.truncate(fitting.max(1));
}

impl Group {
    /// Moves everything there is to do to `out`. Call it after every batch of inputs, with a time that was read after them.
    pub fn take_ready(&mut self, now: Moment, out: &mut Vec<Output>) {
        self.answer_questions(now);
        loop {
            out.append(&mut self.outbox);
            if self.raw.has_ready() {
                self.take_one_ready(out);
            }
            self.release_durable(None);
            self.pump(out);
            if self.outbox.is_empty() && !self.raw.has_ready() {
                break;
            }
        }
        self.report_catch_up(out);
    }

    /// The append with this ticket, and all before it, are durable.
    ///
    /// Messages that waited for it, and what became committed by it, come with the next
    /// [`Group::take_ready`].
    pub fn on_persisted(&mut self, ticket: Ticket) {
        self.release_durable(Some(ticket));
    }

    fn take_one_ready(&mut self, out: &mut Vec<Output>) {
        let leads = self.leads();
        let mut ready = self.raw.ready();
        let number = ready.number();
        let entries = ready.take_entries();
        let hard_state = ready.hs().map(HardState::from_raft);
        let must_sync = ready.must_sync();
        let committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        let mut now = ready.take_messages();
        let mut later = ready.take_persisted_messages();
        self.raw.mut_store().append(&entries);
        self.raw.advance_append_async(ready);

        let role = (self.role(), self.term());
        if role != self.reported {
            self.reported = role;
            out.push(Output::RoleChanged {
                role: role.0,
                term: role.1,
            });
        }
        let term = self.raw.raft.term;
        let span = entries
            .first()
            .zip(entries.last())
            .map(|(a, b)| (a.index, b.index));
        let ticket = self.append(entries, hard_state, must_sync, out);
        self.sort_messages(leads, &mut now, &mut later);
        self.pending.push_back(Pending {
            number,
            ticket: ticket.filter(|_| must_sync),
            term: hard_state.map(|_| term),
            span,
            messages: later,
        });
        for message in now {
            self.dispatch(message, out);
        }
        self.read_ready(read_states, out);
        self.commit(committed, out);
        self.settle();
    }

    /// Decides which messages may leave before this ready is durable.
    fn sort_messages(&self, leads: bool, now: &mut Vec<Message>, later: &mut Vec<Message>) {
        if leads && self.durable_term < self.raw.raft.term {
            // A single voter with learners leads before its term is durable. If it crashed now it
            // would lead the same term again with other entries, and a learner that already has
            // some would never notice: both are (index, term).
            later.append(now);
        }
        // An answer to a heartbeat says nothing about entries: it only waits for the term.
        let durable_term = self.durable_term;
        let early = |m: &Message| {
            m.msg_type == MessageType::MsgHeartbeatResponse as i32 && m.term <= durable_term
        };
        if !leads {
            now.extend(later.iter().filter(|m| early(m)).cloned());
            later.retain(|m| !early(m));
        }
        // raft-rs walks its peers in hash order.
        now.sort_by_key(|message| message.to);
        later.sort_by_key(|message| message.to);
    }

    fn append(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
        must_sync: bool,
        out: &mut Vec<Output>,
    ) -> Option<Ticket> {
        if entries.is_empty() && hard_state.is_none() {
            return None;
        }
        let keep = self.leads() && self.needs_tick();
        let ticket = self.take_ticket();
        let mut appended = Vec::with_capacity(entries.len());
        for entry in entries {
            let entry = checked(entry);
            let pieces = if entry.payload_length == 0 {
                Vec::new()
            } else {
                let pieces = self.payloads.hand_out(entry.index.0, entry.term.0, keep);
                // Entries enter raft-rs only with their payload (`propose`, `receive`).
                assert!(pieces.is_some(), "entry {} lost its payload", entry.index);
                pieces.unwrap_or_default()
            };
            appended.push((entry, pieces));
        }
        out.push(Output::Append {
            ticket,
            entries: appended,
            hard_state,
            must_sync,
        });
        Some(ticket)
    }

    fn read_ready(&mut self, read_states: Vec<ReadState>, out: &mut Vec<Output>) {
        let me = self.config.replica.0.to_le_bytes();
        for state in read_states {
            let Some((replica, id)) = state.request_ctx.split_first_chunk::<8>() else {
                continue;
            };
            let Ok(id) = <[u8; 8]>::try_from(id) else {
                continue;
            };
            if *replica != me {
                continue;
            }
            let id = u64::from_le_bytes(id);
            if self.leads() {
                self.lease.answered(id);
            }
            if let Some(context) = self.take_read(id) {
                out.push(Output::ReadReady {
                    context,
                    index: RaftIndex(state.index),
                });
            }
        }
    }

    fn commit(&mut self, committed: Vec<Entry>, out: &mut Vec<Output>) {
        let Some(last) = committed.last().map(|entry| entry.index) else {
            return;
        };
        let entries: Vec<LogEntry> = committed.into_iter().map(checked).collect();
        let changes: Vec<_> = entries
            .iter()
            .filter_map(|e| Some((e.index, decode_change(e.kind, &e.data)?)))
            .collect();
        self.handed_out = last;
        out.push(Output::Committed { entries });
        for (index, change) in changes {
            match self.raw.apply_conf_change(&change) {
                Ok(state) => {
                    self.lease.drop_now();
                    let membership = Membership::from_raft(&state);
                    out.push(Output::MembershipChanged {
                        index,
                        membership,
                        context: Bytes::copy_from_slice(&change.context),
                    });
                }
                // Every replica refuses it alike: it depends on the membership before it only.
                Err(error) => tracing::error!(%error, "membership change refused"),
            }
            self.step_down_if_removed();
        }
    }

    /// raft-rs keeps leading after its own removal, and panics at the next commit.
    fn step_down_if_removed(&mut self) {
        if self.leads() && !self.raw.raft.promotable() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
    }

    /// Sends a message, or queues it when it is an append.
    fn dispatch(&mut self, mut message: Message, out: &mut Vec<Output>) {
        if message.msg_type == MessageType::MsgAppend as i32 {
            let to = message.to;
            let progress = self.raw.raft.prs().get(to);
            if progress.is_some_and(|p| p.state == ProgressState::Probe) {
                cut_probe(&mut message, self.config.size_per_message_max);
                self.peers.ask_after(&mut message);
            }
            if self.leads() && message.term == self.raw.raft.term && !self.peers.enqueue(message) {
                self.raw.report_unreachable(to);
            }
            return;
        }
        if message.msg_type == MessageType::MsgHeartbeatResponse as i32 {
            // raft-rs leaves it at 0 and reads it nowhere: it tells what has arrived, durable or not.
            message.index = self.raw.raft.raft_log.last_index();
        }
        self.send(
            Sendable {
                message,
                payloads: Vec::new(),
            },
            out,
        );
    }

    fn send(&self, sendable: Sendable, out: &mut Vec<Output>) {
        let Sendable { message, payloads } = sendable;
        let carriers = message.entries.iter().filter_map(|entry| {
            let length = payload_length(entry).filter(|length| *length > 0)?;
            Some((RaftIndex(entry.index), length))
        });
        let refs: Vec<PayloadRef> = carriers
            .zip(&payloads)
            .map(|((index, length), pieces)| PayloadRef {
                index,
                length,
                crc: payload_crc(pieces),
            })
            .collect();
        debug_assert_eq!(refs.len(), payloads.len());
        let to = ReplicaId(message.to);
        let frame = Frame {
            group: self.config.group,
            from: self.config.replica,
            to,
            qos_class: 0,
            operation_version: 0,
            request_id: 0,
            trace_id: 0,
            payloads: refs,
            message: &message.encode_to_vec(),
        };
        match frame.encode() {
            Some(header) => {
                let payloads: Vec<Bytes> = payloads.into_iter().flatten().collect();
                out.push(Output::Send {
                    to,
                    header,
                    payloads,
                });
            }
            // The caps on entries and messages keep a header far below its maximum.
            None => tracing::error!(%to, "message too large for a frame"),
        }
    }

    /// Sends the appends that may leave, and asks for payloads that are missing.
    fn pump(&mut self, out: &mut Vec<Output>) {
        let (mut sendable, mut needed) = (Vec::new(), Vec::new());
        let first = self.raw.store().first();
        for peer in self.peers.pump(
            &self.payloads,
            &mut sendable,
            &mut needed,
            first,
            self.ticks,
        ) {
            self.raw.report_unreachable(peer);
        }
        for message in sendable {
            self.send(message, out);
        }
        for (index, term) in needed {
            out.push(Output::NeedPayload {
                index: RaftIndex(index),
                term: esker_base::Term(term),
            });
        }
    }

    /// Releases what waited for appends that are now durable, in order.
    fn release_durable(&mut self, durable: Option<Ticket>) {
        let mut messages = Vec::new();
        while let Some(front) = self.pending.front() {
            if front.ticket.is_some() && front.ticket > durable {
                break;
            }
            let Some(done) = self.pending.pop_front() else {
                break;
            };
            if let Some(term) = done.term {
                self.durable_term = term;
            }
            let last = done
                .span
                .map(|span| span.1)
                .or(self.unreported.map(|(_, last)| last));
            self.unreported = Some((done.number, last.unwrap_or(0)));
            messages.extend(done.messages);
        }
        if let Some((number, last)) = self.unreported {
            // An append still in flight may rewrite these entries (A, then B, then A again: the
            // mirror shows the last A, the disk may come back with B). raft-rs can't tell, and
            // would hand the entry out as committed and durable.
            let rewritten = self
                .pending
                .iter()
                .filter_map(|p| p.span)
                .any(|span| span.0 <= last);
            if !rewritten {
                self.unreported = None;
                self.raw.on_persist_ready(number);
                self.settle();
            }
        }
        let mut out = Vec::new();
        for message in messages {
            self.dispatch(message, &mut out);
        }
        self.outbox.append(&mut out);
    }

    fn report_catch_up(&mut self, out: &mut Vec<Output>) {
        let interval = esker_base::num::to_u64(self.config.election_ticks);
        for peer in self.raw.mut_store().take_behind() {
            let last = self.catch_up_reported.get(&peer).copied();
            if last.is_none_or(|last| self.ticks >= last + interval) {
                self.catch_up_reported.insert(peer, self.ticks);
                out.push(Output::CatchUpNeeded {
                    to: ReplicaId(peer),
                });
            }
        }
    }
}

/// An entry that was validated when it entered raft-rs.
///
/// # Panics
/// When it is malformed all the same, which no input can cause.
fn checked(entry: Entry) -> LogEntry {
    let index = entry.index;
    match entry_from_raft(entry) {
        Some(entry) => entry,
        None => panic!("entry {index} of the log is malformed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_carries_one_entry_or_what_is_small() {
        let message = |lengths: &[u32]| Message {
            entries: lengths
                .iter()
                .map(|length| Entry {
                    context: crate::types::payload_context(*length),
                    ..Entry::default()
                })
                .collect(),
            ..Message::default()
        };
        let left = |lengths: &[u32], bytes_max: u64| {
            let mut message = message(lengths);
            cut_probe(&mut message, bytes_max);
            message.entries.len()
        };
        assert_eq!(left(&[1 << 20, 4096], 1 << 20), 1);
        assert_eq!(left(&[32 << 10, 32 << 10, 1], 1 << 20), 2);
        assert_eq!(left(&[4096; 100], 1 << 20), 16);
        assert_eq!(left(&[4096; 100], 8192), 2);
        assert_eq!(left(&[0; 100], 1 << 20), 100);
        assert_eq!(left(&[], 1 << 20), 0);
    }
}
