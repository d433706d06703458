//! `skiff run`: starts, watches, stops and lists runs of federated training.

mod card;
mod export;
mod show;
mod words;

use crate::door::Door;
use crate::table::{bytes, number, row, seconds, table};
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use skiff_api::measures::Measure;
use skiff_api::progress::{Phase, Progress, RoundProgress, RunProgress};
use skiff_api::request::{Deleted, Request};
use skiff_coordinator::doors::client::{Watch, ask_once};
use skiff_coordinator::run::NOTHING_MERGED;
use skiff_coordinator::store::{RunRow, SqliteStore, Store as _};
use skiff_coordinator::views;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use words::{figure, phase};

/// Subcommands of `skiff run`.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Start a run. Defaults come from table [run] of the configuration. The exit status is 4 if a watched run fails
    Start(Box<StartArguments>),
    /// Show each round of the current run as it closes, until the run ends. The exit status is 4 if the run fails
    Watch(WatchArguments),
    /// Stop the current run. The weights of its last merged round are kept
    Stop(Door),
    /// List the last runs, oldest first
    List(ListArguments),
    /// Show a run: its rounds, its best weights and the devices that took part
    Show(show::Arguments),
    /// Write the weights of a run as a Hugging Face PEFT adapter or as a plain checkpoint
    Export(Box<export::Arguments>),
    /// Delete an ended run and the weights that no other run needs
    Delete(DeleteArguments),
}

/// Arguments of `skiff run delete`.
#[derive(Args, Debug)]
pub(crate) struct DeleteArguments {
    #[command(flatten)]
    door: Door,
    /// Name of the run, as in `skiff run list`
    #[arg(value_name = "RUN")]
    run: String,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// Arguments of `skiff run start`.
#[derive(Args, Debug)]
pub(crate) struct StartArguments {
    #[command(flatten)]
    door: Door,
    /// Number of training rounds
    #[arg(long)]
    rounds: Option<u32>,
    /// Number of updates wanted in each round
    #[arg(long)]
    devices: Option<u32>,
    /// Minimum number of updates; a round with fewer is skipped
    #[arg(long)]
    quorum: Option<u32>,
    /// Use buffered asynchronous rounds (FedBuff): a round closes with --devices updates while other devices keep training
    #[arg(long)]
    asynchronous: bool,
    /// Train this many spare devices on top of --devices
    #[arg(long, value_name = "DEVICES")]
    over_selection: Option<u32>,
    /// Number of optimizer steps of each device in a round
    #[arg(long)]
    steps: Option<u32>,
    /// Number of examples in a step
    #[arg(long)]
    batch: Option<u32>,
    /// Learning rate of AdamW
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f32>,
    /// Mean dropout rate of the layers, equal for all devices
    #[arg(long, value_name = "MEAN", conflicts_with = "bandit")]
    dropout: Option<f32>,
    /// Let a bandit choose each device's dropout rate
    #[arg(long)]
    bandit: bool,
    /// Start from the weights of an earlier run, in place of the pack's: RUN, RUN@best, RUN@last (the default) or RUN@ROUND. RUN is
    /// its name, the first digits of it, or `last`
    #[arg(long, value_name = "RUN[@ROUND]")]
    from: Option<String>,
    /// Set any other key of table [run], written as in the file: --set 'sharing={least_important=3}'
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Watch the run once it has started
    #[arg(long)]
    watch: bool,
}

/// Arguments of `skiff run watch`.
#[derive(Args, Debug)]
pub(crate) struct WatchArguments {
    #[command(flatten)]
    door: Door,
    /// Print every change as JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff run list`.
#[derive(Args, Debug)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    door: Door,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// No coordinator is reachable, or it refuses the request.
pub(crate) async fn run(action: Action) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match action {
        Action::Start(arguments) => {
            let state = arguments.door.state()?;
            let run: String = ask_once(&state, &Request::StartRun(settings(&arguments)?)).await?;
            writeln!(out, "run {run} started")?;
            if arguments.watch { watch(&state, Some(&run), false).await } else { Ok(()) }
        }
        Action::Watch(arguments) => watch(&arguments.door.state()?, None, arguments.json).await,
        Action::Stop(door) => {
            ask_once::<()>(&door.state()?, &Request::StopRun).await?;
            Ok(writeln!(out, "the run is stopped")?)
        }
        Action::Show(arguments) => show::run(&arguments),
        Action::Export(arguments) => export::run(&arguments),
        Action::Delete(arguments) => {
            let DeleteArguments { door, run, yes } = arguments;
            if !yes && !confirmed(&run)? {
                bail!("run {run} was not deleted");
            }
            let deleted: Deleted = ask_once(&door.state()?, &Request::DeleteRun(run.clone())).await?;
            let (blobs, bytes) = (deleted.removed_blobs, bytes(deleted.removed_bytes));
            Ok(writeln!(out, "run {run} deleted, with {blobs} blobs ({bytes})")?)
        }
        Action::List(arguments) => {
            let rows = SqliteStore::open_existing(&arguments.door.state()?)?.runs()?;
            if arguments.json {
                let now = show::now();
                rows.iter().try_for_each(|row| {
                    let mut run = serde_json::to_value(views::listed_run(row, now))?;
                    let kept = json!({ "best": row.summary.best, "last": row.summary.last });
                    if let (Some(run), Value::Object(kept)) = (run.as_object_mut(), kept) {
                        run.extend(kept);
                    }
                    Ok(writeln!(out, "{run}")?)
                })
            } else {
                Ok(write!(out, "{}", list(&rows))?)
            }
        }
    }
}

/// Asks for confirmation on the terminal.
fn confirmed(run: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask on: add --yes to delete run {run} and its weights for good");
    }
    let mut err = std::io::stderr();
    write!(err, "Delete run {run}, its journal, and its last and best weights for good? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn settings(arguments: &StartArguments) -> anyhow::Result<Map<String, Value>> {
    let mut settings = Map::new();
    for text in &arguments.set {
        let (key, value) = text.split_once('=').with_context(|| format!("--set {text}: expected KEY=VALUE"))?;
        let table: toml::Table = toml::from_str(&format!("value = {value}"))
            .or_else(|_| toml::from_str(&format!("value = {}", Value::from(value))))
            .with_context(|| format!("--set {text}: the value is not valid TOML"))?;
        settings.insert(key.trim().to_owned(), serde_json::to_value(&table["value"])?);
    }
    let mut say = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            settings.insert(key.to_owned(), value);
        }
    };
    say("from", arguments.from.clone().map(Value::from));
    say("rounds", arguments.rounds.map(Value::from));
    say("devices", arguments.devices.map(Value::from));
    say("quorum", arguments.quorum.map(Value::from));
    say("asynchronous", arguments.asynchronous.then(|| Value::from(true)));
    say("over_selection", arguments.over_selection.map(Value::from));
    say("steps", arguments.steps.map(Value::from));
    say("batch", arguments.batch.map(Value::from));
    say("learning_rate", arguments.learning_rate.map(Value::from));
    say("rates", arguments.dropout.map(|mean| json!({ "fixed": { "mean": mean } })));
    say("rates", arguments.bandit.then(|| json!({ "bandit": {} })));
    Ok(settings)
}

