//! Requests of operators, and the coordinator's replies.

use crate::changes::Changes;
use crate::details::DeviceDetails;
use crate::names::RunName;
use crate::policy::{Change, Policy, PolicyView};
use crate::progress::Progress;
use crate::removal::Removal;
use crate::version::Versions;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use skiff_protocol::DeviceId;
use std::fmt;

/// A request of an operator.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Return the current state. Reply: [`Reply::Progress`].
    Progress,
    /// Return the current state and then its changes. Replies: [`Reply::Changes`], one after another; in version 1,
    /// [`Reply::Progress`].
    Watch,
    /// Start a run. Reply: [`Reply::RunStarted`].
    StartRun(StartRun),
    /// Stop the current run. Reply: [`Reply::Done`].
    StopRun,
    /// Stop the run with this id, if it is the current one. Reply: [`Reply::Done`].
    StopOne(String),
    /// Delete the ended run with this id. Reply: [`Reply::Deleted`].
    DeleteRun(String),
    /// Return what is known about a device. Reply: [`Reply::Device`].
    ShowDevice(DeviceId),
    /// Remove a device from the fleet. Reply: [`Reply::DeviceRemoved`].
    RemoveDevice(RemoveDevice),
    /// Return the sharing policy. Reply: [`Reply::Policy`].
    ShowPolicy,
    /// Return what another policy would change, without setting it. Reply: [`Reply::PolicyChanges`].
    ComparePolicy(Policy),
    /// Set another policy, for the current run and all later ones. Reply: [`Reply::PolicyChanges`].
    SetPolicy(Policy),
}

/// A run to start. In JSON it is the table of settings, with the key `name` if the run gets a name.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StartRun {
    /// Name of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<RunName>,
    /// Settings that differ from the configuration.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// A device to remove from the fleet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveDevice {
    /// The device.
    pub device: DeviceId,
    /// Operator who removes it.
    pub by: String,
    /// Reason; may be empty.
    #[serde(default)]
    pub reason: String,
    /// Whether the device is removed although it is online.
    #[serde(default)]
    pub force: bool,
}

/// The reply to a [`Request`]. Its JSON holds only the value, because the request decides its type.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// State of the fleet and of the run.
    Progress(Box<Progress>),
    /// Change of that state.
    Changes(Box<Changes>),
    /// Id of the run that was started.
    RunStarted(String),
    /// The request was carried out.
    Done(()),
    /// Blobs that were removed.
    Deleted(Deleted),
    /// A device of the fleet.
    Device(Box<DeviceDetails>),
    /// The removal of a device.
    DeviceRemoved(Removal),
    /// The sharing policy.
    Policy(PolicyView),
    /// Effect of the other policy on each known device.
    PolicyChanges(Vec<Change>),
}

/// Blobs that were removed with a deleted run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Number of removed weights and updates.
    pub removed_blobs: u64,
    /// Size of the removed blobs, in bytes.
    pub removed_bytes: u64,
}

/// A line of a reply: the reply, or the reason why the request failed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// The request was carried out.
    Ok(T),
    /// The request failed for this reason.
    Error(String),
}

/// A request as it is sent, with the versions of replies that its sender reads.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Versions of replies that the sender reads.
    pub versions: Versions,
    /// The request.
    pub request: Request,
}

/// A reason why a line is not a request.
#[derive(Debug)]
pub enum BadRequest {
    /// The line cannot be read.
    Unreadable(serde_json::Error),
    /// The two programs have no version in common.
    Version(Versions),
}

impl Envelope {
    /// Returns a request with the versions that this program reads.
    #[must_use]
    pub fn new(request: Request) -> Self {
        Self { versions: Versions::CLIENT, request }
    }

