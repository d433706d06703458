//! The program `skiff-demo`.

use clap::Parser;
use skiff_demo::Options;
use std::io::Write as _;
use std::process::ExitCode;

/// Trains a whole fleet on this machine: a broker, a coordinator, and agents in separate processes.
#[derive(Parser, Debug)]
#[command(name = "skiff-demo", version)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    skiff_demo::run(&Line::parse().options).unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "skiff-demo: {error:#}");
        ExitCode::FAILURE
    })
}
