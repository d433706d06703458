#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
mod recorded;

use super::*;
use crate::run::draw::draw;
use proptest::prelude::*;
use skiff_protocol::messages::{REFERENCE_TOKENS, StepMemory};

const LAYERS: usize = 6;

fn device(index: usize) -> DeviceId {
    format!("dev{index}").parse().unwrap()
}

fn load() -> Load {
    Load { tokens: REFERENCE_TOKENS, steps: 10, deadline_ms: 60_000, care: Care::default() }
}

fn settings() -> Settings {
    Settings {
        rates: Rates::default(),
        protected: vec![],
        layers: LAYERS,
        seed: 7,
        rounds: 50,
        steps: 10,
        batch: 8,
        asynchronous: false,
        measure: skiff_api::measures::Measure::Accuracy,
    }
}

fn with(bandit: Bandit, rounds: u32) -> Configurator {
    made(Rates::Bandit(bandit), 7, rounds, vec![])
}

fn made(rates: Rates, seed: u64, rounds: u32, protected: Vec<u32>) -> Configurator {
    Configurator::new(Settings { rates, seed, rounds, protected, ..settings() })
}

fn fleet(configurator: &Configurator, facts: &[Facts]) -> BTreeMap<DeviceId, (Facts, Limits)> {
    let one = |(index, facts): (usize, &Facts)| {
        (device(index), (facts.clone(), configurator.limits(facts, &load()).unwrap()))
    };
    facts.iter().enumerate().map(one).collect()
}

fn alike(devices: usize) -> Vec<Facts> {
    vec![Facts::default(); devices]
}

/// A synthetic world that pays a noisy reward for an arm in a round.
struct World {
    drifts: bool,
    rounds: u32,
}

impl World {
    /// Returns an arm's mean reward, between 0.2 and 1. The third arm is the best; in a drifting world, the first arm becomes the
    /// best in the middle.
    fn mean(&self, arm: usize, round: u32) -> f64 {
        let best = if self.drifts && round > self.rounds / 2 { 0 } else { 2 };
        // All rewards shrink, as they do while training converges.
        let level = 1.0 / (1.0 + f64::from(round) / f64::from(self.rounds));
        level * (1.0 - 0.2 * (arm as f64 - f64::from(best)).abs())
    }

    /// Returns the regret of each round against the best arm of that round, for the configurator and for choosing evenly.
    fn play(&self, policy: Policy, devices: usize, seed: u64) -> Vec<(f64, f64)> {
        let bandit = Bandit { policy, explorers: 1.0, ..Bandit::default() };
        let mut configurator = made(Rates::Bandit(bandit), seed, self.rounds, vec![]);
        let fleet = fleet(&configurator, &alike(devices));
        let round = |round: u32| {
            let choices = configurator.choose(round, &fleet);
            let best = (0..4).map(|arm| self.mean(arm, round)).fold(0.0, f64::max);
            let even = (0..4).map(|arm| best - self.mean(arm, round)).sum::<f64>() / 4.0;
            let mut regret = 0.0;
            for (device, choice) in &choices {
                let mean = self.mean(choice.arm.unwrap() as usize, round);
                let noise = 0.6 * (draw(seed, "noise", round, device.as_str()) - 0.5);
                configurator.reward(device, choice, round, mean + noise, 1.0);
                regret += best - mean;
            }
            configurator.round_closed(round, choices.keys(), std::iter::empty(), devices);
            (regret, even * devices as f64)
        };
        (1..=self.rounds).map(round).collect()
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::EpsilonGreedy), Just(Policy::Ucb), Just(Policy::Thompson)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Checks that the regret is sublinear: in a run that is sixteen times as long, it is a smaller share of the regret of
    /// choosing evenly.
    #[test]
    fn prop_regret_grows_slower_than_the_rounds(policy in policy(), seed in 1u64..1_000_000, drifts in any::<bool>()) {
        let share = |rounds, seed| {
            let regrets = World { drifts, rounds }.play(policy, 6, seed);
            let (ours, even) = regrets.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            ours / even
        };
        // The result of a short run depends on luck, so this is a mean over several runs.
        let short = (0..8).map(|other| share(60, seed + other)).sum::<f64>() / 8.0;
        let long = share(960, seed);
        prop_assert!(long < 0.75 * short, "{policy:?}, drifts {drifts}: {short:.3} of an even choice's regret, then {long:.3}");
        prop_assert!(long < 0.35, "{policy:?}, drifts {drifts}: {long:.3}");
    }
}

