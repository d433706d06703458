//! Makes one decision: the choices for all devices of a round, in the steps that the doc of the parent module lists.

use super::choice::Choice;
use super::knowledge::Knowledge;
use super::limits::{Facts, Limits};
use super::options::{Finder, Options};
use super::policy::{Proposal, Question, best, explores_together, favourite};
use super::rates::DropoutRates;
use super::safety::Permit;
use super::settings::Bandit;
use super::tempo::{Offer, Prospect, Run, Tempo};
use crate::run::draw::draw;
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// The choices of one round, while they are being made.
pub(super) struct Decision<'a> {
    pub(super) known: &'a Knowledge,
    pub(super) bandit: &'a Bandit,
    pub(super) round: u32,
    /// Rates of each arm in this round.
    pub(super) arm_rates: &'a [DropoutRates],
}

/// A device and the arm that the policy wants for it.
struct Proposed<'a> {
    options: &'a Options<'a>,
    proposal: Proposal,
}

/// A device and the arm that it gets.
struct Selected<'a> {
    options: &'a Options<'a>,
    prospect: Prospect,
    explores: bool,
    reason: String,
}

impl Decision<'_> {
    /// Chooses for every device of the round.
    pub(super) fn choose(&self, devices: &BTreeMap<DeviceId, (Facts, Limits)>) -> BTreeMap<DeviceId, Choice> {
        let options = self.options(devices);
        let tempo = self.tempo(&options);
        let proposed = self.propose(&options, tempo);
        let permit = self.permit(&proposed, devices.len());
        let tempo = tempo_with_explorers(tempo, &proposed, &permit);
        let selected: Vec<Selected<'_>> =
            proposed.into_iter().map(|proposed| self.select(proposed, &permit, tempo)).collect();
        let mut choices = self.choices(selected, tempo);
        for options in options.iter().filter(|options| options.prospects.is_empty()) {
            let choice = self.known.least_dropout(options.facts, options.limits);
            choices.insert(options.device.clone(), choice);
        }
        choices
    }

    /// Finds the arms within the limits of each device.
    fn options<'d>(&'d self, devices: &'d BTreeMap<DeviceId, (Facts, Limits)>) -> Vec<Options<'d>> {
        let finder = Finder::new(self.known, self.bandit, self.arm_rates, devices);
        devices.iter().map(|(device, (facts, limits))| finder.options(device, facts, limits)).collect()
    }

    /// Plans the duration of the round.
    fn tempo(&self, options: &[Options<'_>]) -> Tempo {
        if self.known.settings.asynchronous {
            return Tempo::asynchronous();
        }
        let runs: Vec<Vec<Run>> = options.iter().map(Options::runs).collect();
        Tempo::synchronous(&runs, self.known.learned.typical_gain())
    }

    /// Lets the policy propose an arm for every device that has an arm within its limits.
    fn propose<'d>(&self, options: &'d [Options<'d>], tempo: Tempo) -> Vec<Proposed<'d>> {
        let with_arms = options.iter().filter(|options| !options.prospects.is_empty());
        with_arms.map(|options| Proposed { options, proposal: self.proposal(options, tempo) }).collect()
    }

    fn proposal(&self, options: &Options<'_>, tempo: Tempo) -> Proposal {
        let Bandit { policy, epsilon, window, .. } = *self.bandit;
        policy.propose(&Question {
            seed: self.known.settings.seed,
            round: self.round,
            device: options.device,
            epsilon,
            window,
            offers: &options.offers(tempo),
        })
    }

    /// Decides, for safety, which of the devices that want to explore may do so.
    fn permit<'d>(&'d self, proposed: &[Proposed<'d>], devices: usize) -> Permit<'d> {
        let most = (f64::from(self.bandit.explorers) * devices as f64).ceil() as usize;
        let willing = proposed.iter().filter(|one| one.proposal.explores).map(|one| one.options.device);
        self.known.safety.permit(willing, most, self.known.settings.seed, self.round)
    }

    /// Gives a device the proposed arm, or the best known arm if the device wants to explore but may not.
    fn select<'d>(&self, proposed: Proposed<'d>, permit: &Permit<'_>, tempo: Tempo) -> Selected<'d> {
        let Proposed { options, proposal } = proposed;
        let explores = proposal.explores && permit.allows(options.device);
        let prospect = if explores { proposal.prospect } else { safe_arm(&options.offers(tempo)).prospect };
        let why = match proposal.explores && !explores {
            true => permit.refusal(options.device),
            false => proposal.reason.to_owned(),
        };
        Selected { options, prospect, explores, reason: self.reason(&prospect, &why, tempo) }
    }

    /// Writes the reason of a choice: the arm, why it was chosen, the time of the round, and the expected gain.
    fn reason(&self, prospect: &Prospect, why: &str, tempo: Tempo) -> String {
        let gain = prospect.is_measured().then(|| {
            let gain = self.bandit.gain.unit(self.known.settings.measure).describe(prospect.run.gain);
            format!("expected gain {gain} per round, from {:.0} measurements", prospect.measurements)
        });
        let details: Vec<String> = tempo.describe().into_iter().chain(gain).collect();
        let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
        format!("{}: {why}{details}", self.known.arms[prospect.arm])
    }

    /// Completes the choices: adds which devices measure their gain.
    fn choices(&self, selected: Vec<Selected<'_>>, tempo: Tempo) -> BTreeMap<DeviceId, Choice> {
        let all_measure = self.all_measure(&selected, tempo);
        let mut choices = BTreeMap::new();
        for one in selected {
            let measures = one.explores || all_measure || self.measures_early(&one, tempo);
            let probe_examples = if measures { self.bandit.probe_examples } else { 0 };
            let Selected { options: Options { device, facts, limits, .. }, prospect, explores, reason } = one;
            let choice = Choice {
                rates: self.arm_rates[prospect.arm].clone(),
                most_active: limits.most_active,
                arm: Some(prospect.arm as u32),
                class: facts.class.clone(),
                explores,
                probe_examples,
                reason: limits.append_to(reason),
            };
            choices.insert((*device).clone(), choice);
        }
        choices
    }

    /// Returns true if all devices measure in this round. They measure together because no device has time to do so while others
    /// train, so that the fleet waits only once.
    fn all_measure(&self, selected: &[Selected<'_>], tempo: Tempo) -> bool {
        !selected.iter().any(|one| one.has_time_to_measure(tempo))
            && explores_together(self.bandit.measured, None, self.known.settings.seed, self.round)
    }

    /// Returns true if a device finishes early and is drawn to measure its gain.
    fn measures_early(&self, selected: &Selected<'_>, tempo: Tempo) -> bool {
        let drawn = draw(self.known.settings.seed, "measure", self.round, selected.options.device.as_str());
        selected.has_time_to_measure(tempo) && drawn < f64::from(self.bandit.measured)
    }
}

impl Selected<'_> {
    fn has_time_to_measure(&self, tempo: Tempo) -> bool {
        tempo.has_time_for(self.prospect.run, self.options.probe_seconds)
    }
}

/// Adds the time of the explorers to the plan, because the other devices may use it too.
fn tempo_with_explorers(tempo: Tempo, proposed: &[Proposed<'_>], permit: &Permit<'_>) -> Tempo {
    let explorers = proposed.iter().filter(|one| permit.allows(one.options.device));
    explorers.fold(tempo, |tempo, explorer| tempo.with(explorer.proposal.prospect.run))
}

/// Returns the best of the measured arms; the one with the least dropout if none was measured.
fn safe_arm(offers: &[Offer]) -> Offer {
    let measured: Vec<Offer> = offers.iter().copied().filter(|offer| offer.prospect.is_measured()).collect();
    match measured.is_empty() {
        true => best(offers, |offer| offer.prospect.active_layers),
        false => favourite(&measured),
    }
}
