//! `NBD_OPT_ABORT`: the client leaves. Data that comes with it is ignored, as the protocol asks.

use super::Outcome;

pub(crate) fn run() -> Outcome {
    Outcome::Abort
}
