//! Where an order becomes an update: weights from the store, through the trainer, into tensors to hand in and to keep.
//!
//! Nothing is opened before the first work: until then there is no ONNX Runtime in the process and no file of examples open.
//! What was opened stays for the next round.

use crate::corpus::Corpus;
use crate::memory;
use crate::sharing::shared_layers;
use anyhow::{Context, bail};
use bytesize::ByteSize;
use skiff_blobs::Blobs;
use skiff_contract::memory::{machine_bytes, own_memory};
use skiff_contract::work::{Job, Personal, Product, Trained, Watch, Work, Workshop};
use skiff_contract::{Setup, Training};
use skiff_models::memory::Step;
use skiff_models::pack::{Manifest, Pack};
use skiff_models::tensors::{NamedTensors, Schema, cut, pad, write};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::{EvaluateOrder, EvaluationReport, Probe, TrainOrder, TrainReport, WorkSample};
use skiff_trainer::{
    AdamWOptions, EvaluatePlan, EvaluateSummary, Examples, Runtime, Schedule, StepReport, TrainPlan, TrainSummary,
    Trainer, Ways,
};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Orders say nothing of clipping: gradients are taken as they are.
const CLIP_NORM: f32 = f32::INFINITY;

/// A [`Workshop`] around a pack.
pub struct PackWorkshop {
    training: Training,
    device: DeviceId,
    blobs: Blobs,
    agent_bytes: u64,
    open: Option<Open>,
    train: Texts,
    test: Texts,
}

/// A pack with its sessions.
struct Open {
    pack: Arc<Pack>,
    trainer: Trainer,
    /// Bytes that the processes had when they were opened.
    process: u64,
    /// How steps of the last order's size are done.
    planned: Option<(Step, Ways)>,
}

impl PackWorkshop {
    /// A workshop that opens the pack and the files of texts at the first work.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let Setup { training, device, state, agent_bytes } = setup;
        let (train, test) = (Texts::new(training.train.clone()), Texts::new(training.test.clone()));
        Self { training, device, blobs: Blobs::of_another(state), agent_bytes, open: None, train, test }
    }

    fn train(&mut self, work: &Work, order: &TrainOrder, step: &mut Watch<'_>) -> anyhow::Result<Trained> {
        let open = opened(&mut self.open, &self.training, self.agent_bytes)?;
        let ways = within(self.training.memory, open, order)?;
        let Open { pack, trainer, .. } = open;
        let corpus = self.train.corpus(pack, order.max_tokens)?;
        let probe = match self.test.path {
            Some(_) if order.probe_examples > 0 => Some(self.test.corpus(pack, order.max_tokens)?),
            Some(_) | None => None,
        };
        let weights = starting_weights(&self.blobs, pack.schema(), work)?;
        let held = Held { train: corpus, probe: probe.unwrap_or(corpus), ways };
        #[cfg(debug_assertions)]
        let mut barrier = crate::barrier::Barrier::from_environment(&self.device, work.round);
        train_as_ordered(trainer, pack, &self.device, work.round, order, weights, &held, &mut |report| {
            step(work_sample(work, report))?;
            #[cfg(debug_assertions)]
            if let Some(barrier) = barrier.take() {
                barrier.wait(&mut || step(None))?;
            }
            ControlFlow::Continue(())
        })
    }

    fn evaluate(
        &mut self,
        work: &Work,
        order: &EvaluateOrder,
        step: &mut Watch<'_>,
    ) -> anyhow::Result<EvaluationReport> {
        let Open { pack, trainer, .. } = opened(&mut self.open, &self.training, self.agent_bytes)?;
        let corpus = self.test.corpus(pack, order.max_tokens)?;
        trainer.set_weights(starting_weights(&self.blobs, pack.schema(), work)?)?;
        let examples = usize::try_from(order.examples).unwrap_or(usize::MAX);
        let plan = EvaluatePlan { examples, batch: order.batch as usize };
        let summary = trainer.evaluate(corpus, &plan, &mut |_| step(None)).context("evaluating")?;
        Ok(EvaluationReport {
            examples: summary.counted,
            correct: summary.correct,
            loss_sum: summary.loss_sum,
            evaluate_ms: millis(summary.elapsed),
            peak_rss_bytes: own_memory(Path::new("/")).peak_bytes,
        })
    }
}

