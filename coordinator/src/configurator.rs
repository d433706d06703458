//! Choosing each device's dropout rates: fixed by the operator, or by a bandit for each device.
//!
//! A choice is a *mean* rate, spread over depth by a [`Shape`]. The bandit is epsilon-greedy: an arm is a mean rate, its
//! reward the gain in accuracy per second of the device's round (DropPEFT, arXiv:2503.10217, "online configurator"). A
//! round is rewarded only where the evaluations before and after it rest on nine tenths of the same examples; so where
//! `final_examples` differs from `evaluate_examples`, the first and the last round of a run are not.
//! Everything is a function of the seed and of the rewards so far, so a journal replays to the same state.

use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// The largest rate of a layer: one that is always skipped would never learn.
pub const MAX_RATE: f32 = 0.95;
/// The largest mean rate that can be asked for.
pub const MAX_MEAN_RATE: f32 = 0.9;
/// The most arms that a bandit may have.
pub const MAX_ARMS: usize = 16;

/// How a mean rate is spread over depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The same for every layer.
    #[default]
    Uniform,
    /// Linear, the last layer most.
    Increasing,
    /// Linear, the first layer most.
    Decreasing,
    /// A bell with its top in the middle and a standard deviation of a quarter of the depth.
    Normal,
}

impl Shape {
    fn weight(self, layer: usize, layers: usize) -> f64 {
        let position = (layer as f64 + 0.5) / layers as f64;
        match self {
            Self::Uniform => 1.0,
            Self::Increasing => position,
            Self::Decreasing => 1.0 - position,
            Self::Normal => (-0.5 * ((position - 0.5) / 0.25).powi(2)).exp(),
        }
    }
}

/// Where rates come from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rates {
    /// The same for every device and round.
    Fixed {
        /// Mean rate over the layers that may be dropped, 0 to [`MAX_MEAN_RATE`].
        mean: f32,
        /// How it is spread.
        #[serde(default)]
        shape: Shape,
    },
    /// Chosen for each device and round.
    Bandit {
        /// The mean rates to choose from.
        #[serde(default = "Rates::default_arms")]
        arms: Vec<f32>,
        /// Probability of trying an arm at random once all have been tried, 0 to 1.
        #[serde(default = "Rates::default_epsilon")]
        epsilon: f32,
        /// How the mean is spread.
        #[serde(default)]
        shape: Shape,
    },
}

impl Default for Rates {
    fn default() -> Self {
        Self::Fixed { mean: 0.0, shape: Shape::Uniform }
    }
}

impl Rates {
    fn default_arms() -> Vec<f32> {
        vec![0.0, 0.2, 0.4, 0.6]
    }

    fn default_epsilon() -> f32 {
        0.2
    }

    /// Says what is wrong with the numbers.
    ///
    /// # Errors
    /// A mean out of range, no arms, too many, or an epsilon out of range.
    pub fn check(&self) -> Result<(), String> {
        let mean_fits = |mean: &f32| (0.0..=MAX_MEAN_RATE).contains(mean);
        match self {
            Self::Fixed { mean, .. } if !mean_fits(mean) => {
                Err(format!("rates.fixed.mean is {mean}, expected 0 to {MAX_MEAN_RATE}"))
            }
            Self::Bandit { arms, .. } if arms.is_empty() || arms.len() > MAX_ARMS || !arms.iter().all(mean_fits) => {
                Err(format!("rates.bandit.arms are {arms:?}, expected 1 to {MAX_ARMS} of 0 to {MAX_MEAN_RATE}"))
            }
            Self::Bandit { epsilon, .. } if !(0.0..=1.0).contains(epsilon) => {
                Err(format!("rates.bandit.epsilon is {epsilon}, expected 0 to 1"))
            }
            Self::Fixed { .. } | Self::Bandit { .. } => Ok(()),
        }
    }
}

/// One device's rates for one round, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Rate of each layer.
    pub rates: Vec<f32>,
    /// The bandit's arm; `None` for fixed rates.
    pub arm: Option<u32>,
    /// For the journal and the operator.
    pub reason: String,
}

/// Chooses, and learns from rewards.
#[derive(Clone, PartialEq, Debug)]
pub struct Configurator {
    rates: Rates,
    seed: u64,
    layers: usize,
    protected: Vec<u32>,
    /// Of each device, for each arm: rewards seen and their mean.
    learned: BTreeMap<DeviceId, Vec<Learned>>,
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Learned {
    rewards: u32,
    mean: f64,
}

impl Configurator {
    /// A configurator that has seen nothing. `protected` layers always get rate 0.
    #[must_use]
    pub fn new(rates: Rates, seed: u64, layers: usize, protected: Vec<u32>) -> Self {
        Self { rates, seed, layers, protected, learned: BTreeMap::new() }
    }

