//! A slow evaluator in f64 over `ndarray`. It defines the operators for tests of rules and of written graphs.

use super::{Attention, Graph, Id, Op, Shape, Source, reshape_target};
use ndarray::{Array2, Array3, ArrayD, Axis, Ix2, Ix3, IxDyn, Zip, concatenate};
use std::collections::BTreeMap;

/// Evaluates `wanted` from all inputs on which it depends.
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
        let results = apply(&node.op, &operands, graph.shape(node.inputs[0]));
        known.extend(node.outputs.iter().copied().zip(results));
    }
    wanted.iter().map(|id| known[id].clone()).collect()
}

/// Returns the results of `op` on `x`. `first` holds the dimensions of the first operand in the graph.
fn apply(op: &Op, x: &[&ArrayD<f64>], first: &Shape) -> Vec<ArrayD<f64>> {
    let result = match op {
        Op::Gemm { alpha, trans_a, trans_b } => gemm(x, *alpha, [*trans_a, *trans_b]),
        Op::MatMul => batched_product(x[0], x[1]),
        Op::Add => broadcast(x, |a, b| a + b),
        Op::Sub => broadcast(x, |a, b| a - b),
        Op::Mul => broadcast(x, |a, b| a * b),
        Op::Erf => x[0].mapv(erf),
        Op::Exp => x[0].mapv(f64::exp),
        Op::Tanh => x[0].mapv(f64::tanh),
        Op::Sigmoid => x[0].mapv(|a| 1.0 / (1.0 + (-a).exp())),
        Op::Relu => x[0].mapv(|a| a.max(0.0)),
        Op::Sign => x[0].mapv(|a| if a == 0.0 { 0.0 } else { a.signum() }),
        Op::Cos => x[0].mapv(f64::cos),
        Op::Sin => x[0].mapv(f64::sin),
        Op::Gelu => x[0].mapv(|a| a * 0.5 * (1.0 + erf(a / 2f64.sqrt()))),
        Op::Softmax => log_softmax(x[0]).mapv(f64::exp),
        Op::LogSoftmax => log_softmax(x[0]),
        Op::LogSumExp => log_sum_exp(x[0]),
        Op::LayerNorm { epsilon } => return layer_norm(x, *epsilon),
        Op::RmsNorm { epsilon } => return rms_norm(x, *epsilon),
        Op::Permute(order) => x[0].clone().permuted_axes(order.as_slice()),
        Op::Reshape(shape) => reshape(x[0], first, shape),
        Op::Gather | Op::Relayout => gather(x),
        Op::ScatterRows => scatter_rows(x),
        Op::ReduceSum { axes } => {
            axes.iter().fold(x[0].clone(), |sum, &axis| sum.sum_axis(Axis(axis)).insert_axis(Axis(axis)))
        }
        Op::MeanLast => {
            let last = Axis(x[0].ndim() - 1);
            x[0].mean_axis(last).expect("not empty").insert_axis(last)
        }
        Op::ExpandLike => x[0].broadcast(x[1].raw_dim()).expect("broadcasts").to_owned(),
        Op::RotateHalf => rotate_half(x[0]),
        Op::Conv1d { padding, groups } => conv_1d(x, *padding, *groups),
        Op::ConvTranspose1d { padding, groups } => conv_transpose_1d(x, *padding, *groups),
        Op::Skew | Op::Unskew => skew(op, x[0]),
        Op::Cast => x[0].clone(),
        Op::Narrow => x[0].mapv(|a| half::f16::from_f64(a).to_f64()),
        Op::GeluGrad => gelu_grad(x),
        Op::SoftmaxGrad => softmax_grad(x),
        Op::LayerNormGrad | Op::RmsNormGrad => norm_grad(op, x),
        Op::Attention(form) => attention(form, x),
        Op::AttentionGrad(form) => return attention_grad(form, x),
        Op::Dequantize => dequantize(x),
    };
    vec![result]
}

fn gemm(x: &[&ArrayD<f64>], alpha: f32, [trans_a, trans_b]: [bool; 2]) -> ArrayD<f64> {
    let side = |array: &ArrayD<f64>, transposed: bool| -> Array2<f64> {
        let matrix = array.clone().into_dimensionality::<Ix2>().expect("rank 2");
        if transposed { matrix.t().to_owned() } else { matrix }
    };
    let product = side(x[0], trans_a).dot(&side(x[1], trans_b)).into_dyn() * f64::from(alpha);
    x.get(2).map_or_else(|| product.clone(), |addend| &product + *addend)
}

