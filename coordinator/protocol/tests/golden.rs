//! Checks the bytes of every message in every version. Peers in the field write and read exactly these bytes.
//!
//! The last program that spoke only version 2 wrote `golden/v2`. A file is never changed: a message that needs another layout
//! gets it in a new version. `SKIFF_GOLDEN=write` writes the files that are missing, for a new version or a new sample, and
//! leaves the others alone.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_protocol::codec::{self, Message, Signer};
use skiff_protocol::messages::*;
use skiff_protocol::metrics::{Classification, Language, Regression, SpanCounts, TaskMetrics, Tokens};
use skiff_protocol::transfer::{Held, Offer, Purpose, TransferId, TransferMessage};
use skiff_protocol::{DeviceId, Topic, Version, VersionRange};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A message, its topic, and whether the coordinator signs it.
struct Sample {
    name: &'static str,
    message: Message,
    topic: Topic,
    signed: bool,
}

fn from_device(name: &'static str, message: Message) -> Sample {
    Sample { name, topic: topic(&message, Topic::UpTransfer), message, signed: false }
}

fn from_coordinator(name: &'static str, message: Message) -> Sample {
    Sample { name, topic: topic(&message, Topic::DownTransfer), message, signed: true }
}

fn topic(message: &Message, transfer: fn(DeviceId, TransferId) -> Topic) -> Topic {
    let device: DeviceId = "kitchen".parse().unwrap();
    match message {
        Message::Birth(_) | Message::Gone(_) => Topic::Birth(device),
        Message::Telemetry(_) => Topic::Telemetry(device),
        Message::Answer(_) => Topic::Answer(device),
        Message::Command(_) => Topic::Command(device),
        Message::Presence(_) => Topic::Presence,
        Message::Announcement(_) => Topic::Versions,
        Message::Transfer(_) => transfer(device, TransferId(0x0123_4567_89ab_cdef)),
    }
}

fn birth() -> Birth {
    Birth {
        boot: BootId(0x1122_3344_5566_7788),
        agent_version: "0.1.0".to_owned(),
        pack: Digest([0xab; 32]),
        train_examples: 1000,
        test_examples: 127,
        machine: Machine {
            arch: "aarch64".to_owned(),
            os: "Debian GNU/Linux 13".to_owned(),
            cores: 4,
            memory_bytes: 8 << 30,
        },
        place: Place {
            class: "jetson-nx".to_owned(),
            region: "hamburg".to_owned(),
            labels: vec!["night".to_owned(), "lab-3".to_owned()],
        },
        memory: StepMemory {
            limit_bytes: 1 << 30,
            process_bytes: 50_000_000,
            step_bytes: 70_000,
            layer_bytes: 9 << 20,
        },
        speaks: VersionRange { min: 2, max: 3 },
    }
}

fn telemetry() -> Telemetry {
    Telemetry {
        boot: BootId(0x1122_3344_5566_7788),
        sequence: 300,
        uptime_ms: 3_600_000,
        state: AgentState::Training,
        cpu_percent: 97.5,
        agent_cpu_percent: 190.25,
        memory_bytes: 8 << 30,
        memory_available_bytes: 3 << 30,
        load_1m: 2.5,
        temperatures: vec![("cpu-thermal".to_owned(), 61.5), ("gpu-thermal".to_owned(), -3.25)],
        battery: Some(Battery { percent: 80.5, charging: true }),
        agent_rss_bytes: 200_000_000,
        agent_peak_rss_bytes: 300_000_000,
        work: Some(WorkSample {
            run: RunId(0xfeed),
            round: 3,
            step: 12,
            steps: 30,
            step_ms: 250.5,
            tokens_per_second: 4096.0,
            active_layers: 4,
            loss: 0.75,
        }),
    }
}

fn in_state(state: AgentState) -> Telemetry {
    Telemetry { state, temperatures: Vec::new(), battery: None, work: None, ..telemetry() }
}

fn answer(outcome: Outcome) -> Message {
    let boot = BootId(0x1122_3344_5566_7788);
    Message::Answer(Answer { boot, run: RunId(0xfeed), round: 3, epoch: 70_000, outcome })
}

fn report() -> EvaluationReport {
    EvaluationReport {
        examples: 127,
        correct: 100,
        loss_sum: 64.5,
        evaluate_ms: 1500,
        peak_rss_bytes: 250_000_000,
        metrics: TaskMetrics::Unknown,
    }
}

