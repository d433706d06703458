//! What a message looks like on the wire: a fixed header, then postcard.
//!
//! ```text
//! offset bytes
//!      0     4  magic "SKIF"
//!      4     2  protocol version, little-endian
//!      6     1  kind
//!      7     1  flags: bit 0 = signed
//!      8     4  payload length, little-endian
//!     12    32  blake3 of bytes 0..12 and the payload
//!     44    64  ed25519 signature over topic, a zero byte, and bytes 0..44 (where signed)
//!        ...    payload
//! ```
//!
//! Messages of the coordinator are signed; a device that knows the coordinator's public key refuses any that is not.
//! Everything that cannot be read is a [`Refusal`], which the shell counts by [`Refusal::label`]. What was read keeps the
//! bounds that its fields' texts state, so that nobody has to look again.
//!
//! Laws: `open(seal(m)) = m`; any other bytes are refused or some message, never a panic; a message in which a byte was
//! changed is refused; reading allocates no more than a small multiple of the bytes that came.

use crate::bounds;
use crate::messages::{Answer, Birth, Command, Gone, Presence, Telemetry};
use crate::topics::Topic;
use crate::transfer::TransferMessage;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// The protocol's version; a message with another one is refused.
pub const PROTOCOL_VERSION: u16 = 1;
/// The largest message, header included: below AWS IoT's 128 KiB.
pub const MAX_MESSAGE_BYTES: usize = 120 * 1024;

const MAGIC: [u8; 4] = *b"SKIF";
const SIGNED: u8 = 1;
/// Where the digest starts: what stands before is digested with the payload.
const DIGEST_AT: usize = 12;
const SIGNATURE_AT: usize = 44;
const SIGNATURE_BYTES: usize = 64;

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

/// Why a message was not read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Shorter than its header, or than its header says.
    #[error("message of {found} bytes where {expected} were announced")]
    Truncated {
        /// Bytes that should be there.
        expected: usize,
        /// Bytes that are.
        found: usize,
    },
    /// Larger than any message, or than its header says.
    #[error("message of {found} bytes where at most {most} are allowed")]
    Oversized {
        /// Bytes that there are.
        found: usize,
        /// Bytes that may be.
        most: usize,
    },
    /// Not a message of Skiff.
    #[error("not a message of Skiff")]
    Foreign,
    /// Of another version.
    #[error("protocol version {found}, and this program speaks {PROTOCOL_VERSION}: update the older side")]
    Version {
        /// The message's.
        found: u16,
    },
    /// Of no known kind, or with unknown flags.
    #[error("unknown kind {kind} or flags {flags:#04x}")]
    UnknownKind {
        /// The kind.
        kind: u8,
        /// The flags.
        flags: u8,
    },
    /// Changed on its way.
    #[error("the digest does not match")]
    Digest,
    /// Not signed although it has to be.
    #[error("the message is not signed")]
    Unsigned,
    /// Signed by somebody else, or for another topic.
    #[error("the signature does not match")]
    Signature,
    /// Not what its kind says.
    #[error("the payload cannot be read")]
    Malformed,
    /// A value out of its bounds.
    #[error("{field} is out of its bounds")]
    OutOfBounds {
        /// The field.
        field: &'static str,
    },
}

impl Refusal {
    /// One word, for counting.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::Oversized { .. } => "oversized",
            Self::Foreign => "foreign",
            Self::Version { .. } => "version",
            Self::UnknownKind { .. } => "unknown_kind",
            Self::Digest => "digest",
            Self::Unsigned => "unsigned",
            Self::Signature => "signature",
            Self::Malformed => "malformed",
            Self::OutOfBounds { .. } => "out_of_bounds",
        }
    }
}

/// Not a public key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a public key: it has 64 hexadecimal digits, as the coordinator prints it")]
pub struct BadKey;

/// The coordinator's secret, to sign with.
pub struct Signer(SigningKey);

impl Signer {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&secret))
    }

    /// What devices check this signer's messages with.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier(self.0.verifying_key())
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.verifier())
    }
}

/// The coordinator's public key. `Display` writes the 64 digits that [`Verifier::parse`] reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verifier(VerifyingKey);

impl Verifier {
    /// From the key's bytes.
    ///
    /// # Errors
    /// [`BadKey`] where they are none.
    pub fn new(public: [u8; 32]) -> Result<Self, BadKey> {
        VerifyingKey::from_bytes(&public).map(Self).map_err(|_| BadKey)
    }

