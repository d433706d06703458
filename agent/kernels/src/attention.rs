//! Attention over rows of tokens, one head of one example at a time, and its gradient.
//!
//! All operands of a product fit the processor's caches. The matrix of probabilities is computed for [`QUERIES`] queries at a
//! time and never stored. The gradient computes it again from queries and keys (Dao et al., arXiv 2205.14135), including the
//! sums. Its rows therefore sum to 1 even if queries and keys were rounded meanwhile.

use crate::product::{Rows, Sizes, Strided, product};
use crate::vectors::{COMMON_FMA, exp, largest, sum, vectorised};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Number of queries with their probabilities in memory at once.
const QUERIES: usize = 32;
/// Rows of keys are padded to a multiple of this, so that no product has a ragged edge.
const PADDING: usize = 32;

/// Sizes that all heads of all examples have in common.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Form {
    /// Query heads, `h`.
    pub heads: usize,
    /// Key heads, `k`; divides `h`. Query head `i` looks at key head `i / (h / k)`.
    pub key_heads: usize,
    /// Features of a head, `d`.
    pub size: usize,
    /// Factor of `Q K^T`.
    pub scale: f32,
    /// Whether queries see no later keys.
    pub causal: bool,
    /// Number of keys that a causal query sees, up to its own; `usize::MAX` for all.
    pub window: usize,
}

/// One example of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The example's first row of keys.
    pub first: usize,
    /// Number of its tokens.
    pub tokens: usize,
    /// The example's first row of queries.
    pub query: usize,
    /// Number of its queries: all its tokens, or one.
    pub queries: usize,
    /// Position of the first query, in tokens.
    pub position: usize,
}

/// Numbers in one of two precisions. Results are always in single precision.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// 32 bits.
    Single(&'a [f32]),
    /// 16 bits.
    Half(&'a [f16]),
}

/// Rows of tokens: `query` `[Q, h d]`, `key` and `value` `[T, k d]`.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Queries.
    pub query: Numbers<'a>,
    /// Keys.
    pub key: Numbers<'a>,
    /// Values.
    pub value: Numbers<'a>,
}

/// The gradients that [`attend_back`] computes for one key head of one example.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Gradients {
    /// `[h / k, queries, d]`.
    pub query: Vec<f32>,
    /// `[tokens, d]`.
    pub key: Vec<f32>,
    /// `[tokens, d]`.
    pub value: Vec<f32>,
}

