//! Runs a training step by step: chooses the examples of each step, applies its gradients, and collects the results.

use crate::ahead::{Upcoming, ahead, read_example};
use crate::checkpoint::{self, CheckpointError, Origin};
use crate::clock::monotonic;
use crate::dropout::LayerMask;
use crate::epochs::Epochs;
use crate::error::TrainerError;
use crate::evaluation::{EvaluatePlan, EvaluateSummary};
use crate::examples::Examples;
use crate::optimizer::{AdamW, clip, global_norm};
use crate::plan::{TrainPlan, check, settings};
use crate::report::{StepReport, TrainSummary};
use crate::tally::Tally;
use crate::trainer::Trainer;
use ndarray::Zip;
use skiff_models::tensors::NamedTensors;
use std::ops::ControlFlow;

/// Number of steps without finite numbers, in a row, that ends a training.
pub const MOST_SKIPPED_IN_A_ROW: u32 = 10;

impl Trainer {
    /// Begins the planned training with a fresh optimizer; [`Training::step`] does the steps.
    ///
    /// The examples repeat, each time in another seeded order.
    ///
    /// # Errors
    /// A plan that does not fit.
    pub fn begin<'a>(
        &'a mut self,
        plan: &'a TrainPlan,
        examples: &'a dyn Examples,
    ) -> Result<Training<'a>, TrainerError> {
        Training::begin(self, plan, examples)
    }

    /// Trains as planned, reporting each step to `watch`, which may stop it.
    ///
    /// # Errors
    /// The errors of [`Trainer::begin`] and [`Training::step`]. The weights then stay as the last good step left them.
    pub fn train(
        &mut self,
        plan: &TrainPlan,
        examples: &dyn Examples,
        watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<TrainSummary, TrainerError> {
        let mut training = self.begin(plan, examples)?;
        training.run::<TrainerError, _>(|_, report| Ok(watch(report)))?;
        Ok(training.summary())
    }
}

/// A training in progress: [`Training::step`] does its next step, until there is none.
///
/// Its state can be saved at any time and resumed later, also in another process. The later steps then give the same bits as
/// without the interruption.
pub struct Training<'a> {
    trainer: &'a mut Trainer,
    plan: &'a TrainPlan,
    examples: &'a dyn Examples,
    optimizer: AdamW,
    tally: Tally,
    /// Initial weights if FedProx's term is on; otherwise empty.
    anchor: NamedTensors,
    epochs: Epochs,
}

impl<'a> Training<'a> {
    pub(super) fn begin(
        trainer: &'a mut Trainer,
        plan: &'a TrainPlan,
        examples: &'a dyn Examples,
    ) -> Result<Self, TrainerError> {
        let layers = trainer.pack.manifest().layers;
        check(plan, layers, examples.len())?;
        let anchor = if plan.proximal > 0.0 { trainer.weights.clone() } else { NamedTensors::new() };
        Ok(Self {
            trainer,
            plan,
            examples,
            optimizer: AdamW::new(plan.optimizer),
            tally: Tally::new(layers),
            anchor,
            epochs: Epochs::default(),
        })
    }

    /// Evaluates the weights as they are after the last step. The training continues as if nothing had happened.
    ///
    /// # Errors
    /// The errors of [`Trainer::evaluate`].
    pub fn evaluate(
        &mut self,
        examples: &dyn Examples,
        plan: &EvaluatePlan,
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<EvaluateSummary, TrainerError> {
        self.trainer.evaluate(examples, plan, watch)
    }

    /// Returns the values of the trainable tensors after the last step.
    #[must_use]
    pub fn weights(&self) -> &NamedTensors {
        self.trainer.weights()
    }

    /// Returns the number of finished steps, including skipped ones.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.tally.passed()
    }

    /// Does the next step; returns `None` after the last.
    ///
    /// A step whose loss or gradients are not finite is skipped: weights and the optimizer stay as they are.
    ///
    /// # Errors
    /// A graph that fails; an example that cannot be read; [`MOST_SKIPPED_IN_A_ROW`] skipped steps in a row; a training whose
    /// steps were all skipped. The weights then stay as the last good step left them.
    pub fn step(&mut self) -> Result<Option<StepReport>, TrainerError> {
        let (examples, form) = (self.examples, self.trainer.form().clone());
        let next = self.done().saturating_add(1);
        let order =
            if next <= self.plan.steps { self.epochs.of_step(self.plan, examples.len(), next) } else { Vec::new() };
        self.step_on(&mut order.into_iter().map(|at| read_example(examples, &form, at)))
    }

