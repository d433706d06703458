//! Simulates whole fleets: the real coordinator (hub, engine, configurator, transfers, journal, blobs) and the real engines and state
//! folders of agents, in one process with virtual time and a broker in memory. Training is replaced by a cheap stand-in.
//!
//! One seed decides everything: the fleet, the settings, the faults and the order of events. A failing seed is printed with the
//! command that repeats it. `SKIFF_SEEDS` sets the number of seeds, `SKIFF_SEED` repeats one and prints its events,
//! `SKIFF_SWARM=1` turns random faults off in each seed.
//!
//! Modules: [`faults`] (all faults and their frequencies), [`broker`], [`disk`] (writes that end the process), [`coordinator`] and
//! [`device`] (the two programs), [`training`] (the stand-in), [`world`] (time and events), [`checks`] (what must hold).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, prints its totals, and looks for a few kinds of message"
)]

mod broker;
mod checks;
mod coordinator;
mod device;
mod disk;
mod faults;
mod training;
mod world;

use ndarray::ArrayD;
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::run::ModelTask;
use skiff_models::task::Task;
use skiff_models::tensors::{self, NamedTensors, Schema, TensorSpec};
use skiff_protocol::Digest;
use skiff_trainer::clock::monotonic;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use world::{Totals, World};

/// Number of seeds in `make test`.
const SEEDS: u64 = 300;

/// Returns a model of three layers whose updates have two chunks.
fn model() -> Arc<Model> {
    let spec = |name: &str, layer, numbers| TensorSpec { name: name.to_owned(), shape: vec![numbers], layer };
    let tensors = vec![
        spec("head", None, 1_000),
        spec("layer.0", Some(0), 8_000),
        spec("layer.1", Some(1), 8_000),
        spec("layer.2", Some(2), 8_000),
    ];
    let initial: NamedTensors =
        tensors.iter().map(|spec| (spec.name.clone(), ArrayD::from_elem(spec.shape.clone(), 0.5))).collect();
    let task = ModelTask { task: Task::SequenceClassification, labels: vec!["no".to_owned(), "yes".to_owned()] };
    let initial = tensors::write(&initial).unwrap();
    Arc::new(Model { pack: Digest([9; 32]), schema: Schema { tensors }, layers: 3, initial, task })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn every_seed_ends_as_it_must() {
    let (model, swarm) = (model(), number("SKIFF_SWARM").is_some_and(|swarm| swarm > 0));
    if let Some(seed) = number("SKIFF_SEED") {
        println!("{:#?}", World::new(seed, &model, swarm, true).run());
        return;
    }
    let (seeds, begun) = (number("SKIFF_SEEDS").unwrap_or(SEEDS), monotonic());
    let (next, results) = (AtomicU64::new(1), Mutex::new((Totals::default(), Vec::new())));
    let simulate = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > seeds {
                break;
            }
            let done = catch_unwind(AssertUnwindSafe(|| World::new(seed, &model, swarm, false).run()));
            let (sum, failed) = &mut *results.lock().unwrap_or_else(PoisonError::into_inner);
            match done {
                Ok(totals) => sum.add(&totals),
                Err(_) => {
                    println!("seed {seed} failed; repeat it with: SKIFF_SEED={seed} make sim");
                    failed.push(seed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| drop(scope.spawn(simulate)));
    });
    let (sum, failed) = results.into_inner().unwrap();
    println!("{seeds} seeds in {:.1} s: {sum:?}", monotonic().saturating_sub(begun).as_secs_f64());
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {failed:?}", failed.len());
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let model = model();
    let run = |seed| World::new(seed, &model, true, false).run();
    for seed in [3, 14] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
