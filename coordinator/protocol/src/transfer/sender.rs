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
//! - *Grant* (`-> Sending`, from anywhere but an end): the answer to the offer. What is not held goes out again, the rest of
//!   the window too. A second answer while `Sending` says no more than a `Progress` would, unless chunks are missing from it
//!   that were held: then the receiver lost its disk, or threw away chunks with a wrong digest, and gets them again.
//! - *Progress*: adds to what is held and lets the next chunks go. Where it brings something new the chunks were only slow,
//!   and a sender that had begun to ask goes on `Sending`: nothing travels twice on a slow link. A chunk that a later one has
//!   overtaken is sent again at once, for a broker keeps the order on a topic.
//! - *silence* (`-> Offering`): nothing new was held for a while: twice as long as a chunk last took to be told held, and
//!   twice that each time. The offer is the one question that heals everything, as it makes a receiver that has forgotten
//!   the transfer start it again.
//! - *rest*: after [`REPEATS`] silences nothing is sent until the next nudge or the receiver's own message.
//! - *Done*, *Refused*: ends, from anywhere.
//!
//! Late, repeated and reordered messages are the same messages: `Progress` only adds, an old `Grant` at worst makes chunks
//! travel twice, `Done` and `Refused` after an end change nothing. An `Offer` or `Chunk` comes to the wrong side and is ignored.

use super::{Held, Offer, TransferId, TransferMessage, WINDOW};
use crate::time::Timestamp;

/// The shortest silence that makes the sender offer again, in milliseconds; the first one is.
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
    /// Sent and not known to be held, with the time, in the order of sending.
    in_flight: Vec<(u32, Timestamp)>,
    window: usize,
    phase: Phase,
    /// Silences since a new chunk was held.
    silences: u32,
    /// How long the next silence is.
    patience_ms: u64,
    deadline: Option<Timestamp>,
    /// When a grant last started the window anew.
    restarted: Option<Timestamp>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Resting,
    Offering,
    Sending,
    Ended,
}

impl Sender {
    /// A sender that rests until its first nudge.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        Self {
            offer,
            held: Held::default(),
            in_flight: Vec::new(),
            window: 1,
            phase: Phase::Resting,
            silences: 0,
            patience_ms: SHORTEST_SILENCE_MS,
            restarted: None,
            deadline: None,
        }
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
                self.patience_ms = SHORTEST_SILENCE_MS;
                self.offer_again(now)
            }
            SenderEvent::Tick => self.tick(now),
            SenderEvent::Received(message) => self.receive(message, now),
        }
    }

    fn receive(&mut self, message: TransferMessage, now: Timestamp) -> Vec<SenderAction> {
        match message {
            TransferMessage::Grant { held, window } => self.granted(held, window, now),
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

    fn granted(&mut self, held: Held, window: u32, now: Timestamp) -> Vec<SenderAction> {
        self.window = usize::try_from(window.min(WINDOW)).unwrap_or(1);
        if self.phase == Phase::Sending && held.covers(&self.held) {
            return self.progressed(&held, now);
        }
        // A grant that takes chunks back restarts the window. Only a restarted receiver has reason to, so not again at once.
        if self.phase == Phase::Sending
            && self.restarted.is_some_and(|then| now.millis_since(then) < SHORTEST_SILENCE_MS)
        {
            return Vec::new();
        }
        self.restarted = Some(now);
        self.held = held;
        self.in_flight.clear();
        self.phase = Phase::Sending;
        self.wait(now);
        self.fill_window(now)
    }

    fn progressed(&mut self, held: &Held, now: Timestamp) -> Vec<SenderAction> {
        let is_news = !self.held.covers(held);
        self.held.merge(held);
        if let Some(newest) = self.in_flight.iter().rposition(|(index, _)| self.held.contains(*index)) {
            let took_ms = now.millis_since(self.in_flight[newest].1);
            self.patience_ms = (2 * took_ms).clamp(SHORTEST_SILENCE_MS, LONGEST_SILENCE_MS);
            self.in_flight.drain(..=newest);
        }
        if is_news {
            self.silences = 0;
            self.phase = Phase::Sending;
            self.wait(now);
        }
        self.fill_window(now)
    }

    /// Sends chunks that are neither held nor in flight, up to the window.
    fn fill_window(&mut self, now: Timestamp) -> Vec<SenderAction> {
        if self.phase != Phase::Sending {
            return Vec::new();
        }
        let free = self.window.saturating_sub(self.in_flight.len());
        let is_in_flight = |index: &u32| self.in_flight.iter().any(|(sent, _)| sent == index);
        let missing = self.held.missing(self.offer.chunks());
        let next: Vec<u32> = missing.filter(|index| !is_in_flight(index)).take(free).collect();
        self.in_flight.extend(next.iter().map(|index| (*index, now)));
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
        self.patience_ms = LONGEST_SILENCE_MS.min(2 * self.patience_ms);
        self.offer_again(now)
    }

    fn offer_again(&mut self, now: Timestamp) -> Vec<SenderAction> {
        self.phase = Phase::Offering;
        self.wait(now);
        vec![SenderAction::Send(TransferMessage::Offer(self.offer.clone()))]
    }

    /// Sets the end of the silence that begins now.
    fn wait(&mut self, now: Timestamp) {
        self.deadline = Some(now.plus_millis(self.patience_ms));
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.deadline = None;
    }
}
