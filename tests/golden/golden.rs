//! Every number of a training step against PyTorch in float64, and against differences of the loss, through the agent's
//! own path: pack, mapped weights, ONNX Runtime.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_models::peft::Peft;
use skiff_models::tensors::NamedTensors;
use skiff_tests::compare::{CLOSE, DIFFERENCES, FED_BACK, FED_BACK_WEIGHTS, HALVED, Tensors, assert_close, read};
use skiff_tests::packs::{self, Case};
use skiff_tests::places;
use skiff_trainer::inputs::read_batch;
use skiff_trainer::optimizer::AdamW;
use skiff_trainer::{Batch, LayerMask, Operators, Policy, Trainer};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A trainer of a golden case with its weights, its batch, and its number of layers.
fn open(case: &Case) -> (Trainer, Batch, usize) {
    open_with(case, Operators::Fused)
}

fn open_with(case: &Case, operators: Operators) -> (Trainer, Batch, usize) {
    let folder = tempfile::tempdir().unwrap();
    let pack = case.pack(folder.path());
    let manifest = pack.manifest().clone();
    let sequences = read_batch(&case.read("batch.safetensors"), &manifest.layout).unwrap();
    let weights = pack.schema().read(&case.read("weights.safetensors")).unwrap();
    // Sessions and mapping stay valid after the folder is removed.
    let mut trainer = Trainer::open_with(&places::runtime(), Arc::new(pack), operators).unwrap();
    trainer.set_weights(weights).unwrap();
    let batch = Batch::new(&sequences, trainer.form()).unwrap();
    (trainer, batch, manifest.layers)
}

fn widen(tensors: NamedTensors) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (name, tensor.mapv(f64::from))).collect()
}

fn outcome(trainer: &mut Trainer, batch: &Batch, mask: &LayerMask) -> Tensors {
    let outcome = trainer.step(batch, mask).unwrap();
    let mut tensors =
        widen(outcome.gradients).into_iter().map(|(name, value)| (format!("grad.{name}"), value)).collect::<Tensors>();
    tensors.insert("loss".to_owned(), ndarray::arr0(f64::from(outcome.loss)).into_dyn());
    tensors.insert("logits".to_owned(), trainer.logits(batch, mask).unwrap().mapv(f64::from).into_dyn());
    tensors
}

/// Compares every case of a variant with PyTorch: loss, scores and the gradient of every trainable tensor, for every mask,
/// with fused operators and with plain ones.
fn agrees_with_pytorch(variant: &str) {
    agrees(variant, Operators::Fused, Policy::Keep, CLOSE);
    agrees(variant, Operators::Plain, Policy::Keep, CLOSE);
}

fn agrees(variant: &str, operators: Operators, policy: Policy, tolerance: f64) {
    for (name, case) in Case::all_of(variant) {
        let (mut trainer, batch, layers) = open_with(&case, operators);
        trainer.set_policy(policy);
        let all = read(&case.read("expected.safetensors"));
        assert!(case.settings.masks.len() >= 3, "{name}: masks");
        for (label, active) in &case.settings.masks {
            let mask = LayerMask::of(active.clone(), layers).unwrap();
            let of_mask = all.iter().filter_map(|(key, tensor)| {
                key.strip_prefix(&format!("{label}/")).map(|key| (key.to_owned(), tensor.clone()))
            });
            assert_close(
                &format!("{name} {active:?} {operators:?} {policy:?}"),
                &outcome(&mut trainer, &batch, &mask),
                &of_mask.collect(),
                tolerance,
            );
        }
    }
}

