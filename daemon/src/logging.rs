//! Logs to stderr: which lines and how they look can be changed while the daemon runs.
//!
//! A thread of its own writes them, so that no store waits for whoever reads them: when
//! [`LINES_MAX`] lines wait, further ones are dropped and counted.

use crate::live::{Live, LogFormat};
use std::io::IsTerminal;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{reload, EnvFilter, Layer, Registry};

/// Lines that may wait to be written.
pub const LINES_MAX: usize = 8192;

type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;
type Format = Box<dyn Layer<Filtered> + Send + Sync>;

/// The log of the process. Dropped, it writes what waits.
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    format: reload::Handle<Format, Filtered>,
    writer: NonBlocking,
    _guard: WorkerGuard,
}

impl Logs {
    /// Sets up the log of the process.
    ///
    /// # Errors
    /// One line when `RUST_LOG` or the setting cannot be understood.
    pub fn init(live: &Live) -> Result<Self, String> {
        let (filter, filter_handle) = reload::Layer::new(filter_of(live)?);
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(LINES_MAX)
            .thread_name("log")
            .finish(std::io::stderr());
        let (format, format_handle) = reload::Layer::new(layer(live.log_format, writer.clone()));
        tracing_subscriber::registry()
            .with(filter)
            .with(format)
            .try_init()
            .map_err(|e| format!("cannot set up the log: {e}"))?;
        Ok(Self {
            filter: filter_handle,
            format: format_handle,
            writer,
            _guard: guard,
        })
    }

    /// Changes which lines are logged and how they look.
    ///
    /// # Errors
    /// One line when the setting cannot be understood; nothing has changed then.
    pub fn change(&self, live: &Live) -> Result<(), String> {
        let filter = filter_of(live)?;
        let format = layer(live.log_format, self.writer.clone());
        let gone = |e: reload::Error| format!("cannot change the log: {e}");
        self.filter.reload(filter).map_err(gone)?;
        self.format.reload(format).map_err(gone)
    }

    /// Lines that were dropped because nobody read the log.
    #[must_use]
    pub fn dropped(&self) -> ErrorCounter {
        self.writer.error_counter()
    }
}

/// What `RUST_LOG` says, when it says anything.
#[must_use]
pub fn rust_log() -> Option<String> {
    let text = std::env::var("RUST_LOG").ok();
    text.filter(|text| !text.is_empty())
}

/// The filter of these settings; `RUST_LOG` goes before them.
///
/// # Errors
/// One line that names the setting and how it is written.
pub fn filter_of(live: &Live) -> Result<EnvFilter, String> {
    let (name, wanted) = match rust_log() {
        Some(text) => ("RUST_LOG", text),
        None => ("log", live.log.clone()),
    };
    EnvFilter::try_new(&wanted)
        .map_err(|e| format!("{name}={wanted}: {e}; write it like `info,esker_runtime=debug`"))
}

fn layer(format: LogFormat, writer: NonBlocking) -> Format {
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        // Spans are left out: those that began in the other format have no fields in this one.
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    }
}
