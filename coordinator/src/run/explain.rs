//! Why each device was told what it was told, and what came of it, from a run's journal.

use crate::run::configurator::{Expected, expected_active};
use crate::run::sharing::Share;
use crate::run::{Assignment, Entry, Ledger, OutOfPlace, Record};
use serde::Serialize;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::TrainReport;
use std::fmt;

/// One device's order in one round.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Explained {
    /// The round, from 1.
    pub round: u32,
    /// Whose.
    pub device: DeviceId,
    /// The class whose experience its choice comes from and adds to; may be empty.
    pub class: String,
    /// What was chosen.
    pub rates: Vec<f32>,
    /// So many layers run on average.
    pub expected_active: f64,
    /// So many run in any step at the most.
    pub most_active: u32,
    /// Whether it was chosen to learn.
    pub explores: bool,
    /// Why: the arm, what it is worth, and the limits that bound the choice.
    pub reason: String,
    /// What every arm was expected to gain when it was chosen; empty where rates are fixed.
    pub arms: Vec<Expected>,
    /// Which layers it shares, and as which group.
    #[serde(flatten)]
    pub share: Share,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an order.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An update.
    Delivered {
        /// From the order to the stored update.
        seconds: f64,
        /// Mean loss over the steps.
        mean_loss: f32,
        /// Layers that ran, on average.
        mean_active: f32,
        /// By the run's measure, on the device's own examples; `None` where it was not asked to measure.
        gain: Option<f64>,
        /// Distance of the update from the weights that it started from.
        distance: f64,
    },
    /// Nothing, and why.
    Out(String),
    /// Nothing that was told.
    Open,
}

/// Tells every order of a run, or those of one device or one round.
///
/// # Errors
/// A journal whose records do not follow from one another.
pub fn explain(entries: &[Entry], device: Option<&DeviceId>, round: Option<u32>) -> Result<Vec<Explained>, OutOfPlace> {
    let mut told: Vec<Explained> = Vec::new();
    Ledger::retold(entries, &mut |ledger, entry| {
        if let Record::TrainingStarted { assignments, .. } = &entry.record {
            let of = |(device, assignment)| Explained::of(ledger, device, assignment);
            told.extend(assignments.iter().map(of));
        } else if let Some((device, outcome)) = outcome(ledger, entry) {
            // Asynchronous devices answer to an order of an earlier round.
            if let Some(told) = told.iter_mut().rev().find(|told| told.device == *device) {
                told.outcome = outcome;
            }
        }
    })?;
    let is_wanted = |told: &Explained| {
        device.is_none_or(|device| told.device == *device) && round.is_none_or(|round| told.round == round)
    };
    told.retain(is_wanted);
    Ok(told)
}

fn outcome<'a>(ledger: &Ledger, entry: &'a Entry) -> Option<(&'a DeviceId, Outcome)> {
    match &entry.record {
        Record::UpdateStored { device, report, distance, .. } => {
            let ordered_ms = ledger.order_of(device).map_or(entry.at_ms, |ordered| ordered.ordered_ms);
            Some((device, delivered(report, *distance, entry.at_ms.saturating_sub(ordered_ms), ledger)))
        }
        Record::DeviceOut { device, reason } => Some((device, Outcome::Out(reason.clone()))),
        Record::RunStarted(_)
        | Record::Resumed
        | Record::TrainingStarted { .. }
        | Record::Collected
        | Record::Merged(_)
        | Record::Skipped { .. }
        | Record::EvaluationStarted { .. }
        | Record::Evaluated(_)
        | Record::RunEnded { .. }
        | Record::PolicySet(_) => None,
    }
}

fn delivered(report: &TrainReport, distance: f64, took_ms: u64, ledger: &Ledger) -> Outcome {
    Outcome::Delivered {
        seconds: took_ms as f64 / 1000.0,
        mean_loss: report.mean_loss,
        mean_active: report.mean_active_layers,
        gain: report.probe.as_ref().map(|probe| ledger.configurator.gain(probe)),
        distance,
    }
}

impl Explained {
    fn of(ledger: &Ledger, device: &DeviceId, Assignment { choice, share }: &Assignment) -> Self {
        Self {
            round: ledger.round,
            device: device.clone(),
            class: choice.class.clone(),
            rates: choice.rates.clone(),
            expected_active: expected_active(&choice.rates),
            most_active: choice.most_active,
            explores: choice.explores,
            reason: choice.reason.clone(),
            arms: ledger.configurator.expected(device, &choice.class),
            share: share.clone(),
            outcome: Outcome::Open,
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.class.is_empty() { String::new() } else { format!(" ({})", self.class) };
        writeln!(f, "round {}, {}{class}", self.round, self.device)?;
        let explores = if self.explores { ", to learn" } else { "" };
        writeln!(f, "  chosen{explores}: {}", self.reason)?;
        for Expected { arm, gain, measurements } in &self.arms {
            match gain {
                Some(gain) => writeln!(f, "    {arm}: gains {gain:.4}, from {measurements} measurements")?,
                None => writeln!(f, "    {arm}: not measured lately")?,
            }
        }
        let rates: Vec<String> = self.rates.iter().map(|rate| format!("{rate:.2}")).collect();
        let (expected, most, layers) = (self.expected_active, self.most_active, self.rates.len());
        writeln!(f, "  rates: {}", rates.join(" "))?;
        writeln!(f, "  layers: {expected:.1} of {layers} on average, at most {most}")?;
        writeln!(f, "  shares: {}", self.share)?;
        match &self.outcome {
            Outcome::Delivered { seconds, mean_loss, mean_active, gain, distance } => {
                write!(f, "  delivered after {seconds:.2} s: loss {mean_loss:.3}, {mean_active:.1} layers on average")?;
                if let Some(gain) = gain {
                    write!(f, ", gain {gain:.4}")?;
                }
                writeln!(f, ", moved by {distance:.3}")
            }
            Outcome::Out(reason) => writeln!(f, "  out of the round: {reason}"),
            Outcome::Open => writeln!(f, "  nothing came of it"),
        }
    }
}
