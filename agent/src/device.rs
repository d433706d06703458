//! The device's offer to a fleet: its pack, its examples, its machine.

use crate::participant::Profile;
use crate::telemetry::machine;
use anyhow::{Context, bail};
use skiff_contract::{Inventory, Training};
use skiff_protocol::BootId;
use skiff_protocol::messages::Birth;

/// Returns the profile that the fleet receives from this device.
///
/// # Errors
/// The settings protect layers that the pack does not have.
pub fn profile(training: &Training, inventory: &Inventory, boot: BootId) -> anyhow::Result<Profile> {
    let Inventory { pack, schema, layers, train_examples, test_examples, memory } = *inventory;
    if let Some(layer) = training.protected.iter().find(|layer| **layer as usize >= layers) {
        bail!("protected names layer {layer}, but the pack has layers 0 to {}", layers.saturating_sub(1));
    }
    Ok(Profile {
        birth: Birth {
            speaks: skiff_protocol::VersionRange::OURS,
            boot,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            pack,
            train_examples,
            test_examples,
            place: training.place.clone(),
            memory,
            machine: machine(),
        },
        schema,
        layers,
        protected: training.protected.clone(),
    })
}

/// Draws 64 random bits that identify a start of the agent.
///
/// # Errors
/// The system has no random numbers.
pub fn new_boot() -> anyhow::Result<BootId> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("drawing a boot id from the system's random numbers")?;
    Ok(BootId(u64::from_le_bytes(bytes)))
}
