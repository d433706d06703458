//! Real text: AG News with `MiniLM`, from the file to the accuracy.

use crate::peers::Peers;
use crate::process::{agent, labelled, last_line};
use crate::{STORED, THREADS, pack, scratch};
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_tests::places;
use std::path::Path;

const BATCH: &str = "8";
const LEARNING_RATE: &str = "1e-3";
const TEST_ROWS: &str = "1000";

/// The part of `skiff-agent train --json`'s output that the table shows.
#[derive(Deserialize)]
struct Found {
    examples_per_second: f64,
    evaluate_examples_per_second: f64,
    accuracy: f64,
    peak_rss_bytes: f64,
}

/// The part of the peers' output that the table shows.
#[derive(Deserialize)]
struct Peer {
    examples_per_s: f64,
    eval_examples_per_s: f64,
    accuracy: f64,
    /// MiB.
    peak_rss_mb: f64,
}

/// Prints the table and returns it. If the texts are missing, prints a sentence and returns nothing.
pub(crate) fn measure(quick: bool, peers: Option<&Peers>) -> Vec<Value> {
    // Where the project keeps what several repositories use.
    let data = places::tree().join("../shared/data/agnews");
    let [train, test] = ["train.csv", "test.csv"].map(|name| data.join(name));
    if !train.is_file() || !test.is_file() {
        println!("Real text is left out: {} has no train.csv and test.csv.\n", data.display());
        return Vec::new();
    }
    let steps = if quick { "60" } else { "300" };
    println!(
        "{:<14} {:<11} {:>10} {:>14} {:>9} {:>8}",
        "AG News", "program", "examples/s", "evaluated/s", "accuracy", "peak MB"
    );
    let folder = scratch();
    let mut measured = Vec::new();
    for (at, stored) in STORED.into_iter().enumerate() {
        let pack = pack(&places::minilm(), stored, 4, folder.path());
        let line = skiff(&pack, [&train, &test], steps);
        Found::deserialize(&line).unwrap().print(stored.0);
        measured.push(labelled(line, json!({ "program": "Skiff", "model": "MiniLM", "storage": stored.0 })));
        if at == 0
            && let Some(line) = peers.and_then(|peers| torch(peers, [&train, &test], steps))
        {
            Peer::deserialize(&line).unwrap().print();
            measured.push(labelled(line, json!({ "program": "PyTorch", "model": "MiniLM" })));
        }
    }
    println!(
        "\nMiniLM, LoRA r=8 on query and value, all layers, {steps} steps of {BATCH} examples of 128 tokens at most, {THREADS} threads; evaluated\n\
         on the first {TEST_ROWS} rows of the test file. PyTorch pads to the longest text of a batch, and leaves two steps out of its speed.\n"
    );
    measured
}

fn skiff(pack: &Path, [train, test]: [&Path; 2], steps: &str) -> Value {
    let mut command = agent();
    command.arg("train").arg("--pack").arg(pack).arg("--train").arg(train).arg("--test").arg(test).arg("--json");
    command.args(training(steps)).args(["--evaluate", TEST_ROWS, "--threads", THREADS]);
    last_line(&mut command).unwrap()
}

fn torch(peers: &Peers, [train, test]: [&Path; 2], steps: &str) -> Option<Value> {
    let (model, train, test) = (places::minilm(), train.to_str()?, test.to_str()?);
    let arguments = [&[model.to_str()?, train, test][..], &training(steps), &["--eval-rows", TEST_ROWS]].concat();
    peers.run("torch_peft_text.py", &arguments)
}

/// Options with the same name in both programs.
const fn training(steps: &str) -> [&str; 6] {
    ["--steps", steps, "--batch", BATCH, "--lr", LEARNING_RATE]
}

impl Found {
    fn print(&self, storage: &str) {
        let speeds = [self.examples_per_second, self.evaluate_examples_per_second];
        row(&format!("Skiff {storage}"), speeds, self.accuracy, self.peak_rss_bytes / 1e6);
    }
}

impl Peer {
    fn print(&self) {
        let speeds = [self.examples_per_s, self.eval_examples_per_s];
        row("PyTorch f32", speeds, self.accuracy, self.peak_rss_mb * 1024.0 * 1024.0 / 1e6);
    }
}

fn row(program: &str, [training, evaluation]: [f64; 2], accuracy: f64, peak: f64) {
    println!("{:<14} {program:<11} {training:>10.1} {evaluation:>14.1} {accuracy:>9.3} {peak:>8.0}", "MiniLM");
}
