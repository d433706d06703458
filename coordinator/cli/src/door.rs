//! Finds the coordinator that a command is for.

use anyhow::{Context as _, bail};
use clap::Args;
use skiff_coordinator::config::Config;
use std::path::PathBuf;

/// Where the coordinator to talk to keeps its control socket.
#[derive(Args, Debug, Clone)]
pub(crate) struct Door {
    /// The coordinator's state folder
    #[arg(long, env = "SKIFF_STATE", value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The coordinator's configuration, which names the state folder
    #[arg(long, env = "SKIFF_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl Door {
    /// The state folder.
    ///
    /// # Errors
    /// Neither folder nor configuration given, or one that cannot be read.
    pub(crate) fn state(&self) -> anyhow::Result<PathBuf> {
        match (&self.state, &self.config) {
            (Some(state), _) => Ok(state.clone()),
            (None, Some(path)) => Ok(Config::read(path).context("reading the configuration")?.state),
            (None, None) => bail!("say which coordinator: --state DIR or --config FILE (or SKIFF_STATE, SKIFF_CONFIG)"),
        }
    }
}
