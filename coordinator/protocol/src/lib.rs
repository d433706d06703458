//! The contract between an agent and the coordinator: topics, messages, their bytes, and the chunked transfer.
//!
//! It opens no socket, reads no clock and touches no file: everything here is a value, or a function from values to values.
//!
//! Modules, in the order that bytes travel:
//! - [`topics`]: the topics of messages.
//! - [`messages`]: the types of messages; [`metrics`]: the counts of an evaluation.
//! - [`codec`]: the layout on the wire of any [`codec::Message`]; `bounds`: the values that fields may have.
//! - [`transfer`]: payloads larger than a message, sent in chunks and resumed; [`time`]: the time that shells pass in.
//! - [`version`]: the supported versions; [`v2`]: the layouts that version 3 replaced.

mod bounds;
pub mod codec;
mod limits;
mod message;
pub mod messages;
pub mod metrics;
#[cfg(any(test, feature = "samples"))]
pub mod samples;
#[cfg(test)]
mod testing;
pub mod time;
pub mod topics;
pub mod transfer;
pub mod v2;
pub mod version;

pub use codec::{Refusal, Signer, Verifier};
pub use messages::{BootId, Digest, RunId};
pub use time::Timestamp;
pub use topics::{DeviceId, FleetId, Topic};
pub use version::{Version, VersionRange};
