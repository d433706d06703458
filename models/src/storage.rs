//! The formats in which frozen tensors are stored.

use crate::graph::DType;
use serde::{Deserialize, Serialize};

/// The storage of a frozen matrix; vectors are always f32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point, rounded to the nearest, ties to even.
    F16,
    /// `q = round(w / s)`, ties to even. Each index of the first dimension has one scale, `s = max|w| / 127` (1 if all weights
    /// are zero), in a tensor called `NAME.scale`.
    Int8,
}

impl Storage {
    /// Returns the element type.
    #[must_use]
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Int8 => DType::I8,
        }
    }

    pub(crate) const fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }

    pub(crate) const fn in_header(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Int8 => "I8",
        }
    }
}
