//! `NBD_OPT_STARTTLS`: from its acknowledgement on, everything is TLS. What was negotiated before is
//! forgotten, and what a client sent after it without waiting was not protected: it ends the session.

use super::{Outcome, Refusal};
use crate::access::TlsPolicy;
use crate::wire::option_reply;

/// Runs the option. `rest` is the number of bytes that have arrived behind it.
pub(crate) fn run(policy: TlsPolicy, is_secured: bool, rest: usize) -> Outcome {
    if policy == TlsPolicy::Off {
        return Outcome::Refuse(Refusal {
            kind: option_reply::ERR_UNSUP,
            text: "TLS is not offered here",
        });
    }
    if is_secured {
        return Outcome::Refuse(Refusal::invalid("TLS is negotiated already"));
    }
    match rest {
        0 => Outcome::StartTls,
        // Somebody between client and server may have put them there.
        _ => Outcome::Close(format!(
            "{rest} bytes after NBD_OPT_STARTTLS, before its answer"
        )),
    }
}
