//! Limits of a device: the number of layers that may be active, and the reason for the limit.
//!
//! A configuration outside of the limits is never chosen, whatever it would gain.

use super::arms::{MAX_RATE, Shape, rates};
use super::rates::DropoutRates;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use skiff_protocol::messages::{REFERENCE_TOKENS, StepMemory};

/// Share of a round's time that is planned for training. The rest is for transfers and slow steps.
const PLANNED_SHARE: f64 = 0.8;

/// Facts about a device when its rates are chosen.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Facts {
    /// Kind of device; devices of one class share what they learn. May be empty.
    pub class: String,
    /// Memory that a training step needs.
    pub memory: StepMemory,
    /// Speed of the device's last training; `None` if it has not trained yet.
    pub pace: Option<Pace>,
    /// Temperature of its hottest sensor in degrees Celsius.
    pub celsius: Option<f32>,
    /// Battery level in percent; `None` if it has no battery or is being charged.
    pub battery_percent: Option<f32>,
}

/// Speed of a device.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// Duration of a step in milliseconds.
    pub step_ms: f64,
    /// Average number of layers that were active in the step.
    pub active_layers: f64,
    /// Time that a round takes in addition to training, in milliseconds, for transfers and for waiting; 0 if unknown.
    pub other_ms: f64,
}

impl Pace {
    /// Returns the duration of a round in seconds: `(steps · step_ms · active / active_layers + other_ms) / 1000`.
    ///
    /// `active` is the average number of layers that run. Returns `None` if the pace was never measured.
    #[must_use]
    pub fn seconds(&self, steps: u32, active: f64) -> Option<f64> {
        let per_layer = self.step_ms / self.active_layers;
        let seconds = (f64::from(steps) * per_layer * active + self.other_ms) / 1000.0;
        (self.step_ms > 0.0 && self.active_layers > 0.0 && seconds.is_finite()).then_some(seconds)
    }
}

/// Work that a round asks of every device.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Load {
    /// Largest number of tokens of a text.
    pub tokens: u64,
    /// Number of optimizer steps.
    pub steps: u32,
    /// Time until the round closes, in milliseconds.
    pub deadline_ms: u64,
    /// Thresholds of temperature and battery beyond which a device gets less work.
    pub care: Care,
}

/// Thresholds beyond which a device gets less work, so that at most half of the layers run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Care {
    /// Temperature of the hottest sensor in degrees Celsius (default 80).
    pub hot_celsius: f32,
    /// Level in percent of a battery that is not being charged (default 20).
    pub low_battery_percent: f32,
}

impl Default for Care {
    fn default() -> Self {
        Self { hot_celsius: 80.0, low_battery_percent: 20.0 }
    }
}

/// Number of layers of a model that may be active on a device.
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// Largest number of active layers in any step; 1 to L.
    pub most_active: u32,
    /// Largest average number of active layers; at most `most_active`.
    pub mean_active: f64,
    /// Reasons in words; empty if nothing limits the device.
    pub why: String,
}

/// The reason why a device cannot train under any configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

impl Limits {
    /// Computes the limits of a device on a model of `layers` layers, of which `protected` always run.
    ///
    /// - Memory: `most = (limit - process - s·step) / (s·layer)`, rounded down. `s` is the length of a text divided by
    ///   [`REFERENCE_TOKENS`], at least 1.
    /// - Deadline: `mean = 0.8·deadline / steps / (step_ms / active)`.
    /// - Hot device or low battery: `mean = L / 2`, rounded up.
    ///
    /// # Errors
    /// The memory does not suffice for a single layer, or for the protected layers.
    pub fn of(facts: &Facts, load: &Load, layers: u32, protected: u32) -> Result<Self, Unfit> {
        let mut why = Vec::new();
        let mut most_active = layers;
        if let Some(fitting) = fitting(&facts.memory, load.tokens).filter(|&fitting| fitting < u64::from(layers)) {
            let memory = ByteSize(facts.memory.limit_bytes).display().si();
            if fitting < u64::from(protected.max(1)) {
                let needed = if protected > 1 { format!("the {protected} protected layers") } else { "a layer".into() };
                return Err(Unfit(format!("its {memory} of memory are too small for {needed}")));
            }
            most_active = fitting as u32;
            why.push(format!("its {memory} of memory fit {fitting} of {layers} layers"));
        }
        let mut mean_active = f64::from(most_active);
        let mut bound = |by: f64, reason: String| {
            if by < mean_active {
                // Protected layers always run, and so does at least one layer.
                mean_active = by.max(f64::from(protected.max(1))).min(mean_active);
                why.push(reason);
            }
        };
        if let Some(pace) = facts.pace.filter(|pace| pace.step_ms > 0.0 && pace.active_layers > 0.0) {
            let per_step = PLANNED_SHARE * load.deadline_ms as f64 / f64::from(load.steps.max(1));
            let fitting = per_step / (pace.step_ms / pace.active_layers);
            bound(fitting, format!("the deadline allows {fitting:.1} layers per step"));
        }
        let half = f64::from(layers.div_ceil(2));
        if let Some(celsius) = facts.celsius.filter(|&celsius| celsius >= load.care.hot_celsius) {
            bound(half, format!("it is hot ({celsius:.0} °C)"));
        }
        if let Some(percent) = facts.battery_percent.filter(|&percent| percent <= load.care.low_battery_percent) {
            bound(half, format!("its battery is at {percent:.0} %"));
        }
        Ok(Self { most_active, mean_active, why: why.join(", ") })
    }

