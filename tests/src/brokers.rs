//! Real brokers for tests, each on a port of its own.

use skiff_demo::broker::{Access, EmbeddedBroker};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The coordinator's account.
pub const COORDINATOR: &str = "coordinator";

/// A broker with an account for the coordinator and each device; the password of `NAME` is `secret-of-NAME`.
#[derive(Debug)]
pub enum Broker {
    /// A Mosquitto process of our own.
    Mosquitto(Mosquitto),
    /// The one that the demo embeds, in this process.
    Embedded(EmbeddedBroker),
}

/// Mosquitto with the access rules of the operator's example.
#[derive(Debug)]
pub struct Mosquitto {
    folder: tempfile::TempDir,
    port: u16,
    process: Child,
}

/// The password of an account.
#[must_use]
pub fn password(name: &str) -> String {
    format!("secret-of-{name}")
}

impl Broker {
    /// Starts Mosquitto for `devices` of the fleet `fleet`.
    ///
    /// # Panics
    /// Where Mosquitto is not installed or does not start, saying what to do.
    #[must_use]
    pub fn mosquitto(fleet: &str, devices: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let accounts = [&[COORDINATOR], devices].concat();
        let plain = accounts.iter().map(|name| format!("{name}:{}\n", password(name))).collect::<String>();
        std::fs::write(path("passwords"), plain).expect("a writable folder");
        let hashed = Command::new("mosquitto_passwd").arg("-U").arg(path("passwords")).status();
        assert!(
            hashed.is_ok_and(|status| status.success()),
            "mosquitto_passwd failed: install mosquitto (`cross/mosquitto`)"
        );
        let rules = format!(
            "pattern write skiff/v1/{fleet}/d/%u/up/#\npattern read skiff/v1/{fleet}/d/%u/dn/#\n\
             pattern read skiff/v1/{fleet}/all/#\nuser {COORDINATOR}\ntopic readwrite skiff/v1/{fleet}/#\n"
        );
        std::fs::write(path("rules"), rules).expect("a writable folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let mut text = format!("listener {port} 127.0.0.1\nallow_anonymous false\nset_tcp_nodelay true\n");
        let _ = writeln!(text, "password_file {}\nacl_file {}", path("passwords").display(), path("rules").display());
        if is_root() {
            // Mosquitto would give up root for a user who may not read the folder.
            text.push_str("user root\n");
        }
        std::fs::write(path("mosquitto.conf"), text).expect("a writable folder");
        let process = start_mosquitto(path("mosquitto.conf"));
        Self::Mosquitto(Mosquitto { folder, port, process })
    }

    /// Starts the embedded broker for `devices`.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn embedded(devices: &[&str]) -> Self {
        let names = devices.iter().chain([&COORDINATOR]);
        let accounts: BTreeMap<String, String> = names.map(|name| ((*name).to_owned(), password(name))).collect();
        Self::Embedded(EmbeddedBroker::start_anywhere(Access::Accounts(accounts)).expect("the embedded broker starts"))
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Mosquitto(mosquitto) => format!("mqtt://127.0.0.1:{}", mosquitto.port),
            Self::Embedded(embedded) => embedded.url(),
        }
    }

    /// Kills Mosquitto and starts it again on the same port: everything it held is gone.
    ///
    /// # Panics
    /// For the embedded broker, which lives as long as this process.
    pub fn kill_and_restart(&mut self) {
        let Self::Mosquitto(mosquitto) = self else { panic!("the embedded broker cannot be restarted") };
        let _ = mosquitto.process.kill();
        let _ = mosquitto.process.wait();
        mosquitto.process = start_mosquitto(mosquitto.folder.path().join("mosquitto.conf"));
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start_mosquitto(configuration: PathBuf) -> Child {
    Command::new("mosquitto")
        .arg("-c")
        .arg(configuration)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("starting mosquitto: {error}; install it (`cross/mosquitto`)"))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
