//! What a training step will take of memory, from the graphs alone.
//!
//! The peak is what layers keep for the backward pass and the largest of what single graphs hold while they run. A graph is
//! walked in its order: a value lives from the node that makes it to the last one that reads it, an element-wise operator works
//! in the place of an operand that ends with it, and a reshape is its operand. What the process itself takes, ONNX Runtime
//! and its sessions, is not in these numbers.

use crate::design::{Design, Stages};
use crate::graph::{DType, Extract, Graph, Id, Op, Source};
use crate::stage::CompiledStage;
use crate::task::Task;
use std::collections::{BTreeMap, BTreeSet};

/// The size of a step: `examples` texts of `tokens` each, through `active` layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// `B`.
    pub examples: usize,
    /// `S`; all texts are as long.
    pub tokens: usize,
    /// How many layers run.
    pub active: usize,
}

/// Bytes that a step takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Prediction {
    /// Frozen weights of the active layers and the head, and the rows of tables that the tokens name: pages of the mapped file,
    /// which the system may take back.
    pub mapped: u64,
    /// Trainable tensors, their gradients and the optimizer's two moments.
    pub trained: u64,
    /// What the active layers keep from the forward to the backward pass.
    pub kept: u64,
    /// The largest that one graph needs beside that while it runs.
    pub working: u64,
}

impl Prediction {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.mapped + self.trained + self.kept + self.working
    }
}

/// Predicts a step of a design with those stages. Layers are taken as the kind that most of them are.
#[must_use]
pub fn predict(design: &Design, stages: &Stages, step: Step) -> Prediction {
    let layout = design.layout();
    let tokens = step.examples * step.tokens;
    let rank = stages.trainable.iter().filter(|tensor| tensor.spec.name.contains("lora_A"));
    let rank = rank.filter_map(|tensor| tensor.spec.shape.first()).max().copied().unwrap_or(1);
    let sizes = |rows: usize| {
        move |symbol: &str| match symbol {
            "B" => step.examples,
            "S" => step.tokens,
            "T" => rows,
            _ => rank,
        }
    };
    let head_rows = if layout.task == Task::CausalLm { tokens.min(layout.head_rows()) } else { tokens };
    let most = |kind: usize| stages.kinds.iter().filter(|&&other| other == kind).count();
    let usual = (0..stages.blocks.len()).max_by_key(|&kind| most(kind)).unwrap_or(0);
    let (of_tokens, of_head) = (sizes(tokens), sizes(head_rows));
    let block = Stage { compiled: &stages.blocks[usual], sizes: &of_tokens };
    let head = Stage { compiled: &stages.head, sizes: &of_head };
    let embed = Stage { compiled: &stages.embed, sizes: &of_tokens };

    let hidden = 4 * (tokens * design.model.sizes().hidden) as u64;
    let layer = hidden + block.residuals();
    // Gradients flow while a layer's residuals are still there; going forward, the last layer's are already counted.
    let working = [
        embed.peak(&stages.embed.cuts.forward),
        block.peak(&stages.blocks[usual].cuts.forward).saturating_sub(block.residuals()),
        block.backward() + hidden,
        head.peak(&stages.head.cuts.forward) + head.backward() + hidden,
    ];
    let trained: usize = stages.trainable.iter().map(|tensor| tensor.spec.shape.iter().product::<usize>()).sum();
    let layers = design.model.sizes().layers.max(1);
    let mapped = |layer: bool| -> u64 {
        let tensors = stages.frozen.iter().filter(|tensor| tensor.layer.is_some() == layer);
        let table = |name: &str| name.contains("embeddings.weight") || name.ends_with("embed_tokens.weight");
        let bytes = |shape: &[usize], width: u64| shape.iter().product::<usize>() as u64 * width;
        tensors
            .map(|tensor| {
                let width = width(tensor.storage.dtype());
                let whole = bytes(&tensor.shape, width);
                // Of a table only the rows of the batch are read, at most all of them.
                if table(&tensor.name) { whole.min(tokens as u64 * bytes(&tensor.shape[1..], width)) } else { whole }
            })
            .sum()
    };
    Prediction {
        mapped: mapped(false) + mapped(true) * step.active as u64 / layers as u64,
        trained: 16 * trained as u64,
        kept: layer * step.active as u64,
        working: working.into_iter().max().unwrap_or(0),
    }
}

/// A compiled stage with the sizes of its symbols.
struct Stage<'a> {
    compiled: &'a CompiledStage,
    sizes: &'a dyn Fn(&str) -> usize,
}

