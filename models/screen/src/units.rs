//! Sizes, durations and numbers as people read them: one form in all programs.

use bytesize::ByteSize;
use std::time::Duration;

/// Text for a value that is not known.
pub const UNKNOWN: &str = "-";

/// Returns a size in decimal units, such as `340.0 kB` or `1.2 MB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

/// Returns a size like [`bytes`], or a dash for zero, which means that nothing was measured.
#[must_use]
pub fn measured_bytes(measured: u64) -> String {
    if measured == 0 { UNKNOWN.to_owned() } else { bytes(measured) }
}

/// Returns a number such as `1,234,567`.
#[must_use]
pub fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns a number with its noun, such as `1 round` or `3 rounds`.
#[must_use]
pub fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// Returns a number with this many decimal places, or a dash.
#[must_use]
pub fn figure(value: Option<f64>, places: usize) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| format!("{value:.places$}"))
}

/// Returns a duration: `4.8 s` below a minute, then `1:05`, and `2:01:05` from an hour.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let tenths = (duration.as_millis() + 50) / 100;
    if tenths < 600 {
        return format!("{}.{} s", tenths / 10, tenths % 10);
    }
    let seconds = tenths / 10;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours == 0 { format!("{minutes}:{seconds:02}") } else { format!("{hours}:{minutes:02}:{seconds:02}") }
}

/// Returns a duration in milliseconds like [`duration`].
#[must_use]
pub fn millis(millis: u64) -> String {
    duration(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal() {
        let sizes = [12, 999, 1_000, 1_500_000, 2_340_000_000].map(bytes);
        assert_eq!(sizes, ["12 B", "999 B", "1.0 kB", "1.5 MB", "2.3 GB"]);
        assert_eq!([measured_bytes(0), measured_bytes(1)], ["-", "1 B"]);
    }

    #[test]
    fn numbers_are_grouped_and_nouns_follow_them() {
        assert_eq!([count(7), count(1_234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!(
            [counted(1, "round"), counted(0, "round"), counted(12_000, "round")],
            ["1 round", "0 rounds", "12,000 rounds"]
        );
        assert_eq!([figure(Some(0.81249), 3), figure(None, 3)], ["0.812", "-"]);
    }

    #[test]
    fn a_duration_names_its_unit_or_has_colons() {
        let durations = [0, 4_849, 59_949, 59_950, 65_000, 3_599_999, 7_265_000].map(millis);
        assert_eq!(durations, ["0.0 s", "4.8 s", "59.9 s", "1:00", "1:05", "1:00:00", "2:01:05"]);
    }
}
