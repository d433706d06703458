//! The settings for the connection to a broker, which the coordinator and the agents share.

use crate::address::{Address, without_password};
use crate::error::LinkError;
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Address and credentials of a broker. Table `[broker]` of `coordinator.toml`.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerSettings {
    /// Address: `mqtt://host:1883` or `mqtts://host:8883`; the port is optional, and `user:password@` may stand before the
    /// host. Default: [`BrokerSettings::DEFAULT_URL`].
    pub url: String,
    /// User name; takes precedence over the user name in the URL.
    pub user: Option<String>,
    /// Password; takes precedence over the password in the URL.
    pub password: Option<Secret>,
    /// File whose first line is the password. It is read when a link is opened.
    pub password_file: Option<PathBuf>,
    /// Certificate authorities (PEM) for the broker's certificate. Default: the system's.
    pub ca_file: Option<PathBuf>,
    /// This client's own certificate (PEM), with the intermediate certificates up to the broker's root.
    pub client_cert_file: Option<PathBuf>,
    /// Private key (PEM) of the client's certificate.
    pub client_key_file: Option<PathBuf>,
}

/// A text that is never logged.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self {
            url: Self::DEFAULT_URL.to_owned(),
            user: None,
            password: None,
            password_file: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
        }
    }
}

impl fmt::Debug for BrokerSettings {
    /// Formats the settings without any password, not even the one in the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerSettings")
            .field("url", &without_password(&self.url))
            .field("user", &self.user)
            .field("ca_file", &self.ca_file)
            .field("client_cert_file", &self.client_cert_file)
            .finish_non_exhaustive()
    }
}

/// User name and password for the broker.
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

impl BrokerSettings {
    /// Address of a broker on the same machine.
    pub const DEFAULT_URL: &str = "mqtt://localhost:1883";

    /// Checks the settings without reading any file.
    ///
    /// # Errors
    /// [`LinkError`] names the setting and the remedy.
    pub fn check(&self) -> Result<(), LinkError> {
        let address = self.address()?;
        if self.password.is_some() && self.password_file.is_some() {
            return Err(LinkError::TwoPasswords);
        }
        let has_password = self.password.is_some() || self.password_file.is_some() || address.password.is_some();
        if has_password && self.user.is_none() && address.user.is_none() {
            return Err(LinkError::Incomplete { setting: "password", missing: "no user to go with it" });
        }
        if !address.tls {
            let files = [
                ("ca_file", &self.ca_file),
                ("client_cert_file", &self.client_cert_file),
                ("client_key_file", &self.client_key_file),
            ];
            let missing = "the URL is not mqtts://, so nothing would be encrypted";
            return match files.iter().find(|(_, file)| file.is_some()) {
                None => Ok(()),
                Some((setting, _)) => Err(LinkError::Incomplete { setting, missing }),
            };
        }
        match (&self.client_cert_file, &self.client_key_file) {
            (Some(_), None) => {
                Err(LinkError::Incomplete { setting: "client_cert_file", missing: "client_key_file is not" })
            }
            (None, Some(_)) => {
                Err(LinkError::Incomplete { setting: "client_key_file", missing: "client_cert_file is not" })
            }
            (None, None) | (Some(_), Some(_)) => Ok(()),
        }
    }

    pub(crate) fn address(&self) -> Result<Address, LinkError> {
        Address::parse(&self.url)
    }

    /// Returns the files with secrets that every user of the machine can read: the password and the private key.
    #[must_use]
    pub fn exposed(&self) -> Vec<&Path> {
        let is_exposed = |path: &&Path| path.metadata().is_ok_and(|about| about.permissions().mode() & 0o007 != 0);
        [&self.password_file, &self.client_key_file]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .filter(is_exposed)
            .collect()
    }

    /// Returns the user and the password to connect with. Reads the password's file if one is set.
    pub(crate) fn credentials(&self) -> Result<Credentials, LinkError> {
        let address = self.address()?;
        let set = match (&self.password, &self.password_file) {
            (Some(password), _) => Some(password.reveal().to_owned()),
            (None, Some(path)) => Some(read_password(path)?),
            (None, None) => None,
        };
        Ok(Credentials { user: self.user.clone().or(address.user), password: set.or(address.password) })
    }

    /// Returns the transport to the broker: TCP or TLS. Reads the certificates that the settings name.
    pub(crate) fn transport(&self) -> Result<Transport, LinkError> {
        if !self.address()?.tls {
            return Ok(Transport::tcp());
        }
        Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(self.tls()?))))
    }

    fn tls(&self) -> Result<ClientConfig, LinkError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(self.roots()?);
        let (Some(certificate), Some(key)) = (&self.client_cert_file, &self.client_key_file) else {
            return Ok(config.with_no_client_auth());
        };
        let certificates = certificates("client_cert_file", certificate)?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|source| LinkError::BadFile {
            setting: "client_key_file",
            path: key.clone(),
            holding: "an unencrypted private key",
            advice: advice(key),
            source,
        })?;
        config.with_client_auth_cert(certificates, private).map_err(|source| LinkError::BadClientCertificate {
            certificate: certificate.clone(),
            key: key.clone(),
            source,
        })
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

/// Returns the first line of the file at `path`.
fn read_password(path: &Path) -> Result<String, LinkError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| LinkError::BadPasswordFile { path: path.to_owned(), source })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
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
    LinkError::BadFile { setting, path: path.to_owned(), holding: "certificates", advice: advice(path), source }
}

