//! Translates between bytes on topics and the engine's events and messages. The connection itself is in `skiff-link`.
//!
//! A message is refused if it cannot be read, is not signed by the coordinator, or does not belong on its topic. Refusals are
//! counted by label, and logged once for each label and minute.

use crate::config::{Config, Trust};
use crate::participant::Event;
use skiff_link::{Link, LinkConfig, Publication, Qos, Refusals, Refused};
use skiff_protocol::codec::{Message, open, seal};
use skiff_protocol::messages::Gone;
use skiff_protocol::topics::device_filters;
use skiff_protocol::transfer::{CHUNK_BYTES, PROBE, TransferId, TransferMessage};
use skiff_protocol::{BootId, DeviceId, FleetId, Timestamp, Topic, Verifier, Version};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Maximum number of publications that may wait for the link. Further ones are dropped.
const OUTBOX: usize = 256;

/// Returns the link's settings for this device, with its subscriptions and a last will that announces its end.
#[must_use]
pub fn link_config(config: &Config, boot: BootId) -> LinkConfig {
    let desk = Desk::new(config);
    LinkConfig {
        broker: config.broker.clone(),
        client_id: format!("skiff-{}-{}", config.fleet, config.device),
        // Every future coordinator reads the oldest version.
        will: Some(desk.publication(&Message::Gone(Gone { boot, clean: false }), Version::OLDEST)),
        subscriptions: device_filters(&config.fleet, &config.device),
        optional_subscriptions: Vec::new(),
    }
}

/// Reads incoming messages and writes outgoing ones.
#[derive(Debug)]
pub struct Desk {
    fleet: FleetId,
    device: DeviceId,
    verifier: Option<Verifier>,
    refusals: Refusals,
}

impl Desk {
    /// Returns the desk of the device that `config` names.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let verifier = match &config.trust {
            Trust::Key(verifier) => Some(verifier.clone()),
            Trust::Anybody => None,
        };
        Self { fleet: config.fleet.clone(), device: config.device.clone(), verifier, refusals: Refusals::default() }
    }

    /// Returns the event for the engine, or `None` if the message is refused.
    pub fn read(&mut self, topic: &str, payload: &[u8], now: Timestamp) -> Option<Event> {
        match self.event(topic, payload) {
            Ok(event) => Some(event),
            Err(refused) => {
                self.refusals.add(&refused, topic, now);
                None
            }
        }
    }

    fn event(&self, topic: &str, payload: &[u8]) -> Result<Event, Refused> {
        let place = Topic::parse(&self.fleet, topic).ok_or_else(Refused::unknown_topic)?;
        let (message, _) = open(payload, topic, self.verifier.as_ref())?;
        match (message, place) {
            (Message::Command(command), Topic::Command(device)) if device == self.device => Ok(Event::Command(command)),
            (Message::Presence(presence), Topic::Presence) => Ok(Event::Presence(presence)),
            (Message::Announcement(announcement), Topic::Versions) => Ok(Event::Announcement(announcement)),
            (Message::Transfer(message), Topic::DownTransfer(device, id)) if device == self.device => {
                Ok(Event::Transfer { id, message })
            }
            _ => Err(Refused::wrong_topic()),
        }
    }

    /// Returns the counts of refused messages so far.
    #[must_use]
    pub const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Returns the publication of a birth, a farewell, telemetry or an answer in `version`, on this device's topic.
    ///
    /// # Panics
    /// For messages that only the coordinator sends.
    #[must_use]
    pub fn publication(&self, message: &Message, version: Version) -> Publication {
        let device = self.device.clone();
        let (topic, qos, retain) = match message {
            Message::Birth(_) | Message::Gone(_) => (Topic::Birth(device), Qos::AtLeastOnce, true),
            Message::Telemetry(_) => (Topic::Telemetry(device), Qos::AtMostOnce, false),
            Message::Answer(_) => (Topic::Answer(device), Qos::AtLeastOnce, false),
            Message::Command(_) | Message::Presence(_) | Message::Announcement(_) | Message::Transfer(_) => {
                unreachable!("only the coordinator sends these, and each transfer has a topic of its own")
            }
        };
        let topic = topic.text(&self.fleet);
        Publication { payload: seal(message, version, &topic, None), topic, qos, retain }
    }

    /// Returns the publication of a transfer's message in `version`, on the transfer's topic.
    #[must_use]
    pub fn transfer(&self, id: TransferId, message: TransferMessage, version: Version) -> Publication {
        let topic = Topic::UpTransfer(self.device.clone(), id).text(&self.fleet);
        let payload = seal(&Message::Transfer(message), version, &topic, None);
        Publication { topic, payload, qos: Qos::AtLeastOnce, retain: false }
    }
}

