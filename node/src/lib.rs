//! Composition of engine, replication and NBD sessions into one node. Sans-I/O.
