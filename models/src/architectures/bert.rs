//! BERT (Devlin et al., arXiv 1810.04805), RoBERTa (Liu et al., arXiv 1907.11692) and XLM-R (Conneau et al., arXiv
//! 1911.02116), in the post-norm form of their releases.
//!
//! Rows are tokens: `T` of them for a whole batch, without padding. Only attention rearranges them to `[B, h, S, d]`, by indices
//! from the batch.

use super::attention::{Attending, Sees};
use super::config::{
    ConfigError, MAX_HEADS, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_POSITIONS, MAX_SEGMENTS, MAX_VOCABULARY,
    bad_epsilon, keys, null_or, out_of_bounds,
};
use super::{Activation, Head, Sizes, heads, shape};
use crate::graph::{GraphError, Id};
use crate::layout::Layout;
use crate::stage::{BatchPart, Bias, Ending, Stage};
use crate::task::Task;
use serde::{Deserialize, Serialize};

/// The sizes that define a model of this family.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bert {
    /// The member of the family.
    pub family: Family,
    /// Blocks, `L`.
    pub layers: usize,
    /// Features of a token, `D`.
    pub hidden: usize,
    /// Attention heads, `h`; divides `D`.
    pub heads: usize,
    /// Inner features of the feed-forward part, `I`.
    pub intermediate: usize,
    /// Rows of the word embedding.
    pub vocabulary: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    /// Rows of the segment embedding.
    pub segments: usize,
    /// Position of an example's first token.
    pub first_position: usize,
    /// Number added to the variance in layer norms.
    pub norm_epsilon: f32,
    /// Activation of the feed-forward part.
    pub activation: Activation,
}

/// Member of the family. Members differ in names, in positions and in the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// BERT.
    Bert,
    /// RoBERTa.
    Roberta,
    /// XLM-R.
    XlmRoberta,
}

impl Family {
    /// Returns `model_type` in `config.json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    pub(super) const fn base(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::Roberta | Self::XlmRoberta => "roberta.",
        }
    }

    pub(super) const fn pooler(self) -> Option<&'static str> {
        match self {
            Self::Bert => Some("bert.pooler.dense"),
            Self::Roberta | Self::XlmRoberta => None,
        }
    }

    /// Returns the name of the head's last layer.
    pub(super) const fn classifier(self, task: Task) -> &'static str {
        match (self, task) {
            (Self::Bert, _) | (_, Task::TokenClassification) => "classifier",
            (Self::Roberta | Self::XlmRoberta, _) => "classifier.out_proj",
        }
    }

    /// Returns the linear layers of the head for sequences, if it has more than one. PEFT counts them among the targets in that
    /// case.
    pub(super) const fn head_linears(self) -> &'static [&'static str] {
        match self {
            Self::Bert => &[],
            Self::Roberta | Self::XlmRoberta => &["classifier.dense", "classifier.out_proj"],
        }
    }
}

/// The linear layers of a block.
pub(super) const LINEARS: [&str; 6] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
];

/// The keys of `config.json`, with the defaults of transformers.
#[derive(Deserialize)]
struct Keys {
    num_hidden_layers: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "usual_epsilon")]
    layer_norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    #[serde(default, deserialize_with = "null_or")]
    pad_token_id: Option<Option<i64>>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn two() -> usize {
    2
}

pub(super) fn usual_epsilon() -> f32 {
    1e-12
}

pub(super) fn gelu() -> Activation {
    Activation::Gelu
}

impl Bert {
    pub(super) fn read(config: &serde_json::Value, model_type: &str) -> Result<Self, ConfigError> {
        let keys: Keys = keys(config)?;
        let family = match model_type {
            "bert" => Family::Bert,
            "roberta" => Family::Roberta,
            _ => Family::XlmRoberta,
        };
        if let Some(found) = keys.position_embedding_type.clone().filter(|kind| kind != "absolute") {
            return Err(ConfigError::Setting { key: "position_embedding_type", found, supported: "absolute" });
        }
        if keys.is_decoder {
            return Err(ConfigError::Setting { key: "is_decoder", found: "true".to_owned(), supported: "false" });
        }
        let first_position = if family == Family::Bert { 0 } else { keys.position_after_padding()? };
        Ok(Self {
            family,
            layers: keys.num_hidden_layers,
            hidden: keys.hidden_size,
            heads: keys.num_attention_heads,
            intermediate: keys.intermediate_size,
            vocabulary: keys.vocab_size,
            positions: keys.max_position_embeddings,
            segments: keys.type_vocab_size,
            first_position,
            norm_epsilon: keys.layer_norm_eps,
            activation: keys.hidden_act,
        })
    }

