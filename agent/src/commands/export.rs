//! `skiff-agent export`: writes this device's model for other tools.
//!
//! The model is the newest global weights that arrived, with the device's personal layers in their places. `skiff-worker` writes
//! it; this file only decides which blobs it consists of.

use crate::config::Config;
use crate::participant::Memory;
use crate::store::Store;
use anyhow::Context as _;
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_protocol::Digest;
use std::ffi::OsString;
use std::path::PathBuf;

/// Files to write, and their folder.
#[derive(Clone, Debug, clap::Args)]
pub struct Output {
    /// Folder to write: an adapter in Hugging Face PEFT's format
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Merge the weights into the model and write a plain checkpoint
    #[arg(long)]
    pub merged: bool,
    /// Name of the base model in the adapter and the model card [default: the pack's]
    #[arg(long, value_name = "NAME")]
    pub base_model: Option<String>,
    /// Print what was written as JSON
    #[arg(long)]
    pub json: bool,
}

/// The blobs of the device's model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OwnWeights {
    /// The newest global weights.
    pub(super) global: Digest,
    /// The layers that the device keeps for itself, and their blob.
    pub(super) personal: Option<(Vec<u32>, Digest)>,
}

/// Finds the blobs of the device's model in its state folder.
///
/// # Errors
/// A state folder that has no memory, or to which no weights have come yet.
pub(super) fn own_weights(config: &Config) -> anyhow::Result<OwnWeights> {
    let state = &config.state;
    let memory = Store::peek(state).with_context(|| {
        format!("looking for this device's weights in {}: has `skiff-agent run` worked with it?", state.display())
    })?;
    let blobs = DiskBlobs::of_another(state.clone());
    let whole =
        |memory: &Memory| [memory.weights, memory.received].into_iter().flatten().find(|&blob| blobs.contains(blob));
    let global = whole(&memory).context("no weights have arrived from the coordinator yet")?;
    Ok(OwnWeights { global, personal: memory.personal.map(|personal| (personal.layers, personal.blob)) })
}

/// Returns the arguments with which `skiff-worker` writes the model of the device.
///
/// # Errors
/// A state folder that has no memory, or to which no weights have come yet.
pub fn worker_arguments(config: &Config, output: &Output) -> anyhow::Result<Vec<OsString>> {
    let OwnWeights { global, personal } = own_weights(config)?;
    let mut arguments: Vec<OsString> = vec!["export".into(), "--pack".into(), config.training.pack.clone().into()];
    arguments.extend(["--state".into(), config.state.clone().into(), "--weights".into(), global.to_string().into()]);
    if let Some((layers, blob)) = personal {
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        arguments.extend(["--personal".into(), blob.to_string().into()]);
        arguments.extend(["--layers".into(), layers.join(",").into()]);
    }
    arguments.extend(["--out".into(), output.out.clone().into()]);
    if let Some(name) = &output.base_model {
        arguments.extend(["--base-model".into(), name.into()]);
    }
    arguments.extend(output.merged.then(|| "--merged".into()));
    arguments.extend(output.json.then(|| "--json".into()));
    Ok(arguments)
}
