//! Many steps of tiny packs: computed in parts, skipped if numbers are not finite, interrupted and resumed.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use safetensors::SafeTensors;
use skiff_models::tensors::NamedTensors;
use skiff_tests::packs::Case;
use skiff_tests::places;
use skiff_tests::wait::eventually;
use skiff_trainer::inputs::read_batch;
use skiff_trainer::training::MOST_SKIPPED_IN_A_ROW;
use skiff_trainer::{
    AdamWOptions, CheckpointError, Decay, Examples, LayerMask, Policy, Schedule, Sequence, Target, TrainPlan,
    TrainSummary, Trainer, TrainerError, Way, Ways,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Examples in memory.
struct Given(Vec<Sequence>);

impl Examples for Given {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>> {
        Ok(self.0[at].clone())
    }

    fn length_hint(&self, at: usize) -> usize {
        self.0[at].ids.len()
    }
}

/// A trainer of a golden case, and the examples of its batch.
fn open(case: &str) -> (Trainer, Given) {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::open(case);
    let pack = case.pack(folder.path());
    let sequences = read_batch(&case.read("batch.safetensors"), &pack.manifest().layout).unwrap();
    // Sessions and mapping stay valid after the folder is removed.
    (Trainer::open(&places::runtime(), Arc::new(pack)).unwrap(), Given(sequences))
}

/// Six steps with everything that can be set.
fn plan() -> TrainPlan {
    TrainPlan {
        seed: 3,
        device: "a".to_owned(),
        round: 0,
        data: String::new(),
        rates: vec![0.5; 3],
        most_active: 3,
        proximal: 0.0,
        steps: 6,
        batch: 3,
        ways: Ways::Fixed(Way { policy: Policy::Keep, micro_batch: 2 }),
        learning_rate: 1e-2,
        schedule: Schedule { warm_up: 2, decay: Decay::Linear },
        optimizer: AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() },
        clip_norm: 1.0,
    }
}

/// The tensors of a checkpoint.
fn tensors(checkpoint: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let file = SafeTensors::deserialize(checkpoint).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
}

fn bits(weights: &NamedTensors) -> Vec<u32> {
    weights.values().flatten().map(|value| value.to_bits()).collect()
}

#[test]
fn gradients_of_parts_add_up_to_those_of_the_whole_for_every_task() {
    for case in ["bert/sequence-lora", "bert/regression-lora", "bert/token-lora", "llama/causal-lora"] {
        let (mut trainer, Given(mut sequences)) = open(case);
        sequences.extend(sequences.clone());
        // Parts without counted rows, or with fewer than other parts.
        sequences[1].target = Target::None;
        for active in [&[0, 1, 2][..], &[1]] {
            let mask = LayerMask::of(active.to_vec(), 3).unwrap();
            let whole = trainer.step_in_parts(&sequences, &mask, sequences.len()).unwrap();
            for at_once in 1..sequences.len() {
                let parts = trainer.step_in_parts(&sequences, &mask, at_once).unwrap();
                assert!((parts.loss - whole.loss).abs() < 1e-5, "{case}, {at_once} at once: {}", parts.loss);
                assert!(parts.gradients.keys().eq(whole.gradients.keys()), "{case}, {at_once} at once");
                for (name, gradient) in &whole.gradients {
                    let apart = (gradient - &parts.gradients[name]).iter().fold(0f32, |most, v| most.max(v.abs()));
                    assert!(apart < 1e-5, "{case}, {at_once} at once: {name} is {apart} off");
                }
            }
        }
    }
}

/// The summary without what a clock says.
fn timeless(summary: TrainSummary) -> TrainSummary {
    TrainSummary { elapsed: Duration::ZERO, median_step: Duration::ZERO, ..summary }
}

