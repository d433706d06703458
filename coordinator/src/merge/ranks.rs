//! LoRA updates whose rank is smaller than the global one.
//!
//! A device of rank `r` trains the first `r` rows of every `A` and the first `r` columns of every `B`, with the scale of the
//! pack. It therefore adds `s·B A` to a weight, whatever its rank. Its update is merged in one of two ways:
//!
//! - *pad* (HetLoRA, Cho et al., arXiv:2401.06432, section 3): zeros replace the missing rows and columns. This is as cheap as
//!   any mean. But `A` and `B` are averaged separately, which differs from the average of the products that they add to the
//!   weight.
//! - *project* (FlexLoRA, Bai et al., arXiv:2402.11505, section 3): the products `B A` are averaged, and the mean is brought back
//!   to the global rank by a truncated singular value decomposition: `B <- U sqrt(S)`, `A <- sqrt(S) V^T`.

use super::{AggregateError, FRACTION_BITS};
use crate::run::draw::draw;
use ndarray::{Array2, ArrayView2, Axis, Ix2};
use serde::{Deserialize, Serialize};
use skiff_models::tensors::{NamedTensors, Schema, TensorError, TensorSpec, rank_axis};

/// Way of merging updates with a smaller rank than the global weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranks {
    /// Zeros fill up the missing ranks.
    #[default]
    Pad,
    /// The mean of the products is projected to the global rank; equal ranks are projected too.
    Project,
}

/// Number of directions of the subspace iteration beyond the wanted ones.
const OVERSAMPLED: usize = 8;
/// Number of steps of the subspace iteration.
const ITERATIONS: usize = 16;

/// Running mean of the products `B A` of one linear layer. The sum does not depend on the order of the devices; see
/// [`super::Aggregate`].
#[derive(Debug)]
pub struct Products {
    sum: Array2<i128>,
    examples: u64,
}

impl Products {
    /// Creates an empty mean for a layer of `out` outputs and `inputs` inputs.
    #[must_use]
    pub fn new(out: usize, inputs: usize) -> Self {
        Self { sum: Array2::zeros((out, inputs)), examples: 0 }
    }

    /// Adds a device's pair, `b` `[out, r]` and `a` `[r, in]`, weighted by its examples.
    ///
    /// # Errors
    /// Shapes that cannot be multiplied, or a product without the layer's shape.
    pub fn add(&mut self, b: ArrayView2<'_, f32>, a: ArrayView2<'_, f32>, examples: u64) -> Result<(), AggregateError> {
        let (expected, found) = ([self.sum.nrows(), self.sum.ncols()], [b.nrows(), a.ncols()]);
        if expected != found || b.ncols() != a.nrows() {
            let name = "the product of lora_B and lora_A".to_owned();
            return Err(TensorError::Shape { name, expected: expected.into(), found: found.into() }.into());
        }
        let product = b.mapv(f64::from).dot(&a.mapv(f64::from));
        self.examples += examples;
        self.sum.zip_mut_with(&product, |sum, value| {
            *sum += (value * 2f64.powi(FRACTION_BITS)).round_ties_even() as i128 * i128::from(examples);
        });
        Ok(())
    }

    /// Returns the pair of rank `a.nrows()` that is closest to the mean. A direction that it does not need keeps its row of `a`,
    /// so that training can use it.
    #[must_use]
    pub fn project(&self, a: ArrayView2<'_, f32>) -> (Array2<f32>, Array2<f32>) {
        let weight = self.examples.max(1) as f64 * 2f64.powi(FRACTION_BITS);
        low_rank(&self.sum.mapv(|sum| sum as f64 / weight), a)
    }
}

/// Names of the two tensors of a LoRA pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pair {
    a: String,
    b: String,
    out: usize,
    inputs: usize,
}

impl Pair {
    /// Returns the pair whose `A` is `spec`; `None` if `spec` is not an `A`, or has no partner.
    fn of(spec: &TensorSpec, schema: &Schema) -> Option<Self> {
        rank_axis(&spec.name).filter(|&axis| axis == 0)?;
        let partner = schema.find(&spec.rank_partner()?)?;
        let (&[_, inputs], &[out, _]) = (&spec.shape[..], &partner.shape[..]) else { return None };
        Some(Self { a: spec.name.clone(), b: partner.name.clone(), out, inputs })
    }

    fn product_bytes(&self) -> usize {
        self.out * self.inputs * size_of::<i128>()
    }
}

