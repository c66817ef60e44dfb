//! Automatic snapshots: every volume with a schedule gets them when they are due and loses those that no rule needs
//! any more. The schedule lies with the volume, as a label, so it goes where the volume goes.
//!
//! Of a volume with several copies the node that leads it keeps the schedule; the others look every now and then whether
//! they do.
//!
//! [`policy`] says what a schedule is, [`plan`] what it asks for; here is who does it.

pub mod plan;
pub mod policy;

use crate::store::{RequestError, StoreHandle};
use crate::stores::Stores;
use esker_node::admin::{
    AdminError, AdminReply, AdminRequest, SnapshotReport, VolumeReport, VolumeState,
};
use plan::{Known, Plan};
use policy::Policy;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Labels that begin so are Esker's own: nobody else sets them, and they are not shown as labels.
pub const RESERVED_PREFIX: &str = "esker.";
/// The label of a volume that holds its schedule.
pub const SCHEDULE_LABEL: &str = "esker.snapshot-schedule";
/// The label of an automatic snapshot: the periods it was taken for.
pub const AUTOMATIC_LABEL: &str = "esker.automatic";
/// Longest time between two looks at the volumes, and until something that failed or was postponed is tried
/// again. Schedules that change are looked at when they do.
const LOOK_INTERVAL_SECONDS: u64 = 60;
/// Time between two looks at a volume that another node leads: this one may lead it next, and owes what is due then.
const FOLLOW_INTERVAL_SECONDS: u64 = 2;
/// Volumes whose failures are remembered, so that each is logged once.
const REMEMBERED_MAX: usize = 10_000;

/// What was done by schedules since the start of the daemon.
#[derive(Debug, Default)]
pub struct Counters {
    taken: AtomicU64,
    deleted: AtomicU64,
    postponed: AtomicU64,
    failed: AtomicU64,
}

/// A copy of [`Counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Snapshots taken.
    pub taken: u64,
    /// Snapshots deleted.
    pub deleted: u64,
    /// Times that a snapshot was not deleted because sessions read it.
    pub postponed: u64,
    /// Times that one could not be taken or deleted.
    pub failed: u64,
}

impl Counters {
    /// The counts now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            taken: self.taken.load(Relaxed),
            deleted: self.deleted.load(Relaxed),
            postponed: self.postponed.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}

/// The schedule of a volume with these labels; none without one. One that cannot be understood was written by
/// another version: it is told, and nothing is done.
///
/// # Errors
/// Why it cannot be understood.
pub fn schedule_of(labels: &BTreeMap<String, String>) -> Result<Option<Policy>, String> {
    labels
        .get(SCHEDULE_LABEL)
        .map(|text| text.parse())
        .transpose()
}

/// Refuses labels that only Esker sets.
///
/// # Errors
/// When one of these keys is such a label.
pub fn check_keys<'a>(mut keys: impl Iterator<Item = &'a String>) -> Result<(), AdminError> {
    match keys.find(|key| key.starts_with(RESERVED_PREFIX)) {
        None => Ok(()),
        Some(key) => Err(AdminError::Invalid(format!(
            "label {}: keys that begin with {RESERVED_PREFIX} are Esker's own; choose another",
            esker_node::admin::one_line(key)
        ))),
    }
}

/// Labels without Esker's own.
#[must_use]
pub fn own_labels(labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = labels;
    labels.retain(|key, _| !key.starts_with(RESERVED_PREFIX));
    labels
}

fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// What is remembered of a volume between two looks.
#[derive(Debug, Default)]
struct Memory {
    /// The schedule, as it was then.
    schedule: String,
    /// When it was looked at, in seconds since the Unix epoch.
    looked: u64,
    /// When it is to be looked at again.
    next: u64,
    /// What failed, so that it is logged once.
    failure: String,
}

