//! What a demo does, step by step.

use super::ledger::{Ledger, Seen};
use super::load::{Load, Pace, Volume};
use super::nodes::{random, Nodes};
use super::report::{per_second, CatchUp, Fill, FullSpeed, Kill, Report, SnapshotTaken, Verified};
use super::{failed, Teller};
use crate::error::CliError;
use crate::model::{Status, VolumeStatus};
use esker_api::{size, v1};
use esker_base::BLOCK_SIZE_U64;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The volume's name.
pub const VOLUME: &str = "demo";
/// The snapshot's name.
const SNAPSHOT: &str = "before";
/// Its size in blocks.
const BLOCKS: usize = 32 << 10;
/// Copies of it, where there are nodes for them.
const COPIES: usize = 3;
/// As fast as it goes.
const FULL: Pace = Pace {
    depth: 32,
    per_second: 0,
};
/// For how long.
const FULL_FOR: Duration = Duration::from_secs(3);
/// The load under which everything else happens: enough that a pause is seen, and it leaves the machine room.
const STEADY: Pace = Pace {
    depth: 16,
    per_second: 3000,
};
/// How long a killed node is away.
const AWAY: Duration = Duration::from_secs(5);
/// How long the load runs before something happens, and after it.
const AROUND: Duration = Duration::from_secs(1);
/// An election, a catch-up: what takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(40);
/// What a node may still lack under load and have caught up: what is on its way.
const LAG_BYTES_MAX: u64 = STEADY.depth as u64 * BLOCK_SIZE_U64;
/// What links may carry to a node while it reads a copy of its own, beside that.
const OTHERS_SHARE: u64 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// The demo, as far as it is.
pub struct Story<'a, 'b> {
    nodes: &'a mut Nodes,
    teller: &'a mut Teller<'b>,
    volume: Arc<Volume>,
    report: Report,
    seed: u64,
}

