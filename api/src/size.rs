//! Sizes as people write them (`10GiB`) and read them (`1.5 GiB`). Units are powers of 1024.

use std::fmt::Write as _;

/// The units, largest first: how one is shown, its shorthand, and its bytes.
const UNITS: [(&str, &str, u64); 4] = [
    ("TiB", "T", 1 << 40),
    ("GiB", "G", 1 << 30),
    ("MiB", "M", 1 << 20),
    ("KiB", "K", 1 << 10),
];

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It does not start with digits.
    #[error("`{0}` is not a size; write a whole number with a unit, like 512MiB or 10GiB")]
    NoNumber(String),
    /// A fraction.
    #[error("`{0}` is not a whole number; use a smaller unit, like 1536MiB for 1.5 GiB")]
    Fraction(String),
    /// A unit of powers of 1000, or none at all known.
    #[error("`{text}` has the unknown unit `{unit}`; use KiB, MiB, GiB or TiB (or K, M, G, T), all powers of 1024")]
    Unit {
        /// The whole text.
        text: String,
        /// The unit in it.
        unit: String,
    },
    /// It does not fit 64 bits.
    #[error("`{0}` is too large; the largest size is below 16777216TiB")]
    TooLarge(String),
}

/// Parses a size in bytes: a whole number and a unit (`KiB`, `MiB`, `GiB`, `TiB`, or the shorthands
/// `K`, `M`, `G`, `T` for the same; `B` or none for bytes), in any case, with or without a space.
/// The decimal units (`GB`) are refused, because half of their users mean the binary ones.
///
/// # Errors
/// One line that says what is wrong and what to write instead.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim();
    let digits_end = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (digits, rest) = trimmed.split_at(digits_end);
    if digits.is_empty() {
        return Err(SizeError::NoNumber(text.into()));
    }
    if rest.starts_with(['.', ',']) {
        return Err(SizeError::Fraction(text.into()));
    }
    let unit = rest.trim_start();
    let unit_bytes = if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        1
    } else {
        UNITS
            .iter()
            .find(|(long, short, _)| {
                unit.eq_ignore_ascii_case(long) || unit.eq_ignore_ascii_case(short)
            })
            .map(|(_, _, bytes)| *bytes)
            .ok_or_else(|| SizeError::Unit {
                text: text.into(),
                unit: unit.into(),
            })?
    };
    let count: u64 = digits
        .parse()
        .map_err(|_| SizeError::TooLarge(text.into()))?;
    count
        .checked_mul(unit_bytes)
        .ok_or_else(|| SizeError::TooLarge(text.into()))
}

/// A size for people: the largest unit it reaches, with one digit after the point, cut and not
/// rounded (so that what is shown as free is there), which is left out when the size is whole.
#[must_use]
pub fn format(bytes: u64) -> String {
    let Some((name, _, unit)) = UNITS.iter().find(|(_, _, unit)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    let mut text = (bytes / unit).to_string();
    if !bytes.is_multiple_of(*unit) {
        let tenths = (bytes % unit) * 10 / unit; // the rest is below 2^40
        let _ = write!(text, ".{tenths}"); // writing to a String cannot fail
    }
    text.push(' ');
    text.push_str(name);
    text
}

/// A size as [`parse`] reads it back without loss: the largest unit that divides it.
#[must_use]
pub fn format_exact(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .find(|(_, _, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    match unit {
        Some((name, _, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("10GiB", 10 << 30),
            ("10gib", 10 << 30),
            (" 10 GiB ", 10 << 30),
            ("10G", 10 << 30),
            ("64TiB", 64 << 40),
            ("3M", 3 << 20),
            ("1k", 1024),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn bad_sizes_say_what_to_write() {
        for (text, part) in [
            ("", "not a size"),
            ("GiB", "not a size"),
            ("-1GiB", "not a size"),
            ("1.5GiB", "smaller unit"),
            ("10GB", "unknown unit `GB`"),
            ("10 parsecs", "unknown unit `parsecs`"),
            ("16777216TiB", "too large"),
            ("99999999999999999999", "too large"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
            assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            ((10 << 30) - 1, "9.9 GiB"),
            ((10 << 30) + 1, "10.0 GiB"),
        ] {
            assert_eq!(format(bytes), text);
        }
        // Past the largest unit the number grows, and nothing overflows.
        assert!(format(u64::MAX).starts_with("16777215.9"));
    }

    proptest! {
        #[test]
        fn exact_text_is_read_back(bytes: u64) {
            prop_assert_eq!(parse(&format_exact(bytes)), Ok(bytes));
        }

        #[test]
        fn every_unit_is_read_back(count in 0_u64..(1 << 24), unit in 0_usize..4, short: bool) {
            let (long, abbreviation, bytes) = UNITS[unit];
            let text = format!("{count}{}", if short { abbreviation } else { long });
            prop_assert_eq!(parse(&text), Ok(count * bytes));
            prop_assert_eq!(parse(&format_exact(count * bytes)), Ok(count * bytes));
        }

        #[test]
        fn any_text_gives_a_size_or_one_line(text in ".{0,40}") {
            if let Err(error) = parse(&text) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
