//! The order of examples, and the examples of each step.

use crate::dropout::stream;
use crate::plan::TrainPlan;

/// The examples of each step of a device: positions `(k - 1) batch .. k batch` in an endless sequence of epochs. Each epoch
/// is the corpus in another seeded order. `k` counts steps over rounds.
#[derive(Default)]
pub(crate) struct Epochs {
    /// Number and order of the last epoch.
    known: Option<(u128, Vec<u32>)>,
}

impl Epochs {
    /// Returns the examples of step `step`, which counts from 1.
    pub(crate) fn of_step(&mut self, plan: &TrainPlan, examples: usize, step: u32) -> Vec<usize> {
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
    use crate::optimizer::AdamWOptions;
    use crate::schedule::Schedule;
    use skiff_models::memory::{Policy, Way, Ways};

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
