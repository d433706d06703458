//! Makes an adapter from a pack.

use super::{AdapterError, CONFIG_FILE, TENSORS_FILE, task_type};
use crate::design::Design;
use crate::pack::Manifest;
use crate::peft::{ALL_LINEAR, Lora, PREFIX, Patterns, Peft};
use crate::tensors::{self, NamedTensors};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Writes an adapter into the new folder `folder`: `weights`, which are all trainable tensors of the manifest's pack, and
/// the adapter's frozen tensors. `base_model` is the name of the model that the adapter belongs to.
///
/// # Errors
/// A pack that does not train LoRA; a folder that cannot be written.
pub fn write(
    folder: &Path,
    manifest: &Manifest,
    base_model: Option<&str>,
    weights: &NamedTensors,
) -> Result<(), AdapterError> {
    let Peft::Lora(lora) = &manifest.design.peft else {
        let kind = manifest.design.peft.name();
        let hint = match manifest.design.peft {
            Peft::BitFit => "export it with --merged",
            Peft::Houlsby { .. } | Peft::Lora(_) => "its weights file is the result",
        };
        return Err(AdapterError::Kind { kind, hint });
    };
    fs::create_dir_all(folder).map_err(|source| AdapterError::Write { path: folder.to_owned(), source })?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| AdapterError::Write { path, source })
    };
    let bytes =
        tensors::write(weights).map_err(|source| AdapterError::Tensor { path: folder.join(TENSORS_FILE), source })?;
    put(TENSORS_FILE, &bytes)?;
    let text = serde_json::to_vec_pretty(&config(manifest, base_model, lora)).expect("JSON has string keys only");
    put(CONFIG_FILE, &text)
}

/// Contents of the settings' file. It is a structure, not a map, because the order of patterns counts.
#[derive(Serialize)]
struct Config<'a> {
    peft_type: &'static str,
    task_type: &'static str,
    base_model_name_or_path: Option<&'a str>,
    r: usize,
    lora_alpha: f32,
    target_modules: Vec<&'a str>,
    rank_pattern: &'a Patterns<usize>,
    alpha_pattern: &'a Patterns<f32>,
    layers_to_transform: Option<&'a [usize]>,
    use_rslora: bool,
    modules_to_save: Option<BTreeSet<&'a str>>,
    lora_dropout: f32,
    bias: &'static str,
    fan_in_fan_out: bool,
    inference_mode: bool,
}

fn config<'a>(manifest: &'a Manifest, base_model: Option<&'a str>, lora: &'a Lora) -> Config<'a> {
    Config {
        peft_type: "LORA",
        task_type: task_type(manifest.design.head.task),
        base_model_name_or_path: base_model,
        r: lora.rank,
        lora_alpha: lora.alpha,
        target_modules: targets(manifest, lora),
        rank_pattern: &lora.rank_pattern,
        alpha_pattern: &lora.alpha_pattern,
        layers_to_transform: lora.layers.as_deref(),
        use_rslora: lora.rslora,
        modules_to_save: head_modules(manifest),
        lora_dropout: 0.0,
        bias: "none",
        fan_in_fan_out: false,
        inference_mode: true,
    }
}

/// Returns the targets by name. PEFT would also apply `all-linear` to a fully trained head, and would fail if the
/// head is a single layer.
fn targets<'a>(manifest: &'a Manifest, lora: &'a Lora) -> Vec<&'a str> {
    if !lora.targets.iter().any(|target| target == ALL_LINEAR) {
        return lora.targets.iter().map(String::as_str).collect();
    }
    let Design { model, head, .. } = &manifest.design;
    let is_adapted = |name: &&str| manifest.schema.find(&format!("{PREFIX}{name}.lora_B.weight")).is_some();
    model.linears().into_iter().chain(model.pooler(head.task).filter(is_adapted)).collect()
}

/// Returns the trainable parts of the head, by the prefixes of their tensors' names.
fn head_modules(manifest: &Manifest) -> Option<BTreeSet<&str>> {
    let names = manifest.schema.tensors.iter().filter(|spec| spec.layer.is_none()).map(|spec| spec.name.as_str());
    let whole = names.filter(|name| !name.contains(".lora_")).filter_map(|name| name.strip_prefix(PREFIX));
    let base = manifest.design.model.base();
    let first = |name: &'_ str| -> usize {
        let skipped = if name.starts_with(base) { base.len() } else { 0 };
        name[skipped..].find('.').map_or(name.len(), |at| skipped + at)
    };
    let modules: BTreeSet<&str> = whole.map(|name| &name[..first(name)]).collect();
    (!modules.is_empty()).then_some(modules)
}
