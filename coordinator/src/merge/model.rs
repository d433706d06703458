//! What the coordinator has to know of the model: the trainable tensors, and how updates of them are read and merged.

use crate::merge::ordered::{Ordered, OrderedError, median, trimmed_mean};
use crate::merge::ranks::Products;
use crate::merge::server::moments_of;
use crate::merge::{self, Aggregate, AggregateError, Ranks, Rule};
use crate::run::{MergeInput, MergeJob, Merged};
use ndarray::Ix2;
use skiff_blobs::{BlobError, Blobs};
use skiff_models::pack::{Pack, PackError};
use skiff_models::tensors::{self, NamedTensors, Schema, TensorError, rank_axis};
use skiff_protocol::{DeviceId, Digest};
use std::collections::BTreeSet;
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
    /// Updates that have to be seen all at once.
    #[error(transparent)]
    Ordered(#[from] OrderedError),
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

    /// Reads an update, exactly the tensors of the head and of the layers that it says it shares, at LoRA rank `rank`; returns
    /// how far it is from `base`, the weights that it started from.
    ///
    /// # Errors
    /// What is wrong with it, in words for the device's operator.
    pub fn check_update(
        &self,
        bytes: &[u8],
        shared_layers: &[u32],
        rank: u32,
        base: &NamedTensors,
    ) -> Result<f64, String> {
        let update = self.read_shared(bytes, shared_layers, rank).map_err(|error| error.to_string())?;
        merge::check(&self.schema, &update).map_err(|error| error.to_string())?;
        // What a device of a smaller rank does not have, it has not moved.
        let part = tensors::cut(base.clone(), &self.schema.at_rank(rank as usize));
        let started = tensors::pad(part, &self.schema);
        Ok(merge::distance(&update, &started))
    }

    /// Reads whole weights.
    ///
    /// # Errors
    /// A blob that is missing or damaged.
    pub fn weights(&self, blobs: &Blobs, weights: Digest) -> Result<NamedTensors, MergeError> {
        let whose = || "the global weights".to_owned();
        let bytes = blobs.read(weights).map_err(|source| MergeError::Blob { whose: whose(), source })?;
        self.schema.read(&bytes).map_err(|source| MergeError::Tensors { whose: whose(), source })
    }

    /// Merges updates into new weights, one at a time, and stores them.
    ///
    /// # Errors
    /// A blob that is missing or damaged, or cannot be stored; a disk that fails.
    pub fn merge(&self, job: &MergeJob, blobs: &Blobs) -> Result<Merged, MergeError> {
        let base = self.weights(blobs, job.base)?;
        let mut merged = self.combine(job, blobs, &base)?;
        if job.merging.ranks == Ranks::Project {
            self.project(job, blobs, &base, &mut merged)?;
        }
        let server = &job.merging.server;
        let mut moments = match job.moments.filter(|_| server.has_moments()) {
            Some(digest) => read_moments(&self.schema, &blob(blobs, digest, "the moments")?)?,
            None => NamedTensors::new(),
        };
        let weights = server.follow(&base, merged, &mut moments);
        let weights = store(blobs, &weights, "the merged weights")?;
        let moments = server.has_moments().then(|| store(blobs, &moments, "the moments")).transpose()?;
        Ok(Merged { weights, moments })
    }

    /// What the job's rule makes of the updates: the tensors that somebody shared.
    fn combine(&self, job: &MergeJob, blobs: &Blobs, base: &NamedTensors) -> Result<NamedTensors, MergeError> {
        match job.merging.rule {
            Rule::Mean | Rule::NormBounded { .. } => {
                let mut aggregate = Aggregate::new(&self.schema);
                for input in &job.updates {
                    let mut update = self.update(input, base, blobs)?;
                    if let Rule::NormBounded { norm } = job.merging.rule {
                        merge::shorten(&mut update, base, norm.into());
                    }
                    let device = || input.device.clone();
                    let added = aggregate.add(&update, input.examples);
                    added.map_err(|source| MergeError::Update { device: device(), source })?;
                }
                Ok(aggregate.mean())
            }
            Rule::TrimmedMean { .. } | Rule::Median => {
                let mut ordered = Ordered::new(&self.schema)?;
                for input in &job.updates {
                    ordered.add(&self.update(input, base, blobs)?)?;
                }
                let share = if let Rule::TrimmedMean { share } = job.merging.rule { Some(share) } else { None };
                Ok(ordered
                    .finish(|values| share.map_or_else(|| median(values), |share| trimmed_mean(values, share)))?)
            }
        }
    }

    /// Puts the projected mean of the products in the place of every pair of LoRA's that somebody shared.
    ///
    /// Updates are read again for each pair: memory is that of one product.
    fn project(
        &self,
        job: &MergeJob,
        blobs: &Blobs,
        base: &NamedTensors,
        merged: &mut NamedTensors,
    ) -> Result<(), MergeError> {
        let names = self.schema.tensors.iter().map(|spec| &spec.name).filter(|name| merged.contains_key(*name));
        let pairs: Vec<(String, String)> = names
            .filter(|name| rank_axis(name) == Some(0))
            .map(|name| (name.clone(), name.replace(".lora_A.", ".lora_B.")))
            .filter(|(_, b)| merged.contains_key(b))
            .collect();
        for (name_a, name_b) in pairs {
            let of = |tensors: &NamedTensors, name: &str| tensors.get(name).cloned()?.into_dimensionality::<Ix2>().ok();
            let (Some(a), Some(b)) = (of(base, &name_a), of(base, &name_b)) else { continue };
            let mut products = Products::new(b.nrows(), a.ncols());
            for input in &job.updates {
                let mut update = self.update(input, base, blobs)?;
                if let Rule::NormBounded { norm } = job.merging.rule {
                    merge::shorten(&mut update, base, norm.into());
                }
                if let (Some(a), Some(b)) = (of(&update, &name_a), of(&update, &name_b)) {
                    let device = || input.device.clone();
                    let added = products.add(b.view(), a.view(), input.examples);
                    added.map_err(|source| MergeError::Update { device: device(), source })?;
                }
            }
            let (b, a) = products.project(a.view());
            merged.insert(name_a, a.into_dyn());
            merged.insert(name_b, b.into_dyn());
        }
        Ok(())
    }

    /// An update; a stale one as `base + (update - started) / sqrt(1 + τ)`, `τ` the merges since the weights that it started
    /// from (FedBuff, Nguyen et al., arXiv:2106.06639, section 5.1, "staleness scaling").
    fn update(&self, input: &MergeInput, base: &NamedTensors, blobs: &Blobs) -> Result<NamedTensors, MergeError> {
        let whose = input.device.as_str();
        let read = self.read_shared(&blob(blobs, input.update, whose)?, &input.shared_layers, input.rank);
        let mut update = read.map_err(|source| MergeError::Tensors { whose: whose.to_owned(), source })?;
        if let Some((started, behind)) = input.stale {
            let part = tensors::cut(self.weights(blobs, started)?, &self.schema.at_rank(input.rank as usize));
            let started = tensors::pad(part, &self.schema);
            let scale = 1.0 / (1.0 + behind as f32).sqrt();
            for (name, values) in &mut update {
                if let (Some(base), Some(started)) = (base.get(name), started.get(name)) {
                    ndarray::Zip::from(values)
                        .and(base)
                        .and(started)
                        .for_each(|value, &base, &started| *value = base + scale * (*value - started));
                }
            }
        }
        Ok(update)
    }

    fn read_shared(&self, bytes: &[u8], shared_layers: &[u32], rank: u32) -> Result<NamedTensors, TensorError> {
        let layers: Vec<usize> = shared_layers.iter().map(|&layer| layer as usize).collect();
        let schema = self.schema.of_layers(&layers);
        Ok(tensors::pad(schema.at_rank(rank as usize).read(bytes)?, &schema))
    }
}

