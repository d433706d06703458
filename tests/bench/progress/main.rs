//! Cost of showing a large fleet: 10,000 devices send telemetry every 10 seconds through the real hub, and a watcher follows them
//! through a real control socket. Prints the longest turns of the coordinator's loop and the bytes to the watcher; with `--json FILE`
//! the same for programs. `--quick` measures for a shorter time.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may stop")]

mod devices;
mod watcher;

use devices::Devices;
use serde_json::json;
use skiff_coordinator::board::Board;
use skiff_coordinator::doors::mqtt::Writer;
use skiff_coordinator::doors::socket;
use skiff_coordinator::hub::{Effect, Hub, Parts};
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::run::RunSettings;
use skiff_coordinator::serve::{PROGRESS_EVERY, SHOWN_AT_ONCE};
use skiff_coordinator::store::SqliteStore;
use skiff_link::LinkEvent;
use skiff_models::pack::{BuildOptions, build};
use skiff_protocol::{BootId, RunId, Signer, Timestamp};
use skiff_tests::{places, results};
use skiff_trainer::clock::monotonic;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use watcher::{Seen, Watcher};

const DEVICES: usize = 10_000;
/// Maximum number of messages in a turn, as in the coordinator.
const BATCH: usize = 64;
/// Goals: longest turn in milliseconds, and bytes per second to a watcher.
const GOALS: (f64, f64) = (20.0, 50_000.0);

/// Durations of turns of the loop, in milliseconds.
#[derive(Debug, Default)]
struct Turns(Vec<f64>);

impl Turns {
    fn measure<T>(&mut self, turn: impl FnOnce() -> T) -> T {
        let begun = monotonic();
        let done = turn();
        self.0.push(monotonic().saturating_sub(begun).as_secs_f64() * 1e3);
        done
    }

    /// Returns the duration that a share of the turns does not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(((sorted.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0.0)
    }
}

/// Turns of one repetition, by kind.
#[derive(Debug, Default)]
struct Measured {
    births: Turns,
    start: Turns,
    telemetry: Turns,
    shows: Turns,
    ticks: Turns,
}

impl Measured {
    fn kinds(&self) -> [(&'static str, &Turns); 5] {
        [
            ("births", &self.births),
            ("start of a run", &self.start),
            ("messages", &self.telemetry),
            ("showing", &self.shows),
            ("ticks", &self.ticks),
        ]
    }
}

fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let (repetitions, seconds) = if is_quick { (3, 6) } else { (5, 20) };
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("pack");
    let labels = vec!["no".to_owned(), "yes".to_owned()];
    build(&BuildOptions::new(&places::tree().join("tests/golden/bert/checkpoint"), &pack, labels), &mut |_| {})
        .unwrap();
    let model = Arc::new(Model::open(&pack).unwrap());
    let mut measured = Vec::new();
    for ordered in [200, DEVICES as u32] {
        println!(
            "{DEVICES} devices, {ordered} of them with an order, {seconds} seconds in each of {repetitions} repetitions"
        );
        let all: Vec<(Measured, Seen)> =
            (0..repetitions).map(|_| repetition(&model, ordered, Duration::from_secs(seconds))).collect();
        measured.push(report(ordered, &all));
    }
    results::store("progress", measured.into());
}

/// Prints the median over the repetitions, and returns it for programs.
fn report(ordered: u32, all: &[(Measured, Seen)]) -> serde_json::Value {
    println!("{:<16} {:>8} {:>12} {:>12} {:>12}", "turns", "number", "median ms", "99.9 % ms", "longest ms");
    let mut kinds = serde_json::Map::new();
    let mut worst: f64 = 0.0;
    for (at, (name, turns)) in all[0].0.kinds().into_iter().enumerate() {
        let over = |share| median(all.iter().map(|(measured, _)| measured.kinds()[at].1.quantile(share)));
        let (middle, most, longest) = (over(0.5), over(0.999), over(1.0));
        println!("{name:<16} {:>8} {middle:>12.3} {most:>12.3} {longest:>12.3}", turns.0.len());
        kinds.insert(name.to_owned(), json!({ "median_ms": middle, "most_ms": most, "longest_ms": longest }));
        worst = worst.max(longest);
    }
    let first_bytes = median(all.iter().map(|(_, seen)| seen.first_bytes as f64));
    let first_ms = median(all.iter().map(|(_, seen)| seen.first_ms));
    let per_second = median(all.iter().map(|(_, seen)| seen.bytes_per_second));
    println!(
        "a watcher has the whole state ({:.1} MB) after {first_ms:.0} ms, then gets {per_second:.0} bytes/s",
        first_bytes / 1e6
    );
    goal("longest turn", worst, GOALS.0, "ms");
    goal("bytes to a watcher", per_second, GOALS.1, "bytes/s");
    println!();
    json!({
        "devices": DEVICES, "ordered": ordered, "turns": kinds, "longest_ms": worst,
        "first_bytes": first_bytes, "first_ms": first_ms, "bytes_per_second": per_second,
    })
}

