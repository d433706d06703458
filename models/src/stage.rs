//! A stage of a model, and the graphs cut from it: forward, backward, evaluate.
//!
//! A stage is one graph from its inputs to its result. Its derivative is appended to the same graph; then each file is a
//! cut. What the backward file needs of the forward one is carried over as *residuals*: every computed value that a
//! gradient node reads, except movements (transposes, reshapes), which are done again.

use crate::gradient::gradient;
use crate::graph::{DType, Extract, Graph, GraphError, Id, Op, Shape};
use crate::onnx;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What an input or output of a graph file is tied to when it runs. `{layer}` in a tensor's name stands for the layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// The activations that flow from stage to stage, `[T, D]`.
    Hidden,
    /// The loss's gradient with respect to them.
    HiddenGradient,
    /// A part of the batch.
    Batch(BatchPart),
    /// A frozen tensor, by its name in `frozen.safetensors`.
    Frozen(String),
    /// A trainable tensor, by its name in `peft.safetensors`.
    Trainable(String),
    /// The gradient of a trainable tensor.
    Gradient(String),
    /// Carried from the forward to the backward graph of the same stage and layer, under this name.
    Residual(String),
    /// Class scores, `[B, C]`.
    Logits,
    /// The loss, a scalar.
    Loss,
}

/// The parts of a batch of `B` examples with `T` tokens in all, padded to `S` tokens only inside attention.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchPart {
    /// `[T]`: vocabulary indices.
    InputIds,
    /// `[T]`: segment of each token.
    TokenTypeIds,
    /// `[T]`: place of each token in its example.
    PositionIds,
    /// `[B, h, S]`: where attention finds each head's part of a token in `[T*h, D/h]`.
    ToHeads,
    /// `[T, h]`: the way back, from `[B*h*S, D/h]`.
    ToTokens,
    /// `[B, 1, 1, S]`: 0 for a token, a large negative number for padding.
    KeyBias,
    /// `[B]`: the first token of each example.
    FirstTokens,
    /// `[B, C]`: the weight of each class in the loss; the rows of an ordinary batch hold `1/B` at the label.
    Targets,
}

/// One input or output of a graph file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name in the file.
    pub name: String,
    /// What it is tied to.
    pub binding: Binding,
    /// Its dimensions, for people.
    pub shape: Vec<String>,
}

/// A graph file: where it is and what goes in and out, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GraphSpec {
    /// Path in the pack.
    pub file: String,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
}

/// The graph files of a stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageSpec {
    /// Result and residuals.
    pub forward: GraphSpec,
    /// Gradients of the stage's trainable tensors and of its input; absent where the stage has neither.
    pub backward: Option<GraphSpec>,
    /// `backward` without the gradient of the input, for the lowest layer that trains; absent where that is the same.
    pub backward_lowest: Option<GraphSpec>,
    /// The result alone.
    pub evaluate: GraphSpec,
}

impl StageSpec {
    /// The graph files there are.
    pub fn graphs(&self) -> impl Iterator<Item = &GraphSpec> {
        [Some(&self.forward), self.backward.as_ref(), self.backward_lowest.as_ref(), Some(&self.evaluate)]
            .into_iter()
            .flatten()
    }
}

/// A stage under construction.
#[derive(Debug, Default)]
pub struct Stage {
    /// The computation.
    pub graph: Graph,
    bindings: BTreeMap<Id, Binding>,
    hidden: Option<Id>,
    trainable: Vec<Id>,
}

/// What a stage ends in.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// Activations for the next stage.
    Hidden(Id),
    /// The loss, and the class scores it comes from.
    Loss {
        /// Scalar.
        loss: Id,
        /// `[B, C]`.
        logits: Id,
    },
}

/// The graph files of a stage with their bytes.
#[derive(Debug)]
pub struct CompiledStage {
    /// Names and ports.
    pub spec: StageSpec,
    /// Path in the pack and bytes.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Stage {
    /// The activations from the stage before.
    pub fn hidden(&mut self, shape: Shape) -> Id {
        let id = self.graph.input("hidden", DType::F32, shape);
        self.bindings.insert(id, Binding::Hidden);
        self.hidden = Some(id);
        id
    }

    /// A part of the batch.
    pub fn batch(&mut self, part: BatchPart, name: &str, shape: Shape) -> Id {
        let dtype = match part {
            BatchPart::KeyBias | BatchPart::Targets => DType::F32,
            BatchPart::InputIds
            | BatchPart::TokenTypeIds
            | BatchPart::PositionIds
            | BatchPart::ToHeads
            | BatchPart::ToTokens
            | BatchPart::FirstTokens => DType::I64,
        };
        let id = self.graph.input(name, dtype, shape);
        self.bindings.insert(id, Binding::Batch(part));
        id
    }

