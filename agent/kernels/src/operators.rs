//! The operators of the domain `skiff`, for ONNX Runtime. Work is cut into pieces that its own threads take; each piece writes
//! what no other does, so the result does not depend on who takes which.

use crate::attention::{self, Attended, Form, Gradients, Inputs, Span};
use crate::elementwise::{self, Norm};
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef, ValueRefMut};
use std::sync::{Mutex, PoisonError};

/// The domain's name, as in a graph's nodes.
pub const DOMAIN: &str = "skiff";
/// Numbers of an element-wise gradient that one piece of work has: enough to outweigh handing it out.
const PIECE: usize = 16_384;

/// All operators.
///
/// # Errors
/// What ONNX Runtime refuses.
pub fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new(DOMAIN)?
        .add(Fused::GeluGrad)?
        .add(Fused::SoftmaxGrad)?
        .add(Fused::LayerNormGrad)?
        .add(Fused::RmsNormGrad)?
        .add(Fused::Attention)?
        .add(Fused::AttentionGrad)?
        .add(Fused::AttentionAt)?
        .add(Fused::AttentionAtGrad)
}

/// An operator. Shapes are those of the graph's operator of the same name.
#[derive(Clone, Copy, Debug)]
enum Fused {
    /// `x`, `dy`.
    GeluGrad,
    /// `y`, `dy`.
    SoftmaxGrad,
    /// `dy`, `x`, weight, mean, inverse.
    LayerNormGrad,
    /// `dy`, `x`, weight, inverse.
    RmsNormGrad,
    /// Queries, keys, values, first rows; to context and log sums.
    Attention,
    /// Those, log sums, gradient of the context; to three gradients.
    AttentionGrad,
    /// Queries, keys, values, first rows, rows of the queries, one for each example.
    AttentionAt,
    /// As above.
    AttentionAtGrad,
}

impl Operator for Fused {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        match self {
            Self::GeluGrad => "GeluGrad",
            Self::SoftmaxGrad => "SoftmaxGrad",
            Self::LayerNormGrad => "LayerNormGrad",
            Self::RmsNormGrad => "RmsNormGrad",
            Self::Attention => "Attention",
            Self::AttentionGrad => "AttentionGrad",
            Self::AttentionAt => "AttentionAt",
            Self::AttentionAtGrad => "AttentionAtGrad",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (numbers, rows) = (TensorElementType::Float32, TensorElementType::Int64);
        let kinds = match self {
            Self::GeluGrad | Self::SoftmaxGrad => vec![numbers; 2],
            Self::LayerNormGrad => vec![numbers; 5],
            Self::RmsNormGrad => vec![numbers; 4],
            Self::Attention => vec![numbers, numbers, numbers, rows],
            Self::AttentionGrad => vec![numbers, numbers, numbers, rows, numbers, numbers],
            Self::AttentionAt => vec![numbers, numbers, numbers, rows, rows],
            Self::AttentionAtGrad => vec![numbers, numbers, numbers, rows, rows, numbers, numbers],
        };
        kinds.into_iter().map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let results = match self {
            Self::GeluGrad | Self::SoftmaxGrad | Self::LayerNormGrad | Self::RmsNormGrad => 1,
            Self::Attention | Self::AttentionAt => 2,
            Self::AttentionGrad | Self::AttentionAtGrad => 3,
        };
        std::iter::repeat_with(|| OperatorOutput::required(TensorElementType::Float32)).take(results)
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let operator = *self;
        Ok(match self {
            Self::GeluGrad | Self::SoftmaxGrad | Self::LayerNormGrad | Self::RmsNormGrad => {
                Box::new(move |context: &ComputeContext| operator.gradient(context))
            }
            Self::Attention | Self::AttentionAt => {
                let form = form(context)?;
                Box::new(move |context: &ComputeContext| operator.attention(context, form))
            }
            Self::AttentionGrad | Self::AttentionAtGrad => {
                let form = form(context)?;
                Box::new(move |context: &ComputeContext| operator.attention_grad(context, form))
            }
        })
    }
}