fn goal(what: &str, found: f64, most: f64, unit: &str) {
    let verdict = if found < most { "reached" } else { "MISSED" };
    println!("goal {verdict}: {what} {found:.1} {unit}, at most {most:.0}");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn repetition(model: &Arc<Model>, ordered: u32, length: Duration) -> (Measured, Seen) {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = open(model, folder.path());
    let mut devices = Devices::new(DEVICES, model.pack);
    let mut measured = Measured::default();
    let mut board = Board::default();
    let now = || Timestamp(1_000_000) + monotonic();
    take(&mut hub.link(vec![LinkEvent::Up], now()).unwrap(), &mut devices);
    for at in (0..DEVICES).step_by(BATCH) {
        let events = (at..DEVICES.min(at + BATCH)).map(|device| devices.birth(device)).collect();
        take(&mut measured.births.measure(|| hub.link(events, now())).unwrap(), &mut devices);
    }
    while measured.shows.measure(|| hub.show(&mut board, SHOWN_AT_ONCE, now())) {}
    let settings = RunSettings {
        rounds: 2,
        devices: ordered,
        quorum: 1,
        evaluate_examples: 0,
        final_examples: 0,
        ..RunSettings::default()
    };
    let started = measured.start.measure(|| hub.start_run(RunId(1), None, settings, now())).unwrap();
    take(&mut started.unwrap(), &mut devices);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = runtime.block_on(async {
        let listener = socket::listen(folder.path()).unwrap();
        let (published, shown) = watch::channel(board);
        let (calls, _unanswered) = mpsc::channel(1);
        let door = tokio::spawn(socket::serve(listener, calls, shown));
        let watcher = Watcher::start(folder.path(), length);
        let (begun, mut last_shown) = (monotonic(), monotonic());
        while !watcher.has_ended() {
            let events = devices.due(monotonic().saturating_sub(begun), BATCH);
            let turn = || {
                let deadline = hub.deadline();
                let effects = if events.is_empty() { Vec::new() } else { hub.link(events, now()).unwrap() };
                (deadline, effects)
            };
            let (deadline, mut effects) = measured.telemetry.measure(turn);
            take(&mut effects, &mut devices);
            if deadline.is_some_and(|deadline| deadline <= now()) {
                take(&mut measured.ticks.measure(|| hub.tick(now())).unwrap(), &mut devices);
            }
            if monotonic().saturating_sub(last_shown) >= PROGRESS_EVERY {
                last_shown = monotonic();
                measured.shows.measure(|| {
                    published.send_modify(|board| {
                        hub.show(board, SHOWN_AT_ONCE, now());
                    });
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        door.abort();
        watcher.seen()
    });
    (measured, seen)
}

fn open(model: &Arc<Model>, folder: &Path) -> Hub {
    let blobs: Arc<dyn skiff_blobs::Blobs> =
        Arc::new(skiff_blobs::DiskBlobs::open(folder.join("blobs"), 64 << 30).unwrap());
    let fleet: skiff_protocol::FleetId = devices::FLEET.parse().unwrap();
    let parts = Parts {
        fleet: fleet.clone(),
        devices: DEVICES,
        slots: 8,
        model: Arc::clone(model),
        store: Box::new(SqliteStore::open(folder, &*blobs).unwrap()),
        blobs,
        writer: Writer::new(fleet, Signer::new([1; 32]), BootId(1)),
    };
    Hub::open(parts, Timestamp(1_000_000)).unwrap()
}

/// Lets the devices hear what the coordinator says.
fn take(effects: &mut Vec<Effect>, devices: &mut Devices) {
    for effect in effects.drain(..) {
        if let Effect::Publish(publication) = effect {
            devices.hear(&publication);
        }
    }
}
