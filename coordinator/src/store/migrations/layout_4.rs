//! The first record of a run in layout 4. It never changes. Only the migration may use it.
//!
//! Layout 4 stored the engine's own types as postcard. Layout 5 keeps the bytes of every other record and replaces the settings
//! in this one by JSON, so that a new setting needs no migration. The names and variants here are those in `coordinator.toml` at
//! the time of layout 4, because they become the keys of the JSON.

use serde::{Deserialize, Serialize};
use skiff_protocol::{Digest, RunId};

/// A journal record, if it is the first of a run.
#[derive(Serialize, Deserialize)]
pub(super) struct First {
    pub(super) at_ms: u64,
    pub(super) record: Record,
}

/// The first variant of the records of layout 4.
#[derive(Serialize, Deserialize)]
pub(super) enum Record {
    RunStarted(Start),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) run: RunId,
    pub(super) settings: Settings,
    pub(super) layers: u32,
    pub(super) pack: Digest,
    pub(super) schema: Digest,
    pub(super) weights: Digest,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Settings {
    rounds: u32,
    devices: u32,
    over_selection: u32,
    quorum: u32,
    asynchronous: bool,
    max_staleness: u32,
    steps: u32,
    batch: u32,
    max_tokens: u32,
    learning_rate: f32,
    seed: u64,
    rates: Rates,
    protected: Vec<u32>,
    care: Care,
    proximal: f32,
    merge: Merging,
    sharing: Sharing,
    groups: Vec<Group>,
    evaluate_examples: u64,
    final_examples: u64,
    evaluate_batch: u32,
    max_skipped: u32,
    gather_ms: u64,
    train_ms: u64,
    evaluate_ms: u64,
    grace_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rates {
    Fixed { mean: f32, shape: Shape, schedule: Schedule },
    Bandit(Bandit),
}

#[derive(Serialize, Deserialize)]
struct Bandit {
    means: Vec<f32>,
    shapes: Vec<Shape>,
    schedules: Vec<Schedule>,
    policy: Policy,
    epsilon: f32,
    candidates: u32,
    window: u32,
    explorers: f32,
    gain: Gain,
    probe_examples: u32,
    measured: f32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Shape {
    Uniform,
    Increasing,
    Decreasing,
    Normal,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Schedule {
    Constant,
    WarmUp,
    CoolDown,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Policy {
    EpsilonGreedy,
    Ucb,
    Thompson,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Gain {
    Loss,
    Accuracy,
}

#[derive(Serialize, Deserialize)]
struct Care {
    hot_celsius: f32,
    low_battery_percent: f32,
}

#[derive(Serialize, Deserialize)]
struct Merging {
    rule: Rule,
    server: Server,
    ranks: Ranks,
    far_out: f32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    Mean,
    NormBounded { norm: f32 },
    TrimmedMean { share: f32 },
    Median,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Server {
    Average,
    Adam(Adaptive),
    Yogi(Adaptive),
}

#[derive(Serialize, Deserialize)]
struct Adaptive {
    rate: f32,
    beta_1: f32,
    beta_2: f32,
    tau: f32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ranks {
    Pad,
    Project,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sharing {
    All,
    LeastImportant(u32),
    MostImportant(u32),
    Layers(Vec<u32>),
}

#[derive(Serialize, Deserialize)]
struct Group {
    name: String,
    class: Option<String>,
    region: Option<String>,
    labels: Vec<String>,
    sharing: Option<Sharing>,
    rank: u32,
}
