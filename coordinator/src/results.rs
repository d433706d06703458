//! The results of runs: the weights that a run made.
//!
//! This module only reads a journal and its blobs, so it works whether or not a coordinator is running.

use crate::run::{Entry, Record};
use crate::store::summary::Stage;
use crate::store::{RunRow, Store, StoreError};
use skiff_api::details::Kept;
use skiff_api::names::RunName;
use skiff_blobs::{BlobError, Blobs};
use skiff_protocol::{Digest, RunId};
use skiff_screen::dates::date;

/// A choice among the weights of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The evaluated weights with the best metric, or the last ones if none were evaluated.
    Best,
    /// The weights of the last merged round.
    Last,
    /// The weights that this round made, if they are still kept.
    Round(u32),
}

/// Weights to start a run from: `RUN`, `RUN@best`, `RUN@last` or `RUN@ROUND`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Name or id of the run, the beginning of either, or `last`.
    pub run: String,
    /// Choice among the weights of the run.
    pub choice: Choice,
}

impl std::str::FromStr for Origin {
    type Err = ResultError;

    fn from_str(text: &str) -> Result<Self, ResultError> {
        let (run, round) = text.split_once('@').unwrap_or((text, "last"));
        let choice = match round {
            "best" => Choice::Best,
            "last" => Choice::Last,
            round => {
                let number = round.parse().map_err(|_| ResultError::UnknownRound { text: text.to_owned() })?;
                Choice::Round(number)
            }
        };
        Ok(Self { run: run.to_owned(), choice })
    }
}

/// Weights of a run, read and checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Weights {
    /// The run.
    pub run: RunId,
    /// Number of the round that made the weights, from 1.
    pub round: u32,
    /// Digest of the pack that the run trained; `None` if the run's records are damaged.
    pub pack: Option<Digest>,
    /// Digest of the weights, which names their blob.
    pub digest: Digest,
    /// Accuracy, if the weights were evaluated.
    pub accuracy: Option<f64>,
    /// A safetensors file with every trainable tensor.
    pub bytes: Vec<u8>,
}

/// A reason why weights cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// The journal cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no run at all.
    #[error("no run has been started with this state folder")]
    NoRun,
    /// The requested name is empty.
    #[error("the name of the run is empty; `skiff run list` lists all runs")]
    NoName,
    /// No run has the requested name or id.
    #[error("there is no run {name}{}; `skiff run list` lists all runs", nearest.as_ref().map_or_else(String::new, |nearest| format!(", the nearest is {nearest}")))]
    UnknownRun {
        /// The requested name.
        name: String,
        /// A run whose name or id resembles it.
        nearest: Option<Candidate>,
    },
    /// Several names or ids begin with the requested text.
    #[error("the names or ids of {} runs begin with {name}; write more of one:{}", candidates.len(), lines(candidates))]
    Ambiguous {
        /// The requested name.
        name: String,
        /// The runs, newest first.
        candidates: Vec<Candidate>,
    },
    /// The part after `@` does not name weights.
    #[error("{text}: expected RUN, RUN@best, RUN@last or RUN@ROUND, for example last@3")]
    UnknownRound {
        /// The text.
        text: String,
    },
    /// The run trained another pack.
    #[error(
        "run {run} trained another pack ({theirs}) than this coordinator serves ({ours:?}): its weights do not fit"
    )]
    OtherPack {
        /// The run.
        run: RunId,
        /// Digest of the run's pack, or the reason why the pack is not known.
        theirs: String,
        /// Digest of the coordinator's pack.
        ours: Digest,
    },
    /// The run merged no round.
    #[error("run {run} has merged no round yet, so it has no weights of its own")]
    NothingMerged {
        /// The run.
        run: RunId,
    },
    /// The round was not merged.
    #[error("run {run} has no merged round {round}; {kept}")]
    NoRound {
        /// The run.
        run: RunId,
        /// The round.
        round: u32,
        /// Rounds whose weights are kept.
        kept: KeptRounds,
    },
    /// The weights of the round were removed because later ones replaced them.
    #[error("the weights of round {round} of run {run} were superseded and removed; {kept}")]
    Superseded {
        /// The run.
        run: RunId,
        /// The round.
        round: u32,
        /// Rounds whose weights are kept.
        kept: KeptRounds,
    },
    /// The blob is damaged or missing.
    #[error("reading the weights of round {round} of run {run}")]
    Blob {
        /// The run.
        run: RunId,
        /// The round.
        round: u32,
        /// The cause.
        source: BlobError,
    },
}

