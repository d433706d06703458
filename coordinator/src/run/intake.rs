//! Handles events: each one updates the knowledge of the run before anything is decided.

use super::ledger::{Ledger, Phase};
use super::record::{Entry, Record, Start};
use super::round::{StoredUpdate, Training};
use super::{Action, Event, MergeInput, MergeJob, Run, Verdict, evaluation, sharing};
use skiff_protocol::messages::{Answer, Outcome, TrainReport};
use skiff_protocol::{DeviceId, RunId};

/// Maximum number of characters of a reason that a device gives. Longer reasons are cut.
pub const MAX_REASON: usize = 200;

/// Reason why a device that does not answer is out of a round or an evaluation.
const SILENT: &str = "it has not answered its order for 30 s: does it have this coordinator's key, and its account the rights at the \
                      broker? Run `skiff-agent doctor` on it";
/// Reason why a removed device does not deliver.
const REMOVED: &str = "the operator removed the device from the fleet";

impl Run {
    /// Answers an update that a device offers.
    #[must_use]
    pub fn judge_offer(&self, device: &DeviceId, run: RunId, round: u32, epoch: u64, report: &TrainReport) -> Verdict {
        if run != self.ledger.start.run {
            return Verdict::Refused(format!("run {run} is over"));
        }
        let ledger = &self.ledger;
        let in_round = match &ledger.phase {
            Phase::Train(training) | Phase::Merge(training) => Some(training),
            Phase::Gather(_) | Phase::Evaluate(_) | Phase::Done | Phase::Ended(_) => None,
        };
        let has_order =
            |training: &&Training| training.assignments.get(device).is_some_and(|ordered| ordered.epoch == epoch);
        let Some(training) = [Some(&ledger.carried), in_round].into_iter().flatten().find(has_order) else {
            return Verdict::Refused(match in_round {
                None => format!("round {round} is closed"),
                Some(_) if epoch != ledger.epoch => {
                    format!("round {round} is closed, the current one is {}", ledger.round)
                }
                Some(_) => format!("not selected for round {round}"),
            });
        };
        if training.updates.contains_key(device) {
            return Verdict::Stored;
        }
        if let Some(reason) = training.out.get(device) {
            return Verdict::Refused(reason.clone());
        }
        let is_carried = ledger.carried.assignments.contains_key(device);
        let Some(ordered) =
            training.assignments.get(device).filter(|_| is_carried || matches!(self.ledger.phase, Phase::Train(_)))
        else {
            return Verdict::Refused(format!("round {round} is closed"));
        };
        let settings = &self.ledger.start.settings;
        // The steps cannot have used more distinct examples than this, however many the device has.
        let most_examples = u64::from(settings.steps) * u64::from(settings.batch);
        sharing::check(report, &ordered.assignment.share.plan, self.ledger.start.layers, most_examples)
            .map_or_else(Verdict::Refused, |()| Verdict::Wanted)
    }

    pub(super) fn take(&mut self, event: Event, now_ms: u64, actions: &mut Vec<Action>) {
        match event {
            Event::DeviceHere(device, here) => {
                if self.attendance.arrive(device.clone(), here) {
                    self.deliveries.on_restart(&device);
                }
            }
            Event::DeviceGone(device) => {
                let is_ordered = self.ledger.has_order(&device);
                self.attendance.leave(device, now_ms, is_ordered);
            }
            Event::DeviceRemoved(device) => {
                let is_ordered = self.ledger.has_order(&device);
                let over_ms = now_ms.saturating_sub(self.ledger.start.settings.grace_ms);
                self.attendance.remove(device.clone(), over_ms, is_ordered);
                let epoch = self.epoch_of(&device);
                self.put_out(device, epoch, REMOVED, now_ms, actions);
            }
            Event::Answered(device, answer) => self.take_answer(device, answer, now_ms, actions),
            Event::UpdateStored { device, epoch, update, report, distance } => {
                self.attendance.on_answer(&device);
                let start = &self.ledger.start;
                match self.judge_offer(&device, start.run, self.ledger.round, epoch, &report) {
                    Verdict::Wanted if self.ledger.most_distance().is_some_and(|most| distance > most) => {
                        let most = self.ledger.most_distance().unwrap_or_default();
                        let reason = format!(
                            "the update is {distance:.3e} away from the weights it started from, at most {most:.3e} is accepted"
                        );
                        self.put_out(device.clone(), epoch, &reason, now_ms, actions);
                        actions.push(Action::RefuseUpdate(device, update, reason));
                    }
                    Verdict::Wanted => {
                        let record = Record::UpdateStored { device: device.clone(), update, report, distance };
                        self.journal(record, now_ms, actions);
                        actions.push(Action::ConfirmUpdate(device, update));
                    }
                    Verdict::Stored => actions.push(Action::ConfirmUpdate(device, update)),
                    Verdict::Refused(reason) => actions.push(Action::RefuseUpdate(device, update, reason)),
                }
            }
            Event::UpdateUnfit { device, epoch, reason } => self.put_out(device, epoch, &reason, now_ms, actions),
            Event::MergeEnded { run, epoch, merged } => {
                let ours = run == self.ledger.start.run && epoch == self.ledger.epoch;
                if matches!(self.ledger.phase, Phase::Merge(_)) && ours {
                    let record = match merged {
                        Ok(merged) => Record::Merged(merged),
                        Err(reason) => Record::Skipped { reason },
                    };
                    self.journal(record, now_ms, actions);
                }
            }
            Event::PolicySet(policy) => {
                let is_new = policy != self.ledger.policy && policy.check(self.ledger.start.layers).is_ok();
                if is_new && !self.ledger.is_ended() {
                    self.journal(Record::PolicySet(policy), now_ms, actions);
                }
            }
            Event::StopRequested { reason } => {
                if !self.ledger.is_ended() {
                    self.stop(self.pending().into_keys());
                    self.journal(Record::RunEnded { stopped: Some(reason) }, now_ms, actions);
                }
            }
            Event::Tick => {}
        }
    }

