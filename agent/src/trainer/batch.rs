//! A batch as the graphs take it: the tokens of all examples in one row, without padding.
//!
//! Attention needs a rectangle `[B, h, S, d]`. `to_heads` says which token each of its slots shows, `to_tokens` which slot
//! each token is in. Slots beyond an example's end show one extra token at the end of the row, which is there only where
//! slots are left over. Nobody attends to it and nothing reads it, so its gradient is zero in every layer, and moving
//! gradients by the same indices backwards is exact.

use ndarray::{Array1, Array2, Array3, Array4};

/// Added to the scores of padded keys: `exp` of it is exactly zero in f32.
const MASKED: f32 = -1e9;

/// One example's tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequence {
    /// Vocabulary indices, at least one.
    pub ids: Vec<u32>,
    /// Segments, as many.
    pub types: Vec<u32>,
    /// The class.
    pub label: usize,
}

/// `B` examples of `T` tokens in all (and the extra one where needed), the longest of `S`.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Tokens of text.
    pub tokens: usize,
    /// The class of each example.
    pub labels: Vec<usize>,
    /// `[T]`
    pub input_ids: Array1<i64>,
    /// `[T]`
    pub token_type_ids: Array1<i64>,
    /// `[T]`
    pub position_ids: Array1<i64>,
    /// `[B, h, S]`
    pub to_heads: Array3<i64>,
    /// `[T, h]`
    pub to_tokens: Array2<i64>,
    /// `[B, 1, 1, S]`
    pub key_bias: Array4<f32>,
    /// `[B]`
    pub first_tokens: Array1<i64>,
    /// `[B, C]`
    pub targets: Array2<f32>,
}

impl Batch {
    /// Lays out `sequences` for `heads` attention heads and `classes` classes. Each example weighs `1/B` in the loss.
    #[must_use]
    pub fn new(sequences: &[Sequence], heads: usize, classes: usize) -> Self {
        let examples = sequences.len();
        let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let width = sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
        let spare = tokens < examples * width;
        let rows = tokens + usize::from(spare);
        let mut batch = Self {
            tokens,
            labels: sequences.iter().map(|sequence| sequence.label).collect(),
            input_ids: Array1::zeros(rows),
            token_type_ids: Array1::zeros(rows),
            position_ids: Array1::zeros(rows),
            to_heads: Array3::zeros((examples, heads, width)),
            to_tokens: Array2::zeros((rows, heads)),
            key_bias: Array4::zeros((examples, 1, 1, width)),
            first_tokens: Array1::zeros(examples),
            targets: Array2::zeros((examples, classes)),
        };
        let mut row = 0;
        for (example, sequence) in sequences.iter().enumerate() {
            batch.first_tokens[example] = row as i64;
            batch.targets[(example, sequence.label)] = 1.0 / examples as f32;
            for slot in 0..width {
                let real = slot < sequence.ids.len();
                let shown = if real { row + slot } else { tokens };
                for head in 0..heads {
                    batch.to_heads[(example, head, slot)] = (shown * heads + head) as i64;
                    // For the extra token any of its slots will do; the last one written stays.
                    batch.to_tokens[(shown, head)] = ((example * heads + head) * width + slot) as i64;
                }
                if real {
                    batch.input_ids[shown] = i64::from(sequence.ids[slot]);
                    batch.token_type_ids[shown] = i64::from(sequence.types[slot]);
                    batch.position_ids[shown] = slot as i64;
                } else {
                    batch.key_bias[(example, 0, 0, slot)] = MASKED;
                }
            }
            row += sequence.ids.len();
        }
        batch
    }

    /// How many examples.
    #[must_use]
    pub fn examples(&self) -> usize {
        self.labels.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequences(lengths: &[usize]) -> Vec<Sequence> {
        let sequence = |(at, &length): (usize, &usize)| Sequence {
            ids: (0..length).map(|token| (100 * at + token) as u32).collect(),
            types: vec![0; length],
            label: at % 2,
        };
        lengths.iter().enumerate().map(sequence).collect()
    }

    proptest! {
        #[test]
        fn every_token_finds_its_way_to_the_heads_and_back(lengths in prop::collection::vec(1..7usize, 1..6), heads in 1..4usize) {
            let batch = Batch::new(&sequences(&lengths), heads, 2);
            let slots: Vec<i64> = batch.to_heads.iter().copied().collect();
            for ((token, head), &slot) in batch.to_tokens.indexed_iter() {
                prop_assert_eq!(slots[slot as usize], (token * heads + head) as i64);
            }
            prop_assert!(slots.iter().all(|&slot| slot < (batch.input_ids.len() * heads) as i64));
        }

        #[test]
        fn padding_is_masked_and_text_is_not(lengths in prop::collection::vec(1..7usize, 1..6)) {
            let batch = Batch::new(&sequences(&lengths), 1, 2);
            for (&bias, &shown) in batch.key_bias.iter().zip(&batch.to_heads) {
                prop_assert_eq!(bias < 0.0, shown as usize == batch.tokens);
            }
            prop_assert_eq!(batch.tokens, lengths.iter().sum::<usize>());
        }
    }

    #[test]
    fn equal_lengths_need_no_extra_token() {
        let batch = Batch::new(&sequences(&[3, 3]), 2, 2);
        assert_eq!(batch.input_ids.len(), 6);
        assert_eq!(batch.first_tokens.to_vec(), [0, 3]);
        assert_eq!(batch.position_ids.to_vec(), [0, 1, 2, 0, 1, 2]);
    }
}
