//! The transfers of a fleet: receives updates and sends weights, a limited number at a time.
//!
//! The engines of `skiff-protocol` decide each transfer; this module gives them access to the disk, and a slot. A device has at
//! most one transfer in each direction: the newest. At most `slots` transfers run in each direction at a time, so that no more
//! than `slots` windows of chunks are in flight; the others wait in order of arrival. A transfer that is silent for [`IDLE_MS`]
//! gives its slot to a waiting one, and queues again when its device sends a message.

use crate::run::Verdict;
use skiff_base::chain;
use skiff_blobs::{BlobError, Blobs};
use skiff_protocol::messages::short_reason;
use skiff_protocol::transfer::{
    Found, Held, Offer, Purpose, Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent,
    TransferId, TransferMessage,
};
use skiff_protocol::{DeviceId, Digest, RunId, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Silence in milliseconds after which a transfer gives its slot to a waiting one.
pub const IDLE_MS: u64 = 10_000;

/// A step that a transfer asks its caller to take.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Publish this message of a transfer.
    Send(DeviceId, TransferId, TransferMessage),
    /// All chunks are stored. Assemble and check them, then call [`Transfers::confirm`], [`Transfers::refuse`],
    /// [`Transfers::start_over`] or [`Transfers::ask_for_missing`].
    Arrived(DeviceId, Offer),
}

/// The transfers of all devices.
#[derive(Debug)]
pub struct Transfers {
    blobs: Arc<dyn Blobs>,
    uploads: Turns<Receiver>,
    downloads: Turns<Sender>,
}

impl Transfers {
    /// Creates the transfers of a fleet: at most `slots` at a time in each direction, with payloads in `blobs`.
    #[must_use]
    pub fn new(blobs: Arc<dyn Blobs>, slots: usize) -> Self {
        Self { blobs, uploads: Turns::new(slots), downloads: Turns::new(slots) }
    }

    /// Handles a device's message. `judge` decides whether an offered update is wanted.
    pub fn receive(
        &mut self,
        device: &DeviceId,
        id: TransferId,
        message: TransferMessage,
        judge: impl Fn(&Offer) -> Verdict,
        now: Timestamp,
    ) -> Vec<Step> {
        match message {
            TransferMessage::Offer(offer) => self.offered(device, id, offer, judge, now),
            TransferMessage::Chunk { .. } => {
                let receiver = self.uploads.heard(device, now).filter(|receiver| receiver.id() == id);
                let actions = receiver.map(|receiver| receiver.handle(ReceiverEvent::Received(message)));
                self.receiving(device, actions.unwrap_or_default(), now)
            }
            TransferMessage::Grant { .. }
            | TransferMessage::Progress { .. }
            | TransferMessage::Done
            | TransferMessage::Refused { .. } => {
                let sender = self.downloads.heard(device, now).filter(|sender| sender.id() == id);
                let actions = sender.map(|sender| sender.handle(SenderEvent::Received(message), now));
                self.sending(device, actions.unwrap_or_default(), now)
            }
        }
    }

