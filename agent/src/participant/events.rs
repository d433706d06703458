//! The engine's inputs and outputs.

use super::memory::Memory;
use skiff_contract::{Ticket, Trained, Work};
use skiff_protocol::Digest;
use skiff_protocol::codec::Message;
use skiff_protocol::messages::{Announcement, Birth, Command, EvaluationReport, Presence, WorkSample};
use skiff_protocol::transfer::{Found, Offer, ReceiverEvent, TransferId, TransferMessage};

/// The device's properties. They stay the same until the agent restarts, except for the memory limit.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// The message that introduces the device to the fleet.
    pub birth: Birth,
    /// Schema of the pack's trainable tensors.
    pub schema: Digest,
    /// Number of layers of the pack's model.
    pub layers: usize,
    /// Layers that are never skipped.
    pub protected: Vec<u32>,
}

/// Facts that the engine learns.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The broker can be reached.
    LinkUp,
    /// The broker cannot be reached.
    LinkDown,
    /// A command of the coordinator.
    Command(Command),
    /// A presence message of the coordinator.
    Presence(Presence),
    /// The versions that the coordinator speaks.
    Announcement(Announcement),
    /// A message of the coordinator about a transfer.
    Transfer {
        /// The transfer.
        id: TransferId,
        /// The message.
        message: TransferMessage,
    },
    /// [`Action::LookUp`] was done.
    LookedUp {
        /// The offer.
        offer: Offer,
        /// The part of the payload that is already stored.
        found: Found,
    },
    /// [`Action::StoreChunk`] or [`Action::Assemble`] of this payload was done, or failed.
    Fetched {
        /// The payload.
        digest: Digest,
        /// The result.
        event: ReceiverEvent,
    },
    /// [`Action::Keep`] or [`Action::Remember`] failed.
    StoreFailed {
        /// The reason, for the operator.
        reason: String,
    },
    /// A step of the work is done.
    Stepped {
        /// The work.
        ticket: Ticket,
        /// The progress.
        sample: WorkSample,
    },
    /// A training is done.
    Trained {
        /// The work.
        ticket: Ticket,
        /// Product of the training.
        trained: Trained,
    },
    /// An evaluation is done.
    Evaluated {
        /// The work.
        ticket: Ticket,
        /// Report of the evaluation.
        report: EvaluationReport,
    },
    /// The work failed.
    WorkFailed {
        /// The work.
        ticket: Ticket,
        /// The reason, for the operator.
        reason: String,
    },
    /// Memory ran out, and the device now plans with less.
    MemoryLimited {
        /// The memory limit of the next plan, in bytes.
        limit_bytes: u64,
    },
    /// Time has passed; see [`Participant::deadline`](super::Participant::deadline).
    Tick,
}

/// Actions that the shell carries out in their order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Publish a birth or an answer.
    Say(Message),
    /// Publish on the transfer's topic.
    Transfer {
        /// The transfer.
        id: TransferId,
        /// The message.
        message: TransferMessage,
    },
    /// Read a chunk of a blob and publish it on the transfer's topic.
    TransferChunk {
        /// The transfer.
        id: TransferId,
        /// The blob.
        digest: Digest,
        /// Index of the chunk.
        index: u32,
    },
    /// Look up how much of this payload the store has, then report [`Event::LookedUp`].
    LookUp(Offer),
    /// Store a chunk, then report [`Event::Fetched`].
    StoreChunk {
        /// The payload.
        digest: Digest,
        /// The payload's size in bytes.
        total_bytes: u64,
        /// Index of the chunk.
        index: u32,
        /// Bytes of the chunk.
        bytes: Vec<u8>,
    },
    /// Assemble the payload from its chunks, then report [`Event::Fetched`].
    Assemble {
        /// The payload.
        digest: Digest,
        /// The payload's size in bytes.
        total_bytes: u64,
    },
    /// Store this blob durably.
    Keep(Vec<u8>),
    /// Replace the memory durably. Blobs that it does not name may be removed.
    Remember(Memory),
    /// Begin this work. No other work is in hand.
    Start(Work),
    /// Cancel the work in hand.
    Cancel,
}
