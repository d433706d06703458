//! The side that has the payload.
//!
//! ```text
//!              Nudged               Grant               every chunk held
//!   Resting ───────────► Offering ─────────► Sending ───────────────────► (waits for Done)
//!      ▲                  ▲  │ ▲                │                               │
//!      │   Nudged, Grant  │  │ └────────────────┴──────── silence ──────────────┘
//!      └──────────────────┘  │                                       Done ───► Finished
//!            silence, REPEATS times without a new chunk              Refused ► Refused
//! ```
//! - *Nudged* (`Resting -> Offering`): the peer's birth or presence, or a new connection, says that it may hear us now.
//!   Anywhere else a nudge offers again at once.
//! - *Grant* (`-> Sending`, from anywhere but an end): what it says of the held chunks replaces what was believed, so a
//!   receiver that lost its disk, or threw away chunks with a wrong digest, gets everything again.
//! - *Progress*: adds to what is held and lets the next chunks go. A chunk that a later one has overtaken is sent again at
//!   once, for a broker keeps the order on a topic.
//! - *silence* (`-> Offering`): nothing new was held for a while, which doubles each time; the offer is the one question
//!   that heals everything, as it makes a receiver that has forgotten the transfer start it again.
//! - *rest*: after [`REPEATS`] silences nothing is sent until the next nudge or the receiver's own message.
//! - *Done*, *Refused*: ends, from anywhere.
//!
//! Late, repeated and reordered messages are the same messages: `Progress` only adds, `Grant` at worst makes chunks travel
//! twice, `Done` and `Refused` after an end change nothing. An `Offer` or `Chunk` comes to the wrong side and is ignored.

use super::{Held, Offer, TransferId, TransferMessage, WINDOW};
use crate::time::Timestamp;

/// The first silence that makes the sender offer again, in milliseconds.
const SHORTEST_SILENCE_MS: u64 = 2_000;
/// The longest one.
const LONGEST_SILENCE_MS: u64 = 30_000;
/// Silences in a row, without a new chunk held, after which a sender rests.
pub const REPEATS: u32 = 8;

/// What a sender is told.
#[derive(Clone, PartialEq, Debug)]
pub enum SenderEvent {
    /// The peer may hear us now.
    Nudged,
    /// The receiver's message.
    Received(TransferMessage),
    /// Time went on; see [`Sender::deadline`].
    Tick,
}

/// What a sender wants done.
#[derive(Clone, PartialEq, Debug)]
pub enum SenderAction {
    /// Publish this message on the transfer's topic.
    Send(TransferMessage),
    /// Read this chunk of the payload and publish it as [`TransferMessage::Chunk`].
    SendChunk {
        /// Position, from 0.
        index: u32,
    },
    /// The receiver has it all, durably.
    Finished,
    /// The receiver does not want it.
    Refused {
        /// Its words.
        reason: String,
    },
}

/// Sends one payload; see the module's text.
#[derive(Clone, Debug)]
pub struct Sender {
    offer: Offer,
    held: Held,
    phase: Phase,
    /// Silences since a new chunk was held.
    silences: u32,
    deadline: Option<Timestamp>,
}

#[derive(Clone, Debug)]
enum Phase {
    Resting,
    Offering,
    Sending {
        window: usize,
        /// Sent and not known to be held, in the order of sending.
        in_flight: Vec<u32>,
    },
    Ended,
}

impl Sender {
    /// A sender that rests until its first nudge.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        Self { offer, held: Held::default(), phase: Phase::Resting, silences: 0, deadline: None }
    }

    /// The transfer's name.
    #[must_use]
    pub fn id(&self) -> TransferId {
        self.offer.id()
    }

    /// What is sent.
    #[must_use]
    pub const fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Chunks that the receiver is known to hold, and all of them.
    #[must_use]
    pub fn progress(&self) -> (u32, u32) {
        let chunks = self.offer.chunks();
        (self.held.count(chunks), chunks)
    }

    /// Whether nothing more will be sent: the receiver has it all, or does not want it.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// When to send [`SenderEvent::Tick`]; an earlier one changes nothing.
    #[must_use]
    pub const fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    /// Takes an event, at a time not before the last one's.
    #[must_use]
    pub fn handle(&mut self, event: SenderEvent, now: Timestamp) -> Vec<SenderAction> {
        if self.has_ended() {
            return Vec::new();
        }
        match event {
            SenderEvent::Nudged => {
                self.silences = 0;
                self.offer_again(now)
            }
            SenderEvent::Tick => self.tick(now),
            SenderEvent::Received(message) => self.receive(message, now),
        }
    }

    fn receive(&mut self, message: TransferMessage, now: Timestamp) -> Vec<SenderAction> {
        match message {
            TransferMessage::Grant { held, window } => {
                self.held = held;
                let window = usize::try_from(window.min(WINDOW)).unwrap_or(1);
                self.phase = Phase::Sending { window, in_flight: Vec::new() };
                self.wait(now);
                self.fill_window()
            }
            TransferMessage::Progress { held } => self.progressed(&held, now),
            TransferMessage::Done => {
                self.end();
                vec![SenderAction::Finished]
            }
            TransferMessage::Refused { reason } => {
                self.end();
                vec![SenderAction::Refused { reason }]
            }
            TransferMessage::Offer(_) | TransferMessage::Chunk { .. } => Vec::new(),
        }
    }

    fn progressed(&mut self, held: &Held, now: Timestamp) -> Vec<SenderAction> {
        let before = self.progress().0;
        self.held.merge(held);
        if self.progress().0 > before {
            self.silences = 0;
            self.wait(now);
        }
        if let Phase::Sending { in_flight, .. } = &mut self.phase
            && let Some(newest) = in_flight.iter().rposition(|index| held.contains(*index))
        {
            in_flight.drain(..=newest);
        }
        self.fill_window()
    }

    /// Sends chunks that are neither held nor in flight, up to the window.
    fn fill_window(&mut self) -> Vec<SenderAction> {
        let Phase::Sending { window, in_flight } = &mut self.phase else {
            return Vec::new();
        };
        let free = window.saturating_sub(in_flight.len());
        let missing = self.held.missing(self.offer.chunks());
        let next: Vec<u32> = missing.filter(|index| !in_flight.contains(index)).take(free).collect();
        in_flight.extend(&next);
        next.into_iter().map(|index| SenderAction::SendChunk { index }).collect()
    }

    fn tick(&mut self, now: Timestamp) -> Vec<SenderAction> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        self.silences += 1;
        if self.silences > REPEATS {
            self.phase = Phase::Resting;
            self.deadline = None;
            return Vec::new();
        }
        self.offer_again(now)
    }

    fn offer_again(&mut self, now: Timestamp) -> Vec<SenderAction> {
        self.phase = Phase::Offering;
        self.wait(now);
        vec![SenderAction::Send(TransferMessage::Offer(self.offer.clone()))]
    }

    /// Sets the end of the silence that begins now.
    fn wait(&mut self, now: Timestamp) {
        let silence_ms = LONGEST_SILENCE_MS.min(SHORTEST_SILENCE_MS << self.silences.min(REPEATS));
        self.deadline = Some(now.plus_millis(silence_ms));
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.deadline = None;
    }
}
