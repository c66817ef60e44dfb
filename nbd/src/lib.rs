//! NBD sessions: handshake, transmission, replies. Sans-I/O.
