//! `skiff-worker`: the verbs of `skiff-agent` that train, which it hands over to this program.

use crate::commands::{bench, evaluate, export, predict, step, train, work};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// Trains for skiff-agent, which starts it. Call skiff-agent instead
#[derive(Parser)]
#[command(name = WORKER, bin_name = WORKER, version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Train(Box<train::Arguments>),
    Bench(bench::Arguments),
    Step(step::Arguments),
    Predict(Box<predict::Arguments>),
    Evaluate(Box<evaluate::Arguments>),
    #[command(hide = true)]
    Export(export::Arguments),
    #[command(hide = true)]
    Work(work::Arguments),
}

const WORKER: &str = "skiff-worker";
const AGENT: &str = "skiff-agent";
/// The verbs of [`AGENT`] that this program carries out.
const HANDED_OVER: [&str; 5] = ["train", "bench", "step", "predict", "evaluate"];

/// Returns the command line of a verb that the agent hands over; `None` if there is no such verb.
#[must_use]
pub fn handed_over(verb: &str) -> Option<clap::Command> {
    Cli::command().find_subcommand(verb).filter(|_| HANDED_OVER.contains(&verb)).cloned()
}

/// Reads the command line, runs the verb, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let program = named(std::env::args_os().nth(1));
    let matches = Cli::command().name(program).bin_name(program).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    skiff_contract::log::start();
    let done = match &cli.verb {
        Verb::Train(arguments) => train::run(arguments),
        Verb::Bench(arguments) => bench::run(arguments),
        Verb::Step(arguments) => step::run(arguments),
        Verb::Predict(arguments) => predict::run(arguments),
        Verb::Evaluate(arguments) => evaluate::run(arguments),
        Verb::Export(arguments) => export::run(arguments),
        Verb::Work(arguments) => work::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => skiff_screen::output::exit_status(program, &error, ExitCode::FAILURE),
    }
}

/// Returns the program that the user called, for usage lines and errors.
fn named(verb: Option<OsString>) -> &'static str {
    let handed_over = verb.is_some_and(|verb| HANDED_OVER.iter().any(|known| verb == *known));
    if handed_over { AGENT } else { WORKER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_worker_names_itself_and_its_verbs_name_the_agent() {
        assert_eq!(named(Some("--version".into())), "skiff-worker");
        assert_eq!(named(None), "skiff-worker");
        assert_eq!(Cli::command().render_version(), format!("skiff-worker {}\n", env!("CARGO_PKG_VERSION")));
        for verb in HANDED_OVER {
            let program = named(Some(verb.into()));
            let error = Cli::command().name(program).bin_name(program).try_get_matches_from([program, verb, "--help"]);
            let help = error.map(|_| ()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(help.contains(&format!("Usage: skiff-agent {verb}")), "{help}");
        }
    }
}
