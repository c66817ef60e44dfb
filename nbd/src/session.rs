//! One client's session: its phases, and the calls its owner makes.

use crate::access::{Access, TlsPolicy};
use crate::export::{ContextsAsked, Export, ExportError};
use crate::handshake::{Answered, Handshake};
use crate::input::Input;
use crate::limits::{SessionLimits, INPUT_QUEUED_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::output::Output;
use crate::request::{Reply, Request, RequestError, RequestId};
use crate::transmission::Transmission;
use bytes::Bytes;
use esker_base::num::to_u32_saturating;

/// What a session needs from its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the output, then begin TLS; see [`Session::secured`].
    StartTls,
    /// The list of exports; see [`Session::list_exports`].
    ListExports,
    /// An export by the name the client gave; see [`Session::export`].
    Export {
        /// The name; empty for the default export.
        name: String,
        /// True when a positive answer attaches the session to the export, false when the client
        /// only asks.
        attach: bool,
        /// The metadata contexts that matter for the answer.
        contexts: ContextsAsked,
    },
    /// Serve a request; see [`Session::complete`].
    Request(Request),
    /// The session is over: send what [`Session::take_output`] still has, then close.
    Close {
        /// Why, in one line.
        reason: String,
        /// True after `NBD_CMD_DISC`, `NBD_OPT_ABORT` or a shutdown; false when the client broke the
        /// protocol or asked, in the form that has no error reply, for what it cannot have.
        clean: bool,
    },
}

/// How a session ends.
#[derive(Debug)]
pub(crate) struct Closing {
    reason: String,
    clean: bool,
}

impl Closing {
    pub(crate) fn violation(reason: String) -> Self {
        Self {
            reason,
            clean: false,
        }
    }

    pub(crate) fn clean(reason: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            clean: true,
        }
    }

    pub(crate) fn shutdown() -> Self {
        Self::clean("the server is shutting down")
    }
}

/// What one step of parsing led to.
#[derive(Debug)]
pub(crate) enum Step {
    /// Something was done; there may be more.
    Again,
    /// Needs more input, an answer or room.
    Wait,
    /// The owner must act.
    Act(Action),
    /// The session ends.
    Close(Closing),
}

/// One client's session. The contract of its owner is in the crate's documentation.
#[derive(Debug)]
pub struct Session {
    limits: SessionLimits,
    input: Input,
    output: Output,
    phase: Phase,
    /// Kept after the end, for the owner's log.
    export_name: Option<String>,
    /// The question asked last with [`Action::Export`], until it is answered.
    asked: Option<(String, bool, ContextsAsked)>,
    shutting_down: bool,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Transmission(Box<Transmission>),
    /// The end is known; the owner is not told yet.
    Closing(Closing),
    Closed,
}

impl Session {
    /// A session with a client that has just connected. Its output holds the greeting.
    #[must_use]
    pub fn new(limits: SessionLimits) -> Session {
        let mut output = Output::default();
        let phase = Phase::Handshake(Handshake::new(&mut output));
        let limits = SessionLimits {
            request_bytes_max: limits.request_bytes_max.min(PAYLOAD_BYTES_MAX),
            ..limits
        };
        Session {
            limits,
            input: Input::default(),
            output,
            phase,
            export_name: None,
            asked: None,
            shutting_down: false,
        }
    }

    /// Offers TLS, or demands it. To be called before anything is received.
    pub fn offer_tls(&mut self, policy: TlsPolicy) {
        if let Phase::Handshake(handshake) = &mut self.phase {
            handshake.offer_tls(policy);
        }
    }

    /// Answers [`Action::StartTls`]: TLS is established, with a client that may see and open these
    /// exports. Ignored when it is not due.
    pub fn secured(&mut self, access: Access) {
        if let Phase::Handshake(handshake) = &mut self.phase {
            handshake.secured(access);
        }
    }

    /// Takes bytes from the client, in order and in any split. They wait until [`Session::poll`].
    /// Between [`Action::StartTls`] and [`Session::secured`] there are none that could be trusted: any
    /// end the session.
    pub fn receive(&mut self, data: Bytes) {
        if matches!(&self.phase, Phase::Handshake(handshake) if handshake.awaits_tls()) {
            let reason = "bytes without TLS after NBD_OPT_STARTTLS".to_owned();
            self.phase = Phase::Closing(Closing::violation(reason));
        }
        if self.is_open() {
            self.input.push(data);
        }
    }

    /// Parses on. `None` means: needs more input, or an answer, or room under the limits.
    pub fn poll(&mut self) -> Option<Action> {
        loop {
            let step = match &mut self.phase {
                Phase::Handshake(handshake) => {
                    handshake.step(&mut self.input, &mut self.output, self.shutting_down)
                }
                Phase::Transmission(transmission) => {
                    transmission.step(&mut self.input, &mut self.output, self.shutting_down)
                }
                Phase::Closing(_) => return self.close(),
                Phase::Closed => return None,
            };
            match step {
                Step::Again => {}
                Step::Wait => return None,
                Step::Act(action) => {
                    if let Action::Export {
                        name,
                        attach,
                        contexts,
                    } = &action
                    {
                        self.asked = Some((name.clone(), *attach, contexts.clone()));
                    }
                    return Some(action);
                }
                Step::Close(closing) => self.phase = Phase::Closing(closing),
            }
        }
    }

