//! Reading a checkpoint's `config.json`.

use super::SUPPORTED;
use serde::de::DeserializeOwned;

/// Why a `config.json` cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is missing or malformed.
    #[error("reading the model's sizes")]
    Malformed(#[from] serde_json::Error),
    /// A model that this version cannot take.
    #[error("model_type {found:?} is not supported; supported: {}", SUPPORTED.join(", "))]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// A setting that this version cannot take.
    #[error("{key} is {found}, which is not supported; supported: {supported}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What the file says.
        found: String,
        /// What it could say.
        supported: &'static str,
    },
    /// Sizes that cannot be.
    #[error("{what}")]
    Sizes {
        /// What is wrong.
        what: String,
    },
}

/// The keys of a `config.json` that `T` names.
pub(super) fn keys<T: DeserializeOwned>(config: &serde_json::Value) -> Result<T, ConfigError> {
    Ok(T::deserialize(config)?)
}

/// The first size that is out of its bounds, 1 to the number beside it, named.
pub(super) fn out_of_bounds(sizes: &[(&str, usize, usize)]) -> Option<String> {
    let (name, size, most) = sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size))?;
    Some(format!("{name} is {size}, expected 1 to {most}"))
}

/// What is wrong with the epsilon of a norm, if anything.
pub(super) fn bad_epsilon(name: &str, epsilon: f32) -> Option<String> {
    let sound = epsilon > 0.0 && epsilon < 1.0;
    (!sound).then(|| format!("{name} is {epsilon}, expected a small positive number"))
}

pub(super) const MAX_LAYERS: usize = 512;
pub(super) const MAX_HIDDEN: usize = 1 << 16;
pub(super) const MAX_HEADS: usize = 1 << 10;
pub(super) const MAX_INTERMEDIATE: usize = 1 << 18;
pub(super) const MAX_VOCABULARY: usize = 1 << 24;
pub(super) const MAX_POSITIONS: usize = 1 << 21;
pub(super) const MAX_SEGMENTS: usize = 1 << 10;
