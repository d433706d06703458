//! `skiff run list`: all runs, a row each.

use super::show::{date, now};
use crate::door::Door;
use serde_json::{Value, json};
use skiff_cli::watch::{figure, phase};
use skiff_coordinator::run::NOTHING_MERGED;
use skiff_coordinator::store::{RunRow, SqliteStore, Store as _};
use skiff_coordinator::views;
use skiff_screen::output::{stdout, width};
use skiff_screen::table::{Column, Table};
use skiff_screen::text::fold;
use skiff_screen::units::{UNKNOWN, millis};
use std::io::Write as _;

/// Prints all runs, oldest first.
///
/// # Errors
/// The journal cannot be read.
pub(super) fn run(door: &Door, json: bool) -> anyhow::Result<()> {
    let rows = SqliteStore::open_existing(&door.state()?)?.runs()?;
    if !json {
        return Ok(write!(stdout(), "{}", as_text(&rows, width()))?);
    }
    let now = now();
    rows.iter().try_for_each(|row| {
        let mut run = serde_json::to_value(views::listed_run(row, now))?;
        let more = json!({
            "started_ms": row.summary.started_ms, "best": row.summary.best, "last": row.summary.last,
        });
        if let (Some(run), Value::Object(more)) = (run.as_object_mut(), more) {
            run.extend(more);
        }
        Ok(writeln!(stdout(), "{run}")?)
    })
}

fn as_text(rows: &[RunRow], width: Option<usize>) -> String {
    if rows.is_empty() {
        return "no run has been started\n".to_owned();
    }
    let mut table = Table::new([
        Column::text("run"),
        Column::text("started").rank(2),
        Column::text("phase"),
        Column::number("round"),
        Column::text("measure").rank(4),
        Column::number("before").rank(3),
        Column::number("last"),
        Column::number("best").rank(5),
        Column::number("time").rank(1),
    ]);
    let now = now();
    for row in rows {
        let run = views::listed_run(row, now);
        let best = row.summary.best.as_ref().map_or_else(|| UNKNOWN.to_owned(), |best| format!("round {}", best.round));
        table.add([
            run.run,
            date(row.summary.started_ms),
            phase(run.phase).to_owned(),
            format!("{}/{}", run.round, run.rounds),
            run.measure.name().to_owned(),
            figure(run.metrics_before.as_ref(), run.measure),
            figure(run.metrics.as_ref(), run.measure),
            best,
            millis(run.elapsed_ms),
        ]);
    }
    let failed = rows.iter().filter(|row| row.damage.is_none() && row.summary.has_failed());
    let reason = |row: &RunRow| row.summary.reason.clone().unwrap_or_else(|| NOTHING_MERGED.to_owned());
    let reasons = failed.map(|row| fold(&format!("run {} failed: {}", row.run, reason(row)), 2, width) + "\n");
    table.text(width) + &reasons.collect::<String>()
}
