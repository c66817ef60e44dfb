//! A node with several stores: one name space, one socket, each volume on one of them.

use crate::harness::{has, run, verify, Folder, Start};
use crate::pattern::fill;

#[test]
fn volumes_of_all_stores_are_served_through_one_socket() {
    let folder = Folder::new();
    let stores = ["a", "b", "c"].map(|name| folder.join(name));
    let mut words = vec!["--store-size", "1GiB"];
    for store in &stores {
        words.extend(["--store", store.to_str().unwrap()]);
    }
    let how = Start::new(&folder.join("d")).with(&words);
    let daemon = how.ready();
    // Each goes where most is free, so after a write there they spread.
    let mut used = Vec::new();
    for i in 0..6u64 {
        let name = format!("v{i}");
        daemon.create(&name, "128MiB");
        let mut client = daemon.client(&name);
        for at in 0..16 {
            let data: Vec<u8> = (0..256).flat_map(|b| fill(i, at * 256 + b, 1)).collect();
            client.write(at << 20, &data, 0).unwrap().unwrap();
        }
        client.flush().unwrap().unwrap();
        used.push(
            daemon.json(&["volume", "show", &name])["store"]
                .as_u64()
                .unwrap(),
        );
    }
    let mut which = used.clone();
    which.sort_unstable();
    which.dedup();
    assert_eq!(which, [0, 1, 2], "volumes by store: {used:?}");
    let again = daemon.esker(&["volume", "create", "v0", "--size", "1MiB"]);
    assert!(again.line(1).contains("v0"));

    let names = |daemon: &crate::harness::Daemon| -> Vec<String> {
        let list = run("nbdinfo", &["--list", "--json", &daemon.uri("")]).ok();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let names = list["exports"].as_array().unwrap().iter();
        let mut names: Vec<_> = names
            .map(|e| e["export-name"].as_str().unwrap().to_string())
            .collect();
        names.sort();
        names
    };
    if has(&["nbdinfo"]) {
        assert_eq!(names(&daemon), ["v0", "v1", "v2", "v3", "v4", "v5"]);
        daemon.esker(&["volume", "delete", "v5", "--yes"]).ok();
        daemon.esker(&["volume", "rename", "v4", "w"]).ok();
        assert_eq!(names(&daemon), ["v0", "v1", "v2", "v3", "w"]);
        daemon.esker(&["volume", "rename", "w", "v4"]).ok();
    }
    daemon.kill();
    let daemon = how.ready();
    for i in 0..5u64 {
        let name = format!("v{i}");
        for mut client in [daemon.client(&name), daemon.tcp_client(&name)] {
            for lba in (0..4096).step_by(64) {
                let got = client.read(lba * 4096, 4096).unwrap().unwrap();
                assert_eq!(got, fill(i, lba, 1), "{name} block {lba}");
            }
        }
    }
    let status = daemon.json(&["status"]);
    assert_eq!(status["healthy"], true, "{status}");
    daemon.stop();
    for store in &stores {
        verify(store);
    }
}

/// The first write of a volume waits until its epoch is open. It once waited until some other
/// request came, so a client that sends one request at a time hung for ever.
#[test]
fn a_lone_first_write_is_answered() {
    let folder = Folder::new();
    let how = Start::new(&folder.join("d")).with(&["--store-size", "1GiB"]);
    let daemon = how.ready();
    for name in ["a", "b"] {
        daemon.create(name, "1MiB");
    }
    let data = fill(1, 0, 1);
    assert_eq!(daemon.client("a").size_bytes, 1 << 20);
    daemon.client("a").write(0, &data, 0).unwrap().unwrap();
    daemon.tcp_client("b").write(0, &data, 0).unwrap().unwrap();
    daemon.stop();
    let daemon = how.ready();
    daemon.client("b").write(0, &data, 0).unwrap().unwrap();
    daemon.tcp_client("a").write(0, &data, 0).unwrap().unwrap();
    daemon.stop();
}
