//! `esker completions`.

use crate::args::Args;
use crate::error::CliError;
use crate::output::Output;
use clap::CommandFactory;
use clap_complete::Shell;

/// Writes the completions of a shell.
///
/// # Errors
/// When they cannot be written.
pub fn write(shell: Shell, output: &mut Output) -> Result<(), CliError> {
    let mut script = Vec::new(); // the generator panics when a writer fails; this one cannot
    clap_complete::generate(shell, &mut Args::command(), "esker", &mut script);
    output.raw(&script)
}
