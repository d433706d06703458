//! The learning rate in the course of a training.

/// The course of the learning rate: it rises linearly over the first steps, then falls as `decay` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// Number of steps until the full rate; with 0, the first step has the full rate.
    pub warm_up: u32,
    /// The course after the warm-up.
    pub decay: Decay,
}

/// The course of the learning rate after the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Decay {
    /// The rate stays the same.
    #[default]
    Constant,
    /// The rate falls by the same amount with every step, and would be zero at the step after the last.
    Linear,
}

impl Schedule {
    /// Returns the share of the learning rate for step `t` of `N`, with a warm-up of `W` steps:
    /// `t / W` if `t <= W`; after that 1, or `(N - t + 1) / (N - W)` with decay.
    ///
    /// The decay follows `get_linear_schedule_with_warmup` in Hugging Face transformers, whose steps begin at 0. There the
    /// first step of a warm-up has the rate 0 and learns nothing; here it has `1 / W`.
    ///
    /// | argument | range |
    /// |---|---|
    /// | `step` | from 1; past `steps` a decayed rate is 0 |
    /// | `steps` | planned |
    ///
    /// # Numerics
    /// Between 0 and 1, computed in f64; exactly 1 at the end of the warm-up, and at every step of `Schedule::default()`.
    #[must_use]
    pub fn factor(&self, step: u32, steps: u32) -> f32 {
        let share = |part: u32, whole: u32| (f64::from(part) / f64::from(whole)) as f32;
        if step < self.warm_up {
            return share(step, self.warm_up);
        }
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear if step <= self.warm_up => 1.0,
            Decay::Linear => match steps.checked_sub(step) {
                Some(left) => share(left.saturating_add(1), steps - self.warm_up),
                None => 0.0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn factors(schedule: Schedule, steps: u32) -> Vec<f32> {
        (1..=steps).map(|step| schedule.factor(step, steps)).collect()
    }

    fn near(found: &[f32], expected: &[f32]) -> bool {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn a_schedule_of_six_steps_is_the_formula() {
        let shares = |warm_up, decay| factors(Schedule { warm_up, decay }, 6);
        assert!(near(&shares(0, Decay::Constant), &[1.0; 6]));
        assert!(near(&shares(2, Decay::Constant), &[0.5, 1.0, 1.0, 1.0, 1.0, 1.0]));
        assert!(near(&shares(2, Decay::Linear), &[0.5, 1.0, 1.0, 0.75, 0.5, 0.25]));
        assert!(near(&shares(0, Decay::Linear), &[1.0, 5.0 / 6.0, 4.0 / 6.0, 0.5, 2.0 / 6.0, 1.0 / 6.0]));
        assert!(near(&shares(6, Decay::Linear), &[1.0 / 6.0, 2.0 / 6.0, 0.5, 4.0 / 6.0, 5.0 / 6.0, 1.0]));
    }

    proptest! {
        #[test]
        fn prop_it_rises_to_one_and_then_never_rises(steps in 1..200u32, warm_up in 0..200u32, linear: bool) {
            let decay = if linear { Decay::Linear } else { Decay::Constant };
            let warm_up = warm_up.min(steps);
            let factors = factors(Schedule { warm_up, decay }, steps);
            prop_assert!(factors.iter().all(|&factor| factor > 0.0 && factor <= 1.0));
            let (rising, falling) = factors.split_at(warm_up as usize);
            prop_assert!(rising.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(falling.windows(2).all(|pair| pair[0] >= pair[1]));
            let top = if warm_up > 0 { rising.last() } else { falling.first() };
            prop_assert_eq!(top, Some(&1.0));
        }

        #[test]
        fn prop_every_step_of_every_plan_has_a_share(step in 1u32.., steps: u32, warm_up: u32) {
            for decay in [Decay::Constant, Decay::Linear] {
                let factor = Schedule { warm_up, decay }.factor(step, steps);
                prop_assert!((0.0..=1.0).contains(&factor));
            }
        }

        #[test]
        fn prop_past_the_last_step_a_decayed_rate_is_zero(steps in 1..1000u32, beyond in 1..1000u32) {
            let schedule = Schedule { warm_up: 0, decay: Decay::Linear };
            prop_assert_eq!(schedule.factor(steps + beyond, steps).to_bits(), 0);
        }
    }
}
