//! Assembles and checks complete updates one at a time, in a thread beside the coordinator's loop.
//!
//! ```text
//!  hub ── Arrivals::push ──► waiting ── Effect::Check ──► Checker (a thread) ── Hub::checked ──► journal, confirm or refuse
//! ```
//! Assembling reads, hashes and flushes a whole update. Checking reads it again, and also the weights that it started from if
//! they are not in memory. Messages of other devices must not wait for this work. [`Arrivals`] decides the order and does no I/O.
//! [`Checker`] does the I/O and decides only whether an update fits the model.
//!
//! **Bounds.** At most one update of a device waits; a newer one replaces it. The number of waiting updates is therefore at most
//! the number of upload slots. After a crash during a check, the device offers its update again.

use crate::merge::model::Model;
use skiff_base::chain;
use skiff_blobs::{Assembly, Blobs};
use skiff_models::tensors::NamedTensors;
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest};
use std::collections::VecDeque;
use std::sync::Arc;

/// An update whose chunks have all arrived.
#[derive(Clone, PartialEq, Debug)]
pub struct Arrival {
    /// The device that sent the update.
    pub device: DeviceId,
    /// The blob's digest, as offered.
    pub digest: Digest,
    /// The blob's size in bytes, as offered.
    pub total_bytes: u64,
    /// Epoch of the order that the update answers.
    pub epoch: u64,
    /// The device's report of its training.
    pub report: TrainReport,
    /// Digest of the weights that the device started from.
    pub base: Digest,
    /// LoRA rank of the update; 0 means the rank of the pack.
    pub rank: u32,
}

/// The result of assembling and checking an update.
#[derive(Clone, PartialEq, Debug)]
pub enum Checked {
    /// The update is stored and can be merged.
    Fit {
        /// Distance from the weights that the device started from.
        distance: f64,
    },
    /// The update is stored, but it does not fit the model.
    Unfit {
        /// The first fault.
        reason: String,
    },
    /// The chunks do not have the offered digest. They were removed.
    WrongDigest,
    /// Chunks are missing from the disk.
    Incomplete,
    /// The disk failed.
    Failed {
        /// The error and its causes.
        reason: String,
    },
}

/// The waiting arrivals, and the one that is being checked.
#[derive(Debug, Default)]
pub struct Arrivals {
    waiting: VecDeque<Arrival>,
    checking: Option<Arrival>,
}

impl Arrivals {
    /// Adds an arrival. It replaces an older waiting one of the same device.
    pub fn push(&mut self, arrival: Arrival) {
        self.forget(&arrival.device);
        self.waiting.push_back(arrival);
    }

    /// Returns the next arrival to check; `None` while one is being checked.
    pub fn start_next(&mut self) -> Option<Arrival> {
        if self.checking.is_none() {
            self.checking = self.waiting.pop_front();
            return self.checking.clone();
        }
        None
    }

    /// Ends the current check and returns its arrival.
    pub fn finish(&mut self) -> Option<Arrival> {
        self.checking.take()
    }

    /// Drops the waiting arrival of a device that left. The device offers its update again when it comes back.
    pub fn forget(&mut self, device: &DeviceId) {
        self.waiting.retain(|arrival| arrival.device != *device);
    }

    /// Returns true if a check of this blob is waiting or running. Such a blob must not be removed.
    #[must_use]
    pub fn contains(&self, digest: Digest) -> bool {
        self.waiting.iter().chain(&self.checking).any(|arrival| arrival.digest == digest)
    }
}

/// Assembles and checks updates. It keeps the last base weights in memory, because the updates of a round share them.
#[derive(Debug)]
pub struct Checker {
    model: Arc<Model>,
    blobs: Arc<dyn Blobs>,
    base: Option<(Digest, NamedTensors)>,
}

impl Checker {
    /// Creates a checker of updates for `model`, which are stored in `blobs`.
    #[must_use]
    pub fn new(model: Arc<Model>, blobs: Arc<dyn Blobs>) -> Self {
        Self { model, blobs, base: None }
    }

    /// Assembles an update and checks it against the weights that it started from. Blocks while it reads the disk.
    pub fn check(&mut self, arrival: &Arrival) -> Checked {
        match self.blobs.assemble(arrival.digest, arrival.total_bytes) {
            Ok(Assembly::Whole) => match self.measure(arrival) {
                Ok(distance) => Checked::Fit { distance },
                Err(reason) => Checked::Unfit { reason },
            },
            Ok(Assembly::WrongDigest) => Checked::WrongDigest,
            Ok(Assembly::Incomplete) => Checked::Incomplete,
            Err(error) => Checked::Failed { reason: chain(&error) },
        }
    }

    fn measure(&mut self, arrival: &Arrival) -> Result<f64, String> {
        let base = match self.base.take() {
            Some((digest, base)) if digest == arrival.base => base,
            _ => self.model.weights(&*self.blobs, arrival.base).map_err(|error| chain(&error))?,
        };
        let (_, base) = self.base.insert((arrival.base, base));
        let bytes = self.blobs.read(arrival.digest).map_err(|error| chain(&error))?;
        self.model.check_update(&bytes, &arrival.report.shared_layers, arrival.rank, base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_protocol::samples;

    fn arrival(device: &str, digest: u8) -> Arrival {
        let report = samples::train_report();
        let device = device.parse().expect("a name");
        let digest = Digest([digest; 32]);
        Arrival { device, digest, total_bytes: 1, epoch: 2, report, base: Digest([0; 32]), rank: 0 }
    }

    #[test]
    fn one_is_checked_at_a_time_in_the_order_of_arrival() {
        let mut arrivals = Arrivals::default();
        arrivals.push(arrival("a", 1));
        arrivals.push(arrival("b", 2));
        assert_eq!(arrivals.start_next(), Some(arrival("a", 1)));
        assert_eq!(arrivals.start_next(), None);
        assert!(arrivals.contains(Digest([1; 32])) && arrivals.contains(Digest([2; 32])));
        assert_eq!(arrivals.finish(), Some(arrival("a", 1)));
        assert!(!arrivals.contains(Digest([1; 32])));
        assert_eq!(arrivals.start_next(), Some(arrival("b", 2)));
    }

    #[test]
    fn a_device_waits_with_its_newest_update_alone() {
        let mut arrivals = Arrivals::default();
        (1..=100).for_each(|digest| arrivals.push(arrival("a", digest)));
        assert_eq!(arrivals.waiting, [arrival("a", 100)]);
        arrivals.forget(&arrival("a", 0).device);
        assert_eq!(arrivals.start_next(), None);
    }
}