vectorised! {
    /// Computes `softmax(scale Q K^T) V` (Vaswani et al., arXiv 1706.03762, eq. 1) for the key head `head` of the example `span`.
    /// The result has a block for each of the key head's query heads, `[h / k, queries, d]`.
    pub fn attend(form: Form, span: Span, head: usize, inputs: Inputs<'_>, out: &mut Vec<f32>)
        = attend_of::<true, 8, 32>, attend_of::<true, 4, 16>, attend_of::<COMMON_FMA, 4, 8>
}

vectorised! {
    /// Computes the gradients of [`attend`] from the gradient `dO` of its result, rows `[Q, h d]`.
    ///
    /// `dQ = scale dS K`, `dK = scale dS^T Q`, `dV = P^T dO`, with `P = softmax(scale Q K^T)` and
    /// `dS = P (dO V^T - sum(P dO V^T))`.
    pub fn attend_back(
        form: Form, span: Span, head: usize, inputs: Inputs<'_>, gradient: &[f32], out: &mut Gradients,
    ) = back_of::<true, 8, 32>, back_of::<true, 4, 16>, back_of::<COMMON_FMA, 4, 8>
}

/// Returns the keys that a query at `position` sees.
fn seen(form: Form, span: Span, position: usize) -> std::ops::Range<usize> {
    if form.causal { (position + 1).saturating_sub(form.window)..position + 1 } else { 0..span.tokens }
}

/// Returns one head's columns of the rows `first..first + count`, without gaps.
#[inline(always)]
fn columns(rows: Numbers<'_>, [heads, size]: [usize; 2], head: usize, first: usize, count: usize, into: &mut Vec<f32>) {
    into.resize(count * size, 0.0);
    for (row, into) in (first..first + count).zip(into.chunks_exact_mut(size)) {
        let place = (row * heads + head) * size;
        match rows {
            Numbers::Single(rows) => into.copy_from_slice(&rows[place..][..size]),
            Numbers::Half(rows) => rows[place..][..size].convert_to_f32_slice(into),
        }
    }
}

/// Replaces `row` by `softmax(scale row)` over the visible keys; hidden keys get 0.
#[inline(always)]
fn softmax<const FMA: bool>(row: &mut [f32], seen: &std::ops::Range<usize>, scale: f32) {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    let row = &mut row[seen.clone()];
    let most = scale * largest(row);
    for value in row.iter_mut() {
        *value = exp::<FMA>(scale * *value - most);
    }
    let share = 1.0 / sum(row.len(), |at| row[at]);
    row.iter_mut().for_each(|value| *value *= share);
}

/// Transposes `[tokens, size]` to `[size, padded]`, with zeros at the end of each row.
#[inline(always)]
fn transpose(rows: &[f32], size: usize, padded: usize, into: &mut Vec<f32>) {
    into.clear();
    into.resize(size * padded, 0.0);
    for (token, row) in rows.chunks_exact(size).enumerate() {
        for (feature, &value) in row.iter().enumerate() {
            into[feature * padded + token] = value;
        }
    }
}

#[inline(always)]
fn attend_of<const FMA: bool, const MR: usize, const NR: usize>(
    form: Form,
    span: Span,
    head: usize,
    inputs: Inputs<'_>,
    out: &mut Vec<f32>,
) {
    let Form { heads, key_heads, size, scale, .. } = form;
    let (group, padded) = (heads / key_heads, span.tokens.next_multiple_of(PADDING));
    let (mut keys, mut values, mut queries, mut turned) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    columns(inputs.key, [key_heads, size], head, span.first, span.tokens, &mut keys);
    columns(inputs.value, [key_heads, size], head, span.first, span.tokens, &mut values);
    transpose(&keys, size, padded, &mut turned);
    out.clear();
    out.resize(group * span.queries * size, 0.0);
    let mut scores = vec![0.0; QUERIES.min(span.queries) * padded];
    for member in 0..group {
        columns(inputs.query, [heads, size], head * group + member, span.query, span.queries, &mut queries);
        for first in (0..span.queries).step_by(QUERIES) {
            let count = QUERIES.min(span.queries - first);
            let sizes = Sizes { m: count, n: padded, k: size };
            let left = Strided { data: &queries[first * size..], rows: size, columns: 1 };
            product::<FMA, MR, NR>(
                sizes,
                left,
                &Rows { data: &turned[..], stride: padded },
                &mut Rows { data: &mut scores[..], stride: padded },
                false,
            );
            for (query, row) in scores.chunks_exact_mut(padded).take(count).enumerate() {
                softmax::<FMA>(row, &seen(form, span, span.position + first + query), scale);
            }
            let sizes = Sizes { m: count, n: size, k: span.tokens };
            let left = Strided { data: &scores, rows: padded, columns: 1 };
            let context = &mut out[(member * span.queries + first) * size..];
            product::<FMA, MR, NR>(
                sizes,
                left,
                &Rows { data: &values[..], stride: size },
                &mut Rows { data: context, stride: size },
                false,
            );
        }
    }
}

#[inline(always)]
fn back_of<const FMA: bool, const MR: usize, const NR: usize>(
    form: Form,
    span: Span,
    head: usize,
    inputs: Inputs<'_>,
    gradient: &[f32],
    out: &mut Gradients,
) {
    let Form { heads, key_heads, size, scale, .. } = form;
    let (group, padded) = (heads / key_heads, span.tokens.next_multiple_of(PADDING));
    let (mut keys, mut values, mut queries, mut flowing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut turned_keys, mut turned_values) = (Vec::new(), Vec::new());
    columns(inputs.key, [key_heads, size], head, span.first, span.tokens, &mut keys);
    columns(inputs.value, [key_heads, size], head, span.first, span.tokens, &mut values);
    transpose(&keys, size, padded, &mut turned_keys);
    transpose(&values, size, padded, &mut turned_values);
    out.query.clear();
    out.query.resize(group * span.queries * size, 0.0);
    for side in [&mut out.key, &mut out.value] {
        side.clear();
        side.resize(span.tokens * size, 0.0);
    }
    let block = QUERIES.min(span.queries) * padded;
    let (mut probabilities, mut slopes) = (vec![0.0; block], vec![0.0; block]);
    for member in 0..group {
        let query_head = head * group + member;
        columns(inputs.query, [heads, size], query_head, span.query, span.queries, &mut queries);
        columns(Numbers::Single(gradient), [heads, size], query_head, span.query, span.queries, &mut flowing);
        for first in (0..span.queries).step_by(QUERIES) {
            let count = QUERIES.min(span.queries - first);
            let to_keys = Sizes { m: count, n: padded, k: size };
            let rows = |data| Strided { data, rows: size, columns: 1 };
            let (left, above) = (&queries[first * size..], &flowing[first * size..]);
            for (data, right, to) in [(left, &turned_keys, &mut probabilities), (above, &turned_values, &mut slopes)] {
                let right = Rows { data: &right[..], stride: padded };
                product::<FMA, MR, NR>(
                    to_keys,
                    rows(data),
                    &right,
                    &mut Rows { data: &mut to[..], stride: padded },
                    false,
                );
            }
            let both = probabilities.chunks_exact_mut(padded).zip(slopes.chunks_exact_mut(padded));
            for (query, (probability, slope)) in both.take(count).enumerate() {
                let seen = seen(form, span, span.position + first + query);
                softmax::<FMA>(probability, &seen, scale);
                slope[..seen.start].fill(0.0);
                slope[seen.end..].fill(0.0);
                let (probability, slope) = (&probability[seen.clone()], &mut slope[seen]);
                let mean = sum(slope.len(), |at| probability[at] * slope[at]);
                for (slope, &probability) in slope.iter_mut().zip(probability) {
                    *slope = scale * probability * (*slope - mean);
                }
            }
            let sizes = Sizes { m: count, n: size, k: span.tokens };
            let left_rows = Strided { data: &slopes, rows: padded, columns: 1 };
            let to = &mut out.query[(member * span.queries + first) * size..];
            let right = Rows { data: &keys[..], stride: size };
            product::<FMA, MR, NR>(sizes, left_rows, &right, &mut Rows { data: to, stride: size }, false);
            let sizes = Sizes { m: span.tokens, n: size, k: count };
            for (data, right, to) in [(&slopes, left, &mut out.key), (&probabilities, above, &mut out.value)] {
                let turned = Strided { data, rows: 1, columns: padded };
                let right = Rows { data: right, stride: size };
                product::<FMA, MR, NR>(sizes, turned, &right, &mut Rows { data: &mut to[..], stride: size }, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADS: usize = 4;

    #[derive(Debug)]
    struct Case {
        form: Form,
        span: Span,
        query: Vec<f32>,
        key: Vec<f32>,
        value: Vec<f32>,
        gradient: Vec<f32>,
    }

    fn noise(count: usize, salt: u64) -> Vec<f32> {
        let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(draw).take(count).collect()
    }

    fn cases() -> impl Strategy<Value = Case> {
        let shape = (1..90usize, prop_oneof![Just(1), Just(2), Just(4)], 1..19usize, 0..5usize);
        (shape, any::<bool>(), prop_oneof![Just(usize::MAX), 1..9usize], any::<bool>(), any::<u64>()).prop_map(
            |((tokens, key_heads, size, first), causal, window, one, salt)| {
                let position = if one { salt as usize % tokens } else { 0 };
                let queries = if one { 1 } else { tokens };
                let span = Span { first, tokens, query: 2, queries, position };
                let form = Form { heads: HEADS, key_heads, size, scale: 0.7, causal, window };
                let (above, below) = ((2 + queries) * HEADS * size, (first + tokens) * key_heads * size);
                let [query, gradient] = [1, 2].map(|at| noise(above, salt.wrapping_add(at)));
                let [key, value] = [3, 4].map(|at| noise(below, salt.wrapping_add(at)));
                Case { form, span, query, key, value, gradient }
            },
        )
    }

    impl Case {
        fn inputs(&self) -> Inputs<'_> {
            let [query, key, value] = [&self.query, &self.key, &self.value].map(|rows| Numbers::Single(rows));
            Inputs { query, key, value }
        }

        /// Returns the probabilities of query `at` of a query head, in f64, by the formula.
        fn probabilities(&self, at: usize, query_head: usize) -> Vec<f64> {
            let Form { heads, key_heads, size, scale, .. } = self.form;
            let head = query_head / (heads / key_heads);
            let score = |key: usize| {
                let q = &self.query[((self.span.query + at) * heads + query_head) * size..][..size];
                let k = &self.key[((self.span.first + key) * key_heads + head) * size..][..size];
                f64::from(scale) * q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>()
            };
            let seen = seen(self.form, self.span, self.span.position + at);
            let weight = |key| if seen.contains(&key) { score(key).exp() } else { 0.0 };
            let weights: Vec<f64> = (0..self.span.tokens).map(weight).collect();
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / total).collect()
        }

        /// Returns a token's feature in `value`, or in another matrix of the same shape.
        fn of_key(&self, rows: &[f32], token: usize, head: usize, feature: usize) -> f64 {
            f64::from(rows[((self.span.first + token) * self.form.key_heads + head) * self.form.size + feature])
        }

        fn above(&self, at: usize, query_head: usize, feature: usize) -> f64 {
            f64::from(self.gradient[((self.span.query + at) * HEADS + query_head) * self.form.size + feature])
        }
    }

    fn close(found: f32, expected: f64) -> bool {
        (f64::from(found) - expected).abs() < 3e-5 * (1.0 + expected.abs())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn attention_is_what_its_formula_says(case in cases()) {
            let (group, size, queries) = (HEADS / case.form.key_heads, case.form.size, case.span.queries);
            for head in 0..case.form.key_heads {
                let mut out = Vec::new();
                attend(case.form, case.span, head, case.inputs(), &mut out);
                for (member, at) in (0..group).flat_map(|member| (0..queries).map(move |at| (member, at))) {
                    let weights = case.probabilities(at, head * group + member);
                    for feature in 0..size {
                        let weighted = weights.iter().enumerate().map(|(token, w)| w * case.of_key(&case.value, token, head, feature));
                        prop_assert!(close(out[(member * queries + at) * size + feature], weighted.sum()));
                    }
                }
            }
        }

        #[test]
        fn halves_give_what_the_numbers_that_they_hold_do(case in cases()) {
            let halves = [&case.query, &case.key, &case.value]
                .map(|rows| rows.iter().map(|&number| f16::from_f32(number)).collect::<Vec<_>>());
            let held = halves.each_ref().map(|rows| rows.iter().map(|half| half.to_f32()).collect::<Vec<_>>());
            let inputs = |[query, key, value]: [Numbers<'_>; 3]| {
                let (mut out, mut back) = (Vec::new(), Gradients::default());
                let inputs = Inputs { query, key, value };
                attend(case.form, case.span, 0, inputs, &mut out);
                attend_back(case.form, case.span, 0, inputs, &case.gradient, &mut back);
                (out, back)
            };
            let halved = inputs(halves.each_ref().map(|rows| Numbers::Half(rows)));
            prop_assert_eq!(halved, inputs(held.each_ref().map(|rows| Numbers::Single(rows))));
        }

        #[test]
        fn its_gradient_is_what_its_formula_says(case in cases()) {
            let Form { key_heads, size, scale, .. } = case.form;
            let (group, queries, tokens) = (HEADS / key_heads, case.span.queries, case.span.tokens);
            for head in 0..key_heads {
                let mut out = Gradients::default();
                attend_back(case.form, case.span, head, case.inputs(), &case.gradient, &mut out);
                let (mut of_key, mut of_value) = (vec![0.0; tokens * size], vec![0.0; tokens * size]);
                for (member, at) in (0..group).flat_map(|member| (0..queries).map(move |at| (member, at))) {
                    let query_head = head * group + member;
                    let weights = case.probabilities(at, query_head);
                    let slope = |token| (0..size).map(|f| case.above(at, query_head, f) * case.of_key(&case.value, token, head, f)).sum::<f64>();
                    let slopes: Vec<f64> = (0..tokens).map(slope).collect();
                    let mean: f64 = slopes.iter().zip(&weights).map(|(slope, weight)| slope * weight).sum();
                    let slopes: Vec<f64> = slopes.iter().zip(&weights).map(|(s, w)| f64::from(scale) * w * (s - mean)).collect();
                    for feature in 0..size {
                        let query = f64::from(case.query[((2 + at) * HEADS + query_head) * size + feature]);
                        let expected: f64 = slopes.iter().enumerate().map(|(token, s)| s * case.of_key(&case.key, token, head, feature)).sum();
                        prop_assert!(close(out.query[(member * queries + at) * size + feature], expected));
                        for token in 0..tokens {
                            of_key[token * size + feature] += slopes[token] * query;
                            of_value[token * size + feature] += weights[token] * case.above(at, query_head, feature);
                        }
                    }
                }
                let pairs = out.key.iter().zip(&of_key).chain(out.value.iter().zip(&of_value));
                for (&found, &expected) in pairs {
                    prop_assert!(close(found, expected), "{found}, {expected}");
                }
            }
        }
    }
}
