//! Writes a part of a graph as an ONNX model without weights, and lists the nodes of a model.
//!
//! The model has plain operators of opset 20 and, for the graph's fused operators, operators of the domain `skiff`.

mod proto;
mod summary;
#[cfg(test)]
mod tests;

pub use summary::{NodeSummary, input_names, nodes};

use crate::graph::{DType, Dim, Extract, Graph, GraphError, Id, Node, Op, Source, Value, reshape_target, show_shape};
use prost::Message;
use proto::{
    AttributeProto, DimensionProto, Extent, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ShapeProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Version of the standard operators: the first with `Gelu`. ONNX Runtime 1.17 and later run it.
pub const OPSET: i64 = 20;
/// The domain of fused operators.
pub const FUSED_DOMAIN: &str = "skiff";
const FUSED_VERSION: i64 = 1;
/// Version of the file format that belongs to this version of the operators.
const IR_VERSION: i64 = 9;
const FLOAT: i32 = 1;
const INT8: i32 = 3;
const INT64: i32 = 7;
const FLOAT16: i32 = 10;

/// Returns the bytes of an ONNX model called `name` that computes `part` of `graph`; the same graph gives the same bytes.
///
/// # Errors
/// A reshape that ONNX cannot express; two values with the same name.
pub fn write(name: &str, graph: &Graph, part: &Extract) -> Result<Vec<u8>, GraphError> {
    graph.check_names()?;
    let mut writer = Writer { graph, proto: GraphProto { name: name.to_owned(), ..GraphProto::default() } };
    writer.proto.input = part.inputs.iter().map(|&id| value_info(graph.value(id))).collect();
    writer.proto.output = part.outputs.iter().map(|&id| value_info(graph.value(id))).collect();
    for &at in &part.nodes {
        writer.node(&graph.nodes()[at])?;
    }
    let plain = OperatorSetIdProto { domain: String::new(), version: OPSET };
    let fused = writer.proto.node.iter().any(|node| node.domain == FUSED_DOMAIN);
    let fused = fused.then(|| OperatorSetIdProto { domain: FUSED_DOMAIN.to_owned(), version: FUSED_VERSION });
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "skiff".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(writer.proto),
        opset_import: std::iter::once(plain).chain(fused).collect(),
    };
    Ok(model.encode_to_vec())
}

struct Writer<'g> {
    graph: &'g Graph,
    proto: GraphProto,
}

