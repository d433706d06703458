//! A batch as the graphs take it: the tokens of all examples in one row, without padding.
//!
//! Attention needs a rectangle `[B, h, S, d]`. `to_heads` says which token each of its slots shows, `to_tokens` which slot
//! each token is in. Slots beyond an example's end show one extra token at the end of the row, which is there only where
//! slots are left over. Nobody attends to it and nothing reads it, so its gradient is zero in every layer, and moving
//! gradients by the same indices backwards is exact. In shapes, `T` counts it.

use crate::examples::{Sequence, Target};
use ndarray::{Array1, Array2, Array3, ArrayD, ArrayView1, Axis, Dimension};
use skiff_models::layout::Layout;
use skiff_models::pack::Manifest;
use skiff_models::stage::{BatchPart, Binding, StageSpec, StageSpecs};
use skiff_models::task::Task;
use std::collections::{BTreeMap, BTreeSet};

/// Added to the scores of keys that are not to be seen: `exp` of it is exactly zero in f32.
const MASKED: f32 = -1e9;

/// What a pack asks of a batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Form {
    /// How tokens are numbered and looked at, and what the targets are.
    pub layout: Layout,
    /// The parts that any of its graphs takes.
    pub parts: BTreeSet<BatchPart>,
}

/// `B` examples of `T` tokens in all (and the extra one where needed), the longest of `S`.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Tokens of text.
    pub tokens: usize,
    /// Rows of the activations: the tokens of text, and the extra one where there is one.
    pub rows: usize,
    /// Examples, `B`.
    pub examples: usize,
    /// What each row of the scores should have been: `B` rows, or one for each token of text.
    pub truths: Vec<Truth>,
    /// What the graphs take, no more than the form asks for.
    pub parts: BTreeMap<BatchPart, Part>,
}

/// What a row of scores should have been.
#[derive(Clone, PartialEq, Debug)]
pub enum Truth {
    /// It does not count.
    None,
    /// This score the largest.
    Class(usize),
    /// These numbers.
    Numbers(Vec<f32>),
}

/// An input of a graph.
#[derive(Clone, PartialEq, Debug)]
pub enum Part {
    /// Indices.
    Integers(ArrayD<i64>),
    /// Weights, targets, what is added to scores.
    Numbers(ArrayD<f32>),
}

/// Why an example cannot be laid out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// No tokens, or more than the model takes.
    #[error("an example has {tokens} tokens, expected 1 to {most}")]
    Length {
        /// Its tokens.
        tokens: usize,
        /// The layout's.
        most: usize,
    },
    /// Something that is not there once for each token, or a number of numbers that is not the pack's.
    #[error("an example has {found} {what}, expected {expected}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A token, segment or class that the model does not have.
    #[error("an example has the {what} {found}, expected less than {size}")]
    Range {
        /// Of what.
        what: &'static str,
        /// Which.
        found: usize,
        /// How many there are.
        size: usize,
    },
    /// A target for another task.
    #[error("an example has a target that is not one of {task}")]
    Task {
        /// The pack's.
        task: Task,
    },
}

impl Form {
    /// What the pack of `manifest` asks for.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        Self::new(manifest.layout.clone(), &manifest.stages)
    }

    /// What graphs with these ports ask for.
    #[must_use]
    pub fn new(layout: Layout, stages: &StageSpecs) -> Self {
        let stages = [&stages.embed, &stages.head].into_iter().chain(&stages.blocks);
        let ports = stages.flat_map(StageSpec::graphs).flat_map(|graph| &graph.inputs);
        let part = |binding: &Binding| if let Binding::Batch(part) = binding { Some(*part) } else { None };
        Self { layout, parts: ports.filter_map(|port| part(&port.binding)).collect() }
    }

    /// Whether `sequence` can be laid out.
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
    /// Lays out `sequences` as `form` asks. In a loss of classes every row that has a target weighs the same, in one of
    /// numbers every number.
    ///
    /// # Errors
    /// Those of [`Form::check`].
    pub fn new(sequences: &[Sequence], form: &Form) -> Result<Self, BatchError> {
        sequences.iter().try_for_each(|sequence| form.check(sequence))?;
        let rows = Rows::of(sequences);
        let truths = truths(sequences, form.layout.task);
        let drawing = Drawing { sequences, layout: &form.layout, rows: &rows, truths: &truths };
        let parts = form.parts.iter().map(|&part| (part, drawing.part(part))).collect();
        Ok(Self { tokens: rows.tokens, rows: rows.all, examples: sequences.len(), truths, parts })
    }
}

