//! Requests of operators that another node carries out: who is asked, in which order, and for how long.

use super::{control, Cluster};
use crate::admin::AdminService;
use crate::door::{self, Next, Rule, Said, Who};
use crate::store::RequestError;
use esker_api::cluster::HeldReplica;
use esker_api::raw::{Bytes, Message, OfVolume};
use esker_api::v1::admin_server::AdminServer;
use esker_base::NodeId;
use esker_node::admin::{AdminError, VolumeReport};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tonic::Status;

/// How long somebody is looked for who leads.
const LEADER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Between two rounds.
const ROUND_WAIT: Duration = Duration::from_millis(200);
/// How long another node has to lead before nothing more is expected of the one that was asked because it led.
const DEPOSED_WAIT: Duration = Duration::from_secs(2);
/// How often is looked who leads.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Who is to be asked.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// This node alone, and its answer is the answer.
    Here,
    /// These nodes, until one does it.
    Nodes(Vec<NodeId>),
    /// Nobody, for this reason.
    Nobody(AdminError),
}

impl Cluster {
    /// Has a request about a volume carried out by whoever can.
    ///
    /// # Errors
    /// That node's refusal; or nobody can, or it is not known whether it was done.
    pub(crate) async fn pass(
        &self,
        here: &AdminServer<AdminService>,
        rule: Rule,
        volume: &str,
        request: Bytes,
    ) -> Result<Bytes, Status> {
        let begun = Instant::now();
        loop {
            let nodes = match self.asked(rule.who, volume).await {
                Asked::Here => return door::carry_out(here, rule.method, request).await,
                Asked::Nobody(error) => return Err(crate::admin::refusal(error.into())),
                Asked::Nodes(nodes) => nodes,
            };
            let mut reasons = Vec::new();
            for node in nodes {
                let said = tokio::select! {
                    said = self.say(here, node, rule, request.clone()) => said,
                    leads = self.deposed(rule, volume, node) => {
                        Said::Lost(format!("it does not answer, and node {leads} leads by now"))
                    }
                };
                match door::next(rule, volume, node.0, said) {
                    Next::Answer(answer) => return answer,
                    Next::Elsewhere(why) => reasons.push(why),
                }
            }
            if begun.elapsed() >= LEADER_WAIT_MAX {
                let waited = begun.elapsed().as_secs();
                return Err(door::nobody(rule, volume, waited, &reasons));
            }
            tokio::time::sleep(ROUND_WAIT).await;
        }
    }

    /// Carries out what another member passed on: of what is passed on at all, and of volumes with several copies.
    ///
    /// # Errors
    /// When it is something else, or this node refuses.
    pub(super) async fn carry_out_here(
        &self,
        here: &AdminServer<AdminService>,
        method: &str,
        request: Bytes,
    ) -> Result<Bytes, Status> {
        if door::rule(method).is_none() {
            let text = format!("{method} is not carried out for other nodes");
            return Err(Status::unimplemented(text));
        }
        let named = OfVolume::decode(request.clone());
        let volume = named
            .map_err(|e| Status::invalid_argument(e.to_string()))?
            .volume;
        let shown = self.stores.show(&volume).await;
        let shown = shown.map_err(crate::admin::refusal)?;
        if shown.members.is_empty() {
            let text = format!("volume {volume} of this node has one copy: ask the node itself");
            return Err(Status::failed_precondition(text));
        }
        tracing::debug!(volume, method, "carried out for another node");
        door::carry_out(here, method, request).await
    }

    /// Asks one node.
    async fn say(
        &self,
        here: &AdminServer<AdminService>,
        node: NodeId,
        rule: Rule,
        request: Bytes,
    ) -> Said {
        if node == self.identity.node {
            return match door::carry_out(here, rule.method, request).await {
                Ok(answer) => Said::Done(answer),
                Err(status) => Said::Refused(status),
            };
        }
        match self.member(node) {
            Some(member) => control::carry_out(self, &member, rule.method, request).await,
            None => Said::Unreached("no member of the cluster, as far as this node knows".into()),
        }
    }

    /// Waits until another node leads in place of one that is asked because it led; tells which. A node that was held up answers
    /// nothing, and who leads in its place can.
    async fn deposed(&self, rule: Rule, volume: &str, asked: NodeId) -> NodeId {
        let leader = || async {
            let report = self.stores.show(volume).await.ok()?;
            leader_of(&report)
        };
        let led = leader().await;
        if rule.who != Who::Leader || asked == self.identity.node || led != Some(asked) {
            return std::future::pending().await;
        }
        let mut since = None;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match leader().await.filter(|leads| *leads != asked) {
                None => since = None,
                Some(leads) => {
                    if since.get_or_insert_with(Instant::now).elapsed() >= DEPOSED_WAIT {
                        return leads;
                    }
                }
            }
        }
    }

    /// Who is to be asked about a volume now.
    async fn asked(&self, who: Who, volume: &str) -> Asked {
        match self.stores.show(volume).await {
            Ok(report) if !(report.removed && who == Who::Leader) => {
                by_own_copy(self.identity.node, who, &report)
            }
            Ok(_) | Err(RequestError::Refused(AdminError::NotFound(_))) => {
                let (held, silent) = self.held_by_others(volume).await;
                by_others(volume, &held, &silent)
            }
            // It says so itself.
            Err(_) => Asked::Here,
        }
    }

    /// The copies that other members say they have of a volume, and the members that say nothing.
    async fn held_by_others(&self, volume: &str) -> (Vec<(NodeId, HeldReplica)>, Vec<NodeId>) {
        let (mut held, mut silent) = (Vec::new(), Vec::new());
        for member in self.config().others(self.identity.node) {
            let listed = control::list_replicas(self, member, volume);
            match tokio::time::timeout(control::DESCRIBE_WAIT_MAX, listed).await {
                Ok(Ok(replicas)) => held.extend(replicas.into_iter().map(|r| (member.id, r))),
                Ok(Err(_)) | Err(_) => silent.push(member.id),
            }
        }
        (held, silent)
    }
}

