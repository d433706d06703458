//! The mean of updates, streamed, and the checks that every update must pass.
//!
//! The mean's formula: `w <- Σₖ nₖ·wₖ / Σₖ nₖ`, over the devices *k* whose update holds the tensor; a tensor that nobody shared
//! keeps its value. Source: McMahan et al., arXiv:1602.05629, Algorithm 1, applied to each tensor separately, because devices may
//! share different layers. `nₖ` is the number of *distinct* examples that *k* trained on: steps x batch, but no more than its
//! training examples. A device therefore gains no weight by repeating few examples many times.
//!
//! # Numerics
//! A value is rounded to a multiple of `2⁻⁶⁰` and summed in an `i128`. This is exact for magnitudes from `2⁻³⁷` up; smaller
//! ones are off by at most `2⁻⁶¹`. Integer addition is associative and commutative, so neither the order of arrival nor
//! a replay changes a bit. The mean is rounded to the nearest `2⁻⁶⁰`, then to the nearest f32. The sum cannot overflow:
//! for magnitudes below [`MAX_MAGNITUDE`] and at most [`MAX_EXAMPLES`] examples it stays below `2¹²⁴`.
//! Memory is 16 bytes for each parameter, whatever the number of devices.

use ndarray::ArrayD;
use skiff_models::tensors::{NamedTensors, Schema, TensorError};
use std::collections::BTreeMap;

/// Bound of all values. Parameters of this size or more have diverged.
pub const MAX_MAGNITUDE: f32 = 16_777_216.0;
/// Bound of the number of examples over all updates of a merge.
pub const MAX_EXAMPLES: u64 = 1 << 40;

pub(super) const FRACTION_BITS: i32 = 60;

/// Returns the distance of `update` from `base` over the tensors in the update: the Euclidean norm of the difference, in f64.
#[must_use]
pub fn distance(update: &NamedTensors, base: &NamedTensors) -> f64 {
    let squares = |(name, tensor): (&String, &ArrayD<f32>)| -> f64 {
        let Some(base) = base.get(name) else { return 0.0 };
        tensor.iter().zip(base).map(|(&value, &base)| (f64::from(value) - f64::from(base)).powi(2)).sum()
    };
    update.iter().map(squares).sum::<f64>().sqrt()
}

/// Shortens `update` to a distance of at most `norm` from `base`. It does not depend on other updates.
pub fn shorten(update: &mut NamedTensors, base: &NamedTensors, norm: f64) {
    let found = distance(update, base);
    if found <= norm {
        return;
    }
    let scale = norm / found;
    for (name, tensor) in update {
        if let Some(base) = base.get(name) {
            let moved = |value: f32, base: f32| f64::from(base) + scale * (f64::from(value) - f64::from(base));
            tensor.zip_mut_with(base, |value, &base| *value = moved(*value, base) as f32);
        }
    }
}

/// Reason why an update cannot be merged. The aggregate stays unchanged.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// A tensor is unknown, or does not have the schema's shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A value is not finite, or is as large as [`MAX_MAGNITUDE`].
    #[error("tensor {name:?} holds a value that is not finite or not below 2^24: the training has diverged")]
    OutOfRange {
        /// Name of the tensor.
        name: String,
    },
    /// The update has no examples, or all updates together have [`MAX_EXAMPLES`] or more.
    #[error("an update with {examples} examples has no valid weight")]
    Examples {
        /// Number of examples that the update reports.
        examples: u64,
    },
}

/// Running weighted mean.
///
/// ```
/// # use skiff_coordinator::merge::Aggregate;
/// # use skiff_models::tensors::{NamedTensors, Schema, TensorSpec};
/// # use ndarray::arr1;
/// let schema = Schema { tensors: vec![TensorSpec { name: "w".into(), shape: vec![1], layer: Some(0) }] };
/// let update = |value: f32| NamedTensors::from([("w".to_owned(), arr1(&[value]).into_dyn())]);
/// let mut aggregate = Aggregate::new(&schema);
/// aggregate.add(&update(1.0), 30)?;
/// aggregate.add(&update(5.0), 10)?;
/// assert_eq!(aggregate.mean()["w"], arr1(&[2.0]).into_dyn());
/// # Ok::<(), skiff_coordinator::merge::AggregateError>(())
/// ```
#[derive(Debug)]
pub struct Aggregate<'a> {
    schema: &'a Schema,
    examples: u64,
    sums: BTreeMap<String, Sum>,
}

#[derive(Debug)]
struct Sum {
    examples: u64,
    weighted: Vec<i128>,
}

impl<'a> Aggregate<'a> {
    /// Creates an empty mean over the tensors of `schema`.
    #[must_use]
    pub fn new(schema: &'a Schema) -> Self {
        Self { schema, examples: 0, sums: BTreeMap::new() }
    }

