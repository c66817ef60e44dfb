//! `esker key`.

use crate::args::KeyVerb;
use crate::error::{CliError, Client};
use crate::output::Output;
use crate::table::{Align, Table};
use esker_api::v1;
use serde::Serialize;

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
        KeyVerb::Rotate { volume, data_key } => {
            let request = v1::RotateKeysRequest { volume, data_key };
            client.rotate_keys(request).await?.into_inner().keys
        }
    };
    let keys: Vec<Key> = keys.into_iter().map(Key::from).collect();
    output.show(&keys, |keys| text(keys))
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
        table.row([volume, id, epochs, state, key.kek.clone()]);
    }
    table.render()
}
