//! Layout of a message on the wire: a fixed header, then postcard.
//!
//! ```text
//! offset bytes
//!      0     4  magic "SKIF"
//!      4     2  protocol version of this message, little-endian
//!      6     1  kind
//!      7     1  flags: bit 0 = signed
//!      8     4  payload length, little-endian
//!     12    32  blake3 of bytes 0..12 and the payload
//!     44    64  ed25519 signature over topic, a zero byte, and bytes 0..44 (only if signed)
//!        ...    payload
//! ```
//!
//! The coordinator signs its messages. A device that knows the coordinator's public key refuses unsigned ones. A message that
//! cannot be read gives a [`Refusal`], which the shell counts by [`Refusal::label`]. A message that was read is within the bounds
//! in the docs of its fields, so callers need not check them again.
//!
//! The header is the same in every version. The payload has the layout of the message's version. The newest types
//! ([`crate::messages`]) are converted when a message of an older version is written or read ([`crate::v2`]).
//!
//! Laws:
//! - `open(seal(m, version)) = (m, version)`, without the fields that `version` cannot carry.
//! - Arbitrary bytes are refused or read as a message; they never cause a panic.
//! - A message with a changed byte is refused.
//! - Reading allocates at most a small multiple of the bytes that arrived.

use crate::bounds;
use crate::v2;
use crate::version::{Version, VersionRange};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

pub use crate::message::Message;

/// Largest message in bytes, including its header. It is below the limit of AWS IoT (128 KiB).
pub const MAX_MESSAGE_BYTES: usize = 120 * 1024;

const MAGIC: [u8; 4] = *b"SKIF";
const SIGNED: u8 = 1;
/// Position of the digest. It covers the bytes before it, and the payload.
const DIGEST_AT: usize = 12;
const SIGNATURE_AT: usize = 44;
const SIGNATURE_BYTES: usize = 64;

/// Reason why a message was not read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The message is shorter than a header, or shorter than its header says.
    #[error("message of {found} bytes, but {expected} were announced")]
    Truncated {
        /// Expected number of bytes.
        expected: usize,
        /// Number of bytes that arrived.
        found: usize,
    },
    /// The message is larger than the limit, or larger than its header says.
    #[error("message of {found} bytes, but at most {most} are allowed")]
    Oversized {
        /// Number of bytes that arrived.
        found: usize,
        /// Largest allowed number of bytes.
        most: usize,
    },
    /// The bytes do not begin like a message of Skiff.
    #[error("not a message of Skiff")]
    Foreign,
    /// This program does not speak the message's version.
    #[error(
        "the message has protocol version {found}, this program speaks {}: update {}",
        VersionRange::OURS,
        older_side(*found)
    )]
    Version {
        /// Version of the message.
        found: u16,
    },
    /// The kind or a flag is unknown.
    #[error("unknown kind {kind} or flags {flags:#04x}")]
    UnknownKind {
        /// The kind.
        kind: u8,
        /// The flags.
        flags: u8,
    },
    /// The message was changed during its transfer.
    #[error("the digest does not match")]
    Digest,
    /// The message is not signed, but must be.
    #[error("the message is not signed")]
    Unsigned,
    /// The message was signed with another key, or for another topic.
    #[error("the signature does not match")]
    Signature,
    /// The payload does not have the layout of its kind.
    #[error("the payload cannot be read")]
    Malformed,
    /// A value is out of its bounds.
    #[error("{field} is out of its bounds")]
    OutOfBounds {
        /// The field.
        field: &'static str,
    },
}

impl Refusal {
    /// Returns the name under which refusals of this kind are counted.
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

/// Returns the program to update if a message has version `found`.
const fn older_side(found: u16) -> &'static str {
    if found > VersionRange::OURS.max { "this program" } else { "the sender" }
}

/// Text or bytes that are not a public key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a public key: it has 64 hexadecimal digits, as the coordinator prints it")]
pub struct BadKey;

/// The coordinator's secret key, which signs messages.
pub struct Signer(SigningKey);

impl Signer {
    /// Makes a key from 32 random bytes.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&secret))
    }

    /// Returns the public key with which devices check this signer's messages.
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
    /// Reads the key from its bytes.
    ///
    /// # Errors
    /// [`BadKey`] if they are not a public key.
    pub fn new(public: [u8; 32]) -> Result<Self, BadKey> {
        VerifyingKey::from_bytes(&public).map(Self).map_err(|_| BadKey)
    }

    /// Reads the key from its 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`BadKey`] if they are not a public key.
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

