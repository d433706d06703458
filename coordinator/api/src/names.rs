//! Names that operators give runs.

use serde::{Deserialize, Serialize};
use skiff_protocol::RunId;
use std::fmt;

/// Largest number of characters of a name.
pub const MAX_NAME: usize = 64;
/// Words that stand for a run or its weights wherever a name is expected.
const RESERVED: [&str; 2] = ["last", "best"];

/// A name that an operator gave a run: 1 to 64 of `A-Z a-z 0-9 . _ -`. It begins with a letter or digit, and cannot be mistaken for
/// the first digits of a run's id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunName(String);

/// A text that cannot be the name of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadRunName {
    text: String,
    reason: &'static str,
}

impl RunName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunName {
    type Error = BadRunName;

    fn try_from(text: String) -> Result<Self, BadRunName> {
        match fault(&text) {
            None => Ok(Self(text)),
            Some(reason) => Err(BadRunName { text, reason }),
        }
    }
}

fn fault(text: &str) -> Option<&'static str> {
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > MAX_NAME || !text.chars().all(is_in_name) {
        return Some("use 1 to 64 of A-Z a-z 0-9 . _ -");
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Some("begin with a letter or a digit");
    }
    if RESERVED.contains(&text) {
        return Some("this word stands for a run or for its weights");
    }
    if text.len() <= RunId(0).to_string().len() && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
        return Some("it could be mistaken for the first digits of a run's id; add a letter beyond f, or a dash");
    }
    None
}

impl std::str::FromStr for RunName {
    type Err = BadRunName;

    fn from_str(text: &str) -> Result<Self, BadRunName> {
        Self::try_from(text.to_owned())
    }
}

impl From<RunName> for String {
    fn from(name: RunName) -> Self {
        name.0
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for BadRunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} cannot be the name of a run: {}", self.text, self.reason)
    }
}

impl std::error::Error for BadRunName {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_name_is_a_short_word_that_is_no_id() {
        for good in ["night-3", "2026-12-01", "v1.2_final", "cafes", "A", "00a1-b", &"n".repeat(MAX_NAME)] {
            assert_eq!(good.parse::<RunName>().unwrap().as_str(), good);
        }
        for (bad, reason) in [
            ("", "1 to 64"),
            ("a b", "1 to 64"),
            ("küche", "1 to 64"),
            ("run@3", "1 to 64"),
            (&"n".repeat(MAX_NAME + 1), "1 to 64"),
            ("-x", "begin with"),
            (".hidden", "begin with"),
            ("last", "stands for"),
            ("best", "stands for"),
            ("cafe", "first digits"),
            ("2026", "first digits"),
        ] {
            let refused = bad.parse::<RunName>().unwrap_err().to_string();
            assert!(refused.contains(reason), "{bad}: {refused}");
        }
        assert!(serde_json::from_str::<RunName>("\"a b\"").is_err());
    }
}