/// Rounds whose weights are kept, for error texts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptRounds {
    best: Option<u32>,
    last: Option<u32>,
}

impl std::fmt::Display for KeptRounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.best.filter(|_| self.best != self.last), self.last) {
            (Some(best), Some(last)) => {
                write!(f, "the weights of round {best} (best) and round {last} (last) are kept")
            }
            (Some(round), None) | (None, Some(round)) => write!(f, "the weights of round {round} are kept"),
            (None, None) => f.write_str("no weights of this run are in the state folder"),
        }
    }
}

/// A run that a text may mean.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The run.
    pub run: RunId,
    /// Name that the operator gave it.
    pub name: Option<String>,
    /// Start time in milliseconds since 1970.
    pub started_ms: u64,
    /// Word for the state of the run, such as `completed`.
    pub state: &'static str,
}

impl Candidate {
    fn new(row: &RunRow) -> Self {
        let summary = &row.summary;
        let state = match summary.stage {
            Stage::Gathering | Stage::Training | Stage::Merging | Stage::Evaluating => "running",
            Stage::Completed | Stage::Stopped if summary.has_failed() => "failed",
            Stage::Completed => "completed",
            Stage::Stopped => "stopped",
        };
        Self { run: row.run, name: summary.name.clone(), started_ms: summary.started_ms, state }
    }
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { run, name, started_ms, state } = self;
        let name = name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
        write!(f, "{run}{name}, {state}, started {}", date(*started_ms))
    }
}

/// Returns candidates as lines of a message.
fn lines(candidates: &[Candidate]) -> String {
    const SHOWN: usize = 10;
    let mut text: String = candidates.iter().take(SHOWN).map(|candidate| format!("\n  {candidate}")).collect();
    match candidates.len().saturating_sub(SHOWN) {
        0 => {}
        more => text += &format!("\n  and {more} older ones"),
    }
    text
}

/// Finds a run by its name, its id, the beginning of either, or `last`. Whole names go before beginnings.
///
/// # Errors
/// There is no such run, several runs match, or the journal cannot be read.
pub fn find_run(store: &dyn Store, name: &str) -> Result<RunRow, ResultError> {
    let mut runs = store.runs()?;
    if name.is_empty() {
        return Err(ResultError::NoName);
    }
    if name == "last" {
        return runs.pop().ok_or(ResultError::NoRun);
    }
    let named = |row: &RunRow, fits: &dyn Fn(&str) -> bool| {
        fits(&row.run.to_string()) || row.summary.name.as_deref().is_some_and(fits)
    };
    if let Some(at) = runs.iter().position(|row| named(row, &|word| word == name)) {
        return Ok(runs.swap_remove(at));
    }
    let begins = |row: &RunRow| named(row, &|word| word.starts_with(name));
    let (mut matches, others): (Vec<RunRow>, Vec<RunRow>) = runs.into_iter().partition(begins);
    match (matches.pop(), matches.len()) {
        (Some(row), 0) => Ok(row),
        (None, _) => Err(ResultError::UnknownRun { name: name.to_owned(), nearest: nearest(&others, name) }),
        (Some(newest), _) => {
            let candidates = [newest].iter().chain(matches.iter().rev()).map(Candidate::new).collect();
            Err(ResultError::Ambiguous { name: name.to_owned(), candidates })
        }
    }
}

