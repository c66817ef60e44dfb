//! Raft groups over raft-rs. Sans-I/O.
