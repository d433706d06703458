//! Named tensors for training, transfer and merging. They are found by name, never by position.

use crate::graph::DType;
use ndarray::ArrayD;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tensors by name, f32. They are ordered by name, and so is everything computed from them.
pub type NamedTensors = BTreeMap<String, ArrayD<f32>>;

/// One trainable tensor: its name in Hugging Face PEFT, shape and layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name, for example `base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight`.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Layer of the tensor; `None` for the head.
    pub layer: Option<usize>,
}

impl TensorSpec {
    /// Returns LoRA's rank, if the tensor has that dimension.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        rank_axis(&self.name).and_then(|axis| self.shape.get(axis)).copied()
    }

    /// Returns the name of the other tensor of a LoRA pair: of `B` for an `A`, of `A` for a `B`.
    #[must_use]
    pub fn rank_partner(&self) -> Option<String> {
        match rank_axis(&self.name)? {
            0 => Some(self.name.replace(LORA_A, LORA_B)),
            _ => Some(self.name.replace(LORA_B, LORA_A)),
        }
    }
}

/// Every trainable tensor of a model, ordered by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Schema {
    /// The trainable tensors, ordered by name.
    pub tensors: Vec<TensorSpec>,
}

/// Reason why bytes are not the expected tensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The bytes are not a safetensors file.
    #[error("reading the tensors' header; take a file in the safetensors format, or download it again")]
    Header(#[source] safetensors::SafeTensorError),
    /// The file is shorter or longer than its own header says.
    #[error(
        "the file has {found} bytes, and its header says {}{expected}: it was not downloaded or copied completely; do so again",
        if *.inside_header { "at least " } else { "" }
    )]
    Length {
        /// Number of bytes of the file.
        found: u64,
        /// Number of bytes that the header announces.
        expected: u64,
        /// True if the file ends within its header, so that only the header's end is known.
        inside_header: bool,
    },
    /// The schema does not have the tensor.
    #[error("tensor {name:?} is not in the schema")]
    Unknown {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor of the schema is missing.
    #[error("tensor {name:?} is missing")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// The shape differs from the schema's.
    #[error("tensor {name:?} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// The shape in the schema.
        expected: Vec<usize>,
        /// The value that was found.
        found: Vec<usize>,
    },
    /// The type is not allowed in files of this kind.
    #[error("tensor {name:?} has type {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// Name of the tensor.
        name: String,
        /// The value that was found.
        found: String,
        /// The supported types.
        supported: &'static str,
    },
    /// The reader expects another type.
    #[error("tensor {name:?} has type {found:?}, expected {expected:?}")]
    Type {
        /// Name of the tensor.
        name: String,
        /// The type that the reader expects.
        expected: DType,
        /// The value that was found.
        found: DType,
    },
    /// The position of the values is not a multiple of their size.
    #[error("tensor {name:?} begins at byte {begin} of the file, which is not a multiple of the size of its values")]
    Misaligned {
        /// Name of the tensor.
        name: String,
        /// Position of the tensor's first byte.
        begin: usize,
    },
    /// A value is NaN or infinite.
    #[error("tensor {name:?} holds a value that is not finite")]
    NotFinite {
        /// Name of the tensor.
        name: String,
    },
    /// The tensors could not be written.
    #[error("writing tensors")]
    Write(#[source] safetensors::SafeTensorError),
}

impl Schema {
    /// Returns blake3 over the names and shapes. Schemas with the same hash have the same tensors.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for spec in &self.tensors {
            hasher.update(spec.name.as_bytes());
            hasher.update(&[0]);
            for &dimension in &spec.shape {
                hasher.update(&(dimension as u64).to_le_bytes());
            }
            hasher.update(&[0xff]);
        }
        *hasher.finalize().as_bytes()
    }

    /// Returns the tensor called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.binary_search_by(|spec| spec.name.as_str().cmp(name)).ok().map(|at| &self.tensors[at])
    }

    /// Returns the number of layers up to the last one with trainable tensors.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.tensors.iter().filter_map(|spec| spec.layer).max().map_or(0, |last| last + 1)
    }

    /// Returns the tensors of the head and of `layers`, which a device shares.
    #[must_use]
    pub fn of_layers(&self, layers: &[usize]) -> Self {
        let kept = |spec: &&TensorSpec| spec.layer.is_none_or(|layer| layers.contains(&layer));
        Self { tensors: self.tensors.iter().filter(kept).cloned().collect() }
    }

    /// Returns the tensors that a device with LoRA rank `rank` trains: the first rows of every `A`, the first columns of every
    /// `B`. A rank of 0, or more than the tensors have, keeps all of them.
    #[must_use]
    pub fn at_rank(&self, rank: usize) -> Self {
        let mut schema = self.clone();
        if rank > 0 {
            for spec in &mut schema.tensors {
                if let Some(size) = rank_axis(&spec.name).and_then(|axis| spec.shape.get_mut(axis)) {
                    *size = (*size).min(rank);
                }
            }
        }
        schema
    }

    /// Reads exactly the tensors of this schema from safetensors bytes.
    ///
    /// # Errors
    /// A tensor that is missing, unknown, misshaped, of another type, or not finite.
    pub fn read(&self, bytes: &[u8]) -> Result<NamedTensors, TensorError> {
        let file = deserialize(bytes)?;
        if let Some(name) = file.names().into_iter().find(|name| self.find(name).is_none()) {
            return Err(TensorError::Unknown { name: name.to_owned() });
        }
        self.tensors.iter().map(|spec| Ok((spec.name.clone(), read_one(&file, spec)?))).collect()
    }
}

