//! A device's agent: the real engine, state folder and reading of messages, with a stand-in for the worker.

use crate::coordinator::{FLEET, KEY};
use crate::training::{self, Lie};
use skiff_agent::config::{Config, Settings};
use skiff_agent::mqtt::Desk;
use skiff_agent::participant::{Action, Event, Participant, Profile};
use skiff_agent::store::Store;
use skiff_base::random::Random;
use skiff_blobs::{Assembly, Blobs};
use skiff_contract::{Job, Work};
use skiff_coordinator::merge::model::Model;
use skiff_link::{LinkEvent, Publication};
use skiff_protocol::codec::Message;
use skiff_protocol::messages::{Birth, Gone, Machine, Place, StepMemory};
use skiff_protocol::transfer::{Found, ReceiverEvent, TransferMessage};
use skiff_protocol::{BootId, Digest, Signer, Timestamp, Version, VersionRange};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// A device of the fleet, with or without a running agent.
pub(crate) struct Device {
    pub(crate) at: usize,
    pub(crate) folder: PathBuf,
    config: Config,
    profile: Profile,
    /// Number of the agent's life, from 1.
    pub(crate) life: u64,
    /// The running agent.
    pub(crate) agent: Option<Agent>,
    /// Time until which the device stands still, in milliseconds.
    pub(crate) suspended_until_ms: u64,
    /// Time until which the device has no network, in milliseconds.
    pub(crate) cut_off_until_ms: u64,
    /// Time until which the disk is full, in milliseconds.
    pub(crate) full_until_ms: u64,
    /// Replacement of the next update.
    pub(crate) lie: Option<Lie>,
    /// Number of actions after which the agent is killed.
    pub(crate) killed_after: Option<u32>,
}

/// A running agent.
pub(crate) struct Agent {
    participant: Participant,
    desk: Desk,
    store: Store,
    /// Work in hand, and its number.
    pub(crate) work: Option<(u64, Work)>,
    begun: u64,
}

/// Messages and work that follow from an event.
#[derive(Default)]
pub(crate) struct Wants {
    pub(crate) publications: Vec<Publication>,
    /// The number of new work.
    pub(crate) begun: Option<u64>,
    /// True if the agent was killed while it carried out its actions.
    pub(crate) killed: bool,
}

impl Device {
    pub(crate) fn new(at: usize, folder: &Path, model: &Model, random: &mut Random) -> Self {
        let settings = Settings {
            fleet: Some(FLEET.to_owned()),
            device: Some(name(at)),
            pack: Some("pack".into()),
            coordinator_key: Some(Signer::new(KEY).verifier().to_string()),
            ..Settings::default()
        };
        let config = settings.check(None).expect("settings that are right");
        let examples = if random.chance(0.1) { 0 } else { 10 + random.below(100) as u64 };
        let birth = Birth {
            speaks: VersionRange::OURS,
            boot: BootId(0),
            agent_version: "0.1.0".to_owned(),
            pack: model.pack,
            train_examples: examples,
            test_examples: examples / 2,
            machine: Machine { arch: "aarch64".into(), os: "Debian 12".into(), cores: 4, memory_bytes: 1 << 30 },
            place: Place::default(),
            memory: StepMemory::default(),
        };
        let schema = Digest(model.schema.hash());
        let profile = Profile { birth, schema, layers: model.layers as usize, protected: Vec::new() };
        Self {
            at,
            folder: folder.join(name(at)),
            config,
            profile,
            life: 0,
            agent: None,
            suspended_until_ms: 0,
            cut_off_until_ms: 0,
            full_until_ms: 0,
            lie: None,
            killed_after: None,
        }
    }

    /// Starts the agent with what its folder holds.
    pub(crate) fn start(&mut self) {
        self.life += 1;
        self.killed_after = None;
        let boot = BootId((self.at as u64 + 1) << 32 | self.life);
        self.profile.birth.boot = boot;
        let (store, recovered) = Store::open(&self.folder).expect("a state folder");
        let participant = Participant::new(self.profile.clone(), recovered.memory, recovered.blobs);
        self.agent = Some(Agent { participant, desk: Desk::new(&self.config), store, work: None, begun: 0 });
    }

    /// Returns the message that the broker publishes if the connection breaks.
    pub(crate) fn will(&self) -> Publication {
        let gone = Message::Gone(Gone { boot: self.profile.birth.boot, clean: false });
        Desk::new(&self.config).publication(&gone, Version::OLDEST)
    }

