//! Examples are read before their step needs them. This changes neither the training nor the position of an error or of the end.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_tests::{packs, places};
use skiff_trainer::{
    AdamWOptions, EvaluatePlan, Examples, Policy, Schedule, Sequence, Target, TrainPlan, Trainer, TrainerError, Way,
    Ways,
};
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Examples of growing length; one may be missing. Counts the examples that were read.
struct Forty {
    missing: Option<usize>,
    brought: AtomicUsize,
}

impl Forty {
    fn without(missing: Option<usize>) -> Self {
        Self { missing, brought: AtomicUsize::new(0) }
    }
}

impl Examples for Forty {
    fn len(&self) -> usize {
        40
    }

    fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>> {
        self.brought.fetch_add(1, SeqCst);
        if self.missing == Some(at) {
            return Err("it is missing".into());
        }
        let ids = (0..=at as u32 / 8).map(|token| 1_000 + 37 * at as u32 + token).collect::<Vec<_>>();
        Ok(Sequence { types: vec![0; ids.len()], ids, target: Target::Class(at % 2) })
    }

    fn length_hint(&self, at: usize) -> usize {
        at / 8
    }
}

#[test]
fn training_and_evaluation_stop_and_fail_at_the_step_that_they_would_without_reading_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let pack = Arc::new(packs::minilm(&["0", "1"], folder.path()));
    let mut trainer = Trainer::open(&places::runtime(), Arc::clone(&pack)).unwrap();
    let plan = TrainPlan {
        seed: 1,
        device: "a".to_owned(),
        round: 1,
        data: String::new(),
        rates: vec![0.5; 6],
        most_active: 6,
        proximal: 0.0,
        steps: 10,
        batch: 4,
        ways: Ways::Fixed(Way { policy: Policy::Keep, micro_batch: 4 }),
        learning_rate: 1e-3,
        schedule: Schedule::default(),
        optimizer: AdamWOptions::default(),
        clip_norm: 1.0,
    };
    let mut train = |examples: &Forty, steps: u32| {
        trainer.set_weights(pack.initial_weights().unwrap()).unwrap();
        let mut losses = Vec::new();
        let summary = trainer.train(&plan, examples, &mut |report| {
            losses.push(report.loss.to_bits());
            if report.step == steps { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (summary, losses, trainer.weights().clone())
    };

    let all = Forty::without(None);
    let (summary, losses, weights) = train(&all, 10);
    assert_eq!((summary.unwrap().examples, losses.len(), all.brought.into_inner()), (40, 10, 40));
    let (_, again, same) = train(&Forty::without(None), 10);
    assert_eq!((&again, &same), (&losses, &weights), "the same training twice");

    let some = Forty::without(None);
    let (summary, first, stopped) = train(&some, 3);
    assert_eq!((summary.unwrap().steps, &first[..]), (3, &losses[..3]));
    assert!(some.brought.into_inner() <= 4 * (3 + 2) + 1, "two batches ahead, and one example in hand");

    // An epoch has every example once. Each of them fails in one pass, and the steps before it are done as usual.
    for missing in [0, 13, 39] {
        let (failed, done, before) = train(&Forty::without(Some(missing)), 10);
        assert!(matches!(failed, Err(TrainerError::Example { example, .. }) if example == missing + 1));
        assert_eq!(done, losses[..done.len()]);
        if done.len() == 3 {
            assert_eq!(before, stopped);
        }
    }

    let mut evaluate = |examples: &Forty, of: usize, most: usize| {
        let mut seen = Vec::new();
        let summary = trainer.evaluate(examples, &EvaluatePlan { examples: of, batch: 8 }, &mut |done| {
            seen.push(done);
            if done >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (summary, seen)
    };
    let all = Forty::without(None);
    let (summary, seen) = evaluate(&all, 30, 40);
    assert_eq!((summary.unwrap().counted, &seen[..], all.brought.into_inner()), (30, &[8, 16, 24, 30][..], 30));
    assert_eq!(evaluate(&Forty::without(Some(16)), 40, 16).1, [8, 16], "stopped before the one that is missing");
    let (failed, seen) = evaluate(&Forty::without(Some(16)), 40, 40);
    assert!(matches!(failed, Err(TrainerError::Example { example: 17, .. })));
    assert_eq!(seen, [8, 16]);
}
