//! Formats figures and phases of a run as text.

use crate::table::number;
use skiff_api::measures::{Figures, Measure};
use skiff_api::progress::Phase;

/// Returns the figure of the run's measure as text.
pub(super) fn figure(metrics: Option<&Figures>, measure: Measure) -> String {
    number(metrics.and_then(|metrics| measure.figure(metrics)), 4)
}

/// Returns a phase as a word.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Gathering => "gathering",
        Phase::Training => "training",
        Phase::Merging => "merging",
        Phase::Evaluating => "evaluating",
        Phase::Completed => "completed",
        Phase::Stopped => "stopped",
        Phase::Failed => "failed",
    }
}
