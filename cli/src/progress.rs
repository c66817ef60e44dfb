//! How far long work is, shown on stderr when that is a terminal and nowhere else.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over bytes. It goes when it is dropped.
pub struct ByteBar {
    bar: ProgressBar,
}

impl ByteBar {
    /// A bar that shows up with the first progress.
    #[must_use]
    pub fn new(doing: &str) -> Self {
        // Hidden by itself when stderr is no terminal.
        Self::on(doing, ProgressDrawTarget::stderr())
    }

    fn on(doing: &str, target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = format!("{doing} {{bar:30}} {{percent}} % of {{total_bytes}}, {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&style) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Shows how far it is, of about how much.
    pub fn show(&self, done_bytes: u64, total_bytes: u64) {
        self.bar.set_length(total_bytes.max(done_bytes));
        self.bar.set_position(done_bytes);
    }
}

impl Drop for ByteBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;

    #[test]
    fn it_says_how_far_the_check_is_and_goes() {
        let terminal = InMemoryTerm::new(5, 80);
        let bar = ByteBar::on(
            "checking",
            ProgressDrawTarget::term_like(Box::new(terminal.clone())),
        );
        bar.show(64 * 4096, 256 * 4096);
        bar.bar.force_draw();
        let shown = terminal.contents();
        assert!(shown.contains("25 % of 1.00 MiB"), "{shown}");
        drop(bar);
        assert_eq!(terminal.contents(), "");
    }
}
