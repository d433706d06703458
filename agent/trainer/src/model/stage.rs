//! The sessions of one stage: an embedding, a kind of block, or the head.

use super::graph::{Graph, Scope};
use crate::error::TrainerError;
use crate::runtime::Runtime;
use skiff_models::memory::Policy;
use skiff_models::stage::{Binding, GraphSpec, HalfSpec, Port, StageSpec};
use std::path::PathBuf;

pub(super) struct Stage {
    pub(super) passes: Passes,
    /// The same graphs, with kept values in half precision.
    pub(super) half: Option<Passes>,
    pub(super) evaluate: Graph,
    /// Whether the stage has trainable tensors.
    pub(super) trains: bool,
}

/// The graphs of the forward and the backward pass.
pub(super) struct Passes {
    pub(super) forward: Graph,
    pub(super) backward: Option<Graph>,
    pub(super) backward_lowest: Option<Graph>,
}

impl Stage {
    pub(super) fn open(
        runtime: &Runtime,
        file: &dyn Fn(&str) -> PathBuf,
        spec: &StageSpec,
        layers: &[usize],
        scope: &Scope<'_>,
        hidden_gradient: bool,
    ) -> Result<Self, TrainerError> {
        let graph = |spec: &GraphSpec, scope: &Scope<'_>| Graph::open(runtime, file(&spec.file), spec, layers, scope);
        let passes = |forward: &GraphSpec, backward: Option<&GraphSpec>, lowest: Option<&GraphSpec>| {
            let residuals =
                names(
                    &forward.outputs,
                    |binding| if let Binding::Residual(name) = binding { Some(name) } else { None },
                );
            let back = Scope { residuals: &residuals, hidden_gradient, ..*scope };
            let back = |spec: Option<&GraphSpec>| spec.map(|spec| graph(spec, &back)).transpose();
            Ok::<_, TrainerError>(Passes {
                forward: graph(forward, scope)?,
                backward: back(backward)?,
                backward_lowest: back(lowest)?,
            })
        };
        let half = |half: &HalfSpec| passes(&half.forward, Some(&half.backward), half.backward_lowest.as_ref());
        Ok(Self {
            passes: passes(&spec.forward, spec.backward.as_ref(), spec.backward_lowest.as_ref())?,
            half: spec.half.as_ref().map(half).transpose()?,
            evaluate: graph(&spec.evaluate, scope)?,
            trains: trains(spec),
        })
    }

    pub(super) fn passes(&mut self, policy: Policy) -> &mut Passes {
        match (policy, &mut self.half) {
            (Policy::Half, Some(half)) => half,
            (Policy::Keep | Policy::Half | Policy::Recompute, _) => &mut self.passes,
        }
    }
}

impl Passes {
    /// Returns the backward graph, without the gradient of the stage's input if it is not needed.
    pub(super) fn backward(&mut self, lowest: bool) -> Result<&mut Graph, TrainerError> {
        let shorter = if lowest { self.backward_lowest.as_mut() } else { None };
        let missing = || TrainerError::Stages { what: "a stage below which something trains has no derivative".into() };
        shorter.or(self.backward.as_mut()).ok_or_else(missing)
    }
}

/// Returns true if a stage has trainable tensors.
pub(super) fn trains(spec: &StageSpec) -> bool {
    let outputs = spec.backward.iter().flat_map(|graph| &graph.outputs);
    outputs.into_iter().any(|port| matches!(port.binding, Binding::Gradient(_)))
}

pub(super) fn names(ports: &[Port], name: impl Fn(&Binding) -> Option<&String>) -> Vec<String> {
    ports.iter().filter_map(|port| name(&port.binding)).cloned().collect()
}
