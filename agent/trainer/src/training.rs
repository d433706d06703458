//! A stretch of training, step by step: which examples each takes, what becomes of its gradients, what came of all.

use crate::ahead::ahead;
use crate::checkpoint::{self, CheckpointError, Origin};
use crate::clock::monotonic;
use crate::dropout::{LayerMask, stream};
use crate::error::TrainerError;
use crate::examples::Examples;
use crate::optimizer::{AdamW, AdamWOptions, clip, global_norm};
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::trainer::{Brought, Trainer, bring};
use ndarray::Zip;
use skiff_models::memory::{Way, Ways};
use skiff_models::tensors::NamedTensors;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

/// So many steps in a row may be skipped because their numbers are not finite; the last of them ends the training.
pub const MOST_SKIPPED_IN_A_ROW: u32 = 10;

/// One stretch of training.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainPlan {
    /// With device, round and step it determines masks and batches.
    pub seed: u64,
    /// The device's name.
    pub device: String,
    /// The round; 0 outside a fleet.
    pub round: u32,
    /// What the examples are, a digest for instance: a checkpoint is only of use with the same. May be empty.
    pub data: String,
    /// Dropout rate of each layer.
    pub rates: Vec<f32>,
    /// So many layers run in any step at the most; 0 is as 1.
    pub most_active: usize,
    /// FedProx's factor `mu` (Li et al., arXiv:1812.06127, Algorithm 2): the loss has `mu/2` times the squared distance from the
    /// weights that the training began with beside it, so a gradient has `mu (w - w0)`. 0: none.
    pub proximal: f32,
    /// Optimizer steps.
    pub steps: u32,
    /// Examples in a step.
    pub batch: usize,
    /// How each step is done, which bounds the memory; gradients differ in rounding only.
    pub ways: Ways,
    /// AdamW's, where the schedule has it whole.
    pub learning_rate: f32,
    /// How it rises and falls.
    pub schedule: Schedule,
    /// AdamW's constants.
    pub optimizer: AdamWOptions,
    /// Global gradient norm above which gradients are scaled down; infinite for never.
    pub clip_norm: f32,
}

/// A finished step.
#[derive(Clone, PartialEq, Debug)]
pub struct StepReport {
    /// From 1.
    pub step: u32,
    /// Of how many.
    pub steps: u32,
    /// The task's loss over the batch.
    pub loss: f32,
    /// Its loss or its gradients were not finite: it changed nothing.
    pub skipped: bool,
    /// How many layers ran.
    pub active_layers: usize,
    /// Tokens of text in the batch.
    pub tokens: usize,
    /// Wall time of the step.
    pub elapsed: Duration,
}

/// What a stretch of training did.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainSummary {
    /// Examples trained on, repetitions counted.
    pub examples: u64,
    /// Tokens of text trained on.
    pub tokens: u64,
    /// Steps that changed weights; fewer than planned where some were skipped, or the training was stopped.
    pub steps: u32,
    /// Steps that changed nothing, because their loss or gradients were not finite. Nothing else counts them, but `elapsed`.
    pub skipped_steps: u32,
    /// Mean over the steps.
    pub mean_loss: f32,
    /// Mean over the last [`RECENT`](crate::tally::RECENT) steps.
    pub recent_loss: f32,
    /// For each layer, the mean over the batches where it was active of the norm of its gradient, before clipping. A mean
    /// and no sum, so that a layer's dropout rate does not bias it. 0: the layer never ran.
    pub importance: Vec<f32>,
    /// Mean over the steps.
    pub mean_active_layers: f32,
    /// Wall time of all steps.
    pub elapsed: Duration,
    /// Median over the steps of this process.
    pub median_step: Duration,
}

