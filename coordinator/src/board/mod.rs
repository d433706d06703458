//! The published view: the newest state of fleet and run, from which every watcher takes the changes that it has not seen.
//!
//! The loop writes changes into the [`Board`], and each watcher has a [`Feed`] that records the values it still has to get. A
//! feed never delays others and holds at most one entry for each device: a slow watcher gets the newest values and skips the
//! older ones.
//!
//! ```text
//! loop ── Hub::show ──► Board (revision of each change) ──► Feed of a watcher ──► Changes, at most `budget_bytes` a line
//! ```

mod follower;

pub use follower::{Follower, Stopped};

use crate::run::ClosedRound;
use crate::store::Traffic;
use crate::views;
use serde::Serialize;
use skiff_api::changes::{Changes, RunChange};
use skiff_api::progress::{DeviceProgress, Progress, RoundProgress, RunProgress};
use skiff_protocol::DeviceId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Maximum number of removed devices whose names are kept. A watcher that missed more of them starts again with the whole state.
const FORGOTTEN: usize = 1_024;

/// The newest state, with the revision of every change.
#[derive(Debug, Default)]
pub struct Board {
    revision: u64,
    now_ms: u64,
    connected: bool,
    refused_messages: BTreeMap<String, u64>,
    warnings: Vec<String>,
    run: Option<ShownRun>,
    devices: BTreeMap<DeviceId, ShownDevice>,
    /// Devices by the revision of their last change. Devices that are not in `devices` were removed.
    changes: BTreeMap<u64, DeviceId>,
    /// Revisions at which devices were forgotten, oldest first.
    forgotten: VecDeque<u64>,
    /// Revision up to which the names of removed devices are no longer kept.
    complete_from: u64,
}

#[derive(Debug)]
struct ShownDevice {
    revision: u64,
    view: Arc<DeviceProgress>,
}

/// The view of the run: a line without closed rounds, and the closed rounds.
#[derive(Clone, Debug)]
struct ShownRun {
    line: RunProgress,
    closed: BTreeMap<u32, ShownRound>,
}

/// The view of a closed round, with the facts from which it was made.
#[derive(Clone, Debug)]
struct ShownRound {
    facts: Arc<ClosedRound>,
    view: Arc<RoundProgress>,
}

impl Board {
    /// Sets the time, the connection, the counts of refused messages, and the faults of the whole fleet.
    pub fn set_state(
        &mut self,
        now_ms: u64,
        connected: bool,
        refused_messages: BTreeMap<String, u64>,
        warnings: Vec<String>,
    ) {
        (self.now_ms, self.connected) = (now_ms, connected);
        (self.refused_messages, self.warnings) = (refused_messages, warnings);
    }

    /// Sets the run: its line without closed rounds, and its closed rounds with their traffic. Views of rounds that did not
    /// change are kept.
    pub fn set_run<'a>(&mut self, line: RunProgress, closed: impl Iterator<Item = (&'a Arc<ClosedRound>, Traffic)>) {
        let known = self.run.take().filter(|known| known.line.run == line.run);
        let mut known = known.map(|known| known.closed).unwrap_or_default();
        let shown = |(facts, traffic): (&Arc<ClosedRound>, Traffic)| {
            let is_same = |known: &ShownRound| {
                Arc::ptr_eq(&known.facts, facts)
                    && (known.view.bytes_up, known.view.bytes_down) == (traffic.up, traffic.down)
            };
            let made = || ShownRound { facts: Arc::clone(facts), view: Arc::new(views::closed_round(facts, traffic)) };
            (facts.round, known.remove(&facts.round).filter(is_same).unwrap_or_else(made))
        };
        self.run = Some(ShownRun { line, closed: closed.map(shown).collect() });
    }

    /// Removes the run.
    pub fn remove_run(&mut self) {
        self.run = None;
    }

    /// Sets a device, if its view changed.
    pub fn set_device(&mut self, view: DeviceProgress) {
        let known = self.devices.get(&view.device);
        if known.is_some_and(|known| *known.view == view) {
            return;
        }
        if let Some(known) = known {
            self.changes.remove(&known.revision);
        }
        self.revision += 1;
        self.changes.insert(self.revision, view.device.clone());
        self.devices.insert(view.device.clone(), ShownDevice { revision: self.revision, view: Arc::new(view) });
    }

    /// Removes a device that the coordinator forgot.
    pub fn remove_device(&mut self, device: &DeviceId) {
        let Some(known) = self.devices.remove(device) else { return };
        self.changes.remove(&known.revision);
        self.revision += 1;
        self.changes.insert(self.revision, device.clone());
        self.forgotten.push_back(self.revision);
        while self.forgotten.len() > FORGOTTEN {
            if let Some(revision) = self.forgotten.pop_front() {
                self.changes.remove(&revision);
                self.complete_from = revision;
            }
        }
    }

    /// Takes a copy of the whole state. It is cheap, because views are shared.
    #[must_use]
    pub fn whole(&self) -> Whole {
        Whole {
            now_ms: self.now_ms,
            connected: self.connected,
            refused_messages: self.refused_messages.clone(),
            warnings: self.warnings.clone(),
            run: self.run.clone(),
            devices: self.devices.values().map(|device| Arc::clone(&device.view)).collect(),
        }
    }
}

