//! `--own` of `skiff-agent predict` and `evaluate`: the model of this device.
//!
//! `skiff-worker` carries out both verbs. This file adds the arguments that name the device's pack, weights and data.

use super::export;
use crate::config::Config;
use skiff_contract::{ColumnNames, Training};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Flag that asks for the device's own model.
const OWN: &str = "--own";
const CONFIG: &str = "--config";
const TEST: &str = "--test";
/// Options of the columns, and what they name.
const COLUMNS: [&str; 5] = ["--text-column", "--pair-column", "--prompt-column", "--label-column", "--columns"];

/// Returns true if the user's `words` ask for the device's own model.
#[must_use]
pub fn is_wanted(words: &[OsString]) -> bool {
    words.iter().take_while(|word| *word != "--").any(|word| word == OWN)
}

/// Returns the settings file that the user's `words` name.
#[must_use]
pub fn config_file(words: &[OsString]) -> Option<PathBuf> {
    let at = words.iter().position(|word| is_option(word, CONFIG))?;
    let inline = words[at].to_str().and_then(|word| word.split_once('=')).map(|(_, file)| file.into());
    inline.or_else(|| words.get(at + 1).map(Into::into))
}

/// Returns the user's `words`, the verb first, with the pack, weights and data of the device. Options of the user come first.
///
/// # Errors
/// A `--pack` in addition to the device's own pack; a state folder without weights.
pub fn worker_arguments(config: &Config, words: &[OsString]) -> anyhow::Result<Vec<OsString>> {
    let Training { pack, test, columns, threads, provider, onnxruntime, .. } = &config.training;
    let given = |option: &str| words.iter().any(|word| is_option(word, option));
    anyhow::ensure!(!given("--pack"), "{OWN} takes the pack of agent.toml: leave out --pack");
    let mut added: Vec<OsString> = vec!["--pack".into(), pack.into()];
    let weights = export::own_weights(config)?;
    added.extend(["--state".into(), config.state.clone().into(), "--blob".into(), weights.global.to_string().into()]);
    if let Some((layers, blob)) = &weights.personal {
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        added.extend(["--personal".into(), blob.to_string().into(), "--layers".into(), layers.join(",").into()]);
    }
    if *threads > 0 && !given("--threads") {
        added.extend(["--threads".into(), threads.to_string().into()]);
    }
    if !given("--provider") {
        added.extend(["--provider".into(), provider.name().into()]);
    }
    if let Some(library) = onnxruntime.as_ref().filter(|_| !given("--onnxruntime")) {
        added.extend(["--onnxruntime".into(), library.into()]);
    }
    let is_evaluation = words.first().is_some_and(|verb| verb == "evaluate");
    if let Some(test) = test.as_ref().filter(|_| is_evaluation && !given(TEST)) {
        added.extend([TEST.into(), test.into()]);
        if !COLUMNS.iter().any(|option| given(option)) {
            added.extend(column_options(columns));
        }
    }
    // A word after `--` is a file, so the options stand before it.
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    Ok([&words[..end], &added[..], &words[end..]].concat())
}

/// Returns the options that name the columns of the device's files.
fn column_options(ColumnNames { text, pair, prompt, label, header }: &ColumnNames) -> Vec<OsString> {
    let joined = |names: &[String]| (!names.is_empty()).then(|| names.join(","));
    let values = [joined(text), pair.clone(), prompt.clone(), label.clone(), joined(header)];
    let named = COLUMNS.iter().zip(values).filter_map(|(option, value)| Some([option.into(), value?.into()]));
    named.flatten().collect()
}

/// Returns true if `word` is the option, alone or with its value.
fn is_option(word: &OsStr, option: &str) -> bool {
    word.to_str()
        .and_then(|word| word.strip_prefix(option))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::config::Settings;
    use crate::participant::{Memory, Settled};
    use crate::store::Store;
    use skiff_blobs::Blobs as _;
    use skiff_contract::Personal;
    use skiff_protocol::RunId;
    use std::path::Path;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(Into::into).collect()
    }

    fn config(state: &Path) -> Config {
        let settings = Settings {
            pack: Some("/p.pack".into()),
            test: Some("/t.csv".into()),
            label_column: Some("y".to_owned()),
            threads: Some(2),
            allow_unsigned: Some(true),
            state: Some(state.to_owned()),
            ..Settings::default()
        };
        settings.check(Some("oak")).unwrap()
    }

    #[test]
    fn the_flag_and_the_settings_file_are_found_before_the_files() {
        assert!(is_wanted(&words("predict a.txt --own")));
        assert!(!is_wanted(&words("predict -- --own")) && !is_wanted(&words("predict --owner")));
        assert_eq!(config_file(&words("predict --own --config a.toml")), Some("a.toml".into()));
        assert_eq!(config_file(&words("predict --config=b.toml --own")), Some("b.toml".into()));
        assert_eq!(config_file(&words("predict --own")), None);
    }

    #[test]
    fn the_worker_gets_pack_weights_and_data_of_the_device() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        let global = store.blobs().put(b"global").unwrap();
        let own = store.blobs().put(b"own").unwrap();
        let personal = Some(Personal { run: RunId(1), layers: vec![0, 2], blob: own });
        let memory = Memory {
            run: RunId(1),
            started_ms: 0,
            round: 1,
            epoch: 1,
            weights: Some(global),
            received: None,
            settled: Settled::Open,
            personal,
        };
        store.remember(&memory).unwrap();
        let config = config(folder.path());
        let state = folder.path().display();
        let found = worker_arguments(&config, &words("evaluate --own --json")).unwrap();
        let weights = format!("--state {state} --blob {global} --personal {own} --layers 0,2");
        let expected = format!(
            "evaluate --own --json --pack /p.pack {weights} --threads 2 --provider cpu --test /t.csv --label-column y"
        );
        assert_eq!(found, words(&expected));
        let found = worker_arguments(&config, &words("predict --own --threads=1 -- -x.txt")).unwrap();
        let expected = format!("predict --own --threads=1 --pack /p.pack {weights} --provider cpu -- -x.txt");
        assert_eq!(found, words(&expected));
        let other = worker_arguments(&config, &words("evaluate --own --test a.csv")).unwrap();
        assert!(!other.iter().any(|word| word == "/t.csv" || word == "--label-column"), "{other:?}");
        let error = worker_arguments(&config, &words("predict --own --pack q")).unwrap_err().to_string();
        assert!(error.contains("leave out --pack"), "{error}");
    }

    #[test]
    fn a_device_without_weights_says_so() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let error = worker_arguments(&config(folder.path()), &words("predict --own")).unwrap_err().to_string();
        assert!(error.contains("has `skiff-agent run` worked with it?"), "{error}");
    }
}
