//! Moves the global weights towards the combined updates of the devices: all the way, or by one step of an optimizer.
//!
//! Reddi et al., arXiv:2003.00295, Algorithm 2, for each tensor that somebody shared: with `Δ = merged - w`,
//! `m <- β₁m + (1 - β₁)Δ`; FedAdam `v <- β₂v + (1 - β₂)Δ²`, FedYogi `v <- v - (1 - β₂)Δ² sign(v - Δ²)`;
//! `w <- w + η·m / (sqrt(v) + τ)`. The moments start at `m = 0` and `v = τ²`, without bias correction. A tensor that
//! nobody shared keeps its value and its moments.

use ndarray::{ArrayD, Zip};
use serde::{Deserialize, Serialize};
use skiff_models::tensors::{NamedTensors, Schema, TensorSpec};

/// Optimizer of the coordinator.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Server {
    /// The combined updates replace the weights.
    #[default]
    Average,
    /// FedAdam.
    Adam(Adaptive),
    /// FedYogi, whose second moment shrinks slowly after large updates.
    Yogi(Adaptive),
}

/// Constants of FedAdam and FedYogi.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adaptive {
    /// Learning rate η, above 0 (default 0.01).
    pub rate: f32,
    /// Decay β₁ of the first moment, 0 to below 1 (default 0.9).
    pub beta_1: f32,
    /// Decay β₂ of the second moment, 0 to below 1 (default 0.99).
    pub beta_2: f32,
    /// Term τ that keeps the divisor above 0; above 0 itself (default 0.001).
    pub tau: f32,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { rate: 0.01, beta_1: 0.9, beta_2: 0.99, tau: 1e-3 }
    }
}

impl Server {
    /// Checks every number.
    ///
    /// # Errors
    /// The first number that is out of range, with its name and the range.
    pub fn check(&self) -> Result<(), String> {
        let (Self::Adam(constants) | Self::Yogi(constants)) = self else { return Ok(()) };
        let Adaptive { rate, beta_1, beta_2, tau } = *constants;
        for (name, value) in [("rate", rate), ("tau", tau)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(format!("merge.server.{name} is {value}, expected above 0"));
            }
        }
        for (name, value) in [("beta_1", beta_1), ("beta_2", beta_2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(format!("merge.server.{name} is {value}, expected 0 to below 1"));
            }
        }
        Ok(())
    }

    /// Returns the new weights and updates `moments`. `merged` holds the tensors that some device shared.
    #[must_use]
    pub fn follow(&self, base: &NamedTensors, merged: NamedTensors, moments: &mut NamedTensors) -> NamedTensors {
        let mut weights = base.clone();
        let (Self::Adam(constants) | Self::Yogi(constants)) = self else {
            weights.extend(merged);
            return weights;
        };
        let Adaptive { rate, beta_1, beta_2, tau } = *constants;
        for (name, merged) in &merged {
            let Some(weight) = weights.get_mut(name) else { continue };
            let mut take = |key: String, first: f32| {
                moments.remove(&key).unwrap_or_else(|| ArrayD::from_elem(merged.raw_dim(), first))
            };
            let (mut mean, mut square) = (take(mean_of(name), 0.0), take(square_of(name), tau * tau));
            Zip::from(&mut *weight).and(merged).and(&mut mean).and(&mut square).for_each(|weight, merged, m, v| {
                let delta = merged - *weight;
                let squared = delta * delta;
                *m = beta_1 * *m + (1.0 - beta_1) * delta;
                *v = match self {
                    Self::Yogi(_) if *v > squared => *v - (1.0 - beta_2) * squared,
                    Self::Yogi(_) => *v + (1.0 - beta_2) * squared,
                    Self::Adam(_) | Self::Average => beta_2 * *v + (1.0 - beta_2) * squared,
                };
                *weight += rate * *m / (v.sqrt() + tau);
            });
            moments.insert(mean_of(name), mean);
            moments.insert(square_of(name), square);
        }
        weights
    }

    /// Returns true if moments are kept from round to round.
    #[must_use]
    pub fn has_moments(&self) -> bool {
        matches!(self, Self::Adam(_) | Self::Yogi(_))
    }
}

/// Returns the schema of the moments of those tensors of `schema` whose moments are among `names`.
#[must_use]
pub fn moments_of(schema: &Schema, names: impl Fn(&str) -> bool) -> Schema {
    let renamed = |name: fn(&str) -> String| {
        let names = &names;
        let kept = move |spec: &&TensorSpec| names(&name(&spec.name));
        schema.tensors.iter().filter(kept).map(move |spec| TensorSpec { name: name(&spec.name), ..spec.clone() })
    };
    Schema { tensors: renamed(mean_of).chain(renamed(square_of)).collect() }
}

fn mean_of(name: &str) -> String {
    format!("mean/{name}")
}

fn square_of(name: &str) -> String {
    format!("square/{name}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;
    use ndarray::arr1;

    fn one(value: f32) -> NamedTensors {
        NamedTensors::from([("w".to_owned(), arr1(&[value]).into_dyn())])
    }

    /// Computes the formula above in f64.
    fn expected(yogi: bool, targets: &[f64]) -> f64 {
        let (mut w, mut m, mut v) = (1.0f64, 0.0f64, 1e-6f64);
        for target in targets {
            let delta = target - w;
            m = 0.9 * m + 0.1 * delta;
            v = if yogi {
                v - 0.01 * delta * delta * (v - delta * delta).signum()
            } else {
                0.99 * v + 0.01 * delta * delta
            };
            w += 0.01 * m / (v.sqrt() + 1e-3);
        }
        w
    }

    #[test]
    fn steps_are_those_of_the_formula() {
        let targets = [1.5f32, 1.4, 0.2, 1.0];
        for (server, yogi) in [(Server::Adam(Adaptive::default()), false), (Server::Yogi(Adaptive::default()), true)] {
            let (mut weights, mut moments) = (one(1.0), NamedTensors::new());
            for target in targets {
                weights = server.follow(&weights, one(target), &mut moments);
            }
            let exact = expected(yogi, &targets.map(f64::from));
            assert!((f64::from(weights["w"][0]) - exact).abs() < 1e-6, "{server:?}: {} {exact}", weights["w"][0]);
            assert!(moments.keys().eq(["mean/w", "square/w"]));
        }
    }

    #[test]
    fn what_nobody_shared_keeps_its_value_and_its_moments() {
        let server = Server::Adam(Adaptive::default());
        let mut moments = NamedTensors::new();
        let weights = server.follow(&one(1.0), one(2.0), &mut moments);
        let before = moments.clone();
        assert_eq!(server.follow(&weights, NamedTensors::new(), &mut moments), weights);
        assert_eq!(moments, before);
        assert_eq!(Server::Average.follow(&one(1.0), one(2.0), &mut moments), one(2.0));
    }
}