#[test]
fn a_training_that_was_taken_up_again_gives_the_same_bits_as_one_that_was_not_interrupted() {
    let plan = plan();
    let (mut straight, mut examples) = open("bert/regression-lora");
    // Some of the steps are skipped.
    examples.0.extend(examples.0.clone());
    examples.0[2].target = Target::Numbers(vec![f32::INFINITY]);
    let mut training = straight.begin(&plan, &examples).unwrap();
    let mut checkpoints = vec![training.checkpoint().unwrap()];
    while training.step().unwrap().is_some() {
        checkpoints.push(training.checkpoint().unwrap());
    }
    let expected = timeless(training.summary());
    assert!(expected.skipped_steps > 0 && expected.steps > 0, "{expected:?}");
    assert_eq!(expected.steps + expected.skipped_steps, 6);
    let (mut resumed, _) = open("bert/regression-lora");
    for (done, checkpoint) in checkpoints.iter().enumerate() {
        let mut training = resumed.begin(&plan, &examples).unwrap();
        training.resume(checkpoint).unwrap();
        assert_eq!(training.done() as usize, done);
        while training.step().unwrap().is_some() {}
        assert_eq!(tensors(&training.checkpoint().unwrap()), tensors(&checkpoints[6]), "after step {done}");
        assert_eq!(timeless(training.summary()), expected, "after step {done}");
        assert_eq!(bits(resumed.weights()), bits(straight.weights()), "after step {done}");
    }
}

#[test]
fn a_skipped_step_changes_neither_weights_nor_moments_and_is_counted() {
    let plan = TrainPlan { steps: 8, batch: 1, ..plan() };
    let (mut trainer, mut examples) = open("bert/regression-lora");
    examples.0[0].target = Target::Numbers(vec![f32::NAN]);
    let mut training = trainer.begin(&plan, &examples).unwrap();
    let mut before = training.checkpoint().unwrap();
    let mut skipped = 0;
    while let Some(report) = training.step().unwrap() {
        let after = training.checkpoint().unwrap();
        assert_eq!(report.skipped, !report.loss.is_finite());
        assert_eq!(tensors(&before) == tensors(&after), report.skipped, "step {}", report.step);
        skipped += u32::from(report.skipped);
        before = after;
    }
    let summary = training.summary();
    assert!(skipped > 0 && summary.mean_loss.is_finite());
    assert_eq!(
        (summary.skipped_steps, summary.steps, summary.examples),
        (skipped, 8 - skipped, u64::from(8 - skipped))
    );
}

#[test]
fn steps_that_are_never_finite_end_the_training() {
    let (mut trainer, mut examples) = open("bert/regression-lora");
    examples.0.iter_mut().for_each(|example| example.target = Target::Numbers(vec![f32::NAN]));
    let weights = bits(trainer.weights());
    for (steps, last) in [(100, MOST_SKIPPED_IN_A_ROW), (4, 4)] {
        let plan = TrainPlan { steps, ..plan() };
        let ended = trainer.train(&plan, &examples, &mut |_| std::ops::ControlFlow::Continue(()));
        assert!(
            matches!(ended, Err(TrainerError::NotFinite { step, in_a_row, .. }) if step == last && in_a_row == last)
        );
    }
    assert_eq!(bits(trainer.weights()), weights);
}

/// A checkpoint after three steps, and the training that wrote it.
fn interrupted() -> (Trainer, Given, Vec<u8>) {
    let (mut trainer, examples) = open("bert/sequence-lora");
    let plan = plan();
    let mut training = trainer.begin(&plan, &examples).unwrap();
    (0..3).for_each(|_| assert!(training.step().unwrap().is_some()));
    let checkpoint = training.checkpoint().unwrap();
    (trainer, examples, checkpoint)
}

type Change = fn(&mut TrainPlan);

