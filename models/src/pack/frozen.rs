//! The frozen tensors in their mapped file. Pages are loaded at their first use, and dropped when the system needs memory.

use super::storage::FILLER;
use crate::graph::DType;
use crate::tensors::TensorError;
use half::f16;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// A mapped `safetensors` file of f32, f16 and int8 tensors.
#[derive(Debug)]
pub struct Frozen {
    map: Mmap,
    file: File,
    index: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    dtype: DType,
    range: Range<usize>,
}

/// A tensor in the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct FrozenTensor<'a> {
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// F32, F16 or I8.
    pub dtype: DType,
    /// Little-endian values, aligned to their size.
    pub bytes: &'a [u8],
    /// Position in the file, in bytes.
    pub begin: u64,
}

impl Frozen {
    /// Maps the file at `path` and reads its header.
    ///
    /// # Errors
    /// A malformed header, a type other than F32, F16 and I8, values that are not aligned.
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        let io = |source| TensorError::Header(safetensors::SafeTensorError::IoError(source));
        let file = File::open(path).map_err(io)?;
        #[expect(unsafe_code, reason = "the pack is ours: it is replaced by renaming, never written in place")]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let index = index(&map)?;
        Ok(Self { map, file, index })
    }

    /// Returns the mapped file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<FrozenTensor<'_>> {
        self.index.get(name).map(|entry| self.view(entry))
    }

    /// Returns every tensor with its name, ordered by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, FrozenTensor<'_>)> {
        self.index.iter().map(|(name, entry)| (name.as_str(), self.view(entry)))
    }

    /// Returns the bytes of all tensors together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.index.values().map(|entry| entry.range.len()).sum()
    }

    /// Returns the values of the tensor called `name`, widened to f32 and multiplied by their scales if they are int8. Returns
    /// `None` if the tensor or its scales are missing.
    #[must_use]
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        match tensor.dtype {
            DType::F32 => Some(floats(tensor.bytes)),
            DType::F16 => {
                let words = tensor.bytes.as_chunks::<2>().0.iter();
                Some(words.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect())
            }
            DType::I8 => {
                let scales = self.tensor(&format!("{name}.scale")).filter(|scales| scales.dtype == DType::F32)?;
                let row = tensor.bytes.len() / tensor.shape.first().copied().filter(|&rows| rows > 0)?;
                let rows = tensor.bytes.chunks(row.max(1)).zip(floats(scales.bytes));
                Some(
                    rows.flat_map(|(row, scale)| row.iter().map(move |&q| f32::from(q.cast_signed()) * scale))
                        .collect(),
                )
            }
            DType::I64 => None,
        }
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> FrozenTensor<'a> {
        let (bytes, begin) = (&self.map[entry.range.clone()], entry.range.start as u64);
        FrozenTensor { shape: &entry.shape, dtype: entry.dtype, bytes, begin }
    }
}

/// Returns the place of each tensor in `bytes`, the contents of a file.
fn index(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, TensorError> {
    let start = bytes.as_ptr().addr();
    let tensors = crate::tensors::deserialize(bytes)?;
    let entry = |(name, view): (String, TensorView<'_>)| {
        let begin = view.data().as_ptr().addr() - start;
        let known = [(Dtype::F32, DType::F32, 4), (Dtype::F16, DType::F16, 2), (Dtype::I8, DType::I8, 1)];
        let Some((_, dtype, width)) = known.into_iter().find(|(stored, ..)| *stored == view.dtype()) else {
            let found = format!("{:?}", view.dtype());
            return Err(TensorError::Unsupported { name, found, supported: "F32, F16, I8" });
        };
        if !begin.is_multiple_of(width) {
            return Err(TensorError::Misaligned { name, begin });
        }
        Ok((name, Entry { shape: view.shape().to_vec(), dtype, range: begin..begin + view.data().len() }))
    };
    tensors.tensors().into_iter().filter(|(name, _)| !name.starts_with(FILLER)).map(entry).collect()
}

/// Same as [`Frozen::open`], but checks the header of a file in memory, for tests with hostile bytes.
///
/// # Errors
/// The errors of [`Frozen::open`].
pub fn check(bytes: &[u8]) -> Result<(), TensorError> {
    index(bytes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn hostile_headers_are_refused() {
        let one = |dtype: &str, shape: &str, offsets: &str, data| {
            file(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), data)
        };
        assert!(check(&one("F32", "[2]", "[0,8]", 8)).is_ok());
        for (what, bytes) in [
            ("truncated", one("F32", "[2]", "[0,8]", 7)),
            ("too long", one("F32", "[2]", "[0,8]", 9)),
            ("another type", one("F64", "[1]", "[0,8]", 8)),
            ("a shape that does not fit", one("F32", "[3]", "[0,8]", 8)),
            ("an absurd shape", one("F32", "[9223372036854775807,9223372036854775807]", "[0,8]", 8)),
            ("offsets the wrong way", one("F32", "[2]", "[8,0]", 8)),
            ("offsets far out", one("F32", "[2]", "[18446744073709551600,18446744073709551608]", 8)),
            ("a header longer than the file", u64::MAX.to_le_bytes().to_vec()),
            ("nothing", Vec::new()),
            (
                "overlap",
                file(
                    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                    12,
                ),
            ),
        ] {
            assert!(check(&bytes).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), json in ".{0,80}") {
            let _ = check(&bytes);
            let _ = check(&file(&json, bytes.len()));
        }
    }
}
