//! `coordinator.toml`: the configuration of a coordinator. Unknown keys are refused; all but three keys have a default.
//!
//! ```toml
//! fleet = "home"                        # the devices' `fleet` must be the same
//! pack = "/var/lib/skiff/pack"          # made by skiff-pack; the devices hold the same pack
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
//! devices = 10000                       # maximum number of known devices
//! granted_chunks = 64                   # maximum number of 64 KiB chunks in flight, in each direction
//! blob_bytes = 68719476736              # maximum size of weights and updates on disk
//!
//! [run]                                 # defaults of `skiff run start`, see `skiff_coordinator::run::RunSettings`
//! rounds = 10
//! rates = { bandit = {} }
//! ```
//! The command line and the environment (`SKIFF_BROKER`, `SKIFF_USER`, `SKIFF_PASSWORD`, ...) override the file. [`EXAMPLE`] has every
//! setting.

use crate::run::RunSettings;
use serde::Deserialize;
use skiff_link::{BrokerSettings, LinkError};
use skiff_protocol::FleetId;
use skiff_protocol::transfer::WINDOW;
use std::io;
use std::path::{Path, PathBuf};

/// A commented configuration file with every setting; `skiff config init` writes it.
pub const EXAMPLE: &str = include_str!("../../cross/debian/coordinator.toml");

/// Configuration of a coordinator.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the fleet.
    pub fleet: FleetId,
    /// Folder of the pack.
    pub pack: PathBuf,
    /// State folder for everything that survives a restart. It is created if it is missing.
    pub state: PathBuf,
    /// Address and credentials of the broker.
    #[serde(default)]
    pub broker: BrokerSettings,
    /// Limits on devices, transfers and disk.
    #[serde(default)]
    pub limits: Limits,
    /// Default settings of new runs.
    #[serde(default)]
    pub run: RunSettings,
}

/// Table `[limits]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Maximum number of known devices (default 10,000).
    pub devices: usize,
    /// Maximum number of 64 KiB chunks in flight in each direction, over the whole fleet (default 64).
    pub granted_chunks: u32,
    /// Maximum size of weights and updates on disk, in bytes (default 64 GiB).
    pub blob_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { devices: 10_000, granted_chunks: 64, blob_bytes: 64 << 30 }
    }
}

/// A reason why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("in {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's error, with the line.
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("{field} is {found}, expected {expected}")]
    Range {
        /// The key.
        field: &'static str,
        /// The value in the file.
        found: String,
        /// The allowed values.
        expected: String,
    },
    /// The settings of the broker do not fit together.
    #[error(transparent)]
    Broker(#[from] LinkError),
}

impl Config {
    /// Makes a configuration from the required values and defaults.
    #[must_use]
    pub fn new(fleet: FleetId, pack: PathBuf, state: PathBuf, broker_url: &str) -> Self {
        let broker = BrokerSettings { url: broker_url.to_owned(), ..BrokerSettings::default() };
        Self { fleet, pack, state, broker, limits: Limits::default(), run: RunSettings::default() }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read or is not a valid configuration.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let parsed = toml::from_str(&text);
        parsed.map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// Checks the limits and the broker. The settings of `run` are checked when a run starts, because that needs the model.
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

    /// Returns the names that a table may have, as the parser lists them.
    fn names(table: &str) -> Vec<String> {
        let error = read(&format!("{LEAST}{table}zzz = 1\n")).unwrap_err();
        let text = error.source().unwrap().to_string();
        text.split('`').skip(3).step_by(2).map(str::to_owned).filter(|name| !name.is_empty()).collect()
    }

    #[test]
    fn the_example_has_every_setting_with_its_default() {
        let config = read(EXAMPLE).unwrap();
        let (pack, state) = (config.pack.clone(), config.state.clone());
        assert_eq!(config, Config::new("skiff".parse().unwrap(), pack, state, BrokerSettings::DEFAULT_URL));
        for table in ["", "[broker]\n", "[limits]\n", "[run]\n"] {
            let names = names(table);
            assert!(names.len() >= 3, "{names:?}");
            for name in names.iter().filter(|name| !["broker", "limits", "run", "password"].contains(&name.as_str())) {
                let line = format!("{name} = ");
                let is_there = EXAMPLE.lines().any(|at| at.strip_prefix("# ").unwrap_or(at).starts_with(&line));
                assert!(is_there, "the example lacks {name}");
            }
        }
        // Every commented setting is valid, and has its default if it has any.
        let is_setting = |line: &&str| {
            let name = line.split(" = ").next().unwrap_or_default();
            line.contains(" = ") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && name != "from"
        };
        let whole: Vec<&str> =
            EXAMPLE.lines().map(|line| line.strip_prefix("# ").filter(is_setting).unwrap_or(line)).collect();
        let whole = read(&whole.join("\n")).unwrap();
        assert_eq!((whole.run, whole.limits), (RunSettings::default(), Limits::default()));
        assert!(whole.broker.user.is_some() && whole.broker.client_key_file.is_some());
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
