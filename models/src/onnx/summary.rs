//! Reads what a model consists of, for tests and tools that look at what ONNX Runtime made of a graph.

use super::proto::{GraphProto, ModelProto};
use prost::{DecodeError, Message};

/// One node of a model, by names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSummary {
    /// For instance `MatMul`.
    pub op_type: String,
    /// Empty for standard operators.
    pub domain: String,
    /// Its name.
    pub name: String,
    /// The values it reads; an operand left out is an empty name.
    pub inputs: Vec<String>,
    /// The values it makes.
    pub outputs: Vec<String>,
}

/// Returns the nodes of the model in `bytes`, in their order there; those of inner graphs (branches, loops) are left out.
///
/// Memory is at most a constant times the length of `bytes`, and inner messages are followed to a fixed depth.
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

/// Returns the names of the model's inputs, in their order there; bounded like [`nodes`].
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
