//! What a training step costs: `skiff-agent bench` on three sizes of BERT, each line a process of its own. With `--peers PYTHON`,
//! PyTorch and PEFT take their turn between Skiff's lines. A table on standard output; with `--json FILE` the same for programs;
//! `--quick` leaves all but `MiniLM` out.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may stop")]

use serde::Deserialize;
use serde_json::{Value, json};
use skiff_models::pack::{BuildOptions, Storage};
use skiff_tests::checkpoints::{self, Sizes};
use skiff_tests::{packs, places, results};
use std::path::{Path, PathBuf};
use std::process::Command;

const BATCH: &str = "8";
const TOKENS: &str = "128";
const STORED: [(&str, Storage); 2] = [("int8", Storage::Int8), ("f16", Storage::F16)];
/// Below the source tree's parent, where the project keeps what several repositories use.
const SCRIPT: &str = "../shared/tools/peers/torch_peft_step.py";

struct Model {
    name: &'static str,
    /// As the peers' script calls it.
    shape: &'static str,
    /// `None` where the checkpoint is fetched rather than made.
    sizes: Option<Sizes>,
    layers: usize,
    steps: u16,
    /// With half the layers, and evaluated, too.
    whole: bool,
}

/// One way to go over a batch.
struct Way {
    policy: &'static str,
    active: usize,
    /// What the peers' script calls the same.
    peer: Option<&'static str>,
}

const EVALUATE: &str = "evaluate";

impl Model {
    fn ways(&self) -> Vec<Way> {
        let all = self.layers;
        let ways = |active, keep, recompute| {
            [("keep", keep), ("half", None), ("recompute", recompute)].map(|(policy, peer)| Way { policy, active, peer })
        };
        let mut found = ways(all, Some("train"), Some("ckpt")).to_vec();
        if self.whole {
            found.extend(ways(all / 2, Some("skip"), None));
            found.push(Way { policy: EVALUATE, active: all, peer: Some("eval") });
        }
        found
    }

    /// Makes its packs in `folder`, as [`STORED`] says.
    fn packs(&self, folder: &Path) -> Vec<PathBuf> {
        let made = folder.join("checkpoint");
        let checkpoint = self.sizes.map_or_else(places::minilm, |sizes| {
            checkpoints::write(sizes, &made).unwrap();
            made.clone()
        });
        let labels: Vec<String> = ["0", "1", "2", "3"].map(str::to_owned).to_vec();
        let pack = |(name, frozen): (&str, Storage)| {
            let out = folder.join(name);
            drop(packs::made(&BuildOptions { frozen, ..BuildOptions::new(&checkpoint, &out, labels.clone()) }));
            out
        };
        let packs = STORED.map(pack).to_vec();
        if self.sizes.is_some() {
            std::fs::remove_dir_all(made).unwrap();
        }
        packs
    }
}

/// What `skiff-agent bench --json` says, as far as the table shows it.
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
}

/// What the peers' script says, as far as the table shows it.
#[derive(Deserialize)]
struct Peer {
    median_s: f64,
    min_s: f64,
    /// MiB.
    vmhwm: f64,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let peers = peers();
    println!(
        "{:<10} {:>7} {:<13} {:>7} {:>8} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "model", "storage", "policy", "layers", "step s", "min s", "GFLOP/s", "of roof", "peak MB", "anon MB", "file MB",
        "set-up s"
    );
    let (mut measured, mut ratios) = (Vec::new(), Vec::new());
    for model in models(quick) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let packs = model.packs(folder.path());
        for way in model.ways() {
            let mut peer = None;
            let mut seconds = Vec::new();
            for ((storage, _), pack) in STORED.iter().zip(&packs) {
                let line = skiff(&model, &way, pack);
                let found = Found::deserialize(&line).unwrap();
                found.print(&model, storage, &way);
                measured.push(labelled(line, json!({ "program": "Skiff", "model": model.name, "storage": storage,
                    "evaluate": way.policy == EVALUATE })));
                seconds.push((storage, found.step_seconds));
                // Between Skiff's first line and its second, so that a machine that slows down does so for both programs.
                if peer.is_none() && let (Some(python), Some(mode)) = (&peers, way.peer) {
                    let line = torch(&model, mode, python);
                    let beside = Peer::deserialize(&line).unwrap();
                    beside.print(&model, mode, &way, &found);
                    measured.push(labelled(line, json!({ "program": "PyTorch", "model": model.name })));
                    peer = Some(beside);
                }
            }
            for (storage, seconds) in seconds {
                let Some(peer) = &peer else { continue };
                let what = format!("{}, {storage}, {}, {} of {} layers", model.name, way.policy, way.active, model.layers);
                ratios.push(format!("  {what:<48} {:>6.2}", seconds / peer.median_s));
            }
        }
    }
    println!(
        "\nLoRA r=8 on query and value, batches of {BATCH} x {TOKENS} random tokens, each line a process of its own; step s is the median.\n\
         of roof = GFLOP / step s / roof. GFLOP is 2 m n k for every matrix product of the plain forward and backward graphs of\n\
         the active layers (of the evaluation's, where the policy is {EVALUATE}), whatever the implementation leaves out; the roof\n\
         is the fastest of twelve products of [1024, 768] and [768, 3072], in GFLOP/s, in the same process."
    );
    if peers.is_some() {
        println!(
            "PyTorch's lines count the GFLOP and the roof of Skiff's line above them; their peak is that of the whole process.\n\n\
             time of a step, Skiff / PyTorch\n{}",
            ratios.join("\n")
        );
    } else {
        println!("PyTorch beside it: make bench PEERS=PYTHON, a Python with torch, transformers and peft; `make golden` installs {GOLDEN}.");
    }
    results::store("steps", measured.into());
}
