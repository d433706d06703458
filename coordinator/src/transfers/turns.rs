//! Who has a slot for a transfer, and who waits for one.

use crate::stalls::Silences;
use skiff_protocol::transfer::{Offer, TransferId};
use skiff_protocol::{DeviceId, Timestamp};
use std::collections::{BTreeMap, VecDeque};

/// Silence in milliseconds after which a transfer gives its slot to a waiting one.
pub const IDLE_MS: u64 = 10_000;

/// Running engines, and offers that wait for a slot.
#[derive(Debug)]
pub(super) struct Turns<E> {
    slots: usize,
    pub(super) active: BTreeMap<DeviceId, Turn<E>>,
    pub(super) waiting: VecDeque<(DeviceId, Offer)>,
    pub(super) silences: Silences,
}

#[derive(Debug)]
pub(super) struct Turn<E> {
    pub(super) engine: E,
    heard: Timestamp,
}

impl<E> Turns<E> {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots: slots.max(1), active: BTreeMap::new(), waiting: VecDeque::new(), silences: Silences::default() }
    }

    pub(super) fn active(&mut self, device: &DeviceId) -> Option<&mut E> {
        self.active.get_mut(device).map(|turn| &mut turn.engine)
    }

    pub(super) fn heard(&mut self, device: &DeviceId, now: Timestamp) -> Option<&mut E> {
        let turn = self.active.get_mut(device)?;
        turn.heard = now;
        Some(&mut turn.engine)
    }

    /// Queues an offer, and drops an older one of the same device. A running engine keeps its slot.
    pub(super) fn enter(&mut self, device: &DeviceId, offer: Offer) {
        if self.active.contains_key(device) {
            return;
        }
        match self.waiting.iter_mut().find(|(waiting, _)| waiting == device) {
            Some((_, older)) => *older = offer,
            None => self.waiting.push_back((device.clone(), offer)),
        }
    }

    /// Returns the next offer to start, if a slot is free or can be taken from an idle transfer.
    pub(super) fn next(&mut self, now: Timestamp) -> Option<(DeviceId, Offer)> {
        if !self.waiting.is_empty() && self.active.len() >= self.slots {
            let idles = |turn: &Turn<E>| now.millis_since(turn.heard) >= IDLE_MS;
            let idle = self.active.iter().find(|(_, turn)| idles(turn)).map(|(device, _)| device.clone())?;
            self.active.remove(&idle);
        }
        self.waiting.pop_front()
    }

    pub(super) fn start(&mut self, device: &DeviceId, engine: E, now: Timestamp) {
        self.active.insert(device.clone(), Turn { engine, heard: now });
        self.silences.begin(device, now);
    }

    pub(super) fn drop_unless(&mut self, device: &DeviceId, id: TransferId, id_of: impl Fn(&E) -> TransferId) {
        if self.active.get(device).is_some_and(|turn| id_of(&turn.engine) != id) {
            self.drop_transfer(device);
        }
    }

    /// Drops the transfer of a device, because it ended or the device left.
    pub(super) fn drop_device(&mut self, device: &DeviceId) {
        self.drop_transfer(device);
        self.silences.end(device);
    }

    /// Drops the transfer of a device, which another one replaces.
    fn drop_transfer(&mut self, device: &DeviceId) {
        self.active.remove(device);
        self.waiting.retain(|(waiting, _)| waiting != device);
    }
}
