//! What an active layer keeps from its forward pass to its backward pass.

use super::graph::contents;
use crate::error::TrainerError;
use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::value::{DynValue, Tensor};

/// Residuals smaller than this part of the largest stay as they are: statistics of rows, which would save little and whose
/// rounding would move whole rows.
const SMALL: usize = 8;

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
        /// Its numbers.
        values: Vec<f16>,
    },
}

impl Residuals {
    pub(super) fn halved(whole: Vec<DynValue>) -> Result<Self, TrainerError> {
        let sizes = whole.iter().map(|value| Ok(contents(value)?.1.len())).collect::<Result<Vec<_>, TrainerError>>()?;
        let largest = sizes.into_iter().max().unwrap_or(0);
        let narrowed = |value: DynValue| {
            let (shape, numbers) = contents(&value)?;
            if numbers.len() * SMALL < largest {
                return Ok(Halved::Whole(value));
            }
            let mut values = vec![f16::ZERO; numbers.len()];
            values.convert_from_f32_slice(numbers);
            Ok::<_, TrainerError>(Halved::Half { shape, values })
        };
        Ok(Self::Half(whole.into_iter().map(narrowed).collect::<Result<_, _>>()?))
    }
}

impl Halved {
    pub(super) fn widened(self) -> Result<DynValue, TrainerError> {
        let (shape, values) = match self {
            Self::Whole(value) => return Ok(value),
            Self::Half { shape, values } => (shape, values),
        };
        let mut numbers = vec![0.0; values.len()];
        values.convert_to_f32_slice(&mut numbers);
        let failed = |source| TrainerError::Run { graph: "widening a residual".to_owned(), source };
        Ok(Tensor::from_array((shape, numbers)).map_err(failed)?.into_dyn())
    }
}
