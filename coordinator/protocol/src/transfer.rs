//! Transfer of payloads larger than a message, over a broker that acknowledges messages before they are delivered.
//!
//! ```text
//! sender                                   receiver
//!   Offer(purpose, digest, size)    ->       looks for chunks that it already holds
//!                                   <-     Grant(held, window)
//!   Chunk(index, bytes) x window    ->       stores each
//!                                   <-     Progress(held)        cumulative, after each chunk
//!   ...                                      digest of the whole checked, stored durably
//!                                   <-     Done
//! ```
//! The receiver may also answer `Refused { reason }`. The sender repeats chunks that were not acknowledged. The receiver answers
//! every repetition from its stored state. A transfer therefore resumes after a restart of either side, or of the broker.
//!
//! [`Sender`] and [`Receiver`] make these decisions and do no I/O: they take events and the time, and return actions. A shell
//! keeps one engine for each [`TransferId`] and topic. It makes a [`Receiver`] for the first [`Offer`] whose [`Offer::id`] is the
//! topic's. It drops other messages of unknown transfers; their senders will offer again.

mod receiver;
mod sender;
#[cfg(test)]
mod simulation;

pub use receiver::{ATTEMPTS, Found, Receiver, ReceiverAction, ReceiverEvent};
pub use sender::{REPEATS, Sender, SenderAction, SenderEvent};

use crate::limits;
use crate::messages::{Digest, RunId, TrainReport};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Size of a chunk in bytes; the last chunk may be shorter.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Largest payload that is granted, in bytes: 1 GiB.
pub const MAX_TRANSFER_BYTES: u64 = 1 << 30;
/// Largest number of chunks in a payload.
pub const MAX_CHUNKS: u32 = (MAX_TRANSFER_BYTES / CHUNK_BYTES as u64) as u32;
/// Largest number of unacknowledged chunks in a transfer.
pub const WINDOW: u32 = 4;

/// Name of a transfer. It is derived from the payload, so that a restarted sender offers it under the same name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TransferId(pub u64);

/// Name of no transfer: a program tests with it whether its messages reach the coordinator and come back.
///
/// The device sends a `Chunk` as a transfer's message on any of its topics. The coordinator sends the same chunk back under this name,
/// and with it a stop of [`PROBED_RUN`] as a command. Nothing else happens.
pub const PROBE: TransferId = TransferId(0);
/// Run of the command that answers a probe. There is no run of this name, so a device has nothing to stop.
pub const PROBED_RUN: RunId = RunId(0);

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

/// Purpose of a payload.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// Global weights for a device.
    Weights {
        /// The run.
        run: RunId,
    },
    /// Update of a device for the coordinator. Its report is part of the offer.
    Update {
        /// The run.
        run: RunId,
        /// The round.
        round: u32,
        /// Epoch of the training command.
        epoch: u64,
        /// Report of the device on its training.
        report: TrainReport,
    },
}

/// Offer to send a payload.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// Purpose of the payload.
    pub purpose: Purpose,
    /// blake3 digest of the payload.
    pub digest: Digest,
    /// Size of the payload in bytes.
    pub total_bytes: u64,
}

impl Offer {
    /// Returns the name of the transfer, derived from the payload's purpose, digest and size, but not from the report.
    ///
    /// A receiver ignores an offer that comes under any other name.
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

    /// Returns the number of chunks of the payload.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        chunk_count(self.total_bytes)
    }
}

/// Returns the number of chunks for `total_bytes`, which is treated as [`MAX_TRANSFER_BYTES`] if it is larger.
#[must_use]
pub fn chunk_count(total_bytes: u64) -> u32 {
    u32::try_from(total_bytes.min(MAX_TRANSFER_BYTES).div_ceil(CHUNK_BYTES as u64)).expect("fits, as MAX_CHUNKS does")
}

/// Returns the size of chunk `index` of `total_bytes`: [`CHUNK_BYTES`], less for the last chunk, 0 beyond it.
#[must_use]
pub fn chunk_bytes(total_bytes: u64, index: u32) -> usize {
    let rest = total_bytes.saturating_sub(u64::from(index) * CHUNK_BYTES as u64);
    usize::try_from(rest).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)
}

/// Set of the chunks that the receiver holds: one bit each, lowest bit of the first byte first. Missing bits count as 0.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held(#[serde(with = "limits::bytes")] pub Vec<u8>);

impl Held {
    /// Returns true if chunk `index` is held.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.0.get(index as usize / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Adds chunk `index`. An index of [`MAX_CHUNKS`] or more is ignored.
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

    /// Returns how many of the first `chunks` chunks are held.
    #[must_use]
    pub fn count(&self, chunks: u32) -> u32 {
        u32::try_from((0..chunks).filter(|index| self.contains(*index)).count()).expect("no more than chunks")
    }

    /// Returns the missing chunks among the first `chunks`, ascending.
    pub fn missing(&self, chunks: u32) -> impl Iterator<Item = u32> + '_ {
        (0..chunks).filter(|index| !self.contains(*index))
    }

    /// Returns true if every chunk in `other` is held.
    fn covers(&self, other: &Self) -> bool {
        other.0.iter().enumerate().all(|(at, theirs)| theirs & !self.0.get(at).unwrap_or(&0) == 0)
    }

    /// Adds every chunk in `other`.
    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }
}

/// Message of a transfer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum TransferMessage {
    /// Sent by the sender: it has a payload.
    Offer(Offer),
    /// Sent by the receiver: it wants the missing chunks, with at most `window` of them unacknowledged.
    Grant {
        /// Chunks that the receiver already holds.
        held: Held,
        /// Largest number of unacknowledged chunks.
        window: u32,
    },
    /// Sent by the sender: one chunk.
    Chunk {
        /// Position of the chunk, from 0.
        index: u32,
        /// Content, at most [`CHUNK_BYTES`].
        #[serde(with = "limits::bytes")]
        bytes: Vec<u8>,
    },
    /// Sent by the receiver after each chunk.
    Progress {
        /// Chunks that the receiver holds by now.
        held: Held,
    },
    /// Sent by the receiver: the payload is complete, checked and stored.
    Done,
    /// Sent by the receiver: it does not want the payload.
    Refused {
        /// Cause for the operator; at most 200 bytes.
        reason: String,
    },
}
