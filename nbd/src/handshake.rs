//! The handshake: greeting, client flags, options, until an export is attached.

use crate::access::{Access, TlsPolicy};
use crate::export::{ContextsAsked, Export, ExportError};
use crate::headers::Headers;
use crate::input::Input;
use crate::limits::{HANDSHAKE_OPTIONS_MAX, OPTION_BYTES_MAX, OPTION_DISCARD_BYTES_MAX};
use crate::option::{
    self, acknowledge, export_name, info, list, refuse, starttls, ExportQuery, Outcome,
    PayloadRule, QueryForm, Refusal,
};
use crate::output::Output;
use crate::session::{Action, Closing, Step};
use crate::wire::{self, handshake_flag, option_reply, OptionHeader};
use esker_base::num::to_usize;
use std::sync::Arc;

/// Where the handshake is, and what was agreed on so far.
#[derive(Debug)]
pub(crate) struct Handshake {
    state: State,
    /// From the client flags.
    fixed: bool,
    /// From the client flags.
    no_zeroes: bool,
    headers: Headers,
    /// The metadata contexts selected last, and the export they are of, by its canonical name.
    selected: Option<(Arc<str>, Vec<Arc<str>>)>,
    options_seen: usize,
    tls: TlsPolicy,
    /// TLS is established.
    is_secured: bool,
    /// What the client may know of.
    access: Access,
}

/// What comes next.
#[derive(Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    /// The payload of an option is collected.
    Payload {
        code: u32,
        length: usize,
        bytes: Vec<u8>,
    },
    /// The payload of an option is dropped; then the option runs, or is refused.
    Discard {
        code: u32,
        left: usize,
        refusal: Option<Refusal>,
    },
    /// The caller owes TLS.
    Tls,
    /// The caller owes the list of exports.
    List,
    /// The caller owes an export.
    Export(ExportQuery),
}

/// What an answered export query leads to.
#[derive(Debug)]
pub(crate) enum Answered {
    /// The handshake goes on.
    Stay,
    /// The export is attached.
    Attached {
        export: Export,
        headers: Headers,
        /// The metadata contexts that the client has selected.
        contexts: Vec<Arc<str>>,
    },
    /// The session ends.
    Close(Closing),
}

impl Handshake {
    /// Greets the client.
    pub(crate) fn new(output: &mut Output) -> Self {
        output.u64(wire::MAGIC_GREETING);
        output.u64(wire::MAGIC_OPTION);
        output.u16(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        Self {
            state: State::ClientFlags,
            fixed: false,
            no_zeroes: false,
            headers: Headers::default(),
            selected: None,
            options_seen: 0,
            tls: TlsPolicy::Off,
            is_secured: false,
            access: Access::all(),
        }
    }

    /// From now on the client is offered TLS, or needs it.
    pub(crate) fn offer_tls(&mut self, policy: TlsPolicy) {
        self.tls = policy;
    }

    /// True between the acknowledgement of `NBD_OPT_STARTTLS` and [`Self::secured`].
    pub(crate) fn awaits_tls(&self) -> bool {
        matches!(self.state, State::Tls)
    }

    /// TLS is established, with a client that may know of so much. Ignored when it was not asked for.
    pub(crate) fn secured(&mut self, access: Access) {
        if self.awaits_tls() {
            self.state = State::OptionHeader;
            self.is_secured = true;
            self.access = access;
        }
    }

    /// Parses one item.
    pub(crate) fn step(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        shutting_down: bool,
    ) -> Step {
        match &mut self.state {
            State::ClientFlags => match input.take_array() {
                None => Step::Wait,
                Some(raw) => self.client_flags(u32::from_be_bytes(raw)),
            },
            State::OptionHeader => match input.take_array() {
                None => Step::Wait,
                Some(raw) => self.header(OptionHeader::decode(&raw)),
            },
            State::Payload {
                code,
                length,
                bytes,
            } => {
                input.append_to(bytes, *length - bytes.len());
                if bytes.len() < *length {
                    return Step::Wait;
                }
                let (code, bytes) = (*code, std::mem::take(bytes));
                self.run(code, &bytes, input.len(), output, shutting_down)
            }
            State::Discard {
                code,
                left,
                refusal,
            } => {
                *left -= input.discard(*left);
                if *left > 0 {
                    return Step::Wait;
                }
                match (*code, refusal.take()) {
                    (code, None) => self.run(code, &[], input.len(), output, shutting_down),
                    (code, Some(refusal)) => self.refuse(code, refusal, output),
                }
            }
            State::Tls | State::List | State::Export(_) => Step::Wait,
        }
    }

    fn client_flags(&mut self, flags: u32) -> Step {
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Step::Close(Closing::violation(format!(
                "unknown client flags {flags:#x}"
            )));
        }
        self.fixed = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.state = State::OptionHeader;
        Step::Again
    }

