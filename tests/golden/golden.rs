//! Every number of a training step against PyTorch in float64, and against differences of the loss, through the agent's
//! own path: pack, mapped weights, ONNX Runtime.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_models::tensors::NamedTensors;
use skiff_tests::compare::{CLOSE, DIFFERENCES, FED_BACK, FED_BACK_WEIGHTS, Tensors, assert_close, read};
use skiff_tests::{packs, places};
use skiff_trainer::inputs::read_batch;
use skiff_trainer::optimizer::AdamW;
use skiff_trainer::{Batch, LayerMask, Trainer};
use std::sync::Arc;

/// A trainer of a golden case with its weights, its batch, and how many layers it has.
fn open(case: &str) -> (Trainer, Batch, usize) {
    let folder = tempfile::tempdir().unwrap();
    let pack = packs::golden(case, folder.path());
    let manifest = pack.manifest().clone();
    let golden = packs::golden_case(case);
    let bytes = std::fs::read(golden.join("batch.safetensors")).unwrap();
    let sequences = read_batch(&bytes, &manifest.layout).unwrap();
    let weights = pack.schema().read(&std::fs::read(golden.join("weights.safetensors")).unwrap()).unwrap();
    // Sessions and mapping stay valid when the folder goes.
    let mut trainer = Trainer::open(&places::runtime(), Arc::new(pack)).unwrap();
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

#[test]
fn loss_logits_and_every_gradient_equal_pytorch_for_every_mask() {
    for case in ["small", "odd"] {
        let (mut trainer, batch, layers) = open(case);
        let mut compared = 0;
        for entry in std::fs::read_dir(packs::golden_case(case)).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            let Ok(active) = stem.split('-').map(str::parse).collect::<Result<Vec<usize>, _>>() else { continue };
            let mask = LayerMask::of(active, layers).unwrap();
            let expected = read(&std::fs::read(&path).unwrap());
            assert_close(&format!("{case} {stem}"), &outcome(&mut trainer, &batch, &mask), &expected, CLOSE);
            compared += 1;
        }
        assert!(compared >= 3, "{case}: only {compared} masks were there to compare");
    }
}

#[test]
fn fifty_steps_of_adamw_follow_pytorch() {
    let (mut trainer, batch, layers) = open("small");
    let mut expected = read(&std::fs::read(packs::golden_case("training.safetensors")).unwrap());
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
    let (mut trainer, batch, layers) = open("odd");
    let mask = LayerMask::all(layers);
    let weights = trainer.weights().clone();
    let gradients = trainer.step(&batch, &mask).unwrap().gradients;
    for (name, gradient) in &gradients {
        // Along the gradient itself the difference is largest against the loss's rounding.
        let norm = gradient.iter().map(|value| value * value).sum::<f32>().sqrt();
        let mut at = |distance: f32| {
            let mut moved = weights.clone();
            moved.get_mut(name).unwrap().scaled_add(distance / norm, gradient);
            trainer.set_weights(moved).unwrap();
            f64::from(trainer.step(&batch, &mask).unwrap().loss)
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!(
            (slope - f64::from(norm)).abs() <= DIFFERENCES * f64::from(norm) + 1e-4,
            "{name}: {norm}, difference {slope}"
        );
    }
}

#[test]
fn the_same_step_twice_gives_the_same_bits() {
    let (mut trainer, batch, layers) = open("odd");
    let mask = LayerMask::all(layers);
    let first = trainer.step(&batch, &mask).unwrap();
    let second = trainer.step(&batch, &mask).unwrap();
    assert_eq!(first.loss.to_bits(), second.loss.to_bits());
    assert_eq!(first.gradients, second.gradients);
}

#[test]
fn a_skipped_layer_has_no_gradient_and_does_not_change_the_result() {
    let (mut trainer, batch, layers) = open("small");
    let mask = LayerMask::of(vec![0, 2], layers).unwrap();
    let before = trainer.step(&batch, &mask).unwrap();
    assert!(before.gradients.keys().all(|name| !name.contains("layer.1.")));
    let mut weights = trainer.weights().clone();
    weights.iter_mut().filter(|(name, _)| name.contains("layer.1.")).for_each(|(_, tensor)| tensor.fill(1e3));
    trainer.set_weights(weights).unwrap();
    assert_eq!(trainer.step(&batch, &mask).unwrap().loss.to_bits(), before.loss.to_bits());
}
