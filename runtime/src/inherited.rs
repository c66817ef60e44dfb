//! Sockets that systemd hands over at the start (socket activation): descriptors from 3 on, whose
//! number, names and receiver are in the environment.

#![allow(unsafe_code)] // descriptors from the environment

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// First descriptor that is handed over.
const FIRST_FD: RawFd = 3;
/// Sockets taken over at most; more are a mistake and are refused.
pub const INHERITED_MAX: usize = 32;

/// A socket that was handed over.
#[derive(Debug)]
pub struct Inherited {
    /// The name its unit gives it (`FileDescriptorName=`); empty without names.
    pub name: String,
    /// The socket. Nothing is known of it yet.
    pub fd: OwnedFd,
}

/// Takes the sockets that were handed to this process; none when there are none. To be called once,
/// before the process opens anything; a second call gives nothing.
///
/// # Errors
/// A sentence, when the environment contradicts itself.
pub fn inherited_sockets() -> Result<Vec<Inherited>, String> {
    static TAKEN: std::sync::Once = std::sync::Once::new();
    let mut first_call = false;
    TAKEN.call_once(|| first_call = true);
    let var = |name| std::env::var(name).unwrap_or_default();
    let is_ours = var("LISTEN_PID") == std::process::id().to_string();
    if !first_call || !is_ours {
        return Ok(Vec::new());
    }
    let names = names(&var("LISTEN_FDS"), &var("LISTEN_FDNAMES"))?;
    let mut sockets = Vec::with_capacity(names.len());
    for (name, number) in names.into_iter().zip(FIRST_FD..) {
        // SAFETY: `fcntl` with F_SETFD only sets a flag of the descriptor, and fails when it is not
        // open. Children must not hold the socket open.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(format!("LISTEN_FDS: descriptor {number} is not open"));
        }
        // SAFETY: the descriptor is open, as `fcntl` has just shown, and the environment says that
        // it is this process's to use. Nothing else owns it: it was opened before the process
        // began, and this loop runs once, which TAKEN sees to.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        sockets.push(Inherited { name, fd });
    }
    Ok(sockets)
}

/// The name of each socket.
fn names(count: &str, names: &str) -> Result<Vec<String>, String> {
    let count: usize = count
        .parse()
        .map_err(|_| format!("LISTEN_FDS={count}: not a number of sockets"))?;
    if count > INHERITED_MAX {
        return Err(format!(
            "LISTEN_FDS={count}: at most {INHERITED_MAX} sockets"
        ));
    }
    if names.is_empty() {
        return Ok(vec![String::new(); count]);
    }
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    if names.len() != count {
        return Err(format!(
            "LISTEN_FDNAMES has {} names for LISTEN_FDS={count} sockets",
            names.len()
        ));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn each_socket_has_a_name() {
        assert_eq!(names("2", "nbd:metrics").unwrap(), ["nbd", "metrics"]);
        assert_eq!(names("2", "").unwrap(), ["", ""]);
        assert_eq!(names("0", "").unwrap(), Vec::<String>::new());
        for (count, given) in [
            ("", ""),
            ("x", ""),
            ("-1", ""),
            ("33", ""),
            ("2", "nbd"),
            ("1", "a:b"),
        ] {
            assert!(names(count, given).is_err(), "{count} {given}");
        }
    }
}
