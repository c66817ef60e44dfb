//! Group snapshots: those of several volumes at one moment, an exact cut through them, whichever nodes lead them.
//!
//! This node has each leader hold back changes, and when all do, has each take its snapshot ([`esker_node::hold`] tells why that is
//! exact). A cut that takes longer than a hold lasts is abandoned, and begun anew a few times.

use crate::admin::AdminService;
use crate::cluster::Cluster;
use crate::door;
use crate::identity::random;
use esker_api::raw::{Bytes, Message};
use esker_api::v1;
use esker_api::v1::admin_server::AdminServer;
use esker_base::VolumeId;
use esker_node::hold::HOLD_TIME_MAX;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// The label of a snapshot that is a part of a group snapshot: which one, and of how many volumes.
pub const CUT_LABEL: &str = "esker.group-snapshot";
/// Volumes of a cut, at most.
pub const VOLUMES_MAX: usize = 64;
/// How often a cut is begun.
const ATTEMPTS_MAX: u32 = 4;
/// Before it is begun anew, times the attempts so far.
const ATTEMPT_WAIT: Duration = Duration::from_millis(50);

/// How requests about volumes get to whoever carries them out.
#[derive(Clone)]
pub(crate) struct Way {
    pub here: AdminServer<AdminService>,
    pub cluster: Option<Arc<Cluster>>,
}

/// A volume and the name of its snapshot.
#[derive(Clone, Debug)]
struct Part {
    volume: String,
    name: String,
}

/// Why a cut was not taken.
struct Failed {
    status: Status,
    /// Another attempt may do.
    passes: bool,
}

impl Way {
    async fn ask<A: Message + Default>(
        &self,
        method: &'static str,
        volume: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        let request = Bytes::from(request.encode_to_vec());
        let answer = match (&self.cluster, door::rule(method)) {
            (Some(cluster), Some(rule)) => cluster.pass(&self.here, rule, volume, request).await?,
            _ => door::carry_out(&self.here, method, request).await?,
        };
        A::decode(answer).map_err(|error| Status::internal(error.to_string()))
    }

    async fn hold(&self, part: &Part, cut: &str, step: v1::HoldStep) -> Result<(), Status> {
        let request = v1::HoldVolumeRequest {
            volume: part.volume.clone(),
            name: part.name.clone(),
            cut: cut.to_owned(),
            step: step.into(),
        };
        let asked = self.ask::<v1::HoldVolumeResponse>("HoldVolume", &part.volume, &request);
        asked.await.map(|_| ())
    }

    /// Deletes what came to be of a part of a cut that was abandoned.
    async fn undo(
        &self,
        part: &Part,
        cut: &str,
        result: &Result<v1::CutVolumeResponse, Status>,
    ) -> Result<(), Status> {
        match result {
            Ok(_) => {}
            Err(status) if is_refusal(status.code()) => return Ok(()),
            Err(_) if self.has(part, cut).await? => {}
            // It may come to be yet.
            Err(status) => return Err(status.clone()),
        }
        let request = v1::DeleteSnapshotRequest {
            volume: part.volume.clone(),
            name: part.name.clone(),
        };
        let gone = self.ask::<v1::DeleteSnapshotResponse>("DeleteSnapshot", &part.volume, &request);
        match gone.await {
            Err(status) if status.code() != Code::NotFound => Err(status),
            _ => Ok(()),
        }
    }

    /// Whether a volume has the snapshot of this cut.
    async fn has(&self, part: &Part, cut: &str) -> Result<bool, Status> {
        let mut after = None;
        loop {
            let request = v1::ListSnapshotsRequest {
                volume: Some(part.volume.clone()),
                after,
            };
            let page: v1::ListSnapshotsResponse =
                self.ask("ListSnapshots", &part.volume, &request).await?;
            let ours = |s: &v1::Snapshot| s.name == part.name && s.group_snapshot == cut;
            if page.snapshots.iter().any(ours) {
                return Ok(true);
            }
            after = page.next;
            if after.is_none() {
                return Ok(false);
            }
        }
    }
}

/// Nothing was done then.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::NotFound
            | Code::AlreadyExists
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Unimplemented
            | Code::PermissionDenied
    )
}