impl<'a, 'b> Story<'a, 'b> {
    /// One whose nodes do not run yet.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new(nodes: &'a mut Nodes, teller: &'a mut Teller<'b>) -> Result<Self, CliError> {
        let seed = random().map_err(|e| failed(format!("no random numbers: {e}")))?;
        let seed = u64::from_le_bytes(seed);
        let count = nodes.list.len();
        let report = Report {
            nodes: count,
            replicas: COPIES.min(count),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            volume_bytes: BLOCKS as u64 * BLOCK_SIZE_U64,
            encrypted: true,
            ..Report::default()
        };
        Ok(Self {
            nodes,
            teller,
            volume: Arc::new(Volume::new(VOLUME, BLOCKS, seed)),
            report,
            seed,
        })
    }

    /// All of it.
    ///
    /// # Errors
    /// When anything was lost, an error came back, or a step did not end.
    pub async fn run(mut self) -> Result<Report, CliError> {
        self.start().await?;
        let leader = self.leader_other_than(None).await?;
        let door = self.door(&leader).await?;
        self.fill(door).await?;
        self.full_speed(door).await?;
        let found = match self.nodes.list.len() {
            1 => self.restart(door).await?,
            _ => self.fail_over(door).await?,
        };
        self.healthy().await?;
        self.verify(found).await?;
        self.report.seconds = self.teller.elapsed().as_secs_f64();
        Ok(self.report)
    }

    async fn start(&mut self) -> Result<(), CliError> {
        self.nodes.start_all().await?;
        let count = self.nodes.list.len();
        self.teller.say(&match count {
            1 => "1 node runs".to_owned(),
            _ => format!("{count} nodes run, with certificates and TLS between them"),
        })?;
        let request = v1::CreateVolumeRequest {
            name: VOLUME.into(),
            size_bytes: self.report.volume_bytes,
            replicas: u32::try_from(self.report.replicas).unwrap_or(1),
            encrypted: true,
            ..v1::CreateVolumeRequest::default()
        };
        let mut admin = self.nodes.node(1)?.admin().await?;
        admin.create_volume(request).await?;
        let leader = self.leader_other_than(None).await?;
        self.teller.say(&format!(
            "volume {VOLUME} of {}, encrypted, {}; node {leader} leads it",
            size::format(self.report.volume_bytes),
            match self.report.replicas {
                1 => "1 copy".to_owned(),
                n => format!("{n} copies"),
            }
        ))
    }

    async fn fill(&mut self, door: u64) -> Result<(), CliError> {
        let began = Instant::now();
        let (volume, socket) = (Arc::clone(&self.volume), self.socket(door)?);
        on_thread("the client", move || volume.fill(&socket)).await?;
        let seconds = began.elapsed().as_secs_f64();
        self.report.writes_acknowledged += BLOCKS as u64;
        let bytes_per_second = per_second(self.report.volume_bytes, seconds);
        self.report.fill = Fill {
            seconds,
            bytes_per_second,
        };
        self.teller.say(&format!(
            "every block written once over NBD at node {door}: {}/s",
            size::format(bytes_per_second)
        ))
    }

    async fn full_speed(&mut self, door: u64) -> Result<(), CliError> {
        let load = self.load(door, FULL)?;
        tokio::time::sleep(FULL_FOR).await;
        end(load)?;
        let seen = self.take_seen()?;
        let speed = FullSpeed::of(&seen, FULL.depth);
        self.teller.say(&format!(
            "random 4 KiB at depth {} for {:.0} s: {} writes/s and {} reads/s, each read compared",
            speed.depth, speed.seconds, speed.write_iops, speed.read_iops
        ))?;
        self.report.full_speed = speed;
        Ok(())
    }

    /// Snapshot, kill and return under load; what the snapshot was found to hold.
    async fn fail_over(&mut self, door: u64) -> Result<Ledger, CliError> {
        let mut door = door;
        let mut load = self.load(door, STEADY)?;
        tokio::time::sleep(AROUND).await;
        let snapshot = self.snapshot(door).await?;
        // The client's own node may have come to lead: then the client goes to another one.
        let mut leader = self.leader_other_than(None).await?;
        while leader == door {
            end(load)?;
            door = self.door(&leader).await?;
            load = self.load(door, STEADY)?;
            leader = self.leader_other_than(None).await?;
        }
        self.take_seen()?;
        let before = self.volume.ledger().clone();
        self.nodes.kill(leader)?;
        let killed = Instant::now();
        let next = self.leader_other_than(Some(leader)).await?;
        tokio::time::sleep(AWAY.saturating_sub(killed.elapsed())).await;
        let away = (killed.elapsed(), before);
        {
            let seen = self.volume.seen();
            let requests = seen.writes_us.len() + seen.reads_us.len();
            let text = format!(
                "node {leader}, which led, was killed (SIGKILL): node {next} leads; {requests} requests since, the \
                 longest took {:.2} s, {} errors",
                seen.longest_ms() / 1000.0,
                seen.errors
            );
            self.teller.say(&text)?;
        }
        self.returns(leader, away).await?;
        tokio::time::sleep(AROUND).await;
        end(load)?;
        self.killed(leader, next)?;
        Ok(snapshot)
    }

    fn killed(&mut self, leader: u64, next: u64) -> Result<(), CliError> {
        let seen = self.take_seen()?;
        self.report.kill = Kill {
            node: leader.to_string(),
            led: true,
            next_leader: next.to_string(),
            longest_pause_ms: seen.longest_ms(),
            requests: (seen.writes_us.len() + seen.reads_us.len()) as u64,
            errors: seen.errors,
        };
        Ok(())
    }

    /// Starts the killed node again, and waits until it has what it missed.
    async fn returns(&mut self, id: u64, away: (Duration, Ledger)) -> Result<(), CliError> {
        let began = Instant::now();
        self.nodes.start(id).await?;
        self.wait(&format!("node {id} does not catch up"), async |nodes| {
            let leader = match leader_of(nodes, None).await? {
                None => return Ok(false),
                Some(leader) if leader == id => return Ok(true), // nobody without everything is elected
                Some(leader) => leader,
            };
            let Some(volume) = volume_at(nodes, leader).await? else {
                return Ok(false);
            };
            let id_text = id.to_string();
            let copy = volume.replicas.iter().find(|copy| copy.node == id_text);
            let has_all = copy.is_some_and(|c| c.state == "ready" && c.lag_bytes <= LAG_BYTES_MAX);
            Ok(has_all && nodes.node(id)?.metric("esker_catch_up_replicas", "")? == 0)
        })
        .await?;
        let (now, seconds) = (self.volume.ledger().clone(), began.elapsed().as_secs_f64());
        let node = self.nodes.node(id)?;
        let catch_up = CatchUp {
            away_seconds: away.0.as_secs_f64(),
            seconds,
            changed_bytes: now.changed_bytes(&away.1),
            written_bytes: now.written_bytes(&away.1),
            moved_bytes: node.metric("esker_peer_bytes_total", "direction=\"in\"")?,
            fetched_bytes: node.metric("esker_catch_up_fetched_bytes_total", "")?,
        };
        self.teller.say(&format!(
            "node {id} is back and has caught up in {seconds:.1} s: {} had changed, {} came over its links",
            size::format(catch_up.changed_bytes),
            size::format(catch_up.moved_bytes)
        ))?;
        self.report.catch_up = Some(catch_up);
        Ok(())
    }

    /// With one node: it is killed under load and started again.
    async fn restart(&mut self, id: u64) -> Result<Ledger, CliError> {
        let load = self.load(id, STEADY)?;
        tokio::time::sleep(AROUND).await;
        let snapshot = self.snapshot(id).await?;
        self.take_seen()?;
        tokio::time::sleep(AROUND).await;
        self.nodes.kill(id)?;
        let killed = Instant::now();
        let _ = load.end(); // its session broke: that is what is shown
        let seen = self.take_seen()?;
        self.nodes.start(id).await?;
        let (volume, socket) = (Arc::clone(&self.volume), self.socket(id)?);
        self.leader_other_than(None).await?;
        let pause_ms = killed.elapsed().as_secs_f64() * 1000.0;
        // What was on its way may have been written or not; what was answered must be there.
        let found = on_thread("after kill -9", move || {
            let may = volume.ledger().clone();
            volume.check(&socket, VOLUME, &may)
        });
        let found = found.await?;
        *self.volume.ledger() = Ledger::exactly(found);
        self.report.kill = Kill {
            node: id.to_string(),
            led: true,
            next_leader: id.to_string(),
            longest_pause_ms: pause_ms,
            requests: (seen.writes_us.len() + seen.reads_us.len()) as u64,
            errors: seen.errors,
        };
        self.teller.say(&format!(
            "node {id} was killed (SIGKILL) under load and serves again after {:.2} s; every acknowledged write is there",
            pause_ms / 1000.0
        ))?;
        let load = self.load(id, STEADY)?;
        tokio::time::sleep(AROUND).await;
        end(load)?;
        self.take_seen()?;
        Ok(snapshot)
    }

    /// Takes the snapshot while the load runs, and reads it; what it holds.
    async fn snapshot(&mut self, door: u64) -> Result<Ledger, CliError> {
        let leader = self.leader_other_than(None).await?;
        let mut admin = self.nodes.node(leader)?.admin().await?;
        let request = v1::CreateSnapshotRequest {
            volume: VOLUME.into(),
            name: SNAPSHOT.into(),
            ..v1::CreateSnapshotRequest::default()
        };
        let before = self.volume.ledger().clone();
        let began = Instant::now();
        admin.create_snapshot(request).await?;
        let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
        let may = self.volume.ledger().since(&before);
        let found = self.check(door, &export(), may).await?;
        let seen = self.volume.seen();
        let requests_meanwhile = (seen.writes_us.len() + seen.reads_us.len()) as u64;
        let rate = per_second(requests_meanwhile, seen.elapsed().as_secs_f64());
        drop(seen);
        self.teller.say(&format!(
            "snapshot {} in {milliseconds:.1} ms under {rate} requests/s; all {BLOCKS} blocks of it read and compared",
            export()
        ))?;
        self.report.snapshot = SnapshotTaken {
            name: export(),
            milliseconds,
            requests_meanwhile,
        };
        Ok(Ledger::exactly(found))
    }

    /// Reads everything at every node that has a copy.
    async fn verify(&mut self, snapshot: Ledger) -> Result<(), CliError> {
        let all = self.volume.ledger().clone();
        if all.answered != all.sent {
            return Err(failed("a write was never answered"));
        }
        for id in self.copies().await? {
            let began = Instant::now();
            let before = self.received(id)?;
            self.check(id, VOLUME, all.clone()).await?;
            self.check(id, &export(), snapshot.clone()).await?;
            let from_others_bytes = self.received(id)? - before;
            if from_others_bytes > self.report.volume_bytes / OTHERS_SHARE {
                let got = size::format(from_others_bytes);
                let text = format!("node {id} did not read its own copy: {got} came from others");
                return Err(failed(text));
            }
            self.report.verified.push(Verified {
                node: id.to_string(),
                blocks: BLOCKS as u64,
                snapshot_blocks: BLOCKS as u64,
                from_others_bytes,
                seconds: began.elapsed().as_secs_f64(),
            });
            self.teller.say(&format!(
                "node {id}: its copy has every block as it was acknowledged, and the snapshot as it was"
            ))?;
        }
        Ok(())
    }

    async fn check(&self, id: u64, name: &str, may: Ledger) -> Result<Vec<u32>, CliError> {
        let (volume, socket, name) = (Arc::clone(&self.volume), self.socket(id)?, name.to_owned());
        let who = format!("at node {id}");
        on_thread(&who, move || volume.check(&socket, &name, &may)).await
    }

    fn received(&self, id: u64) -> Result<u64, CliError> {
        match self.nodes.list.len() {
            1 => Ok(0),
            _ => self
                .nodes
                .node(id)?
                .metric("esker_peer_bytes_total", "direction=\"in\""),
        }
    }

    async fn healthy(&mut self) -> Result<(), CliError> {
        let ids: Vec<_> = self.nodes.list.iter().map(|node| node.id).collect();
        self.wait("the cluster does not become healthy", async |nodes| {
            for id in &ids {
                if !status_at(nodes, *id).await?.healthy {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    /// Nodes with a copy.
    async fn copies(&self) -> Result<Vec<u64>, CliError> {
        let volume = volume_at(self.nodes, 1).await?;
        let copies = volume.map(|volume| volume.replicas).unwrap_or_default();
        let mut ids: Vec<u64> = copies.iter().filter_map(|c| c.node.parse().ok()).collect();
        ids.sort_unstable();
        match ids.len() == self.report.replicas {
            true => Ok(ids),
            false => Err(failed(format!("the volume has {} copies", ids.len()))),
        }
    }

    /// A node with a copy that does not lead; with one node, that.
    async fn door(&self, leader: &u64) -> Result<u64, CliError> {
        let copies = self.copies().await?;
        let other = copies.iter().find(|id| *id != leader);
        Ok(*other.unwrap_or(leader))
    }

    async fn leader_other_than(&mut self, killed: Option<u64>) -> Result<u64, CliError> {
        let mut found = None;
        self.wait("nobody leads the volume", async |nodes| {
            found = leader_of(nodes, killed).await?;
            Ok(found.is_some())
        })
        .await?;
        found.ok_or_else(|| failed("nobody leads the volume"))
    }

    /// Asks again and again until it is so.
    async fn wait(
        &mut self,
        never: &str,
        mut is_so: impl AsyncFnMut(&Nodes) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.nodes.all_run()?;
            if is_so(self.nodes).await? {
                return Ok(());
            }
            if Instant::now() > end {
                let seconds = PATIENCE.as_secs();
                return Err(failed(format!("{never} within {seconds} s")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn load(&mut self, door: u64, pace: Pace) -> Result<Load, CliError> {
        self.seed = self.seed.wrapping_add(1);
        let socket = self.socket(door)?;
        self.take_seen()?;
        Load::start(&self.volume, &socket, pace, self.seed).map_err(|e| client_failed(&e))
    }

    fn socket(&self, id: u64) -> Result<PathBuf, CliError> {
        Ok(self.nodes.node(id)?.socket())
    }

    /// What clients saw since this was asked last; it goes into the sums.
    fn take_seen(&mut self) -> Result<Seen, CliError> {
        let seen = self.volume.take_seen();
        if let Some(wrong) = seen.wrong {
            return Err(failed(format!("a read under load was wrong: {wrong}")));
        }
        self.report.errors += seen.errors;
        if seen.errors > 0 {
            return Err(failed(format!("{} requests failed", seen.errors)));
        }
        self.report.writes_acknowledged += seen.writes_us.len() as u64;
        self.report.reads_compared += seen.reads_us.len() as u64;
        Ok(seen)
    }
}

fn export() -> String {
    format!("{VOLUME}@{SNAPSHOT}")
}

fn client_failed(error: &io::Error) -> CliError {
    failed(format!("the client: {error}"))
}

/// Ends the load; it must have been served until now.
fn end(load: Load) -> Result<(), CliError> {
    load.end().map_err(|e| client_failed(&e))
}

/// Does what waits for sockets on a thread of its own, so that an interruption is seen meanwhile.
async fn on_thread<T: Send + 'static>(
    who: &str,
    action: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, CliError> {
    match tokio::task::spawn_blocking(action).await {
        Ok(result) => result.map_err(|e| failed(format!("{who}: {e}"))),
        Err(_) => Err(failed("the client ended oddly")),
    }
}

/// Who leads the volume, other than `gone`, as the nodes tell that run.
async fn leader_of(nodes: &Nodes, gone: Option<u64>) -> Result<Option<u64>, CliError> {
    for node in nodes.list.iter().filter(|node| node.runs()) {
        let volume = volume_at(nodes, node.id).await?;
        let leader = volume.and_then(|volume| volume.leader?.parse().ok());
        if leader.is_some() && leader != gone {
            return Ok(leader);
        }
    }
    Ok(None)
}

async fn status_at(nodes: &Nodes, id: u64) -> Result<Status, CliError> {
    let mut admin = nodes.node(id)?.admin().await?;
    Ok(admin
        .status(v1::StatusRequest::default())
        .await?
        .into_inner()
        .into())
}

async fn volume_at(nodes: &Nodes, id: u64) -> Result<Option<VolumeStatus>, CliError> {
    let volumes = status_at(nodes, id).await?.volumes;
    Ok(volumes.into_iter().find(|volume| volume.name == VOLUME))
}
