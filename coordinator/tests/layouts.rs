//! State folders that earlier versions wrote give the same state of each run as they gave those versions.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use serde_json::Value;
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_coordinator::run::explain::explain;
use skiff_coordinator::run::{Ledger, Phase};
use skiff_coordinator::store::{FILE, SqliteStore, Store as _};
use skiff_protocol::{RunId, Timestamp};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn saved(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layout-4").join(name)
}

fn copy(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir_all(folder.path().join("blobs/blobs")).unwrap();
    std::fs::copy(saved(name).join(FILE), folder.path().join(FILE)).unwrap();
    for blob in std::fs::read_dir(saved(name).join("blobs/blobs")).unwrap() {
        let blob = blob.unwrap();
        std::fs::copy(blob.path(), folder.path().join("blobs/blobs").join(blob.file_name())).unwrap();
    }
    folder
}

/// Checks that `found` contains everything in `expected`. It may contain more.
fn assert_holds(expected: &Value, found: &Value, place: &str) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, value) in expected {
                assert_holds(value, found.get(key).unwrap_or(&Value::Null), &format!("{place}.{key}"));
            }
        }
        (Value::Array(expected), Value::Array(found)) => {
            assert_eq!(expected.len(), found.len(), "{place}");
            expected.iter().zip(found).enumerate().for_each(|(at, (expected, found))| {
                assert_holds(expected, found, &format!("{place}[{at}]"));
            });
        }
        _ => assert_eq!(expected, found, "{place}"),
    }
}

fn check(name: &str, is_so: impl Fn(&[Ledger])) {
    let folder = copy(name);
    let blobs = DiskBlobs::open(folder.path().join("blobs"), 1 << 24).unwrap();
    let before = blobs.list().unwrap();
    let store = SqliteStore::open(folder.path(), &blobs).unwrap();
    assert_eq!(store.findings(), []);
    let expected: Vec<Value> =
        serde_json::from_slice(&std::fs::read(saved(name).join("expected.json")).unwrap()).unwrap();
    let rows = store.runs().unwrap();
    assert_eq!(rows.len(), expected.len());
    let mut ledgers = Vec::new();
    for (row, expected) in rows.iter().zip(&expected) {
        let run: RunId = row.run;
        assert_eq!(expected["run"], run.to_string());
        let entries = store.entries(run).unwrap();
        let ledger = Ledger::replay(&entries).unwrap();
        let digests: Vec<String> = ledger.needed().iter().map(ToString::to_string).collect();
        assert_eq!(expected["records"], entries.len());
        assert_eq!(expected["round"], ledger.round);
        assert_eq!(expected["epoch"], ledger.epoch);
        assert_eq!(expected["weights"], ledger.weights.to_string());
        assert_eq!(expected["moments"], serde_json::json!(ledger.moments.map(|moments| moments.to_string())));
        assert_eq!(expected["version"], ledger.version);
        assert_eq!(expected["last_ms"], ledger.last_ms);
        assert_eq!(expected["phase"].as_str(), format!("{:?}", ledger.phase).split(['(', ' ']).next());
        assert_eq!(expected["needed"], serde_json::json!(digests));
        assert!(ledger.is_ended() || ledger.needed().iter().all(|digest| blobs.read(*digest).is_ok()));
        assert_holds(&expected["policy"], &serde_json::to_value(&ledger.policy).unwrap(), "policy");
        assert_holds(&expected["settings"], &serde_json::to_value(&ledger.start.settings).unwrap(), "settings");
        let told = explain(&entries, None, Some(ledger.closed.len() as u32)).unwrap();
        assert_holds(&expected["explained"], &serde_json::to_value(told).unwrap(), "explained");
        let traffic: Vec<_> = store.traffic(run).unwrap().iter().map(|(round, t)| (*round, t.up, t.down)).collect();
        assert_eq!(expected["traffic"], serde_json::json!(traffic));
        let (resumed, _) = store.resume(run, Timestamp(ledger.last_ms)).unwrap();
        let progress = serde_json::to_value(skiff_coordinator::views::current_run(
            &resumed,
            &std::collections::BTreeMap::new(),
            Timestamp(ledger.last_ms),
        ))
        .unwrap();
        assert_holds(&expected["progress"], &progress, "progress");
        assert_holds(&expected["progress"]["accuracy"], &serde_json::json!(row.summary.accuracy), "summary");
        ledgers.push(ledger);
    }
    is_so(&ledgers);
    assert_eq!(blobs.list().unwrap(), before);
}

/// Copies the state folder of layout 5.
fn copy_layout_5() -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layout-5/state");
    let folder = TempDir::new().unwrap();
    std::fs::create_dir_all(folder.path().join("blobs/blobs")).unwrap();
    let blobs = std::fs::read_dir(from.join("blobs/blobs")).unwrap();
    let blobs = blobs.map(|blob| Path::new("blobs/blobs").join(blob.unwrap().file_name()));
    let files = [FILE, "journal.last", "blobs/journal"].map(PathBuf::from);
    for file in files.into_iter().chain(blobs) {
        std::fs::copy(from.join(&file), folder.path().join(&file)).unwrap();
    }
    folder
}

#[test]
fn the_runs_of_layout_5_are_shown_as_before() {
    let folder = copy_layout_5();
    let blobs = DiskBlobs::open(folder.path().join("blobs"), 1 << 24).unwrap();
    let before = blobs.list().unwrap();
    let store = SqliteStore::open(folder.path(), &blobs).unwrap();
    assert_eq!(store.findings(), []);
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layout-5/state/expected.jsonl");
    let expected = std::fs::read_to_string(expected).unwrap();
    let rows = store.runs().unwrap();
    assert_eq!(rows.len(), expected.lines().count());
    for (row, expected) in rows.iter().zip(expected.lines()) {
        let mut expected: Value = serde_json::from_str(expected).unwrap();
        if !row.summary.is_ended() {
            expected["elapsed_ms"] = serde_json::json!(row.summary.last_ms - row.summary.started_ms);
        }
        let details = skiff_coordinator::views::details(&store, row, Timestamp(row.summary.last_ms)).unwrap();
        let shown = serde_json::from_str(&serde_json::to_string(&details).unwrap()).unwrap();
        assert_holds(&expected, &shown, &row.run.to_string());
        assert!(row.summary.name.is_none());
        let (resumed, _) = store.resume(row.run, Timestamp(row.summary.last_ms)).unwrap();
        assert!(resumed.ledger().needed().iter().all(|digest| resumed.ledger().is_ended() || blobs.contains(*digest)));
    }
    assert_eq!(rows.iter().filter(|row| !row.summary.is_ended()).count(), 1, "one run was killed in the middle");
    assert_eq!(store.removals().unwrap(), []);
    assert_eq!(blobs.list().unwrap(), before);
}

#[test]
fn an_asynchronous_run_stopped_in_the_middle_of_a_round_is_the_same() {
    check("asynchronous", |runs| {
        let Phase::Train(training) = &runs[0].phase else { panic!("it trains") };
        assert!(!training.updates.is_empty() && training.pending().next().is_some());
    });
}

#[test]
fn a_run_with_personal_layers_is_the_same() {
    check("personal-layers", |runs| assert_eq!(runs[0].policy.groups.len(), 1));
}

#[test]
fn a_finished_run_is_the_same() {
    check("finished", |runs| assert!(runs.iter().all(Ledger::is_ended)));
}
