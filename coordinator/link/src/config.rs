//! What a link is given, checked before the first packet.

use crate::prompt::Prompt;
use crate::{Publication, QUEUE};
use rumqttc::{AsyncClient, EventLoop, LastWill, MqttOptions, TlsConfiguration, Transport, ValidatedTopicFilter};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use url::Url;

/// The largest packet that is read. Far above the protocol's messages, so that an oversized one is a message to refuse
/// and not a broken connection.
const MAX_PACKET_BYTES: usize = 1 << 20;
/// Publications that the broker has not acknowledged yet.
const IN_FLIGHT: u16 = 64;
/// How often a silent connection is checked; the broker publishes the last will after one and a half times that.
const KEEP_ALIVE_S: u16 = 15;
/// For the whole handshake, and for one message on its way out: 64 KiB take 26 s at 20 kbit/s.
const NETWORK_TIMEOUT_S: u64 = 30;

/// Which broker, as whom, and for what.
#[derive(Clone, Default)]
pub struct LinkConfig {
    /// `mqtt://host:1883` or `mqtts://host:8883` (the ports may be left out), with `user:password@` where wanted.
    pub url: String,
    /// Unique at the broker: a second connection with the same one ends the first.
    pub client_id: String,
    /// In place of the URL's.
    pub user: Option<String>,
    /// In place of the URL's.
    pub password: Option<String>,
    /// Certificates (PEM) that sign the broker's, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate (PEM), with those between it and the broker's root.
    pub client_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key_file: Option<PathBuf>,
    /// What the broker publishes when the connection is cut without goodbye.
    pub will: Option<Publication>,
    /// Topic filters.
    pub subscriptions: Vec<String>,
}

impl fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkConfig")
            .field("url", &without_password(&self.url))
            .field("client_id", &self.client_id)
            .field("user", &self.user)
            .field("ca_file", &self.ca_file)
            .field("client_cert_file", &self.client_cert_file)
            .field("subscriptions", &self.subscriptions)
            .finish_non_exhaustive()
    }
}

/// Why a link cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Not an URL of a broker.
    #[error("{url:?} is not the URL of a broker: {problem}; write mqtt://host:1883 or mqtts://host:8883")]
    BadUrl {
        /// The URL, its password left out.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting that goes only with another.
    #[error("{setting} is set, but {missing}")]
    Incomplete {
        /// The setting.
        setting: &'static str,
        /// What else must be, in words.
        missing: &'static str,
    },
    /// A file of certificates or keys.
    #[error("reading {setting} {}: it must be a readable PEM file holding {holding}", path.display())]
    BadFile {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        holding: &'static str,
        /// Why it could not be read.
        source: PemError,
    },
    /// The system has no certificates to check the broker's with.
    #[error(
        "the system has no root certificates to check {url} with: install ca-certificates, or name the broker's own in \
         ca_file"
    )]
    NoRoots {
        /// The broker.
        url: String,
    },
    /// The client's certificate and its key do not do.
    #[error("using client_cert_file {} with client_key_file {}", certificate.display(), key.display())]
    BadClientCertificate {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// A topic filter that MQTT does not allow.
    #[error("{filter:?} is not a topic filter")]
    BadSubscription {
        /// The filter.
        filter: String,
    },
}

