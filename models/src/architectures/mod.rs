//! Models as formulas: each architecture describes its stages with the graph's operators.
//!
//! - [`bert`]: BERT, RoBERTa, XLM-R
//! - [`deberta`]: DeBERTa v2 and v3
//! - [`decoder`]: Llama, Mistral, Qwen2, Qwen3
//! - [`rotary`]: the angles of rotary positions and their scalings
//! - [`attention`], [`heads`]: the parts that several of them share
//!
//! Training settings in a checkpoint's `config.json` are not used. No part of a model drops features at random
//! (`hidden_dropout_prob`, `attention_probs_dropout_prob`, `attention_dropout`, `classifier_dropout`, `pooler_dropout`).
//! First values come from [`crate::peft::draw`] instead of `initializer_range`.
//!
//! `pad_token_id` matters only for RoBERTa and XLM-R, whose positions begin after it. In other encoders it only names the row of
//! the embedding that was zero before the original training.
//!
//! A decoder classifies by the last token of a text. Rows have no padding here, so this is the last token of each example.
//! transformers searches padded rows for the last token that is not `pad_token_id`. The results differ if a text itself ends in
//! the padding token, for example because the end token is also the padding token. Transformers then takes the token before it.

mod attention;
pub mod bert;
mod config;
pub mod deberta;
pub mod decoder;
mod heads;
pub mod rotary;

pub use config::ConfigError;

use crate::graph::{Dim, GraphError, Id, Shape};
use crate::layout::Layout;
use crate::peft::{Linears, Peft};
use crate::stage::{BatchPart, Ending, Stage};
use crate::task::Task;
use bert::Bert;
use deberta::Deberta;
use decoder::Decoder;
use serde::{Deserialize, Serialize};

/// Supported values of `model_type` in a checkpoint's `config.json`.
pub const SUPPORTED: [&str; 8] = ["bert", "roberta", "xlm-roberta", "deberta-v2", "llama", "mistral", "qwen2", "qwen3"];

/// A model: its architecture and sizes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
pub enum Model {
    /// BERT, RoBERTa, XLM-R.
    Bert(Bert),
    /// DeBERTa v2 and v3.
    Deberta(Deberta),
    /// Llama, Mistral, Qwen2 and Qwen3.
    Decoder(Decoder),
}

/// The usual sizes for a description of a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Blocks, `L`.
    pub layers: usize,
    /// Features of a token, `D`.
    pub hidden: usize,
    /// Query heads, `h`.
    pub heads: usize,
    /// Inner features of the feed-forward part.
    pub intermediate: usize,
    /// Rows of the word embedding.
    pub vocabulary: usize,
}

impl Model {
    /// Reads a checkpoint's `config.json`. Ignores unknown keys, and refuses unsupported settings that change the computation.
    ///
    /// # Errors
    /// A `model_type` that is not [`SUPPORTED`], a key that is missing, malformed, out of bounds or not supported.
    pub fn read(config: &serde_json::Value) -> Result<Self, ConfigError> {
        let found = config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or("(none)");
        if SUPPORTED.contains(&found) {
            config::refuse_unsupported(config)?;
        }
        let model = match found {
            "bert" | "roberta" | "xlm-roberta" => Self::Bert(Bert::read(config, found)?),
            "deberta-v2" => Self::Deberta(Deberta::read(config)?),
            "llama" | "mistral" | "qwen2" | "qwen3" => Self::Decoder(Decoder::read(config, found)?),
            _ => return Err(ConfigError::Architecture { found: found.to_owned() }),
        };
        match model.problem() {
            Some(what) => Err(ConfigError::Sizes { what }),
            None => Ok(model),
        }
    }