impl Desk {
    /// Returns publications that test the way to the coordinator, each with the name of its topic. The last one has the size of a
    /// whole chunk.
    #[must_use]
    pub fn probes(&self) -> Vec<(&'static str, Publication)> {
        let device = || self.device.clone();
        let topics = [
            ("birth", Topic::Birth(device()), 1),
            ("telemetry", Topic::Telemetry(device()), 1),
            ("answer", Topic::Answer(device()), 1),
            ("transfer/...", Topic::UpTransfer(device(), PROBE), 1),
            ("transfer/...", Topic::UpTransfer(device(), PROBE), CHUNK_BYTES),
        ];
        let probe = |(index, (name, topic, bytes)): (u32, (&'static str, Topic, usize))| {
            let topic = topic.text(&self.fleet);
            let chunk = Message::Transfer(TransferMessage::Chunk { index, bytes: vec![0; bytes] });
            let payload = seal(&chunk, Version::OLDEST, &topic, None);
            (name, Publication { topic, payload, qos: Qos::AtLeastOnce, retain: false })
        };
        (0..).zip(topics).map(probe).collect()
    }
}

/// Accepts publications without waiting, and passes them to the link at its pace.
#[derive(Debug)]
pub struct Outbox {
    sender: mpsc::Sender<Publication>,
    carrier: JoinHandle<()>,
}

impl Outbox {
    /// Starts the task that passes publications on, in the current tokio runtime.
    #[must_use]
    pub fn new(link: Link) -> Self {
        let (sender, mut waiting) = mpsc::channel::<Publication>(OUTBOX);
        let carrier = tokio::spawn(async move {
            while let Some(publication) = waiting.recv().await {
                let carried = match publication.qos {
                    // Publications without an acknowledgement are not waited for, so that they never delay those with one.
                    Qos::AtMostOnce => link.try_publish(publication).map(drop),
                    Qos::AtLeastOnce => link.publish(publication).await,
                };
                if carried.is_err() {
                    break;
                }
            }
            link.close().await;
        });
        Self { sender, carrier }
    }

    /// Queues a publication. If the outbox is full, the publication is dropped; the engine repeats important messages until they
    /// are answered.
    pub fn put(&self, publication: Publication) {
        if let Err(error) = self.sender.try_send(publication) {
            tracing::debug!(%error, "publication dropped");
        }
    }

    /// Sends all waiting publications, then disconnects. Takes as long as [`Link::publish`] and [`Link::close`] do.
    pub async fn close(self) {
        drop(self.sender);
        let _ = self.carrier.await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::Settings;
    use skiff_protocol::messages::Presence;
    use skiff_protocol::{Digest, Signer};

    const TOPIC: &str = "skiff/v1/home/all/presence";

    fn desk(key: Option<&Signer>) -> Desk {
        let settings = Settings {
            fleet: Some("home".into()),
            device: Some("kitchen".into()),
            pack: Some("/p".into()),
            coordinator_key: key.map(|key| key.verifier().to_string()),
            allow_unsigned: Some(true),
            ..Settings::default()
        };
        Desk::new(&settings.check(None).unwrap())
    }

    fn presence() -> Message {
        Message::Presence(Presence { boot: BootId(3), online: true })
    }

    #[test]
    fn signed_presence_is_an_event_and_others_are_counted() {
        let signer = Signer::new([1; 32]);
        let mut desk = desk(Some(&signer));
        let now = Timestamp(0);
        assert!(matches!(
            desk.read(TOPIC, &seal(&presence(), Version::OLDEST, TOPIC, Some(&signer)), now),
            Some(Event::Presence(_))
        ));
        assert_eq!(desk.read(TOPIC, &seal(&presence(), Version::OLDEST, TOPIC, None), now), None);
        assert_eq!(
            desk.read(TOPIC, &seal(&presence(), Version::OLDEST, TOPIC, Some(&Signer::new([2; 32]))), now),
            None
        );
        assert_eq!(desk.read("skiff/v1/other/all/presence", &[], now), None);
        assert_eq!(desk.read(TOPIC, b"hello", now), None);
        assert_eq!(desk.read(TOPIC, &vec![0; 200 * 1024], now), None);
        let labels = ["unsigned", "signature", "unknown_topic", "truncated", "oversized"];
        assert_eq!(desk.refusals().by_label(), labels.map(|label| (label.to_owned(), 1)).into());
    }

    #[test]
    fn a_message_on_a_foreign_topic_is_refused() {
        let mut desk = desk(None);
        let command = "skiff/v1/home/d/kitchen/dn/command";
        assert_eq!(desk.read(command, &seal(&presence(), Version::OLDEST, command, None), Timestamp(0)), None);
        let id = TransferId(9);
        let theirs = Topic::DownTransfer("attic".parse().unwrap(), id).text(&"home".parse().unwrap());
        let done = Message::Transfer(TransferMessage::Done);
        assert_eq!(desk.read(&theirs, &seal(&done, Version::OLDEST, &theirs, None), Timestamp(0)), None);
        assert_eq!(desk.refusals().by_label(), [("wrong_topic".to_owned(), 2)].into());
        let ours = theirs.replace("attic", "kitchen");
        let event = desk.read(&ours, &seal(&done, Version::OLDEST, &ours, None), Timestamp(0));
        assert_eq!(event, Some(Event::Transfer { id, message: TransferMessage::Done }));
    }

    #[test]
    fn births_are_retained_and_transfers_are_not() {
        let desk = desk(None);
        let gone = desk.publication(&Message::Gone(Gone { boot: BootId(1), clean: true }), Version::OLDEST);
        assert!(gone.retain && gone.topic == "skiff/v1/home/d/kitchen/up/birth");
        let refused = TransferMessage::Refused { reason: Digest::of(b"x").to_string() };
        let transfer = desk.transfer(TransferId(1), refused, Version::OLDEST);
        assert_eq!(transfer.topic, "skiff/v1/home/d/kitchen/up/transfer/0000000000000001");
        assert!(!transfer.retain && transfer.qos == Qos::AtLeastOnce);
    }
}
