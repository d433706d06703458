//! Determines the pack, the examples and the memory that a device has for training when the agent starts.

use crate::corpus::{columns, count};
use anyhow::Context;
use skiff_base::files::{Access, replace};
use skiff_contract::limits::{Lesson, Limit, System};
use skiff_contract::{Inventory, Setup};
use skiff_models::files::read_bounded;
use skiff_models::memory::{Policy, Step, predict};
use skiff_models::pack::Pack;
use skiff_protocol::Digest;
use skiff_protocol::messages::{REFERENCE_TOKENS, StepMemory};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Opens the pack, checks all its files and counts the examples; keeps neither in memory. A note in the state folder says that the
/// weights are intact; they are checked again only if their file has changed.
///
/// # Errors
/// A broken pack; examples that cannot be read or have other labels than the pack.
pub fn look(setup: &Setup) -> anyhow::Result<Inventory> {
    let training = &setup.training;
    let pack = Pack::open(&training.pack)?;
    check_weights(&pack, &setup.state.join("weights-checked"))?;
    let columns = columns(&training.columns);
    let examples = |file: &Option<_>| file.as_deref().map_or(Ok(0), |path| count(path, &columns, &pack));
    Ok(Inventory {
        pack: Digest(pack.digest()),
        schema: Digest(pack.schema().hash()),
        layers: pack.manifest().layers,
        train_examples: examples(&training.train)?,
        test_examples: examples(&training.test)?,
        memory: of_steps(&pack, &limit(setup)),
    })
}

/// Returns the memory limit by which the fleet plans for this device.
#[must_use]
pub fn limit(setup: &Setup) -> Limit {
    System::read(Path::new("/")).limit(setup.training.memory, Lesson::read(&setup.state))
}

/// Memory of ONNX Runtime, its sessions and the agent in bytes, independent of the model. 47 to 63 MB were measured
/// (docs/training-step.md).
const PROCESS_BYTES: u64 = 48 << 20;

/// Predicts the memory of the smallest steps: one text at a time, and layers that keep only their input.
#[must_use]
pub fn of_steps(pack: &Pack, limit: &Limit) -> StepMemory {
    let manifest = pack.manifest();
    let unknown = StepMemory { limit_bytes: limit.bytes, ..StepMemory::default() };
    let Ok(stages) = manifest.design.fused_stages() else { return unknown };
    let tokens = manifest.layout.max_tokens.clamp(1, REFERENCE_TOKENS as usize);
    let predicted =
        |active| predict(&manifest.design, &stages, Step { examples: 1, tokens, active }, Policy::Recompute).total();
    let (one, two) = (predicted(1), predicted(2));
    let layer_bytes = two.saturating_sub(one);
    StepMemory { process_bytes: PROCESS_BYTES, step_bytes: one.saturating_sub(layer_bytes), layer_bytes, ..unknown }
}

/// Checks the frozen weights, unless `note` says that this version of the file is intact.
fn check_weights(pack: &Pack, note: &Path) -> anyhow::Result<()> {
    let path = pack.weights_path();
    let found = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
    let (written, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
    let (pack_digest, file) = (Digest(pack.digest()), (found.dev(), found.ino(), found.size()));
    let now = format!("{pack_digest:?} {file:?} {written:?} {changed:?}\n");
    if read_bounded(note, now.len() as u64).is_ok_and(|noted| noted == now.as_bytes()) {
        return Ok(());
    }
    pack.check_weights()?;
    // Without the note the next start takes longer, nothing else.
    if let Err(error) = replace(note, now.as_bytes(), Access::Owner) {
        tracing::debug!(%error, path = %note.display(), "the note that the weights are intact was not written");
    }
    Ok(())
}
