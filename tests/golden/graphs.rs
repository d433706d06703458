//! What ONNX Runtime makes of the graphs: no transposed copy of a weight, nothing computed from weights alone but their widening.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use skiff_models::Pack;
use skiff_models::onnx::nodes;
use skiff_models::stage::{Binding, GraphSpec, StageSpec};
use skiff_tests::packs::Case;
use skiff_tests::places;
use std::collections::BTreeSet;
use std::path::Path;

/// What may be done to a stored weight before it meets an activation.
const WIDENING: [&str; 2] = ["Cast", "DequantizeLinear"];

/// Compares every graph of a pack after optimisation.
fn check(name: &str, pack: &Pack, folder: &Path) -> usize {
    let stages = &pack.manifest().stages;
    let all = [&stages.embed, &stages.head].into_iter().chain(&stages.blocks).flat_map(StageSpec::graphs);
    all.map(|graph| check_graph(name, pack, graph, folder)).count()
}

fn check_graph(name: &str, pack: &Pack, spec: &GraphSpec, folder: &Path) {
    let optimised = folder.join("optimised.onnx");
    Session::builder(places::runtime().environment())
        .unwrap()
        .with_optimization_level(GraphOptimizationLevel::All)
        .unwrap()
        .with_optimized_model_path(&optimised)
        .unwrap()
        .commit_from_file(pack.file(&spec.file))
        .unwrap();
    let weights =
        |port: &&skiff_models::stage::Port| matches!(port.binding, Binding::Frozen(_) | Binding::Trainable(_));
    // Vectors are small: what is moved or computed of them costs nothing.
    let matrices = spec.inputs.iter().filter(weights).filter(|port| port.shape.len() > 1);
    let mut of_weights: BTreeSet<String> = matrices.map(|port| port.name.clone()).collect();
    for node in nodes(&std::fs::read(&optimised).unwrap()).unwrap() {
        let from_weights = node.inputs.iter().any(|input| of_weights.contains(input));
        let operands = node.inputs.iter().filter(|input| !input.is_empty());
        let scales = |input: &&String| input.ends_with(".scale");
        let alone = from_weights && operands.filter(|input| !scales(input)).all(|input| of_weights.contains(input));
        if alone {
            assert!(
                WIDENING.contains(&node.op_type.as_str()),
                "{name} {}: {} {} works on weights alone: {:?}",
                spec.file,
                node.op_type,
                node.name,
                node.inputs
            );
            of_weights.extend(node.outputs);
        } else if from_weights {
            assert_ne!(node.op_type, "Transpose", "{name} {}: {}", spec.file, node.name);
        }
    }
}

#[test]
fn after_optimisation_no_weight_is_transposed_and_nothing_is_computed_from_weights_alone() {
    let mut checked = 0;
    for name in [
        "bert/sequence-lora-int8",
        "bert/sequence-houlsby",
        "deberta-v2-conv/sequence-lora",
        "deberta-v3/sequence-lora-f16",
        "llama/causal-lora-every",
        "llama/sequence-lora-int8",
        "qwen2/causal-bitfit",
        "qwen3/causal-lora",
        "roberta/token-lora",
    ] {
        let folder = tempfile::tempdir().unwrap();
        checked += check(name, &Case::open(name).pack(folder.path()), folder.path());
    }
    assert!(checked > 80, "only {checked} graphs");
}
