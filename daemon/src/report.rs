//! From the stores' reports to the messages of the admin API.

use crate::cluster::nodes::NodeView;
use crate::identity::Identity;
use crate::retention::{self, plan::Plan};
use crate::store::Ended;
use crate::stores::StoreStatus;
use crate::uri::Endpoints;
use esker_api::cluster::DescribeResponse;
use esker_api::v1;
use esker_base::num::to_u32_saturating;
use esker_base::GroupId;
use esker_engine::event::ScrubTarget;
use esker_engine::format::versions::VersionId;
use esker_node::admin::{
    DiffPage, KeyReport, MemberReport, ScrubPage, ScrubPlace, SnapshotReport, SpaceReport,
    StatusReport, VersionKind, VersionReport, VolumeReport, VolumeState,
};

/// The version of this software.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A volume's message.
#[must_use]
pub fn volume(report: VolumeReport, endpoints: &Endpoints) -> v1::Volume {
    let attachment = report.attachment;
    let export = match &attachment.holder {
        Some(_) => format!("{}:{}", report.name, attachment.number),
        None => report.name.clone(),
    };
    v1::Volume {
        uri: endpoints.unix_uri(&export),
        tcp_uri: endpoints.tcp_uri(&export).unwrap_or_default(),
        name: report.name,
        uuid: report.uuid,
        size_bytes: report.size_bytes,
        used_bytes: report.used_bytes,
        unique_bytes: report.unique_bytes,
        replicas: report.replicas,
        encrypted: report.encrypted,
        snapshots: report.snapshots,
        snapshot_schedule: report
            .labels
            .get(retention::SCHEDULE_LABEL)
            .cloned()
            .unwrap_or_default(),
        labels: retention::own_labels(report.labels),
        rewind_seconds: report.rewind_seconds,
        rewind_from_unix: report.rewind_from_unix,
        rewind_bytes: report.rewind_bytes,
        state: state(report.state).into(),
        sessions: report.sessions,
        store: to_u32_saturating(report.store),
        snapshot_bytes: report.snapshot_bytes,
        reseal: report.reseal.map(|reseal| v1::Reseal {
            key_id: reseal.key_id,
            through_bytes: reseal.through_bytes,
            size_bytes: reseal.size_bytes,
            resealed_bytes: reseal.resealed_bytes,
            problem: reseal.problem,
        }),
        attachment: attachment.holder.map(|holder| v1::Attachment {
            number: attachment.number,
            holder,
            since_unix: attachment.since_unix,
        }),
    }
}

/// A snapshot's message.
#[must_use]
pub fn snapshot(report: SnapshotReport) -> v1::Snapshot {
    let (group_snapshot, group_volumes) = crate::cut::of_labels(&report.labels).unwrap_or_default();
    v1::Snapshot {
        group_snapshot,
        group_volumes,
        volume: report.volume,
        name: report.name,
        stamp: report.stamp,
        created_unix: report.created_unix,
        size_bytes: report.size_bytes,
        unique_bytes: report.unique_bytes,
        referenced_bytes: report.referenced_bytes,
        automatic: report
            .labels
            .get(retention::AUTOMATIC_LABEL)
            .cloned()
            .unwrap_or_default(),
        labels: retention::own_labels(report.labels),
        sessions: report.sessions,
        store: to_u32_saturating(report.store),
    }
}

/// What became of automatic snapshots.
#[must_use]
pub fn pruned(plan: Plan) -> v1::PruneSnapshotsResponse {
    let kept = plan.keep.into_iter().map(|kept| v1::KeptSnapshot {
        name: kept.name,
        rules: kept.rules,
    });
    v1::PruneSnapshotsResponse {
        kept: kept.collect(),
        deleted: plan.delete,
        postponed: plan.postpone,
    }
}

/// A version's message.
#[must_use]
pub fn version(report: VersionReport) -> v1::Version {
    let kind = match report.kind {
        VersionKind::Head => v1::VersionKind::Head,
        VersionKind::Snapshot => v1::VersionKind::Snapshot,
        VersionKind::Deleted => v1::VersionKind::Deleted,
    };
    v1::Version {
        id: report.id,
        parent: report.parent,
        kind: kind.into(),
        snapshot: Some(snapshot(report.snapshot)),
    }
}

/// The message of a part of a comparison.
#[must_use]
pub fn diff(page: DiffPage) -> v1::DiffSnapshotsResponse {
    let extents = page.extents.into_iter().map(|extent| v1::DiffExtent {
        offset: extent.offset,
        length: extent.length,
        is_data: extent.is_data,
    });
    v1::DiffSnapshotsResponse {
        extents: extents.collect(),
        through_bytes: page.through_bytes,
        size_bytes: page.size_bytes,
    }
}

