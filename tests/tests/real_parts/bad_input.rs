//! Wrong words, wrong files, wrong places: exit code 2 for usage, 1 for everything else, one line
//! that names the thing, and nothing is touched.

use crate::harness::{free_address, program, run, Done, Folder, Start};
use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;

fn eskerd(words: &[&str]) -> Done {
    run(program("eskerd").to_str().unwrap(), words)
}

fn esker(words: &[&str]) -> Done {
    run(program("esker").to_str().unwrap(), words)
}

#[test]
fn a_wrong_command_line_is_usage() {
    for words in [
        &[][..],
        &["--data"],
        &["--data", "x", "--wrong"],
        &["--data", "x", "extra"],
        &["--data", "x", "--store-size", "12"],
        &["--data", "x", "--store-size", "1GB"],
        &["--data", "x", "--store-size", "-1GiB"],
        &["--data", "x", "--store-size", "99999999999TiB"],
        &["--data", "x", "--nbd", "here"],
        &["--data", "x", "--nbd", "127.0.0.1:99999"],
        &["--data", "x", "--metrics", "::1:1"],
    ] {
        let done = eskerd(words);
        if words.contains(&"12") {
            // Bytes without a unit are a size, only not of blocks.
            assert!(matches!(done.code, Some(1 | 2)), "{words:?}: {done:?}");
            continue;
        }
        assert_eq!(done.code, Some(2), "{words:?}: {done:?}");
        assert!(
            done.err.starts_with("error: ") && done.out.is_empty(),
            "{done:?}"
        );
    }
    for words in [
        &[][..],
        &["volume"],
        &["volume", "create", "v"],
        &["volume", "create", "v", "--size", "ten"],
        &["volume", "create", "v", "--size", "1GiB", "--replicas", "0"],
        &["volume", "list", "-o", "xml"],
        &["nonsense"],
        &["inspect", "x", "segment"],
    ] {
        let done = esker(words);
        assert_eq!(done.code, Some(2), "{words:?}: {done:?}");
        assert!(!Path::new("x").exists());
    }
    assert_eq!(eskerd(&["--help"]).code, Some(0));
    assert_eq!(esker(&["--version"]).code, Some(0));
}

