//! Reads the devices' messages, refuses those on a wrong topic, and writes the coordinator's messages.
//!
//! The topic, not the payload, names the device, because the broker's access list lets a device write only to its own topics.

use skiff_link::{Publication, Qos, Refused};
use skiff_protocol::codec::{self, Message};
use skiff_protocol::messages::{Announcement, Answer, Birth, BootId, Command, Gone, Presence, Telemetry};
use skiff_protocol::transfer::{PROBE, TransferId, TransferMessage};
use skiff_protocol::{DeviceId, FleetId, Signer, Topic, Version, VersionRange};

/// A message from a device.
#[derive(Clone, PartialEq, Debug)]
pub enum Said {
    /// The device is connected.
    Birth(Birth),
    /// The device left.
    Gone(Gone),
    /// The resources of the device.
    Telemetry(Telemetry),
    /// The device's answer to a command.
    Answer(Answer),
    /// A message of a transfer.
    Transfer(TransferId, TransferMessage),
    /// The broker has no retained message of the device any more.
    Cleared,
    /// A chunk that the device wants back, to learn whether its messages arrive.
    Probe(TransferMessage),
}

/// Reads a message that came from the broker.
///
/// # Errors
/// [`Refused`] if it cannot be read, or does not belong on its topic.
pub fn read(fleet: &FleetId, topic: &str, payload: &[u8]) -> Result<(DeviceId, Said), Refused> {
    let parsed = Topic::parse(fleet, topic).ok_or_else(Refused::unknown_topic)?;
    if payload.is_empty()
        && let Topic::Birth(device) = parsed
    {
        return Ok((device, Said::Cleared));
    }
    let (message, _) = codec::open(payload, topic, None)?;
    if let Message::Transfer(chunk @ TransferMessage::Chunk { .. }) = &message
        && let Topic::Birth(device)
        | Topic::Telemetry(device)
        | Topic::Answer(device)
        | Topic::UpTransfer(device, PROBE) = &parsed
    {
        return Ok((device.clone(), Said::Probe(chunk.clone())));
    }
    if !message.belongs_on(&parsed) {
        return Err(Refused::wrong_topic());
    }
    match (parsed, message) {
        (Topic::Birth(device), Message::Birth(birth)) => Ok((device, Said::Birth(birth))),
        (Topic::Birth(device), Message::Gone(gone)) => Ok((device, Said::Gone(gone))),
        (Topic::Telemetry(device), Message::Telemetry(telemetry)) => Ok((device, Said::Telemetry(telemetry))),
        (Topic::Answer(device), Message::Answer(answer)) => Ok((device, Said::Answer(answer))),
        (Topic::UpTransfer(device, id), Message::Transfer(message)) => Ok((device, Said::Transfer(id, message))),
        _ => Err(Refused::wrong_topic()),
    }
}

/// Writes and signs the coordinator's messages.
pub struct Writer {
    fleet: FleetId,
    signer: Signer,
    boot: BootId,
}

impl Writer {
    /// Makes a writer that signs with `signer`. `boot` identifies this life of the coordinator.
    #[must_use]
    pub fn new(fleet: FleetId, signer: Signer, boot: BootId) -> Self {
        Self { fleet, signer, boot }
    }

