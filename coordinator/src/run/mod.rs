//! Decides a run of federated training, round by round. Reads no clock, opens no socket, draws no unseeded number.
//!
//! ```text
//!              ┌──────────────────── next round ─────────────────────┐
//!              ▼                                                     │
//! start ─► Gather ─► Train ──────────► Merge ──► Gather ─► Evaluate ─┤
//!   │          │       │ Skipped         │ Skipped   │               ├─► Done ─► Ended
//!   │          └───────┴─────────────────┴───────────│── next round ─┘
//!   └─► Gather ─► Evaluate (the initial weights, round 0)
//! ```
//! - `Gather -> Train`: `devices` devices are online. Or the quorum is online, and either every device of the last order is back or
//!   the deadline has passed. Usually this takes no time.
//! - `Gather -> Skipped`: the deadline has passed without a quorum.
//! - `Train -> Merge`: `devices` updates are stored. Or the quorum is reached, and either no other update is expected or the deadline
//!   has passed. A device that is known to be offline (by its last will) is expected for `grace_ms` only, if there is a quorum.
//! - `Train -> Skipped`: the deadline has passed without a quorum, or too many devices said that they will not deliver.
//! - `Merge -> Gather -> Evaluate`: the merged weights are stored; the round is `Merged`. `Merge -> Skipped`: the merge failed.
//! - `Evaluate -> next`: every expected device has reported, or the deadline has passed. Without any device there is no accuracy.
//! - Asynchronous rounds (`asynchronous`): at `Train -> Merge`, open orders are carried into the next round, with their epoch and
//!   the weights they started from. Updates that arrive meanwhile count there. Devices that do not train evaluate.
//! - any `-> Ended`: the operator stops the run, or `max_skipped` rounds in a row were skipped.
//!
//! **Persist before promise.** A fact that must survive is a [`Record`]. [`Run::handle`] returns it in [`Action::Journal`], before
//! the actions that depend on it. The shell commits all records of a call (or of several, in order) in one transaction, and
//! carries out nothing else before. [`Run::resume`] feeds the journal to the same [`Ledger::apply`] that live records pass.
//! Online devices, answers to commands and evaluation reports are not journalled; they are asked for again.
//!
//! **Answers to every case.**
//! - *A device vanishes*: its order stays open. The phase waits for it as described above.
//! - *It comes back*, with the same boot or a new one: its open command is sent at once, under the same epoch.
//! - *It comes back too late*: it has no order. An update that it offers is refused because the round is closed; it may take part
//!   in the next round.
//! - *It repeats an answer or an offer*: a stored update is confirmed again, a report counts once.
//! - *It answers an old round, epoch or run, or was not asked*: the answer is ignored; an update is refused with the reason.
//! - *It refuses, or its update is unfit*: it leaves this round, with the reason in the journal, and may take part in the next.
//! - *It is slower than the round*: it is ordered to stop, under an epoch of its own. In asynchronous rounds this happens only if it
//!   is more than `max_staleness` merges behind.
//! - *A command gets lost*: it is repeated every [`REPEAT_MS`] until there is an answer, then every [`ACCEPTED_REPEAT_MS`].
//! - *The coordinator was killed*: the phase continues and its deadline starts again; stored updates are not asked for again.

pub mod configurator;
mod deliveries;
pub mod draw;
pub(crate) mod evaluation;
pub mod explain;
mod ledger;
mod record;
mod settings;
pub mod sharing;

pub use deliveries::{ACCEPTED_REPEAT_MS, MAX_STOPS, REPEAT_MS};
pub use evaluation::{Evaluation, ModelTask};
pub use ledger::{Ledger, Ordered, OutOfPlace, Phase, Purpose, StoredUpdate, Totals, Training};
pub use record::{Assignment, Entry, Merged, Record, Start};
pub use settings::{BadSettings, MAX_DEVICES, MAX_ROUNDS, RunSettings};

use crate::merge::Merging;
use configurator::{Facts, Limits, Pace, Unfit};
use deliveries::{Deliveries, Open};
use draw::draw;
use skiff_api::policy::Policy;
use skiff_protocol::messages::{
    Answer, Command, EvaluateOrder, EvaluationReport, Order, Outcome, Place, StepMemory, TrainOrder, TrainReport,
};
use skiff_protocol::time::Timestamp;
use skiff_protocol::{BootId, DeviceId, Digest, RunId};
use std::collections::{BTreeMap, BTreeSet};