fn facts() -> impl Strategy<Value = Facts> {
    let memory = (0u64..400, 0u64..100).prop_map(|(limit, process)| StepMemory {
        limit_bytes: limit << 20,
        process_bytes: process << 20,
        step_bytes: 20 << 20,
        layer_bytes: 30 << 20,
    });
    let pace = proptest::option::of((1.0f64..20_000.0, 1.0f64..6.0, 0.0f64..10_000.0))
        .prop_map(|pace| pace.map(|(step_ms, active_layers, other_ms)| Pace { step_ms, active_layers, other_ms }));
    let feeling = (proptest::option::of(20.0f32..100.0), proptest::option::of(0.0f32..100.0));
    ("[ab]", memory, pace, feeling).prop_map(|(class, memory, pace, (celsius, battery_percent))| Facts {
        class,
        memory,
        pace,
        celsius,
        battery_percent,
    })
}

fn bandit() -> impl Strategy<Value = Bandit> {
    let shapes =
        prop_oneof![Just(vec![Shape::Uniform]), Just(vec![Shape::Increasing, Shape::Decreasing, Shape::Normal])];
    let schedules = prop_oneof![Just(vec![Schedule::Constant]), Just(vec![Schedule::WarmUp, Schedule::CoolDown])];
    (policy(), shapes, schedules, 0.0f32..=1.0, 0.0f32..=1.0, 1u32..8).prop_map(
        |(policy, shapes, schedules, epsilon, explorers, candidates)| Bandit {
            policy,
            shapes,
            schedules,
            epsilon,
            explorers,
            candidates,
            window: 4,
            ..Bandit::default()
        },
    )
}

#[derive(Clone, Debug)]
enum Told {
    Round(Vec<(f64, bool)>),
    Evaluated(Option<f64>),
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        4 => proptest::collection::vec((-0.5f64..0.5, any::<bool>()), 5).prop_map(Told::Round),
        1 => proptest::option::of(prop_oneof![0.1f64..3.0, Just(f64::NAN)]).prop_map(Told::Evaluated),
    ]
}

proptest! {
    /// Checks for any story that no choice is outside the limits, protected layers always run, not too many devices explore, and
    /// the same story gives the same choices and the same state.
    #[test]
    fn prop_choices_keep_to_limits_and_budget_and_replay(
        bandit in bandit(), facts in proptest::collection::vec(facts(), 5), story in proptest::collection::vec(told(), 0..20),
        protected in proptest::collection::btree_set(0u32..6, 0..3), seed in any::<u64>(),
    ) {
        let protected: Vec<u32> = protected.into_iter().collect();
        let make = || made(Rates::Bandit(bandit.clone()), seed, 20, protected.clone());
        let (mut one, mut other) = (make(), make());
        let fit = facts.iter().enumerate().filter_map(|(index, facts)| {
            Some((device(index), (facts.clone(), one.limits(facts, &load()).ok()?)))
        });
        let fleet: BTreeMap<DeviceId, (Facts, Limits)> = fit.collect();
        for (round, told) in (1..).zip(story) {
            let choices = one.choose(round, &fleet);
            prop_assert_eq!(&choices, &other.choose(round, &fleet));
            prop_assert!(choices.keys().eq(fleet.keys()));
            let explorers = choices.values().filter(|choice| choice.explores).count();
            prop_assert!(explorers <= (f64::from(bandit.explorers) * fleet.len() as f64).ceil() as usize);
            for (device, choice) in &choices {
                let (_, limits) = &fleet[device];
                prop_assert!(choice.rates.iter().all(|rate| (0.0..=MAX_RATE).contains(rate)));
                // A rate has a largest value, so that something of every layer is learned.
                let least = protected.len() as f64 + f64::from(1.0 - MAX_RATE) * (LAYERS - protected.len()) as f64;
                prop_assert!(choice.rates.expected_active() <= limits.mean_active.max(least) + 1e-3, "{:?}", choice);
                prop_assert!(choice.most_active >= 1 && choice.most_active == limits.most_active);
                prop_assert!(protected.iter().all(|&layer| choice.rates[layer as usize] == 0.0));
                prop_assert!(!choice.reason.is_empty());
            }
            for configurator in [&mut one, &mut other] {
                match &told {
                    Told::Evaluated(loss) => configurator.evaluated(*loss),
                    Told::Round(devices) => {
                        let delivers = |device: &&DeviceId| {
                            let index: usize = device.as_str()[3..].parse().unwrap();
                            devices[index].1
                        };
                        for (device, choice) in choices.iter().filter(|(device, _)| delivers(device)) {
                            let index: usize = device.as_str()[3..].parse().unwrap();
                            configurator.reward(device, choice, round, devices[index].0, 2.0);
                        }
                        let (delivered, failed): (Vec<&DeviceId>, Vec<&DeviceId>) = choices.keys().partition(delivers);
                        configurator.round_closed(round, delivered.into_iter(), failed.into_iter(), choices.len());
                    }
                }
            }
            prop_assert_eq!(&one, &other);
        }
    }
}

