//! Benchmarks. `benches/README.md` says what each shows, and what it does not.

pub mod memory;
pub mod model;
