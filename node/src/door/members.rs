//! The replicas of a volume, for whoever asks how it is.

use crate::admin::{MemberReport, VolumeState};
use crate::node::Node;
use crate::volume::Volume;
use esker_base::{GroupId, Place, ReplicaId};
use esker_engine::format::checkpoint::Membership;
use esker_replication::Group;

impl Node {
    /// The replicas of a volume; none where it has only this one.
    pub(crate) fn members_of(&self, id: GroupId, volume: &Volume) -> Vec<MemberReport> {
        let Some(view) = self.engine.group(id).filter(|_| volume.spans) else {
            return Vec::new();
        };
        let membership = &view.meta.membership;
        let leader = volume.group.as_ref().and_then(Group::leader);
        let member = |(replica, role): (ReplicaId, Role)| {
            let is_here = replica == view.meta.replica;
            let told = volume
                .group
                .as_ref()
                .and_then(|group| group.progress(replica));
            let here = Place {
                node: self.config.node,
                store: u16::try_from(self.config.store_index).unwrap_or(u16::MAX),
            };
            let place = self.place_of(replica).or(is_here.then_some(here));
            MemberReport {
                replica: replica.0,
                node: place.map(|place| place.node.0),
                store: place.map_or(0, |place| place.store),
                is_voter: role != Role::Learner,
                is_leaving: role == Role::Leaving,
                replaces: volume
                    .member_places
                    .iter()
                    .find(|member| member.replica == replica)
                    .map_or(0, |member| member.replaces.0),
                leads: leader == Some(replica),
                state: match told {
                    _ if is_here => Some(volume.state(self.fenced.is_some())),
                    Some((_, true)) => Some(VolumeState::Ready),
                    None if leader == Some(replica) => Some(VolumeState::Ready),
                    Some((_, false)) | None => None,
                },
                lag_bytes: match told {
                    Some((matched, _)) if !is_here => self.engine.log_bytes_after(id, matched),
                    _ => 0,
                },
            }
        };
        roles(membership).into_iter().map(member).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Voter,
    /// A voter until the change that is under way is complete.
    Leaving,
    Learner,
}

/// Everybody who is in a group, those included without whom it may not be able to decide anything while it is between two
/// sets of voters.
fn roles(membership: &Membership) -> Vec<(ReplicaId, Role)> {
    let before = membership.voters_outgoing.iter();
    let leaving = before.filter(|replica| !membership.voters.contains(replica));
    let with = |role| move |replica: &ReplicaId| (*replica, role);
    let voters = membership.voters.iter().map(with(Role::Voter));
    let leaving = leaving.map(with(Role::Leaving));
    let learners = membership.learners.iter().map(with(Role::Learner));
    voters.chain(leaving).chain(learners).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_still_has_a_vote_while_voters_change_is_listed_as_leaving() {
        let id = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect::<Vec<_>>();
        let mut membership = Membership {
            voters: id(&[1, 2, 4]),
            voters_outgoing: id(&[1, 2, 3]),
            learners: id(&[5]),
            ..Membership::default()
        };
        let (voter, leaving, learner) = (Role::Voter, Role::Leaving, Role::Learner);
        let listed = |m: &Membership| -> Vec<(u64, Role)> {
            roles(m)
                .into_iter()
                .map(|(id, role)| (id.0, role))
                .collect()
        };
        let between = [
            (1, voter),
            (2, voter),
            (4, voter),
            (3, leaving),
            (5, learner),
        ];
        assert_eq!(listed(&membership), between);
        membership.voters_outgoing.clear();
        assert_eq!(
            listed(&membership),
            [(1, voter), (2, voter), (4, voter), (5, learner)]
        );
    }
}
