//! What the engine is told, and what it wants done.

use super::Memory;
use skiff_contract::{Ticket, Trained, Work};
use skiff_protocol::Digest;
use skiff_protocol::codec::Message;
use skiff_protocol::messages::{Birth, Command, EvaluationReport, Presence, WorkSample};
use skiff_protocol::transfer::{Found, Offer, ReceiverEvent, TransferId, TransferMessage};

/// What the device is; it stays so for a life of the agent.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// What the fleet is told.
    pub birth: Birth,
    /// Schema of the pack's trainable tensors.
    pub schema: Digest,
    /// Layers of the pack's model.
    pub layers: usize,
    /// Layers that are never skipped.
    pub protected: Vec<u32>,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The broker can be reached (again).
    LinkUp,
    /// It cannot.
    LinkDown,
    /// The coordinator's command.
    Command(Command),
    /// The coordinator's presence.
    Presence(Presence),
    /// The coordinator's part of a transfer.
    Transfer {
        /// Which.
        id: TransferId,
        /// What it says.
        message: TransferMessage,
    },
    /// [`Action::LookUp`] was done.
    LookedUp {
        /// The offer.
        offer: Offer,
        /// What is there.
        found: Found,
    },
    /// [`Action::StoreChunk`] or [`Action::Assemble`] of this payload was done, or failed.
    Fetched {
        /// The payload.
        digest: Digest,
        /// What came of it.
        event: ReceiverEvent,
    },
    /// [`Action::Keep`] or [`Action::Remember`] failed.
    StoreFailed {
        /// For the operator.
        reason: String,
    },
    /// Work goes on.
    Stepped {
        /// Which.
        ticket: Ticket,
        /// How far it is.
        sample: WorkSample,
    },
    /// A training is done.
    Trained {
        /// Which.
        ticket: Ticket,
        /// What it came to.
        trained: Trained,
    },
    /// An evaluation is done.
    Evaluated {
        /// Which.
        ticket: Ticket,
        /// What it found.
        report: EvaluationReport,
    },
    /// Work could not be done.
    WorkFailed {
        /// Which.
        ticket: Ticket,
        /// For the operator.
        reason: String,
    },
    /// Time went on; see [`Participant::deadline`](super::Participant::deadline).
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Publish a birth or an answer.
    Say(Message),
    /// Publish on the transfer's topic.
    Transfer {
        /// Which.
        id: TransferId,
        /// What to say.
        message: TransferMessage,
    },
    /// Read a chunk of a blob and publish it on the transfer's topic.
    TransferChunk {
        /// Which transfer.
        id: TransferId,
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        index: u32,
    },
    /// See what the store has of this payload, then say [`Event::LookedUp`].
    LookUp(Offer),
    /// Keep a chunk, then say [`Event::Fetched`].
    StoreChunk {
        /// The payload.
        digest: Digest,
        /// Its size.
        total_bytes: u64,
        /// The chunk.
        index: u32,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Make the whole of its chunks, then say [`Event::Fetched`].
    Assemble {
        /// The payload.
        digest: Digest,
        /// Its size.
        total_bytes: u64,
    },
    /// Store this blob durably.
    Keep(Vec<u8>),
    /// Replace what is remembered, durably; blobs it does not name may go.
    Remember(Memory),
    /// Give this to the worker, which has nothing else in hand.
    Start(Work),
    /// The work in hand is not wanted any more.
    Cancel,
}