    fn header(&mut self, header: OptionHeader) -> Step {
        let OptionHeader {
            magic,
            option: code,
            length,
        } = header;
        if magic != wire::MAGIC_OPTION {
            return violation(format!("bad magic {magic:#x} of an option"));
        }
        if self.options_seen == HANDSHAKE_OPTIONS_MAX {
            return violation(format!("more than {HANDSHAKE_OPTIONS_MAX} options"));
        }
        self.options_seen += 1;
        if !self.fixed && code != wire::option::EXPORT_NAME {
            return violation(format!("option {code} without fixed newstyle"));
        }
        let length = to_usize(u64::from(length));
        if length > OPTION_DISCARD_BYTES_MAX {
            return violation(format!("option {code} announces {length} bytes"));
        }
        let needs_tls = self.tls == TlsPolicy::Require && !self.is_secured;
        if needs_tls && code == wire::option::EXPORT_NAME {
            return violation("NBD_OPT_EXPORT_NAME without TLS".to_owned());
        }
        if code == wire::option::SET_META_CONTEXT {
            self.selected = None; // also when it fails, for whatever reason
        }
        let discard = |refusal| State::Discard {
            code,
            left: length,
            refusal,
        };
        let is_exempt = matches!(code, wire::option::STARTTLS | wire::option::ABORT);
        self.state = match self.payload_rule(code) {
            _ if needs_tls && !is_exempt => discard(Some(Refusal {
                kind: option_reply::ERR_TLS_REQD,
                text: "this server needs TLS: begin with NBD_OPT_STARTTLS",
            })),
            PayloadRule::Arguments if length <= OPTION_BYTES_MAX => State::Payload {
                code,
                length,
                bytes: Vec::new(),
            },
            PayloadRule::Arguments if code == wire::option::EXPORT_NAME => {
                return violation(format!("an export name of {length} bytes"));
            }
            PayloadRule::Arguments => discard(Some(Refusal {
                kind: option_reply::ERR_TOO_BIG,
                text: "the option is too long",
            })),
            PayloadRule::Empty if length > 0 => {
                discard(Some(Refusal::invalid("this option carries no data")))
            }
            PayloadRule::Empty | PayloadRule::Ignored => discard(None),
        };
        Step::Again
    }

    fn payload_rule(&self, code: u32) -> PayloadRule {
        match code {
            wire::option::STARTTLS if self.tls != TlsPolicy::Off => PayloadRule::Empty,
            _ => option::payload_rule(code),
        }
    }

    /// Runs an option; `rest` is the number of bytes that have arrived behind it.
    fn run(
        &mut self,
        code: u32,
        payload: &[u8],
        rest: usize,
        output: &mut Output,
        shutting_down: bool,
    ) -> Step {
        self.state = State::OptionHeader;
        if shutting_down && code == wire::option::EXPORT_NAME {
            return Step::Close(Closing::shutdown());
        }
        if shutting_down && code != wire::option::ABORT {
            refuse(
                output,
                code,
                option_reply::ERR_SHUTDOWN,
                "the server is shutting down",
            );
            return Step::Again;
        }
        let outcome = match code {
            wire::option::STARTTLS => starttls::run(self.tls, self.is_secured, rest),
            _ => option::run(code, payload, self.headers),
        };
        match outcome {
            Outcome::List => {
                self.state = State::List;
                Step::Act(Action::ListExports)
            }
            Outcome::StartTls => {
                acknowledge(output, code);
                // What was said without protection counts for nothing.
                (self.headers, self.selected) = (Headers::default(), None);
                self.state = State::Tls;
                Step::Act(Action::StartTls)
            }
            Outcome::Export(query) if !self.access.permits(&query.name) => {
                let text = match query.name.is_empty() {
                    true => "name a volume: this client's certificate is for some volumes only",
                    false => "this client's certificate is not for that volume",
                };
                let error = ExportError::Policy(text.to_owned());
                match Self::unavailable(&query, &error, output) {
                    Answered::Close(closing) => Step::Close(closing),
                    Answered::Stay | Answered::Attached { .. } => Step::Again,
                }
            }
            Outcome::Export(query) => {
                let (name, attach) = (query.name.clone(), query.form.attaches());
                let contexts = self.contexts_asked(&query.form);
                self.state = State::Export(query);
                Step::Act(Action::Export {
                    name,
                    attach,
                    contexts,
                })
            }
            Outcome::Headers(headers) => {
                self.headers = headers;
                acknowledge(output, code);
                Step::Again
            }
            Outcome::Abort => {
                acknowledge(output, code);
                Step::Close(Closing::clean("the client aborted the handshake"))
            }
            Outcome::Refuse(refusal) => self.refuse(code, refusal, output),
            Outcome::Close(reason) => violation(reason),
        }
    }

