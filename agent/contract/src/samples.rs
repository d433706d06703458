//! One value of every frame. Their bytes identify the frames of a build ([`FramesId`](crate::greeting::FramesId)), and `golden/`
//! holds them for each version.
//!
//! No two numbers of a sample are equal, so that the bytes change if two fields change places.

use crate::frames::{Reply, Request};
use crate::settings::{ColumnNames, Provider, Setup, Training};
use crate::work::{Job, Personal, Product, Ticket, Trained, Work};
use crate::{Finding, Inventory};
use bytesize::ByteSize;
use serde::Serialize;
use skiff_protocol::messages::{
    EvaluateOrder, EvaluationReport, Place, Probe, SharingPlan, StepMemory, TrainOrder, TrainReport, WorkSample,
};
use skiff_protocol::metrics::{Classification, Language, Regression, SpanCounts, TaskMetrics, Tokens};
use skiff_protocol::{Digest, RunId};

/// Returns one value of every frame as name and bytes, without the length in front.
///
/// # Panics
/// Never: these are plain values, which can always be written.
#[must_use]
pub fn frames() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    let providers = Provider::ALL.map(|provider| Request::Open(setup(provider)));
    let jobs = jobs().map(|job| Request::Work(work(job)));
    let rest = [Request::TakeInventory, Request::Examine, Request::Continue, Request::Stop];
    for request in providers.into_iter().chain(jobs).chain(rest) {
        frames.push((request_name(&request), bytes(&request)));
    }
    let product = |product| Reply::Done(product);
    frames.extend([
        ("step".to_owned(), bytes(&Reply::<Product>::Step(Some(work_sample())))),
        ("step skipped".to_owned(), bytes(&Reply::<Product>::Step(None))),
        ("failed".to_owned(), bytes(&Reply::<Product>::Failed("no luck".to_owned()))),
        ("inventory".to_owned(), bytes(&Reply::Done(inventory()))),
        ("findings".to_owned(), bytes(&Reply::Done(findings()))),
        ("trained".to_owned(), bytes(&product(Product::Trained(trained())))),
        ("evaluated".to_owned(), bytes(&product(Product::Evaluated(evaluation_report())))),
    ]);
    for metrics in task_metrics() {
        let name = format!("evaluated {}", metrics.task());
        let report = EvaluationReport { metrics, ..evaluation_report() };
        frames.push((name, bytes(&product(Product::Evaluated(report)))));
    }
    frames
}

fn bytes(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).expect("plain values can be written")
}

/// A frame that is added gets a name here and a sample above.
fn request_name(request: &Request) -> String {
    match request {
        Request::Open(setup) => format!("open {}", setup.training.provider),
        Request::TakeInventory => "take inventory".to_owned(),
        Request::Examine => "examine".to_owned(),
        Request::Work(Work { job: Job::Evaluate(_), .. }) => "work evaluate".to_owned(),
        Request::Work(Work { job: Job::Train(order), .. }) => match &order.sharing {
            SharingPlan::All => "work train, share all".to_owned(),
            SharingPlan::LeastImportant { .. } => "work train, share least important".to_owned(),
            SharingPlan::MostImportant { .. } => "work train, share most important".to_owned(),
            SharingPlan::Fixed { .. } => "work train, share fixed".to_owned(),
        },
        Request::Continue => "continue".to_owned(),
        Request::Stop => "stop".to_owned(),
    }
}

/// Returns the setup of a device whose pack is missing.
///
/// # Panics
/// Never: the device's name is valid.
#[must_use]
pub fn setup(provider: Provider) -> Setup {
    let training = Training {
        pack: "/nowhere/a.pack".into(),
        train: Some("/nowhere/train.csv".into()),
        test: Some("/nowhere/test.csv".into()),
        columns: ColumnNames {
            text: vec!["text".to_owned()],
            pair: Some("pair".to_owned()),
            prompt: Some("prompt".to_owned()),
            label: Some("name".to_owned()),
            header: vec!["first".to_owned(), "second".to_owned()],
        },
        threads: 11,
        memory: Some(ByteSize(12)),
        provider,
        onnxruntime: Some("/nowhere/libonnxruntime.so".into()),
        protected: vec![13, 14],
        place: Place { class: "class".to_owned(), region: "region".to_owned(), labels: vec!["label".to_owned()] },
    };
    Setup { training, device: "oak".parse().expect("a valid name"), state: "/nowhere/state".into(), agent_bytes: 15 }
}

fn jobs() -> impl Iterator<Item = Job> {
    let sharing = [
        SharingPlan::All,
        SharingPlan::LeastImportant { k: 21 },
        SharingPlan::MostImportant { k: 22 },
        SharingPlan::Fixed { layers: vec![23, 24] },
    ];
    sharing.into_iter().map(|sharing| Job::Train(train_order(sharing))).chain([Job::Evaluate(evaluate_order())])
}

