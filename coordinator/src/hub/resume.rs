//! Takes up the run that the journal's end leaves open.

use super::{Hub, HubError};
use crate::run::{Action, Event, Run};
use skiff_base::chain;
use skiff_blobs::BlobError;
use skiff_protocol::{RunId, Timestamp};

impl Hub {
    pub(super) fn take_up(&mut self, run: RunId, now: Timestamp) -> Result<(), HubError> {
        let (taken, actions) = self.resume(run, now)?;
        let ledger = taken.ledger();
        let (weights, is_ended, pack) = (ledger.weights, ledger.is_ended(), ledger.start.pack);
        // Reading the blob, not only looking it up, finds damage before each device fails its check of the digest.
        let unreadable = if is_ended { None } else { self.blobs.read(weights).err() };
        if !is_ended {
            tracing::info!(%run, round = ledger.round, "resuming the run");
        }
        self.travelled = self.store.traffic(run)?;
        self.traffic_round = ledger.round;
        self.run = Some(taken);
        self.mark_all();
        self.decided.extend(actions);
        if !is_ended && pack != self.model.pack {
            tracing::warn!(%run, "stopping the run because it was started with another pack");
            self.feed(Event::StopRequested { reason: format!("it was started with another pack, {pack:?}") }, now);
        }
        if let Some(fault) = unreadable {
            let reason = match &fault {
                BlobError::Corrupt { .. } => {
                    format!("its weights {weights} are damaged on disk: {}", chain(&fault))
                }
                BlobError::Missing { .. } => format!("its weights {weights} are missing: {}", chain(&fault)),
                BlobError::Io { .. } | BlobError::WrongChunk { .. } | BlobError::QuotaExceeded { .. } => {
                    format!("its weights {weights} cannot be read: {}", chain(&fault))
                }
            };
            self.feed(Event::StopRequested { reason }, now);
        }
        self.leave_out_removed(now);
        self.effects = self.settle(now)?;
        Ok(())
    }

    pub(super) fn resume(&self, run: RunId, now: Timestamp) -> Result<(Run, Vec<Action>), HubError> {
        Ok(self.store.resume(run, now)?)
    }
}
