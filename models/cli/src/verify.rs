//! `skiff-pack verify`.

use crate::tokenizer;
use anyhow::{Context, bail, ensure};
use ndarray::Array2;
use serde::Serialize;
use skiff_models::Pack;
use skiff_models::stage::{StageSpec, StageSpecs};
use skiff_screen::live::Live;
use skiff_screen::output;
use skiff_screen::text::Facts;
use skiff_screen::units::count;
use skiff_trainer::clock::monotonic;
use skiff_trainer::{Batch, LayerMask, Operators, Runtime, Trainer, tiny};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  skiff-pack verify minilm.pack")]
pub(crate) struct Arguments {
    /// The pack's folder.
    pack: PathBuf,
    /// Path of libonnxruntime.so [default: searched for in the same places as by the agent].
    #[arg(long, env = "SKIFF_ONNXRUNTIME")]
    onnxruntime: Option<PathBuf>,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// Findings about a sound pack; a fault is an error instead.
#[derive(Serialize)]
struct Findings {
    files: usize,
    digest: String,
    /// True if the bytes of the graphs were compared with the design. If another version made the pack, only the ports were
    /// compared.
    design_to_the_byte: bool,
    tokens: usize,
    graphs: usize,
    onnxruntime: String,
    open_seconds: f64,
    loss: f32,
    gradients: usize,
    /// Largest difference of a score between the plain and the fused graphs, relative to the largest score; `None` if the pack
    /// has no fused graphs that this ONNX Runtime can run.
    fused_difference: Option<f32>,
}

/// Largest relative difference of two scores that should be equal. A different order of rounding gives at most 1e-6; wrong
/// operators or weights give more than this limit.
const FUSED_TOLERANCE: f32 = 1e-3;

/// Checks digests, builds the graphs again, loads the tokenizer, and runs every graph.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let live = Live::new();
    let found = examine(arguments, &live);
    live.clear();
    found?.print(arguments.json)
}

fn examine(arguments: &Arguments, live: &Live) -> anyhow::Result<Findings> {
    live.say("reading every file");
    let pack = Arc::new(
        Pack::open(&arguments.pack).with_context(|| format!("opening the pack {}", arguments.pack.display()))?,
    );
    pack.check_weights()?;
    let manifest = pack.manifest();
    live.say("rebuilding the graphs");
    let design_to_the_byte = pack.check_design()?;
    live.say("loading the tokenizer");
    let tokens = tokenizer::check(&pack.tokenizer_path(), Some(manifest.layout.vocabulary))?;

    live.say("running the graphs");
    let runtime = Runtime::load(arguments.onnxruntime.as_deref(), 1)?;
    let begun = monotonic();
    let mut trainer = Trainer::open(&runtime, Arc::clone(&pack)).context("loading the graphs")?;
    let open_seconds = monotonic().saturating_sub(begun).as_secs_f64();
    let first = run_all(&pack, &mut trainer)?;
    drop(trainer);
    let fused = runtime.fuses();
    let fused_difference = match fused {
        true => {
            let mut plain = Trainer::open_with(&runtime, Arc::clone(&pack), Operators::Plain)
                .context("loading the plain graphs")?;
            Some(first.difference(&run_all(&pack, &mut plain).context("running the plain graphs")?))
        }
        false => None,
    };
    if let Some(difference) = fused_difference.filter(|difference| difference.is_nan() || *difference > FUSED_TOLERANCE)
    {
        bail!("the scores of the fused graphs differ from the plain ones by {difference:.1e} of the largest score");
    }
    let sets = std::iter::once(&manifest.stages).chain(fused.then_some(&manifest.fused));
    Ok(Findings {
        files: manifest.files.len(),
        digest: blake3::Hash::from(pack.digest()).to_hex().to_string(),
        design_to_the_byte,
        tokens,
        graphs: sets.flat_map(StageSpecs::all).flat_map(StageSpec::graphs).count(),
        onnxruntime: runtime.version().to_owned(),
        open_seconds,
        loss: first.loss,
        gradients: first.gradients,
        fused_difference,
    })
}

/// Results of a tiny batch.
struct Outcome {
    scores: Array2<f32>,
    loss: f32,
    gradients: usize,
}

impl Outcome {
    fn difference(&self, other: &Self) -> f32 {
        let largest = |scores: &Array2<f32>| scores.iter().fold(0f32, |largest, score| largest.max(score.abs()));
        largest(&(&self.scores - &other.scores)) / largest(&other.scores).max(f32::MIN_POSITIVE)
    }
}

/// Trains and evaluates a tiny batch: first through all layers, then with each kind of layer as the highest one.
fn run_all(pack: &Pack, trainer: &mut Trainer) -> anyhow::Result<Outcome> {
    let manifest = pack.manifest();
    let all = LayerMask::all(manifest.layers);
    let batch = Batch::new(&tiny(manifest), trainer.form()).context("laying out a tiny batch")?;
    let step = trainer.step(&batch, &all).context("running a tiny step")?;
    ensure!(step.loss.is_finite(), "a tiny step gave a loss of {}; the weights are broken", step.loss);
    if let Some(spec) = pack.schema().tensors.iter().find(|spec| !step.gradients.contains_key(&spec.name)) {
        bail!("a tiny step through all layers gave no gradient of {:?}", spec.name);
    }
    let wrong = step.gradients.iter().find(|(_, gradient)| gradient.iter().any(|value| !value.is_finite()));
    if let Some((name, _)) = wrong {
        bail!("a tiny step gave a gradient of {name:?} that is not finite");
    }
    let scores = trainer.logits(&batch, &all).context("running a tiny evaluation")?;
    ensure!(scores.iter().all(|score| score.is_finite()), "a tiny evaluation gave scores that are not finite");
    let kinds = &manifest.stages.kinds;
    for kind in 0..manifest.stages.blocks.len() {
        let layer = kinds.iter().rposition(|&other| other == kind);
        let Some(mask) = layer.and_then(|layer| LayerMask::of(vec![layer], manifest.layers)) else { continue };
        trainer
            .step(&batch, &mask)
            .with_context(|| format!("running a tiny step through {:?} alone", mask.active()))?;
        trainer.logits(&batch, &mask).with_context(|| format!("evaluating with {:?} alone", mask.active()))?;
    }
    Ok(Outcome { scores, loss: step.loss, gradients: step.gradients.len() })
}

impl Findings {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = output::stdout();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        write!(out, "{}", self.facts().text(output::width()))?;
        Ok(())
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new();
        facts.add("files", format!("{} match the manifest (digest {})", self.files, &self.digest[..16]));
        let how = if self.design_to_the_byte { "to the byte" } else { "in their ports; another version made the pack" };
        facts.add("design", format!("the rebuilt graphs equal the pack's {how}"));
        facts.add("tokens", format!("{} in the tokenizer, all known to the model", count(self.tokens)));
        facts.add(
            "graphs",
            format!(
                "{} run with ONNX Runtime {}; the training graphs load in {:.0} ms",
                self.graphs,
                self.onnxruntime,
                self.open_seconds * 1e3
            ),
        );
        let (loss, gradients) = (self.loss, self.gradients);
        facts.add("step", format!("a tiny one through all layers: loss {loss:.4}, {gradients} gradients, all finite"));
        if let Some(difference) = self.fused_difference {
            let text = format!("scores differ from the plain graphs' by {difference:.1e} of the largest");
            facts.add("fused", text);
        }
        facts
    }
}
