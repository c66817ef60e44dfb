//! The transmission phase: requests in, replies out, in any order.

use crate::export::Export;
use crate::input::Input;
use crate::limits::{SessionLimits, PAYLOAD_BYTES_MAX};
use crate::output::Output;
use crate::payload::Payload;
use crate::reply::{self, ReadReply};
use crate::request::{Operation, Reply, Request, RequestError, RequestId};
use crate::session::{Action, Closing, Step};
use crate::validate::{Command, Refusal, Rules};
use crate::wire::{command, command_flag, RequestHeader, MAGIC_REQUEST};
use bytes::Bytes;
use esker_base::num::{to_u32_saturating, to_usize};
use std::collections::BTreeMap;

const SHUTTING_DOWN: Refusal = Refusal {
    error: RequestError::Shutdown,
    text: "the server is shutting down",
};

/// An attached session.
#[derive(Debug)]
pub(crate) struct Transmission {
    export: Export,
    structured_replies: bool,
    /// Longest read or write in bytes.
    payload_bytes_max: u32,
    limits: SessionLimits,
    receiving: Receiving,
    in_flight: BTreeMap<RequestId, InFlight>,
    /// Payload bytes of `in_flight` and of the write that is arriving.
    bytes_in_flight: usize,
    /// The caller has no room for further requests.
    held: bool,
    next_id: u64,
}

/// What comes next from the client.
#[derive(Debug)]
enum Receiving {
    Header,
    /// A valid request that the limits do not admit yet.
    Stalled(RequestHeader, Command),
    /// The payload of an admitted write.
    Payload(RequestHeader, Payload),
    /// The payload of a refused write; the answer follows it.
    Discard {
        left: usize,
        cookie: u64,
        refusal: Refusal,
    },
    /// Nothing: the client said that it leaves.
    Nothing,
}

/// What must be known of a request to answer it.
#[derive(Debug)]
struct InFlight {
    cookie: u64,
    command: Command,
    offset: u64,
    length: u32,
}

impl Transmission {
    pub(crate) fn new(export: Export, structured_replies: bool, limits: SessionLimits) -> Self {
        let session_limit = to_u32_saturating(limits.request_bytes_max);
        Self {
            payload_bytes_max: export.payload_bytes_max(session_limit),
            export,
            structured_replies,
            limits,
            receiving: Receiving::Header,
            in_flight: BTreeMap::new(),
            bytes_in_flight: 0,
            held: false,
            next_id: 0,
        }
    }

    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    pub(crate) fn requests_in_flight(&self) -> usize {
        self.in_flight.len() + usize::from(matches!(self.receiving, Receiving::Payload(..)))
    }

    pub(crate) fn cookie(&self, id: RequestId) -> Option<u64> {
        self.in_flight.get(&id).map(|r| r.cookie)
    }

    pub(crate) fn bytes_in_flight(&self) -> usize {
        self.bytes_in_flight
    }

    /// False when more input could not be used now.
    pub(crate) fn wants_input(&self) -> bool {
        match self.receiving {
            Receiving::Payload(..) | Receiving::Discard { .. } => true,
            Receiving::Stalled(..) | Receiving::Nothing => false,
            Receiving::Header => {
                let below_limits = self.in_flight.is_empty()
                    || (self.in_flight.len() < self.limits.requests_in_flight_max
                        && self.bytes_in_flight < self.limits.bytes_in_flight_max);
                below_limits && !self.held
            }
        }
    }

    /// Parses one item.
    pub(crate) fn step(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        shutting_down: bool,
    ) -> Step {
        let step = match std::mem::replace(&mut self.receiving, Receiving::Header) {
            Receiving::Header => match input.take_array() {
                None => Step::Wait,
                Some(raw) => self.header(RequestHeader::decode(&raw), output, shutting_down),
            },
            Receiving::Stalled(header, command) => {
                self.admit(header, command, output, shutting_down)
            }
            Receiving::Payload(header, payload) if shutting_down => {
                self.bytes_in_flight -= to_usize(u64::from(header.length));
                self.discard(payload.missing(), header.cookie, SHUTTING_DOWN)
            }
            Receiving::Payload(header, mut payload) => match payload.fill(input) {
                Some(bytes) => self.hand_out(header, Command::Write, Some(bytes)),
                None => {
                    self.receiving = Receiving::Payload(header, payload);
                    Step::Wait
                }
            },
            Receiving::Discard {
                left,
                cookie,
                refusal,
            } => {
                let left = left - input.discard(left);
                if left > 0 {
                    self.receiving = Receiving::Discard {
                        left,
                        cookie,
                        refusal,
                    };
                    Step::Wait
                } else {
                    self.refuse(cookie, refusal, output)
                }
            }
            Receiving::Nothing => {
                self.receiving = Receiving::Nothing;
                Step::Wait
            }
        };
        self.end_when_idle(step, shutting_down)
    }

    /// Turns waiting into the end when nothing is left to wait for.
    fn end_when_idle(&self, step: Step, shutting_down: bool) -> Step {
        if !matches!(step, Step::Wait) || !self.in_flight.is_empty() {
            return step;
        }
        match self.receiving {
            Receiving::Nothing => Step::Close(Closing::clean("the client disconnected")),
            _ if shutting_down => Step::Close(Closing::shutdown()),
            _ => Step::Wait,
        }
    }

