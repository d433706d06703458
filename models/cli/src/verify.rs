//! `skiff-pack verify`.

use anyhow::{Context, ensure};
use serde::Serialize;
use skiff_models::Pack;
use skiff_models::stage::StageSpec;
use skiff_trainer::clock::monotonic;
use skiff_trainer::{Batch, Form, LayerMask, Runtime, Trainer, tiny};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  skiff-pack verify minilm.pack")]
pub(crate) struct Arguments {
    /// The pack's folder.
    pack: PathBuf,
    /// Path of libonnxruntime.so [default: searched for as by the agent].
    #[arg(long, env = "SKIFF_ONNXRUNTIME")]
    onnxruntime: Option<PathBuf>,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// What was found; a pack that is not sound is an error instead.
#[derive(Serialize)]
struct Findings {
    files: usize,
    digest: String,
    graphs: usize,
    onnxruntime: String,
    open_seconds: f64,
    loss: f32,
    gradients: usize,
}

/// Checks digests, loads every graph, and does a tiny step through all layers.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pack = Arc::new(
        Pack::open(&arguments.pack).with_context(|| format!("opening the pack {}", arguments.pack.display()))?,
    );
    let manifest = pack.manifest();
    let runtime = Runtime::load(arguments.onnxruntime.as_deref(), 1)?;
    let begun = monotonic();
    let mut trainer = Trainer::open(&runtime, Arc::clone(&pack)).context("loading the graphs")?;
    let open_seconds = monotonic().saturating_sub(begun).as_secs_f64();

    let batch = Batch::new(&tiny(manifest), &Form::of(manifest)).context("laying out a tiny batch")?;
    let outcome = trainer.step(&batch, &LayerMask::all(manifest.layers)).context("running a tiny step")?;
    ensure!(outcome.loss.is_finite(), "a tiny step gave a loss of {}; the weights are broken", outcome.loss);
    let schema = pack.schema();
    if let Some(spec) = schema.tensors.iter().find(|spec| !outcome.gradients.contains_key(&spec.name)) {
        anyhow::bail!("a tiny step through all layers gave no gradient of {:?}", spec.name);
    }
    let wrong = outcome.gradients.iter().find(|(_, gradient)| gradient.iter().any(|value| !value.is_finite()));
    if let Some((name, _)) = wrong {
        anyhow::bail!("a tiny step gave a gradient of {name:?} that is not finite");
    }
    let stages = &manifest.stages;
    let graphs = [&stages.embed, &stages.head].into_iter().chain(&stages.blocks).flat_map(StageSpec::graphs).count();
    let findings = Findings {
        files: manifest.files.len(),
        digest: blake3::Hash::from(pack.digest()).to_hex().to_string(),
        graphs,
        onnxruntime: runtime.version().to_owned(),
        open_seconds,
        loss: outcome.loss,
        gradients: outcome.gradients.len(),
    };
    findings.print(arguments.json)
}

impl Findings {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        writeln!(out, "files     {} are those the manifest vouches for (digest {})", self.files, &self.digest[..16])?;
        writeln!(
            out,
            "graphs    {} load in {:.0} ms with ONNX Runtime {}",
            self.graphs,
            self.open_seconds * 1e3,
            self.onnxruntime
        )?;
        writeln!(
            out,
            "step      a tiny one through all layers runs: loss {:.4}, {} gradients, all finite",
            self.loss, self.gradients
        )?;
        Ok(())
    }
}
