//! A model that is small enough to differentiate by hand: a language model of three layers. The middle layer does not train,
//! and the embedding offers a context to the others.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::examples::{Target, of_lengths};
use ndarray::Array2;
use safetensors::tensor::{Dtype, TensorView};
use skiff_base::random::Random;
use skiff_models::graph::{DType, Dim, Graph as Formula, Id, Op, Shape};
use skiff_models::onnx;
use skiff_models::pack::Storage;
use skiff_models::peft::Peft;
use skiff_models::stage::{Bias, CompiledStage, Ending, Stage as Draft, StageSpec};
use skiff_models::tensors::TensorSpec;
use std::collections::BTreeSet;

const FEATURES: usize = 4;
const VOCABULARY: usize = 11;
const POSITIONS: usize = 8;

fn shape(dims: &[Dim]) -> Shape {
    dims.to_vec()
}

fn tokens_by(width: usize) -> Shape {
    shape(&["T".into(), width.into()])
}

/// Looks up rows of `words` by the tokens. The context has rows of `places` by the positions.
fn embed() -> (StageSpec, Vec<(String, Vec<u8>)>) {
    let mut g = Formula::default();
    let mut gather = |table: &str, rows: usize, index: &str, result: &str| {
        let table = g.input(table, DType::F32, shape(&[rows.into(), FEATURES.into()]));
        let index = g.input(index, DType::I64, shape(&["T".into()]));
        let picked = g.op(Op::Gather, &[table, index]).unwrap();
        g.rename(picked, result)
    };
    let outputs = [gather("words", VOCABULARY, "ids", "embedded"), gather("places", POSITIONS, "positions", "context")];
    let binding = |name: &str| match name {
        "ids" => Binding::Batch(BatchPart::InputIds),
        "positions" => Binding::Batch(BatchPart::PositionIds),
        "embedded" => Binding::Hidden,
        "context" => Binding::Context("context".to_owned()),
        frozen => Binding::Frozen(frozen.to_owned()),
    };
    let part = g.extract(&outputs, &BTreeSet::new());
    let port = |id: Id| {
        let value = g.value(id);
        let shape = value.shape.iter().map(ToString::to_string).collect();
        Port { name: value.name.clone(), binding: binding(&value.name), dtype: value.dtype, shape }
    };
    let spec = GraphSpec {
        file: "embed.onnx".to_owned(),
        inputs: part.inputs.iter().map(|&id| port(id)).collect(),
        outputs: part.outputs.iter().map(|&id| port(id)).collect(),
    };
    let bytes = onnx::write("embed", &g, &part).unwrap();
    let stage = StageSpec { forward: spec.clone(), backward: None, backward_lowest: None, evaluate: spec, half: None };
    (stage, vec![("embed.onnx".to_owned(), bytes)])
}

/// Computes `x + context * tanh(x W^T)`.
fn block(trains: bool) -> CompiledStage {
    let peft = Peft::BitFit;
    let mut stage = Draft::new(&peft, Storage::F32, "layer.{layer}.", Some(usize::from(!trains)));
    let x = stage.hidden(tokens_by(FEATURES));
    let context = stage.context("context", tokens_by(FEATURES));
    let product = match trains {
        true => stage.trained_linear("w", x, [FEATURES, FEATURES], Bias::No).unwrap(),
        false => stage.linear("w", x, [FEATURES, FEATURES], Bias::No).unwrap(),
    };
    let g = &mut stage.graph;
    let bent = g.op(Op::Tanh, &[product]).unwrap();
    let scaled = g.mul(context, bent).unwrap();
    let y = g.add(x, scaled).unwrap();
    stage.compile(if trains { "trained" } else { "plain" }, Ending::Hidden(y)).unwrap()
}

/// Computes `x W^T` and the loss of the next token. The layer has a bias and trains if `trains` is set.
fn head(trains: bool) -> CompiledStage {
    let peft = Peft::BitFit;
    let mut stage = Draft::new(&peft, Storage::F32, "", None);
    let x = stage.hidden(tokens_by(FEATURES));
    let next = stage.batch(BatchPart::NextTokens, "next", shape(&["T".into()]));
    let weights = stage.batch(BatchPart::TokenWeights, "weights", tokens_by(1));
    let unit = stage.matrix("unit", &[VOCABULARY, VOCABULARY]).unwrap();
    let logits = match trains {
        true => stage.trained_linear("scores", x, [FEATURES, VOCABULARY], Bias::Yes).unwrap(),
        false => stage.linear("scores", x, [FEATURES, VOCABULARY], Bias::No).unwrap(),
    };
    let g = &mut stage.graph;
    let chosen = g.op(Op::Gather, &[unit, next]).unwrap();
    let chosen = g.mul(chosen, weights).unwrap();
    let likely = g.op(Op::LogSoftmax, &[logits]).unwrap();
    let picked = g.mul(chosen, likely).unwrap();
    let total = g.op(Op::ReduceSum { axes: vec![0, 1] }, &[picked]).unwrap();
    let total = g.reshape(total, Shape::new()).unwrap();
    let loss = g.scale(total, -1.0).unwrap();
    stage.compile("head", Ending::Loss { loss, logits }).unwrap()
}

