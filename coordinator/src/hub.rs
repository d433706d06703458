//! The coordinator without clock and sockets: joins the engine of a run, the fleet, the transfers and the journal.
//!
//! The shell in [`crate::serve`] calls the hub at four points and passes the current time in. The hub returns effects, and
//! the shell carries them out. Only the hub writes the journal.
//!
//! ```text
//!  call                                                      ┌──────────────┐  returned effects
//!  1 link events ───────── Hub::link ────────────────────────►              │
//!  2 operator's requests ─ Hub::start_run, stop_run, ────────►     Hub      ├──► Publish ──► link to the broker
//!                          delete_run, remove_device ...     │              │
//!  3 results of threads ── Hub::merge_ended, Hub::checked ───►  run, fleet, ├──► Merge ────► thread ─┐
//!  4 time ──────────────── Hub::tick at Hub::deadline ───────►  transfers,  ├──► Check ────► thread ─┤
//!                                                            │   journal    │                        │
//!                                                            └──────────────┘   results: call 3 ◄────┘
//! ```
//! Each call collects the records and actions that the run decides, commits the records to the journal, and only then carries out
//! the actions. No effect that depends on a record is therefore carried out before the record is on disk. One call of
//! [`Hub::link`] takes all events that are waiting, and commits their records together.

mod cleaning;
mod log;
mod removals;
mod requests;
mod resume;
mod rivals;
mod shown;
mod updates;

use crate::arrivals::{Arrival, Arrivals, Checked};
use crate::doors::mqtt::{self, Said, Writer};
use crate::fleet::{self, Change, Fleet};
use crate::merge::model::Model;
use crate::run::{Action, Entry, Event, Ledger, MergeJob, Merged, Record, Run};
use crate::stalls::{Silences, Stall};
use crate::store::{Store, StoreError, Traffic};
use crate::transfers::Transfers;
use removals::Removals;
use rivals::Rivals;
use skiff_base::chain;
use skiff_blobs::{BlobError, Blobs};
use skiff_link::{LinkEvent, Publication, Refusals, Refused};
use skiff_protocol::transfer::Offer;
use skiff_protocol::{DeviceId, Digest, FleetId, RunId, Timestamp, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A task for the shell.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Publish this message.
    Publish(Publication),
    /// Merge updates in a thread, then call [`Hub::merge_ended`].
    Merge(MergeJob),
    /// Assemble and check an update in a thread, then call [`Hub::checked`].
    Check(Arrival),
}

/// A fault of the disk after which the coordinator must stop. The coordinator has promised nothing that it did not store.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The journal cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder of blobs cannot be read or written.
    #[error("reading or writing weights and updates")]
    Blobs(#[from] BlobError),
}

/// The coordinator without its clock and sockets. The module's doc explains when it is called.
pub struct Hub {
    fleet_id: FleetId,
    model: Arc<Model>,
    blobs: Arc<dyn Blobs>,
    store: Box<dyn Store>,
    /// Blobs that no journal named when the hub was opened. They are never removed.
    unknown: BTreeSet<Digest>,
    writer: Writer,
    fleet: Fleet,
    transfers: Transfers,
    /// Devices that got a command and have not answered it.
    unanswered: Silences,
    refusals: Refusals,
    /// Topic of this coordinator's presence, on which another coordinator of the fleet shows itself.
    presence_topic: String,
    rivals: Rivals,
    removals: Removals,
    connected: bool,
    run: Option<Run>,
    /// Updates that wait for their check.
    arrivals: Arrivals,
    /// Actions that are neither committed nor carried out yet.
    decided: Vec<Action>,
    effects: Vec<Effect>,
    /// Traffic in the current round since the last commit.
    traffic: Traffic,
    traffic_round: u32,
    /// Committed traffic by round.
    travelled: BTreeMap<u32, Traffic>,
    /// Devices whose view shows a training order.
    with_order: BTreeSet<DeviceId>,
    /// Start of the current interval of probes, and the number of probes answered in it.
    probes: (Timestamp, u32),
}

/// The parts of which a hub consists.
pub struct Parts {
    /// Name of the fleet.
    pub fleet: FleetId,
    /// Maximum number of known devices.
    pub devices: usize,
    /// Maximum number of concurrent transfers in each direction.
    pub slots: usize,
    /// The model.
    pub model: Arc<Model>,
    /// Weights and updates.
    pub blobs: Arc<dyn Blobs>,
    /// The journal.
    pub store: Box<dyn Store>,
    /// Signs and encodes the coordinator's messages.
    pub writer: Writer,
}

