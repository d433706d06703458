#![allow(clippy::unwrap_used, reason = "a failing test may panic")]
//! Compares every rule with central differences in f64, on random shapes.

use super::gradient;
use crate::graph::reference::{erf, evaluate};
use crate::graph::{Attention, DType, Dim, Graph, Id, Op, Shape};
use crate::lower::lower;
use ndarray::{ArrayD, IxDyn};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Tolerance. Central differences in f64 with h = 1e-5 are off by about h^2 + 1e-16/h, some 1e-10. Constants of the graph are
/// f32 (6e-8).
const DIFFERENCE_TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-5;

struct Case {
    graph: Graph,
    inputs: Vec<(Id, ArrayD<f64>)>,
    output: Id,
}

/// Returns pseudo-random values in -1..1, different for each `salt`.
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

/// Checks the gradient of `sum(w * output)`, for random `w`, with respect to every input.
fn check(case: Case) {
    let wanted: Vec<Id> = case.inputs.iter().map(|(id, _)| *id).collect();
    check_wanted(case, &wanted);
}

/// Checks the gradients with respect to `wanted`, both with adjoint operators and lowered to plain ones.
fn check_wanted(mut case: Case, wanted: &[Id]) {
    let sizes: Vec<usize> = case.graph.shape(case.output).iter().map(|dim| dim.known().unwrap()).collect();
    let weights = noise(&sizes, 77);
    let shape = case.graph.shape(case.output).clone();
    let seed = case.graph.input("seed", DType::F32, shape);
    let gradients = gradient(&mut case.graph, case.output, seed, wanted).unwrap();
    let (plain, plain_gradients) = lower(&case.graph, &gradients).unwrap();
    let given: BTreeMap<Id, ArrayD<f64>> = case.inputs.iter().cloned().chain([(seed, weights.clone())]).collect();
    let loss = |given: &BTreeMap<Id, ArrayD<f64>>| (&evaluate(&case.graph, given, &[case.output])[0] * &weights).sum();
    let adjoint = evaluate(&case.graph, &given, &gradients);
    let lowered = evaluate(&plain, &given, &plain_gradients);
    for ((id, adjoint), lowered) in wanted.iter().zip(&adjoint).zip(&lowered) {
        let name = &case.graph.value(*id).name;
        assert_eq!([adjoint.shape(), lowered.shape()], [given[id].shape(); 2], "gradient of {name}");
        for (at, (&adjoint, &lowered)) in adjoint.iter().zip(lowered).enumerate() {
            let nudged = |by: f64| {
                let mut given = given.clone();
                *given.get_mut(id).unwrap().iter_mut().nth(at).unwrap() += by;
                loss(&given)
            };
            let expected = (nudged(STEP) - nudged(-STEP)) / (2.0 * STEP);
            for (found, form) in [(adjoint, "rule"), (lowered, "lowered")] {
                assert!(
                    (found - expected).abs() <= DIFFERENCE_TOLERANCE * (1.0 + expected.abs()),
                    "{name}[{at}]: {form} {found}, difference {expected}",
                );
            }
        }
    }
}

/// Returns one to four dimensions.
fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..4usize, 1..5)
}

/// Returns the permutation that swaps `axis` with the last axis. It is its own inverse.
fn last_and(axis: usize, rank: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(axis, rank - 1);
    order
}

/// Returns `shape` with ones at the bits of `ones`. If `short` is set, leading ones are left out.
fn narrowed(shape: &[usize], ones: u8, short: bool) -> Vec<usize> {
    let narrow = shape.iter().enumerate().map(|(axis, &size)| if ones >> axis & 1 == 1 { 1 } else { size });
    narrow.skip(if short { ones.trailing_ones() as usize } else { 0 }).collect()
}

