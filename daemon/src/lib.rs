//! The storage daemon: configuration, admin API, signals.
