//! Simulates the real engines in virtual time, over a link that loses, repeats and reorders messages, with restarts of either
//! side. One seed draws everything; proptest prints it.

use super::{
    ATTEMPTS, Found, Held, Offer, Purpose, REPEATS, Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction,
    SenderEvent, TransferMessage, WINDOW, chunk_bytes, chunk_count,
};
use crate::messages::{Digest, RunId};
use crate::time::Timestamp;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use std::collections::BTreeMap;

/// Faults. Each number `n` means one fault in `n` messages (or steps, for restarts) on average; 0 means none.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    lose: u64,
    repeat: u64,
    /// Changes of a chunk's bytes during the transfer.
    corrupt: u64,
    restart: u64,
    /// Shortest time that a message takes to arrive, in milliseconds.
    latency_ms: u64,
    /// Largest random addition to the latency, in milliseconds.
    delay_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Side {
    Sender,
    Receiver,
}

struct World {
    faults: Faults,
    random: u64,
    now: Timestamp,
    sent: u64,
    air: BTreeMap<(Timestamp, u64), (Side, TransferMessage)>,
    payload: Vec<u8>,
    offer: Offer,
    sender: Sender,
    receiver: Option<Receiver>,
    disk: BTreeMap<u32, Vec<u8>>,
    whole: Option<Vec<u8>>,
    /// Number of times that the disk loses a chunk before the payload is assembled.
    chunks_lost_by_disk: u32,
    assembled: u32,
    chunks_sent: u32,
    failed: bool,
}

impl World {
    fn new(payload: Vec<u8>, digest: Digest, seed: u64, faults: Faults) -> Self {
        let offer = Offer { purpose: Purpose::Weights { run: RunId(1) }, digest, total_bytes: payload.len() as u64 };
        Self {
            faults,
            random: seed,
            now: Timestamp(0),
            sent: 0,
            air: BTreeMap::new(),
            payload,
            sender: Sender::new(offer.clone()),
            offer,
            receiver: None,
            disk: BTreeMap::new(),
            whole: None,
            chunks_lost_by_disk: 0,
            assembled: 0,
            chunks_sent: 0,
            failed: false,
        }
    }

    /// Runs until the sender's transfer has ended. Returns false if it has not ended after `steps` steps.
    fn run(&mut self, steps: u32) -> bool {
        self.nudge();
        for _ in 0..steps {
            if self.sender.has_ended() {
                return true;
            }
            self.step();
        }
        false
    }

    /// Simulates the next event: a message arrives, a deadline passes, or, if both sides rest, the sender is nudged.
    fn step(&mut self) {
        if self.happens(self.faults.restart) {
            self.sender = Sender::new(self.offer.clone());
            self.nudge();
        }
        if self.happens(self.faults.restart) {
            self.receiver = None;
        }
        let arrival = self.air.first_key_value().map(|((time, _), _)| *time);
        match (arrival, self.sender.deadline()) {
            (Some(arrival), deadline) if deadline.is_none_or(|deadline| arrival <= deadline) => {
                self.now = self.now.max(arrival);
                if let Some((_, (side, message))) = self.air.pop_first() {
                    self.deliver(side, message);
                }
            }
            (_, Some(deadline)) => {
                self.now = self.now.max(deadline);
                let actions = self.sender.handle(SenderEvent::Tick, self.now);
                self.carry_out(actions);
            }
            (_, None) => self.nudge(),
        }
    }

    fn nudge(&mut self) {
        let actions = self.sender.handle(SenderEvent::Nudged, self.now);
        self.carry_out(actions);
    }

    fn deliver(&mut self, side: Side, message: TransferMessage) {
        if side == Side::Sender {
            let actions = self.sender.handle(SenderEvent::Received(message), self.now);
            return self.carry_out(actions);
        }
        let actions = match (&mut self.receiver, message) {
            (Some(receiver), message) => receiver.handle(ReceiverEvent::Received(message)),
            (None, TransferMessage::Offer(offer)) => {
                let found = match self.whole {
                    Some(_) => Found::Whole,
                    None => Found::Chunks(self.on_disk()),
                };
                let (receiver, actions) = Receiver::new(offer, found);
                self.receiver = Some(receiver);
                actions
            }
            (None, _) => Vec::new(),
        };
        self.receive(actions);
    }

    fn carry_out(&mut self, actions: Vec<SenderAction>) {
        assert!(actions.len() <= WINDOW as usize, "{actions:?}");
        for action in actions {
            match action {
                SenderAction::Send(message) => self.send(Side::Receiver, message),
                SenderAction::SendChunk { index } => {
                    self.chunks_sent += 1;
                    let start = index as usize * super::CHUNK_BYTES;
                    let mut bytes = self.payload[start..][..chunk_bytes(self.offer.total_bytes, index)].to_vec();
                    if self.happens(self.faults.corrupt) {
                        bytes[0] ^= 1;
                    }
                    self.send(Side::Receiver, TransferMessage::Chunk { index, bytes });
                }
                SenderAction::Finished => assert!(self.whole.is_some(), "finished without a payload"),
                SenderAction::Refused { .. } => self.failed = true,
            }
        }
    }

