//! One store as the control side sees it: something that answers administrative requests, and a
//! state. What lies behind is the store's own thread (see [`crate::loops`]), or a fake in a test.

use esker_base::{Place, ReplicaId};
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use esker_node::ReadyReport;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a store may take to answer; past it the request is reported as failed, though it may
/// still be carried out.
const REPLY_WAIT_MAX: Duration = Duration::from_secs(60);

/// Takes the answer to one request. Dropped without one when the store ends first.
pub type ReplySender = oneshot::Sender<Result<AdminReply, AdminError>>;

/// What carries requests to a store. No method blocks.
pub trait Backend: Send + Sync {
    /// Hands a request over; the answer comes later.
    fn submit(&self, request: AdminRequest, reply: ReplySender);
    /// Tells it where replicas live.
    fn tell_places(&self, _places: BTreeMap<ReplicaId, Place>) {}
    /// Asks the store to make everything durable and end.
    fn stop(&self);
}

/// What has become of a store, as far as it has been told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Set when recovery is done.
    pub ready: Option<ReadyReport>,
    /// Set when a write or a sync failed: what failed.
    pub fenced: Option<String>,
    /// Set when it has ended.
    pub ended: Option<Ended>,
}

/// How a store ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As asked, with everything durable.
    Stopped,
    /// It could not be opened, or broke; one line that names it.
    Failed(String),
}

/// The states of all stores of the node, by index: one value that changes, so that no queue of
/// changes has to be bounded.
pub type StoreStates = watch::Receiver<Vec<StoreState>>;

/// Why a request got no answer from its store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The store refused it.
    #[error(transparent)]
    Refused(#[from] AdminError),
    /// The store does not answer.
    #[error("{0}")]
    Silent(String),
}

/// One store.
#[derive(Clone)]
pub struct StoreHandle {
    /// Its place among the node's stores.
    pub index: usize,
    /// Its device or file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What carries requests to it.
    pub backend: Arc<dyn Backend>,
    /// Where its state is kept.
    pub states: StoreStates,
}

impl StoreHandle {
    /// Asks the store something and waits for the answer.
    ///
    /// # Errors
    /// When the store refuses, has ended, or does not answer in time.
    pub async fn request(&self, request: AdminRequest) -> Result<AdminReply, RequestError> {
        let (sender, receiver) = oneshot::channel();
        self.backend.submit(request, sender);
        match tokio::time::timeout(REPLY_WAIT_MAX, receiver).await {
            Ok(Ok(result)) => Ok(result?),
            Ok(Err(_)) => Err(RequestError::Silent(format!(
                "{self} has stopped; see the log"
            ))),
            Err(_) => Err(RequestError::Silent(format!(
                "{self} has not answered for {} s; see the log, and look at the result before \
                 trying again",
                REPLY_WAIT_MAX.as_secs()
            ))),
        }
    }

    /// Its state now.
    #[must_use]
    pub fn state(&self) -> StoreState {
        self.states
            .borrow()
            .get(self.index)
            .cloned()
            .unwrap_or_default()
    }
}

impl fmt::Display for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store {} ({})", self.index, self.path.display())
    }
}
