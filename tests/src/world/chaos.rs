//! What is done to the world: crashes, partitions, failing disks, damage, departures.

use super::client::Mood;
use super::host::State;
use super::world::{Crash, Ev, World};
use esker_base::BLOCK_SIZE_U64;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_node::Event;

/// The node of three whose log is damaged: the other two have what it loses.
pub(crate) const DAMAGED_HOST: usize = 0;
/// Longer than a store takes to fall idle, to write its closing record and to sync it.
const HUSH_NS: u64 = 150_000_000;

impl World {
    /// The next fault by chance, and the one after it.
    pub(crate) fn fault(&mut self) {
        if self.is_calm() {
            return;
        }
        let next = self.latency(self.plan.fault_ns);
        self.at(next, Ev::Fault);
        let w = self.plan.weights;
        let host = self.rng.index(self.hosts.len());
        let all = [
            w.power_cut,
            w.kill,
            w.stop,
            w.disconnect,
            w.partition,
            w.admin,
            w.disk_errors,
            w.damage,
            w.log_damage,
            w.stall,
            w.slow_disk,
            w.snapshots,
            w.scrub,
            w.block_damage,
        ];
        let mut at = self.rng.below(all.iter().sum::<u64>().max(1));
        let mut kind = 0;
        while kind < all.len() && at >= all[kind] {
            at -= all[kind];
            kind += 1;
        }
        match kind {
            0 => self.crash_soon(host, Crash::Power),
            1 => self.crash_soon(host, Crash::Kill),
            2 => self.stop(host),
            3 => self.someone_leaves(),
            4 => self.partition(),
            5 => self.operate(),
            6 => self.disk_fails(host),
            7 | 8 => self.damage(if self.plan.nodes > 1 {
                DAMAGED_HOST
            } else {
                host
            }),
            9 => self.stall(host),
            10 => self.disk_slows(host),
            11 => self.play_with_snapshots(),
            12 => self.scrub(host),
            13 => self.damage_block(DAMAGED_HOST),
            _ => {}
        }
    }

    fn crash_soon(&mut self, host: usize, crash: Crash) {
        if self.hosts[host].node.is_none() {
            return;
        }
        if self.plan.nodes == 3 && self.rng.chance(100) {
            for other in 0..self.hosts.len() {
                self.crash(other, Crash::Power);
            }
            return self.stats.fault("power cut of all nodes");
        }
        if self.rng.chance(500) {
            self.stats.fault("crash between two effects");
            self.hosts[host].fuse = Some((self.rng.below(24), crash));
        } else {
            self.crash(host, crash);
        }
        // Another one soon, so that some come while the first is being recovered from.
        if self.rng.chance(300) {
            let soon = self.rng.below(self.plan.disk_ns * 40) + 1;
            self.at(soon, Ev::Crash(host, crash));
        }
    }

    fn stop(&mut self, host: usize) {
        let any = self.plan.options.extras && !self.is_held_up(host);
        let h = &self.hosts[host];
        match h.state {
            State::Opening if any => self.stats.did("stops of a node that opens"),
            State::Serving if h.fenced && any => self.stats.did("stops of a fenced node"),
            State::Serving if self.may_be_told(host) => self.stats.did("orderly stops"),
            _ => return,
        }
        self.log(|| format!("node {host} is asked to stop"));
        if self.hosts[host].state == State::Serving {
            self.hosts[host].state = State::Stopping;
        }
        self.step_node(host, Event::Stop);
    }

    /// An operator restarts a fenced node.
    pub(crate) fn restart(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let asked = std::mem::take(&mut h.asks_for_restart);
        if h.fenced && h.node.is_some() {
            self.crash(host, Crash::Power);
        } else if asked && h.state == State::Serving {
            self.crash(host, Crash::Kill);
        }
    }

    fn someone_leaves(&mut self) {
        let client = self.rng.index(self.clients.len());
        if matches!(self.clients[client].mood, Mood::Attached | Mood::Greeting) {
            self.stats.fault("client gone without a word");
            self.client_leaves(client);
        }
    }

    fn partition(&mut self) {
        let n = self.hosts.len();
        self.cut.clear();
        let lonely = self.rng.index(n);
        let (mute, deaf) = match self.rng.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        for other in (0..n).filter(|o| *o != lonely) {
            if mute {
                self.cut.insert((lonely, other));
            }
            if deaf {
                self.cut.insert((other, lonely));
            }
        }
        self.stats.fault("partition");
        self.log(|| format!("node {lonely} is cut off (mute {mute}, deaf {deaf})"));
        let heal = self.latency(self.plan.fault_ns);
        self.at(heal, Ev::NetHeals);
    }

    /// A process is held up: a machine that swaps, a guest that is paused. Its clock goes on.
    fn stall(&mut self, host: usize) {
        if self.hosts[host].node.is_none() {
            return;
        }
        let usual = match self.plan.nodes {
            1 => self.rng.pick(&[1_000_000, 50_000_000]),
            _ => self.rng.pick(&[20_000_000, 500_000_000, 3_000_000_000]),
        };
        let stretch = usual / 2 + self.rng.below(usual);
        self.log(|| format!("node {host} is held up for {stretch} ns"));
        self.stats.fault("process held up");
        self.hosts[host].stalled_until = self.now + stretch;
        if self.plan.options.lease_ms > 0 && self.plan.nodes > 1 && self.rng.chance(500) {
            self.wakes_alone(host, stretch);
        }
    }

