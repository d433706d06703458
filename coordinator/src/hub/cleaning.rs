//! Removes the weights and updates that nothing needs any more.

use super::{Hub, HubError};
use crate::run::{Phase, Run};
use crate::store::collector::{self, Collected};
use skiff_base::chain;
use skiff_protocol::Digest;
use std::collections::BTreeSet;

impl Hub {
    /// Returns the blobs that the current run needs.
    pub(super) fn in_use(&self) -> BTreeSet<Digest> {
        self.run.as_ref().map(|run| run.ledger().needed()).unwrap_or_default()
    }

    /// Removes a blob that this process received or made, if nothing needs it. Blobs in use stay: a device may have offered the
    /// digest of one, for example of the global weights.
    pub(super) fn drop_received(&self, digest: Digest) {
        let in_use =
            self.in_use().contains(&digest) || self.arrivals.contains(digest) || self.unknown.contains(&digest);
        let removed = self.store.kept().and_then(|kept| {
            let is_free = !in_use && !kept.contains(&digest);
            if is_free { Ok(self.blobs.remove(digest)?) } else { Ok(()) }
        });
        if let Err(error) = removed {
            tracing::error!(error = %chain(&error), "cannot remove a refused update");
        }
    }

    /// Removes superseded blobs, and the chunks of updates if no device trains.
    pub(super) fn remove_blobs(&self) -> Result<Collected, HubError> {
        let needed = self.in_use();
        let in_use = |blob: Digest| needed.contains(&blob) || self.arrivals.contains(blob);
        let collected = collector::collect(&*self.store, &*self.blobs, &in_use, true)?;
        if !collected.removed.is_empty() {
            let (blobs, bytes) = (collected.removed.len(), collected.removed_bytes);
            tracing::info!(blobs, bytes, "removed superseded weights and updates");
        }
        let trains =
            self.run.as_ref().map(Run::ledger).is_some_and(|ledger| {
                matches!(ledger.phase, Phase::Train(_)) || !ledger.carried.assignments.is_empty()
            });
        for partial in self.blobs.partials()?.into_iter().filter(|_| !trains) {
            if !self.arrivals.contains(partial) {
                self.blobs.abandon(partial)?;
            }
        }
        Ok(collected)
    }
}