    /// Returns what is wrong with the sizes, if anything. The sizes come from files and determine how much memory is allocated.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Bert(model) => model.problem(),
            Self::Deberta(model) => model.problem(),
            Self::Decoder(model) => model.problem(),
        }
    }

    /// Returns the model's `model_type`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Bert(model) => model.family.name(),
            Self::Deberta(_) => "deberta-v2",
            Self::Decoder(model) => model.family.name(),
        }
    }

    /// Returns the model's sizes.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        match self {
            Self::Bert(model) => model.sizes(),
            Self::Deberta(model) => model.sizes(),
            Self::Decoder(model) => model.sizes(),
        }
    }

    /// Returns the prefix of the tensors' names, for example `bert.`; a checkpoint of the bare model lacks it.
    #[must_use]
    pub fn base(&self) -> &'static str {
        match self {
            Self::Bert(model) => model.family.base(),
            Self::Deberta(_) => "deberta.",
            Self::Decoder(_) => "model.",
        }
    }

    /// Returns the tasks for which the model can be tuned.
    #[must_use]
    pub fn tasks(&self) -> &'static [Task] {
        match self {
            Self::Bert(_) | Self::Deberta(_) => &Task::ALL[..3],
            Self::Decoder(_) => &Task::ALL,
        }
    }

    /// Returns the names of a block's linear layers. LoRA may target these and the [`Model::pooler`].
    #[must_use]
    pub fn linears(&self) -> Vec<&'static str> {
        match self {
            Self::Bert(_) => bert::LINEARS.to_vec(),
            Self::Deberta(model) => model.linears(),
            Self::Decoder(_) => decoder::LINEARS.to_vec(),
        }
    }

    /// Returns the default targets of LoRA: the linear layers of query and value.
    #[must_use]
    pub fn usual_targets(&self) -> [&'static str; 2] {
        match self {
            Self::Bert(_) => ["query", "value"],
            Self::Deberta(_) => ["query_proj", "value_proj"],
            Self::Decoder(_) => ["q_proj", "v_proj"],
        }
    }

    /// Returns the linear layer between the first token and the classifier, for tasks that have one and architectures whose
    /// checkpoints may lack it. A pack freezes the layer if the checkpoint has it, and trains it otherwise.
    #[must_use]
    pub fn pooler(&self, task: Task) -> Option<&'static str> {
        match self {
            _ if task.is_per_token() => None,
            Self::Bert(model) => model.family.pooler(),
            Self::Deberta(_) => Some("pooler.dense"),
            Self::Decoder(_) => None,
        }
    }

    /// Returns the name of the head's last layer, which has a row for each label; `None` for a language model.
    #[must_use]
    pub fn classifier(&self, task: Task) -> Option<&'static str> {
        match self {
            _ if task == Task::CausalLm => None,
            Self::Bert(model) => Some(model.family.classifier(task)),
            Self::Deberta(_) => Some("classifier"),
            Self::Decoder(_) => Some(decoder::CLASSIFIER),
        }
    }

    /// Returns true if `config.json` says that the word embedding also computes the scores of the next token.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        matches!(self, Self::Decoder(model) if model.tied)
    }

    /// Gives a decoder a separate table for the scores of the next token, whatever `config.json` says.
    pub fn untie(&mut self) {
        if let Self::Decoder(model) = self {
            model.tied = false;
        }
    }

    /// Returns the row of each example that the head reads, if it reads only one and the blocks can omit the others.
    #[must_use]
    pub fn read_row(&self, task: Task) -> Option<BatchPart> {
        match self {
            _ if task.is_per_token() => None,
            Self::Bert(_) => Some(BatchPart::FirstTokens),
            Self::Decoder(_) => Some(BatchPart::LastTokens),
            Self::Deberta(_) => None,
        }
    }

    /// Returns the model's properties that determine the form of a batch.
    #[must_use]
    pub fn layout(&self, task: Task, labels: usize) -> Layout {
        let vocabulary = self.sizes().vocabulary;
        let classes = if task == Task::CausalLm { vocabulary } else { labels };
        let heads = self.sizes().heads;
        let plain = Layout {
            task,
            classes,
            heads,
            key_heads: heads,
            vocabulary,
            segments: 0,
            first_position: 0,
            max_tokens: 0,
            window: None,
            relative: None,
        };
        match self {
            Self::Bert(model) => model.layout(plain),
            Self::Deberta(model) => model.layout(plain),
            Self::Decoder(model) => model.layout(plain),
        }
    }

    /// Builds the stage from tokens to activations, and the values that all blocks read.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn embed(&self, stage: &mut Stage<'_>) -> Result<Ending, GraphError> {
        let hidden = match self {
            Self::Bert(model) => model.embed(stage),
            Self::Deberta(model) => model.embed(stage),
            Self::Decoder(model) => model.embed(stage),
        };
        hidden.map(Ending::Hidden)
    }

    /// Returns the prefix of a block's tensors, which contains `{layer}`.
    #[must_use]
    pub fn block_prefix(&self) -> String {
        let rest = match self {
            Self::Bert(_) | Self::Deberta(_) => "encoder.layer.{layer}.",
            Self::Decoder(_) => "layers.{layer}.",
        };
        format!("{}{rest}", self.base())
    }

    /// Builds block `layer`.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn block(&self, stage: &mut Stage<'_>, layer: usize) -> Result<Ending, GraphError> {
        let hidden = match self {
            Self::Bert(model) => model.block(stage),
            Self::Deberta(model) => model.block(stage, layer),
            Self::Decoder(model) => model.block(stage, layer),
        };
        hidden.map(Ending::Hidden)
    }

    /// Builds the stage from activations to scores and loss.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn head(&self, stage: &mut Stage<'_>, head: Head) -> Result<Ending, GraphError> {
        match self {
            Self::Bert(model) => model.head(stage, head),
            Self::Deberta(model) => model.head(stage, head),
            Self::Decoder(model) => model.head(stage, head),
        }
    }

    /// Returns true if the blocks have biases, which BitFit trains.
    #[must_use]
    pub fn has_biases(&self) -> bool {
        match self {
            Self::Bert(_) | Self::Deberta(_) => true,
            Self::Decoder(model) => model.attention_bias || model.mlp_bias,
        }
    }

    /// Returns the full names of the linear layers, except those of heads.
    #[must_use]
    pub fn linear_names(&self, task: Task) -> Vec<String> {
        let linears = self.linears();
        let blocks = (0..self.sizes().layers).map(|layer| self.block_prefix().replace("{layer}", &layer.to_string()));
        let in_blocks = blocks.flat_map(|block| linears.iter().map(move |linear| format!("{block}{linear}")));
        let others = self.pooler(task).into_iter().chain(self.unadapted().iter().copied());
        in_blocks.chain(others.map(str::to_owned)).collect()
    }

    /// Returns the full names of the linear layers that LoRA cannot target here.
    fn unadapted(&self) -> &'static [&'static str] {
        match self {
            Self::Deberta(model) if model.embedding != model.hidden => &[deberta::PROJECTION],
            Self::Deberta(_) | Self::Bert(_) | Self::Decoder(_) => &[],
        }
    }

    /// Returns the reason why this model cannot be tuned with the method, if there is one.
    #[must_use]
    pub fn peft_problem(&self, peft: &Peft) -> Option<String> {
        let (linears, layers) = (self.linears(), self.sizes().layers);
        let mut names = self.linear_names(Task::SequenceClassification);
        names.retain(|name| !self.unadapted().contains(&name.as_str()));
        let (of_heads, unadapted): (&[&str], _) = match self {
            Self::Bert(model) => (model.family.head_linears(), self.unadapted()),
            Self::Deberta(_) | Self::Decoder(_) => (&[], self.unadapted()),
        };
        let problem = peft.problem(&Linears { of_blocks: &linears, names, of_heads, unadapted }, layers);
        problem.or_else(|| {
            (matches!(peft, Peft::BitFit) && !self.has_biases())
                .then(|| format!("BitFit trains biases, and the blocks of this {} have none; use lora", self.name()))
        })
    }
}

