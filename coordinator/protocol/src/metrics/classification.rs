//! Counts of a classification: one class for each text.

use super::{MAX_REPORTED_COUNT, Mismatch, add, f1, ratio};
use crate::limits::at_most;
use serde::{Deserialize, Serialize};

/// Largest number of classes that are counted.
pub const MAX_CLASSES: usize = 4096;
/// Maximum number of cells of the confusion matrix that are not 0; a larger matrix is left out.
pub const MAX_CELLS: usize = 8192;

/// Counts for each class, and the confusion matrix if it is small enough.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Classification {
    /// Counts by class, in the order of the model's labels; at most [`MAX_CLASSES`].
    #[serde(deserialize_with = "at_most::<MAX_CLASSES, _, _>")]
    classes: Vec<ClassCounts>,
    /// Cells that are not 0, ascending by truth, then prediction; `None` if there were more than [`MAX_CELLS`].
    confusion: Option<Cells>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Cells(#[serde(deserialize_with = "at_most::<MAX_CELLS, _, _>")] Vec<Cell>);

/// Counts of one class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClassCounts {
    /// Number of examples of this class.
    pub truth: u64,
    /// Number of examples that the model assigned to this class.
    pub predicted: u64,
    /// Number of examples of this class that the model assigned to it.
    pub correct: u64,
}

/// One cell of a confusion matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// Class of the examples.
    pub truth: u16,
    /// Class that the model assigned.
    pub predicted: u16,
    /// Number of such examples; at least 1.
    pub count: u64,
}

impl ClassCounts {
    /// Returns F1 = 2·correct / (truth + predicted), the harmonic mean of precision and recall.
    ///
    /// Source: scikit-learn's `f1_score`. `None` if the class is neither in the examples nor predicted.
    #[must_use]
    pub fn f1(&self) -> Option<f64> {
        f1(self.truth, self.predicted, self.correct)
    }

    fn merge(&mut self, other: &Self) -> Result<(), Mismatch> {
        self.truth = add(self.truth, other.truth)?;
        self.predicted = add(self.predicted, other.predicted)?;
        self.correct = add(self.correct, other.correct)?;
        Ok(())
    }
}

impl Classification {
    /// Returns zero counts for `classes` classes; `None` if there are none, or more than [`MAX_CLASSES`].
    #[must_use]
    pub fn new(classes: usize) -> Option<Self> {
        let fits = (1..=MAX_CLASSES).contains(&classes);
        fits.then(|| Self { classes: vec![ClassCounts::default(); classes], confusion: Some(Cells::default()) })
    }

    /// Builds the metrics from their parts; `None` if the parts contradict each other. Counts may exceed the limit for a single
    /// report.
    #[must_use]
    pub fn of_counts(classes: Vec<ClassCounts>, confusion: Option<Vec<Cell>>) -> Option<Self> {
        let counts = Self { classes, confusion: confusion.map(Cells) };
        let agrees = counts.confusion.as_ref().is_none_or(|Cells(cells)| counts.agrees_with(cells, u64::MAX));
        ((1..=MAX_CLASSES).contains(&counts.classes.len()) && agrees).then_some(counts)
    }

    /// Counts one example of class `truth` that the model assigned to `predicted`. Unknown classes are not counted.
    pub fn count(&mut self, truth: usize, predicted: usize) {
        if truth.max(predicted) >= self.classes.len() {
            return;
        }
        self.classes[truth].truth += 1;
        self.classes[predicted].predicted += 1;
        self.classes[truth].correct += u64::from(truth == predicted);
        let Some(Cells(cells)) = &mut self.confusion else { return };
        let (Ok(truth), Ok(predicted)) = (u16::try_from(truth), u16::try_from(predicted)) else { return };
        match cells.binary_search_by_key(&(truth, predicted), Cell::key) {
            Ok(at) => cells[at].count += 1,
            Err(_) if cells.len() == MAX_CELLS => self.confusion = None,
            Err(at) => cells.insert(at, Cell { truth, predicted, count: 1 }),
        }
    }

    /// Returns the counts by class.
    #[must_use]
    pub fn classes(&self) -> &[ClassCounts] {
        &self.classes
    }

    /// Returns the confusion matrix without its zeros, ascending by truth, then prediction; `None` if it is too large.
    #[must_use]
    pub fn confusion(&self) -> Option<&[Cell]> {
        self.confusion.as_ref().map(|Cells(cells)| cells.as_slice())
    }

