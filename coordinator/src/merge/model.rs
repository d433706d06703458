//! The coordinator's view of the model: its trainable tensors, how an update is checked, and how updates become new weights.

use super::error::MergeError;
use super::ordered::{Ordered, median, trimmed_mean};
use super::ranks::{Projection, pairs_per_pass};
use super::read::{self, ReadBlob, Updates};
use super::server::moments_of;
use super::{Aggregate, AggregateError, Merging, Ranks, Rule};
use crate::run::{MergeInput, MergeJob, Merged, ModelTask};
use skiff_blobs::Blobs;
use skiff_models::pack::{Pack, PackError};
use skiff_models::tensors::{self, NamedTensors, Schema};
use skiff_protocol::Digest;
use std::collections::BTreeSet;
use std::path::Path;

/// Memory for the products of a projection in one pass over the updates, in bytes: all pairs of a BERT-base fit.
const PRODUCT_BYTES: usize = 512 << 20;

/// The model of a fleet.
#[derive(Debug)]
pub struct Model {
    /// Digest of the pack.
    pub pack: Digest,
    /// Every trainable tensor.
    pub schema: Schema,
    /// Number of layers.
    pub layers: u32,
    /// Initial weights as a safetensors blob.
    pub initial: Vec<u8>,
    /// Task, with the names of its classes.
    pub task: ModelTask,
}

impl Model {
    /// Reads the model of a pack.
    ///
    /// # Errors
    /// A damaged pack.
    pub fn open(pack: &Path) -> Result<Self, PackError> {
        let pack = Pack::open(pack)?;
        let initial = tensors::write(&pack.initial_weights()?).expect("f32 tensors can be written");
        let layers = pack.manifest().layers as u32;
        let task = ModelTask { task: pack.manifest().design.head.task, labels: pack.manifest().labels.clone() };
        Ok(Self { pack: Digest(pack.digest()), schema: pack.schema().clone(), layers, initial, task })
    }

    /// Checks an update and returns its distance from `base`, the weights it started from.
    ///
    /// The update must hold exactly the tensors of the head and of `shared_layers`, at LoRA rank `rank`.
    ///
    /// # Errors
    /// The fault of the update, as a text for the device's operator.
    pub fn check_update(
        &self,
        bytes: &[u8],
        shared_layers: &[u32],
        rank: u32,
        base: &NamedTensors,
    ) -> Result<f64, String> {
        let update = read::shared(&self.schema, bytes, shared_layers, rank).map_err(|error| error.to_string())?;
        super::check(&self.schema, &update).map_err(|error| error.to_string())?;
        Ok(super::distance(&update, &read::cut_to_rank(base, &self.schema, rank)))
    }

    /// Reads whole weights.
    ///
    /// # Errors
    /// A blob that is missing or damaged.
    pub fn weights(&self, blobs: &dyn Blobs, weights: Digest) -> Result<NamedTensors, MergeError> {
        read::weights(&self.schema, weights, &|digest| blobs.read(digest))
    }

    /// Merges updates into new weights and stores them. Reads one update at a time.
    ///
    /// # Errors
    /// A blob that is missing or damaged, or cannot be stored; a disk that fails.
    pub fn merge(&self, job: &MergeJob, blobs: &dyn Blobs) -> Result<Merged, MergeError> {
        let read_blob: ReadBlob<'_> = &|digest| blobs.read(digest);
        let base = self.weights(blobs, job.base)?;
        let merged = self.combine(job, &base, read_blob, PRODUCT_BYTES)?;
        let server = &job.merging.server;
        let mut moments = match job.moments.filter(|_| server.has_moments()) {
            Some(digest) => read_moments(&self.schema, &read::blob(digest, "the moments", read_blob)?)?,
            None => NamedTensors::new(),
        };
        let weights = server.follow(&base, merged, &mut moments);
        let weights = store(blobs, &weights, "the merged weights")?;
        let moments = server.has_moments().then(|| store(blobs, &moments, "the moments")).transpose()?;
        Ok(Merged { weights, moments })
    }

