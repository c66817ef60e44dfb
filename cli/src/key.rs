//! `esker key`.

use crate::args::KeyVerb;
use crate::error::{CliError, Client};
use crate::output::Output;
use crate::progress::ByteBar;
use crate::table::{Align, Table};
use esker_api::v1;
use serde::Serialize;
use std::time::Duration;

/// How often is asked how far a volume is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often is asked whether a key that nothing needs has gone.
const LOOKS_MAX: u32 = 50;

/// A key, as JSON has it. Nothing in it is secret.
#[derive(Debug, Serialize)]
struct Key {
    volume_uuid: String,
    key_id: u32,
    own: bool,
    provider: String,
    kek: String,
    state: String,
    reason: Option<String>,
    first_epoch: u32,
    last_epoch: u32,
    epochs: u64,
    /// What keeps it; null for the one that the volume writes with.
    needed_by: Option<Need>,
}

/// What keeps a key that its volume does not write with any more.
#[derive(Debug, Serialize)]
struct Need {
    volume: bool,
    snapshots: u64,
    rewind_points: u64,
    volumes: Vec<String>,
}

impl Need {
    /// In words.
    fn text(&self) -> String {
        let count = |n: u64, one: &str| match n {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {one}s")),
        };
        let volume = self.volume.then(|| "blocks of the volume".to_string());
        let others = self.volumes.iter().map(|name| format!("volume {name}"));
        let all = volume
            .into_iter()
            .chain(count(self.snapshots, "snapshot"))
            .chain(count(self.rewind_points, "rewind point"))
            .chain(others);
        match all.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "nothing".into(),
            all => all,
        }
    }
}

/// Shows or rotates keys.
///
/// # Errors
/// When the daemon refuses.
pub async fn run(verb: KeyVerb, client: &mut Client, output: &mut Output) -> Result<(), CliError> {
    let keys = match verb {
        KeyVerb::Show { volume } => {
            let request = v1::ShowKeysRequest { volume };
            client.show_keys(request).await?.into_inner().keys
        }
        KeyVerb::Rotate {
            volume,
            data_key,
            no_wait,
        } => {
            let request = v1::RotateKeysRequest {
                volume: volume.clone(),
                data_key,
            };
            let keys = client.rotate_keys(request).await?.into_inner().keys;
            match data_key && !no_wait {
                true => resealed(volume, client).await?,
                false => keys,
            }
        }
    };
    let keys: Vec<Key> = keys.into_iter().map(Key::from).collect();
    output.show(&keys, |keys| text(keys))
}

/// Waits until a volume has no blocks under an older key, with a progress bar; its keys then.
async fn resealed(volume: String, client: &mut Client) -> Result<Vec<v1::Key>, CliError> {
    let bar = ByteBar::new("sealing anew");
    loop {
        let request = v1::ShowVolumeRequest {
            name: volume.clone(),
        };
        let shown = client.show_volume(request).await?.into_inner().volume;
        let Some(reseal) = shown.and_then(|v| v.reseal) else {
            break;
        };
        if !reseal.problem.is_empty() {
            return Err(CliError::Damaged(reseal.problem));
        }
        bar.show(reseal.through_bytes, reseal.size_bytes);
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    drop(bar);
    // With nothing else that needs it, the older key goes with the next checkpoint, which is on its way.
    let mut looks = 0;
    loop {
        let request = v1::ShowKeysRequest {
            volume: volume.clone(),
        };
        let keys = client.show_keys(request).await?.into_inner().keys;
        let is_free = |n: &v1::KeyNeed| {
            !n.volume && n.snapshots == 0 && n.rewind_points == 0 && n.volumes.is_empty()
        };
        looks += 1;
        if looks > LOOKS_MAX
            || !keys
                .iter()
                .any(|k| k.needed_by.as_ref().is_some_and(is_free))
        {
            return Ok(keys);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

impl From<v1::Key> for Key {
    fn from(key: v1::Key) -> Self {
        Self {
            volume_uuid: key.volume_uuid,
            key_id: key.key_id,
            own: key.is_own,
            provider: key.provider,
            kek: key.kek,
            state: key.state,
            reason: Some(key.reason).filter(|text| !text.is_empty()),
            first_epoch: key.first_epoch,
            last_epoch: key.last_epoch,
            epochs: key.epochs,
            needed_by: key.needed_by.map(|need| Need {
                volume: need.volume,
                snapshots: need.snapshots,
                rewind_points: need.rewind_points,
                volumes: need.volumes,
            }),
        }
    }
}

fn text(keys: &[Key]) -> String {
    let mut table = Table::new([
        ("VOLUME", Align::Left),
        ("KEY", Align::Right),
        ("EPOCHS", Align::Right),
        ("STATE", Align::Left),
        ("WRAPPED BY", Align::Left),
        ("KEPT FOR", Align::Left),
    ]);
    for key in keys {
        let epochs = match key.epochs {
            0 => "none".to_string(),
            1 => key.first_epoch.to_string(),
            _ => format!("{}-{}", key.first_epoch, key.last_epoch),
        };
        let state = match &key.reason {
            Some(reason) => format!("{}: {reason}", key.state),
            None => key.state.clone(),
        };
        let (volume, id) = (key.volume_uuid.clone(), key.key_id.to_string());
        let kept_for = match &key.needed_by {
            None => "new blocks".to_string(),
            Some(need) => need.text(),
        };
        table.row([volume, id, epochs, state, key.kek.clone(), kept_for]);
    }
    table.render()
}