fn rewarded(configurator: &mut Configurator, of: usize, round: u32, gains: &[f64]) {
    for (arm, &gain) in gains.iter().enumerate() {
        let choice = Choice {
            rates: DropoutRates::new(vec![]).unwrap(),
            most_active: 6,
            arm: Some(arm as u32),
            class: String::new(),
            explores: false,
            probe_examples: 0,
            reason: String::new(),
        };
        configurator.reward(&device(of), &choice, round, gain, 1.0);
    }
}

#[test]
fn devices_share_what_they_learn_and_keep_their_own_correction() {
    let mut bandit = with(Bandit { epsilon: 0.0, ..Bandit::default() }, 50);
    (1..4).for_each(|round| rewarded(&mut bandit, 0, round, &[0.1, 0.3, 0.2, 0.0]));
    let everybody = fleet(&bandit, &alike(2));
    let choices = bandit.choose(4, &everybody);
    assert!(choices.values().all(|choice| choice.arm == Some(1)), "{choices:?}");
    assert!(choices[&device(1)].reason.contains("best expected gain"), "{choices:?}");
    // The second device finds another arm better, again and again.
    (4..10).for_each(|round| {
        rewarded(&mut bandit, 0, round, &[0.1, 0.4, 0.2, 0.0]);
        rewarded(&mut bandit, 1, round, &[0.1, 0.1, 0.5, 0.0]);
    });
    let choices = bandit.choose(10, &everybody);
    assert_eq!((choices[&device(0)].arm, choices[&device(1)].arm), (Some(1), Some(2)));
    let stranger = Facts { class: "other".into(), ..Facts::default() };
    let other = fleet(&bandit, &vec![stranger; 6]);
    let choice = &bandit.choose(10, &other)[&device(5)];
    assert!(!choice.explores && choice.arm == Some(2), "another class knows of it too: {choice:?}");
}

#[test]
fn arms_outside_the_limits_are_never_drawn_and_the_reason_says_why() {
    let mut bandit = with(Bandit::default(), 50);
    rewarded(&mut bandit, 0, 1, &[0.9, 0.8, 0.1, 0.2]);
    let memory = StepMemory { limit_bytes: 100 << 20, process_bytes: 0, step_bytes: 10 << 20, layer_bytes: 30 << 20 };
    let tight = fleet(&bandit, &[Facts { memory, ..Facts::default() }]);
    (1..100).for_each(|round| {
        let choice = &bandit.choose(round, &tight)[&device(0)];
        assert!(choice.arm == Some(3) && choice.most_active == 3, "{choice:?}");
        assert!(choice.reason.contains("fit 3 of 6 layers"), "{choice:?}");
    });
    let memory = StepMemory { limit_bytes: 50 << 20, ..memory };
    let tighter = fleet(&bandit, &[Facts { memory, ..Facts::default() }]);
    let choice = &bandit.choose(1, &tighter)[&device(0)];
    assert!(choice.arm.is_none() && choice.reason.contains("least dropout"), "{choice:?}");
    assert!((choice.rates.expected_active() - 1.0).abs() < 1e-3);
}

#[test]
fn a_fixed_rate_gives_way_to_the_limits_too() {
    let rates = Rates::Fixed { mean: 0.0, shape: Shape::Uniform, schedule: Schedule::Constant };
    let fixed = made(rates, 1, 10, vec![]);
    let memory = StepMemory { limit_bytes: 100 << 20, process_bytes: 0, step_bytes: 10 << 20, layer_bytes: 30 << 20 };
    let devices = fleet(&fixed, &[Facts::default(), Facts { memory, ..Facts::default() }]);
    let choices = fixed.choose(1, &devices);
    assert_eq!(*choices[&device(0)].rates, [0.0; 6]);
    assert!((choices[&device(1)].rates.expected_active() - 3.0).abs() < 1e-3);
}

