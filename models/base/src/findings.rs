//! Results of the checks of `skiff doctor` and `skiff-agent doctor`, and the checks that both make.

use rustix::fs::{Access, access, statvfs};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Free bytes of a state folder below which there is a warning.
const ROOMY_BYTES: u64 = 64_000_000;
/// Start of 2026, before this program was built: a clock that shows an earlier time is wrong.
const EARLIEST_NOW: Duration = Duration::from_secs(1_767_225_600);

/// The result of a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Finding {
    /// Everything is in order.
    Fine(String),
    /// The program works, but the operator may want to know about this.
    Doubtful(String),
    /// The program cannot work; the text says what to do.
    Broken(String),
}

impl Finding {
    /// Returns true if the program cannot work.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verdict, text) = match self {
            Self::Fine(text) => ("ok  ", text),
            Self::Doubtful(text) => ("warn", text),
            Self::Broken(text) => ("FAIL", text),
        };
        write!(f, "{verdict}  {text}")
    }
}

/// A check with its result, as `--json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// Name of the check.
    pub check: String,
    /// `ok`, `warn` or `fail`.
    pub verdict: &'static str,
    /// The finding and the remedy.
    pub text: String,
}

impl Check {
    /// Makes the printed form of a finding.
    #[must_use]
    pub fn new(name: &str, finding: &Finding) -> Self {
        let (verdict, text) = match finding {
            Finding::Fine(text) => ("ok", text),
            Finding::Doubtful(text) => ("warn", text),
            Finding::Broken(text) => ("fail", text),
        };
        Self { check: name.to_owned(), verdict, text: text.clone() }
    }
}

/// Checks whether a state folder can be written or created, and whether its disk has room. Changes nothing.
#[must_use]
pub fn state_folder(folder: &Path) -> Finding {
    let exists = folder.exists();
    let place = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    if let Err(error) = access(place, Access::WRITE_OK | Access::EXEC_OK) {
        return Finding::Broken(format!(
            "{} cannot be written ({error}): let this user own it, or set state to another folder",
            place.display()
        ));
    }
    let free = statvfs(place).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let text = format!("{} {}", folder.display(), if exists { "can be written" } else { "can be created" });
    if free < ROOMY_BYTES {
        return Finding::Doubtful(format!("{text}, but only {} MB are free there", free / 1_000_000));
    }
    Finding::Fine(text)
}

/// Returns what is known about the files with secrets; `exposed` are those that every user can read.
#[must_use]
pub fn secrets(exposed: &[&Path]) -> Finding {
    match exposed {
        [] => Finding::Fine("no secret can be read by every user".to_owned()),
        [path, ..] => Finding::Doubtful(format!("every user can read {}: run chmod o-rwx on it", path.display())),
    }
}

/// Checks whether the clock is behind the time when this program was made.
#[must_use]
pub fn clock() -> Finding {
    #[expect(clippy::disallowed_methods, reason = "the clock itself is looked at")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    clock_at(now)
}

fn clock_at(now: Duration) -> Finding {
    if now < EARLIEST_NOW {
        return Finding::Broken(
            "the clock is years behind, so TLS certificates seem invalid: run timedatectl set-ntp true".to_owned(),
        );
    }
    Finding::Fine("the clock is not behind this program".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_verdict() {
        assert_eq!(Finding::Fine("x".into()).to_string(), "ok    x");
        assert_eq!(Finding::Broken("x".into()).to_string(), "FAIL  x");
        let check = Check::new("clock", &Finding::Doubtful("y".into()));
        assert_eq!((check.verdict, check.text.as_str()), ("warn", "y"));
    }

    #[test]
    fn a_clock_at_the_epoch_is_broken() {
        assert!(clock_at(Duration::ZERO).is_broken());
        assert!(!clock_at(EARLIEST_NOW).is_broken());
    }

    #[test]
    fn a_missing_state_folder_is_not_made() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("a/b");
        assert!(matches!(state_folder(&state), Finding::Fine(text) if text.ends_with("can be created")));
        assert!(!state.exists());
    }
}
