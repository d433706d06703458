//! Text with `MiniLM`, from the file to the accuracy: commands to a home assistant that the benchmark writes itself, or the texts of
//! `--data FOLDER`.

use crate::packs::{STORED, THREADS, pack, scratch};
use crate::peers::Peers;
use crate::process::{agent, labelled, last_line};
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_data::corpus::{GenerateOptions, generate};
use skiff_data::{DataSet, Example, dataset, labels, read};
use skiff_tests::{places, results};
use std::path::{Path, PathBuf};

const BATCH: &str = "8";
const LEARNING_RATE: &str = "1e-3";
const TEST_ROWS: usize = 1000;

/// The part of a program's output that the table shows.
#[derive(Deserialize)]
struct Found {
    examples_per_second: f64,
    evaluate_examples_per_second: f64,
    accuracy: f64,
    peak_rss_bytes: f64,
}

/// Texts to train on and to evaluate.
struct Texts {
    name: String,
    train: PathBuf,
    test: PathBuf,
    labels: Vec<String>,
}

/// Reads what `--data` names, or writes the generated texts into `scratch`. The first rows of the test part become a file of
/// their own, so that every program evaluates the same examples.
fn texts(scratch: &Path) -> Texts {
    let given = results::argument("--data").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| {
        let folder = scratch.join("generated");
        generate(&GenerateOptions::default()).unwrap().write(&folder).unwrap();
        folder
    });
    let DataSet { name, train, test } = dataset(&folder).unwrap_or_else(|error| panic!("--data: {error}"));
    let mut examples = read::<Example>(&test).unwrap();
    let labels = labels(&[read::<Example>(&train).unwrap(), examples.clone()].concat());
    examples.truncate(TEST_ROWS);
    let test = scratch.join("evaluated.jsonl");
    let lines: Vec<String> = examples.iter().map(|example| serde_json::to_string(example).unwrap()).collect();
    std::fs::write(&test, lines.join("\n") + "\n").unwrap();
    Texts { name, train, test, labels }
}

/// Prints the table and returns it.
pub(crate) fn measure(quick: bool, peers: Option<&Peers>) -> Vec<Value> {
    let folder = scratch();
    let texts = texts(folder.path());
    let steps = if quick { "60" } else { "300" };
    println!(
        "{:<14} {:<11} {:>10} {:>14} {:>9} {:>8}",
        texts.name, "program", "examples/s", "evaluated/s", "accuracy", "peak MB"
    );
    let mut measured = Vec::new();
    for (at, stored) in STORED.into_iter().enumerate() {
        let pack = pack(&places::minilm(), stored, &texts.labels, folder.path());
        let line = skiff(&pack, &texts, steps);
        Found::deserialize(&line).unwrap().print(&format!("Skiff {}", stored.0));
        measured.push(labelled(
            line,
            json!({ "program": "Skiff", "model": "MiniLM", "texts": texts.name, "storage": stored.0 }),
        ));
        if at == 0
            && let Some(line) = peers.and_then(|peers| torch(peers, &texts, steps))
        {
            Found::deserialize(&line).unwrap().print("PyTorch f32");
            measured.push(labelled(line, json!({ "program": "PyTorch", "model": "MiniLM", "texts": texts.name })));
        }
    }
    println!(
        "\nMiniLM, LoRA r=8 on query and value, all layers, {steps} steps of {BATCH} examples of 128 tokens at most, {THREADS} threads; evaluated\n\
         on the first {TEST_ROWS} rows of the test file. PyTorch pads to the longest text of a batch, and leaves two steps out of its speed.\n"
    );
    measured
}

fn skiff(pack: &Path, texts: &Texts, steps: &str) -> Value {
    let mut command = agent();
    command.arg("train").arg("--pack").arg(pack).arg("--train").arg(&texts.train).arg("--test").arg(&texts.test);
    command.arg("--json").args(training(steps)).args(["--threads", THREADS]);
    last_line(&mut command).unwrap()
}

fn torch(peers: &Peers, texts: &Texts, steps: &str) -> Option<Value> {
    let (model, train, test) = (places::minilm(), texts.train.to_str()?, texts.test.to_str()?);
    let arguments = [&[model.to_str()?, train, test][..], &training(steps)].concat();
    peers.run("text.py", &arguments)
}

/// Options with the same name in both programs.
const fn training(steps: &str) -> [&str; 6] {
    ["--steps", steps, "--batch", BATCH, "--lr", LEARNING_RATE]
}

impl Found {
    fn print(&self, program: &str) {
        println!(
            "{:<14} {program:<11} {:>10.1} {:>14.1} {:>9.3} {:>8.0}",
            "MiniLM",
            self.examples_per_second,
            self.evaluate_examples_per_second,
            self.accuracy,
            self.peak_rss_bytes / 1e6
        );
    }
}
