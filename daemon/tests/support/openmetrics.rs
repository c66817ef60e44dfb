//! A strict reader of the OpenMetrics text format, as far as the daemon uses it.

use std::collections::{BTreeMap, BTreeSet};

/// A text that was found valid.
pub struct Parsed {
    series: BTreeMap<String, f64>,
    families: BTreeSet<String>,
}

/// A metric between its descriptor and the next.
#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    /// Histograms by their labels without `le`.
    histograms: BTreeMap<String, Histogram>,
}

#[derive(Default)]
struct Histogram {
    /// Bounds and counts.
    buckets: Vec<(f64, f64)>,
    count: Option<f64>,
    has_sum: bool,
}

impl Parsed {
    /// Reads a text, or says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("no EOF at the end")?;
        let mut parsed = Self {
            series: BTreeMap::new(),
            families: BTreeSet::new(),
        };
        let mut names = BTreeSet::new();
        let mut family = Family::default();
        let mut help = None;
        for line in body.lines() {
            let wrong = |why: &str| format!("{why}: {line}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family.end()?;
                family = Family::default();
                let (name, meaning) = rest.split_once(' ').ok_or(wrong("no help"))?;
                if meaning.is_empty() || meaning.contains(['\\', '"']) {
                    return Err(wrong("help"));
                }
                help = Some(name.to_string());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or(wrong("no type"))?;
                if help.take().as_deref() != Some(name) {
                    return Err(wrong("type without help"));
                }
                if !["counter", "gauge", "histogram", "info"].contains(&kind) {
                    return Err(wrong("unknown type"));
                }
                if !names.insert(name.to_string()) {
                    return Err(wrong("described twice"));
                }
                (family.name, family.kind) = (name.into(), kind.into());
                parsed.families.insert(format!("{name}{}", suffix(kind)));
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                let (name, unit) = rest.split_once(' ').ok_or(wrong("no unit"))?;
                if name != family.name || !name.ends_with(&format!("_{unit}")) {
                    return Err(wrong("unit"));
                }
            } else {
                parsed.sample(line, &mut family)?;
            }
        }
        family.end()?;
        Ok(parsed)
    }

    fn sample(&mut self, line: &str, family: &mut Family) -> Result<(), String> {
        let wrong = |why: &str| format!("{why}: {line}");
        let (series, value) = line.rsplit_once(' ').ok_or(wrong("no value"))?;
        let value: f64 = value.parse().map_err(|_| wrong("value"))?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}').ok_or(wrong("labels"))?),
            None => (series, ""),
        };
        let labels = labels_of(labels).ok_or(wrong("labels"))?;
        let rest = name
            .strip_prefix(&family.name)
            .ok_or(wrong("not of this family"))?;
        if family.name.is_empty() || !value.is_finite() || (family.kind != "gauge" && value < 0.0) {
            return Err(wrong("sample"));
        }
        if self.series.insert(series.to_string(), value).is_some() {
            return Err(wrong("twice"));
        }
        if family.kind != "histogram" {
            return (rest == suffix(&family.kind))
                .then_some(())
                .ok_or(wrong("suffix"));
        }
        let mut key = labels.clone();
        let le = key.remove("le");
        let histogram = family.histograms.entry(format!("{key:?}")).or_default();
        match (rest, le.as_deref()) {
            ("_sum", None) => histogram.has_sum = true,
            ("_count", None) => histogram.count = Some(value),
            ("_bucket", Some("+Inf")) => histogram.buckets.push((f64::INFINITY, value)),
            ("_bucket", Some(le)) => {
                let le = le.parse().map_err(|_| wrong("le"))?;
                histogram.buckets.push((le, value));
            }
            _ => return Err(wrong("part of a histogram")),
        }
        Ok(())
    }

    /// The value of a series, named as it is in the text.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        match self.series.get(series) {
            Some(value) => *value,
            None => panic!("no {series}"),
        }
    }

    pub fn has(&self, series: &str) -> bool {
        self.series.contains_key(series)
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Names of the metrics, as queries use them.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.families.iter().map(String::as_str)
    }
}

impl Family {
    fn end(&self) -> Result<(), String> {
        for (labels, found) in &self.histograms {
            let rising = found
                .buckets
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            let last = found.buckets.last().ok_or("no buckets")?;
            let whole = last.0 == f64::INFINITY && Some(last.1) == found.count;
            if !(rising && whole && found.has_sum) {
                return Err(format!("histogram {} {labels}", self.name));
            }
        }
        Ok(())
    }
}

fn suffix(kind: &str) -> &'static str {
    match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    }
}

/// Labels: `name="value"`, with quotes, backslashes and ends of line escaped.
fn labels_of(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let mut good = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        good &= !name.is_empty();
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    _ => return None,
                },
                (_, c) => value.push(c),
            }
        };
        good &= labels.insert(name.to_string(), value).is_none();
        text = &rest[end + 1..];
        if !text.is_empty() {
            text = text.strip_prefix(',')?;
            good &= !text.is_empty();
        }
        if !good {
            return None;
        }
    }
    Some(labels)
}
