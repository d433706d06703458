//! Predicts the memory of a training step from its graphs, and plans steps that stay below a limit.
//!
//! The peak is the sum of two parts: the values that layers keep for the backward pass, and the largest memory of a single
//! running graph.
//!
//! The nodes of a graph are visited in order. A value lives from the node that makes it to the last node that reads it. An
//! element-wise operator reuses the memory of an operand that no later node reads, and a reshape shares the memory of its
//! operand. The prediction leaves out the memory of the process itself, with ONNX Runtime and its sessions; the process measures
//! that.

mod predict;

pub use predict::{Prediction, predict};

use crate::design::{Design, Stages};
use serde::{Deserialize, Serialize};

/// Choice of the values that an active layer keeps for the backward pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// All values for its gradient.
    #[default]
    Keep,
    /// All values for its gradient, in half precision.
    Half,
    /// Only its input; the backward pass computes the other values again. That costs a second forward pass through all layers
    /// except the highest.
    Recompute,
}

impl Policy {
    /// All policies, the fastest first.
    pub const ALL: [Self; 3] = [Self::Keep, Self::Half, Self::Recompute];

    /// Returns its name in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Half => "half",
            Self::Recompute => "recompute",
        }
    }

    /// Returns the estimated time of a step, relative to one that keeps everything. For `BERT` with few trainable parameters,
    /// forward and backward take the same time.
    const fn relative_time(self) -> f64 {
        match self {
            Self::Keep => 1.0,
            Self::Half => 1.03,
            Self::Recompute => 1.5,
        }
    }
}

/// Size of a step: `examples` texts of `tokens` tokens each, through `active` layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Number of texts, `B`.
    pub examples: usize,
    /// Number of tokens of each text, `S`.
    pub tokens: usize,
    /// Number of layers that run.
    pub active: usize,
}

/// Way to do a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Way {
    /// The policy of the layers.
    pub policy: Policy,
    /// Maximum number of examples that go through at once. The gradients of the parts add up to the gradients of the step.
    pub micro_batch: usize,
}

/// Ways to do the steps of a training.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ways {
    /// The same way for every step.
    Fixed(Way),
    /// One way for each number of active layers, from one. The number of entries limits the number of active layers.
    ByActive(Vec<Way>),
}

impl Ways {
    /// Returns the way to do a step with `active` layers.
    #[must_use]
    pub fn with(&self, active: usize) -> Option<Way> {
        match self {
            Self::Fixed(way) => Some(*way),
            Self::ByActive(ways) => ways.get(active.saturating_sub(1).min(ways.len().saturating_sub(1))).copied(),
        }
    }

    /// Returns the maximum number of layers in one step.
    #[must_use]
    pub fn most_active(&self) -> usize {
        match self {
            Self::Fixed(_) => usize::MAX,
            Self::ByActive(ways) => ways.len(),
        }
    }
}

/// A way and its cost.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Costed {
    /// The way.
    #[serde(flatten)]
    pub way: Way,
    /// Estimated time, relative to a step that keeps everything and takes all examples at once.
    pub relative_time: f64,
    /// Predicted memory, in bytes.
    pub bytes: Prediction,
}

/// The plan for steps in limited memory.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Plan {
    /// Memory for a step, in bytes.
    pub room: u64,
    /// Fastest way that fits, for each number of active layers from one to the largest number that fits.
    pub chosen: Vec<Costed>,
    /// Way with the least memory for one more layer than fits; `None` if all layers fit.
    pub beyond: Option<Costed>,
}

impl Plan {
    /// Plans steps of the design with these stages. Each step may take `room` bytes. `step.active` is the maximum number of
    /// layers that run.
    #[must_use]
    pub fn of(design: &Design, stages: &Stages, step: Step, room: u64) -> Self {
        let mut plan = Self { room, chosen: Vec::new(), beyond: None };
        for active in 1..=step.active {
            let costed = costed(design, stages, Step { active, ..step });
            match costed.iter().find(|costed| costed.bytes.total() <= room) {
                Some(fastest) => plan.chosen.push(*fastest),
                None => {
                    plan.beyond = costed.into_iter().min_by_key(|costed| costed.bytes.total());
                    break;
                }
            }
        }
        plan
    }

    /// Returns the chosen ways, for a training.
    #[must_use]
    pub fn ways(&self) -> Ways {
        Ways::ByActive(self.chosen.iter().map(|costed| costed.way).collect())
    }
}

