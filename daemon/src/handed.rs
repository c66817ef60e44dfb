//! Sockets handed over by systemd (socket activation), told apart by their names
//! (`FileDescriptorName=`): `nbd` and `nbd-…`, or without a name, are NBD's, unix or TCP; `metrics` is
//! that of the metrics. The admin socket is always the daemon's own, in its data folder.

use crate::error::DaemonError;
use esker_runtime::{inherited_sockets, Inherited, Listener};
use std::net::TcpListener as StdListener;
use tokio::net::TcpListener;

/// The sockets that were handed over.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    /// For NBD.
    pub nbd: Vec<Listener>,
    /// For metrics.
    pub metrics: Option<TcpListener>,
}

impl Handed {
    /// Takes them; to be called within the runtime, once.
    pub(crate) fn take() -> Result<Self, DaemonError> {
        let mut handed = Self::default();
        for socket in inherited_sockets().map_err(DaemonError::Handed)? {
            handed.add(socket)?;
        }
        Ok(handed)
    }

    fn add(&mut self, socket: Inherited) -> Result<(), DaemonError> {
        let Inherited { name, fd } = socket;
        let refuse = |why: String| DaemonError::Handed(format!("socket `{name}`: {why}"));
        let is_nbd = name.is_empty() || name == "nbd" || name.starts_with("nbd-");
        // Without FileDescriptorName=, systemd names a socket after its unit.
        if is_nbd || name.ends_with(".socket") {
            let listener = Listener::from_fd(fd).map_err(|e| refuse(e.to_string()))?;
            self.nbd.push(listener);
            return Ok(());
        }
        if name != "metrics" || self.metrics.is_some() {
            return Err(refuse(
                "give it one of the names nbd, nbd-…, metrics (once) with FileDescriptorName="
                    .into(),
            ));
        }
        let listener = StdListener::from(fd);
        let listener = listener
            .local_addr()
            .and_then(|_| listener.set_nonblocking(true))
            .and_then(|()| TcpListener::from_std(listener));
        self.metrics = Some(listener.map_err(|e| refuse(e.to_string()))?);
        Ok(())
    }
}
