//! `esker status`.

use crate::error::{CliError, Client};
use crate::model::Status;
use crate::output::Output;
use crate::table::{Align, Table};
use esker_api::{size, v1};

/// Shows the health of the node; with `why`, what is wrong in words.
///
/// # Errors
/// When the daemon refuses.
pub async fn run(why: bool, client: &mut Client, output: &mut Output) -> Result<(), CliError> {
    let answer = client
        .status(v1::StatusRequest::default())
        .await?
        .into_inner();
    output.show(&Status::from(answer), |status| text(status, why))
}

fn text(status: &Status, why: bool) -> String {
    let problems = status.problems.len();
    let mut text = match (status.healthy, problems) {
        (true, 0) => "healthy\n".to_string(),
        (true, _) => "healthy, with remarks\n".to_string(),
        (false, 1) => "NOT HEALTHY: 1 problem\n".to_string(),
        (false, _) => format!("NOT HEALTHY: {problems} problems\n"),
    };
    if why {
        if problems == 0 {
            text.push_str("nothing is wrong, and nothing needs doing\n");
        }
        for (index, problem) in status.problems.iter().enumerate() {
            text.push_str(&format!("{}. {problem}\n", index + 1));
        }
    } else if problems > 0 {
        text.push_str("`esker status --why` says what, and the next safe step\n");
    }
    text.push('\n');
    text.push_str(&stores(status));
    if !status.volumes.is_empty() {
        text.push('\n');
        text.push_str(&volumes(status));
    }
    text
}

fn stores(status: &Status) -> String {
    let mut table = Table::new([
        ("NODE", Align::Left),
        ("STATE", Align::Left),
        ("STORE", Align::Right),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("SESSIONS", Align::Right),
        ("DAMAGED", Align::Right),
        ("PATH", Align::Left),
    ]);
    for node in &status.nodes {
        if node.stores.is_empty() {
            // Another one; `esker node list` has more.
            let mut row = std::array::from_fn(|_| "-".to_string());
            (row[0], row[1]) = (node.id.clone(), node.state.clone());
            table.row(row);
        }
        for store in &node.stores {
            table.row([
                node.id.clone(),
                node.state.clone(),
                store.store.to_string(),
                store.state.clone(),
                size::format(store.size_bytes),
                store.sessions.to_string(),
                store.damaged_blocks.to_string(),
                store.path.clone(),
            ]);
        }
    }
    table.render()
}

fn volumes(status: &Status) -> String {
    let mut table = Table::new([
        ("VOLUME", Align::Left),
        ("STATE", Align::Left),
        ("LEADER", Align::Left),
        ("COPIES", Align::Right),
        ("LAG", Align::Right),
        ("SESSIONS", Align::Right),
    ]);
    for volume in &status.volumes {
        let lag_bytes = volume
            .replicas
            .iter()
            .map(|r| r.lag_bytes)
            .max()
            .unwrap_or(0);
        table.row([
            volume.name.clone(),
            volume.state.to_string(),
            volume.leader.clone().unwrap_or_else(|| "none".into()),
            volume.replicas.len().to_string(),
            size::format(lag_bytes),
            volume.sessions.to_string(),
        ]);
    }
    table.render()
}
