//! A barrier at which a test holds a training, so that no test has to act at a precise moment. Release builds have none.
//!
//! The environment variable `SKIFF_WORKER_BARRIER` names a folder. After the first finished step of each training, and after its
//! checkpoint, the worker creates `{folder}/{device}-{round}.reached`. If `{folder}/{device}-{round}.hold` exists, the worker
//! waits until a test removes that file. Meanwhile it keeps asking the agent whether to continue, so the agent can still stop it.
//! After ten minutes it stops waiting and continues the training.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// Name of the variable that names the folder.
const VARIABLE: &str = "SKIFF_WORKER_BARRIER";
/// Time between two looks at the `.hold` file.
const PAUSE: Duration = Duration::from_millis(50);
/// Number of looks after which the barrier opens without a release: ten minutes.
const MAX_PAUSES: u32 = 12_000;

/// The barrier of one training.
#[derive(Debug)]
pub(crate) struct Barrier {
    reached: PathBuf,
    hold: PathBuf,
}

impl Barrier {
    /// Returns the barrier for `device` in `round`, or `None` if the environment names no folder.
    pub(crate) fn from_environment(device: &str, round: u32) -> Option<Self> {
        std::env::var_os(VARIABLE).map(|folder| Self::new(Path::new(&folder), device, round))
    }

    fn new(folder: &Path, device: &str, round: u32) -> Self {
        let path = |suffix: &str| folder.join(format!("{device}-{round}.{suffix}"));
        Self { reached: path("reached"), hold: path("hold") }
    }

    /// Announces that the first step is done and waits while the `.hold` file exists. Calls `ask` before each pause and
    /// returns `Break` as soon as `ask` does.
    pub(crate) fn wait(self, ask: &mut dyn FnMut() -> ControlFlow<()>) -> ControlFlow<()> {
        if let Err(error) = fs::write(&self.reached, "") {
            tracing::error!(%error, path = %self.reached.display(), "the barrier for tests cannot write its file");
        }
        for _ in 0..MAX_PAUSES {
            if !self.hold.exists() {
                return ControlFlow::Continue(());
            }
            ask()?;
            sleep(PAUSE);
        }
        tracing::warn!(path = %self.hold.display(), "the barrier for tests opens after ten minutes");
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn barrier(folder: &Path) -> Barrier {
        Barrier::new(folder, "oak", 4)
    }

    #[test]
    fn training_is_held_until_the_file_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let hold = folder.path().join("oak-4.hold");
        fs::write(&hold, "").unwrap();
        let mut asked = 0;
        let ended = barrier(folder.path()).wait(&mut || {
            assert!(folder.path().join("oak-4.reached").exists());
            asked += 1;
            if asked == 2 {
                fs::remove_file(&hold).unwrap();
            }
            ControlFlow::Continue(())
        });
        assert_eq!((ended, asked), (ControlFlow::Continue(()), 2));
    }

    #[test]
    fn an_agent_that_says_stop_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("oak-4.hold"), "").unwrap();
        assert!(barrier(folder.path()).wait(&mut || ControlFlow::Break(())).is_break());
    }

    #[test]
    fn without_a_hold_file_training_goes_on_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(barrier(folder.path()).wait(&mut || panic!("nothing to ask")).is_continue());
        assert!(folder.path().join("oak-4.reached").exists());
    }
}
