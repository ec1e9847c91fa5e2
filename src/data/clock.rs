//! The time that chat templates see by `strftime_now`, and its text in the formats of C's `strftime`, in English.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// The variable of the environment that fixes the time, in seconds since 1970, for builds that can be repeated.
const VARIABLE: &str = "SOURCE_DATE_EPOCH";
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// A time in UTC, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(i64);

impl Clock {
    /// The time that `SOURCE_DATE_EPOCH` gives, or the machine's.
    ///
    /// # Errors
    /// A value of the variable that is no number of seconds.
    pub(super) fn now() -> Result<Self, String> {
        let Some(value) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            return Ok(Self::at(i64::try_from(since.as_secs()).unwrap_or_default()));
        };
        // Beyond the year 9999 a year has no four digits.
        let seconds = value.to_str().and_then(|value| value.parse().ok()).filter(|s| (0..253_402_300_800).contains(s));
        seconds.map(Self::at).ok_or_else(|| {
            format!("{VARIABLE} is {value:?}; give the seconds since 1970 as a number, such as 1767225600, or unset it")
        })
    }

    /// A fixed time.
    pub(super) fn at(seconds: i64) -> Self {
        Self(seconds)
    }

    /// The time by a format.
    ///
    /// # Errors
    /// A directive that isn't known.
    pub(super) fn strftime(self, format: &str) -> Result<String, String> {
        let (mut text, mut chars) = (String::new(), format.chars());
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let (is_bare, directive) = match chars.next() {
                Some('-') => (true, chars.next()),
                directive => (false, directive),
            };
            let written = directive.and_then(|directive| self.directive(directive));
            let written = written.ok_or_else(|| {
                let told = directive.map_or("%".to_owned(), |directive| format!("%{directive}"));
                format!("strftime_now doesn't know {told} in {format:?}")
            })?;
            let bare = written.trim_start_matches(['0', ' ']);
            text.push_str(match is_bare {
                true if bare.is_empty() => "0",
                true => bare,
                false => &written,
            });
        }
        Ok(text)
    }

    fn directive(self, directive: char) -> Option<String> {
        let date = Date::of(self.0.div_euclid(86_400));
        let second = self.0.rem_euclid(86_400);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let half = if hour % 12 == 0 { 12 } else { hour % 12 };
        let of = |format: &str| self.strftime(format).ok();
        Some(match directive {
            'Y' => date.year.to_string(),
            'C' => format!("{:02}", date.year / 100),
            'y' => format!("{:02}", date.year % 100),
            'm' => format!("{:02}", date.month + 1),
            'd' => format!("{:02}", date.day),
            'e' => format!("{:2}", date.day),
            'B' => MONTHS[date.month].to_owned(),
            'b' | 'h' => MONTHS[date.month][..3].to_owned(),
            'A' => DAYS[date.weekday].to_owned(),
            'a' => DAYS[date.weekday][..3].to_owned(),
            'j' => format!("{:03}", date.of_year + 1),
            'w' => date.weekday.to_string(),
            'u' => (if date.weekday == 0 { 7 } else { date.weekday }).to_string(),
            'U' => format!("{:02}", (date.of_year + 7 - date.weekday) / 7),
            'W' => format!("{:02}", (date.of_year + 7 - (date.weekday + 6) % 7) / 7),
            'H' => format!("{hour:02}"),
            'k' => format!("{hour:2}"),
            'I' => format!("{half:02}"),
            'l' => format!("{half:2}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{:02}", second % 60),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'f' => "000000".to_owned(),
            's' => self.0.to_string(),
            // Python's times without a zone have no text for it.
            'z' | 'Z' => String::new(),
            'F' => of("%Y-%m-%d")?,
            'D' | 'x' => of("%m/%d/%y")?,
            'T' | 'X' => of("%H:%M:%S")?,
            'R' => of("%H:%M")?,
            'r' => of("%I:%M:%S %p")?,
            'c' => of("%a %b %e %H:%M:%S %Y")?,
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// A day of the Gregorian calendar; month, weekday and day of the year are counted from 0, weekdays from Sunday.
struct Date {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    of_year: usize,
}

impl Date {
    /// The day that is `days` days after 1 January 1970.
    fn of(days: i64) -> Self {
        let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        // The 400 years of a cycle have 146,097 days.
        let (mut year, mut left) = (1970 + days.div_euclid(146_097) * 400, days.rem_euclid(146_097));
        while left >= 365 + i64::from(is_leap(year)) {
            left -= 365 + i64::from(is_leap(year));
            year += 1;
        }
        let of_year = usize::try_from(left).unwrap_or_default();
        let lengths = [31, 28 + i64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while left >= lengths[month] {
            left -= lengths[month];
            month += 1;
        }
        let weekday = usize::try_from((days + 4).rem_euclid(7)).unwrap_or_default();
        Self { year, month, day: left + 1, weekday, of_year }
    }
}
