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
//! - `Gather -> Train`: `devices` devices are online; or the quorum is online, and either every device of the last order is back or
//!   the deadline has passed. Usually this takes no time.
//! - `Gather -> Skipped`: the deadline has passed without a quorum.
//! - `Train -> Merge`: `devices` updates are stored; or the quorum is reached, and either no other update is expected or the
//!   deadline has passed. A device that is known to be offline (by its last will) is expected for `grace_ms` only, if there is a
//!   quorum.
//! - `Train -> Skipped`: the deadline has passed without a quorum, or too many devices reported that they will not deliver.
//! - `Merge -> Gather -> Evaluate`: the merged weights are stored; the round is `Merged`. `Merge -> Skipped`: the merge failed.
//! - `Evaluate -> next`: every expected device has reported, or the deadline has passed. Without any device there is no accuracy.
//! - Asynchronous rounds (`asynchronous`): at `Train -> Merge`, open orders are carried into the next round, with their epoch and
//!   the weights they started from. Updates that arrive meanwhile count there. Devices that do not train evaluate.
//! - any `-> Ended`: the operator stops the run, or `max_skipped` rounds in a row were skipped. A run that merged no update has failed.
//!
//! **Persist before promise.** A fact that must survive is a [`Record`]. [`Run::handle`] returns it in [`Action::Journal`],
//! before the actions that depend on it. The shell commits all records of a call (or of several, in order) in one transaction,
//! and carries out nothing else before that. [`Run::resume`] passes the journal to the same [`Ledger::apply`] as live records.
//! Online devices, answers to commands and evaluation reports are not journalled; the coordinator asks for them again.
//!
//! **Modules**, in the order of [`Run::handle`]: `event` (events and actions), `intake` (handles an event), `attendance` (the
//! online devices), `transitions` (the arrows above), `selection` (the devices of a round), `configurator` and `sharing` (the
//! layers that each device trains and sends), `orders` and `deliveries` (the commands to devices), `ledger` and `round`
//! (the state that survives), `measures` (figures from counts and sums).
//!
//! **All cases.**
//! - *A device vanishes*: its order stays open. The phase waits for it as described above.
//! - *It comes back*, with the same boot or a new one: its open command is sent at once, under the same epoch.
//! - *It comes back too late*: it has no order. An update that it offers is refused because the round is closed; it may take part
//!   in the next round.
//! - *It repeats an answer or an offer*: a stored update is confirmed again, a report counts once.
//! - *It answers an old round, epoch or run, or was not asked*: the answer is ignored; an update is refused with the reason.
//! - *It refuses, or its update is unfit*: it leaves this round, the journal records the reason, and it may take part in the next
//!   round.
//! - *It is slower than the round*: it is ordered to stop, with a separate epoch. In asynchronous rounds this happens only if it
//!   is more than `max_staleness` merges behind.
//! - *A command gets lost*: it is repeated every [`REPEAT_MS`] until there is an answer, then every [`ACCEPTED_REPEAT_MS`].
//! - *The coordinator was killed*: the phase continues and its deadline starts again; the coordinator does not ask for stored
//!   updates again.

mod attendance;
pub mod configurator;
mod deliveries;
pub mod draw;
pub(crate) mod evaluation;
mod event;
pub mod explain;
mod intake;
mod ledger;
pub mod measures;
mod orders;
mod record;
mod round;
mod selection;
mod settings;
pub mod sharing;
mod transitions;

pub use deliveries::{ACCEPTED_REPEAT_MS, ANSWER_MS, MAX_COMMANDS, MAX_STOPS, REPEAT_MS};
pub use evaluation::{Evaluation, ModelTask};
pub use event::{Action, Condition, Event, Here, MergeInput, MergeJob, Verdict};
pub use intake::MAX_REASON;
pub use ledger::{Ledger, OutOfPlace, Phase, Purpose};
pub use record::{Assignment, Entry, Merged, NOTHING_MERGED, Record, Start, is_failure};
pub use round::{ClosedRound, EvaluatedRound, Ordered, StoredUpdate, Totals, Training};
pub use settings::{BadSettings, MAX_DEVICES, MAX_ROUNDS, RunSettings};

use attendance::Attendance;
use deliveries::Deliveries;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::EvaluationReport;
use skiff_protocol::time::Timestamp;
use std::collections::BTreeMap;

