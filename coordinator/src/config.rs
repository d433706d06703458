//! `coordinator.toml`: what a coordinator is given. Unknown keys are refused, every key but three has a default.
//!
//! ```toml
//! fleet = "home"                        # the devices' `fleet` must be the same
//! pack = "/var/lib/skiff/pack"          # made by skiff-pack; the devices hold the same
//! state = "/var/lib/skiff/coordinator"  # the journal, weights, the signing key and the control socket
//!
//! [broker]
//! url = "mqtts://broker.example:8883"   # default mqtt://localhost:1883
//! user = "coordinator"
//! password_file = "/etc/skiff/password" # or password = "..."
//! ca_file = "/etc/skiff/ca.pem"         # default: the system's
//! client_cert_file = "/etc/skiff/coordinator.pem"
//! client_key_file = "/etc/skiff/coordinator.key"
//!
//! [limits]
//! devices = 10000                       # known at a time
//! granted_chunks = 64                   # of 64 KiB, in flight to and from the fleet, each way
//! blob_bytes = 68719476736              # weights and updates on disk
//!
//! [run]                                 # defaults of `skiff run start`, see `skiff_coordinator::run::RunSettings`
//! rounds = 10
//! rates = { bandit = {} }
//! ```
//! The command line and the environment (`SKIFF_BROKER_URL`, `SKIFF_BROKER_USER`, `SKIFF_BROKER_PASSWORD`) go before the file.

use crate::run::RunSettings;
use serde::Deserialize;
use skiff_link::{BrokerSettings, LinkError};
use skiff_protocol::FleetId;
use skiff_protocol::transfer::WINDOW;
use std::io;
use std::path::{Path, PathBuf};

/// Everything a coordinator is given.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The fleet it looks after.
    pub fleet: FleetId,
    /// The pack's directory.
    pub pack: PathBuf,
    /// The folder for everything that survives; made where it is missing.
    pub state: PathBuf,
    /// How to reach the broker.
    #[serde(default)]
    pub broker: BrokerSettings,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// What a run is started with where nothing else is said.
    #[serde(default)]
    pub run: RunSettings,
}

/// Table `[limits]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Devices that are known at a time (default 10,000).
    pub devices: usize,
    /// Chunks of 64 KiB that may be in flight, each way, over the whole fleet (default 64).
    pub granted_chunks: u32,
    /// Bytes of weights and updates on disk (default 64 GiB).
    pub blob_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { devices: 10_000, granted_chunks: 64, blob_bytes: 64 << 30 }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what this file should say.
    #[error("in {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value out of range.
    #[error("{field} is {found}, expected {expected}")]
    Range {
        /// The key.
        field: &'static str,
        /// What is there.
        found: String,
        /// What may be.
        expected: String,
    },
    /// The settings of the broker do not fit together.
    #[error(transparent)]
    Broker(#[from] LinkError),
}

impl Config {
    /// A configuration with nothing but defaults beside what is needed.
    #[must_use]
    pub fn new(fleet: FleetId, pack: PathBuf, state: PathBuf, broker_url: &str) -> Self {
        let broker = BrokerSettings { url: broker_url.to_owned(), ..BrokerSettings::default() };
        Self { fleet, pack, state, broker, limits: Limits::default(), run: RunSettings::default() }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// A file that cannot be read, or says what it should not.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let parsed = toml::from_str(&text);
        parsed.map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// Checks the bounds; those of `run` need the model and are checked when a run starts.
    ///
    /// # Errors
    /// The first value out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Limits { devices, granted_chunks, .. } = self.limits;
        let range = |field, found: String, expected: String| Err(ConfigError::Range { field, found, expected });
        if !(1..=100_000).contains(&devices) {
            return range("limits.devices", devices.to_string(), "1 to 100000".to_owned());
        }
        if !(WINDOW..=4096).contains(&granted_chunks) {
            return range("limits.granted_chunks", granted_chunks.to_string(), format!("{WINDOW} to 4096"));
        }
        Ok(self.broker.check()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use std::error::Error as _;
    use tempfile::TempDir;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("coordinator.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    const LEAST: &str = "fleet = 'home'\npack = 'p'\nstate = 's'\n";

    #[test]
    fn the_documented_example_is_a_configuration() {
        let docs = include_str!("config.rs").lines();
        let lines =
            docs.filter_map(|line| line.strip_prefix("//!")).skip_while(|line| !line.contains("```toml")).skip(1);
        let example: Vec<&str> = lines.take_while(|line| !line.contains("```")).collect();
        let config = read(&example.join("\n")).unwrap();
        config.check().unwrap();
        assert_eq!(config.limits, Limits::default(), "the example shows the defaults");
        assert!(config.run.rates.arms().len() == 4);
    }

    #[test]
    fn defaults_fill_what_is_not_said() {
        let config = read(LEAST).unwrap();
        assert_eq!(config, Config::new("home".parse().unwrap(), "p".into(), "s".into(), "mqtt://localhost:1883"));
        assert!(config.check().is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cause = |text: &str| read(&format!("{LEAST}{text}")).unwrap_err().source().unwrap().to_string();
        assert!(cause("flete = 1\n").contains("unknown field `flete`"));
        assert!(cause("[broker]\nport = 1\n").contains("unknown field `port`"));
        assert!(cause("[run]\nrounds = -1\n").contains("line 5"));
        assert!(
            read("fleet = 'a b'\npack = 'p'\nstate = 's'")
                .unwrap_err()
                .source()
                .unwrap()
                .to_string()
                .contains("not a name")
        );
        assert!(read("fleet = 'a'").unwrap_err().source().unwrap().to_string().contains("missing field `pack`"));
        let absent = Config::read(Path::new("/nowhere/coordinator.toml")).unwrap_err();
        assert!(absent.to_string().contains("/nowhere/coordinator.toml"));
    }

    #[test]
    fn bounds_are_checked() {
        let message = |text: &str| read(&format!("{LEAST}{text}")).unwrap().check().unwrap_err().to_string();
        assert!(message("[limits]\ndevices = 0\n").contains("limits.devices is 0, expected 1 to 100000"));
        assert!(message("[limits]\ngranted_chunks = 3\n").contains("expected 4 to"));
        assert!(message("[broker]\npassword = 'a'\npassword_file = 'b'\n").contains("keep the file"));
    }
}
