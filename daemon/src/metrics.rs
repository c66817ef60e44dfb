//! Metrics for Prometheus: asked of the stores at every scrape, so that none can be stale.

use crate::error::DaemonError;
use crate::identity::Identity;
use crate::report::VERSION;
use crate::stores::Stores;
use axum::extract::State;
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Router;
use esker_base::num::to_u64;
use esker_node::admin::{SpaceReport, StatusReport};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use tokio::net::TcpListener;

/// The type the format asks for.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = [(&'static str, String); 1];
type SpaceField = fn(&SpaceReport) -> u64;
type GaugeFamily = Family<Labels, Gauge<u64, AtomicU64>>;

#[derive(Clone)]
struct Scraped {
    stores: Arc<Stores>,
    identity: Identity,
}

/// Serves `GET /metrics` until it is dropped.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    stores: Arc<Stores>,
    identity: Identity,
) -> Result<(), DaemonError> {
    let app = Router::new()
        .route("/metrics", get(scrape))
        .with_state(Scraped { stores, identity });
    axum::serve(listener, app)
        .await
        .map_err(|source| DaemonError::System {
            operation: "serve metrics",
            source,
        })
}

async fn scrape(State(scraped): State<Scraped>) -> Response {
    match text(&scraped.stores, &scraped.identity).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// The metrics now.
///
/// # Errors
/// When they cannot be written as text.
pub async fn text(stores: &Stores, identity: &Identity) -> io::Result<String> {
    let mut registry = Registry::with_prefix("esker");
    let build = Info::new([
        ("version", VERSION.to_string()),
        ("node", identity.node.to_string()),
        ("cluster", identity.cluster.to_string()),
    ]);
    registry.register("build", "Version and identity of this node", build);
    let metrics = StoreMetrics::register(&mut registry);
    for status in stores.status().await {
        let labels = [("store", status.store.index.to_string())];
        let is_fenced = status.store.state().fenced.is_some();
        metrics
            .up
            .get_or_create(&labels)
            .set(u64::from(status.report.is_ok()));
        metrics
            .fenced
            .get_or_create(&labels)
            .set(u64::from(is_fenced));
        if let Ok(report) = &status.report {
            metrics.set_status(&labels, report);
        }
    }
    // A store that does not answer has no figures; the others have theirs.
    for (store, space) in stores.all().iter().zip(stores.space_each().await) {
        if let Some(space) = space {
            metrics.set_space(&[("store", store.index.to_string())], &space);
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_err(io::Error::other)?;
    Ok(text)
}

/// The metrics of each store.
struct StoreMetrics {
    up: GaugeFamily,
    fenced: GaugeFamily,
    healthy: GaugeFamily,
    volumes: GaugeFamily,
    sessions: GaugeFamily,
    damaged_blocks: GaugeFamily,
    space: Vec<(SpaceField, GaugeFamily)>,
    written: Vec<(SpaceField, Family<Labels, Counter>)>,
}

impl StoreMetrics {
    fn register(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let family = GaugeFamily::default();
            registry.register(name, help, family.clone());
            family
        };
        let up = gauge("up", "1 while the store answers");
        let fenced = gauge(
            "fenced",
            "1 after a failed write or sync: the store takes no writes",
        );
        let healthy = gauge("healthy", "0 when the store needs an operator");
        let volumes = gauge("volumes", "Volumes in the store");
        let sessions = gauge("sessions", "Attached NBD sessions");
        let damaged_blocks = gauge("damaged_blocks", "Blocks found damaged since the start");
        let mut bytes = |name: &str, help: &str, field: SpaceField| {
            let family = GaugeFamily::default();
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
            (field, family)
        };
        let space = vec![
            bytes("space_live", "Live data and map pages", |r| r.live_bytes),
            bytes("space_snapshot", "Held only by snapshots", |r| {
                r.snapshot_bytes
            }),
            bytes("space_garbage", "Dead, not reusable yet", |r| {
                r.garbage_bytes
            }),
            bytes("space_free", "Can be written", |r| r.free_bytes),
            bytes("space_total", "Size of the store", |r| r.total_bytes),
            bytes("space_reserve", "Kept back for the map and deletion", |r| {
                r.reserve_bytes
            }),
        ];
        let mut counted = |name: &str, help: &str, field: SpaceField| {
            let family = Family::<Labels, Counter>::default();
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
            (field, family)
        };
        let written = vec![
            counted(
                "device_written",
                "Written to the device since the store was created",
                |r| r.device_bytes_written,
            ),
            counted(
                "client_written",
                "Written by clients since the store was created",
                |r| r.client_bytes_written,
            ),
        ];
        Self {
            up,
            fenced,
            healthy,
            volumes,
            sessions,
            damaged_blocks,
            space,
            written,
        }
    }

    fn set_status(&self, labels: &Labels, report: &StatusReport) {
        self.healthy
            .get_or_create(labels)
            .set(u64::from(report.healthy));
        self.volumes
            .get_or_create(labels)
            .set(to_u64(report.volumes.len()));
        self.sessions
            .get_or_create(labels)
            .set(u64::from(report.sessions));
        self.damaged_blocks
            .get_or_create(labels)
            .set(report.damaged_blocks);
    }

    fn set_space(&self, labels: &Labels, report: &SpaceReport) {
        for (field, family) in &self.space {
            family.get_or_create(labels).set(field(report));
        }
        for (field, family) in &self.written {
            family.get_or_create(labels).inc_by(field(report));
        }
    }
}