/// Does the same with all parts at once; results are in their order.
async fn with_all<T, F>(parts: &[Part], what: impl Fn(Part) -> F) -> Vec<Result<T, Status>>
where
    T: Send + 'static,
    F: std::future::Future<Output = Result<T, Status>> + Send + 'static,
{
    let mut all = JoinSet::new();
    for (at, part) in parts.iter().cloned().enumerate() {
        let doing = what(part);
        all.spawn(async move { (at, doing.await) });
    }
    let mut results: BTreeMap<usize, Result<T, Status>> = BTreeMap::new();
    while let Some(done) = all.join_next().await {
        if let Ok((at, result)) = done {
            results.insert(at, result);
        }
    }
    let lost = || Err(Status::unknown("a task of this node ended early"));
    (0..parts.len())
        .map(|at| results.remove(&at).unwrap_or_else(lost))
        .collect()
}

/// The first part that failed.
fn first_failure<T>(parts: &[Part], results: &[Result<T, Status>]) -> Option<Status> {
    let mut all = parts.iter().zip(results);
    all.find_map(|(part, result)| {
        let status = result.as_ref().err()?;
        let text = status.message();
        let text = match text.contains(&part.volume) {
            true => text.to_owned(),
            false => format!("volume {}: {text}", part.volume),
        };
        Some(Status::new(status.code(), text))
    })
}

/// Takes snapshots of several volumes at one moment: all of them, or none.
///
/// # Errors
/// The reason of the first volume that has none; what could not be deleted again is named.
pub(crate) async fn take(
    way: &Way,
    wanted: Vec<v1::SnapshotName>,
    labels: BTreeMap<String, String>,
) -> Result<v1::CreateSnapshotsResponse, Status> {
    let parts: Vec<Part> = wanted
        .into_iter()
        .map(|part| Part {
            volume: part.volume,
            name: part.name,
        })
        .collect();
    check(&parts)?;
    // What cannot be is refused before anything waits; and connections are there afterwards.
    let cut = VolumeId::from_random(u128::from_le_bytes(draw()?)).to_string();
    let checked = with_all(&parts, |part| {
        let (way, cut) = (way.clone(), cut.clone());
        async move { way.hold(&part, &cut, v1::HoldStep::Check).await }
    });
    if let Some(status) = first_failure(&parts, &checked.await) {
        return Err(status);
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let failed = match attempt(way, &parts, &labels).await {
            Ok((snapshots, held)) => {
                return Ok(v1::CreateSnapshotsResponse {
                    snapshots,
                    held_microseconds: held,
                    attempts,
                });
            }
            Err(failed) => failed,
        };
        if !failed.passes || attempts >= ATTEMPTS_MAX {
            let text = format!(
                "no snapshot was taken: {} (attempts: {attempts})",
                failed.status.message()
            );
            return Err(Status::new(failed.status.code(), text));
        }
        tracing::info!(why = failed.status.message(), "a cut is begun anew");
        tokio::time::sleep(ATTEMPT_WAIT * attempts).await;
    }
}

fn draw() -> Result<[u8; 16], Status> {
    random().map_err(|error| Status::internal(error.to_string()))
}

fn check(parts: &[Part]) -> Result<(), Status> {
    if parts.is_empty() || parts.len() > VOLUMES_MAX {
        return Err(Status::invalid_argument(format!(
            "{} volumes: 1 to {VOLUMES_MAX} can be kept at one moment",
            parts.len()
        )));
    }
    let mut volumes: Vec<_> = parts.iter().map(|part| &part.volume).collect();
    volumes.sort_unstable();
    match volumes.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Status::invalid_argument(format!(
            "volume {} is named twice",
            pair[0]
        ))),
        None => Ok(()),
    }
}

