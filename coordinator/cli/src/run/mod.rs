//! `skiff run`: starts, watches, stops and lists runs of federated training.

mod card;
mod csv;
mod export;
mod list;
mod show;
mod watch;

pub(crate) use show::now;
pub(crate) use watch::{Interrupted, RunFailed};

use crate::door::Door;
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use skiff_api::names::RunName;
use skiff_api::request::{Deleted, Request, StartRun};
use skiff_coordinator::doors::client::ask_once;
use skiff_coordinator::results::find_run;
use skiff_coordinator::store::{RunRow, SqliteStore};
use skiff_coordinator::views;
use skiff_screen::output::stdout;
use skiff_screen::units::{bytes, counted};
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

/// Subcommands of `skiff run`.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Start a run. Defaults come from table [run] of the configuration. The exit status is 4 if a watched run fails
    Start(Box<StartArguments>),
    /// Show each round of the current run as it closes, until the run ends. The exit status is 4 if the run fails
    Watch(WatchArguments),
    /// Stop the current run. The weights of its last merged round are kept
    Stop(StopArguments),
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
    /// Name or id of the run, or the beginning of either
    #[arg(value_name = "RUN")]
    run: String,
    /// Do not ask for confirmation. RUN must then be a whole name or id
    #[arg(long)]
    yes: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff run stop`.
#[derive(Args, Debug)]
pub(crate) struct StopArguments {
    #[command(flatten)]
    door: Door,
    /// Stop the current run only if it is this one: its name or id, or the beginning of either
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff run start`.
#[derive(Args, Debug)]
pub(crate) struct StartArguments {
    #[command(flatten)]
    door: Door,
    /// Name for the run, which other commands take in place of its id: 1 to 64 of A-Z a-z 0-9 . _ -. No other run may have it
    #[arg(long)]
    name: Option<RunName>,
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
    /// its name or id, the beginning of either, or `last`
    #[arg(long, value_name = "RUN[@ROUND]")]
    from: Option<String>,
    /// Set any other key of table [run], written as in the file: --set 'sharing={least_important=3}'
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Watch the run once it has started
    #[arg(long)]
    watch: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff run watch`.
#[derive(Args, Debug)]
pub(crate) struct WatchArguments {
    #[command(flatten)]
    door: Door,
    /// Name or id of the run, the beginning of either, or `last` [default: the current run, or the last one]
    #[arg(value_name = "RUN")]
    run: Option<String>,
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
    let mut out = stdout();
    match action {
        Action::Start(arguments) => {
            let state = arguments.door.state()?;
            let start = StartRun { name: arguments.name.clone(), settings: settings(&arguments)? };
            let run: String = ask_once(&state, &Request::StartRun(start)).await?;
            match (arguments.json, &arguments.name) {
                (true, name) => writeln!(out, "{}", json!({ "run": run, "name": name }))?,
                (false, Some(name)) => writeln!(out, "run {name} ({run}) started")?,
                (false, None) => writeln!(out, "run {run} started")?,
            }
            if arguments.watch { watch::watch(&arguments.door, Some(&run), arguments.json).await } else { Ok(()) }
        }
        Action::Watch(arguments) => {
            let state = arguments.door.state()?;
            let run = arguments.run.as_deref().map(|run| find(&state, run)).transpose()?;
            if let Some(row) = run.as_ref().filter(|row| row.summary.is_ended()) {
                return watch::show_end(&arguments.door, &views::listed_run(row, show::now()), arguments.json);
            }
            let run = run.map(|row| row.run.to_string());
            watch::watch(&arguments.door, run.as_deref(), arguments.json).await
        }
        Action::Stop(arguments) => {
            let state = arguments.door.state()?;
            let request = match &arguments.run {
                None => Request::StopRun,
                Some(run) => Request::StopOne(find(&state, run)?.run.to_string()),
            };
            ask_once::<()>(&state, &request).await?;
            let text =
                if arguments.json { json!({ "stopped": true }).to_string() } else { "the run is stopped".to_owned() };
            Ok(writeln!(out, "{text}")?)
        }
        Action::Show(arguments) => show::run(&arguments),
        Action::Export(arguments) => export::run(&arguments),
        Action::Delete(arguments) => delete(arguments).await,
        Action::List(arguments) => list::run(&arguments.door, arguments.json),
    }
}

/// Finds a run in the journal by its name, its id, or the beginning of either.
fn find(state: &Path, run: &str) -> anyhow::Result<RunRow> {
    Ok(find_run(&SqliteStore::open_existing(state)?, run)?)
}

/// Refuses the beginning of a name or id where nobody confirms: once its run is deleted, it may fit another run.
fn check_whole(text: &str, row: &RunRow, is_confirmed: bool) -> anyhow::Result<()> {
    let id = row.run.to_string();
    let name = row.summary.name.as_deref();
    if is_confirmed && text != id && name != Some(text) {
        bail!("{text} is only the beginning of run {}: with --yes, write the whole name or id", name.unwrap_or(&id));
    }
    Ok(())
}

async fn delete(arguments: DeleteArguments) -> anyhow::Result<()> {
    let DeleteArguments { door, run, yes, json } = arguments;
    let state = door.state()?;
    if run == "last" {
        bail!("name the run to delete; `skiff run list` lists all runs");
    }
    let row = find(&state, &run)?;
    check_whole(&run, &row, yes)?;
    let (run, name) = (row.run.to_string(), row.summary.name);
    let called = name.map_or_else(|| run.clone(), |name| format!("{name} ({run})"));
    if !yes && !confirmed(&called)? {
        bail!("run {called} was not deleted");
    }
    let deleted: Deleted = ask_once(&state, &Request::DeleteRun(run.clone())).await?;
    let Deleted { removed_blobs, removed_bytes } = deleted;
    let text = match json {
        true => json!({ "run": run, "removed_blobs": removed_blobs, "removed_bytes": removed_bytes }).to_string(),
        false => {
            format!("run {called} deleted, with {} ({})", counted(removed_blobs as usize, "blob"), bytes(removed_bytes))
        }
    };
    Ok(writeln!(stdout(), "{text}")?)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use clap::Parser;
    use skiff_api::policy::Sharing;
    use skiff_coordinator::run::RunSettings;
    use skiff_coordinator::run::configurator::Rates;
    use skiff_coordinator::store::{Summary, Traffic};
    use skiff_protocol::RunId;

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

    #[test]
    fn only_a_whole_name_or_id_deletes_without_a_question() {
        let summary = Summary { name: Some("night-2".to_owned()), ..Summary::default() };
        let (run, traffic) = (RunId(0xa1 << 56), Traffic::default());
        let row = RunRow { run, records: 1, summary, traffic, damage: None };
        assert!(check_whole("night-2", &row, true).is_ok() && check_whole("a100000000000000", &row, true).is_ok());
        assert!(check_whole("night", &row, false).is_ok(), "the question has the whole name");
        let refused = check_whole("night", &row, true).unwrap_err().to_string();
        assert!(refused.starts_with("night is only the beginning of run night-2"), "{refused}");
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