    /// Returns the time at which the engine wants to be called, in milliseconds.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.agent.as_ref()?.participant.deadline().map(|deadline| deadline.0)
    }

    /// Returns true if the agent rests.
    pub(crate) fn rests(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| {
            agent.participant.state() == skiff_protocol::messages::AgentState::Idle && agent.work.is_none()
        })
    }

    /// Handles a message or a change of the link.
    pub(crate) fn link(&mut self, event: LinkEvent, now_ms: u64) -> Wants {
        let Some(agent) = &mut self.agent else { return Wants::default() };
        let event = match event {
            LinkEvent::Up => Event::LinkUp,
            LinkEvent::Down { .. } => Event::LinkDown,
            LinkEvent::Message { topic, payload } => match agent.desk.read(&topic, &payload, Timestamp(now_ms)) {
                Some(event) => event,
                None => return Wants::default(),
            },
        };
        self.tell(event, now_ms)
    }

    /// Ends the work in hand with its product.
    pub(crate) fn work_done(&mut self, begun: u64, model: &Model, now_ms: u64) -> Wants {
        let Some(agent) = &mut self.agent else { return Wants::default() };
        let Some((_, work)) = agent.work.take_if(|(number, _)| *number == begun) else { return Wants::default() };
        let ticket = work.ticket;
        let event = match (&work.job, agent.store.blobs().read(work.job.weights())) {
            (_, Err(error)) => Event::WorkFailed { ticket, reason: error.to_string() },
            (Job::Train(_), Ok(weights)) => {
                let lie = self.lie.take();
                let trained = training::train(&model.schema, model.layers, &weights, &work, self.at, lie);
                Event::Trained { ticket, trained }
            }
            (Job::Evaluate(order), Ok(_)) => {
                Event::Evaluated { ticket, report: training::evaluate(order.weights, order.examples) }
            }
        };
        self.tell(event, now_ms)
    }

    /// Ends the work in hand because its process was killed.
    pub(crate) fn worker_killed(&mut self, now_ms: u64) -> Wants {
        let Some((_, work)) = self.agent.as_mut().and_then(|agent| agent.work.take()) else { return Wants::default() };
        self.tell(Event::WorkFailed { ticket: work.ticket, reason: "the worker was killed".to_owned() }, now_ms)
    }

    /// Passes an event to the engine, and carries out its actions as the agent's shell does.
    pub(crate) fn tell(&mut self, event: Event, now_ms: u64) -> Wants {
        let mut wants = Wants::default();
        let is_full = now_ms < self.full_until_ms;
        let Some(agent) = &mut self.agent else { return wants };
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in agent.participant.handle(event, Timestamp(now_ms)) {
                match &mut self.killed_after {
                    Some(0) => {
                        wants.killed = true;
                        return wants;
                    }
                    Some(left) => *left -= 1,
                    None => {}
                }
                match agent.carry_out(action, is_full, &mut wants) {
                    Ok(result) => events.extend(result),
                    Err(reason) => {
                        events.push_front(Event::StoreFailed { reason });
                        break;
                    }
                }
            }
        }
        wants
    }
}

/// Returns the name of a device.
pub(crate) fn name(at: usize) -> String {
    format!("device-{at}")
}

impl Agent {
    /// Returns the blobs that the agent's store holds.
    pub(crate) fn blobs(&self) -> usize {
        self.store.blobs().list().map_or(0, |blobs| blobs.len())
    }

    fn carry_out(&mut self, action: Action, is_full: bool, wants: &mut Wants) -> Result<Option<Event>, String> {
        let version = self.participant.version();
        let full = || "no space left on device".to_owned();
        match action {
            Action::Say(message) => wants.publications.push(self.desk.publication(&message, version)),
            Action::Transfer { id, message } => wants.publications.push(self.desk.transfer(id, message, version)),
            Action::TransferChunk { id, digest, index } => {
                if let Ok(bytes) = self.store.blobs().chunk(digest, index) {
                    let chunk = TransferMessage::Chunk { index, bytes };
                    wants.publications.push(self.desk.transfer(id, chunk, version));
                }
            }
            Action::LookUp(offer) => {
                let blobs = self.store.blobs();
                let found = match blobs.contains(offer.digest) {
                    true => Found::Whole,
                    false => Found::Chunks(blobs.held(offer.digest, offer.total_bytes).unwrap_or_default()),
                };
                return Ok(Some(Event::LookedUp { offer, found }));
            }
            Action::StoreChunk { digest, total_bytes, index, bytes } => {
                let stored = match is_full {
                    true => Err(full()),
                    false => self
                        .store
                        .blobs()
                        .put_chunk(digest, total_bytes, index, &bytes)
                        .map_err(|error| error.to_string()),
                };
                let event = match stored {
                    Ok(()) => ReceiverEvent::Stored { index },
                    Err(reason) => ReceiverEvent::StoreFailed { reason },
                };
                return Ok(Some(Event::Fetched { digest, event }));
            }
            Action::Assemble { digest, total_bytes } => {
                let blobs = self.store.blobs();
                let event = match blobs.assemble(digest, total_bytes) {
                    Ok(Assembly::Whole) => ReceiverEvent::Assembled,
                    Ok(Assembly::WrongDigest) => ReceiverEvent::WrongDigest,
                    Ok(Assembly::Incomplete) => {
                        ReceiverEvent::Incomplete { held: blobs.held(digest, total_bytes).unwrap_or_default() }
                    }
                    Err(error) => ReceiverEvent::StoreFailed { reason: error.to_string() },
                };
                return Ok(Some(Event::Fetched { digest, event }));
            }
            Action::Keep(_) | Action::Remember(_) if is_full => return Err(full()),
            Action::Keep(bytes) => drop(self.store.blobs().put(&bytes).map_err(|error| error.to_string())?),
            Action::Remember(memory) => self.store.remember(&memory).map_err(|error| error.to_string())?,
            Action::Start(work) => {
                self.begun += 1;
                self.work = Some((self.begun, work));
                wants.begun = Some(self.begun);
            }
            Action::Cancel => self.work = None,
        }
        Ok(None)
    }
}
