//! Records which devices are online, when other devices left, and the condition of each.

use super::event::{Condition, Here};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// Pause in milliseconds before a device that did not answer an order gets the next one. It doubles with each order in a row.
const PAUSE_MS: u64 = 60_000;
/// Longest such pause, in milliseconds.
const LONGEST_PAUSE_MS: u64 = 3_600_000;

/// Online devices, and offline devices that have an order.
#[derive(Debug, Default)]
pub(super) struct Attendance {
    here: BTreeMap<DeviceId, Here>,
    /// Offline devices, and the time when each went offline, in milliseconds.
    gone: BTreeMap<DeviceId, u64>,
    /// Devices that did not answer an order: how many orders in a row, and the time until which they get none, in milliseconds.
    silent: BTreeMap<DeviceId, (u32, u64)>,
    /// Conditions of online devices. Devices that report nothing are left out.
    conditions: BTreeMap<DeviceId, Condition>,
}

impl Attendance {
    /// Records that a device is online. Returns true if it was offline before, or has restarted.
    pub(super) fn arrive(&mut self, device: DeviceId, here: Here) -> bool {
        let boot = here.boot;
        self.gone.remove(&device);
        let before = self.here.insert(device.clone(), here);
        let is_new = before.is_none_or(|before| before.boot != boot);
        if is_new {
            self.silent.remove(&device);
        }
        is_new
    }

    /// Records that a device did not answer an order.
    pub(super) fn on_silent(&mut self, device: &DeviceId, now_ms: u64) {
        let (times, until_ms) = self.silent.entry(device.clone()).or_default();
        *until_ms = now_ms + LONGEST_PAUSE_MS.min(PAUSE_MS << (*times).min(16));
        *times += 1;
    }

    /// Records that a device answers.
    pub(super) fn on_answer(&mut self, device: &DeviceId) {
        self.silent.remove(device);
    }

    /// Returns the time at which the next pause of a silent device ends, in milliseconds; `None` if there is none after `now_ms`.
    pub(super) fn next_pause_ends_ms(&self, now_ms: u64) -> Option<u64> {
        self.silent.values().map(|&(_, until_ms)| until_ms).filter(|&until_ms| now_ms < until_ms).min()
    }

    /// Returns true if a device gets no order, because it did not answer the last one.
    pub(super) fn is_silent(&self, device: &DeviceId, now_ms: u64) -> bool {
        self.silent.get(device).is_some_and(|&(_, until_ms)| now_ms < until_ms)
    }

    /// Records that a device is offline. Forgets the device if no phase waits for it.
    pub(super) fn leave(&mut self, device: DeviceId, now_ms: u64, is_ordered: bool) {
        self.conditions.remove(&device);
        self.here.remove(&device);
        self.silent.remove(&device);
        if is_ordered {
            self.gone.entry(device).or_insert(now_ms);
        } else {
            self.gone.remove(&device);
        }
    }

    /// Records that a device is offline since `since_ms`, whatever was known about it before.
    pub(super) fn remove(&mut self, device: DeviceId, since_ms: u64, is_ordered: bool) {
        self.leave(device.clone(), since_ms, is_ordered);
        if let Some(since) = self.gone.get_mut(&device) {
            *since = since_ms;
        }
    }

    /// Forgets the offline devices for which `is_ordered` is false.
    pub(super) fn forget(&mut self, is_ordered: impl Fn(&DeviceId) -> bool) {
        self.gone.retain(|device, _| is_ordered(device));
    }

    /// Replaces the condition of an online device. If the new condition has no pace, the last known pace stays.
    pub(super) fn set_condition(&mut self, device: &DeviceId, condition: Condition) {
        let condition = Condition { pace: condition.pace.or(self.condition(device).pace), ..condition };
        if condition == Condition::default() {
            self.conditions.remove(device);
        } else if self.here(device).is_some() {
            self.conditions.insert(device.clone(), condition);
        }
    }

    /// Returns the last condition that a device reported.
    pub(super) fn condition(&self, device: &DeviceId) -> Condition {
        self.conditions.get(device).copied().unwrap_or_default()
    }

    /// Returns an online device.
    pub(super) fn here(&self, device: &DeviceId) -> Option<&Here> {
        self.here.get(device)
    }

    /// Returns true if a device is online.
    pub(super) fn is_online(&self, device: &DeviceId) -> bool {
        self.here.contains_key(device)
    }

    /// Returns all online devices, by name.
    pub(super) fn online(&self) -> impl Iterator<Item = (&DeviceId, &Here)> {
        self.here.iter()
    }

    /// Returns the offline devices that have an order, by name.
    pub(super) fn gone(&self) -> impl Iterator<Item = &DeviceId> {
        self.gone.keys()
    }

    /// Returns the time at which a device went offline, in milliseconds; `None` if it is online, or if nothing is known about it.
    pub(super) fn gone_since_ms(&self, device: &DeviceId) -> Option<u64> {
        self.gone.get(device).copied()
    }

    /// Returns the number of devices that are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.here.len() + self.gone.len()
    }
}
