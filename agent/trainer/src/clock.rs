//! The process's clock, for durations only.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Returns the time since the first call in this process; it never goes backwards.
#[must_use]
pub fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "the shell's clock, from which durations are measured")]
    let now = Instant::now();
    now.saturating_duration_since(*START.get_or_init(|| now))
}
