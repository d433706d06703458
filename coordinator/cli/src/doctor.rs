//! `skiff doctor`: checks whether a coordinator can work with this configuration, and prints one line for each check. It changes
//! nothing, and works while the coordinator runs.

mod broker;

use crate::serve;
use clap::Args;
use skiff_api::progress::{Presence, Progress};
use skiff_api::request::Request;
use skiff_base::chain;
use skiff_base::findings::{Finding, clock, secrets, state_folder};
use skiff_base::lock::{Lock, LockError};
use skiff_coordinator::doors::client::{ControlError, ask_once};
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::store::{SqliteStore, Store as _, StoreError, keys};
use skiff_protocol::Verifier;
use skiff_screen::output::{stdout, width};
use skiff_screen::report::Report;
use skiff_screen::units::counted;
use std::path::Path;

/// Arguments of `skiff doctor`, which include the arguments of `skiff serve`.
#[derive(Args, Debug)]
#[group(id = "doctor")]
pub(crate) struct Arguments {
    #[command(flatten)]
    serve: serve::Arguments,
    /// Print one line of JSON: a list of checks, each with `check`, `verdict` (ok, warn, fail) and `text`
    #[arg(long)]
    json: bool,
}

/// A check failed, and its line says what to do.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator cannot work like this; the lines with FAIL say what to do")]
struct Unfit;

/// Checks everything and prints each result as soon as it is known.
///
/// # Errors
/// Something is broken, the configuration cannot be read, or the standard output cannot be written.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.serve.config()?;
    let mut report = Report::new(stdout(), width(), arguments.json);
    report.add("pack", &pack(&config.pack))?;
    report.add("state", &state_folder(&config.state))?;
    let is_running = is_running(&config.state);
    report.add("journal", &journal(&config.state, is_running))?;
    let (key, found) = key(&config.state);
    report.add("key", &found)?;
    report.add("secrets", &secrets(&config.broker.exposed()))?;
    report.add("clock", &clock())?;
    report.add("coordinator", &coordinator(&config.state, is_running).await)?;
    for (name, found) in broker::check(&config, is_running, key.as_ref()).await {
        report.add(name, &found)?;
    }
    if report.end()? { Ok(()) } else { Err(Unfit.into()) }
}

fn pack(folder: &Path) -> Finding {
    match Model::open(folder) {
        Ok(model) => Finding::Fine(format!(
            "{}: {:?}, {}",
            folder.display(),
            model.task.task,
            counted(model.layers as usize, "layer")
        )),
        Err(error) => Finding::Broken(chain(&error)),
    }
}

/// Returns true if a coordinator holds the lock of the state folder.
fn is_running(state: &Path) -> bool {
    let lock = state.join("lock");
    lock.exists() && matches!(Lock::file(&lock), Err(LockError::InUse { .. }))
}

fn journal(state: &Path, is_running: bool) -> Finding {
    match SqliteStore::open_existing(state).and_then(|store| store.runs()) {
        Ok(runs) => {
            let damaged = runs.iter().filter(|row| row.damage.is_some()).count();
            let text = counted(runs.len(), "run");
            match damaged {
                0 => Finding::Fine(text),
                damaged => {
                    Finding::Doubtful(format!("{text}, {damaged} of them damaged: `skiff store check` says more"))
                }
            }
        }
        Err(StoreError::None { .. }) => Finding::Fine("none yet; the first start makes it".to_owned()),
        Err(error @ StoreError::NotMigrated { .. }) if !is_running => {
            Finding::Doubtful(format!("{}; the next start does so", chain(&error)))
        }
        Err(error) => Finding::Broken(chain(&error)),
    }
}

/// Returns the public key, if there is one.
fn key(state: &Path) -> (Option<Verifier>, Finding) {
    match keys::load(state) {
        Ok(Some(signer)) => {
            let key = signer.verifier();
            let text = format!("devices trust {key}");
            (Some(key), Finding::Fine(text))
        }
        Ok(None) => (None, Finding::Fine("none yet; the first start makes it".to_owned())),
        Err(error) => (None, Finding::Broken(chain(&error))),
    }
}

/// Asks the running coordinator for its state.
async fn coordinator(state: &Path, is_running: bool) -> Finding {
    if !is_running {
        return Finding::Fine("not running".to_owned());
    }
    match ask_once::<Progress>(state, &Request::Progress).await {
        Ok(progress) => running(&progress),
        Err(error @ ControlError::Unreachable { .. }) => {
            Finding::Doubtful(format!("a program holds the state folder, but {}", chain(&error)))
        }
        Err(error) => Finding::Broken(chain(&error)),
    }
}

fn running(progress: &Progress) -> Finding {
    let here = progress.devices.iter().filter(|device| device.presence == Presence::Here).count();
    let text = format!("running, {here} of {} can train", counted(progress.devices.len(), "known device"));
    if !progress.connected {
        return Finding::Doubtful(format!("{text}, not connected to the broker"));
    }
    match progress.warnings.first() {
        Some(warning) => Finding::Broken(format!("{text}; {warning}")),
        None => Finding::Fine(text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn an_empty_folder_is_fine_and_stays_empty() {
        let folder = tempfile::TempDir::new().unwrap();
        assert!(!is_running(folder.path()));
        assert!(matches!(journal(folder.path(), false), Finding::Fine(text) if text.contains("first start")));
        assert!(matches!(key(folder.path()), (None, Finding::Fine(_))));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_coordinator_and_a_lost_broker_are_named() {
        let warnings = vec!["another coordinator connects".to_owned()];
        assert!(running(&Progress { connected: true, warnings, ..Progress::default() }).is_broken());
        assert!(matches!(running(&Progress::default()), Finding::Doubtful(text) if text.contains("not connected")));
    }
}
