#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
use super::kills::{Kill, WatchedBlobs};
use super::*;
use crate::run::configurator::{Choice, DropoutRates};
use crate::run::evaluation::tests::of_each_task;
use crate::run::{Assignment, Evaluation, Merged, ModelTask, Record, RunSettings, Start};
use proptest::prelude::*;
use rusqlite::Connection;
use skiff_api::measures::Measure;
use skiff_api::policy::{Group, Policy, Share, Sharing};
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_models::task::Task;
use skiff_protocol::messages::{Probe, SharingPlan, TrainReport};
use skiff_protocol::metrics::{Language, TaskMetrics};
use std::path::Path;
use tempfile::TempDir;

const RUN: RunId = RunId(u64::MAX - 1);

fn entry(at_ms: u64, record: Record) -> Entry {
    Entry { at_ms, record }
}

fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

fn started(run: RunId) -> Entry {
    let settings = Box::new(RunSettings { rounds: 3, final_examples: 0, ..RunSettings::default() });
    let (pack, schema, weights) = (digest(1), digest(1), digest(1));
    entry(5, Record::RunStarted(Start { run, name: None, settings, layers: 4, pack, schema, weights, task: None }))
}

fn merged(at_ms: u64, byte: u8) -> Entry {
    entry(at_ms, Record::Merged(Merged { weights: digest(byte), moments: Some(digest(byte + 100)) }))
}

fn evaluated(at_ms: u64, correct: u64) -> Entry {
    entry(
        at_ms,
        Record::Evaluated(Evaluation { devices: 1, examples: 10, correct, loss_sum: 3.0, ..Evaluation::default() }),
    )
}

fn order() -> Assignment {
    let rates = DropoutRates::new(vec![0.5; 4]).unwrap();
    let (class, reason) = (String::new(), "because".to_owned());
    let choice = Choice { rates, most_active: 4, arm: None, class, explores: false, probe_examples: 0, reason };
    Assignment { choice, share: Share { group: None, plan: SharingPlan::All, rank: 0 } }
}

fn update(byte: u8) -> Entry {
    let report = TrainReport {
        examples: 8,
        tokens: 100,
        steps: 4,
        mean_loss: f32::NAN,
        shared_layers: vec![0, 2],
        importance: vec![0.5, 0.25, 1.0],
        mean_active_layers: 1.5,
        train_ms: 70,
        step_ms: 17.5,
        peak_rss_bytes: 1 << 33,
        probe: Some(Probe { examples: 3, loss_before: 1.5, loss_after: 0.5, correct_before: 1, correct_after: 2 }),
    };
    entry(7, Record::UpdateStored { device: "hall".parse().unwrap(), update: digest(byte), report, distance: 2.5 })
}

#[test]
fn the_name_of_a_run_is_in_its_first_record_and_its_summary() {
    let mut store = MemoryStore::default();
    let mut first = started(RUN);
    if let Record::RunStarted(start) = &mut first.record {
        start.name = Some("night-3".parse().unwrap());
    }
    append(&mut store, RUN, &[first.clone(), update(9)]);
    assert_eq!(store.entries(RUN).unwrap()[0], first);
    assert_eq!(store.runs().unwrap()[0].summary.name.as_deref(), Some("night-3"));
    let start = journal::Entry::from(&first).start().unwrap().clone();
    let unreadable = journal::Record::NamedRunStarted { start, name: "a b".to_owned() };
    assert!(matches!(Record::try_from(unreadable), Err(RecordFault::Unreadable(_))));
}

fn append(store: &mut dyn Store, run: RunId, entries: &[Entry]) {
    store.append(run, entries, 1, Traffic { up: 3, down: 5 }).unwrap();
}

fn blobs(folder: &TempDir) -> DiskBlobs {
    DiskBlobs::open(folder.path().join("blobs"), 1 << 24).unwrap()
}

fn open(folder: &TempDir) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(folder.path(), &blobs(folder))
}

fn message(folder: &TempDir) -> String {
    open(folder).unwrap_err().to_string()
}

/// Changes the database as another program would.
fn sql(folder: &TempDir, statement: &str) {
    Connection::open(folder.path().join(FILE)).unwrap().execute_batch(statement).unwrap();
}

