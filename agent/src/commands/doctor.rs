//! `skiff-agent doctor`: checks whether this device can take part, and prints one line for each requirement. It changes nothing.

use crate::config::Config;
use crate::device::new_boot;
use crate::executor::{Pid, Program, WorkerProcess};
use crate::mqtt::{Desk, link_config};
use crate::owner::{Left, Wish};
use crate::participant::Event;
use crate::telemetry::temperatures;
use anyhow::Context;
use skiff_base::findings::{clock, secrets, state_folder};
use skiff_contract::Finding;
use skiff_link::{Link, LinkConfig, LinkEvent};
use skiff_protocol::transfer::{PROBE, PROBED_RUN, TransferMessage};
use skiff_protocol::{DeviceId, FleetId, Timestamp};
use skiff_screen::report::Report;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Time that the broker may take to answer.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
/// Time that the coordinator's retained presence may take after the broker's answer.
const PRESENCE_PATIENCE: Duration = Duration::from_secs(2);
/// Time that the answers to the messages of the test may take.
const ROUND_TRIP_PATIENCE: Duration = Duration::from_secs(5);

/// Checks everything, and adds each result to `report` as soon as it is known. Returns true if nothing is broken.
///
/// # Errors
/// The report cannot be written.
pub fn run(config: &Config, mut report: Report<impl Write>) -> io::Result<bool> {
    for (name, finding) in worker(config) {
        report.add(&name, &finding)?;
    }
    report.add("state", &state_folder(&config.state))?;
    report.add("secrets", &secrets(&config.broker.exposed()))?;
    report.add("owner", &owner(&config.state))?;
    report.add("sensors", &sensors(Path::new("/")))?;
    report.add("clock", &clock())?;
    for (name, finding) in broker(config) {
        report.add(name, &finding)?;
    }
    report.end()
}

fn broken(error: impl Into<anyhow::Error>) -> Finding {
    Finding::Broken(format!("{:#}", error.into()))
}

/// Lets the worker's process check pack, examples and ONNX Runtime. Adds a finding if the process cannot do so.
fn worker(config: &Config) -> Vec<(String, Finding)> {
    let examined = Program::beside_this()
        .context("finding this program's folder")
        .and_then(|program| WorkerProcess::new(program, config.setup(), Pid::default()).examine());
    match examined {
        Ok(findings) => findings,
        Err(error) => vec![("worker".to_owned(), broken(error))],
    }
}

fn owner(state: &Path) -> Finding {
    match Wish::read(state) {
        Ok(Wish::TakePart) => Finding::Fine("the device takes part".to_owned()),
        Ok(Wish::Pause { .. }) => Finding::Doubtful("paused: `skiff-agent resume` ends the pause".to_owned()),
        Ok(Wish::Leave { .. }) => Finding::Broken(Left.to_string()),
        Err(error) => broken(anyhow::Error::from(error).context("reading the owner's wish in the state folder")),
    }
}

fn sensors(root: &Path) -> Finding {
    let found = temperatures(root);
    if found.is_empty() {
        return Finding::Doubtful("no temperature sensor: telemetry will have none".to_owned());
    }
    let texts: Vec<String> = found.iter().map(|(name, celsius)| format!("{name} {celsius:.0} °C")).collect();
    Finding::Fine(texts.join(", "))
}

fn broker(config: &Config) -> Vec<(&'static str, Finding)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("starting the runtime") {
        Ok(runtime) => runtime.block_on(meet(config)),
        Err(error) => vec![("broker", broken(error))],
    }
}

/// Connects, even if an agent is running, and looks for a coordinator that this device would obey.
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
    let round_trip = match online {
        Some(true) => Some(go_and_return(&link, &mut events, &mut desk, config).await),
        Some(false) | None => None,
    };
    link.close().await;
    if !connected {
        return vec![("broker", Finding::Broken(trouble))];
    }
    let coordinator = match (online, refused) {
        (Some(true), _) => Finding::Fine("online, and its signature is valid".to_owned()),
        (Some(false), _) => Finding::Doubtful("known to the broker, but offline at the moment".to_owned()),
        (None, true) => Finding::Broken(format!(
            "its messages are refused ({}): compare coordinator_key with the key that `skiff serve` prints, and both versions",
            desk.refusals().by_label().into_keys().collect::<Vec<_>>().join(", ")
        )),
        (None, false) => Finding::Doubtful("none seen in this fleet: start `skiff serve`, or check fleet".to_owned()),
    };
    let broker = ("broker", Finding::Fine("connected and subscribed".to_owned()));
    [broker, ("coordinator", coordinator)].into_iter().chain(round_trip.map(|found| ("broker path", found))).collect()
}

