//! Accepting connections, and holding back when the process has no room for them.

use crate::handle::Shared;
use crate::listener::Listener;
use crate::net::{Events, Net};
use crate::peers::Peers;
use crate::ring::{Completion, Op, OpKey, Owner, Ring};
use esker_base::Moment;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

/// The pause after an accept that failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);
/// At most one line of each kind in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The listening sockets of a loop.
pub(crate) struct Acceptor {
    ports: Vec<Port>,
    connections_max: usize,
    is_stopping: bool,
    shared: Arc<Shared>,
    name: String,
    refused: Sparse,
    failed: Sparse,
}

struct Port {
    /// None once it has stopped listening.
    listener: Option<Listener>,
    accept: Option<OpKey>,
    not_before: Option<Moment>,
}

/// Counts what happens and says when it should be logged.
#[derive(Default)]
pub(crate) struct Sparse {
    silent_until: Option<Moment>,
    unlogged: u64,
}

impl Acceptor {
    pub(crate) fn new(
        listeners: Vec<Listener>,
        connections_max: usize,
        shared: Arc<Shared>,
        name: String,
    ) -> Self {
        let port = |listener: Listener| {
            let socket = socket2::SockRef::from(&listener);
            // As for connections: with O_NONBLOCK the ring would not wait.
            if let Err(error) = socket.set_nonblocking(false) {
                tracing::warn!("{}: {error}", listener.local_addr());
            }
            Port {
                listener: Some(listener),
                accept: None,
                not_before: None,
            }
        };
        Self {
            ports: listeners.into_iter().map(port).collect(),
            connections_max,
            is_stopping: false,
            shared,
            name,
            refused: Sparse::default(),
            failed: Sparse::default(),
        }
    }

    /// Listens where nothing keeps it from it.
    pub(crate) fn arm(&mut self, ring: &mut Ring, now: Moment) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            if port.not_before.is_some_and(|at| at <= now) {
                port.not_before = None;
            }
            let Some(listener) = &port.listener else {
                continue;
            };
            if port.accept.is_none() && port.not_before.is_none() {
                let fd = listener.as_fd().as_raw_fd();
                port.accept = Some(ring.submit(Op::Accept { fd }, Owner::Accept(index)));
            }
        }
    }

    /// When [`Acceptor::arm`] has something to do again.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.ports.iter().filter_map(|port| port.not_before).min()
    }

    /// Takes a completion of an accept.
    pub(crate) fn complete(
        &mut self,
        index: usize,
        completion: Completion,
        (net, peers): (&mut Net, &mut Peers),
        now: Moment,
        events: &mut Events,
    ) {
        let port = &mut self.ports[index];
        if completion.op.is_some() {
            port.accept = None; // the last completion of this accept
            if self.is_stopping {
                port.listener = None;
            }
        }
        let Some(listener) = &port.listener else {
            return;
        };
        if let Err(errno) = completion.result {
            match errno {
                libc::ECONNABORTED | libc::EINTR | libc::ECANCELED => {}
                _ => {
                    port.not_before = Some(now + BACK_OFF);
                    if let Some(count) = self.failed.note(now) {
                        let error = std::io::Error::from_raw_os_error(errno);
                        let address = listener.local_addr();
                        tracing::warn!("{}: accept on {address}: {error} ({count}×)", self.name);
                    }
                }
            }
        }
        let Some(fd) = completion.accepted.filter(|_| !self.is_stopping) else {
            return;
        };
        if listener.is_for_peers() {
            return peers.accepted(fd, now);
        }
        if self.shared.node_connections() >= self.connections_max {
            if let Some(count) = self.refused.note(now) {
                tracing::warn!(
                    "{}: {count} connections refused: {} are open",
                    self.name,
                    self.connections_max
                );
            }
            return; // dropping the descriptor closes the connection
        }
        let transport = listener.transport_of(fd.as_fd());
        net.connect(fd, transport, listener.tls(), events);
    }

    /// Stops listening: each listener is closed as soon as the kernel has let go of it.
    pub(crate) fn stop(&mut self, ring: &mut Ring) {
        self.is_stopping = true;
        for port in &mut self.ports {
            port.not_before = None;
            match port.accept {
                Some(key) => ring.cancel(key),
                None => port.listener = None,
            }
        }
    }
}

impl Sparse {
    /// How many to report now, if any.
    pub(crate) fn note(&mut self, now: Moment) -> Option<u64> {
        self.unlogged += 1;
        if self.silent_until.is_some_and(|until| now < until) {
            return None;
        }
        self.silent_until = Some(now + LOG_INTERVAL);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_once_per_interval_with_its_count() {
        let mut sparse = Sparse::default();
        assert_eq!(sparse.note(Moment(0)), Some(1));
        assert_eq!(
            (sparse.note(Moment(1)), sparse.note(Moment(2))),
            (None, None)
        );
        assert_eq!(sparse.note(Moment(0) + LOG_INTERVAL), Some(3));
    }
}
