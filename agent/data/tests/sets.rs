//! Reads whole data sets: always the generated set, and public sets if `SKIFF_DATA_SETS` names their folder (docs/data-sets.md).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use skiff_data::corpus::{GenerateOptions, generate};
use skiff_data::split::{LEAST_EXAMPLES, dirichlet};
use skiff_data::{Columns, Example, Passage, Rated, dataset, labels, open, read};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Returns the folder of a public set. If `SKIFF_DATA_SETS` is not set, prints that its test does less and returns `None`.
///
/// # Panics
/// If `SKIFF_DATA_SETS` is set and lacks the set.
fn public_set(name: &str) -> Option<PathBuf> {
    let Some(sets) = std::env::var_os("SKIFF_DATA_SETS") else {
        // Writes to the stream itself, because the test runner hides the printed lines of a passing test.
        let _ = writeln!(
            std::io::stderr(),
            "SKIFF_DATA_SETS is not set: the public set {name:?} is NOT tested, only the generated one"
        );
        return None;
    };
    let folder = Path::new(&sets).join(name);
    assert!(folder.is_dir(), "SKIFF_DATA_SETS has no folder {name:?}");
    Some(folder)
}

/// Reads both parts and distributes the training part as a fleet does.
fn check(folder: &Path, train: usize, test: usize, classes: usize) -> (Vec<Example>, Vec<Example>) {
    let set = dataset(folder).unwrap();
    let parts: (Vec<Example>, Vec<Example>) = (read(&set.train).unwrap(), read(&set.test).unwrap());
    assert_eq!((parts.0.len(), parts.1.len()), (train, test));
    let names = labels(&parts.0);
    assert_eq!(names.len(), classes);
    assert_eq!(labels(&parts.1), names);
    let numbers: Vec<usize> =
        parts.0.iter().map(|example| names.iter().position(|name| *name == example.label).unwrap()).collect();
    let shares = dirichlet(&numbers, 4, 1.0, 1);
    assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), train);
    assert!(shares.iter().all(|share| share.len() >= LEAST_EXAMPLES));
    parts
}

#[test]
fn the_generated_set_is_read() {
    let folder = tempfile::tempdir().unwrap();
    generate(&GenerateOptions::default()).unwrap().write(folder.path()).unwrap();
    check(folder.path(), 4_800, 1_000, 24);
}

#[test]
fn ag_news_is_read_and_joined_as_elsewhere() {
    let Some(folder) = public_set("agnews") else { return };
    let (train, test) = check(&folder, 37_430, 7_600, 4);
    assert_eq!(labels(&train), ["1", "2", "3", "4"]);
    assert_eq!(
        test[0].text,
        "Fears for T N pension after talks. Unions representing workers at Turner   Newall say they are 'disappointed' after \
         talks with stricken parent firm Federal Mogul."
    );
}

#[test]
fn hwu64_is_read() {
    let Some(folder) = public_set("hwu64") else { return };
    let (train, _) = check(&folder, 9_960, 1_076, 64);
    assert_eq!(
        (train[0].label.as_str(), train[0].text.as_str()),
        ("alarm_query", "what alarms do i have set right now")
    );
}

#[test]
fn sst2_is_read_with_its_quotes_and_spaces() {
    let Some(folder) = public_set("sst2") else { return };
    let (train, test) = check(&folder, 67_349, 872, 2);
    assert_eq!(train[0].text, "hide new secretions from the parental units ");
    assert_eq!(test[0].label, "1");
}

#[test]
fn mrpc_is_read_as_pairs_with_their_quotes() {
    let Some(folder) = public_set("mrpc") else { return };
    let (train, test) = check(&folder, 3_667, 1_725, 2);
    assert!(train.iter().chain(&test).all(|example| example.pair.is_some()));
    assert_eq!(train[0].label, "1");
    assert_eq!(
        (train[0].text.as_str(), train[0].pair.as_deref().unwrap()),
        (
            "Amrozi accused his brother , whom he called \" the witness \" , of deliberately distorting his evidence .",
            "Referring to him as only \" the witness \" , Amrozi accused his brother of deliberately distorting his evidence ."
        )
    );
    let rated: Vec<Rated> = read(&folder.join("train.tsv")).unwrap();
    assert_eq!(rated.iter().filter(|rated| rated.numbers[0] > 0.5).count(), 2_473);
}

#[test]
fn a_public_set_is_also_texts_for_a_language_model() {
    let Some(folder) = public_set("sst2") else { return };
    let passages: Vec<Passage> = read(&folder.join("dev.tsv")).unwrap();
    assert_eq!(passages.len(), 872);
    let lines: Vec<Passage> = open(&public_set("mrpc").unwrap().join("test.txt"), &Columns::default())
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(lines.len(), 1_726, "a .txt file is a text on each line, whatever they say");
}