/// Sends the coordinator a message on each topic that this device writes to, and a whole chunk. It sends each of them back, and a
/// command. A broker acknowledges also messages that it drops, so only an answer shows that they arrive.
async fn go_and_return(
    link: &Link,
    events: &mut mpsc::Receiver<LinkEvent>,
    desk: &mut Desk,
    config: &Config,
) -> Finding {
    let probes = desk.probes();
    let names: Vec<&str> = probes.iter().map(|(name, _)| *name).collect();
    let mut back = vec![false; names.len()];
    let mut commanded = false;
    for (_, publication) in probes {
        if link.publish(publication).await.is_err() {
            return Finding::Broken("the connection ended during the test".to_owned());
        }
    }
    let patience = Instant::now() + ROUND_TRIP_PATIENCE;
    let mut cut = None;
    while !(commanded && back.iter().all(|back| *back))
        && let Ok(Some(event)) = timeout_at(patience, events.recv()).await
    {
        match event {
            LinkEvent::Up => {}
            LinkEvent::Down { reason } => cut = Some(reason),
            LinkEvent::Message { topic, payload } => match desk.read(&topic, &payload, Timestamp(0)) {
                Some(Event::Transfer { id: PROBE, message: TransferMessage::Chunk { index, .. } }) => {
                    back.get_mut(index as usize).into_iter().for_each(|back| *back = true);
                }
                Some(Event::Command(command)) if command.run == PROBED_RUN => commanded = true,
                Some(_) | None => {}
            },
        }
    }
    returned(&names, &back, commanded, cut.as_deref(), &config.fleet, &config.device)
}

/// Returns what the messages that came back say about the broker.
fn returned(
    names: &[&str],
    back: &[bool],
    commanded: bool,
    cut: Option<&str>,
    fleet: &FleetId,
    device: &DeviceId,
) -> Finding {
    let topics = format!("skiff/v1/{fleet}/d/{device}");
    let waited = ROUND_TRIP_PATIENCE.as_secs();
    let Some((&whole_chunk, small)) = back.split_last() else { return Finding::Fine(String::new()) };
    if !small.contains(&true) {
        return Finding::Broken(format!(
            "nothing that this device writes came back within {waited} s: its account at the broker may not write, or not read. \
             Mosquitto's acl_file needs \"topic write {topics}/up/#\" and \"topic read {topics}/dn/#\". A coordinator of an older \
             version does not answer either"
        ));
    }
    let missing: Vec<&str> = names.iter().zip(small).filter(|(_, back)| !**back).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        return Finding::Broken(format!(
            "what this device writes to {topics}/up/ does not all arrive, missing: {}. Let its account write to all of \
             {topics}/up/# (Mosquitto: acl_file)",
            missing.join(", ")
        ));
    }
    if !whole_chunk {
        let cut = cut.map_or_else(String::new, |reason| format!(" ({reason})"));
        return Finding::Broken(format!(
            "short messages arrive, but one of 64 KiB did not come back within {waited} s{cut}: the broker limits the size of \
             messages. Raise the limit to at least 100,000 bytes (Mosquitto: message_size_limit, max_packet_size)"
        ));
    }
    if !commanded {
        return Finding::Broken(format!(
            "commands do not arrive: let this device's account read {topics}/dn/command (Mosquitto: acl_file)"
        ));
    }
    Finding::Fine("birth, telemetry, answer, a chunk of 64 KiB and a command pass the broker".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_back_names_the_remedy() {
        let (fleet, device) = ("home".parse().expect("a name"), "pi".parse().expect("a name"));
        let names = ["birth", "telemetry", "transfer/..."];
        let found = |back: [bool; 3], commanded| returned(&names, &back, commanded, None, &fleet, &device);
        let broken = |finding| match finding {
            Finding::Broken(text) => text,
            Finding::Fine(text) | Finding::Doubtful(text) => panic!("{text}"),
        };
        assert!(broken(found([false; 3], false)).contains("topic write skiff/v1/home/d/pi/up/#"));
        assert!(broken(found([true, false, true], true)).contains("missing: telemetry."));
        assert!(broken(found([true, true, false], true)).contains("message_size_limit"));
        assert!(broken(found([true; 3], false)).contains("dn/command"));
        assert!(matches!(found([true; 3], true), Finding::Fine(_)));
    }

    #[test]
    fn a_device_without_sensors_is_doubtful() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(matches!(sensors(root.path()), Finding::Doubtful(_)));
    }
}
