//! Estimates from the gains measured in a window of rounds: the gain of an arm over all devices, the difference of a class from
//! all devices, and the difference of a device from its class. Gains do not depend on time, so fast and slow devices learn from
//! each other.

use crate::run::draw::draw;
use skiff_protocol::DeviceId;
use std::collections::{BTreeMap, VecDeque};

/// Largest distance of a gain from the window's mean, in standard deviations; a gain further away is cut. The limit applies once
/// there are [`ENOUGH`] measurements.
const MOST_DEVIATIONS: f64 = 4.0;
/// Number of measurements that is enough to estimate a standard deviation.
const ENOUGH: f64 = 8.0;
/// Prior standard deviation of an arm's gain around the gain that its layers suggest, as a share of a typical gain.
const ARM_SPREAD: f64 = 0.3;
/// Prior standard deviation of a class around all classes, as a share of a typical gain.
const CLASS_SPREAD: f64 = 0.15;
/// Prior standard deviation of a device around its class, as a share of a typical gain.
const DEVICE_SPREAD: f64 = 0.2;
/// Standard deviation of one measurement while there are fewer than [`ENOUGH`], as a share of a typical gain.
const FEW_SPREAD: f64 = 0.5;

/// Everything learned so far; a function of the measured gains and of their rounds.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Learned {
    arms: Vec<ArmFacts>,
    /// Number of rounds after which a measurement is forgotten.
    window: u32,
    classes: BTreeMap<String, Class>,
    /// Each device's correction of each arm.
    devices: BTreeMap<DeviceId, Vec<Correction>>,
}

/// Facts about an arm for the whole run.
#[derive(Clone, Copy, PartialEq, Debug)]
struct ArmFacts {
    /// Number of layers that run, on average.
    active_layers: f64,
    /// Whether a device has ever measured the arm.
    tried: bool,
}

/// Expectation of one arm.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Estimate {
    /// Number of measurements in the window, over all classes.
    pub(super) measurements: f64,
    /// Expected gain of a round.
    pub(super) gain: f64,
    /// Whether a device has ever measured the arm.
    pub(super) tried: bool,
}

/// Expectations of a class, one for every arm.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Expectation {
    pub(super) arms: Vec<Estimate>,
    /// Standard deviation of one measurement around its arm's mean.
    pub(super) deviation: f64,
    typical: f64,
}

impl Expectation {
    /// Returns true if nothing was measured in the window.
    pub(super) fn is_empty(&self) -> bool {
        self.arms.iter().all(|arm| arm.measurements <= 0.0)
    }

    /// Returns the number of measurements that weigh as much as a prior whose standard deviation is `spread` of a typical gain: the
    /// ratio of the two variances.
    fn prior_weight(&self, spread: f64) -> f64 {
        (self.deviation / (spread * self.typical)).powi(2)
    }
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Class {
    /// Sums of each arm in each round of the window, oldest first.
    rounds: VecDeque<(u32, Vec<Sums>)>,
    /// The arms that are being compared, if the policy compares only some.
    candidates: Vec<usize>,
}

/// Sums over measurements.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Sums {
    count: f64,
    gains: f64,
    squares: f64,
    /// Gains per second of the round.
    rates: f64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, added: Self) {
        self.count += added.count;
        self.gains += added.gains;
        self.squares += added.squares;
        self.rates += added.rates;
    }
}

impl std::iter::Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(sums: I) -> Self {
        sums.fold(Self::default(), |mut whole, sum| {
            whole += sum;
            whole
        })
    }
}

impl Sums {
    /// Returns mean and standard deviation of the gains.
    fn spread(&self) -> (f64, f64) {
        let count = self.count.max(1.0);
        let mean = self.gains / count;
        (mean, (self.squares / count - mean * mean).max(0.0).sqrt())
    }

    /// Returns the mean gain if a `prior` counts as much as `weight` measurements.
    fn mean_with(&self, prior: f64, weight: f64) -> f64 {
        match self.count + weight > 0.0 {
            true => (self.gains + weight * prior) / (self.count + weight),
            false => prior,
        }
    }
}

/// Difference of a device from its class, for one arm. Older measurements count less.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Correction {
    weight: f32,
    mean: f32,
}

impl Correction {
    /// Adds a difference from the class, after multiplying the weight of all earlier differences by `fading`.
    fn add(&mut self, difference: f32, fading: f32) {
        self.weight = self.weight * fading + 1.0;
        self.mean += (difference - self.mean) / self.weight;
    }
}

