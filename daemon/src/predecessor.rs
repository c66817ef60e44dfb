//! A daemon that was killed just now: what it held is still held for a moment.
//!
//! The kernel tears an io_uring down after its process is gone. Measured on Linux 6.18, after the
//! process had been reaped: its sockets were free 5 to 9 ms later, its store's lock 32 to 47 ms. In
//! that time writes of the dead daemon may still reach the store, so the lock is waited for and
//! never passed by.

use crate::config::Config;
use esker_runtime::RuntimeError;
use std::time::Duration;
use tokio::time::Instant;

/// How long is waited for what a killed daemon held.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Whether the last daemon on this data ended without removing its sockets. Only then is anything
/// waited for: what is busy otherwise belongs to somebody else, and that is said at once. The
/// caller holds the lock of the data directory.
#[derive(Clone, Copy, Debug)]
pub struct Predecessor {
    was_killed: bool,
}

impl Predecessor {
    /// Looks for what a killed daemon leaves; to be called before it is replaced.
    #[must_use]
    pub fn look(config: &Config) -> Self {
        let left = [
            config.nbd_socket(),
            config.admin_socket(),
            config.admin_socket_while_binding(),
        ];
        Self {
            was_killed: left.iter().any(|path| path.symlink_metadata().is_ok()),
        }
    }

    /// Tries until what is asked for is no longer in use, for a bounded time.
    ///
    /// # Errors
    /// As the last try's.
    pub async fn outlast<T>(
        self,
        mut attempt: impl FnMut() -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let end = Instant::now() + WAIT_MAX;
        loop {
            match attempt() {
                Err(RuntimeError::InUse { .. }) if self.was_killed && Instant::now() < end => {
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }
}