/// The attributes of attention.
fn form(context: &KernelContext<'_>) -> ort::Result<Form> {
    let whole = |name: &str| {
        let value: Option<i64> = context.get(name);
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| ort::Error::new(format!("attribute {name}: expected a number from 0")))
    };
    let scale = context.get("scale").ok_or_else(|| ort::Error::new("attribute scale: expected a number"))?;
    let window = match whole("window")? {
        0 => usize::MAX,
        window => window,
    };
    let (heads, key_heads, size) = (whole("heads")?, whole("key_heads")?, whole("size")?);
    if key_heads == 0 || size == 0 || !heads.is_multiple_of(key_heads) || heads > 1 << 16 || size > 1 << 16 {
        return Err(ort::Error::new(format!("{heads} heads of {size} over {key_heads} key heads")));
    }
    Ok(Form { heads, key_heads, size, scale, causal: whole("causal")? != 0, window })
}

impl Fused {
    /// The gradient of an operator whose result has its operand's shape.
    fn gradient(self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let tensors = values.iter().map(numbers).collect::<ort::Result<Vec<_>>>()?;
        let (shape, first) = &tensors[0];
        let mut result = output(context, 0, shape)?;
        let (_, result) = result.try_extract_tensor_mut::<f32>()?;
        let row = match self {
            Self::LayerNormGrad | Self::RmsNormGrad => tensors[2].1.len(),
            Self::SoftmaxGrad => shape.last().copied().unwrap_or(1),
            Self::GeluGrad | Self::Attention | Self::AttentionGrad | Self::AttentionAt | Self::AttentionAtGrad => 1,
        };
        let count = first.len();
        if count == 0 {
            return Ok(());
        }
        let rows = count / row.max(1);
        let expected: Vec<usize> = match self {
            Self::LayerNormGrad => vec![count, count, row, rows, rows],
            Self::RmsNormGrad => vec![count, count, row, rows],
            Self::GeluGrad
            | Self::SoftmaxGrad
            | Self::Attention
            | Self::AttentionGrad
            | Self::AttentionAt
            | Self::AttentionAtGrad => vec![count, count],
        };
        let lengths: Vec<usize> = tensors.iter().map(|(_, values)| values.len()).collect();
        if row == 0 || rows * row != count || lengths != expected {
            return Err(ort::Error::new(format!("operands of {lengths:?} numbers, expected {expected:?}")));
        }
        let piece = (PIECE / row).max(1) * row;
        let part = |at: usize, start: usize, length: usize| &tensors[at].1[start..start + length];
        in_pieces(context, result, piece, |start, out| {
            let of_rows = |at: usize| part(at, start / row, out.len() / row);
            match self {
                Self::SoftmaxGrad => {
                    elementwise::softmax_grad(part(0, start, out.len()), part(1, start, out.len()), row, out);
                }
                Self::LayerNormGrad | Self::RmsNormGrad => {
                    let centred = matches!(self, Self::LayerNormGrad);
                    let (mean, inverse) = (centred.then(|| of_rows(3)), of_rows(3 + usize::from(centred)));
                    let (dy, x) = (part(0, start, out.len()), part(1, start, out.len()));
                    elementwise::norm_grad(Norm { dy, x, weight: tensors[2].1, mean, inverse }, out);
                }
                Self::GeluGrad | Self::Attention | Self::AttentionGrad | Self::AttentionAt | Self::AttentionAtGrad => {
                    elementwise::gelu_grad(part(0, start, out.len()), part(1, start, out.len()), out)
                }
            }
        })
    }