impl Learned {
    /// Creates an empty memory. `active_layers` holds the average number of layers that run with each arm.
    pub(super) fn new(active_layers: Vec<f64>, window: u32) -> Self {
        let arms = active_layers.into_iter().map(|active_layers| ArmFacts { active_layers, tried: false }).collect();
        Self { arms, window, classes: BTreeMap::new(), devices: BTreeMap::new() }
    }

    /// Adds the gain of a device with `arm` in `round`. The round took `seconds`.
    pub(super) fn add(&mut self, device: &DeviceId, class: &str, arm: usize, round: u32, gain: f64, seconds: f64) {
        let arms = self.arms.len();
        if arm >= arms || !gain.is_finite() {
            return;
        }
        let gain = self.without_outlier(class, gain);
        let expected = self.expectation(class).arms[arm];
        if expected.measurements > 0.0 {
            let fading = 1.0 - 1.0 / self.window.max(2) as f32;
            let own = self.devices.entry(device.clone()).or_insert_with(|| vec![Correction::default(); arms]);
            own[arm].add((gain - expected.gain) as f32, fading);
        }
        self.arms[arm].tried = true;
        self.forget_before(round);
        let Class { rounds, .. } = self.classes.entry(class.to_owned()).or_default();
        if rounds.back().is_none_or(|(last, _)| *last < round) {
            rounds.push_back((round, vec![Sums::default(); arms]));
        }
        if let Some((_, sums)) = rounds.back_mut() {
            sums[arm] += Sums { count: 1.0, gains: gain, squares: gain * gain, rates: gain / seconds.max(1e-3) };
        }
    }

    /// Cuts a gain that is too far from the class' mean.
    fn without_outlier(&self, class: &str, gain: f64) -> f64 {
        let whole: Sums = self.sums(class).into_iter().sum();
        let (mean, deviation) = whole.spread();
        let most = MOST_DEVIATIONS * deviation;
        if whole.count >= ENOUGH && most > 0.0 { gain.clamp(mean - most, mean + most) } else { gain }
    }

    fn forget_before(&mut self, round: u32) {
        let window = self.window;
        for class in self.classes.values_mut() {
            class.rounds.retain(|(at, _)| at + window > round);
        }
    }

    /// Sums the measurements of each arm in `class`, over the window.
    fn sums(&self, class: &str) -> Vec<Sums> {
        let mut sums = vec![Sums::default(); self.arms.len()];
        for (_, round) in self.classes.get(class).iter().flat_map(|class| &class.rounds) {
            for (sum, &added) in sums.iter_mut().zip(round) {
                *sum += added;
            }
        }
        sums
    }

    /// Sums the measurements of each arm in all classes, over the window.
    fn all_sums(&self) -> Vec<Sums> {
        let mut sums = vec![Sums::default(); self.arms.len()];
        for class in self.classes.keys() {
            for (sum, added) in sums.iter_mut().zip(self.sums(class)) {
                *sum += added;
            }
        }
        sums
    }

    /// Returns what `class` expects of each arm: `(class' sum + w₂·all) / (n + w₂)`.
    ///
    /// Here `all = (sum + w₁·β·active) / (n + w₁)` is the mean over all classes, `β` their gain per active layer, and `w = (σ /
    /// (s·typical))²` the weight of a prior: `σ` is the standard deviation of one measurement around its arm's mean, `s` the
    /// prior spread (normal prior and likelihood of known variances). The loss of a few texts is mostly noise, more so towards
    /// the end of a run. The gain of a step is therefore assumed to be proportional to its layers, until enough measurements show
    /// otherwise.
    pub(super) fn expectation(&self, class: &str) -> Expectation {
        let (all, own) = (self.all_sums(), self.sums(class));
        let typical = self.typical_gain();
        let prior = Expectation { arms: Vec::new(), deviation: deviation_within_arms(&all, typical), typical };
        let (arm_weight, class_weight) = (prior.prior_weight(ARM_SPREAD), prior.prior_weight(CLASS_SPREAD));
        let per_layer = self.gain_per_layer(&all);
        let estimate = |(at, arm): (usize, &ArmFacts)| {
            let of_all = all[at].mean_with(per_layer * arm.active_layers, arm_weight);
            let gain = own[at].mean_with(of_all, class_weight);
            Estimate { measurements: all[at].count, gain, tried: arm.tried }
        };
        Expectation { arms: self.arms.iter().enumerate().map(estimate).collect(), ..prior }
    }