/// Splits the pairs of a model into passes over the updates; the products of one pass take at most `bytes`, or belong to a single
/// pair.
pub(super) fn pairs_per_pass(schema: &Schema, bytes: usize) -> Vec<Vec<Pair>> {
    let mut passes: Vec<Vec<Pair>> = Vec::new();
    let mut left = 0;
    for pair in schema.tensors.iter().filter_map(|spec| Pair::of(spec, schema)) {
        match passes.last_mut().filter(|_| pair.product_bytes() <= left) {
            Some(pass) => {
                left -= pair.product_bytes();
                pass.push(pair);
            }
            None => {
                left = bytes.saturating_sub(pair.product_bytes());
                passes.push(vec![pair]);
            }
        }
    }
    passes
}

/// Running means of the products of several pairs. A pair takes memory only once an update holds it.
pub(super) struct Projection {
    pairs: Vec<(Pair, Option<Products>)>,
}

impl Projection {
    pub(super) fn new(pairs: Vec<Pair>) -> Self {
        Self { pairs: pairs.into_iter().map(|pair| (pair, None)).collect() }
    }

    /// Adds the pairs of one update, weighted by its examples.
    ///
    /// # Errors
    /// A pair of another shape than the model's.
    pub(super) fn add(&mut self, update: &NamedTensors, examples: u64) -> Result<(), AggregateError> {
        for (pair, products) in &mut self.pairs {
            if let (Some(a), Some(b)) = (matrix(update, &pair.a), matrix(update, &pair.b)) {
                products.get_or_insert_with(|| Products::new(pair.out, pair.inputs)).add(b, a, examples)?;
            }
        }
        Ok(())
    }

    /// Projects the mean of every pair that some update held; `base` holds the weights before the merge.
    pub(super) fn finish(self, base: &NamedTensors) -> NamedTensors {
        let mut projected = NamedTensors::new();
        for (pair, products) in self.pairs {
            if let (Some(products), Some(before)) = (products, matrix(base, &pair.a)) {
                let (b, a) = products.project(before);
                projected.insert(pair.a, a.into_dyn());
                projected.insert(pair.b, b.into_dyn());
            }
        }
        projected
    }
}

fn matrix<'a>(tensors: &'a NamedTensors, name: &str) -> Option<ArrayView2<'a, f32>> {
    tensors.get(name)?.view().into_dimensionality::<Ix2>().ok()
}

/// Factors `matrix` `[out, in]` into `B A` of the rank of `before`: subspace iteration from a fixed start, then the exact decomposition
/// within the subspace (Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1).
fn low_rank(matrix: &Array2<f64>, before: ArrayView2<'_, f32>) -> (Array2<f32>, Array2<f32>) {
    let (out, inputs) = matrix.dim();
    let rank = before.nrows();
    let width = (rank + OVERSAMPLED).min(out).min(inputs);
    let start = Array2::from_shape_fn((inputs, width), |(row, column)| {
        draw(0, "subspace", column as u32, &row.to_string()) - 0.5
    });
    let mut basis = orthonormal(matrix.dot(&start));
    for _ in 0..ITERATIONS {
        let back = orthonormal(matrix.t().dot(&basis));
        basis = orthonormal(matrix.dot(&back));
    }
    let inside = basis.t().dot(matrix);
    let (values, vectors) = eigen(inside.dot(&inside.t()));
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let largest = order.first().map_or(0.0, |&at| values[at].max(0.0).sqrt());
    let (mut b, mut a) = (Array2::zeros((out, rank)), before.to_owned());
    for (direction, &at) in order.iter().take(rank).enumerate() {
        let value = values[at].max(0.0).sqrt();
        if value <= 1e-9 * largest || value <= 0.0 {
            continue;
        }
        let left = basis.dot(&vectors.column(at));
        let right = vectors.column(at).dot(&inside);
        let root = value.sqrt();
        b.column_mut(direction).assign(&left.mapv(|entry| (entry * root) as f32));
        a.row_mut(direction).assign(&right.mapv(|entry| (entry / root) as f32));
    }
    (b, a)
}

/// Makes columns orthonormal by two passes of the Gram-Schmidt process. A column that depends on those before it becomes zero.
fn orthonormal(mut columns: Array2<f64>) -> Array2<f64> {
    for at in 0..columns.ncols() {
        let before = columns.column(at).dot(&columns.column(at)).sqrt();
        for _ in 0..2 {
            let (earlier, mut rest) = columns.view_mut().split_at(Axis(1), at);
            let mut column = rest.column_mut(0);
            let along = earlier.t().dot(&column);
            column -= &earlier.dot(&along);
        }
        let mut column = columns.column_mut(at);
        let length = column.dot(&column).sqrt();
        let is_independent = length > 1e-12 * before && length > 0.0;
        column.mapv_inplace(|value| if is_independent { value / length } else { 0.0 });
    }
    columns
}

