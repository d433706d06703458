//! A progress bar on standard error, if that is a terminal; and readable numbers.

use indicatif::{ProgressBar, ProgressStyle};
use skiff_models::pack::Progress;
use std::time::Duration;

/// Spinner that becomes a bar when bytes are counted.
pub(crate) struct Screen {
    bar: ProgressBar,
    counts: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, counts: false }
    }

    pub(crate) fn show(&mut self, progress: Progress<'_>) {
        if self.bar.message() != progress.doing {
            self.bar.set_message(progress.doing.to_owned());
        }
        if self.counts != progress.bytes.is_some() {
            self.counts = progress.bytes.is_some();
            let form = match self.counts {
                true => "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)",
                false => "{spinner} {msg}",
            };
            self.bar.set_style(ProgressStyle::with_template(form).expect("the templates are well-formed"));
        }
        if let Some((done, total)) = progress.bytes {
            self.bar.set_length(total);
            self.bar.set_position(done);
        }
    }

    /// Shows the current work, without counting bytes.
    pub(crate) fn say(&self, doing: &str) {
        self.bar.set_message(doing.to_owned());
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Returns a size such as `1.2 MB` or `340 kB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| bytes as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit),
        None => format!("{bytes} B"),
    }
}

/// Returns a number such as `1,234,567`.
pub(crate) fn count(number: usize) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_or_grouped() {
        assert_eq!([bytes(12), bytes(1_500), bytes(2_340_000)], ["12 B", "1.5 kB", "2.3 MB"]);
        assert_eq!([count(7), count(1_234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
    }
}
