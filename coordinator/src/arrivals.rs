//! Updates whose chunks have all come: assembled and checked away from the coordinator's loop, one at a time.
//!
//! ```text
//!  hub ── Arrivals::push ──► waiting ── Effect::Check ──► Checker (a thread) ── Hub::checked ──► journal, confirm or refuse
//! ```
//! Assembling reads, hashes and flushes a whole update; checking reads it again and, when the base changes, the weights that it
//! started from. Both take time that messages of other devices must not wait for. [`Arrivals`] decides the order and does no
//! I/O; [`Checker`] does the I/O and decides nothing but whether an update is fit.
//!
//! **Bounds.** A device has at most one update waiting: a newer one takes its place. So no more wait than there are slots for
//! uploads. What a crash leaves half checked is offered again by its device.

use crate::merge::model::Model;
use skiff_base::chain;
use skiff_blobs::{Assembly, Blobs};
use skiff_models::tensors::NamedTensors;
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest};
use std::collections::VecDeque;
use std::sync::Arc;

/// An update whose chunks have all come.
#[derive(Clone, PartialEq, Debug)]
pub struct Arrival {
    /// The sender.
    pub device: DeviceId,
    /// The blob's digest, as offered.
    pub digest: Digest,
    /// The blob's size in bytes, as offered.
    pub total_bytes: u64,
    /// Epoch of the order that it answers.
    pub epoch: u64,
    /// The device's report of its training.
    pub report: TrainReport,
    /// Digest of the weights that the device started from.
    pub base: Digest,
    /// Rank of LoRA in the update; 0 stands for the pack's.
    pub rank: u32,
}

/// The result of assembling and checking an update.
#[derive(Clone, PartialEq, Debug)]
pub enum Checked {
    /// It is stored and can be merged.
    Fit {
        /// Distance from the weights that the device started from.
        distance: f64,
    },
    /// It is stored, but it is not an update of this model.
    Unfit {
        /// The first thing that is wrong.
        reason: String,
    },
    /// The chunks do not have the offered digest; they were removed.
    WrongDigest,
    /// Chunks are missing from the disk.
    Incomplete,
    /// The disk failed.
    Failed {
        /// The error and its causes.
        reason: String,
    },
}

/// The arrivals that wait, and the one that is being checked.
#[derive(Debug, Default)]
pub struct Arrivals {
    waiting: VecDeque<Arrival>,
    checking: Option<Arrival>,
}

impl Arrivals {
    /// Adds an arrival, in place of an older one of the same device that still waits.
    pub fn push(&mut self, arrival: Arrival) {
        self.forget(&arrival.device);
        self.waiting.push_back(arrival);
    }

    /// Returns the next arrival to check, unless one is being checked.
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

    /// Drops the waiting arrival of a device that left: it offers its update again when it is back.
    pub fn forget(&mut self, device: &DeviceId) {
        self.waiting.retain(|arrival| arrival.device != *device);
    }

    /// Returns true if a check of this blob waits or is under way; nobody may remove it then.
    #[must_use]
    pub fn contains(&self, digest: Digest) -> bool {
        self.waiting.iter().chain(&self.checking).any(|arrival| arrival.digest == digest)
    }
}

/// Assembles and checks updates. It keeps the last base weights, since the updates of a round share them.
#[derive(Debug)]
pub struct Checker {
    model: Arc<Model>,
    blobs: Arc<dyn Blobs>,
    base: Option<(Digest, NamedTensors)>,
}

impl Checker {
    /// Makes a checker of updates for `model` among `blobs`.
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
