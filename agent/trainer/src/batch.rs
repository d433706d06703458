//! A batch in the layout of the graphs: the tokens of all examples in one row, without padding.
//!
//! Attention needs a rectangle `[B, h, S, d]`. `to_heads` maps each slot to its token, `to_tokens` each token to its slot. Slots
//! beyond an example's end map to one extra token at the end of the row, which exists only if there are such slots. No other
//! token attends to the extra token and no head reads it, so its gradient is zero in every layer. Moving gradients backwards by
//! the same indices is therefore exact. In shapes, `T` counts the extra token.

use crate::examples::{Sequence, Target};
use ndarray::{Array1, Array2, Array3, ArrayD, ArrayView1, Axis, Dimension};
use skiff_models::layout::Layout;
use skiff_models::pack::Manifest;
use skiff_models::stage::{BatchPart, Binding, StageSpec, StageSpecs};
use skiff_models::task::Task;
use std::collections::{BTreeMap, BTreeSet};

/// Score that is added for hidden keys; its `exp` is exactly zero in f32.
const MASKED: f32 = -1e9;

/// The required form of a pack's batches.
#[derive(Clone, PartialEq, Debug)]
pub struct Form {
    /// Numbering of tokens, what attention sees, and the kind of targets.
    pub layout: Layout,
    /// The parts that at least one of the graphs takes.
    pub parts: BTreeSet<BatchPart>,
}

/// A batch of `B` examples with `T` tokens in all, the extra token included. The longest example has `S`.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Tokens of text.
    pub tokens: usize,
    /// Rows of the activations: the tokens of text, and the extra token if there is one.
    pub rows: usize,
    /// Examples, `B`.
    pub examples: usize,
    /// The expected result for each row of the scores: `B` rows, or one for each token of text.
    pub truths: Vec<Truth>,
    /// The last token of text of each example, ascending.
    pub ends: Vec<usize>,
    /// The inputs of the graphs, limited to the parts that the form asks for.
    pub parts: BTreeMap<BatchPart, Part>,
    /// `[B]`: 0, 1, 2, …, the positions of the rows that a head reads after the other rows were removed.
    pub order: Part,
}

/// The expected result for a row of scores.
#[derive(Clone, PartialEq, Debug)]
pub enum Truth {
    /// None: the row does not count.
    None,
    /// The score with this index is the largest.
    Class(usize),
    /// The scores equal these numbers.
    Numbers(Vec<f32>),
}

/// An input of a graph.
#[derive(Clone, PartialEq, Debug)]
pub enum Part {
    /// Indices.
    Integers(ArrayD<i64>),
    /// Weights, targets and biases of scores.
    Numbers(ArrayD<f32>),
}

/// Reason why an example cannot be laid out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// The example has no tokens, or more than the model takes.
    #[error("an example has {tokens} tokens, expected 1 to {most}")]
    Length {
        /// Number of the example's tokens.
        tokens: usize,
        /// The layout's maximum.
        most: usize,
    },
    /// A list does not have one entry for each token, or the target does not have as many numbers as the pack expects.
    #[error("an example has {found} {what}, expected {expected}")]
    Count {
        /// Name of the list.
        what: &'static str,
        /// Length of the list.
        found: usize,
        /// The expected length.
        expected: usize,
    },
    /// The model does not have the token, segment or class.
    #[error("an example has the {what} {found}, expected less than {size}")]
    Range {
        /// Kind of index: token, segment or class.
        what: &'static str,
        /// The index.
        found: usize,
        /// Number of indices of this kind in the model.
        size: usize,
    },
    /// The target is for another task.
    #[error("an example has a target that is not one of {task}")]
    Task {
        /// The pack's task.
        task: Task,
    },
}