async fn watch(state: &Path, name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut watch = Watch::start(state).await?;
    let mut out = std::io::stdout();
    let mut shown: Option<(String, u32)> = None;
    loop {
        let progress = watch.next().await?;
        let Some(run) = progress.run.as_ref() else { bail!("no run has been started") };
        if name.is_some_and(|name| name != run.run) {
            continue;
        }
        if json {
            writeln!(out, "{}", serde_json::to_string(progress)?)?;
        } else {
            write!(out, "{}", news(run, &mut shown))?;
            out.flush()?;
            status(progress, run);
        }
        if run.phase.is_end() {
            if !json {
                write!(out, "{}", ending(run))?;
            }
            if run.phase == Phase::Failed {
                return Err(RunFailed { run: run.run.clone() }.into());
            }
            return Ok(());
        }
    }
}

/// A watched run ended without a result.
#[derive(Debug, thiserror::Error)]
#[error("run {run} failed: it has trained nothing")]
pub(crate) struct RunFailed {
    run: String,
}

/// Returns the lines that a watcher has not seen yet: the heading of a new run, and each closed round. `shown` holds the run and
/// the last round that the watcher saw.
fn news(run: &RunProgress, shown: &mut Option<(String, u32)>) -> String {
    let mut text = String::new();
    let after = match shown.take() {
        Some((name, round)) if name == run.run => round,
        Some(_) | None => {
            text = format!("run {}, {} rounds\n{}", run.run, run.rounds, line(&head(run.measure)));
            0
        }
    };
    // A round includes its evaluation, so it is complete only once the next round has begun or the run has ended.
    let is_complete = |closed: &&RoundProgress| closed.round < run.round || run.phase.is_end();
    let fresh: Vec<&RoundProgress> =
        run.closed.iter().filter(is_complete).filter(|closed| closed.round > after).collect();
    for closed in &fresh {
        text += &line(&closed_cells(closed, run.measure));
        text.extend(
            closed.left_out.iter().map(|(device, why)| format!("{device} was left out of the evaluation: {why}\n")),
        );
    }
    *shown = Some((run.run.clone(), fresh.last().map_or(after, |closed| closed.round)));
    text
}