    /// Adds one device's update, weighted by the distinct examples it trained on.
    ///
    /// | argument | meaning |
    /// |---|---|
    /// | `update` | any subset of the schema's tensors, f32, in the schema's shapes |
    /// | `examples` | nₖ, distinct examples, at least 1 |
    ///
    /// # Errors
    /// A tensor that the schema does not know, of another shape, or out of range; no examples, or too many. Nothing is added then.
    pub fn add(&mut self, update: &NamedTensors, examples: u64) -> Result<(), AggregateError> {
        let total = self.examples.checked_add(examples).filter(|&total| examples > 0 && total < MAX_EXAMPLES);
        let total = total.ok_or(AggregateError::Examples { examples })?;
        check(self.schema, update)?;
        self.examples = total;
        for (name, tensor) in update {
            let sum =
                self.sums.entry(name.clone()).or_insert_with(|| Sum { examples: 0, weighted: vec![0; tensor.len()] });
            sum.examples += examples;
            for (sum, &value) in sum.weighted.iter_mut().zip(tensor) {
                *sum += fixed(value) * i128::from(examples);
            }
        }
        Ok(())
    }

    /// Returns the mean of each tensor that some device shared.
    #[must_use]
    pub fn mean(self) -> NamedTensors {
        let merged = |(name, sum): (String, Sum)| {
            let shape = &self.schema.find(&name)?.shape;
            let values = sum.weighted.iter().map(|&weighted| mean(weighted, sum.examples)).collect();
            Some((name, ArrayD::from_shape_vec(shape.clone(), values).ok()?))
        };
        self.sums.into_iter().filter_map(merged).collect()
    }
}

/// Checks that `update` holds only tensors of `schema`, in its shapes, with values that can be merged.
///
/// # Errors
/// The first tensor that fails, and the reason.
pub fn check(schema: &Schema, update: &NamedTensors) -> Result<(), AggregateError> {
    for (name, tensor) in update {
        let spec = schema.find(name).ok_or_else(|| TensorError::Unknown { name: name.to_owned() })?;
        if tensor.shape() != spec.shape {
            let (expected, found) = (spec.shape.clone(), tensor.shape().to_vec());
            return Err(TensorError::Shape { name: name.to_owned(), expected, found }.into());
        }
        // NaN compares false, so it is refused too.
        if !tensor.iter().all(|value| value.abs() < MAX_MAGNITUDE) {
            return Err(AggregateError::OutOfRange { name: name.to_owned() });
        }
    }
    Ok(())
}

fn fixed(value: f32) -> i128 {
    (f64::from(value) * 2f64.powi(FRACTION_BITS)).round_ties_even() as i128
}

