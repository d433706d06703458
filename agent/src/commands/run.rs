//! `skiff-agent run`: connects, reports, and trains on command, until it receives a signal to stop.
//!
//! While the owner pauses the device, there is no connection, no worker and no work: the agent only waits for the end of the pause.
//!
//! One loop on one thread collects events (from the link, the worker, the clock, signals), passes them to the engine, and carries
//! out its actions. The loop also writes the state folder, because later actions have to wait for that anyway.

use crate::config::Config;
use crate::device;
use crate::executor::{Pid, Program, Queue, WorkerProcess};
use crate::mqtt::{Desk, Outbox, link_config};
use crate::owner::{Left, Wish, now_ms};
use crate::participant::{Action, Event, Participant, Patience};
use crate::sent::Sent;
use crate::store::{Store, StoreError};
use crate::supervisor::Supervisor;
use crate::telemetry::{Backlog, Sampler};
use anyhow::Context;
use skiff_blobs::{Assembly, BlobError, Blobs as _};
use skiff_contract::limits::{Lesson, System};
use skiff_link::{Link, LinkEvent, Publication};
use skiff_protocol::codec::Message;
use skiff_protocol::messages::{Gone, StepMemory};
use skiff_protocol::transfer::{Found, Offer, Purpose, ReceiverEvent, TransferId, TransferMessage};
use skiff_protocol::{BootId, Digest, Timestamp, Version};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};

/// Maximum time for sending the farewell.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(4);
/// Time after its last work for which the worker's process stays: longer than most rounds wait for the slowest device.
const TRAINER_IDLE: Duration = Duration::from_secs(120);
/// Time between two looks at the owner's wish.
const OWNER_EVERY: Duration = Duration::from_secs(1);
/// Number of the worker's reports that may wait. More samples of steps are dropped.
const REPORTS: usize = 64;

/// End of a part of the agent's life.
enum Ended {
    /// A signal asked the agent to stop.
    Stopped,
    /// The owner wishes something else. The state folder stays locked.
    OtherWish(Store),
}

/// Runs the agent until SIGTERM or SIGINT, or until the owner takes the device out of the fleet.
///
/// # Errors
/// [`Left`], if the owner has done so before. Faults that do not go away by themselves: a broken pack, unreadable examples, a
/// state folder in use, bad certificates. An unreachable broker is not an error.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let mut held = None;
    loop {
        let wish = Wish::read(&config.state).context("reading the owner's wish in the state folder")?;
        let ended = match wish {
            Wish::Leave { .. } if held.is_none() => return Err(Left.into()),
            Wish::Leave { .. } => {
                tracing::info!("the owner has taken this device out of the fleet");
                return wish.mark_seen(&config.state).context("writing to the state folder");
            }
            Wish::Pause { .. } => {
                let store = held.take().map_or_else(|| Store::open(&config.state).map(|(store, _)| store), Ok)?;
                runtime.block_on(pause(config, wish, store))?
            }
            Wish::TakePart => {
                // Seen before the lock is free for a moment, so that `skiff-agent resume` knows that an agent runs.
                if held.is_some() {
                    wish.mark_seen(&config.state).context("writing to the state folder")?;
                }
                drop(held.take());
                take_part(config, &runtime)?
            }
        };
        match ended {
            Ended::Stopped => return Ok(()),
            Ended::OtherWish(store) => held = Some(store),
        }
    }
}

/// Waits until the owner wishes something else.
async fn pause(config: &Config, wish: Wish, store: Store) -> anyhow::Result<Ended> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tracing::info!("paused by the owner: no connection and no work until `skiff-agent resume`");
    wish.mark_seen(&config.state).context("writing to the state folder")?;
    let supervisor = Supervisor::of_environment(std::process::id());
    supervisor.ready();
    let mut looks = every(OWNER_EVERY);
    loop {
        select! {
            _ = looks.tick() => {
                supervisor.alive();
                if Wish::read(&config.state).is_ok_and(|now| now != wish) {
                    return Ok(Ended::OtherWish(store));
                }
            }
            () = stop(&mut terminate, &mut interrupt) => {
                supervisor.stopping();
                return Ok(Ended::Stopped);
            }
        }
    }
}

