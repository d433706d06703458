//! Explains each order of a run from its journal: what a device had to do, the reason, and the result.

use crate::run::configurator::{Expected, GainUnit};
use crate::run::{Assignment, Entry, Ledger, OutOfPlace, Record};
use serde::Serialize;
use skiff_api::policy::Share;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::TrainReport;
use std::fmt;

/// One device's order in one round.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Explained {
    /// Round, from 1.
    pub round: u32,
    /// Device that was ordered to train.
    pub device: DeviceId,
    /// Class of devices that share their experience; may be empty.
    pub class: String,
    /// Dropout rate of each layer.
    pub rates: Vec<f32>,
    /// Number of layers that run on average.
    pub expected_active: f64,
    /// Largest number of layers that run in any step.
    pub most_active: u32,
    /// True if the rates were chosen in order to learn about them.
    pub explores: bool,
    /// Reason in words: the configuration, its expected gain, and the limits of the device.
    pub reason: String,
    /// Unit of all gains.
    pub measure: GainUnit,
    /// Expected gain of every configuration when the choice was made; empty if rates are fixed.
    pub arms: Vec<Expected>,
    /// Layers that the device shares, and its group.
    #[serde(flatten)]
    pub share: Share,
    /// Result of the order.
    pub outcome: Outcome,
}

/// Result of an order.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The device delivered an update.
    Delivered {
        /// Seconds from the order to the stored update.
        seconds: f64,
        /// Mean loss over the steps.
        mean_loss: f32,
        /// Number of layers that ran, on average.
        mean_active: f32,
        /// Gain on the device's own examples, by the run's measure; `None` if the device was not asked to measure it.
        gain: Option<f64>,
        /// Distance of the update from the weights it started from.
        distance: f64,
    },
    /// The device left the round, for this reason.
    Out(String),
    /// The order has no result yet, or none that reached the coordinator.
    Open,
}

/// Explains every order of a run, or those of one device or one round.
///
/// # Errors
/// A journal with a record that is out of place.
pub fn explain(entries: &[Entry], device: Option<&DeviceId>, round: Option<u32>) -> Result<Vec<Explained>, OutOfPlace> {
    let mut explained: Vec<Explained> = Vec::new();
    Ledger::retold(entries, &mut |ledger, entry| {
        if let Record::TrainingStarted { assignments, .. } = &entry.record {
            let ordered = |(device, assignment)| Explained::ordered(ledger, device, assignment);
            explained.extend(assignments.iter().map(ordered));
        } else if let Some((device, outcome)) = outcome(ledger, entry) {
            // An asynchronous device may answer an order of an earlier round.
            if let Some(last) = explained.iter_mut().rev().find(|order| order.device == *device) {
                last.outcome = outcome;
            }
        }
    })?;
    explained.retain(|order| {
        device.is_none_or(|device| order.device == *device) && round.is_none_or(|round| order.round == round)
    });
    Ok(explained)
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
    fn ordered(ledger: &Ledger, device: &DeviceId, Assignment { choice, share }: &Assignment) -> Self {
        Self {
            round: ledger.round,
            device: device.clone(),
            class: choice.class.clone(),
            rates: choice.rates.to_vec(),
            expected_active: choice.rates.expected_active(),
            most_active: choice.most_active,
            explores: choice.explores,
            reason: choice.reason.clone(),
            measure: ledger.configurator.gain_unit(),
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
        let explores = if self.explores { " (exploring)" } else { "" };
        writeln!(f, "  choice{explores}: {}", self.reason)?;
        if !self.arms.is_empty() {
            writeln!(f, "  expected gain of each configuration in a round:")?;
        }
        for Expected { arm, gain, measurements } in &self.arms {
            match gain {
                Some(gain) => {
                    let gain = self.measure.describe(*gain);
                    writeln!(f, "    {arm}: {gain}, from {measurements} measurements")?;
                }
                None => writeln!(f, "    {arm}: unknown, no recent measurement")?,
            }
        }
        let rates: Vec<String> = self.rates.iter().map(|rate| format!("{rate:.2}")).collect();
        let (expected, most, layers) = (self.expected_active, self.most_active, self.rates.len());
        writeln!(f, "  dropout rates: {}", rates.join(" "))?;
        writeln!(f, "  active layers: {expected:.1} of {layers} on average, at most {most} in a step")?;
        writeln!(f, "  shares: {}", self.share)?;
        match &self.outcome {
            Outcome::Delivered { seconds, mean_loss, mean_active, gain, distance } => {
                write!(
                    f,
                    "  result: update after {seconds:.2} s, mean loss {mean_loss:.3}, {mean_active:.1} active layers on average"
                )?;
                if let Some(gain) = gain {
                    write!(f, ", measured gain {}", self.measure.describe(*gain))?;
                }
                writeln!(f, ", weights moved by {distance:.3}")
            }
            Outcome::Out(reason) => writeln!(f, "  result: left the round: {reason}"),
            Outcome::Open => writeln!(f, "  result: none yet"),
        }
    }
}
