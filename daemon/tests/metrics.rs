//! The text of the metrics: that it is what Prometheus takes, that it holds what the stores
//! counted, and that docs/metrics.md lists all of it.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

#[path = "support/fake.rs"]
mod fake;
#[path = "support/openmetrics.rs"]
mod openmetrics;

use esker_daemon::certificates::CertificateEnd;
use esker_daemon::metrics::catalog::families;
use esker_daemon::metrics::process::ProcessFigures;
use esker_daemon::metrics::table::{Source, OTHERS};
use esker_daemon::metrics::{self, Scraped, ScrapedStore};
use esker_node::meters::{StoreSample, VolumeCounts, VolumeSample};
use fake::{FakeNode, IDENTITY};
use openmetrics::Parsed;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn scraped(stores: Vec<ScrapedStore>) -> Scraped {
    Scraped {
        identity: IDENTITY,
        process: ProcessFigures::now(),
        automatic: esker_daemon::retention::Counts {
            taken: 5,
            ..Default::default()
        },
        log_lines_dropped: 0,
        peers: BTreeMap::from([(
            esker_base::NodeId(7),
            esker_runtime::peers::PeerCounts::default(),
        )]),
        links_refused: 0,
        certificates: vec![CertificateEnd {
            setting: "tls_cert",
            until_unix: 1_800_000_000,
        }],
        stores,
    }
}

fn store(index: usize, path: &str, sample: Option<StoreSample>) -> ScrapedStore {
    ScrapedStore {
        index,
        path: path.into(),
        size_bytes: 1 << 30,
        is_fenced: false,
        sample,
    }
}

/// A sample in which everything that the tests look at differs from zero.
fn sample() -> StoreSample {
    let mut sample = StoreSample::default();
    for nanos in [1_000, 20_000, 20_000, 3_000_000, 20_000_000_000] {
        sample.requests.took[1].observe(nanos);
    }
    sample.requests.bytes[1] = 20_480;
    sample.requests.errors[1] = 2;
    sample.requests.depth.observe(0);
    sample.engine.meters.record_bytes.observe(8192);
    sample.engine.meters.syncs.observe(150_000);
    sample.engine.segments = [5, 3, 1, 0];
    let mut counts = VolumeCounts::default();
    counts.requests[0] = 7;
    for name in ["a", "b"] {
        sample.volumes.push(VolumeSample {
            name: name.into(),
            volumes: 1,
            counts,
            in_state: [1, 0, 0, 0, 0],
            ..VolumeSample::default()
        });
    }
    sample.others = VolumeSample {
        volumes: 3,
        counts,
        in_state: [2, 1, 0, 0, 0],
        ..VolumeSample::default()
    };
    sample
}

fn text_of(stores: Vec<ScrapedStore>) -> Parsed {
    let text = metrics::render(scraped(stores)).unwrap();
    Parsed::new(&text).unwrap_or_else(|error| panic!("{error} in:\n{text}"))
}

#[test]
fn the_text_is_valid_and_holds_what_was_counted() {
    let parsed = text_of(vec![
        store(0, "/dev/a", Some(sample())),
        store(1, "/dev/\"b\\", None),
    ]);
    let value = |series: &str| parsed.value(series);
    assert_eq!(value("esker_up{store=\"0\"}"), 1.0);
    assert_eq!(
        value("esker_up{store=\"1\"}"),
        0.0,
        "and nothing else of it"
    );
    assert_eq!(
        value("esker_store_info{store=\"1\",path=\"/dev/\\\"b\\\\\"}"),
        1.0
    );
    assert!(!parsed.has("esker_sessions{store=\"1\"}"));
    let end = value("esker_certificate_expiry_seconds{certificate=\"tls_cert\"}");
    assert_eq!(end, 1.8e9);

    let writes = |part: &str| format!("esker_request_duration_seconds{part}");
    let labels = "store=\"0\",operation=\"write\"";
    assert_eq!(value(&writes(&format!("_count{{{labels}}}"))), 5.0);
    let bucket = |le: &str| value(&writes(&format!("_bucket{{le=\"{le}\",{labels}}}")));
    let sum = value(&writes(&format!("_sum{{{labels}}}")));
    assert!((sum - 20.003_041).abs() < 1e-9, "{sum}");
    assert_eq!(bucket("0.000008192"), 1.0);
    assert_eq!(bucket("0.000016384"), 1.0);
    assert_eq!(bucket("0.000024576"), 3.0, "two of 20 µs");
    assert_eq!(bucket("8.589934592"), 4.0);
    assert_eq!(bucket("+Inf"), 5.0);

    assert_eq!(
        value("esker_request_errors_total{store=\"0\",error=\"no_space\"}"),
        2.0
    );
    assert_eq!(value("esker_segments{store=\"0\",kind=\"free\"}"), 5.0);
    let reads = |volume: &str| {
        value(&format!(
            "esker_volume_requests_total{{store=\"0\",volume=\"{volume}\",operation=\"read\"}}"
        ))
    };
    assert_eq!([reads("a"), reads("b"), reads(OTHERS)], [7.0; 3]);
    let state = format!("esker_volume_state{{store=\"0\",volume=\"{OTHERS}\",state=\"ready\"}}");
    assert_eq!(value(&state), 2.0);
}

