//! `skiff-agent bench`: measures how fast this device trains a pack, and how much memory that takes.

mod arguments;
mod measure;

pub use arguments::Arguments;
pub(super) use arguments::policy;

use super::profile::Profile;
use measure::{Bench, Measurement};
use std::io::Write;

/// Runs the command.
///
/// # Errors
/// A pack, a trace folder or an ONNX Runtime that cannot be used; a step that fails.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut bench = Bench::open(arguments)?;
    let counts = arguments.counts(bench.layers())?;
    let mut out = std::io::stdout().lock();
    if !arguments.json {
        Measurement::print_heading(&mut out)?;
    }
    let (mut steps, mut seconds) = (0, 0.0);
    for active in counts {
        let measurement;
        (measurement, steps, seconds) = bench.measure(active)?;
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(&measurement)?)?;
        } else {
            measurement.print(&mut out)?;
        }
    }
    if let Some(folder) = &arguments.profile {
        // ONNX Runtime writes the traces when the sessions are dropped.
        drop(bench);
        let profile = Profile::read(folder, steps, seconds)?;
        if arguments.json {
            writeln!(out, "{}", serde_json::json!({ "profile": profile }))?;
        } else {
            profile.print(&mut out)?;
        }
    }
    Ok(())
}