/// Takes part in the fleet until a signal or another wish of the owner.
fn take_part(config: &Config, runtime: &tokio::runtime::Runtime) -> anyhow::Result<Ended> {
    let (store, recovered) = Store::open(&config.state)?;
    Wish::TakePart.mark_seen(&config.state).context("writing to the state folder")?;
    let boot = device::new_boot()?;
    let program = Program::beside_this().context("finding this program's folder")?;
    let (setup, pid) = (config.setup(), Pid::default());
    let known = pid.clone();
    let open = move || WorkerProcess::new(program.clone(), setup.clone(), known.clone());
    // The process ends with this line, and its memory is free again.
    let inventory = open().take_inventory()?;
    let StepMemory { process_bytes, step_bytes, layer_bytes, .. } = inventory.memory;
    // Predictions are for short texts; twice as much is enough for long ones too.
    let smallest_step = process_bytes + 2 * (step_bytes + layer_bytes);
    let open = move || open().with_smallest_step(smallest_step);
    let limit = System::read(Path::new("/")).limit(config.training.memory, Lesson::read(&config.state));
    let profile = device::profile(&config.training, &inventory, boot)?;
    tracing::info!(
        device = %config.device,
        fleet = %config.fleet,
        pack = ?profile.birth.pack,
        train_examples = profile.birth.train_examples,
        test_examples = profile.birth.test_examples,
        memory = %limit,
        "agent starts"
    );
    if matches!(config.trust, crate::config::Trust::Anybody) {
        tracing::warn!("unsigned commands are obeyed: everybody who can write to the broker controls this device");
    }
    let participant = Participant::new(profile, recovered.memory, recovered.blobs);
    runtime.block_on(live(config, boot, participant, store, open, pid))
}

