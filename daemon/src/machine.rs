//! The machine that runs on a store's loop: the node's logic.

use crate::loops::StoreSetup;
use esker_base::num::to_usize;
use esker_base::{Moment, WallClock};
use esker_node::{Effect, Node, NodeConfig};
use std::time::Duration;

/// Makes the machine of a store.
pub fn node(
    setup: StoreSetup,
) -> impl FnOnce(Moment, WallClock, &mut Vec<Effect>) -> Node + Send + 'static {
    move |now, wall, effects| {
        let mut config = NodeConfig {
            store_index: setup.index,
            node: setup.identity.node,
            cluster: setup.identity.cluster,
            seed: setup.seed,
            tuning: setup.tuning,
            places: setup.places,
            keys: true,
            ..NodeConfig::default()
        };
        config.engine.format_if_blank = setup.may_format;
        config.engine.device_bytes = setup.size_bytes;
        config.engine.zero_ahead = !setup.is_device;
        if !setup.read_leases {
            config.lease = Duration::ZERO;
        }
        if let Some(bytes) = setup.cache_bytes {
            config.engine.cache_bytes = to_usize(bytes);
        }
        Node::new(config, now, wall, effects)
    }
}