/// Keeps all schedules for ever.
pub async fn run(stores: Arc<Stores>) {
    let mut memories: BTreeMap<String, Memory> = BTreeMap::new();
    loop {
        // Before the look, so that what changes during it is looked at again.
        let changed = stores.changed.notified();
        let now = now_unix();
        let next = look(&stores, now, &mut memories).await;
        let seconds = next
            .saturating_sub(now_unix())
            .clamp(1, LOOK_INTERVAL_SECONDS);
        // To the beginning of that second, or a schedule of seconds would miss some.
        let part = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |t| t.subsec_millis());
        let wait = Duration::from_secs(seconds) - Duration::from_millis(u64::from(part));
        _ = tokio::time::timeout(wait, changed).await;
    }
}

/// Does what is due in all volumes; tells when something will be again.
async fn look(stores: &Stores, now: u64, memories: &mut BTreeMap<String, Memory>) -> u64 {
    let mut next = u64::MAX;
    let mut seen = BTreeMap::new();
    for store in stores.all() {
        let Ok(AdminReply::Volumes(volumes)) = store.request(AdminRequest::VolumeList).await else {
            continue; // fenced, or starting: status tells
        };
        for volume in volumes {
            let Some(schedule) = volume.labels.get(SCHEDULE_LABEL).cloned() else {
                continue;
            };
            let mut memory = memories.remove(&volume.uuid).unwrap_or_default();
            let is_new = memory.schedule != schedule;
            if is_new || now >= memory.next || now < memory.looked {
                let again = keep(store, stores, &volume, now, &mut memory.failure).await;
                (memory.schedule, memory.looked, memory.next) = (schedule, now, again);
            }
            next = next.min(memory.next);
            if seen.len() < REMEMBERED_MAX {
                seen.insert(volume.uuid, memory);
            }
        }
    }
    *memories = seen;
    next
}

/// Does what is due in one volume; tells when something will be again.
async fn keep(
    store: &StoreHandle,
    stores: &Stores,
    volume: &VolumeReport,
    now: u64,
    failure: &mut String,
) -> u64 {
    let soon = now + LOOK_INTERVAL_SECONDS;
    match volume.state {
        // What is locked is cut all the same: that needs no key.
        VolumeState::Ready | VolumeState::Locked => {}
        VolumeState::Starting => return now + 1,
        VolumeState::Suspended | VolumeState::Fenced => return soon, // status tells
    }
    // Of several nodes the one that leads. What the leader before it took is in force here once this one serves, so no period
    // gets two.
    if !volume.serves {
        return now + FOLLOW_INTERVAL_SECONDS;
    }
    let counters = &stores.automatic;
    let failed = |what: String, failure: &mut String| {
        counters.failed.fetch_add(1, Relaxed);
        // Told when it begins and when it changes, not every minute.
        if *failure != what {
            tracing::warn!(volume = volume.name, "{what}");
            *failure = what;
        }
        soon
    };
    let policy = match schedule_of(&volume.labels) {
        Ok(Some(policy)) => policy,
        Ok(None) => return u64::MAX,
        Err(error) => {
            return failed(
                format!("{error}; set another with `esker volume set`"),
                failure,
            )
        }
    };
    let again = policy.next(now);
    let snapshots = match known(store, &volume.name).await {
        Ok(snapshots) => snapshots,
        Err(error) => return failed(format!("automatic snapshots: {error}"), failure),
    };
    let due = plan::due(&policy, now, &snapshots);
    if let Some(due) = due {
        let name = due.name.clone();
        if let Err(error) = take(store, &volume.name, due).await {
            return failed(format!("no automatic snapshot {name}: {error}"), failure);
        }
        counters.taken.fetch_add(1, Relaxed);
        tracing::debug!(volume = volume.name, name, "automatic snapshot");
    }
    match prune(store, stores, &volume.name, &policy).await {
        Ok(plan) => {
            failure.clear();
            counters
                .postponed
                .fetch_add(esker_base::num::to_u64(plan.postpone.len()), Relaxed);
            match plan.postpone.first() {
                None => again,
                Some(name) => {
                    tracing::debug!(volume = volume.name, name, "attached; to be deleted later");
                    again.min(soon)
                }
            }
        }
        Err(error) => failed(
            format!("automatic snapshots are not deleted: {error}"),
            failure,
        ),
    }
}

