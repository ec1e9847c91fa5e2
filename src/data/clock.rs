//! The time that chat templates get from `strftime_now`, and its text in the formats of Python's `strftime`.

use std::env;
use std::fmt::Write;

use chrono::DateTime;

/// The environment variable that fixes the time, in seconds since 1970.
const VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// A time in UTC, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(i64);

impl Clock {
    /// The time that `SOURCE_DATE_EPOCH` gives; `None` if it isn't set. Today's date is never used, because a run whose
    /// prompts change from day to day can't be repeated.
    ///
    /// # Errors
    /// A value of the variable that is no number of seconds.
    pub(super) fn given() -> Option<Result<Self, String>> {
        let value = env::var_os(VARIABLE).filter(|value| !value.is_empty())?;
        // Beyond the year 9999 a year has no four digits.
        let seconds = value.to_str().and_then(|value| value.parse().ok()).filter(|s| (0..253_402_300_800).contains(s));
        Some(seconds.map(Self::at).ok_or_else(|| {
            format!("{VARIABLE} is {value:?}; give the seconds since 1970 as a number, such as 1767225600, or unset it")
        }))
    }

    /// A fixed time.
    pub(super) fn at(seconds: i64) -> Self {
        Self(seconds)
    }

    /// The time as text in a format.
    ///
    /// # Errors
    /// A directive that isn't known.
    pub(super) fn strftime(self, format: &str) -> Result<String, String> {
        let unknown = || format!("strftime_now doesn't know a directive of {format:?}");
        let time = DateTime::from_timestamp(self.0, 0).ok_or_else(unknown)?.naive_utc();
        let mut text = String::new();
        write!(text, "{}", time.format(&as_python(format))).map_err(|_| unknown())?;
        Ok(text)
    }
}

/// Rewrites the directives of a format that chrono and Python interpret differently: Python's time has no zone here, and
/// its seconds have six digits.
fn as_python(format: &str) -> String {
    let (mut text, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('z' | 'Z')) => {}
            ('%', Some('f')) => text.push_str("000000"),
            (c, directive) => text.extend([Some(c), directive].into_iter().flatten()),
        }
    }
    text
}
