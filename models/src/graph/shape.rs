//! Dimensions that may be unknown until a batch exists: products of a number and symbols such as `T`.

use std::fmt;
use std::sync::Arc;

/// Dimensions, outermost first.
pub type Shape = Vec<Dim>;

/// `factor * symbol * symbol ...`: 384, `T`, `12*B*S`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Dim {
    factor: usize,
    symbols: Vec<Arc<str>>,
}

impl Dim {
    /// Returns a dimension that is known when the graph is built.
    #[must_use]
    pub fn fixed(size: usize) -> Self {
        Self { factor: size, symbols: Vec::new() }
    }

    /// Returns a dimension that is known when the graph runs.
    #[must_use]
    pub fn symbol(name: &str) -> Self {
        Self { factor: 1, symbols: vec![name.into()] }
    }

    /// Returns the product of two dimensions.
    #[must_use]
    pub fn times(&self, other: &Self) -> Self {
        let mut symbols = [self.symbols.as_slice(), other.symbols.as_slice()].concat();
        symbols.sort_unstable();
        Self { factor: self.factor * other.factor, symbols }
    }

    /// Returns half of the dimension, if its factor is even.
    #[must_use]
    pub fn half(&self) -> Option<Self> {
        self.factor.is_multiple_of(2).then(|| Self { factor: self.factor / 2, symbols: self.symbols.clone() })
    }

    /// Returns the dimension's size. `of` returns the size of a symbol.
    #[must_use]
    pub fn size(&self, of: &dyn Fn(&str) -> usize) -> usize {
        self.symbols.iter().fold(self.factor, |product, symbol| product.saturating_mul(of(symbol)))
    }

    /// Returns the dimension's size, if it is known.
    #[must_use]
    pub fn known(&self) -> Option<usize> {
        self.symbols.is_empty().then_some(self.factor)
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Self::fixed(size)
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Self {
        Self::symbol(name)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.factor, self.symbols.is_empty()) {
            (factor, true) => write!(f, "{factor}"),
            (1, false) => f.write_str(&self.symbols.join("*")),
            (factor, false) => write!(f, "{factor}*{}", self.symbols.join("*")),
        }
    }
}

/// Returns the number of elements of a shape, as a product of its dimensions.
#[must_use]
pub fn elements(shape: &Shape) -> Dim {
    shape.iter().fold(Dim::fixed(1), |product, dim| product.times(dim))
}

/// Returns the dimensions of `target` for a reshape of `source` in ONNX's form: a size, 0 for the size of `source` at the
/// same position, or -1 for an unknown one. Returns `None` if more than one dimension is unknown.
#[must_use]
pub fn reshape_target(source: &[Dim], target: &[Dim]) -> Option<Vec<i64>> {
    let written = |(axis, dim): (usize, &Dim)| match dim.known() {
        Some(size) => size as i64,
        None if source.get(axis) == Some(dim) => 0,
        None => -1,
    };
    let sizes: Vec<i64> = target.iter().enumerate().map(written).collect();
    (sizes.iter().filter(|&&size| size < 0).count() <= 1).then_some(sizes)
}

/// Returns the common shape after broadcasting as in NumPy; `None` if the shapes do not broadcast.
#[must_use]
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::fixed(1);
    let dimension = |shape: &[Dim], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or_else(|| one.clone(), |position| shape[position].clone())
    };
    (0..rank)
        .map(|axis| match (dimension(a, axis), dimension(b, axis)) {
            (left, right) if left == right || right == one => Some(left),
            (left, right) if left == one => Some(right),
            _ => None,
        })
        .collect()
}

/// Returns a readable shape: `[T, 384]`.
#[must_use]
pub fn show_shape(shape: &[Dim]) -> String {
    format!("[{}]", shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_do_not_depend_on_the_order_of_their_factors() {
        let (t, twelve) = (Dim::from("T"), Dim::from(12));
        assert_eq!(t.times(&twelve), twelve.times(&t));
        assert_eq!(elements(&vec![Dim::from("B"), twelve, Dim::from("S")]).to_string(), "12*B*S");
    }

    #[test]
    fn a_symbol_may_be_a_name_made_at_run_time() {
        let name = format!("R.attention.self.{}", "query");
        let dim = Dim::symbol(&name).times(&Dim::from(2));
        assert_eq!(dim.to_string(), "2*R.attention.self.query");
        assert_eq!(dim.half(), Some(Dim::from(name.as_str())));
        assert_eq!(Dim::symbol(&name).half(), None);
    }

    #[test]
    fn a_reshape_copies_what_stays_in_its_place_and_leaves_one_dimension_open() {
        let (b, s) = (Dim::from("B"), Dim::from("S"));
        let heads = vec![b.clone(), 12.into(), s.clone(), 64.into()];
        let groups = vec![b.clone(), 4.into(), s.times(&3.into()), 64.into()];
        assert_eq!(reshape_target(&heads, &groups), Some(vec![0, 4, -1, 64]));
        assert_eq!(reshape_target(&groups, &heads), Some(vec![0, 12, -1, 64]));
        let scores = vec![b.clone(), 4.into(), s.times(&3.into()), s.clone()];
        assert_eq!(reshape_target(&scores, &[b.clone(), 12.into(), s.clone(), s.clone()]), Some(vec![0, 12, -1, 0]));
        assert_eq!(reshape_target(&[b.times(&s), 8.into()], &[b, s, 8.into()]), None);
    }

    #[test]
    fn ones_broadcast_and_unequal_dimensions_do_not() {
        let rows = vec![Dim::from("T"), Dim::from(8)];
        assert_eq!(broadcast(&rows, &[Dim::from(8)]), Some(rows.clone()));
        assert_eq!(broadcast(&[Dim::from("T"), Dim::from(1)], &rows), Some(rows.clone()));
        assert_eq!(broadcast(&rows, &[Dim::from(7)]), None);
        assert_eq!(broadcast(&rows, &[Dim::from("S"), Dim::from(8)]), None);
    }
}
