//! Makes all views for people and programs, from the engine of the run, the fleet, the journal and the traffic.

use crate::fleet::Fleet;
use crate::measures;
use crate::run::{self, Entry, Ledger, Record, Run, RunSettings};
use crate::store::summary::Stage;
use crate::store::{RunRow, Store, StoreError, Traffic};
use serde_json::{Map, Value};
use skiff_api::details::{Contribution, RunDetails};
use skiff_api::progress::{DeviceProgress, Phase, ROUNDS_SHOWN, RoundProgress, RunProgress};
use skiff_protocol::Timestamp;
use std::collections::BTreeMap;

/// Traffic of a run by round.
pub type TrafficByRound = BTreeMap<u32, Traffic>;

/// Returns all known devices, with their part in the current run.
#[must_use]
pub fn devices(fleet: &Fleet, ledger: Option<&Ledger>, now: Timestamp) -> Vec<DeviceProgress> {
    let mut devices = fleet.progress(now);
    let Some(ledger) = ledger else { return devices };
    for device in &mut devices {
        device.mean_rate = ledger.order_of(&device.device).map(|ordered| ordered.assignment.choice.rates.mean());
        if let Some(totals) = ledger.totals.get(&device.device) {
            device.updates = totals.updates;
            device.mean_active_layers = totals.mean_active_layers();
            device.peak_rss_bytes = device.peak_rss_bytes.max(totals.peak_rss_bytes);
        }
    }
    devices
}

/// Returns the current run, with its last [`ROUNDS_SHOWN`] closed rounds.
#[must_use]
pub fn current_run(run: &Run, traffic: &TrafficByRound, now: Timestamp) -> RunProgress {
    run_with_rounds(run.ledger(), run.evaluation_reports(), traffic, now, ROUNDS_SHOWN)
}

/// Returns a run as it is listed, from its summary and without its closed rounds.
#[must_use]
pub fn listed_run(row: &RunRow, now: Timestamp) -> RunProgress {
    let summary = &row.summary;
    let until_ms = if summary.is_ended() { summary.last_ms } else { now.0 };
    RunProgress {
        run: row.run.to_string(),
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
    details.run = run_with_rounds(&ledger, 0, &store.traffic(row.run)?, now, usize::MAX);
    details.pack = Some(ledger.start.pack.to_string());
    details.settings = settings_table(&ledger.start.settings);
    details.devices = contributions(&ledger, &entries);
    details.parts = measures::parts_of_run(&entries);
    Ok(details)
}

fn run_with_rounds(
    ledger: &Ledger,
    evaluation_reports: usize,
    traffic: &TrafficByRound,
    now: Timestamp,
    rounds: usize,
) -> RunProgress {
    let (phase, ordered, answered) = match &ledger.phase {
        run::Phase::Gather(_) | run::Phase::Done => (Phase::Gathering, 0, 0),
        run::Phase::Train(training) => (Phase::Training, training.assignments.len(), training.updates.len()),
        run::Phase::Merge(training) => (Phase::Merging, training.assignments.len(), training.updates.len()),
        run::Phase::Evaluate(examples) => (Phase::Evaluating, examples.len(), evaluation_reports),
        run::Phase::Ended(_) if ledger.has_failed() => (Phase::Failed, 0, 0),
        run::Phase::Ended(None) => (Phase::Completed, 0, 0),
        run::Phase::Ended(Some(_)) => (Phase::Stopped, 0, 0),
    };
    let until_ms = if ledger.is_ended() { ledger.last_ms } else { now.0.max(ledger.last_ms) };
    let closed = &ledger.closed[ledger.closed.len().saturating_sub(rounds)..];
    RunProgress {
        run: ledger.start.run.to_string(),
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
        bytes_up: traffic.values().map(|traffic| traffic.up).sum(),
        bytes_down: traffic.values().map(|traffic| traffic.down).sum(),
        closed: closed.iter().map(|closed| with_traffic(closed, traffic)).collect(),
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
    }
}

fn with_traffic(closed: &RoundProgress, traffic: &TrafficByRound) -> RoundProgress {
    let Traffic { up, down } = traffic.get(&closed.round).copied().unwrap_or_default();
    RoundProgress { bytes_up: up, bytes_down: down, ..closed.clone() }
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

/// Returns settings as the table that an operator writes.
fn settings_table(settings: &RunSettings) -> Option<Map<String, Value>> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(table)) => Some(table),
        Ok(_) | Err(_) => None,
    }
}
