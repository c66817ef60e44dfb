//! What somebody who got into the daemon would be refused.

use crate::harness::{program, run, Folder, Start};
use std::fs;

/// What the daemon itself says of trying to read, write, make and run files.
fn probe(folder: &Folder, file: &str, words: &[&str]) -> String {
    let (data, file) = (folder.join("d"), folder.join(file));
    let (data, file) = (data.to_str().unwrap(), file.to_str().unwrap());
    let given = ["--data", data, "--sandbox-probe", file];
    let told = run(
        program("eskerd").to_str().unwrap(),
        &[&given[..], words].concat(),
    );
    told.ok().trim().to_string()
}

#[test]
fn foreign_files_and_all_programs_are_out_of_reach() {
    let folder = Folder::new();
    fs::create_dir_all(folder.join("d")).unwrap();
    for place in ["outside", "d/inside"] {
        fs::copy("/bin/true", folder.join(place)).unwrap();
    }
    // Without the sandbox all of it works, so what follows is the sandbox.
    let free = "read done, write done, create done, run done";
    assert_eq!(probe(&folder, "outside", &["--no-sandbox"]), free);
    fs::remove_file(folder.join("outside.new")).unwrap();

    let outside = probe(&folder, "outside", &[]);
    let (files, program) = outside.rsplit_once(", ").unwrap();
    assert_eq!(program, "run PermissionDenied");
    let inside = probe(&folder, "d/inside", &[]);
    assert_eq!(
        inside,
        "read done, write done, create done, run PermissionDenied"
    );
    let daemon = Start::new(&folder.join("e"))
        .with(&["--store-size", "1GiB"])
        .ready();
    if daemon.log().contains("this kernel has no Landlock") {
        return crate::harness::skip("this kernel has no Landlock");
    }
    let denied = "read PermissionDenied, write PermissionDenied, create PermissionDenied";
    assert_eq!(files, denied);
    assert!(!folder.join("outside.new").exists());
}

#[test]
fn every_thread_of_a_serving_daemon_is_in_it() {
    let folder = Folder::new();
    let size = ["--store-size", "1GiB"];
    let daemon = Start::new(&folder.join("d")).with(&size).ready();
    assert!(daemon.log().contains("sandbox: "), "{}", daemon.log());
    let process = format!("/proc/{}", daemon.pid());
    let mut threads = 0;
    for task in fs::read_dir(format!("{process}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{line} in {status}");
        }
        threads += 1;
    }
    assert!(threads >= 2, "a store has a thread of its own");
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size"));
    let core: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "{limits}");
}
