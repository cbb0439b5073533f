//! `strftime_now`: the engine's date, from the gateway's clock.

/// A moment: seconds since 1970 on the engine's clock, its offset to UTC already added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalTime(pub i64);

/// How far the engine's clock may be from ours when it renders, in seconds: clocks differ, and requests travel.
pub(crate) const SKEW: i64 = 2;

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl LocalTime {
    /// What `datetime.now().strftime(format)` gives on the engine. `None`: it may be one thing or another just now, or the
    /// format asks for something that depends on the engine's locale or zone.
    pub fn format(self, format: &str) -> Option<String> {
        let text = self.exactly(format)?;
        let around = [LocalTime(self.0 - SKEW), LocalTime(self.0 + SKEW)];
        around.into_iter().all(|time| time.exactly(format).as_deref() == Some(&text)).then_some(text)
    }

    /// The day's number: formats without the time of day depend on nothing else.
    pub fn day(self) -> i64 {
        self.0.div_euclid(86_400)
    }

    /// `YYYY-MM-DD`, if that is sure.
    pub fn date(self) -> Option<String> {
        self.format("%Y-%m-%d")
    }

    fn exactly(self, format: &str) -> Option<String> {
        let (day, second) = (self.day(), self.0.rem_euclid(86_400));
        let (year, month, of_month) = civil(day);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let name = |names: &[&'static str], at: i64| usize::try_from(at).ok().and_then(|at| names.get(at).copied());
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut code = chars.next()?;
            let bare = code == '-';
            if bare {
                code = chars.next()?;
            }
            let (number, width) = match code {
                'Y' => (year, 1),
                'm' => (month, 2),
                'd' => (of_month, 2),
                'y' => (year.rem_euclid(100), 2),
                'H' => (hour, 2),
                'I' => ((hour + 11) % 12 + 1, 2),
                'M' => (minute, 2),
                'S' => (second % 60, 2),
                'j' => (day - days(year, 1, 1) + 1, 3),
                'B' | 'b' | 'A' | 'a' if !bare => {
                    let name = if code.eq_ignore_ascii_case(&'b') {
                        name(&MONTHS, month - 1)?
                    } else {
                        name(&DAYS, day.rem_euclid(7))?
                    };
                    out.push_str(if code.is_ascii_lowercase() { name.get(..3)? } else { name });
                    continue;
                }
                'p' if !bare => {
                    out.push_str(if hour < 12 { "AM" } else { "PM" });
                    continue;
                }
                '%' if !bare => {
                    out.push('%');
                    continue;
                }
                _ => return None,
            };
            let digits = number.to_string();
            if !bare {
                out.extend(std::iter::repeat_n('0', usize::saturating_sub(width, digits.len())));
            }
            out.push_str(&digits);
        }
        Some(out)
    }
}

/// Year, month, day of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted_month + 2) / 5 + 1)
}

/// The day since 1970 of a date (his `days_from_civil`).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_pythons() {
        // datetime.utcfromtimestamp(...).strftime("%d %b %Y|%A, %B %-d|%j %y %I:%M:%S %p %%")
        for (seconds, expected) in [
            (1_709_210_096, "29 Feb 2024|Thursday, February 29|060 24 12:34:56 PM %"),
            (946_684_803, "01 Jan 2000|Saturday, January 1|001 00 12:00:03 AM %"),
            (-86_397, "31 Dec 1969|Wednesday, December 31|365 69 12:00:03 AM %"),
        ] {
            let format = "%d %b %Y|%A, %B %-d|%j %y %I:%M:%S %p %%";
            assert_eq!(LocalTime(seconds).exactly(format).as_deref(), Some(expected));
        }
        assert_eq!(LocalTime(0).format("%Z"), None);
    }

    #[test]
    fn around_midnight_the_date_is_unknown() {
        let midnight = 1_709_164_800;
        assert_eq!(LocalTime(midnight - SKEW - 1).date().as_deref(), Some("2024-02-28"));
        assert_eq!(LocalTime(midnight - SKEW).date(), None);
        assert_eq!(LocalTime(midnight + SKEW - 1).date(), None);
        assert_eq!(LocalTime(midnight + SKEW).date().as_deref(), Some("2024-02-29"));
        assert_eq!(LocalTime(midnight + 30).format("%H:%M:%S"), None, "seconds are never sure");
    }
}