    fn attention(self, context: &ComputeContext, form: Form) -> ort::Result<()> {
        let values = inputs(context)?;
        let operands = Operands::of(&values, form, matches!(self, Self::AttentionAt))?;
        let mut attended = output(context, 0, &[operands.queries, form.heads * form.size])?;
        let mut log_sums = output(context, 1, &[operands.queries, form.heads])?;
        let attended =
            operands
                .by_example(attended.try_extract_tensor_mut::<f32>()?.1, form.heads * form.size, |span| span.queries);
        let log_sums =
            operands.by_example(log_sums.try_extract_tensor_mut::<f32>()?.1, form.heads, |span| span.queries);
        let group = form.heads / form.key_heads;
        context.par_for(operands.spans.len() * form.key_heads, 0, |piece| {
            let (example, head) = (piece / form.key_heads, piece % form.key_heads);
            let span = operands.spans[example];
            let mut found = Attended::default();
            attention::attend(form, span, head, operands.inputs, &mut found);
            put(&attended[example], &found.context, span.queries, form.size, [form.heads, head * group]);
            put(&log_sums[example], &found.log_sums, span.queries, 1, [form.heads, head * group]);
        })
    }

    fn attention_grad(self, context: &ComputeContext, form: Form) -> ort::Result<()> {
        let values = inputs(context)?;
        let at = matches!(self, Self::AttentionAtGrad);
        let operands = Operands::of(&values, form, at)?;
        let [log_sums, gradient] = [4, 5].map(|place| numbers(&values[place + usize::from(at)]));
        let ((_, log_sums), (_, gradient)) = (log_sums?, gradient?);
        let (wide, narrow) = (form.heads * form.size, form.key_heads * form.size);
        if log_sums.len() != operands.queries * form.heads || gradient.len() != operands.queries * wide {
            return Err(ort::Error::new("the gradient or the log sums are not of the queries' size"));
        }
        let mut query = output(context, 0, &[operands.queries, wide])?;
        let mut key = output(context, 1, &[operands.tokens, narrow])?;
        let mut value = output(context, 2, &[operands.tokens, narrow])?;
        let query = operands.by_example(query.try_extract_tensor_mut::<f32>()?.1, wide, |span| span.queries);
        let key = operands.by_example(key.try_extract_tensor_mut::<f32>()?.1, narrow, |span| span.tokens);
        let value = operands.by_example(value.try_extract_tensor_mut::<f32>()?.1, narrow, |span| span.tokens);
        let group = form.heads / form.key_heads;
        context.par_for(operands.spans.len() * form.key_heads, 0, |piece| {
            let (example, head) = (piece / form.key_heads, piece % form.key_heads);
            let span = operands.spans[example];
            let mut found = Gradients::default();
            attention::attend_back(form, span, head, operands.inputs, log_sums, gradient, &mut found);
            put(&query[example], &found.query, span.queries, form.size, [form.heads, head * group]);
            put(&key[example], &found.key, span.tokens, form.size, [form.key_heads, head]);
            put(&value[example], &found.value, span.tokens, form.size, [form.key_heads, head]);
        })
    }
}

/// The operands of attention, looked at.
struct Operands<'a> {
    inputs: Inputs<'a>,
    spans: Vec<Span>,
    queries: usize,
    tokens: usize,
}

