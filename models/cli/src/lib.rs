//! `skiff-pack`: builds, shows and verifies packs, and exports tuned values in formats that other programs read.

mod build;
mod data;
mod ending;
mod export;
mod inspect;
mod notes;
mod probes;
mod progress;
mod tokenizer;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds packs: ONNX training graphs and weights for agents, from a checkpoint.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds a pack from a Hugging Face checkpoint folder.
    Build(Box<build::Arguments>),
    /// Checks a pack's digests, and shows its contents and the memory of a training step.
    Inspect(inspect::Arguments),
    /// Checks a pack like `inspect`, builds its graphs again, loads the tokenizer, and runs every graph.
    Verify(verify::Arguments),
    /// Converts a table or JSON of any usual encoding and form (also Parquet and .gz) to a file that the agent reads.
    Data(Box<data::Arguments>),
    /// Writes tuned values as a Hugging Face PEFT adapter, or merged as a plain checkpoint.
    Export(export::Arguments),
}

/// Returns the whole command line, for completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command().name("skiff-pack")
}

/// Reads the command line, runs the verb, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Build(arguments) => build::run(*arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Data(arguments) => data::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => skiff_screen::output::exit_status("skiff-pack", &error, ExitCode::FAILURE),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
