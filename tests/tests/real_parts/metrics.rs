//! The metrics of a running daemon: what a client did is what they say, and Prometheus' own parser
//! takes them.

use crate::client::{FUA, WRITE_ZEROES};
use crate::harness::{free_address, run, skip, Daemon, Folder, Start};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

/// All series of a scrape.
pub struct Scrape {
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    pub fn of(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        let series = text.lines().filter(|l| !l.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_string(), value.parse().unwrap())
        });
        Self {
            series: series.collect(),
            text: text.to_string(),
        }
    }

    #[track_caller]
    pub fn get(&self, name: &str) -> f64 {
        match self.series.get(name) {
            Some(value) => *value,
            None => panic!("no {name}"),
        }
    }

    /// A series of store 0, with more labels.
    #[track_caller]
    fn store(&self, name: &str, labels: &str) -> f64 {
        let comma = if labels.is_empty() { "" } else { "," };
        self.get(&format!("{name}{{store=\"0\"{comma}{labels}}}"))
    }

    #[track_caller]
    fn requests(&self, volume: &str, operation: &str) -> f64 {
        let labels = format!("volume=\"{volume}\",operation=\"{operation}\"");
        self.store("esker_volume_requests_total", &labels)
    }
}

fn serve(folder: &Folder, more: &[&str]) -> (Daemon, String) {
    let metrics = free_address();
    let start = Start::new(&folder.join("d")).with(&["--store-size", "1GiB"]);
    let daemon = start.metrics(&metrics).with(more).ready();
    (daemon, metrics)
}

#[test]
fn metrics_say_what_clients_did() {
    let folder = Folder::new();
    let (daemon, metrics) = serve(&folder, &[]);
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    let data = vec![7; 8192];
    for block in 0..10 {
        client.write(block * 8192, &data, 0).unwrap().unwrap();
    }
    client.write(0, &data, FUA).unwrap().unwrap();
    client.flush().unwrap().unwrap();
    for block in 0..5 {
        assert_eq!(
            client.read(block * 8192, 4096).unwrap().unwrap()[..],
            data[..4096]
        );
    }
    client.trim(0, 4096).unwrap().unwrap();
    client.send(0, WRITE_ZEROES, 8192, 8192, &[]).unwrap();
    assert_eq!(client.reply().unwrap().1, 0);

    let scrape = Scrape::of(&metrics);
    for (operation, count, bytes) in [
        ("read", 5.0, 20_480.0),
        ("write", 11.0, 90_112.0),
        ("flush", 1.0, 0.0),
        ("trim", 1.0, 4096.0),
        ("write_zeroes", 1.0, 8192.0),
    ] {
        let labels = format!("operation=\"{operation}\"");
        assert_eq!(scrape.requests("v", operation), count, "{operation}");
        let all = scrape.store("esker_request_duration_seconds_count", &labels);
        assert_eq!(all, count, "{operation}");
        assert_eq!(scrape.store("esker_request_bytes_total", &labels), bytes);
    }
    // A write that waits for the sync took time, and so did the sync.
    let took = scrape.store("esker_request_duration_seconds_sum", "operation=\"write\"");
    assert!(took > 0.0 && took < 60.0, "{took}");
    assert!(scrape.store("esker_sync_duration_seconds_count", "") >= 2.0);
    assert!(scrape.store("esker_sync_duration_seconds_sum", "") > 0.0);
    assert_eq!(scrape.store("esker_request_queue_depth_count", ""), 19.0);
    assert_eq!(scrape.store("esker_log_record_blocks_sum", ""), 22.0);
    assert_eq!(
        scrape.store("esker_client_written_bytes_total", ""),
        90_112.0
    );
    let purposes = ["record", "map", "superblock"].map(|purpose| {
        let labels = format!("purpose=\"{purpose}\"");
        scrape.store("esker_device_write_bytes_total", &labels)
    });
    let written = scrape.store("esker_device_written_bytes_total", "");
    assert_eq!(
        purposes.iter().sum::<f64>(),
        written,
        "a store of this start"
    );
    assert_eq!(purposes[0], scrape.store("esker_log_record_bytes_sum", ""));
    let space = |part: &str| scrape.store(&format!("esker_space_{part}_bytes"), "");
    assert_eq!(
        space("live") + space("garbage") + space("free"),
        space("total")
    );
    let segments = ["free", "log", "map", "survivors"]
        .map(|kind| scrape.store("esker_segments", &format!("kind=\"{kind}\"")));
    assert_eq!(
        segments.iter().sum::<f64>() * f64::from(64 << 20),
        space("total")
    );
    assert_eq!(scrape.store("esker_sessions", ""), 1.0);
    assert_eq!(
        scrape.store("esker_volumes_in_state", "state=\"ready\""),
        1.0
    );
    assert_eq!(scrape.store("esker_requests_in_flight", ""), 0.0);
    assert_eq!(scrape.store("esker_healthy", ""), 1.0);

    drop(client);
    daemon.stop();
    let (daemon, metrics) = serve(&folder, &[]);
    let scrape = Scrape::of(&metrics);
    assert_eq!(
        scrape.store("esker_client_written_bytes_total", ""),
        90_112.0
    );
    assert_eq!(scrape.requests("v", "write"), 0.0, "counts begin anew");

    let mut client = daemon.client("v");
    client.write(0, &data, FUA).unwrap().unwrap();
    drop(client);
    daemon.kill();
    let (daemon, metrics) = serve(&folder, &[]);
    let scrape = Scrape::of(&metrics);
    assert!(scrape.store("esker_recovery_records", "") >= 1.0);
    assert!(scrape.store("esker_recovery_scanned_bytes", "") >= 8192.0);
    assert!(scrape.store("esker_recovery_duration_seconds", "") > 0.0);
    daemon.stop();
}

/// The parser that Prometheus' own Python client brings.
#[test]
fn the_parser_of_prometheus_takes_the_metrics() {
    let python = std::env::var("ESKER_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".into());
    let parser = "from prometheus_client.openmetrics.parser import text_string_to_metric_families";
    if run(&python, &["-c", parser]).code != Some(0) {
        return skip("python3-prometheus-client is not installed");
    }
    let folder = Folder::new();
    let (daemon, metrics) = serve(&folder, &[]);
    daemon.create("v", "64MiB");
    daemon.client("v").write(0, &[1; 4096], 0).unwrap().unwrap();
    let text = folder.join("metrics");
    fs::write(&text, Scrape::of(&metrics).text).unwrap();
    let script = format!(
        "import sys\n{parser}\nfor f in text_string_to_metric_families(open(sys.argv[1]).read()):\n  \
         print(f.type, f.name, len(f.samples))"
    );
    let out = run(&python, &["-c", &script, text.to_str().unwrap()]).ok();
    assert!(
        out.contains("histogram esker_request_duration_seconds "),
        "{out}"
    );
    daemon.stop();
}
