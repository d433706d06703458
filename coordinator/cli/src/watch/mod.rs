//! A run while it is running: a row for each closed round, a line for each device, and the state of the run below them.
//!
//! Rows are permanent and go to the standard output. The other lines are redrawn on a terminal; in a pipe, the state of the run is
//! written every ten seconds instead.

mod devices;
mod rounds;

pub use devices::presence;
pub use rounds::{called, figure, phase};

use rounds::Shown;
use skiff_api::progress::Progress;
use skiff_screen::live::{Live, Part};
use skiff_screen::output::width;
use std::io;

/// The screen of a run.
pub struct Watch {
    live: Live,
    shown: Shown,
}

impl Watch {
    /// Begins with an empty table, on these lines.
    #[must_use]
    pub fn new(live: Live) -> Self {
        Self { live, shown: Shown::default() }
    }

    /// Shows the newest state.
    ///
    /// # Errors
    /// The standard output cannot be written.
    pub fn update(&mut self, progress: &Progress) -> io::Result<()> {
        let Some(run) = &progress.run else {
            self.live.say(&devices::connected(&progress.devices));
            return Ok(());
        };
        let rows = self.shown.news(run, width());
        if !rows.is_empty() {
            self.live.print(&rows)?;
        }
        if !run.phase.is_end() {
            let mut parts: Vec<Part> = progress.devices.iter().map(devices::part).collect();
            let mut text = rounds::status(run, &progress.devices);
            match (rounds::waits(run, progress.now_ms), width()) {
                (Some(waits), Some(_)) => {
                    parts.insert(0, Part { name: "waits".to_owned(), done: 0, total: 0, text: waits });
                }
                // In a pipe there is one line, of any length.
                (Some(waits), None) => text += &format!("; waits {waits}"),
                (None, _) => {}
            }
            if width().is_some() {
                let shown =
                    |warning: &String| Part { name: "warning".to_owned(), done: 0, total: 0, text: warning.clone() };
                parts.splice(0..0, progress.warnings.iter().map(shown));
            } else {
                progress.warnings.iter().for_each(|warning| text += &format!("; warning: {warning}"));
            }
            self.live.parts(&parts);
            match run.ordered {
                0 => self.live.say(&text),
                ordered => self.live.count(&text, run.answered.into(), ordered.into()),
            }
        }
        Ok(())
    }

    /// Removes the lines that are redrawn.
    pub fn clear(&self) {
        self.live.clear();
    }
}

#[cfg(test)]
mod samples {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use serde_json::{Value, json};
    use skiff_api::progress::{DeviceProgress, RoundProgress, RunProgress};

    pub(super) fn device(name: &str) -> DeviceProgress {
        serde_json::from_value(json!({
            "device": name, "presence": "here", "state": "training", "step": 3, "steps": 20, "step_ms": 140.4,
            "tokens_per_second": 412.0, "active_layers": 4, "mean_active_layers": 4.5, "mean_rate": 0.25, "updates": 1,
            "rss_bytes": 150_000_000, "peak_rss_bytes": 200_000_000, "agent_cpu_percent": 99.0, "temperature": 41.2,
            "telemetry_at_ms": 100, "note": null,
        }))
        .unwrap()
    }

    pub(super) fn round(round: u32) -> RoundProgress {
        serde_json::from_value(json!({
            "round": round, "skipped": null, "selected": 4, "updates": 4, "accuracy": 0.8125, "loss": 0.5,
            "metrics": { "accuracy": 0.8125 }, "evaluated_examples": 400, "train_loss": 0.4, "mean_rate": 0.25,
            "mean_active_layers": 4.5, "step_ms": 140.4, "train_ms": 60_000, "evaluate_ms": 5_000,
            "longest_training_ms": 59_000, "bytes_up": 3_000_000, "bytes_down": 4_000_000,
        }))
        .unwrap()
    }

    pub(super) fn run(closed: &[u32]) -> RunProgress {
        let closed: Vec<Value> = closed.iter().map(|&at| serde_json::to_value(round(at)).unwrap()).collect();
        serde_json::from_value(json!({
            "run": "0123456789abcdef", "phase": "training", "round": 3, "rounds": 8, "ordered": 4, "answered": 2,
            "accuracy_before": 0.25, "accuracy": 0.5, "accuracy_after": null, "elapsed_ms": 65_000, "bytes_up": 2048,
            "bytes_down": 4096, "closed": closed, "reason": null,
        }))
        .unwrap()
    }
}
