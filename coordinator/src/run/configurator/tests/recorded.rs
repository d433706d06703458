//! Choices in a few hundred random situations, recorded in `choices.txt`: a change of the code must not change a decision.
//!
//! Reasons are not recorded, so that their wording may change. To record the file anew after a change of the method, run this
//! test with `SKIFF_RECORD=1`.

use super::*;
use std::fmt::Write as _;

const STORIES: u64 = 40;
const ROUNDS: u32 = 10;

/// Random numbers that depend only on a story's number.
struct Chance {
    story: u64,
    drawn: u32,
}

impl Chance {
    fn unit(&mut self) -> f64 {
        self.drawn += 1;
        draw(self.story, "recorded", self.drawn, "")
    }

    fn number(&mut self, below: usize) -> usize {
        (self.unit() * below as f64) as usize
    }

    fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    fn between(&mut self, least: f64, most: f64) -> f64 {
        least + self.unit() * (most - least)
    }

    fn rates(&mut self) -> Rates {
        let shapes = [Shape::Uniform, Shape::Increasing, Shape::Decreasing, Shape::Normal];
        let schedules = [Schedule::Constant, Schedule::WarmUp, Schedule::CoolDown];
        if self.happens(0.1) {
            let (mean, shape) = (self.between(0.0, 0.9) as f32, shapes[self.number(4)]);
            return Rates::Fixed { mean, shape, schedule: schedules[self.number(3)] };
        }
        let first_shape = self.number(4);
        Rates::Bandit(Bandit {
            shapes: shapes[first_shape..].to_vec(),
            schedules: schedules[..=self.number(2)].to_vec(),
            policy: [Policy::EpsilonGreedy, Policy::Ucb, Policy::Thompson][self.number(3)],
            epsilon: self.unit() as f32,
            candidates: 2 + self.number(8) as u32,
            window: [2, 4, 20][self.number(3)],
            explorers: self.between(0.3, 1.0) as f32,
            gain: [Gain::Loss, Gain::Measure][self.number(2)],
            probe_examples: 1 + self.number(64) as u32,
            measured: self.unit() as f32,
            ..Bandit::default()
        })
    }

    fn facts(&mut self) -> Facts {
        let mut facts = Facts { class: ["", "tx2", "agx"][self.number(3)].to_owned(), ..Facts::default() };
        if self.happens(0.5) {
            let limit_bytes = self.between(40.0, 400.0) as u64;
            facts.memory = StepMemory {
                limit_bytes: limit_bytes << 20,
                process_bytes: 10 << 20,
                step_bytes: 20 << 20,
                layer_bytes: 20 << 20,
            };
        }
        if self.happens(0.7) {
            let (step_ms, other_ms) = (self.between(50.0, 9_000.0), self.between(0.0, 4_000.0));
            facts.pace = Some(Pace { step_ms, active_layers: self.between(1.0, 6.0), other_ms });
        }
        facts.celsius = self.happens(0.3).then(|| self.between(40.0, 95.0) as f32);
        facts.battery_percent = self.happens(0.3).then(|| self.between(0.0, 100.0) as f32);
        facts
    }
}

/// Plays one run of ten rounds and appends one line for each round to `lines`.
fn play(story: u64, lines: &mut String) {
    let mut chance = Chance { story, drawn: 0 };
    let protected = if chance.happens(0.3) { vec![chance.number(LAYERS) as u32] } else { vec![] };
    let rates = chance.rates();
    let arms = rates.arms().len();
    let asynchronous = chance.happens(0.2);
    let mut configurator =
        Configurator::new(Settings { rates, protected, seed: story, rounds: ROUNDS, asynchronous, ..settings() });
    let devices = 1 + chance.number(8);
    if chance.happens(0.6) {
        let gains: Vec<f64> = (0..arms).map(|_| chance.between(-0.2, 1.0)).collect();
        rewarded(&mut configurator, 0, 1, &gains);
    }
    for round in 1..=ROUNDS {
        let asked: BTreeMap<DeviceId, (Facts, Limits)> = (0..devices)
            .filter_map(|index| {
                let facts = chance.facts();
                let limits = configurator.limits(&facts, &load()).ok()?;
                Some((device(index), (facts, limits)))
            })
            .collect();
        let choices = configurator.choose(round, &asked);
        lines.push_str(&line(&configurator, story, round, &choices));
        let (mut delivered, mut failed) = (Vec::new(), Vec::new());
        for (device, choice) in &choices {
            if chance.happens(0.15) {
                failed.push(device);
                continue;
            }
            delivered.push(device);
            if choice.probe_examples > 0 {
                let (gain, seconds) = (chance.between(-0.3, 1.0) / f64::from(round), chance.between(0.5, 60.0));
                configurator.reward(device, choice, round, gain, seconds);
            }
        }
        configurator.round_closed(round, delivered.into_iter(), failed.into_iter(), choices.len());
        let loss = chance.happens(0.95).then(|| chance.between(0.5, 0.9));
        configurator.evaluated(loss);
    }
}

/// Returns a line such as `3.7 2! -/16 0`. It begins with story and round. Each device follows with its arm (`-` for none), `!`
/// if it explores, and the number of examples of its probe. The line ends in a digest of all rates, layers and expected gains, to
/// the bit.
fn line(configurator: &Configurator, story: u64, round: u32, choices: &BTreeMap<DeviceId, Choice>) -> String {
    let mut line = format!("{story}.{round}");
    let mut digest = blake3::Hasher::new();
    for (device, choice) in choices {
        let arm = choice.arm.map_or_else(|| "-".to_owned(), |arm| arm.to_string());
        let explores = if choice.explores { "!" } else { "" };
        let probe = if choice.probe_examples > 0 { format!("/{}", choice.probe_examples) } else { String::new() };
        write!(line, " {arm}{explores}{probe}").unwrap();
        choice.rates.iter().for_each(|rate| _ = digest.update(&rate.to_le_bytes()));
        digest.update(&choice.most_active.to_le_bytes()).update(choice.class.as_bytes());
        for Expected { gain, measurements, .. } in configurator.expected(device, &choice.class) {
            digest.update(&gain.unwrap_or(f64::MAX).to_le_bytes()).update(&measurements.to_le_bytes());
        }
    }
    format!("{line} {}\n", &digest.finalize().to_hex()[..8])
}

#[test]
fn choices_are_those_that_were_recorded() {
    let mut found = String::new();
    (0..STORIES).for_each(|story| play(story, &mut found));
    if std::env::var_os("SKIFF_RECORD").is_some() {
        let this_file = concat!(env!("CARGO_MANIFEST_DIR"), "/../", file!());
        std::fs::write(this_file.replace("recorded.rs", "choices.txt"), &found).unwrap();
    }
    for (found, recorded) in found.lines().zip(include_str!("choices.txt").lines()) {
        assert_eq!(found, recorded, "story and round, arms, digest");
    }
    assert_eq!(found.lines().count(), include_str!("choices.txt").lines().count());
}
