//! The providers of a node: one wraps, all unwrap.

use crate::error::KeyError;
use crate::provider::{KeyName, Provider};
use esker_crypto::{DataKey, KekId, WrappedKey};

/// The providers that a configuration names.
pub struct Providers {
    /// The first wraps.
    all: Vec<Box<dyn Provider>>,
}

impl Providers {
    /// From [`crate::config::KeysConfig::providers`]: the first one wraps.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(all: Vec<Box<dyn Provider>>) -> Result<Self, KeyError> {
        match all.is_empty() {
            true => Err(KeyError::config("keys: no provider is named")),
            false => Ok(Self { all }),
        }
    }

    /// The one that wraps.
    #[must_use]
    pub fn wrapping(&self) -> &dyn Provider {
        self.all[0].as_ref() // never empty
    }

    /// The one that unwraps what was wrapped under this KEK.
    ///
    /// # Errors
    /// When none is configured for it.
    pub fn of(&self, kek: &KekId) -> Result<&dyn Provider, KeyError> {
        let kind = kek.as_str().split_once(':').map_or("", |(kind, _)| kind);
        let mut all = self.all.iter();
        let found = all.find(|provider| provider.kind() == kind);
        found.map(AsRef::as_ref).ok_or_else(|| {
            KeyError::config(format!(
                "a key is wrapped by {kek}, and no such provider is configured; add [keys.{kind}]"
            ))
        })
    }

    /// Opens a wrapped key, whoever wrapped it.
    ///
    /// # Errors
    /// What its provider says, or that none is configured for it.
    pub async fn unwrap(&self, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.of(wrapped.kek())?.unwrap(wrapped).await
    }

    /// Wraps a key again, under the newest KEK of the provider that wraps now.
    ///
    /// # Errors
    /// What either provider says.
    pub async fn rewrap(&self, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let dek = self.unwrap(wrapped).await?;
        let name = KeyName {
            volume: wrapped.volume(),
            key: wrapped.key(),
        };
        self.wrapping().wrap(name, &dek).await
    }

    /// Each provider, the one that wraps first.
    pub fn each(&self) -> impl Iterator<Item = &dyn Provider> {
        self.all.iter().map(AsRef::as_ref)
    }
}
