//! Predicts the memory of one step from its graphs.

use super::{Policy, Step};
use crate::design::{Design, Stages};
use crate::graph::{DType, Extract, Graph, Id, Op, Source};
use crate::stage::{CompiledStage, Cuts, Extent, FrozenTensor};
use crate::task::Task;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Memory of a step, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Prediction {
    /// Frozen weights of the active layers and the head, and the rows of tables for the tokens. They are pages of the mapped
    /// file, which the system may take back.
    pub mapped: u64,
    /// Trainable tensors, their gradients and the optimizer's two moments.
    pub trained: u64,
    /// Tensors that the active layers keep from the forward to the backward pass.
    pub kept: u64,
    /// Maximum memory that one running graph needs in addition.
    pub working: u64,
}

impl Prediction {
    /// Returns the sum of all parts.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.mapped + self.trained + self.kept + self.working
    }
}

/// Bytes for a trainable element: two copies of it, its gradient, and the optimizer's two moments, each in f32.
const TRAINED_BYTES: u64 = 5 * 4;

/// Share for the unused part of the arena, because its regions double in size: two fifths, by measurement.
const ARENA_SLACK: (u64, u64) = (7, 5);

/// Predicts the memory of a step of the design with these stages. Treats all layers as the most frequent kind.
#[must_use]
pub fn predict(design: &Design, stages: &Stages, step: Step, policy: Policy) -> Prediction {
    let layout = design.layout();
    let tokens = step.examples * step.tokens;
    let head_rows = if layout.task == Task::CausalLm { tokens.min(layout.head_rows()) } else { tokens };
    let rank = stages.rank();
    let sizes = |rows: usize| {
        move |symbol: &str| match symbol {
            "B" => step.examples,
            "S" => step.tokens,
            "T" => rows,
            _ => rank,
        }
    };
    let (token_sizes, head_sizes) = (sizes(tokens), sizes(head_rows));
    let layers_of_kind = |kind: usize| stages.kinds.iter().filter(|&&other| other == kind).count();
    let usual = (0..stages.blocks.len()).max_by_key(|&kind| layers_of_kind(kind)).unwrap_or(0);
    let last = stages.last_blocks.get(usual).unwrap_or(&stages.blocks[usual]);
    let running = Running {
        embed: Part::of(&stages.embed, policy, &token_sizes),
        block: Part::of(&stages.blocks[usual], policy, &token_sizes),
        last: Part::of(last, policy, &token_sizes),
        head: Part::of(&stages.head, policy, &head_sizes),
        hidden: 4 * (tokens * design.model.sizes().hidden) as u64,
        recomputes: policy == Policy::Recompute,
    };
    let trained: usize = stages.trainable.iter().map(|tensor| tensor.spec.shape.iter().product::<usize>()).sum();
    Prediction {
        mapped: mapped(stages, design.model.sizes().layers, step),
        trained: TRAINED_BYTES * trained as u64,
        kept: running.kept(step.active as u64),
        working: running.working() * ARENA_SLACK.0 / ARENA_SLACK.1,
    }
}

/// Returns the size in bytes of the frozen tensors that a step reads.
fn mapped(stages: &Stages, layers: usize, step: Step) -> u64 {
    let tokens = (step.examples * step.tokens) as u64;
    let in_head: BTreeSet<&str> = stages.head.frozen.iter().map(|tensor| tensor.name.as_str()).collect();
    let bytes = |tensor: &FrozenTensor| {
        let bytes = |shape: &[usize]| shape.iter().product::<usize>() as u64 * width(tensor.storage.dtype());
        let whole = bytes(&tensor.shape);
        // A head that shares a table reads all of it.
        match tensor.extent {
            Extent::Rows if !in_head.contains(tensor.name.as_str()) => whole.min(tokens * bytes(&tensor.shape[1..])),
            Extent::Rows | Extent::Whole => whole,
        }
    };
    let sum = |in_layers: bool| -> u64 {
        stages.frozen.iter().filter(|tensor| tensor.layer.is_some() == in_layers).map(bytes).sum()
    };
    sum(false) + sum(true) * step.active as u64 / layers.max(1) as u64
}

