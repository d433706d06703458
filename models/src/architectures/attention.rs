//! The parts of attention that every architecture uses: the conversions between token rows and heads, and the weighted sum.

use super::shape;
use crate::graph::{Attention, Dim, GraphError, Id, Op};
use crate::stage::{BatchPart, Stage};

/// A set of heads: the query heads, or the heads of keys and values if there are fewer.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Number of heads, `h` or `k`.
    pub(super) count: usize,
    /// Features of a head, `d`.
    pub(super) size: usize,
    to_heads: (BatchPart, &'static str),
    to_tokens: (BatchPart, &'static str),
}

impl Heads {
    pub(super) const fn of_queries(count: usize, size: usize) -> Self {
        Self { count, size, to_heads: (BatchPart::ToHeads, "to_heads"), to_tokens: (BatchPart::ToTokens, "to_tokens") }
    }

    /// Describes key heads; the same as `of_queries` if both have the same number.
    pub(super) const fn of_keys(count: usize, size: usize, queries: usize) -> Self {
        if count == queries {
            return Self::of_queries(count, size);
        }
        Self {
            count,
            size,
            to_heads: (BatchPart::ToKeyHeads, "to_key_heads"),
            to_tokens: (BatchPart::ToKeyTokens, "to_key_tokens"),
        }
    }

    /// Converts `[T, h*d]` (or `[T, h, d]`) to `[B, h, S, d]`.
    pub(super) fn split(&self, stage: &mut Stage<'_>, rows: Id, name: &str) -> Result<Id, GraphError> {
        let (to_heads, to_tokens) = self.indices(stage);
        let g = &mut stage.graph;
        let token_heads = vec![Dim::from("T").times(&self.count.into()), self.size.into()];
        let rows = g.reshape(rows, token_heads)?;
        let heads = g.op(Op::Relayout, &[rows, to_heads, to_tokens])?;
        Ok(g.rename(heads, name))
    }

    /// Converts `[B, h, S, d]` to `[T, h*d]`.
    pub(super) fn join(&self, stage: &mut Stage<'_>, heads: Id) -> Result<Id, GraphError> {
        let (to_heads, to_tokens) = self.indices(stage);
        let g = &mut stage.graph;
        let slots = vec![Dim::from("B").times(&self.count.into()).times(&"S".into()), self.size.into()];
        let slots = g.reshape(heads, slots)?;
        let rows = g.op(Op::Relayout, &[slots, to_tokens, to_heads])?;
        g.reshape(rows, shape([&"T", &(self.count * self.size)]))
    }

    fn indices(&self, stage: &mut Stage<'_>) -> (Id, Id) {
        let to_heads = stage.batch(self.to_heads.0, self.to_heads.1, shape([&"B", &self.count, &"S"]));
        let to_tokens = stage.batch(self.to_tokens.0, self.to_tokens.1, shape([&"T", &self.count]));
        (to_heads, to_tokens)
    }
}

/// Settings of attention whose scores are products of queries and keys alone.
#[derive(Clone, Copy)]
pub(super) struct Attending {
    /// Query heads, `h`.
    pub(super) heads: usize,
    /// Key heads, `k`.
    pub(super) key_heads: usize,
    /// Features of a head, `d`.
    pub(super) size: usize,
    /// The keys that a query sees.
    pub(super) sees: Sees,
}

/// The keys of its example that a query sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees {
    All,
    /// Keys at the query's position or before it.
    Causal,
    /// At most this many of the last keys up to the query's position.
    Window(usize),
}

