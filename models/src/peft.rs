//! What trains beside the frozen model: LoRA on named linear layers, and the task's head.

use crate::graph::{GraphError, Id, Op, Shape};
use crate::stage::Stage;
use crate::tensors::{NamedTensors, Schema, TensorSpec};
use ndarray::{ArrayD, IxDyn};
use serde::{Deserialize, Serialize};

/// The prefix that Hugging Face PEFT puts before the name of a tensor of the wrapped model.
pub const PREFIX: &str = "base_model.model.";

/// The largest rank of LoRA.
pub const MAX_RANK: usize = 1024;

/// Low-rank adaptation (Hu et al., arXiv 2106.09685): `y = W x + b + (alpha / rank) B A x`, with `W`, `b` frozen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// The scale is `alpha / rank`.
    pub alpha: f32,
    /// The linear layers it sits on, by the last part of their name: `query`, `value`.
    pub targets: Vec<String>,
}

impl Default for Lora {
    /// Rank 8, alpha 16, on query and value: what the figures in the README use.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: vec!["query".to_owned(), "value".to_owned()] }
    }
}

/// A linear layer `x W^T + b` of a stage, with LoRA where its name asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// Before the name in the frozen file, for instance `encoder.layer.{layer}.`.
    pub frozen_prefix: &'a str,
    /// Before the name in the trainable file.
    pub trainable_prefix: &'a str,
    /// `attention.self.query`.
    pub name: &'a str,
    /// Columns of `x`.
    pub inputs: usize,
    /// Columns of the result.
    pub outputs: usize,
}

impl Linear<'_> {
    /// Adds the layer to `stage`: `x` is `[T, inputs]`, the result `[T, outputs]`.
    ///
    /// # Errors
    /// A shape of `x` that does not fit.
    pub fn apply(&self, stage: &mut Stage, x: Id, lora: &Lora) -> Result<Id, GraphError> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let of = |part: &str| format!("{}.{part}", self.name);
        let weight = stage.frozen(self.frozen_prefix, &of("weight"), shape([outputs, inputs]));
        let bias = stage.frozen(self.frozen_prefix, &of("bias"), shape([outputs]));
        let times_transposed = |alpha| Op::Gemm { alpha, trans_a: false, trans_b: true };
        let base = stage.graph.op(times_transposed(1.0), &[x, weight, bias])?;
        if !lora.adapts(self.name) {
            return Ok(base);
        }
        let down = stage.trainable(self.trainable_prefix, &of("lora_A.weight"), shape([lora.rank, inputs]));
        let up = stage.trainable(self.trainable_prefix, &of("lora_B.weight"), shape([outputs, lora.rank]));
        let narrow = stage.graph.op(times_transposed(1.0), &[x, down])?;
        stage.graph.op(times_transposed(lora.scale()), &[narrow, up, base])
    }
}

impl Lora {
    /// `alpha / rank`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// What is wrong with it for a model whose linear layers are `linears`, if anything.
    #[must_use]
    pub fn problem(&self, linears: &[&str]) -> Option<String> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            return Some(format!("LoRA rank {}: expected 1 to {MAX_RANK}", self.rank));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return Some(format!("LoRA alpha {}: expected a positive number", self.alpha));
        }
        let last_parts: Vec<&str> = linears.iter().filter_map(|name| name.rsplit('.').next()).collect();
        match self.targets.iter().find(|target| !last_parts.contains(&target.as_str())) {
            Some(target) => Some(format!("LoRA target {target:?}: this model has {}", last_parts.join(", "))),
            None if self.targets.is_empty() => Some("LoRA needs at least one target".to_owned()),
            None => None,
        }
    }

    /// Whether the linear layer called `name` is adapted.
    #[must_use]
    pub fn adapts(&self, name: &str) -> bool {
        name.rsplit('.').next().is_some_and(|last| self.targets.iter().any(|target| target == last))
    }
}

/// The first values of trainable tensors, a function of `seed` and each tensor's name.
///
/// `lora_A`: uniform in `±1/sqrt(inputs)` (PEFT's `kaiming_uniform_(a = sqrt 5)`); `lora_B` and biases: zero; other
/// matrices: uniform with standard deviation 0.02 (BERT's, whose draw is normal; a uniform one needs no logarithm and so
/// has the same bits on every machine).
#[must_use]
pub fn initial(schema: &Schema, seed: u64) -> NamedTensors {
    schema.tensors.iter().map(|spec| (spec.name.clone(), initial_tensor(spec, seed))).collect()
}

fn initial_tensor(spec: &TensorSpec, seed: u64) -> ArrayD<f32> {
    let inputs = spec.shape.last().copied().unwrap_or(1);
    let bound = if spec.name.ends_with("lora_A.weight") {
        1.0 / (inputs as f32).sqrt()
    } else if spec.name.ends_with("lora_B.weight") || spec.name.ends_with("bias") {
        0.0
    } else {
        0.02 * 3f32.sqrt()
    };
    let mut hasher = blake3::Hasher::new_derive_key("skiff 2026-11-23 initial values of trainable tensors");
    hasher.update(&seed.to_le_bytes()).update(spec.name.as_bytes());
    let mut bits = hasher.finalize_xof();
    ArrayD::from_shape_simple_fn(IxDyn(&spec.shape), || {
        let mut word = [0; 4];
        bits.fill(&mut word);
        let unit = (u32::from_le_bytes(word) >> 8) as f32 / (1 << 24) as f32;
        bound * (2.0 * unit - 1.0)
    })
}

fn shape<const N: usize>(sizes: [usize; N]) -> Shape {
    sizes.into_iter().map(Into::into).collect()
}