#[test]
fn nobody_explores_after_a_divergence_a_lost_evaluation_or_a_round_of_unstable_links() {
    let always = Bandit { epsilon: 1.0, explorers: 1.0, ..Bandit::default() };
    let told = |tell: &dyn Fn(&mut Configurator)| {
        let mut bandit = with(always.clone(), 50);
        (1..4).for_each(|round| rewarded(&mut bandit, 0, round, &[0.1, 0.3, 0.2, 0.0]));
        bandit.evaluated(Some(1.0));
        tell(&mut bandit);
        let everybody = fleet(&bandit, &alike(8));
        bandit.choose(4, &everybody)
    };
    let explorers = |choices: &BTreeMap<DeviceId, Choice>| choices.values().filter(|choice| choice.explores).count();
    assert!(explorers(&told(&|_| ())) > 0);
    let devices: Vec<DeviceId> = (0..4).map(device).collect();
    type Tell<'a> = (&'a dyn Fn(&mut Configurator), &'static str);
    let tells: [Tell<'_>; 4] = [
        (&|bandit| bandit.evaluated(Some(1.6)), "the loss rose from 1.000 to 1.600"),
        (&|bandit| bandit.evaluated(Some(f64::NAN)), "not finite"),
        (&|bandit| bandit.evaluated(None), "no device reported in the last evaluation"),
        (&|bandit| bandit.round_closed(1, devices[..2].iter(), devices[2..].iter(), 4), "only 2 of 4 updates arrived"),
    ];
    for (tell, reason) in tells {
        let choices = told(tell);
        assert_eq!(explorers(&choices), 0);
        assert!(choices.values().any(|choice| choice.reason.contains(reason)), "{reason}: {choices:?}");
        assert!(choices.values().all(|choice| choice.arm == Some(1)), "the best known: {choices:?}");
    }
}

#[test]
fn without_experience_who_must_not_explore_drops_nothing() {
    let bandit = with(Bandit { explorers: 0.0, ..Bandit::default() }, 50);
    let everybody = fleet(&bandit, &alike(3));
    let choices = bandit.choose(1, &everybody);
    assert!(choices.values().all(|choice| *choice.rates == [0.0; 6] && !choice.explores), "{choices:?}");
}

#[test]
fn a_device_whose_orders_came_to_nothing_does_not_explore_until_it_delivers() {
    let mut bandit = with(Bandit { explorers: 1.0, ..Bandit::default() }, 50);
    let (lost, everybody) = (device(0), fleet(&bandit, &alike(9)));
    let others: Vec<DeviceId> = (1..9).map(device).collect();
    (1..=2).for_each(|round| bandit.round_closed(round, others.iter(), [&lost].into_iter(), 9));
    let choice = bandit.choose(3, &everybody)[&lost].clone();
    assert!(!choice.explores && choice.reason.contains("last 2 orders failed"), "{choice:?}");
    bandit.round_closed(3, [&lost].into_iter().chain(&others), std::iter::empty(), 9);
    assert!(bandit.choose(4, &everybody)[&lost].explores);
}

#[test]
fn what_cannot_be_told_from_the_best_is_left_whole() {
    let mut bandit = with(Bandit { epsilon: 0.0, ..Bandit::default() }, 50);
    let noise = |round: u32| 0.2 * (f64::from(round % 3) - 1.0);
    (1..7).for_each(|round| rewarded(&mut bandit, 0, round, &[0.30 + noise(round), 0.31, 0.32 - noise(round), 0.31]));
    let everybody = fleet(&bandit, &alike(1));
    let choice = &bandit.choose(7, &everybody)[&device(0)];
    assert_eq!(choice.arm, Some(0), "{choice:?}");
}

#[test]
fn a_reward_far_out_counts_no_more_than_others_do() {
    let mut bandit = with(Bandit { epsilon: 0.0, ..Bandit::default() }, 50);
    (1..6).for_each(|round| rewarded(&mut bandit, 0, round, &[0.10, 0.30, 0.20 + 0.01 * f64::from(round), 0.0]));
    let outlier = Choice {
        rates: DropoutRates::new(vec![]).unwrap(),
        most_active: 6,
        arm: Some(3),
        class: String::new(),
        explores: true,
        probe_examples: 0,
        reason: String::new(),
    };
    bandit.reward(&device(1), &outlier, 5, 1e9, 1.0);
    let everybody = fleet(&bandit, &alike(1));
    let choices = bandit.choose(6, &everybody);
    assert_eq!(choices[&device(0)].arm, Some(1), "{choices:?}");
}

