//! The operator's settings, and the validated types that the rest of the agent receives.
//!
//! A setting is taken from the first place that has it: the flag, the environment (`SKIFF_…`), `agent.toml`, the default.
//! Relative paths in `agent.toml` are relative to its folder. An unknown key is an error.
//!
//! ```toml
//! broker = "mqtts://broker.example"
//! fleet = "home"
//! device = "kitchen"
//! password_file = "secret"
//! coordinator_key = "…64 hexadecimal digits, printed by `skiff serve`…"
//! pack = "/opt/skiff/minilm"
//! train = "train.csv"
//! test = "test.csv"
//! ```

use serde::{Deserialize, Deserializer};
use skiff_contract::{ColumnNames, Provider, Setup, Training};
use skiff_link::{BrokerSettings, LinkError, Secret};
use skiff_protocol::messages::Place;
use skiff_protocol::{DeviceId, FleetId, Verifier};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A commented settings file with every setting; `skiff-agent config init` writes it, and the package installs it.
pub const EXAMPLE: &str = include_str!("../../cross/debian/agent.toml");

/// The settings as they are written. Every setting is optional.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The broker: mqtt://HOST:PORT or mqtts://HOST:PORT; :PORT is optional [default: mqtt://localhost:1883]
    #[arg(long, env = "SKIFF_BROKER", value_name = "URL", help_heading = "Broker")]
    pub broker: Option<String>,
    /// User name at the broker [default: the device's name if a password is set]
    #[arg(long, env = "SKIFF_USER", value_name = "NAME", help_heading = "Broker")]
    pub user: Option<String>,
    /// Password at the broker; prefer --password-file, since other users can read a process's flags
    #[arg(long, env = "SKIFF_PASSWORD", value_name = "TEXT", hide_env_values = true, help_heading = "Broker")]
    pub password: Option<Secret>,
    /// File whose first line is the password
    #[arg(long, env = "SKIFF_PASSWORD_FILE", value_name = "FILE", help_heading = "Broker")]
    pub password_file: Option<PathBuf>,
    /// Certificate authorities (PEM) for the broker's certificate [default: the system's]
    #[arg(long, env = "SKIFF_CA_FILE", value_name = "FILE", help_heading = "Broker")]
    pub ca_file: Option<PathBuf>,
    /// The device's own certificate (PEM), if the broker requires one
    #[arg(long, env = "SKIFF_CLIENT_CERT_FILE", value_name = "FILE", help_heading = "Broker")]
    pub client_cert_file: Option<PathBuf>,
    /// Private key of the device's certificate (PEM)
    #[arg(long, env = "SKIFF_CLIENT_KEY_FILE", value_name = "FILE", help_heading = "Broker")]
    pub client_key_file: Option<PathBuf>,

    /// The fleet this device belongs to [default: skiff]
    #[arg(long, env = "SKIFF_FLEET", value_name = "NAME", help_heading = "Fleet")]
    pub fleet: Option<String>,
    /// This device's name in the fleet [default: the host's name]
    #[arg(long, env = "SKIFF_DEVICE", value_name = "NAME", help_heading = "Fleet")]
    pub device: Option<String>,
    /// The coordinator's public key, 64 hexadecimal digits; the agent obeys only commands signed with it
    #[arg(long, env = "SKIFF_COORDINATOR_KEY", value_name = "HEX", help_heading = "Fleet")]
    pub coordinator_key: Option<String>,
    /// Obey unsigned commands; only for a broker that nobody else can reach [default: false]
    #[arg(
        long,
        env = "SKIFF_ALLOW_UNSIGNED",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Fleet"
    )]
    pub allow_unsigned: Option<bool>,

    /// The pack: the folder that `skiff-pack build` made
    #[arg(long, env = "SKIFF_PACK", value_name = "DIR", help_heading = "Training")]
    pub pack: Option<PathBuf>,
    /// Examples to train on (CSV, TSV or JSON Lines in UTF-8); they never leave the device
    #[arg(long, env = "SKIFF_TRAIN", value_name = "FILE", help_heading = "Training")]
    pub train: Option<PathBuf>,
    /// Examples to evaluate on
    #[arg(long, env = "SKIFF_TEST", value_name = "FILE", help_heading = "Training")]
    pub test: Option<PathBuf>,
    /// Column or key of the text; several, separated by commas, are joined as title and description are
    /// [default: text, sentence, utterance, content or review]
    #[serde(deserialize_with = "one_or_several")]
    #[arg(long, env = "SKIFF_TEXT_COLUMN", value_name = "NAMES", value_delimiter = ',', help_heading = "Training")]
    pub text_column: Option<Vec<String>>,
    /// Column or key of a pair's second text; --text-column names the first
    #[arg(long, env = "SKIFF_PAIR_COLUMN", value_name = "NAME", help_heading = "Training")]
    pub pair_column: Option<String>,
    /// Column or key of the prompt before the text, for language models
    #[arg(long, env = "SKIFF_PROMPT_COLUMN", value_name = "NAME", help_heading = "Training")]
    pub prompt_column: Option<String>,
    /// Column or key of the label [default: label, class, class index, category, intent, quality or score]
    #[arg(long, env = "SKIFF_LABEL_COLUMN", value_name = "NAME", help_heading = "Training")]
    pub label_column: Option<String>,
    /// Names of all columns of CSV or TSV files without a header: label,text
    #[serde(deserialize_with = "one_or_several")]
    #[arg(long, env = "SKIFF_COLUMNS", value_name = "NAMES", value_delimiter = ',', help_heading = "Training")]
    pub columns: Option<Vec<String>>,
    /// Number of training threads; 0 means one for each core [default: 0]
    #[arg(long, env = "SKIFF_THREADS", value_name = "N", help_heading = "Training")]
    pub threads: Option<usize>,
    /// Memory limit of agent and worker together, for example 300MB; each step runs in the fastest way that stays below
    /// [default: three quarters of what the machine, its control groups and ulimits allow]
    #[arg(long, env = "SKIFF_MEMORY", value_name = "SIZE", help_heading = "Training")]
    pub memory: Option<String>,
    /// Execution provider, if ONNX Runtime's library has it: cpu, cuda, xnnpack [default: cpu]
    #[arg(long, env = "SKIFF_PROVIDER", value_name = "NAME", help_heading = "Training")]
    pub provider: Option<String>,
    /// ONNX Runtime's shared library [default: beside the executable, then in the system's library folders]
    #[arg(long, env = "SKIFF_ONNXRUNTIME", value_name = "FILE", help_heading = "Training")]
    pub onnxruntime: Option<PathBuf>,
    /// Layers that are never skipped, even if the coordinator's dropout rates say so: 0,11
    #[arg(long, env = "SKIFF_PROTECTED", value_name = "LAYERS", value_delimiter = ',', help_heading = "Training")]
    pub protected: Option<Vec<u32>>,

    /// Kind of device, for example jetson-nx; devices of one class share what the fleet learns about dropout rates
    #[arg(long, env = "SKIFF_CLASS", value_name = "NAME", help_heading = "Device")]
    pub class: Option<String>,
    /// Location; sharing policies can group devices by it
    #[arg(long, env = "SKIFF_REGION", value_name = "NAME", help_heading = "Device")]
    pub region: Option<String>,
    /// Labels by which sharing policies can group devices: lab,fan
    #[arg(long, env = "SKIFF_LABELS", value_name = "LABELS", value_delimiter = ',', help_heading = "Device")]
    pub labels: Option<Vec<String>>,
    /// Folder for everything that must survive a restart; created if missing [default: /var/lib/skiff-agent]
    #[arg(long, env = "SKIFF_STATE", value_name = "DIR", help_heading = "Device")]
    pub state: Option<PathBuf>,
    /// Seconds between telemetry samples, 1 to 3600 [default: 5]
    #[arg(long, env = "SKIFF_TELEMETRY_SECONDS", value_name = "N", help_heading = "Device")]
    pub telemetry_seconds: Option<u64>,
}

