//! Rotary positions (Su et al., arXiv 2104.09864): the frequencies of the angles, plain or scaled for longer texts.
//!
//! The formulas of the scalings follow transformers' `modeling_rope_utils.py`.

use super::ConfigError;
use super::config::{keys, keys_within};
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// Rule that turns positions into angles.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// Base of the frequencies, `b`.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: Scaling,
}

/// Scaling of the frequencies `f_i = b^(-2i/d)`, `i` from 0 to `d/2 - 1`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Scaling {
    /// `f_i`.
    Default,
    /// `f_i / factor`.
    Linear {
        /// Factor by which positions are stretched.
        factor: f64,
    },
    /// `f_i` up to the length at which the model was trained. Longer texts are cut.
    Dynamic,
    /// Llama 3.1's scaling: it divides long waves by the factor, keeps short ones, and mixes the two in between.
    Llama3 {
        /// Factor by which positions are stretched.
        factor: f64,
        /// Number of turns within the original length below which a wave is long.
        low_freq_factor: f64,
        /// Number of turns within the original length above which a wave is short.
        high_freq_factor: f64,
        /// Length at which the model was trained, in tokens.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al., arXiv 2309.00071).
    Yarn {
        /// Factor by which positions are stretched.
        factor: f64,
        /// Length at which the model was trained, in tokens.
        original_max_position_embeddings: f64,
        /// Factor of cosine and sine.
        attention_factor: f64,
        /// Number of turns within the original length above which a wave stays the same.
        beta_fast: f64,
        /// Number of turns below which a wave is divided by the factor.
        beta_slow: f64,
        /// Whether the bounds between the ranges of waves are rounded outwards.
        truncate: bool,
    },
    /// LongRoPE (Ding et al., arXiv 2402.13753) with its factors for short texts: `f_i / factor_i`, up to the length at which
    /// the model was trained. Longer texts are cut.
    LongRope {
        /// Factor of each frequency.
        short_factor: Vec<f64>,
        /// Factor of cosine and sine.
        attention_factor: f64,
        /// Length at which the model was trained, in tokens.
        original_max_position_embeddings: f64,
    },
}

/// The keys of `rope_parameters` or, in older files, of `rope_scaling`.
#[derive(Deserialize, Default)]
struct Parameters {
    rope_type: Option<String>,
    /// The old name of `rope_type`.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    partial_rotary_factor: Option<f64>,
}

