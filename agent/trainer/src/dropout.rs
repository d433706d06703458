//! Stochastic layer dropout: draws the layers that a batch passes through. It is our interpretation of the abstract of DropPEFT
//! (arXiv:2503.10217).

use skiff_base::random::Random;

/// The layers that a batch runs, in ascending order. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerMask(Vec<usize>);

impl LayerMask {
    /// Returns the mask of all layers, which evaluation always uses.
    #[must_use]
    pub fn all(layers: usize) -> Self {
        Self((0..layers).collect())
    }

    /// Returns the mask of the given layers, sorted; `None` if there are none, or one is not below `layers`.
    #[must_use]
    pub fn of(mut active: Vec<usize>, layers: usize) -> Option<Self> {
        active.sort_unstable();
        active.dedup();
        active.last().is_some_and(|&last| last < layers).then_some(Self(active))
    }

    /// Draws a mask: layer `l` is skipped with probability `rates[l]`, independently of the others.
    ///
    /// If more than `most` layers would run, only `most` of them do: first the layers with rate 0, then the ones with the
    /// largest `draw - rate`. The bound on memory therefore holds in every step.
    ///
    /// If every layer would be skipped, the one with the largest `draw - rate` runs, or the lowest of these if several are equal.
    /// The same arguments always give the same mask.
    #[must_use]
    pub fn draw(rates: &[f32], most: usize, seed: u64, device: &str, round: u32, step: u32) -> Self {
        let mut random = stream("layer mask", seed, device, round, step);
        let margins: Vec<f64> = rates.iter().map(|&rate| random.unit() - f64::from(rate)).collect();
        let mut active: Vec<usize> = (0..rates.len()).filter(|&layer| margins[layer] >= 0.0).collect();
        if active.len() > most.max(1) {
            let order = |&layer: &usize| (rates[layer] > 0.0, -margins[layer]);
            active.sort_by(|a, b| order(a).partial_cmp(&order(b)).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(b)));
            active.truncate(most.max(1));
            active.sort_unstable();
        }
        if !active.is_empty() {
            return Self(active);
        }
        let closest = (0..rates.len()).reduce(|best, layer| if margins[layer] > margins[best] { layer } else { best });
        Self(vec![closest.unwrap_or(0)])
    }

    /// Returns the active layers, ascending.
    #[must_use]
    pub fn active(&self) -> &[usize] {
        &self.0
    }
}

/// Returns random numbers for one `purpose` at one step of one device.
pub(crate) fn stream(purpose: &str, seed: u64, device: &str, round: u32, step: u32) -> Random {
    let mut hasher = blake3::Hasher::new_derive_key("skiff 2026-11-23 numbers of a training step");
    for part in [purpose.as_bytes(), device.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.update(&seed.to_le_bytes()).update(&round.to_le_bytes()).update(&step.to_le_bytes());
    let mut word = [0; 8];
    hasher.finalize_xof().fill(&mut word);
    Random::new(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mask_is_a_function_of_its_arguments(seed: u64, round: u32, step: u32, rate in 0f32..=1.0, layers in 1..30usize) {
            let rates = vec![rate; layers];
            let mask = LayerMask::draw(&rates, layers, seed, "a", round, step);
            prop_assert_eq!(&mask, &LayerMask::draw(&rates, layers, seed, "a", round, step));
            prop_assert!(!mask.active().is_empty());
            prop_assert!(mask.active().windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(mask.active().iter().all(|&layer| layer < layers));
        }

        #[test]
        fn no_more_layers_run_than_may_and_protected_ones_before_others(
            seed: u64, step: u32, rates in proptest::collection::vec(0.0f32..0.5, 4..12), most in 1..12usize,
        ) {
            let mut rates = rates;
            (rates[1], rates[3]) = (0.0, 0.0);
            let all = LayerMask::draw(&rates, rates.len(), seed, "a", 1, step);
            let mask = LayerMask::draw(&rates, most, seed, "a", 1, step);
            prop_assert_eq!(mask.active().len(), all.active().len().min(most));
            prop_assert!(mask.active().iter().all(|layer| all.active().contains(layer)));
            prop_assert!(mask.active().is_sorted());
            prop_assert!(most < 2 || [1, 3].iter().all(|layer| mask.active().contains(layer)));
        }

        #[test]
        fn protected_layers_always_run_and_certain_ones_are_always_skipped(seed: u64, step: u32) {
            let mask = LayerMask::draw(&[0.0, 1.0, 0.0, 1.0], 4, seed, "a", 1, step);
            prop_assert_eq!(mask.active(), &[0, 2]);
        }
    }

    #[test]
    fn layers_are_skipped_as_often_as_their_rates_say() {
        let rates = [0.1, 0.5, 0.9, 0.5];
        let steps = 20_000;
        let mut skipped = [0u32; 4];
        for step in 0..steps {
            let mask = LayerMask::draw(&rates, 4, 7, "device", 3, step);
            (0..4).filter(|layer| !mask.active().contains(layer)).for_each(|layer| skipped[layer] += 1);
        }
        // Three standard deviations of a share of 20,000 draws are at most 0.011. Keeping one layer adds a bias: all four
        // are skipped with probability 0.0225, and then one of them (mostly layer 0) stays.
        for (layer, &rate) in rates.iter().enumerate() {
            let share = skipped[layer] as f32 / steps as f32;
            assert!((share - rate).abs() < 0.011 + 0.0225, "layer {layer}: rate {rate}, skipped {share}");
        }
    }

    #[test]
    fn devices_rounds_and_steps_draw_differently() {
        let draws = |device: &str, round| {
            (0..64).map(|step| LayerMask::draw(&[0.5; 12], 12, 1, device, round, step)).collect::<Vec<_>>()
        };
        assert_ne!(draws("a", 1), draws("b", 1));
        assert_ne!(draws("a", 1), draws("a", 2));
        assert_ne!(draws("a", 1)[0], draws("a", 1)[1]);
    }
}