impl Writer<'_> {
    fn node(&mut self, node: &Node) -> Result<(), GraphError> {
        let inputs: Vec<String> = node.operands().iter().map(|&id| self.operand(id)).collect();
        let outputs: Vec<String> = node.outputs.iter().map(|&id| self.graph.value(id).name.clone()).collect();
        let name = outputs[0].clone();
        match &node.op {
            Op::Gemm { alpha, trans_a, trans_b } => {
                let attributes = vec![
                    float("alpha", *alpha),
                    integer("transA", i64::from(*trans_a)),
                    integer("transB", i64::from(*trans_b)),
                ];
                self.emit("Gemm", inputs, outputs, attributes);
            }
            Op::MatMul
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
            | Op::Gelu => {
                self.emit(node.op.name(), inputs, outputs, vec![]);
            }
            Op::Softmax => self.emit("Softmax", inputs, outputs, vec![integer("axis", -1)]),
            Op::LogSoftmax => self.emit("LogSoftmax", inputs, outputs, vec![integer("axis", -1)]),
            Op::LayerNorm { epsilon } => {
                let attributes = vec![float("epsilon", *epsilon), integer("axis", -1)];
                self.emit("LayerNormalization", inputs, outputs, attributes);
            }
            Op::LogSumExp => {
                let axes = self.integers_initializer(&format!("{name}.axes"), &[-1]);
                self.emit("ReduceLogSumExp", [inputs, vec![axes]].concat(), outputs, vec![integer("keepdims", 1)]);
            }
            Op::RmsNorm { epsilon } => self.rms_norm(&name, *epsilon, &inputs, outputs),
            Op::Permute(order) => {
                let order = order.iter().map(|&axis| axis as i64).collect();
                self.emit("Transpose", inputs, outputs, vec![integers("perm", order)]);
            }
            Op::Reshape(shape) => {
                let from = self.graph.shape(node.inputs[0]);
                let target = reshape_target(from, shape)
                    .ok_or_else(|| GraphError::AmbiguousReshape { from: show_shape(from), shape: show_shape(shape) })?;
                let target = self.integers_initializer(&format!("{name}.shape"), &target);
                self.emit("Reshape", [inputs, vec![target]].concat(), outputs, vec![]);
            }
            Op::Gather | Op::Relayout => self.emit("Gather", inputs, outputs, vec![integer("axis", 0)]),
            Op::ScatterRows => self.scatter_rows(&name, &inputs, outputs),
            Op::ReduceSum { axes } => {
                let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
                let axes = self.integers_initializer(&format!("{name}.axes"), &axes);
                self.emit("ReduceSum", [inputs, vec![axes]].concat(), outputs, vec![integer("keepdims", 1)]);
            }
            Op::MeanLast => {
                let axes = self.integers_initializer(&format!("{name}.axes"), &[-1]);
                self.emit("ReduceMean", [inputs, vec![axes]].concat(), outputs, vec![integer("keepdims", 1)]);
            }
            Op::ExpandLike => {
                let shape = format!("{name}.shape");
                self.emit("Shape", vec![inputs[1].clone()], vec![shape.clone()], vec![]);
                self.emit("Expand", vec![inputs[0].clone(), shape], outputs, vec![]);
            }
            Op::RotateHalf => self.rotate_half(&name, inputs, outputs),
            Op::Conv1d { padding, groups } | Op::ConvTranspose1d { padding, groups } => {
                let op_type = if matches!(node.op, Op::Conv1d { .. }) { "Conv" } else { "ConvTranspose" };
                let attributes = vec![integers("pads", vec![*padding as i64; 2]), integer("group", *groups as i64)];
                self.emit(op_type, inputs, outputs, attributes);
            }
            Op::Skew => self.skew(&name, lead(self.graph, node), inputs, outputs),
            Op::Unskew => self.unskew(&name, lead(self.graph, node), inputs, outputs),
            Op::Cast => self.emit("Cast", inputs, outputs, vec![integer("to", i64::from(FLOAT))]),
            Op::Narrow | Op::GeluGrad | Op::SoftmaxGrad | Op::LayerNormGrad | Op::RmsNormGrad => {
                self.emit_fused(&self.fused_name(node), inputs, outputs, vec![]);
            }
            Op::Attention(form) | Op::AttentionGrad(form) => {
                let counts = [("heads", form.heads), ("key_heads", form.key_heads), ("size", form.size)];
                let counts = counts.into_iter().map(|(name, count)| integer(name, count as i64));
                let rest = [
                    float("scale", form.scale),
                    integer("causal", i64::from(form.causal)),
                    integer("window", form.window.unwrap_or(0) as i64),
                ];
                self.emit_fused(&self.fused_name(node), inputs, outputs, counts.chain(rest).collect());
            }
            Op::Dequantize => self.emit("DequantizeLinear", inputs, outputs, vec![integer("axis", 0)]),
        }
        Ok(())
    }

    /// Writes zeros in the operand's shape, then `ScatterND` with addition along the first dimension.
    fn scatter_rows(&mut self, name: &str, inputs: &[String], outputs: Vec<String>) {
        let [shape, zeros, index] = ["shape", "zeros", "index"].map(|part| format!("{name}.{part}"));
        let last = self.integers_initializer(&format!("{name}.last"), &[-1]);
        self.emit("Shape", vec![inputs[0].clone()], vec![shape.clone()], vec![]);
        self.emit("ConstantOfShape", vec![shape], vec![zeros.clone()], vec![]);
        self.emit("Unsqueeze", vec![inputs[1].clone(), last], vec![index.clone()], vec![]);
        let attributes = vec![AttributeProto { s: Some(b"add".to_vec()), kind: 3, ..attribute("reduction") }];
        self.emit("ScatterND", vec![zeros, index, inputs[2].clone()], outputs, attributes);
    }

    /// Writes `inv_rms = 1 / sqrt(mean(A^2) + epsilon)`, `normal = A * inv_rms`, then `normal * B`.
    fn rms_norm(&mut self, name: &str, epsilon: f32, inputs: &[String], outputs: Vec<String>) {
        let [square, mean, shifted, rms, normal] =
            ["square", "mean", "shifted", "rms", "normal"].map(|part| format!("{name}.{part}"));
        let (x, weight, inv_rms) = (&inputs[0], &inputs[1], &outputs[1]);
        let axes = self.integers_initializer(&format!("{name}.axes"), &[-1]);
        let epsilon = self.scalar_initializer(&format!("{name}.epsilon"), epsilon);
        self.emit("Mul", vec![x.clone(), x.clone()], vec![square.clone()], vec![]);
        self.emit("ReduceMean", vec![square, axes], vec![mean.clone()], vec![integer("keepdims", 1)]);
        self.emit("Add", vec![mean, epsilon], vec![shifted.clone()], vec![]);
        self.emit("Sqrt", vec![shifted], vec![rms.clone()], vec![]);
        self.emit("Reciprocal", vec![rms], vec![inv_rms.clone()], vec![]);
        self.emit("Mul", vec![x.clone(), inv_rms.clone()], vec![normal.clone()], vec![]);
        self.emit("Mul", vec![normal, weight.clone()], vec![outputs[0].clone()], vec![]);
    }

    fn rotate_half(&mut self, name: &str, inputs: Vec<String>, outputs: Vec<String>) {
        let [front, back, negated] = ["front", "back", "negated"].map(|part| format!("{name}.{part}"));
        let halves = vec![integer("axis", -1), integer("num_outputs", 2)];
        self.emit("Split", inputs, vec![front.clone(), back.clone()], halves);
        self.emit("Neg", vec![back], vec![negated.clone()], vec![]);
        self.emit("Concat", vec![negated, front], outputs, vec![integer("axis", -1)]);
    }

    /// Writes a skew as reshapes and slices. Element `[i, j - i + S - 1]` of `[S, 2 S]` has index `i (2 S - 1) + j + S - 1` in
    /// the flat matrix. Without the first `S - 1` elements and the last one, the flat matrix can be cut into rows of `2 S - 1`
    /// elements. The wanted element is then in column `j` of row `i`.
    fn skew(&mut self, name: &str, lead: usize, inputs: Vec<String>, outputs: Vec<String>) {
        let [flat, within, rows] = ["flat", "within", "rows"].map(|part| format!("{name}.{part}"));
        let part = |part: &str| format!("{name}.{part}");
        let (size, before) = self.size_and_one_less(name, &inputs[0], -2);
        let flat_shape = self.integers_initializer(&part("flat_shape"), &[vec![0; lead], vec![-1]].concat());
        let rows_shape = self.rows_shape(name, lead, &size);
        // Both the end of the first slice and the axis of both slices.
        let last = self.integers_initializer(&part("last"), &[-1]);
        let zero = self.integers_initializer(&part("zero"), &[0]);
        self.emit("Reshape", vec![inputs[0].clone(), flat_shape], vec![flat.clone()], vec![]);
        self.emit("Slice", vec![flat, before, last.clone(), last.clone()], vec![within.clone()], vec![]);
        self.emit("Reshape", vec![within, rows_shape], vec![rows.clone()], vec![]);
        self.emit("Slice", vec![rows, zero, size, last], outputs, vec![]);
    }

    /// Writes the steps of `skew` in reverse, with zeros for the elements that it leaves out.
    fn unskew(&mut self, name: &str, lead: usize, inputs: Vec<String>, outputs: Vec<String>) {
        let [after, ends, rows, flat, whole] =
            ["after", "ends", "rows", "flat", "whole"].map(|part| format!("{name}.{part}"));
        let part = |part: &str| format!("{name}.{part}");
        let (size, before) = self.size_and_one_less(name, &inputs[0], -1);
        let flat_shape = self.integers_initializer(&part("flat_shape"), &[vec![0; lead], vec![-1]].concat());
        let rows_shape = self.rows_shape(name, lead, &size);
        let zero = self.integers_initializer(&part("zero"), &[0]);
        let (one, last) = (part("one"), self.integers_initializer(&part("last"), &[-1]));
        let first_axis = || vec![integer("axis", 0)];
        self.emit("Concat", vec![zero, before.clone()], vec![after.clone()], first_axis());
        self.emit("Concat", vec![before, one], vec![ends.clone()], first_axis());
        self.emit("Pad", vec![inputs[0].clone(), after, String::new(), last.clone()], vec![rows.clone()], vec![]);
        self.emit("Reshape", vec![rows, flat_shape], vec![flat.clone()], vec![]);
        self.emit("Pad", vec![flat, ends, String::new(), last], vec![whole.clone()], vec![]);
        self.emit("Reshape", vec![whole, rows_shape], outputs, vec![]);
    }

    /// Returns `S` and `S - 1` as vectors of one element. `S` is the dimension `axis` of `operand`.
    fn size_and_one_less(&mut self, name: &str, operand: &str, axis: i64) -> (String, String) {
        let [size, less] = ["size", "size_less_one"].map(|part| format!("{name}.{part}"));
        let one = self.integers_initializer(&format!("{name}.one"), &[1]);
        let end = if axis == -1 { vec![] } else { vec![integer("end", axis + 1)] };
        let attributes = [vec![integer("start", axis)], end].concat();
        self.emit("Shape", vec![operand.to_owned()], vec![size.clone()], attributes);
        self.emit("Sub", vec![size.clone(), one], vec![less.clone()], vec![]);
        (size, less)
    }

    /// Returns a target shape: `lead` unchanged dimensions, `size`, and the rest.
    fn rows_shape(&mut self, name: &str, lead: usize, size: &str) -> String {
        let shape = format!("{name}.rows_shape");
        let kept = (lead > 0).then(|| self.integers_initializer(&format!("{name}.lead"), &vec![0; lead]));
        let rest = self.integers_initializer(&format!("{name}.rest"), &[-1]);
        let parts = kept.into_iter().chain([size.to_owned(), rest]).collect();
        self.emit("Concat", parts, vec![shape.clone()], vec![integer("axis", 0)]);
        shape
    }

    /// Returns the name of a fused operator. Kernels that read activations in half precision are separate operators.
    fn fused_name(&self, node: &Node) -> String {
        let mut halves = node.inputs[node.op.halves()].iter();
        let half = halves.any(|&id| self.graph.value(id).dtype == DType::F16);
        format!("{}{}", node.op.name(), if half { "OfHalf" } else { "" })
    }

    fn emit_fused(&mut self, op_type: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) {
        self.emit(op_type, input, output, attribute);
        if let Some(node) = self.proto.node.last_mut() {
            FUSED_DOMAIN.clone_into(&mut node.domain);
        }
    }

    fn emit(&mut self, op_type: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) {
        let name = output[0].clone();
        self.proto.node.push(NodeProto {
            input,
            output,
            name,
            op_type: op_type.to_owned(),
            attribute,
            ..NodeProto::default()
        });
    }

    /// Returns the name of an operand; a scalar constant becomes an initializer when its name is first used.
    fn operand(&mut self, id: Id) -> String {
        let value = self.graph.value(id);
        if let Source::Constant(scalar) = value.source
            && self.proto.initializer.iter().all(|tensor| tensor.name != value.name)
        {
            return self.scalar_initializer(&value.name, scalar);
        }
        value.name.clone()
    }

    fn scalar_initializer(&mut self, name: &str, value: f32) -> String {
        let raw_data = value.to_le_bytes().to_vec();
        let tensor = TensorProto { dims: vec![], data_type: FLOAT, name: name.to_owned(), raw_data };
        self.proto.initializer.push(tensor);
        name.to_owned()
    }

    fn integers_initializer(&mut self, name: &str, values: &[i64]) -> String {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = TensorProto { dims: vec![values.len() as i64], data_type: INT64, name: name.to_owned(), raw_data };
        self.proto.initializer.push(tensor);
        name.to_owned()
    }
}

/// Returns the dimensions of the node's operand before the last two.
fn lead(graph: &Graph, node: &Node) -> usize {
    graph.shape(node.inputs[0]).len() - 2
}

fn value_info(value: &Value) -> ValueInfoProto {
    let extent = |dim: &Dim| match dim.known() {
        Some(size) => Extent::Value(size as i64),
        None => Extent::Parameter(dim.to_string()),
    };
    let dim = value.shape.iter().map(|dim| DimensionProto { extent: Some(extent(dim)) }).collect();
    let elem_type = match value.dtype {
        DType::F32 => FLOAT,
        DType::F16 => FLOAT16,
        DType::I8 => INT8,
        DType::I64 => INT64,
    };
    let tensor_type = Some(TensorTypeProto { elem_type, shape: Some(ShapeProto { dim }) });
    ValueInfoProto { name: value.name.clone(), r#type: Some(TypeProto { tensor_type }) }
}

fn attribute(name: &str) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ..AttributeProto::default() }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), kind: 1, ..attribute(name) }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), kind: 2, ..attribute(name) }
}

fn integers(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { ints, kind: 7, ..attribute(name) }
}