fn command(order: Order) -> Message {
    Message::Command(Command { run: RunId(0xfeed), started_ms: 1_790_000_000_000, round: 3, epoch: 70_000, order })
}

fn train(sharing: SharingPlan) -> Order {
    Order::Train(TrainOrder {
        weights: Digest([1; 32]),
        schema: Digest([2; 32]),
        seed: u64::MAX,
        rates: vec![0.0, 0.25, 0.5, 1.0],
        most_active: 3,
        steps: 30,
        batch: 8,
        max_tokens: 128,
        learning_rate: 0.001,
        proximal: 0.0625,
        rank: 4,
        probe_examples: 16,
        sharing,
        deadline_ms: 600_000,
    })
}

fn evaluate() -> Order {
    Order::Evaluate(EvaluateOrder {
        weights: Digest([3; 32]),
        schema: Digest([2; 32]),
        examples: 500,
        batch: 32,
        max_tokens: 256,
        deadline_ms: 60_000,
    })
}

fn offer(purpose: Purpose) -> Message {
    Message::Transfer(TransferMessage::Offer(Offer { purpose, digest: Digest([4; 32]), total_bytes: 200_000 }))
}

fn update(probe: Option<Probe>) -> Purpose {
    let report = TrainReport {
        examples: 240,
        tokens: 12_345,
        steps: 30,
        mean_loss: 0.5,
        shared_layers: vec![0, 2, 3],
        importance: vec![0.0, 1.5, 0.25, 3.0],
        mean_active_layers: 2.25,
        train_ms: 7500,
        step_ms: 249.5,
        peak_rss_bytes: 300_000_000,
        probe,
    };
    Purpose::Update { run: RunId(0xfeed), round: 3, epoch: 70_000, report }
}

fn probe() -> Probe {
    Probe { examples: 16, loss_before: 0.875, loss_after: 0.5, correct_before: 9, correct_after: 12 }
}

/// Returns the messages that every version has.
fn samples() -> Vec<Sample> {
    use Message::{Gone as Left, Transfer};
    let held = Held(vec![0b1010_0101, 1]);
    let refused = || "no room for 200 kB".to_owned();
    let boot = BootId(0x8877_6655_4433_2211);
    vec![
        from_device("birth", Message::Birth(birth())),
        from_device("gone", Left(Gone { boot: birth().boot, clean: true })),
        from_device("gone_by_last_will", Left(Gone { boot: birth().boot, clean: false })),
        from_device("telemetry", Message::Telemetry(telemetry())),
        from_device("telemetry_idle", Message::Telemetry(in_state(AgentState::Idle))),
        from_device("telemetry_fetching", Message::Telemetry(in_state(AgentState::Fetching))),
        from_device("telemetry_evaluating", Message::Telemetry(in_state(AgentState::Evaluating))),
        from_device("telemetry_uploading", Message::Telemetry(in_state(AgentState::Uploading))),
        from_device("answer_accepted", answer(Outcome::Accepted { has_weights: true })),
        from_device("answer_refused", answer(Outcome::Refused { reason: refused() })),
        from_device("answer_evaluated", answer(Outcome::Evaluated(report()))),
        from_device("answer_stopped", answer(Outcome::Stopped)),
        from_coordinator("command_train_all", command(train(SharingPlan::All))),
        from_coordinator("command_train_least", command(train(SharingPlan::LeastImportant { k: 2 }))),
        from_coordinator("command_train_most", command(train(SharingPlan::MostImportant { k: 2 }))),
        from_coordinator("command_train_fixed", command(train(SharingPlan::Fixed { layers: vec![1, 3] }))),
        from_coordinator("command_evaluate", command(evaluate())),
        from_coordinator("command_stop", command(Order::Stop)),
        from_coordinator("presence_online", Message::Presence(Presence { boot, online: true })),
        from_coordinator("presence_offline", Message::Presence(Presence { boot, online: false })),
        from_coordinator("offer_weights", offer(Purpose::Weights { run: RunId(0xfeed) })),
        from_device("offer_update", offer(update(None))),
        from_device("offer_update_with_probe", offer(update(Some(probe())))),
        from_device("grant", Transfer(TransferMessage::Grant { held: held.clone(), window: 4 })),
        from_coordinator("chunk", Transfer(TransferMessage::Chunk { index: 300, bytes: (0..=255).collect() })),
        from_device("progress", Transfer(TransferMessage::Progress { held })),
        from_device("done", Transfer(TransferMessage::Done)),
        from_coordinator("refused", Transfer(TransferMessage::Refused { reason: refused() })),
    ]
}

