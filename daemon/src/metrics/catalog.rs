//! Every metric of the daemon.

use super::table::{Family, Kind, Source};
use super::{Labels, Scraped, Series, Value};
use crate::report::VERSION;
use esker_base::Histogram;
use esker_engine::meters::{DISK_ERROR_KINDS, READ_KINDS, SEGMENT_KINDS, WRITE_KINDS};
use esker_node::meters::{StoreSample, OPERATIONS, REQUEST_ERRORS, VOLUME_STATES};

/// All metrics, in the order in which they are shown.
#[must_use]
pub fn families() -> Vec<Family> {
    let mut all = node();
    all.extend(stores());
    all.extend(requests());
    all.extend(volumes());
    all.extend(log());
    all.extend(device());
    all.extend(map());
    all.extend(space());
    all.extend(recovery());
    all.extend(super::links::families());
    all
}

fn family(name: &'static str, kind: Kind, source: Source, help: &'static str) -> Family {
    let bounds = match source {
        // 8 µs to 8.6 s.
        Source::Durations(_) | Source::DurationsBy(..) => Histogram::bounds(1 << 13, 1 << 33, true),
        _ => Vec::new(),
    };
    Family {
        name,
        kind,
        help,
        source,
        bounds,
    }
}

fn gauge(name: &'static str, source: Source, help: &'static str) -> Family {
    family(name, Kind::Gauge, source, help)
}

fn counter(name: &'static str, source: Source, help: &'static str) -> Family {
    family(name, Kind::Counter, source, help)
}

fn histogram(name: &'static str, source: Source, help: &'static str) -> Family {
    family(name, Kind::Histogram, source, help)
}

/// With powers of two from `first` to `last` as bounds.
fn histogram_of(
    name: &'static str,
    source: Source,
    (first, last): (u64, u64),
    help: &'static str,
) -> Family {
    Family {
        bounds: Histogram::bounds(first, last, false),
        ..family(name, Kind::Histogram, source, help)
    }
}

fn node() -> Vec<Family> {
    fn one(series: &mut Series<'_>, value: Value<'_>) {
        series.add(Labels::new(), value);
    }
    let build = |scraped: &Scraped, series: &mut Series<'_>| {
        let labels = vec![
            ("version", VERSION.to_string()),
            ("node", scraped.identity.node.to_string()),
            ("cluster", scraped.identity.cluster.to_string()),
        ];
        series.add(labels, Value::Number(1));
    };
    vec![
        family(
            "esker_build",
            Kind::Info,
            Source::Node(build),
            "Version and identity of this node, as labels.",
        ),
        counter(
            "process_cpu_seconds",
            Source::Node(|s, out| one(out, Value::Nanos(s.process.cpu_nanos))),
            "Processor time of all threads.",
        ),
        gauge(
            "process_resident_memory_bytes",
            Source::Node(|s, out| one(out, Value::Number(s.process.resident_bytes))),
            "Resident memory.",
        ),
        gauge(
            "process_open_fds",
            Source::Node(|s, out| one(out, Value::Number(s.process.open_descriptors))),
            "Open file descriptors.",
        ),
        gauge(
            "process_start_time_seconds",
            Source::Node(|s, out| one(out, Value::Nanos(s.process.started_nanos))),
            "When the process started, in seconds since 1970.",
        ),
        counter(
            "esker_log_lines_dropped",
            Source::Node(|s, out| one(out, Value::Number(s.log_lines_dropped))),
            "Lines of the log that were dropped because whoever reads it did not keep up.",
        ),
        counter(
            "esker_automatic_snapshots",
            Source::Node(|scraped, series| {
                let counts = &scraped.automatic;
                for (result, count) in [
                    ("taken", counts.taken),
                    ("deleted", counts.deleted),
                    ("postponed", counts.postponed),
                    ("failed", counts.failed),
                ] {
                    series.add(vec![("result", result.into())], Value::Number(count));
                }
            }),
            "What snapshot schedules have done, by `result`: snapshots taken and deleted, deletions postponed because sessions \
             read the snapshot, and failures.",
        ),
        gauge(
            "esker_certificate_expiry_seconds",
            Source::Node(|scraped, series| {
                for end in &scraped.certificates {
                    let until = u64::try_from(end.until_unix).unwrap_or(0);
                    let labels = vec![("certificate", end.setting.into())];
                    series.add(labels, Value::Number(until));
                }
            }),
            "When the first certificate in a file ends, in seconds since 1970, by the setting that names the file, \
             `certificate`: tls_cert, tls_ca, keys.kmip.cert_file and so on.",
        ),
    ]
}

