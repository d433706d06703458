//! Finds the state folder of the coordinator that a command talks to.

use anyhow::{Context as _, bail};
use clap::Args;
use skiff_coordinator::config::Config;
use std::path::PathBuf;

/// Arguments that name the coordinator's state folder, which holds the control socket.
#[derive(Args, Debug, Clone)]
pub(crate) struct Door {
    /// State folder of the coordinator
    #[arg(long, env = "SKIFF_STATE", value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Configuration file of the coordinator, which names the state folder
    #[arg(long, env = "SKIFF_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl Door {
    /// Returns the option that names this coordinator, for commands that a message recommends; empty if the environment names it.
    pub(crate) fn option(&self) -> String {
        match (&self.state, &self.config) {
            (Some(state), _) => format!(" --state {}", state.display()),
            (None, Some(config)) => format!(" --config {}", config.display()),
            (None, None) => String::new(),
        }
    }

    /// Returns the state folder.
    ///
    /// # Errors
    /// Neither a folder nor a configuration is given, or the configuration cannot be read.
    pub(crate) fn state(&self) -> anyhow::Result<PathBuf> {
        match (&self.state, &self.config) {
            (Some(state), _) => Ok(state.clone()),
            (None, Some(path)) => Ok(Config::read(path).context("reading the configuration")?.state),
            (None, None) => {
                bail!("name the coordinator with --state DIR or --config FILE (or SKIFF_STATE or SKIFF_CONFIG)")
            }
        }
    }
}
