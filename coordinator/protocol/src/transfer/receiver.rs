//! The receiving side of a transfer. It needs no clock, because only the sender repeats.
//!
//! ```text
//!   new ──► Receiving ──last chunk stored──► Assembling ──Assembled──► Complete
//!               ▲  │ StoreFailed                 │ WrongDigest, Incomplete
//!               │  └───────────► Refused ◄───────┤ (no attempt left)
//!               └────────────────────────────────┘ (attempts left)
//! ```
//! - *new*: an offer and the stored chunks make a receiver, so a transfer resumes after a restart. A payload that is already
//!   stored is complete at once.
//! - *last chunk stored*: after each stored chunk, and never before, a cumulative `Progress` acknowledges it.
//! - *Assembled*: the digest is right and the blob is durable. The answer is `Done`.
//! - *WrongDigest*: the store has deleted the chunks. An empty `Grant` starts again, for at most [`ATTEMPTS`] attempts.
//! - *Incomplete*: the store lost chunks. A `Grant` with the chunks that are left asks for the others. This counts as an attempt
//!   too.
//! - *StoreFailed*, no attempt left: `Refused`, which ends the transfer for both.
//!
//! A repeated offer is answered with the current state: `Grant`, `Progress` (while assembling), `Done` or `Refused`. A chunk is
//! answered the same way in every state except `Receiving`. Offers under another name, chunks beyond the end and chunks of a
//! wrong size are ignored. A chunk that is already held is acknowledged and not stored again. A chunk that is being stored is
//! ignored. Further chunks are ignored while two windows of chunks wait to be stored. Messages that only a receiver sends are
//! ignored.

use super::{Held, Offer, TransferId, TransferMessage, WINDOW, chunk_bytes};
use crate::messages::short_reason;
use std::collections::BTreeSet;

/// Number of attempts to assemble a payload before the transfer is refused.
pub const ATTEMPTS: u32 = 3;

/// Part of a payload that the store holds when a transfer begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Some of the chunks, or none.
    Chunks(Held),
    /// The whole payload, assembled and checked.
    Whole,
}

/// Event for a receiver.
#[derive(Clone, PartialEq, Debug)]
pub enum ReceiverEvent {
    /// A message of the sender arrived.
    Received(TransferMessage),
    /// A chunk of [`ReceiverAction::Store`] is stored.
    Stored {
        /// Position of the chunk.
        index: u32,
    },
    /// [`ReceiverAction::Assemble`] succeeded: the payload is complete, has the right digest and is durable.
    Assembled,
    /// [`ReceiverAction::Assemble`] found another digest and deleted the chunks.
    WrongDigest,
    /// [`ReceiverAction::Assemble`] found that chunks are missing from the store.
    Incomplete {
        /// The chunks that the store still holds.
        held: Held,
    },
    /// The store failed to store or assemble.
    StoreFailed {
        /// Cause for the operator.
        reason: String,
    },
}

/// Action for the shell of a receiver.
#[derive(Clone, PartialEq, Debug)]
pub enum ReceiverAction {
    /// Publish this message on the transfer's topic.
    Send(TransferMessage),
    /// Store this chunk, then report [`ReceiverEvent::Stored`] or [`ReceiverEvent::StoreFailed`].
    Store {
        /// Index of the chunk, from 0.
        index: u32,
        /// Content of the right size.
        bytes: Vec<u8>,
    },
    /// Join the chunks and check the digest, then report [`ReceiverEvent::Assembled`],
    /// [`ReceiverEvent::WrongDigest`], [`ReceiverEvent::Incomplete`] or [`ReceiverEvent::StoreFailed`].
    Assemble,
    /// The payload is complete. Returned only once.
    Completed,
    /// The transfer failed. Returned only once.
    Failed {
        /// Cause for the operator.
        reason: String,
    },
}

/// Receives one payload; see the module's docs.
#[derive(Clone, Debug)]
pub struct Receiver {
    offer: Offer,
    held: Held,
    storing: BTreeSet<u32>,
    phase: Phase,
    attempts: u32,
}

#[derive(Clone, Debug)]
enum Phase {
    Receiving,
    Assembling,
    Complete,
    Refused { reason: String },
}

impl Receiver {
    /// Makes a receiver that answers an offer.
    #[must_use]
    pub fn new(offer: Offer, found: Found) -> (Self, Vec<ReceiverAction>) {
        let (held, phase) = match found {
            Found::Chunks(held) => (held, Phase::Receiving),
            Found::Whole => (Held::default(), Phase::Complete),
        };
        let mut receiver = Self { offer, held, storing: BTreeSet::new(), phase, attempts: 1 };
        let actions = match receiver.phase {
            Phase::Complete => vec![ReceiverAction::Completed, receiver.answer()],
            Phase::Receiving | Phase::Assembling | Phase::Refused { .. } => receiver.assemble_or(Self::answer),
        };
        (receiver, actions)
    }

