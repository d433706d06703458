//! Draws the devices of a round, and determines what each has to do.

use super::configurator::{Facts, Limits, Unfit};
use super::draw::draw;
use super::ledger::Purpose;
use super::record::Assignment;
use super::{Here, Run};
use skiff_protocol::DeviceId;
use std::collections::{BTreeMap, BTreeSet};

impl Run {
    /// Draws devices and returns the order of each.
    pub(super) fn assign(&self) -> BTreeMap<DeviceId, Assignment> {
        let ledger = &self.ledger;
        let selected = self.select(Purpose::Train, ledger.round);
        let known = selected.into_iter().filter_map(|device| {
            let (facts, limits) = (self.facts(&device)?, self.limits(&device)?.ok()?);
            Some((device, (facts, limits)))
        });
        let choices = ledger.configurator.choose(ledger.round, &known.collect());
        let assigned = |(device, choice)| {
            let place = self.attendance.here(&device).map(|here| here.place.clone()).unwrap_or_default();
            let share = self.ledger.policy.share(&place, ledger.start.layers).ok()?;
            Some((device, Assignment { choice, share }))
        };
        choices.into_iter().filter_map(assigned).collect()
    }

    /// Returns what the configurator needs to know about an online device.
    fn facts(&self, device: &DeviceId) -> Option<Facts> {
        let here = self.attendance.here(device)?;
        let condition = self.attendance.condition(device);
        let class = here.place.class.clone();
        let own = self.ledger.totals.get(device).and_then(|totals| totals.pace);
        let pace = own.or(condition.pace).or_else(|| self.ledger.paces.get(&class).copied());
        Some(Facts {
            class,
            memory: here.memory,
            pace,
            celsius: condition.celsius,
            battery_percent: condition.battery_percent,
        })
    }

    /// Returns the limits of an online device.
    fn limits(&self, device: &DeviceId) -> Option<Result<Limits, Unfit>> {
        let load = self.ledger.start.settings.load();
        self.facts(device).map(|facts| self.ledger.configurator.limits(&facts, &load))
    }

    /// Returns the reasons why online devices cannot train, for the first three of them.
    pub(super) fn unfit(&self) -> impl Iterator<Item = String> {
        let reason = |(device, here): (&DeviceId, &Here)| match here.train_examples {
            _ if self.attendance.is_silent(device, self.now_ms) => {
                Some(format!("{device}: it did not answer its last order"))
            }
            0 => Some(format!("{device}: it has no examples to train on")),
            _ => self.limits(device)?.err().map(|unfit| format!("{device}: {unfit}")),
        };
        self.attendance.online().filter_map(reason).take(3)
    }

    /// Draws devices and returns the number of examples that each evaluates.
    pub(super) fn share_examples(&self) -> BTreeMap<DeviceId, u64> {
        let with_examples = |device: DeviceId| {
            let examples = self.attendance.here(&device).map_or(0, |here| here.test_examples);
            (device, examples)
        };
        // Always draws the same devices, so that accuracies can be compared.
        let held = self.select(Purpose::Evaluate, 0).into_iter().map(with_examples).collect();
        share(self.ledger.start.settings.examples_after(self.ledger.round), &held)
    }

    /// Draws online devices.
    fn select(&self, purpose: Purpose, round: u32) -> BTreeSet<DeviceId> {
        let settings = &self.ledger.start.settings;
        let number = |device: &DeviceId| draw(settings.seed, "select", round, device.as_str()).to_bits();
        let mut drawn: Vec<(u64, &DeviceId)> = self.free_for(purpose).map(|device| (number(device), device)).collect();
        drawn.sort_unstable();
        let carried = if purpose == Purpose::Train { self.ledger.carried.assignments.len() } else { 0 };
        let most = ((settings.devices + settings.over_selection) as usize).saturating_sub(carried);
        // The limits of a device take longest to compute. In this order only the first devices need them.
        let fit = drawn.into_iter().map(|(_, device)| device).filter(|device| self.bears(purpose, device));
        fit.take(most).cloned().collect()
    }

    /// Returns the online devices that can work: they have examples, no open order from an earlier round, and enough memory.
    pub(super) fn fit_for(&self, purpose: Purpose) -> impl Iterator<Item = &DeviceId> {
        self.free_for(purpose).filter(move |device| self.bears(purpose, device))
    }

    /// Returns the online devices with examples and without an open order from an earlier round.
    fn free_for(&self, purpose: Purpose) -> impl Iterator<Item = &DeviceId> {
        let is_free = move |(device, here): &(&DeviceId, &Here)| {
            let examples = match purpose {
                Purpose::Train => here.train_examples,
                Purpose::Evaluate => here.test_examples,
            };
            let is_carried = self.ledger.carried.assignments.contains_key(*device);
            examples > 0 && !is_carried && !self.attendance.is_silent(device, self.now_ms)
        };
        self.attendance.online().filter(is_free).map(|(device, _)| device)
    }

    /// Returns true if the device's memory suffices for the work.
    fn bears(&self, purpose: Purpose, device: &DeviceId) -> bool {
        purpose == Purpose::Evaluate || self.limits(device).is_some_and(|limits| limits.is_ok())
    }
}

/// Divides `total` examples among devices, as evenly as their numbers of examples allow. Leaves out a device that gets none.
pub(super) fn share(total: u64, held: &BTreeMap<DeviceId, u64>) -> BTreeMap<DeviceId, u64> {
    let mut by_size: Vec<(u64, &DeviceId)> = held.iter().map(|(device, &examples)| (examples, device)).collect();
    by_size.sort();
    let mut left = total;
    let mut shares = BTreeMap::new();
    for (at, &(examples, device)) in by_size.iter().enumerate() {
        let share = examples.min(left / (by_size.len() - at) as u64);
        left -= share;
        shares.insert(device.clone(), share);
    }
    shares.retain(|_, share| *share > 0);
    shares
}