/// The number of series follows from the stores and the volumes that have series of their own, and
/// from nothing that clients or time could make grow.
#[test]
fn the_number_of_series_is_bounded() {
    let count = |volumes: usize| {
        let mut sample = sample();
        sample.volumes = (0..volumes)
            .map(|index| VolumeSample {
                name: index.to_string(),
                ..VolumeSample::default()
            })
            .collect();
        text_of(vec![store(0, "x", Some(sample))]).len()
    };
    let (none, one, hundred) = (count(0), count(1), count(100));
    assert!(none <= 600, "{none} series of a store");
    assert!(one - none <= 25, "{} series of a volume", one - none);
    assert_eq!(hundred - none, 100 * (one - none));
}

#[test]
fn a_store_that_does_not_answer_takes_nothing_from_the_others() {
    let node = FakeNode::new(&[10, 20]).with(0, |store| store.is_dead = true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let text = runtime
        .block_on(metrics::text(&node.stores(), &IDENTITY, 0, Vec::new()))
        .unwrap();
    let parsed = Parsed::new(&text).unwrap();
    assert_eq!(parsed.value("esker_up{store=\"0\"}"), 0.0);
    assert_eq!(parsed.value("esker_up{store=\"1\"}"), 1.0);
    assert_eq!(parsed.value("esker_space_free_bytes{store=\"1\"}"), 20.0);
    assert!(!parsed.has("esker_space_free_bytes{store=\"0\"}"));
}

/// What the checker of these tests must notice; otherwise its silence says nothing.
#[test]
fn the_checker_notices_what_is_wrong() {
    let good = "# HELP a_seconds A.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                a_seconds_sum{x=\"1\"} 3.0\na_seconds_count{x=\"1\"} 3\n\
                a_seconds_bucket{le=\"1.0\",x=\"1\"} 1\na_seconds_bucket{le=\"2.0\",x=\"1\"} 2\n\
                a_seconds_bucket{le=\"+Inf\",x=\"1\"} 3\n\
                # HELP b B.\n# TYPE b counter\nb_total 1\n# EOF\n";
    Parsed::new(good).unwrap();
    for (from, to) in [
        ("# EOF\n", ""),
        ("b_total 1", "b 1"),
        ("b_total 1", "b_total -1"),
        ("b_total 1", "b_total one"),
        ("b_total 1", "b_total 1\nb_total 2"),
        ("b_total 1", "c 1"),
        ("# HELP b B.\n", ""),
        ("# TYPE b counter\n", ""),
        ("le=\"2.0\",x=\"1\"} 2", "le=\"2.0\",x=\"1\"} 0"),
        ("le=\"2.0\"", "le=\"0.5\""),
        ("le=\"+Inf\",x=\"1\"} 3", "le=\"+Inf\",x=\"1\"} 4"),
        ("a_seconds_count{x=\"1\"} 3\n", ""),
        ("a_seconds_sum{x=\"1\"}", "a_seconds_sum{x=\"1\"\"}"),
        ("a_seconds_sum{x=\"1\"}", "a_seconds_sum{x=1}"),
        ("# UNIT a_seconds seconds", "# UNIT a_seconds bytes"),
    ] {
        assert!(good.contains(from), "{from}");
        let bad = good.replacen(from, to, 1);
        assert!(Parsed::new(&bad).is_err(), "{from} → {to}");
    }
}

/// The lists of docs/metrics.md. `ESKER_UPDATE=1` writes them anew.
#[test]
fn the_document_lists_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- list -->\n", "<!-- end -->");
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let expected = format!("{before}{begin}{}{end}{after}", list());
    if std::env::var_os("ESKER_UPDATE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    assert_eq!(
        text, expected,
        "docs/metrics.md: run this test with ESKER_UPDATE=1"
    );

    // What is described is what is sent.
    let parsed = text_of(vec![store(0, "x", Some(sample()))]);
    let described: BTreeSet<String> = families().iter().map(|f| f.full_name()).collect();
    assert_eq!(described.len(), families().len(), "names are unique");
    let sent: BTreeSet<String> = parsed.families().map(String::from).collect();
    assert_eq!(described, sent);
}

fn list() -> String {
    let mut out = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    let mut values = BTreeMap::new();
    for family in families() {
        let labels = family.source.labels().join(", ");
        out += &format!(
            "| `{}` | {} | {labels} | {} |\n",
            family.full_name(),
            family.kind.as_str(),
            family.help
        );
        let label = match family.source {
            Source::NumberBy(label, _)
            | Source::DurationsBy(label, _)
            | Source::VolumeBy(label, _) => label,
            _ => continue,
        };
        let names: &mut Vec<&str> = values.entry(label.0).or_default();
        for name in label.1 {
            if !names.contains(name) {
                names.push(name);
            }
        }
    }
    out += "\nValues of labels:\n\n";
    for (label, names) in values {
        out += &format!("- `{label}`: {}\n", names.join(", "));
    }
    out
}
