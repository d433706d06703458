//! Computes the space on the disk that a run needs, before it starts.

use super::StoreError;
use crate::run::RunSettings;
use bytesize::ByteSize;
use skiff_blobs::Blobs;

/// Returns the maximum number of bytes that a run's blobs take at any time.
///
/// Let `W` be the bytes of the weights and `n = devices + over_selection` the updates in flight, each of at most
/// `update_bytes`. The sum is: `W` for the initial, the last, the best and the next weights each; two sets of moments of `2·W` if the server optimizer
/// has any; `n` updates; in asynchronous rounds, the weights that orders started from: at most `min(n, max_staleness + 1)·W`.
#[must_use]
pub fn needed_bytes(settings: &RunSettings, weights_bytes: u64, update_bytes: u64) -> u64 {
    let updates = u64::from(settings.devices) + u64::from(settings.over_selection);
    let moments = if settings.merge.server.has_moments() { 4 } else { 0 };
    let bases = if settings.asynchronous { updates.min(u64::from(settings.max_staleness) + 1) } else { 0 };
    let weights = (4 + moments + bases).saturating_mul(weights_bytes);
    weights.saturating_add(updates.saturating_mul(update_bytes))
}

/// Returns the reason why there is no space for a run that needs `needed_bytes`; `None` if there is.
///
/// # Errors
/// Failures of the disk.
pub fn lacking(blobs: &dyn Blobs, needed_bytes: u64) -> Result<Option<String>, StoreError> {
    let (quota, disk) = (blobs.room_bytes(), blobs.disk_free_bytes()?);
    if needed_bytes <= quota.min(disk) {
        return Ok(None);
    }
    let needed = ByteSize(needed_bytes).display().si();
    Ok(Some(if quota < disk {
        format!(
            "no room for the run's weights: it needs up to {needed}, and {} are left below limits.blob_bytes; raise that \
             limit, or delete runs (`skiff run delete`)",
            ByteSize(quota).display().si()
        )
    } else {
        format!(
            "no room for the run's weights: it needs up to {needed}, and {} are free on the disk of {}; free some, or delete \
             runs (`skiff run delete`)",
            ByteSize(disk).display().si(),
            blobs.place().display()
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_need_counts_weights_moments_bases_and_updates_in_flight() {
        let settings = RunSettings { devices: 3, over_selection: 1, ..RunSettings::default() };
        assert_eq!(needed_bytes(&settings, 100, 110), 4 * 100 + 4 * 110);
        let buffered = RunSettings { asynchronous: true, max_staleness: 2, ..settings.clone() };
        assert_eq!(needed_bytes(&buffered, 100, 110), (4 + 3) * 100 + 4 * 110);
        let mut adam = settings;
        adam.merge.server = crate::merge::Server::Adam(crate::merge::Adaptive::default());
        assert_eq!(needed_bytes(&adam, 100, 110), (4 + 4) * 100 + 4 * 110);
    }
}
