//! Opens the node's store files, makes those that are not there yet, and says which of them may be
//! formatted: none that has been in use before.

use crate::config::{Config, STORE_SIZE_DEFAULT_BYTES};
use crate::error::DaemonError;
use crate::known::{KnownStores, Past};
use crate::predecessor::Predecessor;
use esker_api::size;
use esker_runtime::{RuntimeError, StoreFile};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The first bytes of a store, which hold all copies of its superblock.
const HEAD_BYTES: u64 = 1 << 20;
/// How much is read at once to find whether a file is blank.
const READ_BYTES: usize = 1 << 20;

/// A store that is open and locked.
pub struct OpenStore {
    /// Its file or device.
    pub file: StoreFile,
    /// Whether it is formatted when it is blank.
    pub may_format: bool,
}

/// What was found at the path of a store.
enum Found {
    Store(OpenStore),
    /// Nothing, and nothing was.
    Absent,
    /// A file that the daemon began to make, without any content.
    HalfMade(StoreFile),
}

/// Opens all stores, in the order of the settings. Those that are there are opened and judged
/// before the first one is made: a refusal changes nothing.
///
/// # Errors
/// When one cannot be a store, has lost what it held, or somebody else has it open.
pub async fn open_all(
    config: &Config,
    predecessor: Predecessor,
    known: &mut KnownStores,
) -> Result<Vec<OpenStore>, DaemonError> {
    let mut found = Vec::with_capacity(config.stores.len());
    for path in &config.stores {
        found.push(look(config, path, predecessor, known).await?);
    }
    let is_to_make = |found: &Found| !matches!(found, Found::Store(_));
    let to_make: Vec<&Path> = config
        .stores
        .iter()
        .zip(&found)
        .filter(|(_, found)| is_to_make(found))
        .map(|(path, _)| path.as_path())
        .collect();
    known.begin(&to_make)?;
    let mut made = 0;
    let mut stores = Vec::with_capacity(found.len());
    for (path, found) in config.stores.iter().zip(found) {
        let half_made = match found {
            Found::Store(store) => {
                stores.push(store);
                continue;
            }
            Found::Absent => None,
            Found::HalfMade(file) => Some(file),
        };
        match make(config, path, half_made) {
            Ok(file) => stores.push(OpenStore {
                file,
                may_format: true,
            }),
            Err(error) => {
                let _ = known.forget(&to_make[made..]); // the failure to make it is the one to tell
                return Err(error);
            }
        }
        made += 1;
    }
    Ok(stores)
}

/// Opens what is at a path, if it may be used.
async fn look(
    config: &Config,
    path: &Path,
    predecessor: Predecessor,
    known: &KnownStores,
) -> Result<Found, DaemonError> {
    let past = known.past(path);
    let refuse = |what| Err(refusal(config, path, known, past, what));
    if std::fs::metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return match past {
            Past::InUse | Past::Lost => refuse("missing"),
            Past::None | Past::Begun { .. } => Ok(Found::Absent),
        };
    }
    let file = predecessor.outlast(|| StoreFile::open(path)).await?;
    let may_format = match past {
        Past::Begun { .. } => true,
        Past::None => config.stores_are_named,
        Past::InUse | Past::Lost => false,
    };
    if !may_format && is_blank(path, HEAD_BYTES)? {
        return refuse("blank");
    }
    let asked_bytes = config.store_size_bytes;
    if past == (Past::Begun { is_made_here: true }) {
        let is_whole = file.size_bytes() == asked_bytes.unwrap_or(STORE_SIZE_DEFAULT_BYTES);
        if !is_whole && is_regular(path) && is_blank(path, u64::MAX)? {
            return Ok(Found::HalfMade(file));
        }
        sync_folder_of(path)?; // who made it may not have come to that
    }
    if let Some(asked) = asked_bytes.filter(|asked| *asked != file.size_bytes()) {
        tracing::warn!(
            "{} has {} and keeps it; the store size {} is for new stores only",
            path.display(),
            size::format(file.size_bytes()),
            size::format(asked),
        );
    }
    Ok(Found::Store(OpenStore { file, may_format }))
}

/// Makes a store file, in the place of one that is half made.
fn make(
    config: &Config,
    path: &Path,
    half_made: Option<StoreFile>,
) -> Result<StoreFile, DaemonError> {
    let size_bytes = config.store_size_bytes.unwrap_or(STORE_SIZE_DEFAULT_BYTES);
    tracing::info!(path = %path.display(), size = size::format(size_bytes), "create store");
    if let Some(file) = half_made {
        std::fs::remove_file(path).map_err(DaemonError::file("make anew", path))?;
        drop(file); // its lock, held until here
    }
    Ok(StoreFile::create(path, size_bytes)?)
}

fn refusal(
    config: &Config,
    path: &Path,
    known: &KnownStores,
    past: Past,
    what: &'static str,
) -> DaemonError {
    let (list, path) = (known.path(), path.display());
    let list = list.display();
    // Behind its blank head much of a store may still lie, and the engine formats nothing over that.
    // The default store is made by the daemon only, so it has to make way as a whole.
    let first = match (what, config.stores_are_named) {
        ("blank", true) => "clear it and ",
        ("blank", false) => "delete it and ",
        _ => "",
    };
    let message = match past {
        Past::InUse => format!(
            "store {path} was in use by this node and is now {what}: its contents were lost; \
             restore it from a copy, or {first}remove its entry from {list} to begin an empty one"
        ),
        Past::Lost => format!(
            "store {path} is {what}, and {list}, which tells whether this node had it in use, is \
             missing; restore them from a copy, or {first}make an empty {list} to begin an empty \
             store"
        ),
        Past::None | Past::Begun { .. } => format!(
            "store {path} is {what} and was not made by this node; delete it to have it made anew, \
             or name it with --store {path} to begin an empty store in it"
        ),
    };
    DaemonError::Store { message }
}

/// Whether the first bytes, or all when there are fewer, are zero.
fn is_blank(path: &Path, bytes_max: u64) -> Result<bool, DaemonError> {
    let failed = |e| DaemonError::file("read", path)(e);
    let mut file = File::open(path).map_err(failed)?.take(bytes_max);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) if buffer[..count].iter().any(|byte| *byte != 0) => return Ok(false),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

fn is_regular(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_file())
}

fn sync_folder_of(path: &Path) -> Result<(), RuntimeError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| RuntimeError::File {
            path: path.to_path_buf(),
            operation: "sync the directory of",
            source,
        })
}
