//! The plan of a training: its settings, its faults, and the settings that identify its checkpoints.

use crate::error::TrainerError;
use crate::optimizer::AdamWOptions;
use crate::schedule::Schedule;
use skiff_models::memory::{Way, Ways};
use std::collections::BTreeMap;

/// Settings of a training.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainPlan {
    /// Seed for masks and batches, combined with device, round and step.
    pub seed: u64,
    /// The device's name.
    pub device: String,
    /// The round; 0 outside a fleet.
    pub round: u32,
    /// Identity of the examples, for example a digest. A checkpoint is valid only for the same examples. May be empty.
    pub data: String,
    /// Dropout rate of each layer.
    pub rates: Vec<f32>,
    /// Maximum number of layers in one step; 0 means 1.
    pub most_active: usize,
    /// FedProx's factor `mu` (Li et al., arXiv:1812.06127, Algorithm 2). It adds `mu/2 |w - w0|^2` to the loss and `mu (w - w0)`
    /// to each gradient; `w0` are the first weights of the training. 0 turns the term off.
    pub proximal: f32,
    /// Number of optimizer steps.
    pub steps: u32,
    /// Number of examples in a step.
    pub batch: usize,
    /// The way of running each step, which bounds the memory. Different ways give the same gradients up to rounding.
    pub ways: Ways,
    /// AdamW's learning rate at the peak of the schedule.
    pub learning_rate: f32,
    /// The course of the learning rate.
    pub schedule: Schedule,
    /// AdamW's constants.
    pub optimizer: AdamWOptions,
    /// Global gradient norm above which gradients are scaled down; infinity to never scale them.
    pub clip_norm: f32,
}

/// Returns everything that determines the steps of a training, as text.
pub(crate) fn settings(plan: &TrainPlan, examples: usize) -> BTreeMap<String, String> {
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

/// Fails if a plan does not fit a model of `layers` layers or a corpus of `examples`.
pub(crate) fn check(plan: &TrainPlan, layers: usize, examples: usize) -> Result<(), TrainerError> {
    let fail = |what: String| Err(TrainerError::Plan { what });
    if plan.rates.len() != layers {
        return fail(format!("{} dropout rates for {layers} layers", plan.rates.len()));
    }
    if let Some(rate) = plan.rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        return fail(format!("dropout rate {rate} is not between 0 and 1"));
    }
    if !(plan.proximal.is_finite() && plan.proximal >= 0.0) {
        return fail(format!("the proximal factor {} must be 0 or more", plan.proximal));
    }
    if u32::try_from(examples).is_err() {
        return fail(format!("{examples} examples are more than {}", u32::MAX));
    }
    if examples == 0 {
        return fail("there are no examples to train on".to_owned());
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
