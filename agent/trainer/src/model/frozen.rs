//! The frozen tensors, as ONNX Runtime reads them: where they are in the mapped file.

use crate::error::TrainerError;
use half::f16;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValue, DynValueRefMut, PrimitiveTensorElementType, Shape, TensorRefMut};
use skiff_models::pack::{Frozen, FrozenTensor};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

/// Views of all frozen tensors. It must go before the file that they are in.
pub(super) struct Views {
    places: BTreeMap<String, usize>,
    views: Vec<DynValueRefMut<'static>>,
    bytes: Vec<Range<usize>>,
}

impl Views {
    /// Views of all of `frozen`; nothing is copied.
    pub(super) fn of(frozen: &Frozen) -> Result<Self, TrainerError> {
        let failed = |name: &str, source| TrainerError::Frozen { name: name.to_owned(), source };
        let views = frozen.tensors().map(|(name, tensor)| view(&tensor).map_err(|source| failed(name, source)));
        let views = views.collect::<Result<_, _>>()?;
        let places = frozen.tensors().enumerate().map(|(place, (name, _))| (name.to_owned(), place)).collect();
        let bytes = frozen.tensors().map(|(_, tensor)| tensor.bytes.as_ptr_range());
        let bytes = bytes.map(|range| range.start.addr()..range.end.addr()).collect();
        Ok(Self { places, views, bytes })
    }

    /// Takes the pages of a large table out of the process: reading a row of it brings its neighbours in too, which nobody
    /// reads. They stay in the system's cache of files while there is room.
    pub(super) fn forget(&self, place: usize) {
        const PAGE: usize = 4096;
        const LARGE: usize = 1 << 20;
        let Range { start, end } = self.bytes[place];
        let (first, last) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        if last.saturating_sub(first) >= LARGE {
            #[expect(
                unsafe_code,
                reason = "the pages are a file's, mapped to be read only: the next read finds the same bytes"
            )]
            unsafe {
                libc::madvise(std::ptr::without_provenance_mut(first), last - first, libc::MADV_DONTNEED);
            }
        }
    }

    /// The place of the tensor called `name`.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// The tensor at a place that [`Views::place`] gave.
    pub(super) fn at(&self, place: usize) -> &DynValue {
        &self.views[place]
    }
}

/// The width of an element tells its type: f32, f16 or i8 are all that a pack holds.
fn view(tensor: &FrozenTensor<'_>) -> ort::Result<DynValueRefMut<'static>> {
    let elements: usize = tensor.shape.iter().product();
    match tensor.bytes.len() / elements.max(1) {
        1 => typed::<i8>(tensor),
        2 => typed::<f16>(tensor),
        _ => typed::<f32>(tensor),
    }
}

fn typed<T: PrimitiveTensorElementType + Debug>(tensor: &FrozenTensor<'_>) -> ort::Result<DynValueRefMut<'static>> {
    let shape = Shape::new(tensor.shape.iter().map(|&size| size as i64));
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
    let address = tensor.bytes.as_ptr().cast_mut().cast();
    #[expect(
        unsafe_code,
        reason = "a graph input is read only; the file outlives the view, see the order of Model's fields"
    )]
    let view = unsafe { TensorRefMut::<T>::from_raw(memory, address, shape) }?;
    Ok(view.into_dyn())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::runtime::Runtime;
    use ort::value::TensorElementType;
    use skiff_models::graph::DType;

    #[test]
    fn tensors_are_taken_in_the_type_that_they_are_stored_in() {
        let _runtime = Runtime::load(None, 1).unwrap();
        let bytes = [0; 24];
        for (width, expected) in
            [(4, TensorElementType::Float32), (2, TensorElementType::Float16), (1, TensorElementType::Int8)]
        {
            let tensor = FrozenTensor { shape: &[2, 3], dtype: DType::F32, bytes: &bytes[..6 * width] };
            assert_eq!(view(&tensor).unwrap().dtype().tensor_type(), Some(expected));
        }
    }
}
