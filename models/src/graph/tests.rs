#![allow(clippy::unwrap_used, reason = "a failing test may panic")]
//! The operands of operators, and the errors for other operands.

use super::{DType, Dim, Graph, GraphError, Id, Op, Shape};

fn fixed(sizes: &[usize]) -> Shape {
    sizes.iter().map(|&size| Dim::from(size)).collect()
}

/// Applies `op` to inputs of these types and shapes.
fn applied(op: Op, operands: &[(DType, Shape)]) -> Result<(DType, Vec<Shape>), GraphError> {
    let mut graph = Graph::default();
    let inputs: Vec<Id> = operands
        .iter()
        .enumerate()
        .map(|(at, (dtype, shape))| graph.input(&format!("x{at}"), *dtype, shape.clone()))
        .collect();
    let results = graph.apply(op, &inputs)?;
    Ok((graph.value(results[0]).dtype, results.iter().map(|&id| graph.shape(id).clone()).collect()))
}

fn floats(op: Op, shapes: &[&[usize]]) -> Result<Vec<Shape>, GraphError> {
    let operands: Vec<_> = shapes.iter().map(|shape| (DType::F32, fixed(shape))).collect();
    Ok(applied(op, &operands)?.1)
}

#[test]
fn arithmetic_on_frozen_types_is_refused_by_name() {
    let operands = [(DType::F32, fixed(&[2])), (DType::F16, fixed(&[2]))];
    let error = applied(Op::Add, &operands).unwrap_err();
    assert_eq!(error.to_string(), "Add of node \"add_0\" takes F32 as B, found F16");
    let error = applied(Op::Cast, &[(DType::I8, fixed(&[2]))]).unwrap_err();
    assert_eq!(error.to_string(), "Cast of node \"cast_0\" takes F16 or I64 as A, found I8");
}

#[test]
fn tables_of_any_type_are_gathered_as_they_are_by_integers_only() {
    let index = (DType::I64, vec![Dim::from("T")]);
    for dtype in [DType::F32, DType::F16, DType::I8, DType::I64] {
        let found = applied(Op::Gather, &[(dtype, fixed(&[7, 4])), index.clone()]).unwrap();
        assert_eq!(found, (dtype, vec![vec![Dim::from("T"), Dim::from(4)]]));
    }
    let error = applied(Op::Gather, &[(DType::F16, fixed(&[7, 4])), (DType::F32, fixed(&[3]))]).unwrap_err();
    assert_eq!(error.to_string(), "Gather of node \"gather_0\" takes I64 as B, found F32");
}

#[test]
fn frozen_types_become_floats_in_their_shape() {
    let shape = || vec![Dim::from("T"), Dim::from(4), Dim::from(3)];
    let scale = (DType::F32, vec![Dim::from("T")]);
    assert_eq!(applied(Op::Cast, &[(DType::F16, shape())]).unwrap(), (DType::F32, vec![shape()]));
    assert_eq!(applied(Op::Dequantize, &[(DType::I8, shape()), scale]).unwrap(), (DType::F32, vec![shape()]));
    let error = applied(Op::Dequantize, &[(DType::I8, fixed(&[3, 4])), (DType::F32, fixed(&[4]))]).unwrap_err();
    assert_eq!(error.to_string(), "Dequantize of node \"dequantize_0\" takes [N, ...] and [N], found [3, 4], [4]");
}

