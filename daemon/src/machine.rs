//! The machine that runs on a store's loop: the node's logic.

use crate::loops::StoreSetup;
use esker_base::{Moment, WallClock};
use esker_node::{Effect, Event, Machine};

/// Stands where the node's logic goes.
pub struct Absent;

impl Machine for Absent {
    fn step(&mut self, _: Moment, _: WallClock, _: Event, _: &mut Vec<Effect>) {}
}

/// Makes the machine of a store.
pub fn node(
    setup: StoreSetup,
) -> impl FnOnce(Moment, WallClock, &mut Vec<Effect>) -> Absent + Send + 'static {
    move |_, _, effects| {
        let message = format!("store {}: this build has no storage engine", setup.index);
        effects.push(Effect::OpenFailed { message });
        Absent
    }
}
