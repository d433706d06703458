//! An MQTT broker inside this process, for demonstrations and tests: loopback only, nothing on disk.
//!
//! A real fleet needs more: this broker forgets everything at a restart, does not encrypt, and lets a device use the topics of
//! another device. It also keeps a record of every topic it has ever seen, so its memory grows over months. Use Mosquitto or
//! another broker for a fleet; start from `cross/mosquitto.conf.example`.

use rumqttd::{Config, ConnectionSettings, RouterConfig, ServerSettings};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// Maximum size of a packet in bytes. It is far above the protocol's limit, so that an oversized message still reaches its
/// reader, which refuses it.
const MAX_PACKET_BYTES: usize = 1 << 20;
/// Size in bytes of a segment of stored messages. Each subscription has a fixed number of segments; older ones are dropped.
const SEGMENT_BYTES: usize = 1 << 20;
const SEGMENTS: usize = 16;
const MAX_CONNECTIONS: usize = 1024;
/// Maximum number of attempts to listen on a free port, since another program may take the port first.
const ATTEMPTS: usize = 5;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// Clients that may connect.
#[derive(Clone)]
pub enum Access {
    /// Every program on this machine.
    Anybody,
    /// Clients with a password from this table, by user name.
    Accounts(BTreeMap<String, String>),
}

/// A reason why the broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Other machines can reach the address.
    #[error(
        "the embedded broker does not encrypt and listens only on the loopback, not on {listen}; use 127.0.0.1, or a separate broker such as Mosquitto"
    )]
    NotLoopback {
        /// The address.
        listen: SocketAddr,
    },
    /// The address is in use, or does not belong to this machine.
    #[error("the embedded broker cannot listen on {listen}; choose another port")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The broker does not answer.
    #[error("the embedded broker on {listen} did not answer")]
    Silent {
        /// The address.
        listen: SocketAddr,
        /// The error of the last attempt to reach it.
        source: io::Error,
    },
}

/// A broker that runs until this process ends.
#[derive(Debug)]
pub struct EmbeddedBroker {
    address: SocketAddr,
}

impl EmbeddedBroker {
    /// Starts a broker on `listen` (port 0: any free one) and returns once it has answered. Blocks for a few milliseconds.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub fn start(listen: SocketAddr, access: Access) -> Result<Self, BrokerError> {
        if !listen.ip().is_loopback() {
            return Err(BrokerError::NotLoopback { listen });
        }
        let mut attempts = if listen.port() == 0 { ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            match Self::start_once(listen, &access) {
                Err(BrokerError::Listen { .. }) if attempts > 0 => {}
                outcome => return outcome,
            }
        }
    }

    /// Starts a broker on any free port of 127.0.0.1.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub fn start_anywhere(access: Access) -> Result<Self, BrokerError> {
        Self::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), access)
    }

    /// Returns the URL of the broker, such as `mqtt://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Returns the address of the broker.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn start_once(listen: SocketAddr, access: &Access) -> Result<Self, BrokerError> {
        // rumqttd reports neither the port it chose nor a port that is in use, so the port is tested first.
        let address = TcpListener::bind(listen)
            .and_then(|listener| listener.local_addr())
            .map_err(|source| BrokerError::Listen { listen, source })?;
        let probe = random_password();
        let mut broker = rumqttd::Broker::new(configuration(address, access, &probe));
        let thread = std::thread::Builder::new()
            .name("broker".to_owned())
            .spawn(move || drop(broker.start()))
            .map_err(|source| BrokerError::Silent { listen, source })?;
        await_answer(address, &probe, &thread)?;
        Ok(Self { address })
    }
}

