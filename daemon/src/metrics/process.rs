//! What the process itself uses, under the names that every Prometheus client library gives it.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Figures of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    /// Processor time of all its threads, in nanoseconds.
    pub cpu_nanos: u64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_descriptors: u64,
    /// When it started, in nanoseconds since the Unix epoch.
    pub started_nanos: u64,
}

/// Notes when the process started; the first call decides.
pub fn note_start() -> u64 {
    static STARTED: OnceLock<u64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    *STARTED.get_or_init(|| nanos(now().unwrap_or_default()))
}

impl ProcessFigures {
    /// The figures now; what cannot be found out is zero.
    #[must_use]
    pub fn now() -> Self {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let cpu = Duration::new(
            u64::try_from(cpu.tv_sec).unwrap_or(0),
            u32::try_from(cpu.tv_nsec).unwrap_or(0),
        );
        Self {
            cpu_nanos: nanos(cpu),
            resident_bytes: resident_bytes().unwrap_or(0),
            open_descriptors: std::fs::read_dir("/proc/self/fd")
                .map_or(0, |all| esker_base::num::to_u64(all.count())),
            started_nanos: note_start(),
        }
    }
}

/// The second number of `statm` is the resident pages.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * esker_base::num::to_u64(rustix::param::page_size()))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