fn layout() -> Layout {
    Layout {
        task: Task::CausalLm,
        classes: VOCABULARY,
        heads: 1,
        key_heads: 1,
        vocabulary: VOCABULARY,
        segments: 0,
        first_position: 0,
        max_tokens: POSITIONS,
        window: None,
        relative: None,
    }
}

fn drawn(random: &mut Random, sizes: &[usize]) -> ArrayD<f32> {
    ArrayD::from_shape_fn(IxDyn(sizes), |_| (2.0 * random.unit() - 1.0) as f32)
}

fn stages(head_trains: bool) -> (StageSpecs, Vec<(String, Vec<u8>)>) {
    let ((embed, mut files), trained, plain, head) = (embed(), block(true), block(false), head(head_trains));
    files.extend([trained.files, plain.files, head.files].concat());
    (
        StageSpecs {
            embed,
            blocks: vec![trained.spec, plain.spec],
            kinds: vec![0, 1, 0],
            head: head.spec,
            last_blocks: Vec::new(),
        },
        files,
    )
}

/// Returns the model with its stages after `change`, and its weights.
fn open(head_trains: bool, change: impl FnOnce(&mut StageSpecs)) -> Result<(Model, NamedTensors), TrainerError> {
    let folder = tempfile::tempdir().unwrap();
    let (mut specs, files) = stages(head_trains);
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    change(&mut specs);
    let mut random = Random::new(7);
    let frozen = [
        ("words", drawn(&mut random, &[VOCABULARY, FEATURES])),
        ("places", drawn(&mut random, &[POSITIONS, FEATURES])),
        ("layer.1.w.weight", drawn(&mut random, &[FEATURES, FEATURES])),
        ("scores.weight", drawn(&mut random, &[VOCABULARY, FEATURES])),
        ("unit", Array2::eye(VOCABULARY).into_dyn()),
    ];
    let bytes = frozen.each_ref().map(|(_, tensor)| tensor.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let views = frozen.iter().zip(&bytes);
    let views = views
        .map(|((name, tensor), bytes)| (*name, TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes).unwrap()));
    let path = folder.path().join("frozen.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let frozen = Arc::new(Frozen::open(&path).unwrap());
    let spec = |name: &str, shape: &[usize], layer| TensorSpec { name: name.to_owned(), shape: shape.to_vec(), layer };
    let mut tensors = vec![
        spec("base_model.model.layer.0.w.weight", &[FEATURES, FEATURES], Some(0)),
        spec("base_model.model.layer.2.w.weight", &[FEATURES, FEATURES], Some(2)),
    ];
    if head_trains {
        tensors.push(spec("base_model.model.scores.bias", &[VOCABULARY], None));
        tensors.push(spec("base_model.model.scores.weight", &[VOCABULARY, FEATURES], None));
    }
    let weights = tensors.iter().map(|spec| (spec.name.clone(), drawn(&mut random, &spec.shape))).collect();
    let model = Model::of(
        &Runtime::load(None, 1).unwrap(),
        Parts {
            layout: &layout(),
            stages: &specs,
            schema: &Schema { tensors },
            frozen: &frozen,
            file: &|name| folder.path().join(name),
            fuses: false,
            mapping: Arc::clone(&frozen) as Arc<dyn Any + Send + Sync>,
        },
    )?;
    Ok((model, weights))
}

fn sound(head_trains: bool) -> (Model, NamedTensors, Batch) {
    let (model, weights) = open(head_trains, |_| {}).unwrap();
    let batch = Batch::new(&of_lengths(&layout(), &[7, 3, 5]), model.form()).unwrap();
    (model, weights, batch)
}

fn mask(active: &[usize]) -> LayerMask {
    LayerMask::of(active.to_vec(), 3).unwrap()
}

fn names(gradients: &NamedTensors) -> Vec<&str> {
    gradients.keys().map(String::as_str).collect()
}

#[test]
fn gradients_of_every_mask_agree_with_differences_of_the_loss() {
    for head_trains in [false, true] {
        let (mut model, weights, batch) = sound(head_trains);
        model.set_chunk_rows(4);
        for active in [&[0, 1, 2][..], &[0, 1], &[1, 2], &[0], &[2]] {
            let mask = mask(active);
            let gradients = model.step(&weights, &batch, &mask).unwrap().gradients;
            for (name, gradient) in &gradients {
                let norm = gradient.iter().map(|value| value * value).sum::<f32>().sqrt();
                let mut loss_at = |distance: f32| {
                    let mut moved = weights.clone();
                    moved.get_mut(name).unwrap().scaled_add(distance / norm, gradient);
                    f64::from(model.step(&moved, &batch, &mask).unwrap().loss)
                };
                let slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2;
                assert!(
                    (slope - f64::from(norm)).abs() < 1e-3 * (1.0 + slope),
                    "{active:?} {name}: {norm}, difference {slope}"
                );
            }
            let layers = active
                .iter()
                .filter(|&&layer| layer != 1)
                .map(|layer| format!("base_model.model.layer.{layer}.w.weight"));
            let of_head = ["bias", "weight"].map(|part| format!("base_model.model.scores.{part}"));
            let expected: Vec<String> = layers.chain(of_head.into_iter().filter(|_| head_trains)).collect();
            assert_eq!(names(&gradients), expected, "{active:?}");
        }
    }
}

#[test]
fn the_number_of_rows_at_once_changes_nothing_but_the_rounding() {
    let (mut model, weights, batch) = sound(true);
    let mask = mask(&[0, 1, 2]);
    let whole = model.step(&weights, &batch, &mask).unwrap();
    for rows in [1, 2, 4, 14, 15] {
        model.set_chunk_rows(rows);
        let cut = model.step(&weights, &batch, &mask).unwrap();
        assert!((cut.loss - whole.loss).abs() < 1e-6, "{rows} rows: {}, at once {}", cut.loss, whole.loss);
        for (name, gradient) in &whole.gradients {
            let furthest = (gradient - &cut.gradients[name]).iter().fold(0f32, |most, value| most.max(value.abs()));
            assert!(furthest < 1e-6, "{rows} rows: {name} is {furthest} off");
        }
    }
}

#[test]
fn the_same_step_twice_gives_the_same_bits() {
    let (mut model, weights, batch) = sound(true);
    model.set_chunk_rows(4);
    let mut step = || model.step(&weights, &batch, &mask(&[0, 1, 2])).unwrap();
    let (first, second) = (step(), step());
    assert_eq!(first.loss.to_bits(), second.loss.to_bits());
    assert_eq!(first.gradients, second.gradients);
}

#[test]
fn the_loss_is_the_mean_cross_entropy_of_the_scores_that_evaluation_sees() {
    let (mut model, weights, batch) = sound(false);
    let mask = mask(&[0, 1, 2]);
    let loss = model.step(&weights, &batch, &mask).unwrap().loss;
    model.set_chunk_rows(2);
    for counted in [false, true] {
        let mut summary = crate::evaluation::EvaluateSummary::default();
        let mut rows = Vec::new();
        let mut add = |row: usize, scores: &[f32]| {
            rows.push(row);
            summary.add(&batch.truths[row], scores);
        };
        model.scores(&weights, &batch, &mask, counted, &mut add).unwrap();
        assert!((summary.mean_loss() - f64::from(loss)).abs() < 1e-6, "{}, step {loss}", summary.mean_loss());
        assert!(counted || rows.iter().copied().eq(0..batch.tokens), "every token of text, and not the extra one");
    }
}

#[test]
fn where_no_token_counts_the_gradients_are_zeros() {
    let (mut model, weights, _) = sound(true);
    let mut sequences = of_lengths(&layout(), &[4, 2]);
    sequences.iter_mut().for_each(|sequence| sequence.target = Target::None);
    let batch = Batch::new(&sequences, model.form()).unwrap();
    let outcome = model.step(&weights, &batch, &mask(&[0, 2])).unwrap();
    assert_eq!(outcome.gradients.len(), 4);
    assert!(outcome.loss.abs() < 1e-12 && outcome.gradients.values().flatten().all(|value| value.abs() < 1e-12));
}

#[test]
fn layers_below_the_lowest_that_trains_keep_nothing() {
    let (mut model, weights, batch) = sound(false);
    // A layer that is only evaluated does not need its forward graph.
    model.blocks.stages[1].passes.forward.tables.clear();
    model.step(&weights, &batch, &mask(&[1, 2])).unwrap();
    assert!(model.step(&weights, &batch, &mask(&[0, 1, 2])).is_err(), "between layers that train it does");
    assert!(model.step(&weights, &batch, &mask(&[1])).unwrap().gradients.is_empty());
}

#[test]
fn ports_that_are_tied_to_nothing_are_named_when_the_pack_is_opened() {
    let refused = |change: fn(&mut StageSpecs)| open(false, change).map(drop).unwrap_err().to_string();
    let error = refused(|specs| specs.kinds[2] = 1);
    assert!(error.contains("layer.2.w.weight"), "{error}");
    let error = refused(|specs| specs.kinds[1] = 2);
    assert!(error.contains("layer 1 is of kind 2"), "{error}");
    let error = refused(|specs| specs.embed.evaluate.outputs.truncate(1));
    assert!(error.contains("the context \"context\""), "{error}");
    let error = refused(|specs| {
        let port = specs.head.evaluate.inputs.iter_mut().find(|port| port.binding == Binding::Hidden).unwrap();
        port.binding = Binding::Batch(BatchPart::LastTokens);
    });
    assert!(error.contains("row by row"), "{error}");
}

#[test]
fn a_layer_that_is_not_there_is_refused() {
    let (mut model, weights, batch) = sound(false);
    let beyond = LayerMask::of(vec![3], 4).unwrap();
    assert!(matches!(model.step(&weights, &batch, &beyond), Err(TrainerError::Plan { .. })));
}
