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

/// Which loop took a connection up does not show: not in a list, nor in what is told before an attachment.
#[test]
fn snapshots_of_all_stores_are_served_through_one_socket() {
    if !has(&["nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let stores = ["a", "b"].map(|name| folder.join(name));
    let mut words = vec!["--store-size", "1GiB"];
    for store in &stores {
        words.extend(["--store", store.to_str().unwrap()]);
    }
    let daemon = Start::new(&folder.join("d")).with(&words).ready();
    let mut used = Vec::new();
    for (i, name) in ["v0", "v1", "v2", "v3"].into_iter().enumerate() {
        daemon.create(name, "64MiB");
        let show = daemon.json(&["volume", "show", name]);
        used.push(show["store"].as_u64().unwrap());
        let mut client = daemon.client(name);
        let block = fill(i as u64, 1, 1);
        client.write(4096, &block, 0).unwrap().unwrap();
        let snapshot = format!("{name}@s");
        daemon.esker(&["snapshot", "create", &snapshot]).ok();
        client.write(8192, &block, 0).unwrap().unwrap();
        // Fills this store a little, so that the next volume goes to the other one.
        let much: Vec<u8> = block.repeat(1024);
        client.write(32 << 20, &much, 0).unwrap().unwrap();
        client.flush().unwrap().unwrap();
    }
    used.sort_unstable();
    used.dedup();
    assert_eq!(used, [0, 1]);
    let list = run("nbdinfo", &["--list", "--json", &daemon.uri("")]).ok();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let exports = list["exports"].as_array().unwrap().iter();
    let names: Vec<_> = exports.filter_map(|e| e["export-name"].as_str()).collect();
    let expected = ["v0", "v0@s", "v1", "v1@s", "v2", "v2@s", "v3", "v3@s"];
    assert_eq!(names, expected);
    for (i, name) in ["v0", "v1", "v2", "v3"].into_iter().enumerate() {
        let mut cut = daemon.client(&format!("{name}@s"));
        let read = cut.read(4096, 8192).unwrap().unwrap();
        assert_eq!(read[..4096], fill(i as u64, 1, 1));
        assert!(read[4096..].iter().all(|byte| *byte == 0));
        let map = ["--map=qemu:dirty-bitmap:since=s", &daemon.uri(name)];
        let map = run("nbdinfo", &map).ok();
        let dirty: Vec<Vec<&str>> = map
            .lines()
            .filter(|line| line.contains("dirty"))
            .map(|line| line.split_whitespace().take(2).collect())
            .collect();
        assert_eq!(dirty, [["8192", "4096"], ["33554432", "4194304"]], "{map}");
    }
    daemon.stop();
    for store in &stores {
        verify(store);
    }
}