#[test]
fn the_best_weights_are_the_best_by_the_measure_of_the_task() {
    let mut start = started(RUN);
    if let Record::RunStarted(start) = &mut start.record {
        start.task = Some(ModelTask { task: Task::CausalLm, labels: Vec::new() });
    }
    let evaluated = |at_ms, loss_sum| {
        let metrics = TaskMetrics::Language(Language { tokens: 10, loss_sum });
        let evaluation =
            Evaluation { devices: 1, examples: 10, correct: 5, loss_sum, metrics, ..Evaluation::default() };
        entry(at_ms, Record::Evaluated(evaluation))
    };
    let entries = [start, merged(6, 20), evaluated(7, 30.0), merged(8, 21), evaluated(9, 20.0), merged(10, 22)];
    let entries = entries.into_iter().chain([evaluated(11, 25.0)]);
    let summary = Summary::of_entries(&entries.map(|entry| journal::Entry::from(&entry)).collect::<Vec<_>>());
    assert_eq!(summary.measure, Measure::Perplexity);
    let best = summary.best.unwrap();
    assert_eq!((best.round, best.metrics.and_then(|metrics| metrics.perplexity)), (2, Some(2_f64.exp())));
    assert_eq!(summary.metrics_after.and_then(|metrics| metrics.perplexity), Some(2.5_f64.exp()));
}

// The laws of `Store`, for each implementation.

fn laws(store: &mut dyn Store) {
    let other = RunId(3);
    append(store, RUN, &[started(RUN), update(9)]);
    append(store, other, &[started(other)]);
    append(store, RUN, &[]);
    append(store, RUN, &[merged(8, 20), evaluated(9, 7), merged(10, 21), evaluated(11, 7), merged(12, 22)]);

    // Records come back in order, runs in the order in which they started.
    let entries = store.entries(RUN).unwrap();
    assert_eq!(entries.len(), 7);
    assert_eq!((&entries[0], &entries[2], &entries[6]), (&started(RUN), &merged(8, 20), &merged(12, 22)));
    assert_eq!(store.entries(RunId(99)).unwrap(), []);
    let rows = store.runs().unwrap();
    assert_eq!(rows.iter().map(|row| (row.run, row.records)).collect::<Vec<_>>(), [(RUN, 7), (other, 1)]);
    assert_eq!(store.traffic(RUN).unwrap(), BTreeMap::from([(1, Traffic { up: 9, down: 15 })]));
    assert_eq!(rows[0].traffic, Traffic { up: 9, down: 15 });

    // A run's summary is computed from its records; the first of two equal rounds is the best.
    assert_eq!(rows[0].summary, Summary::of_entries(&entries.iter().map(journal::Entry::from).collect::<Vec<_>>()));
    let best = rows[0].summary.best.clone().unwrap();
    assert_eq!((best.round, best.weights, best.accuracy), (1, digest(20).to_string(), Some(0.7)));
    assert_eq!(store.kept().unwrap(), BTreeSet::from([digest(20), digest(22)]));

    // Removals come back in order, and a mark is made once.
    let removal = |device: &str, at_ms| Removal {
        device: device.parse().unwrap(),
        boot: Some(u64::MAX),
        at_ms,
        by: "root".to_owned(),
        reason: "sold".to_owned(),
        was_online: true,
        cleared_ms: None,
        returned_ms: None,
    };
    let (hall, attic) = (removal("hall", 20), removal("attic", 21));
    [&hall, &attic].into_iter().for_each(|removal| store.add_removal(removal).unwrap());
    store.mark_cleared(&hall.device, 22).unwrap();
    store.mark_cleared(&hall.device, 23).unwrap();
    store.mark_returned(&hall.device, 24).unwrap();
    let again = Removal { at_ms: 25, boot: None, was_online: false, ..hall.clone() };
    store.add_removal(&again).unwrap();
    let returned = Removal { cleared_ms: Some(22), returned_ms: Some(24), ..hall };
    assert_eq!(store.removals().unwrap(), [returned, attic, again]);

    // A blob is named if any record names it.
    for named in [1, 9, 20, 21, 22, 120, 121, 122] {
        assert!(store.is_named(digest(named)).unwrap(), "{named}");
    }
    assert!(!store.is_named(digest(77)).unwrap());

    // All blobs of a damaged run stay; the blobs of a deleted run remain named.
    store.stop_damaged(RUN, "a bit flipped").unwrap();
    let row = store.runs().unwrap().remove(0);
    assert_eq!((row.damage.as_deref(), row.summary.is_ended()), (Some("a bit flipped"), true));
    assert!([9, 21, 120].iter().all(|&byte| store.kept().unwrap().contains(&digest(byte))));
    store.delete(RUN).unwrap();
    assert_eq!(store.runs().unwrap().len(), 1);
    assert_eq!((store.kept().unwrap(), store.entries(RUN).unwrap()), (BTreeSet::new(), vec![]));
    assert!(store.is_named(digest(22)).unwrap());
}

