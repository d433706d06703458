//! Explains to the operator why there is no connection: what was found, and what to do.

use crate::config::Broker;
use crate::probe::Protocol;
use rumqttc::{ConnectReturnCode, ConnectionError, StateError};
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};
use std::error::Error;
use std::io;
use std::net::IpAddr;

/// Describes an error and its remedy.
pub(crate) fn explain(broker: &Broker, error: &ConnectionError) -> String {
    let who = &broker.who;
    if let ConnectionError::ConnectionRefused(code) = error {
        return match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                format!("the broker {broker} refused {who}: check user and password, and the broker's access list")
            }
            ConnectReturnCode::BadClientId => format!("the broker {broker} refused the client id of {who}"),
            ConnectReturnCode::ServiceUnavailable => format!("the broker {broker} is up but not available"),
            ConnectReturnCode::RefusedProtocolVersion => {
                format!("the broker {broker} does not speak MQTT 3.1.1: enable that version in the broker")
            }
            ConnectReturnCode::Success => format!("the broker {broker} closed the connection"),
        };
    }
    let timed_out = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
    if matches!(error, ConnectionError::NetworkTimeout)
        || matches!(error, ConnectionError::Io(cause) if timed_out(cause))
    {
        return format!("the broker {broker} does not answer: check its address, and that no firewall blocks it");
    }
    if let Some(found) = tls_error(error) {
        return format!("no TLS connection to {broker}: {}", explain_tls(broker, found));
    }
    if let ConnectionError::Tls(_) = error {
        return format!(
            "no TLS connection to {broker}: {}: check that the port is the broker's TLS port (usually 8883)",
            root_cause(error)
        );
    }
    if let ConnectionError::Io(_) = error {
        return format!(
            "no connection to the broker {broker}: {}: check that it runs and its address",
            root_cause(error)
        );
    }
    if let ConnectionError::MqttState(StateError::ConnectionAborted) = error {
        return format!("the broker {broker} closed the connection");
    }
    format!("the connection to the broker {broker} broke: {}", root_cause(error))
}

/// Returns true if `error` may occur because the broker's port speaks another protocol.
pub(crate) fn may_be_another_protocol(error: &ConnectionError) -> bool {
    if let Some(found) = tls_error(error) {
        return matches!(found, rustls::Error::InvalidMessage(_));
    }
    let cut = |error: &io::Error| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof};
        matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | InvalidData | UnexpectedEof)
    };
    if let ConnectionError::Io(error) = error {
        return cut(error);
    }
    matches!(error, ConnectionError::Tls(_) | ConnectionError::MqttState(_) | ConnectionError::NotConnAck(_))
}

/// Describes a port that does not speak the protocol of the URL.
pub(crate) fn explain_protocol(broker: &Broker, spoken: Protocol) -> String {
    let port = broker.port;
    match spoken {
        Protocol::Tls => format!(
            "the broker {broker} speaks TLS on port {port}: write mqtts:// in place of mqtt://, and set ca_file if your own \
             authority signed its certificate"
        ),
        Protocol::Mqtt => format!(
            "the broker {broker} speaks MQTT without TLS on port {port}: take its TLS port (usually 8883), or write mqtt:// in \
             place of mqtts:// if nobody else can read the network"
        ),
        Protocol::Http => format!(
            "the server at {broker} answers in HTTP: take the broker's MQTT port (usually 1883, or 8883 with TLS); MQTT over \
             WebSockets is not supported"
        ),
    }
}