/// Returns the run that has exactly this name.
///
/// # Errors
/// The journal cannot be read.
pub fn find_named(store: &dyn Store, name: &RunName) -> Result<Option<Candidate>, StoreError> {
    let runs = store.runs()?;
    Ok(runs.iter().find(|row| row.summary.name.as_deref() == Some(name.as_str())).map(Candidate::new))
}

/// Returns the run whose name, or as many digits of its id, resembles `name` most. The newest of several is the nearest.
fn nearest(runs: &[RunRow], name: &str) -> Option<Candidate> {
    /// Largest share of characters that may differ.
    const DIFFERENT: f64 = 0.4;
    let likeness = |row: &RunRow| {
        let id = row.run.to_string();
        let id = strsim::normalized_damerau_levenshtein(id.get(..name.len()).unwrap_or(&id), name);
        let own = row.summary.name.as_deref().unwrap_or_default();
        id.max(strsim::normalized_damerau_levenshtein(own, name))
    };
    let most = runs.iter().map(|row| (likeness(row), row)).max_by(|(a, _), (b, _)| a.total_cmp(b));
    most.filter(|(likeness, _)| *likeness >= 1.0 - DIFFERENT).map(|(_, row)| Candidate::new(row))
}

/// Reads the weights that `origin` names, for a run that trains `pack`.
///
/// # Errors
/// There is no such run, its weights cannot be read, or it trained another pack.
pub fn read_origin(
    store: &dyn Store,
    blobs: &dyn Blobs,
    origin: &Origin,
    pack: Digest,
) -> Result<Weights, ResultError> {
    let row = find_run(store, &origin.run)?;
    let weights = read_weights(store, blobs, &row, origin.choice)?;
    if weights.pack != Some(pack) {
        let theirs = weights.pack.map_or_else(|| "its records are damaged".to_owned(), |pack| format!("{pack:?}"));
        return Err(ResultError::OtherPack { run: row.run, theirs, ours: pack });
    }
    Ok(weights)
}

/// Reads the chosen weights of the run in `row`, and checks them against their digest.
///
/// # Errors
/// No round was merged, there is no such round, or its weights are removed, damaged or missing.
pub fn read_weights(
    store: &dyn Store,
    blobs: &dyn Blobs,
    row: &RunRow,
    choice: Choice,
) -> Result<Weights, ResultError> {
    let run = row.run;
    let last = row.summary.last.as_ref().ok_or(ResultError::NothingMerged { run })?;
    let best = row.summary.best.as_ref();
    let round = match choice {
        Choice::Best => best.unwrap_or(last).round,
        Choice::Last => last.round,
        Choice::Round(round) => round,
    };
    let read = |digest: Digest| blobs.read(digest).map_err(|source| ResultError::Blob { run, round, source });
    let entries = match store.entries(run) {
        // The summary of a damaged run still names its weights.
        Err(error) if row.damage.is_some() && error.is_of_one_run() => Vec::new(),
        entries => entries?,
    };
    let pack = match entries.first() {
        Some(Entry { record: Record::RunStarted(start), .. }) => Some(start.pack),
        Some(_) | None => None,
    };
    let is_there = |kept: &&Kept| Digest::parse(&kept.weights).is_some_and(|digest| blobs.contains(digest));
    let kept = [Some(last), best].into_iter().flatten().find(|kept| kept.round == round).filter(is_there);
    if let Some(Kept { weights, accuracy, .. }) = kept
        && let Some(digest) = Digest::parse(weights)
    {
        return Ok(Weights { run, round, pack, digest, accuracy: *accuracy, bytes: read(digest)? });
    }
    // Versions before the current layout of the journal kept only the last weights.
    let kept = KeptRounds {
        best: best.filter(is_there).map(|kept| kept.round),
        last: Some(last).filter(is_there).map(|kept| kept.round),
    };
    let merged = merged_rounds(&entries);
    let Some(&(_, digest)) = merged.iter().find(|(merged, _)| *merged == round) else {
        return Err(ResultError::NoRound { run, round, kept });
    };
    if !blobs.contains(digest) {
        return Err(ResultError::Superseded { run, round, kept });
    }
    Ok(Weights { run, round, pack, digest, accuracy: None, bytes: read(digest)? })
}