#[test]
fn a_store_in_memory_obeys_the_laws() {
    laws(&mut MemoryStore::default());
}

#[test]
fn a_store_on_disk_obeys_the_laws() {
    laws(&mut open(&TempDir::new().unwrap()).unwrap());
}

#[test]
fn records_and_summaries_are_there_after_reopening() {
    let folder = TempDir::new().unwrap();
    let mut store = open(&folder).unwrap();
    append(&mut store, RUN, &[started(RUN), merged(8, 20), evaluated(9, 6)]);
    let before = (store.runs().unwrap(), store.entries(RUN).unwrap(), store.identity());
    drop(store);
    let store = open(&folder).unwrap();
    assert_eq!((store.runs().unwrap(), store.entries(RUN).unwrap(), store.identity()), before);
    assert_eq!(store.findings(), []);
}

#[test]
fn commits_are_synchronised() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).unwrap();
    assert_eq!(store.pragma("synchronous"), 2.into());
    assert_eq!(store.pragma("journal_mode"), "wal".to_owned().into());
}

// Which journal belongs to which blobs.

/// Returns a state folder with a run and a blob of merged weights.
fn trained() -> (TempDir, Digest) {
    let folder = TempDir::new().unwrap();
    let weights = blobs(&folder).put(b"trained").unwrap();
    let mut store =
        SqliteStore::open(folder.path(), &DiskBlobs::open(folder.path().join("other"), 1 << 20).unwrap()).unwrap();
    let orders =
        Record::TrainingStarted { epoch: 2, assignments: BTreeMap::from([("hall".parse().unwrap(), order())]) };
    let merge = entry(8, Record::Merged(Merged { weights, moments: None }));
    append(&mut store, RUN, &[started(RUN), entry(6, orders), update(9), entry(8, Record::Collected), merge]);
    drop(store);
    std::fs::remove_dir_all(folder.path().join("other")).unwrap();
    drop(open(&folder).unwrap());
    (folder, weights)
}

fn remove_journal(folder: &TempDir) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.path().join(format!("{FILE}{end}")));
    }
}

fn assert_refused_and_kept(folder: &TempDir, weights: Digest, part: &str) {
    let message = message(folder);
    assert!(message.contains(part) && !message.contains("move it away"), "{message}");
    assert_eq!(blobs(folder).read(weights).unwrap(), b"trained");
}

#[test]
fn a_missing_or_empty_journal_beside_blobs_is_refused() {
    let (folder, weights) = trained();
    remove_journal(&folder);
    assert_refused_and_kept(&folder, weights, "missing or empty, but the folder beside it holds 1 blobs");
    assert!(!folder.path().join(FILE).exists(), "no journal is made");
    std::fs::write(folder.path().join(FILE), b"").unwrap();
    assert_refused_and_kept(&folder, weights, "nothing was removed");
    // Without the marker too, as layout 4 had none.
    std::fs::remove_file(folder.path().join("blobs/journal")).unwrap();
    assert_refused_and_kept(&folder, weights, "nothing was removed");
}

#[test]
fn a_journal_beside_blobs_of_another_is_refused() {
    let (folder, weights) = trained();
    let (other, _) = trained();
    std::fs::copy(other.path().join(FILE), folder.path().join(FILE)).unwrap();
    assert_refused_and_kept(&folder, weights, "belong to another journal");
    // Nor without a marker, if it names none of them.
    std::fs::remove_file(folder.path().join("blobs/journal")).unwrap();
    let stranger = TempDir::new().unwrap();
    append(&mut open(&stranger).unwrap(), RUN, &[started(RUN)]);
    std::fs::copy(stranger.path().join(FILE), folder.path().join(FILE)).unwrap();
    assert_refused_and_kept(&folder, weights, "without any of these blobs");
}

#[test]
fn a_journal_without_a_marker_takes_over_blobs_that_it_knows() {
    let (folder, _) = trained();
    std::fs::remove_file(folder.path().join("blobs/journal")).unwrap();
    let store = open(&folder).unwrap();
    assert_eq!(blobs(&folder).owner().unwrap(), Some(store.identity()));
}

#[test]
fn a_journal_that_lost_everything_beside_blobs_is_refused() {
    let (folder, weights) = trained();
    sql(&folder, "DELETE FROM record; DELETE FROM traffic; DELETE FROM run; UPDATE state SET records = 0");
    assert_refused_and_kept(&folder, weights, "lost all its records");
}

