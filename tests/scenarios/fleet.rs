//! Real processes over real brokers: agents and coordinators are killed, brokers restarted, bytes forged; the run continues.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_api::measures::Measure;
use skiff_api::progress::{DeviceProgress, Phase, Presence, Progress};
use skiff_link::{BrokerSettings, Link, LinkConfig, LinkEvent, Publication, Qos};
use skiff_tests::PATIENCE;
use skiff_tests::brokers::{Broker, COORDINATOR, password};
use skiff_tests::fleet::{FLEET, Fleet};
use skiff_tests::places::binary;
use skiff_tests::wait::eventually;
use std::process::Command;

const DEVICES: [&str; 3] = ["oak", "elm", "ash"];
const SETTINGS: &str = "--rounds 4 --devices 3 --quorum 2 --steps 30 --batch 4 --dropout 0.3 --set grace_ms=3000 \
    --set evaluate_examples=30 --set sharing={least_important=4}";

fn device<'a>(progress: &'a Progress, name: &str) -> &'a DeviceProgress {
    progress.devices.iter().find(|known| known.device.as_str() == name).unwrap()
}

/// A coordinator, and an agent for each of `devices`.
fn started(broker: &Broker, devices: &[&str]) -> Fleet {
    let mut fleet = Fleet::prepare(broker, devices, 60);
    fleet.start_coordinator();
    devices.iter().for_each(|device| fleet.start_agent(device));
    fleet
}

