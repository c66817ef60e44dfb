//! Stamps: the one number that names a block version.

use std::fmt;

/// Fencing number of a leadership or of an exclusive attachment. Opened by a committed log entry;
/// zero means "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// Names one version of one block of a volume: epoch(32) ‖ counter(32), strictly rising within a
/// volume in the order of its log. It is the AES-GCM nonce, the birth time of the block and the
/// version that makes apply idempotent. Zero means "never written".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The stamp with this counter in this epoch.
    #[must_use]
    pub const fn new(epoch: Epoch, counter: u32) -> Self {
        Self(((epoch.0 as u64) << 32) | counter as u64)
    }

    /// The epoch the block was written in.
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        #[allow(clippy::cast_possible_truncation)] // the shift leaves 32 bits
        Epoch((self.0 >> 32) as u32)
    }

    /// The counter within the epoch.
    #[must_use]
    pub const fn counter(self) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // the mask leaves 32 bits
        {
            (self.0 & 0xffff_ffff) as u32
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch().0, self.counter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_and_a_later_epoch_is_greater() {
        let s = Stamp::new(Epoch(7), u32::MAX);
        assert_eq!((s.epoch(), s.counter()), (Epoch(7), u32::MAX));
        assert!(Stamp::new(Epoch(8), 0) > s);
    }
}