/// What a device has to carry out an order: its examples and its memory.
pub struct Held<'a> {
    /// To train on.
    pub train: &'a dyn Examples,
    /// To measure on what the training brought.
    pub probe: &'a dyn Examples,
    /// How steps are done.
    pub ways: Ways,
}

/// Trains as ordered, from `weights`, every trainable tensor; they may be of more ranks than the order asks for.
///
/// # Errors
/// A plan that does not fit, a graph that fails, a training that diverged.
#[expect(clippy::too_many_arguments, reason = "an order, and everything that it is carried out with")]
pub fn train_as_ordered(
    trainer: &mut Trainer,
    pack: &Pack,
    device: &DeviceId,
    round: u32,
    order: &TrainOrder,
    weights: NamedTensors,
    held: &Held<'_>,
    watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
) -> anyhow::Result<Trained> {
    trainer.set_weights(cut(weights, &pack.schema().at_rank(order.rank as usize)))?;
    let plan = TrainPlan {
        seed: order.seed,
        device: device.to_string(),
        round,
        data: String::new(),
        rates: order.rates.clone(),
        most_active: order.most_active as usize,
        proximal: order.proximal,
        steps: order.steps,
        batch: order.batch as usize,
        ways: held.ways.clone(),
        learning_rate: order.learning_rate,
        schedule: Schedule::default(),
        optimizer: AdamWOptions::default(),
        clip_norm: CLIP_NORM,
    };
    let before = probed(trainer, held.probe, order)?;
    let summary = trainer.train(&plan, held.train, watch).context("training")?;
    if summary.skipped_steps > 0 {
        tracing::warn!(
            round,
            skipped = summary.skipped_steps,
            steps = summary.steps,
            "steps whose loss or gradients were not finite changed nothing; the learning rate may be too high"
        );
    }
    let after = probed(trainer, held.probe, order)?;
    let probe = before.zip(after).and_then(|(before, after)| gained(&before, &after));
    hand_in(pack.schema(), trainer.weights(), order, summary, held.train.len(), probe)
}

/// The model with all layers on the first examples, where the order asks for it.
fn probed(
    trainer: &mut Trainer,
    examples: &dyn Examples,
    order: &TrainOrder,
) -> anyhow::Result<Option<EvaluateSummary>> {
    if order.probe_examples == 0 {
        return Ok(None);
    }
    let plan = EvaluatePlan { examples: order.probe_examples as usize, batch: order.batch as usize };
    let summary =
        trainer.evaluate(examples, &plan, &mut |_| ControlFlow::Continue(())).context("measuring the gain")?;
    Ok(Some(summary))
}

/// What a training brought; `None` where a loss is not finite, or nothing counted.
fn gained(before: &EvaluateSummary, after: &EvaluateSummary) -> Option<Probe> {
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let loss = |summary: &EvaluateSummary| Some(summary.mean_loss() as f32).filter(|loss| loss.is_finite());
    (before.counted > 0).then_some(())?;
    Some(Probe {
        examples: count(before.counted),
        loss_before: loss(before)?,
        loss_after: loss(after)?,
        correct_before: count(before.correct),
        correct_after: count(after.correct),
    })
}

impl Workshop for PackWorkshop {
    fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product> {
        match &work.job {
            Job::Train(order) => self.train(work, order, step).map(Product::Trained),
            Job::Evaluate(order) => self.evaluate(work, order, step).map(Product::Evaluated),
        }
    }
}