    /// A frozen tensor: `prefix` and `name` make its name in the pack, `name` alone that in the graph.
    pub fn frozen(&mut self, prefix: &str, name: &str, shape: Shape) -> Id {
        let id = self.graph.input(name, DType::F32, shape);
        self.bindings.insert(id, Binding::Frozen(format!("{prefix}{name}")));
        id
    }

    /// A trainable tensor, named likewise.
    pub fn trainable(&mut self, prefix: &str, name: &str, shape: Shape) -> Id {
        let id = self.graph.input(name, DType::F32, shape);
        self.bindings.insert(id, Binding::Trainable(format!("{prefix}{name}")));
        self.trainable.push(id);
        id
    }

    /// Differentiates the stage and cuts its files.
    ///
    /// # Errors
    /// What differentiation or writing refuses.
    pub fn compile(mut self, name: &str, ending: Ending) -> Result<CompiledStage, GraphError> {
        let (result, evaluated, forward_results) = match ending {
            Ending::Hidden(hidden) => {
                self.bindings.insert(hidden, Binding::Hidden);
                (hidden, vec![hidden], vec![hidden])
            }
            Ending::Loss { loss, logits } => {
                self.bindings.extend([(loss, Binding::Loss), (logits, Binding::Logits)]);
                (loss, vec![logits], vec![loss, logits])
            }
        };
        let computed = self.forward_values();
        let gradients = self.differentiate(ending, result)?;
        let movements =
            |id: &Id| self.graph.producer(*id).is_some_and(|node| matches!(node.op, Op::Permute(_) | Op::Reshape(_)));
        let cut: BTreeSet<Id> = computed.iter().filter(|id| !movements(id)).copied().collect();

        let backward = (!gradients.is_empty()).then(|| self.graph.extract(&gradients, &cut));
        let of_trainables = &gradients[..self.trainable.len()];
        let lowest = (!of_trainables.is_empty() && of_trainables.len() < gradients.len())
            .then(|| self.graph.extract(of_trainables, &cut));
        let residuals: Vec<Id> =
            backward.iter().flat_map(|part| part.inputs.iter()).filter(|id| computed.contains(id)).copied().collect();
        for &id in &residuals {
            let name = self.graph.value(id).name.clone();
            self.bindings.entry(id).or_insert(Binding::Residual(name));
        }
        let uncut = BTreeSet::new();
        let forward = self.graph.extract(&[forward_results, residuals].concat(), &uncut);
        let evaluate = self.graph.extract(&evaluated, &uncut);

        let mut files = Vec::new();
        let mut file = |kind: &str, part: &Extract| -> Result<GraphSpec, GraphError> {
            let stem = format!("{name}.{kind}");
            let path = format!("graphs/{stem}.onnx");
            files.push((path.clone(), onnx::write(&stem, &self.graph, part)?));
            let ports = |ids: &mut dyn Iterator<Item = Id>| ids.map(|id| self.port(id)).collect();
            let (inputs, outputs) = (ports(&mut part.inputs.iter().copied()), ports(&mut part.outputs.iter().copied()));
            Ok(GraphSpec { file: path, inputs, outputs })
        };
        let spec = StageSpec {
            forward: file("forward", &forward)?,
            backward: backward.as_ref().map(|part| file("backward", part)).transpose()?,
            backward_lowest: lowest.as_ref().map(|part| file("backward_lowest", part)).transpose()?,
            evaluate: file("evaluate", &evaluate)?,
        };
        Ok(CompiledStage { spec, files })
    }

    fn forward_values(&self) -> BTreeSet<Id> {
        self.graph.nodes().iter().flat_map(|node| node.outputs.iter().copied()).collect()
    }

    /// The gradients of the trainable tensors, then that of the stage's input where it has one.
    fn differentiate(&mut self, ending: Ending, result: Id) -> Result<Vec<Id>, GraphError> {
        let wanted: Vec<Id> = self.trainable.iter().copied().chain(self.hidden).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let seed = match ending {
            Ending::Loss { .. } => self.graph.constant(1.0),
            Ending::Hidden(_) => {
                let shape = self.graph.shape(result).clone();
                let seed = self.graph.input("hidden_gradient", DType::F32, shape);
                self.bindings.insert(seed, Binding::HiddenGradient);
                seed
            }
        };
        let gradients = gradient(&mut self.graph, result, seed, &wanted)?;
        for (&of, &gradient) in wanted.iter().zip(&gradients) {
            let binding = if let Binding::Trainable(tensor) = &self.bindings[&of] {
                Binding::Gradient(tensor.clone())
            } else {
                Binding::HiddenGradient
            };
            let name = format!("{}.gradient", self.graph.value(of).name);
            self.graph.rename(gradient, &name);
            self.bindings.insert(gradient, binding);
        }
        Ok(gradients)
    }

    fn port(&self, id: Id) -> Port {
        let value = self.graph.value(id);
        let binding = self.bindings.get(&id).cloned().expect("every port of a stage was bound when it was made");
        Port { name: value.name.clone(), binding, shape: value.shape.iter().map(ToString::to_string).collect() }
    }
}