/// The message of a part of a scrub.
#[must_use]
pub fn scrub(page: ScrubPage) -> v1::ScrubVolumeResponse {
    let damaged = page.damaged.into_iter().map(|damage| v1::ScrubDamage {
        volume: damage.volume,
        snapshot: damage.snapshot,
        offset: damage.offset,
        length: damage.length,
        in_map: damage.in_map,
        repaired: damage.repaired,
    });
    v1::ScrubVolumeResponse {
        next: page.next.map(|place| {
            let (head, id) = match place.target {
                ScrubTarget::Version(id) => (false, id.0),
                ScrubTarget::Head(group) => (true, group.0),
            };
            let block = place.block;
            v1::ScrubPlace { head, id, block }
        }),
        checked_bytes: page.checked_bytes,
        total_bytes: page.total_bytes,
        damaged: damaged.collect(),
    }
}

/// The place that a message names.
#[must_use]
pub fn scrub_place(place: &v1::ScrubPlace) -> ScrubPlace {
    let target = match place.head {
        true => ScrubTarget::Head(GroupId(place.id)),
        false => ScrubTarget::Version(VersionId(place.id)),
    };
    let block = place.block;
    ScrubPlace { target, block }
}

fn state(state: VolumeState) -> v1::VolumeState {
    match state {
        VolumeState::Ready => v1::VolumeState::Ready,
        VolumeState::Starting => v1::VolumeState::Starting,
        VolumeState::Suspended => v1::VolumeState::Suspended,
        VolumeState::Fenced => v1::VolumeState::Fenced,
        VolumeState::Locked => v1::VolumeState::Locked,
    }
}

/// A key's message.
#[must_use]
pub fn key(report: KeyReport) -> v1::Key {
    let epochs = report.epochs.unwrap_or_default();
    v1::Key {
        volume_uuid: report.volume_uuid,
        key_id: report.key_id,
        is_own: report.is_own,
        provider: report.provider,
        kek: report.kek,
        state: report.state,
        reason: report.reason,
        first_epoch: epochs.first,
        last_epoch: epochs.last,
        epochs: epochs.count,
        needed_by: report.needed_by.map(|need| v1::KeyNeed {
            volume: need.volume,
            snapshots: need.snapshots,
            rewind_points: need.rewind_points,
            volumes: need.volumes,
        }),
    }
}

/// A space report's message.
#[must_use]
pub fn space(report: SpaceReport) -> v1::Space {
    v1::Space {
        live_bytes: report.live_bytes,
        snapshot_bytes: report.snapshot_bytes,
        garbage_bytes: report.garbage_bytes,
        free_bytes: report.free_bytes,
        total_bytes: report.total_bytes,
        reserve_bytes: report.reserve_bytes,
        device_bytes_written: report.device_bytes_written,
        client_bytes_written: report.client_bytes_written,
        rewind_bytes: report.rewind_bytes,
    }
}

/// The sum of several stores' space.
#[must_use]
pub fn space_sum(reports: &[SpaceReport]) -> SpaceReport {
    let sum = |field: fn(&SpaceReport) -> u64| {
        reports
            .iter()
            .map(field)
            .fold(0, |sum: u64, bytes| sum.saturating_add(bytes))
    };
    SpaceReport {
        live_bytes: sum(|r| r.live_bytes),
        snapshot_bytes: sum(|r| r.snapshot_bytes),
        rewind_bytes: reports.iter().map(|r| r.rewind_bytes).sum(),
        garbage_bytes: sum(|r| r.garbage_bytes),
        free_bytes: sum(|r| r.free_bytes),
        total_bytes: sum(|r| r.total_bytes),
        reserve_bytes: sum(|r| r.reserve_bytes),
        device_bytes_written: sum(|r| r.device_bytes_written),
        client_bytes_written: sum(|r| r.client_bytes_written),
    }
}

