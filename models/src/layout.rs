//! The model's properties that determine the form of a batch: the numbering of tokens, and the reach of attention.

use crate::task::Task;
use serde::{Deserialize, Serialize};

/// The properties of a pack that determine its batches.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The task, which determines the targets.
    pub task: Task,
    /// Classes or numbers, `C`; the vocabulary for a language model.
    pub classes: usize,
    /// Query heads, `h`.
    pub heads: usize,
    /// Key and value heads, `k`; `h` is a multiple of `k`.
    pub key_heads: usize,
    /// Rows of the word embedding; token ids are below this number.
    pub vocabulary: usize,
    /// Rows of the segment embedding; 0 if the model has none, in which case segments are ignored.
    pub segments: usize,
    /// Position of an example's first token: 0, or one more than RoBERTa's padding index.
    pub first_position: usize,
    /// Length of the longest example, in tokens.
    pub max_tokens: usize,
    /// Number of tokens that a token sees in a layer with a sliding window, including itself.
    pub window: Option<usize>,
    /// Numbering of distances, for disentangled attention.
    pub relative: Option<RelativePositions>,
}

impl Layout {
    /// Returns the number of token rows that a language model's head computes at a time: at least 16, at most 1024. Their scores,
    /// one for each entry of the vocabulary, then take about 32 MiB.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        (HEAD_BYTES / (4 * self.classes.max(1))).clamp(16, 1024)
    }
}

const HEAD_BYTES: usize = 32 << 20;

/// DeBERTa's numbering of the distance of two tokens (He et al., arXiv 2006.03654 and 2111.09543).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativePositions {
    /// Half the rows of the table, `k`. Distance 0 has row `k`.
    pub span: usize,
    /// Number of buckets on each side. Distances up to half of this number are exact, larger ones logarithmic. `None` if all
    /// distances are exact.
    pub buckets: Option<usize>,
    /// Distance at the end of the last bucket.
    pub max_distance: usize,
}

impl RelativePositions {
    /// Returns the row of the table of relative embeddings for a query `distance` tokens after its key (negative: before it).
    ///
    /// Formula: `clamp(k + b(distance), 0, 2k - 1)` with `b(d) = d` for `|d| <= m`, and
    /// `sign(d) * (ceil(ln(|d| / m) / ln((M - 1) / m) * (m - 1)) + m)` beyond; `m` is half the buckets and `M` the largest
    /// distance. Source: `make_log_bucket_position` of the published code (microsoft/DeBERTa, `da_utils.py`).
    #[must_use]
    pub fn row(&self, distance: i64) -> i64 {
        let bucket = match self.buckets {
            Some(buckets) if distance.unsigned_abs() as usize > buckets / 2 => {
                let middle = (buckets / 2) as f64;
                let furthest = (self.max_distance as f64 - 1.0) / middle;
                let steps = ((distance.unsigned_abs() as f64 / middle).ln() / furthest.ln() * (middle - 1.0)).ceil();
                distance.signum() * (steps + middle) as i64
            }
            Some(_) | None => distance,
        };
        let span = self.span as i64;
        (span + bucket).clamp(0, 2 * span - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_rows_at_once_the_larger_the_vocabulary() {
        let layout = |classes| Layout {
            task: Task::CausalLm,
            classes,
            heads: 1,
            key_heads: 1,
            vocabulary: classes,
            segments: 0,
            first_position: 0,
            max_tokens: 8,
            window: None,
            relative: None,
        };
        assert_eq!([11, 32_000, 151_936, 1 << 24].map(|words| layout(words).head_rows()), [1024, 262, 55, 16]);
    }

    #[test]
    fn near_distances_are_exact_and_far_ones_share_rows() {
        let near = RelativePositions { span: 4, buckets: None, max_distance: 4 };
        assert_eq!([-9, -4, -1, 0, 3, 9].map(|distance| near.row(distance)), [0, 0, 3, 4, 7, 7]);
        // 256 buckets up to 512 tokens, as in the published models: exact to 128, the last bucket at the largest distance.
        let far = RelativePositions { span: 256, buckets: Some(256), max_distance: 512 };
        assert_eq!([-128, -1, 0, 1, 128].map(|distance| far.row(distance)), [128, 255, 256, 257, 384]);
        assert_eq!([far.row(511), far.row(-511)], [511, 1]);
        assert!((0..511).all(|distance| far.row(distance) <= far.row(distance + 1)));
    }
}
