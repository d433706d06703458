//! Answers questions about a run's state, and changes nothing.

use super::{DISTANCES, Ledger, Ordered, Phase};
use crate::run::measures;
use crate::run::record::{NOTHING_MERGED, is_failure};
use skiff_api::measures::Measure;
use skiff_protocol::{DeviceId, Digest};
use std::collections::BTreeSet;

impl Ledger {
    /// Returns the time when the phase stops waiting, in milliseconds; `None` if it does not wait for devices.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let settings = &self.start.settings;
        match &self.phase {
            Phase::Gather(_) => Some(self.phase_ms + settings.gather_ms),
            Phase::Train(_) => Some(self.phase_ms + settings.train_ms),
            Phase::Evaluate(_) => Some(self.phase_ms + settings.evaluate_ms),
            Phase::Merge(_) | Phase::Done | Phase::Ended(_) => None,
        }
    }

    /// Returns the main measure of the run's task. In a run whose journal does not record the task, it is the accuracy until the
    /// first evaluation.
    #[must_use]
    pub fn measure(&self) -> Measure {
        let found = self.last_evaluation.as_ref().map(|evaluation| measures::of_metrics(&evaluation.metrics));
        self.start.task.as_ref().map_or(found.unwrap_or_default(), measures::of_task)
    }

    /// Returns true if nothing more will happen.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// Returns true if the run has ended without a merged update, although nobody stopped it.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(&self.phase, Phase::Ended(stopped) if is_failure(self.version, stopped.as_deref()))
    }

    /// Returns the reason why no update was merged: the last reason of each device, or the reason of the last round.
    #[must_use]
    pub fn why_nothing_was_merged(&self) -> String {
        const DEVICES: usize = 5;
        let mut reasons: Vec<String> =
            self.failures.iter().map(|(device, reason)| format!("{device}: {reason}")).take(DEVICES).collect();
        match self.failures.len().saturating_sub(DEVICES) {
            0 => {}
            more => reasons.push(format!("and {more} more devices")),
        }
        let last = self.closed.last().and_then(|closed| closed.skipped.clone());
        let rounds = self.closed.len();
        let why = if reasons.is_empty() { last.unwrap_or_default() } else { reasons.join("; ") };
        format!("{NOTHING_MERGED} in {rounds} round{}; {why}", if rounds == 1 { "" } else { "s" })
    }

    /// Returns true if the device was selected in the current phase, or still trains from an earlier round.
    #[must_use]
    pub fn has_order(&self, device: &DeviceId) -> bool {
        self.selected.contains(device) || self.carried.assignments.contains_key(device)
    }

    /// Returns the training order that a device has, or had in the round that is being merged.
    #[must_use]
    pub fn order_of(&self, device: &DeviceId) -> Option<&Ordered> {
        let in_round = match &self.phase {
            Phase::Train(training) | Phase::Merge(training) => training.assignments.get(device),
            Phase::Gather(_) | Phase::Evaluate(_) | Phase::Done | Phase::Ended(_) => None,
        };
        self.carried.assignments.get(device).or(in_round)
    }

    /// Returns the devices whose update or evaluation is missing in the current phase, by name. `has_reported` knows the evaluations,
    /// which no record holds before the last one.
    #[must_use]
    pub fn awaited(&self, has_reported: impl Fn(&DeviceId) -> bool) -> Vec<&DeviceId> {
        match &self.phase {
            Phase::Train(training) => training.pending().collect(),
            Phase::Evaluate(examples) => examples.keys().filter(|device| !has_reported(device)).collect(),
            Phase::Gather(_) | Phase::Merge(_) | Phase::Done | Phase::Ended(_) => Vec::new(),
        }
    }

    /// Returns the blobs that the run needs.
    #[must_use]
    pub fn needed(&self) -> BTreeSet<Digest> {
        let in_round = match &self.phase {
            Phase::Train(training) | Phase::Merge(training) => Some(training),
            Phase::Gather(_) | Phase::Evaluate(_) | Phase::Done | Phase::Ended(_) => None,
        };
        let trainings = || in_round.into_iter().chain([&self.carried]);
        let bases = trainings().flat_map(|training| training.assignments.values().map(|ordered| ordered.weights));
        let updates = trainings().flat_map(|training| training.updates.values().map(|stored| stored.update));
        [self.weights, self.start.weights].into_iter().chain(self.moments).chain(bases).chain(updates).collect()
    }

    /// Returns the distance above which an update is refused; `None` as long as too few distances are known.
    #[must_use]
    pub fn most_distance(&self) -> Option<f64> {
        let factor = f64::from(self.start.settings.merge.far_out);
        let mut known: Vec<f64> = self.distances.iter().copied().collect();
        known.sort_by(f64::total_cmp);
        let median = known.get(known.len() / 2).copied().filter(|&median| median > 0.0);
        median.filter(|_| factor > 0.0 && known.len() >= DISTANCES / 8).map(|median| factor * median)
    }
}