    /// Offers weights to a device, or repeats the offer if they were offered before.
    pub fn offer_weights(&mut self, device: &DeviceId, run: RunId, weights: Digest, now: Timestamp) -> Vec<Step> {
        let total_bytes = match self.blobs.size_bytes(weights) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%device, %weights, error = %chain(&error), "the global weights are missing");
                return Vec::new();
            }
        };
        let offer = Offer { purpose: Purpose::Weights { run }, digest: weights, total_bytes };
        self.downloads.drop_unless(device, offer.id(), Sender::id);
        self.downloads.enter(device, offer);
        let mut steps = self.next_downloads(now);
        if steps.is_empty() {
            let sender = self.downloads.active(device);
            let actions = sender.map(|sender| sender.handle(SenderEvent::Nudged, now)).unwrap_or_default();
            steps = self.sending(device, actions, now);
        }
        steps
    }

    /// Tells a device that its update is stored and counted.
    pub fn confirm(&mut self, device: &DeviceId, update: Digest, now: Timestamp) -> Vec<Step> {
        self.settle(device, update, ReceiverEvent::Assembled, now)
    }

    /// Tells a device that its update is refused.
    pub fn refuse(&mut self, device: &DeviceId, update: Digest, reason: String, now: Timestamp) -> Vec<Step> {
        self.settle(device, update, ReceiverEvent::StoreFailed { reason }, now)
    }

    /// Asks a device for all chunks again, because the received ones do not have the offered digest.
    pub fn start_over(&mut self, device: &DeviceId, update: Digest, now: Timestamp) -> Vec<Step> {
        self.settle(device, update, ReceiverEvent::WrongDigest, now)
    }

    /// Asks a device for the chunks that are missing from the disk.
    pub fn ask_for_missing(
        &mut self,
        device: &DeviceId,
        update: Digest,
        total_bytes: u64,
        now: Timestamp,
    ) -> Vec<Step> {
        // If the stored chunks cannot be listed, the device sends all of them again.
        let held = self.blobs.held(update, total_bytes).unwrap_or_default();
        self.settle(device, update, ReceiverEvent::Incomplete { held }, now)
    }

    /// Refuses running uploads that are no longer wanted, and drops waiting ones.
    pub fn judge_again(&mut self, judge: impl Fn(&DeviceId, &Offer) -> Verdict, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        let unwanted = |device: &DeviceId, offer: &Offer| match judge(device, offer) {
            Verdict::Refused(reason) => Some(reason),
            Verdict::Wanted | Verdict::Stored => None,
        };
        self.uploads.waiting.retain(|(device, offer)| unwanted(device, offer).is_none());
        let active = self.uploads.active.iter();
        let ends: Vec<(DeviceId, Digest, String)> = active
            .filter_map(|(device, turn)| {
                let offer = turn.engine.offer();
                Some((device.clone(), offer.digest, unwanted(device, offer)?))
            })
            .collect();
        for (device, update, reason) in ends {
            steps.extend(self.refuse(&device, update, reason, now));
        }
        steps
    }

    /// Frees the slots of a device that left.
    pub fn forget(&mut self, device: &DeviceId, now: Timestamp) -> Vec<Step> {
        self.uploads.drop_device(device);
        self.downloads.drop_device(device);
        let mut steps = self.next_uploads(now);
        steps.extend(self.next_downloads(now));
        steps
    }

    /// Repeats what the broker may have lost with the connection.
    pub fn nudge(&mut self, now: Timestamp) -> Vec<Step> {
        self.tell_senders(&SenderEvent::Nudged, now)
    }

    /// Does what is due at `now`, such as repeating an offer that was not answered.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Step> {
        self.tell_senders(&SenderEvent::Tick, now)
    }

    /// Returns the time of the next [`Transfers::tick`]; `None` if nothing is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.downloads.active.values().filter_map(|turn| turn.engine.deadline()).min()
    }

    fn offered(
        &mut self,
        device: &DeviceId,
        id: TransferId,
        offer: Offer,
        judge: impl Fn(&Offer) -> Verdict,
        now: Timestamp,
    ) -> Vec<Step> {
        if offer.id() != id {
            return Vec::new();
        }
        let send = |message| vec![Step::Send(device.clone(), id, message)];
        let verdict = match &offer.purpose {
            Purpose::Update { .. } => judge(&offer),
            Purpose::Weights { .. } => Verdict::Refused("a device may offer updates only".to_owned()),
        };
        match verdict {
            Verdict::Stored => send(TransferMessage::Done),
            Verdict::Refused(reason) => send(TransferMessage::Refused { reason: short_reason(&reason) }),
            Verdict::Wanted => {
                self.uploads.drop_unless(device, id, Receiver::id);
                if let Some(receiver) = self.uploads.heard(device, now) {
                    let actions = receiver.handle(ReceiverEvent::Received(TransferMessage::Offer(offer)));
                    return self.receiving(device, actions, now);
                }
                self.uploads.enter(device, offer);
                self.next_uploads(now)
            }
        }
    }

    fn settle(&mut self, device: &DeviceId, update: Digest, event: ReceiverEvent, now: Timestamp) -> Vec<Step> {
        let receiver = self.uploads.active(device).filter(|receiver| receiver.offer().digest == update);
        let actions = receiver.map(|receiver| receiver.handle(event)).unwrap_or_default();
        self.receiving(device, actions, now)
    }

    fn next_uploads(&mut self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some((device, offer)) = self.uploads.next(now) {
            let found = self.found(&offer);
            let (receiver, actions) = Receiver::new(offer, found);
            self.uploads.start(&device, receiver, now);
            steps.extend(self.receiving(&device, actions, now));
        }
        steps
    }

    /// Returns the chunks of a payload that are on the disk. A complete payload is assembled and checked like any other.
    fn found(&self, offer: &Offer) -> Found {
        let mut held = Held::default();
        if self.blobs.contains(offer.digest) {
            (0..offer.chunks()).for_each(|index| held.insert(index));
        } else if let Ok(found) = self.blobs.held(offer.digest, offer.total_bytes) {
            held = found;
        }
        Found::Chunks(held)
    }

    fn receiving(&mut self, device: &DeviceId, actions: Vec<ReceiverAction>, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut actions = VecDeque::from(actions);
        let mut ended = false;
        while let Some(action) = actions.pop_front() {
            let Some(receiver) = self.uploads.active(device) else { break };
            let (id, offer) = (receiver.id(), receiver.offer().clone());
            let event = match action {
                ReceiverAction::Send(message) => {
                    steps.push(Step::Send(device.clone(), id, message));
                    continue;
                }
                ReceiverAction::Completed => {
                    ended = true;
                    continue;
                }
                ReceiverAction::Failed { reason } => {
                    tracing::warn!(%device, reason, "an update was refused");
                    ended = true;
                    continue;
                }
                ReceiverAction::Store { index, bytes } => {
                    match self.blobs.put_chunk(offer.digest, offer.total_bytes, index, &bytes) {
                        Ok(()) => ReceiverEvent::Stored { index },
                        Err(error) => store_failed(device, &error),
                    }
                }
                ReceiverAction::Assemble => {
                    steps.push(Step::Arrived(device.clone(), offer));
                    continue;
                }
            };
            if let Some(receiver) = self.uploads.active(device) {
                actions.extend(receiver.handle(event));
            }
        }
        if ended {
            self.uploads.drop_device(device);
            steps.extend(self.next_uploads(now));
        }
        steps
    }

    fn next_downloads(&mut self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some((device, offer)) = self.downloads.next(now) {
            let mut sender = Sender::new(offer);
            let actions = sender.handle(SenderEvent::Nudged, now);
            self.downloads.start(&device, sender, now);
            steps.extend(self.sending(&device, actions, now));
        }
        steps
    }

    fn sending(&mut self, device: &DeviceId, actions: Vec<SenderAction>, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        for action in actions {
            let Some(sender) = self.downloads.active(device) else { break };
            let (id, weights) = (sender.id(), sender.offer().digest);
            match action {
                SenderAction::Send(message) => steps.push(Step::Send(device.clone(), id, message)),
                SenderAction::SendChunk { index } => match self.blobs.chunk(weights, index) {
                    Ok(bytes) => steps.push(Step::Send(device.clone(), id, TransferMessage::Chunk { index, bytes })),
                    Err(error) => {
                        tracing::error!(%device, error = %chain(&error), "cannot read the global weights");
                        self.downloads.drop_device(device);
                    }
                },
                SenderAction::Finished => self.downloads.drop_device(device),
                SenderAction::Refused { reason } => {
                    tracing::warn!(%device, reason, "the device refused the weights");
                    self.downloads.drop_device(device);
                }
            }
        }
        steps.extend(self.next_downloads(now));
        steps
    }

    fn tell_senders(&mut self, event: &SenderEvent, now: Timestamp) -> Vec<Step> {
        let devices: Vec<DeviceId> = self.downloads.active.keys().cloned().collect();
        let mut steps = Vec::new();
        for device in devices {
            let sender = self.downloads.active(&device);
            let actions = sender.map(|sender| sender.handle(event.clone(), now)).unwrap_or_default();
            steps.extend(self.sending(&device, actions, now));
        }
        steps
    }
}

