//! What an active layer keeps from its forward pass to its backward pass.

use super::graph::contents;
use crate::error::TrainerError;
use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::value::{DynValue, DynValueRefMut, TensorRefMut};

/// Residuals smaller than this part of the largest stay as they are: statistics of rows, which would save little and whose
/// rounding would move whole rows.
const SMALL: usize = 8;
/// Numbers that are worth a thread.
const PIECE: usize = 1 << 17;

/// The residuals of a layer, in their order.
pub(super) enum Residuals {
    Whole(Vec<DynValue>),
    Half(Vec<Halved>),
    /// To be computed again from the layer's input.
    Again,
}

/// A residual as it is kept.
pub(super) enum Halved {
    /// As it was.
    Whole(DynValue),
    /// In half precision: 11 bits of each number, of magnitudes up to 65,504.
    Half {
        /// Its dimensions.
        shape: Vec<usize>,
        /// Its numbers, and perhaps more that were left by another.
        values: Vec<f16>,
    },
}

/// Rounds residuals and widens them again, in memory that is used from step to step.
pub(super) struct Halves {
    threads: usize,
    spare: Vec<Vec<f16>>,
    wide: Vec<Vec<f32>>,
}

impl Halves {
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, spare: Vec::new(), wide: Vec::new() }
    }

    pub(super) fn narrow(&mut self, whole: Vec<DynValue>) -> Result<Residuals, TrainerError> {
        let sizes = whole.iter().map(|value| Ok(contents(value)?.1.len())).collect::<Result<Vec<_>, TrainerError>>()?;
        let largest = sizes.into_iter().max().unwrap_or(0);
        let narrowed = |value: DynValue| {
            let (shape, numbers) = contents(&value)?;
            if numbers.len() * SMALL < largest {
                return Ok(Halved::Whole(value));
            }
            // The smallest that is large enough, else the largest.
            let fits = |buffer: &Vec<f16>| buffer.capacity() >= numbers.len();
            let best = (0..self.spare.len()).min_by_key(|&at| (!fits(&self.spare[at]), self.spare[at].capacity()));
            let mut values = best.map(|at| self.spare.swap_remove(at)).unwrap_or_default();
            values.resize(numbers.len(), f16::ZERO);
            in_parts(self.threads, numbers, &mut values, |from, to| to.convert_from_f32_slice(from));
            Ok::<_, TrainerError>(Halved::Half { shape, values })
        };
        Ok(Residuals::Half(whole.into_iter().map(narrowed).collect::<Result<_, _>>()?))
    }

    /// Each that was rounded, as numbers that a graph reads; `None` for those that were not.
    pub(super) fn widen(&mut self, halved: &[Halved]) -> Result<Vec<Option<DynValueRefMut<'_>>>, TrainerError> {
        self.wide.resize_with(halved.len().max(self.wide.len()), Vec::new);
        let failed = |source| TrainerError::Run { graph: "widening a residual".to_owned(), source };
        let threads = self.threads;
        let widened = |(halved, wide): (&Halved, _)| {
            let wide: &mut Vec<f32> = wide;
            let Halved::Half { shape, values } = halved else { return Ok(None) };
            wide.resize(values.len(), 0.0);
            in_parts(threads, values, wide, |from, to| from.convert_to_f32_slice(to));
            let view = TensorRefMut::from_array_view_mut((shape.clone(), &mut wide[..])).map_err(failed)?;
            Ok(Some(view.into_dyn()))
        };
        halved.iter().zip(&mut self.wide).map(widened).collect()
    }

    /// Takes back the memory of residuals that were used.
    pub(super) fn recycle(&mut self, residuals: Residuals) {
        if let Residuals::Half(halved) = residuals {
            self.spare.extend(halved.into_iter().filter_map(|halved| match halved {
                Halved::Half { values, .. } => Some(values),
                Halved::Whole(_) => None,
            }));
        }
    }

    /// Lets go of all memory.
    pub(super) fn clear(&mut self) {
        (self.spare, self.wide) = (Vec::new(), Vec::new());
    }
}

/// `convert` on as many parts side by side as there are threads.
fn in_parts<A: Sync, B: Send>(threads: usize, from: &[A], to: &mut [B], convert: impl Fn(&[A], &mut [B]) + Sync) {
    let part = from.len().div_ceil(threads.max(1)).max(PIECE);
    let convert = &convert;
    std::thread::scope(|scope| {
        let mut parts = from.chunks(part).zip(to.chunks_mut(part));
        let own = parts.next();
        for (from, to) in parts {
            scope.spawn(move || convert(from, to));
        }
        if let Some((from, to)) = own {
            convert(from, to);
        }
    });
}
