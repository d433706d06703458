//! Determines the allowed operands and the result shapes of each operator, with one function for each family of operators.

use super::{Attention, Dim, Op, Shape, broadcast, elements};

/// The shapes of the results; `None` for operands that the operator does not take.
type Results = Option<Vec<Shape>>;

impl Op {
    /// Returns the shapes of the results, or a description of the operands that the operator takes.
    pub(super) fn infer(&self, shapes: &[&Shape]) -> Result<Vec<Shape>, String> {
        let results = match self {
            Self::Gemm { .. } | Self::MatMul => self.infer_product(shapes),
            Self::Add
            | Self::Sub
            | Self::Mul
            | Self::Erf
            | Self::Exp
            | Self::Tanh
            | Self::Sigmoid
            | Self::Relu
            | Self::Sign
            | Self::Cos
            | Self::Sin
            | Self::Gelu
            | Self::GeluGrad
            | Self::SoftmaxGrad
            | Self::Cast
            | Self::Narrow
            | Self::Dequantize
            | Self::ReduceSum { .. }
            | Self::ExpandLike => self.infer_elementwise(shapes),
            Self::Softmax
            | Self::LogSoftmax
            | Self::LogSumExp
            | Self::MeanLast
            | Self::LayerNorm { .. }
            | Self::RmsNorm { .. }
            | Self::LayerNormGrad
            | Self::RmsNormGrad => self.infer_row(shapes),
            Self::Permute(_)
            | Self::Reshape(_)
            | Self::Gather
            | Self::Relayout
            | Self::ScatterRows
            | Self::RotateHalf
            | Self::Skew
            | Self::Unskew => self.infer_layout(shapes),
            Self::Conv1d { .. } | Self::ConvTranspose1d { .. } => self.infer_convolution(shapes),
            Self::Attention(_) | Self::AttentionGrad(_) => self.infer_attention(shapes),
        };
        results.ok_or_else(|| self.takes().to_owned())
    }

