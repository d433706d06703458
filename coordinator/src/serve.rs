//! The shell around the [`Hub`]: a clock, a link to the broker, a control socket, and the loop that joins them.
//!
//! ```text
//!            LinkEvent          ┌───────┐  Publish
//! broker ───────────────────────►       ├───────────► outgoing task ──► broker
//!             Call              │ loop  │  Merge, Check
//! control ──────────────────────►  Hub  ├───────────► blocking thread ─┐
//!             deadline          │       │                              │
//! clock ────────────────────────►       ◄──────────────────────────────┘
//!                               └───┬───┘
//!                                   └─ watch channel of the Board ──► control, demo
//! ```

use crate::arrivals::{Checked, Checker};
use crate::board::{Board, Follower};
use crate::config::Config;
use crate::doors::mqtt::Writer;
use crate::doors::{Call, socket};
use crate::hub::{Effect, Hub, Parts};
use crate::merge::model::Model;
use crate::run::{MergeJob, Merged, RunSettings};
use crate::store::SqliteStore;
use crate::store::{keys, policy};
use anyhow::{Context as _, anyhow, bail};
use serde_json::{Map, Value};
use skiff_api::policy::{Change, Policy, PolicyView};
use skiff_api::request::{Deleted, Reply, Request, StartRun};
use skiff_base::chain;
use skiff_base::files::{self, Access};
use skiff_base::lock::{Lock, LockError};
use skiff_blobs::{Blobs, DiskBlobs};
use skiff_link::{CLOSE_PATIENCE, Link, LinkConfig, LinkEvent, Publication};
use skiff_protocol::topics::{coordinator_filters, coordinator_optional_filters};
use skiff_protocol::transfer::WINDOW;
use skiff_protocol::{BootId, RunId, Timestamp};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Maximum delay until watchers see a change.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(50);
/// Maximum number of changed devices that are shown in one turn of the loop.
pub const SHOWN_AT_ONCE: usize = 512;
/// Maximum number of messages that are handled and committed together.
const BATCH: usize = 64;
/// Maximum number of publications that wait for the link. Further ones are dropped, and the engine repeats them later.
const OUTGOING: usize = 2_048;

/// File in the state folder with the path of the pack, for `skiff run export`.
pub const PACK_FILE: &str = "pack.path";

/// A running coordinator. Its tasks run in the current tokio runtime.
pub struct Coordinator {
    public_key: String,
    board: watch::Receiver<Board>,
    calls: mpsc::Sender<Call>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Coordinator {
    /// Opens the state folder, resumes the last run, and starts to connect.
    ///
    /// An unreachable broker is not an error: the link keeps trying, and [`Coordinator::progress`] shows whether it succeeded.
    ///
    /// # Errors
    /// The configuration, pack, key, journal or state folder cannot be used; the text names it and the remedy.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        config.check()?;
        let model = Model::open(&config.pack).with_context(|| format!("opening the pack {}", config.pack.display()))?;
        Self::start_with(config, model).await
    }