fn head(measure: Measure) -> [String; 10] {
    ["round", "updates", measure.name(), "loss", "rate", "layers", "ms/step", "seconds", "up", "down"]
        .map(str::to_owned)
}

fn closed_cells(closed: &RoundProgress, measure: Measure) -> [String; 10] {
    [
        closed.round.to_string(),
        closed.skipped.as_ref().map_or_else(|| format!("{}/{}", closed.updates, closed.selected), |_| "skipped".into()),
        figure(closed.metrics.as_ref(), measure),
        number(closed.train_loss, 3),
        format!("{:.2}", closed.mean_rate),
        format!("{:.1}", closed.mean_active_layers),
        format!("{:.0}", closed.step_ms),
        seconds(closed.train_ms + closed.evaluate_ms),
        bytes(closed.bytes_up),
        bytes(closed.bytes_down),
    ]
}

fn line(cells: &[String; 10]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>10}")).collect();
    format!("{}\n", cells.join(" "))
}

/// Overwrites one status line on standard error, if that is a terminal.
fn status(progress: &Progress, run: &RunProgress) {
    use std::io::IsTerminal as _;
    let mut err = std::io::stderr();
    if err.is_terminal() && !run.phase.is_end() {
        let states: Vec<String> = progress
            .devices
            .iter()
            .take(6)
            .map(|device| format!("{} {} {}/{}", device.device, device.state, device.step, device.steps))
            .collect();
        let text = format!("round {}, {}: {}", run.round, phase(run.phase), states.join(" | "));
        let _ = write!(err, "\r\x1b[2K{}\r", text.chars().take(150).collect::<String>());
    }
}

fn ending(run: &RunProgress) -> String {
    let reason = run.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let merged = run.closed.iter().any(|closed| closed.skipped.is_none());
    let advice = if merged {
        format!("skiff run export {} --out DIR writes its best weights for PEFT\n", run.run)
    } else {
        String::new()
    };
    let last = run.metrics_after.as_ref().or(run.metrics.as_ref());
    let counted = match run.measure {
        Measure::Accuracy | Measure::PearsonR => "examples",
        Measure::SpanF1 | Measure::Perplexity => "tokens",
    };
    let examples = last.map_or_else(String::new, |figures| format!(" on {} {counted}", figures.examples));
    let line = format!(
        "{}{reason}; {} {} -> {}{examples} in {}, {} up, {} down\n",
        phase(run.phase),
        run.measure.name(),
        figure(run.metrics_before.as_ref(), run.measure),
        figure(last, run.measure),
        seconds(run.elapsed_ms),
        bytes(run.bytes_up),
        bytes(run.bytes_down),
    );
    line + &advice
}