#[test]
fn leading_dimensions_of_products_broadcast() {
    let queries = vec![Dim::from("B"), 12.into(), Dim::from("S"), 64.into()];
    let distances = vec![12.into(), 64.into(), Dim::from("R")];
    let found = applied(Op::MatMul, &[(DType::F32, queries), (DType::F32, distances)]).unwrap().1;
    assert_eq!(found, [vec![Dim::from("B"), 12.into(), Dim::from("S"), Dim::from("R")]]);
    assert_eq!(floats(Op::MatMul, &[&[2, 3], &[5, 3, 4]]).unwrap(), [fixed(&[5, 2, 4])]);
    let error = floats(Op::MatMul, &[&[2, 2, 3], &[5, 3, 4]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "MatMul of node \"matmul_0\" takes [..., M, K] and [..., K, N] with leading dimensions that broadcast, \
         found [2, 2, 3], [5, 3, 4]"
    );
}

#[test]
fn shapes_follow_the_formulas() {
    assert_eq!(floats(Op::RmsNorm { epsilon: 1e-6 }, &[&[5, 4], &[4]]).unwrap(), [fixed(&[5, 4]), fixed(&[5, 1])]);
    assert_eq!(floats(Op::LogSumExp, &[&[5, 4]]).unwrap(), [fixed(&[5, 1])]);
    assert_eq!(floats(Op::RotateHalf, &[&[5, 4]]).unwrap(), [fixed(&[5, 4])]);
    assert_eq!(floats(Op::Permute(vec![2, 0, 1]), &[&[5, 4, 3]]).unwrap(), [fixed(&[3, 5, 4])]);
    let convolution = Op::Conv1d { padding: 1, groups: 2 };
    assert_eq!(floats(convolution.clone(), &[&[2, 6, 5], &[4, 3, 3]]).unwrap(), [fixed(&[2, 4, 5])]);
    assert_eq!(floats(convolution, &[&[2, 6, 5], &[4, 3, 3], &[4]]).unwrap(), [fixed(&[2, 4, 5])]);
    let adjoint = Op::ConvTranspose1d { padding: 1, groups: 2 };
    assert_eq!(floats(adjoint, &[&[2, 4, 5], &[4, 3, 3]]).unwrap(), [fixed(&[2, 6, 5])]);
    assert_eq!(floats(Op::Skew, &[&[2, 3, 1, 2]]).unwrap(), [fixed(&[2, 3, 1, 1])]);

    let (b, s) = (Dim::from("B"), Dim::from("S"));
    let by_distance = vec![b.clone(), 12.into(), s.clone(), s.times(&2.into())];
    let by_position = vec![b, 12.into(), s.clone(), s];
    let found = applied(Op::Skew, &[(DType::F32, by_distance.clone())]).unwrap().1;
    assert_eq!(found, std::slice::from_ref(&by_position));
    assert_eq!(applied(Op::Unskew, &[(DType::F32, by_position)]).unwrap().1, [by_distance]);
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let refused: [(Op, &[&[usize]]); 16] = [
        (Op::RmsNorm { epsilon: 1e-6 }, &[&[5, 4], &[5]]),
        (Op::LogSumExp, &[&[]]),
        (Op::RotateHalf, &[&[4, 3]]),
        (Op::RotateHalf, &[&[]]),
        (Op::Permute(vec![0, 1]), &[&[5, 4, 3]]),
        (Op::Permute(vec![0, 0]), &[&[5, 4]]),
        (Op::Permute(vec![0, 2]), &[&[5, 4]]),
        (Op::Conv1d { padding: 0, groups: 1 }, &[&[2, 3, 5], &[4, 3, 3]]),
        (Op::Conv1d { padding: 1, groups: 1 }, &[&[2, 3, 5], &[4, 3, 4]]),
        (Op::Conv1d { padding: 1, groups: 2 }, &[&[2, 6, 5], &[3, 3, 3]]),
        (Op::Conv1d { padding: 1, groups: 0 }, &[&[2, 6, 5], &[4, 3, 3]]),
        (Op::Conv1d { padding: 1, groups: 1 }, &[&[2, 3, 5], &[4, 3, 3], &[3]]),
        (Op::Conv1d { padding: usize::MAX, groups: 1 }, &[&[2, 3, 5], &[4, 3, 3]]),
        (Op::ConvTranspose1d { padding: 1, groups: 1 }, &[&[2, 3, 5], &[4, 3, 3]]),
        (Op::Skew, &[&[3, 5]]),
        (Op::Unskew, &[&[3, 4]]),
    ];
    for (op, shapes) in refused {
        let error = floats(op.clone(), shapes);
        assert!(matches!(error, Err(GraphError::ShapeMismatch { .. })), "{op:?} {shapes:?}: {error:?}");
    }
}

#[test]
fn permutations_in_a_row_are_one_or_none() {
    let mut graph = Graph::default();
    let a = graph.input("a", DType::F32, fixed(&[2, 3, 4]));
    let turned = graph.permute(a, &[1, 2, 0]).unwrap();
    let twice = graph.permute(turned, &[1, 2, 0]).unwrap();
    assert_eq!(graph.shape(twice), &fixed(&[4, 2, 3]));
    assert_eq!(graph.producer(twice).unwrap().inputs, [a]);
    assert_eq!(graph.permute(twice, &[1, 2, 0]).unwrap(), a);
    assert_eq!(graph.permute(a, &[0, 1, 2]).unwrap(), a);
    let transposed = graph.transpose(a).unwrap();
    assert_eq!(graph.transpose(transposed).unwrap(), a);
    assert!(graph.permute(turned, &[0, 1]).is_err());
    assert!(graph.permute(turned, &[0, 1, 3]).is_err());
    let row = graph.input("row", DType::F32, fixed(&[2]));
    assert!(graph.transpose(row).is_err());
}
