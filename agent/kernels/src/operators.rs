//! The operators of the domain `skiff`, for ONNX Runtime. ONNX Runtime's own threads do the work in pieces. No two pieces write
//! the same numbers, so the result does not depend on which thread does which piece.

use crate::attention::{self, Form, Gradients, Inputs, Numbers, Span};
use crate::elementwise::{self, Norm};
use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef, ValueRefMut};
use std::sync::{Mutex, PoisonError};

/// The domain's name, as it appears in a graph's nodes.
pub const DOMAIN: &str = "skiff";
/// Number of elements of an element-wise gradient in one piece of work. The work outweighs the cost of the hand-over.
const PIECE: usize = 16_384;

/// Returns all operators.
///
/// # Errors
/// An error of ONNX Runtime.
pub fn domain() -> ort::Result<OperatorDomain> {
    let whole = |name, kind| Fused { name, kind, half: false };
    let of_half = |name, kind| Fused { name, kind, half: true };
    let all = [
        whole("Narrow", Kind::Narrow),
        whole("GeluGrad", Kind::GeluGrad),
        of_half("GeluGradOfHalf", Kind::GeluGrad),
        whole("SoftmaxGrad", Kind::SoftmaxGrad),
        whole("LayerNormGrad", Kind::LayerNormGrad),
        of_half("LayerNormGradOfHalf", Kind::LayerNormGrad),
        whole("RmsNormGrad", Kind::RmsNormGrad),
        of_half("RmsNormGradOfHalf", Kind::RmsNormGrad),
        whole("Attention", Kind::Attention { one_query: false }),
        whole("AttentionAt", Kind::Attention { one_query: true }),
        whole("AttentionGrad", Kind::AttentionGrad { one_query: false }),
        of_half("AttentionGradOfHalf", Kind::AttentionGrad { one_query: false }),
        whole("AttentionAtGrad", Kind::AttentionGrad { one_query: true }),
    ];
    all.into_iter().try_fold(OperatorDomain::new(DOMAIN)?, OperatorDomain::add)
}

/// An operator. Its operands have the same shapes as in the graph's operator of that name.
#[derive(Clone, Copy, Debug)]
struct Fused {
    name: &'static str,
    kind: Kind,
    /// Whether values kept from the forward pass come in half precision.
    half: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Converts single precision to the nearest number in half precision, ties to even.
    Narrow,
    /// `x`, `dy`.
    GeluGrad,
    /// `y`, `dy`.
    SoftmaxGrad,
    /// `dy`, `x`, weight, mean, inverse.
    LayerNormGrad,
    /// `dy`, `x`, weight, inverse.
    RmsNormGrad,
    /// Queries, keys, values, first rows, and the query's row if each example has only one query; gives the context.
    Attention { one_query: bool },
    /// The operands of attention and the gradient of the context; gives three gradients.
    AttentionGrad { one_query: bool },
}

impl Operator for Fused {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (numbers, rows) = (TensorElementType::Float32, TensorElementType::Int64);
        let kept = if self.half { TensorElementType::Float16 } else { numbers };
        let attention = |one_query: bool| [vec![kept; 3], vec![rows; 1 + usize::from(one_query)]].concat();
        let kinds = match self.kind {
            Kind::Narrow => vec![numbers],
            Kind::GeluGrad | Kind::SoftmaxGrad => vec![kept, numbers],
            Kind::LayerNormGrad => vec![numbers, kept, numbers, numbers, numbers],
            Kind::RmsNormGrad => vec![numbers, kept, numbers, numbers],
            Kind::Attention { one_query } => attention(one_query),
            Kind::AttentionGrad { one_query } => [attention(one_query), vec![numbers]].concat(),
        };
        kinds.into_iter().map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let results = match self.kind {
            Kind::Narrow => vec![TensorElementType::Float16],
            Kind::AttentionGrad { .. } => vec![TensorElementType::Float32; 3],
            Kind::GeluGrad | Kind::SoftmaxGrad | Kind::LayerNormGrad | Kind::RmsNormGrad | Kind::Attention { .. } => {
                vec![TensorElementType::Float32]
            }
        };
        results.into_iter().map(OperatorOutput::required)
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let Self { kind, .. } = *self;
        Ok(match kind {
            Kind::Narrow => Box::new(narrow),
            Kind::GeluGrad | Kind::SoftmaxGrad | Kind::LayerNormGrad | Kind::RmsNormGrad => {
                Box::new(move |context: &ComputeContext| elementwise_gradient(kind, context))
            }
            Kind::Attention { one_query } => {
                let form = form(context)?;
                Box::new(move |context: &ComputeContext| attention(context, form, one_query))
            }
            Kind::AttentionGrad { one_query } => {
                let form = form(context)?;
                Box::new(move |context: &ComputeContext| attention_grad(context, form, one_query))
            }
        })
    }
}