    /// Returns true if the rates are within the limits.
    #[must_use]
    pub fn allow(&self, rates: &DropoutRates) -> bool {
        rates.expected_active() <= self.mean_active + 1e-4
    }

    /// Appends the reasons for the limits to the reason for a choice.
    pub(super) fn append_to(&self, reason: String) -> String {
        if self.why.is_empty() { reason } else { format!("{reason}; {}", self.why) }
    }

    /// Returns the rates of the least dropout within the limits. Lower layers are dropped before upper ones.
    #[must_use]
    pub fn boundary(&self, layers: usize, protected: &[u32]) -> DropoutRates {
        let kept = protected.len() as f64;
        let droppable = layers as f64 - kept;
        let mean = if droppable > 0.0 { 1.0 - (self.mean_active - kept) / droppable } else { 0.0 };
        rates(mean.clamp(0.0, f64::from(MAX_RATE)) as f32, Shape::Decreasing, layers, protected)
    }
}

/// Returns the number of layers that fit into memory; `None` if the memory is unknown.
fn fitting(memory: &StepMemory, tokens: u64) -> Option<u64> {
    let StepMemory { limit_bytes, process_bytes, step_bytes, layer_bytes } = *memory;
    if limit_bytes == 0 || layer_bytes == 0 {
        return None;
    }
    let longer = tokens.max(REFERENCE_TOKENS);
    let scaled = |bytes: u64| u128::from(bytes) * u128::from(longer) / u128::from(REFERENCE_TOKENS);
    let left = u128::from(limit_bytes).saturating_sub(u128::from(process_bytes) + scaled(step_bytes));
    Some(u64::try_from(left / scaled(layer_bytes).max(1)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    const LOAD: Load = Load {
        tokens: REFERENCE_TOKENS,
        steps: 10,
        deadline_ms: 10_000,
        care: Care { hot_celsius: 80.0, low_battery_percent: 20.0 },
    };

    fn memory(limit_bytes: u64) -> Facts {
        let memory = StepMemory { limit_bytes, process_bytes: 100 << 20, step_bytes: 50 << 20, layer_bytes: 20 << 20 };
        Facts { memory, ..Facts::default() }
    }

    fn limits(facts: &Facts) -> Limits {
        Limits::of(facts, &LOAD, 6, 0).unwrap()
    }

    #[test]
    fn memory_bounds_every_step_and_a_longer_step_leaves_less() {
        assert_eq!(limits(&Facts::default()).most_active, 6);
        assert_eq!(limits(&memory(229 << 20)).most_active, 3);
        assert_eq!(limits(&memory(230 << 20)).most_active, 4);
        assert!(limits(&memory(229 << 20)).why.contains("240.1 MB of memory fit 3 of 6 layers"));
        let longer = Load { tokens: 2 * REFERENCE_TOKENS, ..LOAD };
        assert_eq!(Limits::of(&memory(300 << 20), &longer, 6, 0).unwrap().most_active, 2);
        let refused = Limits::of(&memory(160 << 20), &LOAD, 6, 0).unwrap_err();
        assert!(refused.to_string().contains("too small for a layer"));
        let refused = Limits::of(&memory(200 << 20), &LOAD, 6, 4).unwrap_err();
        assert!(refused.to_string().contains("too small for the 4 protected layers"));
    }

    #[test]
    fn time_heat_and_battery_bound_the_mean() {
        let slow =
            Facts { pace: Some(Pace { step_ms: 1_200.0, active_layers: 6.0, other_ms: 0.0 }), ..Facts::default() };
        let bound = limits(&slow);
        assert_eq!(bound.most_active, 6);
        assert!((bound.mean_active - 4.0).abs() < 1e-9 && bound.why.contains("4.0 layers per step"), "{bound:?}");
        for facts in [
            Facts { celsius: Some(81.0), ..Facts::default() },
            Facts { battery_percent: Some(12.0), ..Facts::default() },
        ] {
            let bound = limits(&facts);
            assert!((bound.mean_active - 3.0).abs() < 1e-9 && !bound.why.is_empty(), "{bound:?}");
        }
        let hopeless =
            Facts { pace: Some(Pace { step_ms: 1e6, active_layers: 6.0, other_ms: 0.0 }), ..Facts::default() };
        assert!((limits(&hopeless).mean_active - 1.0).abs() < 1e-9, "one layer always runs");
    }

    #[test]
    fn the_boundary_keeps_to_the_limits() {
        for (mean_active, protected) in [(1.0, vec![]), (2.5, vec![]), (2.5, vec![2]), (6.0, vec![2])] {
            let limits = Limits { most_active: 6, mean_active, why: String::new() };
            let rates = limits.boundary(6, &protected);
            assert!(limits.allow(&rates), "{rates:?}");
            assert!((rates.expected_active() - mean_active).abs() < 1e-3, "{rates:?}");
        }
    }
}
