//! A step touches only the pages of active layers in the mapped weights.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_tests::{packs, places};
use skiff_trainer::{Batch, LayerMask, Sequence, Target, Trainer};
use std::sync::Arc;

/// Size of a MiniLM layer: 12 matrices of 384 x 384 f32 values, and its vectors.
const LAYER_BYTES: u64 = (12 * 384 * 384 + 13 * 384) * 4;
/// Rows of the tables, the pooler, and the pages that the kernel maps around a fault.
const BESIDE: u64 = 4 << 20;

/// Resident bytes of the mapped weights, as `/proc/self/smaps` has them.
fn resident() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut kib = 0;
    for line in maps.lines() {
        if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            inside = line.ends_with("frozen.safetensors");
        } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| inside) {
            kib += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    kib * 1024
}

#[test]
fn a_step_touches_the_weights_of_its_active_layers_only() {
    let folder = tempfile::tempdir().unwrap();
    let pack = Arc::new(packs::minilm(&["0", "1"], folder.path()));
    let mut trainer = Trainer::open(&places::runtime(), pack).unwrap();
    let opened = resident();
    assert!(opened < BESIDE, "opening and verifying leaves {opened} bytes resident");
    let sequence = Sequence { ids: (1000..1032).collect(), types: vec![0; 32], target: Target::Class(0) };
    let batch = Batch::new(&[sequence], trainer.form()).unwrap();
    let mut known = 0;
    for active in [vec![2], vec![2, 5], vec![0, 2, 5]] {
        let layers = active.len() as u64;
        trainer.step(&batch, &LayerMask::of(active.clone(), 6).unwrap()).unwrap();
        known = resident();
        let expected = layers * LAYER_BYTES;
        assert!(
            known > expected / 2 && known < expected + BESIDE,
            "layers {active:?}: {known} bytes resident, {expected} expected"
        );
    }
    trainer.step(&batch, &LayerMask::all(6)).unwrap();
    assert!(resident() > known + 2 * LAYER_BYTES, "the other three come in when they run");
}