/// Returns the attributes of attention.
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

fn narrow(context: &ComputeContext) -> ort::Result<()> {
    let values = inputs(context)?;
    let (shape, numbers) = values[0].try_extract_tensor::<f32>()?;
    let shape: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
    let mut result = output(context, 0, &shape)?;
    let (_, result) = result.try_extract_tensor_mut::<f16>()?;
    in_pieces(context, result, PIECE, |start, out| out.convert_from_f32_slice(&numbers[start..start + out.len()]))
}

/// Returns the gradient of an operator whose result has its operand's shape.
fn elementwise_gradient(kind: Kind, context: &ComputeContext) -> ort::Result<()> {
    let values = inputs(context)?;
    let tensors = values.iter().map(numbers).collect::<ort::Result<Vec<_>>>()?;
    let (shape, first) = &tensors[0];
    let mut result = output(context, 0, shape)?;
    let (_, result) = result.try_extract_tensor_mut::<f32>()?;
    let row = match kind {
        Kind::LayerNormGrad | Kind::RmsNormGrad => tensors[2].1.len(),
        Kind::SoftmaxGrad => shape.last().copied().unwrap_or(1),
        Kind::Narrow | Kind::GeluGrad | Kind::Attention { .. } | Kind::AttentionGrad { .. } => 1,
    };
    let count = first.len();
    if count == 0 {
        return Ok(());
    }
    let rows = count / row.max(1);
    let expected: Vec<usize> = match kind {
        Kind::LayerNormGrad => vec![count, count, row, rows, rows],
        Kind::RmsNormGrad => vec![count, count, row, rows],
        Kind::Narrow | Kind::GeluGrad | Kind::SoftmaxGrad | Kind::Attention { .. } | Kind::AttentionGrad { .. } => {
            vec![count, count]
        }
    };
    let lengths: Vec<usize> = tensors.iter().map(|(_, values)| values.len()).collect();
    if row == 0 || rows * row != count || lengths != expected {
        return Err(ort::Error::new(format!("operands of {lengths:?} numbers, expected {expected:?}")));
    }
    let piece = (PIECE / row).max(1) * row;
    in_pieces(context, result, piece, |start, out| {
        // Operands in half precision are widened a piece at a time, which fits the cache.
        let mut widened = [Vec::new(), Vec::new()];
        let [first, second] = &mut widened;
        let first = tensors[0].1.part(start, out.len(), first);
        let second = tensors[1].1.part(start, out.len(), second);
        let whole = |at: usize| tensors[at].1.single();
        let of_rows = |at: usize| &whole(at)[start / row..][..out.len() / row];
        match kind {
            Kind::SoftmaxGrad => elementwise::softmax_grad(first, second, row, out),
            Kind::LayerNormGrad | Kind::RmsNormGrad => {
                let centred = matches!(kind, Kind::LayerNormGrad);
                let (mean, inverse) = (centred.then(|| of_rows(3)), of_rows(3 + usize::from(centred)));
                elementwise::norm_grad(Norm { dy: first, x: second, weight: whole(2), mean, inverse }, out);
            }
            Kind::Narrow | Kind::GeluGrad | Kind::Attention { .. } | Kind::AttentionGrad { .. } => {
                elementwise::gelu_grad(first, second, out);
            }
        }
    })
}

