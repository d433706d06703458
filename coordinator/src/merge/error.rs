//! Faults of a merge.

use super::AggregateError;
use super::ordered::OrderedError;
use skiff_blobs::BlobError;
use skiff_models::tensors::TensorError;
use skiff_protocol::DeviceId;

/// A reason why updates were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A blob could not be read or stored.
    #[error("reading or storing the blob of {whose}")]
    Blob {
        /// Owner of the blob: a device, or the purpose of the blob.
        whose: String,
        /// Cause.
        source: BlobError,
    },
    /// The tensors in a blob are not the expected ones.
    #[error("reading or writing the tensors of {whose}")]
    Tensors {
        /// Owner of the tensors: a device, or the purpose of the tensors.
        whose: String,
        /// Cause.
        source: TensorError,
    },
    /// An update cannot be added.
    #[error("adding the update of {device}")]
    Update {
        /// Device that delivered it.
        device: DeviceId,
        /// Cause.
        source: AggregateError,
    },
    /// A rule that compares all updates failed.
    #[error(transparent)]
    Ordered(#[from] OrderedError),
}
