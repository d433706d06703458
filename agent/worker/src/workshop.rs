//! Work on this device's pack and examples: trains or evaluates weights from the agent's store.
//!
//! Nothing is opened before the first work: until then the process has not loaded ONNX Runtime and has no open file of examples.
//! The pack, the trainer and the examples stay open for the next round.

use crate::corpus::{Corpus, columns};
use crate::memory::{self, MemoryError};
use crate::order::{OrderedTraining, millis, only_layers};
use anyhow::Context;
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_contract::limits::{Cause, Lesson, Limit, System};
use skiff_contract::memory::own_memory;
use skiff_contract::work::{Job, Personal, Product, Trained, Watch, Work, Workshop};
use skiff_contract::{Setup, Training};
use skiff_data::Columns;
use skiff_models::memory::Step;
use skiff_models::pack::{Manifest, Pack};
use skiff_models::tensors::{NamedTensors, Schema};
use skiff_protocol::messages::{EvaluateOrder, EvaluationReport, TrainOrder, WorkSample};
use skiff_protocol::{DeviceId, Digest};
use skiff_trainer::{EvaluatePlan, Runtime, StepReport, Trainer, Ways};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A [`Workshop`] around a pack.
pub struct PackWorkshop {
    training: Training,
    device: DeviceId,
    /// The agent's state folder.
    state: PathBuf,
    blobs: DiskBlobs,
    agent_bytes: u64,
    open: Option<Open>,
    train: Texts,
    test: Texts,
}

/// A pack with its sessions.
struct Open {
    pack: Arc<Pack>,
    trainer: Trainer,
    /// Resident memory of both processes when the trainer was opened, in bytes.
    process: u64,
    planned: Option<Planned>,
}

/// The plan of the last order's steps.
struct Planned {
    /// Size of the steps.
    step: Step,
    /// The memory limit, in bytes.
    limit_bytes: u64,
    /// Ways of doing the steps.
    ways: Ways,
}

impl Planned {
    /// Returns true if the plan suits steps of this size: it stays below the limit, and a new plan would not gain much. The free
    /// memory changes a little all the time, but the plan should not.
    fn suits(&self, step: Step, limit: &Limit) -> bool {
        self.step == step && self.limit_bytes <= limit.bytes && limit.bytes / 5 * 4 <= self.limit_bytes
    }
}

impl PackWorkshop {
    /// Returns a workshop that opens the pack and the files of texts at the first work.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let Setup { training, device, state, agent_bytes } = setup;
        let columns = columns(&training.columns);
        let texts = |path: &Option<PathBuf>| Texts::new(path.clone(), columns.clone());
        let (train, test) = (texts(&training.train), texts(&training.test));
        let blobs = DiskBlobs::of_another(state.clone());
        Self { training, device, state, blobs, agent_bytes, open: None, train, test }
    }

    fn train(&mut self, work: &Work, order: &TrainOrder, step: &mut Watch<'_>) -> anyhow::Result<Trained> {
        let open = opened(&mut self.open, &self.training, self.agent_bytes)?;
        let lesson = Lesson::read(&self.state);
        let limit = System::read(Path::new("/")).limit_now(self.training.memory, lesson, self.agent_bytes);
        let ways = plan_steps(&limit, open, order)?;
        let Open { pack, trainer, .. } = open;
        let corpus = self.train.corpus(pack, order.max_tokens)?;
        let probe = match self.test.path {
            Some(_) if order.probe_examples > 0 => Some(self.test.corpus(pack, order.max_tokens)?),
            Some(_) | None => None,
        };
        let weights = starting_weights(&self.blobs, pack.schema(), work)?;
        let training = OrderedTraining {
            pack,
            device: &self.device,
            round: work.round,
            order,
            train: corpus,
            probe: probe.unwrap_or(corpus),
            ways,
        };
        #[cfg(debug_assertions)]
        let mut barrier = crate::barrier::Barrier::from_environment(self.device.as_str(), work.round);
        training.run(trainer, weights, &mut |report| {
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
            metrics: summary.metrics,
        })
    }
}

