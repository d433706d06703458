//! The record of everything that left this device for its owner: `{state}/sent`, a JSON object on each line.
//!
//! A record is written before its message is sent, so a message that left is never missing. Updates are synced to the disk; a
//! power cut can lose only the last summary of small messages. A line that a kill has cut off is skipped. The file is bounded by
//! [`MAX_BYTES`]: then the older half is removed, and a record says how many records were removed.

use serde::{Deserialize, Serialize};
use skiff_base::files::{Access, replace};
use skiff_protocol::codec::Message;
use skiff_protocol::messages::Outcome;
use skiff_protocol::transfer::{Offer, Purpose, TransferMessage};
use skiff_protocol::{Digest, RunId};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const FILE: &str = "sent";
/// Limit of the file in bytes.
pub const MAX_BYTES: u64 = 1_000_000;
/// Number of small messages that one record summarises.
const SUMMARISED: u64 = 4_000;

/// A record, with its time in milliseconds since 1970 by the device's clock.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Time of the record.
    pub at_ms: u64,
    /// Event of the record.
    #[serde(flatten)]
    pub what: What,
}

/// An event: something leaves the device, or the coordinator answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// The device begins to send an update: changed weights of the head and of the shared layers, with a report in numbers.
    Update {
        /// The run, 16 hexadecimal digits.
        run: String,
        /// The round.
        round: u32,
        /// Digest of the update.
        digest: String,
        /// Size of the update in bytes.
        bytes: u64,
        /// The shared layers.
        layers: Vec<u32>,
        /// Number of distinct examples of the training.
        examples: u64,
        /// Number of steps of the training.
        steps: u32,
    },
    /// The coordinator has the whole update.
    Delivered {
        /// Digest of the update.
        digest: String,
    },
    /// The coordinator does not want the update.
    Refused {
        /// Digest of the update.
        digest: String,
        /// Reason in the coordinator's words.
        reason: String,
    },
    /// The device sends the result of an evaluation: counts and sums over its test examples.
    Evaluation {
        /// The run, 16 hexadecimal digits.
        run: String,
        /// The round; 0 before the first.
        round: u32,
        /// Number of evaluated examples, or of tokens if the task labels or predicts tokens.
        examples: u64,
    },
    /// Small messages since the record before: births, telemetry, short answers, and the messages of transfers without content.
    Messages {
        /// Number of the messages.
        count: u64,
        /// Number of their bytes, topics included.
        bytes: u64,
    },
    /// Older records were removed to bound the file.
    Dropped {
        /// Number of the removed records, over all times.
        records: u64,
    },
}

/// The open record of a running agent.
#[derive(Debug)]
pub struct Sent {
    path: PathBuf,
    /// The last update, with true once its end is recorded.
    update: Option<(Digest, bool)>,
    /// Run and round of the last evaluation.
    evaluation: Option<(String, u32)>,
    count: u64,
    bytes: u64,
}