/// Returns each merged round and the weights that it made, in order.
#[must_use]
pub fn merged_rounds(entries: &[Entry]) -> Vec<(u32, Digest)> {
    let mut closed = 0;
    let mut merged = Vec::new();
    for entry in entries {
        match &entry.record {
            Record::Merged(made) => {
                closed += 1;
                merged.push((closed, made.weights));
            }
            Record::Skipped { .. } => closed += 1,
            Record::RunStarted(_)
            | Record::Resumed
            | Record::TrainingStarted { .. }
            | Record::UpdateStored { .. }
            | Record::DeviceOut { .. }
            | Record::Collected
            | Record::EvaluationStarted { .. }
            | Record::Evaluated(_)
            | Record::RunEnded { .. }
            | Record::PolicySet(_) => {}
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::run::{Evaluation, Merged, RunSettings, Start};
    use crate::store::{MemoryStore, Traffic};
    use skiff_blobs::DiskBlobs;
    use tempfile::TempDir;

    const RUN: RunId = RunId(0xa1);

    struct World {
        store: MemoryStore,
        blobs: DiskBlobs,
        _folder: TempDir,
    }

    /// A run of four rounds: round 2 has the best accuracy, round 3 was skipped, round 4 was not evaluated.
    fn world() -> World {
        let folder = TempDir::new().unwrap();
        let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
        let mut world = World { store: MemoryStore::default(), blobs, _folder: folder };
        let digest = Digest([1; 32]);
        let settings = Box::new(RunSettings { rounds: 5, ..RunSettings::default() });
        let start = Start {
            run: RUN,
            name: None,
            settings,
            layers: 2,
            pack: digest,
            schema: digest,
            weights: digest,
            task: None,
        };
        world.append(Record::RunStarted(start));
        for (bytes, correct) in [(b"one", 5), (b"two", 9)] {
            world.merged(bytes);
            world.append(Record::Evaluated(Evaluation {
                devices: 1,
                examples: 10,
                correct,
                loss_sum: 1.0,
                ..Evaluation::default()
            }));
        }
        world.append(Record::Skipped { reason: "nobody".to_owned() });
        world.merged(b"four");
        world.blobs.remove(Digest::of(b"one")).unwrap();
        world
    }

    impl World {
        fn append(&mut self, record: Record) {
            self.store.append(RUN, &[Entry { at_ms: 1, record }], 0, Traffic::default()).unwrap();
        }

        fn merged(&mut self, bytes: &[u8]) {
            let weights = self.blobs.put(bytes).unwrap();
            self.append(Record::Merged(Merged { weights, moments: None }));
        }

        fn read(&self, choice: Choice) -> Result<Weights, ResultError> {
            read_weights(&self.store, &self.blobs, &find_run(&self.store, "last")?, choice)
        }
    }

    #[test]
    fn best_last_and_kept_rounds_are_found() {
        let world = world();
        let best = world.read(Choice::Best).unwrap();
        assert_eq!((best.round, best.accuracy, best.bytes.as_slice()), (2, Some(0.9), b"two".as_slice()));
        let last = world.read(Choice::Last).unwrap();
        assert_eq!((last.round, last.accuracy, last.bytes.as_slice()), (4, None, b"four".as_slice()));
        assert_eq!(world.read(Choice::Round(2)).unwrap(), best);
        assert_eq!(best.pack, Some(Digest([1; 32])));
    }

    #[test]
    fn a_round_without_weights_says_which_rounds_have_some() {
        let world = world();
        let message = |round| world.read(Choice::Round(round)).unwrap_err().to_string();
        assert!(message(1).contains("superseded") && message(1).contains("round 2 (best) and round 4 (last) are kept"));
        assert!(message(3).contains("no merged round 3"), "{}", message(3));
        assert!(message(9).contains("no merged round 9"), "{}", message(9));
    }

    #[test]
    fn a_run_is_found_by_the_beginning_of_its_name() {
        let world = world();
        let find = |name: &str| find_run(&world.store, name).map(|row| row.run);
        assert_eq!(find("00000000000000a1").unwrap(), RUN);
        assert_eq!(find("0000").unwrap(), RUN);
        assert!(matches!(find("b"), Err(ResultError::UnknownRun { .. })));
        assert!(matches!(find(""), Err(ResultError::NoName)));
        assert!(matches!(find_run(&MemoryStore::default(), "last"), Err(ResultError::NoRun)));
    }

    fn named(store: &mut MemoryStore, run: u64, name: Option<&str>) {
        let digest = Digest([1; 32]);
        let (run, name) = (RunId(run), name.map(|name| name.parse().unwrap()));
        let settings = Box::new(RunSettings::default());
        let start = Start { run, name, settings, layers: 2, pack: digest, schema: digest, weights: digest, task: None };
        let entries = [Record::RunStarted(start), Record::RunEnded { stopped: Some("enough".to_owned()) }];
        store.append(run, &entries.map(|record| Entry { at_ms: 1, record }), 0, Traffic::default()).unwrap();
    }

    #[test]
    fn a_run_is_found_by_its_name_or_by_a_beginning_that_only_one_has() {
        let mut store = MemoryStore::default();
        named(&mut store, 0xa1 << 56, Some("night-3"));
        named(&mut store, 0xa2 << 56, Some("night"));
        named(&mut store, 0xb2 << 56, Some("quiet"));
        named(&mut store, 0xb3 << 56, None);
        let find = |name: &str| find_run(&store, name).map(|row| row.run.0 >> 56).map_err(|error| error.to_string());
        for (name, run) in
            [("night-3", 0xa1), ("night-", 0xa1), ("night", 0xa2), ("q", 0xb2), ("b3", 0xb3), ("a2", 0xa2)]
        {
            assert_eq!(find(name), Ok(run), "{name}");
        }
        let ambiguous = find("ni").unwrap_err();
        assert!(
            ambiguous.starts_with("the names or ids of 2 runs begin with ni; write more of one:\n  a2"),
            "{ambiguous}"
        );
        assert!(ambiguous.contains("a100000000000000 (night-3), stopped, started 19"), "{ambiguous}");
        assert!(find("b").unwrap_err().contains("b300000000000000, stopped"));
        for (typo, nearest) in [("nigth-3", "the nearest is a1"), ("quit", "the nearest is b2"), ("b4", "")] {
            let unknown = find(typo).unwrap_err();
            assert!(unknown.starts_with(&format!("there is no run {typo}")), "{unknown}");
            assert!(unknown.contains(nearest) && unknown.contains("skiff run list"), "{unknown}");
        }
        assert!(!find("something-else").unwrap_err().contains("nearest"));
    }

    #[test]
    fn an_origin_is_a_run_and_a_round_of_the_same_pack() {
        let world = world();
        let (ours, other) = (Digest([1; 32]), Digest([2; 32]));
        let read = |text: &str, pack| {
            text.parse()
                .and_then(|origin| read_origin(&world.store, &world.blobs, &origin, pack))
                .map(|found| found.round)
        };
        let rounds = ["last", "00@last", "0000@best", "last@2"].map(|text| read(text, ours).unwrap());
        assert_eq!(rounds, [4, 4, 2, 2]);
        assert!(matches!(read("last@1", ours), Err(ResultError::Superseded { round: 1, .. })));
        assert!(matches!(read("last@first", ours), Err(ResultError::UnknownRound { .. })));
        assert!(matches!(read("ff", ours), Err(ResultError::UnknownRun { .. })));
        let refused = read("last", other).unwrap_err().to_string();
        assert!(refused.contains("another pack"), "{refused}");
    }

    #[test]
    fn damaged_weights_are_named() {
        let world = world();
        let path = world.blobs.place().join("blobs").join(Digest::of(b"four").to_string());
        std::fs::write(path, "other").unwrap();
        assert!(matches!(world.read(Choice::Last), Err(ResultError::Blob { round: 4, .. })));
    }
}