fn layer_norm(x: &[&ArrayD<f64>], epsilon: f32) -> Vec<ArrayD<f64>> {
    let last = Axis(x[0].ndim() - 1);
    let mean = x[0].mean_axis(last).expect("not empty").insert_axis(last);
    let centred = x[0] - &mean;
    let variance = centred.mapv(|a| a * a).mean_axis(last).expect("not empty").insert_axis(last);
    let inv_std = variance.mapv(|v| 1.0 / (v + f64::from(epsilon)).sqrt());
    vec![&(&centred * &inv_std) * x[1] + x[2], mean, inv_std]
}

fn rms_norm(x: &[&ArrayD<f64>], epsilon: f32) -> Vec<ArrayD<f64>> {
    let last = Axis(x[0].ndim() - 1);
    let square = x[0].mapv(|a| a * a).mean_axis(last).expect("not empty").insert_axis(last);
    let inv_rms = square.mapv(|v| 1.0 / (v + f64::from(epsilon)).sqrt());
    vec![&(x[0] * &inv_rms) * x[1], inv_rms]
}

fn reshape(x: &ArrayD<f64>, first: &Shape, shape: &Shape) -> ArrayD<f64> {
    let target = reshape_target(first, shape).expect("one unknown dimension");
    let size = |(axis, &size): (usize, &i64)| if size == 0 { x.shape()[axis] } else { size.max(1) as usize };
    let mut sizes: Vec<usize> = target.iter().enumerate().map(size).collect();
    if let Some(open) = target.iter().position(|&size| size < 0) {
        sizes[open] = x.len() / sizes.iter().product::<usize>();
    }
    ArrayD::from_shape_vec(sizes, x.iter().copied().collect()).expect("as many elements")
}

fn gather(x: &[&ArrayD<f64>]) -> ArrayD<f64> {
    let rows: Vec<usize> = x[1].iter().map(|&row| row as usize).collect();
    let sizes = [x[1].shape(), &x[0].shape()[1..]].concat();
    let picked = x[0].select(Axis(0), &rows);
    ArrayD::from_shape_vec(sizes, picked.iter().copied().collect()).expect("as many elements")
}

fn scatter_rows(x: &[&ArrayD<f64>]) -> ArrayD<f64> {
    let mut zeros = ArrayD::zeros(x[0].raw_dim());
    let rows = x[2].to_shape([&[x[1].len()], &x[0].shape()[1..]].concat()).expect("a row for each integer");
    for (row, added) in x[1].iter().zip(rows.outer_iter()) {
        let mut target = zeros.index_axis_mut(Axis(0), *row as usize);
        target += &added;
    }
    zeros
}

fn rotate_half(x: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(x.ndim() - 1);
    let (front, back) = x.view().split_at(last, x.len_of(last) / 2);
    concatenate(last, &[back.mapv(|a| -a).view(), front]).expect("equal halves")
}

fn conv_1d(x: &[&ArrayD<f64>], padding: usize, groups: usize) -> ArrayD<f64> {
    let kernel = rank_3(x[1]);
    let mut result = Array3::zeros((x[0].shape()[0], kernel.shape()[0], x[0].shape()[2]));
    let operand = rank_3(x[0]);
    taps(&kernel, operand.shape()[2], padding, groups, |[o, c, s, from], weight| {
        let add = &operand.slice(ndarray::s![.., c, from]) * weight;
        let mut to = result.slice_mut(ndarray::s![.., o, s]);
        to += &add;
    });
    let bias = |bias: &&ArrayD<f64>| (*bias).clone().insert_axis(Axis(1));
    x.get(2).map(bias).map_or(result.clone().into_dyn(), |bias| result.into_dyn() + bias)
}

