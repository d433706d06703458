//! Builds all views for people and programs from the engine of the run, the fleet, the journal and the traffic.

use crate::fleet::Device;
use crate::run::measures;
use crate::run::{self, ClosedRound, Entry, Ledger, Record, Run, RunSettings, Totals};
use crate::store::summary::Stage;
use crate::store::{RunRow, Store, StoreError, Traffic};
use serde_json::{Map, Value};
use skiff_api::details::{Contribution, DeviceDetails, Properties, RunDetails};
use skiff_api::progress::{DeviceProgress, Phase, Presence, ROUNDS_SHOWN, RoundProgress, RunProgress, Waits};
use skiff_protocol::messages::{AgentState, Telemetry};
use skiff_protocol::{DeviceId, Timestamp, Version};
use std::collections::BTreeMap;

/// Traffic of a run by round.
pub type TrafficByRound = BTreeMap<u32, Traffic>;

/// Returns a known device, with its part in the current run.
#[must_use]
pub fn device(name: &DeviceId, known: &Device, ledger: Option<&Ledger>) -> DeviceProgress {
    let sample = known.telemetry.as_ref().map(|(_, sample)| sample);
    let present = sample.filter(|_| matches!(known.presence, Presence::Here | Presence::WrongPack));
    let work = present.and_then(|sample| sample.work.as_ref());
    let hottest = |sample: &Telemetry| sample.temperatures.iter().map(|(_, celsius)| *celsius).reduce(f32::max);
    let totals = ledger.and_then(|ledger| ledger.totals.get(name));
    let peak_rss_bytes = sample.map_or(0, |sample| sample.agent_peak_rss_bytes);
    DeviceProgress {
        device: name.clone(),
        presence: known.presence,
        state: present.map_or("unknown", |sample| state(sample.state)).to_owned(),
        step: work.map_or(0, |work| work.step),
        steps: work.map_or(0, |work| work.steps),
        step_ms: work.map_or(0.0, |work| finite(work.step_ms)),
        tokens_per_second: work.map_or(0.0, |work| finite(work.tokens_per_second)),
        active_layers: work.map_or(0, |work| work.active_layers),
        mean_active_layers: totals.and_then(Totals::mean_active_layers),
        mean_rate: ledger
            .and_then(|ledger| ledger.order_of(name))
            .map(|ordered| ordered.assignment.choice.rates.mean()),
        updates: totals.map_or(0, |totals| totals.updates),
        rss_bytes: present.map_or(0, |sample| sample.agent_rss_bytes),
        peak_rss_bytes: peak_rss_bytes.max(totals.map_or(0, |totals| totals.peak_rss_bytes)),
        agent_cpu_percent: present.map_or(0.0, |sample| finite(sample.agent_cpu_percent)),
        temperature: sample.and_then(hottest).filter(|celsius| celsius.is_finite()),
        telemetry_at_ms: known.telemetry.as_ref().map(|(at, _)| at.0),
        note: known.stall.clone().or_else(|| known.note.clone()),
    }
}

/// Returns everything that is known about a device: its state, and the properties that its last birth named.
#[must_use]
pub fn device_details(name: &DeviceId, known: &Device, version: Version, ledger: Option<&Ledger>) -> DeviceDetails {
    let properties = known.birth.as_ref().map(|birth| Properties {
        agent_version: birth.agent_version.clone(),
        pack: birth.pack.to_string(),
        train_examples: birth.train_examples,
        test_examples: birth.test_examples,
        arch: birth.machine.arch.clone(),
        os: birth.machine.os.clone(),
        cores: birth.machine.cores,
        memory_bytes: birth.machine.memory_bytes,
        class: birth.place.class.clone(),
        region: birth.place.region.clone(),
        labels: birth.place.labels.clone(),
        protocol: version.number().into(),
    });
    DeviceDetails { state: device(name, known, ledger), since_ms: known.since.0, properties }
}

/// Replaces NaN and infinity, which a device may report and JSON cannot hold, by zero.
fn finite(number: f32) -> f32 {
    if number.is_finite() { number } else { 0.0 }
}

fn state(state: AgentState) -> &'static str {
    match state {
        AgentState::Idle => "idle",
        AgentState::Fetching => "fetching",
        AgentState::Training => "training",
        AgentState::Evaluating => "evaluating",
        AgentState::Uploading => "uploading",
    }
}

/// Returns the current run without its closed rounds.
#[must_use]
pub fn run_line(run: &Run, total: Traffic, now: Timestamp) -> RunProgress {
    line(run.ledger(), &run.awaited(), total, now)
}

