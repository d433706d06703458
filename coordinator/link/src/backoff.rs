//! Computes the time to wait before the next attempt to connect.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(250);
/// Longest outage that counts as short.
const SHORT_OUTAGE: Duration = Duration::from_secs(60);
/// Longest rest in a short outage. A connection attempt takes little time, so the client reconnects within 5 s of the broker's
/// return.
const LONGEST_IN_SHORT_OUTAGE: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential back-off: the limit doubles from [`SHORTEST`] up to a bound, and each rest is drawn between half the limit and the limit.
///
/// In the first [`SHORT_OUTAGE`] the bound is [`LONGEST_IN_SHORT_OUTAGE`], so that a restart of the broker delays no update by
/// more than a few seconds. After that the limit doubles further, up to [`LONGEST`]: nobody knows when the broker will return,
/// and devices should not waste energy on attempts.
///
/// The random part spreads a fleet. Devices lose the broker at the same moment, but after some rests their attempts are spread
/// evenly over the bound: when the broker returns to 10,000 devices, about 450 of them connect in each second after a long
/// outage, and about 3,500 after a short one. For a device that an overloaded broker refuses, the outage continues. After a
/// minute of it, the device slows down too.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { next: SHORTEST }
    }

    /// Starts again at [`SHORTEST`], after a stable connection.
    pub(crate) const fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// Returns the next rest. `outage` is the time since the last stable connection; `draw` is a uniformly drawn number.
    pub(crate) fn rest(&mut self, outage: Duration, draw: u32) -> Duration {
        let bound = if outage < SHORT_OUTAGE { LONGEST_IN_SHORT_OUTAGE } else { LONGEST };
        let whole = self.next.min(bound);
        self.next = bound.min(whole * 2);
        let share = f64::from(draw) / f64::from(u32::MAX);
        whole.mul_f64(0.5 + share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::time::{Instant, sleep, timeout_at};

    /// Maximum time that an attempt takes in the tests, whether the broker refuses the connection or nobody answers.
    const ATTEMPT: Duration = Duration::from_secs(1);

    /// Tries to connect during an outage, as the driver does, until the broker is back. Returns the time between its return and the
    /// connection, and the number of attempts that failed.
    async fn outage(length: Duration, mut draws: impl Iterator<Item = u32>) -> (Duration, u32) {
        let lost = Instant::now();
        let back = lost + length;
        let (mut backoff, mut failed) = (Backoff::new(), 0);
        loop {
            sleep(backoff.rest(lost.elapsed(), draws.next().unwrap_or_default())).await;
            if Instant::now() >= back {
                return (back.elapsed(), failed);
            }
            failed += 1;
            // The attempt itself: it succeeds if the broker returns meanwhile.
            if timeout_at(back, sleep(ATTEMPT)).await.is_err() {
                return (back.elapsed(), failed);
            }
        }
    }

    fn paused<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(future)
    }

    #[test]
    fn rests_double_to_a_bound_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new();
        let mut rests = |outage_s: u64, count: usize| -> Vec<_> {
            (0..count).map(|_| backoff.rest(Duration::from_secs(outage_s), u32::MAX).as_millis()).collect()
        };
        assert_eq!(rests(0, 7), [250, 500, 1000, 2000, 3000, 3000, 3000]);
        assert_eq!(rests(60, 6), [3000, 6000, 12000, 24000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.rest(Duration::ZERO, 0), Duration::from_millis(125));
    }

    #[test]
    fn a_fleet_comes_back_in_a_spread_of_time_after_a_long_outage() {
        let mut counts = [0_u32; 31];
        for device in 0..1_000_u64 {
            // Multiplicative hashing (Knuth): a different number for each device and rest.
            let draws =
                (1..).map(|rest: u64| ((device * 1_000 + rest).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32);
            let (late, _) = paused(outage(Duration::from_secs(600), draws));
            counts[late.as_secs() as usize] += 1;
        }
        assert!(counts.iter().all(|count| *count < 100), "devices in each second: {counts:?}");
    }

    proptest! {
        #[test]
        fn prop_after_a_short_outage_the_client_is_back_within_three_seconds(
            length_ms in 0..60_000_u64,
            draws in proptest::collection::vec(any::<u32>(), 64),
        ) {
            let (late, _) = paused(outage(Duration::from_millis(length_ms), draws.into_iter().cycle()));
            prop_assert!(late <= LONGEST_IN_SHORT_OUTAGE, "{late:?}");
        }

        #[test]
        fn prop_a_long_outage_costs_few_attempts_and_ends_within_half_a_minute(
            hours in 1..48_u64,
            draws in proptest::collection::vec(any::<u32>(), 64),
        ) {
            let (late, failed) = paused(outage(Duration::from_secs(hours * 3600), draws.into_iter().cycle()));
            prop_assert!(late <= LONGEST, "{late:?}");
            prop_assert!(u64::from(failed) <= 60 + hours * 3600 / 15, "{failed} attempts");
        }
    }
}
