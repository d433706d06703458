//! Reads the updates of a merge, one after another. A rule decides what to do with them.
//!
//! At most one update and one set of older weights are in memory at a time. Updates that started from the same older weights are
//! read one after another, so each set of older weights is read once in a pass. The order does not change the result, because no
//! rule depends on the order of its updates.

use super::error::MergeError;
use crate::run::{MergeInput, MergeJob};
use skiff_blobs::BlobError;
use skiff_models::tensors::{self, NamedTensors, Schema, TensorError};
use skiff_protocol::Digest;

/// Reads a blob.
pub(super) type ReadBlob<'a> = &'a dyn Fn(Digest) -> Result<Vec<u8>, BlobError>;

/// The updates of a merge.
pub(super) struct Updates<'a> {
    schema: &'a Schema,
    base: &'a NamedTensors,
    read_blob: ReadBlob<'a>,
    /// Up-to-date inputs first, then stale ones by the weights they started from.
    inputs: Vec<&'a MergeInput>,
}

impl<'a> Updates<'a> {
    /// Prepares to read the updates of `job`. `base` holds the weights that they are merged into.
    pub(super) fn new(schema: &'a Schema, job: &'a MergeJob, base: &'a NamedTensors, read_blob: ReadBlob<'a>) -> Self {
        let mut inputs: Vec<&MergeInput> = job.updates.iter().collect();
        inputs.sort_by_key(|input| input.stale.map(|(started, _)| started));
        Self { schema, base, read_blob, inputs }
    }

    /// Reads every update once and hands it to `fold`.
    ///
    /// # Errors
    /// A blob that is missing or damaged, or an error of `fold`.
    pub(super) fn for_each(
        &self,
        mut fold: impl FnMut(&MergeInput, NamedTensors) -> Result<(), MergeError>,
    ) -> Result<(), MergeError> {
        let mut older: Option<(Digest, NamedTensors)> = None;
        for &input in &self.inputs {
            let mut update = self.read(input)?;
            if let Some((started, behind)) = input.stale {
                if older.as_ref().is_none_or(|(digest, _)| *digest != started) {
                    older = Some((started, weights(self.schema, started, self.read_blob)?));
                }
                if let Some((_, weights)) = &older {
                    self.scale_down(&mut update, &cut_to_rank(weights, self.schema, input.rank), behind);
                }
            }
            fold(input, update)?;
        }
        Ok(())
    }

    fn read(&self, input: &MergeInput) -> Result<NamedTensors, MergeError> {
        let device = input.device.as_str();
        let bytes = blob(input.update, device, self.read_blob)?;
        let read = shared(self.schema, &bytes, &input.shared_layers, input.rank);
        read.map_err(|source| MergeError::Tensors { whose: device.to_owned(), source })
    }

    /// Replaces a stale update by `base + (update - started) / sqrt(1 + τ)`, where `τ` is the number of merges since the weights
    /// that it started from (FedBuff, Nguyen et al., arXiv:2106.06639, section 5.1, "staleness scaling").
    fn scale_down(&self, update: &mut NamedTensors, started: &NamedTensors, behind: u32) {
        let scale = 1.0 / (1.0 + behind as f32).sqrt();
        for (name, values) in update {
            if let (Some(base), Some(started)) = (self.base.get(name), started.get(name)) {
                ndarray::Zip::from(values)
                    .and(base)
                    .and(started)
                    .for_each(|value, &base, &started| *value = base + scale * (*value - started));
            }
        }
    }
}

/// Reads whole weights.
pub(super) fn weights(schema: &Schema, weights: Digest, read_blob: ReadBlob<'_>) -> Result<NamedTensors, MergeError> {
    let bytes = blob(weights, "the global weights", read_blob)?;
    schema.read(&bytes).map_err(|source| MergeError::Tensors { whose: "the global weights".to_owned(), source })
}

/// Reads an update: exactly the tensors of the head and of `shared_layers`, at LoRA rank `rank`, padded to the pack's rank.
pub(super) fn shared(
    schema: &Schema,
    bytes: &[u8],
    shared_layers: &[u32],
    rank: u32,
) -> Result<NamedTensors, TensorError> {
    let layers: Vec<usize> = shared_layers.iter().map(|&layer| layer as usize).collect();
    let schema = schema.of_layers(&layers);
    Ok(tensors::pad(schema.at_rank(rank as usize).read(bytes)?, &schema))
}

/// Returns the weights that a device of LoRA rank `rank` starts from, padded with zeros, so that the distance in the ranks that
/// it lacks is zero.
pub(super) fn cut_to_rank(weights: &NamedTensors, schema: &Schema, rank: u32) -> NamedTensors {
    tensors::pad(tensors::cut(weights.clone(), &schema.at_rank(rank as usize)), schema)
}

/// Reads a blob; `whose` names it in the error.
pub(super) fn blob(digest: Digest, whose: &str, read_blob: ReadBlob<'_>) -> Result<Vec<u8>, MergeError> {
    read_blob(digest).map_err(|source| MergeError::Blob { whose: whose.to_owned(), source })
}