    /// Infers the results of matrix products.
    fn infer_product(&self, shapes: &[&Shape]) -> Results {
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
                let lead = broadcast(lead_a, lead_b)?;
                (inner_a == inner_b).then(|| vec![[lead, vec![rows.clone(), columns.clone()]].concat()])
            }
            _ => None,
        }
    }

    /// Infers the results of operators on single elements, and of operators that spread or sum elements.
    fn infer_elementwise(&self, shapes: &[&Shape]) -> Results {
        let one = |shape: Shape| Some(vec![shape]);
        match (self, shapes) {
            (Self::Add | Self::Sub | Self::Mul, [a, b]) => Some(vec![broadcast(a, b)?]),
            (
                Self::Erf
                | Self::Exp
                | Self::Tanh
                | Self::Sigmoid
                | Self::Relu
                | Self::Sign
                | Self::Cos
                | Self::Sin
                | Self::Gelu
                | Self::Cast
                | Self::Narrow,
                [a],
            ) => one((*a).clone()),
            (Self::ReduceSum { axes }, [a]) => {
                let mut shape = (*a).clone();
                for &axis in axes {
                    *shape.get_mut(axis)? = Dim::fixed(1);
                }
                one(shape)
            }
            (Self::ExpandLike, [a, b]) => (broadcast(a, b)? == **b).then(|| vec![(*b).clone()]),
            (Self::GeluGrad | Self::SoftmaxGrad, [a, b]) if a == b && !a.is_empty() => one((*a).clone()),
            (Self::Dequantize, [a, scale]) => (scale.as_slice() == a.get(..1)?).then(|| vec![(*a).clone()]),
            _ => None,
        }
    }

    /// Infers the results of operators on whole rows: softmax, means and norms.
    fn infer_row(&self, shapes: &[&Shape]) -> Results {
        let one = |shape: Shape| Some(vec![shape]);
        match (self, shapes) {
            (Self::Softmax | Self::LogSoftmax, [a]) if !a.is_empty() => one((*a).clone()),
            (Self::LayerNorm { .. }, [a, gamma, beta]) => {
                let (last, lead) = a.split_last()?;
                let narrow = [lead, &[Dim::fixed(1)]].concat();
                (gamma.as_slice() == std::slice::from_ref(last) && beta == gamma)
                    .then(|| vec![(*a).clone(), narrow.clone(), narrow])
            }
            (Self::RmsNorm { .. }, [a, gamma]) => {
                let (last, lead) = a.split_last()?;
                (gamma.as_slice() == std::slice::from_ref(last))
                    .then(|| vec![(*a).clone(), [lead, &[Dim::fixed(1)]].concat()])
            }
            (Self::MeanLast | Self::LogSumExp, [a]) => {
                let (_, lead) = a.split_last()?;
                one([lead, &[Dim::fixed(1)]].concat())
            }
            (Self::LayerNormGrad, [dy, x, weight, mean, inverse]) => {
                (dy == x && mean == inverse && norm_fits(x, weight, mean)).then(|| vec![(*x).clone()])
            }
            (Self::RmsNormGrad, [dy, x, weight, inverse]) => {
                (dy == x && norm_fits(x, weight, inverse)).then(|| vec![(*x).clone()])
            }
            _ => None,
        }
    }

    /// Infers the results of operators that move elements.
    fn infer_layout(&self, shapes: &[&Shape]) -> Results {
        let one = |shape: Shape| Some(vec![shape]);
        match (self, shapes) {
            (Self::Permute(order), [a]) => {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                sorted.into_iter().eq(0..a.len()).then(|| vec![order.iter().map(|&axis| a[axis].clone()).collect()])
            }
            (Self::Reshape(shape), [a]) => (elements(a) == elements(shape)).then(|| vec![shape.clone()]),
            (Self::Gather, [a, index]) => one([index.as_slice(), a.get(1..)?].concat()),
            (Self::Relayout, [a, index, _]) => one([index.as_slice(), a.get(1..)?].concat()),
            (Self::ScatterRows, [a, index, rows]) => {
                (rows.as_slice() == [index.as_slice(), a.get(1..)?].concat()).then(|| vec![(*a).clone()])
            }
            (Self::RotateHalf, [a]) => a.last()?.half().map(|_| vec![(*a).clone()]),
            (Self::Skew, [a]) => {
                let (lead, [s, distances]) = a.split_last_chunk::<2>()?;
                (*distances == s.times(&Dim::fixed(2))).then(|| vec![[lead, &[s.clone(), s.clone()]].concat()])
            }
            (Self::Unskew, [a]) => {
                let (lead, [s, positions]) = a.split_last_chunk::<2>()?;
                (s == positions).then(|| vec![[lead, &[s.clone(), s.times(&Dim::fixed(2))]].concat()])
            }
            _ => None,
        }
    }

    /// Infers the results of convolutions over positions.
    fn infer_convolution(&self, shapes: &[&Shape]) -> Results {
        match (self, shapes) {
            (Self::Conv1d { padding, groups }, [a, kernel, bias @ ..]) => {
                let ([b, c, s], [o, ..]) = (a.as_slice(), kernel.as_slice()) else { return None };
                let bias_fits = match bias {
                    [] => true,
                    [bias] => bias.as_slice() == std::slice::from_ref(o),
                    _ => false,
                };
                let channels = channels(kernel, *padding, *groups)?;
                (bias_fits && *c == channels).then(|| vec![vec![b.clone(), o.clone(), s.clone()]])
            }
            (Self::ConvTranspose1d { padding, groups }, [a, kernel]) => {
                let ([b, o, s], [kernels, ..]) = (a.as_slice(), kernel.as_slice()) else { return None };
                let channels = channels(kernel, *padding, *groups)?;
                (o == kernels).then(|| vec![vec![b.clone(), channels, s.clone()]])
            }
            _ => None,
        }
    }

    /// Infers the results of attention and its adjoint.
    fn infer_attention(&self, shapes: &[&Shape]) -> Results {
        match (self, shapes) {
            (Self::Attention(form), operands) => {
                let fits = operands.len() == form.operands() && form.fits(operands);
                fits.then(|| vec![operands[0].clone()])
            }
            (Self::AttentionGrad(form), operands) => {
                let (own, of_result) = operands.split_at_checked(form.operands())?;
                let fits = form.fits(own) && of_result == &own[..1];
                fits.then(|| own[..3].iter().map(|shape| (*shape).clone()).collect())
            }
            _ => None,
        }
    }

    fn takes(&self) -> &'static str {
        match self {
            Self::Gemm { .. } => {
                "matrices [M, K] and [K, N] (or their transposes) and an addend that broadcasts to [M, N]"
            }
            Self::MatMul => "[..., M, K] and [..., K, N] with leading dimensions that broadcast",
            Self::Add | Self::Sub | Self::Mul => "two shapes that broadcast",
            Self::Erf
            | Self::Exp
            | Self::Tanh
            | Self::Sigmoid
            | Self::Relu
            | Self::Sign
            | Self::Cos
            | Self::Sin
            | Self::Gelu
            | Self::Cast
            | Self::Narrow => "one operand",
            Self::Softmax | Self::LogSoftmax | Self::LogSumExp | Self::MeanLast => "one operand of rank 1 or more",
            Self::LayerNorm { .. } => "[..., D], [D] and [D]",
            Self::RmsNorm { .. } => "[..., D] and [D]",
            Self::Permute(_) => "one operand and each of its dimensions once",
            Self::Reshape(_) => "one operand with the same number of elements",
            Self::Gather => "[N, ...] and integers",
            Self::Relayout => "[N, ...], integers, and the integers of the way back",
            Self::ScatterRows => "[N, ...], integers [I] and [I, ...]",
            Self::ReduceSum { .. } => "one operand that has those axes",
            Self::ExpandLike => "an operand that broadcasts to the second one",
            Self::RotateHalf => "one operand whose last dimension is even",
            Self::Conv1d { .. } => {
                "[B, C, S], a kernel [O, C / groups, 2 * padding + 1] with O a multiple of groups, and [O] or nothing"
            }
            Self::ConvTranspose1d { .. } => {
                "[B, O, S] and a kernel [O, C / groups, 2 * padding + 1] with O a multiple of groups"
            }
            Self::Skew => "[..., S, 2*S]",
            Self::Unskew => "[..., S, S]",
            Self::Dequantize => "[N, ...] and [N]",
            Self::GeluGrad | Self::SoftmaxGrad => "two operands of one shape",
            Self::LayerNormGrad => "[..., D], [..., D], [D], [..., 1] and [..., 1]",
            Self::RmsNormGrad => "[..., D], [..., D], [D] and [..., 1]",
            Self::Attention(_) => "[Q, h*d], [T, k*d], [T, k*d], [B], and [B] if each example has one query",
            Self::AttentionGrad(_) => "the operands of Attention, and [Q, h*d]",
        }
    }
}