/// The checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the fleet.
    pub fleet: FleetId,
    /// Name of this device.
    pub device: DeviceId,
    /// Address and credentials of the broker.
    pub broker: BrokerSettings,
    /// The sender whose commands are obeyed.
    pub trust: Trust,
    /// The pack, the examples and the resources of a training.
    pub training: Training,
    /// The state folder.
    pub state: PathBuf,
    /// Time between telemetry samples.
    pub telemetry_interval: Duration,
}

/// The sender whose commands are obeyed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The holder of this key.
    Key(Verifier),
    /// Everybody who can write to the broker.
    Anybody,
}

impl Config {
    /// Returns what the worker needs before any work, without the agent's memory.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let (training, device, state) = (self.training.clone(), self.device.clone(), self.state.clone());
        Setup { training, device, state, agent_bytes: 0 }
    }
}

/// A reason why the settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that a setting names cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not TOML or has unknown keys; the cause names line, column and key.
    #[error("reading the settings in {path}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: Box<toml::de::Error>,
    },
    /// A setting without a default is missing.
    #[error("{setting} is not set: {remedy}")]
    Missing {
        /// Name of the setting in `agent.toml`.
        setting: &'static str,
        /// The remedy: what to write.
        remedy: &'static str,
    },
    /// The settings of the broker do not fit together.
    #[error(transparent)]
    Broker(#[from] LinkError),
    /// A value is not allowed.
    #[error("{setting} = {found:?}: {expected}")]
    Invalid {
        /// Name of the setting in `agent.toml`.
        setting: &'static str,
        /// The value.
        found: String,
        /// The allowed values.
        expected: &'static str,
    },
}

