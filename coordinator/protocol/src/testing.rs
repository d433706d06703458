//! Strategies for property tests: arbitrary messages within their bounds.

use crate::codec::Message;
use crate::limits::{LAYERS, SENSORS};
use crate::messages::{
    AgentState, Announcement, Answer, Battery, Birth, BootId, Command, Digest, EvaluateOrder, EvaluationReport, Gone,
    Machine, Order, Outcome, Place, Presence, Probe, RunId, SharingPlan, StepMemory, Telemetry, TrainOrder,
    TrainReport, WorkSample,
};
use crate::metrics::{self, Classification, Language, Regression, SpanCounts, TaskMetrics, Tokens};
use crate::transfer::{CHUNK_BYTES, Held, MAX_CHUNKS, MAX_TRANSFER_BYTES, Offer, Purpose, TransferMessage};
use crate::version::{Version, VersionRange};
use proptest::collection::{btree_set, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof};

pub(crate) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        birth().prop_map(Message::Birth),
        (any::<u64>(), any::<bool>()).prop_map(|(boot, clean)| Message::Gone(Gone { boot: BootId(boot), clean })),
        telemetry().prop_map(Message::Telemetry),
        answer().prop_map(Message::Answer),
        command().prop_map(Message::Command),
        (any::<u64>(), any::<bool>())
            .prop_map(|(boot, online)| Message::Presence(Presence { boot: BootId(boot), online })),
        transfer().prop_map(Message::Transfer),
        (any::<u64>(), 1..=9_u16, 0..9_u16).prop_map(|(boot, min, more)| {
            Message::Announcement(Announcement { boot: BootId(boot), speaks: VersionRange { min, max: min + more } })
        }),
    ]
}

/// Draws a version of the protocol.
pub(crate) fn version() -> impl Strategy<Value = Version> {
    proptest::sample::select(&Version::ALL)
}

/// Returns a birth with ordinary values.
pub(crate) fn sample_birth() -> Birth {
    Birth {
        boot: BootId(1),
        agent_version: "0.1.0".to_owned(),
        pack: Digest([1; 32]),
        train_examples: 10,
        test_examples: 5,
        machine: Machine { arch: "x86_64".to_owned(), os: "Debian 13".to_owned(), cores: 4, memory_bytes: 1 << 32 },
        place: Place::default(),
        memory: StepMemory::default(),
        speaks: VersionRange::OURS,
    }
}

/// Draws metrics of any task.
pub(crate) fn metrics() -> impl Strategy<Value = TaskMetrics> {
    prop_oneof![
        Just(TaskMetrics::Unknown),
        classification().prop_map(TaskMetrics::Classification),
        tokens().prop_map(TaskMetrics::Tokens),
        regression().prop_map(TaskMetrics::Regression),
        (0..=metrics::MAX_REPORTED_COUNT, 0_f64..1e9)
            .prop_map(|(tokens, loss_sum)| TaskMetrics::Language(Language { tokens, loss_sum })),
    ]
}

fn classification() -> impl Strategy<Value = Classification> {
    (1..=20_usize, vec((0..20_usize, 0..20_usize), 0..100)).prop_map(|(classes, pairs)| {
        let mut counts = Classification::new(classes).expect("1 to 20 classes");
        pairs.into_iter().for_each(|(truth, predicted)| counts.count(truth % classes, predicted % classes));
        counts
    })
}

fn tokens() -> impl Strategy<Value = Tokens> {
    (vec(any::<bool>(), 0..50), vec(("[A-Z]{1,4}", 0..99_u64, 0..99_u64, 0..99_u64), 0..20)).prop_map(
        |(seen, types)| {
            let mut counts = Tokens::default();
            seen.into_iter().for_each(|is_correct| counts.count_token(is_correct));
            for (name, truth, predicted, correct) in types {
                let correct = correct.min(truth).min(predicted);
                counts.add_spans(&SpanCounts { name, truth, predicted, correct }).expect("few and small");
            }
            counts
        },
    )
}

