//! Expands adjoint operators into plain ones, for graphs that run on every provider of ONNX Runtime.
//!
//! [`crate::gradient`] always emits adjoint operators. Graphs with fused operators keep them, because `agent/kernels` computes
//! each in one pass over memory. All other graphs go through this pass. [`Op::Attention`] and its adjoint have no expansion
//! here: an architecture writes plain attention as a formula, with the probabilities as residuals.

use crate::graph::{Graph, GraphError, Id, Node, Op};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// Returns `graph` with plain operators instead of adjoint ones, and the values that replace `outputs`. Values before the
/// first adjoint operator keep their ids.
///
/// # Errors
/// A shape error, which means that an expansion is wrong.
pub fn lower(graph: &Graph, outputs: &[Id]) -> Result<(Graph, Vec<Id>), GraphError> {
    let (lowered, ids) = graph.rewritten(expand)?;
    Ok((lowered, outputs.iter().map(|id| ids[id]).collect()))
}

/// Appends the plain form of an adjoint operator; `None` for every other node.
fn expand(g: &mut Graph, node: &Node) -> Result<Option<Id>, GraphError> {
    let x = &node.inputs;
    match node.op {
        Op::GeluGrad => gelu(g, x[0], x[1]),
        Op::SoftmaxGrad => softmax(g, x[0], x[1]),
        Op::LayerNormGrad => layer_norm(g, [x[0], x[1], x[2], x[3], x[4]]),
        Op::RmsNormGrad => rms_norm(g, [x[0], x[1], x[2], x[3]]),
        Op::Gemm { .. }
        | Op::MatMul
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Erf
        | Op::Exp
        | Op::Tanh
        | Op::Sigmoid
        | Op::Relu
        | Op::Sign
        | Op::Cos
        | Op::Sin
        | Op::Gelu
        | Op::Softmax
        | Op::LogSoftmax
        | Op::LogSumExp
        | Op::LayerNorm { .. }
        | Op::RmsNorm { .. }
        | Op::Permute(_)
        | Op::Reshape(_)
        | Op::Gather
        | Op::ScatterRows
        | Op::Relayout
        | Op::ReduceSum { .. }
        | Op::MeanLast
        | Op::ExpandLike
        | Op::RotateHalf
        | Op::Conv1d { .. }
        | Op::ConvTranspose1d { .. }
        | Op::Skew
        | Op::Unskew
        | Op::Attention(_)
        | Op::AttentionGrad(_)
        | Op::Cast
        | Op::Narrow
        | Op::Dequantize => return Ok(None),
    }
    .map(Some)
}

/// Appends `dY gelu'(a)` with `gelu'(a) = Phi(a) + a phi(a)`, `Phi(a) = (1 + erf(a / sqrt 2)) / 2` and
/// `phi(a) = exp(-a^2 / 2) / sqrt(2 pi)`.
fn gelu(g: &mut Graph, a: Id, dy: Id) -> Result<Id, GraphError> {
    let narrowed = g.scale(a, FRAC_1_SQRT_2)?;
    let erf = g.op(Op::Erf, &[narrowed])?;
    let (half, halved) = (g.constant(0.5), g.scale(erf, 0.5)?);
    let distribution = g.add(halved, half)?;
    let square = g.mul(narrowed, narrowed)?;
    let negated = g.scale(square, -1.0)?;
    let bell = g.op(Op::Exp, &[negated])?;
    let weighted = g.mul(a, bell)?;
    // 1 / sqrt(2 pi) = (2 / sqrt(pi)) * (1 / sqrt(2)) / 2
    let density = g.scale(weighted, FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * 0.5)?;
    let slope = g.add(distribution, density)?;
    g.mul(dy, slope)
}

/// Appends `(dY - sum(dY Y)) Y`.
fn softmax(g: &mut Graph, y: Id, dy: Id) -> Result<Id, GraphError> {
    let weighted = g.mul(dy, y)?;
    let axes = vec![g.shape(y).len() - 1];
    let total = g.op(Op::ReduceSum { axes }, &[weighted])?;
    let centred = g.op(Op::Sub, &[dy, total])?;
    g.mul(centred, y)
}

/// Appends `inv_std (d - mean(d) - n mean(d n))` with `n = (A - mean) inv_std` and `d = dY B`.
fn layer_norm(g: &mut Graph, [dy, a, weight, mean, inv_std]: [Id; 5]) -> Result<Id, GraphError> {
    let centred = g.op(Op::Sub, &[a, mean])?;
    let normal = g.mul(centred, inv_std)?;
    let scaled = g.mul(dy, weight)?;
    let offset = g.op(Op::MeanLast, &[scaled])?;
    let product = g.mul(scaled, normal)?;
    let slope = g.op(Op::MeanLast, &[product])?;
    let along = g.mul(normal, slope)?;
    let without_mean = g.op(Op::Sub, &[scaled, offset])?;
    let without_slope = g.op(Op::Sub, &[without_mean, along])?;
    g.mul(without_slope, inv_std)
}

/// Appends `inv_rms (d - n mean(d n))` with `n = A inv_rms` and `d = dY B`.
fn rms_norm(g: &mut Graph, [dy, a, weight, inv_rms]: [Id; 4]) -> Result<Id, GraphError> {
    let normal = g.mul(a, inv_rms)?;
    let scaled = g.mul(dy, weight)?;
    let product = g.mul(scaled, normal)?;
    let slope = g.op(Op::MeanLast, &[product])?;
    let along = g.mul(normal, slope)?;
    let across = g.op(Op::Sub, &[scaled, along])?;
    g.mul(across, inv_rms)
}