#[test]
fn residuals_in_half_precision_agree_to_its_rounding() {
    for variant in ["bert", "deberta-v3", "qwen2"] {
        agrees(variant, Operators::Fused, Policy::Half, HALVED);
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for variant in ["bert", "deberta-v2-conv", "llama"] {
        for (name, case) in Case::all_of(variant) {
            let (mut trainer, batch, layers) = open(&case);
            let mask = LayerMask::all(layers);
            let kept = trainer.step(&batch, &mask).unwrap();
            trainer.set_policy(Policy::Recompute);
            let again = trainer.step(&batch, &mask).unwrap();
            assert_eq!((kept.loss.to_bits(), kept.gradients), (again.loss.to_bits(), again.gradients), "{name}");
        }
    }
}

/// A test for each variant, so that they run side by side.
const VARIANTS: [&str; 14] = [
    "bert",
    "bert-odd",
    "deberta-v2-absolute",
    "deberta-v2-conv",
    "deberta-v2-plain",
    "deberta-v3",
    "llama",
    "llama-plain",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "roberta",
    "xlm-roberta",
];

/// Folder of a fleet's export, which has a test of its own.
const FLEET: &str = "fleet";

#[test]
fn every_variant_has_a_test() {
    let folders = std::fs::read_dir(packs::golden("")).unwrap().map(|entry| entry.unwrap());
    let there: BTreeSet<String> = folders
        .filter(|entry| entry.path().join("checkpoint").is_dir() && entry.file_name() != FLEET)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(there, VARIANTS.map(str::to_owned).into());
}

#[test]
fn bert_agrees_with_pytorch() {
    VARIANTS[..2].iter().for_each(|variant| agrees_with_pytorch(variant));
}

#[test]
fn deberta_agrees_with_pytorch() {
    VARIANTS[2..6].iter().for_each(|variant| agrees_with_pytorch(variant));
}

#[test]
fn llama_agrees_with_pytorch() {
    VARIANTS[6..9].iter().for_each(|variant| agrees_with_pytorch(variant));
}

#[test]
fn mistral_and_qwen_agree_with_pytorch() {
    VARIANTS[9..12].iter().for_each(|variant| agrees_with_pytorch(variant));
}

#[test]
fn roberta_and_xlm_r_agree_with_pytorch() {
    VARIANTS[12..].iter().for_each(|variant| agrees_with_pytorch(variant));
}

#[test]
fn fifty_steps_of_adamw_follow_pytorch() {
    let (mut trainer, batch, layers) = open(&Case::open("bert/sequence-lora"));
    let mut expected = read(&std::fs::read(packs::golden("training.safetensors")).unwrap());
    let losses = expected.remove("losses").unwrap();
    let cycle = [vec![0, 1, 2], vec![0, 2], vec![1]].map(|active| LayerMask::of(active, layers).unwrap());
    let mut optimizer = AdamW::default();
    let mut weights = trainer.weights().clone();
    for (step, &expected) in losses.iter().enumerate() {
        let outcome = trainer.step(&batch, &cycle[step % 3]).unwrap();
        let found = f64::from(outcome.loss);
        assert!((found - expected).abs() <= FED_BACK * (1.0 + expected), "step {step}: {found}, PyTorch {expected}");
        optimizer.step(&mut weights, &outcome.gradients, 1e-2);
        trainer.set_weights(weights.clone()).unwrap();
    }
    assert_close("weights after 50 steps", &widen(weights), &expected, FED_BACK_WEIGHTS);
}

#[test]
fn gradients_agree_with_differences_of_the_loss_that_the_device_computes() {
    let (mut trainer, batch, layers) = open(&Case::open("bert-odd/sequence-lora"));
    let mask = LayerMask::all(layers);
    let weights = trainer.weights().clone();
    let gradients = trainer.step(&batch, &mask).unwrap().gradients;
    for (name, gradient) in &gradients {
        // In the direction of the gradient, the difference is largest compared with the rounding of the loss.
        let norm = gradient.iter().map(|value| value * value).sum::<f32>().sqrt();
        let mut loss_at = |distance: f32| {
            let mut moved = weights.clone();
            moved.get_mut(name).unwrap().scaled_add(distance / norm, gradient);
            trainer.set_weights(moved).unwrap();
            f64::from(trainer.step(&batch, &mask).unwrap().loss)
        };
        let slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2;
        assert!(
            (slope - f64::from(norm)).abs() <= DIFFERENCES * f64::from(norm) + 1e-4,
            "{name}: {norm}, difference {slope}"
        );
    }
}

#[test]
fn the_same_step_twice_gives_the_same_bits() {
    let (mut trainer, batch, layers) = open(&Case::open("bert-odd/sequence-lora"));
    let mask = LayerMask::all(layers);
    let first = trainer.step(&batch, &mask).unwrap();
    let second = trainer.step(&batch, &mask).unwrap();
    assert_eq!(first.loss.to_bits(), second.loss.to_bits());
    assert_eq!(first.gradients, second.gradients);
}

#[test]
fn a_skipped_layer_has_no_gradient_and_does_not_change_the_result() {
    let (mut trainer, batch, layers) = open(&Case::open("bert/sequence-lora"));
    let mask = LayerMask::of(vec![0, 2], layers).unwrap();
    let before = trainer.step(&batch, &mask).unwrap();
    assert!(before.gradients.keys().all(|name| !name.contains("layer.1.")));
    let mut weights = trainer.weights().clone();
    weights.iter_mut().filter(|(name, _)| name.contains("layer.1.")).for_each(|(_, tensor)| tensor.fill(1e3));
    trainer.set_weights(weights).unwrap();
    assert_eq!(trainer.step(&batch, &mask).unwrap().loss.to_bits(), before.loss.to_bits());
}

#[test]
fn a_language_models_head_gives_the_same_in_pieces_of_any_size() {
    let (mut trainer, batch, layers) = open(&Case::open("qwen2/causal-lora"));
    let mask = LayerMask::all(layers);
    let whole = outcome(&mut trainer, &batch, &mask);
    for rows in [1, 7, 16] {
        trainer.set_chunk_rows(rows);
        assert_close(&format!("{rows} rows at a time"), &outcome(&mut trainer, &batch, &mask), &whole, CLOSE);
    }
}

#[test]
fn a_frozen_a_is_no_part_of_what_trains() {
    let case = Case::open("bert/sequence-lora-ffa");
    assert!(matches!(&case.settings.peft, Peft::Lora(lora) if lora.freeze_a));
    let (trainer, ..) = open(&case);
    assert!(trainer.weights().keys().all(|name| !name.contains("lora_A")));
    assert!(trainer.weights().keys().any(|name| name.contains("lora_B")));
}
