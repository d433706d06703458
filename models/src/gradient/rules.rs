//! The rules: for each operator, the gradients of its operands as new nodes.
//!
//! Names in the formulas: `A`, `B`, `C` are the operands, `Y` is the result, `dX` is the gradient of `X`.

use crate::graph::{Graph, GraphError, Id, Node, Op, elements};
use std::collections::BTreeSet;
use std::f32::consts::FRAC_2_SQRT_PI;

/// Gradient of each operand; `None`, or no entry, for an operand without a gradient.
type Gradients = Result<Vec<Option<Id>>, GraphError>;

/// Appends the gradients of those operands of `node` that are in `active`, given `dy`, the gradient of its first result.
///
/// # Errors
/// [`GraphError::NoRule`]; a shape error, which means that a rule is wrong.
pub(super) fn rule(g: &mut Graph, node: &Node, dy: Id, active: &BTreeSet<Id>) -> Gradients {
    let (x, y) = (&node.inputs, node.outputs[0]);
    let wants = |operand: usize| x.get(operand).is_some_and(|id| active.contains(id));
    let one = |gradient: Id| Ok(vec![Some(gradient)]);
    match &node.op {
        Op::Gemm { .. } => gemm(g, node, dy, [wants(0), wants(1), wants(2)]),
        Op::MatMul => matmul(g, node, dy, [wants(0), wants(1)]),
        Op::Add => Ok(vec![wants(0).then_some(dy), wants(1).then_some(dy)]),
        Op::Sub => Ok(vec![wants(0).then_some(dy), if wants(1) { Some(g.scale(dy, -1.0)?) } else { None }]),
        Op::Mul => {
            let first = if wants(0) { Some(g.mul(dy, x[1])?) } else { None };
            Ok(vec![first, if wants(1) { Some(g.mul(dy, x[0])?) } else { None }])
        }
        Op::Erf => one(erf(g, x[0], dy)?),
        Op::Exp => one(g.mul(dy, y)?),
        Op::Tanh => one(tanh(g, y, dy)?),
        Op::Sigmoid => one(sigmoid(g, y, dy)?),
        Op::Relu => one(relu(g, y, dy)?),
        Op::Cos => one(cos(g, x[0], dy)?),
        Op::Sin => one(sin(g, x[0], dy)?),
        Op::Gelu => one(g.op(Op::GeluGrad, &[x[0], dy])?),
        Op::Softmax => one(g.op(Op::SoftmaxGrad, &[y, dy])?),
        Op::LogSoftmax => one(log_softmax(g, y, dy)?),
        Op::LogSumExp => one(log_sum_exp(g, x[0], y, dy)?),
        Op::LayerNorm { .. } => layer_norm(g, node, dy, [wants(0), wants(1), wants(2)]),
        Op::RmsNorm { .. } => rms_norm(g, node, dy, [wants(0), wants(1)]),
        Op::Permute(order) => one(permute(g, order, dy)?),
        Op::Reshape(_) => one(g.reshape(dy, g.shape(x[0]).clone())?),
        Op::Gather => one(g.op(Op::ScatterRows, &[x[0], x[1], dy])?),
        Op::Relayout => one(relayout(g, node, dy)?),
        Op::ReduceSum { .. } => one(g.op(Op::ExpandLike, &[dy, x[0]])?),
        Op::MeanLast => one(mean_last(g, x[0], dy)?),
        Op::RotateHalf => {
            let turned = g.op(Op::RotateHalf, &[dy])?;
            one(g.scale(turned, -1.0)?)
        }
        Op::Conv1d { padding, groups } => conv_1d(g, node, [*padding, *groups], dy, [wants(0), wants(1), wants(2)]),
        Op::ConvTranspose1d { .. } if wants(1) => Err(GraphError::NoRule { op: "ConvTranspose1d by its kernel" }),
        Op::ConvTranspose1d { padding, groups } => {
            one(g.op(Op::Conv1d { padding: *padding, groups: *groups }, &[dy, x[1]])?)
        }
        Op::Skew => one(g.op(Op::Unskew, &[dy])?),
        Op::Unskew => one(g.op(Op::Skew, &[dy])?),
        Op::Attention(form) => {
            let parts = g.apply(Op::AttentionGrad(*form), &[x.as_slice(), &[dy]].concat())?;
            Ok(parts.into_iter().enumerate().map(|(operand, part)| wants(operand).then_some(part)).collect())
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
        | Op::Dequantize => Err(GraphError::NoRule { op: node.op.name() }),
    }
}

/// `Y = alpha op(A) op(B) + C`: `d op(A) = alpha dY op(B)^T`, `d op(B) = alpha op(A)^T dY`, `dC = dY`.
fn gemm(g: &mut Graph, node: &Node, dy: Id, wants: [bool; 3]) -> Gradients {
    let Op::Gemm { alpha, trans_a, trans_b } = node.op else { return Err(GraphError::NoRule { op: node.op.name() }) };
    let (a, b) = (node.inputs[0], node.inputs[1]);
    let product = |trans_a, trans_b| Op::Gemm { alpha, trans_a, trans_b };
    let mut gradients = vec![None; 3];
    if wants[0] {
        gradients[0] = Some(if trans_a {
            g.op(product(trans_b, true), &[b, dy])?
        } else {
            g.op(product(false, !trans_b), &[dy, b])?
        });
    }
    if wants[1] {
        gradients[1] = Some(if trans_b {
            g.op(product(true, trans_a), &[dy, a])?
        } else {
            g.op(product(!trans_a, false), &[a, dy])?
        });
    }
    gradients[2] = wants[2].then_some(dy);
    Ok(gradients)
}

/// `Y = A B`: `dA = dY B^T`, `dB = A^T dY`.
fn matmul(g: &mut Graph, node: &Node, dy: Id, wants: [bool; 2]) -> Gradients {
    let mut gradients = vec![None; 2];
    if wants[0] {
        let transposed = g.transpose(node.inputs[1])?;
        gradients[0] = Some(g.op(Op::MatMul, &[dy, transposed])?);
    }
    if wants[1] {
        let transposed = g.transpose(node.inputs[0])?;
        gradients[1] = Some(g.op(Op::MatMul, &[transposed, dy])?);
    }
    Ok(gradients)
}

/// `erf'(a) = 2 / sqrt(pi) exp(-a^2)`.
fn erf(g: &mut Graph, a: Id, dy: Id) -> Result<Id, GraphError> {
    let square = g.mul(a, a)?;
    let negated = g.scale(square, -1.0)?;
    let bell = g.op(Op::Exp, &[negated])?;
    let slope = g.scale(bell, FRAC_2_SQRT_PI)?;
    g.mul(dy, slope)
}

/// `tanh' = 1 - y^2`.
fn tanh(g: &mut Graph, y: Id, dy: Id) -> Result<Id, GraphError> {
    let square = g.mul(y, y)?;
    let one = g.constant(1.0);
    let slope = g.op(Op::Sub, &[one, square])?;
    g.mul(dy, slope)
}

/// `sigmoid' = y (1 - y)`.
fn sigmoid(g: &mut Graph, y: Id, dy: Id) -> Result<Id, GraphError> {
    let one = g.constant(1.0);
    let rest = g.op(Op::Sub, &[one, y])?;
    let slope = g.mul(y, rest)?;
    g.mul(dy, slope)
}

/// `relu' = 1` if `y > 0`, otherwise 0, as in PyTorch.
fn relu(g: &mut Graph, y: Id, dy: Id) -> Result<Id, GraphError> {
    let slope = g.op(Op::Sign, &[y])?;
    g.mul(dy, slope)
}

/// `cos' = -sin`.
fn cos(g: &mut Graph, a: Id, dy: Id) -> Result<Id, GraphError> {
    let sine = g.op(Op::Sin, &[a])?;
    let negated = g.scale(sine, -1.0)?;
    g.mul(dy, negated)
}

/// `sin' = cos`.
fn sin(g: &mut Graph, a: Id, dy: Id) -> Result<Id, GraphError> {
    let cosine = g.op(Op::Cos, &[a])?;
    g.mul(dy, cosine)
}

/// `dA = dY - exp(Y) sum(dY)`.
fn log_softmax(g: &mut Graph, y: Id, dy: Id) -> Result<Id, GraphError> {
    let axes = vec![g.shape(y).len() - 1];
    let total = g.op(Op::ReduceSum { axes }, &[dy])?;
    let probabilities = g.op(Op::Exp, &[y])?;
    let expected = g.mul(probabilities, total)?;
    g.op(Op::Sub, &[dy, expected])
}

/// `dA = dY exp(A - Y)`.
fn log_sum_exp(g: &mut Graph, a: Id, y: Id, dy: Id) -> Result<Id, GraphError> {
    let shifted = g.op(Op::Sub, &[a, y])?;
    let probabilities = g.op(Op::Exp, &[shifted])?;
    g.mul(dy, probabilities)
}

/// `dA` is [`Op::LayerNormGrad`]; with `n = (A - mean) inv_std`, `dB = dY n` and `dC = dY`.
fn layer_norm(g: &mut Graph, node: &Node, dy: Id, wants: [bool; 3]) -> Gradients {
    let (a, weight, mean, inv_std) = (node.inputs[0], node.inputs[1], node.outputs[1], node.outputs[2]);
    let mut gradients = vec![None, None, wants[2].then_some(dy)];
    if wants[0] {
        gradients[0] = Some(g.op(Op::LayerNormGrad, &[dy, a, weight, mean, inv_std])?);
    }
    if wants[1] {
        let centred = g.op(Op::Sub, &[a, mean])?;
        let normal = g.mul(centred, inv_std)?;
        gradients[1] = Some(g.mul(dy, normal)?);
    }
    Ok(gradients)
}

/// `dA` is [`Op::RmsNormGrad`]; with `n = A inv_rms`, `dB = dY n`.
fn rms_norm(g: &mut Graph, node: &Node, dy: Id, wants: [bool; 2]) -> Gradients {
    let (a, weight, inv_rms) = (node.inputs[0], node.inputs[1], node.outputs[1]);
    let mut gradients = vec![None; 2];
    if wants[0] {
        gradients[0] = Some(g.op(Op::RmsNormGrad, &[dy, a, weight, inv_rms])?);
    }
    if wants[1] {
        let normal = g.mul(a, inv_rms)?;
        gradients[1] = Some(g.mul(dy, normal)?);
    }
    Ok(gradients)
}

/// Applies the inverse permutation.
fn permute(g: &mut Graph, order: &[usize], dy: Id) -> Result<Id, GraphError> {
    let back: Vec<usize> = (0..order.len()).filter_map(|axis| order.iter().position(|&from| from == axis)).collect();
    g.permute(dy, &back)
}

/// Moves the rows back to their old order. The two indices of a relayout are inverse to each other.
fn relayout(g: &mut Graph, node: &Node, dy: Id) -> Result<Id, GraphError> {
    let [a, to, back] = [node.inputs[0], node.inputs[1], node.inputs[2]];
    let (source, index) = (g.shape(a).clone(), g.shape(to).clone());
    let rows = g.reshape(dy, [&[elements(&index)], &source[1..]].concat())?;
    let moved = g.op(Op::Relayout, &[rows, back, to])?;
    g.reshape(moved, source)
}

/// `dA = dY / D` for each of the `D` elements of a row.
fn mean_last(g: &mut Graph, a: Id, dy: Id) -> Result<Id, GraphError> {
    let spread = g.op(Op::ExpandLike, &[dy, a])?;
    let shape = g.shape(a);
    let size = shape[shape.len() - 1].known().ok_or(GraphError::NoRule { op: "MeanLast of unknown size" })?;
    g.scale(spread, 1.0 / size as f32)
}

/// `dA` is the transposed convolution with the same kernel, `dC` the sum over examples and positions. The kernel never
/// trains, so it has no rule.
fn conv_1d(g: &mut Graph, node: &Node, [padding, groups]: [usize; 2], dy: Id, wants: [bool; 3]) -> Gradients {
    let x = &node.inputs;
    let mut gradients = vec![None; 3];
    if wants[1] {
        return Err(GraphError::NoRule { op: "Conv1d by its kernel" });
    }
    if wants[0] {
        gradients[0] = Some(g.op(Op::ConvTranspose1d { padding, groups }, &[dy, x[1]])?);
    }
    if wants[2] {
        let summed = g.op(Op::ReduceSum { axes: vec![0, 2] }, &[dy])?;
        let shape = g.shape(x[2]).clone();
        gradients[2] = Some(g.reshape(summed, shape)?);
    }
    Ok(gradients)
}
