//! `skiff-worker export`: weights from an agent's blobs as a Hugging Face adapter or checkpoint. `skiff-agent export` calls it.

use crate::workshop::with_personal_layers;
use anyhow::{Context as _, ensure};
use serde_json::json;
use skiff_blobs::DiskBlobs;
use skiff_models::Pack;
use skiff_models::pack::{About, export_adapter, export_merged};
use skiff_protocol::Digest;
use skiff_screen::{output, text, units};
use std::io::Write as _;
use std::path::PathBuf;

/// Writes the weights of an agent's state folder as an adapter or a checkpoint. Call skiff-agent export instead
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The pack's folder
    #[arg(long)]
    pack: PathBuf,
    /// The agent's state folder
    #[arg(long)]
    state: PathBuf,
    /// Blob of the global weights
    #[arg(long, value_parser = digest)]
    weights: Digest,
    /// Blob of the layers that the device keeps for itself
    #[arg(long, value_parser = digest, requires = "layers")]
    personal: Option<Digest>,
    /// The layers in that blob
    #[arg(long, value_delimiter = ',')]
    layers: Vec<u32>,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
    /// Merge the weights into the model and write a plain checkpoint
    #[arg(long)]
    merged: bool,
    /// Name of the base model in the adapter and the model card [default: the pack's]
    #[arg(long)]
    base_model: Option<String>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// Writes the adapter or the checkpoint.
///
/// # Errors
/// A broken pack, blobs that are missing or of another pack, a folder that cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { pack, state, weights, personal, layers, out, merged, json, .. } = arguments;
    let pack = Pack::open(pack).with_context(|| format!("opening the pack {}", pack.display()))?;
    pack.check_weights()?;
    let count = pack.manifest().layers;
    ensure!(layers.iter().all(|&layer| (layer as usize) < count), "the pack has {count} layers, not {layers:?}");
    let blobs = DiskBlobs::of_another(state.clone());
    let own = personal.map(|blob| (layers.as_slice(), blob));
    let tensors = with_personal_layers(&blobs, pack.schema(), *weights, own)?;
    let about = &arguments.about(count);
    let exported = match merged {
        true => export_merged(&pack, &tensors, None, about, out, &mut |_| {})?,
        false => export_adapter(&pack, &tensors, about, out, &mut |_| {})?,
    };
    let bytes: u64 = exported.files.values().sum();
    let kind = if *merged { "merged" } else { "adapter" };
    let mut stdout = output::stdout();
    if *json {
        let personal: &[u32] = if personal.is_some() { layers } else { &[] };
        let written = json!({
            "out": out, "kind": kind, "bytes": bytes, "weights": weights.to_string(), "personal_layers": personal,
            "parameters": exported.parameters, "files": exported.files,
        });
        return Ok(writeln!(stdout, "{written}")?);
    }
    let what =
        if *merged { "a checkpoint with the weights merged in" } else { "an adapter in Hugging Face PEFT's format" };
    let own = match personal {
        Some(_) => format!(", layers {layers:?} are this device's own"),
        None => String::new(),
    };
    let size = units::bytes(bytes);
    let parameters = units::count(exported.parameters);
    let told = format!("{} holds {what}: {parameters} parameters, {size}{own}", out.display());
    Ok(writeln!(stdout, "{}", text::fold(&told, 2, output::width()))?)
}

impl Arguments {
    /// Returns the facts about the weights of a device, whose model has `layers` layers.
    fn about(&self, layers: usize) -> About {
        let own = match &self.personal {
            None => "none: all layers are the fleet's".to_owned(),
            Some(_) => format!("{} of {layers}, trained on this device alone", self.layers.len()),
        };
        let training =
            vec![("weights", "the newest that the fleet's coordinator sent".to_owned()), ("personal layers", own)];
        About { base_model: self.base_model.clone(), is_federated: true, training, ..About::default() }
    }
}

pub(super) fn digest(text: &str) -> Result<Digest, String> {
    Digest::parse(text).ok_or_else(|| "a digest has 64 hexadecimal digits".to_owned())
}
