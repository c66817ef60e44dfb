//! The tree of a volume's versions, drawn: on a terminal, for Graphviz, as a picture.

use crate::model::Version;
use crate::when;
use esker_api::size;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Width of a column of branches in a picture, in pixels.
const COLUMN: usize = 24;
/// Height of a line of a picture, in pixels.
const LINE: usize = 22;

/// The versions of some volumes, in the order in which they are drawn: a version comes after the one it
/// began from, and what leads to the volume itself comes last and straight down.
pub struct Graph {
    rows: Vec<Row>,
}

/// A version and its place.
struct Row {
    version: Version,
    /// Its column: the branch it lies on.
    column: usize,
    /// The row it begins from.
    parent: Option<usize>,
    /// Versions that begin from it.
    children: usize,
}

impl Graph {
    /// Puts versions in order.
    #[must_use]
    pub fn new(versions: Vec<Version>) -> Self {
        let key = |v: &Version, id: u64| (v.store, id);
        let mut children: BTreeMap<(u32, u64), Vec<usize>> = BTreeMap::new();
        let by_id: BTreeMap<(u32, u64), usize> = versions
            .iter()
            .enumerate()
            .map(|(at, v)| (key(v, v.id), at))
            .collect();
        let mut roots = Vec::new();
        for (at, v) in versions.iter().enumerate() {
            match v.parent.map(|parent| key(v, parent)) {
                Some(parent) if by_id.contains_key(&parent) => {
                    children.entry(parent).or_default().push(at);
                }
                _ => roots.push(at),
            }
        }
        // The way from each volume itself back to its first version goes straight down; a clone is a branch.
        let mut is_trunk = vec![false; versions.len()];
        for (at, _) in versions
            .iter()
            .enumerate()
            .filter(|(_, v)| v.kind == "head")
        {
            let mut next = Some(at);
            while let Some(at) = next.filter(|at| !is_trunk[*at]) {
                is_trunk[at] = true;
                let v = &versions[at];
                next = v.parent.and_then(|p| by_id.get(&key(v, p))).copied();
                next = next.filter(|parent| versions[*parent].volume == v.volume);
            }
        }
        let mut rows: Vec<Row> = Vec::new();
        let mut place = BTreeMap::new();
        let mut stack: Vec<(usize, usize)> = roots.iter().rev().map(|at| (*at, 0)).collect();
        while let Some((at, column)) = stack.pop() {
            let v = &versions[at];
            let parent = v.parent.and_then(|p| place.get(&key(v, p))).copied();
            place.insert(key(v, v.id), rows.len());
            let mut next = children.remove(&key(v, v.id)).unwrap_or_default();
            rows.push(Row {
                version: v.clone(),
                column,
                parent,
                children: next.len(),
            });
            next.sort_by_key(|child| {
                let own = versions[*child].volume == v.volume;
                (own && is_trunk[*child], own, versions[*child].id)
            });
            // Pushed in reverse: branches first, what goes straight down last.
            let last = next.len().saturating_sub(1);
            for (n, child) in next.into_iter().enumerate().rev() {
                stack.push((child, if n == last { column } else { column + 1 }));
            }
        }
        Self { rows }
    }

    /// The trees that have versions of a volume.
    #[must_use]
    pub fn with(mut self, volume: &str) -> Self {
        // By row: its tree's first row, and where it will be.
        let mut tops: Vec<usize> = Vec::with_capacity(self.rows.len());
        for (at, row) in self.rows.iter().enumerate() {
            tops.push(row.parent.map_or(at, |parent| tops[parent]));
        }
        let named = self.rows.iter().zip(&tops);
        let named = named.filter(|(row, _)| row.version.volume == volume);
        let wanted: BTreeSet<usize> = named.map(|(_, top)| *top).collect();
        let mut places = BTreeMap::new();
        let rows = std::mem::take(&mut self.rows);
        for (at, mut row) in rows.into_iter().enumerate() {
            if wanted.contains(&tops[at]) {
                places.insert(at, self.rows.len());
                row.parent = row.parent.and_then(|parent| places.get(&parent)).copied();
                self.rows.push(row);
            }
        }
        self
    }

    /// All versions, in order.
    #[must_use]
    pub fn versions(&self) -> Vec<Version> {
        self.rows.iter().map(|row| row.version.clone()).collect()
    }

