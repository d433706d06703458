//! Training steps and evaluations of three sizes of BERT on random tokens.

use crate::packs::{STORED, THREADS, pack, scratch};
use crate::peers::Peers;
use crate::process::{agent, labelled, last_line};
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_tests::{checkpoints, places};
use std::path::{Path, PathBuf};

const BATCH: &str = "8";
const TOKENS: &str = "128";
const EVALUATE: &str = "evaluate";

struct Model {
    name: &'static str,
    /// Name in the peers' script.
    shape: &'static str,
    /// `None` if the checkpoint is fetched rather than made.
    config: Option<Value>,
    layers: usize,
    steps: &'static str,
}

/// One way to go over a batch.
struct Way {
    policy: &'static str,
    active: usize,
    /// Name of the same in the peers' script.
    peer: Option<&'static str>,
}

/// The part of `skiff-agent bench --json`'s output that the table shows.
#[derive(Deserialize)]
struct Found {
    step_seconds: f64,
    min_step_seconds: f64,
    gflop: f64,
    roof_gflops_per_second: f64,
    open_seconds: f64,
    peak_rss_bytes: f64,
    anonymous_bytes: f64,
    file_bytes: f64,
    predicted_bytes: f64,
}

/// The part of the peers' output that the table shows.
#[derive(Deserialize)]
struct Peer {
    median_s: f64,
    min_s: f64,
    peak_rss_bytes: f64,
}

fn models(quick: bool) -> Vec<Model> {
    let minilm = Model { name: "MiniLM", shape: "minilm", config: None, layers: 6, steps: "16" };
    if quick {
        return vec![minilm];
    }
    let base = checkpoints::bert(12, 768, 12, 3072);
    let large = checkpoints::bert(24, 1024, 16, 4096);
    vec![
        minilm,
        Model { name: "BERT-base", shape: "base", config: Some(base), layers: 12, steps: "8" },
        Model { name: "BERT-large", shape: "large", config: Some(large), layers: 24, steps: "4" },
    ]
}

impl Model {
    fn ways(&self) -> Vec<Way> {
        let way = |policy, active, peer| Way { policy, active, peer };
        let (all, half) = (self.layers, self.layers / 2);
        vec![
            way("keep", all, Some("train")),
            way("half", all, None),
            way("recompute", all, Some("checkpoint")),
            way("keep", half, Some("skip")),
            way("half", half, None),
            way("recompute", half, None),
            way(EVALUATE, all, Some("evaluate")),
        ]
    }

    /// Makes its packs in `folder`, as [`STORED`] says.
    fn packs(&self, folder: &Path) -> Vec<PathBuf> {
        let made = folder.join("checkpoint");
        let checkpoint = self.config.as_ref().map_or_else(places::minilm, |config| {
            checkpoints::write(config, &made).unwrap();
            made.clone()
        });
        let packs =
            STORED.map(|stored| pack(&checkpoint, stored, &["a", "b", "c", "d"].map(str::to_owned), folder)).to_vec();
        if self.config.is_some() {
            std::fs::remove_dir_all(made).unwrap();
        }
        packs
    }
}

