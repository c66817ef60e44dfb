//! The replicas of a volume, for whoever asks how it is.

use crate::admin::{MemberReport, VolumeState};
use crate::node::Node;
use crate::volume::Volume;
use esker_base::{GroupId, Place, ReplicaId};
use esker_replication::Group;

impl Node {
    /// The replicas of a volume; none where it has only this one.
    pub(crate) fn members_of(&self, id: GroupId, volume: &Volume) -> Vec<MemberReport> {
        let Some(view) = self.engine.group(id).filter(|_| volume.spans) else {
            return Vec::new();
        };
        let membership = &view.meta.membership;
        let voters = membership.voters.iter().map(|replica| (*replica, true));
        let learners = membership.learners.iter().map(|replica| (*replica, false));
        let leader = volume.group.as_ref().and_then(Group::leader);
        let member = |(replica, is_voter): (ReplicaId, bool)| {
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
                is_voter,
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
        voters.chain(learners).map(member).collect()
    }
}
