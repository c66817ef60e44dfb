//! Which links of other nodes are taken: those of this cluster and for this node, and of each sender the
//! newest one only.

use super::directory::Directory;
use super::link::LinkId;
use super::wire::Hello;
use esker_base::{Moment, NodeId, Place};
use std::collections::HashMap;
use std::time::Duration;

/// Stores of a node.
pub const PEER_STORES_MAX: u32 = 64;
/// How long after the end of a sender's link one of an earlier process of it is refused. One that connected
/// before that end has said its hello by then; what comes later is of a process whose clock was set back.
pub const EARLIER_PROCESS_WAIT: Duration = Duration::from_secs(30);

/// The newest link of each sender; at most [`PEER_STORES_MAX`] for each node of the directory.
#[derive(Default)]
pub(super) struct Newest(HashMap<Place, Known>);

struct Known {
    started_us: u64,
    number: u64,
    /// The link, until it has ended, and then when that was.
    link: Result<LinkId, Moment>,
}

impl Newest {
    /// Takes a link whose hello this is, or says why not. Gives the older link that ends with it.
    pub(super) fn admit(
        &mut self,
        hello: &Hello,
        place: Place,
        link: LinkId,
        now: Moment,
    ) -> Result<Option<LinkId>, String> {
        let incarnation = (hello.started_us, hello.link);
        let mut older = None;
        if let Some(known) = self.0.get(&place) {
            if incarnation <= (known.started_us, known.number) {
                let is_possible = match known.link {
                    Ok(_) => false,
                    Err(ended) => now.since(ended) >= EARLIER_PROCESS_WAIT,
                };
                if hello.started_us == known.started_us || !is_possible {
                    return Err(format!("store {place} has begun a newer link"));
                }
            }
            older = known.link.ok();
        }
        let known = Known {
            started_us: hello.started_us,
            number: hello.link,
            link: Ok(link),
        };
        self.0.insert(place, known);
        Ok(older)
    }

    /// A link has ended.
    pub(super) fn ended(&mut self, place: Place, link: LinkId, now: Moment) {
        if let Some(known) = self.0.get_mut(&place) {
            if known.link == Ok(link) {
                known.link = Err(now);
            }
        }
    }

    /// Forgets nodes that are not in the directory.
    pub(super) fn retain(&mut self, directory: &Directory) {
        self.0
            .retain(|place, _| directory.neighbours.contains_key(&place.node));
    }
}

/// The sender that a hello names, or why its link is refused.
pub(super) fn sender(
    hello: &Hello,
    directory: &Directory,
    certified: Option<NodeId>,
) -> Result<Place, String> {
    let node = NodeId(hello.from_node);
    if hello.cluster != directory.cluster.0.to_be_bytes() {
        return Err(format!(
            "it is of another cluster than {}; look at [cluster] of both nodes",
            directory.cluster
        ));
    }
    if hello.to_node != directory.node.0 {
        return Err(format!(
            "it looks for node {} and this is node {}; look at the addresses in its [[cluster.node]]",
            hello.to_node, directory.node
        ));
    }
    if !directory.neighbours.contains_key(&node) {
        return Err(format!(
            "it says it is node {node}, which is not in this node's [[cluster.node]]"
        ));
    }
    if let Some(other) = certified.filter(|certified| *certified != node) {
        return Err(format!(
            "it says it is node {node}, and its certificate is that of node {other}"
        ));
    }
    match u16::try_from(hello.from_store) {
        Ok(store) if hello.from_store < PEER_STORES_MAX => Ok(Place { node, store }),
        _ => Err(format!(
            "it says it is store {} of node {node}",
            hello.from_store
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(started_us: u64, link: u64) -> Hello {
        Hello {
            started_us,
            link,
            ..Hello::default()
        }
    }

    #[test]
    fn the_newest_link_of_a_sender_ends_the_one_before_and_an_older_one_is_refused() {
        let (place, now) = (Place::default(), Moment(0));
        let mut newest = Newest::default();
        let mut admit = |hello: Hello, link, now| newest.admit(&hello, place, LinkId(link), now);
        assert_eq!(admit(hello(10, 1), 1, now), Ok(None));
        assert_eq!(admit(hello(10, 3), 2, now), Ok(Some(LinkId(1))));
        assert!(admit(hello(10, 2), 3, now).is_err());
        assert!(admit(hello(10, 3), 4, now).is_err());
        assert!(admit(hello(9, 99), 5, now).is_err());
        assert_eq!(admit(hello(11, 0), 6, now), Ok(Some(LinkId(2))));
        newest.ended(place, LinkId(2), now); // it had ended already
        assert!(newest
            .admit(&hello(10, 9), place, LinkId(7), now + EARLIER_PROCESS_WAIT)
            .is_err());
        newest.ended(place, LinkId(6), now);
        let mut admit = |hello: Hello, link, now| newest.admit(&hello, place, LinkId(link), now);
        assert!(admit(hello(10, 9), 7, now).is_err());
        assert!(admit(hello(11, 0), 8, now + EARLIER_PROCESS_WAIT).is_err());
        assert_eq!(admit(hello(10, 9), 9, now + EARLIER_PROCESS_WAIT), Ok(None));
    }
}