    /// Returns this life of the coordinator.
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Reads a coordinator's presence. The flag is true if this coordinator's key signed it. Returns `None` if it cannot be read.
    #[must_use]
    pub fn read_presence(&self, topic: &str, payload: &[u8]) -> Option<(Presence, bool)> {
        match codec::open(payload, topic, None) {
            Ok((Message::Presence(presence), _)) => {
                let has_our_key = codec::open(payload, topic, Some(&self.signer.verifier())).is_ok();
                Some((presence, has_our_key))
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Returns the message that says whether the coordinator is connected. It is retained, and written in the oldest version of
    /// the protocol, which every device reads. The offline message is also the last will.
    #[must_use]
    pub fn presence(&self, online: bool) -> Publication {
        let presence = Message::Presence(Presence { boot: self.boot, online });
        Publication { retain: true, ..self.publication(&Topic::Presence, &presence, Version::OLDEST) }
    }

    /// Returns the message that says which versions of the protocol the coordinator speaks. It is retained. Devices that
    /// speak only version 2 do not know its topic.
    #[must_use]
    pub fn announcement(&self) -> Publication {
        let announcement = Message::Announcement(Announcement { boot: self.boot, speaks: VersionRange::OURS });
        Publication { retain: true, ..self.publication(&Topic::Versions, &announcement, Version::V3) }
    }

    /// Returns the message with which the broker drops a device's retained birth or farewell. It is empty, as MQTT wants it.
    #[must_use]
    pub fn cleared(&self, device: &DeviceId) -> Publication {
        let topic = Topic::Birth(device.clone()).text(&self.fleet);
        Publication { topic, payload: Vec::new(), qos: Qos::AtLeastOnce, retain: true }
    }

    /// Returns a command to a device, in a version that the device speaks.
    #[must_use]
    pub fn command(&self, device: &DeviceId, version: Version, command: Command) -> Publication {
        self.publication(&Topic::Command(device.clone()), &Message::Command(command), version)
    }

    /// Returns a transfer's message to a device, in a version that the device speaks.
    #[must_use]
    pub fn transfer(
        &self,
        device: &DeviceId,
        version: Version,
        id: TransferId,
        message: TransferMessage,
    ) -> Publication {
        self.publication(&Topic::DownTransfer(device.clone(), id), &Message::Transfer(message), version)
    }

    fn publication(&self, topic: &Topic, message: &Message, version: Version) -> Publication {
        let topic = topic.text(&self.fleet);
        let payload = codec::seal(message, version, &topic, Some(&self.signer));
        Publication { topic, payload, qos: Qos::AtLeastOnce, retain: false }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_protocol::Verifier;

    fn fleet() -> FleetId {
        "home".parse().unwrap()
    }

    fn device() -> DeviceId {
        "pi".parse().unwrap()
    }

    fn gone() -> Message {
        Message::Gone(Gone { boot: BootId(4), clean: true })
    }

    #[test]
    fn the_device_is_the_one_of_the_topic() {
        let topic = Topic::Birth(device()).text(&fleet());
        let (who, said) = read(&fleet(), &topic, &codec::seal(&gone(), Version::OLDEST, &topic, None)).unwrap();
        assert_eq!((who, said), (device(), Said::Gone(Gone { boot: BootId(4), clean: true })));
    }

    #[test]
    fn a_probe_is_known_on_every_topic_of_the_device() {
        let chunk = TransferMessage::Chunk { index: 3, bytes: vec![7; 10] };
        let topics = [Topic::Birth(device()), Topic::Telemetry(device()), Topic::UpTransfer(device(), PROBE)];
        for topic in topics.map(|topic| topic.text(&fleet())) {
            let payload = codec::seal(&Message::Transfer(chunk.clone()), Version::OLDEST, &topic, None);
            assert_eq!(read(&fleet(), &topic, &payload).unwrap(), (device(), Said::Probe(chunk.clone())));
        }
        let other = Topic::UpTransfer(device(), TransferId(1)).text(&fleet());
        let payload = codec::seal(&Message::Transfer(chunk.clone()), Version::OLDEST, &other, None);
        assert_eq!(read(&fleet(), &other, &payload).unwrap().1, Said::Transfer(TransferId(1), chunk));
    }

    #[test]
    fn what_does_not_belong_is_refused_by_label() {
        let read =
            |fleet: &FleetId, topic: &str, payload: &[u8]| read(fleet, topic, payload).map_err(|refused| refused.label);
        let sealed = |topic: &str| codec::seal(&gone(), Version::OLDEST, topic, None);
        let answer = Topic::Answer(device()).text(&fleet());
        assert_eq!(read(&fleet(), &answer, &sealed(&answer)), Err("wrong_topic"));
        assert_eq!(read(&fleet(), "skiff/v1/home/d/pi/up/diary", &sealed("x")), Err("unknown_topic"));
        assert_eq!(read(&fleet(), "skiff/v1/other/d/pi/up/birth", &sealed("x")), Err("unknown_topic"));
        let birth = Topic::Birth(device()).text(&fleet());
        assert_eq!(read(&fleet(), &birth, &sealed(&birth)[..30]), Err("truncated"));
        let command = Topic::Command(device()).text(&fleet());
        let order = skiff_protocol::messages::Order::Stop;
        let stop = Command { run: skiff_protocol::RunId(1), started_ms: 0, round: 1, epoch: 2, order };
        let bytes = codec::seal(&Message::Command(stop), Version::OLDEST, &command, None);
        assert_eq!(read(&fleet(), &command, &bytes), Err("wrong_topic"), "what the coordinator itself says");
        let mut newer = sealed(&birth);
        newer[4] = 9;
        let refused = super::read(&fleet(), &birth, &newer).unwrap_err();
        assert_eq!(refused.label, "version");
        assert_eq!(
            refused.reason,
            "the message has protocol version 9, this program speaks 2 to 3: update this program"
        );
    }

    #[test]
    fn what_the_coordinator_says_is_signed_for_its_topic() {
        let signer = Signer::new([5; 32]);
        let verifier: Verifier = signer.verifier();
        let writer = Writer::new(fleet(), signer, BootId(1));
        let presence = writer.presence(true);
        assert!(presence.retain);
        let (read, _) = codec::open(&presence.payload, &presence.topic, Some(&verifier)).unwrap();
        assert_eq!(read, Message::Presence(Presence { boot: BootId(1), online: true }));
        assert!(codec::open(&presence.payload, "skiff/v1/other/all/presence", Some(&verifier)).is_err());
    }

    #[test]
    fn what_every_device_reads_is_in_a_version_that_it_reads() {
        let writer = Writer::new(fleet(), Signer::new([5; 32]), BootId(1));
        let opened = |publication: &Publication| codec::open(&publication.payload, &publication.topic, None).unwrap();
        assert_eq!(opened(&writer.presence(true)).1, Version::OLDEST);
        let announcement = writer.announcement();
        assert!(announcement.retain);
        let (read, version) = opened(&announcement);
        let expected = Announcement { boot: BootId(1), speaks: VersionRange { min: 2, max: 3 } };
        assert_eq!((read, version), (Message::Announcement(expected), Version::V3));
        for version in Version::ALL {
            let done = writer.transfer(&device(), version, TransferId(1), TransferMessage::Done);
            assert_eq!(opened(&done).1, version);
        }
    }
}
