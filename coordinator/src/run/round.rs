//! The facts of one round: who has which order, what arrived, and what is left of it once it is closed.

use super::configurator::Pace;
use super::record::Assignment;
use skiff_api::measures::Figures;
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest};
use std::collections::{BTreeMap, BTreeSet};

/// State of a round of training.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Training {
    /// Start time in milliseconds.
    pub started_ms: u64,
    /// Order of each device.
    pub assignments: BTreeMap<DeviceId, Ordered>,
    /// Updates that were delivered.
    pub updates: BTreeMap<DeviceId, StoredUpdate>,
    /// Devices that will not deliver, with the reason.
    pub out: BTreeMap<DeviceId, String>,
}

/// Order of a device.
#[derive(Clone, PartialEq, Debug)]
pub struct Ordered {
    /// Epoch of the order.
    pub epoch: u64,
    /// Round in which the order was given.
    pub round: u32,
    /// Digest of the weights to start from.
    pub weights: Digest,
    /// Number of merges that led to those weights.
    pub version: u32,
    /// Time of the order, in milliseconds.
    pub ordered_ms: u64,
    /// Rates and shared layers.
    pub assignment: Assignment,
}

/// A stored update.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredUpdate {
    /// Digest of the update's blob.
    pub update: Digest,
    /// Report of the device.
    pub report: TrainReport,
    /// Time at which the update was stored, in milliseconds.
    pub stored_ms: u64,
}

/// Work of a device in a run.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Totals {
    /// Number of stored updates.
    pub updates: u32,
    /// Number of steps.
    pub steps: u64,
    /// Number of active layers, summed over the steps.
    pub active_layers: f64,
    /// Largest resident memory reported with an update, in bytes.
    pub peak_rss_bytes: u64,
    /// Pace of the device in its last update.
    pub pace: Option<Pace>,
}

impl Totals {
    /// Returns the mean number of active layers over all steps.
    #[must_use]
    pub fn mean_active_layers(&self) -> Option<f32> {
        (self.steps > 0).then(|| (self.active_layers / self.steps as f64) as f32)
    }
}

/// Facts about a closed round.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ClosedRound {
    /// Number of the round, from 1.
    pub round: u32,
    /// Reason for skipping the round; `None` if it was merged.
    pub skipped: Option<String>,
    /// Number of devices with a training order.
    pub selected: u32,
    /// Number of updates.
    pub updates: u32,
    /// Number of devices that refused their order, failed, or were put out.
    pub refused: u32,
    /// Number of distinct examples behind the updates.
    pub examples: u64,
    /// Time of the first order in milliseconds; `None` if no device got one.
    pub started_ms: Option<u64>,
    /// Time of the merge or of the skip, and of the end of the evaluation if there was one, in milliseconds.
    pub ended_ms: u64,
    /// Lowest and highest ordered dropout rate of a layer; `None` if no device got an order.
    pub rates: Option<(f32, f32)>,
    /// Mean of the devices' mean training losses.
    pub train_loss: Option<f64>,
    /// Mean of the ordered dropout rates, over devices and layers.
    pub mean_rate: f32,
    /// Mean number of active layers over the updates.
    pub mean_active_layers: f32,
    /// Median step time in milliseconds, mean over the updates.
    pub step_ms: f32,
    /// Time from the first order to the end of the merge, in milliseconds.
    pub train_ms: u64,
    /// Longest training time that a device reported, in milliseconds.
    pub longest_training_ms: u64,
    /// Evaluation after the round, if there was one.
    pub evaluated: Option<EvaluatedRound>,
}

/// Facts about the evaluation after a round.
#[derive(Clone, PartialEq, Debug)]
pub struct EvaluatedRound {
    /// Accuracy; `None` if no device reported.
    pub accuracy: Option<f64>,
    /// Figures; `None` if no device reported.
    pub figures: Option<Figures>,
    /// Mean loss per example in nats.
    pub loss: Option<f64>,
    /// Number of evaluated examples.
    pub examples: u64,
    /// Devices that were left out, with the reason.
    pub left_out: BTreeMap<DeviceId, String>,
    /// Time from the order to the last report, in milliseconds.
    pub took_ms: u64,
}

impl Training {
    /// Returns true if the device has an order and its update is still expected.
    #[must_use]
    pub fn is_pending(&self, device: &DeviceId) -> bool {
        self.assignments.contains_key(device) && !self.updates.contains_key(device) && !self.out.contains_key(device)
    }

    /// Returns the number of devices whose update is still expected.
    #[must_use]
    pub fn pending_count(&self) -> usize {
        // A device is in at most one of them, and had an order.
        self.assignments.len().saturating_sub(self.updates.len() + self.out.len())
    }

    /// Lists the devices whose update is still expected.
    pub fn pending(&self) -> impl Iterator<Item = &DeviceId> {
        self.assignments.keys().filter(|device| self.is_pending(device))
    }

    /// Removes the orders whose update is still expected, and returns them.
    pub(super) fn part_pending(&mut self) -> Self {
        let pending: BTreeSet<DeviceId> = self.pending().cloned().collect();
        let (pending, closed) =
            std::mem::take(&mut self.assignments).into_iter().partition(|(device, _)| pending.contains(device));
        self.assignments = closed;
        Self { started_ms: self.started_ms, assignments: pending, ..Self::default() }
    }

    pub(super) fn summary(&self, closed_ms: u64) -> ClosedRound {
        let reports = || self.updates.values().map(|stored| &stored.report);
        let all_rates = self.assignments.values().flat_map(|ordered| ordered.assignment.choice.rates.iter());
        let rates: Vec<f64> = all_rates.map(|&rate| rate.into()).collect();
        ClosedRound {
            selected: self.assignments.len() as u32,
            updates: self.updates.len() as u32,
            refused: self.out.len() as u32,
            examples: reports().map(|report| report.examples).fold(0, u64::saturating_add),
            started_ms: Some(self.started_ms),
            rates: range(&rates),
            train_loss: mean(reports().map(|report| report.mean_loss.into())),
            mean_rate: mean(rates.into_iter()).unwrap_or(0.0) as f32,
            mean_active_layers: mean(reports().map(|report| report.mean_active_layers.into())).unwrap_or(0.0) as f32,
            step_ms: mean(reports().map(|report| report.step_ms.into())).unwrap_or(0.0) as f32,
            train_ms: closed_ms - self.started_ms,
            longest_training_ms: reports().map(|report| report.train_ms).max().unwrap_or(0),
            ..ClosedRound::default()
        }
    }
}

/// Returns the lowest and the highest rate.
fn range(rates: &[f64]) -> Option<(f32, f32)> {
    let bounds = rates.iter().copied().reduce(f64::min).zip(rates.iter().copied().reduce(f64::max));
    bounds.map(|(lowest, highest)| (lowest as f32, highest as f32))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}