    pub(super) fn problem(&self) -> Option<String> {
        let bounds = [
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("hidden_size", self.hidden, MAX_HIDDEN),
            ("num_attention_heads", self.heads, MAX_HEADS),
            ("intermediate_size", self.intermediate, MAX_INTERMEDIATE),
            ("vocab_size", self.vocabulary, MAX_VOCABULARY),
            ("max_position_embeddings", self.positions, MAX_POSITIONS),
            ("type_vocab_size", self.segments, MAX_SEGMENTS),
        ];
        let problem = out_of_bounds(&bounds).or_else(|| bad_epsilon("layer_norm_eps", self.norm_epsilon));
        problem.or_else(|| {
            if !self.hidden.is_multiple_of(self.heads) {
                return Some(format!("{} heads do not divide hidden_size {}", self.heads, self.hidden));
            }
            (self.first_position >= self.positions).then(|| {
                format!("max_position_embeddings is {}, but positions begin at {}", self.positions, self.first_position)
            })
        })
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            intermediate: self.intermediate,
            vocabulary: self.vocabulary,
        }
    }

    pub(super) fn layout(&self, plain: Layout) -> Layout {
        let (segments, first_position) = (self.segments, self.first_position);
        Layout { segments, first_position, max_tokens: self.positions - first_position, ..plain }
    }

    /// Builds `h = LayerNorm(W[id] + P[position] + S[segment])`.
    pub(super) fn embed(&self, stage: &mut Stage<'_>) -> Result<Id, GraphError> {
        let mut row = |part, index: &str, table: &str, size| {
            let index = stage.batch(part, index, shape([&"T"]));
            stage.rows(&format!("embeddings.{table}_embeddings.weight"), [size, self.hidden], index)
        };
        let words = row(BatchPart::InputIds, "input_ids", "word", self.vocabulary)?;
        let positions = row(BatchPart::PositionIds, "position_ids", "position", self.positions)?;
        let segments = row(BatchPart::TokenTypeIds, "token_type_ids", "token_type", self.segments)?;
        let sum = stage.graph.add(words, positions)?;
        let sum = stage.graph.add(sum, segments)?;
        stage.layer_norm("embeddings.LayerNorm", sum, self.hidden, self.norm_epsilon)
    }

    /// Builds `a = LayerNorm(x + W_o attention(x))`, `y = LayerNorm(a + W_2 gelu(W_1 a))`.
    pub(super) fn block(&self, stage: &mut Stage<'_>) -> Result<Id, GraphError> {
        let x = stage.hidden(shape([&"T", &self.hidden]));
        let (computed, places) = stage.computed_rows(x)?;
        let mut project = |name: &str, rows| {
            stage.linear(&format!("attention.self.{name}"), rows, [self.hidden, self.hidden], Bias::Yes)
        };
        let rows = [project("query", computed)?, project("key", x)?, project("value", x)?];
        let size = self.hidden / self.heads;
        let attending = Attending { heads: self.heads, key_heads: self.heads, size, sees: Sees::All };
        let context = attending.apply(stage, rows, places)?;
        PostNorm { hidden: self.hidden, intermediate: self.intermediate, epsilon: self.norm_epsilon }.apply(
            stage,
            computed,
            context,
            self.activation,
        )
    }

    /// Builds `logits = W_c tanh(W_p h_first + b_p) + b_c`; for tokens `W_c h + b_c`. BERT's `W_p` is the pooler. The other
    /// members have `classifier.dense` instead, which trains.
    pub(super) fn head(&self, stage: &mut Stage<'_>, head: Head) -> Result<Ending, GraphError> {
        let hidden = stage.hidden(shape([&"T", &self.hidden]));
        let classify = |stage: &mut Stage<'_>, x| {
            stage.trained_linear(self.family.classifier(head.task), x, [self.hidden, head.labels], Bias::Yes)
        };
        let logits = if head.task == Task::TokenClassification {
            classify(stage, hidden)?
        } else {
            let first = heads::first_rows(stage, hidden)?;
            match self.family.pooler() {
                Some(pooler) => {
                    let pooled = heads::pool(stage, pooler, first, self.hidden, Activation::Tanh, head)?;
                    classify(stage, pooled)?
                }
                None => {
                    let of_head = Head { train_pooler: true, ..head };
                    let dense = "classifier.dense";
                    let pooled = heads::pool(stage, dense, first, self.hidden, Activation::Tanh, of_head)?;
                    classify(stage, pooled)?
                }
            }
        };
        heads::loss(stage, logits, head)
    }
}

impl Keys {
    /// Returns the first position of RoBERTa and XLM-R, which follows the padding token's position.
    fn position_after_padding(&self) -> Result<usize, ConfigError> {
        let id = self.pad_token_id.unwrap_or(Some(1));
        let position = id.and_then(|id| usize::try_from(id.checked_add(1)?).ok());
        position.ok_or_else(|| ConfigError::Setting {
            key: "pad_token_id",
            found: id.map_or_else(|| "null".to_owned(), |id| id.to_string()),
            supported: "the number of a token; positions begin after it",
        })
    }
}

/// The part of a post-norm block that follows attention.
pub(super) struct PostNorm {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) epsilon: f32,
}

impl PostNorm {
    /// Builds `a = LayerNorm(x + W_o context)`, `y = LayerNorm(a + W_2 f(W_1 a))`.
    pub(super) fn apply(
        &self,
        stage: &mut Stage<'_>,
        x: Id,
        context: Id,
        activation: Activation,
    ) -> Result<Id, GraphError> {
        let (d, i) = (self.hidden, self.intermediate);
        let projected = stage.linear_before_sum("attention.output.dense", context, [d, d], Bias::Yes)?;
        let attended = stage.graph.add(projected, x)?;
        stage.graph.rename(attended, "attended");
        let a = stage.layer_norm("attention.output.LayerNorm", attended, d, self.epsilon)?;
        let wide = stage.linear("intermediate.dense", a, [d, i], Bias::Yes)?;
        stage.graph.rename(wide, "feed_forward");
        let activated = activation.apply(stage, wide)?;
        let narrow = stage.linear_before_sum("output.dense", activated, [i, d], Bias::Yes)?;
        let summed = stage.graph.add(narrow, a)?;
        stage.graph.rename(summed, "summed");
        stage.layer_norm("output.LayerNorm", summed, d, self.epsilon)
    }
}
