//! How far long work is, shown on stderr when that is a terminal and nowhere else.

use esker_engine::verify::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar for a check. It goes when it is dropped.
pub struct CheckBar {
    bar: ProgressBar,
}

impl CheckBar {
    /// A bar that shows up with the first progress.
    #[must_use]
    pub fn new() -> Self {
        // Hidden by itself when stderr is no terminal.
        Self::on(ProgressDrawTarget::stderr())
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = "checking {bar:30} {percent} % of {total_bytes}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Shows how far it is.
    pub fn show(&self, progress: Progress) {
        self.bar
            .set_length(progress.blocks_total.saturating_mul(4096));
        self.bar
            .set_position(progress.blocks_done.saturating_mul(4096));
    }
}

impl Default for CheckBar {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for CheckBar {
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
        let bar = CheckBar::on(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
        bar.show(Progress {
            blocks_done: 64,
            blocks_total: 256,
        });
        bar.bar.force_draw();
        let shown = terminal.contents();
        assert!(shown.contains("25 % of 1.00 MiB"), "{shown}");
        drop(bar);
        assert_eq!(terminal.contents(), "");
    }
}
