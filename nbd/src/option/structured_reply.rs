//! `NBD_OPT_STRUCTURED_REPLY`: replies become chunks, which can skip zeros and carry messages.

use super::{Outcome, Refusal};
use crate::headers::Headers;
use crate::wire::option_reply;

pub(crate) fn run(headers: Headers) -> Outcome {
    match headers {
        Headers::Simple => Outcome::Headers(Headers::Structured),
        Headers::Structured => Outcome::Refuse(Refusal::invalid(
            "structured replies are negotiated already",
        )),
        Headers::Extended => Outcome::Refuse(Refusal {
            kind: option_reply::ERR_EXT_HEADER_REQD,
            text: "extended headers are negotiated, which include structured replies",
        }),
    }
}