/// Adds integer inputs, which are not differentiated.
fn integers(case: &mut Case, name: &str, shape: &[usize], values: &[usize]) -> Id {
    let id = case.graph.input(name, DType::I64, fixed(shape));
    let values = values.iter().map(|&value| value as f64).collect();
    case.inputs.push((id, ArrayD::from_shape_vec(IxDyn(shape), values).unwrap()));
    id
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_chosen_by_integers_of_any_rank_agree(
        shape in shapes(),
        index in prop::collection::vec(1..4usize, 0..3),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 9),
        salt: u64,
    ) {
        let mut case = case(&[&shape], salt, |_, x| x[0]);
        let x = case.inputs[0].0;
        // Rows that are chosen more than once add up; rows that are never chosen get zero.
        let chosen: Vec<usize> = choices[..index.iter().product()].iter().map(|choice| choice.index(shape[0])).collect();
        let chosen = integers(&mut case, "chosen", &index, &chosen);
        let rows = case.graph.op(Op::Gather, &[x, chosen]).unwrap();
        case.output = case.graph.mul(rows, rows).unwrap();
        check_wanted(case, &[x]);
    }

    #[test]
    fn rows_in_another_order_agree(
        rest in prop::collection::vec(1..4usize, 0..4),
        order in (1..5usize).prop_flat_map(|rows| Just((0..rows).collect::<Vec<_>>()).prop_shuffle()),
        salt: u64,
    ) {
        let rows = order.len();
        let mut case = case(&[&[&[rows], rest.as_slice()].concat()], salt, |_, x| x[0]);
        let x = case.inputs[0].0;
        let back: Vec<usize> = (0..rows).map(|row| order.iter().position(|&from| from == row).unwrap()).collect();
        let there = integers(&mut case, "there", &[rows], &order);
        let back = integers(&mut case, "back", &[rows], &back);
        let moved = case.graph.op(Op::Relayout, &[x, there, back]).unwrap();
        case.output = case.graph.mul(moved, moved).unwrap();
        check_wanted(case, &[x]);
    }

    #[test]
    fn rows_padded_and_back_agree_where_padding_is_masked(
        lengths in prop::collection::vec(1..4usize, 1..4),
        rest in prop::collection::vec(1..3usize, 0..3),
        salt: u64,
    ) {
        let (tokens, slots) = (lengths.iter().sum::<usize>(), *lengths.iter().max().unwrap());
        let ones = vec![1; rest.len()];
        let shape = |lead: &[usize], rest: &[usize]| [lead, rest].concat();
        let (mut into, mut home, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for (example, &length) in lengths.iter().enumerate() {
            for slot in 0..slots {
                let real = slot < length;
                mask.push(f64::from(u8::from(real)));
                into.push(if real { home.len() } else { 0 });
                if real {
                    home.push(example * slots + slot);
                }
            }
        }
        let mut case = case(&[&shape(&[tokens], &rest)], salt, |_, x| x[0]);
        let x = case.inputs[0].0;
        let into = integers(&mut case, "into", &[lengths.len(), slots], &into);
        let home = integers(&mut case, "home", &[tokens], &home);
        let mask_shape = shape(&[lengths.len(), slots], &ones);
        let real = case.graph.input("mask", DType::F32, fixed(&mask_shape));
        case.inputs.push((real, ArrayD::from_shape_vec(IxDyn(&mask_shape), mask).unwrap()));
        let g = &mut case.graph;
        let padded = g.op(Op::Relayout, &[x, into, home]).unwrap();
        let square = g.mul(padded, padded).unwrap();
        let masked = g.mul(square, real).unwrap();
        let rows = g.reshape(masked, fixed(&shape(&[lengths.len() * slots], &rest))).unwrap();
        case.output = g.op(Op::Relayout, &[rows, home, into]).unwrap();
        check_wanted(case, &[x]);
    }

    #[test]
    fn sums_over_any_axes_agree(shape in shapes(), chosen in 1..16u8, salt: u64) {
        let axes: Vec<usize> = (0..shape.len()).filter(|axis| chosen >> axis & 1 == 1).collect();
        prop_assume!(!axes.is_empty());
        check(case(&[&shape], salt, |g, x| {
            // Squared before and after, so that the gradient differs between elements.
            let square = g.mul(x[0], x[0]).unwrap();
            let sum = g.op(Op::ReduceSum { axes }, &[square]).unwrap();
            g.mul(sum, sum).unwrap()
        }));
    }

    #[test]
    fn operators_of_one_axis_agree_over_each_axis(shape in shapes(), salt: u64) {
        let rank = shape.len();
        for axis in 0..rank {
            let order = last_and(axis, rank);
            for op in [Op::Softmax, Op::LogSoftmax, Op::LogSumExp, Op::MeanLast] {
                check(case(&[&shape], salt, |g, x| {
                    let last = g.permute(x[0], &order).unwrap();
                    let result = g.op(op.clone(), &[last]).unwrap();
                    g.permute(result, &order).unwrap()
                }));
            }
            let size = [shape[axis]];
            let norms: [(Op, &[&[usize]]); 2] = [
                (Op::LayerNorm { epsilon: 0.1 }, &[&shape, &size, &size]),
                (Op::RmsNorm { epsilon: 0.1 }, &[&shape, &size]),
            ];
            for (op, shapes) in norms {
                check(case(shapes, salt, |g, x| {
                    let last = g.permute(x[0], &order).unwrap();
                    let result = g.op(op.clone(), &[&[last], &x[1..]].concat()).unwrap();
                    g.permute(result, &order).unwrap()
                }));
            }
        }
    }

    #[test]
    fn elementwise_operators_agree_in_any_rank(shape in shapes(), salt: u64) {
        for op in [Op::Erf, Op::Exp, Op::Tanh, Op::Sigmoid, Op::Cos, Op::Sin, Op::Gelu] {
            check(case(&[&shape], salt, |g, x| g.op(op.clone(), x).unwrap()));
        }
    }

    #[test]
    fn broadcasting_agrees_in_any_rank_on_both_sides_at_once(
        shape in shapes(),
        (left, right) in (0..16u8, 0..16u8),
        (short_left, short_right) in any::<(bool, bool)>(),
        salt: u64,
    ) {
        let sides = [narrowed(&shape, left, short_left), narrowed(&shape, right, short_right)];
        for op in [Op::Add, Op::Sub, Op::Mul] {
            check(case(&[&sides[0], &sides[1]], salt, |g, x| g.op(op.clone(), x).unwrap()));
            // One value as both operands, and once beside its own broadcast.
            check(case(&[&sides[0]], salt, |g, x| g.op(op.clone(), &[x[0], x[0]]).unwrap()));
            check(case(&[&sides[0], &sides[1]], salt, |g, x| {
                let once = g.op(op.clone(), x).unwrap();
                g.op(op.clone(), &[x[1], once]).unwrap()
            }));
        }
    }

    #[test]
    fn movements_agree_in_any_rank(
        (shape, order) in shapes().prop_flat_map(|shape| {
            let order = Just((0..shape.len()).collect::<Vec<_>>()).prop_shuffle();
            (Just(shape), order)
        }),
        salt: u64,
    ) {
        check(case(&[&shape], salt, |g, x| {
            let moved = g.permute(x[0], &order).unwrap();
            let square = g.mul(moved, moved).unwrap();
            g.permute(square, &order).unwrap()
        }));
        let flat = [shape.iter().product::<usize>()];
        check(case(&[&shape], salt, |g, x| {
            let flat = g.reshape(x[0], fixed(&flat)).unwrap();
            let square = g.mul(flat, flat).unwrap();
            g.reshape(square, fixed(&[&[1], shape.as_slice()].concat())).unwrap()
        }));
        let (lead, last) = (&shape[1..], shape[0]);
        let shape = |sizes: &[usize]| [lead, sizes].concat();
        check(case(&[&shape(&[2 * last])], salt, |g, x| g.op(Op::RotateHalf, x).unwrap()));
        check(case(&[&shape(&[last, 2 * last])], salt, |g, x| g.op(Op::Skew, x).unwrap()));
        check(case(&[&shape(&[last, last])], salt, |g, x| g.op(Op::Unskew, x).unwrap()));
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
    fn matmul_agrees_where_leading_dimensions_broadcast(
        (b, h) in (1..3usize, 1..3usize),
        (m, k, n) in (1..3usize, 1..4usize, 1..3usize),
        salt: u64,
    ) {
        let leads: [(&[usize], &[usize]); 8] = [
            (&[b, h], &[h]), (&[h], &[b, h]), (&[b, h], &[]), (&[], &[b, h]),
            (&[b, 1], &[b, h]), (&[b, h], &[1, h]), (&[b, 1], &[h]), (&[1], &[b, h]),
        ];
        for (left, right) in leads {
            check(case(&[&[left, &[m, k]].concat(), &[right, &[k, n]].concat()], salt, |g, x| {
                g.op(Op::MatMul, x).unwrap()
            }));
        }
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
        for op in [
            Op::Erf,
            Op::Exp,
            Op::Tanh,
            Op::Sigmoid,
            Op::Cos,
            Op::Sin,
            Op::Gelu,
            Op::Softmax,
            Op::LogSoftmax,
            Op::LogSumExp,
            Op::MeanLast,
        ] {
            check(case(&[&[m, n]], salt, |g, x| g.op(op.clone(), x).unwrap()));
        }
    }

    #[test]
    fn adjoint_operators_agree(m in 1..4usize, n in 1..5usize, salt: u64) {
        for op in [Op::Gelu, Op::Softmax] {
            check(case(&[&[2, m, n]], salt, |g, x| g.op(op.clone(), x).unwrap()));
        }
        let norms: [(Op, &[&[usize]]); 2] =
            [(Op::LayerNorm { epsilon: 0.1 }, &[&[m, n], &[n], &[n]]), (Op::RmsNorm { epsilon: 0.1 }, &[&[m, n], &[n]])];
        for (op, shapes) in norms {
            check(case(shapes, salt, |g, x| g.op(op.clone(), x).unwrap()));
            let case = case(shapes, salt, |g, x| g.op(op.clone(), x).unwrap());
            let operand = [case.inputs[0].0];
            check_wanted(case, &operand);
        }
    }

    #[test]
    fn attention_agrees(
        lengths in proptest::collection::vec(1..5usize, 1..4),
        key_heads in 1..3usize,
        size in 1..3usize,
        (causal, window) in prop_oneof![Just((false, None)), Just((true, None)), (1..4usize).prop_map(|w| (true, Some(w)))],
        one_query: bool,
        salt: u64,
    ) {
        let tokens: usize = lengths.iter().sum();
        let firsts: Vec<usize> = (0..lengths.len()).map(|at| lengths[..at].iter().sum()).collect();
        let rows: Vec<usize> = firsts.iter().zip(&lengths).map(|(first, length)| first + salt as usize % length).collect();
        let form = Attention { heads: 2, key_heads, size, scale: 0.6, causal, window, one_query };
        let queries = if one_query { lengths.len() } else { tokens };
        let numbers = |rows: &[usize]| ArrayD::from_shape_fn(IxDyn(&[rows.len()]), |at| rows[at[0]] as f64);
        let mut given = Vec::new();
        let shapes: [&[usize]; 3] = [&[queries, 2 * size], &[tokens, key_heads * size], &[tokens, key_heads * size]];
        let mut case = case(&shapes, salt, |g, x| {
            let mut operands = x.to_vec();
            for (name, values) in [("firsts", &firsts), ("rows", &rows)].into_iter().take(1 + usize::from(one_query)) {
                let id = g.input(name, DType::I64, fixed(&[values.len()]));
                given.push((id, numbers(values)));
                operands.push(id);
            }
            g.op(Op::Attention(form), &operands).unwrap()
        });
        let wanted: Vec<Id> = case.inputs.iter().map(|(id, _)| *id).collect();
        case.inputs.extend(given);
        check_wanted(case, &wanted);
    }

    #[test]
    fn relu_agrees_away_from_its_corner(m in 1..4usize, n in 1..4usize, salt: u64) {
        let mut case = case(&[&[m, n]], salt, |g, x| g.op(Op::Relu, x).unwrap());
        case.inputs[0].1.mapv_inplace(|a| a + 0.01_f64.copysign(a));
        check(case);
    }

    #[test]
    fn the_slope_of_log_sum_exp_is_softmax_where_exponentials_overflow(n in 2..6usize, salt: u64) {
        let mut case = case(&[&[2, n]], salt, |g, x| g.op(Op::LogSumExp, x).unwrap());
        case.inputs[0].1.mapv_inplace(|a| 1e4 + a);
        let (id, values) = case.inputs[0].clone();
        let seed = case.graph.input("seed", DType::F32, fixed(&[2, 1]));
        let softmax = case.graph.op(Op::Softmax, &[id]).unwrap();
        let slope = gradient(&mut case.graph, case.output, seed, &[id]).unwrap()[0];
        let given = BTreeMap::from([(id, values), (seed, ArrayD::ones(IxDyn(&[2, 1])))]);
        let results = evaluate(&case.graph, &given, &[slope, softmax]);
        for (found, expected) in results[0].iter().zip(&results[1]) {
            prop_assert!((found - expected).abs() < 1e-11, "{found} {expected}");
        }
    }

    #[test]
    fn rms_norm_agrees(m in 1..4usize, n in 1..6usize, salt: u64) {
        check(case(&[&[m, n], &[n]], salt, |g, x| g.op(Op::RmsNorm { epsilon: 1e-3 }, x).unwrap()));
        check(case(&[&[2, m, n], &[n]], salt, |g, x| g.op(Op::RmsNorm { epsilon: 1e-3 }, x).unwrap()));
    }

    #[test]
    fn rotations_agree(m in 1..4usize, half in 1..4usize, salt: u64) {
        check(case(&[&[m, 2 * half]], salt, |g, x| g.op(Op::RotateHalf, x).unwrap()));
        // A whole rotary position: x cos + rotate(x) sin.
        check(case(&[&[2, m, 2 * half], &[m, 2 * half]], salt, |g, x| {
            let (cosine, sine) = (g.op(Op::Cos, &[x[1]]).unwrap(), g.op(Op::Sin, &[x[1]]).unwrap());
            let turned = g.op(Op::RotateHalf, &[x[0]]).unwrap();
            let (along, across) = (g.mul(x[0], cosine).unwrap(), g.mul(turned, sine).unwrap());
            g.add(along, across).unwrap()
        }));
    }

    #[test]
    fn convolutions_agree(
        (b, s) in (1..3usize, 1..5usize),
        (groups, ins, outs) in (1..3usize, 1..3usize, 1..3usize),
        padding in 0..3usize,
        salt: u64,
    ) {
        let (input, kernel) = ([b, groups * ins, s], [groups * outs, ins, 2 * padding + 1]);
        let op = Op::Conv1d { padding, groups };
        let plain = case(&[&input, &kernel], salt, |g, x| g.op(op.clone(), x).unwrap());
        let wanted = [plain.inputs[0].0];
        check_wanted(plain, &wanted);
        let biased = case(&[&input, &kernel, &[groups * outs]], salt, |g, x| g.op(op, x).unwrap());
        let wanted = [biased.inputs[0].0, biased.inputs[2].0];
        check_wanted(biased, &wanted);
        let adjoint = Op::ConvTranspose1d { padding, groups };
        let back = case(&[&[b, groups * outs, s], &kernel], salt, |g, x| g.op(adjoint, x).unwrap());
        let wanted = [back.inputs[0].0];
        check_wanted(back, &wanted);
    }

    #[test]
    fn skewing_agrees(b in 1..3usize, h in 1..3usize, s in 1..5usize, salt: u64) {
        check(case(&[&[b, h, s, 2 * s]], salt, |g, x| g.op(Op::Skew, x).unwrap()));
        check(case(&[&[b, h, s, s]], salt, |g, x| g.op(Op::Unskew, x).unwrap()));
        check(case(&[&[s, 2 * s]], salt, |g, x| g.op(Op::Skew, x).unwrap()));
    }

    #[test]
    fn skewing_looks_up_by_position_what_is_stored_by_distance(s in 1..6usize, salt: u64) {
        let mut graph = Graph::default();
        let by_distance = graph.input("by_distance", DType::F32, fixed(&[s, 2 * s]));
        let by_position = graph.op(Op::Skew, &[by_distance]).unwrap();
        let values = noise(&[s, 2 * s], salt);
        let found = evaluate(&graph, &BTreeMap::from([(by_distance, values.clone())]), &[by_position]).remove(0);
        let expected = ArrayD::from_shape_fn(IxDyn(&[s, s]), |at| values[[at[0], at[1] + s - 1 - at[0]]]);
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn permutations_agree(sizes in prop::array::uniform4(1..4usize), order in Just(vec![0, 1, 2, 3]).prop_shuffle(), salt: u64) {
        check(case(&[&sizes], salt, |g, x| {
            let moved = g.permute(x[0], &order).unwrap();
            // Squared, so that the gradient differs between elements and two movements are not merged.
            let square = g.mul(moved, moved).unwrap();
            g.permute(square, &order).unwrap()
        }));
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
        // Index inputs are not differentiated. `check` differentiates all inputs, so they are added here.
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
fn frozen_operands_have_no_gradient_and_say_so() {
    let message = |dtype, op: Op, shapes: &[&[usize]], wanted: usize| {
        let mut graph = Graph::default();
        let types = [dtype, DType::F32, DType::F32];
        let x: Vec<Id> = shapes
            .iter()
            .zip(types)
            .enumerate()
            .map(|(at, (shape, dtype))| graph.input(&format!("x{at}"), dtype, fixed(shape)))
            .collect();
        let y = graph.op(op, &x).unwrap();
        let seed = graph.input("seed", DType::F32, graph.shape(y).clone());
        gradient(&mut graph, y, seed, &[x[wanted]]).unwrap_err().to_string()
    };
    let convolution = Op::Conv1d { padding: 1, groups: 1 };
    let adjoint = Op::ConvTranspose1d { padding: 1, groups: 1 };
    assert_eq!(message(DType::F16, Op::Cast, &[&[2, 3]], 0), "operator Cast has no differentiation rule");
    assert_eq!(
        message(DType::I8, Op::Dequantize, &[&[2, 3], &[2]], 0),
        "operator Dequantize has no differentiation rule"
    );
    assert_eq!(
        message(DType::I8, Op::Dequantize, &[&[2, 3], &[2]], 1),
        "operator Dequantize has no differentiation rule"
    );
    assert_eq!(message(DType::F32, Op::Sign, &[&[2]], 0), "operator Sign has no differentiation rule");
    assert_eq!(
        message(DType::F32, convolution, &[&[1, 2, 4], &[2, 2, 3]], 1),
        "operator Conv1d by its kernel has no differentiation rule"
    );
    assert_eq!(
        message(DType::F32, adjoint, &[&[1, 2, 4], &[2, 2, 3]], 1),
        "operator ConvTranspose1d by its kernel has no differentiation rule"
    );
}

#[test]
fn lowering_keeps_given_names_and_the_ids_before_the_first_adjoint_operator() {
    let mut graph = Graph::default();
    let x = graph.input("x", DType::F32, fixed(&[2, 3]));
    let y = graph.op(Op::Gelu, &[x]).unwrap();
    graph.rename(y, "activated");
    let seed = graph.input("seed", DType::F32, fixed(&[2, 3]));
    let slope = gradient(&mut graph, y, seed, &[x]).unwrap()[0];
    graph.rename(slope, "slope");
    let (plain, found) = lower(&graph, &[x, y, seed, slope]).unwrap();
    assert_eq!(found[..3], [x, y, seed]);
    let names: Vec<&str> = found.iter().map(|&id| plain.value(id).name.as_str()).collect();
    assert_eq!(names, ["x", "activated", "seed", "slope"]);
    assert!(plain.nodes().iter().all(|node| node.op != Op::GeluGrad));
    plain.check_names().unwrap();
}

#[test]
fn a_frozen_weight_in_int8_lets_gradients_through_to_activations() {
    let mut graph = Graph::default();
    let x = graph.input("x", DType::F32, fixed(&[2, 3]));
    let weight = graph.input("weight", DType::I8, fixed(&[4, 3]));
    let scale = graph.input("weight.scale", DType::F32, fixed(&[4]));
    let dense = graph.op(Op::Dequantize, &[weight, scale]).unwrap();
    let y = graph.op(Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true }, &[x, dense]).unwrap();
    let integers = noise(&[4, 3], 3).mapv(|a| (127.0 * a).round());
    let inputs = vec![(x, noise(&[2, 3], 1)), (weight, integers), (scale, noise(&[4], 2))];
    check_wanted(Case { graph, inputs, output: y }, &[x]);
}

#[test]
fn gradients_of_broadcast_products_have_symbolic_shapes_too() {
    let mut graph = Graph::default();
    let (b, h, s, r) = (Dim::from("B"), Dim::from(2), Dim::from("S"), Dim::from("S").times(&2.into()));
    let queries = graph.input("queries", DType::F32, vec![b, h.clone(), s.clone(), 3.into()]);
    let distances = graph.input("distances", DType::F32, vec![h, 3.into(), r]);
    let by_distance = graph.op(Op::MatMul, &[queries, distances]).unwrap();
    let scores = graph.op(Op::Skew, &[by_distance]).unwrap();
    let seed = graph.input("seed", DType::F32, graph.shape(scores).clone());
    let found = gradient(&mut graph, scores, seed, &[queries, distances]).unwrap();
    assert_eq!(graph.shape(found[0]), graph.shape(queries));
    assert_eq!(graph.shape(found[1]), graph.shape(distances));
}

#[test]
fn the_reference_error_function_matches_tables() {
    for (x, expected) in
        [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (3.5, 0.999_999_256_901_627_7)]
    {
        assert!((erf(x) - expected).abs() < 1e-14, "erf({x}) = {}", erf(x));
    }
}