/// A file of examples, opened when it is first needed and again when it changed.
struct Texts {
    path: Option<PathBuf>,
    /// With the length that its texts are cut to.
    corpus: Option<(u32, Corpus)>,
}

impl Texts {
    const fn new(path: Option<PathBuf>) -> Self {
        Self { path, corpus: None }
    }

    fn corpus(&mut self, pack: &Pack, max_tokens: u32) -> anyhow::Result<&Corpus> {
        let path = self.path.as_ref().context("this device has no examples for that")?;
        let known = self.corpus.take_if(|(cut_to, corpus)| *cut_to == max_tokens && corpus.is_current());
        let corpus = match known {
            Some(corpus) => corpus,
            None => (max_tokens, Corpus::load(path, pack, max_tokens as usize)?),
        };
        Ok(&self.corpus.insert(corpus).1)
    }
}

fn opened<'a>(open: &'a mut Option<Open>, training: &Training, agent_bytes: u64) -> anyhow::Result<&'a mut Open> {
    let opened = match open.take() {
        Some(opened) => opened,
        None => {
            let pack = Arc::new(Pack::open(&training.pack)?);
            let cores = || std::thread::available_parallelism().map_or(1, Into::into);
            let threads = if training.threads == 0 { cores() } else { training.threads };
            let runtime = Runtime::load(training.onnxruntime.as_deref(), threads)?.on(training.provider)?;
            tracing::info!(onnxruntime = runtime.version(), provider = runtime.provider().name(), "trainer opened");
            let trainer = Trainer::open(&runtime, Arc::clone(&pack))?;
            Open { pack, trainer, process: memory::of_processes(agent_bytes), planned: None }
        }
    };
    Ok(open.insert(opened))
}

/// How the order's steps stay within what is `set`; as it was planned before, for steps of the same size.
fn within(set: Option<ByteSize>, open: &mut Open, order: &TrainOrder) -> anyhow::Result<Ways> {
    let Manifest { layers, layout, .. } = open.pack.manifest();
    let tokens = layout.max_tokens.min(order.max_tokens as usize);
    let step = Step { examples: order.batch as usize, tokens, active: *layers };
    if let Some((_, ways)) = open.planned.as_ref().filter(|(planned, _)| *planned == step) {
        return Ok(ways.clone());
    }
    let limit = memory::limit(set, machine_bytes(Path::new("/")));
    let plan = memory::planned(&open.trainer, limit, open.process, step)?;
    if plan.beyond.is_some() || plan.chosen.iter().any(|costed| costed.relative_time > 1.0) {
        tracing::info!(plan = memory::explained(&plan, limit, open.process), "memory");
    }
    Ok(open.planned.insert((step, plan.ways())).1.clone())
}

/// The global weights, with the device's own layers in place of those that it keeps.
fn starting_weights(blobs: &Blobs, schema: &Schema, work: &Work) -> anyhow::Result<NamedTensors> {
    let global = blobs.read(work.job.weights())?;
    let mut weights = schema.read(&global).context("reading the global weights")?;
    if let Some(Personal { layers, blob, .. }) = &work.personal {
        let own = blobs.read(*blob)?;
        weights.extend(only_layers(schema, layers).read(&own).context("reading the layers kept on this device")?);
    }
    Ok(weights)
}

/// The tensors of `layers`, without the head.
#[must_use]
pub fn only_layers(schema: &Schema, layers: &[u32]) -> Schema {
    let is_own = |layer: usize| layers.iter().any(|own| *own as usize == layer);
    let tensors = schema.tensors.iter().filter(|spec| spec.layer.is_some_and(is_own));
    Schema { tensors: tensors.cloned().collect() }
}

