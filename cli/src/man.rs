//! `esker man`, for packagers: a man page for every command.

use crate::args::Args;
use crate::error::CliError;
use clap::CommandFactory;
use std::path::Path;

/// Writes the man pages into a folder that is there.
///
/// # Errors
/// When a page cannot be written.
pub fn write(folder: &Path) -> Result<(), CliError> {
    clap_mangen::generate_to(Args::command(), folder).map_err(|source| CliError::Folder {
        path: folder.to_path_buf(),
        source,
    })
}