/// Prints the table and returns it.
pub(crate) fn measure(quick: bool, peers: Option<&Peers>) -> Vec<Value> {
    println!(
        "{:<10} {:<11} {:<9} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "model",
        "program",
        "policy",
        "layers",
        "step s",
        "min s",
        "GFLOP/s",
        "of roof",
        "peak MB",
        "anon MB",
        "file MB",
        "set-up s"
    );
    let (mut measured, mut ratios, mut predictions) = (Vec::new(), Vec::new(), Vec::new());
    for model in models(quick) {
        let folder = scratch();
        let packs = model.packs(folder.path());
        for way in model.ways() {
            let mut seconds = Vec::new();
            let mut peer = None;
            for ((storage, _), pack) in STORED.iter().zip(&packs) {
                let line = skiff(&model, &way, pack);
                let found = Found::deserialize(&line).unwrap();
                found.print(&model, storage, &way);
                if way.policy != EVALUATE {
                    predictions.push(100.0 * (found.predicted_bytes / found.peak_rss_bytes - 1.0));
                }
                measured.push(labelled(
                    line,
                    json!({ "program": "Skiff", "model": model.name, "storage": storage, "evaluate": way.policy == EVALUATE }),
                ));
                seconds.push((storage, found.step_seconds));
                // Runs between Skiff's first and second line, so that a machine that slows down affects both programs.
                if peer.is_none()
                    && let Some(line) = torch(&model, &way, peers)
                {
                    let beside = Peer::deserialize(&line).unwrap();
                    beside.print(&model, &way, &found);
                    measured.push(labelled(line, json!({ "program": "PyTorch", "model": model.name, "policy": way.policy, "active": way.active })));
                    peer = Some(beside);
                }
            }
            for (storage, seconds) in seconds {
                let Some(peer) = &peer else { continue };
                let what =
                    format!("{}, {storage}, {}, {} of {} layers", model.name, way.policy, way.active, model.layers);
                ratios.push(format!("  {what:<48} {:>6.2}", seconds / peer.median_s));
            }
        }
    }
    println!(
        "\nLoRA r=8 on query and value, batches of {BATCH} x {TOKENS} random tokens, {THREADS} threads; step s is the median.\n\
         of roof = GFLOP / step s / roof. GFLOP is 2 m n k for every matrix product of the plain forward and backward graphs of\n\
         the active layers (of the evaluation's, where the policy is {EVALUATE}), whatever the implementation leaves out; the roof\n\
         is the fastest of up to 48 products of [1024, 768] and [768, 3072], in GFLOP/s, in the same process."
    );
    let (least, most) = predictions
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &found| (found.min(least), found.max(most)));
    println!(
        "The peaks that Skiff predicts for training steps differ from those above by {least:+.0} to {most:+.0} %."
    );
    if !ratios.is_empty() {
        println!(
            "PyTorch's lines count the GFLOP and the roof of Skiff's line above them; their peak is the whole process's,\n\
             their recompute is gradient checkpointing, and steps in which other processes took processor time do not count.\n\n\
             time of a step, Skiff / PyTorch\n{}",
            ratios.join("\n")
        );
    }
    println!();
    measured
}

fn skiff(model: &Model, way: &Way, pack: &Path) -> Value {
    let mut command = agent();
    command.arg("bench").arg("--pack").arg(pack).args([
        "--batch",
        BATCH,
        "--tokens",
        TOKENS,
        "--threads",
        THREADS,
        "--json",
    ]);
    command.args(["--steps", model.steps, "--active", &way.active.to_string()]);
    match way.policy {
        EVALUATE => command.arg("--evaluate"),
        policy => command.args(["--policy", policy]),
    };
    last_line(&mut command).unwrap()
}

fn torch(model: &Model, way: &Way, peers: Option<&Peers>) -> Option<Value> {
    let arguments = [model.shape, way.peer?, "--batch", BATCH, "--tokens", TOKENS, "--steps", model.steps];
    peers?.run("step.py", &arguments)
}

impl Found {
    fn print(&self, model: &Model, storage: &str, way: &Way) {
        let [peak, anonymous, file] =
            [self.peak_rss_bytes, self.anonymous_bytes, self.file_bytes].map(|bytes| format!("{:.0}", bytes / 1e6));
        let set_up = format!("{:.3}", self.open_seconds);
        let speed = self.speed(self.step_seconds);
        row(
            model,
            &format!("Skiff {storage}"),
            way,
            [self.step_seconds, self.min_step_seconds],
            speed,
            [&peak, &anonymous, &file, &set_up],
        );
    }

    /// Returns the GFLOP/s of a step that takes `seconds`, and the share of the roof in percent.
    fn speed(&self, seconds: f64) -> [f64; 2] {
        let speed = self.gflop / seconds;
        [speed, 100.0 * speed / self.roof_gflops_per_second]
    }
}

impl Peer {
    fn print(&self, model: &Model, way: &Way, beside: &Found) {
        let peak = format!("{:.0}", self.peak_rss_bytes / 1e6);
        row(model, "PyTorch f32", way, [self.median_s, self.min_s], beside.speed(self.median_s), [&peak, "", "", ""]);
    }
}

fn row(model: &Model, program: &str, way: &Way, seconds: [f64; 2], speed: [f64; 2], rest: [&str; 4]) {
    let layers = format!("{} of {}", way.active, model.layers);
    let ([median, min], [speed, share], [peak, anonymous, file, set_up]) = (seconds, speed, rest);
    println!(
        "{:<10} {program:<11} {:<9} {layers:>8} {median:>8.4} {min:>8.4} {speed:>8.1} {share:>6.0}% {peak:>8} {anonymous:>8} {file:>8} {set_up:>8}",
        model.name, way.policy
    );
}
