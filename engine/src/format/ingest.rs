//! What an entry says of blocks that a replica has from another one: any blocks of a version, each with the
//! stamp and the authenticator that it has there.

use super::codec::{FormatError, Reader, Writer};
use super::node::LeafKind;
use super::operation::{stored_crc, Authenticator, AUTH_BYTES};
use esker_base::num::to_u64;
use esker_base::{limits, BlockRange, Stamp};

/// Most runs in one entry.
pub const RUNS_MAX: usize = 512;
/// Bytes of a run before its blocks.
const RUN_BYTES: usize = 24;

/// Neighbouring blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one.
    pub lba: u64,
    /// What they are.
    pub content: RunContent,
}

/// What neighbouring blocks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunContent {
    /// Stored: stamp and authenticator of each. Their bytes are in the payload, in this order.
    Data(Vec<(Stamp, Authenticator)>),
    /// They read as zeros.
    Hollow {
        /// How many.
        count: u64,
        /// [`LeafKind::Discarded`] or [`LeafKind::Zero`].
        kind: LeafKind,
        /// Of all of them; above that of what was there before.
        stamp: Stamp,
    },
}

impl Run {
    /// The blocks.
    #[must_use]
    pub fn range(&self) -> BlockRange {
        let count = match &self.content {
            RunContent::Data(blocks) => to_u64(blocks.len()),
            RunContent::Hollow { count, .. } => *count,
        };
        BlockRange::new(self.lba, count)
    }

    /// How many blocks of payload it brings.
    #[must_use]
    pub fn payload_blocks(&self) -> u64 {
        match &self.content {
            RunContent::Data(blocks) => to_u64(blocks.len()),
            RunContent::Hollow { .. } => 0,
        }
    }

    /// The highest stamp in it.
    #[must_use]
    pub fn max_stamp(&self) -> Stamp {
        match &self.content {
            RunContent::Data(blocks) => blocks.iter().map(|(s, _)| *s).max().unwrap_or_default(),
            RunContent::Hollow { stamp, .. } => *stamp,
        }
    }

    /// The lowest stamp in it.
    #[must_use]
    pub fn min_stamp(&self) -> Stamp {
        match &self.content {
            RunContent::Data(blocks) => blocks.iter().map(|(s, _)| *s).min().unwrap_or_default(),
            RunContent::Hollow { stamp, .. } => *stamp,
        }
    }
}

/// The CRC of each block that the payload of these runs holds, with its place in the volume.
pub fn crcs(runs: &[Run]) -> impl Iterator<Item = (u64, u32)> + '_ {
    runs.iter().flat_map(|run| {
        let blocks = match &run.content {
            RunContent::Data(blocks) => blocks.as_slice(),
            RunContent::Hollow { .. } => &[],
        };
        let crcs = blocks.iter().map(|(_, auth)| stored_crc(auth));
        (run.lba..).zip(crcs)
    })
}

/// Appends the runs.
pub(super) fn encode(w: &mut Writer, runs: &[Run]) {
    w.u32(u32::try_from(runs.len()).unwrap_or(u32::MAX));
    w.zeros(4);
    for run in runs {
        let kind = match &run.content {
            RunContent::Data(_) => LeafKind::Data,
            RunContent::Hollow { kind, .. } => *kind,
        };
        w.u64(run.lba);
        w.u64(run.range().count);
        w.u8(kind as u8);
        w.zeros(7);
        match &run.content {
            RunContent::Data(blocks) => {
                for (stamp, auth) in blocks {
                    w.u64(stamp.0);
                    w.raw(auth);
                }
            }
            RunContent::Hollow { stamp, .. } => w.u64(stamp.0),
        }
    }
}

/// Takes runs: rising, apart from each other, not empty, and no more than an entry may bring.
pub(super) fn decode(r: &mut Reader<'_>) -> Result<Vec<Run>, FormatError> {
    let count = r.u32()? as usize;
    r.zeros(4)?;
    if count == 0 || count > RUNS_MAX || count * RUN_BYTES > r.remaining() {
        return Err(r.error("has no runs, or too many"));
    }
    let mut runs = Vec::with_capacity(count);
    let (mut end, mut stored) = (0, 0);
    for _ in 0..count {
        let (lba, count) = (r.u64()?, r.u64()?);
        let kind = r.u8()?;
        r.zeros(7)?;
        let until = lba.checked_add(count).filter(|_| count > 0 && lba >= end);
        let Some(until) = until.filter(|until| *until <= limits::VOLUME_BYTES_MAX / 4096) else {
            return Err(r.error("runs are not in order, or lie outside any volume"));
        };
        end = until;
        let content = if kind == LeafKind::Data as u8 {
            stored += count;
            if stored > limits::ENTRY_BLOCKS_MAX {
                return Err(r.error("has too many blocks"));
            }
            let mut blocks = Vec::new();
            for _ in 0..count {
                let stamp = Stamp(r.u64()?);
                let mut auth = [0; AUTH_BYTES];
                auth.copy_from_slice(r.raw(AUTH_BYTES)?);
                blocks.push((stamp, auth));
            }
            RunContent::Data(blocks)
        } else {
            let kind = match kind {
                2 => LeafKind::Discarded,
                3 => LeafKind::Zero,
                _ => return Err(r.error("run has an unknown kind")),
            };
            let stamp = Stamp(r.u64()?);
            RunContent::Hollow { count, kind, stamp }
        };
        runs.push(Run { lba, content });
    }
    Ok(runs)
}
