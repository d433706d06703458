//! Waits for facts that stay true.

use crate::PATIENCE;
use skiff_trainer::clock::monotonic;
use std::time::Duration;

/// Pause between two checks of a fact that a test waits for.
const PAUSE: Duration = Duration::from_millis(50);

/// Calls `holds` until it returns true, for at most [`PATIENCE`]. Returns true if it did.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let begun = monotonic();
    loop {
        if holds() {
            return true;
        }
        if monotonic().saturating_sub(begun) > PATIENCE {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}
