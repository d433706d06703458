#![allow(clippy::unwrap_used, reason = "a failing test may panic")]
//! Every rule against central differences in f64, on random shapes.

use super::gradient;
use crate::graph::reference::{erf, evaluate};
use crate::graph::{DType, Dim, Graph, Id, Op, Shape};
use ndarray::{ArrayD, IxDyn};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Central differences in f64 with h = 1e-5 err by about h^2 + 1e-16/h, some 1e-10; constants of the graph are f32 (6e-8).
const DIFFERENCE_TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-5;

struct Case {
    graph: Graph,
    inputs: Vec<(Id, ArrayD<f64>)>,
    output: Id,
}

/// Pseudo-random values in -1..1, different for each `salt`.
fn noise(shape: &[usize], salt: u64) -> ArrayD<f64> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    })
}

fn fixed(sizes: &[usize]) -> Shape {
    sizes.iter().map(|&size| Dim::from(size)).collect()
}

fn case(shapes: &[&[usize]], salt: u64, build: impl FnOnce(&mut Graph, &[Id]) -> Id) -> Case {
    let mut graph = Graph::default();
    let inputs: Vec<(Id, ArrayD<f64>)> = shapes
        .iter()
        .enumerate()
        .map(|(at, shape)| (graph.input(&format!("x{at}"), DType::F32, fixed(shape)), noise(shape, salt + at as u64)))
        .collect();
    let ids: Vec<Id> = inputs.iter().map(|(id, _)| *id).collect();
    let output = build(&mut graph, &ids);
    Case { graph, inputs, output }
}

