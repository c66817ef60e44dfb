//! Volumes that were given another data key: what they wrote before is sealed anew in the background, at a bounded
//! rate, store by store. How far that is needs no file: the stores know which blocks are left.

use crate::scrub::ScrubRate;
use crate::store::{RequestError, StoreHandle};
use crate::stores::Stores;
use esker_node::admin::{AdminReply, AdminRequest, ResealPage};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes a second of each store when nothing else is said.
const RATE_DEFAULT: u64 = 64 << 20;
/// How often stores without anything to do are asked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Wait after a store has refused.
const REFUSED_INTERVAL: Duration = Duration::from_secs(10);

/// How many bytes of each store are sealed anew a second; none when never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResealRate(pub Option<u64>);

impl Default for ResealRate {
    fn default() -> Self {
        Self(Some(RATE_DEFAULT))
    }
}

impl FromStr for ResealRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ScrubRate::from_str(text).map(|rate| Self(rate.0))
    }
}

impl fmt::Display for ResealRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ScrubRate(self.0).fmt(f)
    }
}

/// Seals anew whatever is to be, for ever, on all stores at a time.
pub async fn run(stores: Arc<Stores>, rate: ResealRate) {
    let Some(rate) = rate.0 else {
        return std::future::pending().await;
    };
    let mut all = tokio::task::JoinSet::new();
    for index in 0..stores.all().len() {
        let stores = Arc::clone(&stores);
        all.spawn(async move {
            if let Some(store) = stores.all().get(index) {
                of_store(store, rate).await;
            }
        });
    }
    all.join_all().await;
}

async fn of_store(store: &StoreHandle, rate: u64) {
    let mut told: Option<String> = None;
    loop {
        let begun = Instant::now();
        let wait = match part(store).await {
            Ok(Some(page)) => {
                told = None;
                let due = Duration::from_nanos(
                    u64::try_from(u128::from(page.bytes) * 1_000_000_000 / u128::from(rate.max(1)))
                        .unwrap_or(u64::MAX),
                );
                due.saturating_sub(begun.elapsed())
            }
            Ok(None) => LOOK_INTERVAL,
            Err(RequestError::Refused(why)) => {
                let why = why.to_string();
                if told.as_ref() != Some(&why) {
                    tracing::warn!("{store}: {why}");
                    told = Some(why);
                }
                REFUSED_INTERVAL
            }
            Err(RequestError::Silent(_)) => REFUSED_INTERVAL, // it is stopping
        };
        tokio::time::sleep(wait).await;
    }
}

async fn part(store: &StoreHandle) -> Result<Option<ResealPage>, RequestError> {
    match store.request(AdminRequest::Reseal).await? {
        AdminReply::Resealed(page) => Ok(page),
        _ => Ok(None),
    }
}