const DEFAULT_FLEET: &str = "skiff";
const DEFAULT_STATE: &str = "/var/lib/skiff-agent";
const DEFAULT_TELEMETRY_SECONDS: u64 = 5;

impl Settings {
    /// Reads `agent.toml`.
    ///
    /// # Errors
    /// [`ConfigError::Read`] and [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut settings: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in settings.paths_mut().into_iter().flatten() {
            *file = folder.join(&*file);
        }
        Ok(settings)
    }

    /// Returns these settings, with missing ones taken from `others`.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        // Password and password file are one setting: a set one replaces both of `others`.
        let has_password = self.password.is_some() || self.password_file.is_some();
        let (password, password_file) =
            if has_password { (self.password, self.password_file) } else { (others.password, others.password_file) };
        Self {
            broker: self.broker.or(others.broker),
            user: self.user.or(others.user),
            password,
            password_file,
            ca_file: self.ca_file.or(others.ca_file),
            client_cert_file: self.client_cert_file.or(others.client_cert_file),
            client_key_file: self.client_key_file.or(others.client_key_file),
            fleet: self.fleet.or(others.fleet),
            device: self.device.or(others.device),
            coordinator_key: self.coordinator_key.or(others.coordinator_key),
            allow_unsigned: self.allow_unsigned.or(others.allow_unsigned),
            pack: self.pack.or(others.pack),
            train: self.train.or(others.train),
            test: self.test.or(others.test),
            text_column: self.text_column.or(others.text_column),
            pair_column: self.pair_column.or(others.pair_column),
            prompt_column: self.prompt_column.or(others.prompt_column),
            label_column: self.label_column.or(others.label_column),
            columns: self.columns.or(others.columns),
            threads: self.threads.or(others.threads),
            memory: self.memory.or(others.memory),
            provider: self.provider.or(others.provider),
            onnxruntime: self.onnxruntime.or(others.onnxruntime),
            protected: self.protected.or(others.protected),
            class: self.class.or(others.class),
            region: self.region.or(others.region),
            labels: self.labels.or(others.labels),
            state: self.state.or(others.state),
            telemetry_seconds: self.telemetry_seconds.or(others.telemetry_seconds),
        }
    }

    /// Returns the state folder, for verbs that need no other setting.
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| DEFAULT_STATE.into())
    }

    /// Checks the settings; `host` is the default of the device's name.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting and its allowed values.
    pub fn check(self, host: Option<&str>) -> Result<Config, ConfigError> {
        self.check_paths()?;
        let device = device_name(self.device.as_deref(), host)?;
        let fleet = self.fleet.as_deref().unwrap_or(DEFAULT_FLEET);
        let seconds = self.telemetry_seconds.unwrap_or(DEFAULT_TELEMETRY_SECONDS);
        if !(1..=3600).contains(&seconds) {
            return Err(invalid("telemetry_seconds", seconds, "1 to 3600 seconds"));
        }
        Ok(Config {
            fleet: fleet.parse().map_err(|_| invalid("fleet", fleet, "1 to 64 of A-Z a-z 0-9 _ -"))?,
            trust: trust(self.coordinator_key.as_deref(), self.allow_unsigned.unwrap_or(false))?,
            training: training(&self)?,
            state: self.state_folder(),
            telemetry_interval: Duration::from_secs(seconds),
            broker: broker(self, &device)?,
            device,
        })
    }

    /// Refuses paths that the agent cannot send to its worker.
    fn check_paths(&self) -> Result<(), ConfigError> {
        let sent = [
            ("pack", &self.pack),
            ("train", &self.train),
            ("test", &self.test),
            ("onnxruntime", &self.onnxruntime),
            ("state", &self.state),
        ];
        let foreign = sent.iter().find_map(|(setting, path)| {
            path.as_ref().filter(|path| path.to_str().is_none()).map(|path| (*setting, path))
        });
        match foreign {
            Some((setting, path)) => {
                Err(invalid(setting, path.display(), "a path in UTF-8; rename the file or its folder"))
            }
            None => Ok(()),
        }
    }

    fn paths_mut(&mut self) -> [&mut Option<PathBuf>; 9] {
        [
            &mut self.password_file,
            &mut self.ca_file,
            &mut self.client_cert_file,
            &mut self.client_key_file,
            &mut self.pack,
            &mut self.train,
            &mut self.test,
            &mut self.onnxruntime,
            &mut self.state,
        ]
    }
}

