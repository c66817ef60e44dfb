//! `esker verify` and `esker inspect`: looking into a store that no daemon has open. Nothing is
//! written to it.

use crate::args::Part;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::ByteBar;
use crate::table::fields;
use esker_base::{DiskError, DiskErrorKind};
use esker_engine::inspect::What;
use esker_engine::verify::{ReadAt, VerifyReport};
use esker_engine::OpenError;
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use serde::Serialize;
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock is tried, and the pause between.
const LOCK_ATTEMPTS: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// Result of `esker verify`.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// The store.
    pub store: PathBuf,
    /// True when nothing is wrong.
    pub ok: bool,
    /// Volumes.
    pub volumes: u64,
    /// Map nodes read and checked.
    pub nodes: u64,
    /// Data blocks read and checked.
    pub blocks: u64,
    /// Records that the next start will replay.
    pub records_replayed: u64,
    /// Whether the log ends in a torn tail, as it does after a power cut; not a problem.
    pub torn_tail: bool,
    /// Number of problems.
    pub problem_count: u64,
    /// The first of them.
    pub problems: Vec<String>,
}

/// Result of `esker inspect`.
#[derive(Clone, Debug, Serialize)]
struct Inspected<'a> {
    store: &'a Path,
    lines: Vec<&'a str>,
}

/// Checks every invariant of a store.
///
/// # Errors
/// When the store cannot be opened, or has problems: they are shown first.
pub fn verify(path: &Path, output: &mut Output) -> Result<(), CliError> {
    let mut store = StoreReader::open(path)?;
    let bar = ByteBar::new("checking");
    let report = esker_engine::verify::verify(&mut store, &mut |progress| {
        let bytes = |blocks: u64| blocks.saturating_mul(4096);
        bar.show(bytes(progress.blocks_done), bytes(progress.blocks_total));
    });
    drop(bar);
    let report = report.map_err(|e| open_error(path, &e))?;
    let verified = Verified::new(path, report);
    output.show(&verified, text)?;
    match verified.problem_count {
        0 => Ok(()),
        count => {
            let plural = if count == 1 { "problem" } else { "problems" };
            Err(store_error(path, format!("{count} {plural} found")))
        }
    }
}

/// Dumps a part of a store.
///
/// # Errors
/// When the store cannot be opened, or the part cannot be decoded.
pub fn inspect(path: &Path, part: Part, output: &mut Output) -> Result<(), CliError> {
    let mut store = StoreReader::open(path)?;
    let what = match part {
        Part::Superblock => What::Superblock,
        Part::Checkpoint => What::Checkpoint,
        Part::Segment { segment } => What::Segment(segment),
        Part::Record { segment, slot } => What::Record(segment, slot),
        Part::Node { segment, slot } => What::Node(segment, slot),
    };
    let dump =
        esker_engine::inspect::inspect(&mut store, what).map_err(|e| open_error(path, &e))?;
    let inspected = Inspected {
        store: path,
        lines: dump.lines().collect(),
    };
    output.show(&inspected, |_| dump.clone())
}

impl Verified {
    fn new(path: &Path, report: VerifyReport) -> Self {
        Self {
            store: path.to_path_buf(),
            ok: report.problem_count == 0,
            volumes: report.volumes,
            nodes: report.nodes,
            blocks: report.blocks,
            records_replayed: report.opened.records_replayed,
            torn_tail: report.opened.torn_tail,
            problem_count: report.problem_count,
            problems: report.problems,
        }
    }
}

fn text(verified: &Verified) -> String {
    let mut text = String::new();
    for problem in &verified.problems {
        text.push_str(&format!("problem: {problem}\n"));
    }
    text.push_str(&fields(&[
        ("store", verified.store.display().to_string()),
        (
            "result",
            if verified.ok { "ok" } else { "NOT OK" }.to_string(),
        ),
        ("problems", verified.problem_count.to_string()),
        ("volumes", verified.volumes.to_string()),
        ("map nodes", verified.nodes.to_string()),
        ("blocks", verified.blocks.to_string()),
        ("replayed", format!("{} records", verified.records_replayed)),
        (
            "torn tail",
            if verified.torn_tail { "yes" } else { "no" }.to_string(),
        ),
    ]));
    text
}

/// A store opened for reading, with a lock that a daemon's excludes.
struct StoreReader {
    file: File,
    size_bytes: u64,
}

impl StoreReader {
    fn open(path: &Path) -> Result<Self, CliError> {
        let failed = |e| store_error(path, reason(&e));
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if kind.is_dir() {
            let reason = "is a folder, neither a regular file nor a block device; name the store \
                          itself, like store-0.esker in a daemon's folder";
            return Err(store_error(path, reason.into()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(store_error(
                path,
                "is neither a regular file nor a block device".into(),
            ));
        }
        let mut file = File::open(path).map_err(failed)?;
        lock(&file, path)?;
        // Seeking to the end gives the size of files and of block devices alike.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, size_bytes })
    }
}

/// Takes the lock that a daemon's excludes. The kernel gives up a killed daemon's only once it has
/// ended its ring, so this waits a moment.
fn lock(file: &File, path: &Path) -> Result<(), CliError> {
    for attempt in 1..=LOCK_ATTEMPTS {
        match flock(file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if attempt < LOCK_ATTEMPTS => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => break,
            Err(e) => return Err(store_error(path, reason(&e.into()))),
        }
    }
    let reason = "a daemon has it open; stop that eskerd first".into();
    Err(store_error(path, reason))
}

impl ReadAt for StoreReader {
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::UnexpectedEof => DiskErrorKind::Short,
                _ => DiskErrorKind::Io,
            };
            DiskError {
                kind,
                errno: e.raw_os_error().unwrap_or(0),
            }
        })?;
        Ok(bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// Why a store cannot be opened, for a person.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "cannot open it: there is no such file or device".into(),
        ErrorKind::PermissionDenied => {
            "cannot open it: permission denied; run this as the user that eskerd runs as".into()
        }
        ErrorKind::NotADirectory => "cannot open it: a part of the path is not a folder".into(),
        _ => format!("cannot open it: {error}"),
    }
}

fn open_error(path: &Path, error: &OpenError) -> CliError {
    store_error(path, error.to_string())
}

fn store_error(path: &Path, reason: String) -> CliError {
    CliError::Store {
        path: path.to_path_buf(),
        reason,
    }
}
