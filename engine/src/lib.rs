//! The store: log, map, space, recovery. Sans-I/O.
