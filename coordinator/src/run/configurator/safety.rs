//! Decides which devices may explore: none while a run is in trouble, none that keeps failing, and only a share of the others at
//! once.

use crate::run::draw::draw;
use skiff_protocol::DeviceId;
use std::collections::{BTreeMap, BTreeSet};

/// A device stops exploring after this many failed orders in a row.
const MAX_FAILURES: u8 = 2;
/// Ratio of a loss to the lowest loss above which the run counts as diverged.
const DIVERGENCE: f64 = 1.5;

/// Signs of trouble in a run, which decide whether devices may explore.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Safety {
    /// Number of failed orders in a row, by device. Devices without failed orders are left out.
    failures: BTreeMap<DeviceId, u8>,
    /// Lowest loss of all evaluations.
    lowest_loss: Option<f64>,
    /// Trouble that the last evaluation found.
    divergence: Option<String>,
    /// Trouble in the last round of training.
    unstable_links: Option<String>,
}

/// The devices that may explore in one round.
pub(super) struct Permit<'a> {
    safety: &'a Safety,
    /// The devices that may explore, or the reason why none may.
    explorers: Result<BTreeSet<&'a DeviceId>, &'a str>,
}

impl Safety {
    /// Records the mean loss of an evaluation; `None` if no device reported.
    pub(super) fn evaluated(&mut self, loss: Option<f64>) {
        self.divergence = match (loss, self.lowest_loss) {
            (None, _) => Some("no device reported in the last evaluation".to_owned()),
            (Some(loss), _) if !loss.is_finite() => Some("the loss is not finite".to_owned()),
            (Some(loss), Some(lowest)) if loss > DIVERGENCE * lowest => {
                Some(format!("the loss rose from {lowest:.3} to {loss:.3}"))
            }
            (Some(_), _) => None,
        };
        if let Some(loss) = loss.filter(|loss| loss.is_finite()) {
            self.lowest_loss = Some(self.lowest_loss.map_or(loss, |lowest| lowest.min(loss)));
        }
    }

    /// Records the end of a round of training. Links count as unstable if fewer than two thirds of the wanted updates arrived.
    pub(super) fn round_closed<'a>(
        &mut self,
        round: u32,
        delivered: impl Iterator<Item = &'a DeviceId>,
        failed: impl Iterator<Item = &'a DeviceId>,
        wanted: usize,
    ) {
        let mut updates = 0;
        for device in delivered {
            updates += 1;
            self.failures.remove(device);
        }
        for device in failed {
            let failures = self.failures.entry(device.clone()).or_default();
            *failures = failures.saturating_add(1);
        }
        let is_unstable = 3 * updates < 2 * wanted;
        self.unstable_links =
            is_unstable.then(|| format!("only {updates} of {wanted} updates arrived in round {round}"));
    }

    /// Allows at most `most` of the `willing` devices to explore. Draws them at random.
    pub(super) fn permit<'a>(
        &'a self,
        willing: impl Iterator<Item = &'a DeviceId>,
        most: usize,
        seed: u64,
        round: u32,
    ) -> Permit<'a> {
        if let Some(trouble) = self.divergence.as_deref().or(self.unstable_links.as_deref()) {
            return Permit { safety: self, explorers: Err(trouble) };
        }
        let mut drawn: Vec<(u64, &DeviceId)> = willing
            .filter(|device| self.failures_of(device).is_none())
            .map(|device| (draw(seed, "budget", round, device.as_str()).to_bits(), device))
            .collect();
        drawn.sort_unstable();
        Permit { safety: self, explorers: Ok(drawn.into_iter().take(most).map(|(_, device)| device).collect()) }
    }

    /// Returns a device's number of failed orders in a row, if it is too large for the device to explore.
    fn failures_of(&self, device: &DeviceId) -> Option<u8> {
        self.failures.get(device).copied().filter(|&failures| failures >= MAX_FAILURES)
    }
}

impl Permit<'_> {
    /// Returns true if the device may explore.
    pub(super) fn allows(&self, device: &DeviceId) -> bool {
        self.explorers.as_ref().is_ok_and(|explorers| explorers.contains(device))
    }

    /// Returns the reason why a device that wants to explore may not.
    pub(super) fn refusal(&self, device: &DeviceId) -> String {
        match (self.explorers.as_ref(), self.safety.failures_of(device)) {
            (Err(trouble), _) => format!("no device explores in this round, because {trouble}"),
            (Ok(_), Some(failures)) => format!("does not explore, because its last {failures} orders failed"),
            (Ok(_), None) => "does not explore, because enough other devices do".to_owned(),
        }
    }
}
