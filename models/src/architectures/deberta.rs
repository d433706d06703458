//! DeBERTa v2 and v3 (He et al., arXiv 2006.03654 and 2111.09543): attention by content and by distance.
//!
//! The rows of the table of distances that a batch needs are picked and normed once, by the `embed` stage; each block
//! projects them with its own key and query layers.

use super::attention::{Heads, key_bias, products, weighted_sum};
use super::bert::{PostNorm, gelu};
use super::config::{
    ConfigError, MAX_HEADS, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_POSITIONS, MAX_SEGMENTS, MAX_VOCABULARY,
    bad_epsilon, keys, out_of_bounds,
};
use super::{Activation, Head, Sizes, heads, shape};
use crate::graph::{Dim, GraphError, Id, Op, Shape};
use crate::layout::{Layout, RelativePositions};
use crate::stage::{BatchPart, Bias, Ending, Stage};
use crate::task::Task;
use serde::{Deserialize, Serialize};

/// The sizes that define a DeBERTa.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deberta {
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
    /// Features of the embeddings, projected to `D` if the number differs.
    pub embedding: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Whether positions are added to the embeddings.
    pub absolute: bool,
    /// Rows of the segment embedding; 0 for none.
    pub segments: usize,
    /// Number added to the variance in layer norms.
    pub norm_epsilon: f32,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// The pooler's activation.
    pub pooler_activation: Activation,
    /// Attention by distance.
    pub relative: Option<Relative>,
    /// Number of terms of attention by distance in a checkpoint without such attention. They are not computed, but the scale of
    /// the scores counts them, as in transformers.
    #[serde(default)]
    pub idle_terms: usize,
    /// The convolution beside the first block.
    pub convolution: Option<Convolution>,
}

/// Attention by distance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relative {
    /// The numbering of distances.
    pub positions: RelativePositions,
    /// Whether there is a term from content to position: the query's content times the distance's key.
    pub content_to_position: bool,
    /// Whether there is a term from position to content: the key's content times the distance's query.
    pub position_to_content: bool,
    /// Whether distances have the same projection layers as contents.
    pub shared: bool,
    /// Whether the table of distances is layer-normed.
    pub normed: bool,
}

/// A convolution over the embeddings, which is added to the first block's result.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convolution {
    /// Number of tokens that each result depends on; odd.
    pub width: usize,
    /// Number of groups of features with separate convolutions.
    pub groups: usize,
    /// The activation after the convolution.
    pub activation: Activation,
}

/// The keys of `config.json`, with the defaults of transformers.
#[derive(Deserialize)]
struct Keys {
    num_hidden_layers: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "usual_positions")]
    max_position_embeddings: usize,
    embedding_size: Option<usize>,
    attention_head_size: Option<usize>,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "usual_epsilon")]
    layer_norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    #[serde(default = "gelu")]
    pooler_hidden_act: Activation,
    pooler_hidden_size: Option<usize>,
    #[serde(default = "yes")]
    position_biased_input: bool,
    #[serde(default)]
    relative_attention: bool,
    #[serde(default = "none")]
    max_relative_positions: i64,
    #[serde(default = "none")]
    position_buckets: i64,
    pos_att_type: Option<Kinds>,
    #[serde(default)]
    share_att_key: bool,
    norm_rel_ebd: Option<String>,
    #[serde(default)]
    conv_kernel_size: usize,
    #[serde(default = "one")]
    conv_groups: usize,
    #[serde(default = "tanh")]
    conv_act: Activation,
}

/// Kinds of terms, written as `["c2p", "p2c"]` or `"c2p|p2c"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kinds {
    List(Vec<String>),
    Joined(String),
}

fn usual_positions() -> usize {
    512
}

fn usual_epsilon() -> f32 {
    1e-7
}

fn yes() -> bool {
    true
}

fn none() -> i64 {
    -1
}

fn one() -> usize {
    1
}

fn tanh() -> Activation {
    Activation::Tanh
}

