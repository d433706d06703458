//! Dropout rates of all layers.

use serde::{Deserialize, Serialize};
use std::ops::Deref;

/// Dropout rates of all layers, lowest layer first: each from 0 to below 1.
///
/// A ledger refuses an order if the number of rates differs from the model's number of layers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub struct DropoutRates(Vec<f32>);

/// A value that is not a dropout rate.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
#[error("layer {layer} has dropout rate {rate}, expected 0 to below 1")]
pub struct BadRate {
    /// Layer, from 0.
    pub layer: usize,
    /// Refused value.
    pub rate: f32,
}

impl DropoutRates {
    /// Checks and wraps the rates of all layers.
    ///
    /// # Errors
    /// The first value that is not a dropout rate.
    pub fn new(rates: Vec<f32>) -> Result<Self, BadRate> {
        match rates.iter().position(|rate| !(0.0..1.0).contains(rate)) {
            Some(layer) => Err(BadRate { layer, rate: rates[layer] }),
            None => Ok(Self(rates)),
        }
    }

    /// Returns the number of layers that run on average: `sum of (1 - P_l)`.
    #[must_use]
    pub fn expected_active(&self) -> f64 {
        self.iter().map(|&rate| 1.0 - f64::from(rate)).sum()
    }

    /// Returns the mean rate; 0 without layers.
    #[must_use]
    pub fn mean(&self) -> f32 {
        self.iter().sum::<f32>() / self.len().max(1) as f32
    }
}

impl Deref for DropoutRates {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl TryFrom<Vec<f32>> for DropoutRates {
    type Error = BadRate;

    fn try_from(rates: Vec<f32>) -> Result<Self, BadRate> {
        Self::new(rates)
    }
}

impl From<DropoutRates> for Vec<f32> {
    fn from(rates: DropoutRates) -> Self {
        rates.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;

    #[test]
    fn values_that_are_no_rates_are_refused_with_their_layer() {
        for bad in [1.0, 1.5, -0.1, f32::NAN, f32::INFINITY] {
            let refused = DropoutRates::new(vec![0.0, bad]).unwrap_err();
            assert!(refused.layer == 1 && refused.to_string().contains("expected 0 to below 1"), "{refused}");
            assert!(serde_json::from_value::<DropoutRates>(serde_json::json!([0.5, 1.5])).is_err());
        }
        let rates = DropoutRates::new(vec![0.0, 0.5, 0.25, 0.25]).unwrap();
        assert_eq!((rates.expected_active(), rates.mean(), rates.len()), (3.0, 0.25, 4));
        assert_eq!(DropoutRates::new(vec![]).unwrap().mean(), 0.0);
    }
}
