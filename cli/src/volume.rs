//! `esker volume`.

use crate::args::{Place, VolumeVerb};
use crate::error::{CliError, Client};
use crate::model::{required, Deleted, Volume};
use crate::output::Output;
use crate::table::{fields, Align, Table};
use crate::when;
use esker_api::{size, v1};

/// Does what the verb says.
///
/// # Errors
/// When the daemon refuses.
pub async fn run(
    verb: VolumeVerb,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let volume = match verb {
        VolumeVerb::List => return list(client, output).await,
        VolumeVerb::Scrub { name } => return crate::scrub::run(name, client, output).await,
        VolumeVerb::Delete {
            name,
            with_snapshots,
            ..
        } => return delete(name, with_snapshots, client, output).await,
        VolumeVerb::Create {
            name,
            size,
            replicas,
            encrypt,
            labels,
            snapshot_schedule,
            rewind,
        } => {
            let labels = labels.into_iter().collect();
            let (size_bytes, encrypted) = (size, encrypt);
            let request = v1::CreateVolumeRequest {
                name,
                size_bytes,
                replicas,
                encrypted,
                labels,
                snapshot_schedule,
                rewind,
            };
            client.create_volume(request).await?.into_inner().volume
        }
        VolumeVerb::Set {
            name,
            snapshot_schedule,
            rewind,
            labels,
            unlabel,
        } => {
            let request = v1::SetVolumeRequest {
                name,
                snapshot_schedule,
                labels: labels.into_iter().collect(),
                unlabel,
                rewind,
            };
            client.set_volume(request).await?.into_inner().volume
        }
        VolumeVerb::Attach {
            name,
            holder,
            fence,
        } => {
            let holder = match holder {
                Some(holder) => holder,
                None => this_machine()?,
            };
            let request = v1::AttachVolumeRequest {
                name,
                holder,
                fence,
            };
            client.attach_volume(request).await?.into_inner().volume
        }
        VolumeVerb::Detach { name, attachment } => {
            let request = v1::DetachVolumeRequest { name, attachment };
            client.detach_volume(request).await?.into_inner().volume
        }
        VolumeVerb::Show { name } => {
            client
                .show_volume(v1::ShowVolumeRequest { name })
                .await?
                .into_inner()
                .volume
        }
        VolumeVerb::Resize { name, size } => {
            let request = v1::ResizeVolumeRequest {
                name,
                size_bytes: size,
            };
            client.resize_volume(request).await?.into_inner().volume
        }
        VolumeVerb::Rename { name, new_name } => {
            let request = v1::RenameVolumeRequest { name, new_name };
            client.rename_volume(request).await?.into_inner().volume
        }
        VolumeVerb::AcceptLoss { name: None, .. } => return accept_all(client, output).await,
        VolumeVerb::AcceptLoss {
            name: Some(name), ..
        } => Some(accept_loss(name, client).await?),
    };
    output.show(&Volume::from(required(volume, "volume")?), one)
}

/// Makes a volume that begins as a snapshot is.
///
/// # Errors
/// When the daemon refuses.
pub async fn clone(
    place: Place,
    name: String,
    labels: Vec<(String, String)>,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let (volume, snapshot) = place.both()?;
    let request = v1::CloneVolumeRequest {
        volume,
        snapshot,
        name,
        labels: labels.into_iter().collect(),
    };
    let answer = client.clone_volume(request).await?.into_inner();
    output.show(&Volume::from(required(answer.volume, "volume")?), one)
}

async fn list(client: &mut Client, output: &mut Output) -> Result<(), CliError> {
    let answer = client
        .list_volumes(v1::ListVolumesRequest {})
        .await?
        .into_inner();
    let volumes: Vec<Volume> = answer.volumes.into_iter().map(Volume::from).collect();
    output.show(volumes.as_slice(), many)
}

async fn delete(
    name: String,
    with_snapshots: bool,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = v1::DeleteVolumeRequest {
        name: name.clone(),
        with_snapshots,
    };
    client.delete_volume(request).await?;
    output.show(
        &Deleted {
            name,
            deleted: true,
        },
        |gone| format!("deleted {}", gone.name),
    )
}