fn conv_transpose_1d(x: &[&ArrayD<f64>], padding: usize, groups: usize) -> ArrayD<f64> {
    let (operand, kernel) = (rank_3(x[0]), rank_3(x[1]));
    let mut result = Array3::zeros((x[0].shape()[0], kernel.shape()[1] * groups, x[0].shape()[2]));
    taps(&kernel, operand.shape()[2], padding, groups, |[o, c, s, from], weight| {
        let add = &operand.slice(ndarray::s![.., o, s]) * weight;
        let mut to = result.slice_mut(ndarray::s![.., c, from]);
        to += &add;
    });
    result.into_dyn()
}

fn skew(op: &Op, x: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(x.ndim() - 1);
    let size = x.shape()[last.0 - 1];
    let mut sizes = x.shape().to_vec();
    sizes[last.0] = if *op == Op::Skew { size } else { 2 * size };
    let mut result = ArrayD::zeros(sizes);
    for (i, j) in (0..size).flat_map(|i| (0..size).map(move |j| (i, j))) {
        let distance = j + size - 1 - i;
        let (from, to) = if *op == Op::Skew { (distance, j) } else { (j, distance) };
        let value = x.index_axis(last, from).index_axis(Axis(last.0 - 1), i).to_owned();
        result.index_axis_mut(last, to).index_axis_mut(Axis(last.0 - 1), i).assign(&value);
    }
    result
}

