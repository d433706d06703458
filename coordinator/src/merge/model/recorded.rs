//! Merges of random updates of mixed ranks and ages, recorded to the bit: a change of the code must not change a weight.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use crate::merge::Merging;
use crate::merge::ranks::Products;
use crate::run::draw::draw;
use ndarray::ArrayD;
use skiff_blobs::DiskBlobs;
use skiff_models::tensors::TensorSpec;
use skiff_protocol::RunId;
use std::cell::RefCell;
use std::collections::BTreeMap;
use tempfile::TempDir;

const PACK_RANK: usize = 4;

/// Returns a schema of two layers with two LoRA pairs and a bias each, and a head.
fn lora() -> Schema {
    let mut tensors = vec![TensorSpec { name: "head".to_owned(), shape: vec![2, 3], layer: None }];
    for layer in 0..2 {
        tensors.push(TensorSpec { name: format!("layer.{layer}.bias"), shape: vec![3], layer: Some(layer) });
        for linear in ["key", "query"] {
            let spec = |part: &str, shape: [usize; 2]| TensorSpec {
                name: format!("layer.{layer}.{linear}.{part}.weight"),
                shape: shape.to_vec(),
                layer: Some(layer),
            };
            tensors.push(spec("lora_A", [PACK_RANK, 6]));
            tensors.push(spec("lora_B", [5, PACK_RANK]));
        }
    }
    Schema { tensors }
}

/// Draws values between -1 and 1 for every tensor of `schema`.
fn random(schema: &Schema, seed: u64) -> NamedTensors {
    let tensor = |spec: &TensorSpec| {
        let mut drawn = 0;
        let values = ArrayD::from_shape_simple_fn(spec.shape.clone(), || {
            drawn += 1;
            (2.0 * draw(seed, "weights", drawn, &spec.name) - 1.0) as f32
        });
        (spec.name.clone(), values)
    };
    schema.tensors.iter().map(tensor).collect()
}

/// Returns a model, and a merge of seven updates: of ranks 1 to 4, of some or all layers, and from the current or two older
/// versions.
fn mixed(blobs: &dyn Blobs) -> (Model, MergeJob) {
    let schema = lora();
    let put = |schema: &Schema, seed| blobs.put(&tensors::write(&random(schema, seed)).unwrap()).unwrap();
    let (base, older, oldest) = (put(&schema, 100), put(&schema, 101), put(&schema, 102));
    let shared: [&[u32]; 3] = [&[0, 1], &[1], &[0]];
    let ages = [None, Some((older, 1)), Some((oldest, 3)), None, Some((older, 1))];
    let input = |at: usize| {
        let (rank, shared_layers) = ((at % PACK_RANK) as u32, shared[at % 3]);
        let layers: Vec<usize> = shared_layers.iter().map(|&layer| layer as usize).collect();
        MergeInput {
            device: format!("d{at}").parse().unwrap(),
            update: put(&schema.of_layers(&layers).at_rank(rank as usize), at as u64),
            examples: 10 + 7 * at as u64,
            shared_layers: shared_layers.to_vec(),
            rank,
            stale: ages[at % ages.len()],
        }
    };
    let updates = (0..7).map(input).collect();
    let job = MergeJob { run: RunId(1), epoch: 2, base, moments: None, merging: Merging::default(), updates };
    let initial = tensors::write(&random(&schema, 100)).unwrap();
    (Model { pack: Digest([9; 32]), schema, layers: 2, initial, task: super::tests::two_classes() }, job)
}

#[test]
fn merged_weights_are_those_that_were_recorded() {
    let folder = TempDir::new().unwrap();
    let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
    let (model, job) = mixed(&blobs);
    for (merging, expected) in [
        ("", "b9738694 83e14c77"),
        ("rule = { norm_bounded = { norm = 2.0 } }", "ed035fb8 fca46c14"),
        ("rule = 'median'", "cc84a43f 36f97b2b"),
        ("rule = { trimmed_mean = { share = 0.3 } }", "72f2775f 9a4e1c6d"),
        ("server = { adam = {} }", "80b12438 f596660f"),
        ("rule = 'median'\nserver = { yogi = {} }", "902d71d8 7058e481"),
    ] {
        assert_eq!(merged_twice(&model, &job, &blobs, merging), expected, "{merging:?}");
    }
}

