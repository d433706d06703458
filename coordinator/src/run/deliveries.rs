//! Sends commands to devices, and repeats them until they are answered. Reads no clock and knows no phase.
//!
//! ```text
//!            due                answered: accepted
//!  (open) ─────────► sent ──────────────────────────► accepted
//!            ▲  repeat_ms passed │ ▲  accepted_repeat_ms passed │
//!            └───────────────────┘ └────────────────────────────┘
//! ```
//! The engine says which orders are open ([`Open`]), and which devices are online. An order that is no longer open is forgotten.
//! An online device that does not answer an order for [`ANSWER_MS`] is silent. The engine then no longer waits for it.
//! A stop is repeated independently of orders, at most [`MAX_STOPS`] times; a newer order to the same device replaces it. An
//! offline device gets nothing: its command is sent when it is back.
//!
//! Looking for due commands visits every open order. Between two looks, [`Deliveries::rest`] remembers when the next command is due;
//! only other orders, new stops and devices that come back make an earlier look necessary.

use skiff_protocol::DeviceId;
use skiff_protocol::messages::Command;
use std::collections::BTreeMap;

/// Time after which a command without an answer is repeated, in milliseconds.
pub const REPEAT_MS: u64 = 2_000;
/// Time without any answer to an order after which an online device is silent, in milliseconds. A chunk of 64 KiB ahead of the answer
/// takes 26 s at 20 kbit/s.
pub const ANSWER_MS: u64 = 30_000;
/// Time after which an accepted command is repeated, in milliseconds.
pub const ACCEPTED_REPEAT_MS: u64 = 10_000;
/// Largest number of times that a stop is sent to a device.
pub const MAX_STOPS: u32 = 5;
/// Largest number of orders, and of stops, that are sent at a time. Signing thousands of commands in a row would hold up everything
/// else that the coordinator does.
pub const MAX_COMMANDS: usize = 128;

/// Devices with an open order, and the epoch of the order.
pub(super) type Open = BTreeMap<DeviceId, u64>;

/// The commands that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    orders: BTreeMap<DeviceId, Delivery>,
    stops: BTreeMap<DeviceId, Stop>,
    /// True if more commands were due than could be sent at a time.
    more_are_due: bool,
    /// True if something happened since the last look that can make a command due.
    has_changed: bool,
    /// Time of the next command to an online device, in milliseconds, as of the last look.
    next_ms: Option<u64>,
    /// Time at which the next online device is silent, in milliseconds, as of the last look.
    silent_ms: Option<u64>,
}

/// Delivery of a device's open order.
#[derive(Debug)]
struct Delivery {
    epoch: u64,
    due_ms: u64,
    /// Time at which the order was first sent; `None` once the device has accepted it.
    unanswered_ms: Option<u64>,
}

#[derive(Debug)]
struct Stop {
    command: Command,
    sent: u32,
    due_ms: u64,
}

impl Deliveries {
    /// Sends the device's order again at the next opportunity, because a restart loses messages.
    pub(super) fn on_restart(&mut self, device: &DeviceId) {
        self.orders.remove(device);
        self.has_changed = true;
    }

    /// Looks for orders to send at the next opportunity, because others are open now.
    pub(super) fn on_other_orders(&mut self) {
        self.has_changed = true;
    }

    /// Repeats the device's order less often. Returns false if the order was not sent.
    pub(super) fn on_accepted(&mut self, device: &DeviceId, now_ms: u64) -> bool {
        let Some(delivery) = self.orders.get_mut(device) else { return false };
        delivery.due_ms = now_ms + ACCEPTED_REPEAT_MS;
        delivery.unanswered_ms = None;
        true
    }

    /// Stops repeating the stop that a device answered. Returns false if the answer belongs to another command.
    pub(super) fn on_stopped(&mut self, device: &DeviceId, epoch: u64) -> bool {
        let answers = self.stops.get(device).is_some_and(|stop| stop.command.epoch == epoch);
        if answers {
            self.stops.remove(device);
        }
        answers
    }

    /// Sends the stop `command` to a device, unless the device's next order is sent first.
    pub(super) fn stop(&mut self, device: DeviceId, command: Command) {
        self.stops.insert(device, Stop { command, sent: 0, due_ms: 0 });
        self.has_changed = true;
    }

