//! `skiff-agent doctor`: whether this device can take part, one line for each thing it needs. It changes nothing.

use crate::config::Config;
use crate::corpus::count;
use crate::device::new_boot;
use crate::mqtt::{Desk, link_config};
use crate::participant::Event;
use crate::telemetry::temperatures;
use anyhow::Context;
use rustix::fs::{Access, access, statvfs};
use skiff_link::{Link, LinkConfig, LinkEvent};
use skiff_models::Pack;
use skiff_models::layout::Layout;
use skiff_models::task::Task;
use skiff_protocol::Timestamp;
use skiff_trainer::Runtime;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, timeout_at};

/// How long the broker may take.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a coordinator's retained presence may take after that.
const PRESENCE_PATIENCE: Duration = Duration::from_secs(2);
/// Below this the state folder has little room for weights.
const ROOMY_BYTES: u64 = 64 << 20;
/// The start of 2026: this program is not older.
const EARLIEST_NOW: Duration = Duration::from_secs(1_767_225_600);

/// What came of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// As it should be.
    Fine(String),
    /// The agent runs, but the operator may want to know.
    Doubtful(String),
    /// The agent cannot take part; says what to do.
    Broken(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verdict, text) = match self {
            Self::Fine(text) => ("ok  ", text),
            Self::Doubtful(text) => ("warn", text),
            Self::Broken(text) => ("FAIL", text),
        };
        write!(f, "{verdict}  {text}")
    }
}

/// Checks everything and writes a line for each to `out`. Returns whether nothing is broken.
///
/// # Errors
/// Where `out` cannot be written.
pub fn run(config: &Config, out: &mut impl Write) -> io::Result<bool> {
    let pack = Pack::open(&config.training.pack).and_then(|pack| pack.check_weights().map(|()| pack));
    let mut sound = true;
    let mut say = |name: &str, finding: Finding| {
        sound &= !matches!(finding, Finding::Broken(_));
        writeln!(out, "{name:<13}{finding}")
    };
    say("onnxruntime", onnxruntime(config))?;
    say("pack", check_pack(&pack, &config.training.pack))?;
    say("train", examples(config.training.train.as_deref(), &pack, "training"))?;
    say("test", examples(config.training.test.as_deref(), &pack, "evaluation"))?;
    say("state", state_folder(&config.state))?;
    say("sensors", sensors(Path::new("/")))?;
    say("clock", clock())?;
    for (name, finding) in broker(config) {
        say(name, finding)?;
    }
    Ok(sound)
}

fn broken(error: impl Into<anyhow::Error>) -> Finding {
    Finding::Broken(format!("{:#}", error.into()))
}

fn onnxruntime(config: &Config) -> Finding {
    let training = &config.training;
    match Runtime::load(training.onnxruntime.as_deref(), 1).and_then(|runtime| runtime.on(training.provider)) {
        Ok(runtime) => Finding::Fine(format!("{}, computes on {}", runtime.version(), runtime.provider())),
        Err(error) => broken(error),
    }
}

fn check_pack(pack: &Result<Pack, skiff_models::pack::PackError>, path: &Path) -> Finding {
    match pack {
        Ok(pack) => {
            let (manifest, digest) = (pack.manifest(), skiff_protocol::Digest(pack.digest()));
            Finding::Fine(format!(
                "{} is intact: {} for {}, {} layers, {}, digest {digest:?}",
                path.display(),
                manifest.design.model.name(),
                manifest.layout.task,
                manifest.layers,
                scored(&manifest.layout),
            ))
        }
        Err(error) => Finding::Broken(causes(error)),
    }
}

