//! `esker snapshot`.

use crate::args::{Format, Place, SnapshotVerb};
use crate::error::{CliError, Client};
use crate::graph::{self, Graph};
use crate::model::{
    required, DeletedSnapshot, DiffExtent, KeptSnapshot, Pruned, RolledBack, Snapshot, TakenGroup,
    Version, Volume,
};
use crate::output::Output;
use crate::table::{fields, Align, Table};
use crate::when;
use esker_api::{size, v1};
use std::collections::BTreeMap;

/// Does what the verb says.
///
/// # Errors
/// When the daemon refuses.
pub async fn run(
    verb: SnapshotVerb,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    match verb {
        SnapshotVerb::Create { places, labels } if places.len() > 1 => {
            let labels = labels.into_iter().collect();
            create_several(places, labels, client, output).await
        }
        SnapshotVerb::Create { places, labels } => {
            let (volume, name) = required(places.into_iter().next(), "snapshot")?.both()?;
            let request = v1::CreateSnapshotRequest {
                volume,
                name,
                labels: labels.into_iter().collect(),
            };
            let answer = client.create_snapshot(request).await?.into_inner();
            let snapshot = Snapshot::from(required(answer.snapshot, "snapshot")?);
            output.show(&snapshot, one)
        }
        SnapshotVerb::List { volume, graph } => match (output.format(), graph) {
            (Format::Dot | Format::Svg, _) | (Format::Table, true) => {
                show_graph(volume, client, output).await
            }
            (Format::Json, true) => {
                let all = graph_of(volume, client).await?.versions();
                output.show(all.as_slice(), |_| String::new())
            }
            (Format::Table | Format::Json, false) => {
                let all = snapshots(volume, client).await?;
                output.show(all.as_slice(), many)
            }
        },
        SnapshotVerb::Delete { place } => {
            let (volume, name) = place.both()?;
            let request = v1::DeleteSnapshotRequest {
                volume: volume.clone(),
                name: name.clone(),
            };
            client.delete_snapshot(request).await?;
            let gone = DeletedSnapshot {
                volume,
                name,
                deleted: true,
            };
            output.show(&gone, |gone| {
                format!("deleted {}@{}", gone.volume, gone.name)
            })
        }
        SnapshotVerb::Prune {
            volume,
            dry_run,
            snapshot_schedule,
        } => prune(volume, dry_run, snapshot_schedule, client, output).await,
        SnapshotVerb::Rollback {
            place,
            keep,
            discard,
            force,
            ..
        } => {
            let (volume, name) = place.both()?;
            let request = v1::RollbackSnapshotRequest {
                volume,
                name: name.clone(),
                keep: keep.unwrap_or_default(),
                discard,
                force,
            };
            let answer = client.rollback_snapshot(request).await?.into_inner();
            let done = RolledBack {
                volume: Volume::from(required(answer.volume, "volume")?),
                snapshot: name,
                kept: answer.kept.map(Snapshot::from),
            };
            output.show(&done, rolled_back)
        }
        SnapshotVerb::Diff { from, to } => diff(from, to, client, output).await,
    }
}

async fn create_several(
    places: Vec<Place>,
    labels: BTreeMap<String, String>,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut snapshots = Vec::with_capacity(places.len());
    for place in places {
        let (volume, name) = place.both()?;
        snapshots.push(v1::SnapshotName { volume, name });
    }
    let request = v1::CreateSnapshotsRequest { snapshots, labels };
    let answer = client.create_snapshots(request).await?.into_inner();
    let taken = TakenGroup {
        snapshots: answer.snapshots.into_iter().map(Snapshot::from).collect(),
        held_microseconds: answer.held_microseconds,
        attempts: answer.attempts,
    };
    output.show(&taken, |taken| {
        let names = taken.snapshots.iter();
        let names: Vec<_> = names.map(|s| format!("{}@{}", s.volume, s.name)).collect();
        let held = std::time::Duration::from_micros(taken.held_microseconds);
        fields(&[
            ("snapshots", names.join(" ")),
            (
                "writes waited",
                format!("{:.1} ms", held.as_secs_f64() * 1e3),
            ),
            ("attempts", taken.attempts.to_string()),
        ])
    })
}

async fn prune(
    volume: String,
    dry_run: bool,
    snapshot_schedule: Option<String>,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = v1::PruneSnapshotsRequest {
        volume: volume.clone(),
        dry_run,
        snapshot_schedule,
    };
    let answer = client.prune_snapshots(request).await?.into_inner();
    let kept = answer.kept.into_iter().map(|kept| KeptSnapshot {
        name: kept.name,
        rules: kept.rules,
    });
    let pruned = Pruned {
        volume,
        dry_run,
        kept: kept.collect(),
        deleted: answer.deleted,
        postponed: answer.postponed,
    };
    output.show(&pruned, |pruned| {
        let mut table = Table::new([
            ("SNAPSHOT", Align::Left),
            ("WHAT", Align::Left),
            ("RULES", Align::Left),
        ]);
        let mut row = |name: &str, what: &str, rules: &str| {
            let name = format!("{}@{name}", pruned.volume);
            table.row([name, what.into(), rules.into()]);
        };
        pruned
            .kept
            .iter()
            .for_each(|k| row(&k.name, "kept", &k.rules));
        let deleted = if dry_run { "to be deleted" } else { "deleted" };
        pruned
            .deleted
            .iter()
            .for_each(|name| row(name, deleted, ""));
        let attached = "attached, to be deleted later";
        pruned
            .postponed
            .iter()
            .for_each(|name| row(name, attached, ""));
        table.render()
    })
}

