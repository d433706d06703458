//! Shows the state of fleet and run on a board: marks the devices that a call changed, and rebuilds only their views.

use super::Hub;
use crate::board::Board;
use crate::run::{Entry, Record, Run};
use crate::store::Traffic;
use crate::views;
use skiff_api::details::DeviceDetails;
use skiff_api::progress::ROUNDS_SHOWN;
use skiff_protocol::{DeviceId, Timestamp};

impl Hub {
    /// Brings a board up to date: the run, its closed rounds, and at most `most` of the devices that changed. Returns true if
    /// more devices wait.
    pub fn show(&mut self, board: &mut Board, most: usize, now: Timestamp) -> bool {
        let rival = self.rivals.warning(&self.fleet_id, now);
        let warnings = rival.into_iter().chain(self.removals.warnings(&self.fleet_id)).collect();
        board.set_state(now.0, self.connected, self.refusals.by_label(), warnings);
        match &self.run {
            Some(run) => self.show_run(run, board, now),
            None => board.remove_run(),
        }
        let ledger = self.run.as_ref().map(Run::ledger);
        for device in self.fleet.take_changed(most) {
            match self.fleet.get(&device) {
                Some(known) => board.set_device(views::device(&device, known, ledger)),
                None => board.remove_device(&device),
            }
        }
        self.fleet.has_changed()
    }

    /// Returns everything that is known about a device; `None` if no device of the fleet has this name.
    #[must_use]
    pub fn device(&self, device: &DeviceId) -> Option<DeviceDetails> {
        let ledger = self.run.as_ref().map(Run::ledger);
        let known = self.fleet.get(device)?;
        Some(views::device_details(device, known, self.fleet.version(device), ledger))
    }

    fn show_run(&self, run: &Run, board: &mut Board, now: Timestamp) {
        let ledger = run.ledger();
        // Bytes that travel after the end of a run do not count for it.
        let uncommitted = if ledger.is_ended() { Traffic::default() } else { self.traffic };
        let in_round = |round: u32| {
            let mut traffic = self.travelled.get(&round).copied().unwrap_or_default();
            if round == self.traffic_round {
                traffic += uncommitted;
            }
            traffic
        };
        let mut total = uncommitted;
        self.travelled.values().for_each(|traffic| total += *traffic);
        let closed = &ledger.closed[ledger.closed.len().saturating_sub(ROUNDS_SHOWN)..];
        board.set_run(views::run_line(run, total, now), closed.iter().map(|closed| (closed, in_round(closed.round))));
    }

    /// Marks the devices whose part in the run changed with these records.
    pub(super) fn mark_changed(&mut self, entries: &[Entry]) {
        for entry in entries {
            match &entry.record {
                Record::TrainingStarted { assignments, .. } => {
                    assignments.keys().for_each(|device| self.fleet.mark(device));
                    self.with_order.extend(assignments.keys().cloned());
                }
                Record::UpdateStored { device, .. } => self.fleet.mark(device),
                Record::Merged(_) | Record::Skipped { .. } | Record::RunEnded { .. } => self.mark_without_order(),
                Record::RunStarted(_)
                | Record::Resumed
                | Record::DeviceOut { .. }
                | Record::Collected
                | Record::EvaluationStarted { .. }
                | Record::Evaluated(_)
                | Record::PolicySet(_) => {}
            }
        }
    }

    /// Marks every device, because another run began.
    pub(super) fn mark_all(&mut self) {
        self.fleet.mark_all();
        self.with_order.clear();
        if let Some(ledger) = self.run.as_ref().map(Run::ledger) {
            let ordered = ledger.selected.iter().chain(ledger.carried.assignments.keys());
            self.with_order.extend(ordered.filter(|device| ledger.order_of(device).is_some()).cloned());
        }
    }

    /// Marks the devices that no longer have an order.
    fn mark_without_order(&mut self) {
        let Some(ledger) = self.run.as_ref().map(Run::ledger) else { return };
        let fleet = &mut self.fleet;
        self.with_order.retain(|device| {
            fleet.mark(device);
            ledger.order_of(device).is_some()
        });
    }
}
