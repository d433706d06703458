//! The examples of an evaluation: all of them, or a sample that does not depend on their order in the file.

use crate::examples::Examples;
use skiff_base::random::Random;
use std::collections::BTreeMap;

/// Seed of every sample, so that evaluations before and after a training use the same examples.
const SEED: u64 = 0x5eed_0f5a_3b1e;

/// Returns the indices of at most `most` examples, ascending.
///
/// In a sample, each class has the same share as in the file, rounded so that the counts add up to `most` (method of the largest
/// remainder). Examples without a class count as one class.
pub(super) fn sample(examples: &dyn Examples, most: usize) -> Vec<usize> {
    let count = examples.len();
    if count <= most {
        return (0..count).collect();
    }
    let mut classes: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
    for at in 0..count {
        classes.entry(examples.class_hint(at)).or_default().push(at);
    }
    let sizes: Vec<usize> = classes.values().map(Vec::len).collect();
    let mut random = Random::new(SEED);
    let mut chosen = Vec::with_capacity(most);
    for (members, share) in classes.values_mut().zip(shares(&sizes, most)) {
        // The first `share` places of a shuffle.
        for at in 0..share {
            let other = at + random.below(members.len() - at);
            members.swap(at, other);
        }
        chosen.extend_from_slice(&members[..share]);
    }
    chosen.sort_unstable();
    chosen
}

/// Divides `most` among classes in proportion to their sizes. The sum of the sizes must be larger. The first of two equal
/// remainders wins.
fn shares(sizes: &[usize], most: usize) -> Vec<usize> {
    let total = sizes.iter().sum::<usize>() as u128;
    let exact: Vec<u128> = sizes.iter().map(|&size| size as u128 * most as u128).collect();
    let mut shares: Vec<usize> = exact.iter().map(|exact| (exact / total) as usize).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by_key(|&class| (std::cmp::Reverse(exact[class] % total), class));
    let missing = most - shares.iter().sum::<usize>();
    for &class in by_remainder.iter().take(missing) {
        shares[class] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Sequence;
    use proptest::prelude::*;
    use std::error::Error;

    /// Examples of these classes.
    struct Classes(Vec<Option<u32>>);

    impl Examples for Classes {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn encode(&self, at: usize) -> Result<Sequence, Box<dyn Error + Send + Sync>> {
            Err(format!("example {at} is not read").into())
        }

        fn length_hint(&self, _: usize) -> usize {
            0
        }

        fn class_hint(&self, at: usize) -> Option<u32> {
            self.0[at]
        }
    }

    fn counts(classes: &Classes, chosen: &[usize]) -> BTreeMap<Option<u32>, usize> {
        let mut counts = BTreeMap::new();
        chosen.iter().for_each(|&at| *counts.entry(classes.0[at]).or_default() += 1);
        counts
    }

    #[test]
    fn a_sorted_file_is_sampled_from_all_its_classes() {
        let sorted = Classes((0..3000).map(|at| Some(u32::from(at >= 1000) + u32::from(at >= 2900))).collect());
        let chosen = sample(&sorted, 300);
        assert_eq!(counts(&sorted, &chosen), [(Some(0), 100), (Some(1), 190), (Some(2), 10)].into());
        assert_ne!(chosen, (0..300).collect::<Vec<_>>());
        assert_eq!(chosen, sample(&sorted, 300), "the same examples each time");
    }

    #[test]
    fn examples_without_classes_are_sampled_from_the_whole_file() {
        let plain = Classes(vec![None; 1000]);
        let chosen = sample(&plain, 100);
        let late = chosen.iter().filter(|&&at| at >= 500).count();
        assert!((30..=70).contains(&late), "{late} of 100 from the second half");
    }

    proptest! {
        #[test]
        fn a_sample_has_distinct_examples_and_each_class_in_its_share(
            classes in prop::collection::vec(0_u32..5, 1..200),
            most in 0_usize..250,
        ) {
            let classes = Classes(classes.into_iter().map(Some).collect());
            let chosen = sample(&classes, most);
            prop_assert_eq!(chosen.len(), most.min(classes.len()));
            prop_assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]) && chosen.iter().all(|&at| at < classes.len()));
            let all: Vec<usize> = (0..classes.len()).collect();
            let found = counts(&classes, &chosen);
            for (class, size) in counts(&classes, &all) {
                let exact = size as f64 * chosen.len() as f64 / classes.len() as f64;
                let share = found.get(&class).copied().unwrap_or(0) as f64;
                prop_assert!((share - exact).abs() < 1.0, "{:?}: {} instead of {}", class, share, exact);
            }
        }
    }
}