impl Form {
    /// Returns the form that the pack of `manifest` requires.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        Self::new(manifest.layout.clone(), &manifest.stages)
    }

    /// Returns the form that graphs with these ports require.
    #[must_use]
    pub fn new(layout: Layout, stages: &StageSpecs) -> Self {
        let ports = stages.all().flat_map(StageSpec::graphs).flat_map(|graph| &graph.inputs);
        let part = |binding: &Binding| if let Binding::Batch(part) = binding { Some(*part) } else { None };
        Self { layout, parts: ports.filter_map(|port| part(&port.binding)).collect() }
    }

    /// Checks that `sequence` can be laid out.
    ///
    /// # Errors
    /// Tokens, segments or a target that the model does not have.
    pub fn check(&self, sequence: &Sequence) -> Result<(), BatchError> {
        let layout = &self.layout;
        let tokens = sequence.ids.len();
        if !(1..=layout.max_tokens).contains(&tokens) {
            return Err(BatchError::Length { tokens, most: layout.max_tokens });
        }
        let as_many = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(BatchError::Count { what, found, expected }),
        };
        let below = |what, found: usize, size| match found < size {
            true => Ok(()),
            false => Err(BatchError::Range { what, found, size }),
        };
        as_many("segments", sequence.types.len(), tokens)?;
        sequence.ids.iter().try_for_each(|&id| below("token", id as usize, layout.vocabulary))?;
        if layout.segments > 1 {
            sequence.types.iter().try_for_each(|&segment| below("segment", segment as usize, layout.segments))?;
        }
        match (layout.task, &sequence.target) {
            (_, Target::None) => Ok(()),
            (Task::SequenceClassification, Target::Class(class)) => below("class", *class, layout.classes),
            (Task::Regression, Target::Numbers(numbers)) => as_many("numbers", numbers.len(), layout.classes),
            (Task::TokenClassification, Target::Tokens(classes)) => {
                as_many("token classes", classes.len(), tokens)?;
                classes.iter().flatten().try_for_each(|&class| below("token class", class, layout.classes))
            }
            (Task::CausalLm, Target::Next(labels)) => {
                as_many("token labels", labels.len(), tokens)?;
                labels.iter().flatten().try_for_each(|&id| below("token label", id as usize, layout.vocabulary))
            }
            (task, _) => Err(BatchError::Task { task }),
        }
    }
}

impl Batch {
    /// Lays out `sequences` as `form` requires. In a loss over classes, every row with a target weighs the same; in a loss over
    /// numbers, every number does.
    ///
    /// # Errors
    /// The errors of [`Form::check`].
    pub fn new(sequences: &[Sequence], form: &Form) -> Result<Self, BatchError> {
        sequences.iter().try_for_each(|sequence| form.check(sequence))?;
        let truths = truths(sequences, form.layout.task);
        let counted = counted(&truths);
        Ok(Self::laid_out(sequences, form, truths, counted))
    }

    /// Returns the tokens' numbers in the vocabulary; empty if the graphs do not take them.
    #[must_use]
    pub fn ids(&self) -> &[i64] {
        match self.parts.get(&BatchPart::InputIds) {
            Some(Part::Integers(ids)) => ids.as_slice().unwrap_or_default(),
            Some(Part::Numbers(_)) | None => &[],
        }
    }

    /// Lays out `sequences` in batches of at most `most` examples. Each batch is made when the iterator reaches it.
    ///
    /// A row weighs the same as in one batch of all examples. If batch `k` has `n_k` rows with a target, of `n` in all, a term
    /// of the loss weighs `1 / n`, not `1 / n_k`. Losses and gradients of the parts therefore add up to those in one batch, for
    /// any distribution of the targets. If `most` covers all examples, the result is the same as [`Batch::new`]'s.
    ///
    /// # Errors
    /// The errors of [`Form::check`].
    pub fn cut(sequences: &[Sequence], form: &Form, most: usize) -> Result<impl Iterator<Item = Self>, BatchError> {
        sequences.iter().try_for_each(|sequence| form.check(sequence))?;
        let counted = counted(&truths(sequences, form.layout.task));
        let laid_out = move |part: &[Sequence]| Self::laid_out(part, form, truths(part, form.layout.task), counted);
        Ok(sequences.chunks(most.max(1)).map(laid_out))
    }

