//! Reverse-mode differentiation that appends graph nodes: one rule for each operator, one loop around them.
//!
//! A rule says what the gradient of each operand is, given the gradient of the result; it may assume that operand and
//! gradient have been broadcast. The loop orders the nodes, leaves out what does not lead to a wanted value,
//! un-broadcasts, and accumulates. A matrix product that ends in a sum is accumulated inside the product.

use crate::graph::{Graph, GraphError, Id, Node, Op, elements};
use std::collections::{BTreeMap, BTreeSet};

/// Appends the gradients of `output` with respect to each of `wanted`, given `seed`, the gradient of a scalar with
/// respect to `output`; returns them in the order of `wanted`.
///
/// Formula: reverse accumulation, `v' <- sum over users u of (du/dv)^T u'` (Griewank and Walther, Evaluating
/// Derivatives, 2nd ed., section 3.2).
///
/// # Errors
/// An operator without a rule on the way; a wanted value that `output` does not depend on; a shape error, which would be
/// a wrong rule.
pub fn gradient(graph: &mut Graph, output: Id, seed: Id, wanted: &[Id]) -> Result<Vec<Id>, GraphError> {
    let order: Vec<usize> = graph.extract(&[output], &BTreeSet::new()).nodes.into_iter().collect();
    let active = leading_to(graph, &order, wanted);
    let mut pending: BTreeMap<Id, Vec<Id>> = BTreeMap::from([(output, vec![seed])]);
    let mut totals = BTreeMap::new();
    for &at in order.iter().rev() {
        let node = graph.nodes()[at].clone();
        let result = node.outputs[0];
        if node.outputs[1..].iter().any(|extra| pending.contains_key(extra)) {
            return Err(GraphError::NoRule { op: "a second result" });
        }
        let Some(parts) = pending.remove(&result).filter(|_| active.contains(&result)) else { continue };
        let total = accumulate(graph, &parts)?;
        totals.insert(result, total);
        for (&operand, part) in node.inputs.iter().zip(rule(graph, &node, total, &active)?) {
            if let Some(part) = part {
                let shape = graph.shape(operand).clone();
                let part = graph.unbroadcast(part, &shape)?;
                pending.entry(operand).or_default().push(part);
            }
        }
    }
    wanted
        .iter()
        .map(|id| match (totals.get(id), pending.get(id).cloned()) {
            (Some(&total), _) => Ok(total),
            (None, Some(parts)) => accumulate(graph, &parts),
            (None, None) => Err(GraphError::Independent { name: graph.value(*id).name.clone() }),
        })
        .collect()
}

/// The values on a way from one of `wanted` through the nodes `order`.
fn leading_to(graph: &Graph, order: &[usize], wanted: &[Id]) -> BTreeSet<Id> {
    let mut active: BTreeSet<Id> = wanted.iter().copied().collect();
    for &at in order {
        let node = &graph.nodes()[at];
        if node.inputs.iter().any(|input| active.contains(input)) {
            active.extend(&node.outputs);
        }
    }
    active
}

/// The sum of `parts`. Products without an addend take the sum so far as theirs, which saves a pass over memory each.
fn accumulate(graph: &mut Graph, parts: &[Id]) -> Result<Id, GraphError> {
    let is_bare_product = |part: &Id| matches!(graph.producer(*part), Some(Node { op: Op::Gemm { .. }, inputs, .. }) if inputs.len() == 2);
    let (products, others): (Vec<Id>, Vec<Id>) = parts.iter().partition(|part| is_bare_product(part));
    let mut parts = others.into_iter().chain(products);
    let first = parts.next().expect("a pending gradient has a part");
    parts.try_fold(first, |sum, part| match graph.producer(part).cloned() {
        Some(Node { op: op @ Op::Gemm { .. }, inputs, .. }) if inputs.len() == 2 => {
            graph.op(op, &[inputs[0], inputs[1], sum])
        }
        _ => graph.add(sum, part),
    })
}

