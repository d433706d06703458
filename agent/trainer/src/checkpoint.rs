//! The saved state of a training: a safetensors file with the weights and AdamW's moments; its metadata hold the rest.
//!
//! ```text
//! weight.NAME                      the trainable tensor NAME, f32
//! first_moment.NAME                AdamW's m of it; zeros if it has had no gradient yet
//! second_moment.NAME               AdamW's v
//! __metadata__.skiff_checkpoint    JSON: format, pack, settings, number of steps of each tensor, sums, digest
//! ```
//! A digest over all of it reveals a truncated or changed file. Settings are compared one by one, so that a refusal can name the
//! one that differs.

use crate::optimizer::{AdamW, Moments};
use crate::tally::Tally;
use ndarray::ArrayD;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use skiff_models::tensors::{NamedTensors, Schema, TensorError, TensorSpec};
use std::collections::BTreeMap;

/// Version of the format that this build reads and writes.
const FORMAT: u32 = 1;
const METADATA: &str = "skiff_checkpoint";
const WEIGHT: &str = "weight.";
const FIRST: &str = "first_moment.";
const SECOND: &str = "second_moment.";

/// Reason why a training cannot be resumed from bytes, or its state cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes are a tensor file of another kind.
    #[error("it is not the checkpoint of a training")]
    Foreign,
    /// The metadata cannot be read.
    #[error("reading the checkpoint's metadata")]
    Metadata(#[source] serde_json::Error),
    /// Another version of Skiff wrote the checkpoint.
    #[error(
        "it has checkpoint format {found}, this build reads {FORMAT}; use the version of Skiff that wrote it, or start a new training"
    )]
    Format {
        /// The checkpoint's format.
        found: u32,
    },
    /// The bytes are not safetensors, or have other tensors than the pack.
    #[error("using the checkpoint's tensors")]
    Tensors(#[from] TensorError),
    /// The contents do not match the digest.
    #[error("it is damaged: its contents do not have the digest that it names")]
    Damaged,
    /// The checkpoint belongs to a training of another pack.
    #[error("it belongs to another pack, with digest {found}; the digest of this pack is {expected}")]
    Pack {
        /// Digest of the checkpoint's pack.
        found: String,
        /// Digest of the present pack.
        expected: String,
    },
    /// The checkpoint belongs to a training with another plan, or with another number of examples.
    #[error("it belongs to another training: its {setting} is {found}, but this training's is {expected}")]
    Setting {
        /// Name of the first setting that differs.
        setting: String,
        /// Value of the setting in the checkpoint.
        found: String,
        /// Value of the setting in this training.
        expected: String,
    },
    /// The state is one that no training can reach.
    #[error("it contradicts itself: {what}")]
    Inconsistent {
        /// The fault.
        what: String,
    },
}

/// The identity of the training that a checkpoint belongs to.
pub(super) struct Origin {
    /// The pack's digest.
    pub(super) pack: [u8; 32],
    /// The settings that determine the steps of the training, by name.
    pub(super) settings: BTreeMap<String, String>,
}

/// The contents of a checkpoint.
pub(super) struct State {
    pub(super) weights: NamedTensors,
    pub(super) moments: BTreeMap<String, Moments>,
    pub(super) tally: Tally,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    format: u32,
    pack: String,
    settings: BTreeMap<String, String>,
    /// AdamW's `t` for every tensor that has had a gradient.
    tensor_steps: BTreeMap<String, i32>,
    tally: Tally,
    /// blake3 of this record with an empty digest, followed by every tensor with its name; 64 hexadecimal digits.
    digest: String,
}

/// Writes the state of a training.
pub(super) fn write(
    origin: &Origin,
    weights: &NamedTensors,
    optimizer: &AdamW,
    tally: &Tally,
) -> Result<Vec<u8>, CheckpointError> {
    let mut tensors = NamedTensors::new();
    for (name, weight) in weights {
        let zeros = || ArrayD::zeros(weight.raw_dim());
        let moments = optimizer.moments.get(name);
        let (first, second) =
            moments.map_or_else(|| (zeros(), zeros()), |moments| (moments.first.clone(), moments.second.clone()));
        let parts = [(WEIGHT, weight.clone()), (FIRST, first), (SECOND, second)];
        tensors.extend(parts.map(|(prefix, tensor)| (format!("{prefix}{name}"), tensor)));
    }
    if let Some((name, _)) = tensors.iter().find(|(_, tensor)| tensor.iter().any(|value| !value.is_finite())) {
        return Err(TensorError::NotFinite { name: name.clone() }.into());
    }
    let mut metadata = Metadata {
        format: FORMAT,
        pack: hex(origin.pack),
        settings: origin.settings.clone(),
        tensor_steps: optimizer.moments.iter().map(|(name, moments)| (name.clone(), moments.steps)).collect(),
        tally: tally.clone(),
        digest: String::new(),
    };
    metadata.digest = metadata.digest_with(&tensors)?;
    let text = serde_json::to_string(&metadata).map_err(CheckpointError::Metadata)?;
    serialize(&tensors, text).map_err(|source| TensorError::Write(source).into())
}