#[test]
fn without_blobs_a_new_journal_begins() {
    let folder = TempDir::new().unwrap();
    let first = open(&folder).unwrap().identity();
    remove_journal(&folder);
    let store = open(&folder).unwrap();
    assert_ne!(store.identity(), first);
    assert_eq!((blobs(&folder).owner().unwrap(), store.findings()), (Some(store.identity()), &[][..]));
}

#[test]
fn another_layout_is_refused_and_left_alone() {
    for (layout, part) in [(7, "layout 7, this version knows 6: update Skiff"), (3, "migrates from layout 4 on")] {
        let (folder, weights) = trained();
        sql(&folder, &format!("PRAGMA user_version = {layout}"));
        let before = std::fs::read(folder.path().join(FILE)).unwrap();
        assert_refused_and_kept(&folder, weights, part);
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), before);
    }
}

#[test]
fn what_is_not_a_journal_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(FILE);
    let noise = vec![7u8; 5000];
    std::fs::write(&path, &noise).unwrap();
    assert!(message(&folder).contains("damaged or not a journal"), "{}", message(&folder));
    assert_eq!(std::fs::read(&path).unwrap(), noise);
    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE recipe (name TEXT)").unwrap();
    assert!(message(&folder).contains("belongs to another program"));
}

#[test]
fn a_torn_file_is_refused() {
    let folder = TempDir::new().unwrap();
    let many: Vec<Entry> = std::iter::once(started(RUN)).chain((6..500).map(|at| entry(at, Record::Resumed))).collect();
    append(&mut open(&folder).unwrap(), RUN, &many);
    let path = folder.path().join(FILE);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(message(&folder).contains("damaged"), "{}", message(&folder));
}

// Damaged and missing records.

/// Returns a folder with two runs, of which the first has ended and the second has not.
fn two_runs() -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut store = open(&folder).unwrap();
    append(&mut store, RunId(1), &[started(RunId(1)), entry(6, Record::RunEnded { stopped: Some("enough".into()) })]);
    append(&mut store, RunId(2), &[started(RunId(2)), entry(6, Record::Resumed), entry(7, Record::Resumed)]);
    folder
}

fn findings(folder: &TempDir) -> Vec<(u64, String)> {
    let store = open(folder).unwrap();
    let found: Vec<_> = store.findings().iter().map(|finding| (finding.run.0, finding.reason.clone())).collect();
    // The fault is reported once. The run is then stopped, and the other runs are unchanged.
    for row in store.runs().unwrap() {
        let is_found = found.iter().any(|(run, _)| *run == row.run.0);
        assert_eq!(row.damage.is_some(), is_found);
        assert!(!is_found || row.summary.reason == row.damage && row.summary.is_ended());
    }
    drop(store);
    assert_eq!(open(folder).unwrap().findings(), []);
    found
}

#[test]
fn a_changed_byte_in_a_record_stops_its_run_alone() {
    let folder = two_runs();
    sql(&folder, "UPDATE record SET entry = x'0701' WHERE run = 2 AND at = 1");
    let found = findings(&folder);
    assert_eq!(found.len(), 1);
    assert!(found[0].0 == 2 && found[0].1.contains("record 1 of run 0000000000000002: its checksum"), "{found:?}");
    let store = open(&folder).unwrap();
    assert_eq!(store.entries(RunId(1)).unwrap().len(), 2);
    let unreadable = store.resume(RunId(2), Timestamp(9)).unwrap_err();
    assert!(unreadable.is_of_one_run());
}

#[test]
fn a_missing_record_stops_its_run_wherever_it_was() {
    for (at, run) in [(0, 2), (1, 2), (2, 2), (1, 1)] {
        let folder = two_runs();
        sql(&folder, &format!("DELETE FROM record WHERE run = {run} AND at = {at}"));
        let found = findings(&folder);
        let named = format!("record {at} of run 000000000000000{run}: it is missing");
        assert_eq!(found, [(run, named)]);
    }
}

#[test]
fn a_record_in_the_place_of_another_is_found() {
    let folder = two_runs();
    let swap = "UPDATE record SET (entry, checksum) = (SELECT entry, checksum FROM record WHERE run = 2 AND at = 1) WHERE run = 2 AND at = 2";
    sql(&folder, swap);
    assert_eq!(findings(&folder)[0].0, 2);
}

