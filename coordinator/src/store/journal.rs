//! Journal records as they are stored. They have their own data types, so that the engine's types may change without a new layout.
//!
//! A record is encoded as postcard, which stores no names of fields. **Never change, reorder or remove a field or variant here.**
//! To store more, add a variant at the end of [`Record`], keep the old one readable in [`super::convert`], and raise the layout
//! (a migration that changes no record is enough), because an older version must refuse a journal that it cannot read. Settings of
//! a run are stored as JSON text, so a new setting with a default needs no new layout. Layout 4 has the same bytes except for
//! [`Start`], and layout 5 lacks only the last variant.

use serde::{Deserialize, Serialize};
use skiff_protocol::{DeviceId, Digest, RunId};
use std::collections::BTreeMap;

/// Size of a record's checksum in bytes.
pub const CHECKSUM_BYTES: usize = 16;

/// A fact and its time.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Time by the coordinator's clock, in milliseconds.
    pub at_ms: u64,
    /// The fact.
    pub record: Record,
}

/// The facts of a run; see [`crate::run::Record`] for their meaning.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub enum Record {
    RunStarted(Start),
    Resumed,
    TrainingStarted { epoch: u64, assignments: BTreeMap<DeviceId, Assignment> },
    UpdateStored { device: DeviceId, update: Digest, report: Report, distance: f64 },
    DeviceOut { device: DeviceId, reason: String },
    Collected,
    Merged { weights: Digest, moments: Option<Digest> },
    Skipped { reason: String },
    EvaluationStarted { epoch: u64, examples: BTreeMap<DeviceId, u64> },
    Evaluated { devices: u32, examples: u64, correct: u64, loss_sum: f64 },
    RunEnded { stopped: Option<String> },
    PolicySet(Policy),
    Measured { evaluation: Evaluation, metrics: Metrics, left_out: BTreeMap<DeviceId, String> },
    NamedRunStarted { start: Start, name: String },
}

/// A run's first record. `settings` is JSON with the keys of table `[run]` of `coordinator.toml`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Start {
    pub run: RunId,
    pub settings: String,
    pub layers: u32,
    pub pack: Digest,
    pub schema: Digest,
    pub weights: Digest,
    pub task: Option<ModelTask>,
}

/// A model's task, by its name in files, and its labels.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct ModelTask {
    pub task: String,
    pub labels: Vec<String>,
}

/// Sums of an evaluation.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Evaluation {
    pub devices: u32,
    pub examples: u64,
    pub correct: u64,
    pub loss_sum: f64,
}

/// Counts and sums for a task's measures, with fields in the same order as in [`skiff_protocol::metrics`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the protocol's types of the same names say what each value is")]
pub enum Metrics {
    Unknown,
    Classification { classes: Vec<[u64; 3]>, confusion: Option<Vec<(u16, u16, u64)>> },
    Tokens { tokens: u64, correct_tokens: u64, spans: Vec<(String, [u64; 3])> },
    Regression { pairs: u64, sums: [f64; 6] },
    Language { tokens: u64, loss_sum: f64 },
}

/// A device's order in a round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Assignment {
    pub choice: Choice,
    pub share: Share,
}

/// A device's dropout rates and the reason for them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Choice {
    pub rates: Vec<f32>,
    pub most_active: u32,
    pub arm: Option<u32>,
    pub class: String,
    pub explores: bool,
    pub probe_examples: u32,
    pub reason: String,
}

/// The layers that a device shares.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Share {
    pub group: Option<String>,
    pub plan: Plan,
    pub rank: u32,
}

/// A sharing plan, in the form that a device receives.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub enum Plan {
    All,
    LeastImportant { k: u32 },
    MostImportant { k: u32 },
    Fixed { layers: Vec<u32> },
}

/// A device's report on its training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Report {
    pub examples: u64,
    pub tokens: u64,
    pub steps: u32,
    pub mean_loss: f32,
    pub shared_layers: Vec<u32>,
    pub importance: Vec<f32>,
    pub mean_active_layers: f32,
    pub train_ms: u64,
    pub step_ms: f32,
    pub peak_rss_bytes: u64,
    pub probe: Option<Probe>,
}

