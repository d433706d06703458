//! Finds the open order of each device, and sends it.

use super::deliveries::Open;
use super::ledger::{Ledger, Phase};
use super::record::{Assignment, Start};
use super::round::Ordered;
use super::{Action, Run};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::{Command, EvaluateOrder, Order, TrainOrder};

impl Run {
    /// Returns true if the device has an open order.
    pub(super) fn is_pending(&self, device: &DeviceId) -> bool {
        self.ordered(device).is_some()
            || matches!(&self.ledger.phase, Phase::Evaluate(examples)
                if examples.contains_key(device) && !self.reports.contains_key(device))
    }

    /// Returns the devices with an open order, and the epoch of the order.
    pub(super) fn pending(&self) -> Open {
        let carried = self.ledger.carried.assignments.keys();
        let pending = self.ledger.selected.iter().chain(carried).filter(|device| self.is_pending(device));
        pending.map(|device| (device.clone(), self.epoch_of(device))).collect()
    }

    /// Returns a device's open order to train.
    pub(super) fn ordered(&self, device: &DeviceId) -> Option<&Ordered> {
        let in_round = if let Phase::Train(training) = &self.ledger.phase { Some(training) } else { None };
        let mut trainings = [Some(&self.ledger.carried), in_round].into_iter().flatten();
        trainings.find(|training| training.is_pending(device))?.assignments.get(device)
    }

    /// Returns the epoch of a device's order.
    pub(super) fn epoch_of(&self, device: &DeviceId) -> u64 {
        self.ordered(device).map_or(self.ledger.epoch, |ordered| ordered.epoch)
    }

    /// Returns the orders and stops that are due.
    pub(super) fn due_commands(&mut self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.deliveries.may_be_due(now_ms) {
            return actions;
        }
        let open = self.pending();
        for device in self.deliveries.due_orders(&open, |device| self.attendance.is_online(device), now_ms) {
            if let Some((round, order)) = self.order(&device) {
                let epoch = self.epoch_of(&device);
                self.deliveries.on_sent(&device, epoch, now_ms);
                actions.push(Action::SendCommand(device, self.command(round, epoch, order)));
            }
        }
        let stops = self.deliveries.due_stops(|device| self.attendance.is_online(device), now_ms);
        actions.extend(stops.into_iter().map(|(device, command)| Action::SendCommand(device, command)));
        self.deliveries.rest(|device| self.attendance.is_online(device), now_ms);
        actions
    }

    /// Orders devices to drop their open order, unless their next order is sent first.
    pub(super) fn stop(&mut self, devices: impl IntoIterator<Item = DeviceId>) {
        for device in devices {
            let command = self.command(self.ledger.round, self.epoch_of(&device) + 1, Order::Stop);
            self.deliveries.stop(device, command);
        }
    }

    fn command(&self, round: u32, epoch: u64, order: Order) -> Command {
        let Ledger { started_ms, ref start, .. } = self.ledger;
        Command { run: start.run, started_ms, round, epoch, order }
    }

    /// Returns a device's open order and the round to which it belongs.
    fn order(&self, device: &DeviceId) -> Option<(u32, Order)> {
        let Start { settings, schema, .. } = &self.ledger.start;
        if let Some(Ordered { round, weights, assignment, .. }) = self.ordered(device) {
            let Assignment { choice, share } = assignment;
            let order = TrainOrder {
                weights: *weights,
                schema: *schema,
                seed: settings.seed,
                rates: choice.rates.to_vec(),
                most_active: choice.most_active,
                steps: settings.steps,
                batch: settings.batch,
                max_tokens: settings.max_tokens,
                learning_rate: settings.learning_rate,
                proximal: settings.proximal,
                rank: share.rank,
                probe_examples: choice.probe_examples,
                sharing: share.plan.clone(),
                deadline_ms: settings.train_ms,
            };
            return Some((*round, Order::Train(order)));
        }
        let Phase::Evaluate(examples) = &self.ledger.phase else { return None };
        let order = EvaluateOrder {
            weights: self.ledger.weights,
            schema: *schema,
            examples: *examples.get(device)?,
            batch: settings.evaluate_batch,
            max_tokens: settings.max_tokens,
            deadline_ms: settings.evaluate_ms,
        };
        Some((self.ledger.round, Order::Evaluate(order)))
    }
}