#[test]
fn records_that_the_database_lost_at_its_end_stop_the_run_of_the_last_one() {
    let folder = two_runs();
    let older = std::fs::read(folder.path().join(FILE)).unwrap();
    append(&mut open(&folder).unwrap(), RunId(2), &[entry(8, Record::Resumed), entry(9, Record::Resumed)]);
    remove_journal(&folder);
    std::fs::write(folder.path().join(FILE), older).unwrap();
    let found = findings(&folder);
    assert!(found.len() == 1 && found[0].0 == 2 && found[0].1.contains("last 2 records"), "{found:?}");
}

#[test]
fn a_run_that_the_database_lost_as_a_whole_is_listed_as_stopped() {
    let folder = two_runs();
    let older = std::fs::read(folder.path().join(FILE)).unwrap();
    append(&mut open(&folder).unwrap(), RunId(3), &[started(RunId(3))]);
    remove_journal(&folder);
    std::fs::write(folder.path().join(FILE), older).unwrap();
    // The rest of the journal has no end of the previous run, because that record was lost.
    assert_eq!(findings(&folder).iter().map(|(run, _)| *run).collect::<Vec<_>>(), [2, 3]);
    // More records can be added and are found.
    append(&mut open(&folder).unwrap(), RunId(4), &[started(RunId(4))]);
    assert_eq!(open(&folder).unwrap().findings(), []);
}

#[test]
fn a_dropped_write_ahead_log_is_noticed() {
    let folder = two_runs();
    let mut store = open(&folder).unwrap();
    append(&mut store, RunId(2), &[entry(8, Record::Resumed)]);
    // As after `kill -9`: the log is not moved into the database. Its damaged frames are dropped without a word.
    let killed = TempDir::new().unwrap();
    for name in [FILE, "journal.sqlite-wal", super::tail::FILE] {
        std::fs::copy(folder.path().join(name), killed.path().join(name)).unwrap();
    }
    let log = killed.path().join("journal.sqlite-wal");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[32 + 24 + 100] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let found = findings(&killed);
    assert!(found.len() == 1 && found[0].0 == 2 && found[0].1.contains("last 1 records"), "{found:?}");
}

#[test]
fn a_place_file_that_is_lost_is_written_again() {
    let folder = two_runs();
    std::fs::remove_file(folder.path().join(super::tail::FILE)).unwrap();
    assert_eq!(open(&folder).unwrap().findings(), []);
    let last = super::tail::Tail::read(folder.path()).unwrap().unwrap();
    assert_eq!((last.records, last.run, last.at), (5, RunId(2), 2));
}

#[test]
fn a_kill_between_commit_and_place_file_is_no_loss() {
    let folder = two_runs();
    let before = std::fs::read(folder.path().join(super::tail::FILE)).unwrap();
    append(&mut open(&folder).unwrap(), RunId(2), &[entry(8, Record::Resumed)]);
    std::fs::write(folder.path().join(super::tail::FILE), before).unwrap();
    let store = open(&folder).unwrap();
    assert_eq!((store.findings(), store.entries(RunId(2)).unwrap().len()), (&[][..], 4));
}

#[test]
fn a_kill_between_a_new_journal_and_its_marker_is_no_loss() {
    let folder = TempDir::new().unwrap();
    drop(open(&folder).unwrap());
    std::fs::remove_file(folder.path().join("blobs/journal")).unwrap();
    std::fs::remove_file(folder.path().join(super::tail::FILE)).unwrap();
    let store = open(&folder).unwrap();
    assert_eq!(blobs(&folder).owner().unwrap(), Some(store.identity()));
}

#[test]
fn a_summary_that_was_changed_is_computed_again() {
    let folder = two_runs();
    let before = open(&folder).unwrap().runs().unwrap();
    sql(&folder, "UPDATE run SET summary = '{' WHERE run = 1");
    assert_eq!(open(&folder).unwrap().runs().unwrap(), before);
}

// Checking and collecting.

#[test]
fn a_check_names_each_fault_and_changes_nothing() {
    let (folder, weights) = trained();
    assert_eq!(check::check(folder.path()).unwrap().faults, [""; 0]);
    std::fs::write(folder.path().join("blobs/blobs").join(weights.to_string()), b"trainex").unwrap();
    sql(&folder, "UPDATE record SET checksum = x'00' WHERE at = 1");
    for _ in 0..2 {
        let report = check::check(folder.path()).unwrap();
        assert!(!report.is_good() && report.faults.len() == 2, "{:?}", report.faults);
        assert!(report.faults[0].contains("record 1 of run") && report.faults[1].contains("is damaged"));
        assert_eq!(report.blobs[0].name.as_deref(), Some("weights of run fffffffffffffffe"));
    }
    std::fs::remove_file(folder.path().join("blobs/blobs").join(weights.to_string())).unwrap();
    assert!(check::check(folder.path()).unwrap().faults[1].contains("are missing"));
}

