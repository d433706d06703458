//! `skiff run show`: shows a whole run from the journal.

use super::words::{figure, phase};
use crate::door::Door;
use crate::table::{bytes, number, row, seconds, table};
use clap::Args;
use skiff_api::details::{Contribution, Kept, RunDetails};
use skiff_api::measures::Measure;
use skiff_api::progress::RoundProgress;
use skiff_coordinator::results::find_run;
use skiff_coordinator::store::SqliteStore;
use skiff_coordinator::views;
use skiff_protocol::Timestamp;
use std::io::Write as _;

/// Arguments of `skiff run show`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skiff run show --state fleet-state                  the last run
  skiff run show 00a1 --state fleet-state --json      run 00a1..., for programs

It reads the journal, so it works with and without a running coordinator.")]
pub(crate) struct Arguments {
    /// Name of the run, the first digits of its name, or `last`
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

/// Prints a run.
///
/// # Errors
/// There is no such run, or the journal cannot be read.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let store = SqliteStore::open_existing(&arguments.door.state()?)?;
    let row = find_run(&store, &arguments.run)?;
    let details = views::details(&store, &row, now())?;
    let text = if arguments.json { serde_json::to_string(&details)? + "\n" } else { as_text(&details) };
    Ok(write!(std::io::stdout(), "{text}")?)
}

/// Returns the current time, which is needed for the duration of a run that has not ended.
#[expect(clippy::disallowed_methods, reason = "a command line is where the time comes from")]
pub(crate) fn now() -> Timestamp {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(since_1970.as_millis() as u64)
}

fn as_text(details: &RunDetails) -> String {
    let run = &details.run;
    let (measure, reason) = (run.measure, run.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}")));
    let from = details.settings.as_ref().and_then(|settings| settings.get("from")?.as_str());
    let from = from.map_or_else(String::new, |from| format!("started from the weights of run {from}\n"));
    let mut text = format!(
        "run {}, {}{reason}\n{from}round {} of {}, {}; {} up, {} down\n",
        run.run,
        phase(run.phase),
        run.round,
        run.rounds,
        seconds(run.elapsed_ms),
        bytes(run.bytes_up),
        bytes(run.bytes_down)
    );
    text += &format!(
        "{} before {}, last {}\n",
        measure.name(),
        figure(run.metrics_before.as_ref(), measure),
        figure(run.metrics_after.as_ref().or(run.metrics.as_ref()), measure)
    );
    if let Some(damage) = &details.damage {
        text += &format!("damaged: {damage}\n");
    }
    for (name, kept) in [("best", &details.best), ("last", &details.last)] {
        text += &kept_line(name, kept.as_ref(), measure);
    }
    if !run.closed.is_empty() {
        text += &format!("\n{}", rounds(&run.closed, measure));
    }
    if !details.devices.is_empty() {
        text += &format!("\n{}", devices(&details.devices));
    }
    if let Some(parts) = details.parts.as_ref().filter(|parts| !parts.f1.is_empty()) {
        let mut rows = vec![row(["label", "F1"])];
        rows.extend(parts.f1.iter().map(|(label, f1)| vec![label.clone(), number(Some(*f1), 4)]));
        text += &format!("\n{}", table(&rows));
    }
    if details.last.is_some() {
        text += &format!("\nskiff run export {} --out DIR writes its best weights for PEFT\n", run.run);
    }
    text
}

fn kept_line(name: &str, kept: Option<&Kept>, measure: Measure) -> String {
    kept.map_or_else(String::new, |kept| {
        let figure = figure(kept.metrics.as_ref(), measure);
        format!(
            "{name} round {}, {} {figure}, weights {}\n",
            kept.round,
            measure.name(),
            &kept.weights[..12.min(kept.weights.len())]
        )
    })
}

fn rounds(closed: &[RoundProgress], measure: Measure) -> String {
    let mut rows = vec![row(["round", "updates", measure.name(), "loss", "layers", "seconds", "up", "down"])];
    rows.extend(closed.iter().map(|closed| {
        let updates = format!("{}/{}", closed.updates, closed.selected);
        vec![
            closed.round.to_string(),
            closed.skipped.as_ref().map_or(updates, |_| "skipped".to_owned()),
            figure(closed.metrics.as_ref(), measure),
            number(closed.train_loss, 3),
            format!("{:.1}", closed.mean_active_layers),
            seconds(closed.train_ms + closed.evaluate_ms),
            bytes(closed.bytes_up),
            bytes(closed.bytes_down),
        ]
    }));
    let reasons = closed.iter().filter_map(|closed| Some((closed.round, closed.skipped.as_ref()?)));
    let reasons: String = reasons.map(|(round, reason)| format!("round {round} was skipped: {reason}\n")).collect();
    table(&rows) + &reasons
}

fn devices(contributions: &[Contribution]) -> String {
    let mut rows = vec![row(["device", "updates", "steps", "layers", "peak memory", "failures"])];
    rows.extend(contributions.iter().map(|part| {
        vec![
            part.device.to_string(),
            part.updates.to_string(),
            part.steps.to_string(),
            number(part.mean_active_layers.map(f64::from), 1),
            bytes(part.peak_rss_bytes),
            part.failures.to_string(),
        ]
    }));
    let reasons = contributions.iter().filter_map(|part| Some((&part.device, part.last_failure.as_ref()?)));
    let reasons: String = reasons.map(|(device, reason)| format!("{device}, last failure: {reason}\n")).collect();
    table(&rows) + &reasons
}