    fn header(&mut self, header: RequestHeader, output: &mut Output, shutting_down: bool) -> Step {
        if header.magic != MAGIC_REQUEST {
            let reason = format!("bad magic {:#x} of a request", header.magic);
            return Step::Close(Closing::violation(reason));
        }
        if header.command == command::DISC {
            self.receiving = Receiving::Nothing;
            return Step::Again;
        }
        let rules = Rules {
            export: &self.export,
            structured_replies: self.structured_replies,
            payload_bytes_max: self.payload_bytes_max,
        };
        match rules.check(&header) {
            Ok(command) => self.admit(header, command, output, shutting_down),
            Err(refusal) => self.refuse_request(&header, refusal, output),
        }
    }

    /// Lets a valid request in, now or when there is room.
    fn admit(
        &mut self,
        header: RequestHeader,
        command: Command,
        output: &mut Output,
        shutting_down: bool,
    ) -> Step {
        if shutting_down {
            return self.refuse_request(&header, SHUTTING_DOWN, output);
        }
        if header.length == 0 && command != Command::Flush {
            self.answer_empty(&header, command, output);
            return Step::Again;
        }
        let bytes = if command.has_payload() {
            to_usize(u64::from(header.length))
        } else {
            0
        };
        let bytes_after = self.bytes_in_flight.saturating_add(bytes);
        let room = self.in_flight.len() < self.limits.requests_in_flight_max
            && bytes_after <= self.limits.bytes_in_flight_max;
        if self.held || (!room && !self.in_flight.is_empty()) {
            self.receiving = Receiving::Stalled(header, command);
            return Step::Wait;
        }
        self.bytes_in_flight = bytes_after;
        if command == Command::Write {
            self.receiving = Receiving::Payload(header, Payload::new(header.offset, bytes));
            return Step::Again;
        }
        self.hand_out(header, command, None)
    }

    /// Gives an admitted request to the caller.
    fn hand_out(
        &mut self,
        header: RequestHeader,
        command: Command,
        payload: Option<Bytes>,
    ) -> Step {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let RequestHeader {
            cookie,
            offset,
            length,
            ..
        } = header;
        self.in_flight.insert(
            id,
            InFlight {
                cookie,
                command,
                offset,
                length,
            },
        );
        let op = match command {
            Command::Read { dont_fragment } => Operation::Read { dont_fragment },
            Command::Write => Operation::Write {
                payload: payload.unwrap_or_default(),
            },
            Command::Flush => Operation::Flush,
            Command::Trim => Operation::Trim,
            Command::WriteZeroes { no_hole, fast } => Operation::WriteZeroes { no_hole, fast },
            Command::Cache => Operation::Cache,
        };
        let fua = command.writes() && header.flags & command_flag::FUA != 0;
        Step::Act(Action::Request(Request {
            id,
            op,
            offset,
            length: u64::from(length),
            fua,
        }))
    }

    /// Nothing to do, nothing to make durable: success.
    fn answer_empty(&self, header: &RequestHeader, command: Command, output: &mut Output) {
        match command {
            Command::Read { dont_fragment } => {
                self.read_reply(header.cookie, header.offset, 0, dont_fragment)
                    .send(output, Vec::new());
            }
            _ => reply::done(output, header.cookie),
        }
    }

    /// Refuses a request, after its payload if it has one.
    fn refuse_request(
        &mut self,
        header: &RequestHeader,
        refusal: Refusal,
        output: &mut Output,
    ) -> Step {
        if header.command != command::WRITE {
            return self.refuse(header.cookie, refusal, output);
        }
        let length = to_usize(u64::from(header.length));
        if length > PAYLOAD_BYTES_MAX {
            let reason = format!("a write of {length} bytes");
            return Step::Close(Closing::violation(reason));
        }
        self.discard(length, header.cookie, refusal)
    }

    fn discard(&mut self, left: usize, cookie: u64, refusal: Refusal) -> Step {
        self.receiving = Receiving::Discard {
            left,
            cookie,
            refusal,
        };
        Step::Again
    }

    fn refuse(&self, cookie: u64, refusal: Refusal, output: &mut Output) -> Step {
        reply::error(
            output,
            self.structured_replies,
            cookie,
            refusal.error,
            refusal.text,
        );
        Step::Again
    }

    /// Answers a request that was handed out; an unknown id is ignored.
    pub(crate) fn complete(
        &mut self,
        id: RequestId,
        result: Result<Reply, RequestError>,
        output: &mut Output,
    ) {
        let Some(InFlight {
            cookie,
            command,
            offset,
            length,
        }) = self.in_flight.remove(&id)
        else {
            debug_assert!(
                false,
                "request {id} is answered twice or was never handed out"
            );
            return;
        };
        if command.has_payload() {
            self.bytes_in_flight -= to_usize(u64::from(length));
        }
        match (result, command) {
            (Err(error), _) => {
                let text = error.to_string();
                reply::error(output, self.structured_replies, cookie, error, &text);
            }
            (Ok(reply), Command::Read { dont_fragment }) => {
                let pieces = match reply {
                    Reply::Data(pieces) => pieces,
                    Reply::Done => Vec::new(),
                };
                self.read_reply(cookie, offset, length, dont_fragment)
                    .send(output, pieces);
            }
            (Ok(_), _) => reply::done(output, cookie),
        }
    }

    fn read_reply(&self, cookie: u64, offset: u64, length: u32, dont_fragment: bool) -> ReadReply {
        let structured = self.structured_replies;
        ReadReply {
            cookie,
            offset,
            length,
            structured,
            dont_fragment,
        }
    }
}
