//! Answers and figures of `skiff-agent predict` and `evaluate`, compared with PyTorch's scores and with `train` on the same
//! weights and texts.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use serde_json::{Value, json};
use skiff_data::{Passage, Place, Question, Words};
use skiff_models::Pack;
use skiff_models::pack::{About, BuildOptions, export_adapter};
use skiff_tests::compare::read;
use skiff_tests::packs::{Case, golden, made};
use skiff_tests::places;
use skiff_trainer::Trainer;
use skiff_trainer::inputs::read_batch;
use skiff_trainer::{Sequence, Target};
use skiff_worker::questions::{Answer, Asked, Desk};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

/// Error of f32 graphs that a probability or a perplexity may show.
const NEAR: f64 = 1e-3;

/// Makes the golden case's pack with a tokenizer whose word `t7` is token 7, and returns its examples and expected scores.
fn golden_desk(name: &str) -> (Desk, Vec<Sequence>, Vec<Vec<f64>>) {
    let case = Case::open(name);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    let variant = golden(name).parent().unwrap().join("checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        fs::copy(variant.join(file), checkpoint.join(file)).unwrap();
    }
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(variant.join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["model"]["vocab"] = (0..41).map(|id| (format!("t{id}"), json!(id))).collect();
    tokenizer["model"]["unk_token"] = json!("t0");
    fs::write(checkpoint.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let pack = made(&BuildOptions { checkpoint, ..case.options(&folder.path().join("pack")) });
    let sequences = read_batch(&case.read("batch.safetensors"), &pack.manifest().layout).unwrap();
    let scores = read(&case.read("expected.safetensors")).remove("all/logits").unwrap();
    let scores = scores.outer_iter().map(|row| row.iter().copied().collect()).collect();
    let weights = pack.schema().read(&case.read("weights.safetensors")).unwrap();
    let pack = Arc::new(pack);
    let mut trainer = Trainer::open(&places::runtime(), Arc::clone(&pack)).unwrap();
    trainer.set_weights(weights).unwrap();
    (Desk::open(&pack, trainer, 64).unwrap(), sequences, scores)
}

fn words(sequence: &Sequence) -> Vec<String> {
    sequence.ids.iter().map(|id| format!("t{id}")).collect()
}

fn ask(desk: &mut Desk, asked: impl Iterator<Item = Asked>) -> Vec<Answer> {
    let place = Place { path: "golden".into(), line: 1, column: 0 };
    let batch: Vec<(Place, Asked)> = asked.map(|asked| (place.clone(), asked)).collect();
    desk.answer(&batch).unwrap().into_iter().map(|(answer, was_cut)| (!was_cut).then_some(answer).unwrap()).collect()
}

/// Returns the index of the largest score, and its probability.
fn first(scores: &[f64]) -> (usize, f64) {
    let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
    (best, 1.0 / scores.iter().map(|score| (score - scores[best]).exp()).sum::<f64>())
}

fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= NEAR * expected.abs().max(1.0)
}

#[test]
fn answers_are_those_of_pytorchs_scores_for_every_task() {
    let whole = |sequence: &Sequence| Asked::Whole(Question { text: words(sequence).join(" "), pair: None });
    let (mut desk, texts, scores) = golden_desk("mistral/sequence-lora");
    for (answer, scores) in ask(&mut desk, texts.iter().map(whole)).iter().zip(&scores) {
        let Answer::Class { probabilities, best } = answer else { panic!("{answer:?}") };
        let (expected, probability) = first(scores);
        assert_eq!(*best, expected);
        assert!(near(probabilities[*best], probability), "{probabilities:?}, expected {probability}");
    }

    let (mut desk, texts, scores) = golden_desk("mistral/regression-lora");
    for (answer, scores) in ask(&mut desk, texts.iter().map(whole)).iter().zip(&scores) {
        let Answer::Numbers(numbers) = answer else { panic!("{answer:?}") };
        assert_eq!(numbers.len(), scores.len());
        assert!(numbers.iter().zip(scores).all(|(&found, &expected)| near(found.into(), expected)), "{numbers:?}");
    }

    let (mut desk, texts, scores) = golden_desk("mistral/token-lora");
    let tagged = ask(&mut desk, texts.iter().map(|text| Asked::Words(Words { words: words(text) })));
    let found = tagged.iter().flat_map(|answer| {
        let Answer::Words(found) = answer else { panic!("{answer:?}") };
        found.iter().map(|found| found.unwrap())
    });
    let found: Vec<(usize, f64)> = found.collect();
    assert_eq!(found.len(), scores.len());
    for (found, scores) in found.iter().zip(&scores) {
        let expected = first(scores);
        assert!(found.0 == expected.0 && near(found.1, expected.1), "{found:?}, expected {expected:?}");
    }
}

#[test]
fn a_texts_perplexity_is_that_of_pytorchs_scores() {
    let (mut desk, texts, scores) = golden_desk("mistral/causal-lora");
    let passage = |sequence: &Sequence| {
        let Target::Next(next) = &sequence.target else { panic!("{sequence:?}") };
        let given = next.iter().take_while(|token| token.is_none()).count();
        let words = words(sequence);
        let text = format!("{}{}", if given == 0 { "" } else { " " }, words[given..].join(" "));
        Asked::Passage(Passage { prompt: words[..given].join(" "), text })
    };
    let answers = ask(&mut desk, texts.iter().map(passage));
    let mut row = 0;
    for (text, answer) in texts.iter().zip(&answers) {
        let Target::Next(next) = &text.target else { panic!("{text:?}") };
        let losses: Vec<f64> = next[1..]
            .iter()
            .zip(&scores[row..])
            .filter_map(|(token, scores)| {
                let token = (*token)? as usize;
                let (best, probability) = first(scores);
                Some(scores[best] - scores[token] - probability.ln())
            })
            .collect();
        row += text.ids.len();
        let Answer::Perplexity { tokens, perplexity } = answer else { panic!("{answer:?}") };
        assert_eq!(*tokens, losses.len() as u64);
        let expected = (!losses.is_empty()).then(|| (losses.iter().sum::<f64>() / losses.len() as f64).exp());
        match (perplexity, expected) {
            (Some(found), Some(expected)) => assert!(near(*found, expected), "{found}, expected {expected}"),
            (found, expected) => assert_eq!(*found, expected),
        }
    }
    assert_eq!(row, scores.len());
    assert!(answers.contains(&Answer::Perplexity { tokens: 0, perplexity: None }), "one text has a single token");
}

fn agent(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(places::binary("skiff-agent"));
    command.current_dir(folder).args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn parsed(output: Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

fn said(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Writes a pack and labelled texts, trains a little, and returns the folder and the output of `train`.
fn trained() -> (tempfile::TempDir, Value) {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::open("bert/sequence-lora");
    drop(case.pack(folder.path()));
    let row = |at: usize| format!("{},{}\n", at * at % 4, "t ".repeat(1 + at % 7));
    let rows: String = (0..40).map(row).collect();
    fs::write(folder.path().join("texts.csv"), format!("label,text\n{rows}")).unwrap();
    let line = "train --pack pack --train texts.csv --test texts.csv --steps 30 --batch 4 --lr 0.02 --threads 1 --json --out tuned";
    let told = parsed(agent(folder.path(), line).output().unwrap());
    (folder, told)
}

fn written_adapter(folder: &Path) -> PathBuf {
    let pack = Pack::open(&folder.join("pack")).unwrap();
    let weights = pack.schema().read(&fs::read(folder.join("tuned")).unwrap()).unwrap();
    let out = folder.join("adapter");
    export_adapter(&pack, &weights, &About::default(), &out, &mut |_| {}).unwrap();
    out
}

#[test]
fn predict_and_evaluate_say_what_train_counts_on_the_same_weights() {
    let (folder, told) = trained();
    let folder = folder.path();
    drop(written_adapter(folder));
    let evaluated = |weights: &str| {
        let line = format!("evaluate --pack pack --test texts.csv --threads 1 --json {weights}");
        parsed(agent(folder, &line).output().unwrap())
    };
    let tuned = evaluated("--weights tuned");
    for figure in ["accuracy", "macro_f1", "class_f1"] {
        assert_eq!(tuned[figure], told[figure], "{figure}");
    }
    assert_eq!((&tuned["examples"], &tuned["test_examples"]), (&json!(40), &json!(40)));
    for path in ["adapter", "adapter/adapter_model.safetensors"] {
        let same = evaluated(&format!("--weights {path}"));
        assert_eq!((&same["accuracy"], &same["loss"]), (&tuned["accuracy"], &tuned["loss"]), "{path}");
    }
    assert_ne!(evaluated("")["loss"], tuned["loss"], "the pack's first weights");
    assert_eq!(evaluated("--examples 9")["examples"], 9);

    let line = "predict --pack pack --weights tuned --threads 1 --json texts.csv";
    let objects = stdout(agent(folder, line).output().unwrap());
    let objects: Vec<Value> = objects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let truth: Vec<String> = (0..40).map(|at| (at * at % 4).to_string()).collect();
    let right = objects.iter().zip(&truth).filter(|(object, truth)| object["label"] == **truth).count();
    assert_eq!(objects.len(), 40);
    assert!(near(right as f64 / 40.0, tuned["accuracy"].as_f64().unwrap()), "{right} are right");
    let predicted = |label: &str| objects.iter().filter(|object| object["label"] == label).count();
    for part in tuned["parts"].as_array().unwrap() {
        assert_eq!(part["predicted"].as_u64(), Some(predicted(part["name"].as_str().unwrap()) as u64), "{part}");
    }

    let mut asked =
        agent(folder, "predict --pack pack --weights adapter --threads 1").stdin(Stdio::piped()).spawn().unwrap();
    asked.stdin.take().unwrap().write_all(b"t \n\nt t t t t t t \n").unwrap();
    let lines = stdout(asked.wait_with_output().unwrap());
    let expected = |at: usize| {
        let object = &objects[at];
        let text = object["text"].as_str().unwrap();
        format!("{}\t{:.4}\t{text}\n", object["label"].as_str().unwrap(), object["probability"].as_f64().unwrap())
    };
    assert_eq!(lines, format!("{}{}", expected(0), expected(6)));

    let table = stdout(agent(folder, "evaluate --pack pack --weights tuned --test texts.csv").output().unwrap());
    let has_heading =
        |line: &str| line.split_whitespace().eq(["label", "examples", "predicted", "precision", "recall", "F1"]);
    assert!(table.contains("40 of 40") && table.lines().any(has_heading), "{table}");
}

#[test]
fn weights_of_another_model_and_wrong_words_are_refused_by_name() {
    let (folder, _) = trained();
    let folder = folder.path();
    let refusal = |line: &str| {
        let output = agent(folder, line).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), said(&output))
    };
    let config = written_adapter(folder).join("adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["lora_alpha"] = json!(80.0);
    fs::write(&config, settings.to_string()).unwrap();
    let (code, text) = refusal("predict --pack pack --weights adapter");
    assert!(code == Some(1) && text.contains("reading the weights adapter") && text.contains("scale 20;"), "{text}");
    for (line, code, says) in [
        ("predict --pack pack --weights pack", 1, "this folder is no adapter"),
        ("predict --pack pack --weights texts.csv", 1, "reading the weights texts.csv"),
        ("predict --pack pack --weights nothing", 1, "reading the weights nothing"),
        ("predict --pack pack", 1, "standard input"),
        ("predict --pack pack texts.docx", 1, "texts.docx has an unsupported format"),
        ("predict", 2, "--pack <DIR>"),
        ("evaluate --pack pack", 2, "--test <FILE>"),
        ("evaluate --own --config nowhere.toml", 2, "reading nowhere.toml"),
    ] {
        let (found, text) = refusal(line);
        assert!(found == Some(code) && text.contains(says), "{line}: {found:?}, {text}");
    }
}
