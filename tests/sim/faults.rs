//! The faults of a simulated fleet, and how often each happens.

use skiff_base::random::Random;

/// Probabilities and weights of all faults. A swarm turns some of them off, so that rare combinations of the others appear.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Faults {
    /// Probability that a message is lost although its connection lasts.
    pub(crate) lost: f64,
    /// Probability that the broker delivers a message twice.
    pub(crate) doubled: f64,
    /// Probability that a message takes seconds instead of milliseconds.
    pub(crate) late: f64,
    /// Relative frequency of each incident.
    pub(crate) incidents: [(Incident, u32); 14],
}

/// A fault that hits one program, one disk or one connection at a moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Incident {
    /// An agent is killed, between two actions or in the middle of one, and starts again.
    AgentKilled,
    /// The worker of an agent is killed in the middle of its work.
    WorkerKilled,
    /// The coordinator is killed before or after one of its next writes, and starts again.
    CoordinatorKilled,
    /// The broker restarts and forgets retained messages.
    BrokerForgets,
    /// The broker restarts and keeps retained messages.
    BrokerRestarts,
    /// A device has no network for seconds or minutes.
    DeviceCutOff,
    /// The coordinator has no network for seconds or minutes.
    CoordinatorCutOff,
    /// A device is suspended for up to an hour.
    DeviceSuspended,
    /// The disk of a device is full for a while.
    DeviceDiskFull,
    /// The coordinator restarts with a clock that is wrong by up to a day.
    ClockJumps,
    /// A device's agent starts again, and a byte of one of its blobs has changed.
    DeviceBlobFlips,
    /// A device sends updates that are NaN, huge, of another form, or differ from its offer.
    DeviceLies,
    /// A device is replaced by a new one with the same name and an empty disk.
    DeviceReplaced,
    /// The operator changes the sharing policy.
    PolicyChanges,
}

impl Faults {
    /// All faults, each with its usual frequency.
    pub(crate) const ALL: Self = Self {
        lost: 0.01,
        doubled: 0.02,
        late: 0.02,
        incidents: [
            (Incident::AgentKilled, 5),
            (Incident::WorkerKilled, 3),
            (Incident::CoordinatorKilled, 5),
            (Incident::BrokerForgets, 1),
            (Incident::BrokerRestarts, 2),
            (Incident::DeviceCutOff, 4),
            (Incident::CoordinatorCutOff, 2),
            (Incident::DeviceSuspended, 1),
            (Incident::DeviceDiskFull, 2),
            (Incident::ClockJumps, 1),
            (Incident::DeviceBlobFlips, 2),
            (Incident::DeviceLies, 2),
            (Incident::DeviceReplaced, 1),
            (Incident::PolicyChanges, 2),
        ],
    };

    /// Turns off each fault with a probability of one half.
    pub(crate) fn swarm(random: &mut Random) -> Self {
        let mut faults = Self::ALL;
        for probability in [&mut faults.lost, &mut faults.doubled, &mut faults.late] {
            if random.chance(0.5) {
                *probability = 0.0;
            }
        }
        let kept = random.below(faults.incidents.len());
        for (at, (_, weight)) in faults.incidents.iter_mut().enumerate() {
            // One of them stays, so that a seed never runs without any incident.
            if at != kept && random.chance(0.5) {
                *weight = 0;
            }
        }
        faults
    }

    /// Draws an incident.
    pub(crate) fn draw(&self, random: &mut Random) -> Incident {
        let total: u32 = self.incidents.iter().map(|(_, weight)| weight).sum();
        let mut left = random.below(total as usize) as u32;
        for &(incident, weight) in &self.incidents {
            if left < weight {
                return incident;
            }
            left -= weight;
        }
        self.incidents[0].0
    }
}
