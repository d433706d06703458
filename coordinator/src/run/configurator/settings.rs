//! Settings of an operator: the source of dropout rates, and the way a bandit learns. [`Settings`] holds all facts about a run
//! that its configurator needs.

use super::arms::{Arm, MAX_MEAN_RATE, Schedule, Shape};
use super::gain::Gain;
use super::policy::Policy;
use serde::{Deserialize, Serialize};
use skiff_api::measures::Measure;

/// The largest number of arms of a bandit.
pub const MAX_ARMS: usize = 64;

/// Facts about a run that its configurator needs.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Source of the rates.
    pub rates: Rates,
    /// Layers that are never dropped, in any order.
    pub protected: Vec<u32>,
    /// Number of the model's layers.
    pub layers: usize,
    /// Seed of all draws.
    pub seed: u64,
    /// Number of rounds of the run.
    pub rounds: u32,
    /// Optimizer steps of a device in a round.
    pub steps: u32,
    /// Examples in a step.
    pub batch: u32,
    /// True if no device waits for another.
    pub asynchronous: bool,
    /// Main measure of the model's task.
    pub measure: Measure,
}

/// Source of the dropout rates.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rates {
    /// The same rates for every device, within its limits.
    Fixed {
        /// Mean rate over the layers that may be dropped, 0 to [`MAX_MEAN_RATE`].
        mean: f32,
        /// Distribution of the mean rate over depth (default uniform).
        #[serde(default)]
        shape: Shape,
        /// Change of the mean rate over rounds (default constant).
        #[serde(default)]
        schedule: Schedule,
    },
    /// Rates chosen for each device and round by a bandit.
    Bandit(Bandit),
}

impl Default for Rates {
    fn default() -> Self {
        Self::Fixed { mean: 0.0, shape: Shape::Uniform, schedule: Schedule::Constant }
    }
}

/// Settings of a bandit. Its arms are all combinations of means, shapes and schedules.
///
/// The method is our interpretation of the abstract of DropPEFT (arXiv:2503.10217): the paper's own candidates and constants were
/// not available to us. All of them can be configured here.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bandit {
    /// Mean rates to choose from (default 0, 0.2, 0.35, 0.5).
    pub means: Vec<f32>,
    /// Shapes to choose from (default decreasing: docs/decisions/2026-11-27-lower-layers-first.md).
    pub shapes: Vec<Shape>,
    /// Schedules to choose from (default constant).
    pub schedules: Vec<Schedule>,
    /// Method of choosing an arm (default epsilon-greedy).
    pub policy: Policy,
    /// Share of rounds in which epsilon-greedy explores, 0 to 1 (default 0.2).
    pub epsilon: f32,
    /// Number of arms that epsilon-greedy compares at a time, 1 to [`MAX_ARMS`] (default 6).
    pub candidates: u32,
    /// Number of rounds after which a measurement is forgotten, 2 to 1000 (default 20).
    pub window: u32,
    /// Largest share of a round's devices that may explore, 0 to 1 (default 0.5).
    pub explorers: f32,
    /// Measure of a round's gain: `loss`, or `measure` for the main measure of the task (default loss).
    pub gain: Gain,
    /// Number of examples on which a device measures its gain, before and after its training, 1 to 4096 (default 32).
    pub probe_examples: u32,
    /// Share of devices that measure their gain although they do not explore, 0 to 1 (default 0.5). Only devices that finish
    /// early measure. If no device finishes early, all devices measure together in this share of the rounds.
    pub measured: f32,
}

impl Default for Bandit {
    fn default() -> Self {
        Self {
            means: vec![0.0, 0.2, 0.35, 0.5],
            shapes: vec![Shape::Decreasing],
            schedules: vec![Schedule::Constant],
            policy: Policy::EpsilonGreedy,
            epsilon: 0.2,
            candidates: 6,
            window: 20,
            explorers: 0.5,
            gain: Gain::Loss,
            probe_examples: 32,
            measured: 0.5,
        }
    }
}

impl Rates {
    /// Checks every number.
    ///
    /// # Errors
    /// The first number that is out of range, with its name and the range.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Fixed { mean, .. } if is_mean_rate(*mean) => Ok(()),
            Self::Fixed { mean, .. } => Err(format!("rates.fixed.mean is {mean}, expected 0 to {MAX_MEAN_RATE}")),
            Self::Bandit(bandit) => bandit.check(),
        }
    }

    /// Lists the arms, in a fixed order. A mean of 0 gives only one arm, because it has no shape and no schedule.
    #[must_use]
    pub fn arms(&self) -> Vec<Arm> {
        match self {
            Self::Fixed { mean, shape, schedule } => vec![Arm { mean: *mean, shape: *shape, schedule: *schedule }],
            Self::Bandit(bandit) => bandit.arms(),
        }
    }

    /// Returns the operator's choice of what counts as a gain.
    #[must_use]
    pub fn gain(&self) -> Gain {
        match self {
            Self::Bandit(bandit) => bandit.gain,
            Self::Fixed { .. } => Gain::Loss,
        }
    }
}

impl Bandit {
    fn check(&self) -> Result<(), String> {
        let Self { means, shapes, schedules, epsilon, candidates, window, explorers, probe_examples, measured, .. } =
            self;
        if let Some(mean) = means.iter().find(|&&mean| !is_mean_rate(mean)) {
            return Err(format!("rates.bandit.means has {mean}, expected 0 to {MAX_MEAN_RATE}"));
        }
        let arms = means.len() * shapes.len() * schedules.len();
        if !(1..=MAX_ARMS).contains(&arms) {
            return Err(format!(
                "rates.bandit: {arms} combinations of means, shapes and schedules, expected 1 to {MAX_ARMS}"
            ));
        }
        check_share("epsilon", *epsilon)?;
        check_share("explorers", *explorers)?;
        check_share("measured", *measured)?;
        check_number("candidates", *candidates, 1, MAX_ARMS as u32)?;
        check_number("window", *window, 2, 1000)?;
        check_number("probe_examples", *probe_examples, 1, 4096)
    }

    fn arms(&self) -> Vec<Arm> {
        let mut arms: Vec<Arm> = Vec::new();
        for &mean in &self.means {
            for &shape in &self.shapes {
                for &schedule in &self.schedules {
                    let is_repeated = mean <= 0.0 && arms.iter().any(|arm| arm.mean <= 0.0);
                    if !is_repeated {
                        arms.push(Arm { mean, shape, schedule });
                    }
                }
            }
        }
        arms
    }
}

fn is_mean_rate(mean: f32) -> bool {
    (0.0..=MAX_MEAN_RATE).contains(&mean)
}

fn check_share(name: &str, share: f32) -> Result<(), String> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(format!("rates.bandit.{name} is {share}, expected 0 to 1"))
}

fn check_number(name: &str, number: u32, least: u32, most: u32) -> Result<(), String> {
    if (least..=most).contains(&number) {
        return Ok(());
    }
    Err(format!("rates.bandit.{name} is {number}, expected {least} to {most}"))
}
