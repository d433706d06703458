//! The methods of fine-tuning: LoRA, Houlsby adapters or BitFit. [`crate::stage`] adds them to a model.

mod patterns;

pub use patterns::Patterns;

use ndarray::{ArrayD, IxDyn};
use serde::{Deserialize, Serialize};

/// Hugging Face PEFT's prefix for the tensors of the wrapped model.
pub const PREFIX: &str = "base_model.model.";

/// Maximum rank of LoRA, and maximum width of an adapter.
pub const MAX_RANK: usize = 1024;

/// Method of fine-tuning only a few parameters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Peft {
    /// Low-rank adaptation of linear layers.
    Lora(Lora),
    /// Bottleneck adapters after the attention's and the feed-forward's last linear layer (Houlsby et al., arXiv 1902.00751).
    Houlsby {
        /// Features of the bottleneck.
        width: usize,
    },
    /// Every bias of the blocks (Ben Zaken et al., arXiv 2106.10199).
    BitFit,
}

/// Low-rank adaptation (Hu et al., arXiv 2106.09685): `y = W x + b + s B A x`, with `W`, `b` frozen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// Numerator of the scale `s = alpha / rank`.
    pub alpha: f32,
    /// Target layers, by the end of their name or the whole name: `query`, `attention.output.dense`.
    ///
    /// `all-linear` alone has the same meaning as in PEFT: every linear layer of the blocks, and the pooler if it is frozen. It
    /// contains no part of a head, because all parameters of a head train. A DeBERTa with projected embeddings refuses
    /// `all-linear`, because the projection is a linear layer that cannot be adapted here.
    pub targets: Vec<String>,
    /// Different ranks, by the end of the layers' names.
    #[serde(default)]
    pub rank_pattern: Patterns<usize>,
    /// Different alphas, by the end of the layers' names.
    #[serde(default)]
    pub alpha_pattern: Patterns<f32>,
    /// Numbers of the blocks with LoRA; empty for all blocks.
    #[serde(default)]
    pub layers: Option<Vec<usize>>,
    /// Whether the scale is `s = alpha / sqrt(rank)` instead (Kalajdzievski, arXiv 2312.03732).
    #[serde(default)]
    pub rslora: bool,
    /// Whether `A` keeps its drawn values and only `B` trains (FFA-LoRA, Sun et al., arXiv 2403.12313).
    #[serde(default)]
    pub freeze_a: bool,
}

/// The linear layers of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Linears<'a> {
    /// Names of the linear layers in each block.
    pub of_blocks: &'a [&'a str],
    /// Full names of all layers that LoRA may target.
    pub names: Vec<String>,
    /// Full names of the layers whose parameters all train, because they are parts of a head. A PEFT adapter may also list them
    /// as targets.
    pub of_heads: &'a [&'a str],
    /// Full names of the layers that LoRA cannot target here.
    pub unadapted: &'a [&'a str],
}

/// LoRA on one linear layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LoraSettings {
    /// Rows of `A`.
    pub rank: usize,
    /// Factor of `B A x`.
    pub scale: f32,
}

/// Target that stands for every linear layer of the blocks and the pooler.
pub const ALL_LINEAR: &str = "all-linear";

impl Default for Peft {
    /// Returns LoRA with its default settings.
    fn default() -> Self {
        Self::Lora(Lora::default())
    }
}

impl Default for Lora {
    /// Returns rank 8, alpha 16 and no targets; the architecture determines them later.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: Vec::new(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            layers: None,
            rslora: false,
            freeze_a: false,
        }
    }
}

impl Peft {
    /// Returns the method's name in files and on the command line.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Lora(_) => "lora",
            Self::Houlsby { .. } => "houlsby",
            Self::BitFit => "bitfit",
        }
    }

    /// Returns what is wrong with the method for a model with these linear layers, if anything.
    #[must_use]
    pub fn problem(&self, linears: &Linears<'_>, layers: usize) -> Option<String> {
        match self {
            Self::Lora(lora) => lora.problem(linears, layers),
            Self::Houlsby { width } if !(1..=MAX_RANK).contains(width) => {
                Some(format!("adapter width {width}: expected 1 to {MAX_RANK}"))
            }
            Self::Houlsby { .. } | Self::BitFit => None,
        }
    }
}

impl Lora {
    /// Returns LoRA's settings on the linear layer with this full name, for example `encoder.layer.3.attention.self.query`;
    /// `None` if the layer is not adapted. If several patterns fit, the first one counts; see [`Patterns`].
    #[must_use]
    pub fn on(&self, name: &str) -> Option<LoraSettings> {
        let targeted = self.targets.iter().any(|target| target == ALL_LINEAR || ends_with_parts(name, target));
        let in_layer = self.layers.as_ref().is_none_or(|layers| layer_of(name).is_some_and(|at| layers.contains(&at)));
        if !targeted || !in_layer {
            return None;
        }
        let rank = self.rank_pattern.first(name).copied().unwrap_or(self.rank);
        let alpha = self.alpha_pattern.first(name).copied().unwrap_or(self.alpha);
        let divisor = if self.rslora { (rank as f32).sqrt() } else { rank as f32 };
        Some(LoraSettings { rank, scale: alpha / divisor })
    }

    /// Returns a message about a pattern that fits none of the adapted `names`, and is probably misspelt.
    fn idle_pattern(&self, names: &[String]) -> Option<String> {
        let adapted: Vec<&String> = names.iter().filter(|name| self.on(name).is_some()).collect();
        let idle = |end: &&str| !adapted.iter().any(|name| ends_with_parts(name, end));
        let rank = self.rank_pattern.ends().find(idle).map(|end| ("rank", end));
        let (kind, end) = rank.or_else(|| self.alpha_pattern.ends().find(idle).map(|end| ("alpha", end)))?;
        Some(format!("LoRA {kind} pattern {end:?}: no layer with LoRA has such a name"))
    }

