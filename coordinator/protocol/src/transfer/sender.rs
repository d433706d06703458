//! The sending side of a transfer.
//!
//! ```text
//!              Nudged               Grant               every chunk held
//!   Resting ───────────► Offering ─────────► Sending ───────────────────► (waits for Done)
//!      ▲                  ▲  │ ▲                │                               │
//!      │   Nudged, Grant  │  │ └────────────────┴──────── silence ──────────────┘
//!      └──────────────────┘  │                                       Done ───► Finished
//!            silence, REPEATS times without a new chunk              Refused ► Refused
//! ```
//! - *Nudged* (`Resting -> Offering`): the peer's birth or presence, or a new connection, shows that it may receive messages now.
//!   In any other state except an end, a nudge offers again at once.
//! - *Grant* (`-> Sending`, from any state except an end): the answer to the offer. The sender sends missing chunks until the
//!   window is full. A second grant while `Sending` counts as a `Progress`, unless it lacks chunks that were held before. In that
//!   case the receiver lost its disk, or deleted chunks with a wrong digest; the sender sends them again.
//! - *Progress*: adds held chunks, and the next ones are sent. If it adds a new chunk, the link was only slow, and a sender that
//!   had offered again returns to `Sending`. No chunk is therefore sent twice on a slow link. A broker keeps the order on a
//!   topic. If a later chunk is held, an earlier missing one was therefore lost and is sent again at once.
//! - *silence* (`-> Offering`): no new chunk was held for twice the time that the last chunk took until it was acknowledged.
//!   Each further silence is twice as long. An offer recovers every state of the receiver: a receiver that has forgotten the
//!   transfer starts it again.
//! - *rest*: after [`REPEATS`] silences nothing is sent until the next nudge or message of the receiver.
//! - *Done*, *Refused*: ends, from any state.
//!
//! Late, repeated and reordered messages do no harm: `Progress` only adds chunks, an old `Grant` at worst causes chunks to be
//! sent twice, and nothing has an effect after an end. An `Offer` or `Chunk` is ignored, because only senders send them.

use super::{Held, Offer, TransferId, TransferMessage, WINDOW};
use crate::time::Timestamp;

/// Shortest silence that makes the sender offer again, in milliseconds. The first silence has this length.
const SHORTEST_SILENCE_MS: u64 = 2_000;
/// Longest silence that makes the sender offer again, in milliseconds.
const LONGEST_SILENCE_MS: u64 = 30_000;
/// Number of silences in a row, without a new chunk held, after which a sender rests.
pub const REPEATS: u32 = 8;

/// Event for a sender.
#[derive(Clone, PartialEq, Debug)]
pub enum SenderEvent {
    /// The peer may receive messages now.
    Nudged,
    /// A message of the receiver arrived.
    Received(TransferMessage),
    /// The deadline passed; see [`Sender::deadline`].
    Tick,
}

/// Action for the shell of a sender.
#[derive(Clone, PartialEq, Debug)]
pub enum SenderAction {
    /// Publish this message on the transfer's topic.
    Send(TransferMessage),
    /// Read this chunk of the payload and publish it as [`TransferMessage::Chunk`].
    SendChunk {
        /// Position, from 0.
        index: u32,
    },
    /// The receiver has stored the whole payload durably.
    Finished,
    /// The receiver does not want the payload.
    Refused {
        /// Cause in the receiver's words.
        reason: String,
    },
}

/// Sends one payload; see the module's docs.
#[derive(Clone, Debug)]
pub struct Sender {
    offer: Offer,
    held: Held,
    /// Chunks that were sent but not acknowledged, each with the time at which it was sent, in the order of sending.
    in_flight: Vec<(u32, Timestamp)>,
    window: usize,
    phase: Phase,
    /// Number of silences since a new chunk was last acknowledged.
    silences: u32,
    /// Length of the next silence.
    patience_ms: u64,
    deadline: Option<Timestamp>,
    /// Time at which a grant last restarted the window.
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
    /// Makes a sender that rests until its first nudge.
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

    /// Returns the number of chunks that the receiver holds, by its last message.
    #[must_use]
    pub fn acknowledged(&self) -> u32 {
        self.held.count(self.offer.chunks())
    }

    /// Returns true if the transfer has ended: the receiver has the payload, or does not want it.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Returns the time for [`SenderEvent::Tick`]; an earlier tick changes nothing.
    #[must_use]
    pub const fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    /// Handles an event. `now` must not be before the time of the last event.
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
        // A grant that takes chunks back restarts the window. Only a restarted receiver sends one, so a second one right after is stale.
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

    /// Sets the time at which the sender offers again unless the receiver reports a new chunk.
    fn wait(&mut self, now: Timestamp) {
        self.deadline = Some(now.plus_millis(self.patience_ms));
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.deadline = None;
    }
}
