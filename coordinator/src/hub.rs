//! Where everything meets: the engine, the fleet, the transfers and the journal. It has a disk, but no clock and no socket:
//! the shell in [`crate::serve`] tells it the time and what came, and carries out what it returns.
//!
//! Several messages are taken at once where they are there at once, and their records committed together. Nothing that
//! rests on a record leaves before the commit.

use crate::arrivals::{Arrival, Arrivals, Checked};
use crate::doors::mqtt::{self, Said, Writer};
use crate::fleet::{self, Change, Fleet};
use crate::merge::model::Model;
use crate::progress::Progress;
use crate::run::sharing::{Policy, Share};
use crate::run::{Action, Entry, Event, MergeJob, Merged, Phase, Record, Run, RunSettings, Start, Verdict};
use crate::store::collector::{self, Collected};
use crate::store::{Store, StoreError, Traffic, room};
use crate::transfers::{Step, Transfers, chain};
use crate::views;
use skiff_blobs::{BlobError, Blobs};
use skiff_link::{LinkEvent, Publication, Refusals, Refused};
use skiff_protocol::transfer::{Offer, Purpose};
use skiff_protocol::{DeviceId, Digest, FleetId, RunId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An update may be this much larger than the initial weights: names and shapes are written in its head.
const UPDATE_SLACK_BYTES: u64 = 64 * 1024;

/// What the shell has to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Publish this.
    Publish(Publication),
    /// Merge, in a thread of its own; then [`Hub::merge_ended`].
    Merge(MergeJob),
    /// Assemble and check an update, in a thread of its own; then [`Hub::checked`].
    Check(Arrival),
}

/// Why the coordinator cannot go on. It has promised nothing that it did not store.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs.
    #[error("keeping weights and updates")]
    Blobs(#[from] BlobError),
}

/// The coordinator less its clock and sockets.
pub struct Hub {
    fleet_id: FleetId,
    model: Arc<Model>,
    blobs: Arc<dyn Blobs>,
    store: Box<dyn Store>,
    /// Blobs that no journal named when the hub was opened: they are never removed.
    unknown: BTreeSet<Digest>,
    writer: Writer,
    fleet: Fleet,
    transfers: Transfers,
    refusals: Refusals,
    connected: bool,
    run: Option<Run>,
    /// Updates that wait for their check.
    arrivals: Arrivals,
    /// Decided, not yet committed nor carried out.
    decided: Vec<Action>,
    effects: Vec<Effect>,
    /// Travelled since the last commit, in this round of the run.
    traffic: Traffic,
    traffic_round: u32,
    /// Travelled before, by round.
    travelled: BTreeMap<u32, Traffic>,
}

/// What a hub is made of.
pub struct Parts {
    /// The fleet.
    pub fleet: FleetId,
    /// Devices known at a time.
    pub devices: usize,
    /// Transfers at a time, each way.
    pub slots: usize,
    /// The model.
    pub model: Arc<Model>,
    /// Weights and updates.
    pub blobs: Arc<dyn Blobs>,
    /// The journal.
    pub store: Box<dyn Store>,
    /// Signs what is said.
    pub writer: Writer,
}

impl Hub {
    /// Takes up the last run where its journal ends.
    ///
    /// # Errors
    /// A journal that cannot be read or does not hang together; weights that are lost.
    pub fn open(parts: Parts, now: Timestamp) -> Result<Self, HubError> {
        let Parts { fleet, devices, slots, model, blobs, store, writer } = parts;
        let mut hub = Self {
            fleet_id: fleet,
            fleet: Fleet::new(model.pack, devices),
            transfers: Transfers::new(Arc::clone(&blobs), slots),
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
        };
        for finding in hub.store.findings() {
            tracing::error!(run = %finding.run, reason = finding.reason, "the run is stopped: its records are damaged or missing; its weights stay");
        }
        if let Some(row) = hub.store.runs()?.pop().filter(|row| row.damage.is_none()) {
            match hub.take_up(row.run, now) {
                Err(HubError::Store(fault)) if fault.is_of_one_run() => {
                    let reason = chain(&fault);
                    tracing::error!(run = %row.run, reason, "the run is stopped: its records do not fit together; its weights stay");
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
                "no journal ever named some blobs; they stay (`skiff store check` lists them)"
            );
        }
        hub.unknown = collected.unknown.iter().filter_map(|blob| Digest::parse(blob)).collect();
        Ok(hub)
    }

    /// What opening left to do: a merge that was interrupted.
    #[must_use]
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The time of the last record: the shell's clock must not be before it.
    #[must_use]
    pub fn last_ms(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.ledger().last_ms)
    }

