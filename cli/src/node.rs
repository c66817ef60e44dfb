//! `esker node` and `esker cluster`.

use crate::args::{ClusterVerb, NodeVerb};
use crate::error::{CliError, Client};
use crate::output::Output;
use crate::table::{Align, Table};
use esker_api::{size, v1};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a node that was added may take to start.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often is asked what a node still holds.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A node, as JSON has it.
#[derive(Debug, Serialize)]
struct Node {
    /// Id.
    id: String,
    /// `up`, `degraded` when a store of it takes no writes, or `down` when it does not answer.
    state: String,
    /// Why it is down.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// When it last answered, in seconds since the Unix epoch.
    answered_unix: u64,
    /// Where it takes links of other nodes.
    address: String,
    /// Where it answers other nodes.
    control: String,
    /// Where it stands.
    labels: BTreeMap<String, String>,
    /// The one that was asked.
    here: bool,
    /// Version of its software.
    version: String,
    /// It takes no new copies, and those it has go elsewhere.
    drained: bool,
    /// Stores of it that take writes.
    stores: u32,
    /// Stores of it that do not.
    stores_failed: u32,
    /// Bytes of its stores.
    total_bytes: u64,
    /// Free ones of them.
    free_bytes: u64,
    /// Copies of volumes that it holds.
    replicas: u64,
    /// Volumes that it leads.
    leaders: u64,
    /// Copies that are none any more and wait for sessions to end.
    removed: u64,
    /// Attached sessions.
    sessions: u64,
}

impl From<v1::ClusterNode> for Node {
    fn from(node: v1::ClusterNode) -> Self {
        Self {
            id: node.id,
            state: node.state,
            reason: node.reason,
            answered_unix: node.answered_unix,
            address: node.address,
            control: node.control,
            labels: node.labels.into_iter().collect(),
            here: node.here,
            version: node.version,
            drained: node.drained,
            stores: node.stores,
            stores_failed: node.stores_failed,
            total_bytes: node.total_bytes,
            free_bytes: node.free_bytes,
            replicas: node.replicas,
            leaders: node.leaders,
            removed: node.removed,
            sessions: node.sessions,
        }
    }
}

/// The cluster, as JSON has it.
#[derive(Debug, Serialize)]
struct Cluster {
    /// UUID.
    id: String,
    /// Every node answers, all their stores take writes, and all copies are where they should be.
    healthy: bool,
    /// The nodes.
    nodes: Vec<Node>,
    /// What is wrong between nodes, since when, and the next safe step.
    problems: Vec<String>,
    /// The last change of the members; 0 where configurations name them.
    members_revision: u64,
}

impl From<v1::ShowClusterResponse> for Cluster {
    fn from(shown: v1::ShowClusterResponse) -> Self {
        let is_up = shown.nodes.iter().all(|node| node.state == "up");
        Self {
            id: shown.id,
            healthy: is_up && shown.problems.is_empty(),
            members_revision: shown.members_revision,
            nodes: shown.nodes.into_iter().map(Node::from).collect(),
            problems: shown.problems,
        }
    }
}

