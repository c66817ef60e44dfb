//! Which stores this node has had in use: `DIR/stores.toml`.
//!
//! A store that has been ready once must never be formatted again, whatever its device looks like:
//! blank, it has lost its contents. So a store is listed as `known` after its first opening and
//! before the admin API is there, without which there is no volume to lose. A file that the daemon
//! makes is listed as `new` before it is made, so that one left half made by a crash can be told
//! from one that was wiped.

use crate::data_dir::write_durably;
use crate::error::DaemonError;
use serde::Deserialize;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the file in the data directory.
const NAME: &str = "stores.toml";

/// What the list says about a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing: it has never been ready.
    None,
    /// It was begun and has never been ready.
    Begun {
        /// Whether the daemon makes its file; otherwise somebody else did.
        is_made_here: bool,
    },
    /// It has been ready.
    InUse,
    /// The list is gone, though the node has run before: nothing is known.
    Lost,
}

/// The list.
#[derive(Debug)]
pub struct KnownStores {
    folder: PathBuf,
    entries: Vec<Entry>,
    is_lost: bool,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStores {
    #[serde(default)]
    store: Vec<Entry>,
}

/// A store. Its device is found by both names: links like those of /dev/disk/by-id stay when
/// devices are numbered anew, and a file stays the same when another link leads to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// As it was named, made absolute.
    path: String,
    /// Without links, when that differs.
    target: Option<String>,
    state: State,
    /// Whether the daemon makes its file; only while it is new.
    #[serde(default)]
    made_here: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    New,
    Known,
}

impl Entry {
    fn new(path: &Path, state: State, made_here: bool) -> Self {
        let target = text(&canonical(path));
        let path = text(&absolute(path));
        Self {
            target: Some(target).filter(|target| *target != path),
            path,
            state,
            made_here,
        }
    }

    fn target(&self) -> &str {
        self.target.as_ref().unwrap_or(&self.path)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.path == other.path || self.target() == other.target()
    }
}

impl KnownStores {
    /// Reads the list, or begins it when the node has not run before. To be called before the
    /// node's identity is written, which tells that it has.
    ///
    /// # Errors
    /// When the file cannot be read, understood or written.
    pub fn load(data: &Path) -> Result<Self, DaemonError> {
        let path = data.join(NAME);
        let mut known = Self {
            folder: data.to_path_buf(),
            entries: Vec::new(),
            is_lost: false,
        };
        match std::fs::read_to_string(&path) {
            Ok(content) => {
                known.entries = toml::from_str::<RawStores>(&content)
                    .map_err(|e| known.damaged(&content, &e))?
                    .store;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let identity = data.join("node.toml");
                known.is_lost = identity
                    .try_exists()
                    .map_err(DaemonError::file("look for", &identity))?;
                if !known.is_lost {
                    known.write()?;
                }
            }
            Err(e) => return Err(DaemonError::file("read", &path)(e)),
        }
        Ok(known)
    }

    /// The file that holds the list.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// What is known of a store.
    #[must_use]
    pub fn past(&self, path: &Path) -> Past {
        let asked = Entry::new(path, State::New, false);
        let mut past = if self.is_lost { Past::Lost } else { Past::None };
        for entry in self.entries.iter().filter(|entry| entry.is_same(&asked)) {
            past = match entry.state {
                State::Known => return Past::InUse,
                State::New => Past::Begun {
                    is_made_here: entry.made_here,
                },
            };
        }
        past
    }

    /// Lists stores whose files are about to be made; durable when it returns.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn begin(&mut self, paths: &[&Path]) -> Result<(), DaemonError> {
        self.change(|entries| {
            for path in paths {
                put(entries, Entry::new(path, State::New, true));
            }
        })
    }

    /// Takes stores off the list that were begun and could not be made.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn forget(&mut self, paths: &[&Path]) -> Result<(), DaemonError> {
        self.change(|entries| {
            for path in paths {
                let gone = Entry::new(path, State::New, true);
                entries.retain(|entry| entry.state == State::Known || !entry.is_same(&gone));
            }
        })
    }

    /// Lists stores that are ready; durable when it returns.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn mark(&mut self, paths: &[PathBuf]) -> Result<(), DaemonError> {
        self.change(|entries| {
            for path in paths {
                put(entries, Entry::new(path, State::Known, false));
            }
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<Entry>)) -> Result<(), DaemonError> {
        let before = self.entries.clone();
        change(&mut self.entries);
        if self.entries == before && !self.is_lost {
            return Ok(());
        }
        self.write()?;
        self.is_lost = false;
        Ok(())
    }

    fn write(&self) -> Result<(), DaemonError> {
        let mut content = String::from(
            "# The stores of this node. One that is known here has been in use and is never \
             formatted again:\n# remove its entry to begin an empty one in its place.\n",
        );
        for entry in &self.entries {
            content.push_str("\n[[store]]\n");
            content.push_str(&format!("path = {}\n", quoted(&entry.path)));
            if let Some(target) = &entry.target {
                content.push_str(&format!("target = {}\n", quoted(target)));
            }
            content.push_str(match entry.state {
                State::New => "state = \"new\"\n",
                State::Known => "state = \"known\"\n",
            });
            if entry.made_here {
                content.push_str("made_here = true\n");
            }
        }
        write_durably(&self.folder, NAME, &content)
            .map_err(DaemonError::file("write", &self.path()))
    }

    fn damaged(&self, content: &str, error: &toml::de::Error) -> DaemonError {
        let start = error.span().map_or(0, |span| span.start);
        let line = content[..start].matches('\n').count() + 1;
        DaemonError::Store {
            message: format!(
                "{}:{line}: {}; it tells which stores this node has in use: mend it, or restore it \
                 from a copy",
                self.path().display(),
                error.message().replace('\n', " ")
            ),
        }
    }
}