/// A run of federated training. The state that survives is its [`Ledger`].
#[derive(Debug)]
pub struct Run {
    ledger: Ledger,
    attendance: Attendance,
    deliveries: Deliveries,
    /// Report of each device on the evaluation, or the reason why its report does not count.
    reports: BTreeMap<DeviceId, Result<EvaluationReport, String>>,
    /// Time of the last event, in milliseconds.
    now_ms: u64,
}

impl Run {
    /// Starts a run. The returned actions include its first record.
    ///
    /// # Errors
    /// A setting that is out of range for the model.
    pub fn start(start: Start, now: Timestamp) -> Result<(Self, Vec<Action>), BadSettings> {
        start.settings.check(start.layers)?;
        let entry = Entry { at_ms: now.0, record: Record::RunStarted(start.clone()) };
        Ok((Self::of(Ledger::new(start, now.0))?, vec![Action::Journal(entry)]))
    }

    /// Resumes a run where its journal ends. The caller must report online devices again, as events.
    ///
    /// # Errors
    /// A journal with a record that is out of place.
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

    /// Handles an event and returns what to do, commands included. `now` never goes backwards.
    #[must_use]
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = self.feed([event], now);
        actions.extend(self.commands(now));
        actions
    }

    /// Handles events and returns what to do, without commands. Nothing is decided before the last of the events, so that the
    /// first devices of a run are drawn from the whole fleet. `now` never goes backwards.
    #[must_use]
    pub fn feed(&mut self, events: impl IntoIterator<Item = Event>, now: Timestamp) -> Vec<Action> {
        let now = self.advance(now);
        let mut actions = Vec::new();
        for event in events {
            self.take(event, now, &mut actions);
        }
        self.put_out_silent(now, &mut actions);
        while let Some(record) = self.decide(now) {
            self.journal(record, now, &mut actions);
        }
        // Stable: records first, each kind in the order it was decided.
        actions.sort_by_key(|action| !matches!(action, Action::Journal(_)));
        actions
    }

    /// Returns the commands that are due, at most [`MAX_COMMANDS`]. If there are more, [`Run::deadline`] is now.
    #[must_use]
    pub fn commands(&mut self, now: Timestamp) -> Vec<Action> {
        let now = self.advance(now);
        self.due_commands(now)
    }

    fn advance(&mut self, now: Timestamp) -> u64 {
        self.now_ms = now.0.max(self.now_ms);
        self.now_ms
    }

    /// Records a device's condition. It takes effect at the next round. If the condition has no pace, the last known pace stays.
    pub fn set_condition(&mut self, device: &DeviceId, condition: Condition) {
        self.attendance.set_condition(device, condition);
    }

    /// Returns the time at which to send [`Event::Tick`]; an earlier tick does nothing.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let commands = self.deliveries.deadline_ms(self.now_ms);
        let awaited = self.attendance.gone().filter(|device| self.ledger.selected.contains(*device));
        let graces = awaited.filter_map(|device| self.grace_ends_ms(device));
        let phase = self.ledger.deadline_ms();
        // A grace period that is over has had its effect and is no deadline any more.
        let graces = graces.filter(|&ends| phase.is_some() && self.now_ms < ends);
        let gathers = matches!(self.ledger.phase, Phase::Gather(_));
        let pauses = self.attendance.next_pause_ends_ms(self.now_ms).filter(|_| gathers);
        commands.into_iter().chain(graces).chain(phase).chain(pauses).min().map(Timestamp)
    }

    /// Returns true if the update of a device for the order with that epoch is still expected.
    #[must_use]
    pub fn is_awaited(&self, device: &DeviceId, epoch: u64) -> bool {
        self.ordered(device).is_some_and(|ordered| ordered.epoch == epoch)
    }

    /// Returns the devices whose update or evaluation is missing in the current phase, by name.
    #[must_use]
    pub fn awaited(&self) -> Vec<&DeviceId> {
        self.ledger.awaited(|device| self.reports.contains_key(device))
    }

    fn of(ledger: Ledger) -> Result<Self, BadSettings> {
        ledger.policy.check(ledger.start.layers).map_err(BadSettings)?;
        let now_ms = ledger.last_ms;
        Ok(Self {
            ledger,
            now_ms,
            attendance: Attendance::default(),
            deliveries: Deliveries::default(),
            reports: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests;
