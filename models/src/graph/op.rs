//! The operators, with their formulas and shapes. Each is written as one, two or three ONNX operators.

use super::{DType, Shape};
use std::ops::Range;

/// An operator. `A`, `B`, `C`, … are its operands in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// `alpha * op(A) op(B) + C`, all matrices; `C` may be absent or broadcast. `op` may transpose its operand.
    Gemm {
        /// Factor of the product.
        alpha: f32,
        /// Whether `A` is given as its transpose.
        trans_a: bool,
        /// Whether `B` is given as its transpose.
        trans_b: bool,
    },
    /// `A B` over the last two dimensions. The leading dimensions are broadcast.
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
    /// `1 / (1 + exp(-A))`.
    Sigmoid,
    /// `max(A, 0)`.
    Relu,
    /// Sign of `A`: -1, 0 or 1.
    Sign,
    /// The cosine.
    Cos,
    /// The sine.
    Sin,
    /// `A Phi(A)`, Phi the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415, the exact form).
    Gelu,
    /// Softmax over the last dimension.
    Softmax,
    /// The logarithm of softmax over the last dimension.
    LogSoftmax,
    /// `log sum exp(A)` over the last dimension, whose size becomes 1.
    LogSumExp,
    /// `(A - mean) * inv_std * B + C` over the last dimension (Ba et al., arXiv 1607.06450); results: this value, `mean`,
    /// `inv_std = 1 / sqrt(variance + epsilon)`.
    LayerNorm {
        /// Number added to the variance.
        epsilon: f32,
    },
    /// `A * inv_rms * B` over the last dimension (Zhang and Sennrich, arXiv 1910.07467, eq. 4); results: this value, `inv_rms = 1
    /// / sqrt(mean(A^2) + epsilon)`.
    RmsNorm {
        /// Number added to the mean square.
        epsilon: f32,
    },
    /// The dimensions of `A` in this order: dimension `i` of the result is dimension `order[i]` of `A`.
    Permute(Vec<usize>),
    /// The same elements in another shape.
    Reshape(Shape),
    /// Rows of `A` chosen by the integers `B`.
    Gather,
    /// Zeros in the shape of `A`, with the rows of `C` added at the integers `B`: the adjoint of `Gather`.
    ScatterRows,
    /// Rows of `A` in the order `B`; `C` is the inverse order. The derivative is the inverse movement. It is exact if the
    /// gradient is zero for two kinds of rows of `A`: rows that `C` does not name, and rows that `B` copies several times. The
    /// batch layout guarantees that.
    Relayout,
    /// The sum over `axes`, whose sizes become 1.
    ReduceSum {
        /// Axes in ascending order.
        axes: Vec<usize>,
    },
    /// The mean over the last dimension, whose size becomes 1.
    MeanLast,
    /// `A` broadcast to the shape of `B`.
    ExpandLike,
    /// `[x, y]` to `[-y, x]`, the halves of the last dimension: the quarter turn of rotary positions (Su et al.,
    /// arXiv 2104.09864, eq. 34, with features paired across halves as in the released Llama code).
    RotateHalf,
    /// `Y[b, o, s] = C[o] + sum over c, k of B[o, c, k] * A[b, g c' + c, s + k - padding]`, with `c'` channels in each
    /// group, `g` the group of `o` and `A` zero outside; `C` may be absent. The number of positions stays the same.
    Conv1d {
        /// Number of zeros at each end: half of (the kernel's length minus one).
        padding: usize,
        /// Number of groups of channels that do not mix.
        groups: usize,
    },
    /// The adjoint of [`Op::Conv1d`] with kernel `B`, as a function of its operand `A`.
    ConvTranspose1d {
        /// Same as in [`Op::Conv1d`].
        padding: usize,
        /// Same as in [`Op::Conv1d`].
        groups: usize,
    },
    /// `Y[i, j] = A[i, j - i + S - 1]` over the last two dimensions, `[S, 2 S]` to `[S, S]`. It turns values by distance `j - i`,
    /// starting at `1 - S`, into values by position.
    Skew,
    /// `Y[i, j - i + S - 1] = A[i, j]`, zero elsewhere, `[S, S]` to `[S, 2 S]`: the adjoint of [`Op::Skew`].
    Unskew,
    /// `A` converted to F32.
    Cast,
    /// `A` rounded to F16, to the nearest, ties to even. It is fused, because ONNX Runtime's own conversion takes one number at a
    /// time.
    Narrow,
    /// `A * B` along the first dimension: integers and the scale of each row.
    Dequantize,
    /// `B gelu'(A)`: the adjoint of [`Op::Gelu`]. This operator and the following ones are fused: each has one kernel, in graphs
    /// that may use it.
    GeluGrad,
    /// `A (B - sum(A B))` over the last dimension: the adjoint of [`Op::Softmax`] with the result `A`.
    SoftmaxGrad,
    /// The adjoint of [`Op::LayerNorm`] with respect to its operand. Operands: the result's gradient, the operand, the weight,
    /// `mean`, `inv_std`.
    LayerNormGrad,
    /// The adjoint of [`Op::RmsNorm`] with respect to its operand. Operands: the result's gradient, the operand, the weight,
    /// `inv_rms`.
    RmsNormGrad,
    /// `softmax(scale Q K^T) V` (Vaswani et al., arXiv 1706.03762, eq. 1) over the rows of `A`, `B`, `C` of one example. `D` has
    /// the first row of each example.
    Attention(Attention),
    /// The adjoint of [`Op::Attention`] with respect to queries, keys and values. Operands: the operands of attention, and the
    /// gradient of its result.
    AttentionGrad(Attention),
}