/// Returns true if a weight `[D]` and a statistic `[..., 1]` belong to `x`, `[..., D]`.
fn norm_fits(x: &[Dim], weight: &[Dim], statistic: &[Dim]) -> bool {
    x.split_last().is_some_and(|(last, lead)| {
        weight == std::slice::from_ref(last) && *statistic == [lead, &[Dim::fixed(1)]].concat()
    })
}

impl Attention {
    fn fits(&self, operands: &[&Shape]) -> bool {
        let [query, key, value, firsts, rows @ ..] = operands else { return false };
        let ([queries, wide], [_, narrow]) = (query.as_slice(), key.as_slice()) else { return false };
        let rows_fit = match (rows, self.one_query) {
            ([], false) => *queries == key[0],
            ([rows], true) => rows == firsts && rows.as_slice() == std::slice::from_ref(queries),
            _ => false,
        };
        let wide_fits = *wide == Dim::fixed(self.heads * self.size);
        rows_fit && wide_fits && *narrow == Dim::fixed(self.key_heads * self.size) && key == value && firsts.len() == 1
    }
}

/// Returns the channels that a kernel `[O, C / groups, K]` reads, if its length fits the padding and its rows the groups.
fn channels(kernel: &[Dim], padding: usize, groups: usize) -> Option<Dim> {
    let [rows, in_group, length] = kernel else { return None };
    let keeps_length = length.known()? == padding.checked_mul(2)?.checked_add(1)?;
    let groups_fit = groups > 0 && rows.known()?.is_multiple_of(groups);
    (keeps_length && groups_fit).then(|| in_group.times(&Dim::fixed(groups)))
}