/// The broker in messages to the operator.
pub(crate) struct Broker {
    url: String,
    /// "user x" or "a client without a user name".
    pub(crate) who: String,
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl LinkConfig {
    /// Turns the settings into a client that has not connected yet.
    pub(crate) fn connect_options(&self) -> Result<(Broker, AsyncClient, EventLoop), LinkError> {
        let address = Address::parse(&self.url)?;
        let user = self.user.clone().or(address.user);
        let password = self.password.clone().or(address.password);
        if password.is_some() && user.is_none() {
            return Err(LinkError::Incomplete { setting: "password", missing: "no user to go with it" });
        }
        if let Some(filter) = self.subscriptions.iter().find(|f| ValidatedTopicFilter::new(f.as_str()).is_err()) {
            return Err(LinkError::BadSubscription { filter: filter.clone() });
        }

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
        options.set_transport(self.transport(address.tls)?);
        options.set_socket_connector(|host, network| async move {
            rumqttc::default_socket_connect(host, network).await.map(Prompt)
        });

        let (client, mut connection) = AsyncClient::builder(options).capacity(QUEUE).build();
        let mut network = connection.network_options();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(NETWORK_TIMEOUT_S);
        connection.set_network_options(network);

        let who = user.map_or_else(|| "a client without a user name".to_owned(), |user| format!("user {user:?}"));
        Ok((Broker { url: without_password(&self.url), who }, client, connection))
    }

    fn transport(&self, tls: bool) -> Result<Transport, LinkError> {
        if tls {
            let config = self.tls()?;
            return Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))));
        }
        let files = [
            ("ca_file", &self.ca_file),
            ("client_cert_file", &self.client_cert_file),
            ("client_key_file", &self.client_key_file),
        ];
        match files.iter().find(|(_, file)| file.is_some()) {
            None => Ok(Transport::tcp()),
            Some((setting, _)) => Err(LinkError::Incomplete {
                setting,
                missing: "the URL is not mqtts://, so nothing would be encrypted",
            }),
        }
    }

    fn tls(&self) -> Result<ClientConfig, LinkError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(self.roots()?);
        match (&self.client_cert_file, &self.client_key_file) {
            (None, None) => Ok(config.with_no_client_auth()),
            (Some(_), None) => {
                Err(LinkError::Incomplete { setting: "client_cert_file", missing: "client_key_file is not" })
            }
            (None, Some(_)) => {
                Err(LinkError::Incomplete { setting: "client_key_file", missing: "client_cert_file is not" })
            }
            (Some(certificate), Some(key)) => {
                let certificates = certificates("client_cert_file", certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|source| LinkError::BadFile {
                    setting: "client_key_file",
                    path: key.clone(),
                    holding: "an unencrypted private key",
                    source,
                })?;
                config.with_client_auth_cert(certificates, private).map_err(|source| LinkError::BadClientCertificate {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    source,
                })
            }
        }
    }

    fn roots(&self) -> Result<RootCertStore, LinkError> {
        let found = match &self.ca_file {
            Some(path) => certificates("ca_file", path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found);
        if !roots.is_empty() {
            return Ok(roots);
        }
        Err(match &self.ca_file {
            Some(path) => bad_certificates("ca_file", path, PemError::NoItemsFound),
            None => LinkError::NoRoots { url: without_password(&self.url) },
        })
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(bad_certificates(setting, path, PemError::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(source) => Err(bad_certificates(setting, path, source)),
    }
}

fn bad_certificates(setting: &'static str, path: &Path, source: PemError) -> LinkError {
    LinkError::BadFile { setting, path: path.to_owned(), holding: "certificates", source }
}

/// An URL taken apart.
#[derive(PartialEq, Debug)]
struct Address {
    tls: bool,
    host: String,
    port: u16,
    user: Option<String>,
    password: Option<String>,
}

impl Address {
    fn parse(text: &str) -> Result<Self, LinkError> {
        let bad = |problem: &str| LinkError::BadUrl { url: without_password(text), problem: problem.to_owned() };
        let url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
        let tls = match url.scheme() {
            "mqtt" => false,
            "mqtts" => true,
            scheme => return Err(bad(&format!("{scheme}:// is not spoken here"))),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("nothing may follow the port"));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| bad("the host is missing"))?;
        if tls && host.starts_with('[') {
            return Err(bad("TLS needs a name or an IPv4 address"));
        }
        let decoded = |part: &str| percent_decoded(part).ok_or_else(|| bad("user or password is not UTF-8"));
        let user = Some(decoded(url.username())?).filter(|user| !user.is_empty());
        let password = url.password().map(decoded).transpose()?;
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: url.port().unwrap_or(if tls { 8883 } else { 1883 }),
            user,
            password,
        })
    }
}

/// `%41` -> `A`; a lone `%` stays.
fn percent_decoded(text: &str) -> Option<String> {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let Some((&first, after)) = rest.split_first() {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        if let [b'%', high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            decoded.push(high * 16 + low);
            rest = after;
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    String::from_utf8(decoded).ok()
}

/// The URL as it may be shown.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (&url[..scheme.len() + 3], rest));
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
    format!("{scheme}{address}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_url_gives_host_port_and_credentials() {
        let plain = Address::parse("mqtt://broker.lan").unwrap();
        assert_eq!((plain.tls, plain.host.as_str(), plain.port, plain.user), (false, "broker.lan", 1883, None));
        let full = Address::parse("mqtts://ann:p%40ss%2fw@10.0.0.7:9000/").unwrap();
        assert_eq!((full.tls, full.host.as_str(), full.port), (true, "10.0.0.7", 9000));
        assert_eq!((full.user.as_deref(), full.password.as_deref()), (Some("ann"), Some("p@ss/w")));
        assert_eq!(Address::parse("mqtts://broker").unwrap().port, 8883);
    }

    #[test]
    fn a_bad_url_is_named_without_its_password() {
        for (url, says) in [
            ("http://ann:secret@host", "http://"),
            ("mqtt://ann:secret@", "host"),
            ("mqtt://ann:secret@host:99999", "port"),
            ("mqtt://ann:secret@host/topic", "follow"),
            ("host:1883", "not spoken"),
            ("", "relative"),
            ("mqtts://[::1]", "name"),
        ] {
            let message = Address::parse(url).unwrap_err().to_string();
            assert!(message.contains(says) && message.contains("mqtt://host:1883"), "{url}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let refused = |config: LinkConfig| config.connect_options().err().unwrap().to_string();
        let base = |url: &str| LinkConfig { url: url.into(), client_id: "c".into(), ..LinkConfig::default() };
        let missing = Some(PathBuf::from("/no/such/ca.pem"));
        let message = refused(LinkConfig { ca_file: missing.clone(), ..base("mqtts://h") });
        assert!(message.contains("ca_file /no/such/ca.pem") && message.contains("PEM"), "{message}");
        let message = refused(LinkConfig { ca_file: missing.clone(), ..base("mqtt://h") });
        assert!(message.contains("mqtts://"), "{message}");
        let message = refused(LinkConfig { password: Some("p".into()), ..base("mqtt://h") });
        assert!(message.contains("no user"), "{message}");
        let message = refused(LinkConfig { subscriptions: vec!["a/#/b".into()], ..base("mqtt://h") });
        assert!(message.contains("a/#/b"), "{message}");
    }
}