/// The update of what was trained on `texts` examples, the layers that stay here, and the report.
fn hand_in(
    schema: &Schema,
    weights: &NamedTensors,
    order: &TrainOrder,
    summary: TrainSummary,
    texts: usize,
    probe: Option<Probe>,
) -> anyhow::Result<Trained> {
    if let Some((name, _)) = weights.iter().find(|(_, tensor)| tensor.iter().any(|value| !value.is_finite())) {
        bail!("the training diverged: {name} is not finite any more; lower the learning rate");
    }
    let importance: Vec<f32> =
        summary.importance.iter().map(|norm| if norm.is_finite() { norm.max(0.0) } else { 0.0 }).collect();
    let shared = shared_layers(&order.sharing, &importance);
    let kept: Vec<u32> = (0..).take(importance.len()).filter(|layer| !shared.contains(layer)).collect();
    let shared_indices: Vec<usize> = shared.iter().map(|layer| *layer as usize).collect();
    let update = write(&selected(weights, &schema.of_layers(&shared_indices)))?;
    // What stays is of all ranks, so that it fits whatever rank comes next.
    let weights = &pad(weights.clone(), schema);
    let personal = match kept.is_empty() {
        true => None,
        false => Some((kept.clone(), write(&selected(weights, &only_layers(schema, &kept)))?)),
    };
    let report = TrainReport {
        examples: summary.examples.min(texts as u64),
        tokens: summary.tokens,
        steps: summary.steps,
        mean_loss: summary.mean_loss,
        shared_layers: shared,
        importance,
        mean_active_layers: summary.mean_active_layers,
        train_ms: millis(summary.elapsed),
        step_ms: summary.median_step.as_secs_f32() * 1000.0,
        peak_rss_bytes: own_memory(Path::new("/")).peak_bytes,
        probe,
    };
    Ok(Trained { update, personal, report })
}

