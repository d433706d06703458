//! Cost of a round beyond the training itself: real agents over Mosquitto, the MiniLM pack (0.3 MB each way), one short
//! training step. A table on standard output; with `--json FILE` the same for programs.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may stop")]

use serde_json::json;
use skiff_api::progress::RunProgress;
use skiff_tests::brokers::Broker;
use skiff_tests::fleet::{FLEET, Fleet};
use skiff_tests::results;

const ROUNDS: &str = "20";
const NAMES: [&str; 8] = ["d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8"];

fn main() {
    println!(
        "{:>6} {:>16} {:>16} {:>16} {:>14}",
        "agents", "median ms/round", "largest ms", "bytes up/round", "bytes down"
    );
    let mut measured = Vec::new();
    for agents in [2, 4, 8] {
        let run = run(&NAMES[..agents]);
        let mut beyond: Vec<u64> =
            run.closed.iter().map(|closed| closed.train_ms.saturating_sub(closed.longest_training_ms)).collect();
        // The first round opens the sessions and sends the first weights.
        let first = beyond.remove(0);
        beyond.sort_unstable();
        let (median, largest) = (beyond[beyond.len() / 2], beyond[beyond.len() - 1]);
        let per_round = |bytes: u64| bytes / run.closed.len() as u64;
        println!(
            "{agents:>6} {median:>16} {largest:>16} {:>16} {:>14}   (first round: {first} ms)",
            per_round(run.bytes_up),
            per_round(run.bytes_down)
        );
        measured.push(json!({ "agents": agents, "median_ms": median, "largest_ms": largest, "first_ms": first }));
    }
    results::store("rounds", measured.into());
}

fn run(devices: &[&str]) -> RunProgress {
    let broker = Broker::mosquitto(FLEET, devices);
    let mut fleet = Fleet::prepare(&broker, devices, 20);
    fleet.start_coordinator();
    devices.iter().for_each(|device| fleet.start_agent(device));
    let count = devices.len().to_string();
    let set = ["--set", "evaluate_examples=0", "--set", "final_examples=0"];
    fleet.start_run(
        &[&["--rounds", ROUNDS, "--devices", &count, "--quorum", &count, "--steps", "1", "--batch", "1"], &set[..]]
            .concat(),
    );
    let (_, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert!(run.closed.iter().all(|closed| closed.skipped.is_none()), "{:?}", run.closed);
    run
}