impl Workshop for PackWorkshop {
    fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product> {
        match &work.job {
            Job::Train(order) => self.train(work, order, step).map(Product::Trained),
            Job::Evaluate(order) => self.evaluate(work, order, step).map(Product::Evaluated),
        }
    }
}

/// A file of examples, opened when it is first needed and opened again when it has changed.
struct Texts {
    path: Option<PathBuf>,
    columns: Columns,
    /// The examples, with the length in tokens to which texts are cut.
    corpus: Option<(u32, Corpus)>,
}

impl Texts {
    const fn new(path: Option<PathBuf>, columns: Columns) -> Self {
        Self { path, columns, corpus: None }
    }

    fn corpus(&mut self, pack: &Pack, max_tokens: u32) -> anyhow::Result<&Corpus> {
        let path = self.path.as_ref().context("this device has no examples for that")?;
        let known = self.corpus.take_if(|(cut_to, corpus)| *cut_to == max_tokens && corpus.is_current());
        let corpus = match known {
            Some(corpus) => corpus,
            None => (max_tokens, Corpus::load(path, &self.columns, pack, max_tokens as usize)?),
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

/// Plans the order's steps within the memory limit. Steps of the same size keep the plan that they had, if it still suits.
fn plan_steps(limit: &Limit, open: &mut Open, order: &TrainOrder) -> anyhow::Result<Ways> {
    let Manifest { layers, layout, .. } = open.pack.manifest();
    let tokens = layout.max_tokens.min(order.max_tokens as usize);
    let step = Step { examples: order.batch as usize, tokens, active: *layers };
    if let Some(planned) = open.planned.as_ref().filter(|planned| planned.suits(step, limit)) {
        return Ok(planned.ways.clone());
    }
    let plan = match memory::planned(&open.trainer, limit, open.process, step) {
        // The learned limit is an estimate. The smallest step is therefore tried before the device stays out of all rounds.
        Err(MemoryError::TooLittle { process, least, .. }) if limit.cause == Cause::Lesson => {
            let smallest = Limit { bytes: process + least, ..limit.clone() };
            memory::planned(&open.trainer, &smallest, process, step)
        }
        planned => planned,
    }?;
    if plan.beyond.is_some() || plan.chosen.iter().any(|costed| costed.relative_time > 1.0) {
        tracing::info!(plan = memory::explained(&plan, limit, open.process), "memory");
    }
    let planned = Planned { step, limit_bytes: limit.bytes, ways: plan.ways() };
    Ok(open.planned.insert(planned).ways.clone())
}

fn starting_weights(blobs: &DiskBlobs, schema: &Schema, work: &Work) -> anyhow::Result<NamedTensors> {
    let personal = work.personal.as_ref().map(|Personal { layers, blob, .. }| (layers.as_slice(), *blob));
    with_personal_layers(blobs, schema, work.job.weights(), personal)
}

/// Reads the global weights, and puts the device's personal layers (numbers and blob) in their places.
///
/// # Errors
/// A blob that is missing or damaged, or holds other tensors.
pub(crate) fn with_personal_layers(
    blobs: &DiskBlobs,
    schema: &Schema,
    weights: Digest,
    personal: Option<(&[u32], Digest)>,
) -> anyhow::Result<NamedTensors> {
    let global = blobs.read(weights)?;
    let mut weights = schema.read(&global).context("reading the global weights")?;
    if let Some((layers, blob)) = personal {
        let own = blobs.read(blob)?;
        weights.extend(only_layers(schema, layers).read(&own).context("reading the layers kept on this device")?);
    }
    Ok(weights)
}

/// Returns the sample of a step, or `None` if it was skipped.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::order::tests::{all_of, order, schema};
    use skiff_contract::Ticket;
    use skiff_models::tensors::write;
    use skiff_protocol::RunId;
    use skiff_protocol::messages::SharingPlan;

    #[test]
    fn personal_layers_are_put_back_over_the_global_ones() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = DiskBlobs::open(folder.path(), 1 << 20).unwrap();
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
}
