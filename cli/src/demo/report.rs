//! What a demo measured.

use super::ledger::{percentile, Seen};
use crate::table::{Align, Table};
use esker_api::size;
use serde::Serialize;
use std::path::PathBuf;

/// A demo's result, as JSON shows it. A demo in which anything was lost has none: it fails.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Nodes, all on this machine.
    pub nodes: usize,
    /// Copies of the volume.
    pub replicas: usize,
    /// Processors that they and the client share.
    pub cpus: usize,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Its blocks are sealed.
    pub encrypted: bool,
    /// Every block written once, in large requests.
    pub fill: Fill,
    /// Single blocks as fast as answers come.
    pub full_speed: FullSpeed,
    /// The snapshot, taken under load.
    pub snapshot: SnapshotTaken,
    /// The kill and what clients saw of it.
    pub kill: Kill,
    /// What the killed node got when it was back; null with one node.
    pub catch_up: Option<CatchUp>,
    /// Every block of the volume and of the snapshot, read at each node that has a copy.
    pub verified: Vec<Verified>,
    /// Writes that were acknowledged, of all parts.
    pub writes_acknowledged: u64,
    /// Reads of the load that were compared with what had been acknowledged.
    pub reads_compared: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Acknowledged blocks that could not be read back.
    pub blocks_lost: u64,
    /// How long all of it took.
    pub seconds: f64,
    /// Where the cluster is that was left running; null when it is gone.
    pub folder: Option<PathBuf>,
}

/// Filling the volume.
#[derive(Debug, Default, Serialize)]
pub struct Fill {
    /// How long it took.
    pub seconds: f64,
    /// Bytes a second, as the client counts them.
    pub bytes_per_second: u64,
}

/// Random requests of 4 KiB at a depth.
#[derive(Debug, Default, Serialize)]
pub struct FullSpeed {
    /// On their way at a time.
    pub depth: usize,
    /// For how long.
    pub seconds: f64,
    /// Writes a second.
    pub write_iops: u64,
    /// Reads a second.
    pub read_iops: u64,
    /// Half of the writes took at most this long.
    pub write_p50_us: u32,
    /// Of a hundred writes 99 took at most this long.
    pub write_p99_us: u32,
}

impl FullSpeed {
    /// From what a client saw.
    #[must_use]
    pub fn of(seen: &Seen, depth: usize) -> Self {
        let seconds = seen.elapsed().as_secs_f64();
        Self {
            depth,
            seconds,
            write_iops: per_second(seen.writes_us.len() as u64, seconds),
            read_iops: per_second(seen.reads_us.len() as u64, seconds),
            write_p50_us: percentile(&seen.writes_us, 50),
            write_p99_us: percentile(&seen.writes_us, 99),
        }
    }
}

/// A snapshot.
#[derive(Debug, Default, Serialize)]
pub struct SnapshotTaken {
    /// Its name.
    pub name: String,
    /// From asking for it until it was durable.
    pub milliseconds: f64,
    /// Requests were answered meanwhile and until it had been read.
    pub requests_meanwhile: u64,
}

/// A node that was killed.
#[derive(Debug, Default, Serialize)]
pub struct Kill {
    /// Which.
    pub node: String,
    /// It led the volume.
    pub led: bool,
    /// Who led afterwards.
    pub next_leader: String,
    /// The longest that a request took, from before the kill until the node was back. With one node: from the kill
    /// until it answered again.
    pub longest_pause_ms: f64,
    /// Requests that were answered meanwhile.
    pub requests: u64,
    /// Those of them that were answered with an error.
    pub errors: u64,
}

/// What a node got that was away.
#[derive(Debug, Default, Serialize)]
pub struct CatchUp {
    /// How long it was away.
    pub away_seconds: f64,
    /// From its start until it had everything, while clients went on writing.
    pub seconds: f64,
    /// Blocks that were written from the kill until then, each once.
    pub changed_bytes: u64,
    /// What was written, each time.
    pub written_bytes: u64,
    /// What came over its links, with everything that links carry.
    pub moved_bytes: u64,
    /// Of that, blocks that came by versions and not from the log.
    pub fetched_bytes: u64,
}

/// A copy that was read.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// Its node.
    pub node: String,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks of the snapshot.
    pub snapshot_blocks: u64,
    /// What the node got from others meanwhile: it read its own copy.
    pub from_others_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// So many in so long.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rounded rate
pub fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds.max(0.001)).round() as u64
}

/// A percentage for people.
fn share(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

impl Report {
    /// The table at a demo's end.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new([("MEASURED", Align::Left), ("", Align::Left)]);
        let mut row = |what: &str, value: String| table.row([what.into(), value]);
        let speed = &self.full_speed;
        row(
            &format!("random 4 KiB, depth {}", speed.depth),
            format!(
                "{} writes/s and {} reads/s; writes: p50 {} µs, p99 {} µs",
                speed.write_iops, speed.read_iops, speed.write_p50_us, speed.write_p99_us
            ),
        );
        row(
            "snapshot under load",
            format!("{:.1} ms", self.snapshot.milliseconds),
        );
        let kill = &self.kill;
        row(
            "longest pause of a client",
            format!("{:.2} s", kill.longest_pause_ms / 1000.0),
        );
        if let Some(catch_up) = &self.catch_up {
            row(
                "changed while it was away",
                format!(
                    "{} of {}, by {} of writes",
                    size::format(catch_up.changed_bytes),
                    size::format(self.volume_bytes),
                    size::format(catch_up.written_bytes)
                ),
            );
            row(
                "moved to catch up",
                format!(
                    "{}, {} of a whole copy, in {:.1} s",
                    size::format(catch_up.moved_bytes),
                    share(catch_up.moved_bytes, self.volume_bytes),
                    catch_up.seconds
                ),
            );
        }
        row("errors at the client", self.errors.to_string());
        row(
            "acknowledged blocks lost",
            format!(
                "{} of {} writes",
                self.blocks_lost, self.writes_acknowledged
            ),
        );
        let places = match self.nodes {
            1 => "one node".to_owned(),
            n => format!("{n} nodes, all on this machine"),
        };
        format!(
            "\n{}\n{places} with {} processors, {:.0} s: what is true of one machine, not of a network\n",
            table.render(),
            self.cpus,
            self.seconds
        )
    }
}