    /// Returns the number of examples.
    #[must_use]
    pub fn examples(&self) -> u64 {
        self.classes.iter().fold(0, |sum, class| sum.saturating_add(class.truth))
    }

    /// Returns accuracy = Σ correct / examples; `None` without examples.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let correct = self.classes.iter().fold(0_u64, |sum, class| sum.saturating_add(class.correct));
        ratio(correct, self.examples())
    }

    /// Returns macro-F1, the mean of the classes' F1, each class with the same weight.
    ///
    /// Source: scikit-learn's `f1_score(average="macro")` with its default `labels=None`: the mean is over the classes
    /// that occur in the examples or in the predictions. A class that occurs in neither is left out. A class without a
    /// correct prediction counts as 0. `None` without examples.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "there are at most 4096 classes")]
    pub fn macro_f1(&self) -> Option<f64> {
        let scores: Vec<f64> = self.classes.iter().filter_map(ClassCounts::f1).collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<(), Mismatch> {
        let (ours, theirs) = (self.classes.len(), other.classes.len());
        if ours != theirs {
            return Err(Mismatch::Classes { ours, theirs });
        }
        let mut classes = self.classes.clone();
        classes.iter_mut().zip(&other.classes).try_for_each(|(ours, theirs)| ours.merge(theirs))?;
        let confusion = match (&self.confusion, &other.confusion) {
            (Some(Cells(ours)), Some(Cells(theirs))) => union(ours, theirs)?,
            (None, _) | (_, None) => None,
        };
        *self = Self { classes, confusion };
        Ok(())
    }

    pub(super) fn check(&self, examples: u64) -> Result<(), &'static str> {
        let is_reportable = |count: u64| count <= MAX_REPORTED_COUNT;
        let plausible = |class: &ClassCounts| {
            is_reportable(class.truth)
                && is_reportable(class.predicted)
                && class.correct <= class.truth.min(class.predicted)
        };
        let predicted = self.classes.iter().fold(0_u64, |sum, class| sum.saturating_add(class.predicted));
        let is_whole = self.examples() == predicted && predicted <= examples;
        if !((1..=MAX_CLASSES).contains(&self.classes.len()) && self.classes.iter().all(plausible) && is_whole) {
            return Err("metrics.classes");
        }
        match &self.confusion {
            Some(Cells(cells)) if !self.agrees_with(cells, MAX_REPORTED_COUNT) => Err("metrics.confusion"),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns true if the cells are in order, no count exceeds `most`, and the counts add up to the counts by class.
    fn agrees_with(&self, cells: &[Cell], most: u64) -> bool {
        let in_order = cells.len() <= MAX_CELLS && cells.is_sorted_by(|a, b| a.key() < b.key());
        let mut sums = vec![ClassCounts::default(); self.classes.len()];
        let all_known = cells.iter().all(|cell| {
            let (truth, predicted) = (usize::from(cell.truth), usize::from(cell.predicted));
            if truth.max(predicted) >= sums.len() || !(1..=most).contains(&cell.count) {
                return false;
            }
            let grow = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
            grow(&mut sums[truth].truth, cell.count);
            grow(&mut sums[predicted].predicted, cell.count);
            grow(&mut sums[truth].correct, if truth == predicted { cell.count } else { 0 });
            true
        });
        in_order && all_known && sums == self.classes
    }
}

impl Cell {
    const fn key(&self) -> (u16, u16) {
        (self.truth, self.predicted)
    }
}

/// Adds two matrices; `None` if the sum has more than [`MAX_CELLS`] cells.
fn union(ours: &[Cell], theirs: &[Cell]) -> Result<Option<Cells>, Mismatch> {
    let mut cells: Vec<Cell> = Vec::with_capacity(ours.len().max(theirs.len()));
    let (mut ours, mut theirs) = (ours.iter().copied().peekable(), theirs.iter().copied().peekable());
    loop {
        let next = match (ours.peek(), theirs.peek()) {
            (Some(our), Some(their)) if our.key() == their.key() => {
                let cell = Cell { count: add(our.count, their.count)?, ..*our };
                ours.next();
                theirs.next();
                Some(cell)
            }
            (Some(our), Some(their)) if our.key() > their.key() => theirs.next(),
            (Some(_), _) => ours.next(),
            (None, _) => theirs.next(),
        };
        match next {
            Some(_) if cells.len() == MAX_CELLS => return Ok(None),
            Some(cell) => cells.push(cell),
            None => return Ok(Some(Cells(cells))),
        }
    }
}
