//! The `file` provider: a keyring file on this node.
//!
//! It is made with the first key that is asked for, readable by its owner alone, and replaced as a whole
//! whenever a key is added. One whose permissions are wider is refused.

use crate::error::KeyError;
use crate::keyring::{Kdf, Kek, Keyring, NotOpened, Sealed, BYTES_MAX, KIND};
use crate::private::{self, failed};
use crate::provider::{KeyName, Pending, Provider};
use crate::random;
use esker_crypto::{DataKey, KekId, KeyEncryptionKey, WrappedKey};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A keyring file.
pub struct FileProvider(Arc<Inner>);

struct Inner {
    path: PathBuf,
    passphrase_file: Option<PathBuf>,
    /// What the passphrase gave, so that it is worked out once and not for every volume.
    unlocked: Mutex<Option<(Kdf, Arc<KeyEncryptionKey>)>>,
}

impl FileProvider {
    /// The keyring at `path`, under the passphrase that `passphrase_file` holds if one is named. Touches
    /// nothing.
    #[must_use]
    pub fn new(path: PathBuf, passphrase_file: Option<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            path,
            passphrase_file,
            unlocked: Mutex::new(None),
        }))
    }

    /// Runs `work` where waiting for a disk and for argon2id stops nobody else.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, KeyError> + Send + 'static,
    ) -> Pending<'static, T> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&inner)).await;
            done.map_err(|_| KeyError::unreachable("the keyring was not read: a task ended early"))?
        })
    }
}

impl Provider for FileProvider {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn newest(&self) -> Pending<'_, KekId> {
        self.run(|inner| {
            let ring = inner.read_or_create()?;
            inner.name(inner.last(&ring)?)
        })
    }

    fn create(&self) -> Pending<'_, KekId> {
        self.run(Inner::add)
    }

    fn wrap<'a>(&'a self, name: KeyName, dek: &'a DataKey) -> Pending<'a, WrappedKey> {
        Box::pin(async move {
            let (id, kek) = self
                .run(|inner| {
                    let ring = inner.read_or_create()?;
                    let kek = inner.last(&ring)?;
                    Ok((inner.name(kek)?, copy(&kek.key)))
                })
                .await?;
            let nonce = random::array()?;
            let (volume, key) = (name.volume, name.key);
            Ok(WrappedKey::seal(&kek, id, dek, volume, key, nonce))
        })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a WrappedKey) -> Pending<'a, DataKey> {
        let id = wrapped.kek().clone();
        Box::pin(async move {
            let kek = self.run(move |inner| inner.find(&id)).await?;
            wrapped.open(&kek).map_err(|e| {
                let (volume, path) = (wrapped.volume(), self.0.path.display());
                KeyError::damaged(format!("the key of volume {volume}, keyring {path}: {e}"))
            })
        })
    }

    fn health(&self) -> Pending<'_, ()> {
        self.run(|inner| match inner.read()? {
            Some(_) => Ok(()),
            None => inner.folder().map(|_| ()),
        })
    }
}

impl Inner {
    /// The keyring; none when there is no file.
    fn read(&self) -> Result<Option<Keyring>, KeyError> {
        let Some(bytes) = private::read(&self.path, BYTES_MAX)? else {
            return Ok(None);
        };
        let path = self.path.display();
        let damaged = |what: &str| {
            KeyError::damaged(format!("keyring {path}: {what}; restore it from a backup"))
        };
        let sealed = Sealed::decode(&bytes).map_err(damaged)?;
        let key = match (sealed.kdf(), &self.passphrase_file) {
            (Some(kdf), Some(_)) => Some(self.unlock(kdf)?),
            (None, Some(_)) => {
                return Err(KeyError::config(format!(
                    "keyring {path} has no passphrase; remove keys.file.passphrase_file"
                )))
            }
            (_, None) => None,
        };
        match sealed.open(key.as_deref()) {
            Ok(ring) => Ok(Some(ring)),
            Err(NotOpened::Damaged) => Err(damaged("some of its keys do not open")),
            Err(NotOpened::NeedsPassphrase) => Err(KeyError::denied(format!(
                "keyring {path} has a passphrase; name a file that holds it as keys.file.passphrase_file"
            ))),
            Err(NotOpened::WrongPassphrase) => {
                self.forget();
                Err(KeyError::denied(format!(
                    "the passphrase does not open keyring {path}; correct the file that \
                     keys.file.passphrase_file names"
                )))
            }
        }
    }