/// Returns the names of the tensors in safetensors bytes.
///
/// # Errors
/// Bytes that are not a safetensors file.
pub fn names(bytes: &[u8]) -> Result<std::collections::BTreeSet<String>, TensorError> {
    let file = deserialize(bytes)?;
    Ok(file.names().into_iter().map(str::to_owned).collect())
}

/// Checks the header of safetensors bytes.
///
/// # Errors
/// [`TensorError::Length`] for a file of another length than its header says, [`TensorError::Header`] for any other fault.
pub(crate) fn deserialize(bytes: &[u8]) -> Result<SafeTensors<'_>, TensorError> {
    SafeTensors::deserialize(bytes).map_err(|error| wrong_length(bytes).unwrap_or(TensorError::Header(error)))
}

/// Compares the length of a malformed file with the header's. Returns `None` if the length is right or there is no header.
fn wrong_length(bytes: &[u8]) -> Option<TensorError> {
    /// Greatest length of a header in bytes; the same limit as the library's.
    const MAX_HEADER_BYTES: u64 = 100_000_000;
    const PREFIX_BYTES: u64 = 8;
    let found = bytes.len() as u64;
    let (length, rest) = bytes.split_first_chunk()?;
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES || rest.first() != Some(&b'{') {
        return None;
    }
    let header_end = PREFIX_BYTES + header_bytes;
    if found < header_end {
        return Some(TensorError::Length { found, expected: header_end, inside_header: true });
    }
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(rest.get(..usize::try_from(header_bytes).ok()?)?).ok()?;
    let ends = header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    let expected = header_end.checked_add(ends.max().unwrap_or(0))?;
    (found != expected).then_some(TensorError::Length { found, expected, inside_header: false })
}

const LORA_A: &str = ".lora_A.";
const LORA_B: &str = ".lora_B.";

/// Returns the dimension with LoRA's rank, which the tensor's name determines.
#[must_use]
pub fn rank_axis(name: &str) -> Option<usize> {
    if name.contains(LORA_A) {
        return Some(0);
    }
    name.contains(LORA_B).then_some(1)
}

/// Cuts `weights` to the shapes of `schema`, with the same or smaller dimensions. Keeps the first rows and columns.
#[must_use]
pub fn cut(weights: NamedTensors, schema: &Schema) -> NamedTensors {
    let shortened = |(name, mut tensor): (String, ArrayD<f32>)| {
        if let Some(spec) = schema.find(&name).filter(|spec| spec.shape.len() == tensor.ndim()) {
            for (axis, &size) in spec.shape.iter().enumerate() {
                if tensor.shape()[axis] > size {
                    tensor = tensor.slice_axis(ndarray::Axis(axis), (0..size).into()).to_owned();
                }
            }
        }
        (name, tensor)
    };
    weights.into_iter().map(shortened).collect()
}

/// Extends `weights` to the shapes of `schema`, with zeros in the missing rows and columns.
#[must_use]
pub fn pad(weights: NamedTensors, schema: &Schema) -> NamedTensors {
    let filled = |(name, tensor): (String, ArrayD<f32>)| match schema.find(&name) {
        Some(spec) if spec.shape.len() == tensor.ndim() && spec.shape != tensor.shape() => {
            let mut whole = ArrayD::zeros(spec.shape.clone());
            let sizes: Vec<usize> =
                spec.shape.iter().zip(tensor.shape()).map(|(&whole, &size)| whole.min(size)).collect();
            let part = |at: ndarray::AxisDescription| (0..sizes[at.axis.index()]).into();
            whole.slice_each_axis_mut(part).assign(&tensor.slice_each_axis(part));
            (name, whole)
        }
        Some(_) | None => (name, tensor),
    };
    weights.into_iter().map(filled).collect()
}

