//! Rewind, as people write it: windows like `6h`, and moments in braces.

use crate::retention::policy::{duration, parse_duration};
use esker_node::rewind::WINDOW_SECONDS_MAX;
use std::fmt;
use std::str::FromStr;
use time::{Date, Month, Time};

/// How far back a volume can be had at any second; none for not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window(pub Option<u64>);

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        match parse_duration(text) {
            Some(seconds) if (1..=WINDOW_SECONDS_MAX).contains(&seconds) => Ok(Self(Some(seconds))),
            _ => Err(format!(
                "`{}` is no rewind window: a time like 90s, 30m or 6h, at most {}, or `none`",
                esker_node::admin::one_line(text),
                duration(WINDOW_SECONDS_MAX)
            )),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(seconds) => f.write_str(&duration(seconds)),
        }
    }
}

/// The moment that a snapshot's place in braces names, in microseconds since the Unix epoch; none when it is a
/// snapshot's name.
///
/// # Errors
/// When what is in braces is no moment.
pub fn moment(place: &str, now_us: u64) -> Result<Option<u64>, String> {
    let Some(text) = place
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
    else {
        return Ok(None);
    };
    let ago = text.strip_prefix('-').and_then(parse_duration);
    let moment = match ago {
        Some(seconds) => seconds
            .checked_mul(1_000_000)
            .and_then(|us| now_us.checked_sub(us)),
        None => utc(text),
    };
    moment.map(Some).ok_or_else(|| {
        format!(
            "`{}` is no moment: write {{2026-11-21T10:05:00Z}}, in UTC, or how long ago, like {{-10m}}",
            esker_node::admin::one_line(place)
        )
    })
}

/// `2026-11-21T10:05:00Z`, with parts of a second or without.
fn utc(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let number = |text: &str, digits: usize| {
        let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let [year, month, day]: [&str; 3] = date.split('-').collect::<Vec<_>>().try_into().ok()?;
    let month = Month::try_from(u8::try_from(number(month, 2)?).ok()?).ok()?;
    let day = u8::try_from(number(day, 2)?).ok()?;
    let year = i32::try_from(number(year, 4)?).ok()?;
    let date = Date::from_calendar_date(year, month, day).ok()?;
    let (time, part) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second]: [&str; 3] = time.split(':').collect::<Vec<_>>().try_into().ok()?;
    let two = |text: &str| u8::try_from(number(text, 2)?).ok();
    let micros = number(&format!("{part:0<6}"), 6)?;
    let time = Time::from_hms_micro(two(hour)?, two(minute)?, two(second)?, micros).ok()?;
    let nanos = date.with_time(time).assume_utc().unix_timestamp_nanos();
    u64::try_from(nanos / 1000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_255_507_000_000;

    #[test]
    fn windows_are_times_or_none() {
        for (text, seconds) in [("6h", Some(21_600)), ("90s", Some(90)), ("none", None)] {
            let window: Window = text.parse().unwrap();
            assert_eq!((window.0, window.to_string()), (seconds, text.to_string()));
        }
        for wrong in ["", "0s", "13h", "6", "h", "-6h", "6h ", "1y"] {
            let error = wrong.parse::<Window>().unwrap_err();
            assert!(error.contains("at most 12h"), "{error}");
        }
    }

    #[test]
    fn moments_are_times_in_utc_or_ago() {
        for (text, us) in [
            ("{2026-11-21T10:05:07Z}", NOW),
            ("{2026-11-21T10:05:07.25Z}", NOW + 250_000),
            ("{1970-01-01T00:00:00Z}", 0),
            ("{-10m}", NOW - 600_000_000),
            ("{-0s}", NOW),
        ] {
            assert_eq!(moment(text, NOW), Ok(Some(us)), "{text}");
        }
        for name in ["monday", "{", "x{-10m}", "-10m"] {
            assert_eq!(moment(name, NOW), Ok(None), "{name}");
        }
        for wrong in [
            "{}",
            "{10m}",
            "{-10}",
            "{2026-11-21}",
            "{2026-11-21T10:05:00}",
            "{2026-13-21T10:05:00Z}",
            "{2026-11-21T25:05:00Z}",
            "{2026-11-21T10:05:00.Z1Z}",
            "{2026-11-21T10:05:00.1234567Z}",
            "{1969-12-31T23:59:59Z}",
            "{+2026-11-21T10:05:00Z}",
            "{-99999999999999w}",
        ] {
            assert!(moment(wrong, NOW).is_err(), "{wrong}");
        }
    }
}
