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
            writer: Box::new(std::io::BufWriter::new(std::io::stdout())),
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
            Format::Dot | Format::Svg => return Err(no_graph()),
        };
        if !shown.is_empty() && !shown.ends_with('\n') {
            shown.push('\n');
        }
        self.raw(shown.as_bytes())
    }

    /// How results are shown.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Begins a list that is shown item by item, so that it may be longer than memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn list<T: Serialize>(
        &mut self,
        heading: &'static str,
        line: fn(&T) -> String,
    ) -> Result<List<'_, T>, CliError> {
        match self.format {
            Format::Table => writeln!(self.writer, "{heading}")?,
            Format::Json => write!(self.writer, "[")?,
            Format::Dot | Format::Svg => return Err(no_graph()),
        }
        Ok(List {
            output: self,
            line,
            items: 0,
        })
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

fn no_graph() -> CliError {
    CliError::Usage("dot and svg are for `esker snapshot list`: use table or json here".into())
}

/// A list that is being shown.
pub struct List<'a, T> {
    output: &'a mut Output,
    line: fn(&T) -> String,
    items: u64,
}

impl<T: Serialize> List<'_, T> {
    /// Shows one more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn item(&mut self, item: &T) -> Result<(), CliError> {
        let writer = &mut self.output.writer;
        match self.output.format {
            Format::Json => {
                let json = serde_json::to_string(item).map_err(std::io::Error::from)?;
                let comma = if self.items == 0 { "" } else { "," };
                write!(writer, "{comma}\n  {json}")?;
            }
            _ => writeln!(writer, "{}", (self.line)(item))?,
        }
        self.items += 1;
        Ok(())
    }

    /// It is complete.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(self) -> Result<(), CliError> {
        let writer = &mut self.output.writer;
        if self.output.format == Format::Json {
            let newline = if self.items == 0 { "" } else { "\n" };
            writeln!(writer, "{newline}]")?;
        }
        writer.flush()?;
        Ok(())
    }
}