impl Stage<'_> {
    fn bytes(&self, id: Id) -> u64 {
        let value = self.compiled.graph.value(id);
        let elements = value.shape.iter().fold(1, |product: usize, dim| product.saturating_mul(dim.size(self.sizes)));
        elements as u64 * width(value.dtype)
    }

    /// What the forward file carries over: its outputs but for the stage's own result.
    fn residuals(&self) -> u64 {
        let computed = |id: &&Id| matches!(self.compiled.graph.value(**id).source, Source::Node { .. });
        let inputs = self.compiled.cuts.backward.iter().flat_map(|cut| &cut.inputs).filter(computed);
        inputs.map(|&id| self.bytes(id)).sum()
    }

    fn backward(&self) -> u64 {
        self.compiled.cuts.backward.as_ref().map_or(0, |cut| self.peak(cut))
    }

    /// The most bytes that are alive at once while `cut` runs, without its inputs.
    fn peak(&self, cut: &Extract) -> u64 {
        let graph = &self.compiled.graph;
        let last = last_uses(graph, cut);
        let mut alive: BTreeMap<Id, u64> = BTreeMap::new();
        let (mut now, mut peak) = (0, 0);
        for &at in &cut.nodes {
            let node = &graph.nodes()[at];
            let ends = |id: &Id| last.get(id) == Some(&at);
            let reused = node
                .operands()
                .iter()
                .find(|id| works_in_place(&node.op) && ends(id) && alive.get(id) == Some(&self.bytes(node.outputs[0])));
            for &output in &node.outputs {
                let taken = if reused.is_some() || matches!(node.op, Op::Reshape(_)) { 0 } else { self.bytes(output) };
                now += taken;
                alive.insert(output, taken);
            }
            peak = peak.max(now);
            if let Some(id) = reused {
                let bytes = alive.remove(id).unwrap_or(0);
                alive.insert(node.outputs[0], bytes);
            }
            let ended: Vec<Id> = node.operands().iter().copied().filter(|id| ends(id)).collect();
            for id in ended {
                if matches!(node.op, Op::Reshape(_)) {
                    let bytes = alive.remove(&id).unwrap_or(0);
                    alive.insert(node.outputs[0], bytes);
                } else {
                    now -= alive.remove(&id).unwrap_or(0);
                }
            }
        }
        peak
    }
}

/// The last node of `cut` that reads each value; what the cut gives out is read for ever.
fn last_uses(graph: &Graph, cut: &Extract) -> BTreeMap<Id, usize> {
    let kept: BTreeSet<&Id> = cut.outputs.iter().collect();
    let uses = cut.nodes.iter().flat_map(|&at| graph.nodes()[at].operands().iter().map(move |&id| (id, at)));
    uses.filter(|(id, _)| !kept.contains(id)).collect()
}

fn works_in_place(op: &Op) -> bool {
    matches!(
        op,
        Op::Add
            | Op::Sub
            | Op::Mul
            | Op::Erf
            | Op::Exp
            | Op::Tanh
            | Op::Sigmoid
            | Op::Relu
            | Op::Softmax
            | Op::LogSoftmax
    )
}

const fn width(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 4,
        DType::F16 => 2,
        DType::I8 => 1,
        DType::I64 => 8,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::architectures::{Head, Model};
    use crate::pack::Storage;
    use crate::peft::{Lora, Peft};

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
        predict(design, &design.stages().unwrap(), Step { examples: 8, tokens: 128, active })
    }

    #[test]
    fn what_is_kept_grows_with_the_active_layers_and_the_rest_does_not() {
        let design = minilm(Storage::F32);
        let (one, three, six) = (predicted(&design, 1), predicted(&design, 3), predicted(&design, 6));
        assert_eq!([one.kept * 3, one.kept * 6], [three.kept, six.kept]);
        assert_eq!((one.working, one.trained), (six.working, six.trained));
        assert!(six.mapped > three.mapped);
    }

    #[test]
    fn fewer_bits_shrink_the_mapped_weights_alone() {
        let [f32, f16, int8] = [Storage::F32, Storage::F16, Storage::Int8].map(|frozen| predicted(&minilm(frozen), 6));
        assert!(f16.mapped < f32.mapped * 52 / 100 && int8.mapped < f32.mapped * 28 / 100);
        assert_eq!(f32.kept, f16.kept);
        assert_eq!(f32.trained, int8.trained);
    }
}