    /// Returns the name of the transfer.
    #[must_use]
    pub fn id(&self) -> TransferId {
        self.offer.id()
    }

    /// Returns the offer of the payload.
    #[must_use]
    pub const fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Returns the number of stored chunks.
    #[must_use]
    pub fn stored_chunks(&self) -> u32 {
        self.held.count(self.offer.chunks())
    }

    /// Handles an event.
    #[must_use]
    pub fn handle(&mut self, event: ReceiverEvent) -> Vec<ReceiverAction> {
        match event {
            ReceiverEvent::Received(TransferMessage::Offer(offer)) if offer.id() == self.id() => vec![self.answer()],
            ReceiverEvent::Received(TransferMessage::Chunk { index, bytes }) => self.receive(index, bytes),
            ReceiverEvent::Received(_) => Vec::new(),
            ReceiverEvent::Stored { index } => self.stored(index),
            ReceiverEvent::Assembled => self.assembled(),
            ReceiverEvent::WrongDigest => self.ask_again(Held::default(), "the payload does not match its digest"),
            ReceiverEvent::Incomplete { held } => self.ask_again(held, "the receiver lost chunks of the payload"),
            ReceiverEvent::StoreFailed { reason } => self.fail(&reason),
        }
    }

    /// Returns the message that tells a sender the current state.
    fn answer(&self) -> ReceiverAction {
        ReceiverAction::Send(match &self.phase {
            Phase::Receiving => TransferMessage::Grant { held: self.held.clone(), window: WINDOW },
            Phase::Assembling => TransferMessage::Progress { held: self.held.clone() },
            Phase::Complete => TransferMessage::Done,
            Phase::Refused { reason } => TransferMessage::Refused { reason: reason.clone() },
        })
    }

    fn receive(&mut self, index: u32, bytes: Vec<u8>) -> Vec<ReceiverAction> {
        if !matches!(self.phase, Phase::Receiving) {
            return vec![self.answer()];
        }
        if self.held.contains(index) {
            return vec![self.progress_message()];
        }
        let expected = chunk_bytes(self.offer.total_bytes, index);
        let overrun = self.storing.len() >= 2 * WINDOW as usize;
        if bytes.is_empty() || bytes.len() != expected || overrun || !self.storing.insert(index) {
            return Vec::new();
        }
        vec![ReceiverAction::Store { index, bytes }]
    }

    fn stored(&mut self, index: u32) -> Vec<ReceiverAction> {
        if !self.storing.remove(&index) || !matches!(self.phase, Phase::Receiving) {
            return Vec::new();
        }
        self.held.insert(index);
        self.assemble_or(Self::progress_message)
    }

    /// Starts to assemble if every chunk is held; otherwise returns the action of `otherwise`.
    fn assemble_or(&mut self, otherwise: impl Fn(&Self) -> ReceiverAction) -> Vec<ReceiverAction> {
        if self.held.missing(self.offer.chunks()).next().is_some() {
            return vec![otherwise(self)];
        }
        self.phase = Phase::Assembling;
        vec![self.progress_message(), ReceiverAction::Assemble]
    }

    fn progress_message(&self) -> ReceiverAction {
        ReceiverAction::Send(TransferMessage::Progress { held: self.held.clone() })
    }

    fn assembled(&mut self) -> Vec<ReceiverAction> {
        if !matches!(self.phase, Phase::Assembling) {
            return Vec::new();
        }
        self.phase = Phase::Complete;
        vec![ReceiverAction::Completed, self.answer()]
    }

    /// Asks for every chunk that is not in `held`. If no attempt is left, the transfer fails with `problem`.
    fn ask_again(&mut self, held: Held, problem: &str) -> Vec<ReceiverAction> {
        if !matches!(self.phase, Phase::Assembling) {
            return Vec::new();
        }
        if self.attempts >= ATTEMPTS {
            return self.fail(&format!("{problem}, {ATTEMPTS} times in a row"));
        }
        self.attempts += 1;
        self.held = held;
        self.phase = Phase::Receiving;
        vec![self.answer()]
    }

    fn fail(&mut self, reason: &str) -> Vec<ReceiverAction> {
        if matches!(self.phase, Phase::Complete | Phase::Refused { .. }) {
            return Vec::new();
        }
        let reason = short_reason(reason);
        self.phase = Phase::Refused { reason: reason.clone() };
        vec![ReceiverAction::Failed { reason }, self.answer()]
    }
}
