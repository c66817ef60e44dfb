//! Benchmarks that drive the daemon: that they run, and that what they write is whole. Their numbers are
//! not looked at.

use crate::harness::{has, program, repository, run_for, Folder};
use std::fs;

/// `benches/snapshots.py --quick` measures every count of snapshots that it names, and of each
/// everything; a snapshot that was not taken or not listed ends it.
#[test]
fn what_snapshots_cost_is_measured() {
    if !has(&["python3", "fio", "qemu-nbd", "qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    let script = repository()
        .join("benches/snapshots.py")
        .display()
        .to_string();
    let path = |name: &str| folder.join(name).display().to_string();
    let bin = program("esker");
    let bin = bin.parent().unwrap().display().to_string();
    let (scratch, json, svg) = (path("b"), path("found.json"), path("found.svg"));
    let words = [
        &script, "--quick", "--dir", &scratch, "--bin", &bin, "--json", &json, "--svg", &svg,
    ];
    let table = run_for(240, "python3", &words).ok();
    assert!(table.contains("not to be quoted"), "{table}");
    let found: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let counts = |of: &str| -> Vec<u64> {
        let levels = found[of].as_array().unwrap().iter();
        levels
            .map(|level| level["snapshots"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(counts("esker"), [0, 1, 40]);
    assert_eq!(counts("qcow2"), [0, 1, 40]);
    for level in found["esker"].as_array().unwrap() {
        for key in [
            "first_read_s",
            "resident_mib",
            "scrape_ms",
            "snapshot_list_ms",
        ] {
            assert!(level[key].as_f64().unwrap() > 0.0, "{key}: {level}");
        }
        assert!(
            level["checkpoint"]["bytes"].as_u64().unwrap() > 0,
            "{level}"
        );
        let taken = level["under_load"]["create"]["count"].as_u64();
        assert_eq!(taken.unwrap_or(0) > 0, level["snapshots"] != 0, "{level}");
    }
    assert_eq!(found["after"]["clone"]["count"], 4);
    let plot = fs::read_to_string(&svg).unwrap();
    assert!(plot.ends_with("</svg>\n") && plot.contains("qcow2, random write"));
    assert!(!folder.join("b").exists(), "the scratch folder is left");
}