    /// Returns the mean gain of one active layer in a round; 0 if nothing was measured.
    fn gain_per_layer(&self, sums: &[Sums]) -> f64 {
        let layers: f64 = sums.iter().zip(&self.arms).map(|(sum, arm)| sum.count * arm.active_layers).sum();
        let whole: Sums = sums.iter().copied().sum();
        if layers > 0.0 { whole.gains / layers } else { 0.0 }
    }

    /// Returns the mean gain of a device in a round, over all classes and arms; 1 if nothing was measured.
    ///
    /// It is at least its own standard error, because training gains something even if noise hides it.
    pub(super) fn typical_gain(&self) -> f64 {
        let whole: Sums = self.all_sums().into_iter().sum();
        if whole.count <= 0.0 {
            return 1.0;
        }
        let (mean, deviation) = whole.spread();
        mean.max(deviation / whole.count.sqrt()).max(f64::MIN_POSITIVE)
    }

    /// Returns what a device of the class expects of an arm: `class + n / (n + w₃) · own`, with `n` the weight of its own
    /// measurements and `w₃` the weight of the prior.
    pub(super) fn estimate(&self, device: &DeviceId, class: &Expectation, arm: usize) -> Estimate {
        let mut estimate = class.arms[arm];
        if let Some(own) = self.devices.get(device).map(|own| own[arm]).filter(|_| estimate.measurements > 0.0) {
            let (own_weight, prior_weight) = (f64::from(own.weight), class.prior_weight(DEVICE_SPREAD));
            estimate.gain += own_weight / (own_weight + prior_weight).max(1.0) * f64::from(own.mean);
        }
        estimate
    }

    /// Lists the arms that `class` compares now: `count` of them, drawn from `seed` at first.
    pub(super) fn candidates(&self, class: &str, count: usize, seed: u64) -> Vec<usize> {
        match self.classes.get(class).map(|class| &class.candidates) {
            Some(candidates) if !candidates.is_empty() => candidates.clone(),
            Some(_) | None => completed(Vec::new(), self.arms.len(), count, |arm| {
                draw(seed, "candidate", 0, &format!("{class}/{arm}"))
            }),
        }
    }

    /// Replaces the worse half of each class's candidates by other arms.
    pub(super) fn refresh(&mut self, round: u32, count: usize, seed: u64) {
        let names: Vec<String> = self.classes.keys().cloned().collect();
        for name in names {
            let kept = self.better_half(&name, count, seed);
            let drawn = |arm| draw(seed, "candidate", round, &format!("{name}/{arm}"));
            let candidates = completed(kept, self.arms.len(), count, drawn);
            if let Some(class) = self.classes.get_mut(&name) {
                class.candidates = candidates;
            }
        }
    }

    /// Lists the candidates of a class with the highest gains per second, half of `count`.
    fn better_half(&self, class: &str, count: usize, seed: u64) -> Vec<usize> {
        let sums = self.sums(class);
        let mean_rate = |arm: usize| {
            let Sums { count, rates, .. } = sums[arm];
            if count > 0.0 { rates / count } else { f64::NEG_INFINITY }
        };
        let mut candidates = self.candidates(class, count, seed);
        candidates.sort_by(|&a, &b| mean_rate(b).total_cmp(&mean_rate(a)).then(a.cmp(&b)));
        candidates.truncate(count.div_ceil(2));
        candidates
    }
}

/// Returns the standard deviation of one measurement around its arm's mean.
fn deviation_within_arms(sums: &[Sums], typical: f64) -> f64 {
    let count = sums.iter().copied().sum::<Sums>().count;
    let squares: f64 = sums.iter().map(|sum| sum.count * sum.spread().1.powi(2)).sum();
    let measured_arms = sums.iter().filter(|sum| sum.count > 0.0).count() as f64;
    let is_enough = count >= ENOUGH && count > measured_arms;
    if is_enough { (squares / (count - measured_arms)).sqrt() } else { FEW_SPREAD * typical }
}

/// Completes `kept` to `count` arms by adding the arms with the smallest draws.
fn completed(mut kept: Vec<usize>, arms: usize, count: usize, draw: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut others: Vec<usize> = (0..arms).filter(|arm| !kept.contains(arm)).collect();
    others.sort_by(|&a, &b| draw(a).total_cmp(&draw(b)).then(a.cmp(&b)));
    kept.extend(others.into_iter().take(count.saturating_sub(kept.len())));
    kept.sort_unstable();
    kept
}
