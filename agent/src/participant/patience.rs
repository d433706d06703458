//! Notices that the weights or the update of this device do not move. Reads no clock.

use skiff_protocol::Timestamp;
use skiff_protocol::messages::AgentState;

/// Time in milliseconds without a new chunk after which the agent says so.
const PATIENCE_MS: u64 = 30_000;

/// The transfer in hand, and since when it has not moved.
#[derive(Debug, Default)]
pub struct Patience {
    waits: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    state: AgentState,
    chunks: u32,
    since: Timestamp,
    is_told: bool,
}

impl Patience {
    /// Looks at the agent's state and the number of chunks that have arrived. Returns a text for the operator once for each wait
    /// of 30 s.
    pub fn look(&mut self, state: AgentState, chunks: u32, now: Timestamp) -> Option<&'static str> {
        let text = match state {
            AgentState::Fetching => {
                "no chunk of the weights has arrived for 30 s; `skiff-agent doctor` tests the way through the broker"
            }
            AgentState::Uploading => {
                "the coordinator has acknowledged no chunk of the update for 30 s: it takes updates in turn, or the broker drops \
                 them; `skiff-agent doctor` tests the way through the broker"
            }
            AgentState::Idle | AgentState::Training | AgentState::Evaluating => {
                self.waits = None;
                return None;
            }
        };
        match &mut self.waits {
            Some(wait) if wait.state == state && wait.chunks == chunks => {
                let is_due = !wait.is_told && now.millis_since(wait.since) >= PATIENCE_MS;
                wait.is_told |= is_due;
                is_due.then_some(text)
            }
            Some(_) | None => {
                self.waits = Some(Wait { state, chunks, since: now, is_told: false });
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_that_does_not_move_is_told_once_and_again_after_it_moved() {
        let mut patience = Patience::default();
        let mut look = |state, chunks, at| patience.look(state, chunks, Timestamp(at)).is_some();
        assert!(!look(AgentState::Fetching, 0, 0) && !look(AgentState::Fetching, 0, PATIENCE_MS - 1));
        assert!(look(AgentState::Fetching, 0, PATIENCE_MS));
        assert!(!look(AgentState::Fetching, 0, 9 * PATIENCE_MS), "it was told");
        assert!(!look(AgentState::Fetching, 1, 9 * PATIENCE_MS), "it moves");
        assert!(look(AgentState::Fetching, 1, 10 * PATIENCE_MS));
        assert!(!look(AgentState::Training, 0, 20 * PATIENCE_MS));
        assert!(!look(AgentState::Uploading, 0, 20 * PATIENCE_MS));
        assert!(look(AgentState::Uploading, 0, 21 * PATIENCE_MS));
    }
}