/// What the pack's scores are of.
fn scored(layout: &Layout) -> String {
    match layout.task {
        Task::SequenceClassification | Task::TokenClassification => format!("{} labels", layout.classes),
        Task::Regression => format!("{} numbers", layout.classes),
        Task::CausalLm => format!("{} tokens", layout.vocabulary),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn examples(file: Option<&Path>, pack: &Result<Pack, skiff_models::pack::PackError>, purpose: &str) -> Finding {
    match (file, pack) {
        (None, _) => Finding::Doubtful(format!("no file is set: orders of {purpose} will be refused")),
        (Some(path), Err(_)) => Finding::Doubtful(format!("{} is not read before the pack is intact", path.display())),
        (Some(path), Ok(pack)) => match count(path, pack) {
            Ok(count) => Finding::Fine(format!("{count} examples in {}", path.display())),
            Err(error) => Finding::Broken(causes(&error)),
        },
    }
}

fn state_folder(folder: &Path) -> Finding {
    let exists = folder.exists();
    let place = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    if let Err(error) = access(place, Access::WRITE_OK | Access::EXEC_OK) {
        return Finding::Broken(format!(
            "{} cannot be written ({error}): let this user own it, or set state to another folder",
            place.display()
        ));
    }
    let free = statvfs(place).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let text = format!("{} {}", folder.display(), if exists { "can be written" } else { "can be made" });
    if free < ROOMY_BYTES {
        return Finding::Doubtful(format!("{text}, but only {} MB are free there", free >> 20));
    }
    Finding::Fine(text)
}

fn sensors(root: &Path) -> Finding {
    let found = temperatures(root);
    if found.is_empty() {
        return Finding::Doubtful("no temperature sensor: telemetry will have none".to_owned());
    }
    let texts: Vec<String> = found.iter().map(|(name, celsius)| format!("{name} {celsius:.0} °C")).collect();
    Finding::Fine(texts.join(", "))
}

fn clock() -> Finding {
    #[expect(clippy::disallowed_methods, reason = "the clock itself is looked at")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    clock_at(now)
}

fn clock_at(now: Duration) -> Finding {
    if now < EARLIEST_NOW {
        return Finding::Broken(
            "the clock is years behind, and TLS certificates are judged by it: timedatectl set-ntp true".to_owned(),
        );
    }
    Finding::Fine("the clock is not behind this program".to_owned())
}

fn broker(config: &Config) -> Vec<(&'static str, Finding)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("starting the runtime") {
        Ok(runtime) => runtime.block_on(meet(config)),
        Err(error) => vec![("broker", broken(error))],
    }
}

/// Connects beside an agent that may be running, and looks for a coordinator that this device would obey.
async fn meet(config: &Config) -> Vec<(&'static str, Finding)> {
    let boot = match new_boot() {
        Ok(boot) => boot,
        Err(error) => return vec![("broker", broken(error))],
    };
    let own = link_config(config, boot);
    let client_id = format!("{}-doctor-{:x}", own.client_id, boot.0);
    let (link, mut events) = match Link::open(LinkConfig { will: None, client_id, ..own }) {
        Ok(both) => both,
        Err(error) => return vec![("broker", broken(error))],
    };
    let mut desk = Desk::new(config);
    let mut trouble = "it does not answer: is the address right, and no firewall in between?".to_owned();
    let mut connected = false;
    let mut online = None;
    let mut refused = false;
    let mut patience = Instant::now() + BROKER_PATIENCE;
    while let Ok(Some(event)) = timeout_at(patience, events.recv()).await {
        match event {
            LinkEvent::Up => {
                connected = true;
                patience = Instant::now() + PRESENCE_PATIENCE;
            }
            LinkEvent::Down { reason } => trouble = reason,
            LinkEvent::Message { topic, payload } => match desk.read(&topic, &payload, Timestamp(0)) {
                Some(Event::Presence(presence)) => online = Some(presence.online),
                Some(_) => {}
                None => refused = true,
            },
        }
        if connected && (online.is_some() || refused) {
            break;
        }
    }
    link.close().await;
    if !connected {
        return vec![("broker", Finding::Broken(trouble))];
    }
    let coordinator = match (online, refused) {
        (Some(true), _) => Finding::Fine("there, and its signature is the one that is obeyed".to_owned()),
        (Some(false), _) => Finding::Doubtful("known to the broker, but away at the moment".to_owned()),
        (None, true) => Finding::Broken(format!(
            "its messages are refused ({}): compare coordinator_key with what `skiff serve` prints, and the versions",
            desk.labels().collect::<Vec<_>>().join(", ")
        )),
        (None, false) => Finding::Doubtful("none seen in this fleet: start `skiff serve`, or check fleet".to_owned()),
    };
    vec![("broker", Finding::Fine("connected and subscribed".to_owned())), ("coordinator", coordinator)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_verdict() {
        assert_eq!(Finding::Fine("x".into()).to_string(), "ok    x");
        assert_eq!(Finding::Broken("x".into()).to_string(), "FAIL  x");
    }

    #[test]
    fn a_clock_at_the_epoch_is_broken() {
        assert!(matches!(clock_at(Duration::ZERO), Finding::Broken(_)));
        assert!(matches!(clock_at(EARLIEST_NOW), Finding::Fine(_)));
    }

    #[test]
    fn an_empty_device_has_no_sensors_and_a_missing_state_folder_is_not_made() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(matches!(sensors(root.path()), Finding::Doubtful(_)));
        let state = root.path().join("a/b");
        assert!(matches!(state_folder(&state), Finding::Fine(text) if text.ends_with("can be made")));
        assert!(!state.exists());
    }

    #[test]
    fn every_cause_is_told() {
        let error = Pack::open(Path::new("/nowhere")).map(|_| ());
        let text = check_pack(&Pack::open(Path::new("/nowhere")), Path::new("/nowhere"));
        assert!(error.is_err());
        assert!(
            matches!(text, Finding::Broken(text) if text.contains("/nowhere/manifest.json") && text.contains("No such file"))
        );
    }
}
