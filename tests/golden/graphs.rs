//! Graphs as ONNX Runtime optimises them: no transposed copy of a weight, nothing computed from weights alone but their widening.
//!
//! Weights are inputs of every graph. Their values are unknown during optimisation, so no value computed from weights becomes a
//! constant: each such computation is a node that runs. A value has one of three kinds, by its origin: only constants, weights
//! (and constants), or also the batch. A node that makes a value of the second kind does the same work in every run, whatever
//! the tokens are.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use skiff_models::Pack;
use skiff_models::graph::{DType, Dim, Graph, Id, Op};
use skiff_models::onnx::{NodeSummary, input_names, nodes, write};
use skiff_models::stage::{Binding, GraphSpec, StageSpec};
use skiff_tests::packs::Case;
use skiff_tests::places;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Operators that a stored weight may pass before it meets an activation.
const WIDENING: [&str; 2] = ["Cast", "DequantizeLinear"];
/// Operators with graphs inside, which the list of nodes leaves out.
const WITH_GRAPHS: [&str; 4] = ["If", "Loop", "Scan", "SequenceMap"];

/// Origin of a value; the later of two if it comes from both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Constant,
    Weight,
    Batch,
}

/// Returns the problems of an optimised model with inputs of these kinds.
fn problems(optimised: &[u8], inputs: &BTreeMap<String, Kind>, outputs: &[String]) -> Vec<String> {
    let (nodes, kept) = (nodes(optimised).unwrap(), input_names(optimised).unwrap());
    let mut problems = Vec::new();
    if let Some(name) = inputs.keys().find(|name| !kept.contains(name)) {
        problems.push(format!("input {name} is gone"));
    }
    let mut kinds = inputs.clone();
    let made: BTreeSet<&String> = nodes.iter().flat_map(|node| &node.outputs).collect();
    for NodeSummary { op_type, name, inputs: operands, outputs, .. } in &nodes {
        // A value that no node computes and that is no input is one of the model's constants.
        let kind = |operand: &String| match kinds.get(operand) {
            Some(&kind) => kind,
            None => {
                assert!(!made.contains(operand), "{name} reads {operand} before it is made");
                Kind::Constant
            }
        };
        let result = operands.iter().map(kind).max().unwrap_or(Kind::Constant);
        let stored = operands.first().is_some_and(|operand| inputs.get(operand) == Some(&Kind::Weight));
        if WITH_GRAPHS.contains(&op_type.as_str()) {
            problems.push(format!("{op_type} {name} has graphs inside that are not looked at"));
        }
        if result == Kind::Weight && !(stored && WIDENING.contains(&op_type.as_str())) {
            problems.push(format!("{op_type} {name} works on weights alone: {operands:?}"));
        }
        kinds.extend(outputs.iter().map(|output| (output.clone(), result)));
    }
    let of_weights = outputs.iter().filter(|name| kinds.get(*name) == Some(&Kind::Weight));
    problems.extend(of_weights.map(|name| format!("output {name} is made of weights alone")));
    problems
}

/// Optimises a model with ONNX Runtime under the agent's settings.
fn optimised(model: &Path, folder: &Path) -> Vec<u8> {
    // If two threads opened sessions with our operators at once, both would register the domain, which is an error.
    static OPENING: Mutex<()> = Mutex::new(());
    let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = folder.join("optimised.onnx");
    Session::builder(places::runtime().environment())
        .unwrap()
        .with_operators(skiff_kernels::operators::domain().unwrap())
        .unwrap()
        .with_optimization_level(GraphOptimizationLevel::All)
        .unwrap()
        .with_optimized_model_path(&path)
        .unwrap()
        .commit_from_file(model)
        .unwrap();
    std::fs::read(path).unwrap()
}

/// Returns the problems of every graph of a pack, plain and fused, and the number of graphs.
fn check(name: &str, pack: &Pack, folder: &Path, found: &mut Vec<String>) -> usize {
    let sets = [&pack.manifest().stages, &pack.manifest().fused].into_iter();
    let graphs: Vec<&GraphSpec> = sets.flat_map(|stages| stages.all().flat_map(StageSpec::graphs)).collect();
    for spec in &graphs {
        let kind = |binding: &Binding| match matches!(binding, Binding::Frozen(_) | Binding::Trainable(_)) {
            true => Kind::Weight,
            false => Kind::Batch,
        };
        let inputs = spec.inputs.iter().map(|port| (port.name.clone(), kind(&port.binding))).collect();
        let outputs: Vec<String> = spec.outputs.iter().map(|port| port.name.clone()).collect();
        let model = optimised(&pack.file(&spec.file), folder);
        found.extend(
            problems(&model, &inputs, &outputs).iter().map(|problem| format!("{name} {}: {problem}", spec.file)),
        );
    }
    graphs.len()
}

