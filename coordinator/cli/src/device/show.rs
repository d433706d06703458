//! `skiff device show`: a device's properties, its work in the last runs, and its removals.

use crate::door::Door;
use crate::run::now;
use crate::watch::presence;
use anyhow::bail;
use clap::Args;
use serde_json::json;
use skiff_api::details::{Contribution, DeviceDetails, Properties};
use skiff_api::removal::Removal;
use skiff_api::request::Request;
use skiff_coordinator::doors::client::{ControlError, ask_once};
use skiff_coordinator::store::{SqliteStore, Store as _};
use skiff_coordinator::views;
use skiff_protocol::{DeviceId, Timestamp};
use skiff_screen::dates::{age, date};
use skiff_screen::output::{stdout, width};
use skiff_screen::table::{Column, Table};
use skiff_screen::text::{Facts, fold};
use skiff_screen::units::{bytes, measured_bytes, millis};
use std::io::Write as _;
use std::path::Path;

/// Maximum number of runs that are looked through, from the last one on.
const RUNS: usize = 50;
/// Maximum number of runs that are shown.
const SHOWN: usize = 10;

/// Arguments of `skiff device show`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Name of the device
    #[arg(value_name = "DEVICE")]
    device: DeviceId,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

/// A device in a run.
struct Work {
    /// Name of the run, or its id.
    run: String,
    started_ms: u64,
    contribution: Contribution,
}

/// Prints what the coordinator and its journal know about a device.
///
/// # Errors
/// Neither the fleet nor the journal knows the device, or the journal cannot be read.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { device, json, door } = arguments;
    let state = door.state()?;
    let live = ask_once::<DeviceDetails>(&state, &Request::ShowDevice(device.clone())).await;
    let (work, removals) = history(&state, &device)?;
    let (live, absence) = match live {
        Ok(live) => (Some(live), String::new()),
        Err(ControlError::Refused { reason }) if work.is_empty() && removals.is_empty() => bail!(reason),
        Err(ControlError::Refused { .. }) => (None, "is not in the fleet; this is its history".to_owned()),
        Err(ControlError::Unreachable { .. }) => (None, "no coordinator is running; this is its history".to_owned()),
        Err(other) => return Err(other.into()),
    };
    if json {
        let work: Vec<_> = work
            .iter()
            .map(|work| json!({ "run": work.run, "started_ms": work.started_ms, "work": work.contribution }))
            .collect();
        let shown = json!({ "device": device, "state": live, "runs": work, "removals": removals });
        return Ok(writeln!(stdout(), "{shown}")?);
    }
    let mut text = facts(&device, live.as_ref(), &absence, now()).text(width());
    if !work.is_empty() {
        text += &format!("\n{}", table(&work, width()));
    }
    for removal in &removals {
        text += &(fold(&sentence(removal), 2, width()) + "\n");
    }
    Ok(write!(stdout(), "{text}")?)
}

/// Returns the device's work in the last runs, newest first, and its removals.
fn history(state: &Path, device: &DeviceId) -> anyhow::Result<(Vec<Work>, Vec<Removal>)> {
    let store = SqliteStore::open_existing(state)?;
    let removals = store.removals()?.into_iter().filter(|removal| removal.device == *device).collect();
    let mut work = Vec::new();
    for row in store.runs()?.iter().rev().take(RUNS) {
        let details = views::details(&store, row, now())?;
        let run = details.run.name.unwrap_or(details.run.run);
        if let Some(contribution) = details.devices.into_iter().find(|part| part.device == *device) {
            work.push(Work { run, started_ms: details.started_ms, contribution });
        }
        if work.len() == SHOWN {
            break;
        }
    }
    Ok((work, removals))
}

fn facts(device: &DeviceId, live: Option<&DeviceDetails>, absence: &str, now: Timestamp) -> Facts {
    let mut facts = Facts::new();
    facts.add("device", device.to_string());
    let Some(DeviceDetails { state, since_ms, properties }) = live else {
        facts.add("presence", absence);
        return facts;
    };
    let since = format!("{} since {} ({})", presence(state.presence), date(*since_ms), age(*since_ms, now.0));
    facts.add("presence", since);
    facts.add("state", state.state.clone());
    if let Some(note) = &state.note {
        facts.add("note", note.clone());
    }
    if let Some(at_ms) = state.telemetry_at_ms {
        let memory = format!("{}, {} at most", measured_bytes(state.rss_bytes), measured_bytes(state.peak_rss_bytes));
        facts.add("last report", format!("{} ago, agent's memory {memory}", millis(now.0.saturating_sub(at_ms))));
    }
    if let Some(properties) = properties {
        add(&mut facts, properties);
    }
    facts
}

fn add(facts: &mut Facts, properties: &Properties) {
    let Properties { agent_version, pack, arch, os, cores, protocol, .. } = properties;
    facts.add("agent", format!("version {agent_version}, protocol {protocol}, pack {}", &pack[..12.min(pack.len())]));
    let memory = bytes(properties.memory_bytes);
    facts.add("machine", format!("{arch}, {cores} cores, {memory} of memory, {os}"));
    facts.add("examples", format!("{} to train, {} to test", properties.train_examples, properties.test_examples));
    for (name, value) in [("class", &properties.class), ("region", &properties.region)] {
        if !value.is_empty() {
            facts.add(name, value.clone());
        }
    }
    if !properties.labels.is_empty() {
        facts.add("labels", properties.labels.join(", "));
    }
}

fn table(work: &[Work], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::text("run"),
        Column::text("started").rank(2),
        Column::number("updates"),
        Column::number("steps").rank(1),
        Column::number("failures"),
        Column::text("last failure").rank(3),
    ]);
    for Work { run, started_ms, contribution } in work {
        table.add([
            run.clone(),
            date(*started_ms),
            contribution.updates.to_string(),
            contribution.steps.to_string(),
            contribution.failures.to_string(),
            contribution.last_failure.clone().unwrap_or_default(),
        ]);
    }
    table.text(width)
}

fn sentence(removal: &Removal) -> String {
    let Removal { at_ms, by, reason, was_online, cleared_ms, returned_ms, .. } = removal;
    let online = if *was_online { " while it was online" } else { "" };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let mut text = format!("removed on {} by {by}{online}{reason}", date(*at_ms));
    if cleared_ms.is_none() {
        text += "; the broker still has its last message";
    }
    if let Some(returned_ms) = returned_ms {
        text += &format!("; came back as a new member on {}", date(*returned_ms));
    }
    text
}