#[derive(Deserialize)]
struct Keys {
    rope_theta: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

impl Rotary {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling`, of a model for texts of `positions` tokens. If a file has
    /// both, they must be equal, because different versions of transformers read different ones.
    pub(super) fn read(config: &serde_json::Value, positions: usize) -> Result<Self, ConfigError> {
        let rotary_at = |key| Self::read_from(config, key, positions);
        match (rotary_at("rope_parameters")?, rotary_at("rope_scaling")?) {
            (Some(new), Some(old)) if new != old => Err(ConfigError::Sizes {
                what:
                    "rope_parameters and rope_scaling (with rope_theta beside it) differ; keep the one that the model \
                       was trained with"
                        .to_owned(),
            }),
            (Some(rotary), _) | (None, Some(rotary)) => Ok(rotary),
            (None, None) => Self::of(Parameters::default(), &keys(config)?, positions),
        }
    }

    /// Reads the value of `key`; `None` if the key is missing.
    fn read_from(config: &serde_json::Value, key: &'static str, positions: usize) -> Result<Option<Self>, ConfigError> {
        let inner = config.get(key).and_then(serde_json::Value::as_object);
        if let Some((name, _)) = inner.and_then(|inner| inner.iter().find(|(_, value)| value.is_object())) {
            let found = format!("one set for each layer type ({name})");
            return Err(ConfigError::Setting { key, found, supported: "one set for all layers" });
        }
        let given = keys_within::<Parameters>(config, key)?;
        given.map(|given| Self::of(given, &keys(config)?, positions)).transpose()
    }

    fn of(given: Parameters, outer: &Keys, positions: usize) -> Result<Self, ConfigError> {
        let share = given.partial_rotary_factor.or(outer.partial_rotary_factor).unwrap_or(1.0);
        if (share - 1.0).abs() > f64::EPSILON {
            let found = share.to_string();
            return Err(ConfigError::Setting { key: "partial_rotary_factor", found, supported: "1" });
        }
        let theta = given.rope_theta.or(outer.rope_theta).unwrap_or(10_000.0);
        let original = outer.original_max_position_embeddings.or(given.original_max_position_embeddings);
        let scaling = given.scaling(original.unwrap_or(positions as f64), positions as f64)?;
        Ok(Self { theta, scaling })
    }

    /// Returns what is wrong with this rule for heads of `size` features, if anything.
    pub(super) fn problem(&self, size: usize) -> Option<String> {
        if !size.is_multiple_of(2) {
            return Some(format!("rotary positions need heads of an even size, and head_dim is {size}"));
        }
        let numbers: Vec<f64> = match &self.scaling {
            Scaling::Default | Scaling::Dynamic => Vec::new(),
            Scaling::Linear { factor } => vec![*factor],
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                if high_freq_factor <= low_freq_factor {
                    return Some("rope scaling: high_freq_factor must be above low_freq_factor".to_owned());
                }
                vec![*factor, *low_freq_factor, *high_freq_factor, *original_max_position_embeddings]
            }
            Scaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                truncate: _,
            } => vec![*factor, *original_max_position_embeddings, *attention_factor, *beta_fast, *beta_slow],
            Scaling::LongRope { short_factor, attention_factor, original_max_position_embeddings } => {
                if short_factor.len() != size / 2 {
                    return Some(format!(
                        "rope scaling has {} short factors, expected {}",
                        short_factor.len(),
                        size / 2
                    ));
                }
                // Texts are cut at this length.
                if *original_max_position_embeddings < 1.0 {
                    return Some(format!(
                        "original_max_position_embeddings is {original_max_position_embeddings}, expected at least 1"
                    ));
                }
                [short_factor.as_slice(), &[*attention_factor, *original_max_position_embeddings]].concat()
            }
        };
        let sound = |number: &f64| number.is_finite() && *number > 0.0;
        if self.theta.is_nan() || self.theta <= 1.0 || self.theta.is_infinite() || !numbers.iter().all(sound) {
            return Some(
                "rope_theta and the numbers of the rope scaling must be positive, rope_theta above 1".to_owned(),
            );
        }
        None
    }

    /// Returns the length of the longest text for which these angles are right, at most `positions`.
    #[must_use]
    pub fn max_tokens(&self, positions: usize) -> usize {
        if let Scaling::LongRope { original_max_position_embeddings, .. } = &self.scaling {
            positions.min(*original_max_position_embeddings as usize)
        } else {
            positions
        }
    }

    /// Returns the factor of cosine and sine.
    #[must_use]
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            Scaling::Yarn { attention_factor, .. } | Scaling::LongRope { attention_factor, .. } => attention_factor,
            Scaling::Default | Scaling::Linear { .. } | Scaling::Dynamic | Scaling::Llama3 { .. } => 1.0,
        }
    }

    /// Returns the frequencies for heads of `size` features: `[size / 2]`, radians a position, computed in f64.
    #[must_use]
    pub fn frequencies(&self, size: usize) -> Vec<f64> {
        let plain = |i: usize| self.theta.powf(-((2 * i) as f64) / size as f64);
        let scaled = |i: usize| match &self.scaling {
            Scaling::Default | Scaling::Dynamic => plain(i),
            Scaling::Linear { factor } => plain(i) / factor,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let turns = original_max_position_embeddings * plain(i) / TAU;
                let short = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - short) * plain(i) / factor + short * plain(i)
            }
            Scaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } => {
                // The dimension whose wave has this number of turns within the original length.
                let dimension = |turns: f64| {
                    size as f64 * (original_max_position_embeddings / (turns * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = (dimension(*beta_fast), dimension(*beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(size as f64 - 1.0));
                let width = if high - low == 0.0 { 0.001 } else { high - low };
                let long = ((i as f64 - low) / width).clamp(0.0, 1.0);
                long * plain(i) / factor + (1.0 - long) * plain(i)
            }
            Scaling::LongRope { short_factor, .. } => plain(i) / short_factor[i],
        };
        (0..size / 2).map(scaled).collect()
    }
}

impl Parameters {
    fn scaling(self, original: f64, positions: f64) -> Result<Scaling, ConfigError> {
        let needed = |key: &'static str, value: Option<f64>| {
            value.ok_or(ConfigError::Setting {
                key,
                found: "missing from the rope scaling".to_owned(),
                supported: "a positive number",
            })
        };
        let kind = match (self.rope_type.as_deref(), self.r#type.as_deref()) {
            (Some(new), Some(old)) if new != old => {
                let found = format!("{new:?} beside a type of {old:?}");
                return Err(ConfigError::Setting { key: "rope_type", found, supported: "the same in both" });
            }
            (new, old) => new.or(old).unwrap_or("default"),
        };
        Ok(match kind {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: needed("factor", self.factor)? },
            "dynamic" => Scaling::Dynamic,
            "llama3" => Scaling::Llama3 {
                factor: needed("factor", self.factor)?,
                low_freq_factor: needed("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: needed("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: original,
            },
            "yarn" => {
                let factor = self.factor.unwrap_or(positions / original);
                let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let usual = match (self.mscale, self.mscale_all_dim) {
                    (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
                    _ => scale(1.0),
                };
                Scaling::Yarn {
                    factor,
                    original_max_position_embeddings: original,
                    attention_factor: self.attention_factor.unwrap_or(usual),
                    beta_fast: self.beta_fast.unwrap_or(32.0),
                    beta_slow: self.beta_slow.unwrap_or(1.0),
                    truncate: self.truncate.unwrap_or(true),
                }
            }
            "longrope" => {
                let factor = self.factor.unwrap_or(positions / original);
                let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                let short_factor = self.short_factor.ok_or(ConfigError::Setting {
                    key: "short_factor",
                    found: "missing from the rope scaling".to_owned(),
                    supported: "a list of numbers",
                })?;
                Scaling::LongRope {
                    short_factor,
                    attention_factor: self.attention_factor.unwrap_or(usual),
                    original_max_position_embeddings: original,
                }
            }
            other => {
                return Err(ConfigError::Setting {
                    key: "rope_type",
                    found: format!("{other:?}"),
                    supported: "default, linear, dynamic, llama3, yarn, longrope",
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use serde_json::json;

    fn read(config: serde_json::Value) -> Rotary {
        let rotary = Rotary::read(&config, 1024).unwrap();
        assert_eq!(rotary.problem(8), None);
        rotary
    }

    fn refusal(config: serde_json::Value) -> String {
        Rotary::read(&config, 1024).unwrap_err().to_string()
    }

    #[test]
    fn old_and_new_files_say_the_same() {
        let scaling = json!({"rope_type": "linear", "factor": 2.0});
        let old = read(json!({"rope_theta": 500.0, "rope_scaling": scaling}));
        let new = read(json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}));
        let older = read(json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}));
        assert_eq!((&old, &old), (&new, &older));
        assert!((old.frequencies(8)[1] - 500f64.powf(-0.25) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_scaling_may_have_its_old_name_beside_the_new_one_but_not_another() {
        let both = read(json!({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}}));
        assert_eq!(both.scaling, Scaling::Linear { factor: 2.0 });
        let message = refusal(json!({"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}}));
        assert!(message.contains("rope_type") && message.contains("\"dynamic\""), "{message}");
    }

    #[test]
    fn rope_scaling_beside_rope_parameters_must_say_the_same() {
        let new = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0});
        let both = |old: serde_json::Value| json!({"rope_parameters": new, "rope_scaling": old, "rope_theta": 500.0});
        let alone = read(json!({ "rope_parameters": new }));
        assert_eq!(read(both(json!({"type": "linear", "factor": 2.0}))), alone);
        assert_eq!(read(both(json!(null))), alone);
        assert_eq!(read(both(json!({}))), alone);
        for old in
            [json!({"type": "linear", "factor": 3.0}), json!({"type": "linear", "factor": 2.0, "rope_theta": 7.0})]
        {
            let message = refusal(both(old));
            assert!(message.contains("rope_parameters") && message.contains("rope_scaling"), "{message}");
        }
    }

    #[test]
    fn a_set_for_each_type_of_layers_is_refused() {
        for key in ["rope_parameters", "rope_scaling"] {
            let full = json!({"rope_type": "linear", "factor": 2.0});
            let message = refusal(json!({ key: {"full_attention": full, "sliding_attention": null} }));
            assert!(message.contains(key) && message.contains("full_attention"), "{message}");
        }
    }

    #[test]
    fn without_any_keys_the_base_is_ten_thousand() {
        assert_eq!(read(json!({})).frequencies(4), [1.0, 0.01]);
    }

    /// Frequencies, and factor of cosine and sine, in transformers 5.23.0's `LlamaRotaryEmbedding` after the longest uncut text.
    /// Heads have 8 features; there are 1024 positions, and the base is 500.
    #[test]
    fn scaled_frequencies_are_those_of_transformers() {
        let plain = [1.0, 0.211_474_24, 0.044_721_361_2, 0.009_457_415_9];
        let short = [1.0, 0.140_982_822, 0.022_360_680_6, 0.002_909_974_2];
        let yarn = [1.0, 0.132_171_392, 0.011_180_340_3, 0.002_364_353_98];
        let exact = [1.0, 0.136_416_391, 0.011_180_340_3, 0.002_364_353_98];
        let by_ratio = [1.0, 0.112_345_688, 0.002_795_085_08, 0.000_591_088_494];
        let llama3 = [1.0, 0.113_881_998, 0.011_180_340_3, 0.002_364_353_98];
        let factors = json!({"short_factor": [1.0, 1.5, 2.0, 3.25], "long_factor": [4.0, 5.0, 6.0, 7.0]});
        for (kind, more, frequencies, factor) in [
            ("dynamic", json!({"factor": 4.0}), plain, 1.0),
            ("longrope", json!({"factor": 4.0}), short, 1.154_700_538_379_251_7),
            ("longrope", json!({}), short, 1.290_994_448_735_805_6),
            ("longrope", json!({"attention_factor": 1.25}), short, 1.25),
            ("yarn", json!({"factor": 4.0}), yarn, 1.138_629_436_111_989),
            ("yarn", json!({"factor": 4.0, "mscale": 0.707, "mscale_all_dim": 1.2}), yarn, 0.941_403_523_749_669),
            ("yarn", json!({"factor": 4.0, "mscale": 0.707, "mscale_all_dim": 0.0}), yarn, 1.138_629_436_111_989),
            (
                "yarn",
                json!({"factor": 4.0, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": false}),
                exact,
                1.138_629_436_111_989,
            ),
            ("yarn", json!({"factor": null}), by_ratio, 1.277_258_872_223_978_2),
            ("llama3", json!({"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}), llama3, 1.0),
        ] {
            let mut parameters =
                json!({"rope_type": kind, "rope_theta": 500.0, "original_max_position_embeddings": 64});
            let object = |value: &serde_json::Value| value.as_object().unwrap().clone();
            parameters.as_object_mut().unwrap().extend(object(&factors).into_iter().chain(object(&more)));
            let rotary = read(json!({ "rope_parameters": parameters }));
            assert!((rotary.attention_factor() - factor).abs() < 1e-12, "{kind} {more}: {}", rotary.attention_factor());
            for (found, expected) in rotary.frequencies(8).into_iter().zip(frequencies) {
                assert!((found / expected - 1.0).abs() < F32, "{kind} {more}: {found}, expected {expected}");
            }
            let longest = if kind == "longrope" { 64 } else { 1024 };
            assert_eq!(rotary.max_tokens(1024), longest, "{kind}");
        }
    }

    /// Tolerance: transformers computes the frequencies in f32.
    const F32: f64 = 1e-6;

    #[test]
    fn a_longrope_that_leaves_no_token_is_refused() {
        let short = json!({"rope_type": "longrope", "short_factor": [1.0], "factor": 2.0});
        let rotary =
            Rotary::read(&json!({"rope_scaling": short, "original_max_position_embeddings": 0.5}), 1024).unwrap();
        let problem = rotary.problem(2).unwrap();
        assert!(problem.contains("original_max_position_embeddings is 0.5"), "{problem}");
    }

    #[test]
    fn unknown_scalings_and_odd_heads_are_refused() {
        let error = Rotary::read(&json!({"rope_scaling": {"type": "su"}}), 16).unwrap_err().to_string();
        assert!(error.contains("\"su\"") && error.contains("llama3"), "{error}");
        assert!(read(json!({})).problem(7).is_some());
        let flat = read(json!({"rope_theta": 2.0}));
        assert!(Rotary { theta: f64::NAN, ..flat }.problem(8).is_some());
    }
}
