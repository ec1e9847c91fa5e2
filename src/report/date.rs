//! Formats dates for people.

/// A time in seconds since 1970 as a date and a time of day, such as `2026-03-01 09:30 UTC`.
///
/// # Source
/// Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, `civil_from_days`.
pub(crate) fn utc(unix_seconds: f64) -> String {
    let seconds = unix_seconds.max(0.0) as u64;
    // Days since 1 March of year 0; an era has 400 years, and a year begins in March.
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0.0, "1970-01-01 00:00 UTC"),
            (951_782_399.9, "2000-02-28 23:59 UTC"),
            (951_825_600.0, "2000-02-29 12:00 UTC"),
            (1_767_225_599.0, "2025-12-31 23:59 UTC"),
            (1_772_357_400.0, "2026-03-01 09:30 UTC"),
        ];
        cases.into_iter().for_each(|(seconds, expected)| assert_eq!(utc(seconds), expected));
    }
}
