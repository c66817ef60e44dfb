//! Files that hold secrets: read only when nobody but their owner may.

use crate::error::KeyError;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Longest secret in a file, in bytes: a passphrase, a token, a private key.
pub(crate) const SECRET_BYTES_MAX: usize = 16 << 10;

/// Reads a file of at most `most` bytes; none when there is no such file.
///
/// # Errors
/// When it cannot be read, is too long, is not a file, belongs to somebody else, or may be read or
/// written by others.
pub(crate) fn read(path: &Path, most: usize) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    let shown = path.display();
    // A named pipe would wait for somebody to write to it, before it can be told from a file.
    let at_once = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(at_once)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path, &e)),
    };
    // The file that is open is looked at, not the name: it cannot be exchanged in between.
    let meta = file.metadata().map_err(|e| failed("read", path, &e))?;
    if !meta.is_file() {
        return Err(KeyError::denied(format!("{shown} is not a file")));
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(KeyError::denied(format!(
            "{shown} may be read or written by others (mode {mode:03o}); chmod 600 {shown}"
        )));
    }
    let (owner, user) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != user && user != 0 {
        return Err(KeyError::denied(format!(
            "{shown} belongs to user {owner}, not to {user}; chown {user} {shown}"
        )));
    }
    let length = usize::try_from(meta.len()).unwrap_or(usize::MAX);
    if length > most {
        let message = format!("{shown} has {length} bytes; at most {most} are read");
        return Err(KeyError::damaged(message));
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    let read = file.read_exact(&mut bytes);
    read.map_err(|e| failed("read", path, &e))?;
    Ok(Some(bytes))
}

/// Reads the secret that the configuration's `key` names a file of, without the line's end.
///
/// # Errors
/// As [`read`], and when it is not there or empty.
pub(crate) fn secret(key: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let shown = path.display();
    let bytes = read(path, SECRET_BYTES_MAX)?;
    let gone = || {
        KeyError::config(format!(
            "{key}: {shown} is not there; write the secret to it"
        ))
    };
    let mut bytes = bytes.ok_or_else(gone)?;
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    match bytes.is_empty() {
        true => Err(KeyError::config(format!(
            "{key}: {shown} is empty; write the secret to it"
        ))),
        false => Ok(bytes),
    }
}

/// As [`secret`], for one that is text.
///
/// # Errors
/// As [`secret`], and when it has other than printable ASCII.
pub(crate) fn secret_text(key: &str, path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let bytes = secret(key, path)?;
    let text = std::str::from_utf8(&bytes).ok();
    let plain = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
    let shown = path.display();
    let odd = || KeyError::config(format!("{key}: {shown} holds more than one word of ASCII"));
    Ok(Zeroizing::new(plain.ok_or_else(odd)?.to_owned()))
}

/// An error of the file system with what was done to which file.
pub(crate) fn failed(what: &str, path: &Path, error: &io::Error) -> KeyError {
    let message = format!("cannot {what} {}: {error}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied => KeyError::denied(message),
        _ => KeyError::unreachable(message),
    }
}
