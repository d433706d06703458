//! What the two sides say to each other.
//!
//! A device speaks with [`Birth`], [`Gone`], [`Telemetry`] and [`Answer`]; the coordinator with [`Command`] and
//! [`Presence`]; both with [`crate::transfer::TransferMessage`]. The types are those of the newest version of the
//! protocol; what an older version had instead is in [`crate::v2`].
//!
//! **Delivery.** MQTT's acknowledgement is the broker's, not the receiver's. So the coordinator repeats a command until
//! it is answered, and a device answers a repeated command again from what it has stored. Every command carries an
//! *epoch* that grows with each new decision of a run: a larger epoch supersedes what the device was doing, an equal
//! one is a repetition, a smaller one is late and ignored. Epochs begin anew in every run: a command of a run that started
//! before the newest one that the device obeyed is late, whatever its epoch.

use crate::bounds;
use crate::metrics::TaskMetrics;
use crate::version::VersionRange;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A blake3 digest: the name of a blob, a pack or a schema.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads the 64 hexadecimal digits that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Names one run of federated training. Drawn by the coordinator's shell when the run starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names one life of a process; a new one is drawn at every start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BootId(pub u64);

/// The device is here (retained): what it is and what it can do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Birth {
    /// This life of the agent.
    pub boot: BootId,
    /// Version of the agent, `major.minor.patch`; at most 64 bytes.
    pub agent_version: String,
    /// Digest of the pack's manifest; the coordinator runs only devices that hold its own pack.
    pub pack: Digest,
    /// Examples the device can train on.
    pub train_examples: u64,
    /// Examples the device can evaluate on.
    pub test_examples: u64,
    /// What the machine is.
    pub machine: Machine,
    /// What its owner says of it.
    pub place: Place,
    /// What it predicts of its memory.
    pub memory: StepMemory,
    /// Versions of the protocol that the agent speaks; the version of this message is one of them.
    pub speaks: VersionRange,
}

/// What a device's owner says of it: rules of the coordinator's go by it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// The kind of device, `jetson-nx` for instance: those of one class are taken to be alike. May be empty; at most 64 bytes.
    pub class: String,
    /// Where it is. May be empty; at most 64 bytes.
    pub region: String,
    /// Anything else, at most 16 of at most 64 bytes.
    #[serde(deserialize_with = "bounds::at_most::<{ bounds::LABELS }, _, _>")]
    pub labels: Vec<String>,
}

/// The length of the texts that [`StepMemory`] speaks of.
pub const REFERENCE_TOKENS: u64 = 128;

/// A device's memory, and its prediction of what training takes at the least: in its leanest way, by texts of [`REFERENCE_TOKENS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StepMemory {
    /// What training may take in all, in bytes; 0: nothing is said, nothing is limited.
    pub limit_bytes: u64,
    /// What the process takes whatever it does, in bytes.
    pub process_bytes: u64,
    /// What a step takes beside its layers, in bytes.
    pub step_bytes: u64,
    /// What each active layer adds, in bytes.
    pub layer_bytes: u64,
}

/// The hardware and system under an agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// `x86_64`, `aarch64`, ...; at most 64 bytes.
    pub arch: String,
    /// The system's name and version in words; at most 200 bytes.
    pub os: String,
    /// Logical processors.
    pub cores: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
}

/// The device left, in order or by its last will (retained, on the birth's topic).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Gone {
    /// The life that ended; a `Gone` of an older life than the known one is ignored.
    pub boot: BootId,
    /// True where the agent stopped in order, false for a last will.
    pub clean: bool,
}

/// What an agent is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AgentState {
    /// Connected, no work.
    Idle,
    /// Waiting for weights.
    Fetching,
    /// In training steps.
    Training,
    /// Evaluating.
    Evaluating,
    /// Sending its update.
    Uploading,
}

/// A sample of the device's resources (QoS 0; gaps show in `sequence`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Telemetry {
    /// This life of the agent.
    pub boot: BootId,
    /// Counts samples of this life from 0.
    pub sequence: u64,
    /// Since the agent started, in milliseconds.
    pub uptime_ms: u64,
    /// What the agent is doing.
    pub state: AgentState,
    /// CPU use of the whole machine, 0 to 100.
    pub cpu_percent: f32,
    /// CPU use of the agent's process, 100 for one core.
    pub agent_cpu_percent: f32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Memory that could be had without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// Load average over a minute.
    pub load_1m: f32,
    /// Sensors: name (at most 64 bytes) and degrees Celsius; at most 16.
    #[serde(deserialize_with = "bounds::at_most::<{ bounds::SENSORS }, _, _>")]
    pub temperatures: Vec<(String, f32)>,
    /// The battery, where there is one.
    pub battery: Option<Battery>,
    /// Resident memory of the agent, in bytes.
    pub agent_rss_bytes: u64,
    /// Largest resident memory of the agent so far, in bytes.
    pub agent_peak_rss_bytes: u64,
    /// The work in hand, where there is any.
    pub work: Option<WorkSample>,
}

