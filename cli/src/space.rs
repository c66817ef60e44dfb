//! `esker space`.

use crate::error::{CliError, Client};
use crate::model::{required, Space, SpaceFigures, StoreSpace};
use crate::output::Output;
use crate::table::{fields, Align, Table};
use esker_api::{size, v1};

/// Shows the space of the node, or of one volume.
///
/// # Errors
/// When the daemon refuses.
pub async fn run(
    volume: Option<String>,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = v1::SpaceRequest {
        volume: volume.clone(),
    };
    let answer = client.space(request).await?.into_inner();
    let mut stores = Vec::with_capacity(answer.stores.len());
    for store in answer.stores {
        let figures = required(store.space, "space")?.into();
        stores.push(StoreSpace {
            store: store.store,
            path: store.path,
            figures,
        });
    }
    let figures = required(answer.space, "space")?.into();
    output.show(
        &Space {
            volume,
            figures,
            stores,
        },
        text,
    )
}

fn text(space: &Space) -> String {
    let mut text = figures(&space.figures);
    if space.stores.len() > 1 {
        let mut table = Table::new([
            ("STORE", Align::Right),
            ("LIVE", Align::Right),
            ("SNAPSHOTS", Align::Right),
            ("OF REWIND", Align::Right),
            ("GARBAGE", Align::Right),
            ("FREE", Align::Right),
            ("TOTAL", Align::Right),
            ("PATH", Align::Left),
        ]);
        for store in &space.stores {
            table.row([
                store.store.to_string(),
                size::format(store.figures.live_bytes),
                size::format(store.figures.snapshot_bytes),
                rewind(&store.figures),
                size::format(store.figures.garbage_bytes),
                size::format(store.figures.free_bytes),
                size::format(store.figures.total_bytes),
                store.path.clone(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    text
}

/// What only rewind points hold; sums may not tell.
fn rewind(figures: &SpaceFigures) -> String {
    figures.rewind_bytes.map_or("?".into(), size::format)
}

fn figures(figures: &SpaceFigures) -> String {
    fields(&[
        ("live", size::format(figures.live_bytes)),
        ("snapshots", size::format(figures.snapshot_bytes)),
        ("of rewind", rewind(figures)),
        ("garbage", size::format(figures.garbage_bytes)),
        ("reserve", size::format(figures.reserve_bytes)),
        ("free", size::format(figures.free_bytes)),
        ("total", size::format(figures.total_bytes)),
        (
            "written by clients",
            size::format(figures.client_bytes_written),
        ),
        (
            "written to devices",
            size::format(figures.device_bytes_written),
        ),
    ])
}