impl Deberta {
    pub(super) fn read(config: &serde_json::Value) -> Result<Self, ConfigError> {
        let keys: Keys = keys(config)?;
        let not_hidden = |size: &Option<usize>| size.filter(|&size| size != keys.hidden_size);
        if let Some(size) = not_hidden(&keys.pooler_hidden_size) {
            let found = size.to_string();
            return Err(ConfigError::Setting {
                key: "pooler_hidden_size",
                found,
                supported: "the same as hidden_size",
            });
        }
        if let Some(size) =
            keys.attention_head_size.filter(|&size| size.saturating_mul(keys.num_attention_heads) != keys.hidden_size)
        {
            let (found, supported) = (size.to_string(), "hidden_size / num_attention_heads");
            return Err(ConfigError::Setting { key: "attention_head_size", found, supported });
        }
        let relative = Relative::read(&keys)?;
        let (relative, idle_terms) =
            if keys.relative_attention { (Some(relative), 0) } else { (None, relative.terms()) };
        let convolution = (keys.conv_kernel_size > 0).then_some(Convolution {
            width: keys.conv_kernel_size,
            groups: keys.conv_groups,
            activation: keys.conv_act,
        });
        Ok(Self {
            layers: keys.num_hidden_layers,
            hidden: keys.hidden_size,
            heads: keys.num_attention_heads,
            intermediate: keys.intermediate_size,
            vocabulary: keys.vocab_size,
            embedding: keys.embedding_size.unwrap_or(keys.hidden_size),
            positions: keys.max_position_embeddings,
            absolute: keys.position_biased_input,
            segments: keys.type_vocab_size,
            norm_epsilon: keys.layer_norm_eps,
            activation: keys.hidden_act,
            pooler_activation: keys.pooler_hidden_act,
            relative,
            idle_terms,
            convolution,
        })
    }

    pub(super) fn problem(&self) -> Option<String> {
        let mut bounds = vec![
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("hidden_size", self.hidden, MAX_HIDDEN),
            ("num_attention_heads", self.heads, MAX_HEADS),
            ("intermediate_size", self.intermediate, MAX_INTERMEDIATE),
            ("vocab_size", self.vocabulary, MAX_VOCABULARY),
            ("embedding_size", self.embedding, MAX_HIDDEN),
            ("max_position_embeddings", self.positions, MAX_POSITIONS),
            ("type_vocab_size and one", self.segments.saturating_add(1), MAX_SEGMENTS),
        ];
        if let Some(relative) = &self.relative {
            bounds.push(("position_buckets or max_relative_positions", relative.positions.span, MAX_POSITIONS));
            bounds.push(("max_relative_positions", relative.positions.max_distance, MAX_POSITIONS));
        }
        if let Some(convolution) = &self.convolution {
            bounds.push(("conv_kernel_size", convolution.width, 255));
            bounds.push(("conv_groups", convolution.groups, self.hidden));
        }
        if let Some(problem) = out_of_bounds(&bounds).or_else(|| bad_epsilon("layer_norm_eps", self.norm_epsilon)) {
            return Some(problem);
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return Some(format!("{} heads do not divide hidden_size {}", self.heads, self.hidden));
        }
        if self.idle_terms > if self.relative.is_some() { 0 } else { 2 } {
            return Some(format!("pos_att_type names {} terms too many", self.idle_terms));
        }
        if let Some(RelativePositions { buckets: Some(buckets), max_distance, .. }) =
            self.relative.as_ref().map(|relative| relative.positions)
            && (buckets < 2 || max_distance <= buckets / 2 + 1)
        {
            return Some(format!(
                "position_buckets is {buckets} and max_relative_positions {max_distance}: expected at least 2, and more than half of the buckets"
            ));
        }
        let convolution = self.convolution.as_ref()?;
        if convolution.width.is_multiple_of(2) {
            return Some(format!("conv_kernel_size is {}, expected an odd number", convolution.width));
        }
        (!self.hidden.is_multiple_of(convolution.groups))
            .then(|| format!("conv_groups {} does not divide hidden_size {}", convolution.groups, self.hidden))
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

    pub(super) fn linears(&self) -> Vec<&'static str> {
        let mut linears = vec!["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"];
        if let Some(relative) = self.relative.as_ref().filter(|relative| !relative.shared) {
            linears.extend(relative.content_to_position.then_some("attention.self.pos_key_proj"));
            linears.extend(relative.position_to_content.then_some("attention.self.pos_query_proj"));
        }
        linears.extend(["attention.output.dense", "intermediate.dense", "output.dense"]);
        linears
    }