async fn attempt(
    way: &Way,
    parts: &[Part],
    labels: &BTreeMap<String, String>,
) -> Result<(Vec<v1::Snapshot>, u64), Failed> {
    let fails = |status| Failed {
        status,
        passes: false,
    };
    let cut = VolumeId::from_random(u128::from_le_bytes(draw().map_err(fails)?)).to_string();
    let held = with_all(parts, |part| {
        let (way, cut) = (way.clone(), cut.clone());
        async move {
            let held = way.hold(&part, &cut, v1::HoldStep::Begin);
            let late = || {
                let limit = HOLD_TIME_MAX.as_millis();
                Status::deadline_exceeded(format!(
                    "volume {} was not held within {limit} ms",
                    part.volume
                ))
            };
            match tokio::time::timeout(HOLD_TIME_MAX, held).await {
                Ok(result) => result,
                Err(_) => Err(late()),
            }
        }
    });
    if let Some(status) = first_failure(parts, &held.await) {
        release(way, parts, &cut).await;
        let passes = matches!(
            status.code(),
            Code::FailedPrecondition | Code::Aborted | Code::DeadlineExceeded | Code::Unavailable
        );
        return Err(Failed { status, passes });
    }
    let mut labels = labels.clone();
    labels.insert(CUT_LABEL.into(), format!("{cut} {}", parts.len()));
    let created_us = crate::admin::now_us();
    let placed = with_all(parts, |part| {
        let request = v1::CutVolumeRequest {
            volume: part.volume.clone(),
            name: part.name.clone(),
            cut: cut.clone(),
            created_us,
            labels: labels.clone(),
        };
        let way = way.clone();
        async move { way.ask("CutVolume", &part.volume, &request).await }
    });
    let placed: Vec<Result<v1::CutVolumeResponse, Status>> = placed.await;
    let Some(status) = first_failure(parts, &placed) else {
        let held = placed.iter().flatten().map(|p| p.held_microseconds).max();
        let snapshots = placed.into_iter().flatten().filter_map(|p| p.snapshot);
        return Ok((snapshots.collect(), held.unwrap_or_default()));
    };
    release(way, parts, &cut).await;
    let mut left = Vec::new();
    for (part, result) in parts.iter().zip(&placed) {
        if let Err(why) = way.undo(part, &cut, result).await {
            let (Part { volume, name }, why) = (part, why.message());
            left.push(format!("{volume}@{name} ({why})"));
        }
    }
    if left.is_empty() {
        let passes = is_refusal(status.code()) || status.code() == Code::Unavailable;
        return Err(Failed { status, passes });
    }
    let text = format!(
        "{}; look whether these are left, and delete them: {}",
        status.message(),
        left.join(", ")
    );
    Err(fails(Status::new(Code::Unavailable, text)))
}

/// Lets all volumes go on that are held; those that cannot be reached do by themselves.
async fn release(way: &Way, parts: &[Part], cut: &str) {
    let released = with_all(parts, |part| {
        let (way, cut) = (way.clone(), cut.to_owned());
        async move { way.hold(&part, &cut, v1::HoldStep::End).await }
    });
    _ = tokio::time::timeout(HOLD_TIME_MAX, released).await;
}

/// The cut that a snapshot is a part of, and of how many volumes that is.
#[must_use]
pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<(String, u32)> {
    let (cut, volumes) = labels.get(CUT_LABEL)?.split_once(' ')?;
    Some((cut.to_owned(), volumes.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(volume: &str) -> Part {
        Part {
            volume: volume.into(),
            name: "s".into(),
        }
    }

    #[test]
    fn each_volume_is_named_once() {
        assert!(check(&[part("a"), part("b")]).is_ok());
        let twice = check(&[part("b"), part("a"), part("b")]).unwrap_err();
        assert_eq!(twice.message(), "volume b is named twice");
        assert!(check(&[]).is_err());
        let many: Vec<_> = (0..=VOLUMES_MAX).map(|n| part(&n.to_string())).collect();
        assert!(check(&many).is_err() && check(&many[1..]).is_ok());
    }

    #[test]
    fn the_first_failure_names_its_volume() {
        let parts = [part("a"), part("b"), part("c")];
        let none = [Ok(()), Ok(()), Ok(())];
        assert!(first_failure(&parts, &none).is_none());
        let results = [
            Ok(()),
            Err(Status::aborted("no leader")),
            Err(Status::not_found("volume c")),
        ];
        let status = first_failure(&parts, &results).unwrap();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Aborted, "volume b: no leader")
        );
    }

    #[test]
    fn labels_tell_of_which_cut_a_snapshot_is() {
        let labels = |text: &str| BTreeMap::from([(CUT_LABEL.to_owned(), text.to_owned())]);
        assert_eq!(of_labels(&labels("x-1 3")), Some(("x-1".into(), 3)));
        for bad in ["x-1", "x-1 many", ""] {
            assert_eq!(of_labels(&labels(bad)), None, "{bad}");
        }
        assert_eq!(of_labels(&BTreeMap::new()), None);
    }
}