/// Computes the eigenvalues of a symmetric matrix and its eigenvectors as columns, by Jacobi's rotations, row by row.
fn eigen(mut matrix: Array2<f64>) -> (Vec<f64>, Array2<f64>) {
    let size = matrix.nrows();
    let mut vectors = Array2::eye(size);
    for _ in 0..60 {
        let mut apart = 0.0;
        for p in 0..size {
            for q in p + 1..size {
                apart += matrix[[p, q]] * matrix[[p, q]];
                let angle = 0.5 * libm::atan2(2.0 * matrix[[p, q]], matrix[[p, p]] - matrix[[q, q]]);
                let (sin, cos) = (libm::sin(angle), libm::cos(angle));
                for k in 0..size {
                    let (x, y) = (matrix[[k, p]], matrix[[k, q]]);
                    (matrix[[k, p]], matrix[[k, q]]) = (cos * x + sin * y, cos * y - sin * x);
                    let (x, y) = (vectors[[k, p]], vectors[[k, q]]);
                    (vectors[[k, p]], vectors[[k, q]]) = (cos * x + sin * y, cos * y - sin * x);
                }
                for k in 0..size {
                    let (x, y) = (matrix[[p, k]], matrix[[q, k]]);
                    (matrix[[p, k]], matrix[[q, k]]) = (cos * x + sin * y, cos * y - sin * x);
                }
            }
        }
        let trace: f64 = matrix.diag().iter().map(|value| value * value).sum();
        if apart <= 1e-30 * trace {
            break;
        }
    }
    (matrix.diag().to_vec(), vectors)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;
    use proptest::prelude::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(row, column)| {
            draw(seed, "test", column as u32, &row.to_string()) as f32 - 0.5
        })
    }

    fn product(b: &Array2<f32>, a: &Array2<f32>) -> Array2<f64> {
        b.mapv(f64::from).dot(&a.mapv(f64::from))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

        #[test]
        fn prop_a_mean_within_the_rank_is_kept_exactly_whatever_the_order(seed in 0u64..1000, ranks in proptest::collection::vec(1usize..4, 1..4)) {
            let pairs: Vec<_> = (0..).zip(&ranks).map(|(at, &rank)| (random(20, rank, seed + at), random(rank, 14, seed + 50 + at), at + 1)).collect();
            let total: usize = ranks.iter().sum();
            let before = random(total.min(14), 14, 9);
            let projected = |order: Vec<usize>| {
                let mut products = Products::new(20, 14);
                order.into_iter().for_each(|at| products.add(pairs[at].0.view(), pairs[at].1.view(), pairs[at].2).unwrap());
                products.project(before.view())
            };
            let (b, a) = projected((0..pairs.len()).collect());
            prop_assert_eq!(&(b.clone(), a.clone()), &projected((0..pairs.len()).rev().collect()));
            let weight: f64 = pairs.iter().map(|pair| pair.2 as f64).sum();
            let expected = pairs.iter().fold(Array2::<f64>::zeros((20, 14)), |sum, (b, a, n)| sum + product(b, a) * (*n as f64 / weight));
            let apart = (&product(&b, &a) - &expected).iter().fold(0f64, |most, value| most.max(value.abs()));
            prop_assert!(apart < 1e-6, "{apart}");
        }
    }

    #[test]
    fn what_is_cut_off_is_what_matters_least() {
        // Singular values 8, 4, 2, 1 along the axes.
        let mut matrix = Array2::zeros((6, 5));
        for (at, value) in [8.0, 4.0, 2.0, 1.0].into_iter().enumerate() {
            matrix[[at, at]] = value;
        }
        let (b, a) = low_rank(&matrix, random(2, 5, 3).view());
        let kept = product(&b, &a);
        assert!((kept[[0, 0]] - 8.0).abs() < 1e-5 && (kept[[1, 1]] - 4.0).abs() < 1e-5);
        assert!(kept[[2, 2]].abs() < 1e-5);
    }

    #[test]
    fn a_direction_that_is_not_needed_can_still_be_trained() {
        let before = random(3, 5, 4);
        let (b, a) = low_rank(&Array2::zeros((6, 5)), before.view());
        assert_eq!((b, a), (Array2::zeros((6, 3)), before));
    }
}