impl Hub {
    /// Opens the hub and resumes the last run at the end of its journal.
    ///
    /// # Errors
    /// The journal or the folder of blobs cannot be read. A run with damaged records or weights is stopped instead.
    pub fn open(parts: Parts, now: Timestamp) -> Result<Self, HubError> {
        let Parts { fleet, devices, slots, model, blobs, store, writer } = parts;
        let mut hub = Self {
            presence_topic: Topic::Presence.text(&fleet),
            rivals: Rivals::new(writer.boot()),
            removals: Removals::new(store.removals()?),
            fleet_id: fleet,
            fleet: Fleet::new(model.pack, devices),
            transfers: Transfers::new(Arc::clone(&blobs), slots),
            unanswered: Silences::default(),
            model,
            blobs,
            store,
            unknown: BTreeSet::new(),
            writer,
            refusals: Refusals::default(),
            connected: false,
            run: None,
            arrivals: Arrivals::default(),
            decided: Vec::new(),
            effects: Vec::new(),
            traffic: Traffic::default(),
            traffic_round: 0,
            travelled: BTreeMap::new(),
            with_order: BTreeSet::new(),
            probes: (now, 0),
        };
        for finding in hub.store.findings() {
            tracing::error!(run = %finding.run, reason = finding.reason, "the run is stopped because records are damaged or missing; its weights are kept");
        }
        if let Some(row) = hub.store.runs()?.pop().filter(|row| row.damage.is_none()) {
            match hub.take_up(row.run, now) {
                Err(HubError::Store(fault)) if fault.is_of_one_run() => {
                    let reason = chain(&fault);
                    tracing::error!(run = %row.run, reason, "the run is stopped because its records contradict each other; its weights are kept");
                    hub.store.stop_damaged(row.run, &reason)?;
                }
                taken => taken?,
            }
        }
        let collected = hub.remove_blobs()?;
        if !collected.unknown.is_empty() {
            let (blobs, bytes) = (collected.unknown.len(), collected.unknown_bytes);
            tracing::warn!(
                blobs,
                bytes,
                "some blobs do not belong to any run and are kept; `skiff store check` lists them"
            );
        }
        hub.unknown = collected.unknown.iter().filter_map(|blob| Digest::parse(blob)).collect();
        Ok(hub)
    }

