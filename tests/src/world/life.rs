//! How processes end and begin again: crashes, stops, and what is checked when they do.

use super::client::Mood;
use super::host::State;
use super::world::{Crash, Ev, Purpose, World};
use esker_engine::verify;
use esker_node::admin::AdminRequest;
use esker_node::ReadyReport;

impl World {
    /// Ends a process, and with a power cut what its disk had not made durable.
    pub(crate) fn crash(&mut self, host: usize, crash: Crash) {
        let crash = if self.plan.keeps_power() {
            Crash::Kill
        } else {
            crash
        };
        if self.hosts[host].node.is_none() {
            return;
        }
        // After a failed sync the disk shows what it may not hold: a restart must not build on it.
        let power = crash == Crash::Power || self.hosts[host].sync_failed;
        let opening = self.hosts[host].state == State::Opening;
        self.log(|| format!("node {host} ends: {crash:?}, opening: {opening}"));
        self.stats.fault(match (power, opening) {
            (true, false) => "power cut",
            (true, true) => "power cut during recovery",
            (false, false) => "process kill",
            (false, true) => "process kill during recovery",
        });
        self.last_words(host);
        let alone = self.alone_on(host);
        self.end_process(host);
        self.step += 1;
        let step = self.step;
        for slot in alone {
            if let Some(volume) = self.slots[slot].volume.as_mut() {
                volume.oracle.killed_alone(step);
            }
        }
        for volume in self.slots.iter_mut().filter_map(|s| s.volume.as_mut()) {
            match power {
                true => volume.oracle.power_cut(step),
                false => volume.oracle.killed(step),
            }
        }
        if power {
            self.hosts[host].disk.power_cut();
            self.hosts[host].sync_failed = false;
        } else {
            self.hosts[host].disk.kill();
        }
        if self.rng.chance(250) {
            self.verify_image(host);
        }
        let delay = self.rng.pick(&[10_000, 1_000_000, 50_000_000]) * self.outage_factor();
        self.at(delay, Ev::Start(host));
    }

    /// Groups of three are away for longer, sometimes much longer.
    fn outage_factor(&mut self) -> u64 {
        match self.plan.nodes {
            1 => 1,
            _ => self.rng.pick(&[1, 20, 100]),
        }
    }