    fn columns(&self) -> usize {
        self.rows
            .iter()
            .map(|row| row.column + 1)
            .max()
            .unwrap_or(0)
    }
}

fn name(v: &Version) -> String {
    match v.kind {
        "head" => format!("{} (now)", v.volume),
        "deleted" => "(deleted)".into(),
        _ => format!("{}@{}", v.volume, v.name),
    }
}

fn sums(v: &Version) -> String {
    let bytes = |bytes: Option<u64>| bytes.map_or("?".into(), size::format);
    match v.kind {
        "head" => format!("refers {}", bytes(v.referenced_bytes)),
        _ => format!(
            "unique {}, refers {}",
            bytes(v.unique_bytes),
            bytes(v.referenced_bytes)
        ),
    }
}

/// With lines, for a terminal.
#[must_use]
pub fn text(graph: &Graph) -> String {
    if graph.rows.is_empty() {
        return "no snapshots\n".into();
    }
    let width = graph.rows.iter().map(|r| name(&r.version).chars().count());
    let width = width.max().unwrap_or(0);
    let columns = graph.columns();
    let mut out = String::new();
    // By column: versions further down that begin from one that is drawn there.
    let mut waiting = vec![0_usize; columns];
    for row in &graph.rows {
        let from = row.parent.map(|at| graph.rows[at].column);
        if let Some(from) = from {
            waiting[from] -= 1;
        }
        let mut art = String::new();
        for (column, waiting) in waiting.iter().enumerate() {
            art.push_str(match row.version.kind {
                "head" if column == row.column => "◉ ",
                "deleted" if column == row.column => "○ ",
                _ if column == row.column => "● ",
                _ if column + 1 == row.column && from == Some(column) => "├─",
                _ if column < row.column && *waiting > 0 => "│ ",
                _ => "  ",
            });
        }
        waiting[row.column] += row.children;
        let version = &row.version;
        let time = match version.kind {
            "head" => String::new(),
            _ => when::text(version.created_unix),
        };
        let line = format!(
            "{art}{:<width$}  {time:<20}  {}",
            name(version),
            sums(version),
        );
        let _ = writeln!(out, "{}", line.trim_end()); // writing to a text cannot fail
    }
    out
}

/// In the language of Graphviz.
#[must_use]
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph snapshots {\n  rankdir=LR;\n  node [shape=box];\n");
    for (at, row) in graph.rows.iter().enumerate() {
        let v = &row.version;
        let style = match v.kind {
            "head" => ", style=bold",
            "deleted" => ", style=dashed",
            _ => "",
        };
        // Names have no letters that would have to be escaped.
        let label = format!("{}\\n{}", name(v), sums(v));
        let _ = writeln!(out, "  n{at} [label=\"{label}\"{style}];");
        if let Some(parent) = row.parent {
            let _ = writeln!(out, "  n{parent} -> n{at};");
        }
    }
    out.push_str("}\n");
    out
}

