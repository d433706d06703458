//! The wish of the device's owner: whether the device takes part in the fleet. It is a line in a file of the state folder, so it
//! survives restarts, and the coordinator cannot change it.
//!
//! ```text
//! {state}/owner        `taking part`, `paused 1764590000000` or `left 1764590000000`; without the file the device takes part
//! {state}/owner.seen   the wish that the running agent has carried out
//! ```
//! A file that cannot be understood counts as a pause: then nothing leaves the device.

use skiff_base::files::{Access, make_private_folder, replace};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const FILE: &str = "owner";
const SEEN: &str = "owner.seen";
/// Limit of the file in bytes.
const MAX_BYTES: u64 = 64;

/// Whether the device takes part, with the time of the wish in milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// The device takes part.
    TakePart,
    /// The device stays away until the owner resumes, and nothing leaves it.
    Pause {
        /// Time of the wish; 0 if it is unknown.
        since_ms: u64,
    },
    /// The device has left the fleet, and the agent does not run.
    Leave {
        /// Time of the wish; 0 if it is unknown.
        since_ms: u64,
    },
}

impl Wish {
    /// Reads the wish in the state folder.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(state: &Path) -> io::Result<Self> {
        match text(&state.join(FILE)) {
            Ok(text) => Ok(Self::parse(&text).unwrap_or_else(|| {
                tracing::warn!(
                    text,
                    "the file `owner` in the state folder cannot be understood, so the device pauses; run `skiff-agent resume`"
                );
                Self::Pause { since_ms: 0 }
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::TakePart),
            Err(error) => Err(error),
        }
    }

    /// Stores the wish, so that a restart finds it. Makes the state folder if it is missing.
    ///
    /// # Errors
    /// The file cannot be written; the earlier wish remains.
    pub fn write(self, state: &Path) -> io::Result<()> {
        make_private_folder(state)?;
        replace(&state.join(FILE), format!("{self}\n").as_bytes(), Access::Owner)
    }

    /// Records that the running agent has carried out this wish.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn mark_seen(self, state: &Path) -> io::Result<()> {
        replace(&state.join(SEEN), format!("{self}\n").as_bytes(), Access::Owner)
    }

    /// Returns true if the running agent has carried out this wish.
    #[must_use]
    pub fn is_seen(self, state: &Path) -> bool {
        text(&state.join(SEEN)).is_ok_and(|text| Self::parse(&text) == Some(self))
    }

    fn parse(text: &str) -> Option<Self> {
        let (word, since) = text.trim().split_once(' ')?;
        match word {
            "taking" => (since == "part").then_some(Self::TakePart),
            "paused" => Some(Self::Pause { since_ms: since.parse().ok()? }),
            "left" => Some(Self::Leave { since_ms: since.parse().ok()? }),
            _ => None,
        }
    }
}

/// The owner has taken the device out of the fleet, so the agent does not start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the owner has taken this device out of the fleet (`skiff-agent leave`): `skiff-agent resume` lets it take part again"
)]
pub struct Left;

/// Returns the present time in milliseconds since 1970, by the device's clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "records for people have the time of the device's clock")]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakePart => f.write_str("taking part"),
            Self::Pause { since_ms } => write!(f, "paused {since_ms}"),
            Self::Leave { since_ms } => write!(f, "left {since_ms}"),
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    match File::open(path)?.take(MAX_BYTES).read_to_string(&mut text) {
        Err(error) if error.kind() == ErrorKind::InvalidData => Ok(String::new()),
        read => read.map(|_| text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_wish_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert_eq!(Wish::read(&state).unwrap(), Wish::TakePart);
        for wish in [Wish::Pause { since_ms: 7 }, Wish::Leave { since_ms: u64::MAX }, Wish::TakePart] {
            wish.write(&state).unwrap();
            assert_eq!(Wish::read(&state).unwrap(), wish);
            assert!(!wish.is_seen(&state));
            wish.mark_seen(&state).unwrap();
            assert!(wish.is_seen(&state));
        }
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_a_pause() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"paused", b"paused soon", b"left -1", b"taking a break", &[0xff; 999]] {
            std::fs::write(folder.path().join(FILE), bytes).unwrap();
            assert_eq!(Wish::read(folder.path()).unwrap(), Wish::Pause { since_ms: 0 }, "{bytes:?}");
        }
    }
}
