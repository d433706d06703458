//! `skiff run export`: writes the weights of a run in formats that other tools read.

use super::card;
use crate::door::Door;
use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;
use skiff_blobs::DiskBlobs;
use skiff_coordinator::results::{self, Choice, Weights};
use skiff_coordinator::serve::PACK_FILE;
use skiff_coordinator::store::SqliteStore;
use skiff_models::pack::{About, Exported, Pack, Progress, export_adapter, export_merged};
use skiff_protocol::Digest;
use skiff_screen::live::Live;
use skiff_screen::output::{stdout, width};
use skiff_screen::text::fold;
use skiff_screen::units::{bytes, count};
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Arguments of `skiff run export`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  skiff run export --state fleet-state --out adapter                   the best weights of the last run
  skiff run export 00a1 --state fleet-state --last --out adapter       the last weights of run 00a1...
  skiff run export --state fleet-state --merged --out tuned            a checkpoint with the weights merged in

Load an adapter with peft.PeftModel.from_pretrained(model, \"adapter\") and a merged checkpoint with transformers'
AutoModelFor...from_pretrained(\"tuned\"). README.md is a model card for the Hugging Face hub. The folder appears whole or not at all. An earlier export there is replaced;
anything else there is an error and is left unchanged. The coordinator may be running.")]
pub(crate) struct Arguments {
    /// Name or id of the run, the beginning of either, or `last`
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Export the weights with the best evaluation, or the last ones if no round was evaluated [default]
    #[arg(long, conflicts_with_all = ["last", "round"])]
    best: bool,
    /// Export the weights of the last merged round
    #[arg(long, conflicts_with = "round")]
    last: bool,
    /// Export the weights of round N. The coordinator keeps only the weights of the best and the last round
    #[arg(long, value_name = "N")]
    round: Option<u32>,
    /// Merge the tuned weights into the model and write a plain checkpoint
    #[arg(long)]
    merged: bool,
    /// Take the base model's weights from this checkpoint instead of the pack, which may hold rounded weights
    #[arg(long, value_name = "DIR", requires = "merged")]
    checkpoint: Option<PathBuf>,
    /// Name of the base model in the adapter and the model card [default: the pack's]
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,
    /// Pack that the run trained [default: the pack that `skiff serve` used last]
    #[arg(long, value_name = "DIR")]
    pack: Option<PathBuf>,
    /// Print a summary of the export as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

/// Writes the adapter or the checkpoint.
///
/// # Errors
/// There is no such run, its weights were removed, the pack is not the run's, or the folder cannot be written.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let state = arguments.door.state()?;
    let store = SqliteStore::open_existing(&state)?;
    let row = results::find_run(&store, &arguments.run)?;
    let blobs = DiskBlobs::of_another(state.join("blobs"));
    let weights = results::read_weights(&store, &blobs, &row, arguments.choice())?;
    let pack = open_pack(arguments, &state, &weights)?;
    let tensors = pack.schema().read(&weights.bytes).context("reading the weights")?;
    let about = card::about(&store, &row, weights.round)?;
    let about = &About { base_model: arguments.base_model.clone(), ..about };
    let live = Live::new();
    let progress = &mut |at: Progress<'_>| show_progress(&live, at);
    let out = &arguments.out;
    let exported = match arguments.merged {
        true => export_merged(&pack, &tensors, arguments.checkpoint.as_deref(), about, out, progress)?,
        false => export_adapter(&pack, &tensors, about, out, progress)?,
    };
    live.clear();
    if arguments.json {
        return Ok(writeln!(stdout(), "{}", as_json(arguments, &weights, &exported)?)?);
    }
    Ok(writeln!(stdout(), "{}", fold(&as_text(arguments, &weights, &exported), 2, width()))?)
}

impl Arguments {
    fn choice(&self) -> Choice {
        match (self.round, self.last) {
            (Some(round), _) => Choice::Round(round),
            (None, true) => Choice::Last,
            (None, false) => Choice::Best,
        }
    }
}

fn open_pack(arguments: &Arguments, state: &Path, weights: &Weights) -> anyhow::Result<Pack> {
    let path = match &arguments.pack {
        Some(path) => path.clone(),
        None => {
            remembered_pack(state).context("the state folder does not record where the pack is; name it with --pack")?
        }
    };
    let pack = Pack::open(&path).with_context(|| format!("opening the pack {}", path.display()))?;
    let found = Digest(pack.digest());
    if let Some(expected) = weights.pack {
        ensure!(
            found == expected,
            "{} is pack {found}, but the run trained pack {expected}; name that pack with --pack",
            path.display()
        );
    }
    pack.check_weights().with_context(|| format!("checking the pack {}", path.display()))?;
    Ok(pack)
}

/// Returns the pack that the coordinator of this folder opened last.
fn remembered_pack(state: &Path) -> anyhow::Result<PathBuf> {
    let bytes = std::fs::read(state.join(PACK_FILE)).with_context(|| format!("reading {PACK_FILE}"))?;
    let path = bytes.strip_suffix(b"\n").unwrap_or_default();
    ensure!(!path.is_empty(), "{PACK_FILE} is empty");
    Ok(OsStr::from_bytes(path).into())
}

fn show_progress(live: &Live, progress: Progress<'_>) {
    match progress.bytes {
        Some((done, total)) => {
            live.count(&format!("{}, {} of {}", progress.doing, bytes(done), bytes(total)), done, total);
        }
        None => live.say(progress.doing),
    }
}

fn as_json(arguments: &Arguments, weights: &Weights, exported: &Exported) -> anyhow::Result<serde_json::Value> {
    let kind = if arguments.merged { "merged" } else { "adapter" };
    let total: u64 = exported.files.values().sum();
    let mut written = json!({
        "run": weights.run.to_string(), "round": weights.round, "weights": weights.digest.to_string(),
        "accuracy": weights.accuracy, "out": arguments.out, "kind": kind, "bytes": total,
    });
    if let (Some(all), serde_json::Value::Object(parts)) = (written.as_object_mut(), serde_json::to_value(exported)?) {
        all.extend(parts);
    }
    Ok(written)
}

fn as_text(arguments: &Arguments, weights: &Weights, exported: &Exported) -> String {
    let what = match arguments.merged {
        true => "a plain checkpoint with the tuned weights merged in",
        false => "an adapter in Hugging Face PEFT's format",
    };
    let accuracy = weights.accuracy.map_or_else(String::new, |accuracy| format!(", accuracy {accuracy:.4}"));
    let Weights { run, round, .. } = weights;
    let total: u64 = exported.files.values().sum();
    format!(
        "{} holds round {round} of run {run}{accuracy}: {what}, {} parameters, {}",
        arguments.out.display(),
        count(exported.parameters),
        bytes(total)
    )
}