/// Returns a closed round.
#[must_use]
pub fn closed_round(closed: &ClosedRound, traffic: Traffic) -> RoundProgress {
    let ClosedRound { round, ref skipped, selected, updates, train_loss, mean_rate, .. } = *closed;
    let evaluated = closed.evaluated.as_ref();
    let left_out = evaluated.into_iter().flat_map(|evaluated| &evaluated.left_out);
    RoundProgress {
        round,
        skipped: skipped.clone(),
        selected,
        updates,
        refused: closed.refused,
        examples: closed.examples,
        started_ms: closed.started_ms,
        ended_ms: closed.ended_ms,
        rates: closed.rates,
        accuracy: evaluated.and_then(|evaluated| evaluated.accuracy),
        metrics: evaluated.and_then(|evaluated| evaluated.figures),
        left_out: left_out.map(|(device, why)| (device.to_string(), why.clone())).collect(),
        loss: evaluated.and_then(|evaluated| evaluated.loss),
        evaluated_examples: evaluated.map_or(0, |evaluated| evaluated.examples),
        train_loss,
        mean_rate,
        mean_active_layers: closed.mean_active_layers,
        step_ms: closed.step_ms,
        train_ms: closed.train_ms,
        evaluate_ms: evaluated.map_or(0, |evaluated| evaluated.took_ms),
        longest_training_ms: closed.longest_training_ms,
        bytes_up: traffic.up,
        bytes_down: traffic.down,
    }
}

/// Returns the current run, with its last [`ROUNDS_SHOWN`] closed rounds.
#[must_use]
pub fn current_run(run: &Run, traffic: &TrafficByRound, now: Timestamp) -> RunProgress {
    let closed = last_rounds(run.ledger(), traffic, ROUNDS_SHOWN);
    RunProgress { closed, ..run_line(run, total(traffic), now) }
}

/// Returns a run for a list of runs, from its summary and without its closed rounds.
#[must_use]
pub fn listed_run(row: &RunRow, now: Timestamp) -> RunProgress {
    let summary = &row.summary;
    let until_ms = if summary.is_ended() { summary.last_ms } else { now.0 };
    RunProgress {
        run: row.run.to_string(),
        name: summary.name.clone(),
        phase: match summary.stage {
            Stage::Gathering => Phase::Gathering,
            Stage::Training => Phase::Training,
            Stage::Merging => Phase::Merging,
            Stage::Evaluating => Phase::Evaluating,
            Stage::Completed | Stage::Stopped if summary.has_failed() && row.damage.is_none() => Phase::Failed,
            Stage::Completed => Phase::Completed,
            Stage::Stopped => Phase::Stopped,
        },
        round: summary.round,
        rounds: summary.rounds,
        ordered: 0,
        answered: 0,
        accuracy_before: summary.accuracy_before,
        accuracy: summary.accuracy,
        accuracy_after: summary.accuracy_after,
        measure: summary.measure,
        metrics_before: summary.metrics_before,
        metrics: summary.metrics,
        metrics_after: summary.metrics_after,
        elapsed_ms: until_ms.saturating_sub(summary.started_ms),
        bytes_up: row.traffic.up,
        bytes_down: row.traffic.down,
        closed: Vec::new(),
        reason: summary.reason.clone(),
        waits: None,
    }
}

/// Returns everything that the journal knows about a run. If the run's records are damaged, its summary is used instead.
///
/// # Errors
/// The journal cannot be read.
pub fn details(store: &dyn Store, row: &RunRow, now: Timestamp) -> Result<RunDetails, StoreError> {
    let summary = &row.summary;
    let mut details = RunDetails {
        run: listed_run(row, now),
        started_ms: summary.started_ms,
        best: summary.best.clone(),
        last: summary.last.clone(),
        damage: row.damage.clone(),
        pack: None,
        settings: None,
        devices: Vec::new(),
        parts: None,
    };
    let entries = match store.entries(row.run) {
        Err(error) if row.damage.is_some() && error.is_of_one_run() => return Ok(details),
        entries => entries?,
    };
    let replayed = Ledger::replay(&entries);
    let ledger = match replayed {
        Err(_) if row.damage.is_some() => return Ok(details),
        ledger => ledger.map_err(|source| StoreError::OutOfPlace { run: row.run, source })?,
    };
    let traffic = store.traffic(row.run)?;
    let closed = last_rounds(&ledger, &traffic, usize::MAX);
    details.run = RunProgress { closed, ..line(&ledger, &ledger.awaited(|_| false), total(&traffic), now) };
    details.pack = Some(ledger.start.pack.to_string());
    details.settings = settings_table(&ledger.start.settings);
    details.devices = contributions(&ledger, &entries);
    details.parts = measures::parts_of_run(&entries);
    Ok(details)
}

fn total(traffic: &TrafficByRound) -> Traffic {
    let mut total = Traffic::default();
    traffic.values().for_each(|traffic| total += *traffic);
    total
}

/// Returns the last `rounds` closed rounds, oldest first.
fn last_rounds(ledger: &Ledger, traffic: &TrafficByRound, rounds: usize) -> Vec<RoundProgress> {
    let closed = &ledger.closed[ledger.closed.len().saturating_sub(rounds)..];
    let traffic_in = |round: u32| traffic.get(&round).copied().unwrap_or_default();
    closed.iter().map(|closed| closed_round(closed, traffic_in(closed.round))).collect()
}

