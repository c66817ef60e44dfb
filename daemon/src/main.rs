//! `eskerd`, the storage daemon.

use clap::Parser;
use esker_daemon::args::Args;
use esker_daemon::config::Config;
use esker_daemon::logging::Logs;
use esker_daemon::metrics::process;
use esker_daemon::sandbox::{self, Sandbox};
use esker_daemon::{dist, machine, run};
use std::process::ExitCode;

/// A request on its way makes some dozens of small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    process::note_start();
    let args = Args::parse(); // wrong usage ends here, with code 2
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("eskerd: {message}");
            ExitCode::FAILURE
        }
    }
}

/// What was logged has been written when this returns, so that the reason stands last.
fn start(args: &Args) -> Result<(), String> {
    if let Some(folder) = &args.dist {
        return dist::write(folder).map_err(|e| e.to_string());
    }
    let config = Config::load(args).map_err(|e| e.to_string())?;
    let sandbox = match args.no_sandbox || args.check_config {
        true => Sandbox::Off,
        false => sandbox::enter(&config, args.config.as_deref())?,
    };
    if let Some(path) = &args.sandbox_probe {
        println!("{}", sandbox::probe(path));
        return Ok(());
    }
    let logs = Logs::init(&config.live)?;
    match sandbox {
        _ if args.check_config => {}
        Sandbox::Full => tracing::info!("sandbox: {sandbox}"),
        Sandbox::Off | Sandbox::WithoutPaths => tracing::warn!("sandbox: {sandbox}"),
    }
    run::run(args, config, Some(&logs), machine::node).map_err(|e| e.to_string())
}
