//! The frozen tensors, where the file is the memory: pages come in as they are used and go when the system wants them.

use crate::graph::DType;
use crate::tensors::TensorError;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// A mapped `safetensors` file of f32 tensors.
#[derive(Debug)]
pub struct Frozen {
    map: Mmap,
    index: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
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
}

impl Frozen {
    /// Maps the file at `path` and reads its header.
    ///
    /// # Errors
    /// A malformed header, a type other than f32, values that are not aligned.
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        let io = |source| TensorError::Header(safetensors::SafeTensorError::IoError(source));
        let file = File::open(path).map_err(io)?;
        #[expect(unsafe_code, reason = "the pack is ours: it is replaced by renaming, never written in place")]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let start = map.as_ptr().addr();
        let index = {
            let tensors = SafeTensors::deserialize(&map).map_err(TensorError::Header)?;
            let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
                let begin = view.data().as_ptr().addr() - start;
                if view.dtype() != Dtype::F32 || !begin.is_multiple_of(4) {
                    return Err(TensorError::Type { name, found: format!("{:?} at byte {begin}", view.dtype()) });
                }
                Ok((name, Entry { shape: view.shape().to_vec(), range: begin..begin + view.data().len() }))
            };
            tensors.tensors().into_iter().map(entry).collect::<Result<_, _>>()?
        };
        Ok(Self { map, index })
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<FrozenTensor<'_>> {
        self.index.get(name).map(|entry| self.view(entry))
    }

    /// Every tensor with its name, ordered by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, FrozenTensor<'_>)> {
        self.index.iter().map(|(name, entry)| (name.as_str(), self.view(entry)))
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> FrozenTensor<'a> {
        FrozenTensor { shape: &entry.shape, dtype: DType::F32, bytes: &self.map[entry.range.clone()] }
    }

    /// The bytes of all tensors together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.index.values().map(|entry| entry.range.len()).sum()
    }
}