/// An agent is killed in the second round, the coordinator in the fourth.
fn a_run_survives_kills(broker: &Broker) {
    let mut fleet = started(broker, &DEVICES);
    fleet.hold("oak", 2);
    // Round 3 must not end before oak is back.
    fleet.hold("elm", 3);
    fleet.hold("oak", 4);
    fleet.start_run(&SETTINGS.split_whitespace().collect::<Vec<_>>());

    fleet.reached(&["oak"], 2);
    fleet.kill_agent("oak");
    fleet.release("oak", 2);
    let (_, run) = fleet.watch("round 2 closed", |_, run| run.closed.iter().any(|closed| closed.round == 2));
    let second = run.closed.iter().find(|closed| closed.round == 2).unwrap();
    assert_eq!((second.updates, second.skipped.as_deref()), (2, None), "the round ends with those who are left");

    fleet.start_agent("oak");
    fleet.watch("oak back", |progress, _| device(progress, "oak").presence == Presence::Here);
    fleet.release("elm", 3);
    fleet.reached(&["oak"], 4);
    let (_, run) = fleet.watch("three rounds closed", |_, run| run.closed.len() == 3);
    let before = run.closed;
    fleet.kill_coordinator();
    fleet.start_coordinator();
    fleet.release("oak", 4);

    let (progress, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!(run.phase, Phase::Completed, "{:?}", run.reason);
    assert_eq!(run.closed.len(), 4);
    for (was, is) in before.iter().zip(&run.closed) {
        assert_eq!(
            (was.round, was.updates, was.accuracy),
            (is.round, is.updates, is.accuracy),
            "nothing merged is lost"
        );
    }
    assert_eq!((run.closed[3].skipped.as_deref(), run.closed[3].updates), (None, 3), "the same round resumed");
    assert!(run.accuracy_after.is_some(), "the end is evaluated");
    assert!(device(&progress, "oak").updates >= 2, "oak rejoined: {progress:?}");
    assert!(fleet.stop_agents(), "agents stop in order");
}

#[test]
fn a_run_over_mosquitto_survives_a_killed_agent_and_a_killed_coordinator() {
    a_run_survives_kills(&Broker::mosquitto(FLEET, &DEVICES));
}

#[test]
fn a_run_over_the_embedded_broker_survives_a_killed_agent_and_a_killed_coordinator() {
    a_run_survives_kills(&Broker::embedded(&DEVICES));
}

#[test]
fn a_run_continues_when_the_broker_is_killed_and_comes_back() {
    let mut broker = Broker::mosquitto(FLEET, &DEVICES[..2]);
    let fleet = started(&broker, &DEVICES[..2]);
    fleet.hold("oak", 1);
    fleet.start_run(&["--rounds", "2", "--devices", "2", "--quorum", "2", "--steps", "30", "--batch", "4"]);
    fleet.reached(&["oak"], 1);
    broker.kill_and_restart();
    fleet.release("oak", 1);
    let (_, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!(run.phase, Phase::Completed, "{:?}", run.reason);
    assert!(run.closed.iter().all(|closed| closed.updates == 2 && closed.skipped.is_none()), "{:?}", run.closed);
}

/// Mosquitto acknowledges messages that it drops. Only a message that comes back from the coordinator has arrived.
#[test]
fn doctor_names_what_the_broker_drops() {
    for (up, settings, expected) in [
        ("write", "", "pass the broker"),
        ("read", "", "topic write skiff/v1/test/d/oak/up/#"),
        ("write", "message_size_limit 10000\n", "message_size_limit, max_packet_size"),
    ] {
        let broker = Broker::mosquitto_with(FLEET, &DEVICES[..1], up, settings);
        let mut fleet = Fleet::prepare(&broker, &DEVICES[..1], 16);
        fleet.start_coordinator();
        // Nobody answers until the coordinator is connected.
        let mut said = String::new();
        let is_answered = || {
            said = fleet.doctor("oak", &[]).split_whitespace().collect::<Vec<_>>().join(" ");
            said.contains("its signature is valid")
        };
        assert!(eventually(is_answered), "{}", fleet.log("coordinator"));
        assert!(said.contains(expected), "{up} {settings}: {said}");
        let checks: serde_json::Value = serde_json::from_str(&fleet.doctor("oak", &["--json"])).unwrap();
        let path = checks.as_array().unwrap().iter().find(|check| check["check"] == "broker path").unwrap();
        assert_eq!(path["verdict"], if expected == "pass the broker" { "ok" } else { "fail" }, "{path}");
        assert!(path["text"].as_str().unwrap().contains(expected), "{path}");
        let shown = fleet.skiff(&["fleet", "--json"]).output().unwrap().stdout;
        assert!(!String::from_utf8_lossy(&shown).contains("oak"), "a test makes no device of the fleet");
    }
}

/// The owner of one device pauses it, resumes, and leaves; the fleet continues, and the record of what was sent is the journal's.
#[test]
fn an_owner_pauses_resumes_and_leaves_and_sees_what_was_sent() {
    let devices = &DEVICES[..2];
    let broker = Broker::mosquitto(FLEET, devices);
    let mut fleet = started(&broker, devices);
    let presence = |fleet: &Fleet| {
        let progress = fleet.skiff(&["fleet", "--json"]).output().unwrap().stdout;
        let progress: Progress = serde_json::from_slice(&progress).unwrap();
        progress.devices.iter().map(|device| device.presence).collect::<Vec<_>>()
    };
    assert!(eventually(|| presence(&fleet) == [Presence::Here; 2]), "{}", fleet.log("coordinator"));
    let settings = "--devices 2 --quorum 1 --steps 2 --batch 4 --set gather_ms=500 --rounds";
    let start = |fleet: &Fleet, rounds| fleet.start_run(&settings.split(' ').chain([rounds]).collect::<Vec<_>>());
    fleet.hold("elm", 1);
    fleet.hold("oak", 1);
    start(&fleet, "1");
    fleet.reached(devices, 1);
    let said = fleet.owner("oak", &["pause"]);
    assert!(said.starts_with("paused: the agent has stopped"), "{said}");
    assert!(eventually(|| presence(&fleet).contains(&Presence::Left)), "{}", fleet.log("oak"));
    for device in devices {
        fleet.release(device, 1);
    }
    let (_, run) = fleet.watch("the end of a run without oak", |_, run| run.phase.is_end());
    assert_eq!((run.phase, run.closed[0].updates), (Phase::Completed, 1), "{:?}", run.reason);

    fleet.kill_agent("oak");
    fleet.start_agent("oak");
    assert!(eventually(|| fleet.log("oak").matches("paused by the owner").count() == 2), "{}", fleet.log("oak"));
    assert!(presence(&fleet).contains(&Presence::Left), "a pause survives a kill");
    assert!(fleet.owner("oak", &["resume"]).starts_with("resumed: the agent takes part"));
    assert!(eventually(|| presence(&fleet) == [Presence::Here; 2]), "{}", fleet.log("oak"));
    start(&fleet, "2");
    let (_, run) =
        fleet.watch("the end of a run with oak", |_, run| run.run != run_name(&fleet, 0) && run.phase.is_end());
    assert_eq!(run.closed.iter().map(|closed| closed.updates).collect::<Vec<_>>(), [2, 2], "{:?}", run.reason);

    let sent: Vec<serde_json::Value> =
        fleet.owner("oak", &["sent", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let records = |what: &str| sent.iter().filter(|record| record["what"] == what).collect::<Vec<_>>();
    let (updates, delivered) = (records("update"), records("delivered"));
    assert_eq!(updates.iter().map(|update| &update["round"]).collect::<Vec<_>>(), [1, 2], "{sent:?}");
    assert_eq!(
        delivered.iter().map(|end| &end["digest"]).collect::<Vec<_>>(),
        updates.iter().map(|update| &update["digest"]).collect::<Vec<_>>()
    );
    assert!(updates.iter().all(|update| update["run"] == run.run.as_str() && update["examples"] == 8), "{updates:?}");
    assert!(fleet.owner("oak", &["sent"]).contains("delivered"));

    assert!(fleet.owner("oak", &["leave"]).starts_with("left: the agent has signed off"));
    assert!(fleet.ended_well("oak"), "{}", fleet.log("oak"));
    assert!(eventually(|| presence(&fleet).contains(&Presence::Left)));
    let (status, error) = fleet.run_again("oak");
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("skiff-agent resume"), "{error}");
}

/// Returns the name of the run number `at`, from the oldest.
fn run_name(fleet: &Fleet, at: usize) -> String {
    let listed = fleet.skiff(&["run", "list", "--json"]).output().unwrap().stdout;
    let line = String::from_utf8(listed).unwrap().lines().nth(at).unwrap().to_owned();
    serde_json::from_str::<serde_json::Value>(&line).unwrap()["run"].as_str().unwrap().to_owned()
}

/// `skiff doctor` before the first start, while the coordinator runs, and at a broker that drops large messages.
#[test]
fn the_coordinators_doctor_tests_the_broker_before_and_during_its_work() {
    let broker = Broker::mosquitto(FLEET, &DEVICES[..1]);
    let mut fleet = Fleet::prepare(&broker, &DEVICES[..1], 16);
    let text = |fleet: &Fleet| fleet.coordinators_doctor(&[]).split_whitespace().collect::<Vec<_>>().join(" ");
    let before = text(&fleet);
    for part in ["first start", "coordinator ok not running", "broker path ok messages to devices"] {
        assert!(before.contains(part), "{part}: {before}");
    }
    fleet.start_coordinator();
    assert!(eventually(|| text(&fleet).contains("running, 0 of 0 known devices can train")), "{}", text(&fleet));
    let progress = fleet.skiff(&["fleet", "--json"]).output().unwrap().stdout;
    let progress: Progress = serde_json::from_slice(&progress).unwrap();
    assert!(progress.devices.is_empty() && progress.warnings.is_empty(), "{progress:?}");

    let small = Broker::mosquitto_with(FLEET, &DEVICES[..1], "write", "message_size_limit 10000\n");
    let fleet = Fleet::prepare(&small, &DEVICES[..1], 16);
    let checks: serde_json::Value = serde_json::from_str(&fleet.coordinators_doctor(&["--json"])).unwrap();
    let path = checks.as_array().unwrap().iter().find(|check| check["check"] == "broker path").unwrap();
    assert_eq!(path["verdict"], "fail", "{checks}");
    assert!(path["text"].as_str().unwrap().contains("message_size_limit"), "{path}");
}

/// Starts a second coordinator of the same fleet, with a state folder and a key of its own.
#[test]
fn a_second_coordinator_is_named_and_its_end_does_no_harm() {
    let broker = Broker::mosquitto(FLEET, &DEVICES[..1]);
    let fleet = started(&broker, &DEVICES[..1]);
    let shown = |fleet: &Fleet| {
        let progress = fleet.skiff(&["fleet", "--json"]).output().unwrap().stdout;
        serde_json::from_slice::<Progress>(&progress).unwrap()
    };
    let is_warned = |fleet: &Fleet| shown(fleet).warnings.iter().any(|warning| warning.contains("with another key"));
    assert!(eventually(|| shown(&fleet).connected && shown(&fleet).devices.len() == 1));
    assert_eq!(shown(&fleet).warnings, [""; 0]);

    let other = fleet.start_other_coordinator("other");
    assert!(eventually(|| is_warned(&fleet)), "{}", fleet.log("coordinator"));
    let table = String::from_utf8(fleet.skiff(&["fleet"]).output().unwrap().stdout).unwrap();
    assert!(table.contains("warning: another coordinator of fleet test"), "{table}");
    assert!(fleet.log("coordinator").contains("another coordinator of fleet test connects"));
    fleet.stop_other_coordinator(other);
    // The other coordinator's farewell did not make the devices believe that this one left.
    fleet.start_run(&["--rounds", "1", "--devices", "1", "--quorum", "1", "--steps", "2", "--batch", "4"]);
    let (_, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!(run.phase, Phase::Completed, "{:?}", run.reason);

    // A copy of the folder, made while the coordinator works with it, has the same runs and weights.
    let backup = fleet.path("backup");
    let made = fleet.skiff(&["store", "backup", "--json"]).arg("--to").arg(&backup).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let of_copy = |arguments: &[&str]| {
        let output = Command::new(binary("skiff")).args(arguments).arg("--state").arg(&backup).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let original = fleet.skiff(&["run", "list", "--json"]).output().unwrap().stdout;
    assert_eq!(of_copy(&["run", "list", "--json"]), String::from_utf8(original).unwrap());
    assert!(of_copy(&["store", "check"]).contains("every record and every blob is whole"));
}

/// Kills the worker as the system does if memory runs out. The agent stays, says what happened, and works in the next round.
#[test]
fn a_device_whose_worker_is_killed_says_so_and_takes_part_in_the_next_round() {
    let broker = Broker::embedded(&DEVICES[..2]);
    let mut fleet = started(&broker, &DEVICES[..2]);
    fleet.hold("oak", 1);
    fleet.start_run(&["--rounds", "2", "--devices", "2", "--quorum", "1", "--steps", "30", "--batch", "4"]);
    fleet.reached(&["oak"], 1);
    fleet.kill_worker("oak");
    fleet.release("oak", 1);
    let (_, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!(run.phase, Phase::Completed, "{:?}", run.reason);
    assert_eq!(run.closed.iter().map(|closed| closed.updates).collect::<Vec<_>>(), [1, 2], "{:?}", run.closed);
    let log = fleet.log("oak");
    assert!(log.contains("signal 9") && log.contains("memory runs out"), "{log}");
    assert!(fleet.stop_agents(), "the agents are those that were started");
}

/// Every update closes a round, and three devices train at a time. Orders from before round 4 can still close rounds 4 and 5, so the
/// run cannot end while all devices are held from round 4 on.
#[test]
fn asynchronous_rounds_stop_nobody_and_survive_a_killed_coordinator() {
    let broker = Broker::embedded(&DEVICES);
    let mut fleet = started(&broker, &DEVICES);
    let settings = "--asynchronous --rounds 7 --devices 1 --over-selection 2 --quorum 1 --steps 30 --batch 4 --bandit \
        --set evaluate_examples=0 --set final_examples=30";
    let held = || DEVICES.iter().flat_map(|device| (4..=7).map(move |round| (device, round)));
    held().for_each(|(device, round)| fleet.hold(device, round));
    fleet.start_run(&settings.split_whitespace().collect::<Vec<_>>());
    fleet.reached(&DEVICES, 4);
    fleet.kill_coordinator();
    fleet.start_coordinator();
    held().for_each(|(device, round)| fleet.release(device, round));

    let (progress, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!(run.phase, Phase::Completed, "{:?}", run.reason);
    assert_eq!(run.closed.len(), 7);
    assert!(run.closed.iter().all(|closed| closed.updates >= 1 && closed.skipped.is_none()), "{:?}", run.closed);
    // Updates that arrive during a merge count in the next round. Updates during the last merge do not count.
    let merged: u32 = run.closed.iter().map(|closed| closed.updates).sum();
    let updates: u32 = progress.devices.iter().map(|known| known.updates).sum();
    assert!((merged..=merged + 2).contains(&updates), "{merged} merged: {progress:?}");
    let told = fleet.skiff(&["explain", "last", "--json"]).output().unwrap();
    let orders = String::from_utf8(told.stdout).unwrap();
    let delivered = orders.lines().filter(|order| order.contains("\"delivered\"")).count();
    assert_eq!(delivered as u32, updates, "{orders}");
    assert!(orders.lines().count() <= delivered + 2, "no order failed but those that the end cut off: {orders}");
}

#[test]
fn a_policy_set_in_the_middle_of_a_run_says_whom_it_touches_and_holds_from_the_next_round_on() {
    let broker = Broker::embedded(&DEVICES[..2]);
    let mut fleet = started(&broker, &DEVICES[..2]);
    fleet.hold("oak", 1);
    fleet.start_run(&["--rounds", "2", "--devices", "2", "--quorum", "2", "--steps", "20", "--batch", "4"]);
    fleet.reached(&["oak"], 1);
    let policy = fleet.path("policy.toml");
    std::fs::write(&policy, "sharing = { least_important = 2 }\n").unwrap();
    let said = |arguments: &[&str]| {
        let done = fleet.skiff(arguments).arg(&policy).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let compared = said(&["policy", "diff"]);
    assert!(compared.contains("would touch 2 of 2 known devices"), "{compared}");
    assert_eq!(said(&["policy", "set", "--dry-run"]), compared);
    let set = said(&["policy", "set"]);
    assert!(set.contains("oak\n  - all layers\n  + its 2 least important layers"), "{set}");
    fleet.kill_coordinator();
    fleet.start_coordinator();
    fleet.release("oak", 1);
    fleet.watch("the end of the run", |_, run| run.phase == Phase::Completed);
    let shares = |round: &str| {
        let told = fleet.skiff(&["explain", "last", "--device", "oak", "--round", round]).output().unwrap();
        String::from_utf8(told.stdout).unwrap()
    };
    assert!(shares("1").contains("shares: all layers"), "{}", shares("1"));
    assert!(shares("2").contains("shares: its 2 least important layers"), "{}", shares("2"));
}

#[test]
fn forged_and_foreign_messages_are_counted_and_change_nothing() {
    let broker = Broker::mosquitto(FLEET, &DEVICES[..2]);
    let mut fleet = Fleet::prepare(&broker, &DEVICES[..2], 60);
    fleet.start_coordinator();
    fleet.start_agent("oak");
    fleet.hold("oak", 1);
    fleet.start_run(&["--rounds", "1", "--devices", "1", "--quorum", "1", "--steps", "60", "--batch", "4"]);
    fleet.reached(&["oak"], 1);
    let forged = |topic: &str, payload: Vec<u8>| Publication {
        topic: format!("skiff/v1/{FLEET}/{topic}"),
        payload,
        qos: Qos::AtLeastOnce,
        retain: false,
    };
    // Elm may write its own topics only; the last two must not even arrive.
    let messages = vec![
        forged("d/elm/up/telemetry", b"noise".to_vec()),
        forged("d/elm/up/answer", vec![0; 100]),
        forged("d/elm/up/nonsense", vec![1; 10]),
        forged("d/elm/up/transfer/0123456789abcdef", vec![2; 1000]),
        forged("d/elm/up/birth", vec![3; 120_000]),
        forged("d/oak/up/answer", b"as if I were oak".to_vec()),
        forged("d/oak/dn/command", b"as if I were the coordinator".to_vec()),
    ];
    publish(&broker, "elm", &messages);
    // The messages come from the coordinator's account but lack its signature, so the device refuses them.
    publish(&broker, COORDINATOR, &[forged("d/oak/dn/command", b"unsigned".to_vec())]);

    let refused = |progress: &Progress| progress.refused_messages.values().sum::<u64>();
    fleet.watch("five refused messages", |progress, _| refused(progress) >= 5);
    assert!(eventually(|| fleet.log("oak").contains("refused")), "the device says so: {}", fleet.log("oak"));
    fleet.release("oak", 1);
    let (progress, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!((run.phase, run.closed[0].updates), (Phase::Completed, 1));
    assert_eq!(refused(&progress), 5, "{:?}", progress.refused_messages);
}

fn publish(broker: &Broker, user: &str, messages: &[Publication]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        let config = LinkConfig {
            broker: BrokerSettings {
                url: broker.url(),
                user: Some(user.to_owned()),
                password: Some(password(user).into()),
                ..BrokerSettings::default()
            },
            client_id: format!("forger-{user}"),
            ..LinkConfig::default()
        };
        let (link, mut events) = Link::open(config).unwrap();
        while !matches!(events.recv().await.unwrap(), LinkEvent::Up) {}
        for message in messages {
            link.publish(message.clone()).await.unwrap();
        }
        link.close().await;
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, all).await }).expect("the broker takes it");
}

#[test]
fn a_fleet_that_marks_spans_is_judged_by_span_f1() {
    let devices = &DEVICES[..2];
    let broker = Broker::embedded(devices);
    let mut fleet = Fleet::prepare_spans(&broker, devices);
    fleet.start_coordinator();
    devices.iter().for_each(|device| fleet.start_agent(device));
    fleet.start_run(
        &"--rounds 2 --devices 2 --quorum 2 --steps 30 --batch 4 --learning-rate 0.003 --set evaluate_examples=20"
            .split_whitespace()
            .collect::<Vec<_>>(),
    );
    let (_, run) = fleet.watch("the end of the run", |_, run| run.phase.is_end());
    assert_eq!((run.phase, run.measure), (Phase::Completed, Measure::SpanF1), "{:?}", run.reason);
    let (before, after) = (run.metrics_before.unwrap(), run.metrics_after.unwrap());
    assert!(run.closed.iter().all(|closed| closed.left_out.is_empty() && closed.metrics.is_some()), "{:?}", run.closed);
    // 20 texts of six words on each device; a word's later pieces do not count.
    assert_eq!((after.examples, after.measured), (240, 240));
    assert!(after.span_f1.unwrap() > before.span_f1.unwrap_or(0.0), "{before:?} {after:?}");
}