/// A battery.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Battery {
    /// What is left, 0 to 100.
    pub percent: f32,
    /// False while the device lives on it.
    pub charging: bool,
}

/// How training goes at the moment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkSample {
    /// The run.
    pub run: RunId,
    /// The round in it.
    pub round: u32,
    /// Steps done in this round.
    pub step: u32,
    /// Steps ordered for this round.
    pub steps: u32,
    /// The last step's time in milliseconds.
    pub step_ms: f32,
    /// Tokens of text per second over the last step.
    pub tokens_per_second: f32,
    /// Layers that were active in the last step.
    pub active_layers: u32,
    /// The last step's loss.
    pub loss: f32,
}

/// Something the coordinator wants done.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// The run.
    pub run: RunId,
    /// When the run started, by the coordinator's clock; orders runs as `epoch` orders the decisions of one.
    pub started_ms: u64,
    /// The round in it, from 1; 0 for the evaluation before the first round.
    pub round: u32,
    /// Orders decisions within a run; see the module's text.
    pub epoch: u64,
    /// What to do.
    pub order: Order,
}

/// The kinds of command.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Train and hand in an update.
    Train(TrainOrder),
    /// Evaluate and report.
    Evaluate(EvaluateOrder),
    /// Drop what this run has you doing; the answer is [`Outcome::Stopped`].
    Stop,
}

/// One device's share of a round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TrainOrder {
    /// The global weights to start from (a safetensors blob of every trainable tensor).
    pub weights: Digest,
    /// Digest of the schema of the trainable tensors.
    pub schema: Digest,
    /// The run's seed; masks and batches are drawn from (seed, device, round, step).
    pub seed: u64,
    /// Dropout rate of each layer, 0 to 1: the probability that a batch skips it; 1 to 512 layers.
    #[serde(deserialize_with = "bounds::at_most::<{ bounds::LAYERS }, _, _>")]
    pub rates: Vec<f32>,
    /// So many layers run in any step at the most; at least 1.
    pub most_active: u32,
    /// Optimizer steps; at least 1.
    pub steps: u32,
    /// Examples in a step, 1 to 4096.
    pub batch: u32,
    /// Longer texts are cut to this many tokens, 2 to 65,536.
    pub max_tokens: u32,
    /// AdamW's learning rate; finite, above 0.
    pub learning_rate: f32,
    /// FedProx's factor (Li et al., arXiv:1812.06127): so many times the distance from the weights it started from is added to
    /// a gradient. Finite, 0 or more.
    pub proximal: f32,
    /// The rank that LoRA has on this device; 0, or more than the pack's: the pack's.
    pub rank: u32,
    /// Examples on which the device measures the model with all layers, before and after; 0: it does not.
    pub probe_examples: u32,
    /// Which layers go into the update.
    pub sharing: SharingPlan,
    /// The device gives up after this many milliseconds; at least 1.
    pub deadline_ms: u64,
}

/// Which layers a device shares; it keeps the others for itself. The head is always shared.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SharingPlan {
    /// Every layer.
    All,
    /// The `k` layers of least importance on the device; layers that never ran come last. It is our reading of DropPEFT's abstract.
    LeastImportant {
        /// How many.
        k: u32,
    },
    /// The `k` layers of most importance on the device; those that never ran come last.
    MostImportant {
        /// How many.
        k: u32,
    },
    /// These layers.
    Fixed {
        /// Ascending, without repetition, each one of the layers that `rates` speaks of.
        #[serde(deserialize_with = "bounds::at_most::<{ bounds::LAYERS }, _, _>")]
        layers: Vec<u32>,
    },
}

