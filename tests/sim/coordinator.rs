//! The coordinator's process: the real hub, journal and blobs in a folder, and a clock that may be wrong.

use crate::checks::Checks;
use crate::disk::{Journal, Killer, MortalBlobs, MortalStore};
use skiff_blobs::{Blobs, DiskBlobs};
use skiff_coordinator::arrivals::{Arrival, Checked, Checker};
use skiff_coordinator::doors::mqtt::Writer;
use skiff_coordinator::hub::{Effect, Hub, HubError, Parts};
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::run::{MergeJob, Merged, RunSettings};
use skiff_coordinator::store::SqliteStore;
use skiff_link::{LinkEvent, Publication};
use skiff_protocol::{BootId, Digest, FleetId, RunId, Signer, Timestamp};
use std::path::Path;
use std::sync::Arc;

/// Seed of the key with which the coordinator signs.
pub(crate) const KEY: [u8; 32] = [1; 32];
/// Name of the fleet.
pub(crate) const FLEET: &str = "sim";

/// An event that the coordinator's shell gets.
#[derive(Debug)]
pub(crate) enum Call {
    /// Events of the link.
    Link(LinkEvent),
    /// The hub's deadline has passed.
    Tick,
    /// A merge ended.
    MergeEnded((RunId, u64), Result<Merged, String>),
    /// An update was checked.
    Checked(Checked),
    /// The operator starts a run.
    Start(RunId, Box<RunSettings>),
    /// The operator changes the policy.
    Policy(skiff_api::policy::Policy),
}

/// A life of the coordinator's process.
pub(crate) struct Coordinator {
    pub(crate) hub: Hub,
    pub(crate) killer: Arc<Killer>,
    model: Arc<Model>,
    blobs: Arc<dyn Blobs>,
    checker: Checker,
    /// Difference between the coordinator's clock and the true time, in milliseconds.
    ahead_ms: i64,
    /// Number of this life, from 1.
    pub(crate) life: u64,
}

/// Work of other threads, with its result.
pub(crate) enum Done {
    Merged((RunId, u64), Result<Merged, String>),
    Checked(Checked),
}

/// Messages and results that follow from an event.
#[derive(Default)]
pub(crate) struct Wants {
    pub(crate) publications: Vec<Publication>,
    /// Results of threads, which arrive later.
    pub(crate) done: Vec<Done>,
}

impl Coordinator {
    /// Starts the process with what its folder holds.
    pub(crate) fn start(
        folder: &Path,
        model: &Arc<Model>,
        journal: &Journal,
        life: u64,
        ahead_ms: i64,
        now_ms: u64,
        checks: &mut Checks,
    ) -> Result<(Self, Wants), HubError> {
        let killer = Arc::new(Killer::default());
        let disk = DiskBlobs::open(folder.join("blobs"), 1 << 26)?;
        let blobs: Arc<dyn Blobs> = Arc::new(MortalBlobs { disk, killer: Arc::clone(&killer) });
        let disk = SqliteStore::open(folder, &*blobs)?;
        let fleet: FleetId = FLEET.parse().expect("a name");
        let parts = Parts {
            fleet: fleet.clone(),
            devices: 64,
            slots: 2,
            model: Arc::clone(model),
            blobs: Arc::clone(&blobs),
            store: Box::new(MortalStore { disk, killer: Arc::clone(&killer), committed: Arc::clone(journal) }),
            writer: Writer::new(fleet, Signer::new(KEY), BootId(life)),
        };
        let wall_ms = now_ms.saturating_add_signed(ahead_ms);
        let mut hub = Hub::open(parts, Timestamp(wall_ms))?;
        // As in the real shell: the clock starts no earlier than the last record.
        let ahead_ms = wall_ms.max(hub.last_ms()) as i64 - now_ms as i64;
        let effects = hub.take_effects();
        let checker = Checker::new(Arc::clone(model), Arc::clone(&blobs));
        let mut started = Self { hub, killer, model: Arc::clone(model), blobs, checker, ahead_ms, life };
        let wants = started.carry_out(effects, checks);
        Ok((started, wants))
    }

    fn now(&self, now_ms: u64) -> Timestamp {
        Timestamp(now_ms.saturating_add_signed(self.ahead_ms))
    }

    /// Returns the true time at which the hub wants to be called, in milliseconds.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.hub.deadline().map(|deadline| deadline.0.saturating_add_signed(-self.ahead_ms))
    }

    /// Handles an event.
    pub(crate) fn handle(&mut self, call: Call, now_ms: u64, checks: &mut Checks) -> Result<Wants, HubError> {
        let now = self.now(now_ms);
        let effects = match call {
            Call::Link(event) => self.hub.link(vec![event], now)?,
            Call::Tick => self.hub.tick(now)?,
            Call::MergeEnded(job, merged) => self.hub.merge_ended(job, merged, now)?,
            Call::Checked(checked) => self.hub.checked(checked, now)?,
            Call::Start(run, settings) => {
                self.hub.start_run(run, None, *settings, now)?.expect("settings that are right, and no other run")
            }
            Call::Policy(policy) => self.hub.set_policy(policy, now)?,
        };
        Ok(self.carry_out(effects, checks))
    }

    fn carry_out(&mut self, effects: Vec<Effect>, checks: &mut Checks) -> Wants {
        let mut wants = Wants::default();
        for effect in effects {
            match effect {
                Effect::Publish(publication) => wants.publications.push(publication),
                Effect::Check(arrival) => wants.done.push(Done::Checked(self.check(&arrival))),
                Effect::Merge(job) => wants.done.push(self.merge(&job, checks)),
            }
        }
        wants
    }

    fn check(&mut self, arrival: &Arrival) -> Checked {
        self.checker.check(arrival)
    }

    fn merge(&self, job: &MergeJob, checks: &mut Checks) -> Done {
        let merged = self.model.merge(job, &*self.blobs).map_err(|error| skiff_base::chain(&error));
        if let Ok(merged) = &merged {
            checks.merged(&self.model, &*self.blobs, job, merged);
        }
        Done::Merged((job.run, job.epoch), merged)
    }

    /// Returns the stored blobs, and the incomplete ones.
    pub(crate) fn stored(&self) -> (Vec<Digest>, Vec<Digest>) {
        let blobs = self.blobs.list().unwrap_or_default().into_iter().map(|(digest, _)| digest).collect();
        (blobs, self.blobs.partials().unwrap_or_default())
    }
}
