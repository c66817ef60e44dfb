//! The scrub in the background: every store is read and checked through, at a bounded rate, and then again
//! after a while. How far each is lies in `DIR/scrub.json`, so that a restart goes on from there.

use crate::data_dir::write_durably;
use crate::store::StoreHandle;
use crate::stores::Stores;
use esker_base::GroupId;
use esker_engine::event::ScrubTarget;
use esker_engine::format::versions::VersionId;
use esker_node::admin::{AdminReply, AdminRequest, ScrubPage, ScrubPlace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes a second of each store when nothing else is said.
const RATE_DEFAULT: u64 = 16 << 20;
/// From the end of one pass over a store to the beginning of the next.
const PASS_INTERVAL: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often it is written down how far a pass is.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);
/// Wait after a store refused, and between looks at whether a pass is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Damaged places that one line of the log names; more are counted.
const TOLD_MAX: usize = 16;
/// Name of the file.
const FILE: &str = "scrub.json";

/// How many bytes of each store are checked a second; none when never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubRate(pub Option<u64>);

impl Default for ScrubRate {
    fn default() -> Self {
        Self(Some(RATE_DEFAULT))
    }
}

impl FromStr for ScrubRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        match esker_api::size::parse(text) {
            Ok(bytes) if bytes >= 4096 => Ok(Self(Some(bytes))),
            Ok(_) => Err(format!(
                "`{text}` a second is less than a block; 4KiB at least, or `none`"
            )),
            Err(error) => Err(format!("{error}; or `none`")),
        }
    }
}

impl fmt::Display for ScrubRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(bytes) => write!(f, "{}/s", esker_api::size::format(bytes)),
        }
    }
}

/// How far the scrub of a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    /// When the pass began, in seconds since the Unix epoch.
    started_unix: u64,
    /// When the last whole pass ended; 0 when none has.
    finished_unix: u64,
    /// A pass is under way.
    running: bool,
    /// It looks at a volume rather than at one of its versions.
    head: bool,
    /// Which one.
    id: u64,
    /// The first block that is not checked.
    block: u64,
    /// Bytes that this pass has read, or the last one had.
    checked_bytes: u64,
    /// Places it found damaged.
    damaged: u64,
}

impl Progress {
    fn place(&self) -> Option<ScrubPlace> {
        // Versions have numbers from 1 on.
        if !self.running || self.id == 0 {
            return None;
        }
        let target = match self.head {
            true => ScrubTarget::Head(GroupId(self.id)),
            false => ScrubTarget::Version(VersionId(self.id)),
        };
        let block = self.block;
        Some(ScrubPlace { target, block })
    }

    fn set(&mut self, place: ScrubPlace) {
        (self.head, self.id) = match place.target {
            ScrubTarget::Version(id) => (false, id.0),
            ScrubTarget::Head(group) => (true, group.0),
        };
        self.block = place.block;
    }

    /// Begins a pass if none is under way and one is due.
    fn begin_if_due(&mut self, now_unix: u64) -> bool {
        if !self.running && now_unix >= self.finished_unix + PASS_INTERVAL.as_secs() {
            *self = Self {
                started_unix: now_unix,
                finished_unix: self.finished_unix,
                running: true,
                ..Self::default()
            };
        }
        self.running
    }

    /// A part is done.
    fn took(&mut self, page: &ScrubPage, now_unix: u64) {
        self.checked_bytes += page.checked_bytes;
        self.damaged += u64::try_from(page.damaged.len()).unwrap_or(u64::MAX);
        match page.next {
            Some(place) => self.set(place),
            None => (self.running, self.finished_unix) = (false, now_unix),
        }
    }
}

/// The file: by the store's path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Book {
    store: BTreeMap<String, Progress>,
}

