//! What rewards taught, over a window of rounds: of an arm on any device, of how far a class is from that, and a device from its
//! class. Gains know no time, so that fast devices and slow ones can learn from each other.

use crate::run::draw::draw;
use skiff_protocol::DeviceId;
use std::collections::{BTreeMap, VecDeque};

/// A reward counts as no more than so many standard deviations from the window's mean, once there are [`ENOUGH`].
const MOST_DEVIATIONS: f64 = 4.0;
const ENOUGH: f64 = 8.0;
/// How far an arm's gain is taken to be from what its layers say, before it is measured, as a share of a typical gain.
const ARM_SPREAD: f64 = 0.3;
/// The same, of a class from all classes.
const CLASS_SPREAD: f64 = 0.15;
/// The same, of a device from its class.
const DEVICE_SPREAD: f64 = 0.2;
/// A reward's standard deviation while too few are known, as a share of a typical gain.
const FEW_SPREAD: f64 = 0.5;

/// Everything learned so far; a function of the rewards and the rounds that were told.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Learned {
    /// Of each arm, the layers that run on average.
    active: Vec<f64>,
    window: u32,
    classes: BTreeMap<String, Class>,
    devices: BTreeMap<DeviceId, Vec<Correction>>,
    /// Of each arm, whether it was ever tried.
    tried: Vec<bool>,
}

/// What is expected of an arm.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Estimate {
    /// Rewards in the window, of all classes.
    pub(super) rewards: f64,
    /// Gain of a round.
    pub(super) gain: f64,
    /// Somebody tried it, in the window or before.
    pub(super) tried: bool,
}

/// What a class expects of every arm.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Expectation {
    pub(super) arms: Vec<Estimate>,
    /// Standard deviation of the rewards around their arm's mean.
    pub(super) deviation: f64,
    typical: f64,
}

impl Expectation {
    /// So many rewards weigh as much as what was expected before them, which is off by `spread` of a typical gain: the ratio of
    /// their variances.
    fn weight(&self, spread: f64) -> f64 {
        (self.deviation / (spread * self.typical)).powi(2)
    }
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Class {
    /// Oldest first; of the last `window` rounds.
    rounds: VecDeque<(u32, Vec<Sums>)>,
    /// The arms that are being compared, where a policy compares only some.
    candidates: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Sums {
    count: f64,
    sum: f64,
    squares: f64,
    /// Of gain per second of the round.
    rates: f64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, added: Self) {
        self.count += added.count;
        self.sum += added.sum;
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
    /// Mean and standard deviation of the gains.
    fn spread(&self) -> (f64, f64) {
        let count = self.count.max(1.0);
        let mean = self.sum / count;
        (mean, (self.squares / count - mean * mean).max(0.0).sqrt())
    }
}

/// How a device differs from its class in an arm; older rewards fade.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Correction {
    weight: f32,
    mean: f32,
}

impl Learned {
    /// Nothing learned yet, of arms with which so many layers run on average.
    pub(super) fn new(active: Vec<f64>, window: u32) -> Self {
        let tried = vec![false; active.len()];
        Self { active, window, classes: BTreeMap::new(), devices: BTreeMap::new(), tried }
    }

    /// Adds what `arm` brought `device`, of `class`, in `round`, which took `seconds`.
    pub(super) fn add(&mut self, device: &DeviceId, class: &str, arm: usize, round: u32, gain: f64, seconds: f64) {
        let arms = self.active.len();
        if arm >= arms || !gain.is_finite() {
            return;
        }
        let whole: Sums = self.sums(class).into_iter().sum();
        let (mean, deviation) = whole.spread();
        let most = MOST_DEVIATIONS * deviation;
        let gain = if whole.count >= ENOUGH && most > 0.0 { gain.clamp(mean - most, mean + most) } else { gain };
        let expected = self.expectation(class).arms[arm];
        if expected.rewards > 0.0 {
            let fading = 1.0 - 1.0 / self.window.max(2) as f32;
            let own = self.devices.entry(device.clone()).or_insert_with(|| vec![Correction::default(); arms]);
            own[arm].weight = own[arm].weight * fading + 1.0;
            own[arm].mean += ((gain - expected.gain) as f32 - own[arm].mean) / own[arm].weight;
        }
        self.tried[arm] = true;
        let window = self.window;
        for class in self.classes.values_mut() {
            class.rounds.retain(|(at, _)| at + window > round);
        }
        let Class { rounds, .. } = self.classes.entry(class.to_owned()).or_default();
        if rounds.back().is_none_or(|(last, _)| *last < round) {
            rounds.push_back((round, vec![Sums::default(); arms]));
        }
        if let Some((_, sums)) = rounds.back_mut() {
            sums[arm] += Sums { count: 1.0, sum: gain, squares: gain * gain, rates: gain / seconds.max(1e-3) };
        }
    }

    /// Of each arm, what `class` was rewarded with in the window.
    fn sums(&self, class: &str) -> Vec<Sums> {
        let mut sums = vec![Sums::default(); self.active.len()];
        for (_, round) in self.classes.get(class).iter().flat_map(|class| &class.rounds) {
            for (sum, &added) in sums.iter_mut().zip(round) {
                *sum += added;
            }
        }
        sums
    }