    fn receive(&mut self, actions: Vec<ReceiverAction>) {
        for action in actions {
            let event = match action {
                ReceiverAction::Send(message) => {
                    if let TransferMessage::Grant { held, .. } | TransferMessage::Progress { held } = &message {
                        assert_eq!(held, &self.on_disk(), "promised before it was stored");
                    }
                    self.send(Side::Sender, message);
                    continue;
                }
                ReceiverAction::Store { index, bytes } => {
                    self.disk.insert(index, bytes);
                    ReceiverEvent::Stored { index }
                }
                ReceiverAction::Assemble => self.assemble(),
                ReceiverAction::Completed => {
                    assert!(self.whole.is_some(), "completed without a payload");
                    continue;
                }
                ReceiverAction::Failed { .. } => continue,
            };
            if let Some(receiver) = &mut self.receiver {
                let next = receiver.handle(event);
                self.receive(next);
            }
        }
    }

    fn assemble(&mut self) -> ReceiverEvent {
        self.assembled += 1;
        if self.chunks_lost_by_disk > 0 {
            self.chunks_lost_by_disk -= 1;
            self.disk.pop_first();
        }
        if (self.disk.len() as u32) < chunk_count(self.offer.total_bytes) {
            return ReceiverEvent::Incomplete { held: self.on_disk() };
        }
        let bytes: Vec<u8> = self.disk.values().flatten().copied().collect();
        if Digest::of(&bytes) == self.offer.digest {
            self.whole = Some(bytes);
            ReceiverEvent::Assembled
        } else {
            self.disk.clear();
            ReceiverEvent::WrongDigest
        }
    }

    fn on_disk(&self) -> Held {
        let mut held = Held::default();
        self.disk.keys().for_each(|index| held.insert(*index));
        held
    }

    fn send(&mut self, side: Side, message: TransferMessage) {
        if self.happens(self.faults.lose) {
            return;
        }
        let times = if self.happens(self.faults.repeat) { 2 } else { 1 };
        for _ in 0..times {
            let delay = 1 + self.faults.latency_ms + self.draw() % self.faults.delay_ms.max(1);
            self.sent += 1;
            self.air.insert((self.now.plus_millis(delay), self.sent), (side, message.clone()));
        }
    }

    fn happens(&mut self, once_in: u64) -> bool {
        once_in != 0 && self.draw().is_multiple_of(once_in)
    }

    /// Draws a random number (SplitMix64).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at * 31 % 251).unwrap_or(0)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_transfer_completes_over_any_link_and_through_restarts(
        seed in any::<u64>(),
        bytes in 1..800_000_usize,
        lose in 2..20_u64,
        repeat in 2..20_u64,
        corrupt in 40..400_u64,
        restart in 20..200_u64,
        delay_ms in 1..5_000_u64,
    ) {
        let payload = payload(bytes);
        let faults = Faults { lose, repeat, corrupt, restart, latency_ms: 0, delay_ms };
        let mut world = World::new(payload.clone(), Digest::of(&payload), seed, faults);
        // Several corrupted attempts without a restart between them end in a refusal. A shell would then offer again.
        let mut lives = 0;
        while !world.whole.as_ref().is_some_and(|_| world.sender.has_ended()) {
            lives += 1;
            prop_assert!(lives < 50 && world.run(100_000));
            world.receiver = None;
            world.sender = if world.whole.is_some() { world.sender } else { Sender::new(world.offer.clone()) };
        }
        prop_assert_eq!(world.whole, Some(payload));
    }

    #[test]
    fn a_clean_link_carries_every_chunk_once(seed in any::<u64>(), bytes in 1..800_000_usize) {
        let payload = payload(bytes);
        let mut world = World::new(payload.clone(), Digest::of(&payload), seed, Faults::default());
        prop_assert!(world.run(1_000));
        // One Offer, Grant and Done; and for each chunk, the chunk and its Progress.
        prop_assert_eq!(world.sent, 3 + 2 * u64::from(chunk_count(bytes as u64)));
        prop_assert_eq!(world.whole, Some(payload));
    }

    #[test]
    fn a_wrong_digest_starts_over_a_bounded_number_of_times(seed in any::<u64>(), lose in 3..20_u64) {
        let faults = Faults { lose, delay_ms: 100, ..Faults::default() };
        let mut world = World::new(payload(200_000), Digest::of(b"something else"), seed, faults);
        prop_assert!(world.run(100_000));
        prop_assert!(world.failed && world.whole.is_none());
        prop_assert_eq!(world.assembled, ATTEMPTS);
    }
}

