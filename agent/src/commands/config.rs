//! `skiff-agent config`: writes a commented settings file, and checks one.

use crate::config::{Config, EXAMPLE, Trust};
use anyhow::Context as _;
use serde_json::{Value, json};
use skiff_screen::text::Facts;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes the example to a new file, or to `out` if no file is named.
///
/// # Errors
/// The file exists already, or something cannot be written.
pub fn init(file: Option<&Path>, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(write!(out, "{EXAMPLE}")?) };
    let made = OpenOptions::new().write(true).create_new(true).open(file);
    let written = made.and_then(|mut made| made.write_all(EXAMPLE.as_bytes()));
    written.with_context(|| format!("writing {}, which must not exist yet", file.display()))?;
    Ok(writeln!(out, "wrote {0}; edit it, then: skiff-agent config check --config {0}", file.display())?)
}

/// Prints the settings that the agent would use, without the password. Returns false and names them if files are missing.
///
/// # Errors
/// `out` cannot be written.
pub fn check(config: &Config, json: bool, width: Option<usize>, out: &mut impl Write) -> anyhow::Result<bool> {
    let missing = missing(config);
    let effective = effective(config, &missing);
    if json {
        writeln!(out, "{effective}")?;
        return Ok(missing.is_empty());
    }
    let mut facts = Facts::new();
    for (name, value) in effective.as_object().into_iter().flatten().filter(|(name, _)| *name != "missing") {
        match value {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => facts.add(name, text.clone()),
            Value::Array(list) if list.is_empty() => {}
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                facts.add(name, value.to_string())
            }
        }
    }
    for missing in &missing {
        facts.add("missing", missing.clone());
    }
    write!(out, "{}", facts.text(width))?;
    Ok(missing.is_empty())
}

fn effective(config: &Config, missing: &[String]) -> Value {
    let (broker, training) = (&config.broker, &config.training);
    let key = match &config.trust {
        Trust::Key(key) => key.to_string(),
        Trust::Anybody => "none: unsigned commands are obeyed".to_owned(),
    };
    json!({
        "broker": skiff_link::without_password(&broker.url),
        "user": broker.user,
        "password": broker.password.as_ref().map(|_| "set"),
        "password_file": broker.password_file,
        "ca_file": broker.ca_file,
        "client_cert_file": broker.client_cert_file,
        "client_key_file": broker.client_key_file,
        "fleet": config.fleet,
        "device": config.device,
        "coordinator_key": key,
        "pack": training.pack,
        "train": training.train,
        "test": training.test,
        "text_column": training.columns.text,
        "pair_column": training.columns.pair,
        "prompt_column": training.columns.prompt,
        "label_column": training.columns.label,
        "columns": training.columns.header,
        "threads": training.threads,
        "provider": training.provider,
        "memory_bytes": training.memory,
        "onnxruntime": training.onnxruntime,
        "protected": training.protected,
        "class": training.place.class,
        "region": training.place.region,
        "labels": training.place.labels,
        "state": config.state,
        "telemetry_seconds": config.telemetry_interval.as_secs(),
        "missing": missing,
    })
}

/// Returns the settings whose file or folder does not exist.
fn missing(config: &Config) -> Vec<String> {
    let (broker, training) = (&config.broker, &config.training);
    let named: [(&str, Option<&PathBuf>); 7] = [
        ("pack", Some(&training.pack)),
        ("train", training.train.as_ref()),
        ("test", training.test.as_ref()),
        ("password_file", broker.password_file.as_ref()),
        ("ca_file", broker.ca_file.as_ref()),
        ("client_cert_file", broker.client_cert_file.as_ref()),
        ("client_key_file", broker.client_key_file.as_ref()),
    ];
    let absent = |(name, path): (&str, Option<&PathBuf>)| {
        path.filter(|path| !path.exists()).map(|path| format!("{name} {}", path.display()))
    };
    named.into_iter().filter_map(absent).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::Settings;

    #[test]
    fn an_existing_file_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        let mut out = Vec::new();
        init(Some(&file), &mut out).unwrap();
        std::fs::write(&file, "mine").unwrap();
        assert!(format!("{:#}", init(Some(&file), &mut out).unwrap_err()).contains("must not exist yet"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn secrets_are_hidden_and_missing_files_named() {
        let text = "broker = 'mqtt://ann:pw1@host'\npack = '/no/pack'\nallow_unsigned = true\n";
        let config = toml::from_str::<Settings>(text).unwrap().check(Some("pi")).unwrap();
        let shown = |json| {
            let mut out = Vec::new();
            assert!(!check(&config, json, None, &mut out).unwrap());
            String::from_utf8(out).unwrap()
        };
        for json in [false, true] {
            assert!(shown(json).contains("pack /no/pack") && !shown(json).contains("pw1"), "{}", shown(json));
        }
        assert!(
            shown(false).lines().any(|line| line.starts_with("device") && line.ends_with("pi")),
            "{}",
            shown(false)
        );
    }

    #[test]
    fn the_example_has_every_setting() {
        let error = toml::from_str::<Settings>("zzz = 1").unwrap_err().to_string();
        let names: Vec<&str> = error.split('`').skip(3).step_by(2).filter(|name| !name.is_empty()).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            let line = format!("{name} = ");
            let is_there = EXAMPLE.lines().any(|at| at.strip_prefix("# ").unwrap_or(at).starts_with(&line));
            assert!(is_there, "the example lacks {name}");
        }
        let written = toml::from_str::<Settings>(EXAMPLE).unwrap();
        assert_eq!(written.pack.as_deref(), Some(Path::new("/var/lib/skiff-agent/model.pack")));
        // Every commented setting is valid, too; the two secrets exclude each other.
        let is_setting = |line: &&str| line.contains(" = ") && !line.starts_with("password =") && !line.contains(": ");
        let whole: Vec<&str> =
            EXAMPLE.lines().map(|line| line.strip_prefix("# ").filter(is_setting).unwrap_or(line)).collect();
        toml::from_str::<Settings>(&whole.join("\n")).unwrap();
    }
}
