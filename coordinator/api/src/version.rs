//! Versions of requests and replies. A request names the range of versions that its sender reads, and the coordinator replies in
//! the newest version that both know.
//!
//! | version | since | difference |
//! |---|---|---|
//! | 1 | requests without versions | |
//! | 2 | requests with versions | a watcher gets [`crate::changes::Changes`] in place of the whole state; telemetry has a time in place of an age |

use serde::{Deserialize, Serialize};
use std::fmt;

/// Oldest version that the coordinator supports. A request that names no versions has version 1.
pub const MIN: u32 = 1;
/// Newest version that the coordinator supports.
pub const MAX: u32 = 2;

/// A range of versions, including both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// Oldest version.
    pub min: u32,
    /// Newest version.
    pub max: u32,
}

impl Versions {
    /// Versions that the coordinator supports.
    pub const COORDINATOR: Self = Self { min: MIN, max: MAX };
    /// Versions that this crate's client reads: only the newest one.
    pub const CLIENT: Self = Self { min: MAX, max: MAX };
    /// Versions of a request that names no versions.
    pub const UNNAMED: Self = Self { min: 1, max: 1 };

    /// Returns the newest version in both ranges.
    #[must_use]
    pub fn newest_common(self, other: Self) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "version {}", self.min)
        } else {
            write!(f, "versions {} to {}", self.min, self.max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_both_is_spoken() {
        let range = |min, max| Versions { min, max };
        assert_eq!(range(1, 3).newest_common(range(2, 5)), Some(3));
        assert_eq!(range(2, 2).newest_common(range(1, 4)), Some(2));
        assert_eq!(range(1, 2).newest_common(range(3, 4)), None);
        assert_eq!(range(3, 1).newest_common(range(1, 3)), None, "an empty range");
    }
}