/// As a picture.
#[must_use]
pub fn svg(graph: &Graph) -> String {
    let widest = graph
        .rows
        .iter()
        .map(|r| name(&r.version).chars().count() + sums(&r.version).chars().count())
        .max()
        .unwrap_or(0);
    let left = graph.columns() * COLUMN + COLUMN / 2;
    let (width, height) = (left + widest * 8 + 60, (graph.rows.len() + 1) * LINE);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n<style>text{{font:13px sans-serif}}.sums{{fill:#666}}\
         path{{stroke:#888;stroke-width:2;fill:none}}</style>\n"
    );
    let x = |column: usize| column * COLUMN + COLUMN / 2;
    let y = |at: usize| (at + 1) * LINE;
    for (at, row) in graph.rows.iter().enumerate() {
        if let Some(parent) = row.parent {
            let (px, py) = (x(graph.rows[parent].column), y(parent));
            let (cx, cy) = (x(row.column), y(at));
            let _ = writeln!(out, "<path d=\"M{px} {py}V{cy}H{cx}\"/>");
        }
    }
    for (at, row) in graph.rows.iter().enumerate() {
        let (cx, cy) = (x(row.column), y(at));
        let fill = match row.version.kind {
            "head" => "#1a7f37",
            "deleted" => "#ffffff",
            _ => "#0969da",
        };
        let _ = writeln!(
            out,
            "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"5\" fill=\"{fill}\" stroke=\"#888\"/>"
        );
        let _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{}\">{} <tspan class=\"sums\">{}</tspan></text>",
            cy + 4,
            name(&row.version),
            sums(&row.version)
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(id: u64, parent: Option<u64>, kind: &'static str, name: &str) -> Version {
        Version {
            volume: "v".into(),
            store: 0,
            id,
            parent,
            kind,
            name: name.into(),
            stamp: id,
            created_unix: 0,
            size_bytes: 1 << 20,
            unique_bytes: (kind == "snapshot").then_some(4096),
            referenced_bytes: Some(8192),
        }
    }

    /// a - b - d - volume, with a branch b - c that was left by a rollback, and one from it.
    fn branched() -> Graph {
        Graph::new(vec![
            version(1, Some(6), "head", ""),
            version(2, None, "snapshot", "a"),
            version(3, Some(2), "snapshot", "b"),
            version(4, Some(3), "deleted", ""),
            version(5, Some(4), "snapshot", "c"),
            version(6, Some(3), "snapshot", "d"),
            version(7, Some(4), "snapshot", "e"),
        ])
    }

    #[test]
    fn what_leads_to_the_volume_goes_straight_down() {
        let drawn = text(&branched());
        let lines: Vec<&str> = drawn.lines().collect();
        let starts = [
            "●     v@a ",
            "●     v@b ",
            "├─○   (deleted) ",
            "│ ├─● v@c ",
            "│ ●   v@e ",
            "●     v@d ",
            "◉     v (now) ",
        ];
        assert_eq!(lines.len(), starts.len(), "{drawn}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(
                line.starts_with(start),
                "{line:?} is not {start:?}\n{drawn}"
            );
        }
        assert!(lines[0].ends_with("1970-01-01T00:00:00Z  unique 4 KiB, refers 8 KiB"));
        assert!(lines[6].ends_with("refers 8 KiB"));
        assert_eq!(text(&Graph::new(Vec::new())), "no snapshots\n");
    }

    /// a - b - volume, and a clone of a.
    #[test]
    fn a_clone_is_a_branch_and_a_tree_is_whole() {
        let clone = Version {
            volume: "w".into(),
            ..version(4, Some(2), "head", "")
        };
        let other = Version {
            volume: "x".into(),
            ..version(5, None, "snapshot", "c")
        };
        let all = vec![
            version(1, Some(3), "head", ""),
            version(2, None, "snapshot", "a"),
            version(3, Some(2), "snapshot", "b"),
            clone,
            other,
        ];
        let drawn = text(&Graph::new(all.clone()).with("w"));
        let lines: Vec<&str> = drawn.lines().collect();
        assert!(lines[0].starts_with("●   v@a "), "{drawn}");
        assert!(lines[1].starts_with("├─◉ w (now) "), "{drawn}");
        assert!(lines[2].starts_with("●   v@b "), "{drawn}");
        assert!(lines[3].starts_with("◉   v (now) "), "{drawn}");
        assert_eq!(lines.len(), 4);
        assert_eq!(text(&Graph::new(all).with("x")).lines().count(), 1);
    }

    #[test]
    fn a_long_chain_is_one_column() {
        let mut all = vec![version(1, Some(50_001), "head", "")];
        all.extend((2..=50_001).map(|id| {
            let parent = (id > 2).then_some(id - 1);
            version(id, parent, "snapshot", &format!("s{id}"))
        }));
        let graph = Graph::new(all);
        assert_eq!((graph.columns(), graph.rows.len()), (1, 50_001));
        assert_eq!(text(&graph).lines().count(), 50_001);
    }

    #[test]
    fn other_programs_are_told_the_same_tree() {
        let graph = branched();
        let dot = dot(&graph);
        assert_eq!(dot.matches(" -> ").count(), 6);
        assert!(
            dot.contains("n0 [label=\"v@a\\nunique 4 KiB, refers 8 KiB\"];"),
            "{dot}"
        );
        assert!(dot.starts_with("digraph") && dot.ends_with("}\n"));
        let svg = svg(&graph);
        assert_eq!(svg.matches("<circle").count(), 7);
        assert_eq!(svg.matches("<path").count(), 6);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
