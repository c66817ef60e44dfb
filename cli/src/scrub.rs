//! `esker volume scrub`.

use crate::error::{CliError, Client};
use crate::output::Output;
use crate::progress::ByteBar;
use crate::table::{Align, Table};
use esker_api::{size, v1};
use serde::Serialize;

/// Damage that is shown; more is counted.
const SHOWN_MAX: usize = 1000;

/// What a scrub found, as JSON has it.
#[derive(Debug, Serialize)]
struct Scrubbed {
    volume: String,
    /// Bytes read from the device and checked, map included.
    checked_bytes: u64,
    /// Damaged places, those that are not shown included.
    damaged_count: u64,
    /// How many of them were repaired from other copies of the volume.
    repaired_count: u64,
    damaged: Vec<Damage>,
}

/// Something that is damaged on the device.
#[derive(Debug, Serialize)]
struct Damage {
    /// The volume that it was written to; empty when that was deleted and clones of it live on.
    volume: String,
    /// The oldest snapshot that has it; null when only the volume has it.
    snapshot: Option<String>,
    offset: u64,
    length: u64,
    /// `data`, or `map`: none of these bytes can be read.
    #[serde(rename = "type")]
    kind: &'static str,
    /// It can be read again: another copy of the volume had it.
    repaired: bool,
}

impl From<v1::ScrubDamage> for Damage {
    fn from(damage: v1::ScrubDamage) -> Self {
        Self {
            volume: damage.volume,
            snapshot: damage.snapshot,
            offset: damage.offset,
            length: damage.length,
            kind: if damage.in_map { "map" } else { "data" },
            repaired: damage.repaired,
        }
    }
}

/// Scrubs a volume part by part, with a progress bar.
///
/// # Errors
/// When the daemon refuses, or something is damaged and no other copy has it.
pub async fn run(name: String, client: &mut Client, output: &mut Output) -> Result<(), CliError> {
    let bar = ByteBar::new("scrubbing");
    let mut found = Scrubbed {
        volume: name.clone(),
        checked_bytes: 0,
        damaged_count: 0,
        repaired_count: 0,
        damaged: Vec::new(),
    };
    let mut place = None;
    loop {
        let request = v1::ScrubVolumeRequest {
            name: name.clone(),
            place,
        };
        let part = client.scrub_volume(request).await?.into_inner();
        found.checked_bytes += part.checked_bytes;
        bar.show(found.checked_bytes, part.total_bytes);
        for damage in part.damaged {
            found.damaged_count += 1;
            found.repaired_count += u64::from(damage.repaired);
            if found.damaged.len() < SHOWN_MAX {
                found.damaged.push(damage.into());
            }
        }
        if part.next.is_none() {
            break;
        }
        if part.next == place {
            return Err(CliError::Answer("progress"));
        }
        place = part.next;
    }
    drop(bar);
    output.show(&found, text)?;
    match found.damaged_count - found.repaired_count {
        0 => Ok(()),
        count => Err(CliError::Damaged(format!(
            "{count} places of {name} are damaged on the device: restore them from a copy; reads of them fail \
             until they are written again"
        ))),
    }
}

fn text(found: &Scrubbed) -> String {
    if found.damaged.is_empty() {
        let checked = size::format(found.checked_bytes);
        return format!("{}: {checked} checked, nothing damaged", found.volume);
    }
    let mut table = Table::new([
        ("VOLUME", Align::Left),
        ("SNAPSHOT", Align::Left),
        ("OFFSET", Align::Right),
        ("LENGTH", Align::Right),
        ("TYPE", Align::Left),
        ("REPAIRED", Align::Left),
    ]);
    for damage in &found.damaged {
        table.row([
            damage.volume.clone(),
            damage.snapshot.clone().unwrap_or_else(|| "-".into()),
            damage.offset.to_string(),
            damage.length.to_string(),
            damage.kind.into(),
            if damage.repaired { "yes" } else { "no" }.into(),
        ]);
    }
    table.render()
}
