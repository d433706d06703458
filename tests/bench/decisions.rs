//! Cost of deciding: the limits and choices of 10,000 virtual devices for 100 rounds, with their rewards, and no training. A table
//! on standard output; with `--json FILE` the same for programs.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may stop")]

use serde_json::json;
use skiff_api::measures::Measure;
use skiff_contract::memory::own_memory;
use skiff_coordinator::run::RunSettings;
use skiff_coordinator::run::configurator::{
    Bandit, Care, Choice, Configurator, Facts, Limits, Load, Pace, Policy, Rates, Schedule, Shape,
};
use skiff_coordinator::run::draw::draw;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::StepMemory;
use skiff_tests::results;
use skiff_trainer::clock::monotonic;
use std::collections::BTreeMap;
use std::path::Path;

const DEVICES: usize = 10_000;
const ROUNDS: u32 = 100;
const LAYERS: usize = 12;
const LOAD: Load =
    Load { tokens: 128, steps: 10, deadline_ms: 60_000, care: Care { hot_celsius: 80.0, low_battery_percent: 20.0 } };

fn main() {
    println!("{:<16} {:>9} {:>12} {:>9} {:>8}", "policy", "seconds", "us a choice", "explore", "peak MB");
    let mut measured = Vec::new();
    for (name, policy) in
        [("epsilon-greedy", Policy::EpsilonGreedy), ("ucb", Policy::Ucb), ("thompson", Policy::Thompson)]
    {
        let begun = monotonic();
        let explored = run(policy);
        let seconds = monotonic().saturating_sub(begun).as_secs_f64();
        let choices = DEVICES as f64 * f64::from(ROUNDS);
        let peak = own_memory(Path::new("/")).peak_bytes;
        println!(
            "{name:<16} {seconds:>9.2} {:>12.2} {:>8.1}% {:>8.0}",
            1e6 * seconds / choices,
            100.0 * explored as f64 / choices,
            peak as f64 / 1e6
        );
        measured.push(json!({ "policy": name, "seconds": seconds, "explored": explored, "peak_rss_bytes": peak }));
    }
    println!(
        "\n{DEVICES} devices of three classes, {ROUNDS} rounds, {LAYERS} layers, 48 arms; each choice with its limits and its reward. \
         The peak is the process's so far."
    );
    results::store("decisions", measured.into());
}

/// Returns how many choices explored.
fn run(policy: Policy) -> usize {
    let rates = Rates::Bandit(Bandit {
        shapes: vec![Shape::Uniform, Shape::Increasing, Shape::Decreasing, Shape::Normal],
        schedules: vec![Schedule::Constant, Schedule::WarmUp, Schedule::CoolDown],
        policy,
        ..Bandit::default()
    });
    let settings =
        RunSettings { rates, rounds: ROUNDS, steps: LOAD.steps, protected: vec![0], ..RunSettings::default() };
    let mut configurator = Configurator::new(settings.configurator(LAYERS as u32, Measure::Accuracy));
    let fleet: BTreeMap<DeviceId, Facts> = (0..DEVICES).map(device).collect();
    let mut explored = 0;
    for round in 1..=ROUNDS {
        let bounded = |(device, facts): (&DeviceId, &Facts)| {
            let limits: Limits = configurator.limits(facts, &LOAD).unwrap();
            (device.clone(), (facts.clone(), limits))
        };
        let asked = fleet.iter().map(bounded).collect();
        let choices: BTreeMap<DeviceId, Choice> = configurator.choose(round, &asked);
        explored += choices.values().filter(|choice| choice.explores).count();
        for (device, choice) in &choices {
            // A gain that shrinks over the rounds and is best at half of the layers. Time is proportional to the layers.
            let active = choice.rates.expected_active() / LAYERS as f64;
            let noise = draw(2, "noise", round, device.as_str()) - 0.5;
            let gain = (1.0 - (active - 0.5).abs() + noise) / f64::from(round).sqrt();
            configurator.reward(device, choice, round, gain, 10.0 * active);
        }
        configurator.round_closed(round, choices.keys(), std::iter::empty(), choices.len());
        configurator.evaluated(Some(1.0 / f64::from(round)));
    }
    explored
}

fn device(index: usize) -> (DeviceId, Facts) {
    let (class, megabytes, step_ms) = [("tx2", 300, 2_000.0), ("nx", 450, 900.0), ("agx", 4_000, 400.0)][index % 3];
    let memory = StepMemory {
        limit_bytes: megabytes << 20,
        process_bytes: 48 << 20,
        step_bytes: 80 << 20,
        layer_bytes: 25 << 20,
    };
    let facts = Facts {
        class: class.to_owned(),
        memory,
        pace: Some(Pace { step_ms, active_layers: LAYERS as f64, other_ms: 0.0 }),
        celsius: Some(40.0 + (index % 50) as f32),
        battery_percent: None,
    };
    (format!("device-{index:05}").parse().unwrap(), facts)
}
