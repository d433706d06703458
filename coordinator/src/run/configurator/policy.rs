//! Picks an arm for a device, from the expected worth of each arm.
//!
//! - *epsilon-greedy* (our interpretation of the abstract of DropPEFT, arXiv:2503.10217): an arm at random with probability
//!   epsilon, otherwise the best one. A class compares a list of arms at a time. Every half window, other arms replace the worse
//!   half of the list. Arms are drawn at random only if the round leaves time for them.
//! - *ucb*: the largest `mean + c·σ·sqrt(ln N / n)`, over rewards of a sliding window (Garivier and Moulines, arXiv:0805.3415,
//!   SW-UCB), with the rewards' standard deviation `σ` instead of their range, which is not known beforehand.
//! - *thompson*: the largest draw of `Normal(mean, σ² / n)` (Gaussian Thompson sampling: Agrawal and Goyal,
//!   arXiv:1209.3353, section 2.2, with `σ` of the window).
//!
//! Every policy tries untried arms first. An arm whose measurements are all older than the window is tried again in exploring
//! rounds. Exploration fades as a run proceeds: epsilon and `σ` are multiplied by `min(1, sqrt(window / round))`. This factor is
//! ours: the cost of exploring stays below any share of the rounds, and drifting rewards are still noticed.

use super::tempo::{Offer, Prospect};
use crate::run::draw::draw;
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;

/// Method by which a bandit picks an arm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The best arm, or a random one with probability epsilon.
    #[default]
    EpsilonGreedy,
    /// The arm with the highest upper confidence bound.
    Ucb,
    /// Each arm with the probability that it is the best.
    Thompson,
}

/// One device's choice in one round.
pub(super) struct Question<'a> {
    pub(super) seed: u64,
    pub(super) round: u32,
    pub(super) device: &'a DeviceId,
    pub(super) epsilon: f32,
    pub(super) window: u32,
    /// The arms that may be chosen. The list is never empty.
    pub(super) offers: &'a [Offer],
}

/// An arm that a policy picked.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Proposal {
    pub(super) prospect: Prospect,
    /// True if the arm is not the best known arm.
    pub(super) explores: bool,
    pub(super) reason: &'static str,
}

impl Policy {
    /// Picks one of the question's arms.
    pub(super) fn propose(self, question: &Question<'_>) -> Proposal {
        question.untried().or_else(|| question.forgotten()).unwrap_or_else(|| self.compare(question))
    }

    /// Picks one of the arms with recent measurements, of which there is at least one.
    fn compare(self, question: &Question<'_>) -> Proposal {
        let measured = question.having(Prospect::is_measured);
        let best_known = favourite(&measured);
        let (picked, reason) = match self {
            Self::EpsilonGreedy => match question.random_spare() {
                Some(spare) => (spare, "explores at random"),
                None => (best_known, "best expected gain for the time of the round"),
            },
            Self::Ucb => (question.highest_bound(&measured), "highest upper bound of the expected gain"),
            Self::Thompson => (question.best_sample(&measured), "best in a random draw by expected gain"),
        };
        Proposal { prospect: picked.prospect, explores: picked.prospect.arm != best_known.prospect.arm, reason }
    }
}

