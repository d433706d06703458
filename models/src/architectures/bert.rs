//! BERT (Devlin et al., arXiv 1810.04805) for sequence classification, in the post-norm form of its release.
//!
//! Rows are tokens: `T` of them for a whole batch, without padding. Attention alone looks at them as
//! `[B, h, S, d]`, through the index of the batch.

use crate::graph::{Dim, GraphError, Id, Op, Shape};
use crate::layout::Layout;
use crate::peft::{Linear, Lora, PREFIX};
use crate::stage::{BatchPart, CompiledStage, Ending, Stage};
use crate::task::Task;
use crate::tensors::{Schema, TensorSpec};
use serde::{Deserialize, Serialize};

/// The sizes that define a BERT, as in a checkpoint's `config.json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Bert {
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Features of a token, `D`.
    pub hidden_size: usize,
    /// Attention heads, `h`; divides `D`.
    pub num_attention_heads: usize,
    /// Features inside the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Rows of the segment embedding.
    pub type_vocab_size: usize,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f32,
    /// Must be `gelu`.
    pub hidden_act: String,
}

/// The three stages of a model.
#[derive(Debug)]
pub struct Stages {
    /// Tokens to activations.
    pub embed: CompiledStage,
    /// One layer.
    pub block: CompiledStage,
    /// Activations to scores and loss.
    pub head: CompiledStage,
}

const LAYER: &str = "encoder.layer.{layer}.";
const TRAINABLE_LAYER: &str = "base_model.model.bert.encoder.layer.{layer}.";

