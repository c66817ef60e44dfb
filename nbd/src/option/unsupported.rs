//! Every option without a file of its own: its payload is dropped and the handshake goes on.

use super::{Outcome, Refusal};
use crate::wire::option_reply;

pub(crate) fn run() -> Outcome {
    Outcome::Refuse(Refusal {
        kind: option_reply::ERR_UNSUP,
        text: "option not supported",
    })
}
