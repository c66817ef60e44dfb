//! What a seed stands for: the shape of a world and the faults it will meet.

use super::content::Grid;
use super::keys::KeyFaults;
use crate::sim::{DiskFaults, SimRng};
use esker_base::num::to_usize;
use esker_engine::format::table::CONTENT_MAX;
use esker_engine::{EngineConfig, Sabotage};
use std::time::Duration;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything else.
    pub seed: u64,
    /// 1 or 3 nodes, or up to 7 between which copies move; by seed when absent.
    pub nodes: Option<usize>,
    /// Events after which faults and new requests end.
    pub steps: u64,
    /// A fault built into the engine.
    pub sabotage: Sabotage,
    /// Some stores are too small for what is written to them.
    pub full_stores: bool,
    /// With what [`Plan::add_extras`] draws.
    pub extras: bool,
    /// Blocks of one node of three may be damaged.
    pub block_damage: bool,
    /// Volumes of three may be cloned.
    pub clones: bool,
    /// Segments that were never used are written with zeros before.
    pub zero_ahead: bool,
    /// How long leaders answer reads without asking, in milliseconds; 0 for never.
    pub lease_ms: u64,
    /// Volumes of three may get other data keys.
    pub keys_of_three: bool,
    /// Volumes of several copies may have holders.
    pub holders: bool,
    /// Snapshots may be taken of several volumes at one moment.
    pub cuts: bool,
    /// Print what happens.
    pub verbose: bool,
}

impl Options {
    /// The usual run of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: None,
            steps: 12_000,
            sabotage: Sabotage::None,
            full_stores: false,
            extras: true,
            block_damage: true,
            clones: true,
            zero_ahead: true,
            lease_ms: 600,
            keys_of_three: true,
            holders: true,
            cuts: true,
            verbose: false,
        }
    }

    /// A run as it was before leaders had leases, segments were written ahead, and volumes of three got other data keys: for seeds that were found then.
    #[must_use]
    pub fn asking(seed: u64) -> Self {
        Self {
            keys_of_three: false,
            holders: false,
            cuts: false,
            zero_ahead: false,
            lease_ms: 0,
            ..Self::new(seed)
        }
    }

    /// A run as it was before blocks of one node of three were damaged: for seeds that were found then.
    #[must_use]
    pub fn whole(seed: u64) -> Self {
        Self {
            block_damage: false,
            clones: false,
            ..Self::asking(seed)
        }
    }

    /// A run as it was before there were extras: for seeds that were found then.
    #[must_use]
    pub fn plain(seed: u64) -> Self {
        Self {
            extras: false,
            ..Self::asking(seed)
        }
    }
}

/// How often each thing is done to the world, as weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weights {
    /// Power cut of a node.
    pub power_cut: u64,
    /// Kill of a node's process.
    pub kill: u64,
    /// Orderly stop and start.
    pub stop: u64,
    /// A client goes away without a word.
    pub disconnect: u64,
    /// A node is cut off from the others, or one direction is.
    pub partition: u64,
    /// An operator's request.
    pub admin: u64,
    /// A stretch of failing disk operations.
    pub disk_errors: u64,
    /// Media damage.
    pub damage: u64,
    /// Damage to a header of the log of one node of three.
    pub log_damage: u64,
    /// Damage to blocks of one node of three.
    pub block_damage: u64,
    /// A process gets no processor for a while; what happens meanwhile comes to it afterwards.
    pub stall: u64,
    /// A stretch in which a disk is much slower.
    pub slow_disk: u64,
    /// Snapshots are taken, deleted, compared, gone back to.
    pub snapshots: u64,
    /// A scrub of a volume or of a store begins.
    pub scrub: u64,
}