fn selected(weights: &NamedTensors, schema: &Schema) -> NamedTensors {
    let named = |(name, _): &(&String, _)| schema.find(name).is_some();
    weights.iter().filter(named).map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

/// What there is to tell of a step; nothing of one that was skipped.
fn work_sample(work: &Work, report: &StepReport) -> Option<WorkSample> {
    let seconds = report.elapsed.as_secs_f32();
    (!report.skipped).then(|| WorkSample {
        run: work.ticket.run,
        round: work.round,
        step: report.step,
        steps: report.steps,
        step_ms: seconds * 1000.0,
        tokens_per_second: if seconds > 0.0 { report.tokens as f32 / seconds } else { 0.0 },
        active_layers: u32::try_from(report.active_layers).unwrap_or(u32::MAX),
        loss: report.loss,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use ndarray::{ArrayD, IxDyn};
    use skiff_contract::Ticket;
    use skiff_models::tensors::TensorSpec;
    use skiff_protocol::messages::SharingPlan;
    use skiff_protocol::{Digest, RunId};

    const LAYERS: usize = 3;

    /// A tensor for each layer, and the head's.
    fn schema() -> Schema {
        let spec = |name: String, layer| TensorSpec { name, shape: vec![2], layer };
        let layers = (0..LAYERS).map(|layer| spec(format!("layer.{layer}"), Some(layer)));
        Schema { tensors: [spec("head".to_owned(), None)].into_iter().chain(layers).collect() }
    }

    fn all_of(schema: &Schema, value: f32) -> NamedTensors {
        let tensor = |shape: &[usize]| ArrayD::from_elem(IxDyn(shape), value);
        schema.tensors.iter().map(|spec| (spec.name.clone(), tensor(&spec.shape))).collect()
    }

    fn names(tensors: &NamedTensors) -> Vec<&str> {
        tensors.keys().map(String::as_str).collect()
    }

    fn order(weights: Digest, sharing: SharingPlan) -> TrainOrder {
        TrainOrder {
            weights,
            schema: Digest(schema().hash()),
            seed: 1,
            rates: vec![0.5; LAYERS],
            most_active: 3,
            proximal: 0.0,
            rank: 0,
            probe_examples: 0,
            steps: 4,
            batch: 5,
            max_tokens: 16,
            learning_rate: 1e-3,
            sharing,
            deadline_ms: 1,
        }
    }

    fn summary() -> TrainSummary {
        TrainSummary {
            examples: 20,
            tokens: 200,
            steps: 4,
            skipped_steps: 0,
            mean_loss: 0.5,
            recent_loss: 0.5,
            importance: vec![3.0, 1.0, 0.0],
            mean_active_layers: 1.5,
            elapsed: Duration::from_secs(2),
            median_step: Duration::from_millis(500),
        }
    }

    fn handed_in(sharing: SharingPlan, texts: usize) -> Trained {
        hand_in(&schema(), &all_of(&schema(), 1.0), &order(Digest([0; 32]), sharing), summary(), texts, None).unwrap()
    }

    #[test]
    fn personal_layers_are_put_back_over_the_global_ones() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), 1 << 20).unwrap();
        let global = blobs.put(&write(&all_of(&schema(), 1.0)).unwrap()).unwrap();
        let own = blobs.put(&write(&all_of(&only_layers(&schema(), &[0, 2]), 2.0)).unwrap()).unwrap();
        let mut work = Work {
            ticket: Ticket { run: RunId(1), epoch: 1 },
            round: 1,
            job: Job::Train(order(global, SharingPlan::All)),
            personal: None,
        };
        assert_eq!(starting_weights(&blobs, &schema(), &work).unwrap(), all_of(&schema(), 1.0));
        work.personal = Some(Personal { run: RunId(1), layers: vec![0, 2], blob: own });
        let mut expected = all_of(&schema(), 1.0);
        expected.extend(all_of(&only_layers(&schema(), &[0, 2]), 2.0));
        assert_eq!(starting_weights(&blobs, &schema(), &work).unwrap(), expected);
        work.personal = Some(Personal { run: RunId(1), layers: vec![1], blob: own });
        assert!(starting_weights(&blobs, &schema(), &work).is_err(), "the blob is of other layers");
    }

    #[test]
    fn layers_are_told_from_the_head_and_from_each_other() {
        assert_eq!(names(&all_of(&only_layers(&schema(), &[1]), 0.0)), ["layer.1"]);
        assert!(only_layers(&schema(), &[]).tensors.is_empty());
    }

    #[test]
    fn an_update_is_the_head_and_the_shared_layers_and_the_others_stay() {
        let trained = handed_in(SharingPlan::LeastImportant { k: 1 }, 100);
        let update = schema().of_layers(&[1]).read(&trained.update).unwrap();
        assert_eq!(names(&update), ["head", "layer.1"]);
        let (kept, own) = trained.personal.unwrap();
        assert_eq!(kept, [0, 2], "the layer that never ran is not shared before one that did");
        assert_eq!(names(&only_layers(&schema(), &kept).read(&own).unwrap()), ["layer.0", "layer.2"]);
        assert_eq!(trained.report.shared_layers, [1]);
    }

    #[test]
    fn where_all_layers_are_shared_none_stays() {
        let trained = handed_in(SharingPlan::All, 100);
        assert_eq!(schema().read(&trained.update).unwrap(), all_of(&schema(), 1.0));
        assert_eq!(trained.personal, None);
    }

    #[test]
    fn an_example_counts_once_however_often_it_was_trained_on() {
        for (texts, counted) in [(7, 7), (20, 20), (2_000, 20)] {
            assert_eq!(handed_in(SharingPlan::All, texts).report.examples, counted);
        }
    }

    #[test]
    fn weights_that_diverged_are_not_handed_in() {
        let mut weights = all_of(&schema(), 1.0);
        weights.extend(all_of(&only_layers(&schema(), &[2]), f32::NAN));
        let order = order(Digest([0; 32]), SharingPlan::All);
        let error = hand_in(&schema(), &weights, &order, summary(), 7, None).unwrap_err();
        assert!(error.to_string().contains("layer.2"), "{error}");
    }
}
