//! Parses the URL of a broker.

use crate::error::LinkError;
use url::Url;

/// The parts of a broker's URL.
#[derive(PartialEq, Debug)]
pub(crate) struct Address {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

impl Address {
    /// Parses `text`.
    pub(crate) fn parse(text: &str) -> Result<Self, LinkError> {
        let bad = |problem: &str| LinkError::BadUrl { url: without_password(text), problem: problem.to_owned() };
        let url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
        let tls = match url.scheme() {
            "mqtt" => false,
            "mqtts" => true,
            scheme => return Err(bad(&format!("{scheme}:// is not supported"))),
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

/// Replaces `%41` by `A`; a lone `%` stays.
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

/// Returns `url` without user and password, as it may be shown.
pub fn without_password(url: &str) -> String {
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
            ("host:1883", "not supported"),
            ("", "relative"),
            ("mqtts://[::1]", "name"),
        ] {
            let message = Address::parse(url).unwrap_err().to_string();
            assert!(message.contains(says) && message.contains("mqtt://host:1883"), "{url}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
