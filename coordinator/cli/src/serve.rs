//! `skiff serve`: runs the coordinator.

use crate::config::missing;
use anyhow::Context as _;
use clap::Args;
use skiff_coordinator::config::Config;
use skiff_coordinator::serve::Coordinator;
use skiff_link::{BrokerSettings, Secret};
use skiff_protocol::FleetId;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `skiff serve`. They take precedence over the configuration file.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Configuration file. Without it, --fleet, --pack and --state are required
    #[arg(long, env = "SKIFF_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the fleet to coordinate
    #[arg(long, env = "SKIFF_FLEET", required_unless_present = "config")]
    pub(crate) fleet: Option<FleetId>,
    /// Folder of the pack that the devices hold
    #[arg(long, env = "SKIFF_PACK", value_name = "DIR", required_unless_present = "config")]
    pub(crate) pack: Option<PathBuf>,
    /// State folder: journal, weights, signing key and control socket
    #[arg(long, env = "SKIFF_STATE", value_name = "DIR", required_unless_present = "config")]
    pub(crate) state: Option<PathBuf>,
    /// URL of the broker: mqtt://host:1883 or mqtts://host:8883
    #[arg(long, env = "SKIFF_BROKER", value_name = "URL")]
    pub(crate) broker: Option<String>,
    /// User name at the broker
    #[arg(long, env = "SKIFF_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// File whose first line is the password at the broker
    #[arg(long, env = "SKIFF_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Password at the broker, from the environment only
    #[arg(long, env = "SKIFF_PASSWORD", hide = true, hide_env_values = true)]
    pub(crate) password: Option<String>,
    /// Certificate authorities (PEM) that the broker's certificate is checked against
    #[arg(long = "ca-file", alias = "ca", env = "SKIFF_CA_FILE", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Client certificate (PEM) of the coordinator
    #[arg(long = "client-cert-file", alias = "cert", env = "SKIFF_CLIENT_CERT_FILE", value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key (PEM) of the client certificate
    #[arg(long = "client-key-file", alias = "key", env = "SKIFF_CLIENT_KEY_FILE", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
}

impl Arguments {
    /// Reads the configuration file, if any, and lets the command line override it.
    ///
    /// # Errors
    /// The file cannot be read or has an unknown key, or a value is out of range.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let mut config = match (&self.config, &self.fleet, &self.pack, &self.state) {
            (Some(path), ..) => Config::read(path).context("reading the configuration")?,
            (None, Some(fleet), Some(pack), Some(state)) => {
                Config::new(fleet.clone(), pack.clone(), state.clone(), BrokerSettings::DEFAULT_URL)
            }
            (None, ..) => anyhow::bail!("without --config, --fleet, --pack and --state are all required"),
        };
        replace(&mut config.fleet, self.fleet.as_ref());
        replace(&mut config.pack, self.pack.as_ref());
        replace(&mut config.state, self.state.as_ref());
        let broker = &mut config.broker;
        replace(&mut broker.url, self.broker.clone().or_else(|| old("SKIFF_BROKER_URL", "SKIFF_BROKER")).as_ref());
        let password = self.password.clone().or_else(|| old("SKIFF_BROKER_PASSWORD", "SKIFF_PASSWORD"));
        if password.is_some() || self.password_file.is_some() {
            (broker.password, broker.password_file) = (password.map(Secret::from), self.password_file.clone());
        }
        let user = self.user.clone().or_else(|| old("SKIFF_BROKER_USER", "SKIFF_USER"));
        broker.user = user.or(broker.user.take());
        broker.ca_file = self.ca.clone().or(broker.ca_file.take());
        broker.client_cert_file = self.cert.clone().or(broker.client_cert_file.take());
        broker.client_key_file = self.key.clone().or(broker.client_key_file.take());
        config.check()?;
        Ok(config)
    }
}

/// Returns the value of a variable under its former name, with a warning.
fn old(name: &str, now: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    tracing::warn!("the variable {name} is now called {now}; the old name still works");
    Some(value)
}

fn replace<T: Clone>(value: &mut T, with: Option<&T>) {
    if let Some(with) = with {
        *value = with.clone();
    }
}

/// Settings with which the coordinator cannot start. A restart does not help, and the exit status says so.
#[derive(Debug, thiserror::Error)]
#[error("the settings are wrong")]
pub(crate) struct WrongSettings;

/// Runs the coordinator until SIGINT, SIGTERM or a fatal error.
///
/// # Errors
/// [`WrongSettings`], the coordinator cannot start, or it stopped because of a fatal error.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut coordinator = Coordinator::start(settings(&arguments).context(WrongSettings)?).await?;
    tokio::select! {
        ended = coordinator.ended() => return ended,
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    tracing::info!("stopping; the current run resumes at the next start");
    coordinator.shutdown().await
}

/// Returns the settings, if every file that they name exists.
fn settings(arguments: &Arguments) -> anyhow::Result<Config> {
    let config = arguments.config()?;
    let missing = missing(&config);
    anyhow::ensure!(missing.is_empty(), "these files are missing: {}", missing.join(", "));
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use clap::{FromArgMatches as _, Parser};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &[&str]) -> Arguments {
        let command = <Line as clap::CommandFactory>::command().no_binary_name(true);
        Line::from_arg_matches(&command.try_get_matches_from(line).unwrap()).unwrap().arguments
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("c.toml");
        let text = "fleet = 'home'\npack = 'p'\nstate = 's'\n[broker]\nuser = 'u'\npassword = 'x'\n[run]\nrounds = 3\n";
        std::fs::write(&path, text).unwrap();
        let file = path.to_str().unwrap();
        let config = parse(&["--config", file, "--fleet", "lab", "--password-file", "f"]).config().unwrap();
        assert_eq!(config.fleet.as_str(), "lab");
        assert_eq!((config.broker.user.as_deref(), config.run.rounds), (Some("u"), 3));
        assert_eq!((config.broker.password, config.broker.password_file), (None, Some("f".into())));
    }

    #[test]
    fn a_missing_pack_is_a_matter_of_the_settings() {
        let error = settings(&parse(&["--fleet", "lab", "--pack", "/no/pack", "--state", "s"])).unwrap_err();
        assert_eq!(error.to_string(), "these files are missing: pack /no/pack");
        assert!(error.context(WrongSettings).is::<WrongSettings>());
    }

    #[test]
    fn without_a_file_three_flags_are_enough() {
        let config = parse(&["--fleet", "lab", "--pack", "p", "--state", "s"]).config().unwrap();
        assert_eq!(config.broker.url, "mqtt://localhost:1883");
    }
}
