//! AdamW and gradient clipping, over named tensors.

use ndarray::{ArrayD, Zip};
use skiff_models::tensors::NamedTensors;
use std::collections::BTreeMap;

/// AdamW's constants besides the learning rate. The defaults are PyTorch's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamWOptions {
    /// `b1`, decay of the mean of gradients at each step (default 0.9); at least 0, below 1.
    pub beta_1: f32,
    /// `b2`, decay of the mean of squared gradients at each step (default 0.999); at least 0, below 1.
    pub beta_2: f32,
    /// `eps`, which limits the step of a tiny gradient (default 1e-8); above 0.
    pub epsilon: f32,
    /// `decay`: at each step a weight shrinks by this share of itself, times the learning rate (default 0.01; 0 for none).
    pub weight_decay: f32,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWOptions {
    /// Returns what is wrong with the constants, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let below_one = 0.0..1.0;
        if let Some(beta) = [self.beta_1, self.beta_2].iter().find(|beta| !below_one.contains(*beta)) {
            return Some(format!("AdamW's beta {beta} is not from 0 to below 1"));
        }
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return Some(format!("AdamW's epsilon {} is not a positive number", self.epsilon));
        }
        let sound = self.weight_decay >= 0.0 && self.weight_decay.is_finite();
        (!sound).then(|| format!("the weight decay {} is not a number from 0", self.weight_decay))
    }
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2). The learning rate scales the decoupled decay, as in
/// `torch.optim.AdamW`. For the `t`-th gradient `g` of a tensor `w`, with learning rate `lr`, `m <- b1 m + (1 - b1) g`, `v <- b2
/// v + (1 - b2) g^2`, `w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)`.
///
/// `t` counts the steps of each tensor separately. A tensor of a skipped layer has no gradient, and its state does not change.
#[derive(Debug, Default)]
pub struct AdamW {
    options: AdamWOptions,
    pub(super) moments: BTreeMap<String, Moments>,
}

/// AdamW's state for a tensor.
#[derive(Debug)]
pub(super) struct Moments {
    /// `t`, the number of gradients so far.
    pub(super) steps: i32,
    /// `m`, the mean of the gradients.
    pub(super) first: ArrayD<f32>,
    /// `v`, the mean of their squares.
    pub(super) second: ArrayD<f32>,
}

impl AdamW {
    /// Returns an optimizer that has seen no gradient.
    #[must_use]
    pub fn new(options: AdamWOptions) -> Self {
        Self { options, moments: BTreeMap::new() }
    }

    /// Does one step for every tensor that has a gradient. The pack's schema gives weights and gradients the same shapes.
    pub fn step(&mut self, weights: &mut NamedTensors, gradients: &NamedTensors, learning_rate: f32) {
        let AdamWOptions { beta_1, beta_2, epsilon, weight_decay } = self.options;
        for (name, gradient) in gradients {
            let Some(weight) = weights.get_mut(name) else { continue };
            let zeros = || ArrayD::zeros(gradient.raw_dim());
            let fresh = || Moments { steps: 0, first: zeros(), second: zeros() };
            let moments = self.moments.entry(name.clone()).or_insert_with(fresh);
            moments.steps = moments.steps.saturating_add(1);
            let unbias_1 = 1.0 - f64::from(beta_1).powi(moments.steps) as f32;
            let unbias_2 = 1.0 - f64::from(beta_2).powi(moments.steps) as f32;
            Zip::from(weight).and(gradient).and(&mut moments.first).and(&mut moments.second).for_each(|w, &g, m, v| {
                *m = beta_1 * *m + (1.0 - beta_1) * g;
                *v = beta_2 * *v + (1.0 - beta_2) * g * g;
                let direction = (*m / unbias_1) / ((*v / unbias_2).sqrt() + epsilon);
                *w -= learning_rate * (direction + weight_decay * *w);
            });
        }
    }
}

/// Returns the Euclidean norm over all of `gradients`, summed in f64.
#[must_use]
pub fn global_norm(gradients: &NamedTensors) -> f64 {
    gradients.values().map(square_sum).sum::<f64>().sqrt()
}

/// Returns the sum of squares of one tensor, in f64.
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
        let others = AdamWOptions { beta_1: 0.5, beta_2: 0.75, epsilon: 1e-2, weight_decay: 0.3 };
        let plain = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
        for options in [AdamWOptions::default(), others, plain] {
            let (mut weights, mut optimizer) = (named(&[1.0, -2.0]), AdamW::new(options));
            let (mut w, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
            let AdamWOptions { beta_1, beta_2, epsilon, weight_decay } = options;
            let [b1, b2, eps, decay] = [beta_1, beta_2, epsilon, weight_decay].map(f64::from);
            for t in 1..=3 {
                let g = [0.3 * f64::from(t), -0.01];
                optimizer.step(&mut weights, &named(&g.map(|x| x as f32)), 1e-2);
                for i in 0..2 {
                    m[i] = b1 * m[i] + (1.0 - b1) * g[i];
                    v[i] = b2 * v[i] + (1.0 - b2) * g[i] * g[i];
                    let (m_hat, v_hat) = (m[i] / (1.0 - b1.powi(t)), v[i] / (1.0 - b2.powi(t)));
                    w[i] -= 1e-2 * (m_hat / (v_hat.sqrt() + eps) + decay * w[i]);
                }
            }
            let found = &weights["w"];
            assert!((0..2).all(|i| (f64::from(found[i]) - w[i]).abs() < 1e-6), "{options:?}: {found} against {w:?}");
        }
    }

    #[test]
    fn constants_out_of_range_are_named() {
        let sound = AdamWOptions::default();
        assert_eq!(sound.problem(), None);
        let refused = |options: AdamWOptions| options.problem().unwrap_or_default();
        assert!(refused(AdamWOptions { beta_1: 1.0, ..sound }).contains("beta 1 "));
        assert!(refused(AdamWOptions { beta_2: f32::NAN, ..sound }).contains("beta NaN"));
        assert!(refused(AdamWOptions { epsilon: 0.0, ..sound }).contains("epsilon 0 "));
        assert!(refused(AdamWOptions { weight_decay: -0.1, ..sound }).contains("decay -0.1 "));
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