/// Puts an entry in the place of the one with its name, and of those that were only begun.
fn put(entries: &mut Vec<Entry>, entry: Entry) {
    entries
        .retain(|old| old.path == entry.path || old.state == State::Known || !old.is_same(&entry));
    match entries.iter_mut().find(|old| old.path == entry.path) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
}

/// A path without links, as far as there is one.
fn canonical(path: &Path) -> PathBuf {
    let path = absolute(path);
    path.canonicalize().unwrap_or_else(|_| {
        let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
        match (parent, path.file_name()) {
            (Some(parent), Some(name)) => parent.join(name),
            _ => path,
        }
    })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// As TOML can hold it. Two paths that differ only in what is not UTF-8 become one, which errs on
/// the side of the data.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c)); // a string takes it all
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_store_goes_from_unknown_to_begun_to_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a \"b\" \\ \u{1}\n#\u{e9}");
        let mut known = KnownStores::load(folder.path()).unwrap();
        assert_eq!(known.past(&odd), Past::None);
        known.begin(&[&odd]).unwrap();
        let is_made_here = true;
        let mut known = KnownStores::load(folder.path()).unwrap();
        assert_eq!(known.past(&odd), Past::Begun { is_made_here });
        known.mark(std::slice::from_ref(&odd)).unwrap();
        known.forget(&[&odd]).unwrap();
        let known = KnownStores::load(folder.path()).unwrap();
        assert_eq!(known.past(&odd), Past::InUse);
        assert_eq!(known.entries.len(), 1);
        assert!(!known.entries[0].made_here);
    }

    #[test]
    fn a_device_is_known_by_its_name_and_by_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let [link, other, a, b] = ["link", "other", "a", "b"].map(|n| folder.path().join(n));
        fs::write(&a, "").unwrap();
        fs::write(&b, "").unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        std::os::unix::fs::symlink("a", &other).unwrap();
        let mut known = KnownStores::load(folder.path()).unwrap();
        known.mark(std::slice::from_ref(&link)).unwrap();
        let known = KnownStores::load(folder.path()).unwrap();
        for path in [&link, &other, &a] {
            assert_eq!(known.past(path), Past::InUse, "{}", path.display());
        }
        assert_eq!(known.past(&b), Past::None);
        // Devices have been numbered anew.
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("b", &link).unwrap();
        assert_eq!(known.past(&link), Past::InUse);
        // Nothing is behind the link any more.
        fs::remove_file(&b).unwrap();
        assert_eq!(known.past(&link), Past::InUse);
    }

    #[test]
    fn a_list_that_is_gone_is_not_taken_for_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("s");
        fs::write(folder.path().join("node.toml"), "").unwrap();
        let mut known = KnownStores::load(folder.path()).unwrap();
        assert_eq!(known.past(&store), Past::Lost);
        assert!(!known.path().exists());
        known.mark(std::slice::from_ref(&store)).unwrap();
        let known = KnownStores::load(folder.path()).unwrap();
        assert_eq!(known.past(&store), Past::InUse);
        assert_eq!(known.past(folder.path()), Past::None);
    }

    #[test]
    fn a_damaged_list_is_not_replaced() {
        for content in [
            "\u{1}",
            "[[store]]\npath = 'x'\n",
            "store = 1",
            "[[store]]\nstate='odd'",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(NAME);
            fs::write(&path, content).unwrap();
            let message = KnownStores::load(folder.path()).unwrap_err().to_string();
            assert!(
                message.contains("stores.toml:") && !message.contains('\n'),
                "{message}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }
}