fn stores() -> Vec<Family> {
    let info = |scraped: &Scraped, series: &mut Series<'_>| {
        for store in &scraped.stores {
            let labels = vec![
                ("store", store.index.to_string()),
                ("path", store.path.clone()),
            ];
            series.add(labels, Value::Number(1));
        }
    };
    vec![
        family(
            "esker_store",
            Kind::Info,
            Source::Node(info),
            "The device or file of a store, as label.",
        ),
        gauge(
            "esker_up",
            Source::Store(|s| u64::from(s.sample.is_some())),
            "1 while the store answers.",
        ),
        gauge(
            "esker_fenced",
            Source::Store(|s| u64::from(s.is_fenced)),
            "1 after a failed write or sync: the store takes no writes until eskerd is restarted.",
        ),
        gauge(
            "esker_healthy",
            Source::Number(|s| u64::from(s.problems == 0)),
            "0 when the store needs an operator; `esker status --why` says what for.",
        ),
        gauge(
            "esker_sessions",
            Source::Number(|s| s.sessions_now),
            "Attached NBD sessions.",
        ),
        gauge(
            "esker_connections",
            Source::Number(|s| s.connections_now),
            "NBD connections, attached or not.",
        ),
        counter(
            "esker_sessions_attached",
            Source::Number(|s| s.sessions.attached),
            "Sessions that attached to a volume.",
        ),
        counter(
            "esker_sessions_fenced",
            Source::Number(|s| s.sessions.fenced),
            "Sessions that were ended because another attachment took the place of theirs.",
        ),
        counter(
            "esker_holds",
            Source::Number(|s| s.holds.begun),
            "Times that changes of a volume waited for a group snapshot.",
        ),
        counter(
            "esker_holds_expired",
            Source::Number(|s| s.holds.expired),
            "Those of them that ended because it took too long.",
        ),
        counter(
            "esker_hold_seconds",
            Source::Nanos(|s| u64::try_from(s.holds.time.as_nanos()).unwrap_or(u64::MAX)),
            "How long changes of volumes waited for group snapshots, together.",
        ),
        counter(
            "esker_connections_broken",
            Source::Number(|s| s.sessions.broken),
            "Connections that were ended because the client broke the protocol.",
        ),
        gauge(
            "esker_damaged_blocks",
            Source::Number(|s| s.engine.damaged_blocks),
            "Blocks found damaged since the start, less those that were repaired from other copies.",
        ),
        counter(
            "esker_blocks_repaired",
            Source::Number(|s| s.engine.repaired_blocks),
            "Damaged blocks that were written over with what another copy of their volume has.",
        ),
        counter(
            "esker_zeroed_bytes",
            Source::Number(|s| s.engine.zeroed_bytes),
            "Zeros written to segments that were never used, ahead of the log and while nothing else was to do.",
        ),
        counter(
            "esker_blocks_refused",
            Source::Number(|s| s.blocks_refused),
            "Reads that ended at a sealed block that does not open: changed, moved, or replaced by an older one.",
        ),
        counter(
            "esker_maps_refused",
            Source::Number(|s| s.maps_refused),
            "Maps of encrypted volumes that nothing vouches for, or not as they are: the volume is locked, and the log says why.",
        ),
        gauge(
            "esker_catch_up_replicas",
            Source::Number(|s| s.catch_ups.running),
            "Replicas of this store that lag behind the log of their leader and fetch what has changed.",
        ),
        counter(
            "esker_catch_up_replicas_done",
            Source::Number(|s| s.catch_ups.ended),
            "Replicas that caught up that way.",
        ),
        counter(
            "esker_catch_up_fetched_bytes",
            Source::Number(|s| s.catch_ups.blocks * esker_base::BLOCK_SIZE_U64),
            "Blocks that this store's replicas fetched, in bytes.",
        ),
        counter(
            "esker_catch_up_given_bytes",
            Source::Number(|s| s.catch_ups.given * esker_base::BLOCK_SIZE_U64),
            "Blocks that this store gave to replicas of others, in bytes.",
        ),
    ]
}

