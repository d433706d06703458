//! The few basic functions that coordinator, agent and models share: locks, files that are replaced as a whole, errors in one
//! line, seeded random numbers, and the checks of `doctor`.
//!
//! It knows nothing of training and fleets. Besides the standard library it uses serde, and rustix for system calls.
//!
//! Modules: [`files`] (replacing a file, private folders), [`foreign`] (wrong contents of a file), [`lock`] (one process at a
//! time), [`chain`] (an error and its causes), [`random`] (the same numbers on every platform), [`findings`] (results of checks).

pub mod files;
pub mod findings;
pub mod foreign;
pub mod lock;
pub mod random;

use std::error::Error;

/// Returns `error` and its causes as one line: `reading the journal: No such file or directory`.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("reading the journal")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn causes_follow_their_error() {
        assert_eq!(chain(&Outer(std::io::Error::other("disk gone"))), "reading the journal: disk gone");
        assert_eq!(chain(&std::io::Error::other("alone")), "alone");
    }
}
