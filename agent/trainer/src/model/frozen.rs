//! The frozen tensors for ONNX Runtime: views into the mapped file, and the one table that is read by rows.

use crate::error::TrainerError;
use half::f16;
use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValue, DynValueRefMut, PrimitiveTensorElementType, Shape, TensorRefMut};
use skiff_models::pack::{Frozen, FrozenTensor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Views of all frozen tensors. They must be dropped before their file.
pub(super) struct Views {
    places: BTreeMap<String, usize>,
    views: Vec<DynValueRefMut<'static>>,
    // Dropped after the views that point into it.
    table: Option<Table>,
}

/// A table from which a batch reads few rows. It is as long as the table in the file, but holds only these rows.
///
/// Reading a row of a mapped file also loads its neighbours into the process's memory, sixteen pages at a time
/// (`fault_around_bytes`). Reading rows of a vocabulary's table from the mapped file would therefore soon load all of it.
struct Table {
    rows: MmapMut,
    width: usize,
    file: File,
    begin: u64,
}

impl Views {
    /// Returns views of all tensors in `frozen`, without copying them.
    pub(super) fn of(frozen: &Frozen) -> Result<Self, TrainerError> {
        let failed = |name: &str, source| TrainerError::Frozen { name: name.to_owned(), source };
        let views = frozen.tensors().map(|(name, tensor)| view(&tensor).map_err(|source| failed(name, source)));
        let views = views.collect::<Result<_, _>>()?;
        let places = frozen.tensors().enumerate().map(|(place, (name, _))| (name.to_owned(), place)).collect();
        Ok(Self { places, views, table: None })
    }

    /// Returns the place of the tensor called `name`.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// Returns the tensor at a place from [`Views::place`].
    pub(super) fn at(&self, place: usize) -> &DynValue {
        &self.views[place]
    }

    /// Adds the tensor called `name` a second time, to be read by rows. It holds only the rows that [`Views::bring`] loaded.
    /// Returns its place, or `None` for a table that is too small to save memory.
    pub(super) fn by_rows(&mut self, frozen: &Frozen, name: &str) -> Result<Option<usize>, TrainerError> {
        const SMALL: usize = 1 << 20;
        let failed = |source| TrainerError::Table { source };
        let Some(tensor) = frozen.tensor(name).filter(|tensor| tensor.bytes.len() >= SMALL) else { return Ok(None) };
        let rows = MmapOptions::new().len(tensor.bytes.len()).no_reserve_swap().map_anon().map_err(failed)?;
        let view = view(&FrozenTensor { bytes: &rows, ..tensor });
        let view = view.map_err(|source| TrainerError::Frozen { name: name.to_owned(), source })?;
        let width = tensor.bytes.len() / tensor.shape[0].max(1);
        let file = frozen.file().try_clone().map_err(failed)?;
        self.table = Some(Table { rows, width, file, begin: tensor.begin });
        self.views.push(view);
        Ok(Some(self.views.len() - 1))
    }

    /// Loads these rows of the table. A row beyond its end is ignored here; the graph reports it.
    pub(super) fn bring(&mut self, rows: &[i64]) -> Result<(), TrainerError> {
        let Some(Table { rows: memory, width, file, begin }) = &mut self.table else { return Ok(()) };
        for &row in rows.iter().collect::<BTreeSet<_>>() {
            let at = usize::try_from(row).unwrap_or(usize::MAX).saturating_mul(*width);
            if let Some(memory) = memory.get_mut(at..at.saturating_add(*width)) {
                file.read_exact_at(memory, *begin + at as u64).map_err(|source| TrainerError::Table { source })?;
            }
        }
        Ok(())
    }

    /// Frees the rows' memory.
    pub(super) fn forget(&self) {
        if let Some(Table { rows, .. }) = &self.table {
            #[expect(unsafe_code, reason = "nothing refers to it, and the next reader first loads its rows")]
            // If the system refuses, the rows stay, which does no harm.
            let _ = unsafe { rows.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }
}

/// Returns a view. The width of an element determines its type, because a pack holds only f32, f16 and i8.
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
            let tensor = FrozenTensor { shape: &[2, 3], dtype: DType::F32, bytes: &bytes[..6 * width], begin: 0 };
            assert_eq!(view(&tensor).unwrap().dtype().tensor_type(), Some(expected));
        }
    }
}
