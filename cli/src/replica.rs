//! `esker replica`.

use crate::args::ReplicaVerb;
use crate::error::{CliError, Client};
use crate::model::{Replica, Status};
use crate::output::Output;
use crate::table::{Align, Table};
use esker_api::{size, v1};
use serde::Serialize;
use std::time::Duration;

/// How often is asked whether a new copy votes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Copies of a volume, as JSON has them.
#[derive(Debug, Serialize)]
struct Replicas {
    /// The node that leads; none when none does.
    leader: Option<String>,
    /// The copies.
    replicas: Vec<Replica>,
}

/// Lists, adds and removes copies.
///
/// # Errors
/// When the daemon refuses, or there is no such volume.
pub async fn run(
    verb: ReplicaVerb,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    match verb {
        ReplicaVerb::List { volume } => {
            let replicas = copies(&volume, client).await?;
            output.show(&replicas, text)
        }
        ReplicaVerb::Add {
            volume,
            node,
            replace,
            no_wait,
        } => {
            let id = |node: Option<u64>| node.map(|id| id.to_string()).unwrap_or_default();
            let request = v1::AddReplicaRequest {
                volume: volume.clone(),
                node: id(node),
                replaces: id(replace),
            };
            let node = client.add_replica(request).await?.into_inner().node;
            let replaced = id(replace);
            loop {
                let replicas = match copies(&volume, client).await {
                    // It was added, and how it gets on is told elsewhere.
                    Err(CliError::Partly(why)) => {
                        return Err(CliError::Partly(format!(
                            "node {node} gets a copy of {volume}; {why}"
                        )))
                    }
                    copies => copies?,
                };
                if no_wait || has_settled(&replicas.replicas, &node, &replaced) {
                    return output.show(&replicas, text);
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        ReplicaVerb::Remove { volume, node } => {
            let request = v1::RemoveReplicaRequest {
                volume: volume.clone(),
                node: node.to_string(),
            };
            client.remove_replica(request).await?;
            let done = Done {
                volume,
                node: node.to_string(),
            };
            output.show(&done, |done| {
                format!(
                    "node {} has no copy of {} any more\n",
                    done.node, done.volume
                )
            })
        }
    }
}

/// A copy that has gone.
#[derive(Debug, Serialize)]
struct Done {
    volume: String,
    node: String,
}

async fn copies(volume: &str, client: &mut Client) -> Result<Replicas, CliError> {
    // Of a volume that is not there the daemon says so.
    let request = v1::ShowVolumeRequest {
        name: volume.into(),
    };
    client.show_volume(request).await?;
    let status = client
        .status(v1::StatusRequest { all: true })
        .await?
        .into_inner();
    let found = Status::from(status).volumes.into_iter();
    let mut found = found.filter(|v| v.name == volume);
    Ok(match found.next() {
        Some(volume) => Replicas {
            leader: volume.leader,
            replicas: volume.replicas,
        },
        None => {
            return Err(CliError::Partly(format!(
                "how its copies are is told by nodes that have one of volume {volume}, and this one has none: ask another node"
            )))
        }
    })
}

/// Whether a new copy votes, and the one in whose place it came, if there was one, does not any more. Both may be on one node.
fn has_settled(replicas: &[Replica], node: &str, replaced: &str) -> bool {
    let mut here = replicas.iter().filter(|r| r.node == node);
    let votes = here.next().is_some_and(|r| r.role == "voter") && here.next().is_none();
    votes && (node == replaced || replicas.iter().all(|r| r.node != replaced))
}

fn text(replicas: &Replicas) -> String {
    let mut table = Table::new([
        ("NODE", Align::Left),
        ("ROLE", Align::Left),
        ("STATE", Align::Left),
        ("LAG", Align::Right),
    ]);
    for replica in &replicas.replicas {
        let role = match replicas.leader.as_ref() == Some(&replica.node) {
            true => "leader".to_string(),
            false => replica.role.clone(),
        };
        table.row([
            replica.node.clone(),
            role,
            replica.state.to_string(),
            size::format(replica.lag_bytes),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_settled_when_the_one_in_whose_place_it_came_has_no_vote_left() {
        let settled = |listed: &[(&str, &str)], node, replaced| {
            let replica = |(node, role): &(&str, &str)| Replica {
                node: (*node).into(),
                role: (*role).into(),
                state: "ready",
                lag_bytes: 0,
            };
            let listed: Vec<Replica> = listed.iter().map(replica).collect();
            has_settled(&listed, node, replaced)
        };
        assert!(!settled(&[("1", "voter"), ("3", "learner")], "3", ""));
        assert!(settled(&[("1", "voter"), ("3", "voter")], "3", ""));
        assert!(!settled(&[("1", "voter"), ("3", "voter")], "3", "1"));
        assert!(!settled(&[("3", "voter"), ("1", "leaving")], "3", "1"));
        assert!(settled(&[("2", "voter"), ("3", "voter")], "3", "1"));
        assert!(!settled(&[("3", "voter"), ("3", "learner")], "3", "3"));
        assert!(!settled(&[("3", "voter"), ("3", "leaving")], "3", "3"));
        assert!(settled(&[("3", "voter")], "3", "3"));
    }
}