/// One device's share of an evaluation. All layers are active.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EvaluateOrder {
    /// The global weights to evaluate (with the device's own personal layers in place of the ones it keeps).
    pub weights: Digest,
    /// Digest of the schema of the trainable tensors.
    pub schema: Digest,
    /// At most this many of the device's test examples, from the first.
    pub examples: u64,
    /// Examples at a time, 1 to 4096.
    pub batch: u32,
    /// Longer texts are cut to this many tokens, 2 to 65,536.
    pub max_tokens: u32,
    /// The device gives up after this many milliseconds; at least 1.
    pub deadline_ms: u64,
}

/// A device's answer to a command; repeated whenever the command is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// This life of the agent.
    pub boot: BootId,
    /// The command's run.
    pub run: RunId,
    /// The command's round.
    pub round: u32,
    /// The command's epoch.
    pub epoch: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a command. A finished training is answered by an offer of its update instead, see
/// [`crate::transfer::Purpose::Update`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// In hand.
    Accepted {
        /// False: the device waits for the weights to be offered.
        has_weights: bool,
    },
    /// Not done, and will not be.
    Refused {
        /// For the operator; at most 200 bytes.
        reason: String,
    },
    /// Evaluated.
    Evaluated(EvaluationReport),
    /// Stopped as ordered.
    Stopped,
}

/// `text` as a refusal's reason: cut to 200 bytes where it is longer, between characters.
#[must_use]
pub fn short_reason(text: &str) -> String {
    text[..text.floor_char_boundary(bounds::TEXT_BYTES)].to_owned()
}

/// What a device says of its training in a round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TrainReport {
    /// Distinct examples trained on: steps x batch, but no more than the device has. FedAvg's weight.
    pub examples: u64,
    /// Tokens of text trained on.
    pub tokens: u64,
    /// Optimizer steps done.
    pub steps: u32,
    /// Mean loss over the steps; not finite where training diverged.
    pub mean_loss: f32,
    /// The layers in the update, ascending; at most 512.
    #[serde(deserialize_with = "bounds::at_most::<{ bounds::LAYERS }, _, _>")]
    pub shared_layers: Vec<u32>,
    /// For each layer, the mean over the batches where it was active of the norm of its gradient, before clipping. A mean
    /// and no sum, so that a layer's dropout rate does not bias it. 0: the layer never ran. Finite, not negative; at most
    /// 512.
    #[serde(deserialize_with = "bounds::at_most::<{ bounds::LAYERS }, _, _>")]
    pub importance: Vec<f32>,
    /// Active layers, mean over the steps.
    pub mean_active_layers: f32,
    /// Wall time of the training in milliseconds.
    pub train_ms: u64,
    /// Median wall time of a step in milliseconds.
    pub step_ms: f32,
    /// Largest resident memory of the agent so far, in bytes.
    pub peak_rss_bytes: u64,
    /// What the training brought, where the order asked for it.
    pub probe: Option<Probe>,
}

/// The model with all layers on some of the device's examples, before and after its training. Examples to evaluate on are
/// taken where there are any, else examples to train on.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// How many.
    pub examples: u32,
    /// Mean loss before, in nats; finite.
    pub loss_before: f32,
    /// Mean loss after; finite.
    pub loss_after: f32,
    /// Of which the label was right before; no more than there are.
    pub correct_before: u32,
    /// Of which the label was right after; no more than there are.
    pub correct_after: u32,
}

/// What a device found on its test examples.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Number of examples evaluated; of tokens, if the task is one of tokens.
    pub examples: u64,
    /// Number of those whose label was right; 0 if the task has numbers and no labels.
    pub correct: u64,
    /// Sum over them of the cross-entropy in nats, or of squared errors; not finite if the model diverged.
    pub loss_sum: f64,
    /// Wall time in milliseconds.
    pub evaluate_ms: u64,
    /// Largest resident memory of the agent so far, in bytes.
    pub peak_rss_bytes: u64,
    /// Counts and sums for the measures of the task.
    pub metrics: TaskMetrics,
}

/// The coordinator is here, or gone (retained, for everybody).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Presence {
    /// This life of the coordinator: a new one makes devices say their birth again.
    pub boot: BootId,
    /// False in the last will.
    pub online: bool,
}

/// The versions of the protocol that the coordinator speaks (retained, for everybody).
///
/// Its layout and the version in its header (3) never change, so that every agent from version 3 on can read it. It is
/// published before the [`Presence`] of the same life. An older agent does not know its topic and ignores it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// The life of the coordinator that it speaks for. It says nothing about any other life.
    pub boot: BootId,
    /// Versions that the coordinator speaks.
    pub speaks: VersionRange,
}