fn attention(context: &ComputeContext, form: Form, one_query: bool) -> ort::Result<()> {
    let values = inputs(context)?;
    let operands = Operands::of(&values, form, one_query)?;
    let wide = form.heads * form.size;
    let mut attended = output(context, 0, &[operands.queries, wide])?;
    let attended = operands.by_example(attended.try_extract_tensor_mut::<f32>()?.1, wide, |span| span.queries);
    let group = form.heads / form.key_heads;
    context.par_for(operands.spans.len() * form.key_heads, 0, |piece| {
        let (example, head) = (piece / form.key_heads, piece % form.key_heads);
        let span = operands.spans[example];
        let mut found = Vec::new();
        attention::attend(form, span, head, operands.inputs, &mut found);
        put(&attended[example], &found, span.queries, form.size, [form.heads, head * group]);
    })
}

fn attention_grad(context: &ComputeContext, form: Form, one_query: bool) -> ort::Result<()> {
    let values = inputs(context)?;
    let operands = Operands::of(&values, form, one_query)?;
    let (_, gradient) = numbers(&values[4 + usize::from(one_query)])?;
    let (wide, narrow) = (form.heads * form.size, form.key_heads * form.size);
    if gradient.len() != operands.queries * wide {
        return Err(ort::Error::new("the gradient does not have the queries' size"));
    }
    let gradient = gradient.single();
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
        attention::attend_back(form, span, head, operands.inputs, gradient, &mut found);
        put(&query[example], &found.query, span.queries, form.size, [form.heads, head * group]);
        put(&key[example], &found.key, span.tokens, form.size, [form.key_heads, head]);
        put(&value[example], &found.value, span.tokens, form.size, [form.key_heads, head]);
    })
}

/// The checked operands of attention.
struct Operands<'a> {
    inputs: Inputs<'a>,
    spans: Vec<Span>,
    queries: usize,
    tokens: usize,
}

impl<'a> Operands<'a> {
    /// Reads and checks the operands. If `at` is true, each example has only one query, and a fifth operand holds its row.
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

    /// Returns a result's rows, split by example.
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

/// Writes blocks `[rows, size]` of consecutive heads, beginning with `first`, into rows of `heads` heads.
fn put(rows: &Mutex<&mut [f32]>, blocks: &[f32], count: usize, size: usize, [heads, first]: [usize; 2]) {
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    for (at, block) in blocks.chunks_exact(count * size).enumerate() {
        for (row, values) in block.chunks_exact(size).enumerate() {
            rows[(row * heads + first + at) * size..][..size].copy_from_slice(values);
        }
    }
}

/// Lets the threads fill `result`, `piece` numbers at a time. `fill` receives the index of the first number, and the numbers.
fn in_pieces<T: Send>(
    context: &ComputeContext,
    result: &mut [T],
    piece: usize,
    fill: impl Fn(usize, &mut [T]) + Send + Sync,
) -> ort::Result<()> {
    let pieces: Vec<Mutex<&mut [T]>> = result.chunks_mut(piece).map(Mutex::new).collect();
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

/// Returns shape and numbers of an operand.
fn numbers<'a>(value: &'a ValueRef<'_>) -> ort::Result<(Vec<usize>, Numbers<'a>)> {
    let sizes = |shape: &[i64]| shape.iter().map(|&size| size as usize).collect();
    Ok(match value.dtype().tensor_type() {
        Some(TensorElementType::Float16) => {
            let (shape, values) = value.try_extract_tensor::<f16>()?;
            (sizes(shape), Numbers::Half(values))
        }
        _ => {
            let (shape, values) = value.try_extract_tensor::<f32>()?;
            (sizes(shape), Numbers::Single(values))
        }
    })
}

impl<'a> Numbers<'a> {
    const fn len(self) -> usize {
        match self {
            Self::Single(values) => values.len(),
            Self::Half(values) => values.len(),
        }
    }

    /// Returns the values of an operand in single precision; ONNX Runtime has checked the precision.
    const fn single(self) -> &'a [f32] {
        match self {
            Self::Single(values) => values,
            Self::Half(_) => &[],
        }
    }

    /// Returns `length` values from `start`. Uses `into` if the values must be widened.
    fn part(self, start: usize, length: usize, into: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::Single(values) => &values[start..start + length],
            Self::Half(values) => {
                into.resize(length, 0.0);
                values[start..start + length].convert_to_f32_slice(into);
                into
            }
        }
    }
}
