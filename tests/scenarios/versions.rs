//! Programs of two releases in one fleet, over a real broker: today's programs, and the previous ones, which speak only protocol version 2.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_api::progress::{Phase, Progress, RunProgress};
use skiff_tests::brokers::Broker;
use skiff_tests::fleet::{FLEET, Fleet};
use skiff_tests::places::Build;

const DEVICES: [&str; 2] = ["oak", "elm"];
const SETTINGS: &str = "--rounds 2 --devices 2 --quorum 2 --steps 10 --batch 4 --set evaluate_examples=20";

/// A coordinator, and an agent for each of [`DEVICES`].
fn started(broker: &Broker, coordinator: Build, agents: [Build; 2]) -> Fleet {
    let mut fleet = Fleet::prepare(broker, &DEVICES, 60);
    fleet.start_coordinator_of(coordinator);
    for (device, build) in DEVICES.into_iter().zip(agents) {
        fleet.start_agent_of(build, device);
    }
    fleet
}

fn start_run(fleet: &Fleet) {
    fleet.start_run(&SETTINGS.split_whitespace().collect::<Vec<_>>());
}

/// Waits for the end of the run, in which every device took part in every round.
fn completed(fleet: &Fleet) -> Progress {
    let (progress, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    let RunProgress { phase, closed, reason, accuracy_after, .. } = &run;
    assert_eq!((*phase, closed.len()), (Phase::Completed, 2), "{reason:?}");
    assert!(closed.iter().all(|round| round.updates == 2 && round.skipped.is_none()), "{closed:?}");
    assert!(accuracy_after.is_some(), "the end is evaluated: {run:?}");
    progress
}

fn a_run_completes(coordinator: Build, agents: [Build; 2]) {
    let broker = Broker::mosquitto(FLEET, &DEVICES);
    let mut fleet = started(&broker, coordinator, agents);
    start_run(&fleet);
    let progress = completed(&fleet);
    assert!(progress.refused_messages.is_empty(), "the coordinator reads everything: {:?}", progress.refused_messages);
    assert!(fleet.stop_agents(), "agents stop in order");
    for (device, build) in DEVICES.into_iter().zip(agents) {
        let log = std::fs::read_to_string(fleet.path(&format!("{device}.log"))).unwrap();
        let mut refusals = log.lines().filter(|line| line.contains("message refused"));
        // The coordinator announces its versions on a topic that protocol 2 did not have.
        let is_expected = |line: &str| build == Build::Protocol2 && line.contains("/all/versions");
        assert!(refusals.all(is_expected), "{device} reads everything else: {log}");
    }
}

#[test]
fn agents_of_protocol_2_complete_a_run_with_the_present_coordinator() {
    a_run_completes(Build::Present, [Build::Protocol2; 2]);
}

#[test]
fn present_agents_complete_a_run_with_the_coordinator_of_protocol_2() {
    a_run_completes(Build::Protocol2, [Build::Present; 2]);
}

#[test]
fn agents_of_both_releases_complete_a_run_together() {
    a_run_completes(Build::Present, [Build::Protocol2, Build::Present]);
}

/// The coordinator is updated in the middle of a run. Its state folder has an older layout, written by a program that spoke
/// only protocol version 2.
#[test]
fn a_run_of_the_coordinator_of_protocol_2_is_completed_by_the_present_one() {
    let broker = Broker::mosquitto(FLEET, &DEVICES);
    let mut fleet = started(&broker, Build::Protocol2, [Build::Protocol2, Build::Present]);
    fleet.hold("elm", 2);
    start_run(&fleet);
    let is_evaluated = |run: &RunProgress| run.closed.first().is_some_and(|round| round.accuracy.is_some());
    let (_, before) = fleet.watch("the evaluation of round 1", |_, run| is_evaluated(run));
    fleet.reached(&["elm"], 2);
    fleet.kill_coordinator();
    fleet.start_coordinator_of(Build::Present);
    fleet.release("elm", 2);
    let progress = completed(&fleet);
    let after = progress.run.unwrap();
    assert_eq!((&before.run, before.closed[0].accuracy), (&after.run, after.closed[0].accuracy), "nothing is lost");
    assert!(fleet.stop_agents(), "agents stop in order");
}