fn read_one(file: &SafeTensors<'_>, spec: &TensorSpec) -> Result<ArrayD<f32>, TensorError> {
    let name = || spec.name.clone();
    let view = file.tensor(&spec.name).map_err(|_| TensorError::Missing { name: name() })?;
    if view.dtype() != Dtype::F32 {
        let found = format!("{:?}", view.dtype());
        return Err(TensorError::Unsupported { name: name(), found, supported: "F32" });
    }
    let shape_error =
        || TensorError::Shape { name: name(), expected: spec.shape.clone(), found: view.shape().to_vec() };
    if view.shape() != spec.shape {
        return Err(shape_error());
    }
    let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(TensorError::NotFinite { name: name() });
    }
    ArrayD::from_shape_vec(spec.shape.clone(), values).map_err(|_| shape_error())
}

/// Writes tensors as safetensors bytes; the same tensors give the same bytes.
///
/// # Errors
/// A refusal by the safetensors library, which does not occur for f32 tensors.
pub fn write(tensors: &NamedTensors) -> Result<Vec<u8>, TensorError> {
    let bytes: BTreeMap<&str, Vec<u8>> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, tensor)| {
            TensorView::new(Dtype::F32, tensor.shape().to_vec(), &bytes[name.as_str()])
                .map(|view| (name.as_str(), view))
        })
        .collect();
    safetensors::serialize(views.map_err(TensorError::Write)?, None).map_err(TensorError::Write)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    fn file(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
        let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        safetensors::serialize([("a", TensorView::new(dtype, shape.to_vec(), &bytes).unwrap())], None).unwrap()
    }

    #[test]
    fn a_smaller_rank_is_cut_off_and_filled_up_again() {
        let spec =
            |name: &str, shape: &[usize]| TensorSpec { name: name.to_owned(), shape: shape.into(), layer: Some(0) };
        let schema =
            Schema { tensors: vec![spec("q.lora_A.w", &[4, 3]), spec("q.lora_B.w", &[5, 4]), spec("z", &[4])] };
        let small = schema.at_rank(2);
        let shapes = |schema: &Schema| schema.tensors.iter().map(|spec| spec.shape.clone()).collect::<Vec<_>>();
        assert_eq!(shapes(&small), [vec![2, 3], vec![5, 2], vec![4]]);
        assert_eq!((schema.at_rank(0), schema.at_rank(9)), (schema.clone(), schema.clone()));
        let counted = |spec: &TensorSpec| {
            let mut next = 0.0;
            (
                spec.name.clone(),
                ArrayD::from_shape_simple_fn(spec.shape.clone(), || {
                    next += 1.0;
                    next
                }),
            )
        };
        let weights: NamedTensors = schema.tensors.iter().map(counted).collect();
        let part = cut(weights.clone(), &small);
        assert!(small.tensors.iter().all(|spec| part[&spec.name].shape() == spec.shape));
        let whole = pad(part.clone(), &schema);
        assert_eq!(whole["q.lora_A.w"].as_slice().unwrap(), [&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..], &[0.0; 6]].concat());
        assert_eq!(whole["q.lora_B.w"].as_slice().unwrap()[..8], [1.0, 2.0, 0.0, 0.0, 5.0, 6.0, 0.0, 0.0]);
        assert_eq!(whole["z"], weights["z"]);
        assert_eq!(cut(whole, &small), part);
    }

    #[test]
    fn an_error_says_type_where_the_type_is_another_and_shape_where_that_is() {
        let schema = Schema { tensors: vec![TensorSpec { name: "a".to_owned(), shape: vec![2, 3], layer: None }] };
        let error = |bytes: &[u8]| schema.read(bytes).unwrap_err().to_string();
        assert!(schema.read(&file(Dtype::F32, &[2, 3])).is_ok());
        for shape in [&[3, 2][..], &[6], &[2], &[2, 3, 1], &[0, 3]] {
            let expected = format!("tensor \"a\" has shape {shape:?}, expected [2, 3]");
            assert_eq!(error(&file(Dtype::F32, shape)), expected);
        }
        for shape in [&[2, 3][..], &[6]] {
            assert_eq!(
                error(&file(Dtype::F64, shape)),
                "tensor \"a\" has type F64, which is not supported; supported: F32"
            );
        }
        let mut cut = file(Dtype::F32, &[2, 3]);
        cut.pop();
        assert!(matches!(schema.read(&cut), Err(TensorError::Length { inside_header: false, .. })));
    }
}
