//! The model of `predict` and `evaluate`: a pack with its own weights, with weights from a file, or with a device's.

use crate::workshop::with_personal_layers;
use anyhow::{Context as _, bail, ensure};
use skiff_blobs::DiskBlobs;
use skiff_models::Pack;
use skiff_models::adapter::{Adapter, CONFIG_FILE, TENSORS_FILE};
use skiff_models::peft::{Lora, PREFIX, Peft};
use skiff_models::tensors::NamedTensors;
use skiff_protocol::Digest;
use skiff_trainer::{Provider, Runtime, Trainer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The pack, its weights, and what computes them.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArguments {
    /// The pack's folder, made by `skiff-pack build`
    #[arg(long, value_name = "DIR", required_unless_present = "own")]
    pack: Option<PathBuf>,
    /// Weights in place of the pack's first ones: a folder that `skiff run export` or `skiff-agent export` wrote, another adapter
    /// of PEFT that fits the pack, or a file of `skiff-agent train --out`
    #[arg(long, value_name = "PATH", conflicts_with = "own")]
    weights: Option<PathBuf>,
    /// The device's own model: the newest weights of the fleet, with the layers that the device keeps for itself. agent.toml
    /// names pack, columns and ONNX Runtime; the agent may run meanwhile
    #[arg(long)]
    own: bool,
    /// Settings file for --own [default: /etc/skiff/agent.toml]
    #[arg(long, value_name = "FILE", requires = "own")]
    config: Option<PathBuf>,
    /// Cut texts to this many tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_tokens: u32,
    /// Number of examples in a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) batch: u16,
    /// Number of threads [default: all processors]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Execution provider, if ONNX Runtime's library has it: cpu, cuda, xnnpack
    #[arg(long, env = "SKIFF_PROVIDER", value_name = "NAME", default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Path of libonnxruntime.so [default: searched for; see `skiff-agent doctor`]
    #[arg(long, env = "SKIFF_ONNXRUNTIME", value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// The agent's state folder, from skiff-agent
    #[arg(long, hide = true, requires_all = ["own", "blob"])]
    state: Option<PathBuf>,
    /// Blob of the global weights, from skiff-agent
    #[arg(long, hide = true, value_parser = super::export::digest)]
    blob: Option<Digest>,
    /// Blob of the layers that the device keeps for itself, from skiff-agent
    #[arg(long, hide = true, value_parser = super::export::digest, requires = "layers")]
    personal: Option<Digest>,
    /// The layers in that blob
    #[arg(long, hide = true, value_delimiter = ',')]
    layers: Vec<u32>,
}

/// A pack that is ready to compute.
pub(super) struct Model {
    pub(super) pack: Arc<Pack>,
    pub(super) trainer: Trainer,
    /// Origin of the weights, for people.
    pub(super) weights: String,
}

impl ModelArguments {
    /// Opens the pack with the chosen weights.
    ///
    /// # Errors
    /// A pack, weights or an ONNX Runtime that cannot be used; weights of another pack.
    pub(super) fn open(&self) -> anyhow::Result<Model> {
        let pack = self.pack.as_deref().context("--own needs skiff-agent, which reads the device's settings")?;
        let pack = Arc::new(Pack::open(pack).context("opening the pack")?);
        let chosen = self.chosen(&pack)?;
        let cores = || std::thread::available_parallelism().map_or(1, Into::into);
        let threads = self.threads.map_or_else(cores, usize::from);
        let runtime = Runtime::load(self.onnxruntime.as_deref(), threads)?.on(self.provider)?;
        let mut trainer = Trainer::open(&runtime, Arc::clone(&pack))?;
        let weights = match chosen {
            None => "the pack's first ones".to_owned(),
            Some((tensors, origin)) => {
                trainer.set_weights(tensors)?;
                origin
            }
        };
        Ok(Model { pack, trainer, weights })
    }

    /// Reads the weights that replace the pack's first ones, and describes their origin.
    fn chosen(&self, pack: &Pack) -> anyhow::Result<Option<(NamedTensors, String)>> {
        if let (Some(state), Some(blob)) = (&self.state, self.blob) {
            let count = pack.manifest().layers;
            let known = self.layers.iter().all(|&layer| (layer as usize) < count);
            ensure!(known, "the pack has {count} layers, and the device keeps {:?} for itself", self.layers);
            let personal = self.personal.map(|blob| (self.layers.as_slice(), blob));
            let tensors = with_personal_layers(&DiskBlobs::of_another(state.clone()), pack.schema(), blob, personal)?;
            let own = if personal.is_some() { format!(", layers {:?} its own", self.layers) } else { String::new() };
            return Ok(Some((tensors, format!("this device's{own}"))));
        }
        ensure!(!self.own, "--own needs skiff-agent, which knows the device's weights");
        let Some(path) = &self.weights else { return Ok(None) };
        let tensors = read(pack, path).with_context(|| format!("reading the weights {}", path.display()))?;
        Ok(Some((tensors, path.display().to_string())))
    }
}

/// Reads all trainable tensors of the pack from an adapter's folder or a file.
///
/// The file `adapter_model.safetensors` stands for its folder, because the settings beside it belong to it.
fn read(pack: &Pack, path: &Path) -> anyhow::Result<NamedTensors> {
    if path.is_dir() {
        ensure!(
            path.join(CONFIG_FILE).is_file(),
            "this folder is no adapter, since it has no {CONFIG_FILE}; a plain checkpoint becomes a pack with \
             `skiff-pack build`"
        );
        return read_adapter(pack, path);
    }
    let folder = path.parent().filter(|_| path.file_name().is_some_and(|name| name == TENSORS_FILE));
    if let Some(folder) = folder.filter(|folder| folder.join(CONFIG_FILE).is_file()) {
        return read_adapter(pack, folder);
    }
    Ok(pack.schema().read(&std::fs::read(path)?)?)
}

/// Reads an adapter whose settings are the pack's. Another scale or another choice of layers would be another model.
fn read_adapter(pack: &Pack, folder: &Path) -> anyhow::Result<NamedTensors> {
    let design = &pack.manifest().design;
    let (model, task) = (&design.model, pack.manifest().layout.task);
    let Peft::Lora(own) = &design.peft else {
        bail!("this is a LoRA adapter, and the pack is tuned with {}", design.peft.name());
    };
    let mut adapter = Adapter::open(folder)?;
    adapter.check_task(task)?;
    let found = adapter.lora(model, task)?;
    check_settings(&model.linear_names(task), own, &found)?;
    let mut tensors = NamedTensors::new();
    for spec in &pack.schema().tensors {
        let tensor = adapter.take(model, &spec.name, &spec.shape)?.ok_or_else(|| adapter.missing(&spec.name))?;
        ensure!(tensor.iter().all(|value| value.is_finite()), "{} holds a value that is not finite", spec.name);
        tensors.insert(spec.name.clone(), tensor);
    }
    let frozen = pack.frozen().tensors().filter(|(name, _)| name.ends_with(".lora_A.weight"));
    for (name, tensor) in frozen {
        let found = adapter.take(model, &format!("{PREFIX}{name}"), tensor.shape)?;
        let same = found.is_none_or(|found| pack.frozen().values(name).is_some_and(|own| found.iter().eq(own.iter())));
        ensure!(same, "the pack freezes {name} at other values than the adapter's; {BUILD}");
    }
    adapter.finish()?;
    Ok(tensors)
}

/// Advice for an adapter that another pack fits.
const BUILD: &str = "make a pack of the adapter with `skiff-pack build --adapter DIR`";

/// Checks that an adapter with the settings `found` computes what the pack's own settings say on each linear layer.
fn check_settings(linears: &[String], own: &Lora, found: &Lora) -> anyhow::Result<()> {
    let Some(name) = linears.iter().find(|name| own.on(name) != found.on(name)) else { return Ok(()) };
    let described = |lora: &Lora| match lora.on(name) {
        None => "no LoRA".to_owned(),
        Some(settings) => format!("rank {} and scale {}", settings.rank, settings.scale),
    };
    bail!("the pack has {} on {name}, and the adapter {}; {BUILD}", described(own), described(found))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    #[test]
    fn an_adapter_of_another_scale_rank_or_choice_of_layers_is_refused_by_name() {
        let names = ["layer.0.query".to_owned(), "layer.1.query".to_owned()];
        let own = Lora { targets: vec!["query".to_owned()], ..Lora::default() };
        assert!(check_settings(&names, &own, &own.clone()).is_ok());
        for (other, says) in [
            (
                Lora { alpha: 8.0, ..own.clone() },
                "rank 8 and scale 2 on layer.0.query, and the adapter rank 8 and scale 1;",
            ),
            (Lora { rank: 4, alpha: 8.0, ..own.clone() }, "the adapter rank 4 and scale 2;"),
            (Lora { layers: Some(vec![0]), ..own.clone() }, "on layer.1.query, and the adapter no LoRA; make a pack"),
        ] {
            let error = check_settings(&names, &own, &other).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