    /// Nothing of what the others did meanwhile reaches a process that was held up, for a little longer: what its clients
    /// asked for comes first.
    fn wakes_alone(&mut self, host: usize, stretch: u64) {
        self.cut.clear();
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.cut.extend([(host, other), (other, host)]);
        }
        self.stats.fault("process held up and cut off");
        let longer = self.latency(100_000_000);
        self.at(stretch + longer, Ev::NetHeals);
    }

    fn disk_slows(&mut self, host: usize) {
        let factor = self.rng.pick(&[10, 100, 500]);
        let stretch = self.latency(self.plan.fault_ns);
        self.log(|| format!("the disk of node {host} is {factor} times slower for {stretch} ns"));
        self.stats.fault("stretch of a slow disk");
        self.hosts[host].slow_disk = (self.now + stretch, factor);
    }

    fn disk_fails(&mut self, host: usize) {
        self.stats.fault("stretch of disk errors");
        self.hosts[host].disk.faults = self.plan.disk_faults;
        let stretch = self.latency(self.plan.fault_ns / 2);
        self.hosts[host].faulty_until = self.now + stretch;
        self.at(stretch, Ev::DiskHeals(host));
    }

    /// Damage to what is durable: clients pause until the log has closed, then one record or page
    /// is changed, and the process is killed or goes on with it.
    fn damage(&mut self, host: usize) {
        if self.hosts[host].state != State::Serving || self.quiet_damage {
            return;
        }
        self.log(|| format!("hush before damage to node {host}"));
        self.quiet_damage = true;
        self.hush_until = self.now + HUSH_NS;
    }

    /// How many of a node's records are known to be durable by a record that is durable itself. In
    /// a group of three the log is never quite silent, and damage to a record that nothing durable
    /// speaks of looks like a torn tail.
    fn superseded_records(&self, host: usize) -> usize {
        let records = &self.records[host];
        let durable = records.iter().map(|r| r.durable).max().unwrap_or(0);
        let witnesses = records.iter().filter(|r| r.seq <= durable);
        let superseded = witnesses.map(|r| r.durable).max().unwrap_or(0);
        records.partition_point(|r| r.seq <= superseded)
    }

    /// The hush is over: everything that was answered is durable and known to be.
    pub(crate) fn damage_now(&mut self, host: usize) {
        self.quiet_damage = false;
        if !self.may_be_told(host) {
            return;
        }
        let first = SEGMENTS_OFFSET / BLOCK_SIZE_U64;
        let replicated = self.plan.nodes > 1;
        let at_log = replicated || self.rng.chance(600);
        // The last one is the closing record: whoever damages it takes what it says away.
        let damageable = match replicated {
            true => self.superseded_records(host),
            false => self.records[host].len().saturating_sub(1),
        };
        let page = match damageable {
            n if n > 0 && at_log => {
                let record = self.records[host][self.rng.index(n)];
                // Of three, only headers: blocks have a fault of their own.
                let inside = if replicated {
                    self.records[host].retain(|r| r.seq != record.seq);
                    0
                } else {
                    self.rng.below(record.bytes)
                };
                (record.offset + inside) / BLOCK_SIZE_U64
            }
            _ if replicated => return,
            _ => {
                let pages: Vec<u64> = self.hosts[host]
                    .disk
                    .visible()
                    .pages()
                    .map(|(n, _)| n)
                    .filter(|n| *n >= first)
                    .collect();
                if pages.is_empty() {
                    return;
                }
                pages[self.rng.index(pages.len())]
            }
        };
        let kinds = if self.plan.bad_pages && !replicated {
            4
        } else {
            3
        };
        let (how, bit) = (self.rng.below(kinds), self.rng.index(4096 * 8));
        let from = first + self.rng.below(256);
        self.log(|| format!("damage {how} to page {page} of node {host}"));
        self.stats.fault(match how {
            0 => "damage: bit flipped",
            1 => "damage: page lost",
            2 => "damage: misdirected write",
            _ => "damage: page unreadable",
        });
        match how {
            3 => self.hosts[host].disk.spoil(page),
            _ => self.hosts[host].disk.damage(|image| match how {
                0 => image.flip_bit(page, bit),
                1 => image.zero_page(page),
                _ => image.misdirect(from, page),
            }),
        }
        if self.rng.chance(700) {
            self.crash(host, Crash::Kill);
        }
    }

    /// A block of one of three is damaged, while everything goes on. The log says that it was durable, so nobody
    /// takes it for a torn tail.
    fn damage_block(&mut self, host: usize) {
        if !self.may_be_told(host) {
            return;
        }
        let durable = self.superseded_records(host);
        let records = &self.records[host][..durable];
        let with_blocks = records.iter().filter(|r| r.bytes > r.header_bytes);
        let with_blocks: Vec<_> = with_blocks.copied().collect();
        if with_blocks.is_empty() {
            return;
        }
        // Where a header of the log is gone, too, what cannot be read may be the header of a whole record: nobody opens that.
        let may_spoil = self.plan.bad_pages && self.plan.weights.log_damage == 0;
        for _ in 0..=self.rng.below(8) {
            let record = with_blocks[self.rng.index(with_blocks.len())];
            let inside = record.header_bytes + self.rng.below(record.bytes - record.header_bytes);
            let page = (record.offset + inside) / BLOCK_SIZE_U64;
            let kinds = if may_spoil { 4 } else { 3 };
            let (how, bit) = (self.rng.below(kinds), self.rng.index(4096 * 8));
            self.log(|| format!("damage {how} to block {page} of node {host}"));
            self.stats.fault("damage: block of one of three");
            match how {
                3 => self.hosts[host].disk.spoil(page),
                _ => self.hosts[host].disk.damage(|image| match how {
                    0 => image.flip_bit(page, bit),
                    1 => image.zero_page(page),
                    _ => image.misdirect(SEGMENTS_OFFSET / BLOCK_SIZE_U64, page),
                }),
            }
        }
        if self.rng.chance(300) {
            self.crash(host, Crash::Kill);
        }
    }
}