    fn take_answer(&mut self, device: DeviceId, answer: Answer, now_ms: u64, actions: &mut Vec<Action>) {
        if answer.run != self.ledger.start.run {
            return;
        }
        if self.deliveries.on_stopped(&device, answer.epoch) {
            return;
        }
        if answer.epoch != self.epoch_of(&device) || !self.is_pending(&device) {
            return;
        }
        self.attendance.on_answer(&device);
        match answer.outcome {
            Outcome::Accepted { has_weights } => {
                let is_this_life = self.attendance.here(&device).is_some_and(|here| here.boot == answer.boot);
                if is_this_life && self.deliveries.on_accepted(&device, now_ms) && !has_weights {
                    let weights = self.ordered(&device).map_or(self.ledger.weights, |ordered| ordered.weights);
                    actions.push(Action::OfferWeights(device, weights));
                }
            }
            Outcome::Refused { reason } => self.put_out(device, answer.epoch, &reason, now_ms, actions),
            Outcome::Stopped => self.put_out(device, answer.epoch, "the device stopped", now_ms, actions),
            Outcome::Evaluated(report) => {
                if let Phase::Evaluate(examples) = &self.ledger.phase
                    && let Some(&most) = examples.get(&device)
                {
                    let Start { settings, task, .. } = &self.ledger.start;
                    let checked = evaluation::check(&report, most, settings.max_tokens, task.as_ref());
                    self.reports.insert(device, checked.map(|()| report));
                }
            }
        }
    }

    /// Ends the part of each device that does not answer its order.
    pub(super) fn put_out_silent(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        for (device, epoch) in self.deliveries.silent(|device| self.attendance.is_online(device), now_ms) {
            self.deliveries.on_silent(&device);
            if epoch == self.epoch_of(&device) && self.is_pending(&device) {
                self.attendance.on_silent(&device, now_ms);
                self.put_out(device, epoch, SILENT, now_ms, actions);
            }
        }
    }

    fn put_out(&mut self, device: DeviceId, epoch: u64, reason: &str, now_ms: u64, actions: &mut Vec<Action>) {
        if epoch != self.epoch_of(&device) || !self.is_pending(&device) {
            return;
        }
        let reason: String = reason.chars().take(MAX_REASON).collect();
        if self.ordered(&device).is_some() {
            self.journal(Record::DeviceOut { device, reason }, now_ms, actions);
        } else {
            self.reports.insert(device, Err(reason));
        }
    }

    /// Adds a decided fact to the journal, and the actions that follow from it.
    pub(super) fn journal(&mut self, record: Record, now_ms: u64, actions: &mut Vec<Action>) {
        let entry = Entry { at_ms: now_ms, record };
        let fits = self.ledger.apply(&entry);
        assert!(fits, "a decided record fits its phase: {:?}", entry.record);
        if matches!(entry.record, Record::TrainingStarted { .. } | Record::EvaluationStarted { .. }) {
            let ledger = &self.ledger;
            self.attendance.forget(|device| ledger.has_order(device));
        }
        // These two only end an order, and a large fleet sends thousands of them.
        if !matches!(entry.record, Record::UpdateStored { .. } | Record::DeviceOut { .. }) {
            self.deliveries.on_other_orders();
        }
        let begins = matches!(entry.record, Record::Collected | Record::Resumed);
        actions.push(Action::Journal(entry));
        if let (true, Phase::Merge(training)) = (begins, &self.ledger.phase) {
            actions.push(Action::Merge(self.merge_job(training)));
        }
    }

    fn merge_job(&self, training: &Training) -> MergeJob {
        let Ledger { epoch, weights, moments, version, ref start, .. } = self.ledger;
        let input = |(device, stored): (&DeviceId, &StoredUpdate)| {
            let ordered = training.assignments.get(device);
            let started = ordered.map(|ordered| (ordered.weights, version - ordered.version));
            MergeInput {
                device: device.clone(),
                update: stored.update,
                examples: stored.report.examples,
                shared_layers: stored.report.shared_layers.clone(),
                rank: ordered.map_or(0, |ordered| ordered.assignment.share.rank),
                stale: started.filter(|&(_, behind)| behind > 0),
            }
        };
        let updates = training.updates.iter().map(input).collect();
        MergeJob { run: start.run, epoch, base: weights, moments, merging: start.settings.merge.clone(), updates }
    }
}
