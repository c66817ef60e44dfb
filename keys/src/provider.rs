//! What every key provider does.

use crate::error::KeyError;
pub use esker_crypto::KeyName;
use esker_crypto::{DataKey, KekId, WrappedKey};
use std::future::Future;
use std::pin::Pin;

/// An answer that is on its way.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeyError>> + Send + 'a>>;

/// Keeps key-encryption keys and wraps DEKs under them.
///
/// Every call ends by itself: no provider takes longer than its time-out. Nothing is asked again within
/// a call, but for one new login; [`crate::retry`] says when to ask again.
pub trait Provider: Send + Sync {
    /// What the names of its KEKs begin with, before the colon.
    fn kind(&self) -> &'static str;

    /// The KEK that new keys are wrapped under. A provider that has none yet makes the first.
    fn newest(&self) -> Pending<'_, KekId>;

    /// Makes a new KEK, which is the newest from then on; older ones stay for what they wrapped.
    fn create(&self) -> Pending<'_, KekId>;

    /// Wraps a DEK under the newest KEK.
    fn wrap<'a>(&'a self, name: KeyName, dek: &'a DataKey) -> Pending<'a, WrappedKey>;

    /// Opens what was wrapped under any KEK it still has.
    fn unwrap<'a>(&'a self, wrapped: &'a WrappedKey) -> Pending<'a, DataKey>;

    /// Whether it could serve now: reaches it and makes sure of the credentials. Changes nothing, and
    /// makes no key.
    fn health(&self) -> Pending<'_, ()>;
}