/// What each row of the scores should be. A language model's token is told by the token before it.
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

/// Where the tokens of each example stand.
struct Rows {
    lengths: Vec<usize>,
    firsts: Vec<usize>,
    tokens: usize,
    all: usize,
    width: usize,
}

impl Rows {
    fn of(sequences: &[Sequence]) -> Self {
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
        let all = tokens + usize::from(tokens < lengths.len() * width);
        Self { lengths, firsts, tokens, all, width }
    }

    /// Every slot of the rectangle: its example, its place there, and the row it shows.
    fn slots(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.lengths.iter().zip(&self.firsts).enumerate().flat_map(move |(example, (&length, &first))| {
            (0..self.width).map(move |slot| (example, slot, if slot < length { first + slot } else { self.tokens }))
        })
    }

    /// `[B, heads, S]`: where each slot's token is in `[T * heads, d]`.
    fn to_heads(&self, heads: usize) -> Array3<i64> {
        let mut index = Array3::zeros((self.lengths.len(), heads, self.width));
        for (example, slot, row) in self.slots() {
            (0..heads).for_each(|head| index[(example, head, slot)] = (row * heads + head) as i64);
        }
        index
    }

    /// `[T, heads]`: the way back, from `[B * heads * S, d]`. For the extra token any of its slots will do; the last stays.
    fn to_tokens(&self, heads: usize) -> Array2<i64> {
        let mut index = Array2::zeros((self.all, heads));
        for (example, slot, row) in self.slots() {
            (0..heads).for_each(|head| index[(row, head)] = ((example * heads + head) * self.width + slot) as i64);
        }
        index
    }

    /// `[B, S]`: `text` for a token, `padding` for the extra one.
    fn masked(&self, text: f32, padding: f32) -> Array2<f32> {
        let mut mask = Array2::from_elem((self.lengths.len(), self.width), padding);
        for (example, slot, row) in self.slots() {
            if row < self.tokens {
                mask[(example, slot)] = text;
            }
        }
        mask
    }

    /// `[S, S]`: 0 where a query (row) sees a key (column), by how far behind the query the key is.
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

    /// `[T]`: a number for each token, `extra` for the extra one.
    fn per_token(&self, extra: i64, number: impl Fn(&Sequence, usize) -> i64) -> Part {
        let mut values = Vec::with_capacity(self.rows.all);
        for sequence in self.sequences {
            values.extend((0..sequence.ids.len()).map(|token| number(sequence, token)));
        }
        values.resize(self.rows.all, extra);
        integers(Array1::from(values))
    }

    /// `[2 S]`: the relative embedding's row for each distance; all of them zero where the model has none.
    fn distances(&self, distance: impl Fn(i64, i64) -> i64) -> Part {
        let last = self.rows.width as i64 - 1;
        let row =
            |column: usize| self.layout.relative.map_or(0, |relative| relative.row(distance(column as i64, last)));
        integers(Array1::from_shape_fn(2 * self.rows.width, row))
    }

    /// `[B, C]` or `[T, C]`: the numbers, or the weights of classes.
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

    /// For each of `rows` rows the share of each of its `terms` terms in the loss: the same for all that count.
    fn weights(&self, rows: usize, terms: usize) -> Array1<f32> {
        let counts = |truth: &&Truth| **truth != Truth::None;
        let counted = self.truths.iter().filter(counts).count();
        let share = 1.0 / (counted * terms).max(1) as f32;
        let mut weights = Array1::zeros(rows);
        for (weight, truth) in weights.iter_mut().zip(self.truths) {
            *weight = if counts(&truth) { share } else { 0.0 };
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