/// Reads the bytes of [`write`] for a training of `origin`, with the tensors of `schema` in a model of `layers` layers.
pub(super) fn read(bytes: &[u8], origin: &Origin, schema: &Schema, layers: usize) -> Result<State, CheckpointError> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(TensorError::Header)?;
    let text = header.metadata().as_ref().and_then(|texts| texts.get(METADATA)).ok_or(CheckpointError::Foreign)?;
    let metadata = Metadata::parse(text)?;
    metadata.check_origin(origin)?;
    let mut tensors = written(schema).read(bytes)?;
    metadata.check_digest(&tensors)?;
    if !metadata.tally.is_possible(layers) {
        return Err(CheckpointError::Inconsistent { what: "no training has such sums".to_owned() });
    }
    let mut state = State { weights: NamedTensors::new(), moments: BTreeMap::new(), tally: metadata.tally };
    for name in schema.tensors.iter().map(|spec| &spec.name) {
        let mut take = |prefix: &str| tensors.remove(&format!("{prefix}{name}")).expect("the schema has it");
        let (weight, first, second) = (take(WEIGHT), take(FIRST), take(SECOND));
        state.weights.insert(name.clone(), weight);
        if let Some(&steps) = metadata.tensor_steps.get(name) {
            state.moments.insert(name.clone(), Moments { steps, first, second });
        }
    }
    let passed = i64::from(state.tally.passed());
    match metadata.tensor_steps.iter().find(|(_, steps)| !(0..=passed).contains(&i64::from(**steps))) {
        Some((name, steps)) => {
            Err(CheckpointError::Inconsistent { what: format!("{name:?} was stepped {steps} times") })
        }
        None => Ok(state),
    }
}

impl Metadata {
    /// Parses the format before anything else, so that the error for a newer checkpoint says so, instead of calling it malformed.
    fn parse(text: &str) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format: found } = serde_json::from_str(text).map_err(CheckpointError::Metadata)?;
        match found {
            FORMAT => serde_json::from_str(text).map_err(CheckpointError::Metadata),
            _ => Err(CheckpointError::Format { found }),
        }
    }

    fn check_origin(&self, origin: &Origin) -> Result<(), CheckpointError> {
        let expected = hex(origin.pack);
        if self.pack != expected {
            return Err(CheckpointError::Pack { found: self.pack.clone(), expected });
        }
        let value = |settings: &BTreeMap<String, String>, name| {
            settings.get(name).cloned().unwrap_or_else(|| "nothing".to_owned())
        };
        for setting in self.settings.keys().chain(origin.settings.keys()) {
            let (found, expected) = (value(&self.settings, setting), value(&origin.settings, setting));
            if found != expected {
                return Err(CheckpointError::Setting { setting: setting.clone(), found, expected });
            }
        }
        Ok(())
    }

    fn check_digest(&self, tensors: &NamedTensors) -> Result<(), CheckpointError> {
        if self.digest_with(tensors)? == self.digest { Ok(()) } else { Err(CheckpointError::Damaged) }
    }

    fn digest_with(&self, tensors: &NamedTensors) -> Result<String, CheckpointError> {
        let Self { format, pack, settings, tensor_steps, tally, digest: _ } = self;
        let bare = (format, pack, settings, tensor_steps, tally);
        let text = serde_json::to_vec(&bare).map_err(CheckpointError::Metadata)?;
        let mut hasher = blake3::Hasher::new_derive_key("skiff 2026-11-26 checkpoint of a training");
        hasher.update(&(text.len() as u64).to_le_bytes()).update(&text);
        for (name, tensor) in tensors {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&little_endian(tensor));
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// Returns the tensors of a checkpoint, ordered by name.
fn written(schema: &Schema) -> Schema {
    let prefixed = |prefix: &'static str| {
        let prefixed_spec =
            move |spec: &TensorSpec| TensorSpec { name: format!("{prefix}{}", spec.name), ..spec.clone() };
        schema.tensors.iter().map(prefixed_spec)
    };
    Schema { tensors: prefixed(FIRST).chain(prefixed(SECOND)).chain(prefixed(WEIGHT)).collect() }
}

fn serialize(tensors: &NamedTensors, metadata: String) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let bytes: Vec<Vec<u8>> = tensors.values().map(little_endian).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
        TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes).map(|view| (name.as_str(), view))
    });
    safetensors::serialize(views.collect::<Result<Vec<_>, _>>()?, Some([(METADATA.to_owned(), metadata)].into()))
}

fn little_endian(tensor: &ArrayD<f32>) -> Vec<u8> {
    tensor.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn hex(digest: [u8; 32]) -> String {
    blake3::Hash::from_bytes(digest).to_hex().to_string()
}
