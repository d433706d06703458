//! A device's memory limit, and the plan that keeps its steps below it.

use skiff_contract::limits::Limit;
use skiff_contract::memory::own_memory;
use skiff_models::memory::{Costed, Plan, Step};
use skiff_screen::units::{bytes, counted};
use skiff_trainer::{Trainer, TrainerError};
use std::fmt::Write;
use std::path::Path;

/// Unit to which a process's memory is rounded up, in bytes. The memory varies a little from start to start; the plan should not.
const GRAIN: u64 = 16 << 20;

/// Returns the resident memory of this process and the agent in bytes, rounded up. Right after a trainer was opened, this is the
/// memory that is needed in addition to the memory of the steps.
#[must_use]
pub fn of_processes(agent_bytes: u64) -> u64 {
    own_memory(Path::new("/")).resident_bytes.saturating_add(agent_bytes).next_multiple_of(GRAIN)
}

/// A reason why no step can be done.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not even one layer fits.
    #[error(
        "the memory limit is {limit}: the process takes {}, and a step with one layer and one example of {tokens} tokens at a time {}; \
         allow at least {} or cut texts shorter",
        bytes(*process), bytes(*least), bytes(process + least)
    )]
    TooLittle {
        /// The memory limit.
        limit: Limit,
        /// Memory of the process in bytes.
        process: u64,
        /// Memory of the smallest step in bytes.
        least: u64,
        /// Number of tokens of each text.
        tokens: usize,
    },
    /// The graphs cannot be built.
    #[error("predicting the memory of a step")]
    Predict(#[from] TrainerError),
}

/// Plans the steps of a training within `limit`, of which the processes already take `process`. At most `step.active` layers run.
///
/// # Errors
/// The memory does not suffice for a single layer.
pub fn planned(trainer: &Trainer, limit: &Limit, process: u64, step: Step) -> Result<Plan, MemoryError> {
    let plan = trainer.plan(step, limit.bytes.saturating_sub(process))?;
    match plan.beyond {
        Some(Costed { bytes, .. }) if plan.chosen.is_empty() => {
            Err(MemoryError::TooLittle { limit: limit.clone(), process, least: bytes.total(), tokens: step.tokens })
        }
        Some(_) | None => Ok(plan),
    }
}

/// Describes the plan for people: the ways for each number of layers, their memory, and why there is no faster one.
#[must_use]
pub fn explained(plan: &Plan, limit: &Limit, process: u64) -> String {
    let mut text = format!("at most {limit}: {} for the process, {} for steps\n", bytes(process), bytes(plan.room));
    let mut layers = 1;
    for alike in plan.chosen.chunk_by(|one, other| one.way == other.way) {
        let last = layers + alike.len() - 1;
        let Costed { way, relative_time, bytes: predicted } = alike[alike.len() - 1];
        let (total, kept) = (bytes(predicted.total()), bytes(predicted.kept));
        let _ = writeln!(
            text,
            "  {:<16}{}, {} at once: up to {total}, {kept} of it kept for the backward pass{}",
            if layers == last { counted(last, "layer") } else { format!("{layers} to {last} layers") },
            way.policy.name(),
            counted(way.micro_batch, "example"),
            if relative_time > 1.0 {
                format!("; about {:.0} % slower", 100.0 * (relative_time - 1.0))
            } else {
                String::new()
            }
        );
        layers = last + 1;
    }
    if let Some(Costed { bytes: predicted, .. }) = plan.beyond {
        let (layers, least, most) = (counted(layers, "layer"), bytes(predicted.total()), plan.chosen.len());
        let _ = writeln!(text, "  {layers} would take at least {least}: more than {most} never run at once");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_models::memory::{Policy, Prediction, Way};

    fn costed(policy: Policy, micro_batch: usize, megabytes: u64, relative_time: f64) -> Costed {
        let bytes = Prediction { mapped: 0, trained: 0, kept: megabytes * 1_000_000, working: 0 };
        Costed { way: Way { policy, micro_batch }, relative_time, bytes }
    }

    #[test]
    fn the_plan_says_what_it_chose_and_why_not_more() {
        let chosen =
            vec![costed(Policy::Keep, 8, 40, 1.0), costed(Policy::Keep, 8, 80, 1.0), costed(Policy::Half, 4, 90, 1.05)];
        let plan = Plan { room: 100_000_000, chosen, beyond: Some(costed(Policy::Recompute, 1, 110, 2.0)) };
        let text = explained(&plan, &Limit::set(150_000_000), 50_000_000);
        assert_eq!(
            text,
            "at most 150.0 MB (the setting `memory`): 50.0 MB for the process, 100.0 MB for steps\n  \
             1 to 2 layers   keep, 8 examples at once: up to 80.0 MB, 80.0 MB of it kept for the backward pass\n  \
             3 layers        half, 4 examples at once: up to 90.0 MB, 90.0 MB of it kept for the backward pass; about 5 % slower\n  \
             4 layers would take at least 110.0 MB: more than 3 never run at once\n"
        );
    }
}
