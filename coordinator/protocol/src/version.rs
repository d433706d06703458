//! Versions of the protocol: which ones this program reads and writes, and how two peers agree on one.
//!
//! Every message carries its version in its header. A peer announces the versions that it speaks: a device in its
//! [`Birth`](crate::messages::Birth), the coordinator in its [`Announcement`](crate::messages::Announcement). The other side
//! then writes in the newest version that both speak. Messages for many peers at once are written in the oldest version.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A version that this program reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Version {
    /// The oldest version. A birth has no range of versions; an evaluation reports only accuracy and loss.
    V2,
    /// A birth has a range of versions; an evaluation reports the metrics of its task.
    V3,
}

impl Version {
    /// Oldest version that this program speaks.
    pub const OLDEST: Self = Self::V2;
    /// Newest version that this program speaks.
    pub const NEWEST: Self = Self::V3;
    /// Every version that this program speaks, oldest first.
    pub const ALL: [Self; 2] = [Self::V2, Self::V3];

    /// Returns the number in a message's header.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    /// Returns the version with this number; `None` if this program does not speak it.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.number() == number)
    }

    /// Returns the newest version that this program and a peer speak; `None` if they have none in common.
    #[must_use]
    pub fn newest_common(peer: VersionRange) -> Option<Self> {
        Self::ALL.into_iter().rev().find(|version| peer.contains(version.number()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// Versions that a peer speaks: all from `min` to `max`. A peer may be newer than this program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest version; at least 1.
    pub min: u16,
    /// Newest version; not below `min`.
    pub max: u16,
}

impl VersionRange {
    /// The versions that this program speaks.
    pub const OURS: Self = Self { min: Version::OLDEST.number(), max: Version::NEWEST.number() };

    /// Returns the range of one version.
    #[must_use]
    pub const fn only(version: Version) -> Self {
        Self { min: version.number(), max: version.number() }
    }

    /// Returns true if `number` is in the range.
    #[must_use]
    pub const fn contains(self, number: u16) -> bool {
        self.min <= number && number <= self.max
    }

    /// Returns true if the range holds at least one version.
    pub(crate) const fn is_sound(self) -> bool {
        1 <= self.min && self.min <= self.max
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, max } = self;
        if min == max { write!(f, "{min}") } else { write!(f, "{min} to {max}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_name_their_versions() {
        assert_eq!(Version::ALL.map(|version| Version::from_number(version.number())), Version::ALL.map(Some));
        assert_eq!([0, 1, 4, u16::MAX].map(Version::from_number), [None; 4]);
        assert!(Version::ALL.is_sorted());
        assert_eq!(VersionRange::OURS, VersionRange { min: 2, max: 3 });
    }

    #[test]
    fn peers_agree_on_the_newest_common_version() {
        let agreed = |min, max| Version::newest_common(VersionRange { min, max });
        assert_eq!(agreed(2, 2), Some(Version::V2));
        assert_eq!(agreed(1, 3), Some(Version::V3));
        assert_eq!(agreed(3, 9), Some(Version::V3));
        assert_eq!(agreed(4, 9), None);
        assert_eq!(agreed(3, 2), None, "an empty range");
    }

    #[test]
    fn ranges_are_shown_in_words() {
        assert_eq!(VersionRange::OURS.to_string(), "2 to 3");
        assert_eq!(VersionRange::only(Version::V2).to_string(), "2");
    }
}
