//! A device that an operator removed from the fleet.

use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;

/// Maximum number of characters of a reason and of an operator's name. Longer texts are refused.
pub const MAX_TEXT: usize = 200;

/// A removal of a device, as the journal records it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Removal {
    /// The device.
    pub device: DeviceId,
    /// Number of the device's last known life; `None` if its birth was never seen.
    pub boot: Option<u64>,
    /// Time of the removal, in milliseconds since 1970.
    pub at_ms: u64,
    /// Operator who removed the device.
    pub by: String,
    /// Reason that the operator gave; empty if none.
    pub reason: String,
    /// True if the device was online.
    pub was_online: bool,
    /// Time at which the broker had removed the device's retained message; `None` if it has not yet.
    pub cleared_ms: Option<u64>,
    /// Time at which the device joined again, as a new member.
    pub returned_ms: Option<u64>,
}