#[test]
fn the_collector_removes_what_was_named_and_superseded_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let blobs = blobs(&folder);
    let [unknown, old, best, last, in_use] = [b"u", b"o", b"b", b"l", b"i"].map(|bytes| blobs.put(bytes).unwrap());
    let merge = |weights| entry(6, Record::Merged(Merged { weights, moments: None }));
    let mut store = MemoryStore::default();
    let records = [
        started(RUN),
        merge(old),
        evaluated(7, 2),
        merge(best),
        evaluated(7, 9),
        merge(in_use),
        merge(last),
        evaluated(7, 5),
    ];
    append(&mut store, RUN, &records);
    let needed = |blob: Digest| blob == in_use;
    let found = collector::collect(&store, &blobs, &needed, false).unwrap();
    assert_eq!((found.removed.clone(), found.unknown.clone()), (vec![old.to_string()], vec![unknown.to_string()]));
    assert!(blobs.contains(old), "a dry run removes nothing");
    assert_eq!(collector::collect(&store, &blobs, &needed, true).unwrap(), found);
    assert_eq!(blobs.list().unwrap().len(), 4);
    store.delete(RUN).unwrap();
    collector::collect(&store, &blobs, &|_| false, true).unwrap();
    assert_eq!(blobs.list().unwrap(), [(unknown, 1)]);
}

// Records.

fn records() -> impl Strategy<Value = Record> {
    let device = "[a-z]{1,8}".prop_map(|name| name.parse().unwrap());
    let text = ".{0,12}";
    let plan = prop_oneof![
        Just(SharingPlan::All),
        any::<u32>().prop_map(|k| SharingPlan::LeastImportant { k }),
        any::<u32>().prop_map(|k| SharingPlan::MostImportant { k }),
        prop::collection::vec(any::<u32>(), 0..4).prop_map(|layers| SharingPlan::Fixed { layers }),
    ];
    let rates = prop::collection::vec(0f32..1.0, 0..4).prop_map(|rates| DropoutRates::new(rates).unwrap());
    let assignment = (rates, any::<(u32, Option<u32>, bool, u32)>(), text, plan, any::<u32>()).prop_map(
        |(rates, (most_active, arm, explores, probe_examples), reason, plan, rank)| Assignment {
            choice: Choice { rates, most_active, arm, class: reason.clone(), explores, probe_examples, reason },
            share: Share { group: Some("g".into()), plan, rank },
        },
    );
    let sharing = prop_oneof![
        Just(Sharing::All),
        any::<u32>().prop_map(Sharing::LeastImportant),
        any::<u32>().prop_map(Sharing::MostImportant),
        prop::collection::vec(any::<u32>(), 0..4).prop_map(Sharing::Layers),
    ];
    let policy = (sharing, text).prop_map(|(sharing, name)| Policy {
        sharing: sharing.clone(),
        groups: vec![Group { name, class: None, labels: vec!["l".into()], sharing: Some(sharing), ..Group::default() }],
    });
    let settings =
        (any::<(u64, bool)>(), 1e-9f32..1.0, 0f32..0.9).prop_map(|((seed, asynchronous), rate, proximal)| {
            Box::new(RunSettings { seed, asynchronous, learning_rate: rate, proximal, ..RunSettings::default() })
        });
    let start = (settings, any::<u64>(), any::<u8>()).prop_map(|(settings, run, byte)| Start {
        run: RunId(run),
        name: (byte % 2 == 0).then(|| "night-3".parse().unwrap()),
        settings,
        layers: 3,
        pack: digest(byte),
        schema: digest(byte),
        weights: digest(byte),
        task: (byte > 9).then(|| ModelTask { task: Task::TokenClassification, labels: vec!["O".to_owned()] }),
    });
    prop_oneof![
        start.prop_map(Record::RunStarted),
        Just(Record::Resumed),
        Just(Record::Collected),
        (any::<u64>(), prop::collection::btree_map(device.clone(), assignment, 0..3))
            .prop_map(|(epoch, assignments)| Record::TrainingStarted { epoch, assignments }),
        (device.clone(), text).prop_map(|(device, reason)| Record::DeviceOut { device, reason }),
        any::<(u8, bool)>().prop_map(|(byte, has)| {
            Record::Merged(Merged { weights: digest(byte), moments: has.then(|| digest(byte)) })
        }),
        text.prop_map(|reason| Record::Skipped { reason }),
        (any::<u64>(), prop::collection::btree_map(device, any::<u64>(), 0..3))
            .prop_map(|(epoch, examples)| Record::EvaluationStarted { epoch, examples }),
        (any::<(u32, u64, u64)>(), 0f64..1e9).prop_map(|((devices, examples, correct), loss_sum)| {
            let all = of_each_task();
            let metrics = all[devices as usize % all.len()].clone();
            let left_out = [("hall".parse().unwrap(), "it diverged".to_owned())].into_iter().take(correct as usize % 2);
            let left_out = left_out.collect();
            Record::Evaluated(Evaluation { devices, examples, correct, loss_sum, metrics, left_out })
        }),
        prop::option::of(text).prop_map(|stopped| Record::RunEnded { stopped }),
        policy.prop_map(Record::PolicySet),
    ]
}

