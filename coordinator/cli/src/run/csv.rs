//! The rounds of a run as a CSV table (RFC 4180), for other tools. docs/runs.md describes the columns.

use anyhow::Context as _;
use csv::{Terminator, WriterBuilder};
use skiff_api::details::RunDetails;
use skiff_api::measures::Figures;
use skiff_api::progress::RoundProgress;
use skiff_screen::dates::utc;

/// The columns, in their order. Later versions add columns only at the end.
const COLUMNS: [&str; 27] = [
    "round",
    "state",
    "started",
    "ended",
    "devices_asked",
    "devices_merged",
    "devices_refused",
    "examples",
    "train_loss",
    "evaluated_examples",
    "evaluated_loss",
    "accuracy",
    "macro_f1",
    "span_f1",
    "mse",
    "pearson_r",
    "perplexity",
    "dropout_mean",
    "dropout_lowest",
    "dropout_highest",
    "layers_mean",
    "step_ms",
    "train_ms",
    "evaluate_ms",
    "bytes_up",
    "bytes_down",
    "reason",
];

/// Returns the table: a row for the evaluation before the first round, if there was one, and a row for each closed round. A value
/// that is not known is an empty cell.
///
/// # Errors
/// None that a table in memory can have.
pub(super) fn table(details: &RunDetails) -> anyhow::Result<String> {
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    if let Some(before) = &details.run.metrics_before {
        let mut cells = ["0", "before", "", "", "", "", "", "", ""].map(str::to_owned).to_vec();
        cells.extend([before.examples.to_string(), String::new()]);
        cells.extend(figures(Some(before)));
        cells.resize(COLUMNS.len(), String::new());
        writer.write_record(cells)?;
    }
    for closed in &details.run.closed {
        writer.write_record(row(closed))?;
    }
    let bytes = writer.into_inner().context("writing the table of rounds")?;
    Ok(String::from_utf8(bytes)?)
}

fn row(closed: &RoundProgress) -> Vec<String> {
    let is_evaluated = closed.metrics.is_some();
    let ended = if closed.ended_ms == 0 { String::new() } else { utc(closed.ended_ms) };
    let rate = |rate: Option<f32>| rate.map_or_else(String::new, |rate| rate.to_string());
    let with_updates = |value: f32| if closed.updates > 0 { value.to_string() } else { String::new() };
    let mut cells = vec![
        closed.round.to_string(),
        if closed.skipped.is_none() { "merged" } else { "skipped" }.to_owned(),
        closed.started_ms.map_or_else(String::new, utc),
        ended,
        closed.selected.to_string(),
        if closed.skipped.is_none() { closed.updates } else { 0 }.to_string(),
        closed.refused.to_string(),
        closed.examples.to_string(),
        number(closed.train_loss),
        closed.metrics.map_or_else(String::new, |figures| figures.examples.to_string()),
        number(closed.loss),
    ];
    cells.extend(figures(closed.metrics.as_ref()));
    cells.extend([
        rate(closed.rates.map(|_| closed.mean_rate)),
        rate(closed.rates.map(|(lowest, _)| lowest)),
        rate(closed.rates.map(|(_, highest)| highest)),
        with_updates(closed.mean_active_layers),
        with_updates(closed.step_ms),
        closed.train_ms.to_string(),
        if is_evaluated { closed.evaluate_ms.to_string() } else { String::new() },
        closed.bytes_up.to_string(),
        closed.bytes_down.to_string(),
        closed.skipped.clone().unwrap_or_default(),
    ]);
    cells
}

fn figures(figures: Option<&Figures>) -> [String; 6] {
    let Figures { accuracy, macro_f1, span_f1, mse, pearson_r, perplexity, .. } = figures.copied().unwrap_or_default();
    [accuracy, macro_f1, span_f1, mse, pearson_r, perplexity].map(number)
}

/// Returns a number with all its digits; nothing if it is unknown, infinite or no number.
fn number(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or_else(String::new, |value| value.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use serde_json::json;
    use skiff_api::progress::RunProgress;

    fn details() -> RunDetails {
        let run: RunProgress = serde_json::from_value(json!({
            "run": "00a1", "phase": "completed", "round": 2, "rounds": 2, "ordered": 0, "answered": 0,
            "accuracy_before": null, "accuracy": null, "accuracy_after": null, "elapsed_ms": 17_100,
            "metrics_before": { "examples": 40, "accuracy": 0.25 }, "bytes_up": 0, "bytes_down": 0, "reason": null,
            "closed": [{
                "round": 1, "skipped": null, "selected": 4, "updates": 3, "refused": 1, "examples": 96,
                "started_ms": 1_764_580_985_120_u64, "ended_ms": 1_764_580_990_000_u64, "rates": [0.0, 0.5],
                "accuracy": 0.8125, "metrics": { "examples": 40, "accuracy": 0.8125, "macro_f1": 0.75 }, "loss": 0.5,
                "evaluated_examples": 40, "train_loss": 0.4, "mean_rate": 0.25, "mean_active_layers": 4.5,
                "step_ms": 140.5, "train_ms": 4_000, "evaluate_ms": 880, "longest_training_ms": 3_900,
                "bytes_up": 3_000_000, "bytes_down": 4_000_000,
            }, {
                "round": 2, "skipped": "only 1 device was online, \"hall\"", "selected": 0, "updates": 0, "accuracy": null,
                "loss": null, "evaluated_examples": 0, "train_loss": null, "mean_rate": 0.0, "mean_active_layers": 0.0,
                "step_ms": 0.0, "train_ms": 0, "evaluate_ms": 0, "longest_training_ms": 0, "bytes_up": 10, "bytes_down": 20,
            }],
        }))
        .unwrap();
        let (best, last, parts, settings, damage, pack) = (None, None, None, None, None, None);
        RunDetails { run, started_ms: 1, pack, best, last, devices: Vec::new(), parts, settings, damage }
    }

    #[test]
    fn the_table_has_a_row_for_each_round_and_an_empty_cell_for_each_unknown_value() {
        let text = table(&details()).unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines[0], COLUMNS.join(","));
        assert_eq!(lines[1], "0,before,,,,,,,,40,,0.25,,,,,,,,,,,,,,,");
        assert_eq!(
            lines[2],
            "1,merged,2025-12-01T09:23:05.120Z,2025-12-01T09:23:10.000Z,4,3,1,96,0.4,40,0.5,0.8125,0.75,,,,,\
             0.25,0,0.5,4.5,140.5,4000,880,3000000,4000000,"
        );
        assert_eq!(lines[3], "2,skipped,,,0,0,0,0,,,,,,,,,,,,,,,0,,10,20,\"only 1 device was online, \"\"hall\"\"\"");
        assert_eq!(lines[4..], [""], "the last line ends too");
        let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap().len(), COLUMNS.len());
        assert!(reader.records().all(|record| record.unwrap().len() == COLUMNS.len()));
    }

    #[test]
    fn the_page_describes_every_column() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/runs.md");
        let page = std::fs::read_to_string(page).unwrap();
        let described: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        assert_eq!(described, COLUMNS);
    }
}
