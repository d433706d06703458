//! Turns a built stage into graph files: differentiates it, cuts it, and writes the parts.

use super::build::Stage;
use super::ports::{Binding, GraphSpec, HalfSpec, Port, StageSpec};
use super::tensors::{FrozenTensor, TrainableTensor};
use crate::gradient::gradient;
use crate::graph::{DType, Extract, Graph, GraphError, Id, Op, Value};
use crate::lower::lower;
use crate::onnx;
use std::collections::{BTreeMap, BTreeSet};

/// Result of a stage.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// Activations for the next stage.
    Hidden(Id),
    /// The loss and its scores.
    Loss {
        /// Scalar.
        loss: Id,
        /// `[B, C]` or `[T, C]`.
        logits: Id,
    },
}

/// The graph files of a stage with their bytes, and the tensors that they read.
#[derive(Clone, PartialEq, Debug)]
pub struct CompiledStage {
    /// Names and ports of the files.
    pub spec: StageSpec,
    /// Path of each file in the pack, with its bytes.
    pub files: Vec<(String, Vec<u8>)>,
    /// Frozen tensors, in the order of their use.
    pub frozen: Vec<FrozenTensor>,
    /// Trainable tensors, in the order of their use.
    pub trainable: Vec<TrainableTensor>,
    /// The complete stage with its derivative.
    pub graph: Graph,
    /// The part of the stage in each file.
    pub cuts: Cuts,
    /// The parts with the large residuals in half precision, if the stage has that form.
    pub half: Option<(Graph, Cuts)>,
}

/// The parts of a stage's graph, by file.
#[derive(Clone, PartialEq, Debug)]
pub struct Cuts {
    /// The part that computes the result and the residuals.
    pub forward: Extract,
    /// The part that computes the gradients.
    pub backward: Option<Extract>,
    /// The part that computes only the result.
    pub evaluate: Extract,
}

/// Parts of a stage's graph while it is cut.
struct Passes {
    forward: Extract,
    backward: Option<Extract>,
    lowest: Option<Extract>,
}

/// An activation in half precision, and the same value widened again.
#[derive(Clone, Copy)]
struct Halved {
    narrow: Id,
    widened: Id,
}

/// The result of a stage, as values of its graph.
struct Ends {
    /// The value to differentiate.
    result: Id,
    /// Outputs of `evaluate`.
    evaluated: Vec<Id>,
    /// Outputs of `forward`, without residuals.
    flowing: Vec<Id>,
}

/// A stage with its derivative.
struct Derived {
    /// Outputs of `forward`, without residuals.
    flowing: Vec<Id>,
    /// Values that the stage itself computes.
    computed: BTreeSet<Id>,
    /// Outputs of `backward`.
    gradients: Vec<Id>,
    /// Position of the derivative's first node.
    first_gradient: usize,
}

/// The files of [`Passes`].
struct PassFiles {
    forward: GraphSpec,
    backward: Option<GraphSpec>,
    lowest: Option<GraphSpec>,
}

/// Paths and bytes.
type Files = Vec<(String, Vec<u8>)>;