/// The node that leads, as far as one with a copy knows.
fn leader_of(report: &VolumeReport) -> Option<NodeId> {
    let leads = report.members.iter().find(|member| member.leads)?;
    leads.node.map(NodeId)
}

/// Who is asked by a node that has a copy: it alone what any copy can do, and of the others first who leads, as far as
/// it knows.
fn by_own_copy(own: NodeId, who: Who, report: &VolumeReport) -> Asked {
    if report.members.is_empty() || who == Who::Holder {
        return Asked::Here;
    }
    let mut members: Vec<_> = report
        .members
        .iter()
        .filter_map(|m| Some((m, m.node?)))
        .collect();
    members.sort_by_key(|(member, node)| (!member.leads, *node != own.0, *node));
    Asked::Nodes(members.into_iter().map(|(_, node)| NodeId(node)).collect())
}

/// Who is asked by a node that has none, by what the others say.
fn by_others(volume: &str, held: &[(NodeId, HeldReplica)], silent: &[NodeId]) -> Asked {
    let mut held: Vec<_> = held
        .iter()
        .filter(|(_, replica)| !replica.removed && replica.copies > 1)
        .collect();
    let volumes: BTreeSet<_> = held.iter().map(|(_, replica)| &replica.volume).collect();
    if volumes.len() > 1 {
        let nodes: Vec<_> = held.iter().map(|(node, _)| node.to_string()).collect();
        return Asked::Nobody(AdminError::Refused(format!(
            "nodes {} have different volumes named {volume}: ask one of them",
            nodes.join(", ")
        )));
    }
    if held.is_empty() && !silent.is_empty() {
        let silent: Vec<_> = silent.iter().map(ToString::to_string).collect();
        return Asked::Nobody(AdminError::NotFound(format!(
            "no volume {volume} here or with several copies on the nodes that answer; node {} does not",
            silent.join(", ")
        )));
    }
    if held.is_empty() {
        return Asked::Here; // it says that there is none
    }
    held.sort_by_key(|(node, replica)| (!replica.leads, *node));
    Asked::Nodes(held.into_iter().map(|(node, _)| *node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_node::admin::MemberReport;

    fn copy(of: &[(u64, bool)]) -> VolumeReport {
        let member = |(node, leads): &(u64, bool)| MemberReport {
            node: Some(*node),
            leads: *leads,
            ..MemberReport::default()
        };
        VolumeReport {
            members: of.iter().map(member).collect(),
            ..VolumeReport::default()
        }
    }

    fn held(node: u64, volume: &str, copies: u32, leads: bool) -> (NodeId, HeldReplica) {
        let replica = HeldReplica {
            volume: volume.into(),
            copies,
            leads,
            ..HeldReplica::default()
        };
        (NodeId(node), replica)
    }

    fn nodes(of: &[u64]) -> Asked {
        Asked::Nodes(of.iter().map(|id| NodeId(*id)).collect())
    }

    #[test]
    fn with_a_copy_here_the_leader_is_asked_first_and_this_node_next() {
        let asked = |who, of: &[(u64, bool)]| by_own_copy(NodeId(2), who, &copy(of));
        let three = [(1, false), (2, false), (3, true)];
        assert_eq!(asked(Who::Leader, &three), nodes(&[3, 2, 1]));
        assert_eq!(asked(Who::Holder, &three), Asked::Here);
        let nobody = [(1, false), (2, false), (3, false)];
        assert_eq!(asked(Who::Leader, &nobody), nodes(&[2, 1, 3]));
        // One copy, of this node's alone.
        assert_eq!(asked(Who::Leader, &[]), Asked::Here);
    }

    #[test]
    fn without_a_copy_here_those_that_have_one_are_asked() {
        let three = [
            held(1, "a", 3, false),
            held(3, "a", 3, true),
            held(4, "a", 3, false),
        ];
        assert_eq!(by_others("v", &three, &[]), nodes(&[3, 1, 4]));
        // Silence of others takes nothing away from that.
        assert_eq!(by_others("v", &three[..1], &[NodeId(3)]), nodes(&[1]));
        // Volumes with one copy belong to their nodes, and copies that were removed to nobody.
        assert_eq!(by_others("v", &[held(1, "a", 1, true)], &[]), Asked::Here);
        let mut removed = held(1, "a", 3, false);
        removed.1.removed = true;
        assert_eq!(by_others("v", &[removed], &[]), Asked::Here);
        assert_eq!(by_others("v", &[], &[]), Asked::Here);
    }

    #[test]
    fn two_volumes_of_one_name_and_silent_nodes_are_told() {
        let two = [held(1, "a", 3, true), held(3, "b", 3, true)];
        let Asked::Nobody(AdminError::Refused(text)) = by_others("v", &two, &[]) else {
            panic!();
        };
        assert!(
            text.contains("nodes 1, 3") && text.contains("named v"),
            "{text}"
        );
        let silent = by_others("v", &[], &[NodeId(3)]);
        let Asked::Nobody(AdminError::NotFound(text)) = silent else {
            panic!();
        };
        assert!(
            text.contains("no volume v") && text.contains("node 3"),
            "{text}"
        );
    }
}
