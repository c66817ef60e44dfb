//! The only syscalls: io_uring, sockets, timers.