/// Returns a run without its closed rounds.
fn line(ledger: &Ledger, awaited: &[&DeviceId], total: Traffic, now: Timestamp) -> RunProgress {
    let (phase, ordered, answered) = match &ledger.phase {
        run::Phase::Gather(_) | run::Phase::Done => (Phase::Gathering, 0, 0),
        run::Phase::Train(training) => (Phase::Training, training.assignments.len(), training.updates.len()),
        run::Phase::Merge(training) => (Phase::Merging, training.assignments.len(), training.updates.len()),
        run::Phase::Evaluate(examples) => {
            (Phase::Evaluating, examples.len(), examples.len() - awaited.len().min(examples.len()))
        }
        run::Phase::Ended(_) if ledger.has_failed() => (Phase::Failed, 0, 0),
        run::Phase::Ended(None) => (Phase::Completed, 0, 0),
        run::Phase::Ended(Some(_)) => (Phase::Stopped, 0, 0),
    };
    let until_ms = if ledger.is_ended() { ledger.last_ms } else { now.0.max(ledger.last_ms) };
    RunProgress {
        run: ledger.start.run.to_string(),
        name: ledger.start.name.as_ref().map(ToString::to_string),
        phase,
        round: ledger.round,
        rounds: ledger.start.settings.rounds,
        ordered: ordered as u32,
        answered: answered as u32,
        accuracy_before: ledger.accuracy_before,
        accuracy: ledger.accuracy,
        accuracy_after: ledger.accuracy_after,
        measure: ledger.measure(),
        metrics_before: ledger.figures_before,
        metrics: ledger.figures,
        metrics_after: ledger.figures_after,
        elapsed_ms: until_ms - ledger.started_ms,
        bytes_up: total.up,
        bytes_down: total.down,
        closed: Vec::new(),
        reason: match &ledger.phase {
            // A run of an earlier version that failed has no reason in its journal.
            run::Phase::Ended(None) if ledger.has_failed() => Some(ledger.why_nothing_was_merged()),
            run::Phase::Ended(reason) => reason.clone(),
            run::Phase::Gather(_)
            | run::Phase::Train(_)
            | run::Phase::Merge(_)
            | run::Phase::Evaluate(_)
            | run::Phase::Done => None,
        },
        waits: waits(ledger, awaited),
    }
}

/// Returns what the run waits for. `awaited` are the devices whose answer is missing.
fn waits(ledger: &Ledger, awaited: &[&DeviceId]) -> Option<Waits> {
    const NAMED: usize = 3;
    let RunSettings { devices, quorum, .. } = *ledger.start.settings;
    let mut names: Vec<String> = awaited.iter().take(NAMED).map(ToString::to_string).collect();
    match awaited.len().saturating_sub(NAMED) {
        0 => {}
        more => names.push(format!("{more} more")),
    }
    let names = names.join(", ");
    let (what, then) = match &ledger.phase {
        run::Phase::Gather(run::Purpose::Train) => (
            format!("{devices} devices that can train"),
            format!("the round begins with those that are there, or is skipped if they are fewer than {quorum}"),
        ),
        run::Phase::Gather(run::Purpose::Evaluate) => (
            format!("{devices} devices with test examples"),
            "those that are there evaluate; without any the run continues without figures".to_owned(),
        ),
        run::Phase::Train(_) => (
            format!("updates of {names}"),
            format!("the updates that arrived are merged, or the round is skipped if they are fewer than {quorum}"),
        ),
        run::Phase::Evaluate(_) => {
            (format!("figures of {names}"), "the figures count the devices that reported".to_owned())
        }
        run::Phase::Merge(_) => ("the merge of the updates".to_owned(), "the round is skipped if it fails".to_owned()),
        run::Phase::Done | run::Phase::Ended(_) => return None,
    };
    Some(Waits { what, until_ms: ledger.deadline_ms(), then })
}

/// Returns the work of each device in a run, ordered by name.
fn contributions(ledger: &Ledger, entries: &[Entry]) -> Vec<Contribution> {
    let mut all: BTreeMap<_, Contribution> = BTreeMap::new();
    for (device, totals) in &ledger.totals {
        let contribution = all.entry(device.clone()).or_insert_with(|| Contribution::of(device.clone()));
        contribution.updates = totals.updates;
        contribution.steps = totals.steps;
        contribution.mean_active_layers = totals.mean_active_layers();
        contribution.peak_rss_bytes = totals.peak_rss_bytes;
    }
    for entry in entries {
        if let Record::DeviceOut { device, reason } = &entry.record {
            let contribution = all.entry(device.clone()).or_insert_with(|| Contribution::of(device.clone()));
            contribution.failures += 1;
            contribution.last_failure = Some(reason.clone());
        }
    }
    all.into_values().collect()
}

/// Returns settings in the form of the table that an operator writes.
#[must_use]
pub fn settings_table(settings: &RunSettings) -> Option<Map<String, Value>> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(table)) => Some(table),
        Ok(_) | Err(_) => None,
    }
}