fn regression() -> impl Strategy<Value = Regression> {
    vec((-5_f64..5.0, -5_f64..5.0), 0..50).prop_map(|pairs| {
        let mut sums = Regression::default();
        pairs.into_iter().for_each(|(predicted, truth)| sums.count(predicted, truth));
        sums
    })
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn birth() -> impl Strategy<Value = Birth> {
    (any::<[u64; 4]>(), any::<u32>(), digest(), "[ -~]{0,64}", "\\PC{0,50}").prop_map(|(n, cores, pack, name, os)| {
        Birth {
            boot: BootId(n[0]),
            agent_version: name.clone(),
            pack,
            train_examples: n[1],
            test_examples: n[2],
            place: Place {
                class: name.clone(),
                region: String::new(),
                labels: vec![name.clone(); cores as usize % 17],
            },
            memory: StepMemory { limit_bytes: n[0], process_bytes: n[1], step_bytes: n[2], layer_bytes: n[3] },
            machine: Machine { arch: name, os, cores, memory_bytes: n[3] },
            // The drawn versions cover every version that a message may have.
            speaks: VersionRange { min: 1 + (cores % 2) as u16, max: 3 + (cores % 7) as u16 },
        }
    })
}

fn telemetry() -> impl Strategy<Value = Telemetry> {
    let states = prop_oneof![Just(AgentState::Idle), Just(AgentState::Training), Just(AgentState::Uploading)];
    let temperatures = vec(("[ -~]{0,64}", -50_f32..150.0), 0..=SENSORS);
    let work = (any::<[u32; 4]>(), any::<u64>(), 0_f32..1e6);
    (any::<[u64; 7]>(), states, 0_f32..1e4, temperatures, proptest::option::of(work)).prop_map(
        |(n, state, percent, temperatures, work)| Telemetry {
            boot: BootId(n[0]),
            sequence: n[1],
            uptime_ms: n[2],
            state,
            cpu_percent: percent,
            agent_cpu_percent: percent / 2.0,
            memory_bytes: n[3],
            memory_available_bytes: n[4],
            load_1m: percent,
            temperatures,
            battery: (n[5] % 2 == 0).then_some(Battery { percent, charging: n[6] % 2 == 0 }),
            agent_rss_bytes: n[5],
            agent_peak_rss_bytes: n[6],
            work: work.map(|([round, step, steps, active_layers], run, value)| WorkSample {
                run: RunId(run),
                round,
                step,
                steps,
                step_ms: value,
                tokens_per_second: value,
                active_layers,
                loss: f32::INFINITY,
            }),
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    let outcomes = prop_oneof![
        any::<bool>().prop_map(|has_weights| Outcome::Accepted { has_weights }),
        "[ -~]{0,200}".prop_map(|reason| Outcome::Refused { reason }),
        (any::<[u64; 2]>(), 100..=1000_u64, 0_f64..1e9, metrics()).prop_map(|(n, correct, loss_sum, metrics)| {
            Outcome::Evaluated(EvaluationReport {
                metrics,
                examples: correct.saturating_add(n[0]),
                correct,
                loss_sum,
                evaluate_ms: n[1],
                peak_rss_bytes: n[1],
            })
        }),
        Just(Outcome::Stopped),
    ];
    (any::<[u64; 3]>(), any::<u32>(), outcomes).prop_map(|(n, round, outcome)| Answer {
        boot: BootId(n[0]),
        run: RunId(n[1]),
        round,
        epoch: n[2],
        outcome,
    })
}

fn command() -> impl Strategy<Value = Command> {
    let orders = prop_oneof![train().prop_map(Order::Train), evaluate().prop_map(Order::Evaluate), Just(Order::Stop)];
    (any::<[u64; 3]>(), any::<u32>(), orders).prop_map(|(n, round, order)| Command {
        run: RunId(n[0]),
        started_ms: n[2],
        round,
        epoch: n[1],
        order,
    })
}

fn train() -> impl Strategy<Value = TrainOrder> {
    let numbers = (any::<u64>(), 1..=u32::MAX, 1..=4096_u32, 2..=65_536_u32, 1e-9_f32..10.0, 1..=u64::MAX);
    (digest(), vec(0_f32..=1.0, 1..=LAYERS), numbers, any::<u32>(), 0..4).prop_map(
        |(weights, rates, (seed, steps, batch, max_tokens, learning_rate, deadline_ms), k, plan)| TrainOrder {
            weights,
            schema: weights,
            seed,
            sharing: match plan {
                0 => SharingPlan::All,
                1 => SharingPlan::LeastImportant { k },
                2 => SharingPlan::MostImportant { k },
                _ => SharingPlan::Fixed {
                    layers: (0..rates.len()).step_by(3).filter_map(|l| l.try_into().ok()).collect(),
                },
            },
            rates,
            most_active: steps,
            proximal: learning_rate,
            rank: k,
            probe_examples: k,
            steps,
            batch,
            max_tokens,
            learning_rate,
            deadline_ms,
        },
    )
}

fn evaluate() -> impl Strategy<Value = EvaluateOrder> {
    (digest(), any::<u64>(), 1..=4096_u32, 2..=65_536_u32, 1..=u64::MAX).prop_map(
        |(weights, examples, batch, max_tokens, deadline_ms)| EvaluateOrder {
            weights,
            schema: weights,
            examples,
            batch,
            max_tokens,
            deadline_ms,
        },
    )
}

fn transfer() -> impl Strategy<Value = TransferMessage> {
    let held = vec(any::<u8>(), 0..=(MAX_CHUNKS as usize / 8)).prop_map(Held);
    prop_oneof![
        offer().prop_map(TransferMessage::Offer),
        (held.clone(), 1..=u32::MAX).prop_map(|(held, window)| TransferMessage::Grant { held, window }),
        (0..MAX_CHUNKS, vec(any::<u8>(), 1..=CHUNK_BYTES))
            .prop_map(|(index, bytes)| TransferMessage::Chunk { index, bytes }),
        held.prop_map(|held| TransferMessage::Progress { held }),
        Just(TransferMessage::Done),
        "[ -~]{0,200}".prop_map(|reason| TransferMessage::Refused { reason }),
    ]
}

fn offer() -> impl Strategy<Value = Offer> {
    let report = (any::<[u64; 3]>(), any::<u32>(), btree_set(0..512_u32, 0..=LAYERS), vec(0_f32..1e9, 0..=LAYERS));
    let update =
        (any::<[u64; 2]>(), any::<u32>(), report).prop_map(|([run, epoch], round, (n, steps, shared, importance))| {
            Purpose::Update {
                run: RunId(run),
                round,
                epoch,
                report: TrainReport {
                    examples: n[0],
                    tokens: n[1],
                    steps,
                    mean_loss: f32::NEG_INFINITY,
                    shared_layers: shared.into_iter().collect(),
                    importance,
                    mean_active_layers: 0.5,
                    train_ms: n[2],
                    step_ms: 1.5,
                    peak_rss_bytes: n[2],
                    probe: (n[1] % 2 == 0).then_some(Probe {
                        examples: steps,
                        loss_before: 1.5,
                        loss_after: -0.5,
                        correct_before: steps / 2,
                        correct_after: steps,
                    }),
                },
            }
        });
    let purposes = prop_oneof![any::<u64>().prop_map(|run| Purpose::Weights { run: RunId(run) }), update];
    (purposes, digest(), 1..=MAX_TRANSFER_BYTES).prop_map(|(purpose, digest, total_bytes)| Offer {
        purpose,
        digest,
        total_bytes,
    })
}