/// Describes a failed handshake. The text begins with what was found.
fn explain_tls(broker: &Broker, error: &rustls::Error) -> String {
    if let rustls::Error::InvalidCertificate(fault) = error {
        return explain_certificate(broker, fault);
    }
    if let rustls::Error::AlertReceived(alert) = error {
        return explain_alert(broker, *alert);
    }
    if let rustls::Error::InvalidMessage(_) = error {
        return format!(
            "the answer on port {} is not TLS: take the broker's TLS port (usually 8883), or mqtt:// for a port without TLS",
            broker.port
        );
    }
    if let rustls::Error::PeerIncompatible(found) = error {
        return format!(
            "the broker offers no TLS 1.2 or 1.3 that this program speaks ({found:?}): update the broker's TLS settings"
        );
    }
    format!("{error}: look at the broker's log")
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library may add kinds; each has a text of its own")]
fn explain_certificate(broker: &Broker, fault: &CertificateError) -> String {
    let host = &broker.host;
    if let CertificateError::Other(other) = fault {
        return match other.0.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::UnsupportedCertVersion) => format!(
                "the broker's certificate is of X.509 version 1, which is not accepted because it names no host: make it again as \
                 version 3 with the broker's name, {}",
                signing(host)
            ),
            Some(webpki::Error::CaUsedAsEndEntity) => format!(
                "the broker's certificate is an authority certificate (CA:TRUE), as `openssl req -x509` makes it: keep it as the \
                 authority for ca_file, and sign another one with it for the broker, {}",
                signing(host)
            ),
            Some(webpki::Error::EndEntityUsedAsCa) => {
                "the certificate that signed the broker's is not an authority's (CA:TRUE is missing): make the signing certificate \
                 again with -addext basicConstraints=critical,CA:TRUE"
                    .to_owned()
            }
            _ => format!("the broker's certificate is not accepted ({}): make it again, {}", other.0, signing(host)),
        };
    }
    match fault {
        CertificateError::UnknownIssuer => match &broker.ca_file {
            Some(path) => format!(
                "no authority in ca_file {} signed the broker's certificate (UnknownIssuer): put the certificate of the authority \
                 that signed it there; `openssl s_client -connect {host}:{} -showcerts` shows the broker's",
                path.display(),
                broker.port
            ),
            None => "none of the system's authorities signed the broker's certificate (UnknownIssuer): set ca_file to the \
                     certificate of the authority that signed it"
                .to_owned(),
        },
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names = if presented.is_empty() {
                "no host in subjectAltName (the common name CN does not count)".to_owned()
            } else {
                presented.iter().map(|name| plain_name(name)).collect::<Vec<_>>().join(", ")
            };
            format!(
                "the broker's certificate is for {names}, and the URL has {host}: connect to a name that it has, or make it again, {}",
                signing(host)
            )
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the broker's certificate expired on {}, and this machine's clock says {}: renew the certificate, or set the clock \
             (timedatectl set-ntp true)",
            date(*not_after),
            date(*time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the broker's certificate is valid from {} on, and this machine's clock says {}: set the clock (timedatectl \
             set-ntp true)",
            date(*not_before),
            date(*time)
        ),
        CertificateError::BadSignature => {
            "the signature of the broker's certificate is wrong: ca_file may hold an older authority of the same name; take the \
             one that signed the certificate"
                .to_owned()
        }
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => format!(
            "the broker's certificate is not for servers: make it again with extendedKeyUsage=serverAuth or without that \
             extension, {}",
            signing(host)
        ),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => format!(
            "the broker's certificate is signed in an old way (such as SHA-1 or a short key): make it again with -sha256 and a \
             key of 2048 bits or more, {}",
            signing(host)
        ),
        other => format!("the broker's certificate is not accepted ({other}): make it again, {}", signing(host)),
    }
}

