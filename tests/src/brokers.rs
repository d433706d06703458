//! Real brokers for tests, each on a port of its own.

use crate::wait::eventually;
use skiff_demo::broker::{Access, EmbeddedBroker};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tokio::net::TcpSocket;

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
    port: Port,
    process: Child,
}

/// A port of 127.0.0.1 that no other process gets while this value lives. Its socket is bound but does not listen, so a broker
/// may listen there, and nobody answers before and after it.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _bound: TcpSocket,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    /// There is none.
    pub fn reserve() -> std::io::Result<Self> {
        let bound = TcpSocket::new_v4()?;
        // A second socket can bind the port only if both have this option.
        bound.set_reuseaddr(true)?;
        bound.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Self { number: bound.local_addr()?.port(), _bound: bound })
    }

    /// Returns the number of the port.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Returns the password of an account.
#[must_use]
pub fn password(name: &str) -> String {
    format!("secret-of-{name}")
}

impl Broker {
    /// Starts Mosquitto for `devices` of the fleet `fleet`.
    ///
    /// # Panics
    /// If Mosquitto is not installed or does not start; the message says what to do.
    #[must_use]
    pub fn mosquitto(fleet: &str, devices: &[&str]) -> Self {
        Self::mosquitto_with(fleet, devices, "write", "")
    }

    /// Starts Mosquitto with other rules: `up` is the right of devices on their own topics to the coordinator (`write` or
    /// `read`), and `settings` are further lines of the configuration.
    ///
    /// # Panics
    /// If Mosquitto is not installed or does not start; the message says what to do.
    #[must_use]
    pub fn mosquitto_with(fleet: &str, devices: &[&str], up: &str, settings: &str) -> Self {
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
            "pattern {up} skiff/v1/{fleet}/d/%u/up/#\npattern read skiff/v1/{fleet}/d/%u/dn/#\n\
             pattern read skiff/v1/{fleet}/all/#\nuser {COORDINATOR}\ntopic readwrite skiff/v1/{fleet}/#\n"
        );
        std::fs::write(path("rules"), rules).expect("a writable folder");
        let port = Port::reserve().expect("a free port");
        let mut text = format!("listener {} 127.0.0.1\nallow_anonymous false\nset_tcp_nodelay true\n", port.number);
        text.push_str(settings);
        let _ = writeln!(text, "password_file {}\nacl_file {}", path("passwords").display(), path("rules").display());
        if is_root() {
            // As root, Mosquitto would change to a user who may not read the folder.
            text.push_str("user root\n");
        }
        std::fs::write(path("mosquitto.conf"), text).expect("a writable folder");
        let process = start_mosquitto(&path("mosquitto.conf"), &port);
        Self::Mosquitto(Mosquitto { folder, port, process })
    }

    /// Starts the embedded broker for `devices`.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn embedded(devices: &[&str]) -> Self {
        let names = devices.iter().chain([&COORDINATOR]);
        let accounts: BTreeMap<String, String> = names.map(|name| ((*name).to_owned(), password(name))).collect();
        Self::Embedded(EmbeddedBroker::start_anywhere(Access::Accounts(accounts)).expect("the embedded broker starts"))
    }

    /// Returns the URL at which it listens.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Mosquitto(mosquitto) => format!("mqtt://127.0.0.1:{}", mosquitto.port.number),
            Self::Embedded(embedded) => embedded.url(),
        }
    }

    /// Kills Mosquitto and starts it again on the same port; its retained messages and sessions are lost.
    ///
    /// # Panics
    /// If it is the embedded broker, which lives as long as this process.
    pub fn kill_and_restart(&mut self) {
        let Self::Mosquitto(mosquitto) = self else { panic!("the embedded broker cannot be restarted") };
        let _ = mosquitto.process.kill();
        let _ = mosquitto.process.wait();
        mosquitto.process = start_mosquitto(&mosquitto.folder.path().join("mosquitto.conf"), &mosquitto.port);
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts Mosquitto and waits until it listens.
fn start_mosquitto(configuration: &Path, port: &Port) -> Child {
    let mut process = Command::new("mosquitto")
        .arg("-c")
        .arg(configuration)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("starting mosquitto: {error}; install it (`cross/mosquitto`)"));
    let listens = eventually(|| {
        let ended = process.try_wait().expect("a child can be asked");
        assert!(ended.is_none(), "mosquitto refused {}: {ended:?}", configuration.display());
        TcpStream::connect((Ipv4Addr::LOCALHOST, port.number)).is_ok()
    });
    assert!(listens, "mosquitto does not listen");
    process
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
