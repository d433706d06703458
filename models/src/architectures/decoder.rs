//! Llama (Touvron et al., arXiv 2302.13971 and later), Mistral (Jiang et al., arXiv 2310.06825), Qwen2 and Qwen3 (arXiv
//! 2407.10671, 2505.09388).
//!
//! They are pre-norm decoders with rotary positions, shared key heads and a gated feed-forward part.

use super::attention::{Attending, Sees};
use super::config::{
    ConfigError, MAX_HEADS, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, bad_epsilon, keys,
    null_or, out_of_bounds,
};
use super::rotary::Rotary;
use super::{Activation, Head, Sizes, heads, shape};
use crate::graph::{GraphError, Id, Op, Shape};
use crate::layout::Layout;
use crate::stage::{BatchPart, Bias, Ending, Stage};
use crate::task::Task;
use serde::{Deserialize, Serialize};

/// The sizes that define a decoder.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoder {
    /// The member of the family.
    pub family: Family,
    /// Blocks, `L`.
    pub layers: usize,
    /// Features of a token, `D`.
    pub hidden: usize,
    /// Query heads, `h`.
    pub heads: usize,
    /// Key and value heads, `k`; divides `h`.
    pub key_heads: usize,
    /// Features of a head, `d`; `h d` need not be `D`.
    pub head_size: usize,
    /// Inner features of the feed-forward part, `I`.
    pub intermediate: usize,
    /// Rows of the word embedding, `V`.
    pub vocabulary: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Number added to the mean square in norms.
    pub norm_epsilon: f32,
    /// The gate's activation.
    pub activation: Activation,
    /// Whether query, key and value layers have biases.
    pub attention_bias: bool,
    /// Whether the attention's output layer has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward layers have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised, head by head.
    pub head_norms: bool,
    /// Whether the word embedding also computes the scores of the next token.
    pub tied: bool,
    /// Rule for the angles of positions.
    pub rotary: Rotary,
    /// Number of tokens that a token sees in layers with a sliding window, including itself.
    pub window: Option<usize>,
    /// The layers with a sliding window.
    pub windowed: Vec<usize>,
}

/// Member of the family. The other fields of [`Decoder`] hold all other differences.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and 2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
}

impl Family {
    /// Returns `model_type` in `config.json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// The linear layers of a block.
pub(super) const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The keys of `config.json`, with the defaults of transformers.
#[derive(Deserialize)]
struct Keys {
    num_hidden_layers: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    #[serde(default, deserialize_with = "null_or")]
    num_key_value_heads: Option<Option<usize>>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    #[serde(default = "usual_epsilon")]
    rms_norm_eps: f32,
    #[serde(default = "silu")]
    hidden_act: Activation,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "usual_window")]
    sliding_window: Option<usize>,
    #[serde(default = "usual_window_layers")]
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
}

fn usual_epsilon() -> f32 {
    1e-6
}

fn silu() -> Activation {
    Activation::Silu
}

fn usual_window() -> Option<usize> {
    Some(4096)
}

fn usual_window_layers() -> usize {
    28
}

impl Decoder {
    pub(super) fn read(config: &serde_json::Value, model_type: &str) -> Result<Self, ConfigError> {
        let keys: Keys = keys(config)?;
        // Checked before any list of this length is made.
        if let Some(what) = out_of_bounds(&[("num_hidden_layers", keys.num_hidden_layers, MAX_LAYERS)]) {
            return Err(ConfigError::Sizes { what });
        }
        let family = match model_type {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            _ => Family::Qwen3,
        };
        let bounds = [("num_hidden_layers", keys.num_hidden_layers, MAX_LAYERS)];
        if let Some(what) = out_of_bounds(&bounds) {
            return Err(ConfigError::Sizes { what });
        }
        let positions = keys.max_position_embeddings.unwrap_or(match family {
            Family::Llama => 2048,
            Family::Mistral => 131_072,
            Family::Qwen2 | Family::Qwen3 => 32_768,
        });
        let (attention_bias, output_bias) = match family {
            Family::Qwen2 => (true, false),
            Family::Mistral => (false, false),
            Family::Llama | Family::Qwen3 => (keys.attention_bias, keys.attention_bias),
        };
        let window = match family {
            Family::Llama => None,
            Family::Mistral => keys.sliding_window,
            Family::Qwen2 | Family::Qwen3 => keys.sliding_window.filter(|_| keys.use_sliding_window),
        };
        let windowed = keys.windowed(family, window)?;
        let usual_head = if family == Family::Qwen3 { 128 } else { keys.hidden_size / keys.num_attention_heads.max(1) };
        Ok(Self {
            family,
            layers: keys.num_hidden_layers,
            hidden: keys.hidden_size,
            heads: keys.num_attention_heads,
            key_heads: keys.key_heads(family)?,
            head_size: keys.head_dim.unwrap_or(usual_head),
            intermediate: keys.intermediate_size,
            vocabulary: keys.vocab_size,
            positions,
            norm_epsilon: keys.rms_norm_eps,
            activation: keys.hidden_act,
            attention_bias,
            output_bias,
            mlp_bias: family == Family::Llama && keys.mlp_bias,
            head_norms: family == Family::Qwen3,
            tied: keys.tie_word_embeddings,
            rotary: Rotary::read(config, positions)?,
            window,
            windowed,
        })
    }