    /// The rates for `device` in `round`.
    #[must_use]
    pub fn choose(&self, device: &DeviceId, round: u32) -> Choice {
        match &self.rates {
            Rates::Fixed { mean, shape } => {
                Choice { rates: self.spread(*mean, *shape), arm: None, reason: format!("fixed {mean}") }
            }
            Rates::Bandit { arms, epsilon, shape } => {
                let (arm, reason) = self.pull(arms.len(), *epsilon, device, round);
                Choice { rates: self.spread(arms[arm], *shape), arm: Some(arm as u32), reason }
            }
        }
    }

    /// Tells what an arm brought: `gain` in accuracy over a round that took the device `seconds`.
    pub fn reward(&mut self, device: &DeviceId, arm: u32, gain: f64, seconds: f64) {
        let Rates::Bandit { arms, .. } = &self.rates else { return };
        let learned = self.learned.entry(device.clone()).or_insert_with(|| vec![Learned::default(); arms.len()]);
        if let Some(learned) = learned.get_mut(arm as usize) {
            learned.rewards += 1;
            learned.mean += (gain / seconds.max(1e-3) - learned.mean) / f64::from(learned.rewards);
        }
    }

    fn pull(&self, arms: usize, epsilon: f32, device: &DeviceId, round: u32) -> (usize, String) {
        let draw = |purpose| draw(self.seed, purpose, round, device);
        let among = |count: usize, purpose| ((draw(purpose) * count as f64) as usize).min(count - 1);
        let learned = self.learned.get(device).cloned().unwrap_or_else(|| vec![Learned::default(); arms]);
        let untried: Vec<usize> = (0..arms).filter(|&arm| learned[arm].rewards == 0).collect();
        if !untried.is_empty() {
            let arm = untried[among(untried.len(), "untried")];
            return (arm, format!("explores arm {arm}, one of {} untried", untried.len()));
        }
        if draw("explore") < f64::from(epsilon) {
            let arm = among(arms, "arm");
            return (arm, format!("explores arm {arm} by chance"));
        }
        let best = |best: usize, arm: usize| if learned[arm].mean > learned[best].mean { arm } else { best };
        let arm = (1..arms).fold(0, best);
        (arm, format!("arm {arm} gained most, {:.5} a second over {} rounds", learned[arm].mean, learned[arm].rewards))
    }

    fn spread(&self, mean: f32, shape: Shape) -> Vec<f32> {
        rates(mean, shape, self.layers, &self.protected)
    }
}

/// Spreads a mean rate over the layers that may be dropped.
///
/// Formula: `P_l = min(MAX_RATE, a·s_l)`, with `s_l` the shape's weight and `a` such that the mean over the layers that
/// are not protected is `mean`; `P_l = 0` for the protected ones. Shapes: DropPEFT, arXiv:2503.10217, section on rates
/// over depth.
///
/// | argument | what |
/// |---|---|
/// | `mean` | 0 to [`MAX_MEAN_RATE`] |
/// | `layers` | L, the model's layers |
/// | `protected` | layers that are never dropped |
///
/// Returns `[L]`, each 0 to [`MAX_RATE`]. The mean is met within 1e-5 (`a` is found by bisection in f64).
#[must_use]
pub fn rates(mean: f32, shape: Shape, layers: usize, protected: &[u32]) -> Vec<f32> {
    let droppable = |layer: usize| !protected.contains(&(layer as u32));
    let count = (0..layers).filter(|&layer| droppable(layer)).count();
    let rate = |scale: f64, layer: usize| (scale * shape.weight(layer, layers)).min(f64::from(MAX_RATE));
    let mean_at = |scale: f64| {
        (0..layers).filter(|&layer| droppable(layer)).map(|layer| rate(scale, layer)).sum::<f64>() / count as f64
    };
    // Every weight is at least half a layer's share, so this scale puts every layer at its limit.
    let (mut low, mut high) = (0.0, 2.0 * (layers.max(8) as f64));
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if mean_at(middle) < f64::from(mean) { low = middle } else { high = middle }
    }
    let scale = if mean > 0.0 { high } else { 0.0 };
    (0..layers).map(|layer| if droppable(layer) { rate(scale, layer) as f32 } else { 0.0 }).collect()
}