#[test]
fn a_sender_that_nobody_answers_rests_until_it_is_nudged() {
    let payload = payload(1_000);
    let faults = Faults { lose: 1, ..Faults::default() };
    let mut world = World::new(payload.clone(), Digest::of(&payload), 1, faults);
    world.nudge();
    let mut offers = 1;
    while let Some(deadline) = world.sender.deadline() {
        assert_eq!(world.sender.handle(SenderEvent::Tick, world.now), [], "an early tick changes nothing");
        world.now = deadline;
        offers += world.sender.handle(SenderEvent::Tick, deadline).len();
    }
    assert_eq!(offers, 1 + REPEATS as usize);
    world.faults = Faults::default();
    assert!(world.run(100));
    assert_eq!(world.whole, Some(payload));
}

#[test]
fn the_loss_of_one_chunk_is_mended_without_waiting() {
    let payload = payload(1_000_000);
    let mut world = World::new(payload.clone(), Digest::of(&payload), 1, Faults::default());
    world.nudge();
    while world.disk.is_empty() {
        world.step();
    }
    let lost = world.air.iter().find(|(_, (side, _))| *side == Side::Receiver).map(|(key, _)| *key);
    world.air.remove(&lost.expect("chunks are in flight"));
    assert!(world.run(1_000));
    assert!(world.now < Timestamp(2_000), "it took {}", world.now);
}

#[test]
fn chunks_that_the_disk_lost_are_asked_for_again_and_no_others() {
    let payload = payload(1_000_000);
    let mut world = World::new(payload.clone(), Digest::of(&payload), 1, Faults::default());
    world.chunks_lost_by_disk = ATTEMPTS - 1;
    assert!(world.run(1_000));
    assert_eq!(world.whole, Some(payload));
    assert_eq!(world.chunks_sent, chunk_count(1_000_000) + ATTEMPTS - 1);
}

#[test]
fn a_disk_that_keeps_losing_chunks_ends_the_transfer() {
    let payload = payload(1_000_000);
    let mut world = World::new(payload.clone(), Digest::of(&payload), 1, Faults::default());
    world.chunks_lost_by_disk = u32::MAX;
    assert!(world.run(1_000));
    assert!(world.failed && world.whole.is_none());
    assert_eq!(world.assembled, ATTEMPTS);
}

#[test]
fn on_a_slow_link_nothing_travels_twice() {
    let payload = payload(1_000_000);
    let faults = Faults { latency_ms: 9_000, ..Faults::default() };
    let mut world = World::new(payload.clone(), Digest::of(&payload), 1, faults);
    assert!(world.run(10_000));
    assert_eq!(world.chunks_sent, chunk_count(1_000_000));
}

#[test]
fn strange_chunks_change_nothing() {
    let payload = payload(100_000);
    let mut world = World::new(payload.clone(), Digest::of(&payload), 1, Faults::default());
    let (mut receiver, _) = Receiver::new(world.offer.clone(), Found::Chunks(Held::default()));
    let mut chunk = |index, bytes| {
        let bytes = vec![0; bytes];
        receiver.handle(ReceiverEvent::Received(TransferMessage::Chunk { index, bytes }))
    };
    assert_eq!(chunk(2, 1), [], "beyond the end");
    assert_eq!(chunk(1, super::CHUNK_BYTES), [], "the last one is shorter");
    assert_eq!(chunk(0, 0), []);
    assert_eq!(chunk(0, super::CHUNK_BYTES).len(), 1);
    assert_eq!(chunk(0, super::CHUNK_BYTES), [], "it is being stored");
    assert_eq!(receiver.handle(ReceiverEvent::Stored { index: 1 }), [], "nobody stored that");
    let mut foreign = world.offer.clone();
    foreign.digest = Digest::of(b"another");
    assert_eq!(receiver.handle(ReceiverEvent::Received(TransferMessage::Offer(foreign))), []);
    let chunk = TransferMessage::Chunk { index: 0, bytes: vec![1] };
    assert_eq!(world.sender.handle(SenderEvent::Received(chunk), world.now), []);
}

#[test]
fn the_name_says_what_is_carried_and_not_what_is_reported() {
    let payload = payload(10);
    let offer = World::new(payload.clone(), Digest::of(&payload), 1, Faults::default()).offer;
    let other_run = Offer { purpose: Purpose::Weights { run: RunId(2) }, ..offer.clone() };
    let other_size = Offer { total_bytes: 11, ..offer.clone() };
    assert_eq!(offer.id(), offer.clone().id());
    assert!(offer.id() != other_run.id() && offer.id() != other_size.id());
}

#[test]
fn chunks_tile_the_payload() {
    for total_bytes in [1, 65_535, 65_536, 65_537, 1 << 20, super::MAX_TRANSFER_BYTES] {
        let chunks = chunk_count(total_bytes);
        let sum: u64 = (0..chunks).map(|index| chunk_bytes(total_bytes, index) as u64).sum();
        assert_eq!(sum, total_bytes);
        assert_eq!(chunk_bytes(total_bytes, chunks), 0);
    }
    assert_eq!(chunk_count(super::MAX_TRANSFER_BYTES), super::MAX_CHUNKS);
}
