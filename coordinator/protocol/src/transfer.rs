//! Carrying a payload larger than a message, over a broker whose acknowledgement is not delivery.
//!
//! ```text
//! sender                                   receiver
//!   Offer(purpose, digest, size)    ->       knows what is coming; looks for chunks it already holds
//!                                   <-     Grant(held, window)
//!   Chunk(index, bytes) x window    ->       stores each
//!                                   <-     Held(held)            cumulative, after each chunk
//!   ...                                      digest of the whole checked, stored durably
//!                                   <-     Done
//! ```
//! Either side may also answer `Refused { reason }`. The sender repeats what was not acknowledged; the receiver answers
//! every repetition from what it holds. So a transfer goes on after a restart of either side, or of the broker.

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

/// Which chunks the receiver holds: one bit each, lowest bit of the first byte first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held(#[serde(with = "bounds::bytes")] pub Vec<u8>);

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
