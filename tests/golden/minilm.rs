//! The forward pass of the real MiniLM, against the cosines that its publishers' own runtime gives.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use ndarray::{Array1, Axis};
use skiff_tests::{packs, places};
use skiff_trainer::{Batch, LayerMask, Sequence, Target, Trainer};
use skiff_worker::corpus::tokenizer;
use std::sync::Arc;

const ANCHOR: &str = "That is a happy person";
const OTHERS: [&str; 3] = ["That is a happy dog", "That is a very happy person", "Today is a sunny day"];
/// The expected cosines are given to four digits.
const FOUR_DIGITS: f32 = 6e-5;

/// Mean over the tokens, scaled to length 1: what sentence-transformers does after the last layer.
fn embed(trainer: &mut Trainer, sequence: Sequence, mask: &LayerMask) -> Array1<f32> {
    let batch = Batch::new(&[sequence], trainer.form()).unwrap();
    let hidden = trainer.hidden(&batch, mask).unwrap();
    let mean: Array1<f32> = hidden.mean_axis(Axis(0)).unwrap().into_dimensionality().unwrap();
    let length = mean.dot(&mean).sqrt();
    mean / length
}

#[test]
fn sentences_are_as_alike_as_the_reference_says_with_all_layers_and_with_two_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let pack = Arc::new(packs::minilm(&["0", "1"], folder.path()));
    let tokenizer = tokenizer(&pack, 128).unwrap();
    let sequence = |text: &str| {
        let encoding = tokenizer.encode_fast(text, true).unwrap();
        Sequence { ids: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec(), target: Target::Class(0) }
    };
    assert_eq!(sequence(ANCHOR).ids, [101, 2008, 2003, 1037, 3407, 2711, 102]);
    let mut trainer = Trainer::open(&places::runtime(), pack).unwrap();
    let cases = [(vec![0, 1, 2, 3, 4, 5], [0.6946, 0.9429, 0.2569]), (vec![0, 2, 3, 5], [0.7571, 0.9350, 0.2314])];
    for (active, expected) in cases {
        let mask = LayerMask::of(active, 6).unwrap();
        let anchor = embed(&mut trainer, sequence(ANCHOR), &mask);
        for (other, expected) in OTHERS.iter().zip(expected) {
            let cosine = anchor.dot(&embed(&mut trainer, sequence(other), &mask));
            assert!(
                (cosine - expected).abs() < FOUR_DIGITS,
                "{other:?}, layers {:?}: {cosine}, expected {expected}",
                mask.active()
            );
        }
    }
}