impl Book {
    /// What the file says. One that is missing or says nothing that can be understood begins anew: all
    /// that is lost is how far a pass was.
    fn load(data: &Path) -> Self {
        let text = std::fs::read_to_string(data.join(FILE)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn save(&self, data: &Path) {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        if let Err(error) = write_durably(data, FILE, &text) {
            tracing::warn!("how far the scrub is cannot be written to {FILE}: {error}");
        }
    }
}

/// Logs what a part of a scrub found.
pub fn tell_damage(page: &ScrubPage) {
    for damage in page.damaged.iter().take(TOLD_MAX) {
        if damage.repaired {
            tracing::warn!(
                volume = damage.volume,
                snapshot = damage.snapshot,
                offset = damage.offset,
                length = damage.length,
                "scrub: this block was damaged on the device; it is repaired from another copy"
            );
            continue;
        }
        let what = if damage.in_map {
            "the map over these bytes"
        } else {
            "this block"
        };
        tracing::error!(
            volume = damage.volume,
            snapshot = damage.snapshot,
            offset = damage.offset,
            length = damage.length,
            "scrub: {what} is damaged on the device; reads fail until it is written again. Restore it \
             from a copy"
        );
    }
    let more = page.damaged.len().saturating_sub(TOLD_MAX);
    if more > 0 {
        tracing::error!("scrub: {more} more places nearby are damaged");
    }
}

fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// Scrubs all stores for ever, one after the other, each at this rate.
pub async fn run(stores: Arc<Stores>, data: PathBuf, rate: ScrubRate) {
    let Some(rate) = rate.0 else {
        return std::future::pending().await;
    };
    let mut book = Book::load(&data);
    loop {
        for store in stores.all() {
            let key = store.path.display().to_string();
            let mut progress = book.store.get(&key).cloned().unwrap_or_default();
            if !progress.begin_if_due(now_unix()) {
                continue;
            }
            // A store that refuses is asked again every minute: not worth a line each time.
            tracing::debug!(rate, "scrub of {store} goes on");
            let mut saved = Instant::now();
            while progress.running {
                let Some(page) = part(store, progress.place()).await else {
                    break; // fenced or stopping: later
                };
                tell_damage(&page);
                progress.took(&page, now_unix());
                book.store.insert(key.clone(), progress.clone());
                if saved.elapsed() >= SAVE_INTERVAL || !progress.running {
                    book.save(&data);
                    saved = Instant::now();
                }
                tokio::time::sleep(pause(page.checked_bytes, rate)).await;
            }
            if !progress.running {
                let Progress {
                    checked_bytes,
                    damaged,
                    started_unix,
                    ..
                } = progress;
                let seconds = now_unix().saturating_sub(started_unix);
                tracing::info!(checked_bytes, damaged, seconds, "scrub of {store} ended");
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// How long so many bytes are to take.
fn pause(bytes: u64, rate: u64) -> Duration {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).max(Duration::from_millis(1))
}

async fn part(store: &StoreHandle, place: Option<ScrubPlace>) -> Option<ScrubPage> {
    let volume = None;
    match store.request(AdminRequest::Scrub { volume, place }).await {
        Ok(AdminReply::Scrub(page)) => Some(page),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!("no scrub of {store} now: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sizes_or_none() {
        assert_eq!("32MiB".parse(), Ok(ScrubRate(Some(32 << 20))));
        assert_eq!("none".parse(), Ok(ScrubRate(None)));
        for wrong in ["", "fast", "1", "0", "-1MiB"] {
            let error = wrong.parse::<ScrubRate>().err();
            assert!(error.is_some_and(|e| e.contains("`none`")), "{wrong}");
        }
    }

    #[test]
    fn a_pass_takes_as_long_as_its_rate_says() {
        assert_eq!(pause(16 << 20, 16 << 20), Duration::from_secs(1));
        assert_eq!(pause(0, 16 << 20), Duration::from_millis(1));
    }

    /// A pass goes on after a restart where it was, ends, and begins anew only when it is due.
    #[test]
    fn how_far_a_pass_is_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let mut progress = Progress::default();
        assert!(progress.begin_if_due(5_000_000_000));
        assert_eq!(progress.place(), None, "from the beginning");
        let place = ScrubPlace {
            target: ScrubTarget::Head(GroupId(7)),
            block: 512,
        };
        let page = ScrubPage {
            next: Some(place),
            checked_bytes: 4096,
            ..ScrubPage::default()
        };
        progress.took(&page, 5_000_000_010);
        let mut book = Book::default();
        book.store.insert("/dev/nvme0n1".into(), progress);
        book.save(dir.path());

        let mut book = Book::load(dir.path());
        let mut progress = book.store.remove("/dev/nvme0n1").unwrap();
        assert!(progress.begin_if_due(5_000_000_020));
        assert_eq!(progress.place(), Some(place));
        progress.took(&ScrubPage::default(), 5_000_000_030);
        assert_eq!((progress.running, progress.checked_bytes), (false, 4096));
        assert!(!progress.begin_if_due(5_000_000_030 + PASS_INTERVAL.as_secs() - 1));
        assert!(progress.begin_if_due(5_000_000_030 + PASS_INTERVAL.as_secs()));
        assert_eq!((progress.place(), progress.checked_bytes), (None, 0));
    }

    #[test]
    fn a_file_that_cannot_be_understood_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Book::load(dir.path()), Book::default());
        std::fs::write(dir.path().join(FILE), "{\"store\": 1}").unwrap();
        assert_eq!(Book::load(dir.path()), Book::default());
    }
}
