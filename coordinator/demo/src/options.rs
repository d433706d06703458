//! The options of the demo.

use skiff_api::policy::Sharing;
use skiff_coordinator::run::RunSettings;
use skiff_coordinator::run::configurator::{Bandit, MAX_MEAN_RATE, Rates, Schedule, Shape};
use std::path::PathBuf;
use std::str::FromStr;

/// Maximum number of agents. Each is a process that holds the model.
const MAX_AGENTS: i64 = 32;
/// Number of test examples for evaluations between rounds. The evaluations before the first and after the last round use
/// all of them.
const EVALUATED: u64 = 200;

/// Trains a whole fleet on this machine: a broker, the coordinator, and agents with unequal shares of the data.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  skiff-demo\n  skiff-demo --data path/to/agnews --dropout bandit --json result.json\n\n\
    Exit status: 0 done; 1 failed; 2 wrong usage; 130 stopped by Ctrl-C."
)]
pub struct Options {
    /// Folder with a training and a test file (CSV, TSV or JSONL), or `generated` for commands to a home assistant
    #[arg(long, value_name = "FOLDER", default_value = "generated")]
    data: PathBuf,
    /// Also write the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Folder with the model: config.json, model.safetensors and tokenizer.json
    #[arg(long, value_name = "FOLDER", default_value = ".cache/minilm")]
    pub(super) checkpoint: PathBuf,
    /// Number of training rounds [default: 12 for short texts, 8 for long ones]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Number of agents, each a process with one thread
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=MAX_AGENTS))]
    pub(super) agents: u32,
    /// Similarity of the agents' data: with 0.1, each agent has few labels; with 100, all have nearly the same mix
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = alpha)]
    pub(super) alpha: f64,
    /// Probability that a batch skips a layer, 0 to 0.9, or `bandit` to let the coordinator find one for each agent
    #[arg(long, value_name = "RATE|bandit", default_value = "0.2")]
    dropout: Dropout,
    /// Number of layers that each agent shares, the least important ones first [default: all]
    #[arg(long, value_name = "N")]
    share: Option<u32>,
    /// Number of training steps of each agent in a round [default: 30 for short texts, 18 for long ones]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: Option<u32>,
    /// Number of examples in a step [default: 16 for short texts, 8 for long ones]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: Option<u32>,
    /// Learning rate [default: 0.004 for short texts, 0.002 for long ones]
    #[arg(long, value_name = "NUMBER")]
    lr: Option<f32>,
    /// Seed for data, shares, batches and masks
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// Keep the pack, shares, settings and logs in this new folder
    #[arg(long, value_name = "FOLDER")]
    pub(super) keep: Option<PathBuf>,
}

/// Amount of work in a run, chosen so that the demo takes less than four minutes on two idle cores.
struct Pace {
    rounds: u32,
    steps: u32,
    batch: u32,
    learning_rate: f32,
}

impl Pace {
    /// Pace for commands and single sentences.
    const SHORT: Self = Self { rounds: 12, steps: 30, batch: 16, learning_rate: 4e-3 };
    /// Pace for paragraphs.
    const LONG: Self = Self { rounds: 8, steps: 18, batch: 8, learning_rate: 2e-3 };
    /// Maximum mean length of short texts, in bytes.
    const SHORT_BYTES: usize = 100;

    fn of(mean_text_bytes: usize) -> Self {
        if mean_text_bytes <= Self::SHORT_BYTES { Self::SHORT } else { Self::LONG }
    }
}

/// Value of `--dropout`.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Dropout {
    Fixed(f32),
    Bandit,
}

impl FromStr for Dropout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "bandit" {
            return Ok(Self::Bandit);
        }
        match text.parse() {
            Ok(rate) if (0.0..=MAX_MEAN_RATE).contains(&rate) => Ok(Self::Fixed(rate)),
            _ => Err(format!("use a rate from 0 to {MAX_MEAN_RATE}, or `bandit`")),
        }
    }
}

