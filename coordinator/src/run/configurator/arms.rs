//! The configurations that can be chosen, and the rates of their layers. A configuration is a mean rate, its shape over depth and
//! its schedule over rounds.

use super::rates::DropoutRates;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Largest rate of a layer, because a layer that is always skipped would never learn.
pub const MAX_RATE: f32 = 0.95;
/// Largest mean rate that can be set.
pub const MAX_MEAN_RATE: f32 = 0.9;

/// Distribution of the dropout rates over depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Same rate for every layer.
    #[default]
    Uniform,
    /// Rises linearly; the last layer is dropped most.
    Increasing,
    /// Falls linearly; the first layer is dropped most.
    Decreasing,
    /// Bell curve; its top is in the middle, its standard deviation a quarter of the depth.
    Normal,
}

/// Change of a mean rate over the rounds of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays the same.
    #[default]
    Constant,
    /// Rises linearly from 0, and has its full value from the middle of the run on.
    WarmUp,
    /// Has its full value up to the middle of the run, then falls linearly to 0.
    CoolDown,
}

/// One configuration that a device may be given.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Arm {
    /// Mean rate over the layers that may be dropped, 0 to [`MAX_MEAN_RATE`].
    pub mean: f32,
    /// Distribution over depth.
    pub shape: Shape,
    /// Change over rounds.
    pub schedule: Schedule,
}

/// Position in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Current round, from 1.
    pub round: u32,
    /// Number of rounds of the run.
    pub rounds: u32,
}

impl Arm {
    /// Computes the rates of `layers` layers at that moment.
    #[must_use]
    pub fn rates(&self, at: Moment, layers: usize, protected: &[u32]) -> DropoutRates {
        rates(self.mean * self.schedule.factor(at), self.shape, layers, protected)
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = match self.shape {
            Shape::Uniform => "uniform",
            Shape::Increasing => "increasing",
            Shape::Decreasing => "decreasing",
            Shape::Normal => "normal",
        };
        let schedule = match self.schedule {
            Schedule::Constant => "",
            Schedule::WarmUp => ", warm-up",
            Schedule::CoolDown => ", cool-down",
        };
        write!(f, "mean {}, {shape}{schedule}", self.mean)
    }
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

impl Schedule {
    /// Returns the factor of the mean rate: `min(1, 2t)` for a warm-up and `min(1, 2(1 - t))` for a cool-down, with
    /// `t = (round - 1) / (rounds - 1)` from 0 to 1.
    #[must_use]
    pub fn factor(self, at: Moment) -> f32 {
        let last = at.rounds.saturating_sub(1).max(1);
        let passed = (at.round.saturating_sub(1) as f32 / last as f32).min(1.0);
        match self {
            Self::Constant => 1.0,
            Self::WarmUp => (2.0 * passed).min(1.0),
            Self::CoolDown => (2.0 * (1.0 - passed)).min(1.0),
        }
    }
}

/// Spreads a mean rate over the layers that may be dropped.
///
/// Formula: `P_l = min(MAX_RATE, a·s_l)`, with `s_l` the shape's weight and `a` such that the mean over the layers that are not
/// protected is `mean`; `P_l = 0` for the protected ones. The shapes are ours, after the abstract of DropPEFT (arXiv:2503.10217);
/// the operator can configure which of them are tried.
///
/// | argument | meaning |
/// |---|---|
/// | `mean` | 0 to [`MAX_RATE`] |
/// | `layers` | L, number of the model's layers |
/// | `protected` | layers that are never dropped |
///
/// Returns rates of 0 to [`MAX_RATE`]. The mean is met within 1e-5 (`a` is found by bisection in f64).
#[must_use]
pub fn rates(mean: f32, shape: Shape, layers: usize, protected: &[u32]) -> DropoutRates {
    let droppable = |layer: usize| !protected.contains(&(layer as u32));
    let count = (0..layers).filter(|&layer| droppable(layer)).count();
    let rate = |scale: f64, layer: usize| (scale * shape.weight(layer, layers)).min(f64::from(MAX_RATE));
    let mean_at = |scale: f64| {
        (0..layers).filter(|&layer| droppable(layer)).map(|layer| rate(scale, layer)).sum::<f64>() / count as f64
    };
    // Every weight is at least half a layer's share, so this scale raises every layer to its limit.
    let (mut low, mut high) = (0.0, 2.0 * (layers.max(8) as f64));
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if mean_at(middle) < f64::from(mean) { low = middle } else { high = middle }
    }
    let scale = if mean > 0.0 { high } else { 0.0 };
    let rates = (0..layers).map(|layer| if droppable(layer) { rate(scale, layer) as f32 } else { 0.0 });
    DropoutRates::new(rates.collect()).expect("rates are 0 to MAX_RATE")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;
    use proptest::prelude::*;

    fn shape() -> impl Strategy<Value = Shape> {
        prop_oneof![Just(Shape::Uniform), Just(Shape::Increasing), Just(Shape::Decreasing), Just(Shape::Normal)]
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
    }

    #[test]
    fn schedules_are_whole_on_their_side_of_the_middle() {
        let moment = |round| Moment { round, rounds: 11 };
        let factors = |schedule: Schedule| [1, 6, 11].map(|round| schedule.factor(moment(round)));
        assert_eq!(factors(Schedule::Constant), [1.0, 1.0, 1.0]);
        assert_eq!(factors(Schedule::WarmUp), [0.0, 1.0, 1.0]);
        assert_eq!(factors(Schedule::CoolDown), [1.0, 1.0, 0.0]);
        assert_eq!(Schedule::CoolDown.factor(Moment { round: 1, rounds: 1 }), 1.0);
    }
}
