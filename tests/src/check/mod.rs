//! Oracles: models that are independent of the code they judge, and worlds that run that code
//! against them.

pub mod damage;
pub mod diff;
pub mod forest;
pub mod group;
pub mod ops;
pub mod scrub;
pub mod settle;
pub mod single;
pub mod trace;
pub mod world;

use std::fmt;

/// A rule of the store was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(String);

impl Violation {
    /// A violation in words.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}
