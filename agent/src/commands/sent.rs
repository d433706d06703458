//! `skiff-agent sent`: shows the device's owner what left the device.

use crate::sent::{Record, What, read};
use anyhow::Context as _;
use skiff_screen::dates::date;
use skiff_screen::table::{Column, Table};
use skiff_screen::text::fold;
use skiff_screen::units::{UNKNOWN, bytes};
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

/// Choice of records.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Choice {
    /// Show only this run, by its name or the first digits of it
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Show only the newest N records
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Print a JSON object for each record
    #[arg(long)]
    json: bool,
}

const NEVER: &str = "An update holds changed weights, never texts. Its report has numbers only: counts, losses, times, and the size of the \
                     gradient of each layer. The texts, their labels and the personal layers never leave this device.";

/// Writes the records of the state folder to `out`.
///
/// # Errors
/// The records cannot be read, or `out` cannot be written.
pub fn run(state: &Path, choice: &Choice, width: Option<usize>, out: &mut impl Write) -> anyhow::Result<()> {
    let records = read(state).with_context(|| format!("reading what was sent from {}", state.display()))?;
    let chosen = chosen(&records, choice);
    if choice.json {
        for record in chosen {
            writeln!(out, "{}", serde_json::to_string(record)?)?;
        }
        return Ok(());
    }
    Ok(write!(out, "{}", text(&chosen, &records, width))?)
}

fn chosen<'a>(records: &'a [Record], choice: &Choice) -> Vec<&'a Record> {
    let is_wanted = |record: &&Record| {
        match (&choice.run, &record.what) {
        (None, _) => true,
        (Some(wanted), What::Update { run, .. } | What::Evaluation { run, .. }) => run.starts_with(wanted.as_str()),
        (Some(wanted), What::Delivered { digest } | What::Refused { digest, .. }) => records.iter().any(|other| {
            matches!(&other.what, What::Update { run, digest: of, .. } if of == digest && run.starts_with(wanted.as_str()))
        }),
        (Some(_), What::Messages { .. } | What::Dropped { .. }) => false,
    }
    };
    let chosen: Vec<&Record> = records.iter().filter(is_wanted).collect();
    let first = choice.last.map_or(0, |last| chosen.len().saturating_sub(last));
    chosen[first..].to_vec()
}

fn text(chosen: &[&Record], all: &[Record], width: Option<usize>) -> String {
    if chosen.is_empty() {
        return "nothing has left this device yet, as far as this state folder knows\n".to_owned();
    }
    let mut table = Table::new([
        Column::text("time"),
        Column::text("what"),
        Column::text("run").rank(2),
        Column::number("round").rank(1),
        Column::number("size"),
        Column::number("examples"),
        Column::text("layers").rank(3),
        Column::text("digest").rank(4),
        Column::text("result"),
    ]);
    chosen.iter().filter_map(|record| cells(record, all)).for_each(|cells| table.add(cells));
    let mut text = table.text(width);
    let _ = writeln!(text, "\n{}", fold(NEVER, 0, width));
    text
}

/// Returns the row of a record. The end of an update is part of the update's row.
fn cells(record: &Record, all: &[Record]) -> Option<[String; 9]> {
    let none = || UNKNOWN.to_owned();
    let row = match &record.what {
        What::Update { run, round, digest, bytes: size, layers, examples, .. } => [
            "update".to_owned(),
            short(run),
            round.to_string(),
            bytes(*size),
            examples.to_string(),
            ranges(layers),
            short(digest),
            end(digest, all),
        ],
        What::Evaluation { run, round, examples } => [
            "evaluation".to_owned(),
            short(run),
            round.to_string(),
            none(),
            examples.to_string(),
            none(),
            none(),
            "counts and sums".to_owned(),
        ],
        What::Messages { count, bytes: size } => {
            let what = format!("{count} messages");
            [what, none(), none(), bytes(*size), none(), none(), none(), "births, telemetry, short answers".to_owned()]
        }
        What::Dropped { records } => {
            let result = format!("{records} older records were removed");
            ["removed".to_owned(), none(), none(), none(), none(), none(), none(), result]
        }
        What::Delivered { .. } | What::Refused { .. } => return None,
    };
    let mut cells = [(); 9].map(|()| String::new());
    cells[0] = date(record.at_ms);
    cells[1..].clone_from_slice(&row);
    Some(cells)
}

fn end(update: &str, all: &[Record]) -> String {
    let end = all.iter().rev().find_map(|record| match &record.what {
        What::Delivered { digest } if digest == update => Some("delivered".to_owned()),
        What::Refused { digest, reason } if digest == update => Some(format!("refused: {reason}")),
        What::Update { .. }
        | What::Delivered { .. }
        | What::Refused { .. }
        | What::Evaluation { .. }
        | What::Messages { .. }
        | What::Dropped { .. } => None,
    });
    end.unwrap_or_else(|| "perhaps sent, not confirmed".to_owned())
}

/// Returns the first digits of a name.
fn short(name: &str) -> String {
    name.chars().take(8).collect()
}

/// Returns ascending numbers as ranges, for example `0-3, 5`.
fn ranges(numbers: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            Some(_) | None => ranges.push((number, number)),
        }
    }
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    if texts.is_empty() { UNKNOWN.to_owned() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn records() -> Vec<Record> {
        let update = |run: &str, round, digest: &str| What::Update {
            run: run.into(),
            round,
            digest: digest.into(),
            bytes: 300_000,
            layers: vec![0, 1, 2, 5],
            examples: 80,
            steps: 10,
        };
        let all = [
            update("00aa", 1, "d1"),
            What::Delivered { digest: "d1".into() },
            What::Evaluation { run: "00aa".into(), round: 1, examples: 40 },
            update("00bb", 1, "d2"),
            What::Refused { digest: "d2".into(), reason: "round 1 is closed".into() },
            update("00bb", 2, "d3"),
            What::Messages { count: 9, bytes: 900 },
        ];
        all.into_iter().map(|what| Record { at_ms: 1_764_590_000_000, what }).collect()
    }

    fn shown(choice: &Choice, width: Option<usize>) -> String {
        let records = records();
        text(&chosen(&records, choice), &records, width)
    }

    #[test]
    fn each_update_has_a_row_with_its_end() {
        let text = shown(&Choice::default(), None);
        for part in [
            "delivered",
            "refused: round 1 is closed",
            "perhaps sent",
            "0-2, 5",
            "300.0 kB",
            "9 messages",
            "never texts",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        for width in [60, 80, 120, 200] {
            let text = shown(&Choice::default(), Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.contains("update") && text.contains("delivered"), "{width}:\n{text}");
        }
    }

    #[test]
    fn a_run_and_a_number_choose_records() {
        let of_run = Choice { run: Some("00b".into()), ..Choice::default() };
        let text = shown(&of_run, None);
        assert!(text.contains("refused") && !text.contains("00aa") && !text.contains("messages"), "{text}");
        let last = Choice { last: Some(1), ..Choice::default() };
        assert!(!shown(&last, None).contains("delivered"));
        let none = Choice { run: Some("ff".into()), ..Choice::default() };
        assert!(shown(&none, None).starts_with("nothing has left"));
    }
}