proptest! {
    #[test]
    fn a_record_is_read_as_it_was_written(at_ms in any::<u64>(), record in records(), at in any::<u64>()) {
        let written = entry(at_ms, record);
        let (bytes, checksum) = journal::Entry::from(&written).encode(RUN, at);
        let read = journal::Entry::decode(RUN, at, &bytes, &checksum).unwrap();
        prop_assert_eq!(Entry::try_from(read).unwrap(), written);
    }

    #[test]
    fn any_changed_bit_of_a_record_is_found(record in records(), at in 0..9u64, place in any::<prop::sample::Index>(), bit in 0..8u8) {
        let (mut bytes, checksum) = journal::Entry::from(&entry(1, record)).encode(RUN, at);
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert_eq!(journal::Entry::decode(RUN, at, &bytes, &checksum), Err(RecordFault::Checksum));
        bytes[place] ^= 1 << bit;
        prop_assert_eq!(journal::Entry::decode(RUN, at + 1, &bytes, &checksum), Err(RecordFault::Checksum));
    }
}

#[test]
fn an_order_with_a_rate_out_of_range_is_not_read() {
    let orders =
        Record::TrainingStarted { epoch: 2, assignments: BTreeMap::from([("hall".parse().unwrap(), order())]) };
    let mut stored = journal::Entry::from(&entry(6, orders));
    let journal::Record::TrainingStarted { assignments, .. } = &mut stored.record else { panic!("{stored:?}") };
    assignments.values_mut().for_each(|order| order.choice.rates[1] = 1.5);
    let fault = Entry::try_from(stored).unwrap_err().to_string();
    assert!(fault.contains("layer 1 has dropout rate 1.5, expected 0 to below 1"), "{fault}");
}

#[test]
fn an_update_is_read_as_it_was_written() {
    let (bytes, checksum) = journal::Entry::from(&update(4)).encode(RUN, 0);
    let read = Entry::try_from(journal::Entry::decode(RUN, 0, &bytes, &checksum).unwrap()).unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", update(4)), "a loss that is no number is one too");
}

// Migrations.

/// State folders of older layouts, with the layout of each.
const OLD: [(&str, i64); 4] =
    [("layout-4/asynchronous", 4), ("layout-4/personal-layers", 4), ("layout-4/finished", 4), ("layout-5/state", 5)];

fn layout_4(name: &str) -> TempDir {
    old_folder(&format!("layout-4/{name}"))
}

/// Copies a state folder that an earlier version wrote.
fn old_folder(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    std::fs::create_dir_all(folder.path().join("blobs/blobs")).unwrap();
    for file in [FILE, tail::FILE, "blobs/journal"].into_iter().filter(|file| from.join(file).exists()) {
        std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    for blob in std::fs::read_dir(from.join("blobs/blobs")).unwrap() {
        let blob = blob.unwrap();
        std::fs::copy(blob.path(), folder.path().join("blobs/blobs").join(blob.file_name())).unwrap();
    }
    folder
}

/// Returns all tables and rows except the identity.
fn dump(folder: &TempDir) -> Vec<String> {
    let connection = Connection::open(folder.path().join(FILE)).unwrap();
    let text = |sql: &str| -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|at| Ok(format!("{:?}", row.get_ref(at)?))).collect();
        let rows: Vec<Vec<String>> = statement.query_map([], row).unwrap().map(Result::unwrap).collect();
        rows.into_iter().map(|row| row.join(" ")).collect()
    };
    let queries = [
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name",
        "SELECT one, records FROM state",
        "SELECT * FROM run ORDER BY number",
        "SELECT * FROM record ORDER BY run, at",
        "SELECT * FROM traffic ORDER BY run, round",
        "SELECT * FROM removal ORDER BY number",
        "SELECT * FROM named ORDER BY digest, run, kind, round",
        "PRAGMA user_version",
        "PRAGMA application_id",
    ];
    queries.into_iter().flat_map(text).collect()
}

