//! The program `skiff-demo`.

use clap::Parser;
use skiff_demo::Options;
use std::process::ExitCode;

/// Trains a whole fleet on this machine: a broker, a coordinator, and agents in separate processes.
#[derive(Parser, Debug)]
#[command(name = "skiff-demo", version)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let ended = skiff_demo::run(&Line::parse().options);
    ended.unwrap_or_else(|error| skiff_screen::output::exit_status("skiff-demo", &error, ExitCode::FAILURE))
}