fn store_failed(device: &DeviceId, error: &BlobError) -> ReceiverEvent {
    tracing::error!(%device, error = %chain(error), "cannot store an update");
    ReceiverEvent::StoreFailed { reason: format!("the coordinator cannot store it: {error}") }
}

/// Running engines, and offers that wait for a slot.
#[derive(Debug)]
struct Turns<E> {
    slots: usize,
    active: BTreeMap<DeviceId, Turn<E>>,
    waiting: VecDeque<(DeviceId, Offer)>,
}

#[derive(Debug)]
struct Turn<E> {
    engine: E,
    heard: Timestamp,
}

impl<E> Turns<E> {
    fn new(slots: usize) -> Self {
        Self { slots: slots.max(1), active: BTreeMap::new(), waiting: VecDeque::new() }
    }

    fn active(&mut self, device: &DeviceId) -> Option<&mut E> {
        self.active.get_mut(device).map(|turn| &mut turn.engine)
    }

    fn heard(&mut self, device: &DeviceId, now: Timestamp) -> Option<&mut E> {
        let turn = self.active.get_mut(device)?;
        turn.heard = now;
        Some(&mut turn.engine)
    }

    /// Queues an offer, and drops an older one of the same device. A running engine keeps its slot.
    fn enter(&mut self, device: &DeviceId, offer: Offer) {
        if self.active.contains_key(device) {
            return;
        }
        match self.waiting.iter_mut().find(|(waiting, _)| waiting == device) {
            Some((_, older)) => *older = offer,
            None => self.waiting.push_back((device.clone(), offer)),
        }
    }