/// Lists nodes, adds one, drains one, takes one away.
///
/// # Errors
/// When the daemon refuses, or is alone.
pub async fn run(verb: NodeVerb, client: &mut Client, output: &mut Output) -> Result<(), CliError> {
    match verb {
        NodeVerb::List => {
            let nodes = shown(client).await?.nodes;
            output.show(&nodes, |nodes| table(nodes))
        }
        NodeVerb::Add {
            control,
            id,
            address,
            labels,
            no_wait,
        } => {
            let request = v1::AddNodeRequest {
                control,
                node: id.map(|id| id.to_string()).unwrap_or_default(),
                address: address.unwrap_or_default(),
                labels: labels.into_iter().collect(),
            };
            let node = client.add_node(request).await?.into_inner().node;
            let state = match no_wait {
                true => "added".into(),
                false => wait_until_up(&node, client).await?,
            };
            output.show(&Changed { node, state }, Changed::text)
        }
        NodeVerb::Remove { node } => {
            let node = node.to_string();
            let request = v1::RemoveNodeRequest { node: node.clone() };
            client.remove_node(request).await?;
            let state = "removed".into();
            output.show(&Changed { node, state }, Changed::text)
        }
        NodeVerb::Drain {
            node,
            cancel,
            no_wait,
        } => {
            let id = node.to_string();
            let request = v1::DrainNodeRequest {
                node: id.clone(),
                cancel,
            };
            client.drain_node(request).await?;
            if cancel || no_wait {
                let (node, drained) = (id, !cancel);
                let copies = left(&node, client).await?.len();
                let done = Drained {
                    node,
                    drained,
                    copies,
                };
                return output.show(&done, Drained::text);
            }
            let copies = wait(&id, client).await?;
            let done = Drained {
                node: id,
                drained: true,
                copies,
            };
            output.show(&done, Drained::text)
        }
    }
}

/// Begins a cluster, or shows it.
///
/// # Errors
/// When the daemon refuses, or is alone.
pub async fn cluster(
    verb: ClusterVerb,
    client: &mut Client,
    output: &mut Output,
) -> Result<(), CliError> {
    match verb {
        ClusterVerb::Status => {
            let cluster = shown(client).await?;
            output.show(&cluster, cluster_text)
        }
        ClusterVerb::Init {
            address,
            control,
            labels,
        } => {
            let request = v1::InitClusterRequest {
                address: address.unwrap_or_default(),
                control: control.unwrap_or_default(),
                labels: labels.into_iter().collect(),
            };
            let begun = client.init_cluster(request).await?.into_inner();
            let begun = Begun {
                id: begun.id,
                node: begun.node,
            };
            output.show(&begun, Begun::text)
        }
    }
}

/// A cluster that has begun.
#[derive(Debug, Serialize)]
struct Begun {
    /// UUID.
    id: String,
    /// Its first node.
    node: String,
}

impl Begun {
    fn text(&self) -> String {
        let (id, node) = (&self.id, &self.node);
        format!(
            "cluster {id} begins with node {node}; `esker node add HOST:PORT` adds nodes that wait for it\n"
        )
    }
}

/// A node that was added or removed.
#[derive(Debug, Serialize)]
struct Changed {
    node: String,
    /// `up`, or `added` where nobody waited for that; `removed`.
    state: String,
}

impl Changed {
    fn text(&self) -> String {
        let (node, state) = (&self.node, &self.state);
        match state.as_str() {
            "removed" => format!("node {node} is removed: stop it, if it runs\n"),
            "added" => format!("node {node} is added\n"),
            state => format!("node {node} is added and {state}\n"),
        }
    }
}

