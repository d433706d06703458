//! The tree of topics, written and parsed in one place.
//!
//! ```text
//! skiff/v1/{fleet}/d/{device}/up/{birth,telemetry,answer,transfer/{id}}   the device writes
//! skiff/v1/{fleet}/d/{device}/dn/{command,transfer/{id}}                  the device reads
//! skiff/v1/{fleet}/all/{presence,versions}                                every device reads
//! ```
//!
//! The `v1` is the version of this tree. Each message has its own version, in its header. Messages under `all/` are written in
//! the oldest version that a device may speak, so that every device can read them. The exception is `all/versions`: it tells
//! devices from version 3 on which versions the coordinator speaks.

use crate::transfer::TransferId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A name that can be one level of a topic: 1 to 64 of `A-Z a-z 0-9 _ -`. Clones share the text, because a fleet has thousands of them.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                if is_name(&text) { Ok(Self(text.into())) } else { Err(BadName { text }) }
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// Name of a fleet: the devices of one coordinator.
    FleetId
}
name_type! {
    /// Name of a device, and its user name at the broker.
    DeviceId
}

/// A name that cannot be part of a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a name: use 1 to 64 of A-Z a-z 0-9 _ -")]
pub struct BadName {
    /// Refused text.
    pub text: String,
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Topic in the tree of one fleet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topic {
    /// Retained: [`crate::messages::Birth`] or [`crate::messages::Gone`].
    Birth(DeviceId),
    /// [`crate::messages::Telemetry`].
    Telemetry(DeviceId),
    /// [`crate::messages::Answer`].
    Answer(DeviceId),
    /// Messages of a transfer that the device sends.
    UpTransfer(DeviceId, TransferId),
    /// [`crate::messages::Command`].
    Command(DeviceId),
    /// Messages of a transfer that the coordinator sends.
    DownTransfer(DeviceId, TransferId),
    /// Retained: [`crate::messages::Presence`].
    Presence,
    /// Retained: [`crate::messages::Announcement`].
    Versions,
}

impl Topic {
    /// Returns the topic as text, for `fleet`.
    #[must_use]
    pub fn text(&self, fleet: &FleetId) -> String {
        let root = format!("skiff/v1/{fleet}");
        match self {
            Self::Birth(device) => format!("{root}/d/{device}/up/birth"),
            Self::Telemetry(device) => format!("{root}/d/{device}/up/telemetry"),
            Self::Answer(device) => format!("{root}/d/{device}/up/answer"),
            Self::UpTransfer(device, id) => format!("{root}/d/{device}/up/transfer/{id}"),
            Self::Command(device) => format!("{root}/d/{device}/dn/command"),
            Self::DownTransfer(device, id) => format!("{root}/d/{device}/dn/transfer/{id}"),
            Self::Presence => format!("{root}/all/presence"),
            Self::Versions => format!("{root}/all/versions"),
        }
    }

    /// Reads a topic of `fleet`; returns `None` for any other text.
    #[must_use]
    pub fn parse(fleet: &FleetId, text: &str) -> Option<Self> {
        let rest = text.strip_prefix("skiff/v1/")?.strip_prefix(fleet.as_str())?.strip_prefix('/')?;
        match rest {
            "all/presence" => return Some(Self::Presence),
            "all/versions" => return Some(Self::Versions),
            _ => {}
        }
        let (device, rest) = rest.strip_prefix("d/")?.split_once('/')?;
        let device: DeviceId = device.parse().ok()?;
        match rest {
            "up/birth" => Some(Self::Birth(device)),
            "up/telemetry" => Some(Self::Telemetry(device)),
            "up/answer" => Some(Self::Answer(device)),
            "dn/command" => Some(Self::Command(device)),
            _ => {
                if let Some(id) = rest.strip_prefix("up/transfer/") {
                    Some(Self::UpTransfer(device, TransferId::parse(id)?))
                } else {
                    let id = rest.strip_prefix("dn/transfer/")?;
                    Some(Self::DownTransfer(device, TransferId::parse(id)?))
                }
            }
        }
    }
}

/// Returns the topics to which an agent subscribes.
#[must_use]
pub fn device_filters(fleet: &FleetId, device: &DeviceId) -> Vec<String> {
    vec![format!("skiff/v1/{fleet}/d/{device}/dn/#"), format!("skiff/v1/{fleet}/all/#")]
}

/// Returns the topics to which the coordinator subscribes.
#[must_use]
pub fn coordinator_filters(fleet: &FleetId) -> Vec<String> {
    vec![format!("skiff/v1/{fleet}/d/+/up/#")]
}

/// Returns the topics to which the coordinator also subscribes if the broker lets it: its own presence, where it sees another
/// coordinator of the fleet.
#[must_use]
pub fn coordinator_optional_filters(fleet: &FleetId) -> Vec<String> {
    vec![Topic::Presence.text(fleet)]
}
