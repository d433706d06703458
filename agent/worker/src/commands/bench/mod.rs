//! `skiff-agent bench`: measures how fast this device trains a pack, and how much memory that takes.

mod arguments;
mod measure;

pub use arguments::Arguments;
pub(super) use arguments::policy;

use super::profile::Profile;
use measure::{Bench, Measurement};
use skiff_screen::live::Live;
use skiff_screen::output;
use skiff_screen::units::counted;
use std::io::Write;

/// Runs the command.
///
/// # Errors
/// A pack, a trace folder or an ONNX Runtime that cannot be used; a step that fails.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut bench = Bench::open(arguments)?;
    let counts = arguments.counts(bench.layers())?;
    let mut out = output::stdout();
    let table = Measurement::table(output::width());
    if !arguments.json {
        write!(out, "{}", table.heading())?;
    }
    let live = Live::new();
    let (mut steps, mut seconds) = (0, 0.0);
    for active in counts {
        live.say(&format!("timing steps with {} of {}", active, counted(bench.layers(), "layer")));
        let measurement;
        (measurement, steps, seconds) = bench.measure(active)?;
        if arguments.json {
            live.print(&format!("{}\n", serde_json::to_string(&measurement)?))?;
        } else {
            live.print(&table.row(measurement.cells()))?;
        }
    }
    live.clear();
    if let Some(folder) = &arguments.profile {
        // ONNX Runtime writes the traces when the sessions are dropped.
        drop(bench);
        let profile = Profile::read(folder, steps, seconds)?;
        if arguments.json {
            writeln!(out, "{}", serde_json::json!({ "profile": profile }))?;
        } else {
            write!(out, "\n{}", profile.table().text(output::width()))?;
        }
    }
    Ok(())
}
