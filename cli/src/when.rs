//! Times, as people read them.

use time::OffsetDateTime;

/// A time in UTC, of seconds since the Unix epoch.
#[must_use]
pub fn text(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).ok();
    match seconds.map(OffsetDateTime::from_unix_timestamp) {
        Some(Ok(t)) => format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        ),
        _ => format!("{unix_seconds} s"),
    }
}

/// A time in the largest unit of which it is a multiple.
#[must_use]
pub fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = units
        .iter()
        .find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    let (unit, name) = unit.unwrap_or(&(1, "s"));
    format!("{}{name}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::{duration, text};

    #[test]
    fn durations_have_the_largest_unit_that_fits() {
        let all = [0, 59, 60, 90, 21_600, 86_400].map(duration);
        assert_eq!(all, ["0s", "59s", "1m", "90s", "6h", "1d"]);
    }

    #[test]
    fn seconds_are_shown_as_utc() {
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(text(u64::MAX), "18446744073709551615 s");
    }
}