    pub(super) fn layout(&self, plain: Layout) -> Layout {
        let relative = self.relative.as_ref().map(|relative| relative.positions);
        Layout { segments: self.segments, max_tokens: self.positions, relative, ..plain }
    }

    /// Builds `h = LayerNorm(P W[id])`, with position and segment added if the model has them. Also offers the rows of the
    /// distance table for every distance in the batch.
    pub(super) fn embed(&self, stage: &mut Stage<'_>) -> Result<Id, GraphError> {
        let row = |stage: &mut Stage<'_>, part, index: &str, table: &str, size| {
            let index = stage.batch(part, index, shape([&"T"]));
            stage.rows(&format!("embeddings.{table}_embeddings.weight"), [size, self.embedding], index)
        };
        let mut sum = row(stage, BatchPart::InputIds, "input_ids", "word", self.vocabulary)?;
        if self.absolute {
            let positions = row(stage, BatchPart::PositionIds, "position_ids", "position", self.positions)?;
            sum = stage.graph.add(sum, positions)?;
        }
        if self.segments > 0 {
            let segments = row(stage, BatchPart::TokenTypeIds, "token_type_ids", "token_type", self.segments)?;
            sum = stage.graph.add(sum, segments)?;
        }
        if self.embedding != self.hidden {
            let weight = stage.matrix("embeddings.embed_proj.weight", &[self.hidden, self.embedding])?;
            sum = stage.graph.op(crate::stage::TIMES_TRANSPOSED, &[sum, weight])?;
        }
        let hidden = stage.layer_norm("embeddings.LayerNorm", sum, self.hidden, self.norm_epsilon)?;
        if let Some(relative) = &self.relative {
            if relative.content_to_position {
                self.offer_distances(stage, relative, BatchPart::KeyDistances, RELATIVE_KEYS)?;
            }
            if relative.position_to_content {
                self.offer_distances(stage, relative, BatchPart::QueryDistances, RELATIVE_QUERIES)?;
            }
        }
        Ok(hidden)
    }

    fn offer_distances(
        &self,
        stage: &mut Stage<'_>,
        relative: &Relative,
        part: BatchPart,
        name: &str,
    ) -> Result<(), GraphError> {
        let index = stage.batch(part, &format!("{name}_index"), vec![twice_s()]);
        let table = [2 * relative.positions.span, self.hidden];
        let mut rows = stage.rows("encoder.rel_embeddings.weight", table, index)?;
        if relative.normed {
            rows = stage.layer_norm("encoder.LayerNorm", rows, self.hidden, self.norm_epsilon)?;
        }
        stage.offer_context(name, rows);
        Ok(())
    }

    /// Builds a post-norm block with the scores `(Q K^T + Q P_k[i - j] + K P_q[i - j]) / sqrt(d (1 + terms))` (arXiv 2006.03654,
    /// eq. 4). The first block also has `LayerNorm(y + f(convolution(x)))`.
    pub(super) fn block(&self, stage: &mut Stage<'_>, layer: usize) -> Result<Id, GraphError> {
        let x = stage.hidden(self.rows());
        let heads = Heads::of_queries(self.heads, self.hidden / self.heads);
        let mut project = |name: &str, role| {
            let rows = self.project(stage, name, x)?;
            heads.split(stage, rows, role)
        };
        let query = project("query_proj", "queries")?;
        let (key, value) = (project("key_proj", "keys")?, project("value_proj", "values")?);
        let counts = [self.heads, self.heads, heads.size];
        let mut scores = products(stage, query, key, counts)?;
        let mut terms = 1 + self.idle_terms;
        if let Some(relative) = &self.relative {
            if relative.content_to_position {
                let layer = if relative.shared { "key_proj" } else { "pos_key_proj" };
                let by_distance = self.by_distance(stage, query, layer, RELATIVE_KEYS)?;
                scores = stage.graph.add(scores, by_distance)?;
                terms += 1;
            }
            if relative.position_to_content {
                let layer = if relative.shared { "query_proj" } else { "pos_query_proj" };
                let by_distance = self.by_distance(stage, key, layer, RELATIVE_QUERIES)?;
                let turned = stage.graph.transpose(by_distance)?;
                scores = stage.graph.add(scores, turned)?;
                terms += 1;
            }
        }
        let scores = stage.graph.scale(scores, 1.0 / ((heads.size * terms) as f32).sqrt())?;
        let bias = key_bias(stage);
        let context = weighted_sum(stage, scores, bias, value, counts)?;
        let context = heads.join(stage, context)?;
        let tail = PostNorm { hidden: self.hidden, intermediate: self.intermediate, epsilon: self.norm_epsilon };
        let y = tail.apply(stage, x, context, self.activation)?;
        match &self.convolution {
            Some(convolution) if layer == 0 => self.convolve(stage, convolution, x, y),
            _ => Ok(y),
        }
    }

    fn project(&self, stage: &mut Stage<'_>, name: &str, x: Id) -> Result<Id, GraphError> {
        stage.linear(&format!("attention.self.{name}"), x, [self.hidden, self.hidden], Bias::Yes)
    }

    /// Returns `out[i, j] = content_i . P[distance of i and j]`: the product with every distance, then a skew.
    fn by_distance(&self, stage: &mut Stage<'_>, content: Id, layer: &str, table: &str) -> Result<Id, GraphError> {
        let rows = stage.context(table, vec![twice_s(), self.hidden.into()]);
        let projected = self.project(stage, layer, rows)?;
        let g = &mut stage.graph;
        let by_head = vec![twice_s(), self.heads.into(), (self.hidden / self.heads).into()];
        let by_head = g.reshape(projected, by_head)?;
        let transposed = g.permute(by_head, &[1, 2, 0])?;
        let products = g.op(Op::MatMul, &[content, transposed])?;
        g.op(Op::Skew, &[products])
    }

    /// Returns `LayerNorm(y + f(c))`, with `c` the convolution of `x` along each example, padded with zeros at both ends.
    fn convolve(&self, stage: &mut Stage<'_>, convolution: &Convolution, x: Id, y: Id) -> Result<Id, GraphError> {
        let d = self.hidden;
        let to_slots = stage.batch(BatchPart::ToSlots, "to_slots", shape([&"B", &"S"]));
        let from_slots = stage.batch(BatchPart::FromSlots, "from_slots", shape([&"T"]));
        let mask = stage.batch(BatchPart::SlotMask, "slot_mask", shape([&"B", &"S", &1]));
        let in_slots = stage.graph.op(Op::Relayout, &[x, to_slots, from_slots])?;
        let masked = stage.graph.mul(in_slots, mask)?;
        let features = stage.graph.permute(masked, &[0, 2, 1])?;
        stage.within("deberta.encoder.", |stage| {
            let kernel = stage.matrix("conv.conv.weight", &[d, d / convolution.groups, convolution.width])?;
            let bias = stage.bias("conv.conv.bias", d);
            let op = Op::Conv1d { padding: convolution.width / 2, groups: convolution.groups };
            let convolved = stage.graph.op(op, &[features, kernel, bias])?;
            let g = &mut stage.graph;
            let tokens = g.permute(convolved, &[0, 2, 1])?;
            let rows = g.reshape(tokens, vec![Dim::from("B").times(&"S".into()), d.into()])?;
            let rows = g.op(Op::Relayout, &[rows, from_slots, to_slots])?;
            let activated = convolution.activation.apply(stage, rows)?;
            let sum = stage.graph.add(y, activated)?;
            stage.layer_norm("conv.LayerNorm", sum, d, self.norm_epsilon)
        })
    }

    /// Builds `logits = W_c f(W_p h_first + b_p) + b_c`; for tokens `W_c h + b_c`.
    pub(super) fn head(&self, stage: &mut Stage<'_>, head: Head) -> Result<Ending, GraphError> {
        let mut rows = stage.hidden(self.rows());
        if head.task != Task::TokenClassification {
            let first = heads::first_rows(stage, rows)?;
            rows = heads::pool(stage, "pooler.dense", first, self.hidden, self.pooler_activation, head)?;
        }
        let logits = stage.trained_linear("classifier", rows, [self.hidden, head.labels], Bias::Yes)?;
        heads::loss(stage, logits, head)
    }

    fn rows(&self) -> Shape {
        shape([&"T", &self.hidden])
    }
}

