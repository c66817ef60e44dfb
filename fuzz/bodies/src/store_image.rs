//! The whole engine, and a node over it, opening an image that something happened to.
//!
//! After damage as a medium does it (flipped bits, lost, torn and misplaced pages), what can be read
//! is some version that was really there. After a forgery, where every checksum is right and the
//! content is not, nothing can be said of the content: nothing panics and nothing goes on for ever.

use crate::store::{golden, occupied, some, tag_of, Damage, Device, Forgery, OPERATIONS_MAX, WALL};
use arbitrary::Unstructured;
use esker_base::{BlockRange, GroupId, Moment};
use esker_engine::inspect::{inspect, What};
use esker_engine::verify::{verify, Offline};
use esker_engine::EngineConfig;
use esker_node::admin::AdminRequest;
use esker_node::{AdminToken, Effect, Event, Machine, Node, NodeConfig};
use std::collections::VecDeque;

/// An image made from the golden one, opened in the way that the first byte says.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let golden = golden();
    let mut device = golden.device.clone();
    let pages = occupied(&device);
    let way = u.arbitrary::<u8>().unwrap_or(0);
    let forged = way & 1 == 1;
    let done = if forged {
        some::<Forgery<'_>>(&mut u, 6).map(|all| {
            all.iter().for_each(|f| f.apply(&mut device, &pages));
        })
    } else {
        some::<Damage>(&mut u, 6).map(|all| {
            all.iter().for_each(|d| d.apply(&mut device, &pages));
        })
    };
    if done.is_err() {
        return;
    }
    match way >> 1 & 3 {
        0 => read_all(&mut device, forged),
        1 => _ = verify(&mut device, &mut |_| {}),
        2 => serve(device),
        _ => {
            for what in [What::Checkpoint, What::Segment(u32::from(way >> 3) % 4)] {
                _ = inspect(&mut device, what);
            }
        }
    }
}

/// Reads every block that was ever written through the engine.
fn read_all(device: &mut Device, forged: bool) {
    let Ok(mut offline) = Offline::open(device) else {
        return;
    };
    let suspended: Vec<GroupId> = offline
        .opened
        .groups
        .iter()
        .filter(|g| g.suspended)
        .map(|g| g.meta.group)
        .collect();
    for ((group, lba), versions) in &golden().versions {
        let range = BlockRange::new(*lba, 1);
        let read = offline.read_blocks(GroupId(*group), range);
        // A suspended volume is served to nobody: what is missing in it is not known.
        if forged || suspended.contains(&GroupId(*group)) {
            continue;
        }
        let Ok(bytes) = read else { continue };
        let tag = tag_of(&bytes);
        let allowed = tag.is_some_and(|tag| versions.allowed().contains(&tag));
        assert!(
            allowed,
            "group {group} block {lba} reads as {tag:?}, and was {versions:?}"
        );
    }
    offline.settle();
}

/// A node opens the store, is asked what operators ask, and stops.
fn serve(mut device: Device) {
    let config = NodeConfig {
        engine: EngineConfig {
            device_bytes: device.size_bytes,
            format_if_blank: false,
            ..EngineConfig::default()
        },
        ..NodeConfig::default()
    };
    let mut effects = Vec::new();
    let mut node = Node::new(config, Moment(1), WALL, &mut effects);
    let mut now = 1_000_000u64;
    let mut operations = 0;
    let questions = [
        AdminRequest::Status,
        AdminRequest::VolumeList,
        AdminRequest::Space { volume: None },
        AdminRequest::VolumeAcceptLoss {
            name: "volume-1".into(),
        },
        AdminRequest::VolumeDelete {
            name: "volume-2".into(),
            with_snapshots: true,
        },
        AdminRequest::Checkpoint,
    ];
    let mut events: VecDeque<Event> = (1..)
        .zip(questions)
        .map(|(token, request)| {
            let token = AdminToken(token);
            Event::Admin { token, request }
        })
        .collect();
    events.push_back(Event::Stop);
    let mut queue = VecDeque::from(effects);
    let mut timers = 0;
    loop {
        while let Some(effect) = queue.pop_front() {
            match effect {
                Effect::Disk { io, op } => {
                    operations += 1;
                    assert!(operations < OPERATIONS_MAX, "the node works without end");
                    let result = device.perform(op);
                    step(&mut node, now, Event::Disk { io, result }, &mut queue);
                }
                Effect::Stopped | Effect::OpenFailed { .. } => return,
                _ => {}
            }
        }
        now += 50_000_000; // in nanoseconds
                           // A node that cannot stop is cut off after its own limit.
        timers += 1;
        assert!(timers < 2000, "the node does not stop");
        let event = if timers % 4 == 0 {
            events.pop_front()
        } else {
            None
        };
        step(&mut node, now, event.unwrap_or(Event::Timer), &mut queue);
    }
}

fn step(node: &mut Node, now: u64, event: Event, queue: &mut VecDeque<Effect>) {
    let mut effects = Vec::new();
    node.step(Moment(now), WALL, event, &mut effects);
    node.settle(Moment(now), WALL, &mut effects);
    queue.extend(effects);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus reaches code; this reaches pages: each is damaged in turn, so that a block that is
    /// served without its check is noticed whatever the corpus holds.
    #[test]
    fn one_damaged_page_is_never_served_as_data() {
        let pages = occupied(&golden().device);
        for number in 0..u16::try_from(pages.len()).expect("few") {
            let page = number;
            for damage in [Damage::Flip { page, bit: 801 }, Damage::Zero { page }] {
                let mut device = golden().device.clone();
                damage.apply(&mut device, &pages);
                read_all(&mut device, false);
            }
        }
    }
}
