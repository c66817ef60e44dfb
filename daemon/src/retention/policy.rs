//! Schedules: which snapshots a volume gets by itself, and how many of them are kept.
//!
//! A schedule is a list of rules, `hourly keep 24, daily keep 7`. Each names a period and for how many of those,
//! counted back from the newest snapshot, the newest automatic snapshot is kept. A period in which there is none
//! does not count. Periods begin as they do in UTC, weeks on Monday, so there is no daylight saving in them.

use std::fmt;
use std::str::FromStr;
use time::{Date, Month, OffsetDateTime};

/// Rules of a schedule.
pub const RULES_MAX: usize = 16;
/// Snapshots that one rule keeps.
pub const KEEP_MAX: u32 = 10_000;
/// The longest period of `every`, in seconds.
const EVERY_MAX: u64 = 366 * 24 * 3600;
/// Bytes of a schedule, as it is kept with the volume.
const TEXT_BYTES_MAX: usize = esker_base::limits::LABEL_BYTES_MAX;

/// How time is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// So many seconds, from the Unix epoch on.
    Every(u64),
    /// An hour.
    Hourly,
    /// A day.
    Daily,
    /// A week, from Monday on.
    Weekly,
    /// A month.
    Monthly,
    /// A year.
    Yearly,
}

impl Period {
    /// The number of the period that a moment lies in, in seconds since the Unix epoch.
    #[must_use]
    pub fn of(self, unix: u64) -> u64 {
        const DAY: u64 = 86_400;
        match self {
            Self::Every(seconds) => unix / seconds.max(1),
            Self::Hourly => unix / 3600,
            Self::Daily => unix / DAY,
            Self::Weekly => (unix / DAY + 3) / 7, // the first day was a Thursday
            Self::Monthly => date(unix).map_or(0, |date| {
                year(date) * 12 + u64::from(u8::from(date.month()))
            }),
            Self::Yearly => date(unix).map_or(0, year),
        }
    }

    /// When the next period begins after a moment.
    #[must_use]
    pub fn next(self, unix: u64) -> u64 {
        const DAY: u64 = 86_400;
        let after = |seconds: u64| (unix / seconds + 1).saturating_mul(seconds);
        let first_of = |year: i32, month| {
            let date = Date::from_calendar_date(year, month, 1).ok();
            let unix = date.map(|date| date.midnight().assume_utc().unix_timestamp());
            unix.and_then(|unix| u64::try_from(unix).ok())
        };
        let next = match self {
            Self::Every(seconds) => Some(after(seconds.max(1))),
            Self::Hourly => Some(after(3600)),
            Self::Daily => Some(after(DAY)),
            Self::Weekly => Some((self.of(unix) * 7 + 4) * DAY),
            Self::Monthly => date(unix).and_then(|date| match date.month() {
                Month::December => first_of(date.year() + 1, Month::January),
                month => first_of(date.year(), month.next()),
            }),
            Self::Yearly => date(unix).and_then(|date| first_of(date.year() + 1, Month::January)),
        };
        next.unwrap_or(u64::MAX)
    }
}

fn date(unix: u64) -> Option<Date> {
    let seconds = i64::try_from(unix).ok()?;
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    Some(time.date())
}

fn year(date: Date) -> u64 {
    u64::try_from(date.year()).unwrap_or(0)
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(seconds) => write!(f, "every {}", duration(*seconds)),
            Self::Hourly => f.write_str("hourly"),
            Self::Daily => f.write_str("daily"),
            Self::Weekly => f.write_str("weekly"),
            Self::Monthly => f.write_str("monthly"),
            Self::Yearly => f.write_str("yearly"),
        }
    }
}

const UNITS: [(u64, char); 5] = [
    (7 * 86_400, 'w'),
    (86_400, 'd'),
    (3600, 'h'),
    (60, 'm'),
    (1, 's'),
];

/// Seconds in the largest unit of which they are a multiple.
#[must_use]
pub fn duration(seconds: u64) -> String {
    let unit = UNITS.iter().find(|(unit, _)| seconds.is_multiple_of(*unit));
    let (unit, name) = unit.filter(|_| seconds > 0).unwrap_or(&(1, 's'));
    format!("{}{name}", seconds / unit)
}

/// Seconds of a text like `15m`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<u64> {
    let name = text.chars().last()?;
    let (unit, _) = UNITS.iter().find(|(_, unit)| *unit == name)?;
    let digits = &text[..text.len() - name.len_utf8()];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(*unit)
}

/// What one rule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keeper {
    /// The newest of each period.
    NewestOf(Period),
    /// The newest ones.
    Last,
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewestOf(period) => period.fmt(f),
            Self::Last => f.write_str("last"),
        }
    }
}

/// A rule: what is kept, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What.
    pub keeper: Keeper,
    /// How many.
    pub keep: u32,
}