fn list(rows: &[RunRow]) -> String {
    let now = show::now();
    let mut cells = vec![row(["run", "phase", "round", "measure", "before", "last", "best", "seconds"])];
    cells.extend(rows.iter().map(|row| {
        let run = views::listed_run(row, now);
        let best = row.summary.best.as_ref().map_or_else(|| "-".to_owned(), |best| format!("round {}", best.round));
        vec![
            run.run,
            phase(run.phase).to_owned(),
            format!("{}/{}", run.round, run.rounds),
            run.measure.name().to_owned(),
            figure(run.metrics_before.as_ref(), run.measure),
            figure(run.metrics.as_ref(), run.measure),
            best,
            seconds(run.elapsed_ms),
        ]
    }));
    if rows.is_empty() {
        return "no run has been started\n".to_owned();
    }
    let failed = rows.iter().filter(|row| row.damage.is_none() && row.summary.has_failed());
    let reason = |row: &RunRow| row.summary.reason.clone().unwrap_or_else(|| NOTHING_MERGED.to_owned());
    let reasons: String = failed.map(|row| format!("run {} failed: {}\n", row.run, reason(row))).collect();
    table(&cells) + &reasons
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use clap::Parser;
    use skiff_api::measures::Figures;
    use skiff_api::policy::Sharing;
    use skiff_coordinator::run::RunSettings;
    use skiff_coordinator::run::configurator::Rates;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        action: Action,
    }

    fn said(line: &[&str]) -> anyhow::Result<Map<String, Value>> {
        let line = Line::try_parse_from(["skiff", "start", "--state", "s"].iter().chain(line))?;
        let Action::Start(arguments) = line.action else { panic!("another action") };
        settings(&arguments)
    }

    fn parsed(line: &[&str]) -> RunSettings {
        let mut settings = serde_json::to_value(RunSettings::default()).unwrap();
        settings.as_object_mut().unwrap().extend(said(line).unwrap());
        serde_json::from_value(settings).unwrap()
    }

    fn in_round(run: &str, round: u32, closed: u32) -> RunProgress {
        let closed: Vec<Value> = (1..=closed)
            .map(|round| {
                json!({
                    "round": round, "skipped": "nobody", "selected": 0, "updates": 0, "accuracy": null, "loss": null,
                    "evaluated_examples": 0, "train_loss": null, "mean_rate": 0.0, "mean_active_layers": 0.0,
                    "step_ms": 0.0, "train_ms": 0, "evaluate_ms": 0, "longest_training_ms": 0, "bytes_up": 0, "bytes_down": 0,
                })
            })
            .collect();
        serde_json::from_value(json!({
            "run": run, "phase": "training", "round": round, "rounds": 3, "ordered": 0, "answered": 0,
            "accuracy_before": null, "accuracy": null, "accuracy_after": null, "elapsed_ms": 0, "bytes_up": 0,
            "bytes_down": 0, "closed": closed, "reason": null,
        }))
        .unwrap()
    }

    #[test]
    fn a_watcher_sees_the_heading_once_a_run_and_each_round_once() {
        let mut shown = None;
        let mut lines = |run: &str, round, closed| news(&in_round(run, round, closed), &mut shown).lines().count();
        assert_eq!((lines("a", 0, 0), lines("a", 1, 0), lines("a", 1, 0)), (2, 0, 0));
        assert_eq!((lines("a", 1, 1), lines("a", 2, 1), lines("a", 2, 1)), (0, 1, 0), "closed, complete, shown");
        assert_eq!(lines("a", 4, 3), 2);
        assert_eq!((lines("b", 2, 1), lines("b", 2, 1)), (3, 0));
    }

    #[test]
    fn a_run_that_trained_nothing_ends_as_failed_with_its_reason() {
        let mut run = in_round("a", 3, 3);
        run.phase = Phase::Failed;
        run.reason = Some("no update was merged in 3 rounds; oak: no examples".to_owned());
        assert!(
            ending(&run).starts_with("failed: no update was merged in 3 rounds; oak: no examples;"),
            "{}",
            ending(&run)
        );
    }

    #[test]
    fn a_table_shows_the_measure_of_the_task() {
        let mut run = in_round("a", 2, 1);
        run.measure = Measure::Perplexity;
        run.closed[0].metrics = Some(Figures { perplexity: Some(7.25), accuracy: Some(0.5), ..Figures::default() });
        let text = news(&run, &mut None);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((rows[1][2], rows[2][2]), ("perplexity", "7.2500"));
        run.closed[0].left_out.insert("elm".to_owned(), "it diverged".to_owned());
        let text = news(&run, &mut None);
        assert_eq!(text.lines().last(), Some("elm was left out of the evaluation: it diverged"));
        run.metrics_before = Some(Figures { perplexity: Some(9.5), ..Figures::default() });
        run.metrics = run.closed[0].metrics;
        assert!(ending(&run).contains("perplexity 9.5000 -> 7.2500"), "{}", ending(&run));
    }

    #[test]
    fn flags_and_settings_become_what_the_file_would_say() {
        let settings =
            parsed(&["--rounds", "3", "--dropout", "0.4", "--set", "sharing={least_important=3}", "--set", "seed=9"]);
        assert_eq!((settings.rounds, settings.seed, settings.sharing), (3, 9, Sharing::LeastImportant(3)));
        assert!(matches!(settings.rates, Rates::Fixed { mean, .. } if (mean - 0.4).abs() < 1e-6));
        assert_eq!(parsed(&["--from", "00a1@best"]).from.as_deref(), Some("00a1@best"));
        assert!(matches!(parsed(&["--bandit"]).rates, Rates::Bandit(_)));
        assert_eq!(parsed(&["--set", "sharing=all"]).sharing, Sharing::All, "a bare word is text");
        assert!(said(&["--set", "seed"]).unwrap_err().to_string().contains("KEY=VALUE"));
        assert!(said(&["--bandit", "--dropout", "0.1"]).is_err());
    }
}