/// A world to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Configuration of every engine.
    pub engine: EngineConfig,
    /// Volumes at the start.
    pub volumes: usize,
    /// Most blocks of a volume.
    pub blocks_max: u64,
    /// Clients per volume.
    pub clients: usize,
    /// Requests a client has on their way.
    pub depth: usize,
    /// Blocks of the largest request.
    pub request_blocks_max: u64,
    /// How blocks are cut.
    pub grid: Grid,
    /// Per mille of requests that are no whole blocks.
    pub odd: u64,
    /// Per mille of clients on TCP.
    pub tcp: u64,
    /// Mean pause of a client between requests, in nanoseconds.
    pub think_ns: u64,
    /// Usual latency of a disk operation, in nanoseconds.
    pub disk_ns: u64,
    /// Usual latency of a message, in nanoseconds.
    pub net_ns: u64,
    /// Per mille of peer messages lost.
    pub net_loss: u64,
    /// Per mille of peer messages delivered twice.
    pub net_duplicates: u64,
    /// Mean time between faults, in nanoseconds.
    pub fault_ns: u64,
    /// What is done.
    pub weights: Weights,
    /// How operations fail in a stretch of failing ones.
    pub disk_faults: DiskFaults,
    /// The volumes do not fit the store.
    pub overfull: bool,
    /// Among what damage does is a page that cannot be read.
    pub bad_pages: bool,
    /// Volumes of one copy have rewind windows of so many seconds.
    pub rewind_seconds: Option<u64>,
    /// Per mille of new volumes that begin as a snapshot of another one.
    pub clones: u64,
    /// Places for volumes of three that begin as clones.
    pub late: usize,
    /// Volumes of three copies go back to snapshots.
    pub three_go_back: bool,
    /// Per mille of new volumes that begin as another one was at a moment of its past.
    pub past_clones: u64,
    /// Blocks of a volume of three copies at first; an operator grows it.
    pub blocks_first: u64,
    /// Per mille of changes that are followed at once by requests that contradict them.
    pub contradictions: u64,
    /// Per mille of new volumes that are encrypted; 0 when nodes keep no keys.
    pub encrypted: u64,
    /// Operators have little else to do than to give volumes other data keys.
    pub rekeys: bool,
    /// Volumes of three get other data keys.
    pub keys_of_three: bool,
    /// Volumes of several copies change hands.
    pub holders: bool,
    /// Cuts are taken through several volumes.
    pub cuts: bool,
    /// What the provider of keys does.
    pub key_faults: KeyFaults,
    /// Run options.
    pub options: Options,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let mut rng = SimRng::new(options.seed, 1);
        let r = &mut rng;
        let nodes = options.nodes.unwrap_or(if r.chance(350) { 3 } else { 1 });
        let overfull = nodes == 1 && (r.chance(120) || options.full_stores);
        let damage = nodes == 1 && !overfull && r.chance(120);
        let volumes = usize::try_from(r.range(1, 3)).unwrap_or(1);
        let segment_bytes = r.pick(&[128 << 10, 256 << 10, 256 << 10, 512 << 10]);
        let segments = if overfull {
            r.range(14, 24)
        } else {
            r.range(24, 128)
        };
        let mut engine = engine(r, segment_bytes, segments, options.sabotage);
        engine.zero_ahead = options.zero_ahead;
        engine.ahead_idle_time = engine.idle_time;
        if nodes > 1 {
            engine.retained_entries_max = r.pick(&[1024, 4096]);
            if options.seed.is_multiple_of(3) {
                // Who is absent for a while catches up by versions.
                engine.retained_entries_max = [8, 32, 128][to_usize(options.seed / 3 % 3)];
            }
        }
        let slots = segment_bytes / 4096;
        let inner = (0..r.range(0, 3)).map(|_| r.below(4096)).collect();
        let fits = segments * slots / 3 / volumes as u64;
        let blocks_max = if overfull {
            segments * slots
        } else {
            fits.min(r.pick(&[16, 64, 64, 256, 256, 1024]))
        };
        let faulty_disk = !damage && r.chance(if nodes == 1 { 150 } else { 250 });
        let weight = |r: &mut SimRng, most: u64| if r.chance(300) { 0 } else { r.range(1, most) };
        let weights = Weights {
            power_cut: weight(r, 10),
            kill: weight(r, 8),
            stop: weight(r, 3),
            disconnect: weight(r, 6),
            partition: if nodes > 1 { weight(r, 12) } else { 0 },
            admin: weight(r, 6),
            disk_errors: if faulty_disk { r.range(1, 4) } else { 0 },
            damage: if damage { r.range(2, 6) } else { 0 },
            ..Weights::default()
        };
        let blocks_max = blocks_max.max(8);
        let mut plan = Self {
            seed: options.seed,
            nodes,
            engine,
            volumes,
            blocks_max,
            clients: usize::try_from(r.range(1, 3)).unwrap_or(1),
            depth: usize::try_from(r.pick(&[1, 4, 16])).unwrap_or(1),
            request_blocks_max: r.range(1, slots / 3),
            grid: Grid::new(inner),
            odd: r.pick(&[0, 200, 600]),
            tcp: r.pick(&[0, 300, 500, 1000]),
            think_ns: r.pick(&[5_000, 100_000, 2_000_000]),
            disk_ns: r.pick(&[20_000, 80_000, if damage { 50_000 } else { 1_000_000 }]),
            net_ns: r.pick(&[20_000, 200_000, 5_000_000]),
            net_loss: r.pick(&[0, 0, 10, 100]),
            net_duplicates: r.pick(&[0, 10, 100]),
            fault_ns: match (damage, nodes) {
                (true, _) => 20_000_000,
                (_, 1) => r.pick(&[3_000_000, 30_000_000, 300_000_000]),
                _ => r.pick(&[24_000_000, 240_000_000, 2_400_000_000]),
            },
            weights,
            disk_faults: disk_faults(r),
            overfull,
            bad_pages: false,
            rewind_seconds: None,
            clones: 0,
            late: 0,
            three_go_back: false,
            past_clones: 0,
            blocks_first: blocks_max,
            contradictions: 0,
            encrypted: 0,
            rekeys: false,
            keys_of_three: false,
            holders: false,
            cuts: false,
            key_faults: KeyFaults::default(),
            options,
        };
        if options.extras {
            plan.add_extras();
            plan.add_keys();
            plan.add_pieces();
        }
        if options.extras && options.block_damage && nodes == 3 {
            plan.add_block_damage();
        }
        if options.extras && options.clones && nodes == 3 {
            plan.add_clones();
        }
        if options.extras && options.holders && nodes > 1 {
            plan.holders = SimRng::new(options.seed, 9).chance(300);
        }
        if options.extras && options.cuts && nodes > 1 {
            plan.cuts = SimRng::new(options.seed, 12).chance(300);
        }
        if options.extras && options.keys_of_three && nodes > 1 && plan.encrypted > 0 {
            plan.keys_of_three = SimRng::new(options.seed, 8).chance(500);
        }
        if nodes > 3 {
            // Of a volume with one copy only what is answered late is kept for certain, and nothing else may fail.
            plan.tcp = 1000;
            plan.rekeys = false;
            (plan.weights.log_damage, plan.weights.disk_errors) = (0, 0);
            plan.weights.snapshots = plan.weights.snapshots.min(10);
        }
        plan
    }

    /// Draws what later versions of the world do besides. It has a generator of its own, so that
    /// the rest of a seed's plan stays what it was.
    fn add_extras(&mut self) {
        let mut rng = SimRng::new(self.seed, 3);
        let r = &mut rng;
        let single = self.nodes == 1;
        let weight = |r: &mut SimRng, per_mille, most: u64| match r.chance(per_mille) {
            true => r.range(1, most),
            false => 0,
        };
        self.weights.stall = weight(r, 300, 5);
        self.weights.slow_disk = weight(r, 300, 5);
        let log_damage = weight(r, 250, 4);
        if !single && self.weights.disk_errors == 0 {
            self.weights.log_damage = log_damage;
        }
        self.bad_pages = r.chance(500);
        self.contradictions = r.pick(&[0, 300]);
        let first = r.range(8, self.blocks_max);
        if !single && r.chance(500) {
            self.blocks_first = first;
        }
        if r.chance(150) && !self.overfull {
            let fits = self.volumes as u64 * self.blocks_max;
            self.volumes = usize::try_from(r.range(4, 9)).unwrap_or(4);
            self.blocks_max = (fits / self.volumes as u64).max(8);
            self.blocks_first = self.blocks_first.min(self.blocks_max);
        }
        if r.chance(150) {
            self.depth = 64;
        }
        let snapshots = weight(r, 500, 40);
        // What is lost with accepted damage, or does not fit, is another matter.
        if !self.damages() && !self.overfull {
            self.weights.snapshots = snapshots;
        }
        let rewind_seconds = r.pick(&[1, 2, 5, 3600]);
        if single && r.chance(300) {
            self.rewind_seconds = Some(rewind_seconds);
        }
        let clones = r.pick(&[500, 950]);
        if single && self.weights.snapshots > 0 && r.chance(600) {
            self.clones = clones;
            self.volumes = self.volumes.max(2);
        }
        self.weights.scrub = weight(r, 400, 8);
        self.three_go_back = r.chance(500);
        let past = r.pick(&[300, 700]);
        // Points are late where a process is held up, and go where there is no room.
        let on_time = self.weights.stall == 0 && !self.overfull;
        if self.clones > 0 && self.rewind_seconds.is_some() && on_time {
            self.past_clones = past;
            // Points are a second apart.
            self.think_ns = 20_000_000;
            self.fault_ns = 100_000_000;
            self.weights.snapshots = self.weights.snapshots.max(20);
            // A crash ends what is known of the past.
            for weight in [&mut self.weights.power_cut, &mut self.weights.kill] {
                *weight = (*weight).min(1);
            }
        }
    }

    /// Draws what is encrypted, with a generator of its own for the same reason.
    fn add_keys(&mut self) {
        let mut rng = SimRng::new(self.seed, 4);
        let r = &mut rng;
        if !r.chance(400) {
            return;
        }
        self.encrypted = r.pick(&[400, 1000]);
        self.key_faults = KeyFaults {
            delay_ns: r.pick(&[10_000, 1_000_000, 20_000_000]),
            fails: r.pick(&[0, 0, 100, 500]),
            away_ns: r.pick(&[0, 1_000_000, 100_000_000]),
        };
        self.rekeys = r.chance(300);
        if self.rekeys {
            self.weights.admin = self.weights.admin.max(20);
        }
    }

    /// Draws from how many pieces on survivors get new addresses, likewise: worlds never have as many as a store of
    /// production may.
    fn add_pieces(&mut self) {
        let mut rng = SimRng::new(self.seed, 5);
        self.engine.pieces_least = rng.pick(&[0, 4, 4096, 4096]);
    }

    /// Where disks fail, too, it may be that nobody can give a block.
    fn add_block_damage(&mut self) {
        let mut rng = SimRng::new(self.seed, 6);
        if rng.chance(350) && self.weights.disk_errors == 0 {
            self.weights.block_damage = rng.range(4, 40);
        }
    }

    /// Draws whether volumes of three are cloned.
    fn add_clones(&mut self) {
        let mut rng = SimRng::new(self.seed, 7);
        // A replica whose log was damaged waits for a majority of the others, and a clone may have one of them only.
        let wanted = rng.chance(500) && !self.spoils() && !self.overfull;
        let fits = self.volumes as u64 * self.blocks_max;
        if !wanted || fits < 16 {
            return;
        }
        self.late = to_usize(rng.range(1, 3));
        if self.volumes == 1 {
            (self.volumes, self.blocks_max) = (2, fits / 2);
            self.blocks_first = self.blocks_first.min(self.blocks_max);
        }
        self.late = self.late.min(self.volumes - 1);
        self.weights.snapshots = self.weights.snapshots.max(rng.range(15, 60));
    }

    /// The places of volumes that begin as clones.
    pub fn late_slots(&self) -> std::ops::Range<usize> {
        self.volumes - self.late..self.volumes
    }

    /// The nodes that have the first copies of a volume.
    #[must_use]
    pub fn first_hosts(&self, volume: usize) -> Vec<usize> {
        if self.nodes <= 3 {
            return (0..self.nodes).collect();
        }
        let first = to_usize(self.seed / 3 % 7) + volume;
        let copies = if self.seed.is_multiple_of(3) { 1 } else { 3 };
        (0..copies).map(|i| (first + i) % self.nodes).collect()
    }

    /// Where a volume has one copy, what was read of it may not be durable yet.
    #[must_use]
    pub fn keeps_power(&self) -> bool {
        self.nodes > 3 && self.seed.is_multiple_of(3)
    }

    /// Bytes of each disk.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.engine.device_bytes
    }

    /// Acknowledged data may turn out damaged.
    #[must_use]
    pub fn damages(&self) -> bool {
        self.weights.damage > 0
    }

    /// What is on disks is damaged, if only where another node has it, too.
    #[must_use]
    pub fn spoils(&self) -> bool {
        self.damages() || self.weights.log_damage > 0 || self.weights.block_damage > 0
    }
}

