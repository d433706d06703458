//! A small tensor graph. The methods that add nodes infer and check shapes at once.
//!
//! A graph is built once, on a workstation, and written as ONNX; nothing here computes. Values are numbered in the order of
//! their creation, which is a topological order: every operand comes before its node. [`crate::gradient`] appends the nodes
//! of derivatives. [`Graph::extract`] returns the nodes for a set of outputs.

mod infer;
mod op;
#[cfg(test)]
pub(crate) mod reference;
mod shape;

pub use op::{Attention, Op};
pub use shape::{Dim, Shape, broadcast, elements, reshape_target, show_shape};

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A value of one graph.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id(usize);

/// Element types.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit floating point: values of computations.
    F32,
    /// 16-bit floating point: frozen weights.
    F16,
    /// 8-bit integer: frozen weights that have scales.
    I8,
    /// 64-bit integer: indices.
    I64,
}

/// The source of a value.
#[derive(Clone, PartialEq, Debug)]
pub enum Source {
    /// A value that the caller provides.
    Input,
    /// A scalar constant.
    Constant(f32),
    /// The `output`-th result of node `node`.
    Node {
        /// Position in [`Graph::nodes`].
        node: usize,
        /// Position among the node's results.
        output: usize,
    },
}

/// A tensor somewhere in a graph.
#[derive(Clone, PartialEq, Debug)]
pub struct Value {
    /// Name, unique in the graph.
    pub name: String,
    /// Dimensions of the value.
    pub shape: Shape,
    /// Element type of the value.
    pub dtype: DType,
    /// Source of the value.
    pub source: Source,
}

/// An operator applied to values.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// The operator.
    pub op: Op,
    /// The operands.
    pub inputs: Vec<Id>,
    /// Results of the operator.
    pub outputs: Vec<Id>,
}

/// Values and the nodes that connect them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
}

/// Function that appends nodes which replace a given node, or returns `None` to keep the node.
pub(crate) type Expansion = fn(&mut Graph, &Node) -> Result<Option<Id>, GraphError>;

/// Reasons why a graph cannot be built or differentiated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// An operator does not accept operands of these shapes.
    #[error("{op} of node {node:?} takes {expected}, found {found}")]
    ShapeMismatch {
        /// The operator.
        op: &'static str,
        /// The node, by the name of its first result.
        node: String,
        /// The operands that the operator accepts.
        expected: String,
        /// The operands that were given.
        found: String,
    },
    /// An operator does not accept an operand of this type.
    #[error("{op} of node {node:?} takes {expected} as {operand}, found {found:?}")]
    TypeMismatch {
        /// The operator.
        op: &'static str,
        /// The node, by the name of its first result.
        node: String,
        /// The operand, by its letter in the operator's formula.
        operand: char,
        /// The types that the operator accepts.
        expected: String,
        /// The type of the given operand.
        found: DType,
    },
    /// Two values have the same name.
    #[error("two values are named {name:?}")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// ONNX cannot express the target of a reshape.
    #[error("reshape of {from} to {shape} leaves more than one dimension unknown")]
    AmbiguousReshape {
        /// The shape before the reshape.
        from: String,
        /// The shape after the reshape.
        shape: String,
    },
    /// An operator has no rule for a required derivative.
    #[error("operator {op} has no differentiation rule")]
    NoRule {
        /// The operator.
        op: &'static str,
    },
    /// The loss does not depend on a value for which a derivative is required.
    #[error("the output does not depend on {name:?}")]
    Independent {
        /// The value.
        name: String,
    },
}

impl Graph {
    /// Returns the value of `id`.
    #[must_use]
    pub fn value(&self, id: Id) -> &Value {
        &self.values[id.0]
    }

    /// Returns all nodes, operands before their users.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the node that makes `id`, if a node does.
    #[must_use]
    pub fn producer(&self, id: Id) -> Option<&Node> {
        match self.values[id.0].source {
            Source::Node { node, .. } => Some(&self.nodes[node]),
            Source::Input | Source::Constant(_) => None,
        }
    }

    /// Returns the dimensions of `id`.
    #[must_use]
    pub fn shape(&self, id: Id) -> &Shape {
        &self.values[id.0].shape
    }

    /// Adds an input tensor.
    pub fn input(&mut self, name: &str, dtype: DType, shape: Shape) -> Id {
        self.push(Value { name: name.to_owned(), shape, dtype, source: Source::Input })
    }

    /// Adds a scalar.
    pub fn constant(&mut self, value: f32) -> Id {
        let name = constant_name(self.values.len());
        self.push(Value { name, shape: Vec::new(), dtype: DType::F32, source: Source::Constant(value) })
    }

