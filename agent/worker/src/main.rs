//! `skiff-worker`: the verbs of `skiff-agent` that train, which it hands over to this program.

use clap::{Parser, Subcommand};
use skiff_worker::commands::{bench, step, train, work};
use std::io::Write;
use std::process::ExitCode;

/// Trains for skiff-agent.
#[derive(Parser)]
#[command(name = "skiff-agent", bin_name = "skiff-agent", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Train(train::Arguments),
    Bench(bench::Arguments),
    Step(step::Arguments),
    #[command(hide = true)]
    Work(work::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    skiff_agent::log::start();
    let done = match &cli.verb {
        Verb::Train(arguments) => train::run(arguments),
        Verb::Bench(arguments) => bench::run(arguments),
        Verb::Step(arguments) => step::run(arguments),
        Verb::Work(arguments) => work::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "skiff-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
