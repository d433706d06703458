//! Cost of the journal: commits of one record on the disk of the build folder, with and without its protections. A table on
//! standard output; with `--json FILE` the same for programs.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may stop")]

use serde_json::json;
use skiff_blobs::MemoryBlobs;
use skiff_coordinator::run::{Entry, Record};
use skiff_coordinator::store::{SqliteStore, Store as _, Traffic, journal};
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{Digest, RunId};
use skiff_tests::results;
use skiff_trainer::clock::monotonic;

const COMMITS: u32 = 500;
const RUN: RunId = RunId(1);
const LAYERS: u32 = 12;

fn main() {
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut whole = SqliteStore::open(folder.path(), &MemoryBlobs::new(0)).unwrap();
    // A store that is opened only for reading has no place file.
    let mut without_place = SqliteStore::open_existing(folder.path()).unwrap();
    let record = update();
    let commit = |store: &mut SqliteStore| {
        mean_us(|| store.append(RUN, std::slice::from_ref(&record), 1, Traffic { up: 1, down: 1 }).unwrap())
    };
    // Each is measured twice, in turn, because the first commits create the files.
    commit(&mut without_place);
    let measured = [
        ("commit", commit(&mut whole)),
        ("commit without journal.last", commit(&mut without_place)),
        ("bytes and checksum of a record", mean_us(|| drop(journal::Entry::from(&record).encode(RUN, 7)))),
    ];
    for (name, microseconds) in measured {
        println!("{name:<32} {microseconds:>10.1} us");
    }
    println!("\n{COMMITS} commits of one stored update of {LAYERS} layers, each synchronised; means.");
    results::store("journal", json!(measured.into_iter().collect::<std::collections::BTreeMap<_, _>>()));
}

fn mean_us(mut work: impl FnMut()) -> f64 {
    let begun = monotonic();
    (0..COMMITS).for_each(|_| work());
    1e6 * monotonic().saturating_sub(begun).as_secs_f64() / f64::from(COMMITS)
}

fn update() -> Entry {
    let report = TrainReport {
        examples: 80,
        tokens: 2_000,
        steps: 10,
        mean_loss: 0.7,
        shared_layers: (0..LAYERS).collect(),
        importance: vec![0.5; LAYERS as usize],
        mean_active_layers: 8.0,
        train_ms: 9_000,
        step_ms: 900.0,
        peak_rss_bytes: 500 << 20,
        probe: None,
    };
    let record =
        Record::UpdateStored { device: "hall".parse().unwrap(), update: Digest([7; 32]), report, distance: 2.5 };
    Entry { at_ms: 7, record }
}
