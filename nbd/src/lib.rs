//! NBD sessions: handshake, transmission, replies. Sans-I/O.

/// One client's session.
#[derive(Debug)]
pub struct Session {}