impl Stage<'_> {
    /// Differentiates the stage and cuts its files, with the names `graphs/{stem}.….onnx`.
    ///
    /// # Errors
    /// A stage that cannot be differentiated or written.
    pub fn compile(mut self, stem: &str, ending: Ending) -> Result<CompiledStage, GraphError> {
        let Ends { result, evaluated, flowing } = self.bind_ends(ending);
        let computed = self.forward_values();
        // Made before the gradient's nodes, which read these values in one variant of the graph.
        let halves = self.halves(ending, &computed)?;
        let first_gradient = self.graph.nodes().len();
        let gradients = self.differentiate(ending, result)?;
        let derived = Derived { flowing, computed, gradients, first_gradient };
        let evaluate = self.graph.extract(&evaluated, &BTreeSet::new());

        let mut files = Files::new();
        let whole = self.passes(&derived);
        let PassFiles { forward, backward, lowest } = self.pass_files(stem, &whole, &mut files)?;
        // Until here, scores for the backward graph were a residual.
        if let Ending::Loss { logits, .. } = ending {
            self.bindings.insert(logits, Binding::Logits);
        }
        let evaluate_file = self.file(stem, "evaluate", &evaluate, &mut files)?;
        let mut spec = StageSpec { forward, backward, backward_lowest: lowest, evaluate: evaluate_file, half: None };
        let cuts = Cuts { forward: whole.forward, backward: whole.backward, evaluate };
        let graph = self.graph.clone();
        let mut half = None;
        if !halves.is_empty() && cuts.backward.is_some() {
            let passes = self.half_passes(derived, &halves);
            let PassFiles { forward, backward, lowest } =
                self.pass_files(&format!("{stem}.half"), &passes, &mut files)?;
            spec.half = backward.map(|backward| HalfSpec { forward, backward, backward_lowest: lowest });
            let cuts = Cuts { forward: passes.forward, backward: passes.backward, evaluate: cuts.evaluate.clone() };
            half = Some((self.graph, cuts));
        }
        let trainable = self.trainable.into_iter().map(|(_, tensor)| tensor).collect();
        Ok(CompiledStage { spec, files, frozen: self.frozen, trainable, graph, cuts, half })
    }

    /// Names the results and binds them to ports.
    fn bind_ends(&mut self, ending: Ending) -> Ends {
        match ending {
            Ending::Hidden(hidden) => {
                self.graph.rename(hidden, "hidden_out");
                self.bindings.insert(hidden, Binding::Hidden);
                let outputs = [vec![hidden], self.contexts.clone()].concat();
                Ends { result: hidden, evaluated: outputs.clone(), flowing: outputs }
            }
            Ending::Loss { loss, logits } => {
                self.graph.rename(loss, "loss");
                self.graph.rename(logits, "logits");
                self.bindings.insert(loss, Binding::Loss);
                Ends { result: loss, evaluated: vec![logits], flowing: vec![loss] }
            }
        }
    }

    /// Lets the derivative read activations in half precision, and cuts it again.
    fn half_passes(&mut self, mut derived: Derived, halves: &BTreeMap<Id, Halved>) -> Passes {
        self.graph.redirect(derived.first_gradient, &|node, operand| {
            let (own, direct) = (halves.get(&node.inputs[operand])?, node.op.halves());
            let all = node.inputs[direct.clone()].iter().all(|id| halves.contains_key(id));
            Some(if all && direct.contains(&operand) { own.narrow } else { own.widened })
        });
        derived.computed.extend(halves.values().map(|half| half.narrow));
        self.passes(&derived)
    }

    /// Cuts the forward from the backward pass. The computed values that both need are carried over.
    fn passes(&mut self, derived: &Derived) -> Passes {
        let Derived { flowing, computed, gradients, .. } = derived;
        let cut: BTreeSet<Id> = computed.iter().filter(|id| !self.is_done_again(**id)).copied().collect();
        let backward = (!gradients.is_empty()).then(|| self.graph.extract(gradients, &cut));
        let of_trainables = &gradients[..self.trainable.len()];
        let lowest = (!of_trainables.is_empty() && of_trainables.len() < gradients.len())
            .then(|| self.graph.extract(of_trainables, &cut));
        let residuals: Vec<Id> =
            backward.iter().flat_map(|part| part.inputs.iter()).filter(|id| computed.contains(id)).copied().collect();
        for &id in &residuals {
            let name = self.graph.value(id).name.clone();
            self.bindings.entry(id).or_insert(Binding::Residual(name));
        }
        let forward = self.graph.extract(&[flowing.as_slice(), &residuals].concat(), &BTreeSet::new());
        Passes { forward, backward, lowest }
    }

    /// Adds each activation of a fused block in half precision, and the same value widened again. Statistics of rows stay in
    /// full precision: they would save little, and their rounding would change whole rows.
    fn halves(&mut self, ending: Ending, computed: &BTreeSet<Id>) -> Result<BTreeMap<Id, Halved>, GraphError> {
        const NARROWEST: usize = 16;
        let block = self.layer.is_some() && self.only.is_none() && matches!(ending, Ending::Hidden(_));
        if !block || !self.fused {
            return Ok(BTreeMap::new());
        }
        let large = |value: &Value| {
            let [first, .., last] = value.shape.as_slice() else { return false };
            let wide = last.known().map_or(value.shape.len() > 2, |size| size >= NARROWEST);
            value.dtype == DType::F32 && first.known().is_none() && wide
        };
        let mut halves = BTreeMap::new();
        for &id in computed {
            let value = self.graph.value(id);
            if !large(value) {
                continue;
            }
            let name = value.name.clone();
            let narrow = self.graph.op(Op::Narrow, &[id])?;
            let widened = self.graph.op(Op::Cast, &[narrow])?;
            self.graph.rename(narrow, &format!("{name}.half"));
            halves.insert(id, Halved { narrow, widened });
        }
        Ok(halves)
    }

    /// Writes one file of the stage.
    fn file(&self, stem: &str, kind: &str, part: &Extract, files: &mut Files) -> Result<GraphSpec, GraphError> {
        let stem = format!("{stem}.{kind}");
        let path = format!("graphs/{stem}.onnx");
        files.push((path.clone(), onnx::write(&stem, &self.graph, part)?));
        let ports = |ids: &mut dyn Iterator<Item = Id>| ids.map(|id| self.port(id)).collect();
        let (inputs, outputs) = (ports(&mut part.inputs.iter().copied()), ports(&mut part.outputs.iter().copied()));
        Ok(GraphSpec { file: path, inputs, outputs })
    }

    fn pass_files(&self, stem: &str, passes: &Passes, files: &mut Files) -> Result<PassFiles, GraphError> {
        let forward = self.file(stem, "forward", &passes.forward, files)?;
        let mut optional =
            |kind: &str, part: Option<&Extract>| part.map(|part| self.file(stem, kind, part, files)).transpose();
        let backward = optional("backward", passes.backward.as_ref())?;
        let lowest = optional("backward_lowest", passes.lowest.as_ref())?;
        Ok(PassFiles { forward, backward, lowest })
    }

    fn forward_values(&self) -> BTreeSet<Id> {
        self.graph.nodes().iter().flat_map(|node| node.outputs.iter().copied()).collect()
    }

    /// Returns true if it is cheaper for the backward graph to compute a value again than to carry it over.
    fn is_done_again(&self, id: Id) -> bool {
        let again = |op: &Op| matches!(op, Op::Permute(_) | Op::Reshape(_) | Op::Cast | Op::Dequantize);
        self.graph.producer(id).is_some_and(|node| again(&node.op))
    }

    /// Appends the gradients of the trainable tensors, then the gradient of the stage's input if it has one.
    fn differentiate(&mut self, ending: Ending, result: Id) -> Result<Vec<Id>, GraphError> {
        let wanted: Vec<Id> = self.trainable.iter().map(|(id, _)| *id).chain(self.hidden).collect();
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
        let mut gradients = gradient(&mut self.graph, result, seed, &wanted)?;
        if !self.fused {
            (self.graph, gradients) = lower(&self.graph, &gradients)?;
        }
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
        let shape = value.shape.iter().map(ToString::to_string).collect();
        Port { name: value.name.clone(), binding, dtype: value.dtype, shape }
    }
}
