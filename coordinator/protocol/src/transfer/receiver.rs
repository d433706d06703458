//! The side that wants the payload. It needs no clock: the sender repeats, the receiver answers.
//!
//! ```text
//!   new ──► Receiving ──last chunk stored──► Assembling ──Assembled──► Complete
//!               ▲  │ StoreFailed                 │ WrongDigest, Incomplete
//!               │  └───────────► Refused ◄───────┤ (no attempt left)
//!               └────────────────────────────────┘ (attempts left)
//! ```
//! - *new*: from an offer and from what the store holds of it, so a restart goes on where the store is. A payload that is
//!   there already is complete at once.
//! - *last chunk stored*: what was stored is told in a cumulative `Progress` after each chunk, and never before.
//! - *Assembled*: the digest is right and the blob durable; `Done`.
//! - *WrongDigest*: the store has thrown the chunks away; a `Grant` of nothing starts over, [`ATTEMPTS`] times in all.
//! - *Incomplete*: the store lost chunks; a `Grant` of what it still holds asks for the missing ones. This is an attempt too.
//! - *StoreFailed*, no attempt left: `Refused`, which ends the transfer for both.
//!
//! Repeated offers are answered with what is: `Grant`, `Progress` (while assembling), `Done` or `Refused`. An offer under
//! another name is ignored, and so is a chunk beyond the end, of the wrong size or while one assembles. A chunk that is held
//! is answered and not stored again; one that is being stored is ignored. A sender that overruns its window by more than
//! as much again is not listened to until chunks are stored. Receiver's messages come to the wrong side and are ignored.

use super::{Held, Offer, TransferId, TransferMessage, WINDOW, chunk_bytes};
use crate::messages::short_reason;
use std::collections::BTreeSet;

/// How often a payload is asked for before its digest is believed to be wrong.
pub const ATTEMPTS: u32 = 3;

/// What the store has of a payload when a transfer begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// These chunks, perhaps none.
    Chunks(Held),
    /// All of it, assembled and checked.
    Whole,
}

/// What a receiver is told.
#[derive(Clone, PartialEq, Debug)]
pub enum ReceiverEvent {
    /// The sender's message.
    Received(TransferMessage),
    /// [`ReceiverAction::Store`] was done.
    Stored {
        /// The chunk's position.
        index: u32,
    },
    /// [`ReceiverAction::Assemble`] was done: the payload is whole, its digest right, and it is durable.
    Assembled,
    /// [`ReceiverAction::Assemble`] found another digest and threw the chunks away.
    WrongDigest,
    /// [`ReceiverAction::Assemble`] found that chunks are missing from the store.
    Incomplete {
        /// The chunks that the store still holds.
        held: Held,
    },
    /// The store could not do what it should.
    StoreFailed {
        /// For the operator.
        reason: String,
    },
}

/// What a receiver wants done.
#[derive(Clone, PartialEq, Debug)]
pub enum ReceiverAction {
    /// Publish this message on the transfer's topic.
    Send(TransferMessage),
    /// Keep this chunk, then say [`ReceiverEvent::Stored`] or [`ReceiverEvent::StoreFailed`].
    Store {
        /// Position, from 0.
        index: u32,
        /// Its bytes, of the right size.
        bytes: Vec<u8>,
    },
    /// Make the whole of its chunks and check the digest, then say [`ReceiverEvent::Assembled`],
    /// [`ReceiverEvent::WrongDigest`], [`ReceiverEvent::Incomplete`] or [`ReceiverEvent::StoreFailed`].
    Assemble,
    /// The payload is there. Said once.
    Completed,
    /// The payload will not come. Said once.
    Failed {
        /// For the operator.
        reason: String,
    },
}

/// Receives one payload; see the module's text.
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
    /// Answers an offer.
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

    /// The transfer's name.
    #[must_use]
    pub fn id(&self) -> TransferId {
        self.offer.id()
    }

    /// What is received.
    #[must_use]
    pub const fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Takes an event.
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

    /// What a sender has to know as things stand.
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

    /// Assembles where every chunk is there, and says what `otherwise` has to say where not.
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

    /// Asks for every chunk that is not in `held`, unless no attempt is left; then the transfer fails for `problem`.
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
