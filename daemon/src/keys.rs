//! The providers of keys at the stores' service: they are asked here, off the stores' threads, and asked
//! again where that may help.

use esker_crypto::{DataKey, KeyName, WrappedKey};
use esker_keys::{random, KeyError, Providers, Retry};
use esker_node::{KeyAnswer, KeyAsk};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, Semaphore};

/// Questions that providers have at a time; others wait. A node asks one for each key at its start.
const ASKED_MAX: usize = 8;

/// The providers of this node.
pub struct KeyService {
    providers: Providers,
    runtime: Handle,
    asked: Semaphore,
    /// Rotations one after the other: two at once would make two new KEKs.
    rotating: Mutex<()>,
    /// Who waits to ask again does so now.
    again: Notify,
    told_swappable: AtomicBool,
}

impl KeyService {
    /// Over these providers; answers come from tasks of `runtime`.
    #[must_use]
    pub fn new(providers: Providers, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            providers,
            runtime,
            asked: Semaphore::new(ASKED_MAX),
            rotating: Mutex::new(()),
            again: Notify::new(),
            told_swappable: AtomicBool::new(false),
        })
    }

    /// Takes a question; the answers come later, from another thread.
    pub fn ask(self: &Arc<Self>, ask: KeyAsk, answer: impl Fn(KeyAnswer) + Send + Sync + 'static) {
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            match ask {
                KeyAsk::Make(name) => {
                    let made = this.make(name).await;
                    answer(KeyAnswer::Made(name, made.map_err(|e| e.to_string())));
                }
                KeyAsk::Open(wrapped) => this.open(&wrapped, answer).await,
                KeyAsk::Rewrap(wrapped) => {
                    let again = this.rewrap(&wrapped).await;
                    let again = again.map_err(|e| e.to_string());
                    answer(KeyAnswer::Rewrapped(wrapped.name(), again));
                }
            }
        });
    }

    /// Whoever waits to ask a provider again does so now.
    pub fn ask_again(&self) {
        self.again.notify_waiters();
    }

    /// A new data key, which its volume's nodes wrap each for itself.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn draw(&self) -> Result<DataKey, KeyError> {
        random::data_key()
    }

    /// Wraps a data key that another node has drawn.
    ///
    /// # Errors
    /// When the provider cannot.
    pub async fn wrap(&self, name: KeyName, dek: &DataKey) -> Result<WrappedKey, KeyError> {
        let _turn = self.asked.acquire().await;
        self.providers.wrapping().wrap(name, dek).await
    }

    /// Opens a wrapped data key, for another node that is to wrap it for itself.
    ///
    /// # Errors
    /// When the provider cannot, now.
    pub async fn unwrap(&self, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let _turn = self.asked.acquire().await;
        self.providers.unwrap(wrapped).await
    }

    async fn make(&self, name: KeyName) -> Result<(DataKey, WrappedKey), KeyError> {
        let _turn = self.asked.acquire().await;
        let dek = random::data_key()?;
        let wrapped = self.providers.wrapping().wrap(name, &dek).await?;
        self.tell_if_swappable();
        Ok((dek, wrapped))
    }

    /// Once, when a key could not be kept from swap.
    fn tell_if_swappable(&self) {
        if esker_crypto::is_swappable() && !self.told_swappable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "keys may be swapped out: this process may lock no more memory; raise its limit \
                 (LimitMEMLOCK of the unit), or keep it out of swap (MemorySwapMax=0)"
            );
        }
    }

    async fn open(&self, wrapped: &WrappedKey, answer: impl Fn(KeyAnswer)) {
        let (name, mut retry) = (wrapped.name(), Retry::default());
        loop {
            let turn = self.asked.acquire().await;
            let opened = self.providers.unwrap(wrapped).await;
            drop(turn);
            let error = match opened {
                Ok(dek) => {
                    self.tell_if_swappable();
                    return answer(KeyAnswer::Opened(name, Ok(dek)));
                }
                Err(error) => error,
            };
            let (volume, key, kind) = (name.volume, name.key, error.kind.as_str());
            tracing::warn!(%volume, %key, kind, %error, "a key does not open");
            let wanted = self.again.notified(); // before the answer, so that none is missed after it
            tokio::pin!(wanted);
            wanted.as_mut().enable();
            answer(KeyAnswer::Opened(name, Err(error.to_string())));
            let spread = random::array().map_or(0, u64::from_le_bytes);
            match retry.failed(error.kind, spread) {
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = wanted => {}
                },
                None => wanted.await, // asking by itself would not help
            }
        }
    }

    async fn rewrap(&self, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let _one = self.rotating.lock().await;
        let _turn = self.asked.acquire().await;
        let wraps = self.providers.wrapping();
        if wraps.newest().await? == *wrapped.kek() {
            wraps.create().await?;
        }
        self.providers.rewrap(wrapped).await
    }
}
