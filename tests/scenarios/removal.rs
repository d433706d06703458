//! A device that is gone is removed from a fleet over a real broker, while a run waits for it.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_api::progress::{Phase, Presence, Progress};
use skiff_api::removal::Removal;
use skiff_tests::brokers::Broker;
use skiff_tests::fleet::{FLEET, Fleet};
use skiff_tests::wait::eventually;

const DEVICES: [&str; 2] = ["oak", "elm"];
/// Each round waits ten minutes for a device that went offline.
const SETTINGS: &str = "--name felled --rounds 2 --devices 2 --quorum 1 --steps 20 --batch 4 --set grace_ms=600000 \
    --set evaluate_examples=0 --set final_examples=0";

fn shown(fleet: &Fleet) -> Progress {
    serde_json::from_slice(&fleet.skiff(&["device", "list", "--json"]).output().unwrap().stdout).unwrap()
}

fn names(fleet: &Fleet) -> Vec<String> {
    shown(fleet).devices.iter().map(|device| device.device.to_string()).collect()
}

fn is_lost(fleet: &Fleet, name: &str) -> bool {
    shown(fleet).devices.iter().any(|device| device.device.as_str() == name && device.presence == Presence::Lost)
}

fn removals(fleet: &Fleet) -> Vec<Removal> {
    let listed = fleet.skiff(&["device", "list", "--removed", "--json"]).output().unwrap().stdout;
    String::from_utf8(listed).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a command, and returns whether it succeeded, with everything that it wrote on one line.
fn said(fleet: &Fleet, arguments: &[&str]) -> (bool, String) {
    let ended = fleet.skiff(arguments).env("USER", "ann").env_remove("SUDO_USER").output().unwrap();
    let text = [ended.stdout, ended.stderr].concat();
    (ended.status.success(), String::from_utf8(text).unwrap().split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn a_removed_device_holds_up_no_run_and_stays_away_until_it_connects_again_to_mosquitto() {
    removed_and_returned(&Broker::mosquitto(FLEET, &DEVICES));
}

#[test]
fn a_removed_device_holds_up_no_run_and_stays_away_until_it_connects_again_to_the_embedded_broker() {
    removed_and_returned(&Broker::embedded(&DEVICES));
}

fn removed_and_returned(broker: &Broker) {
    let mut fleet = Fleet::prepare(broker, &DEVICES, 40);
    fleet.start_coordinator();
    DEVICES.iter().for_each(|device| fleet.start_agent(device));
    fleet.hold("elm", 1);
    fleet.start_run(&SETTINGS.split_whitespace().collect::<Vec<_>>());
    fleet.reached(&["elm"], 1);
    let (done, text) = said(&fleet, &["device", "remove", "elm"]);
    assert!(!done && text.contains("elm is online") && text.contains("--force"), "{text}");

    fleet.kill_agent("elm");
    fleet.release("elm", 1);
    assert!(eventually(|| is_lost(&fleet, "elm")), "{}", fleet.log("coordinator"));
    let (done, text) = said(&fleet, &["device", "remove", "elm", "--reason", "struck by lightning"]);
    assert!(done && text.contains("elm is removed from the fleet by ann"), "{text}");
    let (_, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!((run.phase, run.name.as_deref()), (Phase::Completed, Some("felled")), "{:?}", run.reason);
    assert_eq!(run.closed.iter().map(|closed| closed.updates).collect::<Vec<_>>(), [1, 1], "nobody waited for elm");

    assert_eq!(names(&fleet), ["oak"]);
    assert!(eventually(|| removals(&fleet)[0].cleared_ms.is_some()), "{}", fleet.log("coordinator"));
    fleet.kill_coordinator();
    fleet.start_coordinator();
    assert!(eventually(|| shown(&fleet).connected && names(&fleet).contains(&"oak".to_owned())));
    assert_eq!(names(&fleet), ["oak"], "the broker does not bring it back");
    let (_, text) = said(&fleet, &["device", "show", "elm"]);
    for part in ["is not in the fleet; this is its history", "felled", "by ann: struck by lightning"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    fleet.start_agent("elm");
    assert!(eventually(|| names(&fleet) == ["elm", "oak"]), "{}", fleet.log("coordinator"));
    let (_, text) = said(&fleet, &["device", "show", "elm"]);
    assert!(text.contains("is a new member: it came back after ann removed it"), "{text}");
    assert!(eventually(|| removals(&fleet)[0].returned_ms.is_some()));
    assert!(said(&fleet, &["device", "remove", "elm", "--force"]).0);
    assert_eq!(names(&fleet), ["oak"]);
    assert!(!said(&fleet, &["device", "show", "ash"]).0, "no such device");
}