impl Sent {
    /// Opens the record in the state folder.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(state: &Path) -> io::Result<Self> {
        let (mut update, mut evaluation) = (None, None);
        for record in read(state)? {
            match record.what {
                What::Update { digest, .. } => update = Digest::parse(&digest).map(|digest| (digest, false)),
                What::Delivered { .. } | What::Refused { .. } => {
                    update.iter_mut().for_each(|(_, has_ended)| *has_ended = true);
                }
                What::Evaluation { run, round, .. } => evaluation = Some((run, round)),
                What::Messages { .. } | What::Dropped { .. } => {}
            }
        }
        Ok(Self { path: state.join(FILE), update, evaluation, count: 0, bytes: 0 })
    }

    /// Records a message before it is sent, if it carries the results of work.
    ///
    /// # Errors
    /// The file cannot be written. The message must not be sent then.
    pub fn before_message(&mut self, message: &Message, now_ms: u64) -> io::Result<()> {
        let Message::Answer(answer) = message else { return Ok(()) };
        let Outcome::Evaluated(report) = &answer.outcome else { return Ok(()) };
        let about = (answer.run.to_string(), answer.round);
        if self.evaluation.as_ref() == Some(&about) {
            return Ok(());
        }
        let (run, round) = about.clone();
        self.append(What::Evaluation { run, round, examples: report.examples }, now_ms, true)?;
        self.evaluation = Some(about);
        Ok(())
    }

    /// Records the offer of an update before it is sent.
    ///
    /// # Errors
    /// The file cannot be written. The offer must not be sent then.
    pub fn before_transfer(&mut self, message: &TransferMessage, now_ms: u64) -> io::Result<()> {
        let TransferMessage::Offer(Offer { purpose, digest, total_bytes }) = message else { return Ok(()) };
        let Purpose::Update { run, round, report, .. } = purpose else { return Ok(()) };
        if self.update.is_some_and(|(known, _)| known == *digest) {
            return Ok(());
        }
        let update = What::Update {
            run: run_name(*run),
            round: *round,
            digest: digest.to_string(),
            bytes: *total_bytes,
            layers: report.shared_layers.clone(),
            examples: report.examples,
            steps: report.steps,
        };
        self.append(update, now_ms, true)?;
        self.update = Some((*digest, false));
        Ok(())
    }

    /// Records what the coordinator answered about the last update.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn answered(&mut self, digest: Digest, message: &TransferMessage, now_ms: u64) -> io::Result<()> {
        if self.update != Some((digest, false)) {
            return Ok(());
        }
        let digest = digest.to_string();
        let end = match message {
            TransferMessage::Done => What::Delivered { digest },
            TransferMessage::Refused { reason } => What::Refused { digest, reason: reason.clone() },
            TransferMessage::Offer(_)
            | TransferMessage::Grant { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::Progress { .. } => return Ok(()),
        };
        self.append(end, now_ms, false)?;
        self.update.iter_mut().for_each(|(_, has_ended)| *has_ended = true);
        Ok(())
    }

    /// Counts a small message, and records a summary after every [`SUMMARISED`] messages.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn count(&mut self, bytes: usize, now_ms: u64) -> io::Result<()> {
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes as u64);
        if self.count >= SUMMARISED { self.summarise(now_ms) } else { Ok(()) }
    }

    /// Records the small messages since the last summary, because the agent stops.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn summarise(&mut self, now_ms: u64) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        self.append(What::Messages { count: self.count, bytes: self.bytes }, now_ms, false)?;
        (self.count, self.bytes) = (0, 0);
        Ok(())
    }

    fn append(&self, what: What, at_ms: u64, syncs: bool) -> io::Result<()> {
        // A new line first, so that a line that a kill has cut off does not spoil this one.
        let line = format!("\n{}\n", serde_json::to_string(&Record { at_ms, what })?);
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        if file.metadata()?.len() + line.len() as u64 > MAX_BYTES {
            self.halve(at_ms)?;
            file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        }
        file.write_all(line.as_bytes())?;
        if syncs { file.sync_data() } else { Ok(()) }
    }

    /// Removes the older half of the records.
    fn halve(&self, at_ms: u64) -> io::Result<()> {
        let mut records = parse(&fs::read(&self.path)?);
        let removed: Vec<Record> = records.drain(..records.len() / 2).collect();
        let before: u64 =
            removed.iter().map(|record| if let What::Dropped { records } = record.what { records } else { 1 }).sum();
        let first = Record { at_ms, what: What::Dropped { records: before } };
        let mut text = String::new();
        for record in std::iter::once(&first).chain(&records) {
            text += &format!("{}\n", serde_json::to_string(record)?);
        }
        replace(&self.path, text.as_bytes(), Access::Owner)
    }
}