/// All snapshots, page by page.
async fn snapshots(volume: Option<String>, client: &mut Client) -> Result<Vec<Snapshot>, CliError> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let request = v1::ListSnapshotsRequest {
            volume: volume.clone(),
            after: after.take(),
        };
        let page = client.list_snapshots(request).await?.into_inner();
        all.extend(page.snapshots.into_iter().map(Snapshot::from));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

/// The versions of all volumes, or those of the trees that a volume has a part in: clones are of others.
async fn graph_of(volume: Option<String>, client: &mut Client) -> Result<Graph, CliError> {
    if let Some(name) = &volume {
        let request = v1::ShowVolumeRequest { name: name.clone() };
        client.show_volume(request).await?;
    }
    let request = v1::ListVolumesRequest {};
    let volumes = client.list_volumes(request).await?.into_inner().volumes;
    let mut all: Vec<Version> = Vec::new();
    for volume in volumes.into_iter().map(|v| v.name) {
        let mut after = 0;
        loop {
            let request = v1::ListVersionsRequest {
                volume: volume.clone(),
                after,
            };
            let page = client.list_versions(request).await?.into_inner().versions;
            let Some(last) = page.last() else { break };
            after = last.id;
            all.extend(page.into_iter().map(Version::from));
        }
    }
    let graph = Graph::new(all);
    Ok(match volume {
        Some(volume) => graph.with(&volume),
        None => graph,
    })
}

async fn show_graph(
    volume: Option<String>,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let graph = graph_of(volume, client).await?;
    let text = match output.format() {
        Format::Dot => graph::dot(&graph),
        Format::Svg => graph::svg(&graph),
        Format::Table | Format::Json => graph::text(&graph),
    };
    output.raw(text.as_bytes())
}

/// Shows what differs, page by page, in bounded memory.
async fn diff(
    from: Place,
    to: Option<Place>,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let (of, from) = from.both()?;
    let (volume, to) = to.map_or((of.clone(), None), |to| (to.volume, to.snapshot));
    let from_volume = (of != volume).then_some(of);
    let mut list = output.list("OFFSET        LENGTH        TYPE", |extent: &DiffExtent| {
        format!(
            "{:<12}  {:<12}  {}",
            extent.offset, extent.length, extent.kind
        )
    })?;
    let mut offset = 0;
    let mut open: Option<DiffExtent> = None;
    loop {
        let request = v1::DiffSnapshotsRequest {
            volume: volume.clone(),
            from: from.clone(),
            to: to.clone(),
            offset,
            from_volume: from_volume.clone(),
        };
        let page = client.diff_snapshots(request).await?.into_inner();
        for extent in page.extents.into_iter().map(DiffExtent::from) {
            match &mut open {
                Some(open) if open.goes_on(&extent) => open.length += extent.length,
                _ => {
                    if let Some(whole) = open.replace(extent) {
                        list.item(&whole)?;
                    }
                }
            }
        }
        if page.through_bytes >= page.size_bytes {
            break;
        }
        if page.through_bytes <= offset {
            return Err(CliError::Answer("progress"));
        }
        offset = page.through_bytes;
    }
    if let Some(last) = open {
        list.item(&last)?;
    }
    list.end()
}

/// A number of bytes that sums may not tell.
fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or("?".into(), size::format)
}

fn one(snapshot: &Snapshot) -> String {
    let labels: Vec<_> = snapshot
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let mut pairs = vec![
        ("snapshot", format!("{}@{}", snapshot.volume, snapshot.name)),
        ("created", when::text(snapshot.created_unix)),
        ("size", size::format(snapshot.size_bytes)),
    ];
    pairs.extend(
        snapshot
            .automatic
            .clone()
            .map(|periods| ("automatic", periods)),
    );
    let group = snapshot.group_snapshot.as_ref();
    pairs.extend(group.map(|g| ("group", format!("{}, of {} volumes", g.id, g.volumes))));
    if !labels.is_empty() {
        pairs.push(("labels", labels.join(" ")));
    }
    fields(&pairs)
}

fn many(snapshots: &[Snapshot]) -> String {
    let mut table = Table::new([
        ("SNAPSHOT", Align::Left),
        ("CREATED", Align::Left),
        ("SIZE", Align::Right),
        ("REFERENCED", Align::Right),
        ("UNIQUE", Align::Right),
        ("SESSIONS", Align::Right),
    ]);
    for snapshot in snapshots {
        table.row([
            format!("{}@{}", snapshot.volume, snapshot.name),
            when::text(snapshot.created_unix),
            size::format(snapshot.size_bytes),
            bytes(snapshot.referenced_bytes),
            bytes(snapshot.unique_bytes),
            snapshot.sessions.to_string(),
        ]);
    }
    table.render()
}

fn rolled_back(done: &RolledBack) -> String {
    let name = &done.volume.name;
    let left = match &done.kept {
        Some(kept) => format!("what it held before is {name}@{}", kept.name),
        None => "what it held before is gone".into(),
    };
    format!("{name} is as {name}@{} was; {left}", done.snapshot)
}