/// A schedule. It has one period at least, and none twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// Its rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Its periods.
    pub fn periods(&self) -> impl Iterator<Item = Period> + '_ {
        self.rules.iter().filter_map(|rule| match rule.keeper {
            Keeper::NewestOf(period) => Some(period),
            Keeper::Last => None,
        })
    }

    /// When the next period begins after a moment, in seconds since the Unix epoch.
    #[must_use]
    pub fn next(&self, unix: u64) -> u64 {
        let next = self.periods().map(|period| period.next(unix)).min();
        next.unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, rule) in self.rules.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{} keep {}", rule.keeper, rule.keep)?;
        }
        Ok(())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = esker_node::admin::one_line(text);
        let wrong = |why: &str| format!("`{text}` is no snapshot schedule: {why}");
        let mut rules: Vec<Rule> = Vec::new();
        for part in text.split(',') {
            let rule = rule(part).map_err(|why| wrong(&why))?;
            if rules.iter().any(|r| r.keeper == rule.keeper) {
                return Err(wrong(&format!("`{}` is in it twice", rule.keeper)));
            }
            rules.push(rule);
        }
        let policy = Self { rules };
        if policy.periods().next().is_none() {
            return Err(wrong("it says what to keep and not when to take one; add a period, like `hourly keep 24`"));
        }
        if policy.rules.len() > RULES_MAX || policy.to_string().len() > TEXT_BYTES_MAX {
            return Err(wrong(&format!(
                "at most {RULES_MAX} rules and {TEXT_BYTES_MAX} bytes"
            )));
        }
        Ok(policy)
    }
}

/// A schedule, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule(pub Option<Policy>);

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "none" => Ok(Self(None)),
            rules => rules.parse().map(|policy| Self(Some(policy))),
        }
    }
}

fn rule(part: &str) -> Result<Rule, String> {
    let words: Vec<&str> = part.split_whitespace().collect();
    let form = || {
        format!(
            "`{}` is not `PERIOD keep N`, where PERIOD is `every 15m` (s, m, h, d, w), hourly, daily, weekly, \
             monthly, yearly, or `last`",
            part.trim()
        )
    };
    let (what, keep) = match words.as_slice() {
        [what @ .., "keep", keep] => (what, keep),
        _ => return Err(form()),
    };
    let keeper = match what {
        ["every", time] => match parse_duration(time) {
            Some(seconds) if (1..=EVERY_MAX).contains(&seconds) => {
                Keeper::NewestOf(Period::Every(seconds))
            }
            _ => {
                return Err(format!(
                    "`every {time}` is not from `every 1s` to `every 366d`"
                ))
            }
        },
        ["hourly"] => Keeper::NewestOf(Period::Hourly),
        ["daily"] => Keeper::NewestOf(Period::Daily),
        ["weekly"] => Keeper::NewestOf(Period::Weekly),
        ["monthly"] => Keeper::NewestOf(Period::Monthly),
        ["yearly"] => Keeper::NewestOf(Period::Yearly),
        ["last"] => Keeper::Last,
        _ => return Err(form()),
    };
    match keep.parse() {
        Ok(keep) if (1..=KEEP_MAX).contains(&keep) => Ok(Rule { keeper, keep }),
        _ => Err(format!("`keep {keep}` is not from 1 to {KEEP_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21, a Saturday, at 10:05:07.
    const NOW: u64 = 1_795_255_507;

    fn when(unix: u64) -> String {
        let t = OffsetDateTime::from_unix_timestamp(unix.try_into().unwrap()).unwrap();
        format!(
            "{} {:02}:{:02}:{:02}",
            t.date(),
            t.hour(),
            t.minute(),
            t.second()
        )
    }

    #[test]
    fn a_schedule_comes_back_as_it_was_written() {
        for text in [
            "hourly keep 24, daily keep 7",
            "every 15m keep 8, hourly keep 24, daily keep 7, weekly keep 4, monthly keep 12, yearly keep 3",
            "every 90s keep 1, last keep 5",
            "every 2d keep 10000",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        let loose = "  every 60m   keep 2,daily keep 1 "
            .parse::<Policy>()
            .unwrap();
        assert_eq!(loose.to_string(), "every 1h keep 2, daily keep 1");
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "PERIOD keep N"),
            ("hourly", "PERIOD keep N"),
            ("hourly keep 0", "from 1 to"),
            ("hourly keep 10001", "from 1 to"),
            ("hourly keep -1", "from 1 to"),
            ("every keep 3", "PERIOD keep N"),
            ("every 0s keep 3", "every 1s"),
            ("every 1y keep 3", "every 1s"),
            ("every ms keep 3", "every 1s"),
            ("every 400d keep 3", "every 1s"),
            ("last keep 3", "when to take one"),
            ("daily keep 1, daily keep 2", "twice"),
            ("daily keep 1,", "PERIOD keep N"),
            ("secondly keep 1", "PERIOD keep N"),
            ("daily keep 1\nx", "from 1 to"),
        ] {
            let error = text.parse::<Policy>().unwrap_err();
            assert!(
                error.contains(part) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn periods_begin_as_in_utc() {
        assert_eq!(when(NOW), "2026-11-21 10:05:07");
        for (period, next) in [
            (Period::Every(900), "2026-11-21 10:15:00"),
            (Period::Hourly, "2026-11-21 11:00:00"),
            (Period::Daily, "2026-11-22 00:00:00"),
            (Period::Weekly, "2026-11-23 00:00:00"),
            (Period::Monthly, "2026-12-01 00:00:00"),
            (Period::Yearly, "2027-01-01 00:00:00"),
        ] {
            let begins = period.next(NOW);
            assert_eq!(when(begins), next, "{period}");
            assert_eq!(period.of(begins - 1), period.of(NOW), "{period}");
            assert_ne!(period.of(begins), period.of(NOW), "{period}");
        }
        let december = Period::Monthly.next(NOW);
        assert_eq!(when(Period::Monthly.next(december)), "2027-01-01 00:00:00");
        assert_eq!(Period::Yearly.next(u64::MAX), u64::MAX);
    }
}