/// Draws a password: 128 random bits in hexadecimal digits.
///
/// # Panics
/// The operating system has no random numbers.
#[must_use]
pub fn random_password() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn configuration(listen: SocketAddr, access: &Access, probe: &str) -> Config {
    let mut connections = ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: MAX_PACKET_BYTES,
        max_inflight_count: 200,
        auth: None,
        external_auth: None,
        dynamic_filters: false,
    };
    if let Access::Accounts(passwords) = access {
        // BLAKE3 hashes are compared in constant time.
        let hash = |password: &str| blake3::hash(password.as_bytes());
        let mut hashes: BTreeMap<String, blake3::Hash> =
            passwords.iter().map(|(user, password)| (user.clone(), hash(password))).collect();
        hashes.insert(probe.to_owned(), hash(probe));
        connections.set_auth_handler(move |_, user: String, password: String| {
            let known = hashes.get(&user).is_some_and(|expected| *expected == hash(&password));
            std::future::ready(known)
        });
    }
    let server = ServerSettings {
        name: "embedded broker".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    Config {
        router: RouterConfig {
            max_connections: MAX_CONNECTIONS,
            max_outgoing_packet_count: 200,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v4: Some([("1".to_owned(), server)].into()),
        ..Config::default()
    }
}

/// Connects with an account that only this broker has, so that another broker on the port is not taken for it.
fn await_answer(address: SocketAddr, probe: &str, thread: &JoinHandle<()>) -> Result<(), BrokerError> {
    let attempts = START_TIMEOUT.as_millis() / PROBE_INTERVAL.as_millis();
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..attempts {
        match connect(address, probe) {
            Ok(()) => return Ok(()),
            Err(source) if thread.is_finished() => return Err(BrokerError::Listen { listen: address, source }),
            Err(source) => last = source,
        }
        std::thread::sleep(PROBE_INTERVAL);
    }
    Err(BrokerError::Silent { listen: address, source: last })
}

/// Sends one MQTT 3.1.1 CONNECT with `probe` as client id, user and password, then DISCONNECT.
fn connect(address: SocketAddr, probe: &str) -> io::Result<()> {
    const CLEAN_SESSION_USER_PASSWORD: u8 = 0b1100_0010;
    const KEEP_ALIVE_S: u8 = 10;
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, CLEAN_SESSION_USER_PASSWORD, 0, KEEP_ALIVE_S];
    for _ in ["client", "user", "password"] {
        body.extend([0, probe.len() as u8]);
        body.extend(probe.as_bytes());
    }
    let mut packet = vec![0x10, body.len() as u8];
    packet.extend(body);

    let mut stream = TcpStream::connect_timeout(&address, START_TIMEOUT)?;
    stream.set_read_timeout(Some(START_TIMEOUT))?;
    stream.write_all(&packet)?;
    let mut answer = [0_u8; 4];
    stream.read_exact(&mut answer)?;
    if answer != [0x20, 2, 0, 0] {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "another program listens on the port"));
    }
    stream.write_all(&[0xe0, 0])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn accounts(user: &str) -> Access {
        Access::Accounts(BTreeMap::from([(user.to_owned(), user.to_owned())]))
    }

    #[test]
    fn a_client_with_its_password_gets_in_and_another_does_not() {
        let broker = EmbeddedBroker::start_anywhere(accounts("coordinator")).unwrap();
        connect(broker.address(), "coordinator").unwrap();
        connect(broker.address(), "stranger").unwrap_err();
    }

    #[test]
    fn without_accounts_everybody_gets_in() {
        let broker = EmbeddedBroker::start_anywhere(Access::Anybody).unwrap();
        connect(broker.address(), "whoever").unwrap();
        assert_eq!(broker.url(), format!("mqtt://127.0.0.1:{}", broker.address().port()));
    }

    #[test]
    fn a_taken_port_and_an_open_address_are_refused() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = EmbeddedBroker::start(taken.local_addr().unwrap(), Access::Anybody).unwrap_err();
        assert!(matches!(refused, BrokerError::Listen { .. }), "{refused}");
        let refused = EmbeddedBroker::start(([0, 0, 0, 0], 0).into(), Access::Anybody).unwrap_err();
        assert!(matches!(refused, BrokerError::NotLoopback { .. }), "{refused}");
    }

    #[test]
    fn passwords_are_long_and_never_the_same() {
        assert_eq!(random_password().len(), 32);
        assert_ne!(random_password(), random_password());
    }
}