fn mean(weighted: i128, examples: u64) -> f32 {
    let examples = i128::from(examples);
    let half = if weighted < 0 { -(examples / 2) } else { examples / 2 };
    ((weighted + half) / examples) as f32 * 2f32.powi(-FRACTION_BITS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;
    use ndarray::arr1;
    use proptest::prelude::*;
    use skiff_models::tensors::TensorSpec;

    fn schema() -> Schema {
        let spec = |name: &str, layer| TensorSpec { name: name.to_owned(), shape: vec![3], layer };
        Schema { tensors: vec![spec("a", Some(0)), spec("b", Some(1)), spec("c", None)] }
    }

    fn tensors(values: &[(&str, [f32; 3])]) -> NamedTensors {
        values.iter().map(|(name, values)| ((*name).to_owned(), arr1(values).into_dyn())).collect()
    }

    fn bits(tensors: &NamedTensors) -> Vec<u32> {
        tensors.values().flatten().map(|value| value.to_bits()).collect()
    }

    fn merge(updates: &[(NamedTensors, u64)], base: &NamedTensors) -> NamedTensors {
        let schema = schema();
        let mut aggregate = Aggregate::new(&schema);
        updates.iter().for_each(|(update, examples)| aggregate.add(update, *examples).unwrap());
        let mut merged = base.clone();
        merged.extend(aggregate.mean());
        merged
    }

    fn base() -> NamedTensors {
        tensors(&[("a", [0.5, 1.5, -2.5]), ("b", [7.0, 8.0, 9.0]), ("c", [0.0, -0.0, 1e-30])])
    }

    fn update() -> impl Strategy<Value = (NamedTensors, u64)> {
        let value = prop_oneof![-2.0f32..2.0, -1e-6f32..1e-6, -1e7f32..1e7];
        let tensor = proptest::option::of([value.clone(), value.clone(), value]);
        ([tensor.clone(), tensor.clone(), tensor], 1u64..100_000).prop_map(|(values, examples)| {
            let named = ["a", "b", "c"].into_iter().zip(values);
            let shared: Vec<_> = named.filter_map(|(name, values)| values.map(|values| (name, values))).collect();
            (tensors(&shared), examples)
        })
    }

    proptest! {
        #[test]
        fn prop_order_of_arrival_changes_no_bit(
            updates in proptest::collection::vec(update(), 1..8).prop_flat_map(|u| (Just(u.clone()), Just(u).prop_shuffle())),
        ) {
            let (updates, shuffled) = updates;
            prop_assert_eq!(bits(&merge(&updates, &base())), bits(&merge(&shuffled, &base())));
        }

        #[test]
        fn prop_equal_weights_stay_as_they_are(
            values in proptest::array::uniform3(prop_oneof![1e-10f32..1e6, -1e6f32..-1e-10]),
            examples in proptest::collection::vec(1u64..100_000, 1..8),
        ) {
            let same = tensors(&[("a", values)]);
            let updates: Vec<_> = examples.iter().map(|&n| (same.clone(), n)).collect();
            let merged = merge(&updates, &base());
            prop_assert_eq!(merged["a"].as_slice().unwrap(), &values[..]);
        }

        #[test]
        fn prop_the_mean_is_that_of_f64(updates in proptest::collection::vec(update(), 1..8)) {
            let merged = merge(&updates, &base());
            for (name, tensor) in &merged {
                let sharers: Vec<_> = updates.iter().filter_map(|(u, n)| u.get(name).map(|t| (t, *n as f64))).collect();
                let total: f64 = sharers.iter().map(|(_, n)| n).sum();
                for (at, &found) in tensor.iter().enumerate() {
                    if sharers.is_empty() {
                        prop_assert_eq!(found.to_bits(), base()[name][at].to_bits());
                        continue;
                    }
                    let sum: f64 = sharers.iter().map(|(t, n)| f64::from(t[at]) * n).sum();
                    let size: f64 = sharers.iter().map(|(t, n)| f64::from(t[at]).abs() * n).sum();
                    let tolerance = 1e-7 * (sum / total).abs() + 1e-13 * size / total + 1e-17;
                    prop_assert!((f64::from(found) - sum / total).abs() <= tolerance, "{found} vs {}", sum / total);
                }
            }
        }
    }

    #[test]
    fn a_tensor_nobody_shared_keeps_its_value() {
        let merged = merge(&[(tensors(&[("a", [1.0, 2.0, 3.0])]), 5)], &base());
        assert_eq!(merged["a"], arr1(&[1.0f32, 2.0, 3.0]).into_dyn());
        assert_eq!(
            bits(&tensors(&[("b", [7.0, 8.0, 9.0])])),
            merged["b"].iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_cannot_be_merged_is_refused_and_changes_nothing() {
        let schema = schema();
        let mut aggregate = Aggregate::new(&schema);
        aggregate.add(&tensors(&[("a", [1.0; 3])]), 1).unwrap();
        for bad in [f32::NAN, f32::INFINITY, -MAX_MAGNITUDE] {
            let update = tensors(&[("a", [5.0; 3]), ("b", [0.0, bad, 0.0])]);
            let refused = aggregate.add(&update, 1);
            assert!(matches!(&refused, Err(AggregateError::OutOfRange { name }) if name == "b"), "{refused:?}");
            assert!(check(&schema, &update).is_err());
        }
        let unknown = aggregate.add(&tensors(&[("z", [0.0; 3])]), 1).unwrap_err();
        assert_eq!(unknown.to_string(), "tensor \"z\" is not in the schema");
        let misshaped = NamedTensors::from([("a".to_owned(), arr1(&[1.0f32]).into_dyn())]);
        let shape = aggregate.add(&misshaped, 1).unwrap_err();
        assert_eq!(shape.to_string(), "tensor \"a\" has shape [1], expected [3]");
        for examples in [0, MAX_EXAMPLES] {
            let refused = aggregate.add(&tensors(&[("a", [2.0; 3])]), examples);
            assert!(matches!(refused, Err(AggregateError::Examples { .. })), "{refused:?}");
        }
        assert_eq!(aggregate.mean()["a"], arr1(&[1.0f32; 3]).into_dyn());
    }

    #[test]
    fn a_shortened_update_keeps_its_direction() {
        let (base, far) = (base(), tensors(&[("a", [3.5, 1.5, 1.5])]));
        assert!((distance(&far, &base) - 5.0).abs() < 1e-9);
        let mut near = far.clone();
        shorten(&mut near, &base, 2.5);
        assert_eq!(near, tensors(&[("a", [2.0, 1.5, -0.5])]));
        shorten(&mut near, &base, 9.0);
        assert_eq!(near["a"][0], 2.0, "what is near enough stays");
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        let largest = f32::from_bits(MAX_MAGNITUDE.to_bits() - 1);
        let merged = merge(&[(tensors(&[("a", [largest, -largest, 0.0])]), MAX_EXAMPLES - 1)], &base());
        assert_eq!(merged["a"].as_slice().unwrap(), &[largest, -largest, 0.0]);
    }
}