#[test]
fn a_wrong_configuration_is_one_line_with_its_place() {
    let folder = Folder::new();
    let path = folder.join("esker.toml");
    let data = folder.join("d");
    let named = path.to_str().unwrap();
    for (text, part) in [
        ("store_sizes = '1GiB'\n", "store_sizes"),
        ("\n\nnbd = 5\n", ":3:"),
        ("store_size = '1GB'\n", "store_size"),
        ("nbd = '127.0.0.1'\n", "nbd"),
        ("data = \n", ":1:"),
        (
            "stores = ['/dev/null', '/dev/null']\ndata = 'd'\n",
            "/dev/null",
        ),
        ("\u{0}", ":1:"),
        ("nbd = 'none'\n", "no data directory"),
    ] {
        fs::write(&path, text).unwrap();
        for check in [true, false] {
            let mut words = vec!["--config", named];
            words.extend(check.then_some("--check-config"));
            let line = eskerd(&words).line(1);
            assert!(
                line.starts_with("eskerd: ") && line.contains(part),
                "{text:?}: {line}"
            );
        }
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(eskerd(&["--config", named]).line(1).contains(named));
    fs::remove_file(&path).unwrap();
    assert!(eskerd(&["--config", named]).line(1).contains(named));
    fs::write(
        &path,
        "data = 'd'\nstore_size = '1GiB'\nnbd = 'none'\nmetrics = 'none'\n",
    )
    .unwrap();
    assert!(eskerd(&["--config", named, "--check-config"])
        .ok()
        .contains("valid"));
    assert!(!data.exists(), "a check touches nothing");
}

#[test]
fn what_is_busy_or_missing_is_named() {
    let folder = Folder::new();
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "1GiB"])
        .ready();
    daemon.create("v", "1MiB");

    // The same data, the same store, the same port.
    let line = Start::new(&folder.join("d")).refusal(1);
    assert!(
        line.contains("in use") && line.contains(&daemon.pid().to_string()),
        "{line}"
    );
    let store = folder.join("d/store-0.esker");
    let store = store.to_str().unwrap();
    let line = Start::new(&folder.join("e"))
        .with(&["--store", store])
        .refusal(1);
    assert!(line.contains("in use"), "{line}");
    let address = format!("127.0.0.1:{}", daemon.port());
    let small = ["--store-size", "1GiB"];
    let line = Start::new(&folder.join("f"))
        .with(&small)
        .nbd(&address)
        .refusal(1);
    assert!(line.contains(&address) && line.contains("in use"), "{line}");
    assert!(
        !folder.join("f/store-0.esker").exists(),
        "addresses come before stores"
    );
    let taken = TcpListener::bind(free_address()).unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let words = ["--store-size", "1GiB", "--nbd", "none"];
    let data = folder.join("g");
    let mut words: Vec<&str> = words.to_vec();
    words.extend(["--data", data.to_str().unwrap(), "--metrics", &taken]);
    let line = eskerd(&words).line(1);
    assert!(
        line.contains(&taken) && line.contains("--metrics"),
        "{line}"
    );

    // The daemon that was disturbed is as before.
    daemon.client("v").write(0, &[1; 4096], 0).unwrap().unwrap();

    // Refusals of the daemon, as a person sees them.
    for (words, part) in [
        (&["volume", "create", "v", "--size", "1MiB"][..], "v"),
        (&["volume", "create", "bad name", "--size", "1MiB"], "name"),
        (&["volume", "create", "a@b", "--size", "1MiB"], "name"),
        (&["volume", "create", "", "--size", "1MiB"], "name"),
        (&["volume", "create", "w", "--size", "0"], "size"),
        (&["volume", "create", "w", "--size", "1000"], "4096"),
        (&["volume", "create", "w", "--size", "1000TiB"], "64 TiB"),
        (
            &["volume", "create", "w", "--size", "1MiB", "--replicas", "3"],
            "cop",
        ),
        (&["volume", "show", "nobody"], "nobody"),
        (&["volume", "delete", "nobody", "--yes"], "nobody"),
        (&["volume", "rename", "nobody", "x"], "nobody"),
        (&["volume", "rename", "v", "a/b"], "name"),
        (&["volume", "resize", "v", "--size", "512KiB"], "v"),
        (&["space", "nobody"], "nobody"),
        (&["verify", store], "a daemon has it open"),
    ] {
        let line = daemon.esker(words).line(1);
        assert!(
            line.starts_with("esker: ") && line.contains(part),
            "{words:?}: {line}"
        );
    }
    let list = daemon.json(&["volume", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    daemon.stop();
    let nobody = folder.join("d").display().to_string();
    let line = esker(&["--data", &nobody, "volume", "list"]).line(1);
    assert!(line.contains("admin.sock"), "{line}");
}

#[test]
fn places_that_cannot_be_a_store_are_left_alone() {
    let folder = Folder::new();
    let foreign = folder.join("foreign");
    fs::write(&foreign, vec![7; 1 << 20]).unwrap();
    File::options()
        .write(true)
        .open(&foreign)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    // A file system's superblock comes 1 KiB after zeros.
    let filesystem = folder.join("filesystem");
    let mut image = vec![0; 1 << 20];
    image[1024..2048].fill(3);
    fs::write(&filesystem, &image).unwrap();
    File::options()
        .write(true)
        .open(&filesystem)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let small = folder.join("small");
    File::create(&small).unwrap().set_len(64 << 20).unwrap();
    let empty = folder.join("empty");
    File::create(&empty).unwrap();
    let inside = folder.join("no/such/folder/store");
    for (path, part) in [
        (foreign.as_path(), "not an Esker store"),
        (&filesystem, "not an Esker store"),
        (&small, "at least"),
        (&empty, "empty"),
        (&folder.0, "neither"),
        (&inside, "no/such/folder"),
        (Path::new("/dev/null"), "/dev/null"),
    ] {
        // The start is what formatting would overwrite.
        let start = || {
            let mut bytes = Vec::new();
            if path.is_file() {
                let file = File::open(path).unwrap();
                file.take(8 << 20).read_to_end(&mut bytes).unwrap();
            }
            bytes
        };
        let before = start();
        let words = ["--store", path.to_str().unwrap(), "--store-size", "1GiB"];
        let line = Start::new(&folder.join("d")).with(&words).refusal(1);
        assert!(
            line.starts_with("eskerd: ") && line.contains(path.to_str().unwrap()),
            "{line}"
        );
        assert!(line.contains(part), "no {part} in: {line}");
        assert!(
            !line.contains("os error 22"),
            "says nothing to a person: {line}"
        );
        assert!(start() == before, "{} was changed", path.display());
    }
    let line = Start::new(&folder.join("d"))
        .with(&["--store-size", "64MiB"])
        .refusal(1);
    assert!(line.contains("at least"), "{line}");
    // Nothing half made is in the way of the next try.
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "1GiB"])
        .ready();
    daemon.stop();
    let long = folder.join(&"d".repeat(120));
    let line = Start::new(&long).with(&["--store-size", "1GiB"]).refusal(1);
    assert!(line.contains("shorter --data"), "{line}");
}
