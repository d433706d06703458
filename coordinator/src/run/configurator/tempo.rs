//! How long a round should take, when everybody waits for the slowest.
//!
//! In a synchronous round a device's dropout costs its own gain and spares everybody time. What is to be large is the gain of the
//! whole round per second of it, `sum over devices of gain(arm) / max over devices of seconds(arm)`. For a given time every device
//! takes the arm that gains most of those that are done by then; so the best time is one of the arms' own, and one sweep over them
//! finds it.

use super::policy::Offer;

/// An arm of a device: what it may gain in a round, and the seconds that takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Run {
    pub(super) gain: f64,
    pub(super) seconds: f64,
}

/// Seconds that the round should take: of the runs of each device. A device without any does not count; 0 without devices.
fn best_seconds(devices: &[Vec<Run>]) -> f64 {
    let fastest = |runs: &Vec<Run>| runs.iter().map(|run| run.seconds).fold(f64::INFINITY, f64::min);
    let least = devices.iter().filter(|runs| !runs.is_empty()).map(fastest).fold(0.0, f64::max);
    let most_within = |runs: &Vec<Run>| {
        let within = runs.iter().filter(|run| run.seconds <= least).map(|run| run.gain);
        within.fold(f64::NEG_INFINITY, f64::max)
    };
    let mut gains: Vec<f64> = devices.iter().map(most_within).collect();
    let mut sum: f64 = gains.iter().filter(|gain| gain.is_finite()).sum();
    let later = |(device, runs): (usize, &Vec<Run>)| -> Vec<(f64, usize, f64)> {
        runs.iter().filter(|run| run.seconds > least).map(|run| (run.seconds, device, run.gain)).collect()
    };
    let mut slower: Vec<(f64, usize, f64)> = devices.iter().enumerate().flat_map(later).collect();
    slower.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut best = (least, sum / least.max(1e-3));
    for (seconds, device, gain) in slower {
        if gain > gains[device] {
            sum += gain - gains[device];
            gains[device] = gain;
            let rate = sum / seconds.max(1e-3);
            if rate > best.1 {
                best = (seconds, rate);
            }
        }
    }
    best.0
}

/// What a round leaves time for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Tempo {
    /// What the other devices of the round gain.
    others: f64,
    /// Seconds that the round takes at least; `None`: nobody waits for anybody.
    seconds: Option<f64>,
}

impl Tempo {
    /// Of a round with those runs of each device, who gain `typical` each.
    pub(super) fn of_round(devices: &[Vec<Run>], typical: f64) -> Self {
        let others = typical * devices.len().saturating_sub(1) as f64;
        Self { others, seconds: Some(best_seconds(devices)) }
    }

    /// Of asynchronous rounds.
    pub(super) const fn own() -> Self {
        Self { others: 0.0, seconds: None }
    }

    /// The same round, with a run that will be in it.
    pub(super) fn with(self, run: Option<Run>) -> Self {
        let seconds = self.seconds.map(|seconds| seconds.max(run.map_or(0.0, |run| run.seconds)));
        Self { seconds, ..self }
    }

    /// What a run is worth to the round: `(others + gain) / max(seconds, round)`. Measuring it would take `probe` seconds more.
    pub(super) fn offer(self, gained: Offer, run: Run, probe: f64) -> Offer {
        let seconds = run.seconds.max(self.seconds.unwrap_or(0.0)).max(1e-3);
        let (worth, deviation) = ((self.others + run.gain) / seconds, gained.deviation / seconds);
        Offer { worth, deviation, seconds, is_spare: self.spares(run, probe), ..gained }
    }

    /// Whether there are `probe` more seconds for it without anybody waiting.
    pub(super) fn spares(self, run: Run, probe: f64) -> bool {
        self.seconds.is_none_or(|seconds| run.seconds + probe <= seconds)
    }

    /// For a reason.
    pub(super) fn told(self) -> Option<String> {
        self.seconds.filter(|&seconds| seconds > 0.0).map(|seconds| format!("a round of {seconds:.1} s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(f64, f64)]) -> Vec<Run> {
        of.iter().map(|&(gain, seconds)| Run { gain, seconds }).collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_slow_device_drops_layers_for_the_others_and_fast_ones_do_not() {
        let slow = runs(&[(1.0, 6.0), (0.5, 3.0)]);
        let fast = runs(&[(1.0, 1.5), (0.5, 0.75)]);
        // Alone, both of its arms gain the same in a second: the faster one is kept.
        assert!(close(best_seconds(std::slice::from_ref(&slow)), 3.0));
        assert!(close(best_seconds(&[slow.clone(), fast.clone()]), 3.0));
        // What it loses by dropping is more than the others save.
        let stubborn = runs(&[(9.0, 6.0), (0.5, 3.0)]);
        assert!(close(best_seconds(&[stubborn, fast.clone()]), 6.0));
        assert!(close(best_seconds(&[fast.clone(), Vec::new()]), 0.75));
        assert!(close(best_seconds(&[]), 0.0));
        let gained = Offer {
            arm: 0,
            rewards: 1.0,
            tried: true,
            worth: 0.0,
            deviation: 0.1,
            active: 6.0,
            seconds: 0.0,
            is_spare: false,
        };
        let tempo = Tempo { others: 1.0, seconds: Some(3.0) };
        let worth = |run: &Run| tempo.offer(gained, *run, 0.5).worth;
        assert!(worth(&fast[0]) > worth(&fast[1]) && worth(&slow[1]) > worth(&slow[0]));
        assert!(tempo.spares(fast[0], 1.5) && !tempo.spares(slow[1], 0.5));
        assert!(Tempo::own().spares(slow[0], 9.0) && tempo.with(Some(slow[0])).spares(slow[1], 3.0));
    }
}