impl Relative {
    /// Returns the number of terms that attention by distance adds to the scores.
    fn terms(&self) -> usize {
        usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }

    fn read(keys: &Keys) -> Result<Self, ConfigError> {
        let kinds: Vec<String> = match &keys.pos_att_type {
            None => Vec::new(),
            Some(Kinds::List(kinds)) => kinds.clone(),
            Some(Kinds::Joined(kinds)) => kinds.split('|').map(|kind| kind.trim().to_lowercase()).collect(),
        };
        let kinds: Vec<String> = kinds.into_iter().filter(|kind| !kind.is_empty()).collect();
        if let Some(found) = kinds.iter().find(|kind| !["c2p", "p2c"].contains(&kind.as_str())) {
            let found = found.clone();
            return Err(ConfigError::Setting { key: "pos_att_type", found, supported: "c2p, p2c" });
        }
        let max_distance = usize::try_from(keys.max_relative_positions).ok().filter(|&distance| distance > 0);
        let max_distance = max_distance.unwrap_or(keys.max_position_embeddings);
        let buckets = usize::try_from(keys.position_buckets).ok().filter(|&buckets| buckets > 0);
        let normed = keys.norm_rel_ebd.as_deref().unwrap_or("none").to_lowercase();
        Ok(Self {
            positions: RelativePositions { span: buckets.unwrap_or(max_distance), buckets, max_distance },
            content_to_position: kinds.iter().any(|kind| kind == "c2p"),
            position_to_content: kinds.iter().any(|kind| kind == "p2c"),
            shared: keys.share_att_key,
            normed: normed.split('|').any(|norm| norm.trim() == "layer_norm"),
        })
    }
}

