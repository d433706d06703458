//! The broker's part of `skiff doctor`: connects as the coordinator would, and sends messages to itself in both directions.
//!
//! A broker also acknowledges messages that its access list or its size limit drops. Only a message that comes back has arrived.
//! The messages use topics of a device that does not exist.

use skiff_base::findings::Finding;
use skiff_coordinator::config::Config;
use skiff_link::{Link, LinkConfig, LinkEvent, Publication, Qos};
use skiff_protocol::codec::{self, Message};
use skiff_protocol::messages::{Command, Order};
use skiff_protocol::topics::{coordinator_filters, coordinator_optional_filters, device_filters};
use skiff_protocol::transfer::{CHUNK_BYTES, PROBE, PROBED_RUN, TransferMessage};
use skiff_protocol::{DeviceId, FleetId, Topic, Verifier, Version};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Name of the device whose topics the test uses.
const DEVICE: &str = "skiff-doctor";
/// Time that the broker may take to answer.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
/// Time that the messages of the test may take.
const ROUND_TRIP_PATIENCE: Duration = Duration::from_secs(5);
/// Position that marks the small chunk to the device. A running coordinator sends back only the message to itself, which has position 0.
const SMALL: u32 = 101;
/// Position that marks the whole chunk to the device.
const WHOLE: u32 = 102;

/// The messages that came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Back {
    up: bool,
    command: bool,
    small: bool,
    whole: bool,
}

/// A coordinator's retained presence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    online: bool,
    /// True if it was signed with the key of this state folder.
    has_our_key: bool,
}

/// Connects to the broker and tests the way in both directions.
pub(super) async fn check(config: &Config, is_running: bool, key: Option<&Verifier>) -> Vec<(&'static str, Finding)> {
    let device: DeviceId = DEVICE.parse().expect("a name");
    let fleet = &config.fleet;
    let mut optional = coordinator_optional_filters(fleet);
    optional.extend(device_filters(fleet, &device));
    let opened = Link::open(LinkConfig {
        broker: config.broker.clone(),
        client_id: format!("skiff-coordinator-{fleet}-doctor-{:x}", std::process::id()),
        will: None,
        subscriptions: coordinator_filters(fleet),
        optional_subscriptions: optional,
    });
    let (link, mut events) = match opened {
        Ok(opened) => opened,
        Err(error) => return vec![("broker", Finding::Broken(skiff_base::chain(&error)))],
    };
    let topics = Topics::new(fleet, &device);
    let mut seen = None;
    if let Err(trouble) = connected(&mut events, &topics, key, &mut seen).await {
        link.close().await;
        return vec![("broker", Finding::Broken(trouble))];
    }
    let back = go_and_return(&link, &mut events, &topics, key, &mut seen).await;
    link.close().await;
    let mut found = vec![
        ("broker", Finding::Fine("connected and subscribed".to_owned())),
        ("broker path", passed(back, fleet, config.broker.user.as_deref())),
    ];
    found.extend(other(seen, is_running, fleet).map(|found| ("fleet", found)));
    found
}

/// Topics of the test.
struct Topics {
    presence: String,
    up: String,
    command: String,
    transfer: String,
}

impl Topics {
    fn new(fleet: &FleetId, device: &DeviceId) -> Self {
        Self {
            presence: Topic::Presence.text(fleet),
            up: Topic::UpTransfer(device.clone(), PROBE).text(fleet),
            command: Topic::Command(device.clone()).text(fleet),
            transfer: Topic::DownTransfer(device.clone(), PROBE).text(fleet),
        }
    }

    fn publications(&self) -> [Publication; 4] {
        let chunk = |index, bytes| Message::Transfer(TransferMessage::Chunk { index, bytes: vec![0; bytes] });
        let stop = Command { run: PROBED_RUN, started_ms: 0, round: 0, epoch: 0, order: Order::Stop };
        let publication = |topic: &String, message: Message| Publication {
            payload: codec::seal(&message, Version::OLDEST, topic, None),
            topic: topic.clone(),
            qos: Qos::AtLeastOnce,
            retain: false,
        };
        [
            publication(&self.up, chunk(0, 1)),
            publication(&self.command, Message::Command(stop)),
            publication(&self.transfer, chunk(SMALL, 1)),
            publication(&self.transfer, chunk(WHOLE, CHUNK_BYTES)),
        ]
    }

    /// Records what a message shows.
    fn read(&self, topic: &str, payload: &[u8], key: Option<&Verifier>, back: &mut Back, seen: &mut Option<Seen>) {
        let Ok((message, _)) = codec::open(payload, topic, None) else { return };
        match message {
            Message::Presence(presence) if topic == self.presence => {
                let has_our_key = key.is_some_and(|key| codec::open(payload, topic, Some(key)).is_ok());
                *seen = Some(Seen { online: presence.online, has_our_key });
            }
            Message::Transfer(TransferMessage::Chunk { index, .. }) => {
                back.up |= topic == self.up;
                back.small |= topic == self.transfer && index == SMALL;
                back.whole |= topic == self.transfer && index == WHOLE;
            }
            Message::Command(_) => back.command |= topic == self.command,
            Message::Presence(_)
            | Message::Transfer(_)
            | Message::Birth(_)
            | Message::Gone(_)
            | Message::Telemetry(_)
            | Message::Answer(_)
            | Message::Announcement(_) => {}
        }
    }
}