/// Largest number of characters of a reason that a device gives; longer ones are cut.
pub const MAX_REASON: usize = 200;

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A device with our pack is online.
    DeviceHere(DeviceId, Here),
    /// A device went offline, or holds another pack now.
    DeviceGone(DeviceId),
    /// A device answered a command.
    Answered(DeviceId, Answer),
    /// A device's update is complete and checked, and its blob is stored.
    UpdateStored {
        /// Device that sent it.
        device: DeviceId,
        /// Epoch of the order.
        epoch: u64,
        /// Digest of its blob.
        update: Digest,
        /// Report of the device.
        report: TrainReport,
        /// Distance from the weights that the device started from.
        distance: f64,
    },
    /// A device's update is complete, but failed the checks.
    UpdateUnfit {
        /// Device that sent it.
        device: DeviceId,
        /// Epoch of the order.
        epoch: u64,
        /// Reason against it.
        reason: String,
    },
    /// The merge of the order with this epoch ended.
    MergeEnded {
        /// Run of the order. The merge of a stopped run may end during the next run, whose epochs start again.
        run: RunId,
        /// Epoch of the order.
        epoch: u64,
        /// The new weights, or the reason why there are none.
        merged: Result<Merged, String>,
    },
    /// The operator changes which layers devices share, from the next order on. A policy that the model does not allow changes
    /// nothing.
    PolicySet(Policy),
    /// The operator stops the run.
    StopRequested {
        /// Reason, for the journal.
        reason: String,
    },
    /// Time has passed.
    Tick,
}

/// An online device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Here {
    /// Its boot.
    pub boot: BootId,
    /// Number of examples that it can train on.
    pub train_examples: u64,
    /// Number of examples that it can evaluate on.
    pub test_examples: u64,
    /// Class, region and labels that its owner gave it.
    pub place: Place,
    /// Memory that it predicts for a step.
    pub memory: StepMemory,
}

/// Condition of a device.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Condition {
    /// Temperature of its hottest sensor in degrees Celsius.
    pub celsius: Option<f32>,
    /// Battery level in percent, if it runs on battery.
    pub battery_percent: Option<f32>,
    /// Pace of its current step. It is known even for a device that is too slow to ever deliver.
    pub pace: Option<Pace>,
}

/// Something to do, in the order of the list.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Commit this before anything else.
    Journal(Entry),
    /// Confirm to the device that its update is stored and counts.
    ConfirmUpdate(DeviceId, Digest),
    /// Tell the device that its update came too late.
    RefuseUpdate(DeviceId, Digest, String),
    /// Send a command.
    SendCommand(DeviceId, Command),
    /// Offer the global weights to a device.
    OfferWeights(DeviceId, Digest),
    /// Merge. The result returns as [`Event::MergeEnded`].
    Merge(MergeJob),
}

/// A merge to be made.
#[derive(Clone, PartialEq, Debug)]
pub struct MergeJob {
    /// Run of the order.
    pub run: RunId,
    /// Epoch of the order.
    pub epoch: u64,
    /// Digest of the weights that the round started from.
    pub base: Digest,
    /// Digest of the server optimizer's moments, if there are any yet.
    pub moments: Option<Digest>,
    /// Settings of the merge.
    pub merging: Merging,
    /// Updates, ordered by device.
    pub updates: Vec<MergeInput>,
}

/// One device's part in a merge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeInput {
    /// Device that sent it.
    pub device: DeviceId,
    /// Digest of its blob.
    pub update: Digest,
    /// Number of distinct examples it trained on, which is its weight.
    pub examples: u64,
    /// Layers in it.
    pub shared_layers: Vec<u32>,
    /// LoRA rank of it; 0: the rank of the pack.
    pub rank: u32,
    /// Digest of the weights it started from and the number of merges since, if they are not the round's.
    pub stale: Option<(Digest, u32)>,
}

/// Answer to an update that a device offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The device should send it.
    Wanted,
    /// It is stored already.
    Stored,
    /// It is refused for this reason; the device may drop it.
    Refused(String),
}