    /// Forgets the orders that are not open any more, and returns the open ones that are due at online devices, at most
    /// [`MAX_COMMANDS`].
    pub(super) fn due_orders(
        &mut self,
        open: &Open,
        is_online: impl Fn(&DeviceId) -> bool,
        now_ms: u64,
    ) -> Vec<DeviceId> {
        self.orders.retain(|device, _| open.contains_key(device));
        let is_due = |(device, epoch): &(&DeviceId, &u64)| {
            self.orders.get(device).is_none_or(|sent| sent.epoch != **epoch || now_ms >= sent.due_ms)
        };
        let due = open.iter().filter(is_due).map(|(device, _)| device);
        let mut due: Vec<DeviceId> = due.filter(|device| is_online(device)).take(MAX_COMMANDS + 1).cloned().collect();
        self.more_are_due = due.len() > MAX_COMMANDS;
        due.truncate(MAX_COMMANDS);
        due
    }

    /// Records that the device's order of `epoch` is being sent. Drops a stop for the device.
    pub(super) fn on_sent(&mut self, device: &DeviceId, epoch: u64, now_ms: u64) {
        self.stops.remove(device);
        let before = self.orders.get(device).filter(|sent| sent.epoch == epoch);
        let unanswered_ms = before.map_or(Some(now_ms), |sent| sent.unanswered_ms);
        self.orders.insert(device.clone(), Delivery { epoch, due_ms: now_ms + REPEAT_MS, unanswered_ms });
    }

    /// Returns the online devices that have been silent about their order for [`ANSWER_MS`], with the epoch of the order.
    pub(super) fn silent(&self, is_online: impl Fn(&DeviceId) -> bool, now_ms: u64) -> Vec<(DeviceId, u64)> {
        if self.silent_ms.is_none_or(|silent_ms| now_ms < silent_ms) {
            return Vec::new();
        }
        let is_silent = |sent: &Delivery| sent.unanswered_ms.is_some_and(|since| now_ms >= since + ANSWER_MS);
        let silent = self.orders.iter().filter(|(device, sent)| is_silent(sent) && is_online(device));
        silent.map(|(device, sent)| (device.clone(), sent.epoch)).collect()
    }

    /// Records that a device was found silent about its order, so that it is found only once.
    pub(super) fn on_silent(&mut self, device: &DeviceId) {
        if let Some(delivery) = self.orders.get_mut(device) {
            delivery.unanswered_ms = None;
        }
        self.has_changed = true;
    }

    /// Returns the stops that are due at online devices, at most [`MAX_COMMANDS`], and counts them as sent.
    pub(super) fn due_stops(&mut self, is_online: impl Fn(&DeviceId) -> bool, now_ms: u64) -> Vec<(DeviceId, Command)> {
        self.stops.retain(|_, stop| stop.sent < MAX_STOPS);
        let mut due = Vec::new();
        for (device, stop) in &mut self.stops {
            if now_ms >= stop.due_ms && is_online(device) {
                if due.len() == MAX_COMMANDS {
                    self.more_are_due = true;
                    break;
                }
                stop.sent += 1;
                stop.due_ms = now_ms + REPEAT_MS;
                due.push((device.clone(), stop.command.clone()));
            }
        }
        due
    }

    /// Returns true if it is worth looking for due commands.
    pub(super) fn may_be_due(&self, now_ms: u64) -> bool {
        self.has_changed || self.next_ms.is_some_and(|next_ms| now_ms >= next_ms)
    }

    /// Remembers when the next command to an online device is due: now, if there were more than could be sent at a time.
    pub(super) fn rest(&mut self, is_online: impl Fn(&DeviceId) -> bool, now_ms: u64) {
        self.has_changed = false;
        let orders = self.orders.iter().map(|(device, delivery)| (device, delivery.due_ms));
        let stops = self.stops.iter().map(|(device, stop)| (device, stop.due_ms));
        let next_ms = orders.chain(stops).filter(|(device, _)| is_online(device)).map(|(_, due_ms)| due_ms).min();
        self.next_ms = if self.more_are_due { Some(now_ms) } else { next_ms };
        let unanswered = self.orders.iter().filter(|(device, _)| is_online(device));
        self.silent_ms = unanswered.filter_map(|(_, sent)| sent.unanswered_ms).min().map(|since| since + ANSWER_MS);
    }