impl<'a> Operands<'a> {
    /// `at`: there is one query for each example, and a fifth operand says at which row.
    fn of(values: &'a [ValueRef<'_>], form: Form, at: bool) -> ort::Result<Self> {
        let [query, key, value] = [numbers(&values[0])?, numbers(&values[1])?, numbers(&values[2])?];
        let rows = |value: &'a ValueRef<'_>| Ok::<_, ort::Error>(value.try_extract_tensor::<i64>()?.1);
        let firsts = rows(&values[3])?;
        let (wide, narrow) = (form.heads * form.size, form.key_heads * form.size);
        let (queries, tokens) = (query.1.len() / wide, key.1.len() / narrow);
        let whole = query.1.len() == queries * wide && key.1.len() == tokens * narrow && value.1.len() == key.1.len();
        let wrong = || ort::Error::new("queries, keys, values and rows do not fit together");
        if !whole {
            return Err(wrong());
        }
        let end = |example: usize| firsts.get(example + 1).map_or(tokens as i64, |next| *next);
        let mut spans = Vec::with_capacity(firsts.len());
        let places = if at { Some(rows(&values[4])?) } else { None };
        for (example, &first) in firsts.iter().enumerate() {
            let length = end(example).checked_sub(first).and_then(|length| usize::try_from(length).ok());
            let first = usize::try_from(first).map_err(|_| wrong())?;
            let tokens_here = length.filter(|&length| length > 0).ok_or_else(wrong)?;
            let follows = spans.last().map_or(0, |span: &Span| span.first + span.tokens);
            if first != follows || first + tokens_here > tokens {
                return Err(wrong());
            }
            spans.push(match places {
                None => Span { first, tokens: tokens_here, query: first, queries: tokens_here, position: 0 },
                Some(places) => {
                    let row = places.get(example).and_then(|&row| usize::try_from(row).ok()).ok_or_else(wrong)?;
                    let position =
                        row.checked_sub(first).filter(|&position| position < tokens_here).ok_or_else(wrong)?;
                    Span { first, tokens: tokens_here, query: example, queries: 1, position }
                }
            });
        }
        let asked: usize = spans.iter().map(|span| span.queries).sum();
        let covered = spans.last().map_or(0, |span| span.first + span.tokens);
        if asked != queries || covered != tokens {
            return Err(wrong());
        }
        Ok(Self { inputs: Inputs { query: query.1, key: key.1, value: value.1 }, spans, queries, tokens })
    }

    /// A result's rows, cut by example.
    fn by_example<'r>(
        &self,
        rows: &'r mut [f32],
        width: usize,
        count: impl Fn(&Span) -> usize,
    ) -> Vec<Mutex<&'r mut [f32]>> {
        let mut rest = rows;
        let cut = |span| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(count(span) * width);
            rest = after;
            Mutex::new(part)
        };
        self.spans.iter().map(cut).collect()
    }
}

/// Writes blocks `[rows, size]`, of one head after another from `first` on, into rows of `heads` heads.
fn put(rows: &Mutex<&mut [f32]>, blocks: &[f32], count: usize, size: usize, [heads, first]: [usize; 2]) {
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    for (at, block) in blocks.chunks_exact(count * size).enumerate() {
        for (row, values) in block.chunks_exact(size).enumerate() {
            rows[(row * heads + first + at) * size..][..size].copy_from_slice(values);
        }
    }
}

/// Has the threads fill `result`, `piece` numbers at a time: `fill` gets the place of the first and the numbers.
fn in_pieces(
    context: &ComputeContext,
    result: &mut [f32],
    piece: usize,
    fill: impl Fn(usize, &mut [f32]) + Send + Sync,
) -> ort::Result<()> {
    let pieces: Vec<Mutex<&mut [f32]>> = result.chunks_mut(piece).map(Mutex::new).collect();
    context.par_for(pieces.len(), 0, |at| {
        fill(at * piece, &mut pieces[at].lock().unwrap_or_else(PoisonError::into_inner));
    })
}

fn inputs(context: &ComputeContext) -> ort::Result<Vec<ValueRef<'_>>> {
    let missing = || ort::Error::new("an operand is missing");
    (0..context.num_inputs()?).map(|at| context.input(at)?.ok_or_else(missing)).collect()
}

fn output<'a>(context: &'a ComputeContext, at: usize, shape: &[usize]) -> ort::Result<ValueRefMut<'a>> {
    let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    context.output(at, shape)?.ok_or_else(|| ort::Error::new("a result is missing"))
}

/// Shape and numbers of an operand.
fn numbers<'a>(value: &'a ValueRef<'_>) -> ort::Result<(Vec<usize>, &'a [f32])> {
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    Ok((shape.iter().map(|&size| size as usize).collect(), values))
}