    /// Does the remaining steps, until `watch` stops it. `watch` sees each report and the training after the step. While a step
    /// runs, the examples of the next steps are read.
    ///
    /// # Errors
    /// The errors of [`Training::step`] and of `watch`.
    pub fn run<E, W>(&mut self, mut watch: W) -> Result<(), E>
    where
        E: From<TrainerError>,
        W: FnMut(&mut Self, &StepReport) -> Result<ControlFlow<()>, E>,
    {
        let (plan, examples, form) = (self.plan, self.examples, self.trainer.form().clone());
        let mut epochs = std::mem::take(&mut self.epochs);
        let order = (self.done() + 1..=plan.steps).flat_map(|step| epochs.of_step(plan, examples.len(), step));
        let mut refused = None;
        ahead(
            order,
            plan.batch,
            |at| read_example(examples, &form, at),
            |brought| {
                while let Some(report) = self.step_on(brought)? {
                    match watch(self, &report) {
                        Ok(ControlFlow::Continue(())) => {}
                        Ok(ControlFlow::Break(())) => break,
                        Err(error) => {
                            refused = Some(error);
                            break;
                        }
                    }
                }
                Ok(())
            },
        )?;
        refused.map_or(Ok(()), Err)
    }

    /// Does the next step with the next examples of `brought`.
    fn step_on(&mut self, brought: &mut Upcoming<'_>) -> Result<Option<StepReport>, TrainerError> {
        let plan = self.plan;
        if self.done() >= plan.steps {
            return Ok(None);
        }
        let (step, begun) = (self.done() + 1, monotonic());
        let most = plan.most_active.min(plan.ways.most_active());
        let mask = LayerMask::draw(&plan.rates, most, plan.seed, &plan.device, plan.round, step);
        let way = plan.ways.with(mask.active().len()).expect("a plan without ways is refused");
        let sequences = brought.take(plan.batch).collect::<Result<Vec<_>, TrainerError>>()?;
        self.trainer.set_policy(way.policy);
        let mut outcome = self.trainer.step_in_parts(&sequences, &mask, way.micro_batch)?;
        let norm = global_norm(&outcome.gradients);
        let skipped = !is_usable(outcome.loss, norm);
        if !skipped {
            self.tally.add_importance(self.trainer.pack.schema(), &mask, &outcome.gradients);
            self.hold(&mut outcome.gradients);
            clip(&mut outcome.gradients, plan.clip_norm);
            let learning_rate = plan.learning_rate * plan.schedule.factor(step, plan.steps);
            self.optimizer.step(&mut self.trainer.weights, &outcome.gradients, learning_rate);
        }
        let report = StepReport {
            step,
            steps: plan.steps,
            loss: outcome.loss,
            skipped,
            active_layers: mask.active().len(),
            tokens: sequences.iter().map(|sequence| sequence.ids.len()).sum(),
            elapsed: monotonic().saturating_sub(begun),
        };
        self.tally.add(&report, sequences.len());
        let in_a_row = self.tally.skipped_in_a_row();
        if in_a_row >= MOST_SKIPPED_IN_A_ROW || in_a_row >= plan.steps {
            return Err(TrainerError::NotFinite { step, in_a_row, loss: outcome.loss, norm });
        }
        Ok(Some(report))
    }

    /// Writes the state of the training for [`Training::resume`]: a safetensors file with the weights and AdamW's moments, and
    /// the rest in its metadata.
    ///
    /// # Errors
    /// Weights that are not finite: no training could resume with them.
    pub fn checkpoint(&self) -> Result<Vec<u8>, CheckpointError> {
        checkpoint::write(&self.origin(), &self.trainer.weights, &self.optimizer, &self.tally)
    }

    /// Resumes the training that wrote `checkpoint`.
    ///
    /// # Errors
    /// Bytes that are not a checkpoint; a damaged checkpoint; a checkpoint of another plan, pack or number of examples. The
    /// training then stays as it was.
    pub fn resume(&mut self, checkpoint: &[u8]) -> Result<(), CheckpointError> {
        let pack = &self.trainer.pack;
        let state = checkpoint::read(checkpoint, &self.origin(), pack.schema(), pack.manifest().layers)?;
        if state.tally.passed() > self.plan.steps {
            return Err(CheckpointError::Inconsistent { what: format!("it is at step {}", state.tally.passed()) });
        }
        self.trainer.weights = state.weights;
        self.optimizer.moments = state.moments;
        self.tally = state.tally;
        Ok(())
    }

    /// Returns the results of all steps so far.
    #[must_use]
    pub fn summary(self) -> TrainSummary {
        self.tally.summary()
    }

    /// Adds the gradient of FedProx's term to the gradients of this step.
    fn hold(&self, gradients: &mut NamedTensors) {
        for (name, gradient) in gradients {
            if let (Some(weight), Some(anchor)) = (self.trainer.weights.get(name), self.anchor.get(name)) {
                let pull = |gradient: &mut f32, &weight: &f32, &anchor: &f32| {
                    *gradient += self.plan.proximal * (weight - anchor);
                };
                Zip::from(gradient).and(weight).and(anchor).for_each(pull);
            }
        }
    }

    fn origin(&self) -> Origin {
        Origin { pack: self.trainer.pack.digest(), settings: settings(self.plan, self.examples.len()) }
    }
}

/// Returns true if a step may change weights: its loss is finite, and so are its gradients and their squares. AdamW would
/// never forget an infinite square.
fn is_usable(loss: f32, norm: f64) -> bool {
    loss.is_finite() && ((norm * norm) as f32).is_finite()
}