    /// Does the same as [`Coordinator::start`], but with a model that is already open.
    ///
    /// # Errors
    /// Same as [`Coordinator::start`].
    pub async fn start_with(config: Config, model: Model) -> anyhow::Result<Self> {
        config.check()?;
        let state = &config.state;
        // It holds the key and the control socket. An existing folder keeps its mode.
        files::make_private_folder(state).with_context(|| format!("making the state folder {}", state.display()))?;
        let lock = lock(state)?;
        remember_pack(state, &config.pack).with_context(|| format!("writing {PACK_FILE} in {}", state.display()))?;
        let signer = keys::load_or_create(state)?;
        let public_key = signer.verifier().to_string();
        tracing::info!(public_key, "devices check the coordinator's messages with this key");

        let model = Arc::new(model);
        let blobs: Arc<dyn Blobs> = Arc::new(DiskBlobs::open(state.join("blobs"), config.limits.blob_bytes)?);
        let writer = Writer::new(config.fleet.clone(), signer, BootId(random()?));
        let will = writer.presence(false);
        let parts = Parts {
            fleet: config.fleet.clone(),
            devices: config.limits.devices,
            slots: (config.limits.granted_chunks / WINDOW) as usize,
            model: Arc::clone(&model),
            blobs: Arc::clone(&blobs),
            store: Box::new(SqliteStore::open(state, &*blobs)?),
            writer,
        };
        let start = Clock::new(0);
        let mut hub = Hub::open(parts, start.now())?;
        let clock = Clock::new(hub.last_ms());

        let (link, events) = Link::open(link_config(&config, will))?;
        let listener =
            socket::listen(state).with_context(|| format!("making the control socket in {}", state.display()))?;
        let (calls, called) = mpsc::channel(16);
        let mut first = Board::default();
        hub.show(&mut first, usize::MAX, clock.now());
        let (published, board) = watch::channel(first);
        let (stop, stopping) = oneshot::channel();
        let doors = tokio::spawn(socket::serve(listener, calls.clone(), board.clone()));
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let sending = tokio::spawn(send(link, queue));
        let (merged, merges) = mpsc::channel(1);
        let (checked, checks) = mpsc::channel(1);
        let checker = Arc::new(Mutex::new(Checker::new(Arc::clone(&model), Arc::clone(&blobs))));
        let (mut defaults, state) = (config.run, config.state);
        if let Some(Policy { sharing, groups }) = policy::read(&state)? {
            (defaults.sharing, defaults.groups) = (sharing, groups);
        }
        let shell = Shell { defaults, state, model, blobs, checker, clock, hub, outgoing, merged, checked, published };
        let task = tokio::spawn(async move {
            let worked = shell.work(events, called, Ended { merges, checks }, stopping).await;
            doors.abort();
            let goodbye = sending.abort_handle();
            // An unreachable broker must not delay the exit. The last will then tells the devices.
            if tokio::time::timeout(2 * CLOSE_PATIENCE, sending).await.is_err() {
                goodbye.abort();
            }
            drop(lock);
            worked
        });
        Ok(Self { public_key, board, calls, stop, task })
    }

    /// Returns the key with which devices check this coordinator's messages: 64 hexadecimal digits.
    #[must_use]
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Returns a follower of the state of fleet and run.
    #[must_use]
    pub fn progress(&self) -> Follower {
        Follower::new(self.board.clone())
    }

    /// Starts a run and returns its name.
    ///
    /// # Errors
    /// A setting is out of range, the current run has not ended, or the coordinator has stopped.
    pub async fn start_run(&self, settings: &RunSettings) -> anyhow::Result<String> {
        let Value::Object(settings) = serde_json::to_value(settings)? else {
            bail!("run settings must be a table");
        };
        let reply = self.call(Request::StartRun(StartRun { name: None, settings })).await?;
        let Reply::RunStarted(run) = reply else { bail!("the coordinator replied {reply:?}") };
        Ok(run)
    }

    /// Stops the current run.
    ///
    /// # Errors
    /// There is no current run, or the coordinator has stopped.
    pub async fn stop_run(&self) -> anyhow::Result<()> {
        self.call(Request::StopRun).await.map(drop)
    }

    /// Waits until the coordinator stops without a request, which happens only after a fatal error.
    ///
    /// # Errors
    /// The fatal error.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        (&mut self.task).await.context("the coordinator's loop panicked")?
    }

    /// Disconnects from the broker and stops. The current run resumes at the next start.
    ///
    /// # Errors
    /// The fatal error, if the coordinator had already stopped.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        self.task.await.context("the coordinator's loop panicked")?
    }

    async fn call(&self, request: Request) -> anyhow::Result<Reply> {
        Call::make(&self.calls, request).await.map_err(|reason| anyhow!(reason))
    }
}

/// Result of a merge: run and epoch of the order, and the new weights or the reason for the failure.
type MergeEnd = ((RunId, u64), Result<Merged, String>);

/// Results of work that other threads do.
struct Ended {
    merges: mpsc::Receiver<MergeEnd>,
    checks: mpsc::Receiver<Checked>,
}