    /// Writes the request as a line of JSON.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("requests are plain values with text keys");
        line.push(b'\n');
        line
    }

    /// Reads a line, and returns the request with the version to reply in.
    ///
    /// # Errors
    /// The line is not a request, or the two programs have no version in common.
    pub fn read(line: &[u8]) -> Result<(Request, u32), BadRequest> {
        let value: Value = serde_json::from_slice(line)?;
        let Some(versions) = value.get("versions") else {
            return Ok((Request::deserialize(value)?, spoken(Versions::UNNAMED)?));
        };
        // The versions come first: a request of another version may have names that are unknown here.
        let version = spoken(Versions::deserialize(versions)?)?;
        Ok((Self::deserialize(value)?.request, version))
    }
}

fn spoken(versions: Versions) -> Result<u32, BadRequest> {
    Versions::COORDINATOR.newest_common(versions).ok_or(BadRequest::Version(versions))
}

impl From<serde_json::Error> for BadRequest {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error)
    }
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "not a request: {error}"),
            Self::Version(theirs) => {
                let older = if theirs.min > Versions::COORDINATOR.max { "coordinator" } else { "command" };
                write!(
                    f,
                    "the request is written in API {theirs}, the coordinator speaks API {}: update the {older}",
                    Versions::COORDINATOR
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::version::MAX;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let policy: Policy = serde_json::from_str(r#"{"sharing": {"least_important": 2}}"#).unwrap();
        let start = |text| Request::StartRun(serde_json::from_str(text).unwrap());
        let (plain, named) = (start(r#"{"rounds": 3}"#), start(r#"{"rounds": 3, "name": "night-3"}"#));
        for request in [Request::Watch, plain, named, Request::SetPolicy(policy)] {
            let (read, version) = Envelope::read(&Envelope::new(request.clone()).to_line()).unwrap();
            assert_eq!((read, version), (request, MAX));
        }
    }

    #[test]
    fn a_run_without_a_name_is_started_by_its_table_of_settings() {
        let settings: Map<String, Value> = serde_json::from_str(r#"{"rounds": 3}"#).unwrap();
        let line = |name: Option<&str>| {
            let name = name.map(|name| name.parse().unwrap());
            serde_json::to_string(&Request::StartRun(StartRun { name, settings: settings.clone() })).unwrap()
        };
        assert_eq!(line(None), r#"{"start_run":{"rounds":3}}"#);
        assert_eq!(line(Some("night-3")), r#"{"start_run":{"name":"night-3","rounds":3}}"#);
    }

    #[test]
    fn a_request_without_versions_is_of_version_1() {
        assert_eq!(Envelope::read(b"\"watch\"\n").unwrap(), (Request::Watch, 1));
        assert_eq!(Envelope::read(br#"{"delete_run": "a"}"#).unwrap(), (Request::DeleteRun("a".to_owned()), 1));
    }

    #[test]
    fn a_version_that_is_not_spoken_is_refused_with_both_ranges() {
        let refused = |line: &str| Envelope::read(line.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            refused(r#"{"versions": {"min": 7, "max": 9}, "request": {"dance": 3}}"#),
            "the request is written in API versions 7 to 9, the coordinator speaks API versions 1 to 2: update the coordinator"
        );
        assert!(refused(r#"{"versions": {"min": 0, "max": 0}, "request": "watch"}"#).contains("update the command"));
        for bad in ["", "{}", "7", r#"{"versions": 2}"#, r#"{"versions": {"min": 1, "max": 2}, "request": "dance"}"#] {
            assert!(refused(bad).starts_with("not a request: "), "{bad}");
        }
    }

    #[test]
    fn a_reply_is_its_value() {
        let line = |reply: Reply| serde_json::to_string(&Answer::Ok(reply)).unwrap();
        assert_eq!(line(Reply::Done(())), r#"{"ok":null}"#);
        assert_eq!(line(Reply::RunStarted("00a1".to_owned())), r#"{"ok":"00a1"}"#);
        let deleted = Deleted { removed_blobs: 2, removed_bytes: 70 };
        assert_eq!(line(Reply::Deleted(deleted)), r#"{"ok":{"removed_blobs":2,"removed_bytes":70}}"#);
        let refused: Answer<()> = serde_json::from_str(r#"{"error":"no"}"#).unwrap();
        assert_eq!(refused, Answer::Error("no".to_owned()));
    }
}
