//! What is done to the world: crashes, partitions, failing disks, damage, departures.

use super::client::Mood;
use super::host::State;
use super::world::{Crash, Ev, World};
use esker_base::BLOCK_SIZE_U64;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_node::Event;

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
            7 => self.damage(host),
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
        if self.hosts[host].state != State::Serving || self.hosts[host].fenced {
            return;
        }
        self.log(|| format!("node {host} is asked to stop"));
        self.stats.did("orderly stops");
        self.hosts[host].state = State::Stopping;
        self.step_node(host, Event::Stop);
    }

    /// An operator restarts a fenced node.
    pub(crate) fn restart(&mut self, host: usize) {
        if self.hosts[host].fenced && self.hosts[host].node.is_some() {
            self.crash(host, Crash::Power);
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
        self.quiet_damage = true;
        self.hush_until = self.now + HUSH_NS;
    }

    /// The hush is over: everything that was answered is durable and known to be.
    pub(crate) fn damage_now(&mut self, host: usize) {
        self.quiet_damage = false;
        if self.hosts[host].state != State::Serving || self.hosts[host].fenced {
            return;
        }
        let first = SEGMENTS_OFFSET / BLOCK_SIZE_U64;
        let at_log = self.rng.chance(600);
        let page = match self.records[host].last().copied().filter(|_| at_log) {
            // The last one is the closing record: whoever damages it takes what it says away.
            Some(_) if self.records[host].len() > 1 => {
                let n = self.records[host].len() - 1;
                let (offset, bytes) = self.records[host][self.rng.index(n)];
                (offset + self.rng.below(bytes)) / BLOCK_SIZE_U64
            }
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
        let (how, bit) = (self.rng.below(3), self.rng.index(4096 * 8));
        let from = first + self.rng.below(256);
        self.log(|| format!("damage {how} to page {page} of node {host}"));
        self.stats.fault(match how {
            0 => "damage: bit flipped",
            1 => "damage: page lost",
            _ => "damage: misdirected write",
        });
        self.hosts[host].disk.damage(|image| match how {
            0 => image.flip_bit(page, bit),
            1 => image.zero_page(page),
            _ => image.misdirect(from, page),
        });
        if self.rng.chance(700) {
            self.crash(host, Crash::Kill);
        }
    }
}