/// Returns all ways to do a step, the fastest first.
#[must_use]
pub fn costed(design: &Design, stages: &Stages, step: Step) -> Vec<Costed> {
    // A stored weight is converted once for each part of a step, which takes as long as this many tokens' products with it.
    const CONVERSION: usize = 32;
    let halves = stages.blocks.iter().all(|block| block.half.is_some());
    let time = |parts: usize, examples: usize| (parts * (examples * step.tokens + CONVERSION)) as f64;
    let whole = time(1, step.examples);
    let mut ways = Vec::new();
    let mut micro_batch = step.examples.max(1);
    loop {
        for policy in Policy::ALL.into_iter().filter(|&policy| halves || policy != Policy::Half) {
            let parts = step.examples.div_ceil(micro_batch);
            ways.push(Costed {
                way: Way { policy, micro_batch },
                relative_time: policy.relative_time() * time(parts, micro_batch) / whole,
                bytes: predict(design, stages, Step { examples: micro_batch, ..step }, policy),
            });
        }
        if micro_batch == 1 {
            break;
        }
        micro_batch = micro_batch.div_ceil(2);
    }
    ways.sort_by(|one, other| one.relative_time.total_cmp(&other.relative_time));
    ways
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::architectures::{Head, Model};
    use crate::peft::{Lora, Peft};
    use crate::storage::Storage;
    use crate::task::Task;

    fn minilm(frozen: Storage) -> Design {
        let config = serde_json::json!({
            "model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12,
            "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        });
        let lora = Lora { targets: vec!["query".to_owned(), "value".to_owned()], ..Lora::default() };
        let head = Head { task: Task::SequenceClassification, labels: 4, train_pooler: false };
        Design { model: Model::read(&config).unwrap(), head, peft: Peft::Lora(lora), frozen }
    }

    fn predicted(design: &Design, active: usize) -> Prediction {
        predict(design, &design.fused_stages().unwrap(), Step { examples: 8, tokens: 128, active }, Policy::Keep)
    }

    #[test]
    fn what_is_kept_grows_with_the_active_layers_and_the_rest_does_not() {
        let design = minilm(Storage::F32);
        let (one, three, six) = (predicted(&design, 1), predicted(&design, 3), predicted(&design, 6));
        assert_eq!((three.kept - one.kept) * 5, (six.kept - one.kept) * 2);
        assert_eq!((one.working, one.trained), (six.working, six.trained));
        assert!(six.mapped > three.mapped);
    }

    #[test]
    fn the_fastest_way_that_fits_is_chosen_and_no_more_layers_than_fit() {
        let (design, step) = (minilm(Storage::Int8), Step { examples: 8, tokens: 128, active: 6 });
        let stages = design.fused_stages().unwrap();
        let fastest = costed(&design, &stages, step)[0];
        assert_eq!(fastest.way, Way { policy: Policy::Keep, micro_batch: 8 });
        let roomy = Plan::of(&design, &stages, step, fastest.bytes.total());
        assert!(roomy.chosen.iter().all(|costed| costed.way == fastest.way) && roomy.beyond.is_none());
        assert_eq!(roomy.ways().most_active(), 6);
        let mut before = roomy;
        for room in (0..fastest.bytes.total()).rev().step_by(1 << 20) {
            let plan = Plan::of(&design, &stages, step, room);
            assert!(plan.chosen.iter().all(|costed| costed.bytes.total() <= room));
            assert!(plan.chosen.len() <= before.chosen.len());
            let pairs = plan.chosen.iter().zip(&before.chosen);
            assert!(pairs.clone().all(|(less, more)| less.relative_time >= more.relative_time));
            assert_eq!(plan.beyond.is_none(), plan.chosen.len() == 6);
            before = plan;
        }
        assert_eq!(before.chosen, []);
        assert_eq!(before.ways().with(1), None);
    }

    #[test]
    fn halves_and_computing_again_keep_less() {
        let (design, step) = (minilm(Storage::F32), Step { examples: 8, tokens: 128, active: 6 });
        let stages = design.fused_stages().unwrap();
        let [keep, half, again] = Policy::ALL.map(|policy| predict(&design, &stages, step, policy));
        assert!(half.kept < keep.kept * 62 / 100 && again.kept < keep.kept / 5);
        assert_eq!([half.mapped, again.mapped], [keep.mapped; 2]);
    }

    #[test]
    fn fewer_bits_shrink_the_mapped_weights_alone() {
        let [f32, f16, int8] = [Storage::F32, Storage::F16, Storage::Int8].map(|frozen| predicted(&minilm(frozen), 6));
        assert!(f16.mapped < f32.mapped * 52 / 100 && int8.mapped < f32.mapped * 28 / 100);
        assert_eq!(f32.kept, f16.kept);
        assert_eq!(f32.trained, int8.trained);
    }
}
