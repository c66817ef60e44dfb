//! The programs people already have: libnbd's, qemu's, fio.

use crate::harness::{has, python, run, run_for, script, verify, Daemon, Folder, Start};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// A daemon with a volume v of 256 MiB.
fn served(folder: &Folder) -> Daemon {
    let start = Start::new(&folder.join("d")).with(&["--store-size", "4GiB"]);
    let daemon = start.ready();
    daemon.create("v", "256MiB");
    daemon
}

fn stop_and_verify(daemon: Daemon) {
    let store = daemon.data.join("store-0.esker");
    daemon.stop();
    verify(&store);
}

#[test]
fn nbdinfo_sees_size_flags_and_names() {
    if !has(&["nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder);
    for uri in [daemon.uri("v"), daemon.tcp_uri("v")] {
        assert_eq!(run("nbdinfo", &["--size", &uri]).ok().trim(), "268435456");
        let text = run("nbdinfo", &["--json", &uri]).ok();
        let info: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(info["protocol"], "newstyle-fixed");
        let export = &info["exports"][0];
        assert_eq!(export["export-name"], "v");
        assert_eq!(export["export-size"], 256 << 20);
        let able = [
            "can_cache",
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ];
        for flag in able {
            assert_eq!(export[flag], true, "{flag} in {text}");
        }
        for flag in ["is_read_only", "is_rotational"] {
            assert_eq!(export[flag], false, "{flag} in {text}");
        }
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
    }

    // The empty name is the only volume, when there is just one.
    assert_eq!(
        run("nbdinfo", &["--size", &daemon.uri("")]).ok().trim(),
        "268435456"
    );
    daemon.create("w", "1MiB");
    let many = run("nbdinfo", &["--size", &daemon.uri("")]);
    assert_ne!(many.code, Some(0), "which of the two: {many:?}");
    let unknown = run("nbdinfo", &[daemon.uri("nobody")]);
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.err.contains("nobody"),
        "names the export: {unknown:?}"
    );

    let list = run("nbdinfo", &["--list", "--json", &daemon.uri("")]).ok();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let mut names: Vec<_> = list["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            (
                e["export-name"].as_str().unwrap().to_string(),
                e["export-size"].as_u64().unwrap(),
            )
        })
        .collect();
    names.sort();
    assert_eq!(names, [("v".into(), 256 << 20), ("w".into(), 1 << 20)]);
    daemon.esker(&["volume", "delete", "v", "--yes"]).ok();
    assert_eq!(
        run("nbdinfo", &["--size", &daemon.uri("")]).ok().trim(),
        "1048576"
    );
    assert_eq!(run("nbdinfo", &["--size", &daemon.uri("v")]).code, Some(1));
    daemon.esker(&["volume", "rename", "w", "x"]).ok();
    assert_eq!(
        run("nbdinfo", &["--size", &daemon.uri("x")]).ok().trim(),
        "1048576"
    );
    daemon
        .esker(&["volume", "resize", "x", "--size", "2MiB"])
        .ok();
    assert_eq!(
        run("nbdinfo", &["--size", &daemon.uri("x")]).ok().trim(),
        "2097152"
    );
    stop_and_verify(daemon);
}

/// A file of this size with runs of data between holes.
fn sparse_file(path: &Path, size_bytes: u64) {
    let mut file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    let mut dice = crate::pattern::Dice::new(size_bytes);
    for at in (0..size_bytes / (4 << 20)).filter(|i| i % 3 != 1) {
        let bytes: Vec<u8> = (0..1 << 18)
            .flat_map(|_| dice.next().to_le_bytes())
            .collect();
        file.seek(SeekFrom::Start(at * (4 << 20) + dice.below(1 << 20)))
            .unwrap();
        file.write_all(&bytes).unwrap();
    }
    file.set_len(size_bytes).unwrap();
}