    fn read_or_create(&self) -> Result<Keyring, KeyError> {
        if let Some(ring) = self.read()? {
            return Ok(ring);
        }
        let _lock = self.lock()?;
        if let Some(ring) = self.read()? {
            return Ok(ring); // somebody else was faster
        }
        let kdf = match &self.passphrase_file {
            Some(_) => Some(Kdf::new()?),
            None => None,
        };
        let mut ring = Keyring::new(kdf);
        ring.add(now_us())?;
        self.write(&ring, kdf.as_ref())?;
        Ok(ring)
    }

    /// Adds a key.
    fn add(&self) -> Result<KekId, KeyError> {
        let lock = self.lock()?;
        let Some(mut ring) = self.read()? else {
            drop(lock);
            let ring = self.read_or_create()?;
            return self.name(self.last(&ring)?);
        };
        ring.add(now_us())?;
        let kdf = ring.kdf().copied();
        self.write(&ring, kdf.as_ref())?;
        self.name(self.last(&ring)?)
    }

    fn find(&self, id: &KekId) -> Result<KeyEncryptionKey, KeyError> {
        let path = self.path.display();
        let missing = |what: String| KeyError::missing(format!("{what}; restore it from a backup"));
        let ring = self.read()?;
        let ring = ring.ok_or_else(|| missing(format!("keyring {path} is not there")))?;
        let kek = ring.find(id);
        let kek = kek.ok_or_else(|| missing(format!("keyring {path} has no key {id}")))?;
        Ok(copy(&kek.key))
    }

    fn last<'a>(&self, ring: &'a Keyring) -> Result<&'a Kek, KeyError> {
        let path = self.path.display();
        let newest = ring.newest();
        newest.ok_or_else(|| KeyError::damaged(format!("keyring {path} has no key")))
    }

    fn name(&self, kek: &Kek) -> Result<KekId, KeyError> {
        let name = kek.name();
        name.ok_or_else(|| KeyError::damaged(format!("keyring {}: a name", self.path.display())))
    }

    /// The key that the passphrase gives.
    fn unlock(&self, kdf: &Kdf) -> Result<Arc<KeyEncryptionKey>, KeyError> {
        let mut unlocked = self.unlocked.lock().unwrap_or_else(PoisonError::into_inner);
        match unlocked.as_ref() {
            Some((of, key)) if of == kdf => return Ok(Arc::clone(key)),
            _ => {}
        }
        let path = self.passphrase_file.as_ref();
        let path = path.ok_or_else(|| KeyError::config("keys.file.passphrase_file is not set"))?;
        let passphrase = private::secret("keys.file.passphrase_file", path)?;
        let key = Arc::new(kdf.key(&passphrase)?);
        *unlocked = Some((*kdf, Arc::clone(&key)));
        Ok(key)
    }

    fn forget(&self) {
        *self.unlocked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Keeps other processes from changing the keyring, until it is dropped.
    fn lock(&self) -> Result<File, KeyError> {
        self.folder()?;
        let path = with_suffix(&self.path, ".lock");
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(|e| failed("open", &path, &e))?;
        let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
        locked.map_err(|e| failed("lock", &path, &e.into()))?;
        Ok(file)
    }

    /// The folder of the keyring, which must exist.
    fn folder(&self) -> Result<PathBuf, KeyError> {
        let parent = self.path.parent().unwrap_or(Path::new(""));
        let folder = match parent.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => parent.to_path_buf(),
        };
        match fs::metadata(&folder) {
            Ok(meta) if meta.is_dir() => Ok(folder),
            Ok(_) => Err(KeyError::config(format!(
                "keys.file.path: {} is not a folder",
                folder.display()
            ))),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(KeyError::config(format!(
                "keys.file.path: there is no folder {}; create it",
                folder.display()
            ))),
            Err(e) => Err(failed("read", &folder, &e)),
        }
    }

    /// Replaces the file: at every moment the old one or the new one is there, whole.
    fn write(&self, ring: &Keyring, kdf: Option<&Kdf>) -> Result<(), KeyError> {
        let key = kdf.map(|kdf| self.unlock(kdf)).transpose()?;
        let bytes = ring.seal(key.as_deref())?.encode();
        let folder = self.folder()?;
        let new = with_suffix(&self.path, ".new");
        let written = || -> io::Result<()> {
            match fs::remove_file(&new) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {} // what an interrupted change left
            }
            let mut options = OpenOptions::new();
            let mut file = options
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            File::open(&folder)?.sync_all()
        }();
        written.map_err(|e| {
            _ = fs::remove_file(&new);
            failed("write", &self.path, &e)
        })
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn copy(key: &KeyEncryptionKey) -> KeyEncryptionKey {
    KeyEncryptionKey::filled(|bytes| bytes.copy_from_slice(key.expose()))
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}