/// Name of the layer that projects embeddings of another size to the blocks' width.
pub(super) const PROJECTION: &str = "deberta.embeddings.embed_proj";

const RELATIVE_KEYS: &str = "relative_keys";
const RELATIVE_QUERIES: &str = "relative_queries";

/// Returns `2 S`: one row for each distance between two of `S` tokens, and one spare row.
fn twice_s() -> Dim {
    Dim::from("S").times(&2.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::architectures::Model;
    use crate::peft::{Lora, Peft};
    use serde_json::{Value, json};

    fn read(more: &Value) -> Deberta {
        let mut config = json!({
            "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 16,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let model = Deberta::read(&config).unwrap();
        assert_eq!(model.problem(), None);
        model
    }

    #[test]
    fn without_relative_attention_its_terms_have_no_layers_and_count_for_the_scale_alone() {
        let kinds = json!({"pos_att_type": "p2c|c2p", "position_buckets": 4});
        let idle = read(&kinds);
        assert_eq!((&idle.relative, idle.idle_terms), (&None, 2));
        assert!(!idle.linears().iter().any(|linear| linear.contains("pos_")));
        let mut with = kinds;
        with["relative_attention"] = json!(true);
        let with = read(&with);
        assert_eq!((with.relative.as_ref().map(Relative::terms), with.idle_terms), (Some(2), 0));
        assert!(Deberta { idle_terms: 2, ..with }.problem().is_some());
        assert_eq!(read(&json!({})).idle_terms, 0);
    }

    #[test]
    fn lora_on_the_projection_of_the_embeddings_is_refused_by_name() {
        let problem = |embedding: usize, target: &str| {
            let model = Model::Deberta(read(&json!({ "embedding_size": embedding })));
            model.peft_problem(&Peft::Lora(Lora { targets: vec![target.to_owned()], ..Lora::default() }))
        };
        assert_eq!(problem(8, "all-linear"), None);
        assert_eq!(problem(4, "query_proj"), None);
        for target in ["all-linear", "embed_proj", PROJECTION] {
            assert!(problem(4, target).is_some_and(|what| what.contains(PROJECTION)), "{target}");
        }
        assert!(problem(8, "embed_proj").is_some());
    }
}
