//! Waits for facts that stay true.

use crate::PATIENCE;
use skiff_trainer::clock::monotonic;
use std::time::Duration;

/// Pause between two looks at something that a test waits for.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks again and again until `holds` does, for [`PATIENCE`] at most; returns true if it held.
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