    pub(super) fn problem(&self) -> Option<String> {
        let bounds = [
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("hidden_size", self.hidden, MAX_HIDDEN),
            ("num_attention_heads", self.heads, MAX_HEADS),
            ("num_key_value_heads", self.key_heads, MAX_HEADS),
            ("head_dim", self.head_size, MAX_HIDDEN),
            ("intermediate_size", self.intermediate, MAX_INTERMEDIATE),
            ("vocab_size", self.vocabulary, MAX_VOCABULARY),
            ("max_position_embeddings", self.positions, MAX_POSITIONS),
            ("sliding_window", self.window.unwrap_or(1), usize::MAX),
        ];
        let problem = out_of_bounds(&bounds).or_else(|| bad_epsilon("rms_norm_eps", self.norm_epsilon));
        problem.or_else(|| self.rotary.problem(self.head_size)).or_else(|| {
            (!self.heads.is_multiple_of(self.key_heads)).then(|| {
                format!("num_key_value_heads {} does not divide num_attention_heads {}", self.key_heads, self.heads)
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
        let max_tokens = self.rotary.max_tokens(self.positions);
        Layout { key_heads: self.key_heads, max_tokens, window: self.window, ..plain }
    }

    /// Builds `h = W[id]`. Also offers cosine and sine of the positions' angles, `[T, 1, d]`, each frequency twice.
    pub(super) fn embed(&self, stage: &mut Stage<'_>) -> Result<Id, GraphError> {
        let ids = stage.batch(BatchPart::InputIds, "input_ids", shape([&"T"]));
        let hidden = stage.rows("embed_tokens.weight", [self.vocabulary, self.hidden], ids)?;
        let positions = stage.batch(BatchPart::PositionIds, "position_ids", shape([&"T"]));
        let half: Vec<f32> =
            self.rotary.frequencies(self.head_size).into_iter().map(|frequency| frequency as f32).collect();
        let frequencies = stage.given("rotary.frequencies", &[self.head_size], [half.as_slice(), &half].concat());
        let g = &mut stage.graph;
        let positions = g.op(Op::Cast, &[positions])?;
        let positions = g.reshape(positions, shape([&"T", &1]))?;
        let angles = g.mul(positions, frequencies)?;
        let angles = g.reshape(angles, self.angles())?;
        let factor = self.rotary.attention_factor() as f32;
        for (op, name) in [(Op::Cos, COSINE), (Op::Sin, SINE)] {
            let turned = stage.graph.op(op, &[angles])?;
            // Most models have the factor 1, which the graph leaves out.
            let value = if factor.to_bits() == 1f32.to_bits() { turned } else { stage.graph.scale(turned, factor)? };
            stage.offer_context(name, value);
        }
        Ok(hidden)
    }

    /// Builds `a = x + W_o attention(norm(x))`, `y = a + W_down (f(W_gate n) * W_up n)` with `n = norm(a)`.
    pub(super) fn block(&self, stage: &mut Stage<'_>, layer: usize) -> Result<Id, GraphError> {
        let x = stage.hidden(self.rows());
        let normed = stage.rms_norm("input_layernorm", x, self.hidden, self.norm_epsilon)?;
        let (x, _) = stage.computed_rows(x)?;
        let context = self.attention(stage, normed, layer)?;
        let wide = self.heads * self.head_size;
        let projected =
            stage.linear_before_sum("self_attn.o_proj", context, [wide, self.hidden], bias(self.output_bias))?;
        let attended = stage.graph.add(projected, x)?;
        stage.graph.rename(attended, "attended");

        let n = stage.rms_norm("post_attention_layernorm", attended, self.hidden, self.norm_epsilon)?;
        let (d, i, mlp_bias) = (self.hidden, self.intermediate, bias(self.mlp_bias));
        let gate = stage.linear("mlp.gate_proj", n, [d, i], mlp_bias)?;
        let opened = self.activation.apply(stage, gate)?;
        let up = stage.linear("mlp.up_proj", n, [d, i], mlp_bias)?;
        let gated = stage.graph.mul(opened, up)?;
        let down = stage.linear_before_sum("mlp.down_proj", gated, [i, d], mlp_bias)?;
        stage.graph.add(down, attended)
    }

    fn attention(&self, stage: &mut Stage<'_>, x: Id, layer: usize) -> Result<Id, GraphError> {
        let (computed, places) = stage.computed_rows(x)?;
        let query = self.project(stage, "q", computed, self.heads)?;
        let query = self.turned(stage, query, "q", self.heads, places)?;
        let key = self.project(stage, "k", x, self.key_heads)?;
        let key = self.turned(stage, key, "k", self.key_heads, None)?;
        let value = self.project(stage, "v", x, self.key_heads)?;
        let window = self.window.filter(|_| self.windowed.contains(&layer));
        let sees = window.map_or(Sees::Causal, Sees::Window);
        let attending = Attending { heads: self.heads, key_heads: self.key_heads, size: self.head_size, sees };
        attending.apply(stage, [query, key, value], places)
    }

    fn project(&self, stage: &mut Stage<'_>, role: &str, x: Id, heads: usize) -> Result<Id, GraphError> {
        let sizes = [self.hidden, heads * self.head_size];
        stage.linear(&format!("self_attn.{role}_proj"), x, sizes, bias(self.attention_bias))
    }

    /// Returns `z cos + rotate(z) sin` for every head of `rows`. Normalises the heads first if the model has head norms. `places`
    /// holds the token of each row, if not every token has a row.
    fn turned(
        &self,
        stage: &mut Stage<'_>,
        rows: Id,
        role: &str,
        heads: usize,
        places: Option<Id>,
    ) -> Result<Id, GraphError> {
        let count = stage.graph.shape(rows)[0].clone();
        let mut z = stage.graph.reshape(rows, vec![count, heads.into(), self.head_size.into()])?;
        if self.head_norms {
            z = stage.rms_norm(&format!("self_attn.{role}_norm"), z, self.head_size, self.norm_epsilon)?;
        }
        let mut cosine = stage.context(COSINE, self.angles());
        let mut sine = stage.context(SINE, self.angles());
        let g = &mut stage.graph;
        if let Some(places) = places {
            cosine = g.op(Op::Gather, &[cosine, places])?;
            sine = g.op(Op::Gather, &[sine, places])?;
        }
        let along = g.mul(z, cosine)?;
        let rotated = g.op(Op::RotateHalf, &[z])?;
        let across = g.mul(rotated, sine)?;
        g.add(along, across)
    }

    /// Builds the head, which begins with a norm. It computes scores of the next token with the word embedding or `lm_head`, or
    /// scores of classes for the last token or each token with `score`.
    pub(super) fn head(&self, stage: &mut Stage<'_>, head: Head) -> Result<Ending, GraphError> {
        let hidden = stage.hidden(self.rows());
        let rows = match head.task {
            Task::SequenceClassification | Task::Regression => heads::last_rows(stage, hidden)?,
            Task::TokenClassification | Task::CausalLm => hidden,
        };
        let normed = stage.rms_norm("model.norm", rows, self.hidden, self.norm_epsilon)?;
        let bias = match head.task {
            Task::CausalLm => {
                let embedding = if self.tied { WORD_TABLE } else { NEXT_TABLE };
                return heads::next_token(stage, normed, embedding, [self.vocabulary, self.hidden]);
            }
            Task::TokenClassification => Bias::Yes,
            Task::SequenceClassification | Task::Regression => Bias::No,
        };
        let logits = stage.trained_linear(CLASSIFIER, normed, [self.hidden, head.labels], bias)?;
        heads::loss(stage, logits, head)
    }

    fn rows(&self) -> Shape {
        shape([&"T", &self.hidden])
    }

    fn angles(&self) -> Shape {
        shape([&"T", &1, &self.head_size])
    }
}

impl Keys {
    /// Returns the number of key heads. The default of transformers depends on the family; null means the number of query heads.
    fn key_heads(&self, family: Family) -> Result<usize, ConfigError> {
        let usual = match family {
            Family::Llama => self.num_attention_heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
        };
        match self.num_key_value_heads {
            Some(given) => Ok(given.unwrap_or(self.num_attention_heads)),
            None if self.num_attention_heads.is_multiple_of(usual) => Ok(usual),
            None => Err(ConfigError::Sizes {
                what: format!(
                    "num_key_value_heads is missing, and its default for {}, {usual}, does not divide num_attention_heads {}",
                    family.name(),
                    self.num_attention_heads
                ),
            }),
        }
    }

    /// Returns the layers with a sliding window of size `window`.
    fn windowed(&self, family: Family, window: Option<usize>) -> Result<Vec<usize>, ConfigError> {
        const KINDS: [&str; 2] = ["sliding_attention", "full_attention"];
        let by_types = matches!(family, Family::Qwen2 | Family::Qwen3);
        let first = if by_types { self.max_window_layers } else { 0 };
        let usual: Vec<usize> = (first..self.num_hidden_layers).filter(|_| window.is_some()).collect();
        let Some(types) = &self.layer_types else { return Ok(usual) };
        if types.len() != self.num_hidden_layers {
            let (found, layers) = (types.len(), self.num_hidden_layers);
            let what = format!("layer_types has {found} layers, but num_hidden_layers is {layers}");
            return Err(ConfigError::Sizes { what });
        }
        if let Some(found) = types.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            let (found, supported) = (found.clone(), "sliding_attention, full_attention");
            return Err(ConfigError::Setting { key: "layer_types", found, supported });
        }
        let sliding: Vec<usize> = (0..types.len()).filter(|&layer| types[layer] == KINDS[0]).collect();
        if sliding == usual || (by_types && (window.is_some() || sliding.is_empty())) {
            return Ok(sliding);
        }
        let what = match (window, family) {
            (None, _) => "layer_types has sliding_attention, but there is no sliding window (set sliding_window and, for Qwen, use_sliding_window)".to_owned(),
            (Some(_), _) => format!("layer_types has full_attention, but in a {} every layer has the sliding window", family.name()),
        };
        Err(ConfigError::Sizes { what })
    }
}

/// Name of the head's last layer, with a row for each label.
pub(super) const CLASSIFIER: &str = "score";
/// Name of the word table.
pub const WORD_TABLE: &str = "model.embed_tokens.weight";
/// Name of the table that scores the next token, in a model that is not tied.
pub const NEXT_TABLE: &str = "lm_head.weight";
const COSINE: &str = "rotary_cosine";
const SINE: &str = "rotary_sine";

const fn bias(there: bool) -> Bias {
    if there { Bias::Yes } else { Bias::No }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use serde_json::{Value, json};

    fn read(family: &str, more: &Value) -> Result<Decoder, ConfigError> {
        let mut config = json!({
            "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 64, "intermediate_size": 8, "vocab_size": 16,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Decoder::read(&config, family)
    }

    fn refusal(family: &str, more: &Value) -> String {
        read(family, more).unwrap_err().to_string()
    }

    #[test]
    fn missing_key_heads_are_those_of_transformers() {
        for (family, usual) in [("llama", 64), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)] {
            assert_eq!(read(family, &json!({})).unwrap().key_heads, usual, "{family}");
            assert_eq!(read(family, &json!({"num_key_value_heads": null})).unwrap().key_heads, 64, "{family}");
            assert_eq!(read(family, &json!({"num_key_value_heads": 4})).unwrap().key_heads, 4, "{family}");
        }
        let message = refusal("qwen2", &json!({"num_attention_heads": 4}));
        assert!(message.contains("num_key_value_heads is missing"), "{message}");
    }

    #[test]
    fn the_types_of_layers_are_as_many_as_the_layers_and_fit_the_window() {
        let (sliding, full) = ("sliding_attention", "full_attention");
        let types = |types: &[&str]| json!({"layer_types": types, "use_sliding_window": true});
        assert_eq!(read("qwen2", &types(&[full, sliding, full])).unwrap().windowed, [1]);
        assert_eq!(read("qwen3", &json!({"layer_types": [full, full, full]})).unwrap().windowed, [0; 0]);
        assert_eq!(read("llama", &types(&[full, full, full])).unwrap().windowed, [0; 0]);
        assert_eq!(read("mistral", &types(&[sliding, sliding, sliding])).unwrap().windowed, [0, 1, 2]);
        for short in [&[][..], &[sliding, sliding], &[sliding, full, full, full]] {
            let message = refusal("qwen2", &types(short));
            assert!(message.contains("num_hidden_layers is 3"), "{message}");
        }
        assert!(refusal("qwen2", &types(&[full, "chunked_attention", full])).contains("chunked_attention"));
        assert!(refusal("qwen2", &json!({"layer_types": [sliding, full, full]})).contains("no sliding window"));
        assert!(refusal("llama", &types(&[full, sliding, full])).contains("no sliding window"));
        assert!(refusal("mistral", &types(&[full, sliding, full])).contains("every layer"));
    }

    #[test]
    fn layers_without_number_are_refused_before_memory_is_taken_for_them() {
        assert!(refusal("mistral", &json!({"num_hidden_layers": u64::MAX})).contains("num_hidden_layers"));
    }
}