/// A training in progress: [`Training::step`] does its next step, until there is none.
///
/// What it has become can be written down at any time and taken up again, later and in another process: the steps after
/// that give the same bits as if nothing had happened between.
pub struct Training<'a> {
    trainer: &'a mut Trainer,
    plan: &'a TrainPlan,
    examples: &'a dyn Examples,
    optimizer: AdamW,
    tally: Tally,
    /// The weights it began with, where it is held near them.
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

    /// Steps done, those that were skipped included.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.tally.passed()
    }

    /// Does the next step; `None` after the last.
    ///
    /// A step whose loss or gradients are not finite is skipped: weights and the optimizer stay as they are.
    ///
    /// # Errors
    /// A graph that fails, an example that cannot be brought, [`MOST_SKIPPED_IN_A_ROW`] skipped steps in a row, or none that
    /// was not skipped by the end. The weights then are those of the last good step.
    pub fn step(&mut self) -> Result<Option<StepReport>, TrainerError> {
        let (examples, form) = (self.examples, self.trainer.form().clone());
        let next = self.done().saturating_add(1);
        let order =
            if next <= self.plan.steps { self.epochs.of_step(self.plan, examples.len(), next) } else { Vec::new() };
        self.step_on(&mut order.into_iter().map(|at| bring(examples, &form, at)))
    }

    /// Does all steps that are left, or as many as `watch` wants: it sees each report, and the training after the step. The
    /// examples of the next steps are brought while a step runs.
    ///
    /// # Errors
    /// Those of [`Training::step`], and of `watch`.
    pub fn run<E, W>(&mut self, mut watch: W) -> Result<(), E>
    where
        E: From<TrainerError>,
        W: FnMut(&Self, &StepReport) -> Result<ControlFlow<()>, E>,
    {
        let (plan, examples, form) = (self.plan, self.examples, self.trainer.form().clone());
        let mut epochs = std::mem::take(&mut self.epochs);
        let order = (self.done() + 1..=plan.steps).flat_map(|step| epochs.of_step(plan, examples.len(), step));
        let mut refused = None;
        ahead(
            order,
            plan.batch,
            |at| bring(examples, &form, at),
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

    /// The next step, on the next examples that are brought.
    fn step_on(&mut self, brought: &mut Brought<'_>) -> Result<Option<StepReport>, TrainerError> {
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

    /// What the training has become, as bytes for [`Training::resume`]: a safetensors file with the weights and AdamW's
    /// moments, and the rest in its metadata.
    ///
    /// # Errors
    /// Weights that are not finite: nobody could go on with them.
    pub fn checkpoint(&self) -> Result<Vec<u8>, CheckpointError> {
        checkpoint::write(&self.origin(), &self.trainer.weights, &self.optimizer, &self.tally)
    }

    /// Takes up where the training was that gave `checkpoint`.
    ///
    /// # Errors
    /// Bytes that are not a checkpoint, a damaged one, or one of another plan, pack or number of examples. The training then
    /// is what it was.
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

    /// What came of all steps so far.
    #[must_use]
    pub fn summary(self) -> TrainSummary {
        self.tally.summary()
    }

    /// Adds FedProx's pull to the gradients of what this step trains.
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

/// Whether a step may change weights: its loss is finite, and so are its gradients and their squares, of which AdamW would
/// never forget an infinite one.
fn is_usable(loss: f32, norm: f64) -> bool {
    loss.is_finite() && ((norm * norm) as f32).is_finite()
}

/// Everything that determines the steps of a training, as text.
fn settings(plan: &TrainPlan, examples: usize) -> BTreeMap<String, String> {
    let TrainPlan {
        seed,
        device,
        round,
        data,
        rates,
        most_active,
        proximal,
        steps,
        batch,
        ways,
        learning_rate,
        schedule: Schedule { warm_up, decay },
        optimizer: AdamWOptions { beta_1, beta_2, epsilon, weight_decay },
        clip_norm,
    } = plan;
    let named = [
        ("seed", seed.to_string()),
        ("device", device.clone()),
        ("round", round.to_string()),
        ("data", data.clone()),
        ("dropout rates", format!("{rates:?}")),
        ("active layers", most_active.min(&rates.len()).to_string()),
        ("proximal factor", proximal.to_string()),
        ("steps", steps.to_string()),
        ("batch", batch.to_string()),
        ("policy and micro-batch", described(ways)),
        ("learning rate", learning_rate.to_string()),
        ("warm-up", warm_up.to_string()),
        ("schedule", format!("{decay:?}").to_lowercase()),
        ("beta 1", beta_1.to_string()),
        ("beta 2", beta_2.to_string()),
        ("epsilon", epsilon.to_string()),
        ("weight decay", weight_decay.to_string()),
        ("clip norm", clip_norm.to_string()),
        ("examples", examples.to_string()),
    ];
    named.map(|(name, value)| (name.to_owned(), value)).into()
}

fn described(ways: &Ways) -> String {
    let way = |Way { policy, micro_batch }: &Way| format!("{} {micro_batch}", policy.name());
    match ways {
        Ways::Fixed(one) => way(one),
        Ways::ByActive(ways) => ways.iter().map(way).collect::<Vec<_>>().join(", "),
    }
}

fn check(plan: &TrainPlan, layers: usize, examples: usize) -> Result<(), TrainerError> {
    let fail = |what: String| Err(TrainerError::Plan { what });
    if plan.rates.len() != layers {
        return fail(format!("{} dropout rates for {layers} layers", plan.rates.len()));
    }
    if let Some(rate) = plan.rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        return fail(format!("dropout rate {rate} is not between 0 and 1"));
    }
    if !(plan.proximal.is_finite() && plan.proximal >= 0.0) {
        return fail(format!("the proximal factor {} is not 0 or more", plan.proximal));
    }
    if u32::try_from(examples).is_err() {
        return fail(format!("{examples} examples are more than {}", u32::MAX));
    }
    if examples == 0 {
        return fail("there is nothing to train on".to_owned());
    }
    if plan.batch == 0 || plan.steps == 0 {
        return fail("a training needs at least one step of at least one example".to_owned());
    }
    let mut ways = (1..=layers).map(|active| plan.ways.with(active));
    if ways.any(|way| way.is_none_or(|way| way.micro_batch == 0)) {
        return fail("a micro-batch needs at least one example".to_owned());
    }
    if plan.schedule.warm_up > plan.steps {
        return fail(format!("a warm-up of {} steps does not fit into {}", plan.schedule.warm_up, plan.steps));
    }
    if !plan.learning_rate.is_finite() {
        return fail(format!("the learning rate {} is not a number", plan.learning_rate));
    }
    match plan.optimizer.problem() {
        Some(what) => fail(what),
        None => Ok(()),
    }
}

/// Which examples each step of a device takes: positions `(k - 1) batch .. k batch` in an endless sequence of epochs, each the
/// corpus in another seeded order, where `k` counts steps over rounds.
#[derive(Default)]
struct Epochs {
    /// The last epoch's number and order.
    known: Option<(u128, Vec<u32>)>,
}

impl Epochs {
    fn of_step(&mut self, plan: &TrainPlan, examples: usize, step: u32) -> Vec<usize> {
        let (batch, examples_of_epoch) = (plan.batch as u128, examples as u128);
        let before = u128::from(plan.round.saturating_sub(1)) * u128::from(plan.steps) + u128::from(step - 1);
        let example = |position: u128| {
            let number = position / examples_of_epoch;
            let (_, order) = match self.known.take_if(|(known, _)| *known == number) {
                Some(known) => self.known.insert(known),
                None => self.known.insert((number, epoch_order(plan, examples, number))),
            };
            order[(position % examples_of_epoch) as usize] as usize
        };
        (before * batch..(before + 1) * batch).map(example).collect()
    }
}

fn epoch_order(plan: &TrainPlan, examples: usize, epoch: u128) -> Vec<u32> {
    let mut order: Vec<u32> = (0..examples as u32).collect();
    stream("epoch", plan.seed, &plan.device, epoch as u32, 0).shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_models::memory::Policy;

    fn plan(round: u32) -> TrainPlan {
        TrainPlan {
            seed: 5,
            device: "a".to_owned(),
            round,
            data: String::new(),
            rates: vec![0.0; 2],
            most_active: 2,
            proximal: 0.0,
            steps: 3,
            batch: 4,
            ways: Ways::Fixed(Way { policy: Policy::Keep, micro_batch: 4 }),
            learning_rate: 1e-3,
            schedule: Schedule::default(),
            optimizer: AdamWOptions::default(),
            clip_norm: 1.0,
        }
    }

    #[test]
    fn rounds_walk_through_the_corpus_without_repetition_until_it_is_used_up() {
        let steps = |round| (1..=3).flat_map(move |step| Epochs::default().of_step(&plan(round), 24, step));
        let mut seen: Vec<usize> = steps(1).chain(steps(2)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..24).collect::<Vec<_>>());
        assert_ne!(steps(1).collect::<Vec<_>>(), steps(3).collect::<Vec<_>>());
    }

    #[test]
    fn a_corpus_smaller_than_a_batch_is_repeated() {
        let chosen = Epochs::default().of_step(&plan(1), 3, 1);
        assert_eq!(chosen.len(), 4);
        assert!(chosen.iter().all(|&at| at < 3));
    }

    #[test]
    fn the_last_step_of_the_last_round_has_its_examples() {
        let endless = TrainPlan { steps: u32::MAX, batch: 4096, ..plan(u32::MAX) };
        let chosen = Epochs::default().of_step(&endless, 3, u32::MAX);
        assert_eq!(chosen.len(), 4096);
        assert!((0..3).all(|example| chosen.contains(&example)) && chosen.iter().all(|&at| at < 3));
    }
}
