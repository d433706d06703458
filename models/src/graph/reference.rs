//! A slow evaluator in f64 over `ndarray`: what the operators mean, against which rules and the written graphs are tested.

use super::{Graph, Id, Op, Source};
use ndarray::{Array2, ArrayD, Axis, Ix2, IxDyn, Zip};
use std::collections::BTreeMap;

/// Evaluates `wanted`, given every input it depends on.
pub(crate) fn evaluate(graph: &Graph, given: &BTreeMap<Id, ArrayD<f64>>, wanted: &[Id]) -> Vec<ArrayD<f64>> {
    let mut known = given.clone();
    for (at, value) in graph.values.iter().enumerate() {
        if let Source::Constant(scalar) = value.source {
            known.insert(Id(at), ArrayD::from_elem(IxDyn(&[]), f64::from(scalar)));
        }
    }
    for at in graph.extract(wanted, &given.keys().copied().collect()).nodes {
        let node = &graph.nodes[at];
        let operands: Vec<&ArrayD<f64>> = node.operands().iter().map(|id| &known[id]).collect();
        let results = apply(&node.op, &operands);
        known.extend(node.outputs.iter().copied().zip(results));
    }
    wanted.iter().map(|id| known[id].clone()).collect()
}

fn apply(op: &Op, x: &[&ArrayD<f64>]) -> Vec<ArrayD<f64>> {
    let result = match op {
        Op::Gemm { alpha, trans_a, trans_b } => {
            let side = |array: &ArrayD<f64>, transposed: bool| -> Array2<f64> {
                let matrix = array.clone().into_dimensionality::<Ix2>().expect("rank 2");
                if transposed { matrix.t().to_owned() } else { matrix }
            };
            let product = side(x[0], *trans_a).dot(&side(x[1], *trans_b)).into_dyn() * f64::from(*alpha);
            x.get(2).map_or_else(|| product.clone(), |addend| &product + *addend)
        }
        Op::MatMul => batched_product(x[0], x[1]),
        Op::Add => broadcast(x, |a, b| a + b),
        Op::Sub => broadcast(x, |a, b| a - b),
        Op::Mul => broadcast(x, |a, b| a * b),
        Op::Erf => x[0].mapv(erf),
        Op::Exp => x[0].mapv(f64::exp),
        Op::Tanh => x[0].mapv(f64::tanh),
        Op::Gelu => x[0].mapv(|a| a * 0.5 * (1.0 + erf(a / 2f64.sqrt()))),
        Op::Softmax => log_softmax(x[0]).mapv(f64::exp),
        Op::LogSoftmax => log_softmax(x[0]),
        Op::LayerNorm { epsilon } => {
            let last = Axis(x[0].ndim() - 1);
            let mean = x[0].mean_axis(last).expect("not empty").insert_axis(last);
            let centred = x[0] - &mean;
            let variance = centred.mapv(|a| a * a).mean_axis(last).expect("not empty").insert_axis(last);
            let inv_std = variance.mapv(|v| 1.0 / (v + f64::from(*epsilon)).sqrt());
            return vec![&(&centred * &inv_std) * x[1] + x[2], mean, inv_std];
        }
        Op::Transpose => {
            let mut array = x[0].clone();
            array.swap_axes(x[0].ndim() - 2, x[0].ndim() - 1);
            array
        }
        // The target's unknown dimension is whatever is left over.
        Op::Reshape(shape) => {
            let known: usize = shape.iter().filter_map(super::Dim::known).product();
            let sizes: Vec<usize> = shape.iter().map(|dim| dim.known().unwrap_or(x[0].len() / known)).collect();
            ArrayD::from_shape_vec(sizes, x[0].iter().copied().collect()).expect("as many elements")
        }
        Op::Gather | Op::Relayout => {
            let rows: Vec<usize> = x[1].iter().map(|&row| row as usize).collect();
            let sizes = [x[1].shape(), &x[0].shape()[1..]].concat();
            let picked = x[0].select(Axis(0), &rows);
            ArrayD::from_shape_vec(sizes, picked.iter().copied().collect()).expect("as many elements")
        }
        Op::ScatterRows => {
            let mut zeros = ArrayD::zeros(x[0].raw_dim());
            for (at, &row) in x[1].iter().enumerate() {
                let mut target = zeros.index_axis_mut(Axis(0), row as usize);
                target += &x[2].index_axis(Axis(0), at);
            }
            zeros
        }
        Op::ReduceSum { axes } => {
            axes.iter().fold(x[0].clone(), |sum, &axis| sum.sum_axis(Axis(axis)).insert_axis(Axis(axis)))
        }
        Op::MeanLast => {
            let last = Axis(x[0].ndim() - 1);
            x[0].mean_axis(last).expect("not empty").insert_axis(last)
        }
        Op::ExpandLike => x[0].broadcast(x[1].raw_dim()).expect("broadcasts").to_owned(),
    };
    vec![result]
}

fn broadcast(x: &[&ArrayD<f64>], f: impl Fn(f64, f64) -> f64) -> ArrayD<f64> {
    let rank = x[0].ndim().max(x[1].ndim());
    let size =
        |array: &ArrayD<f64>, axis: usize| (axis + array.ndim()).checked_sub(rank).map_or(1, |at| array.shape()[at]);
    let sizes: Vec<usize> = (0..rank).map(|axis| size(x[0], axis).max(size(x[1], axis))).collect();
    let view = |array: &'_ ArrayD<f64>| array.broadcast(IxDyn(&sizes)).expect("broadcasts").to_owned();
    Zip::from(&view(x[0])).and(&view(x[1])).map_collect(|&a, &b| f(a, b))
}

fn batched_product(a: &ArrayD<f64>, b: &ArrayD<f64>) -> ArrayD<f64> {
    let (rows, inner, columns) = (a.shape()[a.ndim() - 2], a.shape()[a.ndim() - 1], b.shape()[b.ndim() - 1]);
    let batch = a.len() / (rows * inner).max(1);
    let left = a.to_shape((batch, rows, inner)).expect("contiguous").to_owned();
    let right = b.to_shape((batch, inner, columns)).expect("contiguous").to_owned();
    let mut sizes = a.shape().to_vec();
    *sizes.last_mut().expect("rank 2 or more") = columns;
    let values = left.outer_iter().zip(right.outer_iter()).flat_map(|(l, r)| l.dot(&r).into_iter()).collect();
    ArrayD::from_shape_vec(sizes, values).expect("as many elements")
}

fn log_softmax(x: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(x.ndim() - 1);
    let largest = x.fold_axis(last, f64::NEG_INFINITY, |&a, &b| a.max(b)).insert_axis(last);
    let shifted = x - &largest;
    let total = shifted.mapv(f64::exp).sum_axis(last).insert_axis(last);
    shifted - total.mapv(f64::ln)
}

/// The error function to about 1e-15: its Maclaurin series near zero, its continued fraction elsewhere
/// (Abramowitz and Stegun, 7.1.5 and 7.1.14).
pub(crate) fn erf(x: f64) -> f64 {
    let scale = 2.0 / std::f64::consts::PI.sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return scale * sum;
    }
    let tail = (1..=120).rev().fold(0.0, |rest, k| f64::from(k) / 2.0 / (x.abs() + rest));
    x.signum() * (1.0 - (-x * x).exp() / ((x.abs() + tail) * std::f64::consts::PI.sqrt()))
}