/// The settings of a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The task.
    pub task: Task,
    /// Number of classes or numbers, `C`; ignored for a language model.
    pub labels: usize,
    /// Whether the pooler trains together with the head; see [`Model::pooler`].
    pub train_pooler: bool,
}

/// The activation functions of feed-forward parts and heads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `a Phi(a)`.
    Gelu,
    /// Approximation of `a Phi(a)` by a hyperbolic tangent.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `max(a, 0)`.
    Relu,
    /// `a / (1 + exp(-a))`.
    #[serde(alias = "swish")]
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Adds the activation to a graph.
    fn apply(self, stage: &mut Stage<'_>, a: Id) -> Result<Id, GraphError> {
        use crate::graph::Op;
        let g = &mut stage.graph;
        match self {
            Self::Gelu => g.op(Op::Gelu, &[a]),
            Self::Relu => g.op(Op::Relu, &[a]),
            Self::Tanh => g.op(Op::Tanh, &[a]),
            Self::Silu => {
                let gate = g.op(Op::Sigmoid, &[a])?;
                g.mul(a, gate)
            }
            // a/2 (1 + tanh(sqrt(2 / pi) (a + 0.044715 a^3))), Hendrycks and Gimpel, arXiv 1606.08415, section 2
            Self::GeluNew => {
                let square = g.mul(a, a)?;
                let bent = g.scale(square, 0.044_715)?;
                let one = g.constant(1.0);
                let factor = g.add(bent, one)?;
                let inner = g.mul(a, factor)?;
                let scaled = g.scale(inner, (2.0 / std::f32::consts::PI).sqrt())?;
                let tanh = g.op(Op::Tanh, &[scaled])?;
                let raised = g.add(tanh, one)?;
                let half = g.scale(a, 0.5)?;
                g.mul(half, raised)
            }
        }
    }
}

/// A dimension in a formula: a number or a letter.
trait Letter {
    fn dim(&self) -> Dim;
}

impl Letter for usize {
    fn dim(&self) -> Dim {
        Dim::fixed(*self)
    }
}

impl Letter for &str {
    fn dim(&self) -> Dim {
        Dim::symbol(self)
    }
}

impl Letter for Dim {
    fn dim(&self) -> Dim {
        self.clone()
    }
}

fn shape<const N: usize>(dims: [&dyn Letter; N]) -> Shape {
    dims.into_iter().map(Letter::dim).collect()
}
