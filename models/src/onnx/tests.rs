#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use super::{ModelProto, input_names, nodes, write};
use crate::graph::{DType, Dim, Graph, Id, Op, Shape};
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeSet;

fn written(graph: &Graph, output: Id) -> Vec<u8> {
    write("test", graph, &graph.extract(&[output], &BTreeSet::new())).unwrap()
}

/// Returns the integers of the initializer called `name`.
fn integers(model: &[u8], name: &str) -> Vec<i64> {
    let graph = ModelProto::decode(model).unwrap().graph.unwrap();
    let tensor = graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
    tensor.raw_data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn skewed() -> Vec<u8> {
    let mut graph = Graph::default();
    let s = Dim::from("S");
    let x = graph.input("by_distance", DType::F32, vec!["B".into(), 2.into(), s.clone(), s.times(&2.into())]);
    let y = graph.op(Op::Skew, &[x]).unwrap();
    graph.rename(y, "scores");
    written(&graph, y)
}

#[test]
fn a_written_model_is_read_as_its_nodes() {
    let mut graph = Graph::default();
    let weight = graph.input("weight", DType::F16, vec![4.into(), 3.into()]);
    let x = graph.input("x", DType::F32, vec!["T".into(), 3.into()]);
    let float = graph.op(Op::Cast, &[weight]).unwrap();
    let y = graph.op(Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true }, &[x, float]).unwrap();
    let model = written(&graph, y);
    assert_eq!(input_names(&model).unwrap(), ["weight", "x"]);
    let nodes = nodes(&model).unwrap();
    assert_eq!(nodes.iter().map(|node| node.op_type.as_str()).collect::<Vec<_>>(), ["Cast", "Gemm"]);
    assert_eq!(nodes[1].inputs, ["x", "cast_0"]);
    assert_eq!(nodes[1].outputs, ["gemm_1"]);
    assert_eq!((nodes[1].name.as_str(), nodes[1].domain.as_str()), ("gemm_1", ""));
}

#[test]
fn skewing_gathers_nothing() {
    let nodes = nodes(&skewed()).unwrap();
    let found: Vec<&str> = nodes.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(found, ["Shape", "Sub", "Concat", "Reshape", "Slice", "Reshape", "Slice"]);
    assert!(nodes.iter().all(|node| node.name.starts_with("scores")));
}

#[test]
fn grouped_heads_are_reshaped_with_unknown_batch_and_length() {
    let mut graph = Graph::default();
    let (b, s, d) = (Dim::from("B"), Dim::from("S"), Dim::from(8));
    let grouped = || vec![b.clone(), 2.into(), s.times(&3.into()), d.clone()];
    let queries = graph.input("queries", DType::F32, vec![b.clone(), 6.into(), s.clone(), d.clone()]);
    let reshaped = graph.reshape(queries, grouped()).unwrap();
    graph.rename(reshaped, "grouped");
    assert_eq!(integers(&written(&graph, reshaped), "grouped.shape"), [0, 2, -1, 8]);
    let scores = graph.input("scores", DType::F32, vec![b.clone(), 2.into(), s.times(&3.into()), s.clone()]);
    let reshaped = graph.reshape(scores, vec![b, 6.into(), s.clone(), s]).unwrap();
    graph.rename(reshaped, "by_head");
    assert_eq!(integers(&written(&graph, reshaped), "by_head.shape"), [0, 6, -1, 0]);
}

#[test]
fn a_reshape_with_two_open_dimensions_is_an_error() {
    let mut graph = Graph::default();
    let (b, s) = (Dim::from("B"), Dim::from("S"));
    let rows = graph.input("rows", DType::F32, vec![b.times(&s), 8.into()]);
    let split = graph.reshape(rows, Shape::from([b, s, 8.into()])).unwrap();
    let error = write("test", &graph, &graph.extract(&[split], &BTreeSet::new())).unwrap_err();
    assert_eq!(error.to_string(), "reshape of [B*S, 8] to [B, S, 8] leaves more than one dimension unknown");
}

#[test]
fn a_torn_model_is_an_error_or_shorter() {
    let model = skewed();
    let whole = nodes(&model).unwrap().len();
    for end in 0..model.len() {
        assert!(nodes(&model[..end]).map_or(0, |nodes| nodes.len()) <= whole);
    }
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = nodes(&bytes);
        let _ = input_names(&bytes);
    }

    #[test]
    fn a_damaged_model_never_panics(at: prop::sample::Index, byte: u8) {
        let mut model = skewed();
        let at = at.index(model.len());
        model[at] = byte;
        let _ = nodes(&model);
        let _ = input_names(&model);
    }
}