fn engine(r: &mut SimRng, segment_bytes: u64, segments: u64, sabotage: Sabotage) -> EngineConfig {
    EngineConfig {
        device_bytes: esker_engine::format::SEGMENTS_OFFSET + segments * segment_bytes,
        format_if_blank: true,
        segment_bytes,
        cache_bytes: usize::try_from(r.pick(&[16 << 10, 64 << 10, 1 << 20])).unwrap_or(0),
        checkpoint_bytes: segment_bytes * r.range(1, 6),
        checkpoint_stretch: r.range(1, 5),
        checkpoint_records: r.pick(&[8, 64, 1024]),
        delta_extents_max: usize::try_from(r.pick(&[16, 128, 4096])).unwrap_or(0),
        batches_in_flight_max: usize::try_from(r.range(1, 4)).unwrap_or(1),
        batch_least: usize::try_from(r.pick(&[0, 2, 12])).unwrap_or(0),
        unsynced_bytes_max: r.pick(&[64 << 10, 1 << 20]),
        unsynced_time_max: Duration::from_micros(r.pick(&[200, 5_000, 50_000])),
        idle_time: Duration::from_micros(r.pick(&[100, 2_000, 20_000])),
        retained_entries_max: r.pick(&[64, 512, 4096]),
        // Tables of many pages, but for stores of which they would take too much.
        table_content_max: match segment_bytes / 4096 {
            _ if segments < 24 => r.pick(&[1024, CONTENT_MAX]),
            0..64 => r.pick(&[512, CONTENT_MAX]),
            64..128 => r.pick(&[192, 512, CONTENT_MAX]),
            _ => r.pick(&[64, 192, CONTENT_MAX]),
        },
        table_rewrite_min: r.pick(&[0, 1, 4, 64]),
        table_audit: true,
        sabotage,
        ..EngineConfig::default()
    }
}

fn disk_faults(r: &mut SimRng) -> DiskFaults {
    DiskFaults {
        read_error: r.pick(&[0, 20, 200]),
        write_error: r.pick(&[0, 0, 5, 50]),
        no_space: r.pick(&[0, 0, 0, 20]),
        sync_error: r.pick(&[0, 0, 10, 100]),
    }
}