    /// Gives a value a readable name.
    pub fn rename(&mut self, id: Id, name: &str) -> Id {
        name.clone_into(&mut self.values[id.0].name);
        id
    }

    /// Applies `op` to `inputs` and returns its results.
    ///
    /// # Errors
    /// Operands with shapes or types that do not fit; the error names the operator and the node.
    pub fn apply(&mut self, op: Op, inputs: &[Id]) -> Result<Vec<Id>, GraphError> {
        let shapes: Vec<&Shape> = inputs.iter().map(|&id| self.shape(id)).collect();
        let node = self.nodes.len();
        let stem = node_name(&op, node);
        let results = op.infer(&shapes).map_err(|expected| GraphError::ShapeMismatch {
            op: op.name(),
            node: stem.clone(),
            expected,
            found: shapes.iter().map(|shape| show_shape(shape)).collect::<Vec<_>>().join(", "),
        })?;
        let dtypes: Vec<DType> = inputs.iter().map(|&id| self.value(id).dtype).collect();
        let dtype = op.infer_type(&dtypes).map_err(|wrong| GraphError::TypeMismatch {
            op: op.name(),
            node: stem.clone(),
            operand: char::from(b'A' + wrong as u8),
            expected: op.accepts(wrong).iter().map(|dtype| format!("{dtype:?}")).collect::<Vec<_>>().join(" or "),
            found: dtypes[wrong],
        })?;
        let outputs = results
            .into_iter()
            .enumerate()
            .map(|(output, shape)| {
                let name = result_name(&stem, output);
                self.push(Value { name, shape, dtype, source: Source::Node { node, output } })
            })
            .collect::<Vec<_>>();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Applies an operator with one result, like [`Graph::apply`].
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn op(&mut self, op: Op, inputs: &[Id]) -> Result<Id, GraphError> {
        Ok(self.apply(op, inputs)?[0])
    }

    /// Appends `a + b`, broadcast as in NumPy.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn add(&mut self, a: Id, b: Id) -> Result<Id, GraphError> {
        self.op(Op::Add, &[a, b])
    }