/// A number in 0..1 that depends on nothing but its arguments.
#[must_use]
pub fn draw(seed: u64, purpose: &str, round: u32, device: &DeviceId) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&round.to_le_bytes());
    hasher.update(purpose.as_bytes()).update(&[0]).update(device.as_str().as_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;
    use proptest::prelude::*;

    fn shape() -> impl Strategy<Value = Shape> {
        prop_oneof![Just(Shape::Uniform), Just(Shape::Increasing), Just(Shape::Decreasing), Just(Shape::Normal)]
    }

    fn device(name: &str) -> DeviceId {
        name.parse().unwrap()
    }

    fn bandit(epsilon: f32) -> Configurator {
        let rates = Rates::Bandit { arms: Rates::default_arms(), epsilon, shape: Shape::Uniform };
        Configurator::new(rates, 7, 6, vec![])
    }

    proptest! {
        #[test]
        fn prop_rates_are_in_range_and_meet_the_mean(
            mean in 0.0f32..=MAX_MEAN_RATE, shape in shape(), layers in 1usize..48, protected in proptest::collection::vec(0u32..48, 0..6),
        ) {
            let rates = rates(mean, shape, layers, &protected);
            prop_assert_eq!(rates.len(), layers);
            prop_assert!(rates.iter().all(|rate| (0.0..=MAX_RATE).contains(rate)));
            let is_protected = |layer: usize| protected.contains(&(layer as u32));
            let droppable: Vec<f32> = (0..layers).filter(|&l| !is_protected(l)).map(|l| rates[l]).collect();
            prop_assert!((0..layers).filter(|&l| is_protected(l)).all(|l| rates[l] == 0.0));
            if !droppable.is_empty() {
                let found = droppable.iter().sum::<f32>() / droppable.len() as f32;
                prop_assert!((found - mean).abs() < 1e-5, "{found} for {mean}");
            }
        }

        #[test]
        fn prop_shapes_lean_the_way_they_say(mean in 0.01f32..=MAX_MEAN_RATE, layers in 2usize..48) {
            let spread = |shape| rates(mean, shape, layers, &[]);
            prop_assert!(spread(Shape::Increasing).is_sorted());
            prop_assert!(spread(Shape::Decreasing).iter().rev().is_sorted());
            let normal = spread(Shape::Normal);
            prop_assert!(normal[layers / 2] >= normal[0] && normal[layers / 2] >= normal[layers - 1]);
            let uniform = spread(Shape::Uniform);
            prop_assert!(uniform.iter().all(|rate| *rate == uniform[0]));
        }

        #[test]
        fn prop_choices_depend_on_seed_and_rewards_alone(
            rewards in proptest::collection::vec((0u32..4, -0.1f64..0.1, 0.1f64..60.0), 0..20), round in 1u32..100,
        ) {
            let mut one = bandit(0.3);
            let mut other = bandit(0.3);
            for (arm, gain, seconds) in rewards {
                one.reward(&device("a"), arm, gain, seconds);
                other.reward(&device("a"), arm, gain, seconds);
            }
            prop_assert_eq!(one.choose(&device("a"), round), other.choose(&device("a"), round));
        }
    }

    #[test]
    fn every_arm_is_tried_before_any_is_preferred() {
        let mut bandit = bandit(0.0);
        let mut tried: Vec<u32> = (1..=4)
            .map(|round| {
                let arm = bandit.choose(&device("a"), round).arm.unwrap();
                bandit.reward(&device("a"), arm, 0.01, 1.0);
                arm
            })
            .collect();
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2, 3]);
    }

    #[test]
    fn the_arm_of_the_largest_gain_a_second_is_preferred() {
        let mut bandit = bandit(0.0);
        for (arm, gain, seconds) in [(0, 0.04, 4.0), (1, 0.03, 2.0), (2, 0.03, 1.0), (3, -0.02, 0.5)] {
            bandit.reward(&device("a"), arm, gain, seconds);
        }
        let choice = bandit.choose(&device("a"), 9);
        assert_eq!(choice.arm, Some(2));
        assert!(choice.reason.contains("gained most"), "{}", choice.reason);
        assert!((choice.rates.iter().sum::<f32>() / 6.0 - 0.4).abs() < 1e-5);
        assert!(bandit.choose(&device("b"), 9).reason.contains("untried"), "devices learn by themselves");
    }

    #[test]
    fn epsilon_explores_about_that_often() {
        let mut bandit = bandit(0.25);
        (0..4).for_each(|arm| bandit.reward(&device("a"), arm, 0.01 * f64::from(arm), 1.0));
        let explored = (1..=1000).filter(|&round| bandit.choose(&device("a"), round).reason.contains("chance")).count();
        assert!((200..300).contains(&explored), "{explored} of 1000");
    }

    #[test]
    fn rates_out_of_range_are_named() {
        let fixed = |mean| Rates::Fixed { mean, shape: Shape::Uniform }.check();
        assert_eq!(fixed(0.9), Ok(()));
        assert!(fixed(0.91).unwrap_err().contains("rates.fixed.mean"));
        assert!(fixed(f32::NAN).is_err());
        let bandit =
            |arms: &[f32], epsilon| Rates::Bandit { arms: arms.to_vec(), epsilon, shape: Shape::Uniform }.check();
        assert!(bandit(&[], 0.1).unwrap_err().contains("rates.bandit.arms"));
        assert!(bandit(&[0.1], 1.5).unwrap_err().contains("rates.bandit.epsilon"));
    }
}
