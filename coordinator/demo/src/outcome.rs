//! The result of a demo, as text and as JSON.

use anyhow::Context;
use serde::Serialize;
use skiff_api::progress::{DeviceProgress, RunProgress};
use skiff_base::files::{self, Access};
use skiff_screen::text::Facts;
use skiff_screen::units::{bytes, counted, duration};
use std::path::Path;
use std::time::Duration;

/// Result of a demo, as `--json` writes it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Outcome {
    /// Accuracy of the initial weights on the test examples of all devices.
    pub(super) accuracy_before: f64,
    /// Accuracy of the last merged weights on the same examples.
    pub(super) accuracy_after: f64,
    /// Number of merged rounds.
    pub(super) rounds: usize,
    /// Duration of the whole demo in seconds, including the set-up.
    pub(super) seconds: f64,
    /// Number of bytes that devices sent.
    pub(super) bytes_up: u64,
    /// Number of bytes sent to devices.
    pub(super) bytes_down: u64,
    /// Figures of each agent.
    pub(super) agents: Vec<AgentOutcome>,
}

/// Figures of one agent.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct AgentOutcome {
    /// Name of the agent.
    pub(super) id: String,
    /// Largest resident memory of the agent's process, in bytes.
    pub(super) peak_rss_bytes: u64,
    /// Mean number of active layers in the agent's steps; `null` if it never trained.
    pub(super) mean_active_layers: Option<f32>,
}

impl Outcome {
    /// Returns the result of a run, or `None` if the run lacks the evaluation before or after it.
    pub(super) fn new(run: &RunProgress, devices: &[DeviceProgress], elapsed: Duration) -> Option<Self> {
        let agent = |device: &DeviceProgress| AgentOutcome {
            id: device.device.to_string(),
            peak_rss_bytes: device.peak_rss_bytes,
            mean_active_layers: device.mean_active_layers,
        };
        Some(Self {
            accuracy_before: run.accuracy_before?,
            accuracy_after: run.accuracy_after?,
            rounds: run.closed.iter().filter(|round| round.skipped.is_none()).count(),
            seconds: elapsed.as_secs_f64(),
            bytes_up: run.bytes_up,
            bytes_down: run.bytes_down,
            agents: devices.iter().map(agent).collect(),
        })
    }

    /// Writes the result to `path`, completely or not at all.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        files::replace(path, &text, Access::Shared).with_context(|| {
            format!("writing the result to {}; name a file in a folder you can write to", path.display())
        })
    }
}

impl Outcome {
    /// Returns the result for people.
    pub(super) fn facts(&self) -> Facts {
        let (before, after) = (self.accuracy_before, self.accuracy_after);
        let mut facts = Facts::new();
        let gain = 100.0 * (after - before);
        facts.add("accuracy", format!("{before:.4} before, {after:.4} after ({gain:+.1} points)"));
        let time = duration(Duration::from_secs_f64(self.seconds));
        facts.add("time", format!("{time} for {}, set-up included", counted(self.rounds, "round")));
        let (up, down) = (bytes(self.bytes_up), bytes(self.bytes_down));
        facts.add("on the wire", format!("{up} from the agents, {down} to them"));
        for agent in &self.agents {
            let layers = agent.mean_active_layers.map(|mean| format!("{mean:.1} layers active on average"));
            let layers = layers.unwrap_or_else(|| "never trained".to_owned());
            facts.add(agent.id.clone(), format!("peak memory {}, {layers}", bytes(agent.peak_rss_bytes)));
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use serde_json::json;
    use skiff_api::progress::RoundProgress;

    fn device(name: &str) -> DeviceProgress {
        serde_json::from_value(json!({
            "device": name, "presence": "here", "state": "idle", "step": 20, "steps": 20, "step_ms": 140.4,
            "tokens_per_second": 412.0, "active_layers": 4, "mean_active_layers": 4.5, "mean_rate": 0.25, "updates": 1,
            "rss_bytes": 150_000_000, "peak_rss_bytes": 200_000_000, "agent_cpu_percent": 99.0, "temperature": null,
            "telemetry_at_ms": 100, "note": null,
        }))
        .unwrap()
    }

    fn round(round: u32) -> RoundProgress {
        serde_json::from_value(json!({
            "round": round, "skipped": null, "selected": 4, "updates": 4, "accuracy": 0.8125, "loss": 0.5,
            "evaluated_examples": 400, "train_loss": 0.4, "mean_rate": 0.25, "mean_active_layers": 4.5, "step_ms": 140.4,
            "train_ms": 60_000, "evaluate_ms": 5_000, "longest_training_ms": 59_000, "bytes_up": 3, "bytes_down": 4,
        }))
        .unwrap()
    }

    fn run() -> RunProgress {
        serde_json::from_value(json!({
            "run": "0123456789abcdef", "phase": "completed", "round": 3, "rounds": 2, "ordered": 4, "answered": 4,
            "accuracy_before": 0.25, "accuracy": 0.5, "accuracy_after": null, "elapsed_ms": 65_000, "bytes_up": 2048,
            "bytes_down": 4096, "closed": [], "reason": null,
        }))
        .unwrap()
    }

    fn outcome() -> Outcome {
        let skipped = RoundProgress { skipped: Some("too few updates".to_owned()), ..round(2) };
        let run = RunProgress { closed: vec![round(1), skipped], accuracy_after: Some(0.9), ..run() };
        Outcome::new(&run, &[device("agent-1")], Duration::from_millis(61_500)).unwrap()
    }

    #[test]
    fn json_holds_what_programs_are_promised() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        std::fs::write(&path, "an older result").unwrap();
        outcome().write(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({
            "accuracy_before": 0.25, "accuracy_after": 0.9, "rounds": 1, "seconds": 61.5, "bytes_up": 2048,
            "bytes_down": 4096,
            "agents": [{"id": "agent-1", "peak_rss_bytes": 200_000_000, "mean_active_layers": 4.5}],
        });
        assert_eq!(json, expected);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let refused = format!("{:#}", outcome().write(Path::new("no/such/folder/result.json")).unwrap_err());
        assert!(refused.starts_with("writing the result to no/such/folder/result.json"), "{refused}");
    }

    #[test]
    fn people_read_the_same_figures() {
        let text = outcome().facts().text(Some(80));
        for part in ["0.2500 before, 0.9000 after (+65.0 points)", "1:01 for 1 round,", "2.0 kB", "agent-1", "200.0 MB"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn without_both_accuracies_there_is_no_outcome() {
        assert_eq!(Outcome::new(&RunProgress { accuracy_after: None, ..run() }, &[], Duration::ZERO), None);
    }
}
