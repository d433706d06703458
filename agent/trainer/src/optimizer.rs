//! AdamW and gradient clipping, over named tensors.

use ndarray::{ArrayD, Zip};
use skiff_models::tensors::NamedTensors;
use std::collections::BTreeMap;

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) with the constants of PyTorch's default:
/// `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`,
/// `w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)`, with `b1 = 0.9`, `b2 = 0.999`, `eps = 1e-8`,
/// `decay = 0.01`.
///
/// `t` counts the steps of each tensor by itself: a tensor of a skipped layer has no gradient, and nothing about it changes.
#[derive(Debug, Default)]
pub struct AdamW {
    moments: BTreeMap<String, Moments>,
}

#[derive(Debug)]
struct Moments {
    steps: i32,
    first: ArrayD<f32>,
    second: ArrayD<f32>,
}

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;
const DECAY: f32 = 0.01;

impl AdamW {
    /// One step for every tensor that has a gradient. Shapes of weights and gradients are equal by the pack's schema.
    pub fn step(&mut self, weights: &mut NamedTensors, gradients: &NamedTensors, learning_rate: f32) {
        for (name, gradient) in gradients {
            let Some(weight) = weights.get_mut(name) else { continue };
            let zeros = || ArrayD::zeros(gradient.raw_dim());
            let fresh = || Moments { steps: 0, first: zeros(), second: zeros() };
            let moments = self.moments.entry(name.clone()).or_insert_with(fresh);
            moments.steps = moments.steps.saturating_add(1);
            let unbias_1 = 1.0 - f64::from(BETA_1).powi(moments.steps) as f32;
            let unbias_2 = 1.0 - f64::from(BETA_2).powi(moments.steps) as f32;
            Zip::from(weight).and(gradient).and(&mut moments.first).and(&mut moments.second).for_each(|w, &g, m, v| {
                *m = BETA_1 * *m + (1.0 - BETA_1) * g;
                *v = BETA_2 * *v + (1.0 - BETA_2) * g * g;
                let direction = (*m / unbias_1) / ((*v / unbias_2).sqrt() + EPSILON);
                *w -= learning_rate * (direction + DECAY * *w);
            });
        }
    }
}

/// The Euclidean norm over all of `gradients`, summed in f64.
#[must_use]
pub fn global_norm(gradients: &NamedTensors) -> f64 {
    gradients.values().map(square_sum).sum::<f64>().sqrt()
}

/// The sum of squares of one tensor, in f64.
#[must_use]
pub fn square_sum(tensor: &ArrayD<f32>) -> f64 {
    tensor.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

/// Scales `gradients` so that their global norm is at most `limit` (Pascanu et al., arXiv 1211.5063, algorithm 1).
/// An infinite limit changes nothing.
pub fn clip(gradients: &mut NamedTensors, limit: f32) {
    let norm = global_norm(gradients);
    if norm > f64::from(limit) {
        let factor = (f64::from(limit) / norm) as f32;
        gradients.values_mut().for_each(|tensor| tensor.mapv_inplace(|value| value * factor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{IxDyn, array};

    fn named(values: &[f32]) -> NamedTensors {
        let tensor = ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).expect("a vector");
        NamedTensors::from([("w".to_owned(), tensor)])
    }

    #[test]
    fn three_steps_follow_the_formula_in_f64() {
        let (mut weights, mut optimizer) = (named(&[1.0, -2.0]), AdamW::default());
        let (mut w, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
        for t in 1..=3 {
            let g = [0.3 * f64::from(t), -0.01];
            optimizer.step(&mut weights, &named(&g.map(|x| x as f32)), 1e-2);
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
                let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
                w[i] -= 1e-2 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.01 * w[i]);
            }
        }
        let found = &weights["w"];
        assert!((0..2).all(|i| (f64::from(found[i]) - w[i]).abs() < 1e-6), "{found} against {w:?}");
    }

    #[test]
    fn a_tensor_without_gradient_stays_as_it_is() {
        let mut weights = named(&[1.0]);
        AdamW::default().step(&mut weights, &NamedTensors::new(), 0.1);
        assert_eq!(weights["w"], array![1.0].into_dyn());
    }

    #[test]
    fn clipping_scales_to_the_limit_and_leaves_short_ones_alone() {
        let mut long = named(&[3.0, 4.0]);
        clip(&mut long, 1.0);
        assert!((global_norm(&long) - 1.0).abs() < 1e-6);
        let mut short = named(&[0.3, 0.4]);
        clip(&mut short, 1.0);
        assert_eq!(short, named(&[0.3, 0.4]));
        clip(&mut short, f32::INFINITY);
        assert_eq!(short, named(&[0.3, 0.4]));
    }
}