/// Waits for the connection. Returns the reason if there is none.
async fn connected(
    events: &mut mpsc::Receiver<LinkEvent>,
    topics: &Topics,
    key: Option<&Verifier>,
    seen: &mut Option<Seen>,
) -> Result<(), String> {
    let mut trouble = "it does not answer: is the address right, and no firewall in between?".to_owned();
    let patience = Instant::now() + BROKER_PATIENCE;
    while let Ok(Some(event)) = timeout_at(patience, events.recv()).await {
        match event {
            LinkEvent::Up => return Ok(()),
            LinkEvent::Down { reason } => trouble = reason,
            LinkEvent::Message { topic, payload } => {
                topics.read(&topic, &payload, key, &mut Back::default(), seen);
            }
        }
    }
    Err(trouble)
}

async fn go_and_return(
    link: &Link,
    events: &mut mpsc::Receiver<LinkEvent>,
    topics: &Topics,
    key: Option<&Verifier>,
    seen: &mut Option<Seen>,
) -> Back {
    let mut back = Back::default();
    for publication in topics.publications() {
        if link.publish(publication).await.is_err() {
            return back;
        }
    }
    let all = Back { up: true, command: true, small: true, whole: true };
    let patience = Instant::now() + ROUND_TRIP_PATIENCE;
    while back != all
        && let Ok(Some(event)) = timeout_at(patience, events.recv()).await
    {
        if let LinkEvent::Message { topic, payload } = event {
            topics.read(&topic, &payload, key, &mut back, seen);
        }
    }
    back
}

/// Returns what the messages that came back say about the broker.
fn passed(back: Back, fleet: &FleetId, user: Option<&str>) -> Finding {
    let account = user.map_or_else(|| "the coordinator".to_owned(), |user| format!("user {user:?}"));
    let rule = format!("Mosquitto's acl_file: \"topic readwrite skiff/v1/{fleet}/#\" for {account}");
    let Back { up, command, small, whole } = back;
    if small && !whole {
        return Finding::Broken(
            "short messages arrive, but one of 64 KiB did not: the broker limits the size of messages. Raise the limit to at \
             least 100,000 bytes (Mosquitto: message_size_limit, max_packet_size)"
                .to_owned(),
        );
    }
    if !command || !small {
        return Finding::Doubtful(format!(
            "messages to devices did not come back within {} s: {account} may not write them, or may write but not read them. \
             {rule}; `skiff-agent doctor` on a device shows whether they arrive",
            ROUND_TRIP_PATIENCE.as_secs()
        ));
    }
    if !up {
        return Finding::Doubtful(format!(
            "messages to devices pass the broker. The way back was not tested, because {account} may not write there; \
             `skiff-agent doctor` on a device tests it"
        ));
    }
    Finding::Fine("messages to devices, a chunk of 64 KiB and messages from devices pass the broker".to_owned())
}

/// Returns what the presence of a coordinator on the fleet says, if it is not this one's.
fn other(seen: Option<Seen>, is_running: bool, fleet: &FleetId) -> Option<Finding> {
    let Seen { has_our_key, .. } = seen.filter(|seen| seen.online)?;
    match (is_running, has_our_key) {
        (true, true) => None,
        (true, false) => Some(Finding::Broken(format!(
            "another coordinator of fleet {fleet} is online with another key: stop one of the two `skiff serve`, or give it \
             another fleet"
        ))),
        (false, true) => Some(Finding::Doubtful(format!(
            "a coordinator of fleet {fleet} with the key of this state folder is online, but not from this folder. Before you \
             start this one, make sure that no copy of the folder is in use. After a crash the broker needs up to a minute to \
             notice it"
        ))),
        (false, false) => Some(Finding::Doubtful(format!(
            "another coordinator of fleet {fleet} is online: stop it before you start this one, or choose another fleet"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    const ALL: Back = Back { up: true, command: true, small: true, whole: true };

    fn fleet() -> FleetId {
        "home".parse().unwrap()
    }

    #[test]
    fn what_did_not_come_back_names_the_remedy() {
        let text = |back| passed(back, &fleet(), Some("hub")).to_string();
        assert!(text(ALL).starts_with("ok"));
        assert!(text(Back { whole: false, ..ALL }).contains("message_size_limit"));
        assert!(text(Back::default()).contains("topic readwrite skiff/v1/home/#\" for user \"hub\""));
        assert!(text(Back { up: false, ..ALL }).contains("The way back was not tested"));
    }

    #[test]
    fn a_coordinator_that_is_not_this_one_is_named() {
        let found = |online, has_our_key, is_running| other(Some(Seen { online, has_our_key }), is_running, &fleet());
        assert_eq!(other(None, false, &fleet()), None);
        assert_eq!(found(false, false, false), None);
        assert_eq!(found(true, true, true), None);
        assert!(found(true, false, true).unwrap().is_broken());
        assert!(found(true, true, false).unwrap().to_string().contains("copy of the folder"));
        assert!(found(true, false, false).unwrap().to_string().contains("another coordinator"));
    }

    #[test]
    fn what_the_test_sends_is_what_it_recognizes() {
        let topics = Topics::new(&fleet(), &DEVICE.parse().unwrap());
        let (mut back, mut seen) = (Back::default(), None);
        for publication in topics.publications() {
            topics.read(&publication.topic, &publication.payload, None, &mut back, &mut seen);
        }
        assert_eq!((back, seen), (ALL, None));
    }
}