/// A device's measurement before and after its training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Probe {
    pub examples: u32,
    pub loss_before: f32,
    pub loss_after: f32,
    pub correct_before: u32,
    pub correct_after: u32,
}

/// A sharing policy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Policy {
    pub sharing: Sharing,
    pub groups: Vec<Group>,
}

/// A sharing plan, in the form that an operator writes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub enum Sharing {
    All,
    LeastImportant(u32),
    MostImportant(u32),
    Layers(Vec<u32>),
}

/// Devices with their own sharing plan.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the engine's types of the same names say what each value is")]
pub struct Group {
    pub name: String,
    pub class: Option<String>,
    pub region: Option<String>,
    pub labels: Vec<String>,
    pub sharing: Option<Sharing>,
    pub rank: u32,
}

/// Role of a blob in the run that names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The weights that a run starts from.
    Initial,
    /// Merged weights.
    Weights,
    /// The server optimizer's moments.
    Moments,
    /// A device's update.
    Update,
}

impl Kind {
    /// Returns the word for the kind in the journal.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Weights => "weights",
            Self::Moments => "moments",
            Self::Update => "update",
        }
    }
}

/// A defect of one record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordFault {
    /// The bytes do not match their checksum.
    #[error("its checksum does not match: the disk or another program changed it")]
    Checksum,
    /// The bytes are not a record of this layout.
    #[error("it cannot be decoded")]
    Undecodable,
    /// The record is not in the table.
    #[error("it is missing")]
    Missing,
    /// A value of the record is out of range for this version.
    #[error("it cannot be read by this version: {0}")]
    Unreadable(String),
}

impl Entry {
    /// Returns the record's bytes, and the checksum over its place and bytes.
    #[must_use]
    pub fn encode(&self, run: RunId, at: u64) -> (Vec<u8>, [u8; CHECKSUM_BYTES]) {
        let bytes = postcard::to_stdvec(self).expect("records are plain values, which postcard writes");
        let checksum = checksum(run, at, &bytes);
        (bytes, checksum)
    }

    /// Reads record `at` of `run`.
    ///
    /// # Errors
    /// Bytes that do not match their checksum, or that are not a record.
    pub fn decode(run: RunId, at: u64, bytes: &[u8], written: &[u8]) -> Result<Self, RecordFault> {
        if checksum(run, at, bytes) != written {
            return Err(RecordFault::Checksum);
        }
        match postcard::take_from_bytes(bytes) {
            Ok((entry, [])) => Ok(entry),
            Ok(_) | Err(_) => Err(RecordFault::Undecodable),
        }
    }

    /// Returns the facts about the run at its start, if this is its first record.
    #[must_use]
    pub fn start(&self) -> Option<&Start> {
        if let Record::RunStarted(start) | Record::NamedRunStarted { start, .. } = &self.record {
            Some(start)
        } else {
            None
        }
    }

    /// Returns the blobs that the record names.
    #[must_use]
    pub fn names(&self) -> Vec<(Digest, Kind)> {
        match &self.record {
            Record::RunStarted(start) | Record::NamedRunStarted { start, .. } => {
                vec![(start.weights, Kind::Initial)]
            }
            Record::UpdateStored { update, .. } => vec![(*update, Kind::Update)],
            Record::Merged { weights, moments } => {
                let moments = moments.map(|moments| (moments, Kind::Moments));
                [(*weights, Kind::Weights)].into_iter().chain(moments).collect()
            }
            Record::Resumed
            | Record::TrainingStarted { .. }
            | Record::DeviceOut { .. }
            | Record::Collected
            | Record::Skipped { .. }
            | Record::EvaluationStarted { .. }
            | Record::Evaluated { .. }
            | Record::RunEnded { .. }
            | Record::PolicySet(_)
            | Record::Measured { .. } => Vec::new(),
        }
    }
}

/// Returns the first 16 bytes of blake3 over the record's place and bytes, so that it also detects a record in the wrong place.
pub(super) fn checksum(run: RunId, at: u64, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"skiff journal record").update(&run.0.to_le_bytes()).update(&at.to_le_bytes()).update(bytes);
    let mut short = [0; CHECKSUM_BYTES];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    short
}