fn blob(blobs: &Blobs, digest: Digest, whose: &str) -> Result<Vec<u8>, MergeError> {
    blobs.read(digest).map_err(|source| MergeError::Blob { whose: whose.to_owned(), source })
}

fn store(blobs: &Blobs, tensors: &NamedTensors, whose: &str) -> Result<Digest, MergeError> {
    let written = tensors::write(tensors);
    let bytes = written.map_err(|source| MergeError::Tensors { whose: whose.to_owned(), source })?;
    blobs.put(&bytes).map_err(|source| MergeError::Blob { whose: whose.to_owned(), source })
}

/// There are moments only of tensors that were ever shared.
fn read_moments(schema: &Schema, bytes: &[u8]) -> Result<NamedTensors, MergeError> {
    let failed = |source| MergeError::Tensors { whose: "the moments".to_owned(), source };
    let names: BTreeSet<String> = tensors::names(bytes).map_err(failed)?;
    moments_of(schema, |name| names.contains(name)).read(bytes).map_err(failed)
}

#[cfg(test)]
mod recorded;

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;
    use crate::merge::Merging;
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

    fn job(base: Digest, updates: Vec<MergeInput>) -> MergeJob {
        MergeJob { run: RunId(1), epoch: 2, base, moments: None, merging: Merging::default(), updates }
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
            rank: 0,
            stale: None,
        };
        let updates = vec![
            input("a", 30, &[0], &blob(&[("head", 1.0), ("layer.0", 2.0)])),
            input("b", 10, &[], &blob(&[("head", 5.0)])),
        ];
        let base = blobs.put(&model.initial).unwrap();
        let merged = model.merge(&job(base, updates), &blobs).unwrap();
        assert_eq!(merged.moments, None);
        assert_eq!(blobs.read(merged.weights).unwrap(), blob(&[("head", 2.0), ("layer.0", 2.0), ("layer.1", 0.5)]));
    }

    #[test]
    fn a_stale_update_moves_by_a_part_of_its_way() {
        let (model, folder) = (tiny(), TempDir::new().unwrap());
        let blobs = Blobs::open(folder.path(), 1 << 20).unwrap();
        let started = blobs.put(&model.initial).unwrap();
        let base = blobs.put(&blob(&[("head", 10.0), ("layer.0", 1.0), ("layer.1", 2.0)])).unwrap();
        let input = |name: &str, value, stale| MergeInput {
            device: name.parse().unwrap(),
            update: blobs.put(&blob(&[("head", value)])).unwrap(),
            examples: 5,
            shared_layers: vec![],
            rank: 0,
            stale,
        };
        // Three merges behind, it went from 0 to 4: half of that. The other went from 10 to 14.
        let updates = vec![input("a", 4.0, Some((started, 3))), input("b", 14.0, None)];
        let merged = model.merge(&job(base, updates.clone()), &blobs).unwrap();
        assert_eq!(blobs.read(merged.weights).unwrap(), blob(&[("head", 13.0), ("layer.0", 1.0), ("layer.1", 2.0)]));
        let backwards = updates.into_iter().rev().collect();
        assert_eq!(model.merge(&job(base, backwards), &blobs).unwrap(), merged, "the order of arrival is nothing");
    }

    #[test]
    fn an_update_that_is_not_what_it_says_is_refused_with_the_reason() {
        let model = tiny();
        let good = blob(&[("head", 1.0), ("layer.1", 2.0)]);
        let base = model.schema.read(&model.initial).unwrap();
        let check = |bytes: &[u8], layers: &[u32]| model.check_update(bytes, layers, 0, &base);
        // The head moved by 1 twice, the layer by 1.5 twice.
        assert!((check(&good, &[1]).unwrap() - 6.5f64.sqrt()).abs() < 1e-9);
        assert!(check(&good, &[0]).unwrap_err().contains("\"layer.1\" is not in the schema"));
        assert!(check(&good, &[0, 1]).unwrap_err().contains("\"layer.0\" is missing"));
        assert!(check(&good[..20], &[1]).unwrap_err().contains("header"));
        assert!(check(&blob(&[("head", f32::NAN)]), &[]).unwrap_err().contains("not finite"));
        assert!(check(&blob(&[("head", 1e30)]), &[]).unwrap_err().contains("diverged"));
    }

    #[test]
    fn every_rule_and_server_merges_and_moments_are_taken_up_again() {
        let (model, folder) = (tiny(), TempDir::new().unwrap());
        let blobs = Blobs::open(folder.path(), 1 << 20).unwrap();
        let base = blobs.put(&model.initial).unwrap();
        let updates: Vec<MergeInput> = (0..3)
            .zip([1.0, 2.0, 30.0])
            .map(|(at, value)| MergeInput {
                device: format!("d{at}").parse().unwrap(),
                update: blobs.put(&blob(&[("head", value)])).unwrap(),
                examples: 1,
                shared_layers: vec![],
                rank: 0,
                stale: None,
            })
            .collect();
        let head = |merging: &str, moments| {
            let merging: Merging = toml::from_str(merging).unwrap();
            let merged = model.merge(&MergeJob { moments, merging, ..job(base, updates.clone()) }, &blobs).unwrap();
            (model.weights(&blobs, merged.weights).unwrap()["head"][0], merged.moments)
        };
        assert_eq!(head("", None), (11.0, None));
        assert_eq!(head("rule = 'median'", None), (2.0, None));
        assert_eq!(head("rule = { trimmed_mean = { share = 0.34 } }", None), (2.0, None));
        let (short, _) = head("rule = { norm_bounded = { norm = 1.0 } }", None);
        assert!((short - 0.5f32.sqrt()).abs() < 1e-6, "{short}");
        let (first, moments) = head("server = { adam = {} }", None);
        let (second, _) = head("server = { adam = {} }", moments);
        assert!(moments.is_some() && second > first && first > 0.0, "{first} {second}");
    }

    #[test]
    fn a_missing_update_names_its_device() {
        let (model, folder) = (tiny(), TempDir::new().unwrap());
        let blobs = Blobs::open(folder.path(), 1 << 20).unwrap();
        let base = blobs.put(&model.initial).unwrap();
        let device = "lost".parse().unwrap();
        let updates = vec![MergeInput {
            device,
            update: Digest([3; 32]),
            examples: 1,
            shared_layers: vec![],
            rank: 0,
            stale: None,
        }];
        let error = model.merge(&job(base, updates), &blobs).unwrap_err();
        assert_eq!(error.to_string(), "blob of lost");
    }
}
