//! One type for every message, and the topics that carry each kind.

use crate::messages::{Announcement, Answer, Birth, Command, Gone, Presence, Telemetry};
use crate::topics::Topic;
use crate::transfer::TransferMessage;

/// Any message of the protocol.
#[derive(Clone, PartialEq, Debug)]
pub enum Message {
    /// Birth of a device.
    Birth(Birth),
    /// Departure of a device.
    Gone(Gone),
    /// Resources of a device.
    Telemetry(Telemetry),
    /// Answer of a device to a command.
    Answer(Answer),
    /// Command of the coordinator.
    Command(Command),
    /// Presence of the coordinator.
    Presence(Presence),
    /// Message of a transfer, from either side.
    Transfer(TransferMessage),
    /// Versions that the coordinator speaks.
    Announcement(Announcement),
}

impl Message {
    /// Returns the kind for the header. A number is never reused for another kind.
    pub(crate) const fn kind(&self) -> u8 {
        match self {
            Self::Birth(_) => 1,
            Self::Gone(_) => 2,
            Self::Telemetry(_) => 3,
            Self::Answer(_) => 4,
            Self::Command(_) => 5,
            Self::Presence(_) => 6,
            Self::Transfer(_) => 7,
            Self::Announcement(_) => 8,
        }
    }

    /// Returns true if `topic` carries this kind of message.
    #[must_use]
    pub const fn belongs_on(&self, topic: &Topic) -> bool {
        match self {
            Self::Birth(_) | Self::Gone(_) => matches!(topic, Topic::Birth(_)),
            Self::Telemetry(_) => matches!(topic, Topic::Telemetry(_)),
            Self::Answer(_) => matches!(topic, Topic::Answer(_)),
            Self::Command(_) => matches!(topic, Topic::Command(_)),
            Self::Presence(_) => matches!(topic, Topic::Presence),
            Self::Announcement(_) => matches!(topic, Topic::Versions),
            Self::Transfer(_) => matches!(topic, Topic::UpTransfer(..) | Topic::DownTransfer(..)),
        }
    }
}
