//! `NBD_OPT_STRUCTURED_REPLY`: replies become chunks, which can skip zeros and carry messages.

use super::{Outcome, Refusal};

pub(crate) fn run(already: bool) -> Outcome {
    if already {
        return Outcome::Refuse(Refusal::invalid(
            "structured replies are negotiated already",
        ));
    }
    Outcome::StructuredReplies
}
