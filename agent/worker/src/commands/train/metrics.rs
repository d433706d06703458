//! Figures of a training for other programs: a CSV file with a row for each step, and events for TensorBoard.

use super::course::Evaluation;
use anyhow::Context as _;
use prost::Message;
use skiff_trainer::StepReport;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: &str =
    "step,loss,active_layers,tokens,step_seconds,evaluated_loss,accuracy,macro_f1,span_f1,perplexity,rmse,correlation";
/// Figures of an evaluation in the order of [`COLUMNS`].
const FIGURES: [&str; 6] = ["accuracy", "macro-F1", "span F1", "perplexity", "RMSE", "correlation"];

/// The open files.
pub(super) struct Metrics {
    csv: Option<(PathBuf, BufWriter<File>)>,
    events: Option<(PathBuf, BufWriter<File>)>,
}

impl Metrics {
    /// Opens the files. Rows of a CSV file up to the step `done` of an earlier process stay, later ones are removed.
    ///
    /// # Errors
    /// A file cannot be read or written, or the CSV file is not one of Skiff's.
    pub(super) fn open(csv: Option<&Path>, tensorboard: Option<&Path>, done: u32) -> anyhow::Result<Self> {
        let csv = csv.map(|path| open_csv(path, done).with_context(|| format!("--metrics {}", path.display())));
        let events = tensorboard
            .map(|folder| open_events(folder).with_context(|| format!("--tensorboard {}", folder.display())));
        Ok(Self { csv: csv.transpose()?, events: events.transpose()? })
    }

    /// Adds a step, with the evaluation after it if there was one.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn add(&mut self, report: &StepReport, evaluation: Option<&Evaluation>) -> anyhow::Result<()> {
        if let Some((path, file)) = &mut self.csv {
            let written = file.write_all(row(report, evaluation).as_bytes()).and_then(|()| file.flush());
            written.with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some((path, file)) = &mut self.events {
            let values = values(report, evaluation);
            let event = Event { wall_time: now(), step: report.step.into(), file_version: None, summary: Some(values) };
            let written = file.write_all(&framed(&event.encode_to_vec())).and_then(|()| file.flush());
            written.with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

fn open_csv(path: &Path, done: u32) -> anyhow::Result<(PathBuf, BufWriter<File>)> {
    let known = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let first = known.lines().next().unwrap_or(COLUMNS);
    anyhow::ensure!(first == COLUMNS, "the file has other columns: move it away, or name another file");
    let is_kept =
        |line: &&str| line.split(',').next().and_then(|step| step.parse::<u32>().ok()).is_some_and(|at| at <= done);
    let whole = known.rfind('\n').map_or("", |end| &known[..end]);
    let rows = whole.lines().skip(1).filter(is_kept);
    let text = std::iter::once(COLUMNS).chain(rows).fold(String::new(), |text, line| text + line + "\n");
    skiff_base::files::replace(path, text.as_bytes(), skiff_base::files::Access::Shared)?;
    Ok((path.to_owned(), BufWriter::new(OpenOptions::new().append(true).open(path)?)))
}

fn row(report: &StepReport, evaluation: Option<&Evaluation>) -> String {
    let StepReport { step, loss, active_layers, tokens, elapsed, .. } = report;
    let mut row = format!("{step},{loss},{active_layers},{tokens},{:.6}", elapsed.as_secs_f64());
    let cell = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    row += &format!(",{}", cell(evaluation.map(|evaluation| evaluation.loss)));
    for name in FIGURES {
        row += &format!(",{}", cell(evaluation.and_then(|evaluation| evaluation.found.figure(name))));
    }
    row + "\n"
}

/// A summary of figures, in TensorBoard's `summary.proto`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// An event, in TensorBoard's `event.proto`.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

/// Makes a new file of events. TensorBoard joins all files of a folder, so an interrupted training may have several.
fn open_events(folder: &Path) -> anyhow::Result<(PathBuf, BufWriter<File>)> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("events.out.tfevents.{:.0}.{}", now().floor(), std::process::id()));
    let mut file = BufWriter::new(OpenOptions::new().create(true).append(true).open(&path)?);
    let first = Event { wall_time: now(), step: 0, file_version: Some("brain.Event:2".to_owned()), summary: None };
    file.write_all(&framed(&first.encode_to_vec()))?;
    file.flush()?;
    Ok((path, file))
}

fn values(report: &StepReport, evaluation: Option<&Evaluation>) -> Summary {
    let value = |tag: &str, simple_value: f64| Value { tag: tag.to_owned(), simple_value: simple_value as f32 };
    let mut values = vec![
        value("train/loss", report.loss.into()),
        value("train/active_layers", report.active_layers as f64),
        value("train/tokens_per_second", report.tokens as f64 / report.elapsed.as_secs_f64().max(1e-9)),
    ];
    if let Some(evaluation) = evaluation {
        values.push(value("test/loss", evaluation.loss));
        values.extend(FIGURES.iter().filter_map(|name| {
            let tag = format!("test/{}", name.replace([' ', '-'], "_").to_lowercase());
            Some(value(&tag, evaluation.found.figure(name)?))
        }));
    }
    Summary { value: values }
}

/// Frames a record as TFRecord does: length (u64), its checksum, the record, its checksum; all little-endian.
fn framed(record: &[u8]) -> Vec<u8> {
    let length = (record.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(&length).to_le_bytes());
    bytes.extend(record);
    bytes.extend(masked(record).to_le_bytes());
    bytes
}

/// Returns TFRecord's checksum: CRC-32C, rotated right by 15 bits, plus a constant.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[expect(clippy::disallowed_methods, reason = "TensorBoard shows the wall time of each event")]
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    fn report(step: u32) -> StepReport {
        StepReport {
            step,
            steps: 9,
            loss: 0.5,
            skipped: false,
            active_layers: 3,
            tokens: 40,
            elapsed: Duration::from_millis(20),
        }
    }

    #[test]
    fn an_interrupted_file_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.csv");
        let mut metrics = Metrics::open(Some(&path), None, 0).unwrap();
        (1..=4).for_each(|step| metrics.add(&report(step), None).unwrap());
        drop(metrics);
        fs::write(&path, fs::read_to_string(&path).unwrap() + "5,0.").unwrap();
        let mut metrics = Metrics::open(Some(&path), None, 2).unwrap();
        metrics.add(&report(3), None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let steps: Vec<&str> = text.lines().map(|line| line.split(',').next().unwrap()).collect();
        assert_eq!(steps, ["step", "1", "2", "3"]);
        assert!(text.lines().all(|line| line.split(',').count() == COLUMNS.split(',').count()));
        fs::write(&path, "mine\n").unwrap();
        assert!(Metrics::open(Some(&path), None, 2).is_err());
    }

    #[test]
    fn a_record_has_the_checksums_of_tfrecord() {
        // CRC-32C of "123456789" is the check value of the algorithm.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let bytes = framed(b"abc");
        assert_eq!((bytes.len(), &bytes[..8], &bytes[12..15]), (8 + 4 + 3 + 4, &3u64.to_le_bytes()[..], &b"abc"[..]));
    }
}