    fn refuse(&mut self, code: u32, refusal: Refusal, output: &mut Output) -> Step {
        self.state = State::OptionHeader;
        refuse(output, code, refusal.kind, refusal.text);
        Step::Again
    }

    /// Takes the answer to [`Action::ListExports`]; ignored when none is due.
    pub(crate) fn list_exports(&mut self, exports: &[(String, u64)], output: &mut Output) {
        if matches!(self.state, State::List) {
            self.state = State::OptionHeader;
            let permitted = exports.iter().filter(|(name, _)| self.access.permits(name));
            list::answer(output, permitted);
        }
    }

    /// Takes the answer to [`Action::Export`]; ignored when none is due. `payload_limit` is the
    /// session's longest read or write in bytes.
    pub(crate) fn export(
        &mut self,
        answer: Result<Export, ExportError>,
        payload_limit: u32,
        output: &mut Output,
    ) -> Answered {
        if !matches!(self.state, State::Export(_)) {
            return Answered::Stay;
        }
        let State::Export(query) = std::mem::replace(&mut self.state, State::OptionHeader) else {
            return Answered::Stay;
        };
        let export = match answer {
            Ok(export) => export,
            Err(error) => return Self::unavailable(&query, &error, output),
        };
        let contexts = self.selected_of(&export);
        let flags = export.transmission_flags(self.headers, !contexts.is_empty());
        let payload_max = export.payload_bytes_max(payload_limit);
        match query.form {
            QueryForm::Info(wanted) => {
                let code = wire::option::INFO;
                info::answer(output, code, wanted, &export, flags, payload_max);
                return Answered::Stay;
            }
            QueryForm::Contexts(queries) => {
                let selected = queries.answer(output, &export.contexts);
                if queries.select {
                    self.selected = Some((export.name.into(), selected));
                }
                return Answered::Stay;
            }
            QueryForm::Go(wanted) => {
                let code = wire::option::GO;
                info::answer(output, code, wanted, &export, flags, payload_max);
            }
            QueryForm::ExportName => {
                export_name::answer(output, export.size_bytes, flags, self.no_zeroes);
            }
        }
        Answered::Attached {
            export,
            headers: self.headers,
            contexts,
        }
    }

    /// The contexts that the answer to a question must know of.
    fn contexts_asked(&self, form: &QueryForm) -> ContextsAsked {
        match (form, &self.selected) {
            (QueryForm::Contexts(queries), _) => queries.asked(),
            (_, Some((of, names))) => ContextsAsked {
                names: names.clone(),
                of: Some(of.clone()),
                list: false,
            },
            (_, None) => ContextsAsked::default(),
        }
    }

    /// The contexts that the client has selected of this export.
    fn selected_of(&self, export: &Export) -> Vec<Arc<str>> {
        match &self.selected {
            Some((name, contexts)) if **name == *export.name => contexts.clone(),
            _ => Vec::new(),
        }
    }

    fn unavailable(query: &ExportQuery, error: &ExportError, output: &mut Output) -> Answered {
        let (kind, text) = error.reply();
        let code = match &query.form {
            QueryForm::Info(_) => wire::option::INFO,
            QueryForm::Go(_) => wire::option::GO,
            QueryForm::Contexts(queries) => queries.code(),
            QueryForm::ExportName => {
                let name = &query.name;
                let reason = format!("export {name:?} asked for by EXPORT_NAME: {text}");
                return Answered::Close(Closing::violation(reason));
            }
        };
        refuse(output, code, kind, text);
        Answered::Stay
    }
}

fn violation(reason: String) -> Step {
    Step::Close(Closing::violation(reason))
}