/// Settings of attention: heads and positions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Attention {
    /// Query heads, `h`.
    pub heads: usize,
    /// Key heads, `k`: query head `i` looks at key head `i / (h / k)` (Ainslie et al., arXiv 2305.13245).
    pub key_heads: usize,
    /// Features of a head.
    pub size: usize,
    /// Factor of `Q K^T`.
    pub scale: f32,
    /// Whether queries see no later keys.
    pub causal: bool,
    /// Maximum number of keys that a query sees, ending with its own; `None` for no limit.
    pub window: Option<usize>,
    /// Whether each example has only one query. A fifth operand then has the query's row among the keys.
    pub one_query: bool,
}

impl Attention {
    /// Returns the number of operands of attention, which precede the adjoint's additional ones.
    pub(super) const fn operands(self) -> usize {
        if self.one_query { 5 } else { 4 }
    }
}

impl Op {
    /// Returns the operator's name for messages.
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
            Self::Sigmoid => "Sigmoid",
            Self::Relu => "Relu",
            Self::Sign => "Sign",
            Self::Cos => "Cos",
            Self::Sin => "Sin",
            Self::Gelu => "Gelu",
            Self::Softmax => "Softmax",
            Self::LogSoftmax => "LogSoftmax",
            Self::LogSumExp => "LogSumExp",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::RmsNorm { .. } => "RmsNorm",
            Self::Permute(_) => "Permute",
            Self::Reshape(_) => "Reshape",
            Self::Gather => "Gather",
            Self::ScatterRows => "ScatterRows",
            Self::Relayout => "Relayout",
            Self::ReduceSum { .. } => "ReduceSum",
            Self::MeanLast => "MeanLast",
            Self::ExpandLike => "ExpandLike",
            Self::RotateHalf => "RotateHalf",
            Self::Conv1d { .. } => "Conv1d",
            Self::ConvTranspose1d { .. } => "ConvTranspose1d",
            Self::Skew => "Skew",
            Self::Unskew => "Unskew",
            Self::Cast => "Cast",
            Self::Narrow => "Narrow",
            Self::Dequantize => "Dequantize",
            Self::GeluGrad => "GeluGrad",
            Self::SoftmaxGrad => "SoftmaxGrad",
            Self::LayerNormGrad => "LayerNormGrad",
            Self::RmsNormGrad => "RmsNormGrad",
            Self::Attention(form) => {
                if form.one_query {
                    "AttentionAt"
                } else {
                    "Attention"
                }
            }
            Self::AttentionGrad(form) => {
                if form.one_query {
                    "AttentionAtGrad"
                } else {
                    "AttentionGrad"
                }
            }
        }
    }

    /// Returns the type of the results, or the position of an operand with a wrong type.
    pub(super) fn infer_type(&self, dtypes: &[DType]) -> Result<DType, usize> {
        let wrong = dtypes.iter().enumerate().position(|(operand, dtype)| !self.accepts(operand).contains(dtype));
        match (self, wrong) {
            (_, Some(operand)) => Err(operand),
            (Self::Gather | Self::Permute(_) | Self::Reshape(_), None) => Ok(dtypes[0]),
            (Self::Narrow, None) => Ok(DType::F16),
            (_, None) => Ok(DType::F32),
        }
    }

    /// Returns the types that an operand may have.
    pub(super) fn accepts(&self, operand: usize) -> &'static [DType] {
        match (self, operand) {
            (Self::Gather | Self::Permute(_) | Self::Reshape(_), 0) => &[DType::F32, DType::F16, DType::I8, DType::I64],
            (Self::Gather | Self::Relayout | Self::ScatterRows, 1) | (Self::Relayout, 2) => &[DType::I64],
            (Self::Cast, _) => &[DType::F16, DType::I64],
            (Self::Dequantize, 0) => &[DType::I8],
            (Self::Attention(form) | Self::AttentionGrad(form), 3..) if operand < form.operands() => &[DType::I64],
            _ if self.halves().contains(&operand) => &[DType::F32, DType::F16],
            _ => &[DType::F32],
        }
    }

    /// Returns the operands that may be in half precision, if all of these are.
    pub(crate) const fn halves(&self) -> Range<usize> {
        if matches!(self, Self::GeluGrad) {
            0..1
        } else if matches!(self, Self::LayerNormGrad | Self::RmsNormGrad) {
            1..2
        } else if matches!(self, Self::AttentionGrad(Attention { one_query: false, .. })) {
            0..3
        } else {
            0..0
        }
    }
}