// --- samples of version 3 ---

/// Returns the messages that version 3 added.
fn samples_of_version_3() -> Vec<Sample> {
    let evaluated = |metrics| answer(Outcome::Evaluated(EvaluationReport { examples: 10_000, metrics, ..report() }));
    let announcement = Announcement { boot: BootId(0x8877_6655_4433_2211), speaks: VersionRange { min: 2, max: 3 } };
    vec![
        from_coordinator("announcement", Message::Announcement(announcement)),
        from_device("answer_evaluated_classification", evaluated(TaskMetrics::Classification(classification(3, 127)))),
        from_device("answer_evaluated_many_classes", evaluated(TaskMetrics::Classification(many_classes()))),
        from_device("answer_evaluated_tokens", evaluated(TaskMetrics::Tokens(tokens()))),
        from_device("answer_evaluated_regression", evaluated(TaskMetrics::Regression(regression()))),
        from_device("answer_evaluated_language", evaluated(TaskMetrics::Language(language()))),
    ]
}

fn classification(classes: usize, examples: usize) -> Classification {
    let mut counts = Classification::new(classes).unwrap();
    (0..examples).for_each(|at| counts.count(at % classes, (at / 2) % classes));
    counts
}

/// Returns counts whose confusion matrix is too large for a message.
fn many_classes() -> Classification {
    let mut counts = Classification::new(100).unwrap();
    (0..=8192).for_each(|at| counts.count(at / 100, at % 100));
    assert_eq!(counts.confusion(), None);
    counts
}

fn tokens() -> Tokens {
    let mut tokens = Tokens::default();
    (0..300).for_each(|at| tokens.count_token(at % 7 != 0));
    let spans = [("PER", 40, 38, 35), ("LOC", 20, 25, 18)];
    for (name, truth, predicted, correct) in spans {
        tokens.add_spans(&SpanCounts { name: name.to_owned(), truth, predicted, correct }).unwrap();
    }
    tokens
}

fn regression() -> Regression {
    let mut sums = Regression::default();
    (0..8).map(f64::from).for_each(|at| sums.count(at * 0.5, at * 0.75 - 1.0));
    sums
}

fn language() -> Language {
    Language { tokens: 5000, loss_sum: 12_345.5 }
}

// --- the test ---

fn folder(version: Version) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{version}"))
}

fn all(version: Version) -> Vec<Sample> {
    let mut all = samples();
    match version {
        Version::V2 => {}
        Version::V3 => all.extend(samples_of_version_3()),
    }
    all
}

fn signer() -> Signer {
    Signer::new([7; 32])
}

fn sealed(sample: &Sample, version: Version) -> Vec<u8> {
    let topic = sample.topic.text(&"home".parse().unwrap());
    codec::seal(&sample.message, version, &topic, sample.signed.then(signer).as_ref())
}

/// Returns the sample as a reader of `version` gets it.
fn carried(sample: &Sample, version: Version) -> Message {
    match (sample.message.clone(), version) {
        (Message::Birth(birth), Version::V2) => {
            Message::Birth(Birth { speaks: VersionRange { min: 2, max: 2 }, ..birth })
        }
        (message, _) => message,
    }
}

#[test]
fn every_message_of_every_version_has_its_golden_bytes() {
    let writes = std::env::var_os("SKIFF_GOLDEN").is_some_and(|value| value == "write");
    for version in Version::ALL {
        for sample in all(version) {
            let path = folder(version).join(format!("{}.bin", sample.name));
            let bytes = sealed(&sample, version);
            if writes && !path.exists() {
                std::fs::write(&path, &bytes).unwrap();
            }
            let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                bytes == golden,
                "{} in version {version} is written in another layout than before: give the message a new version, and \
                 keep the old layout beside it",
                sample.name
            );
            let topic = sample.topic.text(&"home".parse().unwrap());
            let read = codec::open(&golden, &topic, sample.signed.then(|| signer().verifier()).as_ref());
            assert_eq!(read, Ok((carried(&sample, version), version)), "{}", sample.name);
            assert!(sample.message.belongs_on(&sample.topic), "{}", sample.name);
        }
    }
}

#[test]
fn there_is_no_golden_file_without_its_sample() {
    for version in Version::ALL {
        let named: BTreeSet<_> = all(version).iter().map(|sample| format!("{}.bin", sample.name)).collect();
        let found: BTreeSet<_> = std::fs::read_dir(folder(version))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(found, named, "version {version}");
    }
}