struct Shell {
    /// Default settings of new runs, with the policy that was set last.
    defaults: RunSettings,
    state: PathBuf,
    model: Arc<Model>,
    blobs: Arc<dyn Blobs>,
    /// Lock of the checker. It is always free, because only one check runs at a time.
    checker: Arc<Mutex<Checker>>,
    clock: Clock,
    hub: Hub,
    outgoing: mpsc::Sender<Publication>,
    merged: mpsc::Sender<MergeEnd>,
    checked: mpsc::Sender<Checked>,
    published: watch::Sender<Board>,
}

impl Shell {
    async fn work(
        mut self,
        events: mpsc::Receiver<LinkEvent>,
        calls: mpsc::Receiver<Call>,
        ended: Ended,
        stopping: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let worked = self.turn(events, calls, ended, stopping).await;
        self.show();
        let _ = self.outgoing.try_send(self.hub.farewell());
        worked
    }

    async fn turn(
        &mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut calls: mpsc::Receiver<Call>,
        mut ended: Ended,
        mut stopping: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let effects = self.hub.take_effects();
        self.carry_out(effects);
        let mut shown = Instant::now();
        let mut changed = false;
        loop {
            let deadline = self.hub.deadline().map(|deadline| self.clock.instant(deadline));
            let effects = tokio::select! {
                _ = &mut stopping => return Ok(()),
                event = events.recv() => {
                    let mut batch = vec![event.context("the task of the link to the broker ended")?];
                    while batch.len() < BATCH && let Ok(event) = events.try_recv() {
                        batch.push(event);
                    }
                    self.hub.link(batch, self.clock.now())?
                }
                Some(call) = calls.recv() => self.follow(call)?,
                Some((job, merged)) = ended.merges.recv() => self.hub.merge_ended(job, merged, self.clock.now())?,
                Some(checked) = ended.checks.recv() => self.hub.checked(checked, self.clock.now())?,
                () = sleep_until(deadline) => self.hub.tick(self.clock.now())?,
                () = tokio::time::sleep_until(shown + PROGRESS_EVERY), if changed => {
                    shown = Instant::now();
                    changed = self.show();
                    continue;
                }
            };
            changed = true;
            self.carry_out(effects);
        }
    }

    /// Publishes changes to watchers. Returns true if some changes wait for the next call.
    fn show(&mut self) -> bool {
        let (hub, now, mut has_more) = (&mut self.hub, self.clock.now(), false);
        self.published.send_modify(|board| has_more = hub.show(board, SHOWN_AT_ONCE, now));
        has_more
    }

    /// Carries out a request and answers it. Carries out the effects after the answer.
    fn follow(&mut self, Call { request, reply }: Call) -> anyhow::Result<Vec<Effect>> {
        let (answer, effects) = match self.answer(request)? {
            Ok((answer, effects)) => (Ok(answer), effects),
            Err(reason) => (Err(reason), Vec::new()),
        };
        // Fails if the client hung up. The request is carried out all the same.
        let _ = reply.send(answer);
        Ok(effects)
    }

    /// Carries out a request. The inner result is the reply, or says what is wrong with the request.
    fn answer(&mut self, request: Request) -> anyhow::Result<Result<(Reply, Vec<Effect>), String>> {
        let now = self.clock.now();
        let done = match request {
            Request::Progress | Request::Watch => {
                let whole = self.published.borrow().whole();
                Ok((Reply::Progress(Box::new(whole.progress())), Vec::new()))
            }
            Request::StartRun(start) => self.start_run(start, now)?,
            Request::StopRun => self.stop_run(None, now)?,
            Request::StopOne(run) => self.stop_run(Some(&run), now)?,
            Request::DeleteRun(run) => self.delete_run(&run)?.map(|deleted| (Reply::Deleted(deleted), Vec::new())),
            Request::ShowDevice(device) => match self.hub.device(&device) {
                Some(details) => Ok((Reply::Device(Box::new(details)), Vec::new())),
                None => {
                    Err(format!("no device of the fleet is called {device}; `skiff device list` lists all devices"))
                }
            },
            Request::RemoveDevice(request) => {
                let removed = self.hub.remove_device(request, now)?;
                removed.map(|(removal, effects)| (Reply::DeviceRemoved(removal), effects))
            }
            Request::ShowPolicy => {
                let policy = self.policy();
                let shares = self.hub.shares(&policy);
                shares.map(|shares| (Reply::Policy(PolicyView { policy, shares }), Vec::new()))
            }
            Request::ComparePolicy(policy) => {
                self.changes(&policy).map(|changes| (Reply::PolicyChanges(changes), Vec::new()))
            }
            Request::SetPolicy(policy) => self.set_policy(policy, now)?,
        };
        // Before the answer, so that a client that watches next sees its own change.
        self.show();
        Ok(done)
    }

