//! `esker demo`: a cluster on this machine, in a folder that goes again, which shows what a cluster does and measures it.
//!
//! [`Story`] is what happens, [`Nodes`] are the daemons, [`load`] are the clients, [`ledger`] is what they must read.

pub mod content;
pub mod folder;
pub mod ledger;
pub mod load;
pub mod nbd;
pub mod nodes;
pub mod report;
pub mod story;

use crate::args::Format;
use crate::error::CliError;
use crate::output::Output;
use folder::Folder;
use nodes::Nodes;
use report::Report;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use story::{Story, VOLUME};
use tokio::signal::unix::{signal, SignalKind};

/// Nodes at most; each takes a store and two threads of this machine.
const NODES_MAX: usize = 7;

/// How to show it.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Number of nodes: 3 to 7, of which three have a copy of the volume; or 1, which is killed and started again
    #[arg(long, value_name = "1|3..7", default_value_t = 3, value_parser = node_count)]
    nodes: usize,
    /// Leave the cluster running, and tell how to use and to stop it
    #[arg(long)]
    keep: bool,
    /// Where to make the demo's folder: a disk with 1 GiB for each node [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Stop the cluster that --keep left in this folder, and remove the folder
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["nodes", "keep", "dir"])]
    stop: Option<PathBuf>,
}

fn node_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(2) => Err("neither of two nodes is a majority without the other: take 3".into()),
        Ok(count @ (1 | 3..=NODES_MAX)) => Ok(count),
        _ => Err(format!("it is not 1, nor 3 to {NODES_MAX}")),
    }
}

/// Shows it, or stops one that was left.
///
/// # Errors
/// When a step fails; nothing is left behind then but the end of the nodes' logs.
pub fn run(args: DemoArgs, output: &mut Output) -> Result<(), CliError> {
    if let Some(left) = args.stop {
        folder::stop(&left)?;
        return output.show(&Stopped { folder: left }, |s| {
            format!("stopped, and {} is removed", s.folder.display())
        });
    }
    if matches!(output.format(), Format::Dot | Format::Svg) {
        let text = "dot and svg are for `esker snapshot list`: use table or json here";
        return Err(CliError::Usage(text.into()));
    }
    let folder = Folder::make(args.dir.as_deref(), args.nodes)?;
    let nodes = Nodes::new(folder.path(), args.nodes)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let done = runtime.block_on(show(folder, nodes, args.keep, output));
    runtime.shutdown_background(); // a client's thread may wait for a socket that is gone
    done
}

#[derive(serde::Serialize)]
struct Stopped {
    folder: PathBuf,
}

async fn show(
    folder: Folder,
    mut nodes: Nodes,
    keep: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut teller = Teller::new(output);
    let told = tokio::select! {
        told = tell(&mut nodes, &mut teller) => told,
        interrupted = interruption() => Err(interrupted),
    };
    match told {
        Ok(mut report) if keep => {
            let path = folder.keep(&nodes.pids())?;
            nodes.leave();
            report.folder = Some(path.clone());
            output.show(&report, |report| report.table() + &usage(&path))
        }
        Ok(report) => {
            nodes.stop().await?;
            drop(folder);
            output.show(&report, Report::table)
        }
        Err(error) => {
            let logs = nodes.logs();
            let stopped = nodes.stop().await;
            let place = folder.path().with_extension("log");
            drop(folder);
            let _ = stopped; // what went wrong first is what is told
            let text = match error {
                CliError::Interrupted | CliError::NobodyReads => return Err(error),
                CliError::Demo(text) => text,
                other => other.to_string(),
            };
            Err(failed(match fs::write(&place, logs) {
                Ok(()) => format!(
                    "{text}; the end of the nodes' logs is in {}",
                    place.display()
                ),
                Err(_) => text,
            }))
        }
    }
}

async fn tell(nodes: &mut Nodes, teller: &mut Teller<'_>) -> Result<Report, CliError> {
    Story::new(nodes, teller)?.run().await
}

/// Ends when somebody wants the demo to end.
async fn interruption() -> CliError {
    let signals = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals.map(signal) else {
        return failed("signals cannot be waited for");
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    CliError::Interrupted
}

/// What to do with a cluster that runs on.
fn usage(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "\nIt runs on in {folder}:\n  \
         esker --data {folder}/n1 status --why\n  \
         esker --data {folder}/n1 volume show {VOLUME}\n  \
         nbdinfo 'nbd+unix:///{VOLUME}?socket={folder}/n1/nbd.sock'\n  \
         esker demo --stop {folder}\n"
    )
}

/// A failure of the demo.
fn failed(text: impl Into<String>) -> CliError {
    CliError::Demo(text.into())
}

/// Tells the steps as they happen, to people only.
pub struct Teller<'a> {
    output: &'a mut Output,
    began: Instant,
}

impl<'a> Teller<'a> {
    fn new(output: &'a mut Output) -> Self {
        Self {
            output,
            began: Instant::now(),
        }
    }

    /// Since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// One step.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn say(&mut self, text: &str) -> Result<(), CliError> {
        if self.output.format() == Format::Json {
            return Ok(());
        }
        let seconds = self.elapsed().as_secs_f64();
        self.output
            .raw(format!("{seconds:5.1} s  {text}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_nodes_that_show_nothing_are_refused() {
        for (text, count) in [("1", 1), ("3", 3), ("4", 4), ("7", 7)] {
            assert_eq!(node_count(text), Ok(count));
        }
        assert!(node_count("2").unwrap_err().contains("majority"));
        for text in ["0", "8", "-1", "three", ""] {
            assert!(node_count(text).unwrap_err().contains("3 to 7"), "{text}");
        }
    }
}
