//! The way of an update from its offer to its check, and the steps that transfers ask for.

use super::{Effect, Hub};
use crate::arrivals::{Arrival, Checked};
use crate::run::{Event, Run, Verdict};
use crate::transfers::Step;
use skiff_protocol::messages::{Command, Order};
use skiff_protocol::transfer::{Offer, PROBE, PROBED_RUN, Purpose, TransferMessage};
use skiff_protocol::{DeviceId, Timestamp, Version};

/// Number of bytes by which an update may exceed the initial weights, for the names and shapes in its header.
const UPDATE_SLACK_BYTES: u64 = 64 * 1024;
/// Interval of [`MAX_PROBES`], in milliseconds.
const PROBES_MS: u64 = 1_000;
/// Largest number of probes that are answered in an interval. `skiff-agent doctor` sends five.
pub(super) const MAX_PROBES: u32 = 50;

impl Hub {
    /// Returns the maximum size of an update in bytes: all weights, and some room for the header.
    pub(super) fn most_bytes(&self) -> u64 {
        self.model.initial.len() as u64 + UPDATE_SLACK_BYTES
    }

    /// Sends a chunk back to a device that tests the way, and a command that changes nothing.
    ///
    /// At most [`MAX_PROBES`] are answered in each [`PROBES_MS`], so that a hostile device cannot fill the queue to the broker.
    pub(super) fn answer_probe(&mut self, device: &DeviceId, chunk: TransferMessage, now: Timestamp) {
        if now.millis_since(self.probes.0) >= PROBES_MS {
            self.probes = (now, 0);
        }
        self.probes.1 += 1;
        if self.probes.1 > MAX_PROBES {
            return;
        }
        // A device that tests the way may be of any version.
        let version = Version::OLDEST;
        self.publish(self.writer.transfer(device, version, PROBE, chunk));
        let stop = Command { run: PROBED_RUN, started_ms: 0, round: 0, epoch: 0, order: Order::Stop };
        self.publish(self.writer.command(device, version, stop));
    }

    /// Carries out the steps that transfers asked for.
    pub(super) fn follow(&mut self, steps: Vec<Step>, now: Timestamp) {
        for step in steps {
            match step {
                Step::Send(device, id, message) => {
                    let version = self.fleet.version(&device);
                    self.publish(self.writer.transfer(&device, version, id, message));
                }
                Step::Arrived(device, offer) => self.arrived(device, offer, now),
            }
        }
    }

    /// Queues an update for its check, after all its chunks have arrived.
    pub(super) fn arrived(&mut self, device: DeviceId, offer: Offer, now: Timestamp) {
        let Offer { digest, total_bytes, purpose } = offer;
        let Purpose::Update { epoch, report, .. } = purpose else { return };
        let Some(ledger) = self.run.as_ref().map(Run::ledger) else {
            let steps = self.transfers.refuse(&device, digest, "there is no current run".to_owned(), now);
            return self.follow(steps, now);
        };
        let ordered = ledger.order_of(&device);
        let rank = ordered.map_or(0, |ordered| ordered.assignment.share.rank);
        let base = ordered.map_or(ledger.weights, |ordered| ordered.weights);
        self.arrivals.push(Arrival { device, digest, total_bytes, epoch, report, base, rank });
        self.check_next();
    }

    pub(super) fn check_next(&mut self) {
        self.effects.extend(self.arrivals.start_next().map(Effect::Check));
    }

    pub(super) fn take_checked(&mut self, arrival: Arrival, checked: Checked, now: Timestamp) {
        let Arrival { device, digest, total_bytes, epoch, report, .. } = arrival;
        match checked {
            Checked::Fit { distance } => {
                self.feed(Event::UpdateStored { device, epoch, update: digest, report, distance }, now);
            }
            Checked::Unfit { reason } => {
                tracing::warn!(%device, reason, "an update was refused because it does not fit the model");
                self.fleet.note(&device, &format!("update refused: {reason}"));
                self.drop_received(digest);
                let steps = self.transfers.refuse(&device, digest, reason.clone(), now);
                self.feed(Event::UpdateUnfit { device, epoch, reason }, now);
                self.follow(steps, now);
            }
            Checked::WrongDigest => {
                let steps = self.transfers.start_over(&device, digest, now);
                self.follow(steps, now);
            }
            Checked::Incomplete => {
                let steps = self.transfers.ask_for_missing(&device, digest, total_bytes, now);
                self.follow(steps, now);
            }
            Checked::Failed { reason } => {
                tracing::error!(%device, reason, "cannot store an update");
                let reason = format!("the coordinator cannot store it: {reason}");
                let steps = self.transfers.refuse(&device, digest, reason, now);
                self.follow(steps, now);
            }
        }
    }
}

/// Returns the epoch and the reason if the offer is refused although the run waits for this update. The device would offer the
/// same update again, so its part in the round is over.
pub(super) fn refused_for_good(
    run: Option<&Run>,
    most_bytes: u64,
    device: &DeviceId,
    message: &TransferMessage,
) -> Option<(u64, String)> {
    let TransferMessage::Offer(offer) = message else { return None };
    let Purpose::Update { epoch, .. } = offer.purpose else { return None };
    let is_awaited = run.is_some_and(|run| run.is_awaited(device, epoch));
    match judge(run, most_bytes, device, offer) {
        Verdict::Refused(reason) if is_awaited => Some((epoch, reason)),
        Verdict::Refused(_) | Verdict::Wanted | Verdict::Stored => None,
    }
}

pub(super) fn judge(run: Option<&Run>, most_bytes: u64, device: &DeviceId, offer: &Offer) -> Verdict {
    let verdict = match (run, &offer.purpose) {
        (Some(run), Purpose::Update { run: id, round, epoch, report }) => {
            run.judge_offer(device, *id, *round, *epoch, report)
        }
        (None, _) | (_, Purpose::Weights { .. }) => Verdict::Refused("there is no current run".to_owned()),
    };
    if verdict == Verdict::Wanted && offer.total_bytes > most_bytes {
        return Verdict::Refused(format!("an update of {} bytes, expected at most {most_bytes}", offer.total_bytes));
    }
    verdict
}