/// Returns `hub.lan` for the library's `DnsName("hub.lan")`.
fn plain_name(name: &str) -> &str {
    let inside = name.split_once('(').map_or(name, |(_, inside)| inside);
    inside.trim_end_matches(')').trim_matches('"')
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most alerts have the same remedy, and the library may add some")]
fn explain_alert(broker: &Broker, alert: AlertDescription) -> String {
    let own = match alert {
        _ if !broker.has_certificate => {
            "the broker seems to ask for a client certificate: set client_cert_file and client_key_file"
        }
        AlertDescription::UnknownCA => {
            "the broker does not know the authority that signed client_cert_file: add it to the broker's cafile"
        }
        AlertDescription::CertificateExpired => "client_cert_file has expired by the broker's clock: renew it",
        _ => "check that the broker's authority signed client_cert_file, and look at the broker's log",
    };
    match alert {
        AlertDescription::ProtocolVersion => {
            "the broker speaks an older TLS than 1.2: enable TLS 1.2 or 1.3 in the broker".to_owned()
        }
        AlertDescription::UnrecognisedName => {
            format!("the broker has no certificate for the name {}: connect to a name that it has", broker.host)
        }
        other => format!("the broker refused the handshake ({other:?}): {own}"),
    }
}

/// Returns the command that signs a certificate for `host`.
fn signing(host: &str) -> String {
    let kind = if host.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!(
        "for example with `echo subjectAltName={kind}:{host} > names` and `openssl x509 -req -in broker.csr -CA ca.crt -CAkey ca.key \
         -CAcreateserial -days 365 -extfile names -out broker.crt`"
    )
}

/// Finds the TLS library's error among the causes.
fn tls_error(error: &ConnectionError) -> Option<&rustls::Error> {
    let mut causes = std::iter::successors(Some(error as &(dyn Error + 'static)), |&cause| cause.source());
    causes.find_map(|cause| {
        let inside = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause.downcast_ref().or_else(|| inside.and_then(|inside| inside.downcast_ref()))
    })
}

/// Returns the innermost cause, which the outer ones repeat.
fn root_cause(error: &ConnectionError) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Writes a time as `2026-12-01 14:30 UTC`. The date follows Howard Hinnant's `civil_from_days`.
fn date(time: UnixTime) -> String {
    const DAY_SECONDS: u64 = 24 * 60 * 60;
    const ERA_DAYS: u64 = 146_097;
    let seconds = time.as_secs();
    let days = seconds / DAY_SECONDS + 719_468;
    let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (seconds % DAY_SECONDS / 3600, seconds % 3600 / 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;

    fn broker() -> Broker {
        Broker {
            url: "mqtts://hub.lan".to_owned(),
            who: "user \"ann\"".to_owned(),
            host: "hub.lan".to_owned(),
            port: 8883,
            tls: true,
            ca_file: Some(PathBuf::from("ca.pem")),
            has_certificate: false,
        }
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_767_225_600, "2026-01-01 00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(at(seconds)), shown);
        }
    }

    #[test]
    fn a_certificate_out_of_its_time_is_shown_with_both_times() {
        let fault = CertificateError::NotValidYetContext { time: at(0), not_before: at(1_767_225_600) };
        let said = explain_certificate(&broker(), &fault);
        assert!(said.contains("from 2026-01-01 00:00 UTC on") && said.contains("clock says 1970-01-01"), "{said}");
    }

    #[test]
    fn an_unknown_authority_names_the_file_or_the_system() {
        let said = explain_certificate(&broker(), &CertificateError::UnknownIssuer);
        assert!(said.contains("ca_file ca.pem") && said.contains("-connect hub.lan:8883"), "{said}");
        let said = explain_certificate(&Broker { ca_file: None, ..broker() }, &CertificateError::UnknownIssuer);
        assert!(said.contains("the system's authorities") && said.contains("set ca_file"), "{said}");
    }

    #[test]
    fn an_alert_is_explained_by_the_certificate_that_this_client_has() {
        let said = explain_alert(&broker(), AlertDescription::CertificateRequired);
        assert!(said.contains("set client_cert_file"), "{said}");
        let said = explain_alert(&Broker { has_certificate: true, ..broker() }, AlertDescription::UnknownCA);
        assert!(said.contains("the broker's cafile"), "{said}");
        assert!(explain_alert(&broker(), AlertDescription::ProtocolVersion).contains("older TLS"));
    }

    #[test]
    fn the_command_names_an_address_as_an_address() {
        assert!(signing("10.0.0.7").contains("subjectAltName=IP:10.0.0.7 "));
        assert!(signing("hub.lan").contains("subjectAltName=DNS:hub.lan "));
    }
}
