//! What describes a metric: its name, unit, labels, meaning, and where its values come from.

use super::{Labels, Scraped, ScrapedStore, Series, Value};
use esker_base::Histogram;
use esker_node::meters::{StoreSample, VolumeSample};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// The label `volume` of the sum over those that have no series of their own. No volume can have
/// this name.
pub const OTHERS: &str = "(others)";

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, and begins anew with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
    /// Facts, as labels.
    Info,
}

impl Kind {
    /// As it stands in the text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter,
            Kind::Gauge => Self::Gauge,
            Kind::Histogram => Self::Histogram,
            Kind::Info => Self::Info,
        }
    }
}

/// Where the values of a metric come from.
#[derive(Clone, Copy)]
pub enum Source {
    /// Of the node.
    Node(fn(&Scraped, &mut Series<'_>)),
    /// Of each store, whether it answers or not.
    Store(fn(&ScrapedStore) -> u64),
    /// Of each store that answers, as are all below.
    Number(fn(&StoreSample) -> u64),
    /// Nanoseconds, shown as seconds.
    Nanos(fn(&StoreSample) -> u64),
    /// By a label with these values.
    NumberBy(Label, fn(&StoreSample, usize) -> u64),
    /// A distribution of numbers.
    Counts(fn(&StoreSample) -> &Histogram),
    /// A distribution of nanoseconds, shown as seconds.
    Durations(fn(&StoreSample) -> &Histogram),
    /// The same by a label.
    DurationsBy(Label, fn(&StoreSample, usize) -> &Histogram),
    /// Of each volume.
    Volume(fn(&VolumeSample) -> u64),
    /// Of each volume by a label.
    VolumeBy(Label, fn(&VolumeSample, usize) -> u64),
}

/// A label and all its values.
type Label = (&'static str, &'static [&'static str]);

impl Source {
    /// Names of the labels.
    #[must_use]
    pub fn labels(&self) -> Vec<&'static str> {
        match self {
            Self::Node(_) => vec![],
            Self::NumberBy((label, _), _) | Self::DurationsBy((label, _), _) => {
                vec!["store", label]
            }
            Self::Volume(_) => vec!["store", "volume"],
            Self::VolumeBy((label, _), _) => vec!["store", "volume", label],
            _ => vec!["store"],
        }
    }

    pub(super) fn read(&self, scraped: &Scraped, series: &mut Series<'_>) {
        if let Self::Node(read) = self {
            return read(scraped, series);
        }
        for store in &scraped.stores {
            let labels = || vec![("store", store.index.to_string())];
            match (self, &store.sample) {
                (Self::Store(read), _) => series.add(labels(), Value::Number(read(store))),
                (_, Some(sample)) => self.read_sample(sample, &labels, series),
                (_, None) => {}
            }
        }
    }

    fn read_sample(
        &self,
        sample: &StoreSample,
        of_store: &impl Fn() -> Labels,
        series: &mut Series<'_>,
    ) {
        let by = |(label, names): Label, mut labels: Labels, index: usize| {
            labels.push((label, names[index].to_string()));
            labels
        };
        match self {
            Self::Number(read) => series.add(of_store(), Value::Number(read(sample))),
            Self::Nanos(read) => series.add(of_store(), Value::Nanos(read(sample))),
            Self::Counts(read) => series.add(of_store(), Value::Counts(read(sample))),
            Self::Durations(read) => series.add(of_store(), Value::Durations(read(sample))),
            Self::NumberBy(label, read) => {
                for index in 0..label.1.len() {
                    let value = Value::Number(read(sample, index));
                    series.add(by(*label, of_store(), index), value);
                }
            }
            Self::DurationsBy(label, read) => {
                for index in 0..label.1.len() {
                    let value = Value::Durations(read(sample, index));
                    series.add(by(*label, of_store(), index), value);
                }
            }
            Self::Volume(_) | Self::VolumeBy(..) => {
                for (name, volume) in volumes_of(sample) {
                    let mut labels = of_store();
                    labels.push(("volume", name));
                    match self {
                        Self::Volume(read) => series.add(labels, Value::Number(read(volume))),
                        Self::VolumeBy(label, read) => {
                            for index in 0..label.1.len() {
                                let value = Value::Number(read(volume, index));
                                series.add(by(*label, labels.clone(), index), value);
                            }
                        }
                        _ => {}
                    }
                }
            }
            Self::Node(_) | Self::Store(_) => {}
        }
    }
}

/// The volumes of a sample with the names they are shown under, the sum of the rest last.
fn volumes_of(sample: &StoreSample) -> impl Iterator<Item = (String, &VolumeSample)> {
    let named = sample.volumes.iter().map(|v| (v.name.clone(), v));
    let others = &sample.others;
    // Once somebody has counted there, it stays: a counter does not vanish.
    let is_used = others.volumes > 0 || others.counts.requests.iter().any(|count| *count > 0);
    named.chain(is_used.then(|| (OTHERS.to_string(), others)))
}

/// A metric.
pub struct Family {
    /// Its name, with its unit, and without the `_total` of counters and the `_info` of infos.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means, one sentence.
    pub help: &'static str,
    /// Where its values come from.
    pub source: Source,
    /// Upper bounds of its buckets, in the unit of what was observed.
    pub bounds: Vec<u64>,
}

impl Family {
    /// The unit at the end of its name.
    #[must_use]
    pub fn unit(&self) -> Option<&'static Unit> {
        match self.unit_name() {
            Some("bytes") => Some(&Unit::Bytes),
            Some("seconds") => Some(&Unit::Seconds),
            _ => None,
        }
    }

    fn unit_name(&self) -> Option<&'static str> {
        let (_, last) = self.name.rsplit_once('_')?;
        ["bytes", "seconds"].into_iter().find(|unit| *unit == last)
    }

    /// The name without its unit.
    #[must_use]
    pub fn stem(&self) -> String {
        let unit = self.unit_name().map_or(0, |unit| unit.len() + 1);
        self.name[..self.name.len() - unit].to_string()
    }

    /// The name that queries use.
    #[must_use]
    pub fn full_name(&self) -> String {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{suffix}", self.name)
    }
}
