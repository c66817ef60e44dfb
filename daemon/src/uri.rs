//! NBD URIs (the NBD project's `doc/uri.md`).

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where this node's exports can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The unix socket; absolute.
    pub socket: PathBuf,
    /// Each TCP address; none when the node does not listen on TCP.
    pub tcp: Vec<TcpEndpoint>,
}

/// A TCP address where exports can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpEndpoint {
    /// `HOST:PORT` as it was bound.
    pub address: String,
    /// Whether it needs TLS.
    pub needs_tls: bool,
}

impl TcpEndpoint {
    fn uri(&self) -> String {
        let scheme = if self.needs_tls { "nbds" } else { "nbd" };
        format!("{scheme}://{}", self.address)
    }
}

impl Endpoints {
    /// The URI of an export on the unix socket; with an empty name, of the node.
    #[must_use]
    pub fn unix_uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{}?socket={}",
            encode(export.as_bytes(), ":"),
            self.socket_text()
        )
    }

    /// The URI of an export over TCP, at the first address.
    #[must_use]
    pub fn tcp_uri(&self, export: &str) -> Option<String> {
        let uri = self.tcp.first()?.uri();
        Some(format!("{uri}/{}", encode(export.as_bytes(), ":")))
    }

    /// All URIs of the node itself, for the line that says it is ready.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let tcp = self.tcp.iter().map(TcpEndpoint::uri);
        tcp.chain([self.unix_uri("")]).collect()
    }

    fn socket_text(&self) -> String {
        encode(Path::as_os_str(&self.socket).as_bytes(), "/")
    }
}

/// Percent-encodes everything but the unreserved characters of RFC 3986 and those in `keep`.
fn encode(bytes: &[u8], keep: &str) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if is_plain || keep.as_bytes().contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_encoded() {
        let socket = PathBuf::from("/tmp/a b&c#/nbd.sock");
        let endpoints = Endpoints {
            socket,
            tcp: vec![TcpEndpoint {
                address: "[::1]:10809".into(),
                needs_tls: false,
            }],
        };
        let unix = "nbd+unix:///vm-1%40daily?socket=/tmp/a%20b%26c%23/nbd.sock";
        assert_eq!(endpoints.unix_uri("vm-1@daily"), unix);
        assert_eq!(endpoints.tcp_uri("ü").unwrap(), "nbd://[::1]:10809/%C3%BC");
        assert_eq!(endpoints.all()[0], "nbd://[::1]:10809");
        let silent = Endpoints {
            tcp: Vec::new(),
            ..endpoints
        };
        assert_eq!(silent.tcp_uri("x"), None);
        assert_eq!(silent.all().len(), 1);
    }
}