    fn problem(&self, linears: &Linears<'_>, layers: usize) -> Option<String> {
        let ranks = self.rank_pattern.values().chain([&self.rank]);
        if let Some(rank) = ranks.copied().find(|rank| !(1..=MAX_RANK).contains(rank)) {
            return Some(format!("LoRA rank {rank}: expected 1 to {MAX_RANK}"));
        }
        let alphas = self.alpha_pattern.values().chain([&self.alpha]);
        if let Some(alpha) = alphas.copied().find(|alpha| !alpha.is_finite() || *alpha <= 0.0) {
            return Some(format!("LoRA alpha {alpha}: expected a positive number"));
        }
        if self.targets.is_empty() {
            return Some("LoRA needs at least one target".to_owned());
        }
        if let Some(layer) = self.layers.iter().flatten().find(|layer| **layer >= layers) {
            return Some(format!("LoRA in layer {layer}: this model has layers 0 to {}", layers.saturating_sub(1)));
        }
        self.bad_target(linears).or_else(|| self.idle_pattern(&linears.names))
    }

    /// Returns a message about a target that is not the name of a layer, or cannot be adapted.
    fn bad_target(&self, linears: &Linears<'_>) -> Option<String> {
        let there = linears.of_blocks.join(", ");
        for target in &self.targets {
            let fits = |name: &str| target == ALL_LINEAR || ends_with_parts(name, target);
            if let Some(name) = linears.unadapted.iter().find(|name| fits(name)) {
                return Some(format!(
                    "LoRA target {target:?} includes {name}, which cannot be adapted; choose from {there}"
                ));
            }
            if !linears.names.iter().map(String::as_str).chain(linears.of_heads.iter().copied()).any(fits) {
                return Some(format!("LoRA target {target:?}: this model has {there}, or {ALL_LINEAR}"));
            }
        }
        let adapts_something = linears.names.iter().any(|name| self.on(name).is_some());
        (!adapts_something)
            .then(|| format!("LoRA targets {:?} include none of this model's layers: {there}", self.targets))
    }
}

/// Returns true if `name` equals `end`, or ends in a dot followed by `end`.
pub(crate) fn ends_with_parts(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Returns the number of the layer in a name: the first number among the name's parts.
fn layer_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Draws values uniformly between minus and plus `bound`, from `seed` and the tensor's name.
///
/// The bound of `lora_A` and an adapter's down-projection is `1/sqrt(inputs)` (PEFT's `kaiming_uniform_(a = sqrt 5)`).
/// `lora_B`, an adapter's up-projection and biases are zero, so that the model starts unchanged. Other matrices have BERT's
/// standard deviation of 0.02.
#[must_use]
pub fn draw(name: &str, shape: &[usize], bound: f32, seed: u64) -> ArrayD<f32> {
    let mut hasher = blake3::Hasher::new_derive_key("skiff 2026-11-23 initial values of trainable tensors");
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut bits = hasher.finalize_xof();
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        let mut word = [0; 4];
        bits.fill(&mut word);
        let unit = (u32::from_le_bytes(word) >> 8) as f32 / (1 << 24) as f32;
        bound * (2.0 * unit - 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] =
        ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.attention.self.query", "bert.pooler.dense"];

    /// Returns what is wrong with the settings for a model with these layers, if anything.
    fn problem(lora: Lora) -> Option<String> {
        Peft::Lora(lora).problem(
            &Linears {
                of_blocks: &["attention.self.query"],
                names: NAMES.map(str::to_owned).to_vec(),
                of_heads: &["classifier.dense"],
                unadapted: &[],
            },
            2,
        )
    }

    fn with_targets<const N: usize>(targets: [&str; N]) -> Lora {
        Lora { targets: targets.map(str::to_owned).to_vec(), ..Lora::default() }
    }

    #[test]
    fn targets_are_ends_of_names_or_whole_ones_as_peft_writes_them() {
        for targets in
            [["query", "self.query"], [NAMES[0], NAMES[2]], [ALL_LINEAR, "query"], ["query", "classifier.dense"]]
        {
            assert_eq!(problem(with_targets(targets)), None, "{targets:?}");
        }
        for targets in [["query", "key"], ["query", "uery"], ["query", "layer.2.attention.self.query"]] {
            assert!(problem(with_targets(targets)).is_some_and(|what| what.contains(targets[1])), "{targets:?}");
        }
        assert!(problem(with_targets(["classifier.dense"])).is_some_and(|what| what.contains("classifier.dense")));
        assert_eq!(with_targets([NAMES[0]]).on(NAMES[1]), None);
    }

    #[test]
    fn a_pattern_that_fits_no_adapted_layer_is_refused() {
        let problem = |target: &str, end: &str, layers| {
            let lora = Lora { layers, ..with_targets([target]) };
            let of_rank = Lora { rank_pattern: [(end.to_owned(), 4)].into(), ..lora.clone() };
            let of_alpha = Lora { alpha_pattern: [(end.to_owned(), 4.0)].into(), ..lora };
            let (rank, alpha) = (problem(of_rank), problem(of_alpha));
            assert_eq!(rank.is_some(), alpha.is_some(), "{rank:?} {alpha:?}");
            rank
        };
        assert_eq!(problem("query", "layer.1.attention.self.query", None), None);
        assert_eq!(problem(ALL_LINEAR, "pooler.dense", None), None);
        for (end, layers) in
            [("qurey", None), ("uery", None), ("dense", None), ("layer.1.attention.self.query", Some(vec![0]))]
        {
            assert!(problem("query", end, layers).is_some_and(|what| what.contains(end)), "{end}");
        }
    }
}
