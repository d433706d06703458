//! Computes the time to wait before the next attempt to connect.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential back-off: the limit doubles from [`SHORTEST`] to [`LONGEST`]. Each rest is drawn between half the limit and
/// the limit, so that the devices of a fleet do not all reconnect at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { next: SHORTEST }
    }

    /// Starts again at [`SHORTEST`], after a connection that held.
    pub(crate) const fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// Returns the next rest. `draw` is a uniformly drawn number.
    pub(crate) fn rest(&mut self, draw: u32) -> Duration {
        let whole = self.next;
        self.next = LONGEST.min(whole * 2);
        let share = f64::from(draw) / f64::from(u32::MAX);
        whole.mul_f64(0.5 + share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_to_a_bound_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new();
        let rests: Vec<_> = (0..10).map(|_| backoff.rest(u32::MAX).as_millis()).collect();
        assert_eq!(rests, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.rest(0), Duration::from_millis(125));
    }
}