#[test]
fn an_old_journal_after_all_migrations_equals_a_fresh_one() {
    for (name, _) in OLD {
        let (old, fresh) = (old_folder(name), TempDir::new().unwrap());
        let migrated = open(&old).unwrap();
        let mut written = open(&fresh).unwrap();
        for row in migrated.runs().unwrap() {
            written.append(row.run, &migrated.entries(row.run).unwrap(), 0, Traffic::default()).unwrap();
            for (round, traffic) in migrated.traffic(row.run).unwrap() {
                written.append(row.run, &[], round, traffic).unwrap();
            }
        }
        drop((migrated, written));
        assert_eq!(dump(&old), dump(&fresh), "{name}");
        assert_eq!(check::check(old.path()).unwrap().faults, [""; 0], "{name}");
    }
}

#[test]
fn a_migration_that_is_only_tried_changes_nothing() {
    for (name, layout) in OLD {
        let folder = old_folder(name);
        let before = std::fs::read(folder.path().join(FILE)).unwrap();
        let migrated = SqliteStore::migrate_folder(folder.path(), false).unwrap();
        assert_eq!((migrated.from, migrated.to, migrated.damaged), (layout, LAYOUT, vec![]));
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), before);
        let refused = SqliteStore::open_existing(folder.path());
        assert!(matches!(refused, Err(StoreError::NotMigrated { found, .. }) if found == layout));
        SqliteStore::migrate_folder(folder.path(), true).unwrap();
        let runs = SqliteStore::open_existing(folder.path()).unwrap().runs().unwrap();
        assert_eq!(runs.len() as u64, migrated.runs);
    }
}

#[test]
fn a_migration_killed_at_any_write_is_made_at_the_next_start() {
    for (name, _) in OLD {
        let folder = old_folder(name);
        let present = blobs(&folder).list().unwrap();
        let (opened, kills) = kills::record(folder.path(), || {
            SqliteStore::open(folder.path(), &WatchedBlobs::open(folder.path().join("blobs"))).map(drop)
        });
        opened.unwrap();
        assert!(kills.len() >= 3, "{name}: {}", kills.len());
        for Kill { moment, folder: killed } in kills {
            drop(open(&killed).unwrap());
            assert_eq!(dump(&killed), dump(&folder), "{name}, {moment}");
            assert_eq!(blobs(&killed).list().unwrap(), present, "{name}, {moment}");
            assert_eq!(check::check(killed.path()).unwrap().faults, [""; 0], "{name}, {moment}");
        }
    }
}

#[test]
fn a_journal_of_layout_5_beside_blobs_of_another_is_refused_before_it_is_migrated() {
    let folder = old_folder("layout-5/state");
    let old = std::fs::read(folder.path().join(FILE)).unwrap();
    blobs(&folder).set_owner(&"7".repeat(32)).unwrap();
    assert!(message(&folder).contains("belong to another journal"), "{}", message(&folder));
    assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), old);
}

#[test]
fn a_damaged_record_of_layout_4_stops_its_run_alone() {
    let folder = layout_4("finished");
    let last: i64 = {
        let connection = Connection::open(folder.path().join(FILE)).unwrap();
        connection.query_row("SELECT run FROM run ORDER BY number DESC", [], |row| row.get(0)).unwrap()
    };
    sql(&folder, &format!("UPDATE journal SET entry = x'ffff' WHERE run = {last} AND at = 4"));
    let store = open(&folder).unwrap();
    let rows = store.runs().unwrap();
    assert_eq!(rows[0].damage, None);
    assert!(rows[1].damage.as_deref().unwrap().contains("record 4 could not be read"), "{:?}", rows[1]);
}

#[test]
fn a_journal_of_layout_4_put_back_under_newer_blobs_is_refused() {
    let folder = layout_4("finished");
    let old = std::fs::read(folder.path().join(FILE)).unwrap();
    drop(open(&folder).unwrap());
    remove_journal(&folder);
    std::fs::write(folder.path().join(FILE), &old).unwrap();
    assert!(message(&folder).contains("belong to another journal"), "{}", message(&folder));
    assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), old);
}