async fn accept_loss(name: String, client: &mut Client) -> Result<v1::Volume, CliError> {
    let request = v1::AcceptLossRequest { name };
    let answer = client.accept_loss(request).await?.into_inner();
    required(answer.volume, "volume")
}

/// Accepts the loss of every suspended volume. One that is refused does not keep the others from
/// it; it is told at the end.
async fn accept_all(client: &mut Client, output: &mut Output) -> Result<(), CliError> {
    let request = v1::ListVolumesRequest {};
    let mut suspended = client.list_volumes(request).await?.into_inner().volumes;
    suspended.retain(|volume| volume.state() == v1::VolumeState::Suspended);
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    for v1::Volume { name, .. } in suspended {
        match accept_loss(name.clone(), client).await {
            Ok(volume) => accepted.push(Volume::from(volume)),
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    if !accepted.is_empty() || refused.is_empty() {
        output.show(accepted.as_slice(), names_accepted)?;
    }
    match refused.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(CliError::Partly(format!(
            "accept-loss failed for {} of {} suspended volumes; {first}",
            refused.len(),
            refused.len() + accepted.len(),
        ))),
    }
}

fn names_accepted(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "no volume is suspended".into();
    }
    let line = |volume: &Volume| format!("accepted the loss of {}\n", volume.name);
    volumes.iter().map(line).collect()
}

/// The name that this machine goes by, for whoever attaches without saying who it is.
fn this_machine() -> Result<String, CliError> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => Err(CliError::Usage(
            "this machine has no name: say who attaches with --holder".into(),
        )),
        name => Ok(name.to_owned()),
    }
}

fn one(volume: &Volume) -> String {
    let labels: Vec<_> = volume
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let mut pairs = vec![
        ("name", volume.name.clone()),
        ("uuid", volume.uuid.clone()),
        ("state", volume.state.to_string()),
        ("size", size::format(volume.size_bytes)),
        ("used", size::format(volume.used_bytes)),
        ("unique", size::format(volume.unique_bytes)),
        ("in snapshots", size::format(volume.snapshot_bytes)),
        ("replicas", volume.replicas.to_string()),
        (
            "encrypted",
            if volume.encrypted { "yes" } else { "no" }.to_string(),
        ),
        ("snapshots", volume.snapshots.to_string()),
        ("sessions", volume.sessions.to_string()),
        ("store", volume.store.to_string()),
        ("uri", volume.uri.clone()),
    ];
    pairs.extend(volume.tcp_uri.clone().map(|uri| ("tcp uri", uri)));
    let schedule = volume.snapshot_schedule.clone();
    pairs.extend(schedule.map(|rules| ("snapshot schedule", rules)));
    if volume.rewind_seconds > 0 {
        let held = volume.rewind_bytes.map_or("?".into(), size::format);
        let from = volume.rewind_from_unix.map(when::text);
        let from = from.unwrap_or("nothing yet".into());
        let window = when::duration(volume.rewind_seconds);
        pairs.push(("rewind", format!("{window}, back to {from}, {held}")));
    }
    if let Some(attachment) = &volume.attachment {
        let (holder, number) = (&attachment.holder, attachment.number);
        let since = when::text(attachment.since_unix);
        pairs.push((
            "held by",
            format!("{holder} since {since}, attachment {number}"),
        ));
    }
    if !labels.is_empty() {
        pairs.push(("labels", labels.join(" ")));
    }
    fields(&pairs)
}

fn many(volumes: &[Volume]) -> String {
    let mut table = Table::new([
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Right),
        ("UNIQUE", Align::Right),
        ("REPLICAS", Align::Right),
        ("SNAPSHOTS", Align::Right),
        ("SESSIONS", Align::Right),
        ("STATE", Align::Left),
    ]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            size::format(volume.size_bytes),
            size::format(volume.used_bytes),
            size::format(volume.unique_bytes),
            volume.replicas.to_string(),
            volume.snapshots.to_string(),
            volume.sessions.to_string(),
            volume.state.to_string(),
        ]);
    }
    table.render()
}