#[test]
fn after_optimisation_no_weight_is_transposed_and_nothing_is_computed_from_weights_alone() {
    let (mut checked, mut found) = (0, Vec::new());
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
        checked += check(name, &Case::open(name).pack(folder.path()), folder.path(), &mut found);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(checked > 160, "only {checked} graphs");
}

/// Returns the problems of `x` `[T, 4]` and the result of `formula` on it, `w` `[4, 4]` and `v` `[4]`, the weights.
fn problems_of(dtype: DType, formula: impl FnOnce(&mut Graph, [Id; 3]) -> Vec<Id>) -> Vec<String> {
    let mut graph = Graph::default();
    let x = graph.input("x", DType::F32, vec![Dim::from("T"), 4.into()]);
    let w = graph.input("w", dtype, vec![4.into(), 4.into()]);
    let v = graph.input("v", DType::F32, vec![4.into()]);
    let outputs = formula(&mut graph, [x, w, v]);
    let part = graph.extract(&outputs, &BTreeSet::new());
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    std::fs::write(&model, write("model", &graph, &part).unwrap()).unwrap();
    let kinds = [("x", Kind::Batch), ("w", Kind::Weight), ("v", Kind::Weight)];
    let named = |id: &Id| graph.value(*id).name.clone();
    let read: BTreeSet<String> = part.inputs.iter().map(named).collect();
    let inputs = kinds.map(|(name, kind)| (name.to_owned(), kind)).into_iter().filter(|(name, _)| read.contains(name));
    problems(&optimised(&model, folder.path()), &inputs.collect(), &outputs.iter().map(named).collect::<Vec<_>>())
}

#[test]
fn what_the_agents_graphs_may_do_is_no_problem() {
    let sound = |dtype, formula: fn(&mut Graph, [Id; 3]) -> Vec<Id>| {
        assert_eq!(problems_of(dtype, formula), Vec::<String>::new());
    };
    // A product with a transposed operand is one node, and no copy.
    sound(DType::F32, |g, [x, w, v]| {
        vec![g.op(Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true }, &[x, w, v]).unwrap()]
    });
    sound(DType::F16, |g, [x, w, _]| {
        let wide = g.op(Op::Cast, &[w]).unwrap();
        vec![g.op(Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true }, &[x, wide]).unwrap()]
    });
    sound(DType::I8, |g, [x, w, v]| {
        let wide = g.op(Op::Dequantize, &[w, v]).unwrap();
        vec![g.op(Op::MatMul, &[x, wide]).unwrap()]
    });
}

#[test]
fn a_weight_that_is_transposed_copied_or_computed_with_is_found() {
    let found = |dtype, formula: fn(&mut Graph, [Id; 3]) -> Vec<Id>, expected: &str| {
        let problems = problems_of(dtype, formula);
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:?}");
    };
    // A transposed copy that no product absorbs.
    found(
        DType::F32,
        |g, [x, w, _]| {
            let turned = g.transpose(w).unwrap();
            let scores = g.op(Op::Softmax, &[x]).unwrap();
            let product = g.op(Op::MatMul, &[scores, w]).unwrap();
            let mixed = g.op(Op::ReduceSum { axes: vec![0] }, &[product]).unwrap();
            vec![g.mul(turned, mixed).unwrap()]
        },
        "Transpose",
    );
    // The same of a widened one.
    found(
        DType::F16,
        |g, [x, w, _]| {
            let wide = g.op(Op::Cast, &[w]).unwrap();
            let turned = g.transpose(wide).unwrap();
            let sum = g.op(Op::ReduceSum { axes: vec![0] }, &[x]).unwrap();
            vec![g.mul(turned, sum).unwrap()]
        },
        "Transpose",
    );
    // With a constant.
    found(
        DType::F32,
        |g, [x, w, _]| {
            let third = g.constant(1.0 / 3.0);
            let shifted = g.add(w, third).unwrap();
            vec![g.op(Op::MatMul, &[x, shifted]).unwrap()]
        },
        "Add",
    );
    // With another weight.
    found(
        DType::F32,
        |g, [x, w, v]| {
            let scaled = g.mul(w, v).unwrap();
            vec![g.op(Op::MatMul, &[x, scaled]).unwrap()]
        },
        "Mul",
    );
    // Vectors too.
    found(
        DType::F32,
        |g, [x, _, v]| {
            let squashed = g.op(Op::Tanh, &[v]).unwrap();
            vec![g.add(x, squashed).unwrap()]
        },
        "Tanh",
    );
    // A widened weight that is an output of the graph is a copy.
    found(
        DType::F16,
        |g, [x, w, _]| {
            let wide = g.op(Op::Cast, &[w]).unwrap();
            vec![g.op(Op::MatMul, &[x, wide]).unwrap(), wide]
        },
        "output",
    );
}
