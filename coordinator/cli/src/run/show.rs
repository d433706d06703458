//! `skiff run show`: shows a whole run from the journal.

use super::csv;
use crate::door::Door;
use crate::watch::{called, figure, phase};
use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value};
use skiff_api::details::{Contribution, Kept, RunDetails};
use skiff_api::measures::Measure;
use skiff_api::progress::RoundProgress;
use skiff_coordinator::results::find_run;
use skiff_coordinator::run::RunSettings;
use skiff_coordinator::store::SqliteStore;
use skiff_coordinator::views;
use skiff_protocol::Timestamp;
use skiff_screen::dates::{age, date, time_of_day};
use skiff_screen::output::{stdout, width};
use skiff_screen::table::{Column, Table};
use skiff_screen::text::{Facts, fold};
use skiff_screen::units::{bytes, figure as number, measured_bytes, millis};
use std::io::Write as _;

/// Arguments of `skiff run show`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skiff run show --state fleet-state                  the last run
  skiff run show 00a1 --state fleet-state --json      run 00a1..., for programs
  skiff run show night-3 --state fleet-state          the run that was started with --name night-3
  skiff run show --state fleet-state --csv > rounds.csv    a row for each round; docs/runs.md describes the columns

It reads the journal, so it works with and without a running coordinator.")]
pub(crate) struct Arguments {
    /// Name or id of the run, the beginning of either, or `last`
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print the rounds as a CSV table with a row for each round
    #[arg(long, conflicts_with = "json")]
    csv: bool,
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
    if arguments.csv {
        if let Some(damage) = &details.damage {
            bail!("the rounds of run {} cannot be read: {damage}", row.run);
        }
        return Ok(write!(stdout(), "{}", csv::table(&details)?)?);
    }
    let text = if arguments.json { serde_json::to_string(&details)? + "\n" } else { as_text(&details, now(), width()) };
    Ok(write!(stdout(), "{text}")?)
}

/// Returns the current time, which is needed for the duration of a run that has not ended.
#[expect(clippy::disallowed_methods, reason = "a command line is where the time comes from")]
pub(crate) fn now() -> Timestamp {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(since_1970.as_millis() as u64)
}

fn as_text(details: &RunDetails, now: Timestamp, width: Option<usize>) -> String {
    let run = &details.run;
    let mut text = facts(details, now).text(width);
    if !run.closed.is_empty() {
        text += &format!("\n{}", rounds(&run.closed, run.measure, width));
    }
    if !details.devices.is_empty() {
        text += &format!("\n{}", devices(&details.devices, width));
    }
    if let Some(parts) = details.parts.as_ref().filter(|parts| !parts.f1.is_empty()) {
        let mut table = Table::new([Column::text("label"), Column::number("F1")]);
        parts.f1.iter().for_each(|(label, f1)| table.add([label.clone(), number(Some(*f1), 4)]));
        text += &format!("\n{}", table.text(width));
    }
    if details.last.is_some() {
        let name = run.name.as_ref().unwrap_or(&run.run);
        let advice = format!("to write its best weights for PEFT: skiff run export {name} --out DIR");
        text += &format!("\n{}\n", fold(&advice, 2, width));
    }
    text
}

/// Returns a time as a date with its age.
fn when(millis: u64, now: Timestamp) -> String {
    format!("{} ({})", date(millis), age(millis, now.0))
}

fn facts(details: &RunDetails, now: Timestamp) -> Facts {
    let (run, measure) = (&details.run, details.run.measure);
    let mut facts = Facts::new();
    facts.add("run", called(run));
    facts.add("started", when(details.started_ms, now));
    if run.phase.is_end() {
        facts.add("ended", when(details.started_ms + run.elapsed_ms, now));
    }
    if let Some(from) = details.settings.as_ref().and_then(|settings| settings.get("from")?.as_str()) {
        facts.add("from", format!("the weights of run {from}"));
    }
    let reason = run.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let time = millis(run.elapsed_ms);
    facts.add("phase", format!("{}{reason}, round {} of {}, {time}", phase(run.phase), run.round, run.rounds));
    if let Some(waits) = &run.waits {
        let until = waits.until_ms.map_or_else(String::new, |until_ms| format!(" until {}", time_of_day(until_ms)));
        facts.add("waits for", format!("{}{until}; then {}", waits.what, waits.then));
    }
    facts.add("on the wire", format!("{} up, {} down", bytes(run.bytes_up), bytes(run.bytes_down)));
    let before = figure(run.metrics_before.as_ref(), measure);
    let last = figure(run.metrics_after.as_ref().or(run.metrics.as_ref()), measure);
    facts.add(measure.name(), format!("{before} before, {last} last"));
    for (name, kept) in [("best", &details.best), ("last", &details.last)] {
        if let Some(Kept { round, weights, metrics, .. }) = kept {
            let figure = figure(metrics.as_ref(), measure);
            let weights = &weights[..12.min(weights.len())];
            facts.add(name, format!("round {round}, {} {figure}, weights {weights}", measure.name()));
        }
    }
    if let Some(settings) = &details.settings {
        facts.add("settings", changed(settings));
    }
    if let Some(damage) = &details.damage {
        facts.add("damage", damage.clone());
    }
    facts
}

