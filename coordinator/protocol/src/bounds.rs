//! Bounds on the fields of messages, beyond what their types enforce.
//!
//! The reader limits lists while it reads them (`limits`). All other bounds are checked afterwards. Settings (rates, learning
//! rate, importance) must be finite and in range. Measurements (losses, temperatures) may be any number; the reader decides what
//! to do with them.

use crate::limits::{LABELS, LAYERS, NAME_BYTES, SENSORS, TEXT_BYTES};
use crate::message::Message;
use crate::messages::{
    Answer, Birth, Command, EvaluateOrder, EvaluationReport, Order, Outcome, Probe, SharingPlan, Telemetry, TrainOrder,
    TrainReport,
};
use crate::transfer::{CHUNK_BYTES, Held, MAX_CHUNKS, MAX_TRANSFER_BYTES, Offer, Purpose, TransferMessage};
use crate::version::Version;

/// Returns the name of the first field that breaks its bound in a message of `version`.
pub(crate) fn check(message: &Message, version: Version) -> Result<(), &'static str> {
    match message {
        Message::Birth(birth) => check_birth(birth, version),
        Message::Telemetry(sample) => check_telemetry(sample),
        Message::Answer(answer) => check_answer(answer),
        Message::Command(command) => check_command(command),
        Message::Transfer(message) => check_transfer(message),
        Message::Announcement(announcement) => within(announcement.speaks.is_sound(), "speaks"),
        Message::Gone(_) | Message::Presence(_) => Ok(()),
    }
}

fn check_birth(birth: &Birth, version: Version) -> Result<(), &'static str> {
    within(birth.speaks.is_sound() && birth.speaks.contains(version.number()), "speaks")?;
    within(birth.agent_version.len() <= NAME_BYTES, "agent_version")?;
    within(birth.machine.arch.len() <= NAME_BYTES, "machine.arch")?;
    within(birth.machine.os.len() <= TEXT_BYTES, "machine.os")?;
    within(birth.place.class.len() <= NAME_BYTES, "place.class")?;
    within(birth.place.region.len() <= NAME_BYTES, "place.region")?;
    let labels = &birth.place.labels;
    within(labels.len() <= LABELS && labels.iter().all(|label| label.len() <= NAME_BYTES), "place.labels")
}

fn check_telemetry(sample: &Telemetry) -> Result<(), &'static str> {
    within(sample.temperatures.len() <= SENSORS, "temperatures")?;
    within(sample.temperatures.iter().all(|(name, _)| name.len() <= NAME_BYTES), "temperatures")
}

fn check_answer(answer: &Answer) -> Result<(), &'static str> {
    match &answer.outcome {
        Outcome::Refused { reason } => within(reason.len() <= TEXT_BYTES, "reason"),
        Outcome::Evaluated(report) => check_evaluation(report),
        Outcome::Accepted { .. } | Outcome::Stopped => Ok(()),
    }
}

fn check_evaluation(report: &EvaluationReport) -> Result<(), &'static str> {
    within(report.correct <= report.examples, "correct")?;
    report.metrics.check(report.examples)
}

fn check_command(command: &Command) -> Result<(), &'static str> {
    match &command.order {
        Order::Train(order) => check_train(order),
        Order::Evaluate(order) => check_evaluate(order),
        Order::Stop => Ok(()),
    }
}

fn check_train(order: &TrainOrder) -> Result<(), &'static str> {
    let layers = order.rates.len();
    within((1..=LAYERS).contains(&layers), "rates")?;
    within(order.rates.iter().all(|rate| (0.0..=1.0).contains(rate)), "rates")?;
    within(order.most_active >= 1, "most_active")?;
    within(order.steps >= 1, "steps")?;
    within((1..=4096).contains(&order.batch), "batch")?;
    within((2..=65_536).contains(&order.max_tokens), "max_tokens")?;
    within(order.learning_rate.is_finite() && order.learning_rate > 0.0, "learning_rate")?;
    within(order.proximal.is_finite() && order.proximal >= 0.0, "proximal")?;
    within(order.deadline_ms >= 1, "deadline_ms")?;
    match &order.sharing {
        SharingPlan::Fixed { layers: shared } => within(ascending(shared, layers), "sharing.layers"),
        SharingPlan::All | SharingPlan::LeastImportant { .. } | SharingPlan::MostImportant { .. } => Ok(()),
    }
}

fn check_evaluate(order: &EvaluateOrder) -> Result<(), &'static str> {
    within((1..=4096).contains(&order.batch), "batch")?;
    within((2..=65_536).contains(&order.max_tokens), "max_tokens")?;
    within(order.deadline_ms >= 1, "deadline_ms")
}

fn check_transfer(message: &TransferMessage) -> Result<(), &'static str> {
    match message {
        TransferMessage::Offer(offer) => check_offer(offer),
        TransferMessage::Grant { held, window } => {
            check_held(held)?;
            within(*window >= 1, "window")
        }
        TransferMessage::Chunk { index, bytes } => {
            within(*index < MAX_CHUNKS, "index")?;
            within((1..=CHUNK_BYTES).contains(&bytes.len()), "bytes")
        }
        TransferMessage::Progress { held } => check_held(held),
        TransferMessage::Refused { reason } => within(reason.len() <= TEXT_BYTES, "reason"),
        TransferMessage::Done => Ok(()),
    }
}

fn check_offer(offer: &Offer) -> Result<(), &'static str> {
    within((1..=MAX_TRANSFER_BYTES).contains(&offer.total_bytes), "total_bytes")?;
    match &offer.purpose {
        Purpose::Weights { .. } => Ok(()),
        Purpose::Update { report, .. } => check_report(report),
    }
}

fn check_report(report: &TrainReport) -> Result<(), &'static str> {
    within(report.shared_layers.len() <= LAYERS && ascending(&report.shared_layers, LAYERS), "shared_layers")?;
    within(report.importance.len() <= LAYERS, "importance")?;
    within(report.importance.iter().all(|norm| norm.is_finite() && *norm >= 0.0), "importance")?;
    within(report.probe.is_none_or(|probe| fits(&probe)), "probe")
}

fn fits(probe: &Probe) -> bool {
    let finite = probe.loss_before.is_finite() && probe.loss_after.is_finite();
    finite && probe.correct_before <= probe.examples && probe.correct_after <= probe.examples
}

fn check_held(held: &Held) -> Result<(), &'static str> {
    within(held.0.len() <= (MAX_CHUNKS as usize).div_ceil(8), "held")
}

fn ascending(layers: &[u32], below: usize) -> bool {
    layers.is_sorted_by(|a, b| a < b) && layers.last().is_none_or(|last| (*last as usize) < below)
}

fn within(holds: bool, field: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(field) }
}