async fn take(store: &StoreHandle, volume: &str, due: plan::Due) -> Result<(), RequestError> {
    let request = AdminRequest::SnapshotCreate {
        volume: volume.into(),
        name: due.name,
        labels: [(AUTOMATIC_LABEL.into(), due.periods)].into(),
    };
    store.request(request).await.map(|_| ())
}

/// Deletes the automatic snapshots of a volume that its schedule does not need any more.
///
/// # Errors
/// When the store refuses; those before it are gone.
pub async fn prune(
    store: &StoreHandle,
    stores: &Stores,
    volume: &str,
    policy: &Policy,
) -> Result<Plan, RequestError> {
    let snapshots = known(store, volume).await?;
    let mut plan = plan::plan(policy, &snapshots);
    // Oldest first: what is interrupted leaves the newer ones.
    let names = std::mem::take(&mut plan.delete);
    for name in names.into_iter().rev() {
        let request = AdminRequest::SnapshotDelete {
            volume: volume.into(),
            name: name.clone(),
        };
        match store.request(request).await {
            Ok(_) => {
                stores.automatic.deleted.fetch_add(1, Relaxed);
                plan.delete.push(name);
            }
            // Somebody was faster.
            Err(RequestError::Refused(AdminError::NotFound(_))) => {}
            Err(error) => {
                // A session may have attached since the list was made.
                if !is_attached(store, volume, &name).await {
                    return Err(error);
                }
                plan.postpone.push(name);
            }
        }
    }
    Ok(plan)
}

/// What [`prune`] does, or would do, to a volume; by another schedule if one is given.
///
/// # Errors
/// When there is no such volume, it has no schedule, or its store refuses.
pub async fn prune_volume(
    stores: &Stores,
    volume: &str,
    dry_run: bool,
    asked: Option<Policy>,
) -> Result<Plan, RequestError> {
    let report = stores.show(volume).await?;
    let refused = |why: String| AdminError::Refused(format!("volume {volume}: {why}"));
    let policy = match asked {
        Some(policy) => policy,
        None => schedule_of(&report.labels)
            .map_err(refused)?
            .ok_or_else(|| {
                refused("it has no snapshot schedule; give it one with `esker volume set`".into())
            })?,
    };
    let store = stores.find(volume).await?;
    if dry_run {
        return Ok(plan::plan(&policy, &known(store, volume).await?));
    }
    prune(store, stores, volume, &policy).await
}

async fn is_attached(store: &StoreHandle, volume: &str, name: &str) -> bool {
    let snapshots = known(store, volume).await.unwrap_or_default();
    let mut of_name = snapshots.iter().filter(|s| s.name == name);
    of_name.any(|s| s.sessions > 0)
}

/// All snapshots of a volume.
///
/// # Errors
/// When its store does not answer.
pub async fn known(store: &StoreHandle, volume: &str) -> Result<Vec<Known>, RequestError> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let request = AdminRequest::SnapshotList {
            volume: Some(volume.into()),
            after: after.take(),
        };
        let AdminReply::Snapshots(page) = store.request(request).await? else {
            return Err(RequestError::Silent(format!(
                "{store} gave no list of snapshots; a defect"
            )));
        };
        all.extend(page.snapshots.into_iter().map(Known::from));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

impl From<SnapshotReport> for Known {
    fn from(report: SnapshotReport) -> Self {
        Self {
            is_automatic: report.labels.contains_key(AUTOMATIC_LABEL),
            name: report.name,
            stamp: report.stamp,
            created_unix: report.created_unix,
            sessions: report.sessions,
        }
    }
}