/// Looks at an unexpected file. Returns the end of a sentence that says what the file holds and what to do.
fn advice(path: &Path) -> &'static str {
    /// Number of bytes that are read; certificates in text form may have a long text before them.
    const LOOKED_AT: u64 = 64 << 10;
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LOOKED_AT).read_to_end(&mut start));
    if read.is_err() {
        return "";
    }
    let contents = String::from_utf8_lossy(&start);
    let hints = [
        (
            "BEGIN ENCRYPTED PRIVATE KEY",
            "; this key is encrypted: write it without a passphrase with `openssl pkey -in FILE -out NEW`",
        ),
        (
            "Proc-Type: 4,ENCRYPTED",
            "; this key is encrypted: write it without a passphrase with `openssl pkey -in FILE -out NEW`",
        ),
        (
            "BEGIN CERTIFICATE REQUEST",
            "; this is a request that nobody has signed yet: name the certificate made from it",
        ),
        ("PRIVATE KEY", "; this is a private key: name the certificate that belongs to it"),
        ("BEGIN CERTIFICATE", "; this is a certificate: name the key that belongs to it"),
    ];
    if start.starts_with(&[0x30, 0x82]) {
        return "; this is a file in DER or PKCS #12: convert it with `openssl x509 -inform DER -in FILE -out NEW` or \
                `openssl pkcs12 -in FILE -nodes -out NEW`";
    }
    hints.into_iter().find(|(mark, _)| contents.contains(mark)).map_or("", |(_, advice)| advice)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn at(url: &str) -> BrokerSettings {
        BrokerSettings { url: url.to_owned(), ..BrokerSettings::default() }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let refused = |settings: BrokerSettings| settings.check().unwrap_err().to_string();
        let some = || Some(PathBuf::from("x.pem"));
        let message = refused(BrokerSettings { ca_file: some(), ..at("mqtt://h") });
        assert!(message.contains("ca_file") && message.contains("mqtts://"), "{message}");
        let message = refused(BrokerSettings { client_cert_file: some(), ..at("mqtts://h") });
        assert!(message.contains("client_key_file is not"), "{message}");
        let message = refused(BrokerSettings { client_key_file: some(), ..at("mqtts://h") });
        assert!(message.contains("client_cert_file is not"), "{message}");
        let message = refused(BrokerSettings { password: Some("p".into()), ..at("mqtt://h") });
        assert!(message.contains("no user"), "{message}");
        let twice =
            BrokerSettings { password: Some("p".into()), password_file: Some("f".into()), ..at("mqtt://ann@h") };
        assert!(refused(twice).contains("keep the file"));
        assert!(refused(at("http://h")).contains("http://"));
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "secret").unwrap();
        let settings = BrokerSettings { password_file: Some(path.clone()), ..at("mqtt://ann@h") };
        for (mode, exposed) in [(0o644, true), (0o640, false), (0o600, false), (0o602, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(settings.exposed().first().copied(), exposed.then_some(path.as_path()), "{mode:o}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let missing = Some(PathBuf::from("/no/such/file"));
        let tls = BrokerSettings { ca_file: missing.clone(), ..at("mqtts://h") };
        let message = tls.transport().err().unwrap().to_string();
        assert!(message.contains("ca_file /no/such/file") && message.contains("PEM"), "{message}");
        let message = BrokerSettings { password_file: missing, ..at("mqtt://ann@h") };
        let message = message.credentials().err().unwrap().to_string();
        assert_eq!(message, "reading password_file /no/such/file");
    }

    #[test]
    fn a_file_of_another_kind_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for (contents, says) in [
            (b"\x30\x82\x03\x0f\x30".as_slice(), "in DER"),
            (b"-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n", "this is a private key"),
            (
                b"-----BEGIN CERTIFICATE REQUEST-----\nMC4=\n-----END CERTIFICATE REQUEST-----\n",
                "nobody has signed yet",
            ),
            (b"hello", "holding certificates"),
        ] {
            std::fs::write(&path, contents).unwrap();
            let tls = BrokerSettings { ca_file: Some(path.clone()), ..at("mqtts://h") };
            let message = tls.transport().err().unwrap().to_string();
            assert!(message.contains(says), "{message}");
        }
        let certificate = b"-----BEGIN CERTIFICATE-----\nMC4=\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, certificate).unwrap();
        assert!(advice(&path).contains("name the key"));
        let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMC4=\n-----END ENCRYPTED PRIVATE KEY-----\n";
        std::fs::write(&path, encrypted).unwrap();
        assert!(advice(&path).contains("openssl pkey"));
    }

    #[test]
    fn settings_go_before_the_url_and_a_password_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "secret\nrest\n").unwrap();
        let both = |settings: BrokerSettings| {
            let Credentials { user, password } = settings.credentials().unwrap();
            (user.unwrap(), password.unwrap())
        };
        let url = "mqtt://ann:old@h";
        assert_eq!(both(at(url)), ("ann".to_owned(), "old".to_owned()));
        let from_file = BrokerSettings { password_file: Some(path), ..at(url) };
        assert_eq!(both(from_file), ("ann".to_owned(), "secret".to_owned()));
        let set = BrokerSettings { user: Some("bea".into()), password: Some("new".into()), ..at(url) };
        assert_eq!(both(set), ("bea".to_owned(), "new".to_owned()));
    }

    #[test]
    fn a_password_is_never_shown() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "***");
        let settings = BrokerSettings { password: Some("hunter2".into()), ..at("mqtt://u:hunter2@h") };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