    /// From the key's 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`BadKey`] where they are none.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let bytes = blake3::Hash::from_hex(text.trim()).map_err(|_| BadKey)?;
        Self::new(*bytes.as_bytes())
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Writes `message`, signed for `topic` where there is a signer.
///
/// # Panics
/// Where the message breaks a bound that its fields state: whoever made it should have kept it.
#[must_use]
pub fn seal(message: &Message, topic: &str, signer: Option<&Signer>) -> Vec<u8> {
    if let Err(field) = bounds::check(message) {
        panic!("a message to {topic} breaks the bounds of {field}");
    }
    let payload = encode(message);
    let mut bytes = Vec::with_capacity(SIGNATURE_AT + SIGNATURE_BYTES + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(PROTOCOL_VERSION.to_le_bytes());
    bytes.push(message.kind());
    bytes.push(if signer.is_some() { SIGNED } else { 0 });
    bytes.extend(u32::try_from(payload.len()).expect("bounds keep messages small").to_le_bytes());
    bytes.extend(digest(&bytes, &payload));
    if let Some(Signer(key)) = signer {
        bytes.extend(key.sign(&signed_text(topic, &bytes)).to_bytes());
    }
    bytes.extend(payload);
    assert!(bytes.len() <= MAX_MESSAGE_BYTES, "bounds keep messages small");
    bytes
}

/// Reads a message that came on `topic`; where there is a verifier only what it vouches for.
///
/// Whether such a message belongs on the topic is another question: [`Message::belongs_on`].
///
/// # Errors
/// The [`Refusal`] says why it is not one.
pub fn open(bytes: &[u8], topic: &str, verifier: Option<&Verifier>) -> Result<Message, Refusal> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Refusal::Oversized { found: bytes.len(), most: MAX_MESSAGE_BYTES });
    }
    let truncated = Refusal::Truncated { expected: SIGNATURE_AT, found: bytes.len() };
    let (header, rest) = bytes.split_at_checked(SIGNATURE_AT).ok_or(truncated)?;
    let (head, expected_digest) = header.split_at(DIGEST_AT);
    let &[m0, m1, m2, m3, v0, v1, kind, flags, l0, l1, l2, l3] = head else {
        unreachable!("the head has {DIGEST_AT} bytes");
    };
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Refusal::Foreign);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != PROTOCOL_VERSION {
        return Err(Refusal::Version { found: version });
    }
    if flags & !SIGNED != 0 {
        return Err(Refusal::UnknownKind { kind, flags });
    }
    let signed = flags & SIGNED != 0;
    let signature_bytes = if signed { SIGNATURE_BYTES } else { 0 };
    let payload_bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let expected = payload_bytes.saturating_add(SIGNATURE_AT + signature_bytes);
    if bytes.len() < expected {
        return Err(Refusal::Truncated { expected, found: bytes.len() });
    }
    if bytes.len() > expected {
        return Err(Refusal::Oversized { found: bytes.len(), most: expected });
    }
    let (signature, payload) = rest.split_at(signature_bytes);
    if digest(head, payload) != expected_digest {
        return Err(Refusal::Digest);
    }
    if let Some(Verifier(key)) = verifier {
        if !signed {
            return Err(Refusal::Unsigned);
        }
        let signature = Signature::from_slice(signature).map_err(|_| Refusal::Signature)?;
        key.verify_strict(&signed_text(topic, header), &signature).map_err(|_| Refusal::Signature)?;
    }
    let message = decode(kind, flags, payload)?;
    bounds::check(&message).map_err(|field| Refusal::OutOfBounds { field })?;
    Ok(message)
}

impl Message {
    /// The header's kind; a number is never used again for something else.
    const fn kind(&self) -> u8 {
        match self {
            Self::Birth(_) => 1,
            Self::Gone(_) => 2,
            Self::Telemetry(_) => 3,
            Self::Answer(_) => 4,
            Self::Command(_) => 5,
            Self::Presence(_) => 6,
            Self::Transfer(_) => 7,
        }
    }

    /// Whether this is a message that `topic` carries.
    #[must_use]
    pub const fn belongs_on(&self, topic: &Topic) -> bool {
        match self {
            Self::Birth(_) | Self::Gone(_) => matches!(topic, Topic::Birth(_)),
            Self::Telemetry(_) => matches!(topic, Topic::Telemetry(_)),
            Self::Answer(_) => matches!(topic, Topic::Answer(_)),
            Self::Command(_) => matches!(topic, Topic::Command(_)),
            Self::Presence(_) => matches!(topic, Topic::Presence),
            Self::Transfer(_) => matches!(topic, Topic::UpTransfer(..) | Topic::DownTransfer(..)),
        }
    }
}

fn encode(message: &Message) -> Vec<u8> {
    fn bytes(value: &impl Serialize) -> Vec<u8> {
        postcard::to_stdvec(value).expect("plain values can be written")
    }
    match message {
        Message::Birth(value) => bytes(value),
        Message::Gone(value) => bytes(value),
        Message::Telemetry(value) => bytes(value),
        Message::Answer(value) => bytes(value),
        Message::Command(value) => bytes(value),
        Message::Presence(value) => bytes(value),
        Message::Transfer(value) => bytes(value),
    }
}

fn decode(kind: u8, flags: u8, payload: &[u8]) -> Result<Message, Refusal> {
    fn value<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Refusal> {
        match postcard::take_from_bytes(payload) {
            Ok((value, [])) => Ok(value),
            Ok(_) | Err(_) => Err(Refusal::Malformed),
        }
    }
    match kind {
        1 => value(payload).map(Message::Birth),
        2 => value(payload).map(Message::Gone),
        3 => value(payload).map(Message::Telemetry),
        4 => value(payload).map(Message::Answer),
        5 => value(payload).map(Message::Command),
        6 => value(payload).map(Message::Presence),
        7 => value(payload).map(Message::Transfer),
        _ => Err(Refusal::UnknownKind { kind, flags }),
    }
}

fn digest(head: &[u8], payload: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(payload).finalize().as_bytes()
}

fn signed_text(topic: &str, header: &[u8]) -> Vec<u8> {
    [topic.as_bytes(), &[0], header].concat()
}
