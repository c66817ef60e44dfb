//! Aligned columns for people.

/// Whether a column's cells stand at its left or, like numbers, at its right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// A table: a heading per column, and rows of as many cells.
pub struct Table<const N: usize> {
    headings: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// Without rows.
    #[must_use]
    pub fn new(headings: [(&'static str, Align); N]) -> Self {
        Self {
            headings,
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The table as lines; two spaces between columns, none at the end of a line.
    #[must_use]
    pub fn render(&self) -> String {
        let headings = self
            .headings
            .each_ref()
            .map(|(heading, _)| (*heading).to_string());
        let lines = std::iter::once(&headings).chain(&self.rows);
        let mut widths = [0; N];
        for cells in lines.clone() {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for cells in lines {
            let mut line = String::new();
            for ((cell, width), (_, align)) in cells.iter().zip(widths).zip(&self.headings) {
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Lines of `name: value` with the values aligned.
#[must_use]
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs
        .iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new([("NAME", Align::Left), ("SIZE", Align::Right)]);
        table.row(["a".into(), "10 GiB".into()]);
        table.row(["longer".into(), "1 B".into()]);
        assert_eq!(
            table.render(),
            "NAME      SIZE\na       10 GiB\nlonger     1 B\n"
        );
        assert_eq!(
            fields(&[("a", "1".into()), ("bcd", "2".into())]),
            "a    1\nbcd  2\n"
        );
    }
}
