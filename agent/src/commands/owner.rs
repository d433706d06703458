//! `skiff-agent pause`, `resume` and `leave`: the owner decides whether the device takes part.

use crate::owner::Wish;
use anyhow::Context as _;
use serde_json::json;
use skiff_base::lock::{Lock, LockError};
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Maximum time for a running agent to carry out the wish: it looks once a second and needs at most 4 s to sign off.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks at what the agent has done.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Effect of a wish on the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    /// The running agent has carried it out.
    Now,
    /// No agent is running.
    AtNextStart,
    /// The running agent has not carried it out in time.
    Late,
}

/// Stores the wish, waits until a running agent has carried it out, and writes what happened to `out`. Returns false if the
/// running agent did not carry it out in time.
///
/// # Errors
/// The state folder or `out` cannot be written.
pub fn run(wish: Wish, state: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<bool> {
    wish.write(state).with_context(|| format!("writing the wish to the state folder {}", state.display()))?;
    let done = wait(wish, state);
    if json {
        let done = match done {
            Done::Now => "now",
            Done::AtNextStart => "at_next_start",
            Done::Late => "late",
        };
        let wish = match wish {
            Wish::TakePart => "taking_part",
            Wish::Pause { .. } => "paused",
            Wish::Leave { .. } => "left",
        };
        writeln!(out, "{}", json!({ "wish": wish, "done": done }))?;
    } else {
        writeln!(out, "{}", text(wish, done))?;
    }
    Ok(done != Done::Late)
}

fn wait(wish: Wish, state: &Path) -> Done {
    let leaves = matches!(wish, Wish::Leave { .. });
    let mut left = PATIENCE;
    loop {
        // An agent that leaves marks the wish before it ends.
        match (is_running(state), wish.is_seen(state)) {
            (false, true) if leaves => return Done::Now,
            (false, _) => return Done::AtNextStart,
            (true, true) if !leaves => return Done::Now,
            (true, _) => {}
        }
        if left.is_zero() {
            return Done::Late;
        }
        sleep(LOOK_EVERY);
        left = left.saturating_sub(LOOK_EVERY);
    }
}

/// Returns true if an agent holds the lock of the state folder. An agent that ends its pause releases it for a moment.
fn is_running(state: &Path) -> bool {
    let lock = state.join("lock");
    let is_held = || lock.exists() && matches!(Lock::file(&lock), Err(LockError::InUse { .. }));
    (0..5).any(|at| {
        if at > 0 {
            sleep(LOOK_EVERY);
        }
        is_held()
    })
}

fn text(wish: Wish, done: Done) -> &'static str {
    match (wish, done) {
        (_, Done::Late) => "the wish is stored, but the running agent has not carried it out within 20 s: see its log",
        (Wish::Pause { .. }, Done::Now) => {
            "paused: the agent has stopped its work and its connection. `skiff-agent resume` ends the pause"
        }
        (Wish::Pause { .. }, Done::AtNextStart) => {
            "paused: no agent is running with this state folder. One that starts waits until `skiff-agent resume`"
        }
        (Wish::Leave { .. }, Done::Now) => {
            "left: the agent has signed off and ended. Its state stays; `skiff-agent resume` lets the device take part again"
        }
        (Wish::Leave { .. }, Done::AtNextStart) => {
            "left: no agent is running with this state folder, and none starts until `skiff-agent resume`"
        }
        (Wish::TakePart, Done::Now) => "resumed: the agent takes part again",
        (Wish::TakePart, Done::AtNextStart) => {
            "resumed: no agent is running with this state folder; start it with `skiff-agent run` or systemctl start skiff-agent"
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn said(wish: Wish, state: &Path, json: bool) -> String {
        let mut out = Vec::new();
        assert!(run(wish, state, json, &mut out).unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn without_an_agent_the_wish_waits_for_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert!(said(Wish::Pause { since_ms: 3 }, &state, false).contains("waits until `skiff-agent resume`"));
        assert_eq!(Wish::read(&state).unwrap(), Wish::Pause { since_ms: 3 });
        assert_eq!(said(Wish::TakePart, &state, true), "{\"done\":\"at_next_start\",\"wish\":\"taking_part\"}\n");
    }

    #[test]
    fn a_running_agent_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let _lock = Lock::file(&folder.path().join("lock")).unwrap();
        let wish = Wish::Pause { since_ms: 4 };
        wish.mark_seen(folder.path()).unwrap();
        assert!(said(wish, folder.path(), false).contains("stopped its work"));
    }
}