impl Attending {
    /// Returns `softmax(Q K^T / sqrt(d)) V` (Vaswani et al., arXiv 1706.03762, eq. 1) of rows `[Q, h*d]`, `[T, k*d]`, `[T, k*d]`,
    /// as rows `[Q, h*d]`. `places` exists only in fused graphs, and holds the row of the single query of each example.
    pub(super) fn apply(
        &self,
        stage: &mut Stage<'_>,
        [query, key, value]: [Id; 3],
        places: Option<Id>,
    ) -> Result<Id, GraphError> {
        if stage.is_fused() {
            return self.fused(stage, [query, key, value], places);
        }
        let queries = Heads::of_queries(self.heads, self.size);
        let keys = Heads::of_keys(self.key_heads, self.size, self.heads);
        let query = queries.split(stage, query, "queries")?;
        let (key, value) = (keys.split(stage, key, "keys")?, keys.split(stage, value, "values")?);
        let counts = [self.heads, self.key_heads, self.size];
        let products = products(stage, query, key, counts)?;
        let scores = stage.graph.scale(products, self.scale())?;
        let bias = match self.sees {
            Sees::All => key_bias(stage),
            Sees::Causal => stage.batch(BatchPart::CausalBias, "causal_bias", shape([&"S", &"S"])),
            Sees::Window(_) => stage.batch(BatchPart::WindowBias, "window_bias", shape([&"S", &"S"])),
        };
        let context = weighted_sum(stage, scores, bias, value, counts)?;
        queries.join(stage, context)
    }

    fn fused(&self, stage: &mut Stage<'_>, [query, key, value]: [Id; 3], places: Option<Id>) -> Result<Id, GraphError> {
        let firsts = stage.batch(BatchPart::FirstTokens, "first_tokens", shape([&"B"]));
        let g = &mut stage.graph;
        let mut rows = |id: Id, heads: usize| {
            let count = g.shape(id)[0].clone();
            g.reshape(id, vec![count, (heads * self.size).into()])
        };
        let query = rows(query, self.heads)?;
        let (key, value) = (rows(key, self.key_heads)?, rows(value, self.key_heads)?);
        for (id, name) in [(query, "queries"), (key, "keys"), (value, "values")] {
            g.rename(id, name);
        }
        let form = Attention {
            heads: self.heads,
            key_heads: self.key_heads,
            size: self.size,
            scale: self.scale(),
            causal: self.sees != Sees::All,
            window: if let Sees::Window(window) = self.sees { Some(window) } else { None },
            one_query: places.is_some(),
        };
        let operands = [vec![query, key, value, firsts], places.into_iter().collect()].concat();
        let context = g.op(Op::Attention(form), &operands)?;
        Ok(g.rename(context, "context"))
    }

    fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
}

/// Returns the bias `[B, 1, 1, S]` that hides padding.
pub(super) fn key_bias(stage: &mut Stage<'_>) -> Id {
    stage.batch(BatchPart::KeyBias, "key_bias", shape([&"B", &1, &1, &"S"]))
}

/// Returns `softmax(scores + bias) V` (Vaswani et al., arXiv 1706.03762, eq. 1): `scores` `[B, h, S, S]`, `values` `[B, k, S,
/// d]`; returns `[B, h, S, d]`. If `k < h`, head `i` takes the values of head `i / (h / k)` (Ainslie et al., arXiv
/// 2305.13245).
pub(super) fn weighted_sum(
    stage: &mut Stage<'_>,
    scores: Id,
    bias: Id,
    values: Id,
    [queries, keys, size]: [usize; 3],
) -> Result<Id, GraphError> {
    let g = &mut stage.graph;
    let scores = g.add(scores, bias)?;
    let probabilities = g.op(Op::Softmax, &[scores])?;
    g.rename(probabilities, "probabilities");
    let grouped = g.reshape(probabilities, grouped(keys, queries / keys, &"S".into()))?;
    let context = g.op(Op::MatMul, &[grouped, values])?;
    g.reshape(context, shape([&"B", &queries, &"S", &size]))
}

/// Returns `Q K^T` of `[B, h, S, d]` and `[B, k, S, d]`: `[B, h, S, S]`. Queries with the same key head are stacked, so that
/// no key is repeated.
pub(super) fn products(
    stage: &mut Stage<'_>,
    query: Id,
    key: Id,
    [queries, keys, size]: [usize; 3],
) -> Result<Id, GraphError> {
    let g = &mut stage.graph;
    let transposed = g.transpose(key)?;
    let grouped = g.reshape(query, grouped(keys, queries / keys, &size.into()))?;
    let products = g.op(Op::MatMul, &[grouped, transposed])?;
    g.reshape(products, shape([&"B", &queries, &"S", &"S"]))
}

/// Returns the shape `[B, k, g*S, last]`.
fn grouped(keys: usize, group: usize, last: &Dim) -> Vec<Dim> {
    vec!["B".into(), keys.into(), Dim::from("S").times(&group.into()), last.clone()]
}