async fn live(
    config: &Config,
    boot: BootId,
    participant: Participant,
    store: Store,
    open: impl Fn() -> WorkerProcess + Send + 'static,
    pid: Pid,
) -> anyhow::Result<Ended> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let (link, mut link_events) = Link::open(link_config(config, boot))?;
    let (reports, mut reported) = mpsc::channel(REPORTS);
    let queue = Queue::start(open, TRAINER_IDLE, reports).context("starting the thread that waits for the worker")?;
    let start = Instant::now();
    let mut agent = Agent {
        start,
        boot,
        participant,
        desk: Desk::new(config),
        outbox: Outbox::new(link),
        sent: Sent::open(&config.state).context("reading the record of what was sent")?,
        offered: None,
        store,
        queue,
        pid,
        sampler: Sampler::new(PathBuf::from("/"), boot, Timestamp(0)),
        backlog: Backlog::default(),
        online: false,
        patience: Patience::default(),
    };
    let supervisor = Supervisor::of_environment(std::process::id());
    let mut sampling = every(config.telemetry_interval);
    let mut looks = every(OWNER_EVERY);
    let mut heartbeat = every(supervisor.interval().unwrap_or(Duration::from_secs(1)));
    supervisor.ready();
    loop {
        let deadline = agent.participant.deadline().map(|deadline| start + Duration::from_millis(deadline.0));
        select! {
            event = link_events.recv() => agent.link_event(event.context("the link to the broker has ended")?),
            Some(event) = reported.recv() => agent.tell(event),
            _ = sampling.tick() => agent.sample(),
            _ = heartbeat.tick(), if supervisor.interval().is_some() => supervisor.alive(),
            () = sleep_until(deadline.unwrap_or(start)), if deadline.is_some() => agent.tell(Event::Tick),
            _ = looks.tick() => {
                if Wish::read(&config.state).is_ok_and(|wish| wish != Wish::TakePart) {
                    return Ok(Ended::OtherWish(agent.farewell().await));
                }
            }
            () = stop(&mut terminate, &mut interrupt) => break,
        }
    }
    supervisor.stopping();
    agent.farewell().await;
    Ok(Ended::Stopped)
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn stop(terminate: &mut Signal, interrupt: &mut Signal) {
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

struct Agent {
    start: Instant,
    boot: BootId,
    participant: Participant,
    desk: Desk,
    outbox: Outbox,
    sent: Sent,
    /// The update that was offered last.
    offered: Option<(TransferId, Digest)>,
    store: Store,
    queue: Queue,
    pid: Pid,
    sampler: Sampler,
    backlog: Backlog,
    online: bool,
    patience: Patience,
}

impl Agent {
    fn now(&self) -> Timestamp {
        Timestamp(0) + self.start.elapsed()
    }

    fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up => {
                tracing::info!("connected to the broker");
                self.online = true;
                self.tell(Event::LinkUp);
                self.send_samples();
            }
            LinkEvent::Down { reason } => {
                tracing::warn!(reason, "no connection to the broker; the agent keeps trying");
                self.online = false;
                self.tell(Event::LinkDown);
            }
            LinkEvent::Message { topic, payload } => {
                if let Some(event) = self.desk.read(&topic, &payload, self.now()) {
                    self.note_answer(&event);
                    self.tell(event);
                }
            }
        }
    }

    /// Passes an event to the engine, carries out the actions it returns, and passes their results back.
    fn tell(&mut self, event: Event) {
        let state = self.participant.state();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now();
            for action in self.participant.handle(event, now) {
                match self.carry_out(action) {
                    Ok(result) => events.extend(result),
                    Err(error) => {
                        let reason = format!("{:#}", anyhow::Error::from(error));
                        tracing::error!(reason, "the state folder cannot be written");
                        events.push_front(Event::StoreFailed { reason });
                        break;
                    }
                }
            }
        }
        if self.participant.state() != state {
            tracing::info!(state = ?self.participant.state(), "agent");
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<Option<Event>, StoreError> {
        match action {
            Action::Say(message) => self.say(&message),
            Action::Transfer { id, message } => self.transfer(id, message),
            Action::TransferChunk { id, digest, index } => match self.store.blobs().chunk(digest, index) {
                Ok(bytes) => self.transfer(id, TransferMessage::Chunk { index, bytes }),
                Err(error) => tracing::warn!(error = %described(error), "a chunk cannot be sent"),
            },
            Action::LookUp(offer) => return Ok(Some(self.look_up(offer))),
            Action::StoreChunk { digest, total_bytes, index, bytes } => {
                let event = match self.store.blobs().put_chunk(digest, total_bytes, index, &bytes) {
                    Ok(()) => ReceiverEvent::Stored { index },
                    Err(error) => ReceiverEvent::StoreFailed { reason: described(error) },
                };
                return Ok(Some(Event::Fetched { digest, event }));
            }
            Action::Assemble { digest, total_bytes } => {
                let event = match self.store.blobs().assemble(digest, total_bytes) {
                    Ok(Assembly::Whole) => ReceiverEvent::Assembled,
                    Ok(Assembly::WrongDigest) => ReceiverEvent::WrongDigest,
                    Ok(Assembly::Incomplete) => self.incomplete(digest, total_bytes),
                    Err(error) => ReceiverEvent::StoreFailed { reason: described(error) },
                };
                return Ok(Some(Event::Fetched { digest, event }));
            }
            Action::Keep(bytes) => drop(self.store.blobs().put(&bytes)?),
            Action::Remember(memory) => self.store.remember(&memory)?,
            Action::Start(work) => self.queue.begin(work),
            Action::Cancel => self.queue.cancel(),
        }
        Ok(None)
    }

    fn say(&mut self, message: &Message) {
        if let Err(error) = self.sent.before_message(message, now_ms()) {
            return cannot_record(&error);
        }
        let publication = self.desk.publication(message, self.participant.version());
        self.put_small(publication);
    }

    fn transfer(&mut self, id: TransferId, message: TransferMessage) {
        if let Err(error) = self.sent.before_transfer(&message, now_ms()) {
            return cannot_record(&error);
        }
        if let TransferMessage::Offer(Offer { purpose: Purpose::Update { .. }, digest, .. }) = &message {
            self.offered = Some((id, *digest));
        }
        let is_content = matches!(message, TransferMessage::Chunk { .. });
        let publication = self.desk.transfer(id, message, self.participant.version());
        if is_content { self.outbox.put(publication) } else { self.put_small(publication) }
    }

    /// Sends a small message, which the record only counts.
    fn put_small(&mut self, publication: Publication) {
        if let Err(error) = self.sent.count(publication.topic.len() + publication.payload.len(), now_ms()) {
            tracing::debug!(%error, "small messages cannot be recorded");
        }
        self.outbox.put(publication);
    }

    /// Records the end of the update that was offered last.
    fn note_answer(&mut self, event: &Event) {
        if let Event::Transfer { id, message } = event
            && let Some((offered, digest)) = self.offered
            && offered == *id
            && let Err(error) = self.sent.answered(digest, message, now_ms())
        {
            tracing::warn!(%error, "the end of an update cannot be recorded");
        }
    }

    fn incomplete(&self, digest: Digest, total_bytes: u64) -> ReceiverEvent {
        // Chunks that cannot be listed are sent again.
        ReceiverEvent::Incomplete { held: self.store.blobs().held(digest, total_bytes).unwrap_or_default() }
    }

    fn look_up(&self, offer: Offer) -> Event {
        let blobs = self.store.blobs();
        let found = if blobs.contains(offer.digest) {
            Found::Whole
        } else {
            // Chunks that cannot be listed are sent again.
            Found::Chunks(blobs.held(offer.digest, offer.total_bytes).unwrap_or_default())
        };
        Event::LookedUp { offer, found }
    }

    fn sample(&mut self) {
        let (state, work) = (self.participant.state(), self.participant.work().cloned());
        let sample = self.sampler.sample(state, work, self.pid.get(), self.now());
        self.backlog.push(sample);
        if self.online {
            let (state, chunks) = (self.participant.state(), self.participant.arrived_chunks());
            if let Some(text) = self.patience.look(state, chunks, self.now()) {
                tracing::warn!("{text}");
            }
            self.send_samples();
        }
    }

    fn send_samples(&mut self) {
        let version = self.participant.version();
        let samples: Vec<_> = self.backlog.drain().collect();
        for sample in samples {
            let publication = self.desk.publication(&Message::Telemetry(sample), version);
            self.put_small(publication);
        }
    }

    /// Announces that the agent stops, and returns the state folder. The worker ends at its next step, or together with the agent.
    /// The work in hand begins again when the agent takes part the next time.
    async fn farewell(mut self) -> Store {
        tracing::info!("agent stops");
        if let Err(error) = self.sent.summarise(now_ms()) {
            tracing::debug!(%error, "small messages cannot be recorded");
        }
        let Self { outbox, desk, boot, online, store, .. } = self;
        if online {
            outbox.put(desk.publication(&Message::Gone(Gone { boot, clean: true }), Version::OLDEST));
            if timeout(FAREWELL_PATIENCE, outbox.close()).await.is_err() {
                tracing::warn!("the broker took too long to accept the farewell; the agent stops without sending it");
            }
        }
        store
    }
}

/// Logs that a message is not sent because the record of it cannot be written. The engine repeats the message later.
fn cannot_record(error: &std::io::Error) {
    tracing::error!(%error, "a message is not sent, because it cannot be recorded in the state folder");
}

fn described(error: BlobError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
