//! The transmission phase: requests in, replies out, in any order.

use crate::export::Export;
use crate::filter::{self, Filter};
use crate::headers::Headers;
use crate::input::Input;
use crate::limits::{SessionLimits, PAYLOAD_BYTES_MAX, PAYLOAD_TOLERATED_BYTES_MAX};
use crate::output::Output;
use crate::payload::Payload;
use crate::reply::ReplyTo;
use crate::request::{Operation, Reply, Request, RequestError, RequestId};
use crate::session::{Action, Closing, Step};
use crate::validate::{Command, Refusal, Rules};
use crate::wire::{command, command_flag, RequestHeader, MAGIC_EXTENDED_REQUEST, MAGIC_REQUEST};
use bytes::Bytes;
use esker_base::num::{to_u32_saturating, to_u64, to_usize};
use std::collections::BTreeMap;
use std::sync::Arc;

const SHUTTING_DOWN: Refusal = Refusal {
    error: RequestError::Shutdown,
    text: "the server is shutting down",
};

/// An attached session.
#[derive(Debug)]
pub(crate) struct Transmission {
    export: Export,
    headers: Headers,
    /// The metadata contexts that the client selected; the id of each is its place.
    contexts: Vec<Arc<str>>,
    /// Longest read or write in bytes.
    payload_bytes_max: u32,
    limits: SessionLimits,
    receiving: Receiving,
    in_flight: BTreeMap<RequestId, InFlight>,
    /// What `in_flight` and the write that is arriving count against the limit of bytes.
    bytes_in_flight: usize,
    /// The caller has no room for further requests.
    held: bool,
    /// Up to which [`Self::bytes_in_flight`] the caller has room for requests of this session.
    allowed_bytes: usize,
    next_id: u64,
    /// Payloads that have begun.
    payloads: u64,
}

/// What comes next from the client.
#[derive(Debug)]
enum Receiving {
    Header,
    /// A valid request that the limits do not admit yet.
    Stalled(Asked),
    /// The payload of an admitted write.
    Payload(RequestHeader, Payload),
    /// The payload of a block status request.
    Filter(RequestHeader, Filter),
    /// The payload of a refused request; the answer follows it.
    Discard {
        left: usize,
        to: ReplyTo,
        refusal: Refusal,
    },
    /// Nothing: the client said that it leaves.
    Nothing,
}

/// A valid request.
#[derive(Debug)]
struct Asked {
    header: RequestHeader,
    command: Command,
    /// The metadata contexts to answer, of a block status request.
    ids: Vec<u32>,
}

/// What must be known of a request to answer it.
#[derive(Debug)]
struct InFlight {
    to: ReplyTo,
    command: Command,
    length: u64,
    ids: Vec<u32>,
}

impl Transmission {
    pub(crate) fn new(
        export: Export,
        headers: Headers,
        contexts: Vec<Arc<str>>,
        limits: SessionLimits,
    ) -> Self {
        let session_limit = to_u32_saturating(limits.request_bytes_max);
        Self {
            payload_bytes_max: export.payload_bytes_max(session_limit),
            export,
            headers,
            contexts,
            limits,
            receiving: Receiving::Header,
            in_flight: BTreeMap::new(),
            bytes_in_flight: 0,
            held: false,
            allowed_bytes: usize::MAX,
            next_id: 0,
            payloads: 0,
        }
    }

    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    pub(crate) fn allow(&mut self, bytes: usize) {
        self.allowed_bytes = bytes;
    }

    pub(crate) fn requests_in_flight(&self) -> usize {
        self.in_flight.len() + usize::from(matches!(self.receiving, Receiving::Payload(..)))
    }

    /// The number of the payload that is arriving.
    pub(crate) fn payload_number(&self) -> Option<u64> {
        matches!(self.receiving, Receiving::Payload(..)).then_some(self.payloads)
    }

    pub(crate) fn cookie(&self, id: RequestId) -> Option<u64> {
        self.in_flight.get(&id).map(|r| r.to.cookie)
    }

    pub(crate) fn bytes_in_flight(&self) -> usize {
        self.bytes_in_flight
    }