#[test]
fn nbdcopy_brings_back_what_it_took_in() {
    if !has(&["nbdcopy", "cmp"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder);
    let (source, back) = (folder.join("source"), folder.join("back"));
    sparse_file(&source, 256 << 20);
    for (uri, extra) in [
        (
            daemon.uri("v"),
            &["--connections=4", "--requests=64", "--flush"][..],
        ),
        (
            daemon.tcp_uri("v"),
            &["--connections=1", "--synchronous", "--flush"],
        ),
        (
            daemon.tcp_uri("v"),
            &["--connections=4", "--request-size=2097152", "--flush"],
        ),
    ] {
        let (from, to) = (source.display().to_string(), back.display().to_string());
        let words = |a: &str, b: &str| -> Vec<String> {
            extra
                .iter()
                .copied()
                .chain([a, b])
                .map(String::from)
                .collect()
        };
        run("nbdcopy", &words(&from, &uri)).ok();
        run("nbdcopy", &words(&uri, &to)).ok();
        run("cmp", &[&from, &to]).ok();
        fs::remove_file(&back).unwrap();
    }
    // And after a restart.
    daemon.stop();
    let daemon = Start::new(&folder.join("d")).ready();
    run("nbdcopy", &[daemon.uri("v"), back.display().to_string()]).ok();
    run("cmp", &[&source, &back]).ok();
    stop_and_verify(daemon);
}

#[test]
fn libnbd_sends_what_is_not_allowed_and_the_session_lives_on() {
    let Some(python) = python() else { return };
    let folder = Folder::new();
    let daemon = served(&folder);
    for uri in [daemon.uri("v"), daemon.tcp_uri("v")] {
        let out = run(&python, &[script("illegal_requests.py"), uri]).ok();
        assert!(out.ends_with("all as documented\n"), "{out}");
    }
    stop_and_verify(daemon);
}

#[test]
fn qemu_io_patterns_zeroes_and_discards() {
    if !has(&["qemu-io"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder);
    for uri in [daemon.uri("v"), daemon.tcp_uri("v")] {
        let commands = [
            "write -P 0xab 0 1M",
            "write -P 0xcd 1M 64k",
            "flush",
            "read -P 0xab 0 1M",
            "read -P 0xcd 1M 64k",
            // Odd bytes within blocks.
            "write -P 0x11 512 512",
            "write -P 0x12 4090 12",
            "read -P 0xab 0 512",
            "read -P 0x11 512 512",
            "read -P 0xab 1024 3066",
            "read -P 0x12 4090 12",
            "read -P 0xab 4102 1000",
            // FUA; zeros that are kept and zeros that are discarded.
            "write -f -P 0x77 2M 128k",
            "write -z 2M 4k",
            "write -z -u 2101248 4k",
            "read -P 0 2M 8k",
            "read -P 0x77 2105344 4k",
            "discard 1M 64k",
            "read -P 0 1M 64k",
            "aio_write -P 0x55 8M 1M",
            "aio_write -P 0x56 9M 1M",
            "aio_flush",
            "read -P 0x55 8M 1M",
            "read -P 0x56 9M 1M",
            // Zeros over a part of a block.
            "write -z 8389608 8k",
            "read -P 0x55 8388608 1000",
            "read -P 0 8389608 8k",
            "read -P 0x55 8397800 100",
            "read -P 0 200M 32M",
        ];
        let mut words = vec!["-f".to_string(), "raw".into()];
        for command in commands {
            words.extend(["-c".to_string(), command.to_string()]);
        }
        words.push(uri);
        let done = run("qemu-io", &words);
        assert!(
            !done.out.contains("Pattern verification failed") && !done.out.contains("error"),
            "{}",
            done.out
        );
        done.ok();
    }
    stop_and_verify(daemon);
}

#[test]
fn qemu_img_converts_compares_and_benches() {
    if !has(&["qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder);
    let source = folder.join("source");
    sparse_file(&source, 256 << 20);
    let source = source.display().to_string();
    let uri = daemon.uri("v");
    run(
        "qemu-img",
        &[
            "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", &source, &uri,
        ],
    )
    .ok();
    let same = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, &uri],
    )
    .ok();
    assert!(same.contains("identical"), "{same}");
    let back = folder.join("back.qcow2").display().to_string();
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &daemon.tcp_uri("v"),
            &back,
        ],
    )
    .ok();
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", &source, &back],
    )
    .ok();
    let bench = [
        "bench",
        "-f",
        "raw",
        "-w",
        "-c",
        "5000",
        "-d",
        "32",
        "-s",
        "4096",
        "-S",
        "8192",
        "--flush-interval",
        "64",
    ];
    let words: Vec<&str> = bench.into_iter().chain([uri.as_str()]).collect();
    assert!(run("qemu-img", &words).ok().contains("Run completed"));
    stop_and_verify(daemon);
}

#[test]
fn fio_verifies_random_writes_of_many_sizes() {
    if !has(&["fio"]) {
        return;
    }
    let folder = Folder::new();
    let daemon = served(&folder);
    let seconds = crate::harness::setting("ESKER_FIO_SECONDS", 5).to_string();
    for (name, uri, more) in [
        // Several jobs, each a connection with a part of its own.
        (
            "jobs",
            daemon.uri("v"),
            &[
                "--bs=4k",
                "--iodepth=16",
                "--numjobs=4",
                "--size=32m",
                "--offset_increment=32m",
                "--fsync=16",
            ][..],
        ),
        (
            "sizes",
            daemon.tcp_uri("v"),
            &[
                "--bsrange=4k-256k",
                "--blockalign=4k",
                "--iodepth=8",
                "--size=128m",
                "--offset=128m",
            ],
        ),
        // Sizes below a block.
        (
            "parts",
            daemon.uri("v"),
            &["--bs=512", "--iodepth=32", "--size=8m", "--offset=64m"],
        ),
    ] {
        let output = folder.join(&format!("{name}.json"));
        let mut words: Vec<String> = vec![
            format!("--name={name}"),
            "--ioengine=nbd".into(),
            format!("--uri={uri}"),
            "--rw=randwrite".into(),
            "--verify=crc32c".into(),
            "--verify_fatal=1".into(),
            "--verify_state_save=0".into(),
            "--verify_backlog=256".into(),
            "--time_based".into(),
            format!("--runtime={seconds}"),
            "--group_reporting".into(),
            "--output-format=json".into(),
            format!("--output={}", output.display()),
        ];
        words.extend(more.iter().map(ToString::to_string));
        run_for(90, "fio", &words).ok();
        let text = fs::read_to_string(&output).unwrap();
        let report: serde_json::Value =
            serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{name}: {text}");
        for way in ["write", "read"] {
            assert!(
                job[way]["total_ios"].as_u64().unwrap() > 500,
                "{name}: too few to mean anything: {text}"
            );
        }
    }
    stop_and_verify(daemon);
}
