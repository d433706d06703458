//! What a message looks like on the wire: a fixed header, then postcard.
//!
//! ```text
//! offset bytes
//!      0     4  magic "SKIF"
//!      4     2  protocol version, little-endian
//!      6     1  kind
//!      7     1  flags: bit 0 = signed
//!      8     4  payload length, little-endian
//!     12    32  blake3 of the payload
//!     44    64  ed25519 signature over topic, a zero byte, and bytes 0..44 (where signed)
//! ```
//!
//! Messages of the coordinator are signed; a device that knows the coordinator's public key refuses any that is not.
//! Everything that cannot be read is a [`Refusal`], which the shell counts by [`Refusal::label`].

use crate::messages::{Answer, Birth, Command, Gone, Presence, Telemetry};
use crate::transfer::TransferMessage;

/// The protocol's version; a message with another one is refused.
pub const PROTOCOL_VERSION: u16 = 1;
/// The largest message, header included: below AWS IoT's 128 KiB.
pub const MAX_MESSAGE_BYTES: usize = 120 * 1024;

/// Any message of the protocol.
#[derive(Clone, PartialEq, Debug)]
pub enum Message {
    /// A device is here.
    Birth(Birth),
    /// A device left.
    Gone(Gone),
    /// A device's resources.
    Telemetry(Telemetry),
    /// A device's answer.
    Answer(Answer),
    /// The coordinator's command.
    Command(Command),
    /// The coordinator's presence.
    Presence(Presence),
    /// A transfer's message, from either side.
    Transfer(TransferMessage),
}
