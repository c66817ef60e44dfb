//! A node of the world: a process that comes and goes, over a disk that stays.

use super::plan::Plan;
use crate::sim::{Image, SimDisk, SimRng};
use esker_base::{ClusterId, Moment, NodeId, Place, ReplicaId};
use esker_engine::Probe;
use esker_node::{Node, NodeConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a node's process is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none.
    Down,
    /// It opens its store.
    Opening,
    /// It serves.
    Serving,
    /// It was asked to stop.
    Stopping,
}

/// A node's clock: it starts anywhere and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset: u64,
    /// Parts per thousand gained.
    gain: u64,
}

impl Clock {
    pub fn new(rng: &mut SimRng) -> Self {
        Self {
            offset: rng.below(1 << 40),
            gain: rng.below(20),
        }
    }

    /// What it shows when the world's shows `now`.
    pub fn shows(&self, now: u64) -> Moment {
        Moment(self.offset + now + now / 1000 * self.gain)
    }

    /// The world's time at which it shows at least `at`.
    pub fn when(&self, at: Moment) -> u64 {
        let passed = at.0.saturating_sub(self.offset);
        let mut now = passed / (1000 + self.gain) * 1000;
        while self.shows(now) < at {
            now += (at.0 - self.shows(now).0).max(1);
        }
        now
    }
}

/// A node.
pub(crate) struct Host {
    pub node: Option<Node>,
    pub state: State,
    pub disk: SimDisk,
    pub clock: Clock,
    /// Counts processes.
    pub incarnation: u64,
    /// It has taken events and settles when its turn ends.
    pub in_turn: bool,
    /// Counts timer requests: only the last one is served.
    pub timers: u64,
    /// The store takes no more writes.
    pub fenced: bool,
    /// It told an operator that it has to be restarted.
    pub asks_for_restart: bool,
    /// When it became so.
    pub fenced_at: u64,
    /// A sync failed: what the disk shows is not what a restart may build on.
    pub sync_failed: bool,
    /// Disk operations fail until then.
    pub faulty_until: u64,
    /// It gets no processor until then.
    pub stalled_until: u64,
    /// Its disk is slower by this factor until then.
    pub slow_disk: (u64, u64),
    /// It was up at least once: its store is formatted.
    pub formatted: bool,
    /// Crash after so many further effects.
    pub fuse: Option<(u64, super::world::Crash)>,
    /// Sync failures that had been counted before.
    pub syncs_failed_seen: u64,
    pub probes: BTreeSet<Probe>,
    /// Volumes of which it has a replica: it has said so.
    pub made: BTreeSet<usize>,
    /// Pages of survivors that got new addresses.
    pub rehomed: u64,
    /// The provider of keys cannot be reached from it until then.
    pub keys_away_until: u64,
    /// An operator looks again soon whether it has its replicas.
    pub looked_at_soon: bool,
    /// Where other replicas live, as it was told when it made its own.
    pub told: BTreeMap<ReplicaId, Place>,
}

impl Host {
    pub fn new(plan: &Plan, index: usize, rng: &mut SimRng) -> Self {
        let image = Image::blank(plan.device_bytes());
        Self {
            node: None,
            state: State::Down,
            disk: SimDisk::new(image, SimRng::new(plan.seed, 100 + index as u64)),
            clock: Clock::new(rng),
            incarnation: 0,
            in_turn: false,
            timers: 0,
            fenced: false,
            asks_for_restart: false,
            fenced_at: 0,
            sync_failed: false,
            faulty_until: 0,
            stalled_until: 0,
            slow_disk: (0, 1),
            formatted: false,
            fuse: None,
            syncs_failed_seen: 0,
            probes: BTreeSet::new(),
            rehomed: 0,
            keys_away_until: 0,
            looked_at_soon: false,
            made: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    /// The configuration of its next process.
    pub fn config(&self, plan: &Plan, index: usize, rng: &mut SimRng) -> NodeConfig {
        let mut seed = [0; 32];
        for chunk in seed.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next().to_le_bytes());
        }
        NodeConfig {
            node: node_id(index),
            cluster: ClusterId(7),
            engine: plan.engine.clone(),
            seed,
            tick: Duration::from_millis(100),
            lease: Duration::from_millis(plan.options.lease_ms),
            places: {
                let mut places = Self::places(plan);
                places.extend(self.told.clone());
                places
            },
            keys: plan.encrypted > 0,
            note_seals: true,
            ..NodeConfig::default()
        }
    }

    /// Where replicas live at the beginning.
    pub fn places(plan: &Plan) -> BTreeMap<ReplicaId, Place> {
        // A volume's replicas are numbered like the nodes; see `replica_of`.
        let mut places = BTreeMap::new();
        for volume in 0..plan.volumes {
            for node in plan.first_hosts(volume) {
                places.insert(replica_of(volume, node), place_of(node));
            }
        }
        places
    }

    /// Keeps what the process has shown of its branches until now.
    pub fn note_probes_now(&mut self) {
        if let Some(node) = &self.node {
            self.probes.extend(node.engine().probes());
        }
    }

    /// Keeps what the process, which ends, has shown of its branches.
    pub fn note_probes(&mut self) {
        if let Some(node) = &self.node {
            self.probes.extend(node.engine().probes());
            self.rehomed += node.engine().pages_rehomed();
        }
    }
}

/// The id of the node at an index.
pub(crate) fn node_id(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

/// The store of the node at an index.
pub(crate) fn place_of(index: usize) -> Place {
    Place {
        node: node_id(index),
        store: 0,
    }
}

/// The index of a node, of which it has one store.
pub(crate) fn index_of(place: Place) -> usize {
    usize::try_from(place.node.0 - 1).unwrap_or(usize::MAX)
}

/// The replica of a volume on a node.
pub(crate) fn replica_of(volume: usize, node: usize) -> ReplicaId {
    ReplicaId(1 + (volume * 8 + node) as u64)
}
