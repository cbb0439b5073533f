//! Time zones: chat templates print the engine's local date.

use anyhow::{Result, anyhow};
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::TimeZone;
use serde::Deserialize;
use std::fmt;

/// A time zone, by its IANA name or a fixed offset.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Zone(TimeZone);

impl Zone {
    /// Reads a name such as `Europe/Berlin`, or an offset such as `+02:00`.
    ///
    /// # Errors
    /// When it is neither; says what would do.
    pub fn parse(text: &str) -> Result<Self> {
        let zone = DateTimeParser::new().parse_time_zone(text);
        zone.map(Self).map_err(|_| {
            anyhow!("{text:?} is no time zone; write an IANA name such as Europe/Berlin, or an offset such as +02:00")
        })
    }

    /// This machine's own; UTC if it does not say.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    /// Seconds east of UTC at a moment, given in seconds since 1970.
    #[must_use]
    pub fn offset(&self, at: i64) -> i32 {
        self.0.to_offset(moment(at)).seconds()
    }

    /// When the offset changes next, in seconds since 1970.
    #[must_use]
    pub fn next_change(&self, after: i64) -> Option<i64> {
        self.0.following(moment(after)).next().map(|change| change.timestamp().as_second())
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Reads a moment: seconds since 1970, or as RFC 3339 writes it.
///
/// # Errors
/// When it is neither; says what would do.
pub fn seconds(text: &str) -> Result<i64> {
    let rfc3339 = || text.parse::<Timestamp>().ok().map(|at| at.as_second());
    text.parse().ok().or_else(rfc3339).ok_or_else(|| {
        anyhow!("{text:?} is no time; write seconds since 1970, or a time with its zone as in 2026-11-20T12:00:00Z")
    })
}

fn moment(seconds: i64) -> Timestamp {
    let seconds = seconds.clamp(Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl TryFrom<String> for Zone {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.iana_name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0.to_offset(Timestamp::UNIX_EPOCH)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_summer_time() {
        // 2026-03-29 01:00 UTC, when Berlin's clocks go forward.
        let spring = 1_774_746_000;
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        assert_eq!((berlin.offset(spring - 1), berlin.offset(spring)), (3600, 7200));
        assert_eq!(berlin.next_change(spring - 100), Some(spring));
    }

    #[test]
    fn fixed_offsets_stay() {
        for (text, seconds) in [("+02:00", 7200), ("-05:30", -19_800), ("UTC", 0)] {
            let zone = Zone::parse(text).unwrap();
            assert_eq!((zone.offset(1_774_746_000), zone.next_change(0)), (seconds, None), "{text}");
        }
    }

    #[test]
    fn times_are_read_in_both_forms() {
        for text in ["1774746000", "2026-03-29T01:00:00Z", "2026-03-29T03:00:00.5+02:00"] {
            assert_eq!(seconds(text).unwrap(), 1_774_746_000, "{text}");
        }
        let error = seconds("2026-03-29T01:00:00").unwrap_err().to_string();
        assert!(error.contains("with its zone"), "{error}");
    }

    #[test]
    fn what_is_no_zone_is_refused_with_what_would_be_one() {
        for text in ["Europe/Berln", "", "2 hours", "+99:00"] {
            let error = Zone::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("Europe/Berlin"), "{error}");
        }
    }
}
