//! `skiff run list`: all runs, a row each.

use super::show::{changed, now};
use crate::door::Door;
use crate::watch::{figure, phase};
use serde_json::{Map, Value, json};
use skiff_coordinator::run::NOTHING_MERGED;
use skiff_coordinator::store::{RunRow, SqliteStore, Store as _, StoreError};
use skiff_coordinator::views;
use skiff_protocol::Timestamp;
use skiff_screen::dates::{age, date};
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
    let store = SqliteStore::open_existing(&door.state()?)?;
    let listed = store.runs()?.into_iter().map(|row| {
        let settings = store.settings(row.run)?.as_ref().and_then(views::settings_table);
        Ok(Listed { row, settings })
    });
    let listed: Vec<Listed> = listed.collect::<Result<_, StoreError>>()?;
    let now = now();
    if !json {
        return Ok(write!(stdout(), "{}", as_text(&listed, now, width()))?);
    }
    listed.iter().try_for_each(|Listed { row, settings }| {
        let mut run = serde_json::to_value(views::listed_run(row, now))?;
        let more = json!({
            "started_ms": row.summary.started_ms, "best": row.summary.best, "last": row.summary.last, "settings": settings,
        });
        if let (Some(run), Value::Object(more)) = (run.as_object_mut(), more) {
            run.extend(more);
        }
        Ok(writeln!(stdout(), "{run}")?)
    })
}

/// A run with its settings; `None` if they are damaged.
struct Listed {
    row: RunRow,
    settings: Option<Map<String, Value>>,
}

/// Maximum number of characters of the settings in a row.
const SETTINGS_SHOWN: usize = 60;

fn as_text(listed: &[Listed], now: Timestamp, width: Option<usize>) -> String {
    if listed.is_empty() {
        return "no run has been started\n".to_owned();
    }
    let mut table = Table::new([
        Column::text("run"),
        Column::text("name"),
        Column::text("started").rank(2),
        Column::text("age").rank(5),
        Column::text("phase"),
        Column::number("round").rank(1),
        Column::text("measure").rank(6),
        Column::number("before").rank(4),
        Column::number("last"),
        Column::number("best").rank(7),
        Column::number("time").rank(3),
        Column::text("settings").rank(8),
    ]);
    for Listed { row, settings } in listed {
        let run = views::listed_run(row, now);
        let best = row.summary.best.as_ref().map_or_else(|| UNKNOWN.to_owned(), |best| format!("round {}", best.round));
        table.add([
            run.run,
            run.name.unwrap_or_else(|| UNKNOWN.to_owned()),
            date(row.summary.started_ms),
            age(row.summary.started_ms, now.0),
            phase(run.phase).to_owned(),
            format!("{}/{}", run.round, run.rounds),
            run.measure.name().to_owned(),
            figure(run.metrics_before.as_ref(), run.measure),
            figure(run.metrics.as_ref(), run.measure),
            best,
            millis(run.elapsed_ms),
            settings.as_ref().map_or_else(|| UNKNOWN.to_owned(), brief),
        ]);
    }
    let rows = listed.iter().map(|listed| &listed.row);
    let failed = rows.filter(|row| row.damage.is_none() && row.summary.has_failed());
    let reason = |row: &RunRow| row.summary.reason.clone().unwrap_or_else(|| NOTHING_MERGED.to_owned());
    let reasons = failed.map(|row| fold(&format!("run {} failed: {}", row.run, reason(row)), 2, width) + "\n");
    table.text(width) + &reasons.collect::<String>()
}

/// Returns the settings that differ from the defaults, without the number of rounds, cut to [`SETTINGS_SHOWN`] characters.
fn brief(settings: &Map<String, Value>) -> String {
    let mut others = settings.clone();
    others.remove("rounds");
    let text = changed(&others);
    match text.char_indices().nth(SETTINGS_SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
