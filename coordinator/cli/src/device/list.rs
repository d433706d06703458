//! `skiff device list`: the devices of the fleet, or those that were removed.

use crate::door::Door;
use crate::fleet;
use crate::run::now;
use clap::Args;
use skiff_api::removal::Removal;
use skiff_coordinator::store::{SqliteStore, Store as _};
use skiff_protocol::Timestamp;
use skiff_screen::dates::{age, date};
use skiff_screen::output::{stdout, width};
use skiff_screen::table::{Column, Table};
use skiff_screen::units::UNKNOWN;
use std::io::Write as _;

/// Arguments of `skiff device list`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skiff device list --state fleet-state              the same table as `skiff fleet`
  skiff device list --state fleet-state --removed    who was removed, when, by whom and why; reads the journal")]
pub(crate) struct Arguments {
    /// List the removals of devices, oldest first
    #[arg(long)]
    removed: bool,
    /// Print JSON: the state of the fleet, or one object for each removal
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

/// Prints the devices or the removals.
///
/// # Errors
/// No coordinator is reachable, or the journal cannot be read.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { removed, json, door } = arguments;
    if !removed {
        return fleet::show_once(&door, json).await;
    }
    let removals = SqliteStore::open_existing(&door.state()?)?.removals()?;
    if json {
        return removals.iter().try_for_each(|removal| Ok(writeln!(stdout(), "{}", serde_json::to_string(removal)?)?));
    }
    Ok(write!(stdout(), "{}", as_text(&removals, now(), width()))?)
}

fn as_text(removals: &[Removal], now: Timestamp, width: Option<usize>) -> String {
    if removals.is_empty() {
        return "no device has been removed\n".to_owned();
    }
    let mut table = Table::new([
        Column::text("device"),
        Column::text("removed"),
        Column::text("age").rank(3),
        Column::text("by").rank(2),
        Column::text("came back").rank(1),
        Column::text("reason").rank(4),
    ]);
    for removal in removals {
        table.add([
            removal.device.to_string(),
            date(removal.at_ms),
            age(removal.at_ms, now.0),
            removal.by.clone(),
            removal.returned_ms.map_or_else(|| UNKNOWN.to_owned(), date),
            if removal.reason.is_empty() { UNKNOWN.to_owned() } else { removal.reason.clone() },
        ]);
    }
    table.text(width)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn removals_fit_every_width() {
        let removal = Removal {
            device: "raspberry-pi-in-the-hall".parse().unwrap(),
            boot: None,
            at_ms: 1_764_580_985_120,
            by: "ann".to_owned(),
            reason: "sold to a museum of early household computers".to_owned(),
            was_online: false,
            cleared_ms: None,
            returned_ms: None,
        };
        for width in [60, 80, 120, 200] {
            let text = as_text(std::slice::from_ref(&removal), Timestamp(1_764_580_995_120), Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.contains("raspberry-pi-in-the-hall  20"), "{width}:\n{text}");
        }
        let whole = as_text(&[removal], Timestamp(1_764_580_995_120), None);
        assert!(whole.contains("10 s ago  ann  -          sold to a museum"), "{whole}");
        assert_eq!(as_text(&[], Timestamp(0), None), "no device has been removed\n");
    }
}