fn requests() -> Vec<Family> {
    const OPERATION: (&str, &[&str]) = ("operation", &OPERATIONS);
    vec![
        histogram(
            "esker_request_duration_seconds",
            Source::DurationsBy(OPERATION, |s, i| &s.requests.took[i]),
            "Requests of clients, from being parsed to the reply being queued; failed ones included.",
        ),
        counter(
            "esker_request_bytes",
            Source::NumberBy(OPERATION, |s, i| s.requests.bytes[i]),
            "Bytes that answered requests covered.",
        ),
        counter(
            "esker_request_errors",
            Source::NumberBy(("error", &REQUEST_ERRORS), |s, i| s.requests.errors[i]),
            "Requests answered with an error. Those that a session refuses by itself, because they \
             are malformed, are not among them.",
        ),
        counter(
            "esker_requests_slow",
            Source::Number(|s| s.requests.slow),
            "Requests that took longer than `slow_request` of the configuration.",
        ),
        histogram_of(
            "esker_request_queue_depth",
            Source::Counts(|s| &s.requests.depth),
            (1, 16_384),
            "Requests that were on their way already when one arrived.",
        ),
        gauge(
            "esker_requests_in_flight",
            Source::Number(|s| s.requests_now),
            "Requests on their way now.",
        ),
        gauge(
            "esker_requests_in_flight_bytes",
            Source::Number(|s| s.request_bytes_now),
            "Payload of the requests on their way.",
        ),
        gauge(
            "esker_request_oldest_seconds",
            Source::Nanos(|s| s.oldest_request_ns),
            "Age of the oldest request on its way.",
        ),
    ]
}

fn volumes() -> Vec<Family> {
    const OPERATION: (&str, &[&str]) = ("operation", &OPERATIONS);
    vec![
        gauge(
            "esker_volumes",
            Source::Number(|s| s.volume_states.iter().sum()),
            "Volumes in the store.",
        ),
        gauge(
            "esker_volumes_in_state",
            Source::NumberBy(("state", &VOLUME_STATES), |s, i| s.volume_states[i]),
            "Volumes by state.",
        ),
        gauge(
            "esker_volumes_summed",
            Source::Number(|s| s.others.volumes),
            "Volumes without series of their own: those past `metrics_volumes_max` of the \
             configuration, summed as volume `(others)`.",
        ),
        gauge(
            "esker_volume_state",
            Source::VolumeBy(("state", &VOLUME_STATES), |v, i| v.in_state[i]),
            "1 for the state that the volume is in; of `(others)`, the number of volumes in it.",
        ),
        gauge(
            "esker_volume_size_bytes",
            Source::Volume(|v| v.size_bytes),
            "Size as clients see it.",
        ),
        gauge(
            "esker_volume_used_bytes",
            Source::Volume(|v| v.used_bytes),
            "Live data as of the last checkpoint; `esker volume show` counts what came since.",
        ),
        gauge(
            "esker_volume_snapshots",
            Source::Volume(|v| v.snapshots),
            "Snapshots of it.",
        ),
        gauge(
            "esker_volume_snapshot_bytes",
            Source::Volume(|v| v.snapshot_bytes),
            "Bytes that only its snapshots hold, as of the last checkpoint.",
        ),
        gauge(
            "esker_volume_sessions",
            Source::Volume(|v| v.sessions),
            "Attached NBD sessions.",
        ),
        counter(
            "esker_volume_requests",
            Source::VolumeBy(OPERATION, |v, i| v.counts.requests[i]),
            "Requests answered.",
        ),
        counter(
            "esker_volume_request_bytes",
            Source::VolumeBy(OPERATION, |v, i| v.counts.bytes[i]),
            "Bytes that answered requests covered.",
        ),
        counter(
            "esker_volume_request_errors",
            Source::Volume(|v| v.counts.errors),
            "Requests answered with an error.",
        ),
    ]
}

