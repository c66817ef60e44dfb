//! `NBD_OPT_EXTENDED_HEADERS`: 32-byte requests and replies with 64-bit lengths. Takes the place of
//! structured replies, whether they were negotiated before or not.

use super::{Outcome, Refusal};
use crate::headers::Headers;

pub(crate) fn run(headers: Headers) -> Outcome {
    if headers.extended() {
        return Outcome::Refuse(Refusal::invalid("extended headers are negotiated already"));
    }
    Outcome::Headers(Headers::Extended)
}
