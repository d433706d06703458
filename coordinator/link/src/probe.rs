//! Finds out which protocol a port speaks, for a URL with the wrong scheme or port. A probe sends no name and no password.

use crate::config::Broker;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Maximum time of a probe.
const PATIENCE: Duration = Duration::from_secs(3);

/// A CONNECT packet of MQTT 3.1.1 with a clean session and no client name.
const CONNECT: &[u8] = b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";

/// A protocol that a port speaks instead of the expected one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    Tls,
    Mqtt,
    Http,
}

/// Connects to the broker's port and speaks the protocol that the URL does not name: TLS for mqtt://, plain MQTT for mqtts://.
/// Returns the protocol of the answer if it differs from the URL's.
pub(crate) async fn another_protocol(broker: &Broker) -> Option<Protocol> {
    let greeting = if broker.tls { CONNECT.to_vec() } else { client_hello(&broker.host)? };
    timeout(PATIENCE, answer(broker, &greeting)).await.ok().flatten()
}

async fn answer(broker: &Broker, greeting: &[u8]) -> Option<Protocol> {
    let host = broker.host.trim_start_matches('[').trim_end_matches(']');
    let mut socket = TcpStream::connect((host, broker.port)).await.ok()?;
    socket.write_all(greeting).await.ok()?;
    let mut start = [0; 4];
    socket.read_exact(&mut start).await.ok()?;
    match start {
        // The record of a handshake or of an alert, of any version of TLS.
        [0x15 | 0x16, 3, ..] if !broker.tls => Some(Protocol::Tls),
        // CONNACK has two bytes after its header.
        [0x20, 2, ..] if broker.tls => Some(Protocol::Mqtt),
        [b'H', b'T', b'T', b'P'] => Some(Protocol::Http),
        _ => None,
    }
}

/// Returns the first message of a TLS client.
fn client_hello(host: &str) -> Option<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).or_else(|_| ServerName::try_from("localhost")).ok()?;
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), name).ok()?.write_tls(&mut hello).ok()?;
    Some(hello)
}
