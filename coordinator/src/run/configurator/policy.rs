//! How a bandit chooses among the arms that a device may have, from what is expected of them.
//!
//! - *epsilon-greedy* (DropPEFT, arXiv:2503.10217, "online configurator"): of a list of candidates one at random with
//!   probability epsilon, else the best. The list is refreshed every half window: its worse half gives way to other arms.
//!   Ours are those that the round leaves time for.
//! - *ucb*: the largest `mean + c·σ·sqrt(ln N / n)`, over rewards of a sliding window (Garivier and Moulines,
//!   arXiv:0805.3415, SW-UCB), with the rewards' standard deviation `σ` for their range, as that is not known beforehand.
//! - *thompson*: the largest draw of `Normal(mean, σ² / n)` (Gaussian Thompson sampling: Agrawal and Goyal,
//!   arXiv:1209.3353, section 2.2, with `σ` of the window).
//!
//! An arm that was never tried is tried first; one whose rewards the window has forgotten is tried again in the rounds of epsilon.
//! What is explored becomes less as a run goes on: epsilon and `σ` are multiplied by `min(1, sqrt(window / round))`,
//! ours, so that what exploring costs stays below any share of the rounds, and rewards that drift are still noticed.

use crate::run::draw::draw;
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
    /// The arms that may be chosen; never empty.
    pub(super) arms: &'a [Offer],
}

/// What an arm promises a device in a round.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Offer {
    pub(super) arm: usize,
    /// Measurements of its gain in the window.
    pub(super) rewards: f64,
    /// Somebody tried it, in the window or before.
    pub(super) tried: bool,
    /// Gain per second.
    pub(super) worth: f64,
    /// Standard deviation of that, of one measurement.
    pub(super) deviation: f64,
    /// Layers that run on average.
    pub(super) active: f64,
    /// What the round takes with it.
    pub(super) seconds: f64,
    /// Trying it, and measuring that, holds nobody up.
    pub(super) is_spare: bool,
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
        let is_learning = is_among(question.epsilon, Some(window), seed, round);
        let that = |fits: &dyn Fn(&Offer) -> bool| -> Vec<Offer> {
            arms.iter().copied().filter(|offer| fits(offer)).collect()
        };
        let known = that(&|offer| offer.rewards > 0.0);
        let untried = that(&|offer| !offer.tried);
        let forgotten = that(&|offer| offer.tried && offer.rewards <= 0.0);
        if !untried.is_empty() {
            let arm = untried[among(untried.len(), "untried")].arm;
            return Proposal { arm, explores: true, reason: "tries what nobody has tried" };
        }
        if !forgotten.is_empty() && (known.is_empty() || is_learning) {
            let arm = forgotten[among(forgotten.len(), "forgotten")].arm;
            return Proposal { arm, explores: true, reason: "tries again what nobody tried lately" };
        }
        let arms = &known[..];
        let greedy = favourite(arms);
        let spare = that(&|offer| offer.rewards > 0.0 && offer.is_spare);
        let explores = || unit("explore") < cooling * f64::from(question.epsilon);
        let (arm, reason) = match self {
            Self::EpsilonGreedy if !spare.is_empty() && explores() => {
                (spare[among(spare.len(), "arm")].arm, "explores by chance")
            }
            Self::EpsilonGreedy => (greedy, "gains most in the round's time"),
            Self::Ucb => {
                let total: f64 = arms.iter().map(|offer| offer.rewards).sum();
                let width =
                    |offer: &Offer| cooling * offer.deviation * (libm::log(total.max(1.0)) / offer.rewards).sqrt();
                (best(arms, |offer| offer.worth + width(offer)), "could gain most")
            }
            Self::Thompson => {
                let sampled = |offer: &Offer| {
                    let arm = offer.arm;
                    let (u, v) = (unit(&format!("radius {arm}")), unit(&format!("angle {arm}")));
                    // Box-Muller; 1 - u is above 0.
                    let normal = (-2.0 * libm::log(1.0 - u)).sqrt() * libm::cos(std::f64::consts::TAU * v);
                    offer.worth + normal * cooling * offer.deviation / offer.rewards.sqrt()
                };
                (best(arms, sampled), "was drawn as the best")
            }
        };
        Proposal { arm, explores: arm != greedy, reason }
    }
}

/// Whether `round` is one of those, spread evenly, that a share of `share·min(1, sqrt(window / round))` makes, or of `share` without
/// a window. A round takes as long as its slowest device: what slows one of them is done by many in the same round rather than by
/// one in each.
pub(super) fn is_among(share: f32, window: Option<u32>, seed: u64, round: u32) -> bool {
    let until = |round: u32| {
        let (round, window) = (f64::from(round), window.map_or(f64::INFINITY, f64::from));
        // The sum of the shares of the rounds up to this one.
        let rounds = if round <= window { round } else { 2.0 * (window * round).sqrt() - window };
        draw(seed, "phase", 0, "") + f64::from(share) * rounds
    };
    until(round).floor() > until(round.saturating_sub(1)).floor()
}

/// The arm with most layers of those that take no longer than the best and cannot be told from it: their worth is not more than a
/// standard error below. What a device measures on its own examples is also how well it has come to know its own mix of labels,
/// which takes no layers; the global model is learned in them.
pub(super) fn favourite(arms: &[Offer]) -> usize {
    let most = best(arms, |offer| offer.worth);
    let most = arms.iter().find(|offer| offer.arm == most).unwrap_or(&arms[0]);
    let error = |offer: &Offer| offer.deviation / offer.rewards.max(1.0).sqrt();
    let is_as_good = |offer: &Offer| offer.seconds <= most.seconds && offer.worth + error(offer) >= most.worth;
    best(arms, |offer| if is_as_good(offer) { offer.active } else { f64::NEG_INFINITY })
}

/// The arm that is worth most; the first of equals.
pub(super) fn best(arms: &[Offer], worth: impl Fn(&Offer) -> f64) -> usize {
    let better = |best: (usize, f64), offer: &Offer| {
        let worth = worth(offer);
        if worth > best.1 { (offer.arm, worth) } else { best }
    };
    arms.iter().fold((arms[0].arm, f64::NEG_INFINITY), better).0
}