/// The graphs of a step.
struct Running<'a> {
    embed: Part<'a>,
    block: Part<'a>,
    /// The highest block.
    last: Part<'a>,
    head: Part<'a>,
    /// Size in bytes of the activations between two stages.
    hidden: u64,
    /// Whether the backward pass computes all layers except the highest again.
    recomputes: bool,
}

impl Running<'_> {
    /// Returns the number of bytes that `active` layers and the embedding keep for the backward pass.
    fn kept(&self, active: u64) -> u64 {
        let below = self.hidden + if self.recomputes { 0 } else { self.block.residuals() };
        self.embed.contexts().saturating_sub(self.hidden)
            + active.saturating_sub(1) * below
            + active.min(1) * (self.hidden + self.last.residuals())
    }

    /// Returns the maximum number of bytes that one graph needs in addition to the kept values.
    ///
    /// Gradients are computed while a layer's residuals still exist. In the forward pass, the last layer's residuals already
    /// count as kept. The residuals of a layer that is computed again are added to the values that all layers keep.
    fn working(&self) -> u64 {
        let again = if self.recomputes { self.block.residuals() } else { 0 };
        let last_again = if self.recomputes { self.last.residuals() } else { 0 };
        let peaks = [
            self.embed.peak(&self.embed.cuts.evaluate),
            self.block.forward().saturating_sub(self.block.residuals() - again),
            (again + self.block.backward() + self.hidden).saturating_sub(last_again),
            self.last.backward() + self.hidden,
            self.head.forward() + self.head.backward() + self.hidden,
        ];
        peaks.into_iter().max().unwrap_or(0)
    }
}

/// The running graphs of a stage, with the sizes of their symbols.
struct Part<'a> {
    graph: &'a Graph,
    cuts: &'a Cuts,
    sizes: &'a dyn Fn(&str) -> usize,
}

impl<'a> Part<'a> {
    fn of(compiled: &'a CompiledStage, policy: Policy, sizes: &'a dyn Fn(&str) -> usize) -> Self {
        match &compiled.half {
            Some((graph, cuts)) if policy == Policy::Half => Self { graph, cuts, sizes },
            Some(_) | None => Self { graph: &compiled.graph, cuts: &compiled.cuts, sizes },
        }
    }

    fn bytes(&self, id: Id) -> u64 {
        let value = self.graph.value(id);
        let elements = value.shape.iter().fold(1, |product: usize, dim| product.saturating_mul(dim.size(self.sizes)));
        elements as u64 * width(value.dtype)
    }

    fn computed<'b>(&self, ids: impl IntoIterator<Item = &'b Id>) -> u64 {
        let computed = |id: &&Id| matches!(self.graph.value(**id).source, Source::Node { .. });
        ids.into_iter().filter(computed).map(|&id| self.bytes(id)).sum()
    }

    /// Returns the size in bytes of the forward file's residuals: all outputs except the stage's own result.
    fn residuals(&self) -> u64 {
        self.cuts.backward.as_ref().map_or(0, |cut| self.computed(&cut.inputs))
    }

    /// Returns the size in bytes of the embedding's outputs for all layers, including its activations.
    fn contexts(&self) -> u64 {
        self.computed(&self.cuts.evaluate.outputs)
    }

    fn forward(&self) -> u64 {
        self.peak(&self.cuts.forward)
    }

    fn backward(&self) -> u64 {
        self.cuts.backward.as_ref().map_or(0, |cut| self.peak(cut))
    }

    /// Returns the maximum number of live bytes while `cut` runs, without its inputs.
    fn peak(&self, cut: &Extract) -> u64 {
        let graph = self.graph;
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

/// Returns the last node of `cut` that reads each value. Outputs of the cut have none.
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