    fn close(&mut self) -> Option<Action> {
        self.input.clear();
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Closing(Closing { reason, clean }) => Some(Action::Close { reason, clean }),
            _ => None,
        }
    }

    /// Answers [`Action::ListExports`] with names and sizes in bytes. Ignored when none is due.
    pub fn list_exports(&mut self, exports: &[(String, u64)]) {
        if let Phase::Handshake(handshake) = &mut self.phase {
            handshake.list_exports(exports, &mut self.output);
        }
    }

    /// Answers [`Action::Export`]. Ignored when none is due.
    pub fn export(&mut self, answer: Result<Export, ExportError>) {
        self.asked = None;
        let Phase::Handshake(handshake) = &mut self.phase else {
            return;
        };
        let payload_limit = to_u32_saturating(self.limits.request_bytes_max);
        match handshake.export(answer, payload_limit, &mut self.output) {
            Answered::Stay => {}
            Answered::Attached {
                export,
                headers,
                contexts,
            } => {
                self.export_name = Some(export.name.clone());
                let limits = self.limits.clone();
                let transmission = Transmission::new(export, headers, contexts, limits);
                self.phase = Phase::Transmission(Box::new(transmission));
            }
            Answered::Close(closing) => self.phase = Phase::Closing(closing),
        }
    }

    /// Answers [`Action::Request`], in any order. Ignored once the session is over.
    pub fn complete(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.complete(id, result, &mut self.output);
        }
    }

    /// Answers [`Action::Request`] with an error that is known to lie at byte `offset` of the export,
    /// which is one of the request's. Clients that understand chunks are told where.
    pub fn fail_at(&mut self, id: RequestId, error: RequestError, offset: u64) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.fail_at(id, error, offset, &mut self.output);
        }
    }

    /// Moves what is to be sent to the end of `out`. Payload is passed through, never copied.
    pub fn take_output(&mut self, out: &mut Vec<Bytes>) {
        self.output.take(out);
    }

    /// False while the session is over its limits or closing: the caller then stops reading from the
    /// client, which slows the client and bounds what the session holds.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.input.len() < INPUT_QUEUED_BYTES_MAX
            && match &self.phase {
                Phase::Handshake(_) => true,
                Phase::Transmission(transmission) => transmission.wants_input(),
                Phase::Closing(_) | Phase::Closed => false,
            }
    }

    /// Holds the session back, or lets it go on: while held it admits no further request, but takes
    /// the rest of a payload that has begun, for which there is room already. For limits above the
    /// session's own.
    pub fn hold(&mut self, held: bool) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.hold(held);
        }
    }

    /// From now on admits only requests with which [`Self::bytes_in_flight`] stays within this. For
    /// limits above the session's own; `usize::MAX` is none.
    pub fn allow(&mut self, bytes: usize) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.allow(bytes);
        }
    }

    /// Requests that were handed out and not answered, and the write whose payload is arriving.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.transmission()
            .map_or(0, Transmission::requests_in_flight)
    }

    /// Bytes of the reads and writes among [`Session::requests_in_flight`].
    #[must_use]
    pub fn bytes_in_flight(&self) -> usize {
        self.transmission().map_or(0, Transmission::bytes_in_flight)
    }

    /// The number of the write whose payload is arriving, counted from the session's first; none while
    /// none is.
    #[must_use]
    pub fn payload_arriving(&self) -> Option<u64> {
        self.transmission()?.payload_number()
    }

    /// The client's name for a request that is not answered, for the log.
    #[must_use]
    pub fn cookie(&self, id: RequestId) -> Option<u64> {
        self.transmission()?.cookie(id)
    }

    /// The canonical name of the export, from the attachment on, also after the end.
    #[must_use]
    pub fn export_name(&self) -> Option<&str> {
        self.export_name.as_deref()
    }

    /// Name, `attach` and contexts of the [`Action::Export`] that is not answered yet. For an owner that
    /// takes a session over from another one before the answer.
    #[must_use]
    pub fn export_asked(&self) -> Option<&(String, bool, ContextsAsked)> {
        self.asked.as_ref()
    }

    /// Whether the handshake is over.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.export_name.is_some()
    }

    /// The server ends. In the handshake every further option but `NBD_OPT_ABORT` is refused with
    /// `NBD_REP_ERR_SHUTDOWN`, and the client is expected to leave. In transmission new requests get
    /// ESHUTDOWN, and once those in flight are answered, [`Session::poll`] gives [`Action::Close`].
    /// A client that does neither is for the caller to disconnect after a while.
    pub fn shutdown(&mut self) {
        self.shutting_down = true;
    }

    fn transmission(&self) -> Option<&Transmission> {
        match &self.phase {
            Phase::Transmission(transmission) => Some(transmission),
            _ => None,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_) | Phase::Transmission(_))
    }
}
