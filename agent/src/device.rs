//! What the device has for a fleet: its pack and its examples, looked at once when the agent starts.

use crate::config::Training;
use crate::corpus::count;
use crate::participant::Profile;
use crate::telemetry::machine;
use anyhow::{Context, bail};
use skiff_models::pack::Pack;
use skiff_protocol::messages::Birth;
use skiff_protocol::{BootId, Digest};

/// Opens the pack (which checks every file of it) and counts the examples; keeps neither in memory.
///
/// # Errors
/// A broken pack, examples that cannot be read or whose labels are not the pack's, layers that do not exist.
pub fn profile(training: &Training, boot: BootId) -> anyhow::Result<Profile> {
    let pack = Pack::open(&training.pack)?;
    let layers = pack.manifest().layers;
    if let Some(layer) = training.protected.iter().find(|layer| **layer as usize >= layers) {
        bail!("protected names layer {layer}, but the pack has layers 0 to {}", layers.saturating_sub(1));
    }
    let examples = |file: &Option<_>| file.as_deref().map_or(Ok(0), |path| count(path, &pack));
    Ok(Profile {
        birth: Birth {
            boot,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            pack: Digest(pack.digest()),
            train_examples: examples(&training.train)?,
            test_examples: examples(&training.test)?,
            machine: machine(),
        },
        schema: Digest(pack.schema().hash()),
        layers,
        protected: training.protected.clone(),
    })
}

/// 64 random bits for a new life of the agent.
///
/// # Errors
/// Where the system has none to give.
pub fn new_boot() -> anyhow::Result<BootId> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("drawing a boot id from the system's random numbers")?;
    Ok(BootId(u64::from_le_bytes(bytes)))
}