/// A copy of the whole state that shares its views with the board.
#[derive(Debug)]
pub struct Whole {
    now_ms: u64,
    connected: bool,
    refused_messages: BTreeMap<String, u64>,
    warnings: Vec<String>,
    run: Option<ShownRun>,
    devices: Vec<Arc<DeviceProgress>>,
}

impl Whole {
    /// Returns the state as one value. This copies every device, so the coordinator's loop must not call it.
    #[must_use]
    pub fn progress(self) -> Progress {
        let run = self.run.map(|run| RunProgress {
            closed: run.closed.into_values().map(|closed| (*closed.view).clone()).collect(),
            ..run.line
        });
        Progress {
            now_ms: self.now_ms,
            connected: self.connected,
            devices: self.devices.iter().map(|device| (**device).clone()).collect(),
            run,
            refused_messages: self.refused_messages,
            warnings: self.warnings,
        }
    }
}

/// State of a watcher: the values that it got, and a queue of the devices that it gets next.
#[derive(Debug, Default)]
pub struct Feed {
    /// Revision up to which the feed has queued devices; `None` before the first line.
    taken: Option<u64>,
    /// Number of devices in the whole state that the watcher has not received yet.
    missing: usize,
    refused_messages: BTreeMap<String, u64>,
    warnings: Vec<String>,
    run: Option<ShownRun>,
    /// Devices that changed, in the order in which they are sent.
    queue: VecDeque<DeviceId>,
    queued: BTreeSet<DeviceId>,
}

impl Feed {
    /// Returns the next line: the run and the closed rounds that changed, then devices from the queue, at least one, as long as
    /// their JSON fits into `budget_bytes`.
    pub fn next(&mut self, board: &Board, budget_bytes: usize) -> Changes {
        let restarts = self.taken.is_none_or(|taken| taken < board.complete_from);
        self.take(board, restarts);
        let refused_messages =
            (restarts || self.refused_messages != board.refused_messages).then(|| board.refused_messages.clone());
        self.refused_messages.clone_from(&board.refused_messages);
        let warnings = (restarts || self.warnings != board.warnings).then(|| board.warnings.clone());
        self.warnings.clone_from(&board.warnings);
        let run = self.run_change(board);
        let mut changes = Changes {
            restarts,
            now_ms: board.now_ms,
            connected: board.connected,
            refused_messages,
            warnings,
            run,
            ..Changes::default()
        };
        let mut bytes = json_bytes(&changes);
        while let Some(device) = self.queue.pop_front() {
            self.queued.remove(&device);
            self.missing = self.missing.saturating_sub(1);
            if let Some(shown) = board.devices.get(&device) {
                bytes += json_bytes(&*shown.view) + 1;
                changes.devices.push((*shown.view).clone());
            } else {
                bytes += device.as_str().len() + 3;
                changes.removed.push(device);
            }
            if bytes >= budget_bytes {
                break;
            }
        }
        changes.is_partial = self.missing > 0;
        changes
    }

    /// Returns true if devices wait for the next line.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Queues the devices that changed, or all of them.
    fn take(&mut self, board: &Board, restarts: bool) {
        if restarts {
            *self = Self { missing: board.devices.len(), ..Self::default() };
            self.queue.extend(board.devices.keys().cloned());
            self.queued.extend(board.devices.keys().cloned());
        } else {
            for device in board.changes.range(self.taken.map_or(0, |taken| taken + 1)..).map(|(_, device)| device) {
                if self.queued.insert(device.clone()) {
                    self.queue.push_back(device.clone());
                }
            }
        }
        self.taken = Some(board.revision);
    }

    /// Returns the change of the run since the previous line.
    fn run_change(&mut self, board: &Board) -> RunChange {
        let before = std::mem::replace(&mut self.run, board.run.clone());
        let Some(run) = &board.run else {
            return if before.is_some() { RunChange::Removed } else { RunChange::Same };
        };
        let before = before.filter(|before| before.line.run == run.line.run);
        let known = |round: &u32, shown: &ShownRound| {
            let before = before.as_ref().and_then(|before| before.closed.get(round));
            before.is_some_and(|before| Arc::ptr_eq(&before.view, &shown.view))
        };
        let closed: Vec<RoundProgress> = run
            .closed
            .iter()
            .filter(|(round, shown)| !known(round, shown))
            .map(|(_, shown)| (*shown.view).clone())
            .collect();
        if closed.is_empty() && before.as_ref().is_some_and(|before| before.line == run.line) {
            return RunChange::Same;
        }
        RunChange::Changed(Box::new(RunProgress { closed, ..run.line.clone() }))
    }
}

fn json_bytes(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests;
