//! Reverse-mode differentiation that appends graph nodes: one rule for each operator, one loop around them.
//!
//! A rule computes the gradient of each operand from the gradient of the result. A rule may assume that operand and gradient
//! already have the broadcast shape. The loop orders the nodes, leaves out nodes that lead to no wanted value, un-broadcasts, and
//! accumulates. If a term of a sum is a matrix product, the product itself adds the other terms.
//!
//! Rules emit adjoint operators such as [`Op::GeluGrad`]; [`crate::lower`] expands them for graphs of plain operators.

mod rules;

use crate::graph::{Graph, GraphError, Id, Node, Op};
use rules::rule;
use std::collections::{BTreeMap, BTreeSet};

/// Appends the gradients of `output` with respect to each of `wanted`, given `seed`, the gradient of a scalar with
/// respect to `output`; returns them in the order of `wanted`.
///
/// Formula: reverse accumulation, `v' <- sum over users u of (du/dv)^T u'` (Griewank and Walther, Evaluating
/// Derivatives, 2nd ed., section 3.2).
///
/// # Errors
/// An operator without a rule between `wanted` and `output`; a wanted value on which `output` does not depend; a shape error,
/// which means that a rule is wrong.
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

/// Returns the values that depend on one of `wanted`. `order` lists the nodes to follow.
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

/// Appends the sum of `parts`. A matrix product without an addend gets the sum so far as its addend, which saves a pass over
/// memory.
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

#[cfg(test)]
mod tests;