    /// Of each arm, what all classes were rewarded with in the window.
    fn all_sums(&self) -> Vec<Sums> {
        let mut sums = vec![Sums::default(); self.active.len()];
        for class in self.classes.keys() {
            for (sum, added) in sums.iter_mut().zip(self.sums(class)) {
                *sum += added;
            }
        }
        sums
    }

    /// What `class` expects: of each arm `(class' sum + w₂·all) / (n + w₂)`, where `all = (sum + w₁·β·active) / (n + w₁)` of all
    /// classes, `β` is what they gained by an active layer, and `w = (σ / (s·typical))²` with `σ` the standard deviation of rewards
    /// around their arm's mean and `s` how far what is measured is taken to be from what was expected (normal prior and likelihood of
    /// known variances). A few texts' loss is mostly noise, more so towards the end of a run: a step is taken to bring as much as it
    /// has layers, until there is enough that says otherwise.
    pub(super) fn expectation(&self, class: &str) -> Expectation {
        let (all, own) = (self.all_sums(), self.sums(class));
        let layers: f64 = all.iter().zip(&self.active).map(|(sum, active)| sum.count * active).sum();
        let whole: Sums = all.iter().copied().sum();
        let by_layer = if layers > 0.0 { whole.sum / layers } else { 0.0 };
        let typical = self.typical_gain();
        let squares: f64 = all.iter().map(|sum| sum.count * sum.spread().1.powi(2)).sum();
        let known = all.iter().filter(|sum| sum.count > 0.0).count() as f64;
        let is_enough = whole.count >= ENOUGH && whole.count > known;
        let deviation = if is_enough { (squares / (whole.count - known)).sqrt() } else { FEW_SPREAD * typical };
        let mut expectation = Expectation { arms: Vec::new(), deviation, typical };
        let (of_layers, of_all) = (expectation.weight(ARM_SPREAD), expectation.weight(CLASS_SPREAD));
        let drawn = |sum: Sums, weight: f64, to: f64| match sum.count + weight > 0.0 {
            true => (sum.sum + weight * to) / (sum.count + weight),
            false => to,
        };
        let estimate = |(arm, &active): (usize, &f64)| {
            let gain = drawn(own[arm], of_all, drawn(all[arm], of_layers, by_layer * active));
            Estimate { rewards: all[arm].count, gain, tried: self.tried[arm] }
        };
        expectation.arms = self.active.iter().enumerate().map(estimate).collect();
        expectation
    }

    /// What a device gains in a round, over all classes and arms: the mean, but no less than its standard error, as what training
    /// brings is not nothing because it is lost in noise. 1 where nothing was measured.
    pub(super) fn typical_gain(&self) -> f64 {
        let whole: Sums = self.all_sums().into_iter().sum();
        if whole.count <= 0.0 {
            return 1.0;
        }
        let (mean, deviation) = whole.spread();
        mean.max(deviation / whole.count.sqrt()).max(f64::MIN_POSITIVE)
    }

    /// What a device of that class expects of an arm: `class + n / (n + w₃) · own`, `n` the weight of its own rewards.
    pub(super) fn estimate(&self, device: &DeviceId, of_class: &Expectation, arm: usize) -> Estimate {
        let mut estimate = of_class.arms[arm];
        if let Some(own) = self.devices.get(device).map(|own| own[arm]).filter(|_| estimate.rewards > 0.0) {
            let (own_weight, of_class) = (f64::from(own.weight), of_class.weight(DEVICE_SPREAD));
            estimate.gain += own_weight / (own_weight + of_class).max(1.0) * f64::from(own.mean);
        }
        estimate
    }

    /// The arms that `class` compares at the moment: `count` of them, drawn from `seed` at first.
    pub(super) fn candidates(&self, class: &str, count: usize, seed: u64) -> Vec<usize> {
        match self.classes.get(class).map(|class| &class.candidates) {
            Some(candidates) if !candidates.is_empty() => candidates.clone(),
            Some(_) | None => {
                completed(Vec::new(), self.active.len(), count, |arm| draw(seed, "candidate", 0, &key(class, arm)))
            }
        }
    }

    /// Puts other arms in the place of the worse half of each class's candidates; the better half stays.
    pub(super) fn refresh(&mut self, round: u32, count: usize, seed: u64) {
        let names: Vec<String> = self.classes.keys().cloned().collect();
        for name in names {
            let sums = self.sums(&name);
            let mut kept = self.candidates(&name, count, seed);
            let worth = |arm: usize| {
                let Sums { count, rates, .. } = sums[arm];
                if count > 0.0 { rates / count } else { f64::NEG_INFINITY }
            };
            kept.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
            kept.truncate(count.div_ceil(2));
            let fresh =
                completed(kept, self.active.len(), count, |arm| draw(seed, "candidate", round, &key(&name, arm)));
            if let Some(class) = self.classes.get_mut(&name) {
                class.candidates = fresh;
            }
        }
    }
}

/// `kept`, and so many of the other arms that there are `count`: those with the smallest draws.
fn completed(mut kept: Vec<usize>, arms: usize, count: usize, draw: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut others: Vec<usize> = (0..arms).filter(|arm| !kept.contains(arm)).collect();
    others.sort_by(|&a, &b| draw(a).total_cmp(&draw(b)).then(a.cmp(&b)));
    kept.extend(others.into_iter().take(count.saturating_sub(kept.len())));
    kept.sort_unstable();
    kept
}

fn key(class: &str, arm: usize) -> String {
    format!("{class}/{arm}")
}
