//! `skiff explain`: explains why each device got its order, and how the order ended.

use crate::door::Door;
use anyhow::{Context as _, bail};
use clap::Args;
use skiff_coordinator::run::explain;
use skiff_coordinator::store::{SqliteStore, Store as _};
use skiff_protocol::DeviceId;
use std::io::Write as _;

/// Arguments of `skiff explain`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skiff explain 00000000000000a1 --state fleet-state --device kitchen --round 3
  skiff explain last --state fleet-state --round 1

It reads the journal, so it works whether or not the coordinator is running.")]
pub(crate) struct Arguments {
    /// Name of the run as in `skiff run list`, or `last`
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Explain only the orders of this device
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceId>,
    /// Explain only the orders of this round
    #[arg(long, value_name = "ROUND")]
    round: Option<u32>,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

/// Prints the explanation of each order that the arguments select.
///
/// # Errors
/// There is no such run, device or round, or the journal cannot be read.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let store = SqliteStore::open_existing(&arguments.door.state()?)?;
    let runs: Vec<_> = store.runs()?.iter().map(|row| row.run).collect();
    let named = |text: &str| runs.iter().copied().find(|run| run.to_string() == text);
    let run = match arguments.run.as_str() {
        "last" => runs.last().copied().context("no run has been started yet")?,
        text => named(text).with_context(|| format!("there is no run {text}; `skiff run list` lists all runs"))?,
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
