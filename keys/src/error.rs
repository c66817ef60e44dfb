//! What can go wrong with a key provider: a stable kind, and one line that names the thing and the
//! remedy. No error ever holds a secret.

use std::fmt;

/// What kind of failure, which decides what a node does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyErrorKind {
    /// The provider does not answer, answers too late, or says that it cannot serve now.
    Unreachable,
    /// It answers and refuses: wrong credentials, wrong passphrase, a certificate that is not
    /// accepted on either side, missing permission.
    Denied,
    /// The KEK is not there (any more).
    KeyMissing,
    /// What was wrapped does not open with the right KEK, or the keyring file is damaged.
    Damaged,
    /// The configuration cannot work.
    Config,
}

impl KeyErrorKind {
    /// The word for it in states, metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::KeyMissing => "key-missing",
            Self::Damaged => "damaged",
            Self::Config => "config",
        }
    }
}

/// A failure of a key provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// Its kind.
    pub kind: KeyErrorKind,
    message: String,
}

/// Longest message of an error, in bytes: what servers say is cut.
const MESSAGE_BYTES_MAX: usize = 500;

impl KeyError {
    /// An error with its message, which becomes one line.
    #[must_use]
    pub fn new(kind: KeyErrorKind, message: impl fmt::Display) -> Self {
        let text = message.to_string();
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let mut message: String = text.trim().chars().map(plain).collect();
        let ends = message.char_indices().map(|(at, c)| at + c.len_utf8());
        let end = ends.take_while(|end| *end <= MESSAGE_BYTES_MAX).last();
        message.truncate(end.unwrap_or(0));
        Self { kind, message }
    }

    pub(crate) fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(KeyErrorKind::Unreachable, message)
    }

    pub(crate) fn denied(message: impl fmt::Display) -> Self {
        Self::new(KeyErrorKind::Denied, message)
    }

    pub(crate) fn missing(message: impl fmt::Display) -> Self {
        Self::new(KeyErrorKind::KeyMissing, message)
    }

    pub(crate) fn damaged(message: impl fmt::Display) -> Self {
        Self::new(KeyErrorKind::Damaged, message)
    }

    pub(crate) fn config(message: impl fmt::Display) -> Self {
        Self::new(KeyErrorKind::Config, message)
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for KeyError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_not_endless() {
        let error = KeyError::unreachable("a\nb\r\u{7}c\n");
        assert_eq!(error.to_string(), "a b  c");
        let long = KeyError::denied("ä".repeat(400));
        assert_eq!(long.to_string().len(), MESSAGE_BYTES_MAX);
    }
}