fn log() -> Vec<Family> {
    vec![
        histogram_of(
            "esker_log_record_entries",
            Source::Counts(|s| &s.engine.meters.record_entries),
            (1, 4096),
            "Entries in each log record written.",
        ),
        histogram_of(
            "esker_log_record_blocks",
            Source::Counts(|s| &s.engine.meters.record_blocks),
            (1, 4096),
            "Blocks of 4 KiB in each log record written.",
        ),
        histogram_of(
            "esker_log_record_bytes",
            Source::Counts(|s| &s.engine.meters.record_bytes),
            (4096, 32 << 20),
            "Size of each log record written, its header included.",
        ),
        gauge(
            "esker_log_pending_entries",
            Source::Number(|s| s.engine.log_pending),
            "Entries that wait for a record.",
        ),
        gauge(
            "esker_log_records_in_flight",
            Source::Number(|s| s.engine.log_in_flight),
            "Records being written.",
        ),
        gauge(
            "esker_log_unsynced_bytes",
            Source::Number(|s| s.engine.log_unsynced_bytes),
            "Records written and not synced.",
        ),
        gauge(
            "esker_log_since_checkpoint_bytes",
            Source::Number(|s| s.engine.log_bytes_since_checkpoint),
            "Log since the last checkpoint began: what a recovery would read.",
        ),
        gauge(
            "esker_log_stalled",
            Source::Number(|s| u64::from(s.engine.is_stalled)),
            "1 while the log waits for room or for a checkpoint.",
        ),
    ]
}

fn device() -> Vec<Family> {
    const WRITES: (&str, &[&str]) = ("purpose", &WRITE_KINDS);
    const READS: (&str, &[&str]) = ("purpose", &READ_KINDS);
    vec![
        counter(
            "esker_device_writes",
            Source::NumberBy(WRITES, |s, i| s.engine.meters.writes[i].operations),
            "Writes to the device.",
        ),
        counter(
            "esker_device_write_bytes",
            Source::NumberBy(WRITES, |s, i| s.engine.meters.writes[i].bytes),
            "Bytes written to the device since the start.",
        ),
        counter(
            "esker_device_reads",
            Source::NumberBy(READS, |s, i| s.engine.meters.reads[i].operations),
            "Reads of the device.",
        ),
        counter(
            "esker_device_read_bytes",
            Source::NumberBy(READS, |s, i| s.engine.meters.reads[i].bytes),
            "Bytes read from the device.",
        ),
        gauge(
            "esker_device_operations_in_flight",
            Source::Number(|s| s.engine.disk_in_flight),
            "Operations of the device on their way.",
        ),
        counter(
            "esker_device_errors",
            Source::NumberBy(("error", &DISK_ERROR_KINDS), |s, i| {
                s.engine.meters.disk_errors[i]
            }),
            "Failed operations of the device.",
        ),
        histogram(
            "esker_sync_duration_seconds",
            Source::Durations(|s| &s.engine.meters.syncs),
            "Syncs of the device.",
        ),
        counter(
            "esker_device_written_bytes",
            Source::Number(|s| s.space.device_bytes_written),
            "Bytes written to the device since the store was created.",
        ),
        counter(
            "esker_client_written_bytes",
            Source::Number(|s| s.space.client_bytes_written),
            "Bytes written by clients since the store was created; divided by it, the former is the \
             write amplification.",
        ),
    ]
}