/// Writes `message` in the layout of `version`, signed for `topic` if there is a signer.
///
/// An [`Announcement`](crate::messages::Announcement) always has the layout and header of version 3.
///
/// # Panics
/// If a field of the message is out of its bounds. The caller must ensure that none is.
#[must_use]
pub fn seal(message: &Message, version: Version, topic: &str, signer: Option<&Signer>) -> Vec<u8> {
    let version = if matches!(message, Message::Announcement(_)) { Version::V3 } else { version };
    if let Err(field) = bounds::check(message, version) {
        panic!("a message to {topic} breaks the bounds of {field}");
    }
    let payload = encode(message, version);
    let mut bytes = Vec::with_capacity(SIGNATURE_AT + SIGNATURE_BYTES + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(version.number().to_le_bytes());
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

/// Reads a message that came on `topic`, and its version. If there is a verifier, the message must be signed with the matching key.
///
/// It does not check that this kind of message belongs on the topic; [`Message::belongs_on`] does.
///
/// # Errors
/// A [`Refusal`] that says why the bytes were not read.
pub fn open(bytes: &[u8], topic: &str, verifier: Option<&Verifier>) -> Result<(Message, Version), Refusal> {
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
    let found = u16::from_le_bytes([v0, v1]);
    let version = Version::from_number(found).ok_or(Refusal::Version { found })?;
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
    let message = decode(kind, flags, version, payload)?;
    bounds::check(&message, version).map_err(|field| Refusal::OutOfBounds { field })?;
    Ok((message, version))
}

fn encode(message: &Message, version: Version) -> Vec<u8> {
    fn bytes(value: &impl Serialize) -> Vec<u8> {
        postcard::to_stdvec(value).expect("plain values can be written")
    }
    match (message, version) {
        (Message::Birth(value), Version::V2) => bytes(&v2::Birth::from(value)),
        (Message::Birth(value), Version::V3) => bytes(value),
        (Message::Answer(value), Version::V2) => bytes(&v2::Answer::from(value)),
        (Message::Answer(value), Version::V3) => bytes(value),
        (Message::Gone(value), _) => bytes(value),
        (Message::Telemetry(value), _) => bytes(value),
        (Message::Command(value), _) => bytes(value),
        (Message::Presence(value), _) => bytes(value),
        (Message::Transfer(value), _) => bytes(value),
        (Message::Announcement(value), _) => bytes(value),
    }
}

fn decode(kind: u8, flags: u8, version: Version, payload: &[u8]) -> Result<Message, Refusal> {
    fn value<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Refusal> {
        match postcard::take_from_bytes(payload) {
            Ok((value, [])) => Ok(value),
            Ok(_) | Err(_) => Err(Refusal::Malformed),
        }
    }
    match (kind, version) {
        (1, Version::V2) => value::<v2::Birth>(payload).map(|birth| Message::Birth(birth.into())),
        (1, Version::V3) => value(payload).map(Message::Birth),
        (2, _) => value(payload).map(Message::Gone),
        (3, _) => value(payload).map(Message::Telemetry),
        (4, Version::V2) => value::<v2::Answer>(payload).map(|answer| Message::Answer(answer.into())),
        (4, Version::V3) => value(payload).map(Message::Answer),
        (5, _) => value(payload).map(Message::Command),
        (6, _) => value(payload).map(Message::Presence),
        (7, _) => value(payload).map(Message::Transfer),
        (8, Version::V3) => value(payload).map(Message::Announcement),
        _ => Err(Refusal::UnknownKind { kind, flags }),
    }
}

fn digest(head: &[u8], payload: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(payload).finalize().as_bytes()
}

fn signed_text(topic: &str, header: &[u8]) -> Vec<u8> {
    [topic.as_bytes(), &[0], header].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::messages::{Announcement, Answer, Birth, Command, Presence};
    use crate::messages::{BootId, EvaluateOrder, EvaluationReport, Order, Outcome, RunId};
    use crate::messages::{Digest, SharingPlan, TrainOrder};
    use crate::metrics::{MAX_CELLS, MAX_CLASSES, MAX_REPORTED_COUNT, TaskMetrics};
    use crate::testing;
    use crate::topics::Topic;
    use crate::transfer::TransferMessage;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    const TOPIC: &str = "skiff/v1/f/all/presence";

    fn presence() -> Message {
        Message::Presence(Presence { boot: BootId(7), online: true })
    }

    fn signer(seed: u8) -> Signer {
        Signer::new([seed; 32])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_sealed_is_opened(
            message in testing::message(),
            version in testing::version(),
            signed in any::<bool>(),
        ) {
            let signer = signed.then(|| signer(1));
            let bytes = seal(&message, version, TOPIC, signer.as_ref());
            let carried = carried(message, version);
            prop_assert_eq!(&open(&bytes, TOPIC, None), &Ok(carried.clone()));
            if let Some(signer) = &signer {
                prop_assert_eq!(open(&bytes, TOPIC, Some(&signer.verifier())), Ok(carried));
            }
        }

        #[test]
        fn a_changed_byte_is_refused(
            message in testing::message(),
            version in testing::version(),
            signed in any::<bool>(),
            at in any::<proptest::sample::Index>(),
            change in 1..=255_u8,
        ) {
            let signer = signed.then(|| signer(1));
            let mut bytes = seal(&message, version, TOPIC, signer.as_ref());
            // Half of the changes hit the header and the bytes right after it, the most interesting places.
            let at = if at.index(2) == 0 { at.index(bytes.len()) } else { at.index(bytes.len().min(120)) };
            bytes[at] ^= change;
            let verifier = signer.map(|signer| signer.verifier());
            prop_assert!(open(&bytes, TOPIC, verifier.as_ref()).is_err());
        }

        #[test]
        fn a_cut_or_lengthened_message_is_refused(
            message in testing::message(),
            version in testing::version(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = seal(&message, version, TOPIC, None);
            let shorter = open(&bytes[..cut.index(bytes.len())], TOPIC, None);
            prop_assert_eq!(shorter.map_err(|refusal| refusal.label()), Err("truncated"));
            bytes.push(0);
            let longer = open(&bytes, TOPIC, None);
            prop_assert_eq!(longer.map_err(|refusal| refusal.label()), Err("oversized"));
        }

        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(&bytes, TOPIC, None).is_err());
        }

        /// Any bytes after an intact header give a message within its bounds, or a refusal.
        #[test]
        fn payloads_never_panic(
            kind in 0..10_u8,
            version in testing::version(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok((message, found)) = open(&framed(kind, version, &payload), TOPIC, None) {
                prop_assert_eq!(found, version);
                prop_assert_eq!(bounds::check(&message, version), Ok(()));
            }
        }

        /// The payload of one version after the header of another version gives a message within its bounds, or a refusal.
        #[test]
        fn a_wrong_version_never_panics(message in testing::message(), version in testing::version()) {
            let payload = encode(&message, version);
            for claimed in Version::ALL {
                if let Ok((read, _)) = open(&framed(message.kind(), claimed, &payload), TOPIC, None) {
                    prop_assert_eq!(bounds::check(&read, claimed), Ok(()));
                }
            }
        }
    }

    /// Returns `message` as a reader gets it in `version`.
    fn carried(message: Message, version: Version) -> (Message, Version) {
        match (message, version) {
            (Message::Birth(birth), Version::V2) => {
                (Message::Birth(Birth { speaks: VersionRange { min: 2, max: 2 }, ..birth }), version)
            }
            (Message::Answer(mut answer), Version::V2) => {
                if let Outcome::Evaluated(report) = &mut answer.outcome {
                    report.metrics = TaskMetrics::Unknown;
                }
                (Message::Answer(answer), version)
            }
            (Message::Announcement(announcement), _) => (Message::Announcement(announcement), Version::V3),
            (message, version) => (message, version),
        }
    }

    /// Puts a payload of any kind after a valid header.
    fn framed(kind: u8, version: Version, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &version.number().to_le_bytes(), &[kind, 0]].concat();
        bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend(digest(&bytes, payload));
        bytes.extend(payload);
        bytes
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        framed(kind, Version::NEWEST, payload)
    }

    #[test]
    fn only_the_coordinators_signature_for_this_topic_is_taken() {
        let verifier = signer(1).verifier();
        let opened = |bytes: &[u8], topic| open(bytes, topic, Some(&verifier));
        let bytes = seal(&presence(), Version::OLDEST, TOPIC, Some(&signer(1)));
        assert_eq!(opened(&bytes, TOPIC), Ok((presence(), Version::OLDEST)));
        assert_eq!(opened(&bytes, "skiff/v1/g/all/presence"), Err(Refusal::Signature));
        assert_eq!(
            opened(&seal(&presence(), Version::OLDEST, TOPIC, Some(&signer(2))), TOPIC),
            Err(Refusal::Signature)
        );
        assert_eq!(opened(&seal(&presence(), Version::OLDEST, TOPIC, None), TOPIC), Err(Refusal::Unsigned));
    }

    #[test]
    fn refusals_say_what_was_wrong() {
        let good = seal(&presence(), Version::OLDEST, TOPIC, None);
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            open(&bytes, TOPIC, None).unwrap_err().label()
        };
        assert_eq!(changed(0, b'X'), "foreign");
        assert_eq!(changed(4, 4), "version");
        assert_eq!(changed(4, 1), "version");
        assert_eq!(changed(4, 3), "digest", "the version is digested too");
        assert_eq!(changed(6, 2), "digest");
        assert_eq!(changed(7, 2), "unknown_kind");
        assert_eq!(changed(7, 1), "truncated");
        assert_eq!(changed(8, 1), "oversized");
        assert_eq!(changed(11, 255), "truncated");
        assert_eq!(changed(good.len() - 1, 0), "digest");
        let label = |bytes: &[u8]| open(bytes, TOPIC, None).unwrap_err().label();
        assert_eq!(label(&[]), "truncated");
        assert_eq!(label(&vec![0; MAX_MESSAGE_BYTES + 1]), "oversized");
        assert_eq!(label(&frame(9, &[])), "unknown_kind");
        assert_eq!(label(&frame(6, &[7, 2])), "malformed");
        assert_eq!(label(&frame(6, &[7, 1, 0])), "malformed");
    }

    #[test]
    fn a_claimed_length_is_not_believed() {
        // A chunk and a list of rates that claim 2^32 - 1 items each.
        let claim = [0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(open(&frame(7, &[&[2, 0], &claim[..]].concat()), TOPIC, None), Err(Refusal::Malformed));
        let train = [&[1, 1, 1, 1, 0], &[0; 64][..], &[1], &claim].concat();
        assert_eq!(open(&frame(5, &train), TOPIC, None), Err(Refusal::Malformed));
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let good = TrainOrder {
            weights: Digest([0; 32]),
            schema: Digest([0; 32]),
            seed: 0,
            rates: vec![0.5; 6],
            most_active: 6,
            proximal: 0.0,
            rank: 0,
            probe_examples: 0,
            steps: 1,
            batch: 8,
            max_tokens: 128,
            sharing: SharingPlan::Fixed { layers: vec![0, 5] },
            learning_rate: 1e-3,
            deadline_ms: 1,
        };
        let refused = |order: TrainOrder| {
            let command = Command { run: RunId(1), started_ms: 1, round: 1, epoch: 1, order: Order::Train(order) };
            let payload = encode(&Message::Command(command), Version::NEWEST);
            match open(&frame(5, &payload), TOPIC, None) {
                Err(Refusal::OutOfBounds { field }) => field,
                Err(other) => other.label(),
                Ok(_) => "",
            }
        };
        assert_eq!(refused(good.clone()), "");
        assert_eq!(refused(TrainOrder { rates: vec![], ..good.clone() }), "rates");
        assert_eq!(refused(TrainOrder { rates: vec![0.5; 513], ..good.clone() }), "malformed");
        for rate in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            assert_eq!(refused(TrainOrder { rates: vec![rate; 6], ..good.clone() }), "rates");
        }
        assert_eq!(refused(TrainOrder { batch: 0, ..good.clone() }), "batch");
        assert_eq!(refused(TrainOrder { most_active: 0, ..good.clone() }), "most_active");
        assert_eq!(refused(TrainOrder { proximal: -1.0, ..good.clone() }), "proximal");
        assert_eq!(refused(TrainOrder { learning_rate: f32::NAN, ..good.clone() }), "learning_rate");
        for layers in [vec![1, 1], vec![2, 1], vec![6]] {
            let sharing = SharingPlan::Fixed { layers };
            assert_eq!(refused(TrainOrder { sharing, ..good.clone() }), "sharing.layers");
        }
    }

    #[test]
    #[should_panic(expected = "breaks the bounds of batch")]
    fn nobody_seals_what_nobody_would_open() {
        let order = EvaluateOrder {
            weights: Digest([0; 32]),
            schema: Digest([0; 32]),
            examples: 1,
            batch: 0,
            max_tokens: 128,
            deadline_ms: 1,
        };
        let command = Command { run: RunId(1), started_ms: 1, round: 1, epoch: 1, order: Order::Evaluate(order) };
        drop(seal(&Message::Command(command), Version::NEWEST, TOPIC, None));
    }

    #[test]
    fn a_refused_version_says_both_versions_and_what_to_update() {
        let said = |found| Refusal::Version { found }.to_string();
        assert_eq!(said(4), "the message has protocol version 4, this program speaks 2 to 3: update this program");
        assert_eq!(said(1), "the message has protocol version 1, this program speaks 2 to 3: update the sender");
    }

    #[test]
    fn an_announcement_has_version_3_whatever_else_is_spoken() {
        let announcement = Announcement { boot: BootId(7), speaks: VersionRange { min: 9, max: 12 } };
        let bytes = seal(&Message::Announcement(announcement), Version::V2, TOPIC, None);
        assert_eq!(open(&bytes, TOPIC, None), Ok((Message::Announcement(announcement), Version::V3)));
        let payload = encode(&Message::Announcement(announcement), Version::V3);
        let refused = open(&framed(8, Version::V2, &payload), TOPIC, None);
        assert_eq!(refused, Err(Refusal::UnknownKind { kind: 8, flags: 0 }));
    }

    #[test]
    fn the_largest_metrics_fit_into_a_message() {
        // The largest allowed counts: for each class, a third of its examples was predicted as each of two other classes.
        let third = MAX_REPORTED_COUNT / 3;
        let next = |class: usize, by: usize| u16::try_from((class + by) % MAX_CLASSES).unwrap();
        let classes = payload(&vec![(2 * third, 2 * third, 0_u64); MAX_CLASSES]);
        let cells: Vec<_> = (0..MAX_CLASSES)
            .flat_map(|class| {
                let mut to = [next(class, 1), next(class, 2)];
                to.sort_unstable();
                to.map(|predicted| (next(class, 0), predicted, third))
            })
            .collect();
        assert_eq!(cells.len(), MAX_CELLS);
        let metrics: TaskMetrics =
            postcard::from_bytes(&[&[1][..], &classes, &[1], &payload(&cells)].concat()).unwrap();
        let report = EvaluationReport {
            examples: u64::MAX,
            correct: u64::MAX,
            loss_sum: 1.0,
            evaluate_ms: u64::MAX,
            peak_rss_bytes: u64::MAX,
            metrics,
        };
        let outcome = Outcome::Evaluated(report);
        let answer = Answer { boot: BootId(u64::MAX), run: RunId(u64::MAX), round: u32::MAX, epoch: u64::MAX, outcome };
        let bytes = seal(&Message::Answer(answer), Version::V3, TOPIC, Some(&signer(1)));
        assert!(bytes.len() > 100_000, "the largest that there is: {} bytes", bytes.len());
    }

    fn payload(value: &impl Serialize) -> Vec<u8> {
        postcard::to_stdvec(value).unwrap()
    }

    #[test]
    fn a_birth_speaks_the_version_that_it_is_written_in() {
        for speaks in
            [VersionRange { min: 2, max: 2 }, VersionRange { min: 4, max: 4 }, VersionRange { min: 3, max: 2 }]
        {
            let payload = encode(&Message::Birth(Birth { speaks, ..testing::sample_birth() }), Version::V3);
            assert_eq!(open(&frame(1, &payload), TOPIC, None), Err(Refusal::OutOfBounds { field: "speaks" }));
        }
    }

    #[test]
    fn keys_are_read_as_they_are_printed() {
        let verifier = signer(3).verifier();
        assert_eq!(Verifier::parse(&format!(" {verifier}\n")), Ok(verifier));
        assert_eq!(Verifier::parse("12ab"), Err(BadKey));
    }

    #[test]
    fn each_kind_has_its_topic() {
        let device = || "d".parse().unwrap();
        assert!(presence().belongs_on(&Topic::Presence));
        assert!(!presence().belongs_on(&Topic::Command(device())));
        let done = Message::Transfer(TransferMessage::Done);
        assert!(done.belongs_on(&Topic::UpTransfer(device(), crate::transfer::TransferId(1))));
        assert!(!done.belongs_on(&Topic::Answer(device())));
    }
}
