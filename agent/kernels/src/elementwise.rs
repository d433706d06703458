//! Gradients that have the size of their operands, each computed in one pass. All slices of a call have the same length or
//! consist of rows of the same length.

use crate::vectors::{COMMON_FMA, exp, fma, sum, vectorised};

vectorised! {
    /// Computes `out = dy (Phi(x) + x phi(x))`, the gradient of GELU in its exact form (Hendrycks and Gimpel, arXiv 1606.08415),
    /// with `Phi(x) = (1 + erf(x / sqrt 2)) / 2` and `phi(x) = exp(-x^2 / 2) / sqrt(2 pi)`.
    ///
    /// `erf` is the rational approximation 7.1.26 of Abramowitz and Stegun, with an error of at most 1.5e-7. It contains the same
    /// exponential as `phi`.
    pub fn gelu_grad(x: &[f32], dy: &[f32], out: &mut [f32]) = gelu_grad_of::<true>, gelu_grad_of::<true>, gelu_grad_of::<COMMON_FMA>
}

#[inline(always)]
fn gelu_grad_of<const FMA: bool>(x: &[f32], dy: &[f32], out: &mut [f32]) {
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    for ((out, &x), &dy) in out.iter_mut().zip(x).zip(dy) {
        let bell = exp::<FMA>(-0.5 * x * x);
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / fma::<FMA>(P, z, 1.0);
        let mut sum = A[0];
        for a in &A[1..] {
            sum = fma::<FMA>(sum, t, *a);
        }
        // (1 - erf(|x| / sqrt 2)) / 2, the smaller of the two tails.
        let tail = 0.5 * sum * t * bell;
        let distribution = if x < 0.0 { tail } else { 1.0 - tail };
        // 1 / sqrt(2 pi)
        *out = dy * fma::<FMA>(x * bell, 0.398_942_3, distribution);
    }
}

vectorised! {
    /// Computes the gradient of softmax with the result `y`: `out = (dy - sum(dy y)) y` for each row of `size` numbers.
    pub fn softmax_grad(y: &[f32], dy: &[f32], size: usize, out: &mut [f32]) = softmax_grad_of, softmax_grad_of, softmax_grad_of
}

#[inline(always)]
fn softmax_grad_of(y: &[f32], dy: &[f32], size: usize, out: &mut [f32]) {
    for ((out, y), dy) in out.chunks_exact_mut(size).zip(y.chunks_exact(size)).zip(dy.chunks_exact(size)) {
        let total = sum(size, |at| dy[at] * y[at]);
        for ((out, &y), &dy) in out.iter_mut().zip(y).zip(dy) {
            *out = (dy - total) * y;
        }
    }
}

/// Operands of a norm's gradient.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Gradient of the norm's result, in rows of the length of `weight`.
    pub dy: &'a [f32],
    /// Operand of the norm.
    pub x: &'a [f32],
    /// Factor of each feature.
    pub weight: &'a [f32],
    /// Mean of each row; absent for an RMS norm.
    pub mean: Option<&'a [f32]>,
    /// For each row `1 / sqrt(variance + epsilon)`, or `1 / sqrt(mean square + epsilon)`.
    pub inverse: &'a [f32],
}

