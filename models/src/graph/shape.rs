//! Dimensions that may be unknown until a batch is there: products of a number and symbols such as `T`.

use std::fmt;

/// Dimensions, outermost first.
pub type Shape = Vec<Dim>;

/// `factor * symbol * symbol ...`: 384, `T`, `12*B*S`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Dim {
    factor: usize,
    symbols: Vec<&'static str>,
}

impl Dim {
    /// A dimension known when the graph is built.
    #[must_use]
    pub fn fixed(size: usize) -> Self {
        Self { factor: size, symbols: Vec::new() }
    }

    /// A dimension known when the graph runs.
    #[must_use]
    pub fn symbol(name: &'static str) -> Self {
        Self { factor: 1, symbols: vec![name] }
    }

    /// The product of two dimensions.
    #[must_use]
    pub fn times(&self, other: &Self) -> Self {
        let mut symbols = [self.symbols.as_slice(), other.symbols.as_slice()].concat();
        symbols.sort_unstable();
        Self { factor: self.factor * other.factor, symbols }
    }

    /// Its size, where that is known.
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

impl From<&'static str> for Dim {
    fn from(name: &'static str) -> Self {
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

/// The number of elements of a shape, as a product of its dimensions.
#[must_use]
pub fn elements(shape: &Shape) -> Dim {
    shape.iter().fold(Dim::fixed(1), |product, dim| product.times(dim))
}

/// The shape that two shapes broadcast to, as in NumPy; `None` where they do not.
#[must_use]
pub fn broadcast(a: &Shape, b: &Shape) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::fixed(1);
    let at = |shape: &Shape, axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or_else(|| one.clone(), |position| shape[position].clone())
    };
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (left, right) if left == right || right == one => Some(left),
            (left, right) if left == one => Some(right),
            _ => None,
        })
        .collect()
}

pub(super) fn show(shape: &Shape) -> String {
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
    fn ones_broadcast_and_unequal_dimensions_do_not() {
        let rows = vec![Dim::from("T"), Dim::from(8)];
        assert_eq!(broadcast(&rows, &vec![Dim::from(8)]), Some(rows.clone()));
        assert_eq!(broadcast(&vec![Dim::from("T"), Dim::from(1)], &rows), Some(rows.clone()));
        assert_eq!(broadcast(&rows, &vec![Dim::from(7)]), None);
        assert_eq!(broadcast(&rows, &vec![Dim::from("S"), Dim::from(8)]), None);
    }
}
