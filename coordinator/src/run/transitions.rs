//! Decides which record is due: implements the transitions of the diagram in the parent module's doc.

use super::ledger::{Ledger, Phase, Purpose};
use super::record::Record;
use super::round::Training;
use super::{Evaluation, Run};
use skiff_protocol::DeviceId;

impl Run {
    /// Returns the next record that is due.
    pub(super) fn decide(&mut self, now_ms: u64) -> Option<Record> {
        let is_due = self.ledger.deadline_ms().is_some_and(|deadline| now_ms >= deadline);
        match &self.ledger.phase {
            Phase::Gather(purpose) => self.decide_gathering(*purpose, now_ms, is_due),
            Phase::Train(training) => {
                let record = self.decide_training(training, now_ms, is_due)?;
                if let Record::DeviceOut { device, .. } = &record {
                    self.stop([device.clone()]);
                } else if record != Record::Collected || !self.ledger.start.settings.asynchronous {
                    self.stop(self.pending().into_keys());
                }
                Some(record)
            }
            Phase::Evaluate(examples) => {
                let waits = |device: &DeviceId| !self.reports.contains_key(device) && !self.is_given_up(device, now_ms);
                if !is_due && examples.keys().any(waits) {
                    return None;
                }
                let evaluating = examples.keys().filter(|device| !self.reports.contains_key(*device));
                self.stop(evaluating.cloned().collect::<Vec<_>>());
                Some(Record::Evaluated(Evaluation::sum(&self.reports)))
            }
            Phase::Done => {
                self.stop(self.pending().into_keys());
                let failure = (self.ledger.version == 0).then(|| self.ledger.why_nothing_was_merged());
                Some(Record::RunEnded { stopped: failure })
            }
            Phase::Merge(_) | Phase::Ended(_) => None,
        }
    }

    /// Returns the reason to end the run if too many rounds in a row were skipped.
    fn hopeless(&self) -> Option<String> {
        let most = self.ledger.start.settings.max_skipped as usize;
        let last: Vec<&String> =
            self.ledger.closed.iter().rev().map_while(|closed| closed.skipped.as_ref()).take(most).collect();
        (last.len() == most).then(|| match self.ledger.version {
            0 => self.ledger.why_nothing_was_merged(),
            _ => format!("{most} rounds in a row were skipped; the last one: {}", last[0]),
        })
    }

    fn decide_gathering(&mut self, purpose: Purpose, now_ms: u64, is_due: bool) -> Option<Record> {
        if purpose == Purpose::Train
            && let Some(reason) = self.hopeless()
        {
            self.stop(self.pending().into_keys());
            return Some(Record::RunEnded { stopped: Some(reason) });
        }
        let settings = &self.ledger.start.settings;
        let (devices, quorum) = match purpose {
            Purpose::Train => (settings.devices as usize, settings.quorum as usize),
            Purpose::Evaluate => (settings.devices as usize, 1),
        };
        // A device that still trains from the round before counts, although it gets no order.
        let carried = if purpose == Purpose::Train { self.ledger.carried.assignments.len() } else { 0 };
        // More than `devices` change nothing, and a fleet may have thousands.
        let fit = carried + self.fit_for(purpose).take(devices.saturating_sub(carried)).count();
        let is_missed = |device: &DeviceId| !self.attendance.is_online(device) && !self.is_given_up(device, now_ms);
        let all_back = !self.ledger.selected.is_empty() && !self.ledger.selected.iter().any(is_missed);
        if fit >= devices || (fit >= quorum && (all_back || is_due)) {
            self.reports.clear();
            let epoch = self.ledger.epoch + 2;
            return Some(match purpose {
                Purpose::Train => Record::TrainingStarted { epoch, assignments: self.assign() },
                Purpose::Evaluate => Record::EvaluationStarted { epoch, examples: self.share_examples() },
            });
        }
        match purpose {
            _ if !is_due => None,
            Purpose::Train => {
                let unfit: String = self.unfit().map(|reason| format!("; {reason}")).collect();
                let able = if unfit.is_empty() { "online" } else { "able to train" };
                let reason = format!("only {fit} devices were {able}, the quorum is {quorum}{unfit}");
                Some(Record::Skipped { reason })
            }
            Purpose::Evaluate => Some(Record::Evaluated(Evaluation::default())),
        }
    }

    fn decide_training(&self, training: &Training, now_ms: u64, is_due: bool) -> Option<Record> {
        let settings = &self.ledger.start.settings;
        let (updates, quorum) = (training.updates.len(), settings.quorum as usize);
        let has_quorum = updates >= quorum;
        if settings.asynchronous
            && let Some(device) = training.pending().find(|device| self.is_too_stale(device))
        {
            let most = settings.max_staleness;
            let reason = format!("its weights are more than {most} merges behind");
            return Some(Record::DeviceOut { device: device.clone(), reason });
        }
        let waits = training.pending().any(|device| !self.is_given_up(device, now_ms));
        if updates >= settings.devices as usize || (has_quorum && (is_due || !waits)) {
            return Some(Record::Collected);
        }
        let ordered = training.assignments.len();
        if is_due {
            return Some(Record::Skipped {
                reason: format!("{updates} of {ordered} updates at the deadline, the quorum is {quorum}"),
            });
        }
        let can_reach = updates + training.pending_count() >= quorum;
        (!can_reach).then(|| {
            let why: Vec<String> =
                training.out.iter().map(|(device, reason)| format!("{device}: {reason}")).take(3).collect();
            Record::Skipped {
                reason: format!(
                    "{updates} of {ordered} updates are still possible, the quorum is {quorum}; {}",
                    why.join("; ")
                ),
            }
        })
    }

    /// Returns true if an asynchronous device is too many merges behind.
    fn is_too_stale(&self, device: &DeviceId) -> bool {
        let Ledger { version, ref start, .. } = self.ledger;
        self.ordered(device).is_some_and(|ordered| version - ordered.version > start.settings.max_staleness)
    }

    /// Returns the time at which the run stops waiting for an offline device, in milliseconds.
    pub(super) fn grace_ends_ms(&self, device: &DeviceId) -> Option<u64> {
        self.attendance.gone_since_ms(device).map(|since_ms| since_ms + self.ledger.start.settings.grace_ms)
    }

    /// Returns true if the device has been offline for longer than the grace period. A device that has not been seen since a
    /// restart of the coordinator is still expected.
    fn is_given_up(&self, device: &DeviceId, now_ms: u64) -> bool {
        self.grace_ends_ms(device).is_some_and(|ends| now_ms >= ends)
    }
}