#[test]
fn a_checkpoint_of_another_training_is_refused_by_what_differs() {
    let (mut trainer, mut examples, checkpoint) = interrupted();
    let changes: [(&str, Change); 9] = [
        ("data", |plan| plan.data = "others".to_owned()),
        ("seed", |plan| plan.seed = 4),
        ("steps", |plan| plan.steps = 7),
        ("policy and micro-batch", |plan| plan.ways = Ways::Fixed(Way { policy: Policy::Keep, micro_batch: 1 })),
        ("schedule", |plan| plan.schedule.decay = Decay::Constant),
        ("warm-up", |plan| plan.schedule.warm_up = 0),
        ("weight decay", |plan| plan.optimizer.weight_decay = 0.0),
        ("dropout rates", |plan| plan.rates[1] = 0.25),
        ("clip norm", |plan| plan.clip_norm = f32::INFINITY),
    ];
    for (name, change) in changes {
        let mut other = plan();
        change(&mut other);
        let refused = trainer.begin(&other, &examples).unwrap().resume(&checkpoint);
        assert!(matches!(&refused, Err(CheckpointError::Setting { setting, .. }) if setting == name), "{refused:?}");
    }
    let refused = open("bert/sequence-houlsby").0.begin(&plan(), &examples).unwrap().resume(&checkpoint);
    assert!(matches!(refused, Err(CheckpointError::Pack { .. })), "{refused:?}");
    examples.0.pop();
    let refused = trainer.begin(&plan(), &examples).unwrap().resume(&checkpoint).unwrap_err().to_string();
    assert!(refused.contains("its examples is"), "{refused}");
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_training_stays_as_it_was() {
    let (mut trainer, examples, checkpoint) = interrupted();
    let plan = plan();
    let mut training = trainer.begin(&plan, &examples).unwrap();
    let before = training.checkpoint().unwrap();
    for cut in (0..checkpoint.len()).step_by(101).chain([checkpoint.len() - 1]) {
        assert!(training.resume(&checkpoint[..cut]).is_err(), "cut at {cut}");
    }
    for at in (0..checkpoint.len()).step_by(7) {
        let mut damaged = checkpoint.clone();
        damaged[at] ^= 1;
        if training.resume(&damaged).is_ok() {
            // Another spelling of the same number, in the last digit of a sum.
            assert_eq!(training.checkpoint().unwrap(), checkpoint, "byte {at} flipped");
            training.resume(&before).unwrap();
        }
    }
    let foreign = skiff_models::tensors::write(&NamedTensors::new()).unwrap();
    assert!(matches!(training.resume(&foreign), Err(CheckpointError::Foreign)));
    assert_eq!((training.done(), training.checkpoint().unwrap()), (0, before));
    training.resume(&checkpoint).unwrap();
}

/// Trains with evaluations to its end, then again with a kill after the first evaluation. Both choose the same weights.
#[test]
fn the_best_weights_survive_a_kill_and_end_a_training_that_does_not_improve() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    drop(Case::open("bert/sequence-lora").pack(folder));
    let row = |at: usize| format!("{},t{at} t{} t{}\n", at % 2, 2 * at, 3 * at);
    fs::write(folder.join("texts.csv"), format!("label,text\n{}", (0..9).map(row).collect::<String>())).unwrap();
    let course = ["--evaluate", "9", "--eval-every", "4", "--patience", "2"];
    let course = |out: &str, more: &[&str]| {
        let mut command = Command::new(places::binary("skiff-agent"));
        command.current_dir(folder).arg("train").stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = "--pack pack --train texts.csv --test texts.csv --steps 60 --batch 3 --threads 1 --json --out";
        command.args(line.split_whitespace()).arg(out).args(course).args(more);
        command
    };
    let outcome = |output: std::process::Output| -> serde_json::Value {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let straight = outcome(course("straight", &[]).output().unwrap());
    assert_eq!(straight["stopped_early"], true, "{straight}");
    let best = straight["best_step"].as_u64().unwrap();
    let scores: Vec<f64> =
        straight["evaluations"].as_array().unwrap().iter().map(|at| at["score"].as_f64().unwrap()).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(scores.iter().position(|score| *score >= largest).map(|at| 4 * (at as u64 + 1)), Some(best));
    assert_eq!(scores.len() as u64, best / 4 + 2, "two evaluations after the best one");

    let kept = ["--checkpoint", "ckpt", "--checkpoint-every", "1", "--metrics", "metrics.csv"];
    let mut killed = course("killed", &kept).spawn().unwrap();
    let has_evaluated = || folder.join("ckpt.evaluations").exists() || killed_ended(&mut killed);
    assert!(eventually(has_evaluated));
    let _ = killed.kill();
    killed.wait().unwrap();
    for _ in ["resumed", "given again after its end"] {
        let resumed = outcome(course("resumed", &kept).output().unwrap());
        for name in ["best_step", "stopped_early", "evaluations", "accuracy", "parts"] {
            assert_eq!(resumed[name], straight[name], "{name}");
        }
        assert_eq!(fs::read(folder.join("resumed")).unwrap(), fs::read(folder.join("straight")).unwrap());
        let metrics = fs::read_to_string(folder.join("metrics.csv")).unwrap();
        let steps: Vec<u64> =
            metrics.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
        assert_eq!(steps, (1..=best + 8).collect::<Vec<_>>());
    }
}

fn killed_ended(process: &mut std::process::Child) -> bool {
    process.try_wait().is_ok_and(|ended| ended.is_some())
}

/// Runs `skiff-agent train` on the pack and texts in `folder` to its end, and writes the weights to `out`.
fn train(folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(places::binary("skiff-agent"));
    command.current_dir(folder).arg("train").stdout(Stdio::piped()).stderr(Stdio::piped());
    let line = "--pack pack --train texts.csv --test texts.csv --steps 60 --batch 3 --threads 1 --evaluate 0 --dropout 0.5 \
                --warm-up 5 --schedule linear --weight-decay 0.1 --micro-batch 2 --json --out";
    command.args(line.split_whitespace()).arg(out).args(more);
    command
}

#[test]
fn a_killed_train_command_resumes_at_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    drop(Case::open("bert/sequence-lora").pack(folder));
    let row = |at: usize| format!("{},t{at} t{} t{}\n", at % 2, 2 * at, 3 * at);
    fs::write(folder.join("texts.csv"), format!("label,text\n{}", (0..9).map(row).collect::<String>())).unwrap();
    let checkpoint = folder.join("run.ckpt");
    let options = ["--checkpoint", "run.ckpt", "--checkpoint-every", "1"];

    let straight = train(folder, "straight", &[]).output().unwrap();
    assert!(straight.status.success(), "{}", String::from_utf8_lossy(&straight.stderr));

    let barrier = folder.join("barrier");
    fs::create_dir(&barrier).unwrap();
    fs::write(barrier.join("local-0.hold"), "").unwrap();
    let mut killed = train(folder, "killed", &options).env("SKIFF_WORKER_BARRIER", &barrier).spawn().unwrap();
    assert!(eventually(|| barrier.join("local-0.reached").exists()), "the training does not start");
    assert!(killed.try_wait().unwrap().is_none(), "the barrier holds it");
    killed.kill().unwrap();
    killed.wait().unwrap();

    let resumed = train(folder, "resumed", &options).output().unwrap();
    let said = String::from_utf8_lossy(&resumed.stderr);
    assert!(resumed.status.success() && said.contains("resuming from run.ckpt, after step"), "{said}");
    let outcome: serde_json::Value = serde_json::from_slice(&resumed.stdout).unwrap();
    assert_eq!(
        (&outcome["resumed_steps"], &outcome["steps"], &outcome["skipped_steps"]),
        (&1.into(), &60.into(), &0.into())
    );
    assert_eq!(fs::read(folder.join("resumed")).unwrap(), fs::read(folder.join("straight")).unwrap());

    let shorter = train(folder, "refused", &[&options[..], &["--max-tokens", "4"]].concat()).output().unwrap();
    assert!(!shorter.status.success() && String::from_utf8_lossy(&shorter.stderr).contains("cut to 4 tokens"));
    let whole = fs::read(&checkpoint).unwrap();
    for garbled in [&whole[..whole.len() / 2], b"dear diary"] {
        fs::write(&checkpoint, garbled).unwrap();
        let refused = train(folder, "refused", &options).output().unwrap();
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("run.ckpt"), "names the file");
        assert_eq!(fs::read(&checkpoint).unwrap(), garbled, "and leaves it alone");
    }
}
