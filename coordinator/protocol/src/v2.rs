//! Layouts of version 2, for the messages that version 3 changed. They never change, because devices in the field write and read
//! them.
//!
//! [`crate::messages`] always holds the newest types. Fields that version 2 lacks are left out when a message is written,
//! and get a default when one is read:
//!
//! | field | written to version 2 | read from version 2 |
//! |---|---|---|
//! | [`messages::Birth::speaks`] | left out | exactly version 2 |
//! | [`messages::EvaluationReport::metrics`] | left out | [`TaskMetrics::Unknown`] |

use crate::messages::{self, BootId, Digest, Machine, Place, RunId, StepMemory};
use crate::metrics::TaskMetrics;
use crate::version::{Version, VersionRange};
use serde::{Deserialize, Serialize};

/// A [`messages::Birth`] without a range of versions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the newest type documents the fields")]
pub struct Birth {
    pub boot: BootId,
    pub agent_version: String,
    pub pack: Digest,
    pub train_examples: u64,
    pub test_examples: u64,
    pub machine: Machine,
    pub place: Place,
    pub memory: StepMemory,
}

/// A [`messages::Answer`] with an [`Outcome`] of this version.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the newest type documents the fields")]
pub struct Answer {
    pub boot: BootId,
    pub run: RunId,
    pub round: u32,
    pub epoch: u64,
    pub outcome: Outcome,
}

/// A [`messages::Outcome`] with an [`EvaluationReport`] of this version.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the newest type documents the variants")]
pub enum Outcome {
    Accepted { has_weights: bool },
    Refused { reason: String },
    Evaluated(EvaluationReport),
    Stopped,
}

/// A [`messages::EvaluationReport`] without the metrics of the task.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the newest type documents the fields")]
pub struct EvaluationReport {
    pub examples: u64,
    pub correct: u64,
    pub loss_sum: f64,
    pub evaluate_ms: u64,
    pub peak_rss_bytes: u64,
}

impl From<&messages::Birth> for Birth {
    fn from(birth: &messages::Birth) -> Self {
        let messages::Birth {
            boot,
            agent_version,
            pack,
            train_examples,
            test_examples,
            machine,
            place,
            memory,
            speaks: _,
        } = birth.clone();
        Self { boot, agent_version, pack, train_examples, test_examples, machine, place, memory }
    }
}

impl From<Birth> for messages::Birth {
    fn from(birth: Birth) -> Self {
        let Birth { boot, agent_version, pack, train_examples, test_examples, machine, place, memory } = birth;
        let speaks = VersionRange::only(Version::V2);
        Self { boot, agent_version, pack, train_examples, test_examples, machine, place, memory, speaks }
    }
}

impl From<&messages::Answer> for Answer {
    fn from(answer: &messages::Answer) -> Self {
        let messages::Answer { boot, run, round, epoch, ref outcome } = *answer;
        Self { boot, run, round, epoch, outcome: outcome.into() }
    }
}

impl From<Answer> for messages::Answer {
    fn from(answer: Answer) -> Self {
        let Answer { boot, run, round, epoch, outcome } = answer;
        Self { boot, run, round, epoch, outcome: outcome.into() }
    }
}

impl From<&messages::Outcome> for Outcome {
    fn from(outcome: &messages::Outcome) -> Self {
        match outcome {
            messages::Outcome::Accepted { has_weights } => Self::Accepted { has_weights: *has_weights },
            messages::Outcome::Refused { reason } => Self::Refused { reason: reason.clone() },
            messages::Outcome::Evaluated(report) => Self::Evaluated(report.into()),
            messages::Outcome::Stopped => Self::Stopped,
        }
    }
}

impl From<Outcome> for messages::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted { has_weights } => Self::Accepted { has_weights },
            Outcome::Refused { reason } => Self::Refused { reason },
            Outcome::Evaluated(report) => Self::Evaluated(report.into()),
            Outcome::Stopped => Self::Stopped,
        }
    }
}

impl From<&messages::EvaluationReport> for EvaluationReport {
    fn from(report: &messages::EvaluationReport) -> Self {
        let messages::EvaluationReport { examples, correct, loss_sum, evaluate_ms, peak_rss_bytes, metrics: _ } =
            *report;
        Self { examples, correct, loss_sum, evaluate_ms, peak_rss_bytes }
    }
}

impl From<EvaluationReport> for messages::EvaluationReport {
    fn from(report: EvaluationReport) -> Self {
        let EvaluationReport { examples, correct, loss_sum, evaluate_ms, peak_rss_bytes } = report;
        Self { examples, correct, loss_sum, evaluate_ms, peak_rss_bytes, metrics: TaskMetrics::Unknown }
    }
}