    /// What happened on the link.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
    pub fn link(&mut self, events: Vec<LinkEvent>, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        for event in events {
            match event {
                LinkEvent::Up => {
                    tracing::info!("connected to the broker");
                    self.connected = true;
                    // A device that hears of this life's presence then knows its versions already.
                    self.publish(self.writer.announcement());
                    self.publish(self.writer.presence(true));
                    let steps = self.transfers.nudge(now);
                    self.follow(steps, now);
                }
                LinkEvent::Down { reason } => {
                    tracing::warn!(reason, "not connected to the broker, trying again");
                    self.connected = false;
                }
                LinkEvent::Message { topic, payload } => {
                    self.traffic.up += (topic.len() + payload.len()) as u64;
                    self.take(&topic, &payload, now);
                }
            }
        }
        self.settle(now)
    }

    /// A merge ended.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
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
        // A run that was stopped meanwhile names no weights any more.
        for blob in made {
            if !self.store.is_named(blob)? {
                self.drop_received(blob);
            }
        }
        Ok(effects)
    }

    /// Takes the result of the check that [`Effect::Check`] asked for.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
    pub fn checked(&mut self, checked: Checked, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        if let Some(arrival) = self.arrivals.finish() {
            self.take_checked(arrival, checked, now);
        }
        self.check_next();
        self.settle(now)
    }

    /// Time has passed.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
    pub fn tick(&mut self, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        let steps = self.transfers.tick(now);
        self.follow(steps, now);
        self.feed(Event::Tick, now);
        self.settle(now)
    }

    /// When to tick.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let run = self.run.as_ref().and_then(Run::deadline);
        run.into_iter().chain(self.transfers.deadline()).min()
    }

    /// Starts a run under the name `run`. The inner result says what is wrong with the request.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
    pub fn start_run(
        &mut self,
        run: RunId,
        settings: RunSettings,
        now: Timestamp,
    ) -> Result<Result<Vec<Effect>, String>, HubError> {
        if let Some(present) = self.run.as_ref().filter(|run| !run.ledger().is_ended()) {
            return Ok(Err(format!("run {} is going on: stop it first", present.ledger().start.run)));
        }
        if let Err(bad) = settings.check(self.model.layers) {
            return Ok(Err(bad.to_string()));
        }
        let needed_bytes = room::needed_bytes(&settings, self.model.initial.len() as u64, self.most_bytes());
        if let Some(reason) = room::lacking(&*self.blobs, needed_bytes)? {
            return Ok(Err(reason));
        }
        let weights = self.blobs.put(&self.model.initial)?;
        let schema = Digest(self.model.schema.hash());
        let settings = Box::new(settings);
        let start = Start {
            run,
            settings,
            layers: self.model.layers,
            pack: self.model.pack,
            schema,
            weights,
            task: Some(self.model.task.clone()),
        };
        let (started, actions) = match Run::start(start, now) {
            Ok(started) => started,
            Err(bad) => return Ok(Err(bad.to_string())),
        };
        self.run = Some(started);
        self.traffic = Traffic::default();
        self.traffic_round = 0;
        self.travelled = BTreeMap::new();
        self.decided.extend(actions);
        let here: Vec<Event> =
            self.fleet.here().map(|(device, here)| Event::DeviceHere(device.clone(), here)).collect();
        let away: Vec<Event> = self.fleet.away().map(|device| Event::DeviceGone(device.clone())).collect();
        // Who is away first: the first to be there may complete what is waited for.
        away.into_iter().chain(here).for_each(|event| self.feed(event, now));
        self.settle(now).map(Ok)
    }

    /// Stops the run. The inner result says what is wrong with the request.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
    pub fn stop_run(&mut self, reason: String, now: Timestamp) -> Result<Result<Vec<Effect>, String>, HubError> {
        if self.run.as_ref().is_none_or(|run| run.ledger().is_ended()) {
            return Ok(Err("no run is going on".to_owned()));
        }
        self.feed(Event::StopRequested { reason }, now);
        self.settle(now).map(Ok)
    }

    /// Changes who shares what in the run that is going on, if one is, from its next order on.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
    pub fn set_policy(&mut self, policy: Policy, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        self.feed(Event::PolicySet(policy), now);
        self.settle(now)
    }

    /// The policy of the run that is going on.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.run.as_ref().map(Run::ledger).filter(|ledger| !ledger.is_ended()).map(|ledger| &ledger.policy)
    }

    /// What a policy means for every device that is known.
    ///
    /// # Errors
    /// A policy that the model cannot keep.
    pub fn shares(&self, policy: &Policy) -> Result<BTreeMap<DeviceId, Share>, String> {
        policy.check(self.model.layers)?;
        self.fleet
            .places()
            .map(|(device, place)| Ok((device.clone(), policy.share(place, self.model.layers)?)))
            .collect()
    }

    /// Deletes an ended run and the weights that only it kept. The inner result says what is wrong with the request.
    ///
    /// # Errors
    /// What the coordinator cannot go on from.
    pub fn delete_run(&mut self, run: RunId) -> Result<Result<Collected, String>, HubError> {
        let current = self.run.as_ref().map(Run::ledger).filter(|ledger| ledger.start.run == run);
        if current.is_some_and(|ledger| !ledger.is_ended()) {
            return Ok(Err(format!("run {run} is not ended: stop it first (`skiff run stop`)")));
        }
        let is_current = current.is_some();
        if !self.store.runs()?.iter().any(|row| row.run == run) {
            return Ok(Err(format!("there is no run {run}; `skiff run list` names them")));
        }
        self.store.delete(run)?;
        if is_current {
            self.run = None;
        }
        tracing::info!(%run, "run deleted");
        Ok(Ok(self.remove_blobs()?))
    }

    /// Returns what a watcher sees.
    #[must_use]
    pub fn progress(&self, now: Timestamp) -> Progress {
        let ledger = self.run.as_ref().map(Run::ledger);
        let devices = views::devices(&self.fleet, ledger, now);
        let mut travelled = self.travelled.clone();
        // Bytes that travel after the end of a run do not count for it.
        if ledger.is_some_and(|ledger| !ledger.is_ended()) {
            *travelled.entry(self.traffic_round).or_default() += self.traffic;
        }
        let run = self.run.as_ref().map(|run| views::current_run(run, &travelled, now));
        Progress { connected: self.connected, devices, run, refused_messages: self.refusals.by_label() }
    }

    /// What the coordinator says when it goes.
    #[must_use]
    pub fn farewell(&self) -> Publication {
        self.writer.presence(false)
    }

    fn take_up(&mut self, run: RunId, now: Timestamp) -> Result<(), HubError> {
        let (taken, actions) = self.resume(run, now)?;
        let ledger = taken.ledger();
        let (weights, is_ended, pack) = (ledger.weights, ledger.is_ended(), ledger.start.pack);
        // Read, not looked up: a damaged blob would fail every device's check of its digest.
        let unreadable = if is_ended { None } else { self.blobs.read(weights).err() };
        if !is_ended {
            tracing::info!(%run, round = ledger.round, "the run goes on");
        }
        self.travelled = self.store.traffic(run)?;
        self.traffic_round = ledger.round;
        self.run = Some(taken);
        self.decided.extend(actions);
        if !is_ended && pack != self.model.pack {
            tracing::warn!(%run, "the run was started with another pack");
            self.feed(Event::StopRequested { reason: format!("the pack was exchanged, it was {pack:?}") }, now);
        }
        if let Some(fault) = unreadable {
            let reason = match &fault {
                BlobError::Corrupt { .. } => {
                    format!("its weights {weights} are damaged on the disk: {}", chain(&fault))
                }
                BlobError::Missing { .. } => format!("its weights {weights} are missing: {}", chain(&fault)),
                BlobError::Io { .. } | BlobError::WrongChunk { .. } | BlobError::QuotaExceeded { .. } => {
                    format!("its weights {weights} cannot be read: {}", chain(&fault))
                }
            };
            self.feed(Event::StopRequested { reason }, now);
        }
        self.effects = self.settle(now)?;
        Ok(())
    }

    fn resume(&self, run: RunId, now: Timestamp) -> Result<(Run, Vec<Action>), HubError> {
        Ok(self.store.resume(run, now)?)
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
            Said::Birth(birth) => self.fleet.birth(&device, birth, now),
            Said::Gone(gone) => self.fleet.gone(&device, &gone, now),
            Said::Telemetry(sample) => {
                let condition = fleet::condition(&sample);
                let taken = self.fleet.telemetry(&device, sample, now);
                if let (Ok(()), Some(run)) = (&taken, &mut self.run) {
                    run.set_condition(&device, condition);
                }
                taken.map(|()| Change::Nothing)
            }
            Said::Answer(answer) => {
                if let skiff_protocol::messages::Outcome::Refused { reason } = &answer.outcome {
                    tracing::warn!(%device, reason, "the device refuses an order");
                    self.fleet.note(&device, &format!("refused an order: {reason}"));
                }
                self.feed(Event::Answered(device.clone(), answer), now);
                Ok(Change::Nothing)
            }
            Said::Transfer(id, message) => {
                let (run, most_bytes) = (self.run.as_ref(), self.most_bytes());
                let judge = |offer: &Offer| judge(run, most_bytes, &device, offer);
                let steps = self.transfers.receive(&device, id, message, judge, now);
                self.follow(steps, now);
                Ok(Change::Nothing)
            }
        };
        match changed {
            Ok(Change::Here(here)) => {
                tracing::debug!(%device, boot = here.boot.0, "here");
                self.feed(Event::DeviceHere(device, here), now);
            }
            Ok(Change::Gone) => {
                tracing::debug!(%device, "gone");
                self.arrivals.forget(&device);
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

    /// The most that an update may have: it holds no more than all weights.
    fn most_bytes(&self) -> u64 {
        self.model.initial.len() as u64 + UPDATE_SLACK_BYTES
    }

    fn feed(&mut self, event: Event, now: Timestamp) {
        if let Some(run) = &mut self.run {
            self.decided.extend(run.handle(event, now));
        }
    }

    /// Does what transfers want done.
    fn follow(&mut self, steps: Vec<Step>, now: Timestamp) {
        for step in steps {
            match step {
                Step::Send(device, id, message) => {
                    let version = self.fleet.version(&device);
                    self.publish(self.writer.transfer(&device, version, id, message));
                }
                Step::Arrived(device, offer) => self.arrived(device, offer, now),
            }
        }
    }

    /// Queues an update whose chunks have all come for its check.
    fn arrived(&mut self, device: DeviceId, offer: Offer, now: Timestamp) {
        let Offer { digest, total_bytes, purpose } = offer;
        let Purpose::Update { epoch, report, .. } = purpose else { return };
        let Some(ledger) = self.run.as_ref().map(Run::ledger) else {
            let steps = self.transfers.refuse(&device, digest, "no run is going on".to_owned(), now);
            return self.follow(steps, now);
        };
        let ordered = ledger.order_of(&device);
        let rank = ordered.map_or(0, |ordered| ordered.assignment.share.rank);
        let base = ordered.map_or(ledger.weights, |ordered| ordered.weights);
        self.arrivals.push(Arrival { device, digest, total_bytes, epoch, report, base, rank });
        self.check_next();
    }

    fn check_next(&mut self) {
        self.effects.extend(self.arrivals.start_next().map(Effect::Check));
    }

    fn take_checked(&mut self, arrival: Arrival, checked: Checked, now: Timestamp) {
        let Arrival { device, digest, total_bytes, epoch, report, .. } = arrival;
        match checked {
            Checked::Fit { distance } => {
                self.feed(Event::UpdateStored { device, epoch, update: digest, report, distance }, now);
            }
            Checked::Unfit { reason } => {
                tracing::warn!(%device, reason, "an update is unfit");
                self.fleet.note(&device, &format!("update refused: {reason}"));
                self.drop_received(digest);
                let steps = self.transfers.refuse(&device, digest, reason.clone(), now);
                self.feed(Event::UpdateUnfit { device, epoch, reason }, now);
                self.follow(steps, now);
            }
            Checked::WrongDigest => {
                let steps = self.transfers.start_over(&device, digest, now);
                self.follow(steps, now);
            }
            Checked::Incomplete => {
                let steps = self.transfers.ask_for_missing(&device, digest, total_bytes, now);
                self.follow(steps, now);
            }
            Checked::Failed { reason } => {
                tracing::error!(%device, reason, "an update cannot be stored");
                let reason = format!("the coordinator cannot store it: {reason}");
                let steps = self.transfers.refuse(&device, digest, reason, now);
                self.follow(steps, now);
            }
        }
    }

    /// Commits what was decided, then carries it out, until nothing is left.
    fn settle(&mut self, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        while !self.decided.is_empty() {
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
            if entries.iter().any(|entry| matches!(entry.record, Record::Merged(_) | Record::Skipped { .. })) {
                self.remove_blobs()?;
            }
            if !entries.is_empty() {
                let (run, most_bytes) = (self.run.as_ref(), self.most_bytes());
                let judge = |device: &DeviceId, offer: &Offer| judge(run, most_bytes, device, offer);
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
        entries.iter().for_each(|entry| log(ledger.start.run, &entry.record));
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

    /// What is said while nobody hears it is lost anyway, and said again.
    fn publish(&mut self, publication: Publication) {
        if self.connected {
            self.traffic.down += (publication.topic.len() + publication.payload.len()) as u64;
            self.effects.push(Effect::Publish(publication));
        }
    }

    /// Returns the blobs that the current run needs.
    fn in_use(&self) -> BTreeSet<Digest> {
        self.run.as_ref().map(|run| run.ledger().needed()).unwrap_or_default()
    }

    /// Removes a blob that this process received or made and that nothing needs. A device may offer the digest of a blob that
    /// is not its own, such as the global weights: that one stays.
    fn drop_received(&self, digest: Digest) {
        let in_use =
            self.in_use().contains(&digest) || self.arrivals.contains(digest) || self.unknown.contains(&digest);
        let removed = self.store.kept().and_then(|kept| {
            let is_free = !in_use && !kept.contains(&digest);
            if is_free { Ok(self.blobs.remove(digest)?) } else { Ok(()) }
        });
        if let Err(error) = removed {
            tracing::error!(error = %chain(&error), "a refused update cannot be removed");
        }
    }

    /// Removes superseded blobs, and the chunks of updates if no device trains.
    fn remove_blobs(&self) -> Result<Collected, HubError> {
        let needed = self.in_use();
        let in_use = |blob: Digest| needed.contains(&blob) || self.arrivals.contains(blob);
        let collected = collector::collect(&*self.store, &*self.blobs, &in_use, true)?;
        if !collected.removed.is_empty() {
            let (blobs, bytes) = (collected.removed.len(), collected.removed_bytes);
            tracing::info!(blobs, bytes, "removed superseded weights and updates");
        }
        let trains =
            self.run.as_ref().map(Run::ledger).is_some_and(|ledger| {
                matches!(ledger.phase, Phase::Train(_)) || !ledger.carried.assignments.is_empty()
            });
        for partial in self.blobs.partials()?.into_iter().filter(|_| !trains) {
            if !self.arrivals.contains(partial) {
                self.blobs.abandon(partial)?;
            }
        }
        Ok(collected)
    }
}

fn judge(run: Option<&Run>, most_bytes: u64, device: &DeviceId, offer: &Offer) -> Verdict {
    let verdict = match (run, &offer.purpose) {
        (Some(run), Purpose::Update { run: id, round, epoch, report }) => {
            run.judge_offer(device, *id, *round, *epoch, report)
        }
        (None, _) | (_, Purpose::Weights { .. }) => Verdict::Refused("no run is going on".to_owned()),
    };
    if verdict == Verdict::Wanted && offer.total_bytes > most_bytes {
        return Verdict::Refused(format!("an update of {} bytes, expected at most {most_bytes}", offer.total_bytes));
    }
    verdict
}

fn log(run: RunId, record: &Record) {
    match record {
        Record::RunStarted(start) => tracing::info!(%run, rounds = start.settings.rounds, "run started"),
        Record::Resumed => tracing::info!(%run, "run resumed"),
        Record::TrainingStarted { assignments, .. } => tracing::info!(%run, devices = assignments.len(), "training"),
        Record::UpdateStored { device, report, .. } => {
            tracing::info!(%run, %device, examples = report.examples, train_ms = report.train_ms, "update stored");
        }
        Record::DeviceOut { device, reason } => tracing::warn!(%run, %device, reason, "out of this round"),
        Record::Collected => tracing::debug!(%run, "merging"),
        Record::Merged(Merged { weights, .. }) => tracing::info!(%run, %weights, "round merged"),
        Record::Skipped { reason } => tracing::warn!(%run, reason, "round skipped"),
        Record::EvaluationStarted { examples, .. } => tracing::info!(%run, devices = examples.len(), "evaluating"),
        Record::Evaluated(evaluation) => {
            tracing::info!(%run, accuracy = evaluation.accuracy(), examples = evaluation.examples, "evaluated");
            for (device, reason) in &evaluation.left_out {
                tracing::warn!(%run, %device, reason, "left out of the evaluation");
            }
        }
        Record::RunEnded { stopped: Some(reason) } => tracing::warn!(%run, reason, "run stopped"),
        Record::RunEnded { stopped: None } => tracing::info!(%run, "run completed"),
        Record::PolicySet(policy) => tracing::info!(%run, groups = policy.groups.len(), "another policy of sharing"),
    }
}

#[cfg(test)]
mod tests;
