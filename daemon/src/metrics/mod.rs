//! Metrics for Prometheus. At a scrape every store is asked for a copy of its counters, so that no
//! figure is stale and no store shares memory or a lock with whoever reads them.
//!
//! [`catalog`] lists all metrics; `docs/metrics.md` is checked against it.

pub mod catalog;
mod links;
pub mod process;
pub mod table;

use crate::certificates::{CertificateEnd, Certificates};
use crate::error::DaemonError;
use crate::identity::Identity;
use crate::retention::Counts;
use crate::store::StoreHandle;
use crate::stores::Stores;
use axum::extract::State;
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Router;
use esker_base::num::to_u64;
use esker_base::{Histogram, NodeId};
use esker_node::meters::StoreSample;
use esker_runtime::peers::PeerCounts;
use process::ProcessFigures;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use table::{Family, Kind};
use tokio::net::TcpListener;
use tracing_appender::non_blocking::ErrorCounter;

/// The type the format asks for.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of a series, in order.
pub type Labels = Vec<(&'static str, String)>;

/// A value of a series.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A whole number.
    Number(u64),
    /// Nanoseconds, shown in seconds.
    Nanos(u64),
    /// Values, shown as numbers.
    Counts(&'a Histogram),
    /// Nanoseconds, shown in seconds.
    Durations(&'a Histogram),
}

/// What a scrape has found.
#[derive(Debug)]
pub struct Scraped {
    /// The node.
    pub identity: Identity,
    /// The process.
    pub process: ProcessFigures,
    /// Lines that the log has dropped.
    pub log_lines_dropped: u64,
    /// What snapshot schedules have done.
    pub automatic: Counts,
    /// What is counted about other nodes.
    pub peers: BTreeMap<NodeId, PeerCounts>,
    /// Links that were refused.
    pub links_refused: u64,
    /// When certificates end.
    pub certificates: Vec<CertificateEnd>,
    /// The stores.
    pub stores: Vec<ScrapedStore>,
}

/// What a scrape has found of a store.
#[derive(Debug)]
pub struct ScrapedStore {
    /// Its place among the node's stores.
    pub index: usize,
    /// Its device or file.
    pub path: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// It takes no more writes.
    pub is_fenced: bool,
    /// Its counters; none when it does not answer.
    pub sample: Option<StoreSample>,
}

impl ScrapedStore {
    /// Of a store that gave this sample, or none.
    #[must_use]
    pub fn new(store: &StoreHandle, sample: Option<StoreSample>) -> Self {
        Self {
            index: store.index,
            path: store.path.display().to_string(),
            size_bytes: store.size_bytes,
            is_fenced: store.state().fenced.is_some(),
            sample,
        }
    }
}

#[derive(Clone)]
struct Served {
    stores: Arc<Stores>,
    identity: Identity,
    dropped: Option<ErrorCounter>,
    certificates: Certificates,
}

/// Serves `GET /metrics` until it is dropped.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    stores: Arc<Stores>,
    identity: Identity,
    dropped: Option<ErrorCounter>,
    certificates: Certificates,
) -> Result<(), DaemonError> {
    let app = Router::new()
        .route("/metrics", get(scrape))
        .with_state(Served {
            stores,
            identity,
            dropped,
            certificates,
        });
    axum::serve(listener, app)
        .await
        .map_err(|source| DaemonError::System {
            operation: "serve metrics",
            source,
        })
}

async fn scrape(State(served): State<Served>) -> Response {
    let dropped = served
        .dropped
        .as_ref()
        .map_or(0, ErrorCounter::dropped_lines);
    let ends = served.certificates.ends();
    match text(&served.stores, &served.identity, to_u64(dropped), ends).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// The metrics now, with the number of lines that the log has dropped, and when certificates end. A store that does not answer has no figures; the others have theirs.
///
/// # Errors
/// When they cannot be written as text.
pub async fn text(
    stores: &Stores,
    identity: &Identity,
    log_lines_dropped: u64,
    certificates: Vec<CertificateEnd>,
) -> io::Result<String> {
    let samples = stores.metrics().await;
    let automatic = stores.automatic.counts();
    let (peers, links_refused) = (stores.links.counts(), stores.links.refused());
    let stores = stores.all().iter().zip(samples);
    render(Scraped {
        identity: *identity,
        process: ProcessFigures::now(),
        log_lines_dropped,
        automatic,
        peers,
        links_refused,
        certificates,
        stores: stores
            .map(|(store, sample)| ScrapedStore::new(store, sample))
            .collect(),
    })
}

/// What was scraped, as text.
///
/// # Errors
/// When it cannot be written as text.
pub fn render(scraped: Scraped) -> io::Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scraped));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(io::Error::other)?;
    Ok(text)
}

