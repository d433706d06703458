//! `skiff explain`: explains why each device got its order, and how the order ended.

use crate::door::Door;
use anyhow::bail;
use clap::Args;
use skiff_coordinator::results::find_run;
use skiff_coordinator::run::explain;
use skiff_coordinator::store::{SqliteStore, Store as _};
use skiff_protocol::DeviceId;
use skiff_screen::output::{stdout, width};
use skiff_screen::text::fold;
use std::io::Write as _;

/// Arguments of `skiff explain`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skiff explain 00000000000000a1 --state fleet-state --device kitchen --round 3
  skiff explain last --state fleet-state --round 1

It reads the journal, so it works whether or not the coordinator is running.")]
pub(crate) struct Arguments {
    /// Name or id of the run, the beginning of either, or `last`
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
    let run = find_run(&store, &arguments.run)?.run;
    let told = explain::explain(&store.entries(run)?, arguments.device.as_ref(), arguments.round)?;
    if told.is_empty() {
        let round = arguments.round.map_or_else(String::new, |round| format!(" in round {round}"));
        match &arguments.device {
            Some(device) => bail!("run {run} has no order for {device}{round}"),
            None => bail!("run {run} has no order{round}"),
        }
    }
    let mut out = stdout();
    for told in &told {
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(told)?)?;
        } else {
            write!(out, "{}", fold(&told.to_string(), 6, width()))?;
        }
    }
    Ok(())
}
