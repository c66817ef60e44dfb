//! Results on stdout, as a table or as JSON.

use crate::args::Format;
use crate::error::CliError;
use serde::Serialize;
use std::io::Write;

/// Where results go, and how they are shown.
pub struct Output {
    format: Format,
    writer: Box<dyn Write>,
}

impl Output {
    /// To stdout.
    #[must_use]
    pub fn stdout(format: Format) -> Self {
        Self {
            format,
            writer: Box::new(std::io::stdout()),
        }
    }

    /// Shows a result: the value as JSON, or the text that `text` makes of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn show<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        let mut shown = match self.format {
            Format::Table => text(value),
            Format::Json => serde_json::to_string_pretty(value).map_err(std::io::Error::from)?,
        };
        if !shown.is_empty() && !shown.ends_with('\n') {
            shown.push('\n');
        }
        self.raw(shown.as_bytes())
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.writer.write_all(bytes)?;
        self.writer.flush()?;
        Ok(())
    }
}
