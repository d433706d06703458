//! The operators: what each computes and what shapes it takes. Each is one ONNX operator, or two or three plain ones.

use super::{Dim, Shape, broadcast, elements};

/// An operator. `A`, `B`, `C` are its operands in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// `alpha * op(A) op(B) + C`, all matrices; `C` may be absent or broadcast; `op` transposes where asked.
    Gemm {
        /// Factor of the product.
        alpha: f32,
        /// `A` is given as its transpose.
        trans_a: bool,
        /// `B` is given as its transpose.
        trans_b: bool,
    },
    /// `A B` over the last two dimensions; the leading ones are equal.
    MatMul,
    /// `A + B`, broadcast.
    Add,
    /// `A - B`, broadcast.
    Sub,
    /// `A * B`, broadcast.
    Mul,
    /// The error function.
    Erf,
    /// The exponential function.
    Exp,
    /// The hyperbolic tangent.
    Tanh,
    /// `A Phi(A)`, Phi the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415, the exact form).
    Gelu,
    /// Softmax over the last dimension.
    Softmax,
    /// The logarithm of softmax over the last dimension.
    LogSoftmax,
    /// `(A - mean) * inv_std * B + C` over the last dimension (Ba et al., arXiv 1607.06450);
    /// results: that, `mean`, `inv_std = 1 / sqrt(variance + epsilon)`.
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// Exchanges the last two dimensions.
    Transpose,
    /// The same elements in another shape.
    Reshape(Shape),
    /// Rows of `A` chosen by the integers `B`.
    Gather,
    /// Zeros in the shape of `A`, with the rows of `C` added at the integers `B`: the adjoint of `Gather`.
    ScatterRows,
    /// Rows of `A` in the order `B`; `C` is the order back. Its derivative is the same movement backwards, which is
    /// exact where every row of `A` that `C` does not name, or names once of several, has a gradient of zero:
    /// the batch layout sees to that.
    Relayout,
    /// The sum over `axes`, which stay as ones.
    ReduceSum {
        /// Ascending.
        axes: Vec<usize>,
    },
    /// The mean over the last dimension, which stays as one.
    MeanLast,
    /// `A` broadcast to the shape of `B`.
    ExpandLike,
}

impl Op {
    /// The operator's name in messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gemm { .. } => "Gemm",
            Self::MatMul => "MatMul",
            Self::Add => "Add",
            Self::Sub => "Sub",
            Self::Mul => "Mul",
            Self::Erf => "Erf",
            Self::Exp => "Exp",
            Self::Tanh => "Tanh",
            Self::Gelu => "Gelu",
            Self::Softmax => "Softmax",
            Self::LogSoftmax => "LogSoftmax",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::Transpose => "Transpose",
            Self::Reshape(_) => "Reshape",
            Self::Gather => "Gather",
            Self::ScatterRows => "ScatterRows",
            Self::Relayout => "Relayout",
            Self::ReduceSum { .. } => "ReduceSum",
            Self::MeanLast => "MeanLast",
            Self::ExpandLike => "ExpandLike",
        }
    }

    /// The shapes of the results, or what the operator would have taken.
    pub(super) fn infer(&self, shapes: &[&Shape]) -> Result<Vec<Shape>, String> {
        self.infer_checked(shapes).ok_or_else(|| self.takes().to_owned())
    }

    fn infer_checked(&self, shapes: &[&Shape]) -> Option<Vec<Shape>> {
        let one = |shape: Shape| Some(vec![shape]);
        match (self, shapes) {
            (Self::Gemm { trans_a, trans_b, .. }, [a, b, rest @ ..]) => {
                let ([a0, a1], [b0, b1]) = (a.as_slice(), b.as_slice()) else { return None };
                let (rows, inner_a) = if *trans_a { (a1, a0) } else { (a0, a1) };
                let (inner_b, columns) = if *trans_b { (b1, b0) } else { (b0, b1) };
                let result = vec![rows.clone(), columns.clone()];
                let addend_fits = match rest {
                    [] => true,
                    [c] => broadcast(&result, c).as_ref() == Some(&result),
                    _ => false,
                };
                (inner_a == inner_b && addend_fits).then(|| vec![result])
            }
            (Self::MatMul, [a, b]) => {
                let (lead_a, [rows, inner_a]) = a.split_last_chunk::<2>()?;
                let (lead_b, [inner_b, columns]) = b.split_last_chunk::<2>()?;
                (lead_a == lead_b && inner_a == inner_b)
                    .then(|| vec![[lead_a, &[rows.clone(), columns.clone()]].concat()])
            }
            (Self::Add | Self::Sub | Self::Mul, [a, b]) => Some(vec![broadcast(a, b)?]),
            (Self::Erf | Self::Exp | Self::Tanh | Self::Gelu, [a]) => one((*a).clone()),
            (Self::Softmax | Self::LogSoftmax, [a]) if !a.is_empty() => one((*a).clone()),
            (Self::LayerNorm { .. }, [a, gamma, beta]) => {
                let (last, lead) = a.split_last()?;
                let narrow = [lead, &[Dim::fixed(1)]].concat();
                (gamma.as_slice() == std::slice::from_ref(last) && beta == gamma)
                    .then(|| vec![(*a).clone(), narrow.clone(), narrow])
            }
            (Self::Transpose, [a]) if a.len() >= 2 => {
                let mut shape = (*a).clone();
                shape.swap(a.len() - 2, a.len() - 1);
                one(shape)
            }
            (Self::Reshape(shape), [a]) => (elements(a) == elements(shape)).then(|| vec![shape.clone()]),
            (Self::Gather, [a, index]) => one([index.as_slice(), a.get(1..)?].concat()),
            (Self::Relayout, [a, index, _]) => one([index.as_slice(), a.get(1..)?].concat()),
            (Self::ScatterRows, [a, index, rows]) => {
                (rows.as_slice() == [index.as_slice(), a.get(1..)?].concat()).then(|| vec![(*a).clone()])
            }
            (Self::ReduceSum { axes }, [a]) => {
                let mut shape = (*a).clone();
                for &axis in axes {
                    *shape.get_mut(axis)? = Dim::fixed(1);
                }
                one(shape)
            }
            (Self::MeanLast, [a]) => {
                let (_, lead) = a.split_last()?;
                one([lead, &[Dim::fixed(1)]].concat())
            }
            (Self::ExpandLike, [a, b]) => (broadcast(a, b)? == **b).then(|| vec![(*b).clone()]),
            _ => None,
        }
    }

    fn takes(&self) -> &'static str {
        match self {
            Self::Gemm { .. } => {
                "matrices [M, K] and [K, N] (or their transposes) and an addend that broadcasts to [M, N]"
            }
            Self::MatMul => "[..., M, K] and [..., K, N] with equal leading dimensions",
            Self::Add | Self::Sub | Self::Mul => "two shapes that broadcast",
            Self::Erf | Self::Exp | Self::Tanh | Self::Gelu => "one operand",
            Self::Softmax | Self::LogSoftmax | Self::MeanLast => "one operand of rank 1 or more",
            Self::LayerNorm { .. } => "[..., D], [D] and [D]",
            Self::Transpose => "one operand of rank 2 or more",
            Self::Reshape(_) => "one operand of as many elements",
            Self::Gather => "[N, ...] and integers",
            Self::Relayout => "[N, ...], integers, and the integers of the way back",
            Self::ScatterRows => "[N, ...], integers [I] and [I, ...]",
            Self::ReduceSum { .. } => "one operand that has those axes",
            Self::ExpandLike => "an operand that broadcasts to the second one",
        }
    }
}