impl Collector for Scraped {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for family in catalog::families() {
            let name = family.stem();
            let metric =
                encoder.encode_descriptor(&name, family.help, family.unit(), family.kind.into())?;
            let mut series = Series {
                metric,
                family: &family,
                result: Ok(()),
            };
            family.source.read(self, &mut series);
            series.result?;
        }
        Ok(())
    }
}

/// Takes the series of one family.
pub struct Series<'a> {
    metric: MetricEncoder<'a>,
    family: &'a Family,
    result: fmt::Result,
}

impl Series<'_> {
    /// Adds a series.
    pub fn add(&mut self, labels: Labels, value: Value<'_>) {
        if self.result.is_ok() {
            self.result = self.write(labels, value);
        }
    }

    fn write(&mut self, labels: Labels, value: Value<'_>) -> fmt::Result {
        let labels: Vec<(&str, Cow<'static, str>)> = labels
            .into_iter()
            .map(|(name, value)| (name, escaped(value)))
            .collect();
        if self.family.kind == Kind::Info {
            return self.metric.encode_info(&labels);
        }
        if labels.is_empty() {
            return self.family.write(&mut self.metric, value);
        }
        let mut metric = self.metric.encode_family(&labels)?;
        self.family.write(&mut metric, value)
    }
}

impl Family {
    fn write(&self, metric: &mut MetricEncoder<'_>, value: Value<'_>) -> fmt::Result {
        match (self.kind, value) {
            (Kind::Counter, Value::Nanos(nanos)) => {
                metric.encode_counter::<NoLabelSet, _, u64>(&seconds(nanos), None)
            }
            (Kind::Counter, Value::Number(number)) => {
                metric.encode_counter::<NoLabelSet, _, u64>(&number, None)
            }
            (_, Value::Number(number)) => metric.encode_gauge(&number),
            (_, Value::Nanos(nanos)) => metric.encode_gauge(&seconds(nanos)),
            (_, Value::Counts(values)) => self.write_histogram(metric, values, number),
            (_, Value::Durations(values)) => self.write_histogram(metric, values, seconds),
        }
    }

    fn write_histogram(
        &self,
        metric: &mut MetricEncoder<'_>,
        values: &Histogram,
        scale: fn(u64) -> f64,
    ) -> fmt::Result {
        let mut buckets = Vec::with_capacity(self.bounds.len() + 1);
        let mut before = 0;
        for (bound, count) in self.bounds.iter().zip(values.cumulative(&self.bounds)) {
            buckets.push((scale(*bound), count - before));
            before = count;
        }
        buckets.push((f64::MAX, values.count() - before)); // shown as +Inf
        metric.encode_histogram::<NoLabelSet>(scale(values.sum()), values.count(), &buckets, None)
    }
}

/// Above 2^53 the last digits are lost, as in everything that reads metrics.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(nanos: u64) -> f64 {
    number(nanos) / 1e9
}

/// A label's value as the format wants it.
fn escaped(value: String) -> Cow<'static, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Owned(value);
    }
    let text = value.replace('\\', "\\\\").replace('"', "\\\"");
    Cow::Owned(text.replace('\n', "\\n"))
}
