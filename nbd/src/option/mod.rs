//! The options of the handshake, one file each. An option looks at its complete payload and says
//! what follows from it; it touches no state of the session.

pub(crate) mod abort;
pub(crate) mod export_name;
pub(crate) mod extended_headers;
pub(crate) mod info;
pub(crate) mod list;
pub(crate) mod meta_context;
pub(crate) mod starttls;
pub(crate) mod structured_reply;
pub(crate) mod unsupported;

use crate::headers::Headers;
use crate::limits::STRING_BYTES_MAX;
use crate::output::Output;
use crate::wire::{option, option_reply};
use esker_base::num::to_u32_saturating;

/// What the payload of an option is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadRule {
    /// It carries the option's arguments.
    Arguments,
    /// There must be none.
    Empty,
    /// It is dropped, whatever it is.
    Ignored,
}

/// What follows from an option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Ask the caller for the exports.
    List,
    /// Ask the caller for an export.
    Export(ExportQuery),
    /// Acknowledge, and use these headers in transmission.
    Headers(Headers),
    /// Acknowledge, and go on with TLS.
    StartTls,
    /// Acknowledge, and end the session.
    Abort,
    /// Refuse, and go on.
    Refuse(Refusal),
    /// End the session: this option has no error reply.
    Close(String),
}

/// An error reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// One of `wire::option_reply::ERR_*`.
    pub kind: u32,
    /// One line for the client's user.
    pub text: &'static str,
}

impl Refusal {
    pub(crate) const fn invalid(text: &'static str) -> Self {
        Self {
            kind: option_reply::ERR_INVALID,
            text,
        }
    }
}

/// A client's question for one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportQuery {
    pub name: String,
    pub form: QueryForm,
}

/// With which option the client asked, and so in which form it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueryForm {
    /// `NBD_OPT_INFO`: describe only.
    Info(info::Wanted),
    /// `NBD_OPT_GO`: describe and attach.
    Go(info::Wanted),
    /// `NBD_OPT_EXPORT_NAME`: attach.
    ExportName,
    /// `NBD_OPT_LIST_META_CONTEXT`, `NBD_OPT_SET_META_CONTEXT`: list or select its contexts.
    Contexts(meta_context::Queries),
}

impl QueryForm {
    pub(crate) fn attaches(&self) -> bool {
        matches!(self, Self::Go(_) | Self::ExportName)
    }
}

/// What to do with the payload of option `code`.
pub(crate) fn payload_rule(code: u32) -> PayloadRule {
    match code {
        option::EXPORT_NAME
        | option::INFO
        | option::GO
        | option::LIST_META_CONTEXT
        | option::SET_META_CONTEXT => PayloadRule::Arguments,
        option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => PayloadRule::Empty,
        _ => PayloadRule::Ignored,
    }
}

/// Runs option `code` with its whole payload (empty where the rule says that it is dropped).
pub(crate) fn run(code: u32, payload: &[u8], headers: Headers) -> Outcome {
    match code {
        option::EXPORT_NAME if headers.extended() => {
            Outcome::Close("NBD_OPT_EXPORT_NAME after extended headers".to_owned())
        }
        option::EXPORT_NAME => export_name::run(payload),
        option::ABORT => abort::run(),
        option::LIST => list::run(),
        option::INFO => info::run(payload, QueryForm::Info),
        option::GO => info::run(payload, QueryForm::Go),
        option::STRUCTURED_REPLY => structured_reply::run(headers),
        option::LIST_META_CONTEXT => meta_context::run(payload, false, headers),
        option::SET_META_CONTEXT => meta_context::run(payload, true, headers),
        option::EXTENDED_HEADERS => extended_headers::run(headers),
        _ => unsupported::run(),
    }
}

/// Acknowledges option `code`.
pub(crate) fn acknowledge(output: &mut Output, code: u32) {
    output.option_reply(code, option_reply::ACK, 0);
}

/// Refuses option `code` with a text.
pub(crate) fn refuse(output: &mut Output, code: u32, kind: u32, text: &str) {
    let text = cut(text).as_bytes();
    output.option_reply(code, kind, to_u32_saturating(text.len()));
    output.bytes(text);
}

/// An export name as a client sent it, if it is one.
pub(crate) fn export_name(raw: &[u8]) -> Result<String, &'static str> {
    if raw.len() > crate::limits::EXPORT_NAME_BYTES_MAX {
        return Err("the export name is longer than 4096 bytes");
    }
    match std::str::from_utf8(raw) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Err("the export name is not UTF-8"),
    }
}

/// `text` without what exceeds the longest string of the protocol.
pub(crate) fn cut(text: &str) -> &str {
    let mut end = text.len().min(STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "é".repeat(3000);
        assert_eq!(cut(&long).len(), 4096);
        let odd = format!("x{long}");
        assert_eq!(cut(&odd).len(), 4095);
    }
}