    /// Returns the effects of opening, such as a merge to repeat.
    #[must_use]
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Returns the time of the last record, in milliseconds since 1970. The shell's clock must not start before this time.
    #[must_use]
    pub fn last_ms(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.ledger().last_ms)
    }

    /// Returns the state of the current or last run.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        self.run.as_ref().map(Run::ledger)
    }

    /// Handles events of the link to the broker.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn link(&mut self, events: Vec<LinkEvent>, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        for event in events {
            match event {
                LinkEvent::Up => {
                    tracing::info!("connected to the broker");
                    self.connected = true;
                    // The versions go first, so that a device knows them before it answers the coordinator's presence.
                    self.publish(self.writer.announcement());
                    self.publish(self.writer.presence(true));
                    self.clear_on_connection(now);
                    let steps = self.transfers.nudge(now);
                    self.follow(steps, now);
                }
                LinkEvent::Down { reason } => {
                    tracing::warn!(reason, "not connected to the broker, trying again");
                    self.connected = false;
                }
                LinkEvent::Message { topic, payload } if topic == self.presence_topic => {
                    self.take_presence(&payload, now);
                }
                LinkEvent::Message { topic, payload } => {
                    self.traffic.up += (topic.len() + payload.len()) as u64;
                    self.take(&topic, &payload, now);
                }
            }
        }
        self.report_stalls(now);
        self.write_marks(now)?;
        self.settle(now)
    }

    /// Handles the result of the merge that [`Effect::Merge`] asked for.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn merge_ended(
        &mut self,
        job: (RunId, u64),
        merged: Result<Merged, String>,
        now: Timestamp,
    ) -> Result<Vec<Effect>, HubError> {
        let (run, epoch) = job;
        let made = merged
            .as_ref()
            .map_or_else(|_| Vec::new(), |merged| merged.moments.into_iter().chain([merged.weights]).collect());
        self.feed(Event::MergeEnded { run, epoch, merged }, now);
        let effects = self.settle(now)?;
        // If the run was stopped meanwhile, no record names the new weights.
        for blob in made {
            if !self.store.is_named(blob)? {
                self.drop_received(blob);
            }
        }
        Ok(effects)
    }

    /// Handles the result of the check that [`Effect::Check`] asked for.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn checked(&mut self, checked: Checked, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        if let Some(arrival) = self.arrivals.finish() {
            self.take_checked(arrival, checked, now);
        }
        self.check_next();
        self.settle(now)
    }

    /// Does what is due at `now`: retries, idle transfers and deadlines of the run.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn tick(&mut self, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        let steps = self.transfers.tick(now);
        self.follow(steps, now);
        self.report_stalls(now);
        self.clear_retained(now);
        self.fleet.tick(now);
        self.feed(Event::Tick, now);
        self.settle(now)
    }

    /// Returns the time of the next [`Hub::tick`]; `None` if nothing is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let run = self.run.as_ref().and_then(Run::deadline);
        let fleet = self.fleet.deadline().into_iter().chain(self.removals.deadline()).chain(self.unanswered.due());
        run.into_iter().chain(self.transfers.deadline()).chain(fleet).min()
    }

    /// Returns the message that tells devices that the coordinator is leaving.
    #[must_use]
    pub fn farewell(&self) -> Publication {
        self.writer.presence(false)
    }

    fn take(&mut self, topic: &str, payload: &[u8], now: Timestamp) {
        let (device, said) = match mqtt::read(&self.fleet_id, topic, payload) {
            Ok(read) => read,
            Err(refused) => {
                self.refusals.add(&refused, topic, now);
                return;
            }
        };
        tracing::trace!(%device, topic, bytes = payload.len());
        let changed = match said {
            Said::Birth(birth) => match self.takes_birth(&device, &birth) {
                Some(note) => {
                    let changed = self.fleet.birth(&device, birth, now);
                    if !note.is_empty() && changed.is_ok() {
                        self.fleet.note(&device, &note);
                    }
                    changed
                }
                None => Ok(Change::Nothing),
            },
            Said::Gone(_) if self.drops_farewell(&device, now) => Ok(Change::Nothing),
            Said::Gone(gone) => self.fleet.gone(&device, &gone, now),
            Said::Cleared => {
                self.take_cleared(&device);
                Ok(Change::Nothing)
            }
            Said::Telemetry(_) if self.is_removed(&device) => Ok(Change::Nothing),
            Said::Telemetry(sample) => {
                let condition = fleet::condition(&sample);
                let taken = self.fleet.telemetry(&device, sample, now);
                if let (Ok(()), Some(run)) = (&taken, &mut self.run) {
                    run.set_condition(&device, condition);
                }
                taken.map(|()| Change::Nothing)
            }
            Said::Answer(answer) => {
                self.unanswered.end(&device);
                if let skiff_protocol::messages::Outcome::Refused { reason } = &answer.outcome {
                    tracing::warn!(%device, reason, "the device refused an order");
                    self.fleet.note(&device, &format!("refused an order: {reason}"));
                }
                self.feed(Event::Answered(device.clone(), answer), now);
                Ok(Change::Nothing)
            }
            Said::Probe(chunk) => {
                self.answer_probe(&device, chunk, now);
                Ok(Change::Nothing)
            }
            Said::Transfer(id, message) => {
                let (run, most_bytes) = (self.run.as_ref(), self.most_bytes());
                let judge = |offer: &Offer| updates::judge(run, most_bytes, &device, offer);
                let refused = updates::refused_for_good(run, most_bytes, &device, &message);
                let steps = self.transfers.receive(&device, id, message, judge, now);
                self.follow(steps, now);
                if let Some((epoch, reason)) = refused {
                    tracing::warn!(%device, reason, "an update was refused before it was sent");
                    self.fleet.note(&device, &format!("update refused: {reason}"));
                    self.feed(Event::UpdateUnfit { device: device.clone(), epoch, reason }, now);
                }
                Ok(Change::Nothing)
            }
        };
        match changed {
            Ok(Change::Here(here)) => {
                tracing::debug!(%device, boot = here.boot.0, "device is present");
                self.feed(Event::DeviceHere(device, here), now);
            }
            Ok(Change::Gone) => {
                tracing::debug!(%device, "device is gone");
                self.arrivals.forget(&device);
                self.unanswered.end(&device);
                let steps = self.transfers.forget(&device, now);
                self.follow(steps, now);
                self.feed(Event::DeviceGone(device), now);
            }
            Ok(Change::Nothing) => {}
            Err(unwelcome) => {
                let refused = Refused { label: unwelcome.label(), reason: unwelcome.to_string() };
                self.refusals.add(&refused, topic, now);
            }
        }
    }

    /// Reads a message of presence from this coordinator or another one.
    fn take_presence(&mut self, payload: &[u8], now: Timestamp) {
        let Some((presence, has_our_key)) = self.writer.read_presence(&self.presence_topic, payload) else { return };
        let sign = self.rivals.read(&presence, has_our_key, now);
        if sign.has_appeared
            && let Some(warning) = self.rivals.warning(&self.fleet_id, now)
        {
            tracing::warn!(boot = presence.boot.0, "{warning}");
        }
        if sign.has_replaced {
            self.publish(self.writer.presence(true));
        }
    }

    /// Notes which orders and transfers have stalled, and which have not any more.
    fn report_stalls(&mut self, now: Timestamp) {
        let (answered, unanswered) = self.unanswered.take_news(now);
        let mut news: Vec<(DeviceId, Option<Stall>)> = answered.into_iter().map(|device| (device, None)).collect();
        news.extend(unanswered.into_iter().map(|(device, _)| (device, Some(Stall::OrderUnanswered))));
        news.extend(self.transfers.take_stalls(now));
        for (device, stall) in news {
            let text = stall.map(|stall| stall.to_string());
            if let Some(text) = &text {
                tracing::warn!(%device, "the device {text}");
            }
            self.fleet.set_stall(&device, text);
        }
    }

    fn feed(&mut self, event: Event, now: Timestamp) {
        self.feed_all([event], now);
    }

    /// Passes events to the run. Its commands follow in [`Hub::settle`].
    fn feed_all(&mut self, events: impl IntoIterator<Item = Event>, now: Timestamp) {
        if let Some(run) = &mut self.run {
            self.decided.extend(run.feed(events, now));
        }
    }

    /// Commits the decided records, then carries out the decided actions, until none are left.
    fn settle(&mut self, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        let mut commands_are_due = true;
        loop {
            if commands_are_due && let Some(run) = &mut self.run {
                self.decided.extend(run.commands(now));
            }
            if self.decided.is_empty() {
                break;
            }
            let (records, actions): (Vec<Action>, Vec<Action>) =
                std::mem::take(&mut self.decided).into_iter().partition(|action| matches!(action, Action::Journal(_)));
            let entries: Vec<Entry> = records
                .into_iter()
                .filter_map(|action| if let Action::Journal(entry) = action { Some(entry) } else { None })
                .collect();
            self.commit(&entries)?;
            for action in actions {
                self.carry_out(action, now);
            }
            let supersedes = |entry: &Entry| {
                matches!(entry.record, Record::Merged(_) | Record::Skipped { .. } | Record::RunEnded { .. })
            };
            if entries.iter().any(supersedes) {
                self.remove_blobs()?;
            }
            commands_are_due = !entries.is_empty();
            if !entries.is_empty() {
                let (run, most_bytes) = (self.run.as_ref(), self.most_bytes());
                let judge = |device: &DeviceId, offer: &Offer| updates::judge(run, most_bytes, device, offer);
                let steps = self.transfers.judge_again(judge, now);
                self.follow(steps, now);
            }
        }
        Ok(std::mem::take(&mut self.effects))
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), HubError> {
        let Some(ledger) = self.run.as_ref().map(Run::ledger).filter(|_| !entries.is_empty()) else { return Ok(()) };
        let traffic = std::mem::take(&mut self.traffic);
        self.store.append(ledger.start.run, entries, self.traffic_round, traffic)?;
        *self.travelled.entry(self.traffic_round).or_default() += traffic;
        self.traffic_round = ledger.round;
        entries.iter().for_each(|entry| log::record(ledger.start.run, &entry.record));
        self.mark_changed(entries);
        Ok(())
    }

    fn carry_out(&mut self, action: Action, now: Timestamp) {
        match action {
            Action::Journal(_) => {}
            Action::ConfirmUpdate(device, update) => {
                let steps = self.transfers.confirm(&device, update, now);
                self.follow(steps, now);
            }
            Action::RefuseUpdate(device, update, reason) => {
                self.drop_received(update);
                let steps = self.transfers.refuse(&device, update, reason, now);
                self.follow(steps, now);
            }
            Action::SendCommand(device, command) => {
                tracing::debug!(%device, round = command.round, epoch = command.epoch, "command");
                let version = self.fleet.version(&device);
                self.publish(self.writer.command(&device, version, command));
                if self.connected {
                    self.unanswered.begin(&device, now);
                }
            }
            Action::OfferWeights(device, weights) => {
                if let Some(run) = self.run.as_ref().map(|run| run.ledger().start.run) {
                    let steps = self.transfers.offer_weights(&device, run, weights, now);
                    self.follow(steps, now);
                }
            }
            Action::Merge(job) => self.effects.push(Effect::Merge(job)),
        }
    }

    /// Queues a publication. Without a connection it is dropped: every message is repeated later.
    fn publish(&mut self, publication: Publication) {
        if self.connected {
            self.traffic.down += (publication.topic.len() + publication.payload.len()) as u64;
            self.effects.push(Effect::Publish(publication));
        }
    }
}

#[cfg(test)]
mod tests;
