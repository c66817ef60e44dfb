//! Logs to stderr, as `RUST_LOG` asks; `info` when it does not.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Sets up the log of the process.
///
/// # Errors
/// One line when `RUST_LOG` cannot be understood.
pub fn init() -> Result<(), String> {
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let wanted = wanted.unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(&wanted)
        .map_err(|e| format!("RUST_LOG={wanted}: {e}; write it like `info,esker_runtime=debug`"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