impl Question<'_> {
    /// Picks an arm that no device has tried.
    fn untried(&self) -> Option<Proposal> {
        let picked = self.pick(&self.having(|prospect| !prospect.tried), "untried")?;
        Some(Proposal { prospect: picked.prospect, explores: true, reason: "no device has tried it yet" })
    }

    /// Picks an arm without recent measurements, if the round explores or if there is no other arm.
    fn forgotten(&self) -> Option<Proposal> {
        let picked = self.pick(&self.having(|prospect| prospect.tried && !prospect.is_measured()), "forgotten")?;
        let is_alone = self.having(Prospect::is_measured).is_empty();
        (is_alone || explores_together(self.epsilon, Some(self.window), self.seed, self.round)).then_some(Proposal {
            prospect: picked.prospect,
            explores: true,
            reason: "no device has measured it lately",
        })
    }

    /// Draws epsilon-greedy's random arm: with probability epsilon, an arm for which no device has to wait.
    fn random_spare(&self) -> Option<Offer> {
        let spare: Vec<Offer> =
            self.offers.iter().copied().filter(|offer| offer.prospect.is_measured() && offer.is_spare).collect();
        let explores = self.unit("explore") < self.fading() * f64::from(self.epsilon);
        if explores { self.pick(&spare, "arm") } else { None }
    }

    /// Returns the offer with the highest `worth + fading·σ·sqrt(ln N / n)`.
    fn highest_bound(&self, measured: &[Offer]) -> Offer {
        let total: f64 = measured.iter().map(|offer| offer.prospect.measurements).sum();
        let log = libm::log(total.max(1.0));
        best(measured, |offer| {
            offer.worth + self.fading() * offer.deviation * (log / offer.prospect.measurements).sqrt()
        })
    }

    /// Returns the offer with the highest draw of `Normal(worth, (fading·σ)² / n)`.
    fn best_sample(&self, measured: &[Offer]) -> Offer {
        best(measured, |offer| {
            let Prospect { arm, measurements, .. } = offer.prospect;
            offer.worth + self.normal(arm) * self.fading() * offer.deviation / measurements.sqrt()
        })
    }

    /// Draws a standard normal number for an arm, by the method of Box and Muller.
    fn normal(&self, arm: usize) -> f64 {
        let (radius, angle) = (self.unit(&format!("radius {arm}")), self.unit(&format!("angle {arm}")));
        // 1 - radius is above 0.
        (-2.0 * libm::log(1.0 - radius)).sqrt() * libm::cos(std::f64::consts::TAU * angle)
    }

    /// Returns the factor by which exploration fades as the run proceeds.
    fn fading(&self) -> f64 {
        (f64::from(self.window) / f64::from(self.round.max(1))).sqrt().min(1.0)
    }

    fn having(&self, condition: impl Fn(&Prospect) -> bool) -> Vec<Offer> {
        self.offers.iter().copied().filter(|offer| condition(&offer.prospect)).collect()
    }

    /// Draws one of the offers; `None` if there is none.
    fn pick(&self, offers: &[Offer], purpose: &str) -> Option<Offer> {
        let last = offers.len().checked_sub(1)?;
        let at = (self.unit(purpose) * offers.len() as f64) as usize;
        Some(offers[at.min(last)])
    }

    fn unit(&self, purpose: &str) -> f64 {
        draw(self.seed, purpose, self.round, self.device.as_str())
    }
}

/// Returns true if `round` is one of the rounds in which many devices do something slow at the same time.
///
/// A round takes as long as its slowest device, so slow work costs least if many devices do it at once. Such rounds are
/// spread evenly. They make up `share` of all rounds; with a window, their share decays as `share·min(1, sqrt(window / round))`.
pub(super) fn explores_together(share: f32, window: Option<u32>, seed: u64, round: u32) -> bool {
    let passed = |round: u32| {
        let (round, window) = (f64::from(round), window.map_or(f64::INFINITY, f64::from));
        // The sum of the decaying factors of the rounds up to this one.
        let rounds = if round <= window { round } else { 2.0 * (window * round).sqrt() - window };
        draw(seed, "phase", 0, "") + f64::from(share) * rounds
    };
    passed(round).floor() > passed(round.saturating_sub(1)).floor()
}

/// Returns the offer with the most layers among those that are as good as the best one.
///
/// An offer counts as equally good if it takes no longer and its worth is lower by at most one standard error. More layers are
/// better, because a device's own measurement also shows how well it has learned its own mix of labels. That needs few layers,
/// while the global model needs all of them.
pub(super) fn favourite(offers: &[Offer]) -> Offer {
    let top = best(offers, |offer| offer.worth);
    let error = |offer: &Offer| offer.deviation / offer.prospect.measurements.max(1.0).sqrt();
    let is_as_good = |offer: &Offer| offer.seconds <= top.seconds && offer.worth + error(offer) >= top.worth;
    best(offers, |offer| if is_as_good(offer) { offer.prospect.active_layers } else { f64::NEG_INFINITY })
}

/// Returns the offer with the highest score, or the first of them if several are equal. `offers` must not be empty.
pub(super) fn best(offers: &[Offer], score: impl Fn(&Offer) -> f64) -> Offer {
    let mut best = offers[0];
    let mut highest = f64::NEG_INFINITY;
    for offer in offers {
        let score = score(offer);
        if score > highest {
            (best, highest) = (*offer, score);
        }
    }
    best
}
