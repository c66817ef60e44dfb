//! The simulated world around sans-I/O code: randomness from a seed, and disks that fail.

pub mod disk;
pub mod rng;

pub use disk::{DiskFaults, FaultCounts, Image, SimDisk};
pub use rng::SimRng;