    /// False when more input could not be used now.
    pub(crate) fn wants_input(&self) -> bool {
        match self.receiving {
            Receiving::Payload(..) | Receiving::Filter(..) | Receiving::Discard { .. } => true,
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
            Receiving::Header => match self.take_header(input) {
                None => Step::Wait,
                Some(header) => self.header(header, output, shutting_down),
            },
            Receiving::Stalled(asked) => self.admit(asked, output, shutting_down),
            Receiving::Payload(header, payload) if shutting_down => {
                self.bytes_in_flight -= to_usize(header.length);
                self.discard(payload.missing(), self.to(&header), SHUTTING_DOWN)
            }
            Receiving::Payload(header, mut payload) => match payload.fill(input) {
                Some(bytes) => self.hand_out(write_of(header), Some(bytes)),
                None => {
                    self.receiving = Receiving::Payload(header, payload);
                    Step::Wait
                }
            },
            Receiving::Filter(header, mut filter) => {
                if filter.fill(input) {
                    self.filtered(header, &filter, output, shutting_down)
                } else {
                    self.receiving = Receiving::Filter(header, filter);
                    Step::Wait
                }
            }
            Receiving::Discard { left, to, refusal } => {
                let left = left - input.discard(left);
                if left > 0 {
                    self.receiving = Receiving::Discard { left, to, refusal };
                    Step::Wait
                } else {
                    refuse(to, refusal, output)
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

    fn take_header(&self, input: &mut Input) -> Option<RequestHeader> {
        if self.headers.extended() {
            let raw = input.take_array()?;
            Some(RequestHeader::decode_extended(&raw))
        } else {
            let raw = input.take_array()?;
            Some(RequestHeader::decode_compact(&raw))
        }
    }

    fn header(&mut self, header: RequestHeader, output: &mut Output, shutting_down: bool) -> Step {
        let magic = match self.headers.extended() {
            true => MAGIC_EXTENDED_REQUEST,
            false => MAGIC_REQUEST,
        };
        if header.magic != magic {
            let reason = format!("bad magic {:#x} of a request", header.magic);
            return Step::Close(Closing::violation(reason));
        }
        if header.command == command::DISC {
            self.receiving = Receiving::Nothing;
            return Step::Again;
        }
        let tolerated = to_u64(PAYLOAD_TOLERATED_BYTES_MAX).max(self.payload_bytes_max.into());
        if self.headers.extended() && self.payload_length(&header) > tolerated {
            let reason = format!("a payload of {} bytes", header.length);
            return Step::Close(Closing::violation(reason));
        }
        if self.is_filtered(&header) {
            let filter = Filter::new(to_usize(header.length));
            self.receiving = Receiving::Filter(header, filter);
            return Step::Again;
        }
        self.check(header, None, output, shutting_down)
    }

    /// A block status request with a payload that may be well-formed.
    fn is_filtered(&self, header: &RequestHeader) -> bool {
        header.command == command::BLOCK_STATUS
            && !self.contexts.is_empty()
            && self.headers.extended()
            && header.flags & command_flag::PAYLOAD_LEN != 0
            && filter::is_length(header.length)
    }

    /// The payload of a block status request is here: it has the length of the range, and names
    /// contexts.
    fn filtered(
        &mut self,
        header: RequestHeader,
        filter: &Filter,
        output: &mut Output,
        shutting_down: bool,
    ) -> Step {
        // From here on it is like any other: its payload is behind it.
        let header = RequestHeader {
            flags: header.flags & !command_flag::PAYLOAD_LEN,
            length: filter.effect_length(),
            ..header
        };
        match filter.ids(self.contexts.len()) {
            Ok(ids) => self.check(header, Some(ids), output, shutting_down),
            Err(refusal) => refuse(self.to(&header), refusal, output),
        }
    }

    fn check(
        &mut self,
        header: RequestHeader,
        ids: Option<Vec<u32>>,
        output: &mut Output,
        shutting_down: bool,
    ) -> Step {
        let rules = Rules {
            export: &self.export,
            headers: self.headers,
            contexts: !self.contexts.is_empty(),
            payload_bytes_max: self.payload_bytes_max,
        };
        let command = match rules.check(&header) {
            Ok(command) => command,
            Err(refusal) => return self.refuse_request(&header, refusal, output),
        };
        let all = || (0..to_u32_saturating(self.contexts.len())).collect();
        let ids = match command {
            Command::BlockStatus { .. } => ids.unwrap_or_else(all),
            _ => Vec::new(),
        };
        let asked = Asked {
            header,
            command,
            ids,
        };
        self.admit(asked, output, shutting_down)
    }

    /// Lets a valid request in, now or when there is room.
    fn admit(&mut self, asked: Asked, output: &mut Output, shutting_down: bool) -> Step {
        let Asked {
            header, command, ..
        } = &asked;
        if shutting_down {
            return self.refuse_request(header, SHUTTING_DOWN, output);
        }
        if header.length == 0 && *command != Command::Flush {
            self.answer_empty(header, *command, output);
            return Step::Again;
        }
        let bytes = command.cost(header.length, asked.ids.len());
        let bytes_after = self.bytes_in_flight.saturating_add(bytes);
        let room = self.in_flight.len() < self.limits.requests_in_flight_max
            && bytes_after <= self.limits.bytes_in_flight_max;
        let refused = self.held || (bytes > 0 && bytes_after > self.allowed_bytes);
        if refused || (!room && !self.in_flight.is_empty()) {
            self.receiving = Receiving::Stalled(asked);
            return Step::Wait;
        }
        self.bytes_in_flight = bytes_after;
        if *command == Command::Write {
            self.payloads += 1;
            let payload = Payload::new(header.offset, bytes);
            self.receiving = Receiving::Payload(*header, payload);
            return Step::Again;
        }
        self.hand_out(asked, None)
    }

    /// Gives an admitted request to the caller.
    fn hand_out(&mut self, asked: Asked, payload: Option<Bytes>) -> Step {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let Asked {
            header,
            command,
            ids,
        } = asked;
        let op = match command {
            Command::Read { dont_fragment } => Operation::Read { dont_fragment },
            Command::Write => Operation::Write {
                payload: payload.unwrap_or_default(),
            },
            Command::Flush => Operation::Flush,
            Command::Trim => Operation::Trim,
            Command::WriteZeroes { no_hole, fast } => Operation::WriteZeroes { no_hole, fast },
            Command::Cache => Operation::Cache,
            Command::BlockStatus { one } => {
                let name = |id: &u32| self.contexts.get(to_usize(u64::from(*id))).cloned();
                let contexts = ids.iter().filter_map(name).collect();
                Operation::BlockStatus { contexts, one }
            }
        };
        let RequestHeader { offset, length, .. } = header;
        let to = self.to(&header);
        self.in_flight.insert(
            id,
            InFlight {
                to,
                command,
                length,
                ids,
            },
        );
        let fua = command.writes() && header.flags & command_flag::FUA != 0;
        Step::Act(Action::Request(Request {
            id,
            op,
            offset,
            length,
            fua,
        }))
    }

    /// Nothing to do, nothing to make durable: success.
    fn answer_empty(&self, header: &RequestHeader, command: Command, output: &mut Output) {
        let to = self.to(header);
        match command {
            Command::Read { dont_fragment } => to.read(output, 0, dont_fragment, Vec::new()),
            _ => to.done(output),
        }
    }

    /// Bytes that follow a header.
    fn payload_length(&self, header: &RequestHeader) -> u64 {
        let flagged = self.headers.extended() && header.flags & command_flag::PAYLOAD_LEN != 0;
        let has_payload = header.command == command::WRITE || flagged;
        if has_payload {
            header.length
        } else {
            0
        }
    }

    /// Refuses a request, after its payload if it has one.
    fn refuse_request(
        &mut self,
        header: &RequestHeader,
        refusal: Refusal,
        output: &mut Output,
    ) -> Step {
        let length = self.payload_length(header);
        if length == 0 {
            return refuse(self.to(header), refusal, output);
        }
        if length > to_u64(PAYLOAD_BYTES_MAX) {
            let reason = format!("a write of {length} bytes");
            return Step::Close(Closing::violation(reason));
        }
        self.discard(to_usize(length), self.to(header), refusal)
    }

    fn discard(&mut self, left: usize, to: ReplyTo, refusal: Refusal) -> Step {
        self.receiving = Receiving::Discard { left, to, refusal };
        Step::Again
    }

    fn to(&self, header: &RequestHeader) -> ReplyTo {
        ReplyTo {
            headers: self.headers,
            cookie: header.cookie,
            offset: header.offset,
        }
    }

    /// Takes a request out that was handed out; an unknown id is ignored.
    fn answered(&mut self, id: RequestId) -> Option<InFlight> {
        let request = self.in_flight.remove(&id);
        debug_assert!(
            request.is_some(),
            "request {id} is answered twice or was never handed out"
        );
        let request = request?;
        self.bytes_in_flight -= request.command.cost(request.length, request.ids.len());
        Some(request)
    }

    /// Answers a request that was handed out.
    pub(crate) fn complete(
        &mut self,
        id: RequestId,
        result: Result<Reply, RequestError>,
        output: &mut Output,
    ) {
        let Some(request) = self.answered(id) else {
            return;
        };
        let InFlight {
            to,
            command,
            length,
            ids,
        } = request;
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => return to.error(output, error, &error.to_string(), None),
        };
        match command {
            Command::Read { dont_fragment } => {
                let pieces = match reply {
                    Reply::Data(pieces) => pieces,
                    _ => Vec::new(),
                };
                to.read(output, length, dont_fragment, pieces);
            }
            Command::BlockStatus { one } => {
                let extents = match reply {
                    Reply::BlockStatus(extents) => extents,
                    _ => Vec::new(),
                };
                to.block_status(output, length, one, &ids, &extents);
            }
            _ => to.done(output),
        }
    }

    /// Answers a request that was handed out with an error at byte `offset` of the export.
    pub(crate) fn fail_at(
        &mut self,
        id: RequestId,
        error: RequestError,
        offset: u64,
        output: &mut Output,
    ) {
        let Some(request) = self.answered(id) else {
            return;
        };
        let InFlight {
            to,
            command,
            length,
            ..
        } = request;
        // The protocol knows no place in a flush, and none outside of the request.
        let inside = offset >= to.offset && offset - to.offset < length;
        let at = (inside && command != Command::Flush).then_some(offset);
        to.error(output, error, &error.to_string(), at);
    }
}

fn write_of(header: RequestHeader) -> Asked {
    Asked {
        header,
        command: Command::Write,
        ids: Vec::new(),
    }
}

fn refuse(to: ReplyTo, refusal: Refusal, output: &mut Output) -> Step {
    to.error(output, refusal.error, refusal.text, None);
    Step::Again
}