/// The node's health.
#[must_use]
pub fn status(statuses: &[StoreStatus], identity: &Identity) -> v1::StatusResponse {
    let node = identity.node.to_string();
    let mut problems = Vec::new();
    let mut volumes = Vec::new();
    let mut stores = Vec::new();
    let mut is_healthy = true;
    for StoreStatus { store, report } in statuses {
        let state = store.state();
        let mut known = StatusReport::default();
        match report {
            Ok(report) => {
                is_healthy &= report.healthy;
                problems.extend(report.problems.iter().cloned());
                volumes.extend(report.volumes.iter().map(|v| volume_status(v, &node)));
                known = report.clone();
            }
            Err(silence) => {
                is_healthy = false;
                problems.push(match &state.ended {
                    Some(Ended::Failed(message)) => message.clone(),
                    _ => silence.clone(),
                });
            }
        }
        if let Some(message) = &state.fenced {
            is_healthy = false;
            // The store knows more than its loop told us; it is said twice only when it says nothing.
            if report.as_ref().is_ok_and(|r| r.problems.is_empty()) {
                problems.push(format!(
                    "{store} takes no more writes: {message}; reads go on. Check the device, then \
                     restart eskerd"
                ));
            }
        }
        stores.push(v1::Store {
            index: to_u32_saturating(store.index),
            path: store.path.display().to_string(),
            state: match (report, &state.fenced) {
                (Err(_), _) => "failed",
                (Ok(_), Some(_)) => "fenced",
                (Ok(_), None) => "ready",
            }
            .into(),
            size_bytes: store.size_bytes,
            sessions: known.sessions,
            damaged_blocks: known.damaged_blocks,
            recovered_records: known.recovered_records,
        });
    }
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let is_up = stores.iter().all(|store| store.state == "ready");
    let node = v1::Node {
        id: node,
        state: if is_up { "up" } else { "degraded" }.into(),
        version: VERSION.into(),
        stores,
    };
    v1::StatusResponse {
        healthy: is_healthy,
        problems,
        nodes: vec![node],
        volumes,
    }
}

/// The health of a volume, as this node knows it.
fn volume_status(report: &VolumeReport, node: &str) -> v1::VolumeStatus {
    let is_led = matches!(report.state, VolumeState::Ready | VolumeState::Fenced);
    let own = v1::Replica {
        node: node.into(),
        role: "voter".into(),
        state: state(report.state).into(),
        lag_bytes: 0,
    };
    let name_of = |member: &MemberReport| match member.node {
        Some(node) => node.to_string(),
        None => format!("replica {}", member.replica),
    };
    let leader = report
        .members
        .iter()
        .find(|member| member.leads)
        .map(name_of);
    let alone = report.members.is_empty();
    let member = |member: &MemberReport| v1::Replica {
        node: name_of(member),
        role: match (member.is_voter, member.is_leaving) {
            (true, false) => "voter".into(),
            (true, true) => "leaving".into(),
            (false, _) => "learner".into(),
        },
        state: member
            .state
            .map_or(v1::VolumeState::Unspecified, state)
            .into(),
        lag_bytes: member.lag_bytes,
    };
    v1::VolumeStatus {
        name: report.name.clone(),
        state: own.state,
        leader: match leader {
            None if is_led && alone => node.into(),
            leader => leader.unwrap_or_default(),
        },
        replicas: match alone {
            true => vec![own],
            false => report.members.iter().map(member).collect(),
        },
        sessions: report.sessions,
    }
}

/// A member's message.
#[must_use]
pub fn cluster_node(view: NodeView) -> v1::ClusterNode {
    let NodeView {
        member,
        is_here,
        told,
        answered_at,
    } = view;
    let answered = answered_at.duration_since(std::time::UNIX_EPOCH);
    let (told, reason) = match told {
        Ok(told) => (told, None),
        Err(reason) => (DescribeResponse::default(), Some(reason)),
    };
    v1::ClusterNode {
        id: member.id.to_string(),
        state: state_of_node(reason.is_none(), told.stores_failed).into(),
        reason: reason.unwrap_or_default(),
        answered_unix: answered.unwrap_or_default().as_secs(),
        address: member.address.to_string(),
        control: member.control.to_string(),
        labels: member.labels.into_iter().collect(),
        here: is_here,
        version: told.version,
        drained: told.drained,
        stores: told.stores,
        stores_failed: told.stores_failed,
        total_bytes: told.total_bytes,
        free_bytes: told.free_bytes,
        replicas: told.replicas,
        leaders: told.leaders,
        removed: told.removed,
        sessions: told.sessions,
    }
}

fn state_of_node(answers: bool, stores_failed: u32) -> &'static str {
    match (answers, stores_failed) {
        (false, _) => "down",
        (true, 0) => "up",
        (true, _) => "degraded",
    }
}

/// Another node in the status of this one.
#[must_use]
pub fn other_node(view: NodeView) -> v1::Node {
    let node = cluster_node(view);
    v1::Node {
        id: node.id,
        state: node.state,
        version: node.version,
        stores: Vec::new(),
    }
}
