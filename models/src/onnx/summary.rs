//! Reads the nodes of a model, for tests and tools that examine graphs optimised by ONNX Runtime.

use super::proto::{GraphProto, ModelProto};
use prost::{DecodeError, Message};

/// One node of a model, with the names of its operator, inputs and outputs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSummary {
    /// Operator, for example `MatMul`.
    pub op_type: String,
    /// Domain of the operator; empty for standard operators.
    pub domain: String,
    /// Name of the node.
    pub name: String,
    /// Values that the node reads; an omitted operand has an empty name.
    pub inputs: Vec<String>,
    /// Values that the node makes.
    pub outputs: Vec<String>,
}

/// Returns the nodes of the model in `bytes`, in order. Nodes of inner graphs (branches, loops) are left out.
///
/// Memory is at most a constant times the length of `bytes`, and inner messages are read to a fixed depth.
///
/// # Errors
/// Bytes that are not an ONNX model.
pub fn nodes(bytes: &[u8]) -> Result<Vec<NodeSummary>, DecodeError> {
    let summary = |node: super::proto::NodeProto| NodeSummary {
        op_type: node.op_type,
        domain: node.domain,
        name: node.name,
        inputs: node.input,
        outputs: node.output,
    };
    Ok(graph(bytes)?.node.into_iter().map(summary).collect())
}

/// Returns the names of the model's inputs, in order. Same bounds as [`nodes`].
///
/// # Errors
/// Bytes that are not an ONNX model.
pub fn input_names(bytes: &[u8]) -> Result<Vec<String>, DecodeError> {
    Ok(graph(bytes)?.input.into_iter().map(|input| input.name).collect())
}

/// Returns the graph of the model; a model without one has no nodes.
fn graph(bytes: &[u8]) -> Result<GraphProto, DecodeError> {
    Ok(ModelProto::decode(bytes)?.graph.unwrap_or_default())
}