    /// Returns the next offer to start, if a slot is free or can be taken from an idle transfer.
    fn next(&mut self, now: Timestamp) -> Option<(DeviceId, Offer)> {
        if !self.waiting.is_empty() && self.active.len() >= self.slots {
            let idles = |turn: &Turn<E>| now.millis_since(turn.heard) >= IDLE_MS;
            let idle = self.active.iter().find(|(_, turn)| idles(turn)).map(|(device, _)| device.clone())?;
            self.active.remove(&idle);
        }
        self.waiting.pop_front()
    }

    fn start(&mut self, device: &DeviceId, engine: E, now: Timestamp) {
        self.active.insert(device.clone(), Turn { engine, heard: now });
    }

    fn drop_unless(&mut self, device: &DeviceId, id: TransferId, id_of: impl Fn(&E) -> TransferId) {
        if self.active.get(device).is_some_and(|turn| id_of(&turn.engine) != id) {
            self.drop_device(device);
        }
    }

    fn drop_device(&mut self, device: &DeviceId) {
        self.active.remove(device);
        self.waiting.retain(|(waiting, _)| waiting != device);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_blobs::DiskBlobs;
    use skiff_protocol::samples;
    use skiff_protocol::transfer::CHUNK_BYTES;
    use tempfile::TempDir;

    const RUN: RunId = RunId(1);

    fn device(name: &str) -> DeviceId {
        name.parse().unwrap()
    }

    fn transfers(slots: usize) -> (Transfers, TempDir) {
        let folder = TempDir::new().unwrap();
        let blobs = DiskBlobs::open(folder.path(), 1 << 24).unwrap();
        (Transfers::new(Arc::new(blobs), slots), folder)
    }

    fn update(bytes: &[u8]) -> Offer {
        let purpose = Purpose::Update { run: RUN, round: 1, epoch: 2, report: samples::train_report() };
        Offer { purpose, digest: Digest::of(bytes), total_bytes: bytes.len() as u64 }
    }

    fn wanted(_: &Offer) -> Verdict {
        Verdict::Wanted
    }

    fn offer(transfers: &mut Transfers, name: &str, offer: &Offer, at: u64) -> Vec<Step> {
        transfers.receive(&device(name), offer.id(), TransferMessage::Offer(offer.clone()), wanted, Timestamp(at))
    }

    fn sent_to(steps: &[Step]) -> Vec<(&str, &TransferMessage)> {
        steps
            .iter()
            .filter_map(|step| match step {
                Step::Send(device, _, message) => Some((device.as_str(), message)),
                Step::Arrived(..) => None,
            })
            .collect()
    }

    /// Sends every chunk and returns the last steps.
    fn upload(transfers: &mut Transfers, name: &str, offer: &Offer, bytes: &[u8], at: u64) -> Vec<Step> {
        let chunk =
            |(index, bytes): (usize, &[u8])| TransferMessage::Chunk { index: index as u32, bytes: bytes.to_vec() };
        let chunks = bytes.chunks(CHUNK_BYTES).enumerate().map(chunk);
        chunks.map(|chunk| transfers.receive(&device(name), offer.id(), chunk, wanted, Timestamp(at))).last().unwrap()
    }

    #[test]
    fn an_update_is_done_only_when_it_is_confirmed() {
        let (mut transfers, _folder) = transfers(2);
        let bytes = vec![7; CHUNK_BYTES + 10];
        let update = update(&bytes);
        assert!(matches!(sent_to(&offer(&mut transfers, "a", &update, 0))[..], [("a", TransferMessage::Grant { .. })]));
        let steps = upload(&mut transfers, "a", &update, &bytes, 1);
        assert_eq!(steps.last(), Some(&Step::Arrived(device("a"), update.clone())));
        assert!(!sent_to(&steps).iter().any(|(_, message)| **message == TransferMessage::Done));
        let steps = transfers.confirm(&device("a"), update.digest, Timestamp(2));
        assert_eq!(sent_to(&steps), [("a", &TransferMessage::Done)]);
    }

    #[test]
    fn chunks_that_do_not_make_the_payload_are_asked_for_again() {
        let (mut transfers, _folder) = transfers(2);
        let update = update(b"right");
        offer(&mut transfers, "a", &update, 0);
        upload(&mut transfers, "a", &update, b"wrong", 1);
        let steps = transfers.start_over(&device("a"), update.digest, Timestamp(2));
        assert!(matches!(sent_to(&steps)[..], [("a", TransferMessage::Grant { held, .. })] if held.count(1) == 0));
    }

    #[test]
    fn an_unfit_update_is_refused_with_a_reason_of_bounded_length() {
        let (mut transfers, _folder) = transfers(2);
        let update = update(b"bad");
        offer(&mut transfers, "a", &update, 0);
        upload(&mut transfers, "a", &update, b"bad", 1);
        let steps = transfers.refuse(&device("a"), update.digest, "ä".repeat(300), Timestamp(2));
        let [("a", TransferMessage::Refused { reason })] = sent_to(&steps)[..] else { panic!("{steps:?}") };
        assert!(reason.starts_with('ä') && reason.len() <= 200);
        let judge = |_: &Offer| Verdict::Refused("x".repeat(999));
        let again = TransferMessage::Offer(update.clone());
        let steps = transfers.receive(&device("a"), update.id(), again, judge, Timestamp(3));
        assert!(matches!(sent_to(&steps)[..], [(_, TransferMessage::Refused { reason })] if reason.len() == 200));
    }

    #[test]
    fn what_was_assembled_before_a_crash_is_looked_at_again_without_being_sent() {
        let (mut transfers, _folder) = transfers(2);
        let update = update(b"whole");
        transfers.blobs.put(b"whole").unwrap();
        let steps = offer(&mut transfers, "a", &update, 0);
        assert_eq!(steps.last(), Some(&Step::Arrived(device("a"), update)));
    }

    #[test]
    fn an_offer_under_another_name_or_of_weights_is_not_taken() {
        let (mut transfers, _folder) = transfers(2);
        let update = update(b"x");
        let message = TransferMessage::Offer(update.clone());
        assert_eq!(transfers.receive(&device("a"), TransferId(1), message, wanted, Timestamp(0)), []);
        let weights = Offer { purpose: Purpose::Weights { run: RUN }, ..update };
        let steps = offer(&mut transfers, "a", &weights, 0);
        assert!(matches!(sent_to(&steps)[..], [(_, TransferMessage::Refused { .. })]));
    }

    #[test]
    fn uploads_wait_for_a_slot_and_take_it_when_one_ends_idles_or_leaves() {
        let (mut transfers, _folder) = transfers(1);
        let updates: Vec<Offer> = [b"a", b"b", b"c", b"d"].iter().map(|bytes| update(*bytes)).collect();
        assert_eq!(sent_to(&offer(&mut transfers, "a", &updates[0], 0)).len(), 1);
        assert_eq!(offer(&mut transfers, "b", &updates[1], 0), []);
        assert_eq!(offer(&mut transfers, "c", &updates[2], 0), []);
        upload(&mut transfers, "a", &updates[0], b"a", 1);
        let steps = transfers.confirm(&device("a"), updates[0].digest, Timestamp(2));
        let granted: Vec<&str> = sent_to(&steps).iter().map(|(device, _)| *device).collect();
        assert_eq!(granted, ["a", "b"], "Done, and the next one's turn");
        let steps = transfers.forget(&device("b"), Timestamp(3));
        assert_eq!(sent_to(&steps)[0].0, "c");
        assert_eq!(offer(&mut transfers, "d", &updates[3], 3 + IDLE_MS - 1), []);
        assert_eq!(sent_to(&offer(&mut transfers, "d", &updates[3], 3 + IDLE_MS))[0].0, "d");
    }

    #[test]
    fn updates_of_a_closed_round_are_dropped_and_their_devices_told() {
        let (mut transfers, _folder) = transfers(1);
        offer(&mut transfers, "a", &update(b"a"), 0);
        offer(&mut transfers, "b", &update(b"b"), 0);
        let steps = transfers.judge_again(|_, _| Verdict::Refused("round 1 is closed".into()), Timestamp(1));
        assert!(matches!(sent_to(&steps)[..], [("a", TransferMessage::Refused { .. })]), "{steps:?}");
        assert!(transfers.uploads.active.is_empty() && transfers.uploads.waiting.is_empty());
    }

    #[test]
    fn weights_are_sent_on_grant_and_newer_ones_take_their_place() {
        let (mut transfers, _folder) = transfers(2);
        let old = transfers.blobs.put(b"old").unwrap();
        let new = transfers.blobs.put(b"new").unwrap();
        let steps = transfers.offer_weights(&device("a"), RUN, old, Timestamp(0));
        let [Step::Send(_, id, TransferMessage::Offer(_))] = steps[..] else { panic!("{steps:?}") };
        let grant = TransferMessage::Grant { held: Held::default(), window: 4 };
        let steps = transfers.receive(&device("a"), id, grant.clone(), wanted, Timestamp(1));
        assert!(matches!(sent_to(&steps)[..], [(_, TransferMessage::Chunk { index: 0, bytes })] if bytes == b"old"));
        assert!(transfers.deadline().is_some());
        let steps = transfers.offer_weights(&device("a"), RUN, new, Timestamp(2));
        let [Step::Send(_, new_id, TransferMessage::Offer(_))] = steps[..] else { panic!("{steps:?}") };
        assert_eq!(transfers.receive(&device("a"), id, grant, wanted, Timestamp(3)), [], "of the older transfer");
        assert_eq!(transfers.receive(&device("a"), new_id, TransferMessage::Done, wanted, Timestamp(4)), []);
        assert_eq!(transfers.deadline(), None);
        assert_eq!(transfers.offer_weights(&device("a"), RUN, Digest([3; 32]), Timestamp(5)), [], "not there");
    }
}
