//! How a bandit chooses among the arms that a device may have, from what is expected of them.
//!
//! - *epsilon-greedy* (DropPEFT, arXiv:2503.10217, "online configurator"): of a list of candidates one at random with
//!   probability epsilon, else the best. The list is refreshed every half window: its worse half gives way to other arms.
//! - *ucb*: the largest `mean + c·σ·sqrt(ln N / n)`, over rewards of a sliding window (Garivier and Moulines,
//!   arXiv:0805.3415, SW-UCB), with the rewards' standard deviation `σ` for their range, as that is not known beforehand.
//! - *thompson*: the largest draw of `Normal(mean, σ² / n)` (Gaussian Thompson sampling: Agrawal and Goyal,
//!   arXiv:1209.3353, section 2.2, with `σ` of the window).
//!
//! An arm that was never tried is tried first; one whose rewards the window has forgotten is tried again with probability
//! epsilon. What is explored becomes less as a run goes on: epsilon and `σ` are multiplied by `min(1, sqrt(window / round))`,
//! ours, so that what exploring costs stays below any share of the rounds, and rewards that drift are still noticed.

use super::draw;
use super::learned::Estimate;
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;

/// How to choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The best candidate, or one by chance.
    #[default]
    EpsilonGreedy,
    /// The one that could be best.
    Ucb,
    /// One with the probability that it is best.
    Thompson,
}

/// What a choice is made from.
pub(super) struct Question<'a> {
    pub(super) seed: u64,
    pub(super) round: u32,
    pub(super) device: &'a DeviceId,
    pub(super) epsilon: f32,
    pub(super) window: u32,
    /// The arms that may be chosen, with what is expected of them; never empty.
    pub(super) arms: &'a [(usize, Estimate)],
    /// Standard deviation of rewards.
    pub(super) deviation: f64,
}

/// A choice; to explore is to choose another arm than the one that is known to be best.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Proposal {
    pub(super) arm: usize,
    pub(super) explores: bool,
    pub(super) reason: &'static str,
}

impl Policy {
    /// One of the question's arms.
    pub(super) fn propose(self, question: &Question<'_>) -> Proposal {
        let Question { seed, round, device, arms, window, .. } = *question;
        let unit = |purpose: &str| draw(seed, purpose, round, device.as_str());
        let among = |count: usize, purpose: &str| ((unit(purpose) * count as f64) as usize).min(count - 1);
        let cooling = (f64::from(window) / f64::from(round.max(1))).sqrt().min(1.0);
        let epsilon = cooling * f64::from(question.epsilon);
        let that = |fits: &dyn Fn(&Estimate) -> bool| -> Vec<(usize, Estimate)> {
            arms.iter().copied().filter(|(_, estimate)| fits(estimate)).collect()
        };
        let known = that(&|estimate| estimate.rewards > 0.0);
        let untried = that(&|estimate| !estimate.tried);
        let forgotten = that(&|estimate| estimate.tried && estimate.rewards <= 0.0);
        if !untried.is_empty() {
            let arm = untried[among(untried.len(), "untried")].0;
            return Proposal { arm, explores: true, reason: "tries what its class has not tried" };
        }
        if !forgotten.is_empty() && (known.is_empty() || unit("again") < epsilon) {
            let arm = forgotten[among(forgotten.len(), "forgotten")].0;
            return Proposal { arm, explores: true, reason: "tries again what its class has not tried lately" };
        }
        let arms = &known[..];
        let greedy = best(arms, |(_, estimate)| estimate.mean);
        let deviation = cooling * question.deviation;
        let (arm, reason) = match self {
            Self::EpsilonGreedy if unit("explore") < epsilon => {
                (arms[among(arms.len(), "arm")].0, "explores by chance")
            }
            Self::EpsilonGreedy => (greedy, "gained most"),
            Self::Ucb => {
                let total: f64 = arms.iter().map(|(_, estimate)| estimate.rewards).sum();
                let width = |estimate: &Estimate| deviation * (libm::log(total.max(1.0)) / estimate.rewards).sqrt();
                (best(arms, |(_, estimate)| estimate.mean + width(estimate)), "could gain most")
            }
            Self::Thompson => {
                let sampled = |(arm, estimate): &(usize, Estimate)| {
                    let (u, v) = (unit(&format!("radius {arm}")), unit(&format!("angle {arm}")));
                    // Box-Muller; 1 - u is above 0.
                    let normal = (-2.0 * libm::log(1.0 - u)).sqrt() * libm::cos(std::f64::consts::TAU * v);
                    estimate.mean + normal * deviation / estimate.rewards.sqrt()
                };
                (best(arms, sampled), "was drawn as the best")
            }
        };
        Proposal { arm, explores: arm != greedy, reason }
    }
}

/// The arm that is worth most; the first of equals.
pub(super) fn best(arms: &[(usize, Estimate)], worth: impl Fn(&(usize, Estimate)) -> f64) -> usize {
    let better = |best: (usize, f64), arm: &(usize, Estimate)| {
        let worth = worth(arm);
        if worth > best.1 { (arm.0, worth) } else { best }
    };
    arms.iter().fold((arms[0].0, f64::NEG_INFINITY), better).0
}
