//! Carrying a payload larger than a message, over a broker whose acknowledgement is not delivery.
//!
//! ```text
//! sender                                   receiver
//!   Offer(purpose, digest, size)    ->       knows what is coming; looks for chunks it already holds
//!                                   <-     Grant(held, window)
//!   Chunk(index, bytes) x window    ->       stores each
//!                                   <-     Progress(held)        cumulative, after each chunk
//!   ...                                      digest of the whole checked, stored durably
//!                                   <-     Done
//! ```
//! Either side may also answer `Refused { reason }`. The sender repeats what was not acknowledged; the receiver answers
//! every repetition from what it holds. So a transfer goes on after a restart of either side, or of the broker.
//!
//! [`Sender`] and [`Receiver`] decide this and do no I/O: events (and the time) go in, actions come out. A shell keeps one
//! engine for each [`TransferId`] and topic, makes a [`Receiver`] when the first [`Offer`] comes whose [`Offer::id`] is the
//! topic's, and drops every other message of a transfer that it does not know: the sender will offer again.

mod receiver;
mod sender;
#[cfg(test)]
mod simulation;

pub use receiver::{ATTEMPTS, Found, Receiver, ReceiverAction, ReceiverEvent};
pub use sender::{REPEATS, Sender, SenderAction, SenderEvent};

use crate::bounds;
use crate::messages::{Digest, RunId, TrainReport};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a chunk; the last one may be shorter.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// The largest payload that is granted: 1 GiB.
pub const MAX_TRANSFER_BYTES: u64 = 1 << 30;
/// The most chunks that a payload has.
pub const MAX_CHUNKS: u32 = (MAX_TRANSFER_BYTES / CHUNK_BYTES as u64) as u32;
/// Chunks in flight on one transfer.
pub const WINDOW: u32 = 4;

/// Names a transfer: derived from what is carried, so that a restarted sender offers it under the same name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TransferId(pub u64);

impl TransferId {
    /// Reads the 16 hexadecimal digits that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u64::from_str_radix(text, 16).ok().map(Self))
            .flatten()
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a payload is for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// Global weights, to a device.
    Weights {
        /// The run.
        run: RunId,
    },
    /// A device's update, to the coordinator; its report travels with the offer.
    Update {
        /// The run.
        run: RunId,
        /// The round.
        round: u32,
        /// The training command's epoch.
        epoch: u64,
        /// What the device says of its training.
        report: TrainReport,
    },
}

/// "I have this for you."
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// What it is for.
    pub purpose: Purpose,
    /// blake3 of the payload.
    pub digest: Digest,
    /// Its size.
    pub total_bytes: u64,
}

impl Offer {
    /// The transfer's name: drawn from what the payload is for and from its digest, not from the report that goes with it.
    ///
    /// An offer that comes under another name than this is not answered.
    #[must_use]
    pub fn id(&self) -> TransferId {
        let mut identity = blake3::Hasher::new();
        identity.update(&self.digest.0).update(&self.total_bytes.to_le_bytes());
        match &self.purpose {
            Purpose::Weights { run } => identity.update(&[0]).update(&run.0.to_le_bytes()),
            Purpose::Update { run, round, epoch, .. } => identity
                .update(&[1])
                .update(&run.0.to_le_bytes())
                .update(&round.to_le_bytes())
                .update(&epoch.to_le_bytes()),
        };
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = *identity.finalize().as_bytes();
        TransferId(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]))
    }

    /// In how many chunks the payload travels.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        chunk_count(self.total_bytes)
    }
}

/// In how many chunks `total_bytes` travel; more than [`MAX_TRANSFER_BYTES`] never do.
#[must_use]
pub fn chunk_count(total_bytes: u64) -> u32 {
    u32::try_from(total_bytes.min(MAX_TRANSFER_BYTES).div_ceil(CHUNK_BYTES as u64)).expect("fits, as MAX_CHUNKS does")
}

/// The size of chunk `index` of `total_bytes`: [`CHUNK_BYTES`], less for the last one, 0 beyond it.
#[must_use]
pub fn chunk_bytes(total_bytes: u64, index: u32) -> usize {
    let rest = total_bytes.saturating_sub(u64::from(index) * CHUNK_BYTES as u64);
    usize::try_from(rest).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)
}

/// Which chunks the receiver holds: one bit each, lowest bit of the first byte first. What lies beyond its end is not held.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held(#[serde(with = "bounds::bytes")] pub Vec<u8>);

impl Held {
    /// Whether chunk `index` is held.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.0.get(index as usize / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Adds chunk `index`, one below [`MAX_CHUNKS`]; any other is ignored.
    pub fn insert(&mut self, index: u32) {
        if index >= MAX_CHUNKS {
            return;
        }
        let byte = index as usize / 8;
        if self.0.len() <= byte {
            self.0.resize(byte + 1, 0);
        }
        self.0[byte] |= 1 << (index % 8);
    }

    /// How many of the first `chunks` are held.
    #[must_use]
    pub fn count(&self, chunks: u32) -> u32 {
        u32::try_from((0..chunks).filter(|index| self.contains(*index)).count()).expect("no more than chunks")
    }

    /// Those of the first `chunks` that are not held, ascending.
    pub fn missing(&self, chunks: u32) -> impl Iterator<Item = u32> + '_ {
        (0..chunks).filter(|index| !self.contains(*index))
    }

    /// Whether everything that `other` holds is held.
    fn covers(&self, other: &Self) -> bool {
        other.0.iter().enumerate().all(|(at, theirs)| theirs & !self.0.get(at).unwrap_or(&0) == 0)
    }

    /// Adds everything that `other` holds.
    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }
}

/// The messages of a transfer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum TransferMessage {
    /// From the sender.
    Offer(Offer),
    /// From the receiver: go on with what is not held, at most `window` chunks unacknowledged.
    Grant {
        /// Chunks already there.
        held: Held,
        /// Chunks in flight.
        window: u32,
    },
    /// From the sender.
    Chunk {
        /// Position, from 0.
        index: u32,
        /// At most [`CHUNK_BYTES`].
        #[serde(with = "bounds::bytes")]
        bytes: Vec<u8>,
    },
    /// From the receiver, after each chunk.
    Progress {
        /// Chunks there by now.
        held: Held,
    },
    /// From the receiver: whole, checked, stored.
    Done,
    /// From the receiver: not wanted, and why.
    Refused {
        /// For the operator; at most 200 bytes.
        reason: String,
    },
}
