//! Formats the lines of the table.

use indicatif::HumanBytes;
use skiff_api::progress::{DeviceProgress, Phase, Presence, RoundProgress, RunProgress};
use std::time::Duration;

/// Heading of the table.
pub(super) const HEADER: &str =
    "  round  accuracy  dropout  active layers   step time    bytes up  bytes down     time";

/// Returns the line of the evaluation before the first round.
pub(super) fn before(accuracy: f64) -> String {
    format!("{:>7}  {accuracy:>8.3}", "before")
}

/// Returns the line of a closed round.
pub(super) fn row(round: &RoundProgress, layers: usize) -> String {
    let time = clock(Duration::from_millis(round.train_ms + round.evaluate_ms));
    let wire = format!("{:>10}  {:>10}  {time:>7}", bytes(round.bytes_up), bytes(round.bytes_down));
    if let Some(reason) = &round.skipped {
        return format!("{:>7}  skipped: {reason}", round.round);
    }
    let accuracy = round.accuracy.map_or_else(|| "-".to_owned(), |accuracy| format!("{accuracy:.3}"));
    let active = format!("{:.1} of {layers}", round.mean_active_layers);
    format!(
        "{:>7}  {accuracy:>8}  {:>7.2}  {active:>13}  {:>7.0} ms  {wire}",
        round.round, round.mean_rate, round.step_ms
    )
}

/// Returns the state of a device, shown beside its bar.
pub(super) fn device(device: &DeviceProgress, layers: usize) -> String {
    let state = match device.presence {
        Presence::Here => device.state.as_str(),
        Presence::WrongPack => "wrong pack",
        Presence::Left => "left",
        Presence::Lost => "lost",
    };
    let mut line = format!("{state:<10} {:>10}, peak {:>10}", bytes(device.rss_bytes), bytes(device.peak_rss_bytes));
    if device.step_ms > 0.0 {
        let DeviceProgress { active_layers, step_ms, tokens_per_second, .. } = device;
        line +=
            &format!("  {active_layers} of {layers} layers {step_ms:>5.0} ms/step {tokens_per_second:>6.0} tokens/s");
    }
    if let Some(celsius) = device.temperature {
        line += &format!("  {celsius:.0} °C");
    }
    if let Some(note) = &device.note {
        line += &format!("  {note}");
    }
    line
}

/// Returns the state of the run.
pub(super) fn status(run: &RunProgress) -> String {
    let doing = match run.phase {
        Phase::Gathering => "waiting for agents",
        Phase::Training => "training",
        Phase::Merging => "merging",
        Phase::Evaluating => "evaluating",
        Phase::Completed => "done",
        Phase::Stopped => "stopped",
        Phase::Failed => "failed",
    };
    let round =
        if run.round == 0 { "before round 1".to_owned() } else { format!("round {} of {}", run.round, run.rounds) };
    let answers = format!("{} of {} agents are done", run.answered, run.ordered);
    format!("{round}: {doing}, {answers}, {}", clock(Duration::from_millis(run.elapsed_ms)))
}

/// Formats a duration, such as `1:05`.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Formats a number of bytes, such as `1.50 MiB`.
pub(super) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    pub(in super::super) fn device(name: &str) -> DeviceProgress {
        DeviceProgress {
            device: name.parse().unwrap(),
            presence: Presence::Here,
            state: "training".to_owned(),
            step: 3,
            steps: 20,
            step_ms: 140.4,
            tokens_per_second: 412.0,
            active_layers: 4,
            mean_active_layers: Some(4.5),
            mean_rate: Some(0.25),
            updates: 1,
            rss_bytes: 150 << 20,
            peak_rss_bytes: 200 << 20,
            agent_cpu_percent: 99.0,
            temperature: Some(41.2),
            telemetry_at_ms: Some(100),
            note: None,
        }
    }

    pub(in super::super) fn round(round: u32) -> RoundProgress {
        RoundProgress {
            round,
            skipped: None,
            selected: 4,
            updates: 4,
            accuracy: Some(0.8125),
            metrics: None,
            left_out: std::collections::BTreeMap::new(),
            loss: Some(0.5),
            evaluated_examples: 400,
            train_loss: Some(0.4),
            mean_rate: 0.25,
            mean_active_layers: 4.5,
            step_ms: 140.4,
            train_ms: 60_000,
            evaluate_ms: 5_000,
            longest_training_ms: 59_000,
            bytes_up: 3 << 20,
            bytes_down: 4 << 20,
        }
    }

    pub(in super::super) fn run() -> RunProgress {
        RunProgress {
            run: "0123456789abcdef".to_owned(),
            phase: Phase::Training,
            round: 3,
            rounds: 8,
            ordered: 4,
            answered: 2,
            accuracy_before: Some(0.25),
            accuracy: Some(0.5),
            accuracy_after: None,
            measure: skiff_api::measures::Measure::Accuracy,
            metrics_before: None,
            metrics: None,
            metrics_after: None,
            elapsed_ms: 65_000,
            bytes_up: 2048,
            bytes_down: 4096,
            closed: Vec::new(),
            reason: None,
        }
    }

    #[test]
    fn a_row_stands_under_its_header() {
        let row = row(&round(3), 6);
        assert_eq!(row, "      3     0.812     0.25       4.5 of 6      140 ms    3.00 MiB    4.00 MiB     1:05");
        assert_eq!(row.len(), HEADER.len());
        for (title, value) in [("accuracy", "0.812"), ("dropout", "0.25"), ("step time", "140 ms"), ("time", "1:05")] {
            let end = |text: &str, part: &str| text.rfind(part).unwrap() + part.len();
            assert_eq!(end(HEADER, title), end(&row, value), "{title}");
        }
    }

    #[test]
    fn a_round_that_was_not_evaluated_has_no_accuracy() {
        assert!(row(&RoundProgress { accuracy: None, ..round(3) }, 6).starts_with("      3         -     0.25"));
    }

    #[test]
    fn a_skipped_round_says_why() {
        let skipped = RoundProgress { skipped: Some("1 update, 2 are needed".to_owned()), ..round(12) };
        assert_eq!(row(&skipped, 6), "     12  skipped: 1 update, 2 are needed");
    }

    #[test]
    fn a_device_shows_its_memory_and_step() {
        assert_eq!(
            super::device(&device("agent-1"), 6),
            "training   150.00 MiB, peak 200.00 MiB  4 of 6 layers   140 ms/step    412 tokens/s  41 °C"
        );
        let lost = DeviceProgress { presence: Presence::Lost, step_ms: 0.0, temperature: None, ..device("agent-1") };
        assert_eq!(super::device(&lost, 6), "lost       150.00 MiB, peak 200.00 MiB");
    }

    #[test]
    fn the_status_says_where_the_run_is() {
        assert_eq!(status(&run()), "round 3 of 8: training, 2 of 4 agents are done, 1:05");
        let first = RunProgress { round: 0, phase: Phase::Evaluating, ..run() };
        assert!(status(&first).starts_with("before round 1: evaluating"));
    }
}