/// Returns the settings that differ from the defaults, as `--set` takes them.
pub(super) fn changed(settings: &Map<String, Value>) -> String {
    let usual = serde_json::to_value(RunSettings::default()).unwrap_or_default();
    let differs = |(key, value): &(&String, &Value)| usual.get(key.as_str()) != Some(*value);
    let texts: Vec<String> =
        settings.iter().filter(differs).map(|(key, value)| format!("{key}={}", short(value))).collect();
    if texts.is_empty() { "the defaults".to_owned() } else { texts.join(", ") }
}

/// Returns a value whose numbers have no more digits than the operator wrote: settings hold numbers of 32 bits.
fn short(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let digits = number.as_f64().map(|number| (number as f32).to_string());
            digits.and_then(|digits| digits.parse::<f64>().ok()).map_or_else(|| value.clone(), Value::from)
        }
        Value::Array(values) => values.iter().map(short).collect(),
        Value::Object(table) => table.iter().map(|(key, value)| (key.clone(), short(value))).collect(),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Number(_) => value.clone(),
    }
}

fn rounds(closed: &[RoundProgress], measure: Measure, width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::number("round"),
        Column::number("updates"),
        Column::number(measure.name()),
        Column::number("loss").rank(1),
        Column::number("layers").rank(2),
        Column::number("up").rank(3),
        Column::number("down").rank(4),
        Column::number("time"),
    ]);
    for closed in closed {
        let updates = format!("{}/{}", closed.updates, closed.selected);
        table.add([
            closed.round.to_string(),
            closed.skipped.as_ref().map_or(updates, |_| "skipped".to_owned()),
            figure(closed.metrics.as_ref(), measure),
            number(closed.train_loss, 3),
            format!("{:.1}", closed.mean_active_layers),
            bytes(closed.bytes_up),
            bytes(closed.bytes_down),
            millis(closed.train_ms + closed.evaluate_ms),
        ]);
    }
    let reasons = closed.iter().filter_map(|closed| Some((closed.round, closed.skipped.as_ref()?)));
    let reasons = reasons.map(|(round, reason)| format!("round {round} was skipped: {reason}"));
    table.text(width) + &notes(reasons, width)
}

fn devices(contributions: &[Contribution], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::text("device"),
        Column::number("updates"),
        Column::number("steps"),
        Column::number("layers").rank(1),
        Column::number("peak memory"),
        Column::number("failures"),
    ]);
    for part in contributions {
        table.add([
            part.device.to_string(),
            part.updates.to_string(),
            part.steps.to_string(),
            number(part.mean_active_layers.map(f64::from), 1),
            measured_bytes(part.peak_rss_bytes),
            part.failures.to_string(),
        ]);
    }
    let reasons = contributions.iter().filter_map(|part| Some((&part.device, part.last_failure.as_ref()?)));
    let reasons = reasons.map(|(device, reason)| format!("{device}, last failure: {reason}"));
    table.text(width) + &notes(reasons, width)
}

fn notes(texts: impl Iterator<Item = String>, width: Option<usize>) -> String {
    texts.map(|text| fold(&text, 2, width) + "\n").collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn settings_are_shown_as_they_were_written() {
        let table = |toml: &str| views::settings_table(&toml::from_str(toml).unwrap()).unwrap();
        assert_eq!(changed(&table("")), "the defaults");
        let text = changed(&table("learning_rate = 0.002\nproximal = 0.3\nsharing = { least_important = 2 }"));
        assert_eq!(text, r#"learning_rate=0.002, proximal=0.3, sharing={"least_important":2}"#);
        assert!(changed(&table("rates = { fixed = { mean = 0.3 } }")).contains(r#""mean":0.3"#));
    }
}
