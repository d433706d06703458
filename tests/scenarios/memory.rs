//! Resident memory of a process that trains: flat over many steps. This file has one test, because it measures the whole process.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_base::random::Random;
use skiff_contract::memory::own_memory;
use skiff_tests::{packs, places};
use skiff_trainer::{Batch, Form, LayerMask, Sequence, Target, Trainer};
use std::path::Path;
use std::sync::Arc;

fn batch(random: &mut Random, form: &Form, examples: usize, longest: usize) -> Batch {
    let mut sequence = || {
        let length = 1 + random.below(longest);
        Sequence {
            ids: (0..length).map(|_| random.below(30_000) as u32).collect(),
            types: vec![0; length],
            target: Target::Class(0),
        }
    };
    Batch::new(&(0..examples).map(|_| sequence()).collect::<Vec<_>>(), form).unwrap()
}

#[test]
fn memory_stays_flat_over_steps_of_changing_length() {
    let folder = tempfile::tempdir().unwrap();
    let pack = Arc::new(packs::minilm(&["0", "1"], folder.path()));
    let mut trainer = Trainer::open(&places::runtime(), pack).unwrap();
    let resident = || own_memory(Path::new("/")).resident_bytes;
    let (mask, mut random) = (LayerMask::all(6), Random::new(1));
    let mut steps = |trainer: &mut Trainer, count| {
        for _ in 0..count {
            let batch = batch(&mut random, trainer.form(), 8, 64);
            trainer.step(&batch, &mask).unwrap();
        }
        resident()
    };
    let warm = steps(&mut trainer, 20);
    let later = steps(&mut trainer, 60);
    // Memory that 60 further steps may add: an eighth of the memory of the first 20.
    assert!(later < warm + warm / 8, "{warm} bytes after 20 steps, {later} after 80");
}
