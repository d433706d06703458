//! `skiff config`: writes a commented configuration file, and checks one.

use crate::serve;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use skiff_coordinator::config::{Config, EXAMPLE};
use skiff_screen::output::{stdout, width};
use skiff_screen::text::Facts;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Subcommands of `skiff config`.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Write a configuration file with every setting, its default and a comment
    Init(InitArguments),
    /// Read a configuration as `skiff serve` does, and print what it would use. Exit status 1 if something is wrong
    Check(Box<CheckArguments>),
}

/// Arguments of `skiff config init`.
#[derive(Args, Debug)]
pub(crate) struct InitArguments {
    /// File to write; an existing one is not changed. Without it, the text goes to the standard output
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Arguments of `skiff config check`, which include the arguments of `skiff serve`.
#[derive(Args, Debug)]
#[group(id = "check")]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    serve: serve::Arguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// The file exists already or cannot be written, the configuration cannot be read, or a file that it names is missing.
pub(crate) fn run(action: &Action) -> anyhow::Result<()> {
    match action {
        Action::Init(InitArguments { file: None }) => Ok(write!(stdout(), "{EXAMPLE}")?),
        Action::Init(InitArguments { file: Some(file) }) => init(file),
        Action::Check(arguments) => check(arguments),
    }
}

fn init(file: &Path) -> anyhow::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).open(file);
    let written = made.and_then(|mut made| made.write_all(EXAMPLE.as_bytes()));
    written.with_context(|| format!("writing {}, which must not exist yet", file.display()))?;
    Ok(writeln!(stdout(), "wrote {0}; edit it, then: skiff config check --config {0}", file.display())?)
}

fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let config = arguments.serve.config()?;
    let effective = effective(&config)?;
    if arguments.json {
        writeln!(stdout(), "{effective}")?;
    } else {
        let mut facts = Facts::new();
        add(&mut facts, "", &effective);
        write!(stdout(), "{}", facts.text(width()))?;
    }
    let missing = missing(&config);
    if missing.is_empty() { Ok(()) } else { anyhow::bail!("missing: {}", missing.join(", ")) }
}

/// Returns the settings that `skiff serve` would use, without the password.
fn effective(config: &Config) -> anyhow::Result<Value> {
    let broker = &config.broker;
    Ok(json!({
        "fleet": config.fleet,
        "pack": config.pack,
        "state": config.state,
        "broker": {
            "url": skiff_link::without_password(&broker.url),
            "user": broker.user,
            "password": broker.password.as_ref().map(|_| "set"),
            "password_file": broker.password_file,
            "ca_file": broker.ca_file,
            "client_cert_file": broker.client_cert_file,
            "client_key_file": broker.client_key_file,
        },
        "limits": {
            "devices": config.limits.devices,
            "granted_chunks": config.limits.granted_chunks,
            "blob_bytes": config.limits.blob_bytes,
        },
        "run": serde_json::to_value(&config.run)?,
    }))
}

/// Adds every value with its path, such as `run.rounds`. Values that are not set are left out.
fn add(facts: &mut Facts, path: &str, value: &Value) {
    match value {
        Value::Object(table) if !table.is_empty() => {
            for (name, value) in table {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                add(facts, &path, value);
            }
        }
        Value::Null => {}
        Value::String(text) => facts.add(path, text.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => facts.add(path, value.to_string()),
    }
}

/// Returns the settings whose file or folder does not exist.
pub(crate) fn missing(config: &Config) -> Vec<String> {
    let broker = &config.broker;
    let named = [
        ("pack", Some(&config.pack)),
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
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_link::Secret;

    #[test]
    fn an_existing_file_is_not_changed() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("c.toml");
        init(&file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), EXAMPLE);
        std::fs::write(&file, "mine").unwrap();
        assert!(format!("{:#}", init(&file).unwrap_err()).contains("must not exist yet"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn secrets_are_hidden_and_missing_files_named() {
        let mut config = Config::new("home".parse().unwrap(), "/no/pack".into(), "s".into(), "mqtt://ann:pw1@host");
        config.broker.password = Some(Secret::from("pw2".to_owned()));
        config.broker.ca_file = Some("/no/ca.pem".into());
        let text = effective(&config).unwrap().to_string();
        assert!(text.contains("\"rounds\":10") && !text.contains("pw1") && !text.contains("pw2"), "{text}");
        assert_eq!(missing(&config), ["pack /no/pack", "ca_file /no/ca.pem"]);
        let mut facts = Facts::new();
        add(&mut facts, "", &effective(&config).unwrap());
        let text = facts.text(None);
        assert!(text.lines().any(|line| line.starts_with("run.rates.fixed.mean")), "{text}");
    }
}