/// A run of federated training. The state that survives is its [`Ledger`].
#[derive(Debug)]
pub struct Run {
    ledger: Ledger,
    /// Conditions of online devices; those that report nothing are left out.
    conditions: BTreeMap<DeviceId, Condition>,
    /// Online devices, and devices of the last order that went offline.
    seen: BTreeMap<DeviceId, Seen>,
    deliveries: Deliveries,
    /// Reports on the evaluation, or the reason why there is none that counts.
    reports: BTreeMap<DeviceId, Result<EvaluationReport, String>>,
    /// Time of the last event, in milliseconds.
    now_ms: u64,
}

#[derive(Clone, Debug)]
enum Seen {
    Here(Here),
    Gone { since_ms: u64 },
}

impl Run {
    /// Starts a run. Its first record is among the actions.
    ///
    /// # Errors
    /// A setting out of its range for the model.
    pub fn start(start: Start, now: Timestamp) -> Result<(Self, Vec<Action>), BadSettings> {
        start.settings.check(start.layers)?;
        let entry = Entry { at_ms: now.0, record: Record::RunStarted(start.clone()) };
        Ok((Self::of(Ledger::new(start, now.0))?, vec![Action::Journal(entry)]))
    }

    /// Resumes a run where its journal ends. Online devices must be reported again as events.
    ///
    /// # Errors
    /// A journal with a record out of place.
    pub fn resume(entries: &[Entry], now: Timestamp) -> Result<(Self, Vec<Action>), OutOfPlace> {
        let ledger = Ledger::replay(entries)?;
        let record = format!("{:?}", ledger.start.settings);
        let mut run = Self::of(ledger).map_err(|_| OutOfPlace { at: 0, record })?;
        let mut actions = Vec::new();
        if !run.ledger.is_ended() {
            run.now_ms = now.0.max(run.now_ms);
            run.journal(Record::Resumed, run.now_ms, &mut actions);
        }
        Ok((run, actions))
    }

    /// Returns the durable state.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Handles an event and returns what to do. `now` never goes backwards.
    #[must_use]
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let now = now.0.max(self.now_ms);
        self.now_ms = now;
        let mut actions = Vec::new();
        self.take(event, now, &mut actions);
        while let Some(record) = self.decide(now) {
            self.journal(record, now, &mut actions);
        }
        self.send_commands(now, &mut actions);
        // Stable: records first, each kind in the order it was decided.
        actions.sort_by_key(|action| !matches!(action, Action::Journal(_)));
        actions
    }

    /// Records a device's condition. It takes effect at the next round. If it holds no pace, the last known pace stays.
    pub fn set_condition(&mut self, device: &DeviceId, condition: Condition) {
        let known = self.conditions.get(device).and_then(|condition| condition.pace);
        let condition = Condition { pace: condition.pace.or(known), ..condition };
        if condition == Condition::default() {
            self.conditions.remove(device);
        } else if self.here(device).is_some() {
            self.conditions.insert(device.clone(), condition);
        }
    }

    /// Returns the time to send [`Event::Tick`]; an earlier tick does nothing.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let commands = self.deliveries.deadline_ms(|device| self.here(device).is_some());
        let graces = self.ledger.selected.iter().filter_map(|device| self.grace_ends_ms(device));
        let phase = self.ledger.deadline_ms();
        // A grace period that is over has had its effect and is no deadline any more.
        let graces = graces.filter(|&ends| phase.is_some() && self.now_ms < ends);
        commands.into_iter().chain(graces).chain(phase).min().map(Timestamp)
    }

    /// Returns true if the update of a device for the order with that epoch is still expected.
    #[must_use]
    pub fn is_awaited(&self, device: &DeviceId, epoch: u64) -> bool {
        self.ordered(device).is_some_and(|ordered| ordered.epoch == epoch)
    }

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
        let Some(ordered) = training.assignments.get(device).filter(|_| is_carried || self.trains()) else {
            return Verdict::Refused(format!("round {round} is closed"));
        };
        let settings = &self.ledger.start.settings;
        // The steps cannot have used more distinct examples than this, however many the device has.
        let most_examples = u64::from(settings.steps) * u64::from(settings.batch);
        sharing::check(report, &ordered.assignment.share.plan, self.ledger.start.layers, most_examples)
            .map_or_else(Verdict::Refused, |()| Verdict::Wanted)
    }

    /// Returns the number of devices that answered the current evaluation.
    #[must_use]
    pub fn evaluation_reports(&self) -> usize {
        self.reports.len()
    }

    fn of(ledger: Ledger) -> Result<Self, BadSettings> {
        ledger.policy.check(ledger.start.layers).map_err(BadSettings)?;
        let now_ms = ledger.last_ms;
        Ok(Self {
            ledger,
            conditions: BTreeMap::new(),
            now_ms,
            seen: BTreeMap::new(),
            deliveries: Deliveries::default(),
            reports: BTreeMap::new(),
        })
    }
}

