//! The settings that can be changed while the daemon runs: SIGHUP reads them anew.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What the log shows when nothing else is said.
pub const LOG_DEFAULT: &str = "info";

/// Settings that SIGHUP changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Which lines are logged, as `RUST_LOG` is written; that variable goes before it.
    pub log: String,
    /// How they look.
    pub log_format: LogFormat,
    /// A request that takes at least this long is warned of; never when none.
    pub slow_request: SlowRequest,
    /// Volumes of each store that have metrics of their own; the others are summed.
    pub metrics_volumes_max: usize,
}

impl Default for Live {
    fn default() -> Self {
        let tuning = esker_node::admin::Tuning::default();
        Self {
            log: LOG_DEFAULT.into(),
            log_format: LogFormat::default(),
            slow_request: SlowRequest(Some(tuning.slow_request)),
            metrics_volumes_max: tuning.metrics_volumes_max,
        }
    }
}

impl Live {
    /// The part that the stores take.
    #[must_use]
    pub fn tuning(&self) -> esker_node::admin::Tuning {
        esker_node::admin::Tuning {
            slow_request: self.slow_request.0.unwrap_or(Duration::MAX),
            metrics_volumes_max: self.metrics_volumes_max,
        }
    }

    /// Keys whose values differ.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let keys = [
            ("log", self.log != other.log),
            ("log_format", self.log_format != other.log_format),
            ("slow_request", self.slow_request != other.slow_request),
            (
                "metrics_volumes_max",
                self.metrics_volumes_max != other.metrics_volumes_max,
            ),
        ];
        let different = keys.into_iter().filter(|(_, differs)| *differs);
        different.map(|(key, _)| key).collect()
    }
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is neither `text` nor `json`")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// From when on a request is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowRequest(pub Option<Duration>);

impl FromStr for SlowRequest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a time like 500ms or 2s (a whole number, not 0), nor `none`")
        };
        if text == "none" {
            return Ok(Self(None));
        }
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..end].parse().map_err(|_| wrong())?;
        let time = match &text[end..] {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            _ => return Err(wrong()),
        };
        if time.is_zero() {
            return Err(wrong());
        }
        Ok(Self(Some(time)))
    }
}

impl fmt::Display for SlowRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(time) if time.subsec_millis() == 0 => write!(f, "{}s", time.as_secs()),
            Some(time) => write!(f, "{}ms", time.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_slow_requests() {
        for (text, millis) in [("500ms", 500), ("2s", 2000), ("1500ms", 1500)] {
            let parsed: SlowRequest = text.parse().unwrap();
            assert_eq!(parsed.0, Some(Duration::from_millis(millis)));
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!("none".parse(), Ok(SlowRequest(None)));
        for text in [
            "",
            "5",
            "s",
            "0s",
            "0ms",
            "1m",
            "-1s",
            "1.5s",
            "1 s",
            "99999999999999999999s",
        ] {
            assert!(text.parse::<SlowRequest>().is_err(), "{text}");
        }
        let never = Live {
            slow_request: SlowRequest(None),
            ..Live::default()
        };
        assert_eq!(never.tuning().slow_request, Duration::MAX);
        assert_eq!(
            Live::default().tuning(),
            esker_node::admin::Tuning::default()
        );
    }
}
