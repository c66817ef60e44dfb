//! The daemon's man page and shell completions, from the definition of its command line.

use crate::args::Args;
use crate::error::DaemonError;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

/// Writes them into `folder/man` and `folder/completions`, which are there.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path) -> Result<(), DaemonError> {
    let mut command = Args::command();
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).map_err(DaemonError::file("write", path))
    };
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).section("8");
    let path = folder.join("man/eskerd.8");
    man.render(&mut page)
        .map_err(DaemonError::file("write", &path))?;
    write(&path, &page)?;
    for (shell, name) in [
        (Shell::Bash, "eskerd.bash"),
        (Shell::Zsh, "_eskerd"),
        (Shell::Fish, "eskerd.fish"),
    ] {
        let mut script = Vec::new(); // the generator panics when a writer fails; this one cannot
        clap_complete::generate(shell, &mut command, "eskerd", &mut script);
        write(&folder.join("completions").join(name), &script)?;
    }
    Ok(())
}