/// Changes by an event, before anything is decided.
impl Run {
    fn take(&mut self, event: Event, now_ms: u64, actions: &mut Vec<Action>) {
        match event {
            Event::DeviceHere(device, here) => {
                let boot = here.boot;
                let before = self.seen.insert(device.clone(), Seen::Here(here));
                let is_same = matches!(before, Some(Seen::Here(before)) if before.boot == boot);
                if !is_same {
                    self.deliveries.on_restart(&device);
                }
            }
            Event::DeviceGone(device) => {
                self.conditions.remove(&device);
                let seen = self.seen.entry(device).or_insert(Seen::Gone { since_ms: now_ms });
                if matches!(seen, Seen::Here(_)) {
                    *seen = Seen::Gone { since_ms: now_ms };
                }
                // No phase waits for other devices; they can be forgotten.
                let Ledger { selected, carried, .. } = &self.ledger;
                let is_ordered =
                    |device: &DeviceId| selected.contains(device) || carried.assignments.contains_key(device);
                self.seen.retain(|device, seen| matches!(seen, Seen::Here(_)) || is_ordered(device));
            }
            Event::Answered(device, answer) => self.take_answer(device, answer, now_ms, actions),
            Event::UpdateStored { device, epoch, update, report, distance } => {
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
        match answer.outcome {
            Outcome::Accepted { has_weights } => {
                let is_this_life = self.here(&device).is_some_and(|here| here.boot == answer.boot);
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

    /// Adds a decided fact, and the actions that follow from it.
    fn journal(&mut self, record: Record, now_ms: u64, actions: &mut Vec<Action>) {
        let entry = Entry { at_ms: now_ms, record };
        let fits = self.ledger.apply(&entry);
        assert!(fits, "a decided record fits its phase: {:?}", entry.record);
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

/// The transitions of the diagram.
impl Run {
    /// Returns the next record that is due.
    fn decide(&mut self, now_ms: u64) -> Option<Record> {
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
                Some(Record::RunEnded { stopped: None })
            }
            Phase::Merge(_) | Phase::Ended(_) => None,
        }
    }

    /// Returns the reason to end the run if too many rounds in a row were skipped.
    fn hopeless(&self) -> Option<String> {
        let most = self.ledger.start.settings.max_skipped as usize;
        let last: Vec<&String> =
            self.ledger.closed.iter().rev().map_while(|closed| closed.skipped.as_ref()).take(most).collect();
        (last.len() == most).then(|| format!("{most} rounds in a row were skipped; the last one: {}", last[0]))
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
        let fit = carried + self.fit_for(purpose).count();
        let is_missed = |device: &DeviceId| self.here(device).is_none() && !self.is_given_up(device, now_ms);
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
                Some(Record::Skipped { reason: format!("only {fit} devices were online, the quorum is {quorum}") })
            }
            Purpose::Evaluate => Some(Record::Evaluated(Evaluation::default())),
        }
    }

    fn decide_training(&self, training: &Training, now_ms: u64, is_due: bool) -> Option<Record> {
        let settings = &self.ledger.start.settings;
        let (updates, quorum) = (training.updates.len(), settings.quorum as usize);
        let has_quorum = updates >= quorum;
        if let Some(device) = training.pending().find(|device| self.is_too_stale(device)) {
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
        let can_reach = updates + training.pending().count() >= quorum;
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

    /// Draws devices and returns the order of each.
    fn assign(&self) -> BTreeMap<DeviceId, Assignment> {
        let ledger = &self.ledger;
        let selected = self.select(Purpose::Train, ledger.round);
        let known = selected.into_iter().filter_map(|device| {
            let (facts, limits) = (self.facts(&device)?, self.limits(&device)?.ok()?);
            Some((device, (facts, limits)))
        });
        let choices = ledger.configurator.choose(ledger.round, &known.collect());
        let assigned = |(device, choice)| {
            let place = self.here(&device).map(|here| here.place.clone()).unwrap_or_default();
            let share = self.ledger.policy.share(&place, ledger.start.layers).ok()?;
            Some((device, Assignment { choice, share }))
        };
        choices.into_iter().filter_map(assigned).collect()
    }

    fn facts(&self, device: &DeviceId) -> Option<Facts> {
        let here = self.here(device)?;
        let condition = self.conditions.get(device).copied().unwrap_or_default();
        let class = here.place.class.clone();
        let own = self.ledger.totals.get(device).and_then(|totals| totals.pace);
        let pace = own.or(condition.pace).or_else(|| self.ledger.paces.get(&class).copied());
        Some(Facts {
            class,
            memory: here.memory,
            pace,
            celsius: condition.celsius,
            battery_percent: condition.battery_percent,
        })
    }

    /// Returns the limits of an online device.
    fn limits(&self, device: &DeviceId) -> Option<Result<Limits, Unfit>> {
        let load = self.ledger.start.settings.load();
        self.facts(device).map(|facts| self.ledger.configurator.limits(&facts, &load))
    }

    fn share_examples(&self) -> BTreeMap<DeviceId, u64> {
        let with_examples = |device: DeviceId| {
            let examples = self.here(&device).map_or(0, |here| here.test_examples);
            (device, examples)
        };
        // Always draws the same devices, so that accuracies can be compared.
        let held = self.select(Purpose::Evaluate, 0).into_iter().map(with_examples).collect();
        share(self.ledger.start.settings.examples_after(self.ledger.round), &held)
    }

    /// Draws online devices.
    fn select(&self, purpose: Purpose, round: u32) -> BTreeSet<DeviceId> {
        let settings = &self.ledger.start.settings;
        let mut drawn: Vec<(u64, DeviceId)> = self
            .fit_for(purpose)
            .map(|(device, _)| (draw(settings.seed, "select", round, device.as_str()).to_bits(), device.clone()))
            .collect();
        drawn.sort();
        let carried = if purpose == Purpose::Train { self.ledger.carried.assignments.len() } else { 0 };
        let most = ((settings.devices + settings.over_selection) as usize).saturating_sub(carried);
        drawn.into_iter().take(most).map(|(_, device)| device).collect()
    }

    fn fit_for(&self, purpose: Purpose) -> impl Iterator<Item = (&DeviceId, &Here)> {
        self.seen.iter().filter_map(move |(device, seen)| match seen {
            Seen::Here(here) => {
                let examples = match purpose {
                    Purpose::Train => here.train_examples,
                    Purpose::Evaluate => here.test_examples,
                };
                let bears = || purpose == Purpose::Evaluate || self.limits(device).is_some_and(|limits| limits.is_ok());
                let is_free = !self.ledger.carried.assignments.contains_key(device);
                (examples > 0 && is_free && bears()).then_some((device, here))
            }
            Seen::Gone { .. } => None,
        })
    }

    fn here(&self, device: &DeviceId) -> Option<&Here> {
        match self.seen.get(device)? {
            Seen::Here(here) => Some(here),
            Seen::Gone { .. } => None,
        }
    }

    fn grace_ends_ms(&self, device: &DeviceId) -> Option<u64> {
        match self.seen.get(device)? {
            Seen::Gone { since_ms } => Some(since_ms + self.ledger.start.settings.grace_ms),
            Seen::Here(_) => None,
        }
    }

    /// Returns true if the device has been offline for longer than the grace period. A device of which nothing is known, after a
    /// restart, is still expected.
    fn is_given_up(&self, device: &DeviceId, now_ms: u64) -> bool {
        self.grace_ends_ms(device).is_some_and(|ends| now_ms >= ends)
    }

    /// Returns true if the device has an open order.
    fn is_pending(&self, device: &DeviceId) -> bool {
        self.ordered(device).is_some()
            || matches!(&self.ledger.phase, Phase::Evaluate(examples)
                if examples.contains_key(device) && !self.reports.contains_key(device))
    }

    /// Returns the devices with an open order, and its epoch.
    fn pending(&self) -> Open {
        let carried = self.ledger.carried.assignments.keys();
        let pending = self.ledger.selected.iter().chain(carried).filter(|device| self.is_pending(device));
        pending.map(|device| (device.clone(), self.epoch_of(device))).collect()
    }

    /// Returns a device's open order to train.
    fn ordered(&self, device: &DeviceId) -> Option<&Ordered> {
        let in_round = if let Phase::Train(training) = &self.ledger.phase { Some(training) } else { None };
        let mut trainings = [Some(&self.ledger.carried), in_round].into_iter().flatten();
        trainings.find(|training| training.is_pending(device))?.assignments.get(device)
    }

    /// Returns the epoch of a device's order.
    fn epoch_of(&self, device: &DeviceId) -> u64 {
        self.ordered(device).map_or(self.ledger.epoch, |ordered| ordered.epoch)
    }

    fn trains(&self) -> bool {
        matches!(self.ledger.phase, Phase::Train(_))
    }
}

/// Commands to devices.
impl Run {
    fn send_commands(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let open = self.pending();
        let is_online = |seen: Option<&Seen>| matches!(seen, Some(Seen::Here(_)));
        for device in self.deliveries.due_orders(&open, |device| is_online(self.seen.get(device)), now_ms) {
            if let Some((round, order)) = self.order(&device) {
                let epoch = self.epoch_of(&device);
                self.deliveries.on_sent(&device, epoch, now_ms);
                actions.push(Action::SendCommand(device, self.command(round, epoch, order)));
            }
        }
        let stops = self.deliveries.due_stops(|device| is_online(self.seen.get(device)), now_ms);
        actions.extend(stops.into_iter().map(|(device, command)| Action::SendCommand(device, command)));
    }

    /// Orders devices to drop their open order, unless the next one reaches them first.
    fn stop(&mut self, devices: impl IntoIterator<Item = DeviceId>) {
        for device in devices {
            let command = self.command(self.ledger.round, self.epoch_of(&device) + 1, Order::Stop);
            self.deliveries.stop(device, command);
        }
    }

    fn command(&self, round: u32, epoch: u64, order: Order) -> Command {
        let Ledger { started_ms, ref start, .. } = self.ledger;
        Command { run: start.run, started_ms, round, epoch, order }
    }

    /// Returns a device's open order and the round that gave it.
    fn order(&self, device: &DeviceId) -> Option<(u32, Order)> {
        let Start { settings, schema, .. } = &self.ledger.start;
        if let Some(Ordered { round, weights, assignment, .. }) = self.ordered(device) {
            let Assignment { choice, share } = assignment;
            let order = TrainOrder {
                weights: *weights,
                schema: *schema,
                seed: settings.seed,
                rates: choice.rates.clone(),
                most_active: choice.most_active,
                steps: settings.steps,
                batch: settings.batch,
                max_tokens: settings.max_tokens,
                learning_rate: settings.learning_rate,
                proximal: settings.proximal,
                rank: share.rank,
                probe_examples: choice.probe_examples,
                sharing: share.plan.clone(),
                deadline_ms: settings.train_ms,
            };
            return Some((*round, Order::Train(order)));
        }
        let Phase::Evaluate(examples) = &self.ledger.phase else { return None };
        let order = EvaluateOrder {
            weights: self.ledger.weights,
            schema: *schema,
            examples: *examples.get(device)?,
            batch: settings.evaluate_batch,
            max_tokens: settings.max_tokens,
            deadline_ms: settings.evaluate_ms,
        };
        Some((self.ledger.round, Order::Evaluate(order)))
    }
}

/// Divides `total` examples among devices, as evenly as their own numbers of examples allow. A device that gets none is left out.
fn share(total: u64, held: &BTreeMap<DeviceId, u64>) -> BTreeMap<DeviceId, u64> {
    let mut by_size: Vec<(u64, &DeviceId)> = held.iter().map(|(device, &examples)| (examples, device)).collect();
    by_size.sort();
    let mut left = total;
    let mut shares = BTreeMap::new();
    for (at, &(examples, device)) in by_size.iter().enumerate() {
        let share = examples.min(left / (by_size.len() - at) as u64);
        left -= share;
        shares.insert(device.clone(), share);
    }
    shares.retain(|_, share| *share > 0);
    shares
}

#[cfg(test)]
mod tests;