    /// Lays out checked sequences. `counted` is the number of rows with a target, in all batches of the same loss.
    fn laid_out(sequences: &[Sequence], form: &Form, truths: Vec<Truth>, counted: usize) -> Self {
        let rows = Rows::of(sequences, form.parts.iter().any(is_of_slots));
        let drawing = Drawing { sequences, layout: &form.layout, rows: &rows, truths: &truths, counted };
        let parts = form.parts.iter().map(|&part| (part, drawing.part(part))).collect();
        let order = Part::Integers(Array1::from_iter(0..sequences.len() as i64).into_dyn());
        let ends =
            rows.firsts.iter().zip(&rows.lengths).map(|(first, length)| first + length.saturating_sub(1)).collect();
        Self { tokens: rows.tokens, rows: rows.all, examples: sequences.len(), truths, ends, parts, order }
    }
}

/// Returns true if a part lays tokens out in a rectangle.
fn is_of_slots(part: &BatchPart) -> bool {
    matches!(
        part,
        BatchPart::ToHeads
            | BatchPart::ToTokens
            | BatchPart::ToKeyHeads
            | BatchPart::ToKeyTokens
            | BatchPart::ToSlots
            | BatchPart::FromSlots
    )
}

/// Returns the number of rows that count in the loss.
fn counted(truths: &[Truth]) -> usize {
    truths.iter().filter(|truth| **truth != Truth::None).count()
}

/// Returns the expected result for each row of the scores. In a language model, each token predicts the next one.
fn truths(sequences: &[Sequence], task: Task) -> Vec<Truth> {
    let of_token = |target: &Target, token: usize| match target {
        Target::Tokens(classes) => classes[token].map(Truth::Class),
        Target::Next(labels) => labels.get(token + 1).copied().flatten().map(|id| Truth::Class(id as usize)),
        Target::None | Target::Class(_) | Target::Numbers(_) => None,
    };
    let of_example = |sequence: &Sequence| match &sequence.target {
        Target::Class(class) => Truth::Class(*class),
        Target::Numbers(numbers) => Truth::Numbers(numbers.clone()),
        Target::None | Target::Tokens(_) | Target::Next(_) => Truth::None,
    };
    if !task.is_per_token() {
        return sequences.iter().map(of_example).collect();
    }
    let tokens = sequences.iter().flat_map(|sequence| {
        (0..sequence.ids.len()).map(move |token| of_token(&sequence.target, token).unwrap_or(Truth::None))
    });
    tokens.collect()
}

/// Positions of each example's tokens in the row.
struct Rows {
    lengths: Vec<usize>,
    firsts: Vec<usize>,
    tokens: usize,
    all: usize,
    width: usize,
}

impl Rows {
    /// Returns the places of the tokens of `sequences`. `slots` is true if a graph lays tokens out in a rectangle.
    fn of(sequences: &[Sequence], slots: bool) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.ids.len()).collect();
        let width = lengths.iter().copied().max().unwrap_or(0);
        let tokens: usize = lengths.iter().sum();
        let firsts = lengths
            .iter()
            .scan(0, |next, length| {
                let first = *next;
                *next += length;
                Some(first)
            })
            .collect();
        let all = tokens + usize::from(slots && tokens < lengths.len() * width);
        Self { lengths, firsts, tokens, all, width }
    }

    /// Returns every slot of the rectangle: its example, its place there, and the row it shows.
    fn slots(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.lengths.iter().zip(&self.firsts).enumerate().flat_map(move |(example, (&length, &first))| {
            (0..self.width).map(move |slot| (example, slot, if slot < length { first + slot } else { self.tokens }))
        })
    }

    /// Returns `[B, heads, S]`: row of each slot's token in `[T * heads, d]`.
    fn to_heads(&self, heads: usize) -> Array3<i64> {
        let mut index = Array3::zeros((self.lengths.len(), heads, self.width));
        for (example, slot, row) in self.slots() {
            (0..heads).for_each(|head| index[(example, head, slot)] = (row * heads + head) as i64);
        }
        index
    }

    /// Returns `[T, heads]`: row of each token in `[B * heads * S, d]`. The extra token has several slots and takes the last.
    fn to_tokens(&self, heads: usize) -> Array2<i64> {
        let mut index = Array2::zeros((self.all, heads));
        for (example, slot, row) in self.slots() {
            (0..heads).for_each(|head| index[(row, head)] = ((example * heads + head) * self.width + slot) as i64);
        }
        index
    }

    /// Returns `[B, S]`: `text` for a token, `padding` for the extra one.
    fn masked(&self, text: f32, padding: f32) -> Array2<f32> {
        let mut mask = Array2::from_elem((self.lengths.len(), self.width), padding);
        for (example, slot, row) in self.slots() {
            if row < self.tokens {
                mask[(example, slot)] = text;
            }
        }
        mask
    }

    /// Returns `[S, S]`: 0 if the query (row) sees the key (column), otherwise [`MASKED`]. `sees` receives the distance of the
    /// key behind the query.
    fn seen(&self, sees: impl Fn(usize) -> bool) -> Array2<f32> {
        let visible = |query: usize, key: usize| query.checked_sub(key).is_some_and(&sees);
        Array2::from_shape_fn((self.width, self.width), |(query, key)| if visible(query, key) { 0.0 } else { MASKED })
    }
}

