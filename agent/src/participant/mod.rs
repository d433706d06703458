//! Decides how a device responds to events. Reads no clock, opens no socket, draws no random number.
//!
//! ```text
//!            command                   weights complete               trained
//!   Resting ─────────────► Fetching ─────────────────────► Working ─────────────► Offering
//!    ▲ ▲ ▲ └─────────────────────┼─ command, weights held ─▲   │                     │
//!    │ │ └──── failed, deadline ─┘                             │                     │
//!    │ └────── evaluated, failed, deadline ────────────────────┘                     │
//!    └──────── finished, refused ────────────────────────────────────────────────────┘
//! ```
//! A command of a larger epoch, or of another run, ends any phase and cancels the work in hand.
//!
//! - *command* (`Resting -> Fetching | Working`): the agent stores it first, then answers `Accepted`. A command that cannot be
//!   carried out (another schema, no examples) is answered with `Refused` and changes nothing else.
//! - *weights complete* (`Fetching -> Working`): the blob is whole, checked and durable.
//! - *trained* (`Working -> Offering`): the update and the layers kept personal are stored and remembered, and only then
//!   is the update offered.
//! - *finished, refused* (`Offering -> Resting`): the coordinator has the update, or does not want it. It stays stored until
//!   a newer command, so that the repeated command is answered with the same update again.
//! - *evaluated, failed, deadline* (`Fetching | Working -> Resting`): the agent stores the answer, then sends it.
//! - *restart*: begins in `Resting` with the stored memory. When the coordinator repeats the command, unfinished work begins
//!   again, and a stored answer or update is sent again. Training is a function of seed, device and round, so the update is the
//!   same.
//!
//! **Commands.** Within a run a smaller epoch is ignored, an equal one is answered again, a larger one supersedes. A command of
//! another run supersedes, unless that run started before the run of the newest obeyed command: then it is late and ignored.
//! Another run's `Stop` is only answered, because there is nothing to stop.
//!
//! **Delivery.** Nothing is sent while the link is down. When it comes up, or a new coordinator appears, the agent sends its
//! birth, reports its current work, and repeats its offer. It sends its last answer again only if the link to a known coordinator
//! comes back. A new coordinator repeats its open command when it sees the birth, and the agent answers then. It then knows which
//! version to write in; the oldest version has no room for all parts of an answer. An offer of weights that arrives before its
//! command waits in one slot; offers of other weights than the command's are not answered.
//!
//! **Versions.** [`Participant::version`] is the version of the protocol to write in: the newest that the coordinator announced
//! and the agent speaks too. An announcement is valid only until the coordinator restarts. Without one, the agent writes in the
//! oldest version, which every coordinator reads. The birth is retained at the broker, so the agent sends it again as soon as it
//! may use a newer version.
//!
//! **Storing.** Actions are carried out in their order. If [`Action::Keep`] or [`Action::Remember`] fails, the shell skips the
//! rest of that list and reports [`Event::StoreFailed`]: the agent refuses the command and keeps the previous memory.

mod events;
mod memory;
mod patience;
#[cfg(test)]
mod tests;

pub use events::{Action, Event, Profile};
pub use memory::{Memory, MemoryOfFormat1, Settled, SettledOfFormat1, Update};
pub use patience::Patience;

use skiff_contract::{Job, Personal, Ticket, Trained, Work};
use skiff_protocol::codec::Message;
use skiff_protocol::messages::{
    AgentState, Announcement, Answer, Command, Order, Outcome, Presence, TrainOrder, WorkSample, short_reason,
};
use skiff_protocol::transfer::{
    Found, Offer, Purpose, Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent, TransferId,
    TransferMessage,
};
use skiff_protocol::{BootId, Digest, RunId, Timestamp, Version, VersionRange};
use std::collections::BTreeSet;

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Phase {
    Resting,
    Fetching { work: Work, deadline: Timestamp, receiver: Option<Receiver> },
    Working { work: Work, deadline: Timestamp, sample: Option<WorkSample> },
    Offering(Sender),
}

