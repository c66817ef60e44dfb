//! `eskerd`, the storage daemon.

use clap::Parser;
use esker_daemon::args::Args;
use esker_daemon::{logging, machine, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse(); // wrong usage ends here, with code 2
    let result =
        logging::init().and_then(|()| run::run(&args, machine::node).map_err(|e| e.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("eskerd: {message}");
            ExitCode::FAILURE
        }
    }
}