/// Makes the parts of a batch.
struct Drawing<'a> {
    sequences: &'a [Sequence],
    layout: &'a Layout,
    rows: &'a Rows,
    truths: &'a [Truth],
    /// Number of rows that count, in all batches of the same loss.
    counted: usize,
}

impl Drawing<'_> {
    fn part(&self, part: BatchPart) -> Part {
        let (rows, layout) = (self.rows, self.layout);
        match part {
            BatchPart::InputIds => self.per_token(0, |sequence, token| i64::from(sequence.ids[token])),
            BatchPart::TokenTypeIds => self.per_token(0, |sequence, token| match layout.segments {
                0 | 1 => 0,
                _ => i64::from(sequence.types[token]),
            }),
            BatchPart::PositionIds => {
                let first = layout.first_position;
                self.per_token(first as i64, |_, token| (first + token) as i64)
            }
            BatchPart::ToHeads => integers(rows.to_heads(layout.heads)),
            BatchPart::ToTokens => integers(rows.to_tokens(layout.heads)),
            BatchPart::ToKeyHeads => integers(rows.to_heads(layout.key_heads)),
            BatchPart::ToKeyTokens => integers(rows.to_tokens(layout.key_heads)),
            BatchPart::ToSlots => integers(rows.to_heads(1).remove_axis(Axis(1))),
            BatchPart::FromSlots => integers(rows.to_tokens(1).remove_axis(Axis(1))),
            BatchPart::SlotMask => numbers(rows.masked(1.0, 0.0).insert_axis(Axis(2))),
            BatchPart::KeyBias => numbers(rows.masked(0.0, MASKED).insert_axis(Axis(1)).insert_axis(Axis(1))),
            BatchPart::CausalBias => numbers(rows.seen(|_| true)),
            BatchPart::WindowBias => numbers(rows.seen(|behind| layout.window.is_none_or(|window| behind < window))),
            BatchPart::KeyDistances => self.distances(|column, last| last - column),
            BatchPart::QueryDistances => self.distances(|column, last| column - last),
            BatchPart::FirstTokens => integers(rows.firsts.iter().map(|&first| first as i64).collect::<Array1<i64>>()),
            BatchPart::LastTokens => {
                let last = |(first, length): (&usize, &usize)| (first + length) as i64 - 1;
                integers(rows.firsts.iter().zip(&rows.lengths).map(last).collect::<Array1<i64>>())
            }
            BatchPart::Targets => numbers(self.targets()),
            BatchPart::ExampleWeights => numbers(self.weights(rows.lengths.len(), layout.classes).insert_axis(Axis(1))),
            BatchPart::NextTokens => {
                let id = |truth: &Truth| if let Truth::Class(id) = truth { *id as i64 } else { 0 };
                let mut next = Array1::zeros(rows.all);
                next.iter_mut().zip(self.truths).for_each(|(next, truth)| *next = id(truth));
                integers(next)
            }
            BatchPart::TokenWeights => numbers(self.weights(rows.all, 1).insert_axis(Axis(1))),
        }
    }

    /// Returns `[T]`: a number for each token, and `extra` for the extra token.
    fn per_token(&self, extra: i64, number: impl Fn(&Sequence, usize) -> i64) -> Part {
        let mut values = Vec::with_capacity(self.rows.all);
        for sequence in self.sequences {
            values.extend((0..sequence.ids.len()).map(|token| number(sequence, token)));
        }
        values.resize(self.rows.all, extra);
        integers(Array1::from(values))
    }

    /// Returns `[2 S]`: the relative embedding's row for each distance; all of them zero if the model has none.
    fn distances(&self, distance: impl Fn(i64, i64) -> i64) -> Part {
        let last = self.rows.width as i64 - 1;
        let row =
            |column: usize| self.layout.relative.map_or(0, |relative| relative.row(distance(column as i64, last)));
        integers(Array1::from_shape_fn(2 * self.rows.width, row))
    }

    /// Returns `[B, C]` or `[T, C]`: the numbers, or each row's weight at its class.
    fn targets(&self) -> Array2<f32> {
        let rows = if self.layout.task.is_per_token() { self.rows.all } else { self.rows.lengths.len() };
        let mut targets = Array2::zeros((rows, self.layout.classes));
        let weights = self.weights(rows, 1);
        for (at, truth) in self.truths.iter().enumerate() {
            match truth {
                Truth::None => {}
                Truth::Class(class) => targets[(at, *class)] = weights[at],
                Truth::Numbers(numbers) => targets.row_mut(at).assign(&ArrayView1::from(numbers)),
            }
        }
        targets
    }

    /// Returns the share in the loss of each of a row's `terms` terms, for `rows` rows. All rows that count have the same share.
    fn weights(&self, rows: usize, terms: usize) -> Array1<f32> {
        let share = 1.0 / (self.counted * terms).max(1) as f32;
        let mut weights = Array1::zeros(rows);
        for (weight, truth) in weights.iter_mut().zip(self.truths) {
            *weight = if *truth == Truth::None { 0.0 } else { share };
        }
        weights
    }
}

