//! Which form requests and replies have: agreed on in the handshake, kept for the whole session.

/// The form of requests and replies, from the poorest to the richest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Headers {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests; reads and errors are answered in structured chunks.
    Structured,
    /// 32-byte requests with 64-bit lengths; everything is answered in extended chunks.
    Extended,
}

impl Headers {
    /// Replies can be made of chunks: what metadata contexts and DF need.
    pub(crate) fn chunks(self) -> bool {
        self >= Self::Structured
    }

    pub(crate) fn extended(self) -> bool {
        self == Self::Extended
    }
}
