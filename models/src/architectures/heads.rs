//! The losses of the tasks, and the shared parts of heads.

use super::{Activation, Head, shape};
use crate::graph::{GraphError, Id, Op, Shape};
use crate::stage::{BatchPart, Bias, Ending, Stage};
use crate::task::Task;

/// Returns the first row of each example of `hidden`, `[T, D]` to `[B, D]`.
pub(super) fn first_rows(stage: &mut Stage<'_>, hidden: Id) -> Result<Id, GraphError> {
    let first = stage.batch(BatchPart::FirstTokens, "first_tokens", shape([&"B"]));
    stage.graph.op(Op::Gather, &[hidden, first])
}

/// Returns the last row of each example.
pub(super) fn last_rows(stage: &mut Stage<'_>, hidden: Id) -> Result<Id, GraphError> {
    let last = stage.batch(BatchPart::LastTokens, "last_tokens", shape([&"B"]));
    stage.graph.op(Op::Gather, &[hidden, last])
}

/// Returns `activation(W x + b)`; `head` determines whether the layer is frozen or trains.
pub(super) fn pool(
    stage: &mut Stage<'_>,
    name: &str,
    x: Id,
    size: usize,
    activation: Activation,
    head: Head,
) -> Result<Id, GraphError> {
    let dense = if head.train_pooler {
        stage.trained_linear(name, x, [size, size], Bias::Yes)?
    } else {
        stage.linear(name, x, [size, size], Bias::Yes)?
    };
    let pooled = activation.apply(stage, dense)?;
    Ok(stage.graph.rename(pooled, "pooled"))
}

/// Returns the loss of `head`'s task on `logits`: `[B, C]`, or `[T, C]` for a task on tokens. The task is not a language
/// model's.
pub(super) fn loss(stage: &mut Stage<'_>, logits: Id, head: Head) -> Result<Ending, GraphError> {
    let loss = if head.task == Task::Regression {
        squared_error(stage, logits, head.labels)?
    } else {
        cross_entropy(stage, logits)?
    };
    Ok(Ending::Loss { loss, logits })
}

/// Returns `-sum(targets * log softmax(logits))`. The targets contain each row's weight.
fn cross_entropy(stage: &mut Stage<'_>, logits: Id) -> Result<Id, GraphError> {
    let shape = stage.graph.shape(logits).clone();
    let targets = stage.batch(BatchPart::Targets, "targets", shape);
    let g = &mut stage.graph;
    let log_probabilities = g.op(Op::LogSoftmax, &[logits])?;
    let picked = g.mul(targets, log_probabilities)?;
    let total = sum(stage, picked)?;
    stage.graph.scale(total, -1.0)
}

/// Returns `sum(weights * (logits - targets)^2)`.
fn squared_error(stage: &mut Stage<'_>, logits: Id, numbers: usize) -> Result<Id, GraphError> {
    let targets = stage.batch(BatchPart::Targets, "targets", shape([&"B", &numbers]));
    let weights = stage.batch(BatchPart::ExampleWeights, "example_weights", shape([&"B", &1]));
    let g = &mut stage.graph;
    let error = g.op(Op::Sub, &[logits, targets])?;
    let square = g.mul(error, error)?;
    let weighted = g.mul(square, weights)?;
    sum(stage, weighted)
}

/// Returns `sum_t w_t (log sum exp(z_t) - z_t[n_t])` with `z = H E^T`, over the rows `H` `[T, D]` of tokens and their
/// successors `n`.
///
/// `z_t[n_t]` is the product of the token's row with one row of `E` `[V, D]`. This needs neither a row of `V` targets nor
/// an index into the scores. `T` may be any stretch of the batch, because the weighted losses of stretches add up.
pub(super) fn next_token(
    stage: &mut Stage<'_>,
    hidden: Id,
    embedding: &str,
    [vocabulary, size]: [usize; 2],
) -> Result<Ending, GraphError> {
    let next = stage.batch(BatchPart::NextTokens, "next_tokens", shape([&"T"]));
    let weights = stage.batch(BatchPart::TokenWeights, "token_weights", shape([&"T", &1]));
    let matrix = stage.matrix(embedding, &[vocabulary, size])?;
    let logits = stage.graph.op(crate::stage::TIMES_TRANSPOSED, &[hidden, matrix])?;
    let rows = stage.rows(embedding, [vocabulary, size], next)?;
    let g = &mut stage.graph;
    let normaliser = g.op(Op::LogSumExp, &[logits])?;
    let products = g.mul(hidden, rows)?;
    let right = g.op(Op::ReduceSum { axes: vec![1] }, &[products])?;
    let surprise = g.op(Op::Sub, &[normaliser, right])?;
    let weighted = g.mul(surprise, weights)?;
    let loss = sum(stage, weighted)?;
    Ok(Ending::Loss { loss, logits })
}

/// Returns the sum of all elements of a matrix, as a scalar.
fn sum(stage: &mut Stage<'_>, matrix: Id) -> Result<Id, GraphError> {
    let total = stage.graph.op(Op::ReduceSum { axes: vec![0, 1] }, &[matrix])?;
    stage.graph.reshape(total, Shape::new())
}