    /// Combines the updates by the job's rule; returns the tensors that some device shared.
    fn combine(
        &self,
        job: &MergeJob,
        base: &NamedTensors,
        read_blob: ReadBlob<'_>,
        product_bytes: usize,
    ) -> Result<NamedTensors, MergeError> {
        let updates = Updates::new(&self.schema, job, base, read_blob);
        match job.merging.rule {
            Rule::Mean | Rule::NormBounded { .. } => self.mean(&job.merging, base, &updates, product_bytes),
            Rule::TrimmedMean { share } => self.by_value(&updates, |values| trimmed_mean(values, share)),
            Rule::Median => self.by_value(&updates, median),
        }
    }

    /// Computes the mean of the updates; LoRA pairs are averaged tensor by tensor or projected, as `merging` says.
    ///
    /// The first pass over the updates computes the mean and the products of as many pairs as fit into `product_bytes`: usually
    /// all of them. Each further pass computes more products.
    fn mean(
        &self,
        merging: &Merging,
        base: &NamedTensors,
        updates: &Updates<'_>,
        product_bytes: usize,
    ) -> Result<NamedTensors, MergeError> {
        let mut passes = match merging.ranks {
            Ranks::Pad => Vec::new(),
            Ranks::Project => pairs_per_pass(&self.schema, product_bytes),
        }
        .into_iter();
        let mut mean = Aggregate::new(&self.schema);
        let mut projection = Projection::new(passes.next().unwrap_or_default());
        updates.for_each(|input, update| {
            let update = bounded(update, base, merging.rule);
            let added = mean.add(&update, input.examples).and_then(|()| projection.add(&update, input.examples));
            added.map_err(|source| update_error(input, source))
        })?;
        let mut merged = mean.mean();
        merged.extend(projection.finish(base));
        for pairs in passes {
            let mut projection = Projection::new(pairs);
            updates.for_each(|input, update| {
                let update = bounded(update, base, merging.rule);
                projection.add(&update, input.examples).map_err(|source| update_error(input, source))
            })?;
            merged.extend(projection.finish(base));
        }
        Ok(merged)
    }

    /// Combines the devices' values of each number by `rule`, which gets them in ascending order.
    fn by_value(&self, updates: &Updates<'_>, rule: impl Fn(&[f32]) -> f32) -> Result<NamedTensors, MergeError> {
        let mut ordered = Ordered::new(&self.schema)?;
        updates.for_each(|_, update| Ok(ordered.add(&update)?))?;
        Ok(ordered.finish(rule)?)
    }
}

/// Shortens an update if the rule bounds its distance from `base`.
fn bounded(mut update: NamedTensors, base: &NamedTensors, rule: Rule) -> NamedTensors {
    if let Rule::NormBounded { norm } = rule {
        super::shorten(&mut update, base, norm.into());
    }
    update
}

fn update_error(input: &MergeInput, source: AggregateError) -> MergeError {
    MergeError::Update { device: input.device.clone(), source }
}

fn store(blobs: &dyn Blobs, tensors: &NamedTensors, whose: &str) -> Result<Digest, MergeError> {
    let written = tensors::write(tensors);
    let bytes = written.map_err(|source| MergeError::Tensors { whose: whose.to_owned(), source })?;
    blobs.put(&bytes).map_err(|source| MergeError::Blob { whose: whose.to_owned(), source })
}

/// Reads the server optimizer's moments. Only tensors that some device once shared have moments.
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
    use skiff_blobs::DiskBlobs;
    use skiff_models::task::Task;
    use skiff_models::tensors::TensorSpec;
    use skiff_protocol::RunId;
    use tempfile::TempDir;

    /// Returns a model of two layers with a tensor each, and a head.
    pub(crate) fn tiny() -> Model {
        let spec = |name: &str, layer| TensorSpec { name: name.to_owned(), shape: vec![2], layer };
        let schema = Schema { tensors: vec![spec("head", None), spec("layer.0", Some(0)), spec("layer.1", Some(1))] };
        let initial = blob(&[("head", 0.0), ("layer.0", 0.0), ("layer.1", 0.5)]);
        Model { pack: Digest([9; 32]), schema, layers: 2, initial, task: two_classes() }
    }

    /// Returns the task of telling two classes apart.
    pub(crate) fn two_classes() -> ModelTask {
        ModelTask { task: Task::SequenceClassification, labels: vec!["no".to_owned(), "yes".to_owned()] }
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
        let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
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
        let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
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
        let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
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
        let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
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
        assert_eq!(error.to_string(), "reading or storing the blob of lost");
    }
}
