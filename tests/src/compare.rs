//! Comparing tensors: shape first, then values; the first element that differs is named.

use ndarray::{ArrayD, Dimension, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::BTreeMap;

/// Logits and gradients in f32 against float64 PyTorch, relative to the tensor's largest value: some dozen products of some
/// hundred terms, each rounded to 6e-8, with cancellation. The largest found is 2.1e-5 (x86_64); other processors and versions
/// of ONNX Runtime sum in another order, so several times that.
pub const CLOSE: f64 = 1e-4;
/// The same with residuals rounded to half precision, 4.9e-4 of each number; gradients are sums of products with them.
pub const HALVED: f64 = 2e-2;
/// Largest f32 value of a number that is zero in exact arithmetic: the gradient of a key's bias, which softmax cancels, is a sum
/// of terms of order 0.1, each rounded.
pub const ZERO: f64 = 1e-6;
/// The same if residuals are rounded to half precision: each term errs by 5e-4 of itself.
pub const ZERO_HALVED: f64 = 1e-3;
/// The loss along 50 AdamW steps in f32 against float64: rounding is fed back through the optimizer's square root.
pub const FED_BACK: f64 = 2e-3;
/// The weights after those steps. If a gradient is near zero, its rounding decides the sign of AdamW's step, which is as long as
/// the learning rate.
pub const FED_BACK_WEIGHTS: f64 = 2e-2;
/// Central differences of an f32 loss: (rounding of the loss, 1e-7) / (step, 1e-2) on gradients of order 0.1 to 1.
pub const DIFFERENCES: f64 = 2e-2;

/// Tensors by name, as float64.
pub type Tensors = BTreeMap<String, ArrayD<f64>>;

/// Reads f32 and f64 tensors.
///
/// # Panics
/// If the bytes are not such a file; it is committed beside the test.
#[must_use]
pub fn read(bytes: &[u8]) -> Tensors {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let bytes = view.data();
        let values: Vec<f64> = if view.dtype() == Dtype::F64 {
            bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
        } else {
            assert_eq!(view.dtype(), Dtype::F32, "{name}");
            bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
        };
        (name, ArrayD::from_shape_vec(IxDyn(view.shape()), values).expect("as many values as the shape says"))
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// Checks that both hold the same names and shapes, and values that differ by at most `tolerance` of the largest expected one.
///
/// # Panics
/// At the first difference, naming it.
pub fn assert_close(what: &str, found: &Tensors, expected: &Tensors, tolerance: f64) {
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}: names");
    for (name, expected) in expected {
        let found = &found[name];
        assert_eq!(found.shape(), expected.shape(), "{what}: shape of {name}");
        let zero = if tolerance < HALVED { ZERO } else { ZERO_HALVED };
        let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        for ((at, found), expected) in found.indexed_iter().zip(expected) {
            assert!(
                (found - expected).abs() <= tolerance * largest + zero,
                "{what}: {name}{:?} is {found}, expected {expected} within {tolerance} of {largest}",
                at.slice()
            );
        }
    }
}
