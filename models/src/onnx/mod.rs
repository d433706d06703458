//! Writes a cut of a graph as an ONNX model: plain operators of opset 20, no weights inside.

mod proto;

use crate::graph::{DType, Dim, Extract, Graph, GraphError, Id, Node, Op, Shape, Source, Value};
use prost::Message;
use proto::{
    AttributeProto, DimensionProto, Extent, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ShapeProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// The version of the standard operators: the first with `Gelu`; ONNX Runtime 1.17 and later run it.
pub const OPSET: i64 = 20;
/// The version of the file format that goes with it.
const IR_VERSION: i64 = 9;
const FLOAT: i32 = 1;
const INT64: i32 = 7;

/// The bytes of an ONNX model called `name` that computes `part` of `graph`; the same graph gives the same bytes.
///
/// # Errors
/// A reshape that ONNX cannot express; two values of one name.
pub fn write(name: &str, graph: &Graph, part: &Extract) -> Result<Vec<u8>, GraphError> {
    graph.check_names()?;
    let mut writer = Writer { graph, proto: GraphProto { name: name.to_owned(), ..GraphProto::default() } };
    writer.proto.input = part.inputs.iter().map(|&id| value_info(graph.value(id))).collect();
    writer.proto.output = part.outputs.iter().map(|&id| value_info(graph.value(id))).collect();
    for &at in &part.nodes {
        writer.node(&graph.nodes()[at])?;
    }
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "skiff".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(writer.proto),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
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
        let rank = self.graph.shape(node.inputs[0]).len();
        match &node.op {
            Op::Gemm { alpha, trans_a, trans_b } => {
                let attributes = vec![
                    float("alpha", *alpha),
                    integer("transA", i64::from(*trans_a)),
                    integer("transB", i64::from(*trans_b)),
                ];
                self.emit("Gemm", inputs, outputs, attributes);
            }
            Op::MatMul | Op::Add | Op::Sub | Op::Mul | Op::Erf | Op::Exp | Op::Tanh | Op::Gelu => {
                self.emit(node.op.name(), inputs, outputs, vec![]);
            }
            Op::Softmax => self.emit("Softmax", inputs, outputs, vec![integer("axis", -1)]),
            Op::LogSoftmax => self.emit("LogSoftmax", inputs, outputs, vec![integer("axis", -1)]),
            Op::LayerNorm { epsilon } => {
                let attributes = vec![float("epsilon", *epsilon), integer("axis", -1)];
                self.emit("LayerNormalization", inputs, outputs, attributes);
            }
            Op::Transpose => {
                let mut order: Vec<i64> = (0..rank as i64).collect();
                order.swap(rank - 2, rank - 1);
                self.emit("Transpose", inputs, outputs, vec![integers("perm", order)]);
            }
            Op::Reshape(shape) => {
                let target = self.integers_initializer(&format!("{name}.shape"), &reshape_target(shape)?);
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
        }
        Ok(())
    }

    /// Zeros in the operand's shape, then `ScatterND` with addition along the first dimension.
    fn scatter_rows(&mut self, name: &str, inputs: &[String], outputs: Vec<String>) {
        let [shape, zeros, index] = ["shape", "zeros", "index"].map(|part| format!("{name}.{part}"));
        let last = self.integers_initializer(&format!("{name}.last"), &[-1]);
        self.emit("Shape", vec![inputs[0].clone()], vec![shape.clone()], vec![]);
        self.emit("ConstantOfShape", vec![shape], vec![zeros.clone()], vec![]);
        self.emit("Unsqueeze", vec![inputs[1].clone(), last], vec![index.clone()], vec![]);
        let attributes = vec![AttributeProto { s: Some(b"add".to_vec()), kind: 3, ..attribute("reduction") }];
        self.emit("ScatterND", vec![zeros, index, inputs[2].clone()], outputs, attributes);
    }

    fn emit(&mut self, op_type: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) {
        let name = output[0].clone();
        self.proto.node.push(NodeProto { input, output, name, op_type: op_type.to_owned(), attribute });
    }

    /// The name of an operand; a scalar constant becomes an initializer the first time it is named.
    fn operand(&mut self, id: Id) -> String {
        let value = self.graph.value(id);
        if let Source::Constant(scalar) = value.source
            && self.proto.initializer.iter().all(|tensor| tensor.name != value.name)
        {
            let raw_data = scalar.to_le_bytes().to_vec();
            let tensor = TensorProto { dims: vec![], data_type: FLOAT, name: value.name.clone(), raw_data };
            self.proto.initializer.push(tensor);
        }
        value.name.clone()
    }

    fn integers_initializer(&mut self, name: &str, values: &[i64]) -> String {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = TensorProto { dims: vec![values.len() as i64], data_type: INT64, name: name.to_owned(), raw_data };
        self.proto.initializer.push(tensor);
        name.to_owned()
    }
}

fn reshape_target(shape: &Shape) -> Result<Vec<i64>, GraphError> {
    let target: Vec<i64> = shape.iter().map(|dim| dim.known().map_or(-1, |size| size as i64)).collect();
    if target.iter().filter(|&&size| size < 0).count() > 1 {
        let shape = shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
        return Err(GraphError::AmbiguousReshape { shape });
    }
    Ok(target)
}

fn value_info(value: &Value) -> ValueInfoProto {
    let extent = |dim: &Dim| match dim.known() {
        Some(size) => Extent::Value(size as i64),
        None => Extent::Parameter(dim.to_string()),
    };
    let dim = value.shape.iter().map(|dim| DimensionProto { extent: Some(extent(dim)) }).collect();
    let elem_type = match value.dtype {
        DType::F32 => FLOAT,
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
