//! Plans the duration of a round in which every device waits for the slowest, and computes the worth of an arm in that time.
//!
//! In a synchronous round a device's dropout costs its own gain and saves everybody time. The goal is the gain of the whole round
//! per second: `sum over devices of gain(arm) / max over devices of seconds(arm)`. For a given time, every device takes the arm
//! with the highest gain among those that finish in time. The best time is therefore the time of one of the arms, and one sweep
//! over them finds it.

/// One round of training with an arm on a device.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Run {
    /// Expected gain.
    pub(super) gain: f64,
    /// Duration in seconds; 0 if unknown.
    pub(super) seconds: f64,
}

/// Expected result of one arm on one device, independent of the other devices.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Prospect {
    pub(super) arm: usize,
    pub(super) run: Run,
    /// Standard deviation of one measurement of the gain.
    pub(super) deviation: f64,
    /// Number of measurements in the window, over all devices.
    pub(super) measurements: f64,
    /// Whether a device has ever measured the arm.
    pub(super) tried: bool,
    /// Average number of layers that run.
    pub(super) active_layers: f64,
}

impl Prospect {
    /// Returns true if the arm was measured in the window.
    pub(super) fn is_measured(&self) -> bool {
        self.measurements > 0.0
    }
}

/// Worth of a prospect in a round.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Offer {
    pub(super) prospect: Prospect,
    /// Gain of all devices per second of the round.
    pub(super) worth: f64,
    /// Standard deviation of the worth, from one measurement.
    pub(super) deviation: f64,
    /// Duration of the round in seconds if the device takes this arm.
    pub(super) seconds: f64,
    /// True if no device has to wait while the arm is tried and measured.
    pub(super) is_spare: bool,
}

/// The time that a round takes, and the gain of the other devices in it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Tempo {
    /// Gain of the other devices.
    others: f64,
    /// Minimum duration of the round in seconds; `None` if no device waits for another.
    seconds: Option<f64>,
}

impl Tempo {
    /// Plans a synchronous round from the possible runs of each device. `typical` is the mean gain of a device.
    pub(super) fn synchronous(devices: &[Vec<Run>], typical: f64) -> Self {
        let others = typical * devices.len().saturating_sub(1) as f64;
        Self { others, seconds: Some(best_seconds(devices)) }
    }

    /// Returns the tempo of asynchronous rounds, in which no device waits for another.
    pub(super) const fn asynchronous() -> Self {
        Self { others: 0.0, seconds: None }
    }

    /// Returns the tempo of the same round if it also waits for `run`.
    pub(super) fn with(self, run: Run) -> Self {
        Self { seconds: self.seconds.map(|seconds| seconds.max(run.seconds)), ..self }
    }

    /// Rates a prospect: its worth is `(others + gain) / max(seconds, round)`. Measuring would take `probe` more seconds.
    pub(super) fn offer(self, prospect: Prospect, probe: f64) -> Offer {
        let seconds = prospect.run.seconds.max(self.seconds.unwrap_or(0.0)).max(1e-3);
        Offer {
            prospect,
            worth: (self.others + prospect.run.gain) / seconds,
            deviation: prospect.deviation / seconds,
            seconds,
            is_spare: self.has_time_for(prospect.run, probe),
        }
    }

    /// Returns true if the device can spend `extra` more seconds on the run before another device has to wait for it.
    pub(super) fn has_time_for(self, run: Run, extra: f64) -> bool {
        self.seconds.is_none_or(|seconds| run.seconds + extra <= seconds)
    }

    /// Describes the planned time to an operator; `None` if there is none.
    pub(super) fn describe(self) -> Option<String> {
        self.seconds.filter(|&seconds| seconds > 0.0).map(|seconds| format!("the round takes about {seconds:.1} s"))
    }
}