fn map() -> Vec<Family> {
    vec![
        counter(
            "esker_node_cache_hits",
            Source::Number(|s| s.engine.cache_hits),
            "Lookups of map nodes that the cache answered.",
        ),
        counter(
            "esker_node_cache_misses",
            Source::Number(|s| s.engine.cache_misses),
            "Lookups of map nodes that it did not.",
        ),
        gauge(
            "esker_node_cache_bytes",
            Source::Number(|s| s.engine.cache_bytes),
            "Map nodes in the cache, those not written yet included.",
        ),
        gauge(
            "esker_node_cache_limit_bytes",
            Source::Number(|s| s.engine.cache_bytes_max),
            "What the cache may hold of nodes that are on the device.",
        ),
        histogram_of(
            "esker_checkpoint_duration_seconds",
            Source::Durations(|s| &s.engine.meters.checkpoints),
            (1 << 20, 1 << 37), // 1 ms to 137 s
            "Finished checkpoints.",
        ),
        counter(
            "esker_checkpoint_nodes",
            Source::Number(|s| s.engine.meters.checkpoint_nodes),
            "Map nodes that checkpoints have written.",
        ),
        gauge(
            "esker_checkpoint_running",
            Source::Number(|s| u64::from(s.engine.is_checkpointing)),
            "1 while a checkpoint is on its way.",
        ),
    ]
}

fn space() -> Vec<Family> {
    let bytes = |name, read: fn(&StoreSample) -> u64, help| gauge(name, Source::Number(read), help);
    vec![
        bytes(
            "esker_space_live_bytes",
            |s| s.space.live_bytes,
            "Live data that is not only in snapshots, and map pages.",
        ),
        bytes(
            "esker_space_snapshot_bytes",
            |s| s.space.snapshot_bytes,
            "Held only by snapshots and rewind points.",
        ),
        gauge(
            "esker_rewind_points",
            Source::Number(|s| s.rewind_points),
            "Rewind points: one for each second of a window in which its volume was written to.",
        ),
        counter(
            "esker_rewind_points_given_up",
            Source::Number(|s| s.rewind_points_given_up),
            "Rewind points deleted before their time because the store had little room left.",
        ),
        bytes(
            "esker_space_garbage_bytes",
            |s| s.space.garbage_bytes,
            "Dead, not reusable yet.",
        ),
        bytes(
            "esker_space_free_bytes",
            |s| s.space.free_bytes,
            "Can be written; the reserve is a part of it.",
        ),
        bytes(
            "esker_space_total_bytes",
            |s| s.space.total_bytes,
            "Size of all segments.",
        ),
        bytes(
            "esker_space_reserve_bytes",
            |s| s.space.reserve_bytes,
            "Kept back for the map and for deletion.",
        ),
        gauge(
            "esker_segments",
            Source::NumberBy(("kind", &SEGMENT_KINDS), |s, i| s.engine.segments[i]),
            "Segments by what they are used for.",
        ),
    ]
}

fn recovery() -> Vec<Family> {
    let last = |name, source, help| gauge(name, source, help);
    vec![
        last(
            "esker_recovery_duration_seconds",
            Source::Nanos(|s| s.recovery_ns),
            "How long the last start took, from opening the store to serving.",
        ),
        last(
            "esker_recovery_records",
            Source::Number(|s| s.ready.records_replayed),
            "Log records replayed at the last start.",
        ),
        last(
            "esker_recovery_scanned_bytes",
            Source::Number(|s| s.ready.bytes_scanned),
            "Bytes of log read at the last start.",
        ),
        last(
            "esker_recovery_torn_tail",
            Source::Number(|s| u64::from(s.ready.torn_tail)),
            "1 when the log ended in a torn tail, as it does after a power cut.",
        ),
        last(
            "esker_recovery_damaged_blocks",
            Source::Number(|s| s.ready.damaged_blocks),
            "Blocks found damaged at the last start.",
        ),
        last(
            "esker_recovery_damaged_records",
            Source::Number(|s| s.ready.damaged_records),
            "Durable log records found damaged at the last start.",
        ),
    ]
}