    /// Appends `a * b`, element by element.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn mul(&mut self, a: Id, b: Id) -> Result<Id, GraphError> {
        self.op(Op::Mul, &[a, b])
    }

    /// Appends `factor * a`.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn scale(&mut self, a: Id, factor: f32) -> Result<Id, GraphError> {
        let factor = self.constant(factor);
        self.mul(a, factor)
    }

    /// Appends `a` with its dimensions in the order `perm`. Two permutations in a row become one, and one without effect is left
    /// out.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn permute(&mut self, a: Id, perm: &[usize]) -> Result<Id, GraphError> {
        let (source, perm) = match self.producer(a) {
            Some(Node { op: Op::Permute(first), inputs, .. }) if perm.iter().all(|&axis| axis < first.len()) => {
                (inputs[0], perm.iter().map(|&axis| first[axis]).collect())
            }
            _ => (a, perm.to_vec()),
        };
        let stays = perm.iter().copied().eq(0..self.shape(source).len());
        if stays { Ok(source) } else { self.op(Op::Permute(perm), &[source]) }
    }

    /// Appends `a` with its last two dimensions exchanged. Two exchanges in a row are left out.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn transpose(&mut self, a: Id) -> Result<Id, GraphError> {
        let rank = self.shape(a).len().max(2);
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.permute(a, &perm)
    }

    /// Appends `a` in another shape with the same number of elements. If two reshapes follow each other, only the last is kept.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn reshape(&mut self, a: Id, shape: Shape) -> Result<Id, GraphError> {
        let source = match self.producer(a) {
            Some(Node { op: Op::Reshape(_), inputs, .. }) => inputs[0],
            _ => a,
        };
        if self.shape(source) == &shape { Ok(source) } else { self.op(Op::Reshape(shape), &[source]) }
    }

    /// Replaces operands of the nodes from number `first` by `instead(node, operand)`, if that is a value.
    pub(crate) fn redirect(&mut self, first: usize, instead: &dyn Fn(&Node, usize) -> Option<Id>) {
        for node in &mut self.nodes[first..] {
            let found: Vec<Option<Id>> = (0..node.inputs.len()).map(|operand| instead(node, operand)).collect();
            for (input, instead) in node.inputs.iter_mut().zip(found) {
                *input = instead.unwrap_or(*input);
            }
        }
    }

    /// Copies the graph value by value. `expand` receives each node with its inputs in the copy. If it appends a value, that
    /// value replaces the node's one result. Returns the copy, and its ids by the old ones.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`] and of `expand`.
    pub(crate) fn rewritten(&self, expand: Expansion) -> Result<(Self, BTreeMap<Id, Id>), GraphError> {
        let (mut copy, mut ids) = (Self::default(), BTreeMap::new());
        for (at, value) in self.values.iter().enumerate() {
            let new = match value.source {
                Source::Input => vec![copy.input(&value.name, value.dtype, value.shape.clone())],
                Source::Constant(scalar) => vec![copy.constant(scalar)],
                Source::Node { output: 1.., .. } => continue,
                Source::Node { node, output: 0 } => {
                    let Node { op, inputs, outputs } = &self.nodes[node];
                    let inputs: Vec<Id> = inputs.iter().map(|input| ids[input]).collect();
                    let moved = Node { op: op.clone(), inputs, outputs: outputs.clone() };
                    match expand(&mut copy, &moved)? {
                        Some(id) => vec![id],
                        None => copy.apply(moved.op, &moved.inputs)?,
                    }
                }
            };
            for (old, new) in (at..).map(Id).zip(new) {
                ids.insert(old, new);
                if self.was_named(old) {
                    copy.rename(new, &self.value(old).name);
                }
            }
        }
        Ok((copy, ids))
    }

    /// Returns true if the caller named a value. Other values have names with their numbers.
    fn was_named(&self, id: Id) -> bool {
        let value = self.value(id);
        match value.source {
            Source::Input => true,
            Source::Constant(_) => value.name != constant_name(id.0),
            Source::Node { node, output } => value.name != result_name(&node_name(&self.nodes[node].op, node), output),
        }
    }

    /// Sums `a` down to `shape`. This is the adjoint of broadcasting from `shape` to the shape of `a`.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn unbroadcast(&mut self, a: Id, shape: &Shape) -> Result<Id, GraphError> {
        let from = self.shape(a).clone();
        let lead = from.len() - shape.len();
        let axes: Vec<usize> =
            (0..from.len()).filter(|&axis| axis < lead || (shape[axis - lead] != from[axis])).collect();
        if axes.is_empty() {
            return Ok(a);
        }
        let summed = self.op(Op::ReduceSum { axes }, &[a])?;
        self.reshape(summed, shape.clone())
    }

    /// Returns the nodes for `outputs`, in order, and the values from which they start: inputs, and values in `cut`.
    #[must_use]
    pub fn extract(&self, outputs: &[Id], cut: &BTreeSet<Id>) -> Extract {
        let mut extract = Extract { outputs: outputs.to_vec(), ..Extract::default() };
        let (mut stack, mut seen) = (outputs.to_vec(), BTreeSet::new());
        while let Some(id) = stack.pop() {
            if !seen.insert(id) {
                continue;
            }
            match self.values[id.0].source {
                Source::Constant(_) => {}
                Source::Node { node, .. } if !cut.contains(&id) => {
                    extract.nodes.insert(node);
                    stack.extend(self.nodes[node].operands());
                }
                Source::Input | Source::Node { .. } => {
                    extract.inputs.insert(id);
                }
            }
        }
        extract
    }

    /// Fails if two values have the same name.
    ///
    /// # Errors
    /// [`GraphError::DuplicateName`].
    pub fn check_names(&self) -> Result<(), GraphError> {
        let mut seen = BTreeMap::new();
        match self.values.iter().find(|value| seen.insert(&value.name, ()).is_some()) {
            Some(value) => Err(GraphError::DuplicateName { name: value.name.clone() }),
            None => Ok(()),
        }
    }

    fn push(&mut self, value: Value) -> Id {
        self.values.push(value);
        Id(self.values.len() - 1)
    }
}

impl Node {
    /// Returns the operands of the computation. Leaves out the inverse index of an [`Op::Relayout`], which only the derivative
    /// needs.
    #[must_use]
    pub fn operands(&self) -> &[Id] {
        if self.op == Op::Relayout { &self.inputs[..2] } else { &self.inputs }
    }
}

/// A part of a graph, ready to be written.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Extract {
    /// Positions in [`Graph::nodes`].
    pub nodes: BTreeSet<usize>,
    /// Values from which the part starts.
    pub inputs: BTreeSet<Id>,
    /// Values in which the part ends.
    pub outputs: Vec<Id>,
}

fn constant_name(value: usize) -> String {
    format!("constant_{value}")
}

fn node_name(op: &Op, node: usize) -> String {
    format!("{}_{node}", op.name().to_lowercase())
}

fn result_name(node: &str, output: usize) -> String {
    if output == 0 { node.to_owned() } else { format!("{node}.{output}") }
}

#[cfg(test)]
mod tests;
