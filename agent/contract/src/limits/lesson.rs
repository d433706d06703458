//! The smaller limit with which a device plans after its worker was killed because memory ran out.
//!
//! The agent keeps it in a file of its state folder, so that it outlives the agent. The worker only reads it.

use std::path::{Path, PathBuf};

/// A limit learned when a worker was killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lesson {
    /// The limit in bytes.
    pub bytes: u64,
    /// The limit without any lesson, in bytes. If this limit changes (another setting, another container), the lesson is no
    /// longer valid.
    pub from: u64,
    /// Time of the worker's end, in seconds since 1970.
    pub at_s: u64,
}

/// Amounts of memory from which a lesson is computed, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ceiling {
    /// The limit without any lesson.
    pub from: u64,
    /// The limit with which the worker planned.
    pub planned: u64,
    /// Largest measured memory of agent and worker before the end; 0 if it was not measured.
    pub seen: u64,
    /// Memory of the smallest step, below which no plan can go.
    pub least: u64,
}

/// Time for which a lesson is valid: a day. After that, the device tries the full limit again.
const HOLDS_S: u64 = 24 * 3600;

impl Lesson {
    /// Returns the lesson of a worker's end: three quarters of the memory that it had, or half of its limit if the memory was not
    /// measured.
    #[must_use]
    pub fn of_end(ceiling: Ceiling, at_s: u64) -> Self {
        let Ceiling { from, planned, seen, least } = ceiling;
        let bytes = if seen == 0 { planned / 2 } else { planned.min(seen) / 4 * 3 };
        Self { bytes: bytes.max(least).min(planned), from, at_s }
    }

    /// Returns the path of the lesson's file in a state folder.
    #[must_use]
    pub fn file(state: &Path) -> PathBuf {
        state.join("memory-limit")
    }

    /// Reads the lesson in a state folder. Returns `None` if there is no readable file.
    #[must_use]
    pub fn read(state: &Path) -> Option<Self> {
        Self::parse(&super::read(&Self::file(state))?)
    }

    /// Returns true if the lesson still holds at this time, in seconds since 1970. A clock that goes backwards does not end the
    /// lesson.
    #[must_use]
    pub const fn holds(&self, now_s: u64) -> bool {
        now_s < self.at_s.saturating_add(HOLDS_S)
    }

    /// Returns the content of the file.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { bytes, from, at_s } = self;
        format!("{bytes} {from} {at_s}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().ok());
        let (bytes, from, at_s) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(Self { bytes, from, at_s })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const CEILING: Ceiling = Ceiling { from: 1000, planned: 1000, seen: 400, least: 100 };

    #[test]
    fn a_lesson_is_below_what_was_seen_and_not_below_the_smallest_step() {
        let learned = |ceiling| Lesson::of_end(ceiling, 5).bytes;
        assert_eq!(learned(CEILING), 300);
        assert_eq!(learned(Ceiling { seen: 0, ..CEILING }), 500);
        assert_eq!(learned(Ceiling { seen: 5000, ..CEILING }), 750, "more was resident than planned");
        assert_eq!(learned(Ceiling { seen: 100, ..CEILING }), 100);
        assert_eq!(learned(Ceiling { planned: 50, ..CEILING }), 50, "it never grows");
    }

    #[test]
    fn a_lesson_outlives_the_agent_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let lesson = Lesson::of_end(CEILING, 1_000_000);
        std::fs::write(Lesson::file(folder.path()), lesson.text()).unwrap();
        assert_eq!(Lesson::read(folder.path()), Some(lesson));
        assert!(lesson.holds(0) && lesson.holds(1_000_000 + HOLDS_S - 1) && !lesson.holds(1_000_000 + HOLDS_S));
        for damaged in ["", "1 2", "1 2 3 4", "a b c", "-1 2 3"] {
            std::fs::write(Lesson::file(folder.path()), damaged).unwrap();
            assert_eq!(Lesson::read(folder.path()), None, "{damaged}");
        }
    }
}
