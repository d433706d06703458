//! Finds orders without an answer and transfers without progress for [`STALL_MS`], and says what to check.
//!
//! A broker drops messages without a word if an access list or a limit on their size forbids them. Only the silence shows it.

use skiff_protocol::{DeviceId, Timestamp};
use std::collections::BTreeMap;
use std::fmt;

/// Time in milliseconds without an answer or progress after which an order or a transfer counts as stalled.
pub const STALL_MS: u64 = 30_000;

/// A wait for a device that has lasted too long. Its text says what to check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stall {
    /// The device does not answer an order.
    OrderUnanswered,
    /// The device does not answer the offer of the weights.
    WeightsUnanswered,
    /// The device asks for chunks of the weights, but acknowledges none.
    WeightsUnmoved,
    /// The device offers an update, but no chunk of it arrives.
    UpdateUnmoved,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = STALL_MS / 1_000;
        match self {
            Self::OrderUnanswered => write!(
                f,
                "has not answered an order for {seconds} s: its account at the broker may not read commands or write answers; \
                 run `skiff-agent doctor` on the device"
            ),
            Self::WeightsUnanswered => write!(
                f,
                "has not answered an offer of weights for {seconds} s: the broker may not pass on its transfers; run \
                 `skiff-agent doctor` on the device"
            ),
            Self::WeightsUnmoved => write!(
                f,
                "has acknowledged no chunk of the weights for {seconds} s: the broker may limit the size of messages; run \
                 `skiff-agent doctor` on the device"
            ),
            Self::UpdateUnmoved => write!(
                f,
                "has sent no chunk of its update for {seconds} s: the broker may limit the size of messages; run \
                 `skiff-agent doctor` on the device"
            ),
        }
    }
}

/// How long devices have been silent about one thing: their orders, or their transfers in one direction.
#[derive(Debug, Default)]
pub(crate) struct Silences {
    devices: BTreeMap<DeviceId, Silence>,
    /// Devices whose stall ended since the last call of [`Silences::take_news`].
    resumed: Vec<DeviceId>,
    /// Time of the next stall, or an earlier time; `None` if there is nothing to watch.
    due: Option<Timestamp>,
}

#[derive(Debug)]
struct Silence {
    since: Timestamp,
    /// True if the device has sent any message about it.
    has_answered: bool,
    /// True if the stall was reported.
    is_reported: bool,
}

impl Silences {
    /// Begins to watch a device, unless it is watched already.
    pub(crate) fn begin(&mut self, device: &DeviceId, now: Timestamp) {
        self.devices.entry(device.clone()).or_insert(Silence { since: now, has_answered: false, is_reported: false });
        self.watch(now);
    }

    /// Records a message of the device that is no progress.
    pub(crate) fn answered(&mut self, device: &DeviceId) {
        if let Some(silence) = self.devices.get_mut(device) {
            silence.has_answered = true;
        }
    }

    /// Records progress.
    pub(crate) fn moved(&mut self, device: &DeviceId, now: Timestamp) {
        if let Some(silence) = self.devices.get_mut(device) {
            if std::mem::take(&mut silence.is_reported) {
                self.resumed.push(device.clone());
            }
            (silence.since, silence.has_answered) = (now, true);
        }
        self.watch(now);
    }

    /// Ends the watch of a device.
    pub(crate) fn end(&mut self, device: &DeviceId) {
        if self.devices.remove(device).is_some_and(|silence| silence.is_reported) {
            self.resumed.push(device.clone());
        }
        if self.devices.is_empty() {
            self.due = None;
        }
    }

    /// Returns the time of the next call of [`Silences::take_news`].
    pub(crate) const fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// Returns the devices whose stall ended, and those that have just stalled. The flag says whether the device has sent any
    /// message about it.
    pub(crate) fn take_news(&mut self, now: Timestamp) -> (Vec<DeviceId>, Vec<(DeviceId, bool)>) {
        let mut stalled = Vec::new();
        if self.due.is_some_and(|due| now >= due) {
            for (device, silence) in &mut self.devices {
                if !silence.is_reported && now.millis_since(silence.since) >= STALL_MS {
                    silence.is_reported = true;
                    stalled.push((device.clone(), silence.has_answered));
                }
            }
            let next = self.devices.values().filter(|silence| !silence.is_reported).map(|silence| silence.since).min();
            self.due = next.map(|since| since.plus_millis(STALL_MS));
        }
        (std::mem::take(&mut self.resumed), stalled)
    }

    fn watch(&mut self, now: Timestamp) {
        self.due.get_or_insert(now.plus_millis(STALL_MS));
    }
}