impl Bert {
    /// What is wrong with these sizes, if anything: they come from files, and memory is taken by them.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let sizes = [
            ("num_hidden_layers", self.num_hidden_layers, 512),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 20),
            ("type_vocab_size", self.type_vocab_size, 1 << 10),
        ];
        if let Some((name, size, most)) = sizes.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            return Some(format!("{name} is {size}, expected 1 to {most}"));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Some(format!("{} heads do not divide hidden_size {}", self.num_attention_heads, self.hidden_size));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return Some(format!("layer_norm_eps is {}, expected a small positive number", self.layer_norm_eps));
        }
        (self.hidden_act != "gelu")
            .then(|| format!("hidden_act {:?} is not supported; supported: gelu", self.hidden_act))
    }

    /// What a batch has to know.
    #[must_use]
    pub fn layout(&self, classes: usize) -> Layout {
        Layout {
            task: Task::SequenceClassification,
            classes,
            heads: self.num_attention_heads,
            key_heads: self.num_attention_heads,
            vocabulary: self.vocab_size,
            segments: self.type_vocab_size,
            first_position: 0,
            max_tokens: self.max_position_embeddings,
            window: None,
            relative: None,
        }
    }

    /// The stages with `lora`, ready to be written.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn stages(&self, lora: &Lora, classes: usize) -> Result<Stages, GraphError> {
        Ok(Stages { embed: self.embed()?, block: self.block(lora)?, head: self.head(classes)? })
    }

    /// The frozen tensors: name and shape.
    #[must_use]
    pub fn frozen(&self) -> Vec<(String, Vec<usize>)> {
        let (d, i) = (self.hidden_size, self.intermediate_size);
        let embeddings = [
            ("embeddings.word_embeddings.weight", vec![self.vocab_size, d]),
            ("embeddings.position_embeddings.weight", vec![self.max_position_embeddings, d]),
            ("embeddings.token_type_embeddings.weight", vec![self.type_vocab_size, d]),
            ("embeddings.LayerNorm.weight", vec![d]),
            ("embeddings.LayerNorm.bias", vec![d]),
            ("pooler.dense.weight", vec![d, d]),
            ("pooler.dense.bias", vec![d]),
        ];
        let block = [
            ("attention.self.query.weight", vec![d, d]),
            ("attention.self.query.bias", vec![d]),
            ("attention.self.key.weight", vec![d, d]),
            ("attention.self.key.bias", vec![d]),
            ("attention.self.value.weight", vec![d, d]),
            ("attention.self.value.bias", vec![d]),
            ("attention.output.dense.weight", vec![d, d]),
            ("attention.output.dense.bias", vec![d]),
            ("attention.output.LayerNorm.weight", vec![d]),
            ("attention.output.LayerNorm.bias", vec![d]),
            ("intermediate.dense.weight", vec![i, d]),
            ("intermediate.dense.bias", vec![i]),
            ("output.dense.weight", vec![d, i]),
            ("output.dense.bias", vec![d]),
            ("output.LayerNorm.weight", vec![d]),
            ("output.LayerNorm.bias", vec![d]),
        ];
        let layers = (0..self.num_hidden_layers).flat_map(|layer| {
            let prefix = LAYER.replace("{layer}", &layer.to_string());
            block.clone().map(|(name, shape)| (format!("{prefix}{name}"), shape))
        });
        embeddings.into_iter().map(|(name, shape)| (name.to_owned(), shape)).chain(layers).collect()
    }

    /// The trainable tensors, ordered by name.
    #[must_use]
    pub fn schema(&self, lora: &Lora, classes: usize) -> Schema {
        let d = self.hidden_size;
        let sizes = |name: &str| match name {
            "intermediate.dense" => (d, self.intermediate_size),
            "output.dense" => (self.intermediate_size, d),
            _ => (d, d),
        };
        let mut tensors: Vec<TensorSpec> = (0..self.num_hidden_layers)
            .flat_map(|layer| LINEARS.iter().filter(|name| lora.adapts(name)).map(move |name| (layer, *name)))
            .flat_map(|(layer, name)| {
                let (inputs, outputs) = sizes(name);
                let prefix = TRAINABLE_LAYER.replace("{layer}", &layer.to_string());
                [("lora_A", vec![lora.rank, inputs]), ("lora_B", vec![outputs, lora.rank])].map(|(part, shape)| {
                    TensorSpec { name: format!("{prefix}{name}.{part}.weight"), shape, layer: Some(layer) }
                })
            })
            .collect();
        let head = |part: &str, shape| TensorSpec { name: format!("{PREFIX}classifier.{part}"), shape, layer: None };
        tensors.extend([head("weight", vec![classes, d]), head("bias", vec![classes])]);
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Schema { tensors }
    }

    /// `h = LayerNorm(W[id] + P[position] + S[segment])`.
    fn embed(&self) -> Result<CompiledStage, GraphError> {
        let d = self.hidden_size;
        let mut stage = Stage::default();
        let tokens = || shape([&"T"]);
        let rows = [
            (BatchPart::InputIds, "input_ids", "embeddings.word_embeddings.weight", self.vocab_size),
            (
                BatchPart::PositionIds,
                "position_ids",
                "embeddings.position_embeddings.weight",
                self.max_position_embeddings,
            ),
            (
                BatchPart::TokenTypeIds,
                "token_type_ids",
                "embeddings.token_type_embeddings.weight",
                self.type_vocab_size,
            ),
        ];
        let mut sum = None;
        for (part, index, table, size) in rows {
            let index = stage.batch(part, index, tokens());
            let table = stage.frozen("", table, shape([&size, &d]));
            let picked = stage.graph.op(Op::Gather, &[table, index])?;
            sum = Some(match sum {
                Some(sum) => stage.graph.add(sum, picked)?,
                None => picked,
            });
        }
        let sum = sum.expect("three tables were summed");
        let hidden = self.layer_norm(&mut stage, "", "embeddings.LayerNorm", sum)?;
        stage.graph.rename(hidden, "embedded");
        stage.compile("embed", Ending::Hidden(hidden))
    }

    /// `a = LayerNorm(x + W_o attention(x))`, `y = LayerNorm(a + W_2 gelu(W_1 a))`.
    fn block(&self, lora: &Lora) -> Result<CompiledStage, GraphError> {
        let (d, i) = (self.hidden_size, self.intermediate_size);
        let mut stage = Stage::default();
        let x = stage.hidden(shape([&"T", &d]));
        let linear = |stage: &mut Stage, name: &str, x: Id, inputs: usize, outputs: usize| {
            let layer = Linear { frozen_prefix: LAYER, trainable_prefix: TRAINABLE_LAYER, name, inputs, outputs };
            layer.apply(stage, x, lora)
        };
        let [query, key, value] = ["query", "key", "value"].map(|name| format!("attention.self.{name}"));
        let query = linear(&mut stage, &query, x, d, d)?;
        let key = linear(&mut stage, &key, x, d, d)?;
        let value = linear(&mut stage, &value, x, d, d)?;
        let context = self.attention(&mut stage, query, key, value)?;
        let projected = linear(&mut stage, "attention.output.dense", context, d, d)?;
        let attended = stage.graph.add(projected, x)?;
        stage.graph.rename(attended, "attended");
        let a = self.layer_norm(&mut stage, LAYER, "attention.output.LayerNorm", attended)?;

        let wide = linear(&mut stage, "intermediate.dense", a, d, i)?;
        stage.graph.rename(wide, "feed_forward");
        let activated = stage.graph.op(Op::Gelu, &[wide])?;
        let narrow = linear(&mut stage, "output.dense", activated, i, d)?;
        let summed = stage.graph.add(narrow, a)?;
        stage.graph.rename(summed, "summed");
        let y = self.layer_norm(&mut stage, LAYER, "output.LayerNorm", summed)?;
        stage.graph.rename(y, "hidden_out");
        stage.compile("block", Ending::Hidden(y))
    }

    /// `softmax(Q K^T / sqrt(d) + bias) V` for each head (Vaswani et al., arXiv 1706.03762, eq. 1).
    fn attention(&self, stage: &mut Stage, query: Id, key: Id, value: Id) -> Result<Id, GraphError> {
        let (h, d) = (self.num_attention_heads, self.hidden_size / self.num_attention_heads);
        let to_heads = stage.batch(BatchPart::ToHeads, "to_heads", shape([&"B", &h, &"S"]));
        let to_tokens = stage.batch(BatchPart::ToTokens, "to_tokens", shape([&"T", &h]));
        let key_bias = stage.batch(BatchPart::KeyBias, "key_bias", shape([&"B", &1, &1, &"S"]));
        let g = &mut stage.graph;
        let token_heads = vec![Dim::from("T").times(&h.into()), d.into()];
        let mut heads = |rows: Id, name: &str| {
            let rows = g.reshape(rows, token_heads.clone())?;
            let heads = g.op(Op::Relayout, &[rows, to_heads, to_tokens])?;
            Ok(g.rename(heads, name))
        };
        let (query, key, value) = (heads(query, "queries")?, heads(key, "keys")?, heads(value, "values")?);
        let keys = g.transpose(key)?;
        let products = g.op(Op::MatMul, &[query, keys])?;
        let scaled = g.scale(products, 1.0 / (d as f32).sqrt())?;
        let scores = g.add(scaled, key_bias)?;
        let probabilities = g.op(Op::Softmax, &[scores])?;
        g.rename(probabilities, "probabilities");
        let context = g.op(Op::MatMul, &[probabilities, value])?;
        let all_heads = vec![Dim::from("B").times(&h.into()).times(&"S".into()), d.into()];
        let context = g.reshape(context, all_heads)?;
        let context = g.op(Op::Relayout, &[context, to_tokens, to_heads])?;
        g.reshape(context, shape([&"T", &self.hidden_size]))
    }

    /// `logits = W_c tanh(W_p h_first + b_p) + b_c`; `loss = -sum(targets * log softmax(logits))`.
    fn head(&self, classes: usize) -> Result<CompiledStage, GraphError> {
        let d = self.hidden_size;
        let mut stage = Stage::default();
        let hidden = stage.hidden(shape([&"T", &d]));
        let first = stage.batch(BatchPart::FirstTokens, "first_tokens", shape([&"B"]));
        let targets = stage.batch(BatchPart::Targets, "targets", shape([&"B", &classes]));
        let pooler_weight = stage.frozen("", "pooler.dense.weight", shape([&d, &d]));
        let pooler_bias = stage.frozen("", "pooler.dense.bias", shape([&d]));
        let weight = stage.trainable(PREFIX, "classifier.weight", shape([&classes, &d]));
        let bias = stage.trainable(PREFIX, "classifier.bias", shape([&classes]));
        let g = &mut stage.graph;
        let times_transposed = Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true };
        let first_rows = g.op(Op::Gather, &[hidden, first])?;
        let dense = g.op(times_transposed.clone(), &[first_rows, pooler_weight, pooler_bias])?;
        let pooled = g.op(Op::Tanh, &[dense])?;
        g.rename(pooled, "pooled");
        let logits = g.op(times_transposed, &[pooled, weight, bias])?;
        g.rename(logits, "logits");
        let log_probabilities = g.op(Op::LogSoftmax, &[logits])?;
        let picked = g.mul(targets, log_probabilities)?;
        let total = g.op(Op::ReduceSum { axes: vec![0, 1] }, &[picked])?;
        let total = g.reshape(total, Shape::new())?;
        let loss = g.scale(total, -1.0)?;
        g.rename(loss, "loss");
        stage.compile("head", Ending::Loss { loss, logits })
    }

    fn layer_norm(&self, stage: &mut Stage, prefix: &str, name: &str, x: Id) -> Result<Id, GraphError> {
        let weight = stage.frozen(prefix, &format!("{name}.weight"), shape([&self.hidden_size]));
        let bias = stage.frozen(prefix, &format!("{name}.bias"), shape([&self.hidden_size]));
        stage.graph.op(Op::LayerNorm { epsilon: self.layer_norm_eps }, &[x, weight, bias])
    }
}

/// The linear layers of a block, which LoRA may sit on.
pub const LINEARS: [&str; 6] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
];

/// A dimension as it is written in a formula: a number or a letter.
trait Letter {
    fn dim(&self) -> Dim;
}

impl Letter for usize {
    fn dim(&self) -> Dim {
        Dim::fixed(*self)
    }
}

impl Letter for &'static str {
    fn dim(&self) -> Dim {
        Dim::symbol(self)
    }
}

fn shape<const N: usize>(dims: [&dyn Letter; N]) -> Shape {
    dims.into_iter().map(Letter::dim).collect()
}