    /// Some of what the node had sent reaches the clients although the node is no more.
    fn last_words(&mut self, host: usize) {
        let ids: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.host == host && c.client.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            while self.rng.chance(500) {
                let Some(conn) = self.conns.get_mut(&id) else {
                    break;
                };
                let (Some(bufs), Some(client)) = (conn.to_client.pop_front(), conn.client) else {
                    break;
                };
                self.client_hears(client, &bufs);
            }
        }
    }

    /// The process and everything attached to it is gone.
    fn end_process(&mut self, host: usize) {
        self.snapshots_interrupted();
        self.rollbacks_interrupted(host);
        self.clones_interrupted(host);
        self.past_is_lost();
        self.hosts[host].note_probes();
        if let Some(node) = &self.hosts[host].node {
            self.stats
                .add_work("blocks repaired", node.engine().repaired_blocks());
            self.stats.add_work("reads by lease", node.reads_by_lease());
            self.stats
                .add_work("bytes zeroed ahead", node.engine().zeroed_bytes());
            let caught_up = node.catch_ups();
            self.stats
                .add_work("replicas that caught up", caught_up.ended);
            self.stats
                .add_work("blocks fetched by replicas", caught_up.blocks);
            self.stats
                .add_work("catch-ups interrupted", caught_up.running);
        }
        let h = &mut self.hosts[host];
        h.node = None;
        h.state = State::Down;
        h.incarnation += 1;
        h.fuse = None;
        let ids: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.host == host)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(client) = self.conns.remove(&id).and_then(|c| c.client) {
                if self.clients[client].mood != Mood::Gone {
                    self.detach(client);
                }
            }
        }
        self.admin.retain(|_, (at, _)| *at != host);
    }

    pub(crate) fn host_ready(&mut self, host: usize, report: &ReadyReport) {
        self.log(|| format!("node {host} is ready: {report:?}"));
        self.trace.text(&format!("{report:?}"));
        let h = &mut self.hosts[host];
        if h.state == State::Opening {
            h.state = State::Serving;
        }
        if report.formatted && std::mem::replace(&mut h.formatted, true) {
            self.violate(format!("node {host} formatted a store that had data"));
        }
        self.hosts[host].formatted = true;
        if report.damaged_blocks > 0 || report.suspended_volumes > 0 {
            self.stats.did("openings that found damage");
            if !self.plan.spoils() {
                self.violate(format!(
                    "recovery found damage where there is none: {report:?}"
                ));
            }
        }
        let step = self.step;
        if self.plan.nodes == 1 {
            for volume in self.slots.iter_mut().filter_map(|s| s.volume.as_mut()) {
                volume.oracle.recovered(step);
            }
        }
        self.ask_operator(host, AdminRequest::VolumeList, Purpose::Reconcile);
    }

    pub(crate) fn host_fenced(&mut self, host: usize, message: &str) {
        self.log(|| format!("node {host} is fenced: {message}"));
        self.stats.did("fences");
        self.hosts[host].fenced = true;
        self.hosts[host].fenced_at = self.now;
        if self.plan.weights.disk_errors == 0 && !self.plan.damages() {
            return self.violate(format!("node {host} fenced itself: {message}"));
        }
        // Reads go on for a while, then an operator restarts it.
        let longer = self.plan.options.extras && self.plan.nodes > 1;
        let usual = if longer { 2_000_000_000 } else { 100_000_000 };
        let delay = self.latency(usual);
        self.at(delay, Ev::Restart(host));
    }

    pub(crate) fn open_failed(&mut self, host: usize, message: &str) {
        self.log(|| format!("node {host} does not open: {message}"));
        self.stats.did("openings that failed");
        self.end_process(host);
        let faulty = self.plan.weights.disk_errors > 0 || self.plan.damages();
        // Where the log ends nobody can tell from an unreadable page whether a record begins there: the operator copies the device.
        let may_skip = self.plan.weights.block_damage > 0 && message.contains("reading the store");
        if may_skip && self.hosts[host].disk.skip_bad_pages() > 0 {
            self.stats.did("devices copied without what cannot be read");
        } else if !faulty {
            return self.violate(format!("node {host} does not open: {message}"));
        }
        self.hosts[host].disk.power_cut();
        self.hosts[host].sync_failed = false;
        let step = self.step;
        if self.plan.nodes == 1 {
            for volume in self.slots.iter_mut().filter_map(|s| s.volume.as_mut()) {
                volume.oracle.power_cut(step);
            }
        }
        if self.is_calm() && self.plan.damages() {
            self.stats.did("stores lost to damage");
            self.give_up();
        }
        self.at(20_000_000, Ev::Start(host));
    }

    pub(crate) fn host_stopped(&mut self, host: usize) {
        self.log(|| format!("node {host} has stopped"));
        let fenced = self.hosts[host].fenced;
        let was_open = self.hosts[host].state == State::Stopping;
        self.end_process(host);
        self.step += 1;
        let step = self.step;
        // A stop is no crash: what was answered, early or not, is durable.
        for volume in self.slots.iter_mut().filter_map(|s| s.volume.as_mut()) {
            volume.oracle.killed(step);
        }
        // Reads may still be on their way.
        self.hosts[host].disk.kill();
        if !fenced && was_open {
            self.verify_image(host);
            if self.rng.chance(500) {
                self.hosts[host].disk.power_cut();
            }
        } else {
            self.power_off(host);
        }
        if self.is_stopping() {
            return;
        }
        let delay = self.latency(5_000_000);
        self.at(delay, Ev::Start(host));
    }

    fn power_off(&mut self, host: usize) {
        self.hosts[host].disk.power_cut();
        self.hosts[host].sync_failed = false;
        let step = self.step;
        if self.plan.nodes == 1 {
            for volume in self.slots.iter_mut().filter_map(|s| s.volume.as_mut()) {
                volume.oracle.power_cut(step);
            }
        }
    }

    /// Counts failed syncs of a disk: what it shows is not what it holds from then on.
    pub(crate) fn note_disk_failures(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if h.disk.counts.sync_errors > h.syncs_failed_seen {
            h.syncs_failed_seen = h.disk.counts.sync_errors;
            h.sync_failed = true;
        }
    }

    /// The offline check of what is on the disk.
    pub(crate) fn verify_image(&mut self, host: usize) {
        if !self.hosts[host].formatted || self.plan.spoils() {
            return;
        }
        self.stats.did("offline checks");
        let mut image = self.hosts[host].disk.visible().clone();
        match verify::verify(&mut image, &mut |_| {}) {
            Ok(report) if report.problem_count == 0 => {}
            Ok(report) => self.violate(format!(
                "the offline check of node {host} finds {} problems: {:?}",
                report.problem_count, report.problems
            )),
            Err(error) => self.violate(format!("the offline check of node {host}: {error}")),
        }
    }
}