/// The gradients of the operands of `node`, given `dy`, that of its first result; `None` for those not in `active`.
fn rule(g: &mut Graph, node: &Node, dy: Id, active: &BTreeSet<Id>) -> Result<Vec<Option<Id>>, GraphError> {
    let (x, y) = (&node.inputs, node.outputs[0]);
    let wants = |operand: usize| x.get(operand).is_some_and(|id| active.contains(id));
    let mut gradients = vec![None; x.len()];
    match &node.op {
        // Y = alpha op(A) op(B) + C:  d op(A) = alpha dY op(B)^T,  d op(B) = alpha op(A)^T dY,  dC = dY.
        Op::Gemm { alpha, trans_a, trans_b } => {
            let product = |trans_a, trans_b| Op::Gemm { alpha: *alpha, trans_a, trans_b };
            if wants(0) {
                gradients[0] = Some(if *trans_a {
                    g.op(product(*trans_b, true), &[x[1], dy])?
                } else {
                    g.op(product(false, !trans_b), &[dy, x[1]])?
                });
            }
            if wants(1) {
                gradients[1] = Some(if *trans_b {
                    g.op(product(true, *trans_a), &[dy, x[0]])?
                } else {
                    g.op(product(!trans_a, false), &[x[0], dy])?
                });
            }
            if wants(2) {
                gradients[2] = Some(dy);
            }
        }
        // Y = A B:  dA = dY B^T,  dB = A^T dY.
        Op::MatMul => {
            if wants(0) {
                let transposed = g.transpose(x[1])?;
                gradients[0] = Some(g.op(Op::MatMul, &[dy, transposed])?);
            }
            if wants(1) {
                let transposed = g.transpose(x[0])?;
                gradients[1] = Some(g.op(Op::MatMul, &[transposed, dy])?);
            }
        }
        Op::Add => gradients = vec![wants(0).then_some(dy), wants(1).then_some(dy)],
        Op::Sub => {
            gradients[0] = wants(0).then_some(dy);
            gradients[1] = if wants(1) { Some(g.scale(dy, -1.0)?) } else { None };
        }
        Op::Mul => {
            gradients[0] = if wants(0) { Some(g.mul(dy, x[1])?) } else { None };
            gradients[1] = if wants(1) { Some(g.mul(dy, x[0])?) } else { None };
        }
        // erf'(a) = 2 / sqrt(pi) exp(-a^2)
        Op::Erf => {
            let square = g.mul(x[0], x[0])?;
            let negated = g.scale(square, -1.0)?;
            let bell = g.op(Op::Exp, &[negated])?;
            let slope = g.scale(bell, std::f32::consts::FRAC_2_SQRT_PI)?;
            gradients[0] = Some(g.mul(dy, slope)?);
        }
        Op::Exp => gradients[0] = Some(g.mul(dy, y)?),
        // tanh' = 1 - y^2
        Op::Tanh => {
            let square = g.mul(y, y)?;
            let one = g.constant(1.0);
            let slope = g.op(Op::Sub, &[one, square])?;
            gradients[0] = Some(g.mul(dy, slope)?);
        }
        // sigmoid' = y (1 - y)
        Op::Sigmoid => {
            let one = g.constant(1.0);
            let rest = g.op(Op::Sub, &[one, y])?;
            let slope = g.mul(y, rest)?;
            gradients[0] = Some(g.mul(dy, slope)?);
        }
        // relu' = 1 where y > 0, else 0; at 0 as PyTorch has it.
        Op::Relu => {
            let slope = g.op(Op::Sign, &[y])?;
            gradients[0] = Some(g.mul(dy, slope)?);
        }
        Op::Cos => {
            let sine = g.op(Op::Sin, &[x[0]])?;
            let negated = g.scale(sine, -1.0)?;
            gradients[0] = Some(g.mul(dy, negated)?);
        }
        Op::Sin => {
            let cosine = g.op(Op::Cos, &[x[0]])?;
            gradients[0] = Some(g.mul(dy, cosine)?);
        }
        Op::Gelu if g.is_fused() => gradients[0] = Some(g.op(Op::GeluGrad, &[x[0], dy])?),
        Op::Gelu => {
            let slope = gelu_slope(g, x[0])?;
            gradients[0] = Some(g.mul(dy, slope)?);
        }
        Op::Softmax if g.is_fused() => gradients[0] = Some(g.op(Op::SoftmaxGrad, &[y, dy])?),
        // dA = (dY - sum(dY * Y)) * Y
        Op::Softmax => {
            let weighted = g.mul(dy, y)?;
            let axes = vec![g.shape(y).len() - 1];
            let total = g.op(Op::ReduceSum { axes }, &[weighted])?;
            let centred = g.op(Op::Sub, &[dy, total])?;
            gradients[0] = Some(g.mul(centred, y)?);
        }
        // dA = dY - exp(Y) sum(dY)
        Op::LogSoftmax => {
            let axes = vec![g.shape(y).len() - 1];
            let total = g.op(Op::ReduceSum { axes }, &[dy])?;
            let probabilities = g.op(Op::Exp, &[y])?;
            let expected = g.mul(probabilities, total)?;
            gradients[0] = Some(g.op(Op::Sub, &[dy, expected])?);
        }
        // dA = dY exp(A - Y)
        Op::LogSumExp => {
            let shifted = g.op(Op::Sub, &[x[0], y])?;
            let probabilities = g.op(Op::Exp, &[shifted])?;
            gradients[0] = Some(g.mul(dy, probabilities)?);
        }
        // With n = (A - mean) inv_std and d = dY * B:  dA = inv_std (d - mean(d) - n mean(d n)),  dB = dY n,  dC = dY.
        Op::LayerNorm { .. } => {
            let (mean, inv_std) = (node.outputs[1], node.outputs[2]);
            let fused = g.is_fused() && wants(0);
            if fused {
                gradients[0] = Some(g.op(Op::LayerNormGrad, &[dy, x[0], x[1], mean, inv_std])?);
            }
            gradients[2] = wants(2).then_some(dy);
            if fused && !wants(1) {
                return Ok(gradients);
            }
            let centred = g.op(Op::Sub, &[x[0], mean])?;
            let normal = g.mul(centred, inv_std)?;
            if wants(0) && !fused {
                let scaled = g.mul(dy, x[1])?;
                let offset = g.op(Op::MeanLast, &[scaled])?;
                let product = g.mul(scaled, normal)?;
                let slope = g.op(Op::MeanLast, &[product])?;
                let along = g.mul(normal, slope)?;
                let without_mean = g.op(Op::Sub, &[scaled, offset])?;
                let without_slope = g.op(Op::Sub, &[without_mean, along])?;
                gradients[0] = Some(g.mul(without_slope, inv_std)?);
            }
            gradients[1] = if wants(1) { Some(g.mul(dy, normal)?) } else { None };
        }
        // With n = A inv_rms and d = dY * B:  dA = inv_rms (d - n mean(d n)),  dB = dY n.
        Op::RmsNorm { .. } => {
            let inv_rms = node.outputs[1];
            let fused = g.is_fused() && wants(0);
            if fused {
                gradients[0] = Some(g.op(Op::RmsNormGrad, &[dy, x[0], x[1], inv_rms])?);
            }
            if fused && !wants(1) {
                return Ok(gradients);
            }
            let normal = g.mul(x[0], inv_rms)?;
            if wants(0) && !fused {
                let scaled = g.mul(dy, x[1])?;
                let product = g.mul(scaled, normal)?;
                let slope = g.op(Op::MeanLast, &[product])?;
                let along = g.mul(normal, slope)?;
                let across = g.op(Op::Sub, &[scaled, along])?;
                gradients[0] = Some(g.mul(across, inv_rms)?);
            }
            gradients[1] = if wants(1) { Some(g.mul(dy, normal)?) } else { None };
        }
        Op::Permute(order) => {
            let back: Vec<usize> =
                (0..order.len()).filter_map(|axis| order.iter().position(|&from| from == axis)).collect();
            gradients[0] = Some(g.permute(dy, &back)?);
        }
        Op::Reshape(_) => {
            let shape = g.shape(x[0]).clone();
            gradients[0] = Some(g.reshape(dy, shape)?);
        }
        Op::Gather => gradients[0] = Some(g.op(Op::ScatterRows, &[x[0], x[1], dy])?),
        Op::Relayout => {
            let (source, index) = (g.shape(x[0]).clone(), g.shape(x[1]).clone());
            let rows = g.reshape(dy, [&[elements(&index)], &source[1..]].concat())?;
            let moved = g.op(Op::Relayout, &[rows, x[2], x[1]])?;
            gradients[0] = Some(g.reshape(moved, source)?);
        }
        Op::ReduceSum { .. } | Op::MeanLast => {
            let spread = g.op(Op::ExpandLike, &[dy, x[0]])?;
            gradients[0] = Some(if node.op == Op::MeanLast {
                let shape = g.shape(x[0]);
                let size =
                    shape[shape.len() - 1].known().ok_or(GraphError::NoRule { op: "MeanLast of unknown size" })?;
                g.scale(spread, 1.0 / size as f32)?
            } else {
                spread
            });
        }
        Op::RotateHalf => {
            let turned = g.op(Op::RotateHalf, &[dy])?;
            gradients[0] = Some(g.scale(turned, -1.0)?);
        }
        Op::Conv1d { .. } if wants(1) => return Err(GraphError::NoRule { op: "Conv1d by its kernel" }),
        Op::ConvTranspose1d { .. } if wants(1) => {
            return Err(GraphError::NoRule { op: "ConvTranspose1d by its kernel" });
        }
        Op::Conv1d { padding, groups } => {
            if wants(0) {
                let adjoint = Op::ConvTranspose1d { padding: *padding, groups: *groups };
                gradients[0] = Some(g.op(adjoint, &[dy, x[1]])?);
            }
            if wants(2) {
                let summed = g.op(Op::ReduceSum { axes: vec![0, 2] }, &[dy])?;
                let shape = g.shape(x[2]).clone();
                gradients[2] = Some(g.reshape(summed, shape)?);
            }
        }
        Op::ConvTranspose1d { padding, groups } => {
            let adjoint = Op::Conv1d { padding: *padding, groups: *groups };
            gradients[0] = Some(g.op(adjoint, &[dy, x[1]])?);
        }
        Op::Skew => gradients[0] = Some(g.op(Op::Unskew, &[dy])?),
        Op::Unskew => gradients[0] = Some(g.op(Op::Skew, &[dy])?),
        // See Op::AttentionGrad.
        Op::Attention(form) => {
            let operands = [x.as_slice(), &[dy]].concat();
            let parts = g.apply(Op::AttentionGrad(*form), &operands)?;
            parts.into_iter().enumerate().for_each(|(at, part)| gradients[at] = wants(at).then_some(part));
        }
        Op::GeluGrad
        | Op::SoftmaxGrad
        | Op::LayerNormGrad
        | Op::RmsNormGrad
        | Op::AttentionGrad(_)
        | Op::ScatterRows
        | Op::ExpandLike
        | Op::Sign
        | Op::Cast
        | Op::Narrow
        | Op::Dequantize => {
            return Err(GraphError::NoRule { op: node.op.name() });
        }
    }
    Ok(gradients)
}

/// `gelu'(a) = Phi(a) + a phi(a)`, with `Phi(a) = (1 + erf(a / sqrt 2)) / 2` and `phi(a) = exp(-a^2 / 2) / sqrt(2 pi)`.
fn gelu_slope(g: &mut Graph, a: Id) -> Result<Id, GraphError> {
    let narrowed = g.scale(a, std::f32::consts::FRAC_1_SQRT_2)?;
    let erf = g.op(Op::Erf, &[narrowed])?;
    let (half, halved) = (g.constant(0.5), g.scale(erf, 0.5)?);
    let distribution = g.add(halved, half)?;
    let square = g.mul(narrowed, narrowed)?;
    let negated = g.scale(square, -1.0)?;
    let bell = g.op(Op::Exp, &[negated])?;
    let weighted = g.mul(a, bell)?;
    // 1 / sqrt(2 pi) = (2 / sqrt(pi)) * (1 / sqrt(2)) / 2
    let density = g.scale(weighted, std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 * 0.5)?;
    g.add(distribution, density)
}

#[cfg(test)]
mod tests;
