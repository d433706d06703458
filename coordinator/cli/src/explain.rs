//! `skiff explain`: why a device was told what it was told, and what came of it.

use crate::door::Door;
use anyhow::{Context as _, bail};
use clap::Args;
use skiff_coordinator::run::explain;
use skiff_coordinator::store::{SqliteStore, Store as _};
use skiff_protocol::DeviceId;
use std::io::Write as _;

/// What to explain.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skiff explain 00000000000000a1 --state fleet-state --device kitchen --round 3
  skiff explain last --state fleet-state --round 1

It reads the journal, so the coordinator need not run, and may.")]
pub(crate) struct Arguments {
    /// The run, as `skiff run list` names it, or `last`
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Of this device only
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceId>,
    /// Of this round only
    #[arg(long, value_name = "ROUND")]
    round: Option<u32>,
    /// As JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

/// Explains.
///
/// # Errors
/// No such run, device or round; a journal that cannot be read.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let store = SqliteStore::open_existing(&arguments.door.state()?)?;
    let runs: Vec<_> = store.runs()?.iter().map(|row| row.run).collect();
    let named = |text: &str| runs.iter().copied().find(|run| run.to_string() == text);
    let run = match arguments.run.as_str() {
        "last" => runs.last().copied().context("there is no run yet")?,
        text => named(text).with_context(|| format!("there is no run {text}; `skiff run list` names them"))?,
    };
    let told = explain::explain(&store.entries(run)?, arguments.device.as_ref(), arguments.round)?;
    if told.is_empty() {
        let round = arguments.round.map_or_else(String::new, |round| format!(" in round {round}"));
        match &arguments.device {
            Some(device) => bail!("run {run} has no order for {device}{round}"),
            None => bail!("run {run} has no order{round}"),
        }
    }
    let mut out = std::io::stdout().lock();
    for told in &told {
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(told)?)?;
        } else {
            write!(out, "{told}")?;
        }
    }
    Ok(())
}
