//! The log line of each record.

use crate::run::{Merged, NOTHING_MERGED, Record};
use skiff_api::names::RunName;
use skiff_protocol::RunId;

/// Logs a record that is committed.
pub(super) fn record(run: RunId, record: &Record) {
    match record {
        Record::RunStarted(start) => {
            let name = start.name.as_ref().map(RunName::as_str);
            tracing::info!(%run, name, rounds = start.settings.rounds, "run started");
        }
        Record::Resumed => tracing::info!(%run, "run resumed"),
        Record::TrainingStarted { assignments, .. } => tracing::info!(%run, devices = assignments.len(), "training"),
        Record::UpdateStored { device, report, .. } => {
            tracing::info!(%run, %device, examples = report.examples, train_ms = report.train_ms, "update stored");
        }
        Record::DeviceOut { device, reason } => tracing::warn!(%run, %device, reason, "device is out of this round"),
        Record::Collected => tracing::debug!(%run, "merging"),
        Record::Merged(Merged { weights, .. }) => tracing::info!(%run, %weights, "round merged"),
        Record::Skipped { reason } => tracing::warn!(%run, reason, "round skipped"),
        Record::EvaluationStarted { examples, .. } => tracing::info!(%run, devices = examples.len(), "evaluating"),
        Record::Evaluated(evaluation) => {
            tracing::info!(%run, accuracy = evaluation.accuracy(), examples = evaluation.examples, "evaluated");
            for (device, reason) in &evaluation.left_out {
                tracing::warn!(%run, %device, reason, "device is left out of the evaluation");
            }
        }
        Record::RunEnded { stopped: Some(reason) } if reason.starts_with(NOTHING_MERGED) => {
            tracing::warn!(%run, reason, "run failed");
        }
        Record::RunEnded { stopped: Some(reason) } => tracing::warn!(%run, reason, "run stopped"),
        Record::RunEnded { stopped: None } => tracing::info!(%run, "run completed"),
        Record::PolicySet(policy) => tracing::info!(%run, groups = policy.groups.len(), "sharing policy changed"),
    }
}