/// Waits until a node that was added serves; tells what it is then.
async fn wait_until_up(node: &str, client: &mut Client) -> Result<String, CliError> {
    let end = Instant::now() + START_WAIT_MAX;
    loop {
        let nodes = shown(client).await?.nodes;
        let found = nodes.into_iter().find(|n| n.id == node);
        match found {
            Some(found) if found.state != "down" => return Ok(found.state),
            Some(found) if Instant::now() >= end => {
                return Err(CliError::NotYet(format!(
                    "node {node} is a member and does not answer yet: {}; `esker node list` tells when it does",
                    found.reason
                )))
            }
            None if Instant::now() >= end => {
                return Err(CliError::NotYet(format!("node {node} is not in the list of nodes")))
            }
            Some(_) | None => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

async fn shown(client: &mut Client) -> Result<Cluster, CliError> {
    let shown = client.show_cluster(v1::ShowClusterRequest {}).await?;
    Ok(Cluster::from(shown.into_inner()))
}

/// A node that was drained, or taken back.
#[derive(Debug, Serialize)]
struct Drained {
    node: String,
    drained: bool,
    /// Copies that it still holds.
    copies: usize,
}

impl Drained {
    fn text(&self) -> String {
        let (node, copies) = (&self.node, self.copies);
        match (self.drained, copies) {
            (true, 0) => format!("node {node} is drained and holds nothing\n"),
            (true, _) => format!("node {node} is being drained; {copies} copies are to go\n"),
            (false, _) => format!("node {node} takes copies again; it holds {copies}\n"),
        }
    }
}

async fn left(node: &str, client: &mut Client) -> Result<Vec<v1::HeldCopy>, CliError> {
    let request = v1::ShowNodeRequest { node: node.into() };
    Ok(client.show_node(request).await?.into_inner().copies)
}

/// Waits until a node holds nothing; tells on stderr what it waits for.
async fn wait(node: &str, client: &mut Client) -> Result<usize, CliError> {
    let mut told = String::new();
    loop {
        let copies = left(node, client).await?;
        if copies.is_empty() {
            return Ok(0);
        }
        let problems = shown(client).await?.problems;
        let now = waits_for(node, &copies, &problems);
        if now != told {
            eprint!("{now}");
            told = now;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What a drain waits for, in lines.
fn waits_for(node: &str, copies: &[v1::HeldCopy], problems: &[String]) -> String {
    let (gone, there): (Vec<_>, Vec<_>) = copies.iter().partition(|copy| copy.removed);
    let mut text = format!("node {node}: {} copies are to go\n", there.len());
    for copy in gone.iter().filter(|copy| copy.sessions > 0) {
        text.push_str(&format!(
            "volume {}: {} sessions are attached through node {node}; attach them to another node\n",
            copy.volume, copy.sessions
        ));
    }
    for problem in problems {
        text.push_str(&format!("{problem}\n"));
    }
    text
}

fn cluster_text(cluster: &Cluster) -> String {
    let up = cluster.nodes.iter().filter(|n| n.state == "up").count();
    let mut text = format!(
        "cluster {}: {up} of {} nodes are up\n",
        cluster.id,
        cluster.nodes.len()
    );
    for (index, problem) in cluster.problems.iter().enumerate() {
        text.push_str(&format!("{}. {problem}\n", index + 1));
    }
    text.push('\n');
    text.push_str(&table(&cluster.nodes));
    text
}

fn table(nodes: &[Node]) -> String {
    let mut table = Table::new([
        ("NODE", Align::Left),
        ("STATE", Align::Left),
        ("COPIES", Align::Right),
        ("LEADS", Align::Right),
        ("SESSIONS", Align::Right),
        ("FREE", Align::Right),
        ("SIZE", Align::Right),
        ("VERSION", Align::Left),
        ("CONTROL", Align::Left),
        ("LABELS", Align::Left),
    ]);
    for node in nodes {
        let is_down = node.state == "down";
        let known = |text: String| match is_down {
            true => "-".to_string(),
            false => text,
        };
        let labels: Vec<_> = node
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        table.row([
            node.id.clone(),
            match node.drained {
                true => format!("{}, drained", node.state),
                false => node.state.clone(),
            },
            known((node.replicas + node.removed).to_string()),
            known(node.leaders.to_string()),
            known(node.sessions.to_string()),
            known(size::format(node.free_bytes)),
            known(size::format(node.total_bytes)),
            known(node.version.clone()),
            node.control.clone(),
            labels.join(","),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_says_what_it_waits_for() {
        let copy = |volume: &str, removed, sessions| v1::HeldCopy {
            volume: volume.into(),
            removed,
            sessions,
            ..Default::default()
        };
        let copies = [copy("a", false, 3), copy("b", true, 1), copy("c", true, 0)];
        let text = waits_for("2", &copies, &["no room".to_string()]);
        assert_eq!(
            text,
            "node 2: 1 copies are to go\nvolume b: 1 sessions are attached through node 2; attach them to another \
             node\nno room\n"
        );
    }
}