    /// Returns the time of the next look, in milliseconds; `None` if no command waits for its time.
    pub(super) fn deadline_ms(&self, now_ms: u64) -> Option<u64> {
        match self.has_changed {
            true => Some(now_ms),
            false => {
                let next = self.next_ms.filter(|_| !self.orders.is_empty() || !self.stops.is_empty());
                next.into_iter().chain(self.silent_ms.filter(|_| !self.orders.is_empty())).min()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_protocol::RunId;
    use skiff_protocol::messages::Order;

    fn device(name: &str) -> DeviceId {
        name.parse().unwrap()
    }

    fn stop(epoch: u64) -> Command {
        Command { run: RunId(1), started_ms: 0, round: 1, epoch, order: Order::Stop }
    }

    const ONLINE: fn(&DeviceId) -> bool = |_| true;

    #[test]
    fn an_order_is_due_until_it_is_sent_then_after_each_pause() {
        let mut deliveries = Deliveries::default();
        let open = Open::from([(device("a"), 3)]);
        let due = |deliveries: &mut Deliveries, now_ms| !deliveries.due_orders(&open, ONLINE, now_ms).is_empty();
        assert!(due(&mut deliveries, 0) && due(&mut deliveries, 0));
        deliveries.on_sent(&device("a"), 3, 0);
        assert!(!due(&mut deliveries, REPEAT_MS - 1) && due(&mut deliveries, REPEAT_MS));
        deliveries.rest(ONLINE, 0);
        assert_eq!(deliveries.deadline_ms(0), Some(REPEAT_MS));
        assert!(!deliveries.may_be_due(REPEAT_MS - 1) && deliveries.may_be_due(REPEAT_MS));
        assert!(deliveries.on_accepted(&device("a"), 1_000));
        assert!(!due(&mut deliveries, REPEAT_MS) && due(&mut deliveries, 1_000 + ACCEPTED_REPEAT_MS));
        deliveries.on_restart(&device("a"));
        assert_eq!(deliveries.deadline_ms(1_001), Some(1_001), "it is looked for at once");
        assert!(due(&mut deliveries, 1_001));
        assert!(!deliveries.on_accepted(&device("a"), 1_001), "what was not sent is not accepted");
    }

    #[test]
    fn another_epoch_is_another_order_and_a_closed_one_is_forgotten() {
        let mut deliveries = Deliveries::default();
        deliveries.on_sent(&device("a"), 3, 0);
        assert_eq!(deliveries.due_orders(&Open::from([(device("a"), 4)]), ONLINE, 1), [device("a")]);
        assert_eq!(deliveries.due_orders(&Open::new(), ONLINE, 1), []);
        deliveries.rest(ONLINE, 1);
        assert_eq!(deliveries.deadline_ms(1), None);
    }

    #[test]
    fn offline_devices_get_nothing_and_wake_nobody() {
        let mut deliveries = Deliveries::default();
        let offline = |_: &DeviceId| false;
        assert_eq!(deliveries.due_orders(&Open::from([(device("a"), 1)]), offline, 9), []);
        deliveries.stop(device("a"), stop(2));
        assert_eq!(deliveries.due_stops(offline, 9), []);
        deliveries.rest(offline, 9);
        assert_eq!(deliveries.deadline_ms(9), None);
        assert_eq!(deliveries.due_stops(ONLINE, 9), [(device("a"), stop(2))]);
    }

    #[test]
    fn a_stop_is_repeated_a_bounded_number_of_times_and_ends_with_its_answer_or_the_next_order() {
        let mut deliveries = Deliveries::default();
        deliveries.stop(device("a"), stop(2));
        let sent = (0..20).map(|turn| deliveries.due_stops(ONLINE, turn * REPEAT_MS).len()).sum::<usize>();
        assert_eq!(sent, MAX_STOPS as usize);
        deliveries.stop(device("a"), stop(2));
        assert!(!deliveries.on_stopped(&device("a"), 1) && deliveries.on_stopped(&device("a"), 2));
        assert_eq!(deliveries.due_stops(ONLINE, 0), []);
        deliveries.stop(device("a"), stop(4));
        deliveries.on_sent(&device("a"), 5, 0);
        assert_eq!(deliveries.due_stops(ONLINE, 0), []);
    }

    #[test]
    fn many_commands_are_sent_in_parts_and_the_rest_is_due_at_once() {
        let mut deliveries = Deliveries::default();
        let devices: Vec<DeviceId> = (0..2 * MAX_COMMANDS + 1).map(|at| device(&format!("d{at:04}"))).collect();
        let open: Open = devices.iter().map(|device| (device.clone(), 1)).collect();
        let mut parts = Vec::new();
        for _ in 0..3 {
            let due = deliveries.due_orders(&open, ONLINE, 5);
            due.iter().for_each(|device| deliveries.on_sent(device, 1, 5));
            deliveries.rest(ONLINE, 5);
            parts.push((due.len(), deliveries.deadline_ms(5)));
        }
        let later = Some(5 + REPEAT_MS);
        assert_eq!(parts, [(MAX_COMMANDS, Some(5)), (MAX_COMMANDS, Some(5)), (1, later)]);
        devices.iter().for_each(|device| deliveries.stop(device.clone(), stop(2)));
        let sent: Vec<usize> = (0..4).map(|_| deliveries.due_stops(ONLINE, 9).len()).collect();
        assert_eq!(sent, [MAX_COMMANDS, MAX_COMMANDS, 1, 0]);
    }
}