fn integers<D: Dimension>(array: ndarray::Array<i64, D>) -> Part {
    Part::Integers(array.into_dyn())
}

fn numbers<D: Dimension>(array: ndarray::Array<f32, D>) -> Part {
    Part::Numbers(array.into_dyn())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::examples::of_lengths;
    use proptest::prelude::*;
    use skiff_models::layout::RelativePositions;

    const HEADS: usize = 4;
    const KEY_HEADS: usize = 2;
    const FIRST: usize = 2;
    const WINDOW: usize = 2;
    const RELATIVE: RelativePositions = RelativePositions { span: 8, buckets: Some(4), max_distance: 16 };

    fn form(task: Task) -> Form {
        let layout = Layout {
            task,
            classes: if task == Task::CausalLm { 50 } else { 3 },
            heads: HEADS,
            key_heads: KEY_HEADS,
            vocabulary: 50,
            segments: 2,
            first_position: FIRST,
            max_tokens: 16,
            window: Some(WINDOW),
            relative: Some(RELATIVE),
        };
        let parts = [
            BatchPart::InputIds,
            BatchPart::TokenTypeIds,
            BatchPart::PositionIds,
            BatchPart::ToHeads,
            BatchPart::ToTokens,
            BatchPart::ToKeyHeads,
            BatchPart::ToKeyTokens,
            BatchPart::ToSlots,
            BatchPart::FromSlots,
            BatchPart::SlotMask,
            BatchPart::KeyBias,
            BatchPart::CausalBias,
            BatchPart::WindowBias,
            BatchPart::KeyDistances,
            BatchPart::QueryDistances,
            BatchPart::FirstTokens,
            BatchPart::LastTokens,
            BatchPart::Targets,
            BatchPart::ExampleWeights,
            BatchPart::NextTokens,
            BatchPart::TokenWeights,
        ];
        Form { layout, parts: BTreeSet::from(parts) }
    }

    fn laid_out(task: Task, lengths: &[usize]) -> (Vec<Sequence>, Batch) {
        let form = form(task);
        let sequences = of_lengths(&form.layout, lengths);
        let batch = Batch::new(&sequences, &form).unwrap();
        (sequences, batch)
    }

    fn whole(batch: &Batch, part: BatchPart) -> &ArrayD<i64> {
        match &batch.parts[&part] {
            Part::Integers(array) => array,
            Part::Numbers(_) => panic!("{part:?} is not of integers"),
        }
    }

    fn real(batch: &Batch, part: BatchPart) -> &ArrayD<f32> {
        match &batch.parts[&part] {
            Part::Numbers(array) => array,
            Part::Integers(_) => panic!("{part:?} is not of numbers"),
        }
    }

    fn lengths() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(1..7usize, 1..6)
    }

    proptest! {
        #[test]
        fn every_token_finds_its_way_to_the_heads_and_back(lengths in lengths()) {
            let (_, batch) = laid_out(Task::SequenceClassification, &lengths);
            let ways = [
                (BatchPart::ToHeads, BatchPart::ToTokens, HEADS),
                (BatchPart::ToKeyHeads, BatchPart::ToKeyTokens, KEY_HEADS),
                (BatchPart::ToSlots, BatchPart::FromSlots, 1),
            ];
            for (there, back, heads) in ways {
                let slots: Vec<i64> = whole(&batch, there).iter().copied().collect();
                prop_assert_eq!(slots.len(), lengths.len() * heads * lengths.iter().max().unwrap());
                for (place, &slot) in whole(&batch, back).iter().enumerate() {
                    prop_assert_eq!(slots[slot as usize], place as i64);
                }
                prop_assert!(slots.iter().all(|&slot| slot < (batch.rows * heads) as i64));
            }
        }

        #[test]
        fn padding_is_masked_and_text_is_not(lengths in lengths()) {
            let (_, batch) = laid_out(Task::SequenceClassification, &lengths);
            let (bias, mask) = (real(&batch, BatchPart::KeyBias), real(&batch, BatchPart::SlotMask));
            for ((&bias, &mask), &shown) in bias.iter().zip(mask).zip(whole(&batch, BatchPart::ToSlots)) {
                let padding = shown as usize == batch.tokens;
                prop_assert_eq!((bias < 0.0, mask < 0.5), (padding, padding));
            }
            prop_assert_eq!(batch.tokens, lengths.iter().sum::<usize>());
        }

        #[test]
        fn examples_begin_and_end_where_their_tokens_do(lengths in lengths()) {
            let (sequences, batch) = laid_out(Task::SequenceClassification, &lengths);
            let (ids, positions) = (whole(&batch, BatchPart::InputIds), whole(&batch, BatchPart::PositionIds));
            for (example, sequence) in sequences.iter().enumerate() {
                let first = whole(&batch, BatchPart::FirstTokens)[example] as usize;
                let last = whole(&batch, BatchPart::LastTokens)[example] as usize;
                prop_assert_eq!(last + 1 - first, sequence.ids.len());
                prop_assert_eq!(ids[first], i64::from(sequence.ids[0]));
                prop_assert_eq!(ids[last], i64::from(*sequence.ids.last().unwrap()));
                prop_assert_eq!(positions[first], FIRST as i64);
                prop_assert_eq!(positions[last], (FIRST + sequence.ids.len() - 1) as i64);
            }
            prop_assert!(positions.iter().all(|&position| (FIRST as i64..(FIRST + 16) as i64).contains(&position)));
        }

        #[test]
        fn a_query_sees_itself_and_what_is_before_it_as_far_as_the_window_goes(lengths in lengths()) {
            let (_, batch) = laid_out(Task::CausalLm, &lengths);
            let (causal, window) = (real(&batch, BatchPart::CausalBias), real(&batch, BatchPart::WindowBias));
            for query in 0..causal.shape()[0] {
                for key in 0..causal.shape()[1] {
                    prop_assert_eq!(causal[[query, key]] < 0.0, key > query);
                    prop_assert_eq!(window[[query, key]] < 0.0, key > query || key + WINDOW <= query);
                }
            }
        }

        #[test]
        fn distances_are_numbered_from_both_ends(lengths in lengths()) {
            let (_, batch) = laid_out(Task::SequenceClassification, &lengths);
            let (keys, queries) = (whole(&batch, BatchPart::KeyDistances), whole(&batch, BatchPart::QueryDistances));
            let width = *lengths.iter().max().unwrap();
            prop_assert_eq!((keys.len(), queries.len()), (2 * width, 2 * width));
            for query in 0..width {
                for key in 0..width {
                    // Column in [S, 2 S] from which a skew takes the pair.
                    let row = RELATIVE.row(query as i64 - key as i64);
                    prop_assert_eq!(keys[key + width - 1 - query], row);
                    prop_assert_eq!(queries[query + width - 1 - key], row);
                }
            }
        }

        #[test]
        fn every_weight_of_a_class_is_at_its_label_and_all_of_them_make_one(lengths in lengths()) {
            for task in [Task::SequenceClassification, Task::TokenClassification] {
                let (_, batch) = laid_out(task, &lengths);
                let targets = real(&batch, BatchPart::Targets);
                prop_assert!((targets.sum() - 1.0).abs() < 1e-6);
                for (row, targets) in targets.axis_iter(Axis(0)).enumerate() {
                    let class = targets.iter().position(|&weight| weight > 0.0);
                    let truth = class.map_or(Truth::None, Truth::Class);
                    prop_assert_eq!(batch.truths.get(row).unwrap_or(&Truth::None), &truth);
                }
            }
        }

        #[test]
        fn a_token_foretells_the_label_after_it_in_its_own_example(lengths in lengths()) {
            let (sequences, batch) = laid_out(Task::CausalLm, &lengths);
            let (next, weights) = (whole(&batch, BatchPart::NextTokens), real(&batch, BatchPart::TokenWeights));
            let shifted = sequences.iter().flat_map(|sequence| {
                let Target::Next(labels) = &sequence.target else { panic!("a language model's target") };
                labels[1..].iter().copied().chain([None])
            });
            let shifted: Vec<Option<u32>> = shifted.chain([None]).take(batch.rows).collect();
            let valid = shifted.iter().flatten().count();
            for (row, label) in shifted.iter().enumerate() {
                prop_assert_eq!(next[row], label.map_or(0, i64::from));
                let weight = if label.is_some() { 1.0 / valid as f32 } else { 0.0 };
                prop_assert!((weights[[row, 0]] - weight).abs() < 1e-9);
            }
        }

        #[test]
        fn parts_weigh_in_all_what_the_whole_weighs(lengths in lengths(), most in 1..7usize) {
            for task in Task::ALL {
                let (sequences, batch) = laid_out(task, &lengths);
                let parts: Vec<Batch> = Batch::cut(&sequences, &form(task), most).unwrap().collect();
                prop_assert!(parts.iter().all(|part| part.examples <= most));
                let truths: Vec<Truth> = parts.iter().flat_map(|part| part.truths.clone()).collect();
                prop_assert_eq!(&truths, &batch.truths);
                let weights = match task {
                    Task::CausalLm => BatchPart::TokenWeights,
                    Task::Regression => BatchPart::ExampleWeights,
                    Task::SequenceClassification | Task::TokenClassification => BatchPart::Targets,
                };
                // The zeros of the extra rows are left out.
                let values = |batch: &Batch| {
                    real(batch, weights).iter().copied().filter(|weight| *weight > 0.0).collect::<Vec<f32>>()
                };
                prop_assert_eq!(parts.iter().flat_map(values).collect::<Vec<f32>>(), values(&batch));
                if most >= lengths.len() {
                    prop_assert_eq!(&parts, &[batch]);
                }
            }
        }

        #[test]
        fn numbers_stand_as_they_are_and_all_errors_weigh_the_same(lengths in lengths()) {
            let (sequences, batch) = laid_out(Task::Regression, &lengths);
            let (targets, weights) = (real(&batch, BatchPart::Targets), real(&batch, BatchPart::ExampleWeights));
            for (row, sequence) in sequences.iter().enumerate() {
                let Target::Numbers(numbers) = &sequence.target else { panic!("numbers") };
                prop_assert_eq!(&targets.index_axis(Axis(0), row).to_vec_of(), numbers);
                prop_assert!((weights[[row, 0]] * (3 * lengths.len()) as f32 - 1.0).abs() < 1e-6);
            }
        }
    }

    trait ToVec {
        fn to_vec_of(&self) -> Vec<f32>;
    }

    impl ToVec for ndarray::ArrayViewD<'_, f32> {
        fn to_vec_of(&self) -> Vec<f32> {
            self.iter().copied().collect()
        }
    }

    #[test]
    fn equal_lengths_need_no_extra_token() {
        let (_, batch) = laid_out(Task::SequenceClassification, &[3, 3]);
        assert_eq!((batch.tokens, batch.rows), (6, 6));
        let values = |part| whole(&batch, part).iter().copied().collect::<Vec<_>>();
        assert_eq!(values(BatchPart::FirstTokens), [0, 3]);
        assert_eq!(values(BatchPart::PositionIds), [2, 3, 4, 2, 3, 4]);
    }

    #[test]
    fn only_what_is_asked_for_is_made() {
        let parts = BTreeSet::from([BatchPart::InputIds, BatchPart::KeyBias]);
        let form = Form { parts: parts.clone(), ..form(Task::SequenceClassification) };
        let batch = Batch::new(&of_lengths(&form.layout, &[2, 4]), &form).unwrap();
        assert!(batch.parts.keys().eq(&parts));
    }

    #[test]
    fn an_example_without_a_target_weighs_nothing() {
        let form = form(Task::SequenceClassification);
        let mut sequences = of_lengths(&form.layout, &[2, 4, 3]);
        sequences[1].target = Target::None;
        let batch = Batch::new(&sequences, &form).unwrap();
        let weights = real(&batch, BatchPart::Targets).sum_axis(Axis(1));
        assert_eq!(weights.iter().copied().collect::<Vec<_>>(), [0.5, 0.0, 0.5]);
    }

    #[test]
    fn a_model_of_one_segment_is_not_told_of_a_second() {
        let mut form = form(Task::SequenceClassification);
        let sequences = of_lengths(&form.layout, &[4]);
        assert!(whole(&Batch::new(&sequences, &form).unwrap(), BatchPart::TokenTypeIds).sum() > 0);
        form.layout.segments = 1;
        assert_eq!(whole(&Batch::new(&sequences, &form).unwrap(), BatchPart::TokenTypeIds).sum(), 0);
    }

    #[test]
    fn what_the_model_does_not_have_is_named() {
        let sound = |task| (form(task), of_lengths(&form(task).layout, &[3]).remove(0));
        let refused = |task, change: fn(&mut Sequence)| {
            let (form, mut sequence) = sound(task);
            change(&mut sequence);
            Batch::new(&[sequence], &form).unwrap_err().to_string()
        };
        let by_class = |change| refused(Task::SequenceClassification, change);
        assert!(by_class(|sequence| sequence.ids[1] = 50).contains("the token 50"));
        assert!(by_class(|sequence| sequence.types[1] = 2).contains("the segment 2"));
        assert!(by_class(|sequence| sequence.target = Target::Class(3)).contains("the class 3"));
        assert!(by_class(|sequence| sequence.ids.clear()).contains("0 tokens"));
        assert!(by_class(|sequence| sequence.target = Target::Numbers(vec![1.0])).contains("sequence-classification"));
        assert!(
            refused(Task::Regression, |sequence| sequence.target = Target::Numbers(vec![1.0])).contains("1 numbers")
        );
        assert!(refused(Task::CausalLm, |sequence| sequence.target = Target::Next(vec![Some(50); 3])).contains("50"));
        assert!(
            refused(Task::TokenClassification, |sequence| sequence.target = Target::Tokens(vec![])).contains("0 token")
        );
    }
}