    fn start_run(
        &mut self,
        StartRun { name, settings }: StartRun,
        now: Timestamp,
    ) -> anyhow::Result<Result<(Reply, Vec<Effect>), String>> {
        let run = RunId(random()?);
        let started = match with_overrides(&self.defaults, settings) {
            Ok(settings) => self.hub.start_run(run, name, settings, now)?,
            Err(reason) => Err(reason),
        };
        Ok(started.map(|effects| (Reply::RunStarted(run.to_string()), effects)))
    }

    /// Stops the current run, but only if it is `run` when one is named.
    fn stop_run(&mut self, run: Option<&str>, now: Timestamp) -> anyhow::Result<Result<(Reply, Vec<Effect>), String>> {
        let current = self.hub.ledger().filter(|ledger| !ledger.is_ended()).map(|ledger| ledger.start.run.to_string());
        match (run, current) {
            (Some(run), Some(current)) if run != current => {
                return Ok(Err(format!("run {run} has ended already; the current run is {current}")));
            }
            (Some(run), None) => return Ok(Err(format!("run {run} has ended already, and there is no current run"))),
            (Some(_) | None, _) => {}
        }
        let stopped = self.hub.stop_run("stopped by the operator".to_owned(), now)?;
        Ok(stopped.map(|effects| (Reply::Done(()), effects)))
    }

    fn delete_run(&mut self, run: &str) -> anyhow::Result<Result<Deleted, String>> {
        let Some(run) = parse_run(run) else {
            return Ok(Err(format!("there is no run {run}; `skiff run list` lists all runs")));
        };
        Ok(self.hub.delete_run(run)?.map(|collected| Deleted {
            removed_blobs: collected.removed.len() as u64,
            removed_bytes: collected.removed_bytes,
        }))
    }

    /// Sets a policy: writes it first to disk for later runs, then to the journal of the current run.
    fn set_policy(&mut self, policy: Policy, now: Timestamp) -> anyhow::Result<Result<(Reply, Vec<Effect>), String>> {
        let kept = self.changes(&policy).and_then(|changes| {
            policy::write(&policy, &self.state).map_err(|error| chain(&error))?;
            Ok(changes)
        });
        let changes = match kept {
            Ok(changes) => changes,
            Err(reason) => return Ok(Err(reason)),
        };
        (self.defaults.sharing, self.defaults.groups) = (policy.sharing.clone(), policy.groups.clone());
        Ok(Ok((Reply::PolicyChanges(changes), self.hub.set_policy(policy, now)?)))
    }

    /// Returns the policy of the current run, or of the next run if there is no current one.
    fn policy(&self) -> Policy {
        self.hub.policy().cloned().unwrap_or_else(|| self.defaults.policy())
    }

    /// Returns what another policy would change for each known device.
    fn changes(&self, policy: &Policy) -> Result<Vec<Change>, String> {
        let (mut before, after) = (self.hub.shares(&self.policy())?, self.hub.shares(policy)?);
        let change = |(device, after)| Some(Change { before: before.remove(&device)?, device, after });
        Ok(after.into_iter().filter_map(change).collect())
    }

