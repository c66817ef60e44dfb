//! Conversions between integer widths that are lossless on every supported target (64-bit), or
//! that say so when they are not. They exist so that no other file needs a lossy `as`.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("Esker needs a 64-bit target: sizes and offsets are u64 in memory");

/// A length or index that is known to fit memory, as `usize`. Lossless: targets are 64-bit.
#[allow(clippy::cast_possible_truncation)] // targets are 64-bit, checked above
#[must_use]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}

/// A `usize` as `u64`. Lossless: targets are 64-bit.
#[must_use]
pub const fn to_u64(value: usize) -> u64 {
    value as u64
}

/// A `usize` as `u32`, saturating at `u32::MAX`.
#[must_use]
pub fn to_u32_saturating(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Rounds `value` up to a multiple of `unit`, or `None` on overflow. `unit` must not be zero.
#[must_use]
pub const fn round_up(value: u64, unit: u64) -> Option<u64> {
    match value % unit {
        0 => Some(value),
        rest => value.checked_add(unit - rest),
    }
}

#[cfg(test)]
mod tests {
    use super::round_up;

    #[test]
    fn round_up_reaches_the_next_multiple_and_reports_overflow() {
        assert_eq!(round_up(0, 4096), Some(0));
        assert_eq!(round_up(1, 4096), Some(4096));
        assert_eq!(round_up(4096, 4096), Some(4096));
        assert_eq!(round_up(u64::MAX, 4096), None);
    }
}
