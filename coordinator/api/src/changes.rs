//! Changes of the state in the form that a watcher gets, and the function that applies them.
//!
//! A watcher first gets the whole state in pieces, and then the changes: the newest values, never a history. [`Progress::apply`]
//! applies a line to the state. After all lines, the result is the state that [`crate::request::Request::Progress`] returns.

use crate::progress::{DeviceProgress, Progress, ROUNDS_SHOWN, RunProgress};
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// One line to a watcher.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Changes {
    /// True if the whole state begins with this line, so that the watcher must forget its old state.
    #[serde(default, skip_serializing_if = "is_false")]
    pub restarts: bool,
    /// True if the next line continues the whole state.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_partial: bool,
    /// Time of the coordinator, in milliseconds since 1970.
    pub now_ms: u64,
    /// True while the coordinator is connected to the broker.
    pub connected: bool,
    /// Number of refused messages, by reason; `None` if it did not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_messages: Option<BTreeMap<String, u64>>,
    /// Faults of the whole fleet; `None` if they did not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
    /// Change of the run.
    #[serde(default, skip_serializing_if = "RunChange::is_none")]
    pub run: RunChange,
    /// Devices that changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceProgress>,
    /// Devices that the coordinator forgot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<DeviceId>,
}

/// Change of the run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunChange {
    /// The run has not changed.
    #[default]
    Same,
    /// There is no run any more.
    Removed,
    /// Another run began, or the figures of the run changed. The value holds only the closed rounds that are new or changed.
    Changed(Box<RunProgress>),
}

impl RunChange {
    fn is_none(&self) -> bool {
        *self == Self::Same
    }
}

impl Progress {
    /// Applies a line of changes to the state.
    pub fn apply(&mut self, changes: Changes) {
        let Changes { restarts, is_partial: _, now_ms, connected, refused_messages, warnings, run, devices, removed } =
            changes;
        if restarts {
            *self = Self::default();
        }
        (self.now_ms, self.connected) = (now_ms, connected);
        if let Some(refused_messages) = refused_messages {
            self.refused_messages = refused_messages;
        }
        if let Some(warnings) = warnings {
            self.warnings = warnings;
        }
        match run {
            RunChange::Same => {}
            RunChange::Removed => self.run = None,
            RunChange::Changed(run) => self.run = Some(folded(self.run.take(), *run)),
        }
        for device in removed {
            if let Ok(at) = self.devices.binary_search_by(|known| known.device.cmp(&device)) {
                self.devices.remove(at);
            }
        }
        for device in devices {
            match self.devices.binary_search_by(|known| known.device.cmp(&device.device)) {
                Ok(at) => self.devices[at] = device,
                Err(at) => self.devices.insert(at, device),
            }
        }
    }
}

/// Returns the run after a change. Closed rounds that are not in the change stay.
fn folded(known: Option<RunProgress>, mut changed: RunProgress) -> RunProgress {
    let Some(known) = known.filter(|known| known.run == changed.run) else { return changed };
    let mut closed = known.closed;
    for round in std::mem::take(&mut changed.closed) {
        match closed.binary_search_by_key(&round.round, |known| known.round) {
            Ok(at) => closed[at] = round,
            Err(at) => closed.insert(at, round),
        }
    }
    closed.drain(..closed.len().saturating_sub(ROUNDS_SHOWN));
    RunProgress { closed, ..changed }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use serde_json::{Value, json};

    fn run(name: &str, closed: &[(u32, u32)]) -> RunChange {
        let closed: Vec<Value> = closed
            .iter()
            .map(|(round, updates)| {
                json!({
                    "round": round, "skipped": null, "selected": 2, "updates": updates, "accuracy": null, "loss": null,
                    "evaluated_examples": 0, "train_loss": null, "mean_rate": 0.0, "mean_active_layers": 0.0,
                    "step_ms": 0.0, "train_ms": 0, "evaluate_ms": 0, "longest_training_ms": 0, "bytes_up": 0, "bytes_down": 0,
                })
            })
            .collect();
        let run = json!({
            "run": name, "phase": "training", "round": 1, "rounds": 3, "ordered": 0, "answered": 0,
            "accuracy_before": null, "accuracy": null, "accuracy_after": null, "elapsed_ms": 0, "bytes_up": 0,
            "bytes_down": 0, "closed": closed, "reason": null,
        });
        RunChange::Changed(Box::new(serde_json::from_value(run).unwrap()))
    }

    fn closed(state: &Progress) -> Vec<(u32, u32)> {
        state.run.iter().flat_map(|run| &run.closed).map(|closed| (closed.round, closed.updates)).collect()
    }

    #[test]
    fn closed_rounds_stay_until_they_change_or_the_run_is_another() {
        let mut state = Progress::default();
        let mut apply = |run| {
            state.apply(Changes { run, ..Changes::default() });
            closed(&state)
        };
        assert_eq!(apply(run("a", &[(1, 1), (2, 2)])), [(1, 1), (2, 2)]);
        assert_eq!(apply(run("a", &[(2, 5), (3, 3)])), [(1, 1), (2, 5), (3, 3)]);
        assert_eq!(apply(RunChange::Same).len(), 3);
        let many: Vec<(u32, u32)> = (4..=ROUNDS_SHOWN as u32 + 1).map(|round| (round, 0)).collect();
        assert_eq!(apply(run("a", &many))[0], (2, 5), "the oldest round is dropped");
        assert_eq!(apply(run("b", &[])), []);
        assert_eq!(apply(RunChange::Removed), []);
    }

    #[test]
    fn what_did_not_change_is_absent_from_the_line() {
        let line = serde_json::to_string(&Changes::default()).unwrap();
        assert_eq!(line, r#"{"now_ms":0,"connected":false}"#);
        assert_eq!(serde_json::from_str::<Changes>(&line).unwrap(), Changes::default());
    }

    #[test]
    fn a_state_that_begins_again_forgets_the_one_before() {
        let mut state = Progress { refused_messages: [("digest".to_owned(), 3)].into(), ..Progress::default() };
        state.apply(run_only(run("a", &[(1, 1)])));
        state.apply(Changes { restarts: true, connected: true, ..Changes::default() });
        assert_eq!(state, Progress { connected: true, ..Progress::default() });
    }

    fn run_only(run: RunChange) -> Changes {
        Changes { run, ..Changes::default() }
    }
}
