//! The reasons why a link cannot be opened.

use rustls::pki_types::pem::Error as PemError;
use std::io;
use std::path::PathBuf;

/// A reason why a link cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The URL is not the URL of a broker.
    #[error("{url:?} is not the URL of a broker: {problem}; write mqtt://host:1883 or mqtts://host:8883")]
    BadUrl {
        /// The URL without its password.
        url: String,
        /// Fault of the URL.
        problem: String,
    },
    /// A setting needs another setting, which is missing.
    #[error("{setting} is set, but {missing}")]
    Incomplete {
        /// The setting.
        setting: &'static str,
        /// The missing setting, in words.
        missing: &'static str,
    },
    /// A file of certificates or keys cannot be used.
    #[error("reading {setting} {}: it must be a readable PEM file holding {holding}{advice}", path.display())]
    BadFile {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// The expected content.
        holding: &'static str,
        /// A description of the content that was found, and the remedy; may be empty.
        advice: &'static str,
        /// The error of reading or parsing the file.
        source: PemError,
    },
    /// The password is set twice.
    #[error("password and password_file are both set: keep the file")]
    TwoPasswords,
    /// The password's file cannot be read.
    #[error("reading password_file {}", path.display())]
    BadPasswordFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system has no root certificates with which to check the broker's certificate.
    #[error(
        "the system has no root certificates to check {url} with: install ca-certificates, or name the broker's own in \
         ca_file"
    )]
    NoRoots {
        /// The broker.
        url: String,
    },
    /// The client's certificate and its key cannot be used together.
    #[error("using client_cert_file {} with client_key_file {}", certificate.display(), key.display())]
    BadClientCertificate {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The error of the TLS library.
        source: rustls::Error,
    },
    /// A topic filter that MQTT does not allow.
    #[error("{filter:?} is not a topic filter")]
    BadSubscription {
        /// The filter.
        filter: String,
    },
}
