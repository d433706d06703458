//! The transfers of a fleet: receives updates and sends weights, a limited number at a time.
//!
//! The engines of `skiff-protocol` decide each transfer; this module gives them access to the disk, and a slot. A device has at
//! most one transfer in each direction: the newest. At most `slots` transfers run in each direction at a time, so that no more
//! than `slots` windows of chunks are in flight; the others wait in order of arrival. A transfer that is silent for [`IDLE_MS`]
//! gives its slot to a waiting one, and queues again when its device sends a message. A transfer without progress for
//! [`crate::stalls::STALL_MS`] is reported as a [`Stall`].

mod turns;

use crate::run::Verdict;
use crate::stalls::Stall;
use skiff_base::chain;
use skiff_blobs::{BlobError, Blobs};
use skiff_protocol::messages::short_reason;
use skiff_protocol::transfer::{
    Found, Held, Offer, Purpose, Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent,
    TransferId, TransferMessage,
};
use skiff_protocol::{DeviceId, Digest, RunId, Timestamp};
use std::collections::VecDeque;
use std::sync::Arc;
use turns::Turns;

pub use turns::IDLE_MS;

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
                let Some(sender) = self.downloads.heard(device, now).filter(|sender| sender.id() == id) else {
                    return Vec::new();
                };
                let before = sender.acknowledged();
                let actions = sender.handle(SenderEvent::Received(message), now);
                let has_moved = sender.acknowledged() > before;
                self.downloads.silences.answered(device);
                if has_moved {
                    self.downloads.silences.moved(device, now);
                }
                self.sending(device, actions, now)
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
        let senders = self.downloads.active.values().filter_map(|turn| turn.engine.deadline());
        senders.chain(self.downloads.silences.due()).chain(self.uploads.silences.due()).min()
    }

    /// Returns the transfers that have stalled since the last call, and `None` for each device whose transfer moves again.
    pub fn take_stalls(&mut self, now: Timestamp) -> Vec<(DeviceId, Option<Stall>)> {
        let (mut moving, down) = self.downloads.silences.take_news(now);
        let (more, up) = self.uploads.silences.take_news(now);
        moving.extend(more);
        let weights = |has_answered| if has_answered { Stall::WeightsUnmoved } else { Stall::WeightsUnanswered };
        let moving = moving.into_iter().map(|device| (device, None));
        let down = down.into_iter().map(|(device, has_answered)| (device, Some(weights(has_answered))));
        let up = up.into_iter().map(|(device, _)| (device, Some(Stall::UpdateUnmoved)));
        moving.chain(down).chain(up).collect()
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
                        Ok(()) => {
                            self.uploads.silences.moved(device, now);
                            ReceiverEvent::Stored { index }
                        }
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

#[cfg(test)]
mod tests;
