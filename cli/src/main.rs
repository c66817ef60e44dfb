//! `esker`, the command line.

use clap::Parser;
use esker_cli::args::Args;
use esker_cli::error::CliError;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse(); // wrong usage ends here, with code 2
    match esker_cli::run(args) {
        Ok(()) | Err(CliError::NobodyReads) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("esker: {error}");
            match error {
                CliError::Usage(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