/// Reads the records in the state folder, oldest first. An agent may be running with it.
///
/// # Errors
/// The file cannot be read. A missing file has no records.
pub fn read(state: &Path) -> io::Result<Vec<Record>> {
    let mut bytes = Vec::new();
    match File::open(state.join(FILE)).and_then(|file| file.take(2 * MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => Ok(parse(&bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Returns the records in the file, without lines that are cut off or of a later version.
fn parse(bytes: &[u8]) -> Vec<Record> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn run_name(run: RunId) -> String {
    run.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use skiff_protocol::messages::{Answer, EvaluationReport};
    use skiff_protocol::metrics::TaskMetrics;
    use skiff_protocol::{BootId, samples};

    fn offer(digest: u8) -> TransferMessage {
        let report = samples::train_report();
        let purpose = Purpose::Update { run: RunId(5), round: 2, epoch: 3, report };
        TransferMessage::Offer(Offer { purpose, digest: Digest([digest; 32]), total_bytes: 1_000 })
    }

    fn evaluated(round: u32) -> Message {
        let report = EvaluationReport {
            examples: 40,
            correct: 30,
            loss_sum: 1.0,
            evaluate_ms: 1,
            peak_rss_bytes: 1,
            metrics: TaskMetrics::Unknown,
        };
        let outcome = Outcome::Evaluated(report);
        Message::Answer(Answer { boot: BootId(1), run: RunId(5), round, epoch: 3, outcome })
    }

    fn kinds(state: &Path) -> Vec<&'static str> {
        let kind = |record: &Record| match record.what {
            What::Update { .. } => "update",
            What::Delivered { .. } => "delivered",
            What::Refused { .. } => "refused",
            What::Evaluation { .. } => "evaluation",
            What::Messages { .. } => "messages",
            What::Dropped { .. } => "dropped",
        };
        read(state).unwrap().iter().map(kind).collect()
    }

    #[test]
    fn an_update_is_recorded_once_before_it_leaves_and_once_at_its_end_even_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut sent = Sent::open(folder.path()).unwrap();
        sent.before_transfer(&offer(1), 10).unwrap();
        sent.before_transfer(&offer(1), 11).unwrap();
        sent.before_message(&evaluated(2), 12).unwrap();
        drop(sent);
        let mut sent = Sent::open(folder.path()).unwrap();
        sent.before_transfer(&offer(1), 13).unwrap();
        sent.before_message(&evaluated(2), 13).unwrap();
        sent.answered(Digest([9; 32]), &TransferMessage::Done, 14).unwrap();
        sent.answered(Digest([1; 32]), &TransferMessage::Done, 14).unwrap();
        sent.answered(Digest([1; 32]), &TransferMessage::Done, 15).unwrap();
        sent.before_transfer(&offer(2), 16).unwrap();
        let refused = TransferMessage::Refused { reason: "late".into() };
        sent.answered(Digest([2; 32]), &refused, 17).unwrap();
        assert_eq!(kinds(folder.path()), ["update", "evaluation", "delivered", "update", "refused"]);
        let first = read(folder.path()).unwrap().remove(0);
        let What::Update { run, bytes, digest, .. } = first.what else { panic!("{first:?}") };
        assert_eq!((first.at_ms, run.as_str(), bytes), (10, "0000000000000005", 1_000));
        assert_eq!(digest, Digest([1; 32]).to_string());
    }

    #[test]
    fn small_messages_are_summarised() {
        let folder = tempfile::tempdir().unwrap();
        let mut sent = Sent::open(folder.path()).unwrap();
        (0..SUMMARISED + 3).for_each(|at| sent.count(10, at).unwrap());
        sent.summarise(9).unwrap();
        sent.summarise(9).unwrap();
        let records = read(folder.path()).unwrap();
        let summary = |count| What::Messages { count, bytes: 10 * count };
        assert_eq!(
            records.iter().map(|record| record.what.clone()).collect::<Vec<_>>(),
            [summary(SUMMARISED), summary(3)]
        );
    }

    #[test]
    fn a_line_that_a_kill_cut_off_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut sent = Sent::open(folder.path()).unwrap();
        sent.before_transfer(&offer(1), 1).unwrap();
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut sent = Sent::open(folder.path()).unwrap();
            sent.before_transfer(&offer(2), 2).unwrap();
            let last = read(folder.path()).unwrap().pop().unwrap();
            assert!(matches!(last.what, What::Update { digest, .. } if digest == Digest([2; 32]).to_string()), "{cut}");
        }
    }

    #[test]
    fn the_file_is_bounded_and_says_what_it_lost() {
        let folder = tempfile::tempdir().unwrap();
        let mut sent = Sent::open(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        sent.before_transfer(&offer(0), 0).unwrap();
        let line = fs::read(&path).unwrap();
        let lines = MAX_BYTES as usize / line.len();
        fs::write(&path, line.repeat(lines)).unwrap();
        sent.before_transfer(&offer(1), 1).unwrap();
        let records = read(folder.path()).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < MAX_BYTES);
        assert_eq!(records[0].what, What::Dropped { records: (lines / 2) as u64 });
        assert_eq!(records.len(), 1 + lines - lines / 2 + 1);
    }
}