#[test]
fn rates_out_of_range_are_named() {
    let fixed = |mean| Rates::Fixed { mean, shape: Shape::Uniform, schedule: Schedule::Constant }.check();
    assert_eq!(fixed(0.9), Ok(()));
    assert!(fixed(0.91).unwrap_err().contains("rates.fixed.mean"));
    assert!(fixed(f32::NAN).is_err());
    let bandit = |toml: &str| Rates::Bandit(toml::from_str(toml).unwrap()).check();
    assert_eq!(bandit(""), Ok(()));
    for (toml, name) in [
        ("means = []", "0 combinations"),
        ("means = [0.1, 2.0]", "means has 2"),
        ("epsilon = 1.5", "epsilon is 1.5"),
        ("explorers = nan", "explorers"),
        ("candidates = 0", "candidates is 0, expected 1 to 64"),
        ("window = 1", "window"),
        ("probe_examples = 0", "probe_examples"),
        ("measured = -0.1", "measured"),
    ] {
        let message = bandit(toml).unwrap_err();
        assert!(message.contains(name), "{toml}: {message}");
    }
}

#[test]
fn no_dropout_is_one_arm_whatever_its_shape() {
    let shapes = vec![Shape::Uniform, Shape::Decreasing];
    let arms = Rates::Bandit(Bandit { means: vec![0.3, 0.0, 0.5], shapes, ..Bandit::default() }).arms();
    let means: Vec<f32> = arms.iter().map(|arm| arm.mean).collect();
    assert_eq!(means, [0.3, 0.3, 0.0, 0.5, 0.5]);
}

/// Returns facts about a device whose steps with all layers take `step_ms`.
fn paced(class: &str, step_ms: f64) -> Facts {
    let pace = Some(Pace { step_ms, active_layers: LAYERS as f64, other_ms: 0.0 });
    Facts { class: class.to_owned(), pace, ..Facts::default() }
}

#[test]
fn slow_devices_drop_layers_so_that_fast_ones_need_not_wait() {
    let mut bandit = with(Bandit { epsilon: 0.0, ..Bandit::default() }, 50);
    (1..4).for_each(|round| rewarded(&mut bandit, 5, round, &[0.6, 0.5, 0.4, 0.3]));
    let fast = || paced("agx", 100.0);
    let mixed = fleet(&bandit, &[paced("tx2", 400.0), fast(), fast(), fast()]);
    let choices = bandit.choose(4, &mixed);
    let arms: Vec<Option<u32>> = choices.values().map(|choice| choice.arm).collect();
    assert_eq!(arms, [Some(3), Some(0), Some(0), Some(0)], "{choices:?}");
    assert!(choices[&device(0)].reason.contains("the round takes about 2.0 s"), "{choices:?}");
}

#[test]
fn gains_are_measured_by_those_who_have_the_time_or_by_all_in_few_rounds() {
    let mut bandit = with(Bandit { epsilon: 0.0, measured: 0.5, probe_examples: 4, ..Bandit::default() }, 500);
    let asked = |choices: &BTreeMap<DeviceId, Choice>| -> Vec<u32> {
        choices.values().map(|choice| choice.probe_examples).collect()
    };
    let mut slow_rounds = 0;
    let mut spared = 0;
    for round in 2..202 {
        rewarded(&mut bandit, 5, round, &[0.6, 0.5, 0.4, 0.3]);
        let mixed = fleet(&bandit, &[paced("tx2", 400.0), paced("agx", 100.0)]);
        let of_mixed = asked(&bandit.choose(round, &mixed));
        assert_eq!(of_mixed[0], 0, "the slow one holds up the other");
        spared += usize::from(of_mixed[1] == 4);
        let of_same = asked(&bandit.choose(round, &fleet(&bandit, &vec![paced("tx2", 400.0); 3])));
        assert!(of_same == [0; 3] || of_same == [4; 3], "{of_same:?}");
        slow_rounds += usize::from(of_same == [4; 3]);
    }
    assert!((70..130).contains(&spared) && slow_rounds == 100, "{spared} {slow_rounds}");
}