    fn carry_out(&self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Publish(publication) => {
                    if self.outgoing.try_send(publication).is_err() {
                        tracing::debug!("the queue to the broker is full; a message is dropped and will be repeated");
                    }
                }
                Effect::Check(arrival) => {
                    let (checker, checked) = (Arc::clone(&self.checker), self.checked.clone());
                    tokio::spawn(async move {
                        let check = move || checker.lock().unwrap_or_else(PoisonError::into_inner).check(&arrival);
                        let result = in_thread(check).await.unwrap_or_else(|reason| Checked::Failed { reason });
                        // Fails if the coordinator is stopping. The device then offers its update again.
                        let _ = checked.send(result).await;
                    });
                }
                Effect::Merge(job) => {
                    let (model, blobs, merged) =
                        (Arc::clone(&self.model), Arc::clone(&self.blobs), self.merged.clone());
                    tokio::spawn(async move {
                        // Fails if the coordinator is stopping. The merge is then started again at the next start.
                        let _ = merged.send(merge(model, blobs, job).await).await;
                    });
                }
            }
        }
    }
}

/// Merges in a thread. If the merge fails or panics, returns the reason.
async fn merge(model: Arc<Model>, blobs: Arc<dyn Blobs>, job: MergeJob) -> MergeEnd {
    let about = (job.run, job.epoch);
    let merge = move || model.merge(&job, &*blobs).map_err(|error| chain(&error));
    let merged = in_thread(merge).await.flatten();
    if let Err(reason) = &merged {
        tracing::error!(reason, "merging failed");
    }
    (about, merged)
}

/// Does the work in another thread than the loop. Returns an error in words if the work panics.
async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("a fault in the coordinator's code: {error}"))
}

fn with_overrides(defaults: &RunSettings, overrides: Map<String, Value>) -> Result<RunSettings, String> {
    let mut settings = serde_json::to_value(defaults).map_err(|error| error.to_string())?;
    if let Some(table) = settings.as_object_mut() {
        table.extend(overrides);
    }
    serde_json::from_value(settings).map_err(|error| format!("run settings: {error}"))
}

/// Publishes in order until the last sender is dropped, then closes the link.
async fn send(link: Link, mut queue: mpsc::Receiver<Publication>) {
    while let Some(publication) = queue.recv().await {
        if link.publish(publication).await.is_err() {
            return;
        }
    }
    link.close().await;
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn link_config(config: &Config, will: Publication) -> LinkConfig {
    LinkConfig {
        broker: config.broker.clone(),
        client_id: format!("skiff-coordinator-{}", config.fleet),
        will: Some(will),
        subscriptions: coordinator_filters(&config.fleet),
        optional_subscriptions: coordinator_optional_filters(&config.fleet),
    }
}

/// Reads a run's name: 16 hexadecimal digits.
fn parse_run(text: &str) -> Option<RunId> {
    u64::from_str_radix(text, 16).ok().map(RunId).filter(|run| run.to_string() == text)
}

fn lock(state: &Path) -> anyhow::Result<Lock> {
    Lock::file(&state.join("lock")).map_err(|error| match error {
        LockError::InUse { .. } => anyhow!("another coordinator is using the state folder {}", state.display()),
        LockError::Io { .. } => error.into(),
    })
}

fn remember_pack(state: &Path, pack: &Path) -> std::io::Result<()> {
    let mut line = std::path::absolute(pack)?.into_os_string().into_encoded_bytes();
    line.push(b'\n');
    files::replace(&state.join(PACK_FILE), &line, Access::Shared)
}

fn random() -> anyhow::Result<u64> {
    getrandom::u64().map_err(|error| anyhow!("drawing a random number: {error}"))
}

/// A clock in milliseconds since 1970 that never jumps. It starts no earlier than the journal's last record.
struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the shell is where the time comes from")]
    fn new(not_before_ms: u64) -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_ms: (since_1970.as_millis() as u64).max(not_before_ms) }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.start_ms) + self.start.elapsed()
    }

    fn instant(&self, at: Timestamp) -> Instant {
        self.start + at.since(Timestamp(self.start_ms))
    }
}

#[cfg(test)]
mod tests;