/// Compares the gradient of `sum(w * output)`, w random, with respect to every input.
fn check(mut case: Case) {
    let sizes: Vec<usize> = case.graph.shape(case.output).iter().map(|dim| dim.known().unwrap()).collect();
    let weights = noise(&sizes, 77);
    let shape = case.graph.shape(case.output).clone();
    let seed = case.graph.input("seed", DType::F32, shape);
    let wanted: Vec<Id> = case.inputs.iter().map(|(id, _)| *id).collect();
    let gradients = gradient(&mut case.graph, case.output, seed, &wanted).unwrap();
    let given: BTreeMap<Id, ArrayD<f64>> = case.inputs.iter().cloned().chain([(seed, weights.clone())]).collect();
    let loss = |given: &BTreeMap<Id, ArrayD<f64>>| (&evaluate(&case.graph, given, &[case.output])[0] * &weights).sum();
    for (id, found) in wanted.iter().zip(evaluate(&case.graph, &given, &gradients)) {
        assert_eq!(found.shape(), given[id].shape(), "gradient of {}", case.graph.value(*id).name);
        for at in 0..found.len() {
            let nudged = |by: f64| {
                let mut given = given.clone();
                *given.get_mut(id).unwrap().iter_mut().nth(at).unwrap() += by;
                loss(&given)
            };
            let expected = (nudged(STEP) - nudged(-STEP)) / (2.0 * STEP);
            let found = *found.iter().nth(at).unwrap();
            assert!(
                (found - expected).abs() <= DIFFERENCE_TOLERANCE * (1.0 + expected.abs()),
                "{}[{at}]: rule {found}, difference {expected}",
                case.graph.value(*id).name
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn gemm_agrees(m in 1..4usize, k in 1..4usize, n in 1..4usize, ta: bool, tb: bool, addend in 0..4u8, salt: u64) {
        let a = if ta { [k, m] } else { [m, k] };
        let b = if tb { [n, k] } else { [k, n] };
        let c: &[usize] = match addend { 0 => &[n], 1 => &[m, 1], _ => &[m, n] };
        let op = Op::Gemm { alpha: 0.7, trans_a: ta, trans_b: tb };
        if addend == 3 {
            check(case(&[&a, &b], salt, |g, x| g.op(op, x).unwrap()));
        } else {
            check(case(&[&a, &b, c], salt, |g, x| g.op(op, x).unwrap()));
        }
    }

    #[test]
    fn matmul_and_transpose_agree(b in 1..3usize, m in 1..4usize, k in 1..4usize, n in 1..4usize, salt: u64) {
        check(case(&[&[b, m, k], &[b, k, n]], salt, |g, x| g.op(Op::MatMul, x).unwrap()));
        check(case(&[&[b, m, k], &[b, n, k]], salt, |g, x| {
            let transposed = g.transpose(x[1]).unwrap();
            g.op(Op::MatMul, &[x[0], transposed]).unwrap()
        }));
    }

    #[test]
    fn broadcasting_agrees_in_every_operand_position(m in 1..4usize, n in 1..4usize, which in 0..3u8, salt: u64) {
        let op = [Op::Add, Op::Sub, Op::Mul][usize::from(which)].clone();
        for small in [&[][..], &[n], &[1, n], &[m, 1], &[m, n], &[1, 1]] {
            check(case(&[&[m, n], small], salt, |g, x| g.op(op.clone(), x).unwrap()));
            check(case(&[small, &[m, n]], salt, |g, x| g.op(op.clone(), x).unwrap()));
        }
        check(case(&[&[m, 1], &[1, n]], salt, |g, x| g.op(op.clone(), x).unwrap()));
    }

    #[test]
    fn elementwise_operators_agree(m in 1..4usize, n in 1..4usize, salt: u64) {
        for op in [Op::Erf, Op::Exp, Op::Tanh, Op::Gelu, Op::Softmax, Op::LogSoftmax, Op::MeanLast] {
            check(case(&[&[m, n]], salt, |g, x| g.op(op.clone(), x).unwrap()));
        }
    }

    #[test]
    fn layer_norm_agrees(m in 1..4usize, n in 2..6usize, salt: u64) {
        check(case(&[&[m, n], &[n], &[n]], salt, |g, x| g.op(Op::LayerNorm { epsilon: 1e-3 }, x).unwrap()));
    }

    #[test]
    fn movements_agree(m in 1..5usize, n in 1..4usize, salt: u64) {
        check(case(&[&[m, n]], salt, |g, x| g.reshape(x[0], fixed(&[n, m])).unwrap()));
        check(case(&[&[m, n]], salt, |g, x| g.op(Op::ReduceSum { axes: vec![0] }, x).unwrap()));
        check(case(&[&[m, n]], salt, |g, x| g.op(Op::ReduceSum { axes: vec![0, 1] }, x).unwrap()));
        let order: Vec<f64> = (0..m).map(|row| ((row + salt as usize % m) % m) as f64).collect();
        let mut back = vec![0.0; m];
        for (to, &from) in order.iter().enumerate() {
            back[from as usize] = to as f64;
        }
        // Index inputs are given, not differentiated: `check` differentiates all inputs, so they are added here.
        let mut moved = case(&[&[m, n]], salt, |_, x| x[0]);
        let into = moved.graph.input("into", DType::I64, fixed(&[m, 1]));
        let home = moved.graph.input("home", DType::I64, fixed(&[1, m]));
        let picked = moved.graph.input("picked", DType::I64, fixed(&[2]));
        let x = moved.inputs[0].0;
        let relaid = moved.graph.op(Op::Relayout, &[x, into, home]).unwrap();
        let rows = moved.graph.reshape(relaid, fixed(&[m, n])).unwrap();
        let gathered = moved.graph.op(Op::Gather, &[rows, picked]).unwrap();
        let seed = moved.graph.input("seed", DType::F32, fixed(&[2, n]));
        let result = gradient(&mut moved.graph, gathered, seed, &[x]).unwrap();
        let weights = noise(&[2, n], salt);
        let vector = |values: Vec<f64>| ArrayD::from_shape_vec(IxDyn(&[values.len()]), values).unwrap();
        let given = BTreeMap::from([
            (x, moved.inputs[0].1.clone()),
            (into, vector(order.clone()).insert_axis(ndarray::Axis(1))),
            (home, vector(back).insert_axis(ndarray::Axis(0))),
            (picked, vector(vec![0.0, (m - 1) as f64])),
            (seed, weights.clone()),
        ]);
        let mut expected = ArrayD::<f64>::zeros(IxDyn(&[m, n]));
        for (at, row) in [0, m - 1].into_iter().enumerate() {
            let mut target = expected.index_axis_mut(ndarray::Axis(0), order[row] as usize);
            target += &weights.index_axis(ndarray::Axis(0), at);
        }
        prop_assert_eq!(&evaluate(&moved.graph, &given, &result)[0], &expected);
    }
}

#[test]
fn a_value_used_many_times_accumulates() {
    check(case(&[&[3, 3], &[3, 3]], 5, |g, x| {
        let plain = Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true };
        let a = g.op(plain.clone(), &[x[0], x[1]]).unwrap();
        let b = g.op(plain, &[x[0], x[0]]).unwrap();
        let product = g.mul(a, b).unwrap();
        g.add(product, x[0]).unwrap()
    }));
}

#[test]
fn an_operator_without_a_rule_is_a_named_error() {
    let mut graph = Graph::default();
    let a = graph.input("a", DType::F32, fixed(&[1]));
    let b = graph.input("b", DType::F32, fixed(&[3]));
    let spread = graph.op(Op::ExpandLike, &[a, b]).unwrap();
    let error = gradient(&mut graph, spread, b, &[a]).unwrap_err();
    assert_eq!(error.to_string(), "operator ExpandLike has no differentiation rule");
}

#[test]
fn the_reference_error_function_matches_tables() {
    for (x, expected) in
        [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (3.5, 0.999_999_256_901_627_7)]
    {
        assert!((erf(x) - expected).abs() < 1e-14, "erf({x}) = {}", erf(x));
    }
}