/// Returns digests of the weights after a merge, and after a second merge that continues from the weights and moments of the
/// first.
fn merged_twice(model: &Model, job: &MergeJob, blobs: &dyn Blobs, merging: &str) -> String {
    let merging: Merging = toml::from_str(merging).unwrap();
    let first = model.merge(&MergeJob { merging: merging.clone(), ..job.clone() }, blobs).unwrap();
    let again = MergeJob { merging, base: first.weights, moments: first.moments, ..job.clone() };
    let second = model.merge(&again, blobs).unwrap();
    format!("{} {}", &first.weights.to_string()[..8], &second.weights.to_string()[..8])
}

/// Merges by projection, with memory for `product_bytes`; counts how often each blob is read.
fn projected(merging: &str, product_bytes: usize) -> (NamedTensors, Vec<usize>) {
    let folder = TempDir::new().unwrap();
    let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
    let (model, job) = mixed(&blobs);
    let base = model.weights(&blobs, job.base).unwrap();
    let reads: RefCell<BTreeMap<Digest, usize>> = RefCell::default();
    let read_blob = |digest| {
        *reads.borrow_mut().entry(digest).or_default() += 1;
        blobs.read(digest)
    };
    let job = MergeJob { merging: toml::from_str(merging).unwrap(), ..job };
    let merged = model.combine(&job, &base, &read_blob, product_bytes).unwrap();
    (merged, reads.into_inner().into_values().collect())
}

#[test]
fn a_projection_reads_each_update_and_each_older_weight_once() {
    let (_, reads) = projected("ranks = 'project'", PRODUCT_BYTES);
    assert_eq!(reads, [1; 7 + 2]);
}

#[test]
fn a_projection_with_memory_for_one_pair_gives_the_same_weights_in_more_passes() {
    for merging in ["ranks = 'project'", "ranks = 'project'\nrule = { norm_bounded = { norm = 2.0 } }"] {
        let (whole, _) = projected(merging, PRODUCT_BYTES);
        let (by_pair, reads) = projected(merging, 1);
        assert_eq!(by_pair, whole);
        assert_eq!(reads, [4; 7 + 2], "a pass for each of the four pairs");
    }
}

#[test]
fn a_projected_pair_is_the_projection_of_the_mean_product() {
    let folder = TempDir::new().unwrap();
    let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
    let (model, job) = mixed(&blobs);
    let job = MergeJob { merging: toml::from_str("ranks = 'project'").unwrap(), ..job };
    let base = model.weights(&blobs, job.base).unwrap();
    let read_blob: ReadBlob<'_> = &|digest| blobs.read(digest);
    let merged = model.combine(&job, &base, read_blob, PRODUCT_BYTES).unwrap();
    for layer in 0..2 {
        for linear in ["key", "query"] {
            let name = |part: &str| format!("layer.{layer}.{linear}.{part}.weight");
            let matrix = |tensors: &NamedTensors, part: &str| {
                Some(tensors.get(&name(part))?.clone().into_dimensionality::<ndarray::Ix2>().unwrap())
            };
            let mut products = Products::new(5, 6);
            let updates = Updates::new(&model.schema, &job, &base, read_blob);
            updates
                .for_each(|input, update| {
                    if let (Some(a), Some(b)) = (matrix(&update, "lora_A"), matrix(&update, "lora_B")) {
                        products.add(b.view(), a.view(), input.examples).unwrap();
                    }
                    Ok(())
                })
                .unwrap();
            let (b, a) = products.project(matrix(&base, "lora_A").unwrap().view());
            assert_eq!(
                (merged[&name("lora_B")].clone(), merged[&name("lora_A")].clone()),
                (b.into_dyn(), a.into_dyn())
            );
        }
    }
}
