//! Counts the arithmetic of a training step or an evaluation, from the graphs alone.

use crate::design::Stages;
use crate::graph::{Extract, Graph, Op, Shape};
use crate::memory::Step;
use crate::stage::CompiledStage;

/// Counts the floating-point operations of the matrix products of a training step: `2 m n k` for each product of `[m, k]` and
/// `[k, n]` in the plain forward and backward graphs of `embed`, the active layers and the head.
///
/// Norms, activations, softmax and the optimizer are left out. Every layer counts in full, even if an implementation skips
/// parts of it. The number therefore describes the method, not the implementation.
#[must_use]
pub fn flops(stages: &Stages, step: Step) -> u64 {
    count(stages, step, |stage| [Some(&stage.cuts.forward), stage.cuts.backward.as_ref()])
}

/// Same as [`flops`], but counts an evaluation of a batch.
#[must_use]
pub fn evaluation_flops(stages: &Stages, step: Step) -> u64 {
    count(stages, step, |stage| [Some(&stage.cuts.evaluate), None])
}

fn count(stages: &Stages, step: Step, cuts: fn(&CompiledStage) -> [Option<&Extract>; 2]) -> u64 {
    let tokens = step.examples * step.tokens;
    let rank = stages.rank();
    let size = |symbol: &str| match symbol {
        "B" => step.examples,
        "S" => step.tokens,
        "T" => tokens,
        _ => rank,
    };
    let products = |graph: &Graph, cut: &Extract| -> u64 {
        cut.nodes.iter().map(|&at| of_node(graph, &graph.nodes()[at], &size)).sum()
    };
    let stage =
        |stage: &CompiledStage| cuts(stage).into_iter().flatten().map(|cut| products(&stage.graph, cut)).sum::<u64>();
    let layers: u64 = stages.kinds.iter().map(|&kind| stage(&stages.blocks[kind])).sum();
    let layers = layers * step.active as u64 / stages.kinds.len().max(1) as u64;
    layers + stage(&stages.embed) + stage(&stages.head)
}

fn of_node(graph: &Graph, node: &crate::graph::Node, size: &dyn Fn(&str) -> usize) -> u64 {
    let dim = |shape: &Shape, from_end: usize| shape[shape.len() - 1 - from_end].size(size) as u64;
    let elements = |shape: &Shape| shape.iter().map(|dim| dim.size(size) as u64).product::<u64>();
    let (Op::Gemm { .. } | Op::MatMul) = &node.op else { return 0 };
    let transposed = matches!(node.op, Op::Gemm { trans_a: true, .. });
    let inner = dim(graph.shape(node.inputs[0]), usize::from(transposed));
    2 * inner * elements(graph.shape(node.outputs[0]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::architectures::{Head, Model};
    use crate::design::Design;
    use crate::peft::{Lora, Peft};
    use crate::storage::Storage;
    use crate::task::Task;

    #[test]
    fn a_layer_is_its_products_by_hand() {
        let config = serde_json::json!({
            "model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12,
            "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        });
        let lora = Lora { targets: vec!["query".to_owned(), "value".to_owned()], ..Lora::default() };
        let head = Head { task: Task::SequenceClassification, labels: 4, train_pooler: false };
        let design =
            Design { model: Model::read(&config).unwrap(), head, peft: Peft::Lora(lora), frozen: Storage::F32 };
        let stages = design.stages().unwrap();
        let step = |active| flops(&stages, Step { examples: 8, tokens: 128, active });
        let (d, i, t, r) = (384, 1536, 1024, 8);
        // Four projections and two of the feed-forward part; scores and weighted sum; two pairs of LoRA.
        let forward = 2 * t * (4 * d * d + 2 * d * i) + 4 * 8 * 128 * 128 * d + 2 * 2 * 2 * t * d * r;
        // A frozen weight has a gradient only by its operand; another one has gradients by both factors.
        let backward = 2 * t * (4 * d * d + 2 * d * i) + 8 * 8 * 128 * 128 * d + 2 * 4 * 2 * t * d * r;
        assert_eq!(step(6) - step(5), forward + backward);
        let evaluation = |active| evaluation_flops(&stages, Step { examples: 8, tokens: 128, active });
        assert_eq!(evaluation(6) - evaluation(5), forward);
    }
}
