//! The contract between a pack and the program that runs it: graph files, their inputs and outputs, and the meaning of each.

use crate::graph::DType;
use serde::{Deserialize, Serialize};

/// Meaning of a graph file's input or output. `{layer}` in a tensor's name stands for the layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// The activations that flow from stage to stage, `[T, D]`.
    Hidden,
    /// The gradient of the loss with respect to these activations.
    HiddenGradient,
    /// A part of the batch.
    Batch(BatchPart),
    /// A frozen tensor, by its name in `frozen.safetensors`.
    Frozen(String),
    /// A trainable tensor, by its name in `peft.safetensors`.
    Trainable(String),
    /// The gradient of a trainable tensor.
    Gradient(String),
    /// A value with this name, carried from the forward to the backward graph of the same stage and layer.
    Residual(String),
    /// A value with this name, which the `embed` stage computes once for a batch and the blocks read.
    Context(String),
    /// Scores, `[B, C]` or `[T, C]`.
    Logits,
    /// The loss, a scalar.
    Loss,
}

impl Binding {
    /// Returns the name of the frozen tensor, if the binding is one.
    #[must_use]
    pub fn frozen(&self) -> Option<&str> {
        if let Self::Frozen(name) = self { Some(name) } else { None }
    }

    /// Returns the name of the trainable tensor, if the binding is such a tensor or its gradient.
    #[must_use]
    pub fn trained(&self) -> Option<&str> {
        if let Self::Trainable(name) | Self::Gradient(name) = self { Some(name) } else { None }
    }
}

/// Returns a tensor's name for `layer`.
#[must_use]
pub fn of_layer(template: &str, layer: usize) -> String {
    template.replace("{layer}", &layer.to_string())
}

/// The parts of a batch of `B` examples with `T` tokens in all, padded to `S` tokens only inside attention.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchPart {
    /// `[T]` i64: vocabulary indices.
    InputIds,
    /// `[T]` i64: segment of each token.
    TokenTypeIds,
    /// `[T]` i64: place of each token in its example, counted from the layout's first position.
    PositionIds,
    /// `[B, h, S]` i64: index in `[T*h, d]` of each query head's part of a token.
    ToHeads,
    /// `[T, h]` i64: the inverse of `ToHeads`, an index in `[B*h*S, d]`.
    ToTokens,
    /// `[B, k, S]` i64: the same as `ToHeads` for key heads, if there are fewer.
    ToKeyHeads,
    /// `[T, k]` i64: the inverse of `ToKeyHeads`.
    ToKeyTokens,
    /// `[B, S]` i64: the same as `ToHeads` for whole tokens, an index in `[T, D]`.
    ToSlots,
    /// `[T]` i64: the inverse of `ToSlots`, an index in `[B*S, D]`.
    FromSlots,
    /// `[B, S, 1]` f32: 1 for a token, 0 for padding.
    SlotMask,
    /// `[B, 1, 1, S]` f32: 0 for a token, a large negative number for padding.
    KeyBias,
    /// `[S, S]` f32: a large negative number if the key (column) is after the query (row), otherwise 0.
    CausalBias,
    /// `[S, S]` f32: same as `CausalBias`, but with the large negative number also for keys before the layout's window.
    WindowBias,
    /// `[2*S]` i64: element `c` is the relative embedding's row for a query `S - 1 - c` tokens after its key.
    KeyDistances,
    /// `[2*S]` i64: element `c` is the relative embedding's row for a query `c - (S - 1)` tokens after its key.
    QueryDistances,
    /// `[B]` i64: the first token of each example.
    FirstTokens,
    /// `[B]` i64: the last token of each example.
    LastTokens,
    /// `[B, C]` or `[T, C]` f32. Classes: their weights in the loss, which sum to 1 over the batch. Regression: the numbers.
    Targets,
    /// `[B, 1]` f32: the weight of each squared error, `1 / (B C)`.
    ExampleWeights,
    /// `[T]` i64: the vocabulary index of the next token, which the model predicts; 0 if it does not count.
    NextTokens,
    /// `[T, 1]` f32: weight of the next token in the loss; all weights of a batch sum to 1.
    TokenWeights,
}

impl BatchPart {
    /// Returns the part's element type.
    #[must_use]
    pub const fn dtype(self) -> DType {
        match self {
            Self::SlotMask
            | Self::KeyBias
            | Self::CausalBias
            | Self::WindowBias
            | Self::Targets
            | Self::ExampleWeights
            | Self::TokenWeights => DType::F32,
            Self::InputIds
            | Self::TokenTypeIds
            | Self::PositionIds
            | Self::ToHeads
            | Self::ToTokens
            | Self::ToKeyHeads
            | Self::ToKeyTokens
            | Self::ToSlots
            | Self::FromSlots
            | Self::KeyDistances
            | Self::QueryDistances
            | Self::FirstTokens
            | Self::LastTokens
            | Self::NextTokens => DType::I64,
        }
    }
}

/// One input or output of a graph file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Name of the port in the file.
    pub name: String,
    /// Value that is bound to the port.
    pub binding: Binding,
    /// Element type of the port.
    pub dtype: DType,
    /// Dimensions of the port, as numbers and letters.
    pub shape: Vec<String>,
}

/// A graph file: its path, its inputs and its outputs, in the order of the file.
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
    /// The graph that computes the result and the residuals.
    pub forward: GraphSpec,
    /// Gradients of the stage's trainable tensors and of its input; absent if the stage has neither.
    pub backward: Option<GraphSpec>,
    /// `backward` without the gradient of the input, for the lowest layer that trains; absent if it equals `backward`.
    pub backward_lowest: Option<GraphSpec>,
    /// The graph that computes only the result.
    pub evaluate: GraphSpec,
    /// `forward` and its gradients with the large residuals in half precision; only blocks of fused operators have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half: Option<HalfSpec>,
}

/// Graph files of a stage with residuals in half precision.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HalfSpec {
    /// Same as [`StageSpec::forward`].
    pub forward: GraphSpec,
    /// Same as [`StageSpec::backward`].
    pub backward: GraphSpec,
    /// Same as [`StageSpec::backward_lowest`].
    pub backward_lowest: Option<GraphSpec>,
}

impl StageSpec {
    /// Returns the graph files that exist.
    pub fn graphs(&self) -> impl Iterator<Item = &GraphSpec> {
        let whole = [Some(&self.forward), self.backward.as_ref(), self.backward_lowest.as_ref(), Some(&self.evaluate)];
        let half = self.half.iter();
        let half = half.flat_map(|half| [Some(&half.forward), Some(&half.backward), half.backward_lowest.as_ref()]);
        whole.into_iter().chain(half).flatten()
    }
}

/// The graph files of a model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpecs {
    /// Stage from tokens to activations, and the values that all blocks read.
    pub embed: StageSpec,
    /// One stage for each kind of layer.
    pub blocks: Vec<StageSpec>,
    /// Index in `blocks` of each layer's kind.
    pub kinds: Vec<usize>,
    /// Stage from activations to scores and loss.
    pub head: StageSpec,
    /// Like `blocks`, but for the highest layer that runs, if the head reads only one row of each example. The layer computes no
    /// other row, and the activations are `[B, D]`. Empty if the head reads more rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_blocks: Vec<StageSpec>,
}

impl StageSpecs {
    /// Returns all stages.
    pub fn all(&self) -> impl Iterator<Item = &StageSpec> {
        [&self.embed, &self.head].into_iter().chain(&self.blocks).chain(&self.last_blocks)
    }
}
