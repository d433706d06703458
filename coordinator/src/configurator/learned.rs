//! What rewards taught: of each class over a window of rounds, and of each device how far it is from its class.

use super::draw;
use skiff_protocol::DeviceId;
use std::collections::{BTreeMap, VecDeque};

/// A reward counts as no more than so many standard deviations from the window's mean, once there are [`ENOUGH`].
const MOST_DEVIATIONS: f64 = 4.0;
const ENOUGH: f64 = 8.0;
/// So many rewards of a device weigh as much as its class.
const PRIOR_WEIGHT: f64 = 2.0;

/// Everything learned so far; a function of the rewards and the rounds that were told.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Learned {
    arms: usize,
    window: u32,
    classes: BTreeMap<String, Class>,
    devices: BTreeMap<DeviceId, Vec<Correction>>,
}

/// What is expected of an arm.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Estimate {
    /// Rewards of the class in the window.
    pub(super) rewards: f64,
    /// Their mean; of a device, with its correction.
    pub(super) mean: f64,
    /// The class tried it, in a window or before.
    pub(super) tried: bool,
}

/// What a class expects of every arm.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Expectation {
    pub(super) arms: Vec<Estimate>,
    /// Standard deviation of the rewards around their arm's mean; 0 where there are too few to tell.
    pub(super) deviation: f64,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Class {
    /// Oldest first; of the last `window` rounds.
    rounds: VecDeque<(u32, Vec<Sums>)>,
    /// Of each arm, whether it was ever tried.
    tried: Vec<bool>,
    /// The arms that are being compared, where a policy compares only some.
    candidates: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Sums {
    count: f64,
    sum: f64,
    squares: f64,
}

/// How a device differs from its class in an arm; older rewards fade.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Correction {
    weight: f32,
    mean: f32,
}

impl Learned {
    pub(super) fn new(arms: usize, window: u32) -> Self {
        Self { arms, window, classes: BTreeMap::new(), devices: BTreeMap::new() }
    }

    /// Adds what `arm` brought `device`, of `class`, in `round`.
    pub(super) fn add(&mut self, device: &DeviceId, class: &str, arm: usize, round: u32, reward: f64) {
        if arm >= self.arms || !reward.is_finite() {
            return;
        }
        let expected = self.expectation(class);
        let total = expected.arms.iter().map(|arm| arm.rewards).sum::<f64>();
        let centre = expected.arms.iter().map(|arm| arm.rewards * arm.mean).sum::<f64>() / total.max(1.0);
        let reward = if total >= ENOUGH && expected.deviation > 0.0 {
            let most = MOST_DEVIATIONS * expected.deviation;
            reward.clamp(centre - most, centre + most)
        } else {
            reward
        };
        let of_class = expected.arms[arm];
        if of_class.rewards > 0.0 {
            let fading = 1.0 - 1.0 / self.window.max(2) as f32;
            let own = self.devices.entry(device.clone()).or_insert_with(|| vec![Correction::default(); self.arms]);
            own[arm].weight = own[arm].weight * fading + 1.0;
            own[arm].mean += ((reward - of_class.mean) as f32 - own[arm].mean) / own[arm].weight;
        }
        let (arms, window) = (self.arms, self.window);
        let Class { rounds, tried, .. } = self.classes.entry(class.to_owned()).or_default();
        tried.resize(arms, false);
        tried[arm] = true;
        if rounds.back().is_none_or(|(last, _)| *last < round) {
            rounds.push_back((round, vec![Sums::default(); arms]));
        }
        rounds.retain(|(at, _)| at + window > round);
        if let Some((_, sums)) = rounds.back_mut() {
            sums[arm].count += 1.0;
            sums[arm].sum += reward;
            sums[arm].squares += reward * reward;
        }
    }

    /// What `class` expects.
    pub(super) fn expectation(&self, class: &str) -> Expectation {
        let mut sums = vec![Sums::default(); self.arms];
        for (_, round) in self.classes.get(class).iter().flat_map(|class| &class.rounds) {
            for (sum, added) in sums.iter_mut().zip(round) {
                sum.count += added.count;
                sum.sum += added.sum;
                sum.squares += added.squares;
            }
        }
        let tried = |arm: usize| self.classes.get(class).is_some_and(|class| class.tried.get(arm) == Some(&true));
        let estimate = |(arm, sum): (usize, &Sums)| Estimate {
            rewards: sum.count,
            mean: sum.sum / sum.count.max(1.0),
            tried: tried(arm),
        };
        let arms: Vec<Estimate> = sums.iter().enumerate().map(estimate).collect();
        let (count, squares) = sums.iter().zip(&arms).fold((0.0, 0.0), |(count, squares), (sum, arm)| {
            (count + sum.count, squares + (sum.squares - sum.count * arm.mean * arm.mean).max(0.0))
        });
        let tried = arms.iter().filter(|arm| arm.rewards > 0.0).count() as f64;
        let deviation = if count > tried { (squares / (count - tried)).sqrt() } else { 0.0 };
        Expectation { arms, deviation }
    }

    /// What a device of that class expects of an arm: `class + w / (w + 2) · own`, `w` the weight of its own rewards.
    pub(super) fn estimate(&self, device: &DeviceId, of_class: &Expectation, arm: usize) -> Estimate {
        let mut estimate = of_class.arms[arm];
        if let Some(own) = self.devices.get(device).map(|own| own[arm]).filter(|_| estimate.rewards > 0.0) {
            let weight = f64::from(own.weight);
            estimate.mean += weight / (weight + PRIOR_WEIGHT) * f64::from(own.mean);
        }
        estimate
    }

    /// The arms that `class` compares at the moment: `count` of them, drawn from `seed` at first.
    pub(super) fn candidates(&self, class: &str, count: usize, seed: u64) -> Vec<usize> {
        match self.classes.get(class).map(|class| &class.candidates) {
            Some(candidates) if !candidates.is_empty() => candidates.clone(),
            Some(_) | None => {
                completed(Vec::new(), self.arms, count, |arm| draw(seed, "candidate", 0, &key(class, arm)))
            }
        }
    }

    /// Puts other arms in the place of the worse half of each class's candidates; the better half stays.
    pub(super) fn refresh(&mut self, round: u32, count: usize, seed: u64) {
        let names: Vec<String> = self.classes.keys().cloned().collect();
        for name in names {
            let expected = self.expectation(&name);
            let mut kept = self.candidates(&name, count, seed);
            let worth = |arm: usize| {
                let Estimate { rewards, mean, .. } = expected.arms[arm];
                if rewards > 0.0 { mean } else { f64::NEG_INFINITY }
            };
            kept.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
            kept.truncate(count.div_ceil(2));
            let fresh = completed(kept, self.arms, count, |arm| draw(seed, "candidate", round, &key(&name, arm)));
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
