//! The configuration of a link, checked before the first packet.

use crate::address::without_password;
use crate::error::LinkError;
use crate::prompt::Prompt;
use crate::settings::{BrokerSettings, Credentials};
use crate::{Publication, QUEUE};
use rumqttc::{AsyncClient, EventLoop, LastWill, MqttOptions, ValidatedTopicFilter};
use std::fmt;
use std::path::PathBuf;

/// Maximum size of a packet that is read, in bytes. It is far above the protocol's limit, so that an oversized message is
/// refused and does not break the connection.
const MAX_PACKET_BYTES: usize = 1 << 20;
/// Maximum number of publications that the broker has not acknowledged yet.
const IN_FLIGHT: u16 = 64;
/// Seconds after which a silent connection is checked. The broker publishes the last will after one and a half times this time.
const KEEP_ALIVE_S: u16 = 15;
/// Maximum time in seconds for the whole handshake, and for sending one message: 64 KiB take 26 s at 20 kbit/s.
const NETWORK_TIMEOUT_S: u64 = 30;

/// The configuration of one link.
#[derive(Clone, Default, Debug)]
pub struct LinkConfig {
    /// Address and credentials of the broker.
    pub broker: BrokerSettings,
    /// Name of this client, unique at the broker: a second connection with the same name ends the first.
    pub client_id: String,
    /// The message that the broker publishes if the connection is cut without a goodbye.
    pub will: Option<Publication>,
    /// Topic filters.
    pub subscriptions: Vec<String>,
    /// Topic filters that the broker may refuse.
    pub optional_subscriptions: Vec<String>,
}

/// Names of the broker and of this client, for messages to the operator.
pub(crate) struct Broker {
    pub(crate) url: String,
    /// "user x" or "a client without a user name".
    pub(crate) who: String,
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) ca_file: Option<PathBuf>,
    /// True if this client has a certificate of its own.
    pub(crate) has_certificate: bool,
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl LinkConfig {
    /// Returns all topic filters, the optional ones last.
    pub(crate) fn filters(&self) -> impl Iterator<Item = &String> {
        self.subscriptions.iter().chain(&self.optional_subscriptions)
    }

    /// Turns the configuration into a client that has not connected yet.
    pub(crate) fn connect_options(&self) -> Result<(Broker, AsyncClient, EventLoop), LinkError> {
        self.broker.check()?;
        if let Some(filter) = self.filters().find(|f| ValidatedTopicFilter::new(f.as_str()).is_err()) {
            return Err(LinkError::BadSubscription { filter: filter.clone() });
        }
        let address = self.broker.address()?;
        let Credentials { user, password } = self.broker.credentials()?;

        let mut options = MqttOptions::new(self.client_id.clone(), (address.host.clone(), address.port));
        options
            .set_clean_session(true)
            .set_keep_alive(KEEP_ALIVE_S)
            .set_inflight(IN_FLIGHT)
            .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
        match (&user, password) {
            (Some(user), Some(password)) => options.set_credentials(user.clone(), password),
            (Some(user), None) => options.set_username(user.clone()),
            (None, _) => &mut options,
        };
        if let Some(Publication { topic, payload, qos, retain }) = self.will.clone() {
            options.set_last_will(LastWill::new(topic, payload, qos.into(), retain));
        }
        options.set_transport(self.broker.transport()?);
        options.set_socket_connector(|host, _| async move { Prompt::connect(&host).await });

        let (client, mut connection) = AsyncClient::builder(options).capacity(QUEUE).build();
        let mut network = connection.network_options();
        network.set_connection_timeout(NETWORK_TIMEOUT_S);
        connection.set_network_options(network);

        let who = user.map_or_else(|| "a client without a user name".to_owned(), |user| format!("user {user:?}"));
        let broker = Broker {
            url: without_password(&self.broker.url),
            who,
            tls: address.tls,
            host: address.host,
            port: address.port,
            ca_file: self.broker.ca_file.clone(),
            has_certificate: self.broker.client_cert_file.is_some(),
        };
        Ok((broker, client, connection))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_filter_that_mqtt_does_not_allow_is_named() {
        let config = LinkConfig { subscriptions: vec!["a/#/b".into()], ..LinkConfig::default() };
        assert!(config.connect_options().err().unwrap().to_string().contains("a/#/b"));
    }
}
