//! What the coordinator has to know of the model: the trainable tensors, and how updates of them are read and merged.

use crate::aggregate::{Aggregate, AggregateError, is_mergeable};
use crate::round::MergeJob;
use skiff_blobs::{BlobError, Blobs};
use skiff_models::pack::{Pack, PackError};
use skiff_models::tensors::{self, NamedTensors, Schema, TensorError};
use skiff_protocol::{DeviceId, Digest};
use std::path::Path;

/// The model of a fleet.
#[derive(Debug)]
pub struct Model {
    /// Digest of the pack.
    pub pack: Digest,
    /// Every trainable tensor.
    pub schema: Schema,
    /// Layers.
    pub layers: u32,
    /// The initial weights as a safetensors blob.
    pub initial: Vec<u8>,
}

/// Why updates were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A blob could not be read or stored.
    #[error("blob of {whose}")]
    Blob {
        /// Whose.
        whose: String,
        /// Why not.
        source: BlobError,
    },
    /// Tensors that are not what they were when they were stored.
    #[error("tensors of {whose}")]
    Tensors {
        /// Whose.
        whose: String,
        /// What is wrong.
        source: TensorError,
    },
    /// An update that cannot be added.
    #[error("update of {device}")]
    Update {
        /// Whose.
        device: DeviceId,
        /// Why not.
        source: AggregateError,
    },
}

impl Model {
    /// Reads what is needed from a pack.
    ///
    /// # Errors
    /// A pack that is broken.
    pub fn open(pack: &Path) -> Result<Self, PackError> {
        let pack = Pack::open(pack)?;
        let initial = tensors::write(&pack.initial_weights()?).expect("f32 tensors can be written");
        let layers = pack.manifest().layers as u32;
        Ok(Self { pack: Digest(pack.digest()), schema: pack.schema().clone(), layers, initial })
    }

    /// Reads an update, exactly the tensors of the head and of the layers that it says it shares.
    ///
    /// # Errors
    /// What is wrong with it, in words for the device's operator.
    pub fn check_update(&self, bytes: &[u8], shared_layers: &[u32]) -> Result<(), String> {
        let update = self.read_shared(bytes, shared_layers).map_err(|error| error.to_string())?;
        if is_mergeable(&update) {
            Ok(())
        } else {
            Err("the update holds values of 2^24 and more: it has diverged".into())
        }
    }

    /// Merges updates into new weights, one at a time, and stores them.
    ///
    /// # Errors
    /// A blob that is missing or damaged, or cannot be stored.
    pub fn merge(&self, job: &MergeJob, blobs: &Blobs) -> Result<Digest, MergeError> {
        let blob = |whose: &str| {
            let whose = whose.to_owned();
            |source| MergeError::Blob { whose, source }
        };
        let tensors = |whose: &str| {
            let whose = whose.to_owned();
            |source| MergeError::Tensors { whose, source }
        };
        let mut aggregate = Aggregate::new(&self.schema);
        for input in &job.updates {
            let bytes = blobs.read(input.update).map_err(blob(input.device.as_str()))?;
            let update = self.read_shared(&bytes, &input.shared_layers).map_err(tensors(input.device.as_str()))?;
            let device = || input.device.clone();
            aggregate.add(&update, input.examples).map_err(|source| MergeError::Update { device: device(), source })?;
        }
        let base = blobs.read(job.base).map_err(blob("the global weights"))?;
        let base = self.schema.read(&base).map_err(tensors("the global weights"))?;
        let merged = tensors::write(&aggregate.finish(&base)).map_err(tensors("the merged weights"))?;
        blobs.put(&merged).map_err(blob("the merged weights"))
    }

    fn read_shared(&self, bytes: &[u8], shared_layers: &[u32]) -> Result<NamedTensors, TensorError> {
        let layers: Vec<usize> = shared_layers.iter().map(|&layer| layer as usize).collect();
        self.schema.of_layers(&layers).read(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::round::MergeInput;
    use ndarray::arr1;
    use skiff_models::tensors::TensorSpec;
    use skiff_protocol::RunId;
    use tempfile::TempDir;

    /// A model of two layers with a tensor each, and a head.
    pub(crate) fn tiny() -> Model {
        let spec = |name: &str, layer| TensorSpec { name: name.to_owned(), shape: vec![2], layer };
        let schema = Schema { tensors: vec![spec("head", None), spec("layer.0", Some(0)), spec("layer.1", Some(1))] };
        let initial = blob(&[("head", 0.0), ("layer.0", 0.0), ("layer.1", 0.5)]);
        Model { pack: Digest([9; 32]), schema, layers: 2, initial }
    }

    pub(crate) fn blob(values: &[(&str, f32)]) -> Vec<u8> {
        let named = values.iter().map(|(name, value)| ((*name).to_owned(), arr1(&[*value; 2]).into_dyn()));
        tensors::write(&named.collect()).unwrap()
    }

    #[test]
    fn a_merge_is_the_mean_of_those_who_shared() {
        let (model, folder) = (tiny(), TempDir::new().unwrap());
        let blobs = Blobs::open(folder.path(), 1 << 20).unwrap();
        let input = |name: &str, examples, shared_layers: &[u32], bytes: &[u8]| MergeInput {
            device: name.parse().unwrap(),
            update: blobs.put(bytes).unwrap(),
            examples,
            shared_layers: shared_layers.to_vec(),
        };
        let updates = vec![
            input("a", 30, &[0], &blob(&[("head", 1.0), ("layer.0", 2.0)])),
            input("b", 10, &[], &blob(&[("head", 5.0)])),
        ];
        let base = blobs.put(&model.initial).unwrap();
        let merged = model.merge(&MergeJob { run: RunId(1), epoch: 2, base, updates }, &blobs).unwrap();
        assert_eq!(blobs.read(merged).unwrap(), blob(&[("head", 2.0), ("layer.0", 2.0), ("layer.1", 0.5)]));
    }

    #[test]
    fn an_update_that_is_not_what_it_says_is_refused_with_the_reason() {
        let model = tiny();
        let good = blob(&[("head", 1.0), ("layer.1", 2.0)]);
        assert_eq!(model.check_update(&good, &[1]), Ok(()));
        assert!(model.check_update(&good, &[0]).unwrap_err().contains("\"layer.1\" is not in the schema"));
        assert!(model.check_update(&good, &[0, 1]).unwrap_err().contains("\"layer.0\" is missing"));
        assert!(model.check_update(&good[..20], &[1]).unwrap_err().contains("header"));
        assert!(model.check_update(&blob(&[("head", f32::NAN)]), &[]).unwrap_err().contains("not finite"));
        assert!(model.check_update(&blob(&[("head", 1e30)]), &[]).unwrap_err().contains("diverged"));
    }

    #[test]
    fn a_missing_update_names_its_device() {
        let (model, folder) = (tiny(), TempDir::new().unwrap());
        let blobs = Blobs::open(folder.path(), 1 << 20).unwrap();
        let base = blobs.put(&model.initial).unwrap();
        let device = "lost".parse().unwrap();
        let updates = vec![MergeInput { device, update: Digest([3; 32]), examples: 1, shared_layers: vec![] }];
        let error = model.merge(&MergeJob { run: RunId(1), epoch: 2, base, updates }, &blobs).unwrap_err();
        assert_eq!(error.to_string(), "blob of lost");
    }
}
