//! Sample values for tests, with feature `samples`, so that a test sets only the fields that it checks.
//!
//! ```
//! use skiff_protocol::{messages::TrainReport, samples};
//! let report = TrainReport { shared_layers: vec![0, 1], ..samples::train_report() };
//! ```

use crate::messages::TrainReport;

/// Returns the report of a short training that shared no layer.
#[must_use]
pub fn train_report() -> TrainReport {
    TrainReport {
        examples: 8,
        tokens: 100,
        steps: 4,
        mean_loss: 0.5,
        shared_layers: vec![],
        importance: vec![1.0, 2.0],
        mean_active_layers: 1.5,
        train_ms: 70,
        step_ms: 17.0,
        peak_rss_bytes: 1000,
        probe: None,
    }
}