vectorised! {
    /// Computes the gradients of layer norm (Ba et al., arXiv 1607.06450) and RMS norm (Zhang and Sennrich, arXiv 1910.07467)
    /// with respect to their operand.
    ///
    /// For each row, `out = inverse (d - mean(d) - n mean(d n))` with `n = (x - mean) inverse` and `d = dy weight`. An RMS
    /// norm lacks the term `mean(d)`.
    pub fn norm_grad(norm: Norm<'_>, out: &mut [f32]) = norm_grad_of, norm_grad_of, norm_grad_of
}

#[inline(always)]
fn norm_grad_of(norm: Norm<'_>, out: &mut [f32]) {
    let size = norm.weight.len();
    let weight = norm.weight;
    for (row, out) in out.chunks_exact_mut(size).enumerate() {
        let (x, dy) = (&norm.x[row * size..][..size], &norm.dy[row * size..][..size]);
        let (mean, inverse) = (norm.mean.map_or(0.0, |mean| mean[row]), norm.inverse[row]);
        let share = 1.0 / size as f32;
        let offset = if norm.mean.is_some() { share * sum(size, |at| dy[at] * weight[at]) } else { 0.0 };
        let slope = share * inverse * sum(size, |at| dy[at] * weight[at] * (x[at] - mean));
        for (at, out) in out.iter_mut().enumerate() {
            *out = inverse * (dy[at] * weight[at] - offset - (x[at] - mean) * inverse * slope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(-4.0_f32..4.0, count)
    }

    /// Returns the derivative of `f` at `x` by central differences in f64.
    fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
        (f(x + 1e-5) - f(x - 1e-5)) / 2e-5
    }

    fn close(found: f32, expected: f64) -> bool {
        (f64::from(found) - expected).abs() < 2e-5 * (1.0 + expected.abs())
    }

    /// Returns `Phi(x)` by Simpson's rule.
    fn distribution(x: f64) -> f64 {
        let (steps, phi) = (2000, |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt());
        let h = x / f64::from(steps);
        let weight = |at: i32| if at == 0 || at == steps { 1.0 } else { f64::from(2 + 2 * (at % 2)) };
        0.5 + h / 3.0 * (0..=steps).map(|at| weight(at) * phi(f64::from(at) * h)).sum::<f64>()
    }

    /// Returns the norm weighted with `dy` and summed: `(x - mean) / sqrt(variance + epsilon) * weight`, or the same without a
    /// mean.
    fn normed(x: &[f64], weight: &[f32], dy: &[f32], centred: bool) -> f64 {
        let size = x.len() as f64;
        let mean = if centred { x.iter().sum::<f64>() / size } else { 0.0 };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size;
        let inverse = 1.0 / (square + 1e-5).sqrt();
        x.iter().zip(weight).zip(dy).map(|((x, &w), &dy)| (x - mean) * inverse * f64::from(w) * f64::from(dy)).sum()
    }

    proptest! {
        #[test]
        fn gelus_gradient_agrees_with_differences(x in numbers(37), dy in numbers(37)) {
            let mut out = vec![0.0; x.len()];
            gelu_grad(&x, &dy, &mut out);
            for ((&x, &dy), &found) in x.iter().zip(&dy).zip(&out) {
                let expected = slope(|x| x * distribution(x), f64::from(x)) * f64::from(dy);
                prop_assert!(close(found, expected), "{x}: {found}, {expected}");
            }
        }

        #[test]
        fn softmaxs_gradient_agrees_with_differences(x in numbers(3 * 19), dy in numbers(3 * 19)) {
            let softmax = |x: &[f64]| {
                let total: f64 = x.iter().map(|x| x.exp()).sum();
                x.iter().map(|x| x.exp() / total).collect::<Vec<f64>>()
            };
            for (x, dy) in x.chunks(19).zip(dy.chunks(19)) {
                let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                let y: Vec<f32> = softmax(&x).into_iter().map(|y| y as f32).collect();
                let mut out = vec![0.0; 19];
                softmax_grad(&y, dy, 19, &mut out);
                for (at, &found) in out.iter().enumerate() {
                    let loss = |value: f64| {
                        let mut x = x.clone();
                        x[at] = value;
                        softmax(&x).iter().zip(dy).map(|(y, &dy)| y * f64::from(dy)).sum()
                    };
                    prop_assert!(close(found, slope(loss, x[at])));
                }
            }
        }

        #[test]
        fn the_gradients_of_norms_agree_with_differences(
            x in numbers(2 * 21), dy in numbers(2 * 21), weight in numbers(21), centred: bool,
        ) {
            let row = |row: usize| x[row * 21..][..21].iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let mean = |x: &[f64]| if centred { x.iter().sum::<f64>() / 21.0 } else { 0.0 };
            let inverse = |x: &[f64]| {
                let mean = mean(x);
                1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 21.0 + 1e-5).sqrt()
            };
            let means = [0, 1].map(|at| mean(&row(at)) as f32);
            let inverses = [0, 1].map(|at| inverse(&row(at)) as f32);
            let mean = centred.then_some(&means[..]);
            let mut out = vec![0.0; x.len()];
            norm_grad(Norm { dy: &dy, x: &x, weight: &weight, mean, inverse: &inverses }, &mut out);
            for (at, &found) in out.iter().enumerate() {
                let values = row(at / 21);
                let loss = |value: f64| {
                    let mut x = values.clone();
                    x[at % 21] = value;
                    normed(&x, &weight, &dy[at / 21 * 21..][..21], centred)
                };
                let expected = slope(loss, values[at % 21]);
                prop_assert!((f64::from(found) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found}, {expected}");
            }
        }
    }
}
