//! Every input of `fuzz/corpus-seed` goes through the body of its target again, on a stable compiler:
//! what the fuzzer reached once is reached by every run of the tests.

use std::path::{Path, PathBuf};

/// Bytes of all corpora together; they are in the repository.
const BYTES_MAX: u64 = 2 << 20;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus-seed")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    files.sort();
    files
}

fn replay(target: &str) {
    let files = files(&corpora().join(target));
    assert!(files.len() >= 2, "{target} has no corpus");
    for file in files {
        let data = std::fs::read(&file).expect("readable");
        println!("{}", file.display()); // shown when the body panics
        esker_fuzz::run(target, &data);
    }
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_replayed_and_the_corpora_are_small() {
            let known: Vec<&str> = esker_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(known, [$(stringify!($name)),*]);
            let mut bytes = 0;
            for folder in files(&corpora()) {
                let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                assert!(known.contains(&name), "{name} is no target");
                let sizes = files(&folder);
                bytes += sizes.iter().map(|f| f.metadata().expect("readable").len()).sum::<u64>();
            }
            assert!(bytes <= BYTES_MAX, "the corpora have {bytes} bytes");
        }
    };
}

targets!(
    nbd_session,
    superblock,
    record,
    operation,
    node,
    checkpoint,
    manifest,
    store_image,
    peer_frame,
    peer_messages,
    peer_link,
    admin,
    config,
    wrapped_key,
    key_slots,
    keyring,
    ttlv,
);