/// One device's part in a run; see the module's documentation.
#[derive(Debug)]
pub struct Participant {
    profile: Profile,
    phase: Phase,
    memory: Option<Memory>,
    /// `memory` and `held` before the last change. They are restored if the change cannot be stored.
    before: (Option<Memory>, BTreeSet<Digest>),
    /// Blobs that are complete in the store.
    held: BTreeSet<Digest>,
    /// An offer of weights that arrived before its command.
    early: Option<Offer>,
    online: bool,
    /// Boot of the coordinator that sent the newest presence.
    coordinator: Option<BootId>,
    /// Boot of the coordinator before that one.
    former: Option<BootId>,
    /// True if the log already says that there are two coordinators.
    knows_two: bool,
    announced: Option<Announcement>,
}

impl Participant {
    /// Returns the engine of an agent that starts with this memory and these complete blobs.
    #[must_use]
    pub const fn new(profile: Profile, memory: Option<Memory>, held: BTreeSet<Digest>) -> Self {
        Self {
            profile,
            phase: Phase::Resting,
            memory,
            before: (None, BTreeSet::new()),
            held,
            early: None,
            online: false,
            coordinator: None,
            former: None,
            knows_two: false,
            announced: None,
        }
    }

    /// Takes an event and returns the actions to carry out. `now` is never earlier than in the last call.
    #[must_use]
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = match event {
            Event::LinkUp => {
                self.online = true;
                let is_known = self.coordinator.is_some();
                self.introduce(is_known, now)
            }
            Event::LinkDown => {
                self.online = false;
                Vec::new()
            }
            Event::Presence(presence) => self.presence(&presence, now),
            Event::Announcement(announcement) => self.announced(announcement),
            Event::Command(command) => self.command(command, now),
            Event::Transfer { id, message } => self.transfer(id, message, now),
            Event::LookedUp { offer, found } => self.looked_up(offer, found),
            Event::Fetched { digest, event } => self.fetched(digest, event),
            Event::StoreFailed { reason } => self.store_failed(&reason),
            Event::Stepped { ticket, sample } => {
                self.stepped(ticket, sample);
                Vec::new()
            }
            Event::Trained { ticket, trained } => self.trained(ticket, trained, now),
            Event::Evaluated { ticket, report } => self.worked(ticket, Outcome::Evaluated(report)),
            Event::WorkFailed { ticket, reason } => {
                self.worked(ticket, Outcome::Refused { reason: short_reason(&reason) })
            }
            Event::MemoryLimited { limit_bytes } => {
                // The coordinator plans with it from the next round on.
                self.profile.birth.memory.limit_bytes = limit_bytes;
                vec![self.birth()]
            }
            Event::Tick => self.tick(now),
        };
        if !self.online {
            actions.retain(|action| {
                !matches!(action, Action::Say(_) | Action::Transfer { .. } | Action::TransferChunk { .. })
            });
        }
        actions
    }

    /// Returns the time at which to send [`Event::Tick`]; an earlier tick changes nothing.
    #[must_use]
    pub const fn deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Resting => None,
            Phase::Fetching { deadline, .. } | Phase::Working { deadline, .. } => Some(*deadline),
            Phase::Offering(sender) => sender.deadline(),
        }
    }

    /// Returns the device's current activity.
    #[must_use]
    pub const fn state(&self) -> AgentState {
        match &self.phase {
            Phase::Resting => AgentState::Idle,
            Phase::Fetching { .. } => AgentState::Fetching,
            Phase::Working { work: Work { job: Job::Train(_), .. }, .. } => AgentState::Training,
            Phase::Working { work: Work { job: Job::Evaluate(_), .. }, .. } => AgentState::Evaluating,
            Phase::Offering(_) => AgentState::Uploading,
        }
    }

    /// Returns the progress of the work in hand, once there is any.
    #[must_use]
    pub const fn work(&self) -> Option<&WorkSample> {
        match &self.phase {
            Phase::Working { sample, .. } => sample.as_ref(),
            Phase::Resting | Phase::Fetching { .. } | Phase::Offering(_) => None,
        }
    }

    /// Returns the number of chunks of the weights or the update in hand that have arrived at their receiver.
    #[must_use]
    pub fn arrived_chunks(&self) -> u32 {
        match &self.phase {
            Phase::Fetching { receiver: Some(receiver), .. } => receiver.stored_chunks(),
            Phase::Offering(sender) => sender.acknowledged(),
            Phase::Resting | Phase::Working { .. } | Phase::Fetching { receiver: None, .. } => 0,
        }
    }

    /// Returns the version of the protocol to write in.
    #[must_use]
    pub fn version(&self) -> Version {
        let announced = self.announced.filter(|announced| self.coordinator == Some(announced.boot));
        announced.and_then(|announced| Version::newest_common(announced.speaks)).unwrap_or(Version::OLDEST)
    }

    // --- commands ---

    fn command(&mut self, command: Command, now: Timestamp) -> Vec<Action> {
        if let Some(memory) = self.memory.as_ref().filter(|memory| memory.run == command.run) {
            if command.epoch < memory.epoch {
                tracing::debug!(run = %command.run, epoch = command.epoch, newest = memory.epoch, "late command ignored");
                return Vec::new();
            }
            if command.epoch == memory.epoch {
                return self.repeat(command, now);
            }
        } else if command.order == Order::Stop {
            return vec![self.answer(command.run, command.round, command.epoch, Outcome::Stopped)];
        } else if let Some(memory) = self.memory.as_ref().filter(|memory| command.started_ms < memory.started_ms) {
            tracing::warn!(run = %command.run, newest = %memory.run, "command ignored: its run started before the newest obeyed run; if that is wrong, correct the coordinator's clock");
            return Vec::new();
        }
        self.supersede(command, now)
    }

    /// Answers a repeated command with its outcome, or begins its unfinished work again.
    fn repeat(&mut self, command: Command, now: Timestamp) -> Vec<Action> {
        let unfinished = matches!(&self.memory, Some(Memory { settled: Settled::Open, .. }));
        if unfinished && matches!(self.phase, Phase::Resting) {
            // The command was accepted before a restart.
            return match self.plan(command) {
                Ok(Some(work)) => self.begin(work, None, now),
                Ok(None) => self.settle(Outcome::Stopped),
                Err(reason) => self.settle(Outcome::Refused { reason }),
            };
        }
        self.stand(now)
    }

    fn supersede(&mut self, command: Command, now: Timestamp) -> Vec<Action> {
        let (mut actions, receiver) = match std::mem::replace(&mut self.phase, Phase::Resting) {
            Phase::Working { .. } => (vec![Action::Cancel], None),
            Phase::Fetching { receiver, .. } => (Vec::new(), receiver),
            Phase::Resting | Phase::Offering(_) => (Vec::new(), None),
        };
        let before = self.memory.as_ref();
        let whole = before.and_then(|memory| memory.weights).filter(|weights| self.held.contains(weights));
        let mut memory = Memory {
            run: command.run,
            started_ms: command.started_ms,
            round: command.round,
            epoch: command.epoch,
            weights: None,
            received: whole.or(before.and_then(|memory| memory.received)),
            settled: Settled::Open,
            personal: before.and_then(|memory| memory.personal.clone()),
        };
        let outcome = match self.plan(command) {
            Ok(Some(work)) => {
                memory.weights = Some(work.job.weights());
                actions.push(self.remember(memory));
                actions.extend(self.begin(work, receiver, now));
                return actions;
            }
            Ok(None) => Outcome::Stopped,
            Err(reason) => Outcome::Refused { reason },
        };
        memory.settled = Settled::Answered(outcome);
        actions.push(self.remember(memory));
        actions.extend(self.stand(now));
        actions
    }

    /// Returns the work that the command asks for, `None` for a stop, or the reason why this device cannot do it.
    fn plan(&self, command: Command) -> Result<Option<Work>, String> {
        let job = match command.order {
            Order::Train(mut order) => {
                self.check_train(&order)?;
                for &layer in &self.profile.protected {
                    if let Some(rate) = order.rates.get_mut(layer as usize) {
                        *rate = 0.0;
                    }
                }
                Job::Train(order)
            }
            Order::Evaluate(_) if self.profile.birth.test_examples == 0 => {
                return Err("this device has no examples to evaluate on".to_owned());
            }
            Order::Evaluate(order) => Job::Evaluate(order),
            Order::Stop => return Ok(None),
        };
        if job.schema() != self.profile.schema {
            let (theirs, ours) = (job.schema(), self.profile.schema);
            return Err(format!("the order is for tensors {theirs:?}, this device's pack has {ours:?}: use one pack"));
        }
        let personal = self.memory.as_ref().and_then(|memory| memory.personal.clone());
        Ok(Some(Work {
            ticket: Ticket { run: command.run, epoch: command.epoch },
            round: command.round,
            job,
            personal: personal.filter(|personal| personal.run == command.run && self.held.contains(&personal.blob)),
        }))
    }

    fn check_train(&self, order: &TrainOrder) -> Result<(), String> {
        let (rates, layers) = (order.rates.len(), self.profile.layers);
        if rates != layers {
            return Err(format!(
                "the order has rates for {rates} layers, this device's pack has {layers}: use one pack"
            ));
        }
        if self.profile.birth.train_examples == 0 {
            return Err("this device has no examples to train on".to_owned());
        }
        Ok(())
    }

    fn begin(&mut self, work: Work, receiver: Option<Receiver>, now: Timestamp) -> Vec<Action> {
        let deadline = now.plus_millis(work.job.deadline_ms());
        let weights = work.job.weights();
        if self.held.contains(&weights) {
            self.phase = Phase::Working { work: work.clone(), deadline, sample: None };
            return self.stand(now).into_iter().chain([Action::Start(work)]).collect();
        }
        let receiver = receiver.filter(|receiver| receiver.offer().digest == weights);
        self.phase = Phase::Fetching { work, deadline, receiver };
        let mut actions = self.stand(now);
        if let Some(offer) = self.early.take_if(|offer| offer.digest == weights) {
            actions.push(Action::LookUp(offer));
        }
        actions
    }

    // --- messages to the coordinator ---

    fn presence(&mut self, presence: &Presence, now: Timestamp) -> Vec<Action> {
        if !presence.online || self.coordinator == Some(presence.boot) {
            return Vec::new();
        }
        // A restarted coordinator never has the boot of an earlier life.
        if self.former == Some(presence.boot) && !self.knows_two {
            self.knows_two = true;
            tracing::warn!("two coordinators lead this fleet in turn; stop one of the two `skiff serve`");
        }
        self.former = self.coordinator.replace(presence.boot);
        self.introduce(false, now)
    }

    /// Learns the coordinator's protocol versions. Sends the birth again if a newer version is now possible.
    fn announced(&mut self, announcement: Announcement) -> Vec<Action> {
        let before = self.version();
        self.announced = Some(announcement);
        let theirs = announcement.speaks;
        if Version::newest_common(theirs).is_none() {
            tracing::warn!(
                "the coordinator speaks protocol version {theirs}, this agent speaks {}: update the older side",
                VersionRange::OURS
            );
        }
        if self.version() > before { vec![self.birth()] } else { Vec::new() }
    }

    fn birth(&self) -> Action {
        Action::Say(Message::Birth(self.profile.birth.clone()))
    }

    /// Sends the birth and the current work; to a known coordinator also the last answer.
    fn introduce(&mut self, is_known: bool, now: Timestamp) -> Vec<Action> {
        let mut actions = vec![self.birth()];
        let has_answered = matches!(&self.memory, Some(Memory { settled: Settled::Answered(_), .. }));
        if !matches!(self.phase, Phase::Resting) || (is_known && has_answered) {
            actions.extend(self.stand(now));
        }
        actions
    }

    /// Sends the outcome of the newest command: an answer or an offer.
    fn stand(&mut self, now: Timestamp) -> Vec<Action> {
        let Some(memory) = &self.memory else { return Vec::new() };
        let outcome = match &memory.settled {
            Settled::Answered(outcome) => outcome.clone(),
            Settled::Trained(update) => {
                let update = update.clone();
                return self.offer(update, now);
            }
            Settled::Open => Outcome::Accepted { has_weights: matches!(self.phase, Phase::Working { .. }) },
        };
        vec![self.answer(memory.run, memory.round, memory.epoch, outcome)]
    }

    fn answer(&self, run: RunId, round: u32, epoch: u64, outcome: Outcome) -> Action {
        Action::Say(Message::Answer(Answer { boot: self.profile.birth.boot, run, round, epoch, outcome }))
    }

    fn offer(&mut self, update: Update, now: Timestamp) -> Vec<Action> {
        if !matches!(self.phase, Phase::Offering(_)) {
            let Some(Memory { run, round, epoch, .. }) = self.memory else { return Vec::new() };
            let purpose = Purpose::Update { run, round, epoch, report: update.report };
            let offer = Offer { purpose, digest: update.blob, total_bytes: update.total_bytes };
            self.phase = Phase::Offering(Sender::new(offer));
        }
        self.send(SenderEvent::Nudged, now)
    }

    // --- transfers ---

    fn transfer(&mut self, id: TransferId, message: TransferMessage, now: Timestamp) -> Vec<Action> {
        match &mut self.phase {
            Phase::Offering(sender) if sender.id() == id => return self.send(SenderEvent::Received(message), now),
            Phase::Fetching { receiver: Some(receiver), .. } if receiver.id() == id => {
                return self.receive(ReceiverEvent::Received(message));
            }
            Phase::Resting | Phase::Fetching { .. } | Phase::Working { .. } | Phase::Offering(_) => {}
        }
        if let TransferMessage::Offer(offer) = message
            && offer.id() == id
            && matches!(offer.purpose, Purpose::Weights { .. })
        {
            return self.offered(offer);
        }
        Vec::new()
    }

    fn offered(&mut self, offer: Offer) -> Vec<Action> {
        if self.held.contains(&offer.digest) {
            return vec![Action::Transfer { id: offer.id(), message: TransferMessage::Done }];
        }
        if self.wants(&offer) {
            return vec![Action::LookUp(offer)];
        }
        self.early = Some(offer);
        Vec::new()
    }

    /// Returns true if the offer has the command's weights, and no transfer with its id is running.
    fn wants(&self, offer: &Offer) -> bool {
        let Phase::Fetching { work, receiver, .. } = &self.phase else { return false };
        work.job.weights() == offer.digest && receiver.as_ref().is_none_or(|receiver| receiver.id() != offer.id())
    }

    fn looked_up(&mut self, offer: Offer, found: Found) -> Vec<Action> {
        if !self.wants(&offer) {
            return Vec::new();
        }
        let (new, first) = Receiver::new(offer, found);
        if let Phase::Fetching { receiver, .. } = &mut self.phase {
            *receiver = Some(new);
        }
        self.received(first)
    }

    fn fetched(&mut self, digest: Digest, event: ReceiverEvent) -> Vec<Action> {
        match &self.phase {
            Phase::Fetching { receiver: Some(receiver), .. } if receiver.offer().digest == digest => {
                self.receive(event)
            }
            Phase::Resting | Phase::Fetching { .. } | Phase::Working { .. } | Phase::Offering(_) => Vec::new(),
        }
    }

    fn receive(&mut self, event: ReceiverEvent) -> Vec<Action> {
        let Phase::Fetching { receiver: Some(receiver), .. } = &mut self.phase else { return Vec::new() };
        let actions = receiver.handle(event);
        self.received(actions)
    }

    /// Translates the receiver's actions into the engine's.
    fn received(&mut self, wanted: Vec<ReceiverAction>) -> Vec<Action> {
        let Phase::Fetching { receiver: Some(receiver), .. } = &self.phase else { return Vec::new() };
        let (id, digest, total_bytes) = (receiver.id(), receiver.offer().digest, receiver.offer().total_bytes);
        let mut actions = Vec::new();
        for action in wanted {
            match action {
                ReceiverAction::Send(message) => actions.push(Action::Transfer { id, message }),
                ReceiverAction::Store { index, bytes } => {
                    actions.push(Action::StoreChunk { digest, total_bytes, index, bytes });
                }
                ReceiverAction::Assemble => actions.push(Action::Assemble { digest, total_bytes }),
                ReceiverAction::Completed => actions.extend(self.complete(digest)),
                ReceiverAction::Failed { reason } => {
                    let reason = short_reason(&format!("receiving the weights: {reason}"));
                    actions.extend(self.settle(Outcome::Refused { reason }));
                }
            }
        }
        actions
    }

    fn complete(&mut self, digest: Digest) -> Option<Action> {
        self.held.insert(digest);
        let Phase::Fetching { work, deadline, .. } = &self.phase else { return None };
        let (work, deadline) = (work.clone(), *deadline);
        self.phase = Phase::Working { work: work.clone(), deadline, sample: None };
        Some(Action::Start(work))
    }

    fn send(&mut self, event: SenderEvent, now: Timestamp) -> Vec<Action> {
        let Phase::Offering(sender) = &mut self.phase else { return Vec::new() };
        let (id, digest) = (sender.id(), sender.offer().digest);
        let mut actions = Vec::new();
        for action in sender.handle(event, now) {
            match action {
                SenderAction::Send(message) => actions.push(Action::Transfer { id, message }),
                SenderAction::SendChunk { index } => actions.push(Action::TransferChunk { id, digest, index }),
                SenderAction::Finished => {
                    tracing::info!(%digest, "update delivered");
                    self.phase = Phase::Resting;
                    break;
                }
                SenderAction::Refused { reason } => {
                    tracing::info!(%digest, reason, "update not wanted");
                    self.phase = Phase::Resting;
                    break;
                }
            }
        }
        actions
    }

    // --- work ---

    fn is_in_hand(&self, ticket: Ticket) -> bool {
        matches!(&self.phase, Phase::Working { work, .. } if work.ticket == ticket)
    }

    fn stepped(&mut self, ticket: Ticket, stepped: WorkSample) {
        if let Phase::Working { work, sample, .. } = &mut self.phase
            && work.ticket == ticket
        {
            *sample = Some(stepped);
        }
    }

    fn trained(&mut self, ticket: Ticket, trained: Trained, now: Timestamp) -> Vec<Action> {
        let Some(memory) = self.memory.clone().filter(|_| self.is_in_hand(ticket)) else { return Vec::new() };
        let Trained { update, personal, report } = trained;
        let settled = Settled::Trained(Update { blob: Digest::of(&update), total_bytes: update.len() as u64, report });
        let mut actions = vec![Action::Keep(update)];
        let personal = personal.map(|(layers, tensors)| {
            let blob = Digest::of(&tensors);
            actions.push(Action::Keep(tensors));
            Personal { run: memory.run, layers, blob }
        });
        self.phase = Phase::Resting;
        let kept = personal.as_ref().map(|personal| personal.blob);
        actions.push(self.remember(Memory { settled, personal, ..memory }));
        // Only now: if the storing fails, the earlier state must hold again.
        self.held.extend(kept);
        actions.extend(self.stand(now));
        actions
    }

    fn worked(&mut self, ticket: Ticket, outcome: Outcome) -> Vec<Action> {
        if self.is_in_hand(ticket) { self.settle(outcome) } else { Vec::new() }
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Action> {
        let (deadline, working) = match &self.phase {
            Phase::Resting => return Vec::new(),
            Phase::Offering(_) => return self.send(SenderEvent::Tick, now),
            Phase::Fetching { deadline, .. } => (*deadline, false),
            Phase::Working { deadline, .. } => (*deadline, true),
        };
        if now < deadline {
            return Vec::new();
        }
        let doing = if working { "work" } else { "fetching the weights" };
        let cancel = working.then_some(Action::Cancel);
        let settled = self.settle(Outcome::Refused { reason: format!("{doing} was not done by the order's deadline") });
        cancel.into_iter().chain(settled).collect()
    }

    // --- what is remembered ---

    /// Ends the current command with an answer.
    fn settle(&mut self, outcome: Outcome) -> Vec<Action> {
        let Some(memory) = self.memory.clone() else { return Vec::new() };
        self.phase = Phase::Resting;
        let answer = self.answer(memory.run, memory.round, memory.epoch, outcome.clone());
        vec![self.remember(Memory { settled: Settled::Answered(outcome), ..memory }), answer]
    }

    fn remember(&mut self, memory: Memory) -> Action {
        let needed = memory.blobs();
        let held_before = self.held.clone();
        self.held.retain(|digest| needed.contains(digest));
        self.before = (self.memory.replace(memory.clone()), held_before);
        Action::Remember(memory)
    }

    /// Refuses the command whose memory or blobs could not be stored.
    fn store_failed(&mut self, reason: &str) -> Vec<Action> {
        let Some(failed) = self.memory.take() else { return Vec::new() };
        let working = matches!(self.phase, Phase::Working { .. });
        self.phase = Phase::Resting;
        let outcome = Outcome::Refused { reason: short_reason(&format!("storing: {reason}")) };
        let answer = self.answer(failed.run, failed.round, failed.epoch, outcome.clone());
        let (before, held) = std::mem::take(&mut self.before);
        let personal = before.and_then(|before| before.personal);
        self.held = held;
        self.memory = Some(Memory { weights: None, settled: Settled::Answered(outcome), personal, ..failed });
        working.then_some(Action::Cancel).into_iter().chain([answer]).collect()
    }
}