/// Returns work with this job.
#[must_use]
pub fn work(job: Job) -> Work {
    let personal = Personal { run: RunId(31), layers: vec![32, 33], blob: Digest([34; 32]) };
    Work { ticket: Ticket { run: RunId(35), epoch: 36 }, round: 37, job, personal: Some(personal) }
}

fn train_order(sharing: SharingPlan) -> TrainOrder {
    TrainOrder {
        weights: Digest([41; 32]),
        schema: Digest([42; 32]),
        seed: 43,
        rates: vec![0.25, 0.5],
        most_active: 44,
        proximal: 0.125,
        rank: 45,
        probe_examples: 46,
        steps: 47,
        batch: 48,
        max_tokens: 49,
        learning_rate: 0.75,
        sharing,
        deadline_ms: 50,
    }
}

/// Returns an order to evaluate.
#[must_use]
pub fn evaluate_order() -> EvaluateOrder {
    EvaluateOrder {
        weights: Digest([51; 32]),
        schema: Digest([52; 32]),
        examples: 53,
        batch: 54,
        max_tokens: 55,
        deadline_ms: 56,
    }
}

/// Returns a sample of a step.
#[must_use]
pub fn work_sample() -> WorkSample {
    WorkSample {
        run: RunId(61),
        round: 62,
        step: 63,
        steps: 64,
        step_ms: 0.25,
        tokens_per_second: 0.5,
        active_layers: 65,
        loss: 0.75,
    }
}

fn inventory() -> Inventory {
    let memory = StepMemory { limit_bytes: 71, process_bytes: 72, step_bytes: 73, layer_bytes: 74 };
    Inventory {
        pack: Digest([75; 32]),
        schema: Digest([76; 32]),
        layers: 77,
        train_examples: 78,
        test_examples: 79,
        memory,
    }
}

fn findings() -> Vec<(String, Finding)> {
    let text = |text: &str| text.to_owned();
    vec![
        (text("pack"), Finding::Fine(text("intact"))),
        (text("train"), Finding::Doubtful(text("not set"))),
        (text("test"), Finding::Broken(text("missing"))),
    ]
}

fn trained() -> Trained {
    let probe = Probe { examples: 81, loss_before: 0.25, loss_after: 0.5, correct_before: 82, correct_after: 83 };
    let report = TrainReport {
        examples: 84,
        tokens: 85,
        steps: 86,
        mean_loss: 0.625,
        shared_layers: vec![87],
        importance: vec![0.75, 0.875],
        mean_active_layers: 1.5,
        train_ms: 88,
        step_ms: 1.25,
        peak_rss_bytes: 89,
        probe: Some(probe),
    };
    Trained { update: vec![90, 91], personal: Some((vec![92, 93], vec![94])), report }
}

/// Returns the report of an evaluation.
#[must_use]
pub fn evaluation_report() -> EvaluationReport {
    EvaluationReport {
        examples: 102,
        correct: 101,
        loss_sum: 0.5,
        evaluate_ms: 103,
        peak_rss_bytes: 104,
        metrics: TaskMetrics::Unknown,
    }
}

fn task_metrics() -> [TaskMetrics; 4] {
    let mut classification = Classification::new(3).expect("3 classes");
    [(0, 0), (0, 1), (2, 2), (2, 2)].into_iter().for_each(|(truth, predicted)| classification.count(truth, predicted));
    let mut tokens = Tokens::default();
    [true, true, false].into_iter().for_each(|is_correct| tokens.count_token(is_correct));
    let spans = SpanCounts { name: "PER".to_owned(), truth: 95, predicted: 96, correct: 94 };
    tokens.add_spans(&spans).expect("one type of span");
    let mut regression = Regression::default();
    regression.count(0.5, 1.5);
    regression.count(2.0, 0.25);
    let language = Language { tokens: 97, loss_sum: 98.5 };
    [
        TaskMetrics::Classification(classification),
        TaskMetrics::Tokens(tokens),
        TaskMetrics::Regression(regression),
        TaskMetrics::Language(language),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::greeting::FRAMES_VERSION;
    use std::fmt::Write;

    #[test]
    fn the_bytes_of_every_frame_are_those_of_this_version() {
        let mut current = String::new();
        for (name, bytes) in frames() {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(current, "{name}: {hex}").unwrap();
        }
        let file = format!("golden/frames-{FRAMES_VERSION}.txt");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let golden = std::fs::read_to_string(folder.join(&file)).unwrap_or_default();
        assert!(
            golden == current,
            "the bytes of a frame differ from {file}: raise FRAMES_VERSION, leave that file as it is, and write the next one:\n\
             {current}"
        );
    }

    #[test]
    fn two_fields_that_change_places_change_the_bytes() {
        let report = trained().report;
        let swapped = TrainReport { examples: report.tokens, tokens: report.examples, ..report.clone() };
        assert_ne!(bytes(&report), bytes(&swapped));
    }

    #[test]
    fn samples_have_names_of_their_own() {
        let names: std::collections::BTreeSet<String> = frames().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), frames().len());
    }
}
