//! How long to rest before the next attempt to connect.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// Doubles from [`SHORTEST`] to [`LONGEST`]; of each rest between half and all is taken, so that a fleet whose broker comes
/// back does not knock all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { next: SHORTEST }
    }

    /// After a connection that held.
    pub(crate) const fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// The next rest; `draw` is any number, drawn evenly.
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
