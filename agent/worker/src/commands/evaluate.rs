//! `skiff-agent evaluate`: judges a pack with any weights on labelled examples.

use super::figures::{Found, Part};
use super::model::ModelArguments;
use crate::corpus::Corpus;
use serde::Serialize;
use skiff_data::Columns;
use skiff_screen::live::Live;
use skiff_screen::output;
use skiff_screen::text::Facts;
use skiff_trainer::{EvaluatePlan, EvaluateSummary, Examples as _};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Judges a pack with any weights on examples with labels.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skiff-agent evaluate --pack minilm.pack --test test.csv                      the pack's first weights\n  \
                  skiff-agent evaluate --pack minilm.pack --weights adapter --test test.csv    what a run exported\n  \
                  skiff-agent evaluate --pack minilm.pack --weights trained.safetensors --test test.csv --json\n  \
                  skiff-agent evaluate --own                                                   this device's model, on its own test file\n\n\
                  `skiff-agent train` reads the same files and columns, and prints the same figures for the same examples and weights:\n  \
                  classification  accuracy, macro-F1, and a table with precision, recall and F1 of each label\n  \
                  tokens          accuracy of tokens, F1 over spans, and a table of the types of span\n  \
                  regression      RMSE and Pearson's correlation\n  \
                  causal-lm       accuracy of the next token, and perplexity\n\n\
                  Exit status: 0 judged; 1 failed; 2 wrong usage or settings."
)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Examples to judge the model on [with --own: the file `test` of agent.toml]
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    /// Use at most N examples. If the file has more, they are drawn from all of it, with each label in its share, and the same
    /// each time [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    examples: Option<u64>,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    columns: Columns,
}

/// The result that `--json` prints.
#[derive(Serialize)]
struct Outcome {
    task: &'static str,
    /// Origin of the weights.
    weights: String,
    /// Number of examples that were used.
    examples: u64,
    /// Number of examples in the file.
    test_examples: usize,
    /// Number of examples, or of tokens for a task on tokens, that the figures count.
    counted: u64,
    /// Mean loss over everything that is counted.
    loss: f64,
    #[serde(flatten)]
    found: Found,
    /// Counts of each label or type of span that occurs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// A file, a pack, weights or an ONNX Runtime that cannot be used.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut model = arguments.model.open()?;
    let test = Corpus::load(&arguments.test, &arguments.columns, &model.pack, arguments.model.max_tokens as usize)?;
    let examples = arguments.examples.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let plan = EvaluatePlan { examples, batch: arguments.model.batch.into() };
    let (live, total) = (Live::new(), test.len().min(examples));
    let summary = model.trainer.evaluate(&test, &plan, &mut |done| {
        live.count(&format!("evaluating, {done} of {total} examples"), done as u64, total as u64);
        ControlFlow::Continue(())
    })?;
    live.clear();
    let manifest = model.pack.manifest();
    let EvaluateSummary { counted, elapsed, .. } = summary;
    let outcome = Outcome {
        task: manifest.layout.task.name(),
        weights: model.weights,
        examples: summary.examples,
        test_examples: test.len(),
        counted,
        loss: summary.mean_loss(),
        found: Found::of(manifest.layout.task, &manifest.labels, &summary),
        parts: Part::all_of(&manifest.labels, &summary.metrics),
        seconds: elapsed.as_secs_f64(),
    };
    outcome.print(arguments.json)
}

impl Outcome {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = output::stdout();
        if json {
            return Ok(writeln!(out, "{}", serde_json::to_string(self)?)?);
        }
        let speed = self.examples as f64 / self.seconds;
        let mut facts = Facts::new();
        facts.add("weights", self.weights.clone());
        facts.add("examples", format!("{} of {}, {speed:.0} a second", self.examples, self.test_examples));
        if self.counted != self.examples {
            facts.add("tokens", self.counted.to_string());
        }
        facts.add("loss", format!("{:.4}", self.loss));
        for (name, value) in self.found.whole() {
            facts.add(name, format!("{value:.4}"));
        }
        write!(out, "{}", facts.text(output::width()))?;
        if !self.parts.is_empty() {
            write!(out, "\n{}", Part::table(&self.parts, output::width()))?;
        }
        Ok(())
    }
}