fn invalid(setting: &'static str, found: impl ToString, expected: &'static str) -> ConfigError {
    ConfigError::Invalid { setting, found: found.to_string(), expected }
}

fn device_name(set: Option<&str>, host: Option<&str>) -> Result<DeviceId, ConfigError> {
    if let Some(name) = set {
        return name.parse().map_err(|_| invalid("device", name, "1 to 64 of A-Z a-z 0-9 _ -"));
    }
    host.and_then(|host| host.split('.').next()).and_then(|name| name.parse().ok()).ok_or(ConfigError::Missing {
        setting: "device",
        remedy: "name this device (the host's name has other characters than A-Z a-z 0-9 _ -), for example device = \"kitchen\"",
    })
}

fn trust(key: Option<&str>, allow_unsigned: bool) -> Result<Trust, ConfigError> {
    match (key, allow_unsigned) {
        (Some(text), _) => {
            let expected = "64 hexadecimal digits, as `skiff serve` prints them";
            Verifier::parse(text).map(Trust::Key).map_err(|_| invalid("coordinator_key", text, expected))
        }
        (None, true) => Ok(Trust::Anybody),
        (None, false) => Err(ConfigError::Missing {
            setting: "coordinator_key",
            remedy: "set the public key that `skiff serve` prints when it starts, or allow_unsigned = true on a \
                     broker that nobody else reaches",
        }),
    }
}

fn training(settings: &Settings) -> Result<Training, ConfigError> {
    let mut protected = settings.protected.clone().unwrap_or_default();
    protected.sort_unstable();
    protected.dedup();
    let provider = match settings.provider.as_deref() {
        None => Provider::default(),
        Some(name) => name.parse().map_err(|_| invalid("provider", name, "cpu, cuda or xnnpack"))?,
    };
    let size = |text: &String| text.parse().map_err(|_| invalid("memory", text, "a size, for example 300MB or 1.5GiB"));
    Ok(Training {
        pack: settings.pack.clone().ok_or(ConfigError::Missing {
            setting: "pack",
            remedy: "name the folder that `skiff-pack build` made, for example pack = \"/opt/skiff/minilm\"",
        })?,
        train: settings.train.clone(),
        test: settings.test.clone(),
        columns: column_names(settings)?,
        threads: settings.threads.unwrap_or(0),
        memory: settings.memory.as_ref().map(size).transpose()?,
        provider,
        onnxruntime: settings.onnxruntime.clone(),
        protected,
        place: place(settings)?,
    })
}

/// Reads a list of names, or one name.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a name, or a list of names")]
    enum Names {
        One(String),
        Several(Vec<String>),
    }
    Ok(Some(match Names::deserialize(deserializer)? {
        Names::One(name) => vec![name],
        Names::Several(names) => names,
    }))
}