fn alpha(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(alpha) if (1e-3..=1e6).contains(&alpha) => Ok(alpha),
        _ => Err("use a number from 0.001 to 1000000".to_owned()),
    }
}

impl Options {
    /// Returns the folder of the data; `None` for generated data.
    pub(super) fn data(&self) -> Option<&PathBuf> {
        (self.data != *"generated").then_some(&self.data)
    }

    /// Returns the settings of the run, for `test_examples` over all agents and texts of `mean_text_bytes` on average.
    pub(super) fn run_settings(&self, test_examples: u64, mean_text_bytes: usize) -> RunSettings {
        let pace = Pace::of(mean_text_bytes);
        let rates = match self.dropout {
            Dropout::Fixed(mean) => Rates::Fixed { mean, shape: Shape::Uniform, schedule: Schedule::Constant },
            Dropout::Bandit => Rates::Bandit(Bandit::default()),
        };
        RunSettings {
            rounds: self.rounds.unwrap_or(pace.rounds),
            devices: self.agents,
            quorum: self.agents.div_ceil(2),
            steps: self.steps.unwrap_or(pace.steps),
            batch: self.batch.unwrap_or(pace.batch),
            learning_rate: self.lr.unwrap_or(pace.learning_rate),
            seed: self.seed,
            rates,
            sharing: self.share.map_or(Sharing::All, Sharing::LeastImportant),
            evaluate_examples: EVALUATED.min(test_examples),
            final_examples: test_examples,
            ..RunSettings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &str) -> Result<Options, clap::Error> {
        Cli::try_parse_from(["demo"].into_iter().chain(arguments.split_whitespace())).map(|cli| cli.options)
    }

    #[test]
    fn the_defaults_are_a_run_of_the_generated_data() {
        let options = parse("").unwrap();
        assert_eq!(options.data(), None);
        let settings = options.run_settings(1_000, 40);
        assert_eq!(settings.check(6), Ok(()));
        assert_eq!((settings.devices, settings.quorum, settings.final_examples), (4, 2, 1_000));
    }

    #[test]
    fn every_option_reaches_the_run() {
        let options = parse(
            "--data x/generated --rounds 3 --agents 5 --dropout bandit --share 2 --steps 7 --batch 4 --lr 0.01 --seed 9",
        )
        .unwrap();
        assert_eq!(options.data(), Some(&PathBuf::from("x/generated")));
        let settings = options.run_settings(100, 40);
        assert_eq!(settings.check(6), Ok(()));
        assert_eq!((settings.rounds, settings.devices, settings.quorum, settings.steps), (3, 5, 3, 7));
        assert_eq!((settings.batch, settings.seed, settings.evaluate_examples), (4, 9, 100));
        assert_eq!(settings.sharing, Sharing::LeastImportant(2));
        assert!(matches!(settings.rates, Rates::Bandit(_)));
        let fixed = parse("--dropout 0.5").unwrap().run_settings(100, 40).rates;
        assert_eq!(fixed, Rates::Fixed { mean: 0.5, shape: Shape::Uniform, schedule: Schedule::Constant });
    }

    #[test]
    fn long_texts_take_fewer_and_smaller_steps() {
        let options = parse("--steps 25").unwrap();
        let (short, long) = (options.run_settings(1_000, 100), options.run_settings(1_000, 101));
        assert_eq!((short.rounds, short.steps, short.batch), (12, 25, 16));
        assert_eq!((long.rounds, long.steps, long.batch), (8, 25, 8));
    }

    #[test]
    fn bad_options_are_refused_with_what_is_allowed() {
        for (arguments, expected) in [
            ("--dropout 1", "a rate from 0 to 0.9, or `bandit`"),
            ("--dropout nan", "a rate from 0 to 0.9, or `bandit`"),
            ("--alpha 0", "a number from 0.001"),
            ("--alpha inf", "a number from 0.001"),
            ("--agents 0", "1..=32"),
            ("--rounds 0", "1..=1000"),
        ] {
            let message = parse(arguments).unwrap_err().to_string();
            assert!(message.contains(expected), "{arguments}: {message}");
        }
    }
}
