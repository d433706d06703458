//! The contract between an agent and the coordinator: topics, messages, their bytes, and the chunked transfer.
//!
//! It opens no socket, reads no clock and touches no file: everything here is a value, or a function from values to values.
//!
//! Rooms, in the order that bytes travel: [`topics`] says where a message goes, [`messages`] what it may say ([`metrics`]
//! what an evaluation counts), [`codec`] what it looks like on the wire (its `bounds` what a field may hold), [`transfer`]
//! how a payload larger than a message is carried and resumed, in the [`time`] that the shells tell. [`version`] says
//! which versions of all this are spoken, and [`v2`] keeps the layouts that version 3 replaced.

mod bounds;
pub mod codec;
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