fn gelu_grad(x: &[&ArrayD<f64>]) -> ArrayD<f64> {
    let phi = |a: f64| (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    x[0].mapv(|a| 0.5 * (1.0 + erf(a / 2f64.sqrt())) + a * phi(a)) * x[1]
}

fn softmax_grad(x: &[&ArrayD<f64>]) -> ArrayD<f64> {
    let last = Axis(x[0].ndim() - 1);
    let total = (x[0] * x[1]).sum_axis(last).insert_axis(last);
    (x[1] - &total) * x[0]
}

fn norm_grad(op: &Op, x: &[&ArrayD<f64>]) -> ArrayD<f64> {
    let last = Axis(x[0].ndim() - 1);
    let mean = |values: &ArrayD<f64>| values.mean_axis(last).expect("not empty").insert_axis(last);
    let centred = if *op == Op::LayerNormGrad { x[1] - x[3] } else { x[1].clone() };
    let inverse = x[x.len() - 1];
    let (normal, scaled) = (&centred * inverse, x[0] * x[2]);
    let slope = mean(&(&scaled * &normal));
    let without_mean = if *op == Op::LayerNormGrad { &scaled - &mean(&scaled) } else { scaled };
    (without_mean - normal * slope) * inverse
}

fn dequantize(x: &[&ArrayD<f64>]) -> ArrayD<f64> {
    let sizes: Vec<usize> = x[0].shape().iter().enumerate().map(|(at, &n)| if at == 0 { n } else { 1 }).collect();
    x[0] * &x[1].to_shape(sizes).expect("a scale for each row")
}

/// A query: its row, its head, and the weight of each visible key.
type Query = (usize, usize, Vec<(usize, f64)>);

fn attended(form: &Attention, x: &[&ArrayD<f64>]) -> Vec<Query> {
    let tokens = x[1].shape()[0];
    let firsts: Vec<usize> = x[3].iter().map(|&row| row as usize).collect();
    let place = |query: usize| if form.one_query { x[4].as_slice().expect("whole")[query] as usize } else { query };
    let mut all = Vec::new();
    for (query, head) in (0..x[0].shape()[0]).flat_map(|query| (0..form.heads).map(move |head| (query, head))) {
        let row = place(query);
        let example = firsts.iter().rposition(|&first| first <= row).expect("the first row is 0");
        let end = firsts.get(example + 1).copied().unwrap_or(tokens);
        let of_key = head / (form.heads / form.key_heads);
        let sees = |key: usize| !form.causal || key <= row && form.window.is_none_or(|window| key + window > row);
        let score = |key: usize| {
            let product = |d: usize| x[0][[query, head * form.size + d]] * x[1][[key, of_key * form.size + d]];
            f64::from(form.scale) * (0..form.size).map(product).sum::<f64>()
        };
        let scores: Vec<(usize, f64)> =
            (firsts[example]..end).filter(|&key| sees(key)).map(|key| (key, score(key))).collect();
        let log_sum = scores.iter().map(|(_, score)| score.exp()).sum::<f64>().ln();
        all.push((query, head, scores.into_iter().map(|(key, score)| (key, (score - log_sum).exp())).collect()));
    }
    all
}

fn attention(form: &Attention, x: &[&ArrayD<f64>]) -> ArrayD<f64> {
    let mut context = ArrayD::zeros(x[0].raw_dim());
    for (query, head, weights) in attended(form, x) {
        let of_key = head / (form.heads / form.key_heads);
        for ((key, weight), d) in weights.into_iter().flat_map(|pair| (0..form.size).map(move |d| (pair, d))) {
            context[[query, head * form.size + d]] += weight * x[2][[key, of_key * form.size + d]];
        }
    }
    context
}

fn attention_grad(form: &Attention, x: &[&ArrayD<f64>]) -> Vec<ArrayD<f64>> {
    let (size, dy) = (form.size, x[x.len() - 1]);
    let mut gradients: Vec<ArrayD<f64>> = x[..3].iter().map(|operand| ArrayD::zeros(operand.raw_dim())).collect();
    for (query, head, weights) in attended(form, x) {
        let (at, of_key) = (head * size, head / (form.heads / form.key_heads) * size);
        let slope = |key: usize| (0..size).map(|d| dy[[query, at + d]] * x[2][[key, of_key + d]]).sum::<f64>();
        let mean: f64 = weights.iter().map(|&(key, weight)| weight * slope(key)).sum();
        for &(key, weight) in &weights {
            let of_score = f64::from(form.scale) * weight * (slope(key) - mean);
            for d in 0..size {
                gradients[0][[query, at + d]] += of_score * x[1][[key, of_key + d]];
                gradients[1][[key, of_key + d]] += of_score * x[0][[query, at + d]];
                gradients[2][[key, of_key + d]] += weight * dy[[query, at + d]];
            }
        }
    }
    gradients
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
    let split = |array: &ArrayD<f64>| {
        let (lead, matrix) = array.shape().split_at(array.ndim() - 2);
        (lead.to_vec(), [matrix[0], matrix[1]])
    };
    let ((lead_a, [rows, inner]), (lead_b, [_, columns])) = (split(a), split(b));
    // Counts through the leading dimensions after broadcasting.
    let counter = broadcast(&[&ArrayD::zeros(lead_a), &ArrayD::zeros(lead_b)], |_, _| 0.0);
    let stack = |array: &ArrayD<f64>, matrix: [usize; 2]| {
        let all = array.broadcast([counter.shape(), &matrix].concat()).expect("broadcasts").to_owned();
        all.to_shape((counter.len(), matrix[0], matrix[1])).expect("as many elements").to_owned()
    };
    let (left, right) = (stack(a, [rows, inner]), stack(b, [inner, columns]));
    let values = left.outer_iter().zip(right.outer_iter()).flat_map(|(l, r)| l.dot(&r).into_iter()).collect();
    ArrayD::from_shape_vec([counter.shape(), &[rows, columns]].concat(), values).expect("as many elements")
}

fn log_sum_exp(x: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(x.ndim() - 1);
    let largest = x.fold_axis(last, f64::NEG_INFINITY, |&a, &b| a.max(b)).insert_axis(last);
    let total = (x - &largest).mapv(f64::exp).sum_axis(last).insert_axis(last);
    largest + total.mapv(f64::ln)
}

fn log_softmax(x: &ArrayD<f64>) -> ArrayD<f64> {
    x - &log_sum_exp(x)
}

fn rank_3(array: &ArrayD<f64>) -> Array3<f64> {
    array.clone().into_dimensionality::<Ix3>().expect("rank 3")
}

/// Lists every product of a convolution over `size` positions: output channel, input channel, position, position read, and
/// weight.
fn taps(kernel: &Array3<f64>, size: usize, padding: usize, groups: usize, mut tap: impl FnMut([usize; 4], f64)) {
    let (outputs, in_group, _) = kernel.dim();
    for ((o, c, k), &weight) in kernel.indexed_iter() {
        let channel = o / (outputs / groups) * in_group + c;
        for s in 0..size {
            if let Some(from) = (s + k).checked_sub(padding).filter(|&from| from < size) {
                tap([o, channel, s, from], weight);
            }
        }
    }
}

/// Computes the error function to about 1e-15: its Maclaurin series near zero, its continued fraction elsewhere (Abramowitz and
/// Stegun, 7.1.5 and 7.1.14).
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
