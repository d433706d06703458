//! Points in time as people read them: absolute on this machine's clock, and relative to now.

use crate::units::UNKNOWN;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Returns a time in milliseconds since 1970 as a date and time of day on this machine, such as `2026-12-01 09:23`.
#[must_use]
pub fn date(millis: u64) -> String {
    local(millis, "%Y-%m-%d %H:%M")
}

/// Returns a time in milliseconds since 1970 as a time of day on this machine, such as `09:23:05`.
#[must_use]
pub fn time_of_day(millis: u64) -> String {
    local(millis, "%H:%M:%S")
}

/// Returns a time in milliseconds since 1970 in UTC, in the form of RFC 3339, such as `2026-12-01T09:23:05.120Z`.
#[must_use]
pub fn utc(millis: u64) -> String {
    timestamp(millis).map_or_else(String::new, |time| format!("{time:.3}"))
}

/// Returns how long ago a time was, such as `just now`, `3 min ago`, `5 h ago` or `12 days ago`; `in the future` if the clocks of two
/// machines differ.
#[must_use]
pub fn age(millis: u64, now_millis: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    if millis > now_millis + MINUTE * 1_000 {
        return "in the future".to_owned();
    }
    match now_millis.saturating_sub(millis) / 1_000 {
        seconds if seconds < 10 => "just now".to_owned(),
        seconds if seconds < MINUTE => format!("{seconds} s ago"),
        seconds if seconds < HOUR => format!("{} min ago", seconds / MINUTE),
        seconds if seconds < 2 * DAY => format!("{} h ago", seconds / HOUR),
        seconds => format!("{} days ago", seconds / DAY),
    }
}

fn local(millis: u64, format: &str) -> String {
    timestamp(millis).map_or_else(
        || UNKNOWN.to_owned(),
        |time| time.to_zoned_datetime(TimeZone::system()).strftime(format).to_string(),
    )
}

fn timestamp(millis: u64) -> Option<Timestamp> {
    i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        const NOW: u64 = 1_000_000_000;
        let ages = [0, 9, 59, 60, 3_599, 3_600, 47 * 3_600, 48 * 3_600].map(|seconds| age(NOW - seconds * 1_000, NOW));
        let expected =
            ["just now", "just now", "59 s ago", "1 min ago", "59 min ago", "1 h ago", "47 h ago", "2 days ago"];
        assert_eq!(ages, expected);
        assert_eq!([age(NOW + 1_000, NOW), age(NOW + 61_000, NOW)], ["just now", "in the future"]);
    }

    #[test]
    fn a_time_that_no_calendar_has_is_unknown() {
        assert_eq!(utc(1_764_580_985_120), "2025-12-01T09:23:05.120Z");
        assert_eq!(date(1_764_580_985_120).len(), "2025-12-01 09:23".len());
        assert_eq!(
            (date(u64::MAX), time_of_day(u64::MAX), utc(u64::MAX)),
            ("-".to_owned(), "-".to_owned(), String::new())
        );
    }
}
