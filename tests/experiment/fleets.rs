//! Virtual fleets: devices and the times at which they are online. The numbers are assumptions that the report names.

use skiff_base::random::Random;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::StepMemory;

/// A kind of device. Speeds are assumed in the ratio 1 : 2 : 4, about the ratio of three generations of Jetson boards. Links are
/// assumed fast enough that training takes most of a round's time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    /// Sustained speed of a training step, in GFLOP/s by [`skiff_models::work::flops`].
    pub(crate) gflops: f64,
    /// Speed of its link, each way, in Mbit/s.
    pub(crate) mbits: f64,
    /// Power in watts while it trains.
    pub(crate) watts: f64,
    /// Rank of LoRA, for methods that choose it by class; 0 means the rank of the pack.
    pub(crate) rank: u32,
}

/// Power in watts of the radio while it sends or receives.
pub(crate) const RADIO_WATTS: f64 = 2.0;

pub(crate) const CLASSES: [Class; 3] = [
    Class { name: "tx2", gflops: 8.0, mbits: 20.0, watts: 15.0, rank: 2 },
    Class { name: "nx", gflops: 16.0, mbits: 50.0, watts: 15.0, rank: 4 },
    Class { name: "agx", gflops: 32.0, mbits: 100.0, watts: 30.0, rank: 0 },
];

/// A fleet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fleet {
    Roomy,
    MemoryBound,
    DeadlineBound,
    Field,
}

impl Fleet {
    pub(crate) const ALL: [Self; 4] = [Self::Roomy, Self::MemoryBound, Self::DeadlineBound, Self::Field];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Roomy => "roomy",
            Self::MemoryBound => "memory-bound",
            Self::DeadlineBound => "deadline-bound",
            Self::Field => "field",
        }
    }

    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Roomy => "a third of the devices of each class; each has memory and time for every layer",
            Self::MemoryBound => {
                "as roomy, but every second device has memory for half of the layers, even in the agent's leanest way of training"
            }
            Self::DeadlineBound => {
                "half of the devices are tx2, for which the round's deadline leaves time for half of the layers"
            }
            Self::Field => {
                "as memory-bound; devices come and go (there 60 to 180 s, away 20 to 60 s), and all but the agx live on a battery of \
                 1 Wh for training, are spared below 20 %, leave below 10 %, and come back when it is half full (at 10 W)"
            }
        }
    }

    /// Returns the class of the device `index`.
    pub(crate) fn class(self, index: usize) -> &'static Class {
        match self {
            Self::Roomy | Self::MemoryBound | Self::Field => &CLASSES[index % 3],
            Self::DeadlineBound => [&CLASSES[0], &CLASSES[1], &CLASSES[0], &CLASSES[2]][index % 4],
        }
    }

    /// Returns the memory that the device `index` reports, for a model whose leanest steps take `leanest`.
    pub(crate) fn memory(self, index: usize, leanest: StepMemory, layers: u32) -> StepMemory {
        let is_small = matches!(self, Self::MemoryBound | Self::Field) && index % 2 == 1;
        let half = u64::from(layers.div_ceil(2));
        let holds = leanest.process_bytes + leanest.step_bytes + half * leanest.layer_bytes + leanest.layer_bytes / 2;
        StepMemory { limit_bytes: if is_small { holds } else { 0 }, ..leanest }
    }

    /// Returns the round's deadline in milliseconds if a tx2 takes `whole_ms` for its training with every layer.
    pub(crate) fn deadline_ms(self, whole_ms: f64) -> u64 {
        match self {
            // Plans leave a fifth of the deadline for transfers.
            Self::DeadlineBound => (0.55 * whole_ms / 0.8) as u64,
            Self::Roomy | Self::MemoryBound | Self::Field => 3_600_000,
        }
    }
}

pub(crate) fn device_id(index: usize) -> DeviceId {
    format!("device-{index:03}").parse().expect("a valid name")
}

/// Times at which a device is online, drawn one after the other.
#[derive(Debug)]
pub(crate) struct Availability(Random);

impl Availability {
    pub(crate) fn new(seed: u64, index: usize) -> Self {
        Self(Random::new(seed.wrapping_mul(1_000_003).wrapping_add(index as u64)))
    }

    /// Returns the milliseconds until an online device leaves, or until an offline device comes.
    pub(crate) fn next_ms(&mut self, is_there: bool) -> u64 {
        let (least, most) = if is_there { (60_000.0, 180_000.0) } else { (20_000.0, 60_000.0) };
        (least + (most - least) * self.0.unit()) as u64
    }
}

/// A battery, in joules.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Battery {
    left: f64,
}

impl Battery {
    const WHOLE: f64 = 3_600.0;
    const CHARGING_WATTS: f64 = 10.0;

    pub(crate) const fn full() -> Self {
        Self { left: Self::WHOLE }
    }

    pub(crate) fn percent(self) -> f32 {
        (100.0 * self.left / Self::WHOLE) as f32
    }

    /// Subtracts the energy of a round. If set, the battery is empty, and is half full again after this many milliseconds.
    pub(crate) fn spend(&mut self, joules: f64) -> Option<u64> {
        self.left = (self.left - joules).max(0.0);
        if self.percent() >= 10.0 {
            return None;
        }
        let missing = 0.5 * Self::WHOLE - self.left;
        self.left = 0.5 * Self::WHOLE;
        Some((1000.0 * missing / Self::CHARGING_WATTS) as u64)
    }
}