fn column_names(settings: &Settings) -> Result<ColumnNames, ConfigError> {
    let names = ColumnNames {
        text: settings.text_column.clone().unwrap_or_default(),
        pair: settings.pair_column.clone(),
        prompt: settings.prompt_column.clone(),
        label: settings.label_column.clone(),
        header: settings.columns.clone().unwrap_or_default(),
    };
    match (&names.pair, names.text.len()) {
        (Some(_), 1) | (None, _) => Ok(names),
        (Some(pair), _) => Err(invalid("pair_column", pair, "text_column with one name, for the pair's first text")),
    }
}

fn place(settings: &Settings) -> Result<Place, ConfigError> {
    let named = |setting, text: &Option<String>| {
        let text = text.clone().unwrap_or_default();
        if text.len() <= 64 { Ok(text) } else { Err(invalid(setting, text, "at most 64 bytes")) }
    };
    let labels = settings.labels.clone().unwrap_or_default();
    if labels.len() > 16 || labels.iter().any(|label| label.len() > 64) {
        return Err(invalid("labels", labels.join(","), "at most 16 labels of at most 64 bytes"));
    }
    Ok(Place { class: named("class", &settings.class)?, region: named("region", &settings.region)?, labels })
}

fn broker(settings: Settings, device: &DeviceId) -> Result<BrokerSettings, ConfigError> {
    let url = settings.broker.unwrap_or_else(|| BrokerSettings::DEFAULT_URL.to_owned());
    // The access list that we ship expects the device's name as user name.
    let has_password = settings.password.is_some() || settings.password_file.is_some();
    let is_nameless = has_password && !url.contains('@');
    let broker = BrokerSettings {
        user: settings.user.or_else(|| is_nameless.then(|| device.to_string())),
        url,
        password: settings.password,
        password_file: settings.password_file,
        ca_file: settings.ca_file,
        client_cert_file: settings.client_cert_file,
        client_key_file: settings.client_key_file,
    };
    broker.check()?;
    Ok(broker)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn key() -> String {
        skiff_protocol::Signer::new([7; 32]).verifier().to_string()
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn checked(text: &str) -> Result<Config, ConfigError> {
        let (_folder, path) = file(text);
        Settings::read(&path).unwrap().check(Some("host.example"))
    }

    fn complaint(text: &str) -> String {
        checked(text).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_what_the_documentation_says() {
        let config = checked(&format!("pack = '/p'\ncoordinator_key = '{}'", key())).unwrap();
        assert_eq!(config.broker.url, BrokerSettings::DEFAULT_URL);
        assert_eq!(config.fleet.as_str(), "skiff");
        assert_eq!(config.device.as_str(), "host");
        assert_eq!(config.state, Path::new("/var/lib/skiff-agent"));
        assert_eq!(config.telemetry_interval, Duration::from_secs(5));
        assert!(matches!(&config.trust, Trust::Key(key) if key.to_string() == super::tests::key()));
        assert_eq!(config.broker.user, None);
        assert_eq!(config.training.provider, Provider::Cpu);
    }

    #[test]
    fn what_computes_is_a_setting() {
        let config = checked("pack = '/p'\nallow_unsigned = true\nprovider = 'xnnpack'").unwrap();
        assert_eq!(config.training.provider, Provider::Xnnpack);
    }

    #[test]
    fn unknown_key_is_refused_by_name_and_line() {
        let (_folder, path) = file("pack = '/p'\nbrokr = 'mqtt://x'\n");
        let error = anyhow::Error::from(Settings::read(&path).unwrap_err());
        let text = format!("{error:#}");
        assert!(text.contains("agent.toml") && text.contains("brokr") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn missing_file_is_named() {
        let error = Settings::read(Path::new("/nowhere/agent.toml")).unwrap_err();
        assert_eq!(error.to_string(), "reading /nowhere/agent.toml");
    }

    #[test]
    fn unsigned_commands_need_consent() {
        assert!(complaint("pack = '/p'").starts_with("coordinator_key is not set"));
        assert_eq!(checked("pack = '/p'\nallow_unsigned = true").unwrap().trust, Trust::Anybody);
    }

    #[test]
    fn a_key_wins_over_the_consent_to_do_without() {
        let config = checked(&format!("pack = '/p'\nallow_unsigned = true\ncoordinator_key = '{}'", key())).unwrap();
        assert!(matches!(config.trust, Trust::Key(_)));
    }

    #[test]
    fn impossible_values_are_named_with_what_could_be() {
        let base = "pack = '/p'\nallow_unsigned = true\n";
        for (line, expected) in [
            ("fleet = 'a/b'", "fleet = \"a/b\": 1 to 64"),
            ("device = ''", "device = \"\": 1 to 64"),
            ("telemetry_seconds = 0", "telemetry_seconds = \"0\": 1 to 3600"),
            ("memory = 'much'", "memory = \"much\": a size"),
            ("provider = 'tpu'", "provider = \"tpu\": cpu, cuda or xnnpack"),
            ("coordinator_key = 'abc'", "coordinator_key = \"abc\": 64"),
        ] {
            let text = complaint(&format!("{base}{line}"));
            assert!(text.starts_with(expected), "{line}: {text}");
        }
        assert!(complaint("allow_unsigned = true").starts_with("pack is not set"));
    }

    #[test]
    fn columns_are_one_name_or_several() {
        let base = "pack = '/p'\nallow_unsigned = true\n";
        let columns = |lines: &str| checked(&format!("{base}{lines}")).unwrap().training.columns;
        let named = columns("text_column = 'tweet'\nlabel_column = 'mood'\ncolumns = ['id', 'mood', 'tweet']");
        assert_eq!((named.text, named.label.as_deref()), (vec!["tweet".to_owned()], Some("mood")));
        assert_eq!(named.header, ["id", "mood", "tweet"]);
        assert_eq!(columns("text_column = ['a', 'b']").text, ["a", "b"]);
        let text = complaint(&format!("{base}pair_column = 'second'"));
        assert!(text.starts_with("pair_column = \"second\": text_column"), "{text}");
    }

    #[test]
    fn a_path_that_is_not_utf_8_is_named_with_its_setting() {
        use std::os::unix::ffi::OsStringExt;
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/data/\xff.csv".to_vec()));
        let settings = Settings { train: Some(path), ..Settings::default() };
        let text = settings.check(Some("host")).unwrap_err().to_string();
        assert!(text.starts_with("train = ") && text.ends_with("rename the file or its folder"), "{text}");
    }

    #[test]
    fn a_host_name_that_is_no_name_asks_for_one() {
        let (_folder, path) = file("pack = '/p'\nallow_unsigned = true");
        let error = Settings::read(&path).unwrap().check(Some("my host")).unwrap_err();
        assert!(error.to_string().starts_with("device is not set"));
    }

    #[test]
    fn a_password_is_one_setting_and_a_user_in_the_url_stays() {
        let base = "pack = '/p'\nallow_unsigned = true\npassword = 'x'\n";
        assert!(complaint(&format!("{base}password_file = 'y'")).contains("keep the file"));
        assert_eq!(checked(&format!("{base}broker = 'mqtt://ann@h'")).unwrap().broker.user, None);
    }

    #[test]
    fn a_password_file_stands_beside_the_settings_and_makes_the_device_the_user() {
        let (folder, path) = file("pack = 'p'\nallow_unsigned = true\npassword_file = 'secret'");
        let config = Settings::read(&path).unwrap().check(Some("host")).unwrap();
        assert_eq!(config.broker.password_file, Some(folder.path().join("secret")));
        assert_eq!(config.broker.user.as_deref(), Some("host"));
        assert_eq!(config.training.pack, folder.path().join("p"));
    }

    #[test]
    fn first_settings_win_and_a_password_replaces_the_files() {
        let flags = Settings { fleet: Some("a".into()), password: Some("x".into()), ..Settings::default() };
        let file = Settings {
            fleet: Some("b".into()),
            device: Some("d".into()),
            password_file: Some("f".into()),
            ..Settings::default()
        };
        let both = flags.or(file);
        assert_eq!((both.fleet.as_deref(), both.device.as_deref()), (Some("a"), Some("d")));
        assert_eq!(both.password_file, None);
    }
}