/// Returns the best duration of a round in seconds, from the possible runs of each device. Devices without possible runs are
/// ignored. Returns 0 without devices.
fn best_seconds(devices: &[Vec<Run>]) -> f64 {
    let least = devices.iter().filter_map(|runs| fastest(runs)).fold(0.0, f64::max);
    let mut gains: Vec<f64> = devices.iter().map(|runs| most_gain_within(runs, least)).collect();
    let mut sum: f64 = gains.iter().filter(|gain| gain.is_finite()).sum();
    let mut best = (least, sum / least.max(1e-3));
    for (device, run) in slower_than(devices, least) {
        if run.gain > gains[device] {
            sum += run.gain - gains[device];
            gains[device] = run.gain;
            let per_second = sum / run.seconds.max(1e-3);
            if per_second > best.1 {
                best = (run.seconds, per_second);
            }
        }
    }
    best.0
}

/// Returns the duration of the fastest run; `None` without runs.
fn fastest(runs: &[Run]) -> Option<f64> {
    runs.iter().map(|run| run.seconds).reduce(f64::min)
}

/// Returns the highest gain of the runs that take at most `seconds`; minus infinity if there is no such run.
fn most_gain_within(runs: &[Run], seconds: f64) -> f64 {
    runs.iter().filter(|run| run.seconds <= seconds).map(|run| run.gain).fold(f64::NEG_INFINITY, f64::max)
}

/// Lists the runs that take longer than `seconds` with the position of their device, the fastest first.
fn slower_than(devices: &[Vec<Run>], seconds: f64) -> Vec<(usize, Run)> {
    let mut slower: Vec<(usize, Run)> = Vec::new();
    for (device, runs) in devices.iter().enumerate() {
        slower.extend(runs.iter().filter(|run| run.seconds > seconds).map(|&run| (device, run)));
    }
    slower.sort_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds).then(a.0.cmp(&b.0)));
    slower
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: [Run; 2] = [Run { gain: 1.0, seconds: 6.0 }, Run { gain: 0.5, seconds: 3.0 }];
    const FAST: [Run; 2] = [Run { gain: 1.0, seconds: 1.5 }, Run { gain: 0.5, seconds: 0.75 }];

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    fn worth(tempo: Tempo, run: Run) -> f64 {
        let prospect = Prospect { arm: 0, run, deviation: 0.1, measurements: 1.0, tried: true, active_layers: 6.0 };
        tempo.offer(prospect, 0.5).worth
    }

    #[test]
    fn a_device_alone_takes_the_faster_of_two_arms_that_gain_the_same_in_a_second() {
        assert!(close(best_seconds(&[SLOW.to_vec()]), 3.0));
    }

    #[test]
    fn a_slow_device_drops_layers_for_the_others() {
        assert!(close(best_seconds(&[SLOW.to_vec(), FAST.to_vec()]), 3.0));
    }

    #[test]
    fn a_slow_device_keeps_its_layers_if_it_loses_more_than_the_others_save() {
        let stubborn = vec![Run { gain: 9.0, seconds: 6.0 }, Run { gain: 0.5, seconds: 3.0 }];
        assert!(close(best_seconds(&[stubborn, FAST.to_vec()]), 6.0));
    }

    #[test]
    fn devices_without_runs_do_not_count() {
        assert!(close(best_seconds(&[FAST.to_vec(), Vec::new()]), 0.75));
        assert!(close(best_seconds(&[]), 0.0));
    }

    #[test]
    fn in_a_round_of_three_seconds_the_fast_device_keeps_its_layers_and_the_slow_one_does_not() {
        let tempo = Tempo { others: 1.0, seconds: Some(3.0) };
        assert!(worth(tempo, FAST[0]) > worth(tempo, FAST[1]));
        assert!(worth(tempo, SLOW[1]) > worth(tempo, SLOW[0]));
    }

    #[test]
    fn a_device_measures_without_delay_only_within_the_time_of_the_round() {
        let tempo = Tempo { others: 1.0, seconds: Some(3.0) };
        assert!(tempo.has_time_for(FAST[0], 1.5) && !tempo.has_time_for(SLOW[1], 0.5));
        assert!(Tempo::asynchronous().has_time_for(SLOW[0], 9.0));
        assert!(tempo.with(SLOW[0]).has_time_for(SLOW[1], 3.0));
    }
}
