//! The requests of an operator that change the fleet: runs that start, stop and are deleted, and the sharing policy.

use super::{Effect, Hub, HubError};
use crate::results::{self, ResultError};
use crate::run::{Event, Run, RunSettings, Start};
use crate::store::collector::Collected;
use crate::store::{Traffic, room};
use skiff_api::names::RunName;
use skiff_api::policy::{Policy, Share};
use skiff_base::chain;
use skiff_protocol::{DeviceId, Digest, RunId, Timestamp};
use std::collections::BTreeMap;

impl Hub {
    /// Starts a run with the id `run`. The inner result says what is wrong with the request.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn start_run(
        &mut self,
        run: RunId,
        name: Option<RunName>,
        mut settings: RunSettings,
        now: Timestamp,
    ) -> Result<Result<Vec<Effect>, String>, HubError> {
        if let Some(present) = self.run.as_ref().filter(|run| !run.ledger().is_ended()) {
            return Ok(Err(format!("run {} has not ended: stop it first", present.ledger().start.run)));
        }
        if let Err(bad) = settings.check(self.model.layers) {
            return Ok(Err(bad.to_string()));
        }
        if let Some(name) = &name
            && let Some(taken) = results::find_named(&*self.store, name)?
        {
            return Ok(Err(format!(
                "the name {name} is taken by run {taken}: choose another one, or delete that run (`skiff run delete {name}`)"
            )));
        }
        let needed_bytes = room::needed_bytes(&settings, self.model.initial.len() as u64, self.most_bytes());
        if let Some(reason) = room::lacking(&*self.blobs, needed_bytes)? {
            return Ok(Err(reason));
        }
        let weights = match settings.from.as_deref().map(|from| self.weights_of(from)) {
            None => self.blobs.put(&self.model.initial)?,
            Some(Ok((origin, weights))) => {
                settings.from = Some(origin);
                weights
            }
            Some(Err(error)) => return Ok(Err(chain(&error))),
        };
        let schema = Digest(self.model.schema.hash());
        let settings = Box::new(settings);
        let start = Start {
            run,
            name,
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
        self.mark_all();
        self.traffic = Traffic::default();
        self.traffic_round = 0;
        self.travelled = BTreeMap::new();
        self.decided.extend(actions);
        let here: Vec<Event> =
            self.fleet.here().map(|(device, here)| Event::DeviceHere(device.clone(), here)).collect();
        self.feed_all(here, now);
        self.settle(now).map(Ok)
    }

    /// Returns the weights of an earlier run as `RUN@ROUND` and digest. They are in the folder of blobs, and stay while a run needs them.
    pub(super) fn weights_of(&self, from: &str) -> Result<(String, Digest), ResultError> {
        let found = results::read_origin(&*self.store, &*self.blobs, &from.parse()?, self.model.pack)?;
        Ok((format!("{}@{}", found.run, found.round), found.digest))
    }

    /// Stops the current run. The inner result says what is wrong with the request.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn stop_run(&mut self, reason: String, now: Timestamp) -> Result<Result<Vec<Effect>, String>, HubError> {
        if self.run.as_ref().is_none_or(|run| run.ledger().is_ended()) {
            return Ok(Err("there is no current run".to_owned()));
        }
        self.feed(Event::StopRequested { reason }, now);
        self.settle(now).map(Ok)
    }

    /// Changes the sharing policy of the current run, if there is one, from its next order.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn set_policy(&mut self, policy: Policy, now: Timestamp) -> Result<Vec<Effect>, HubError> {
        self.feed(Event::PolicySet(policy), now);
        self.settle(now)
    }

    /// Returns the sharing policy of the current run.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.run.as_ref().map(Run::ledger).filter(|ledger| !ledger.is_ended()).map(|ledger| &ledger.policy)
    }

    /// Returns what each known device shares under a policy.
    ///
    /// # Errors
    /// The policy does not fit the model.
    pub fn shares(&self, policy: &Policy) -> Result<BTreeMap<DeviceId, Share>, String> {
        policy.check(self.model.layers)?;
        self.fleet
            .places()
            .map(|(device, place)| Ok((device.clone(), policy.share(place, self.model.layers)?)))
            .collect()
    }

    /// Deletes an ended run and the weights that no other run needs. The inner result says what is wrong with the request.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn delete_run(&mut self, run: RunId) -> Result<Result<Collected, String>, HubError> {
        let current = self.run.as_ref().map(Run::ledger).filter(|ledger| ledger.start.run == run);
        if current.is_some_and(|ledger| !ledger.is_ended()) {
            return Ok(Err(format!("run {run} has not ended: stop it first (`skiff run stop`)")));
        }
        let is_current = current.is_some();
        if !self.store.runs()?.iter().any(|row| row.run == run) {
            return Ok(Err(format!("there is no run {run}; `skiff run list` lists all runs")));
        }
        self.store.delete(run)?;
        if is_current {
            self.run = None;
            self.mark_all();
        }
        tracing::info!(%run, "run deleted");
        Ok(Ok(self.remove_blobs()?))
    }
}
