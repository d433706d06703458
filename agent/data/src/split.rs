//! Splits a data set among devices: unevenly, like devices in the field, or evenly.

use skiff_base::random::Random;
use std::collections::BTreeMap;

/// Minimum number of examples in each part of [`dirichlet`], if there are enough.
pub const LEAST_EXAMPLES: usize = 10;

const DRAWS: usize = 100;

/// Splits `labels.len()` examples among `parts`; returns the indices of each part.
///
/// The shares `p_c ~ Dir(alpha · 1)` over the parts are drawn for each label *c*. The label's shuffled examples are cut at
/// the cumulative sums of the shares. A small `alpha` gives each part few labels, a large one nearly the same mix to all.
/// Sources: the Dirichlet prior for skewed shares is Hsu et al., arXiv:1909.06335, section 3; the draw for each label over
/// the parts is Yurochkin et al., arXiv:1905.12022, section 4.
///
/// | argument | meaning | range |
/// |---|---|---|
/// | `labels` | class number of each example | any |
/// | `parts` | number of devices | > 0 |
/// | `alpha` | concentration | finite, > 0 |
/// | `seed` | gives the same shares on every platform | any |
///
/// Each index is in exactly one part, and a part's indices come in drawn order. Each part holds at least
/// [`LEAST_EXAMPLES`], or `labels.len() / parts` if that is less. A draw that leaves a part with less is repeated up to
/// 100 times; then examples move from the largest part to the smallest.
///
/// # Panics
/// If `parts` is 0, or `alpha` is not finite and positive.
///
/// # Numerics
/// Gamma variates are kept as logarithms, so that no `alpha` underflows. The logarithms come from `libm`, not from the
/// platform.
///
/// ```
/// let parts = skiff_data::split::dirichlet(&[0, 1, 0, 1, 0, 1], 2, 1.0, 7);
/// assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 6);
/// ```
#[must_use]
pub fn dirichlet(labels: &[usize], parts: usize, alpha: f64, seed: u64) -> Vec<Vec<usize>> {
    assert!(parts > 0, "a split needs at least one part");
    assert!(alpha.is_finite() && alpha > 0.0, "alpha must be finite and positive, not {alpha}");
    let least = LEAST_EXAMPLES.min(labels.len() / parts);
    let mut random = Random::new(seed);
    let mut shares = draw(labels, parts, alpha, &mut random);
    for _ in 1..DRAWS {
        if shares.iter().all(|share| share.len() >= least) {
            break;
        }
        shares = draw(labels, parts, alpha, &mut random);
    }
    for share in &mut shares {
        random.shuffle(share);
    }
    level(&mut shares, least);
    shares
}

/// Deals out `0..examples` in turn: part *k* gets *k*, *k + parts*, *k + 2·parts*, …
///
/// # Panics
/// If `parts` is 0.
#[must_use]
pub fn even(examples: usize, parts: usize) -> Vec<Vec<usize>> {
    assert!(parts > 0, "a split needs at least one part");
    (0..parts).map(|part| (part..examples).step_by(parts).collect()).collect()
}

/// Returns `0..examples` in an order drawn from `seed`. The first *n* are a fair sample.
#[must_use]
pub fn permutation(examples: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..examples).collect();
    Random::new(seed).shuffle(&mut order);
    order
}

fn draw(labels: &[usize], parts: usize, alpha: f64, random: &mut Random) -> Vec<Vec<usize>> {
    let mut by_label: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, &label) in labels.iter().enumerate() {
        by_label.entry(label).or_default().push(index);
    }
    let mut shares = vec![Vec::new(); parts];
    for mut indices in by_label.into_values() {
        random.shuffle(&mut indices);
        let mut rest = indices.as_slice();
        let mut sum = 0.0;
        let proportions = proportions(parts, alpha, random);
        for (part, proportion) in proportions.into_iter().enumerate() {
            sum += proportion;
            let dealt = indices.len() - rest.len();
            let end = if part + 1 == parts { indices.len() } else { (sum * indices.len() as f64).round() as usize };
            let (cut, left) = rest.split_at(end.saturating_sub(dealt).min(rest.len()));
            shares[part].extend_from_slice(cut);
            rest = left;
        }
    }
    shares
}

/// Draws from Dir(alpha · 1): gamma variates, divided by their sum.
fn proportions(parts: usize, alpha: f64, random: &mut Random) -> Vec<f64> {
    let logs: Vec<f64> = (0..parts).map(|_| log_gamma_variate(alpha, random)).collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logs.iter().map(|log| libm::exp(log - largest)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Draws ln g, g ~ Gamma(shape, 1). Source: Marsaglia and Tsang, ACM TOMS 26 (2000) 363, doi 10.1145/358407.358414, figure
/// 1; for a shape below 1 their section 6, g(shape + 1) · U^(1/shape).
fn log_gamma_variate(shape: f64, random: &mut Random) -> f64 {
    if shape < 1.0 {
        return log_gamma_variate(shape + 1.0, random) + libm::log(random.unit()) / shape;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal_variate(random);
        let root = 1.0 + c * x;
        let v = root * root * root;
        if v > 0.0 && libm::log(random.unit()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return libm::log(d) + libm::log(v);
        }
    }
}

/// Draws a normal variate by Marsaglia's polar method (Marsaglia and Bray, SIAM Review 6 (1964) 260).
fn normal_variate(random: &mut Random) -> f64 {
    loop {
        let (x, y) = (2.0 * random.unit() - 1.0, 2.0 * random.unit() - 1.0);
        let square = x * x + y * y;
        if square > 0.0 && square < 1.0 {
            return x * (-2.0 * libm::log(square) / square).sqrt();
        }
    }
}

/// Moves one example at a time from the largest part to the smallest until every part has `least`.
fn level(shares: &mut [Vec<usize>], least: usize) {
    let by_length = |shares: &[Vec<usize>], part: usize| (shares[part].len(), part);
    loop {
        let smallest = (0..shares.len()).min_by_key(|&part| by_length(shares, part));
        let largest = (0..shares.len()).max_by_key(|&part| by_length(shares, part));
        let (Some(smallest), Some(largest)) = (smallest, largest) else { return };
        if shares[smallest].len() >= least {
            return;
        }
        if let Some(moved) = shares[largest].pop() {
            shares[smallest].push(moved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_partition(shares: &[Vec<usize>], examples: usize) {
        let mut all: Vec<usize> = shares.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..examples).collect::<Vec<_>>());
    }

    /// Returns the distance of the parts' label mix from an even one: the mean of |share − 1/parts|.
    fn skew(labels: &[usize], shares: &[Vec<usize>]) -> f64 {
        let classes = labels.iter().max().map_or(0, |last| last + 1);
        let mut sum = 0.0;
        for class in 0..classes {
            let total = labels.iter().filter(|&&label| label == class).count() as f64;
            for share in shares {
                let held = share.iter().filter(|&&index| labels[index] == class).count() as f64;
                sum += (held / total - 1.0 / shares.len() as f64).abs();
            }
        }
        sum / (classes * shares.len()) as f64
    }

    fn four_classes(examples: usize) -> Vec<usize> {
        (0..examples).map(|index| index % 4).collect()
    }

    #[test]
    fn this_seed_gives_these_shares_on_every_platform() {
        let shares = dirichlet(&four_classes(40), 3, 0.5, 11);
        assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [18, 10, 12]);
        assert_eq!(shares[1], [4, 24, 9, 38, 22, 28, 14, 16, 27, 1]);
    }

    #[test]
    fn gamma_variates_have_their_mean_and_variance() {
        for shape in [0.1, 0.5, 1.0, 3.0, 40.0] {
            let mut random = Random::new(5);
            let draws: Vec<f64> = (0..40_000).map(|_| libm::exp(log_gamma_variate(shape, &mut random))).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            assert!((mean / shape - 1.0).abs() < 0.05, "shape {shape}: mean {mean}");
            assert!((variance / shape - 1.0).abs() < 0.10, "shape {shape}: variance {variance}");
        }
    }

    #[test]
    fn a_larger_alpha_is_more_even() {
        let labels = four_classes(4_000);
        let skews = [0.1, 1.0, 10.0, 1e6]
            .map(|alpha| (0..20).map(|seed| skew(&labels, &dirichlet(&labels, 4, alpha, seed))).sum::<f64>() / 20.0);
        assert!(skews.windows(2).all(|pair| pair[0] > pair[1]), "{skews:?}");
        assert!(skews[0] > 0.2 && skews[3] < 0.002, "{skews:?}");
    }

    #[test]
    fn an_extreme_alpha_still_fills_every_part() {
        for alpha in [f64::MIN_POSITIVE, 1e-9, 1e300, f64::MAX] {
            let shares = dirichlet(&four_classes(200), 5, alpha, 1);
            assert_partition(&shares, 200);
            assert!(shares.iter().all(|share| share.len() >= LEAST_EXAMPLES), "alpha {alpha}");
        }
    }

    #[test]
    fn fewer_examples_than_parts_leave_parts_empty() {
        let shares = dirichlet(&[0, 1], 5, 1.0, 1);
        assert_partition(&shares, 2);
        assert_eq!(shares.len(), 5);
    }

    proptest! {
        #[test]
        fn dirichlet_is_a_partition_with_a_least_share(
            labels in proptest::collection::vec(0_usize..6, 0..300),
            parts in 1_usize..9,
            log_alpha in -6.0..6.0,
            seed: u64,
        ) {
            let shares = dirichlet(&labels, parts, libm::exp(log_alpha), seed);
            prop_assert_eq!(shares.len(), parts);
            assert_partition(&shares, labels.len());
            let least = LEAST_EXAMPLES.min(labels.len() / parts);
            prop_assert!(shares.iter().all(|share| share.len() >= least));
        }

        #[test]
        fn the_same_seed_gives_the_same_shares(labels in proptest::collection::vec(0_usize..6, 0..100), seed: u64) {
            prop_assert_eq!(dirichlet(&labels, 3, 1.0, seed), dirichlet(&labels, 3, 1.0, seed));
        }

        #[test]
        fn what_the_labels_are_called_does_not_matter(labels in proptest::collection::vec(0_usize..6, 0..100), seed: u64) {
            let renamed: Vec<usize> = labels.iter().map(|label| label * 7 + 3).collect();
            prop_assert_eq!(dirichlet(&labels, 3, 1.0, seed), dirichlet(&renamed, 3, 1.0, seed));
        }

        #[test]
        fn even_parts_are_a_partition_and_differ_by_one_at_most(examples in 0_usize..300, parts in 1_usize..20) {
            let shares = even(examples, parts);
            assert_partition(&shares, examples);
            let sizes = || shares.iter().map(Vec::len);
            prop_assert!(sizes().max().unwrap_or(0) - sizes().min().unwrap_or(0) <= 1);
        }

        #[test]
        fn a_permutation_holds_each_index_once(examples in 0_usize..300, seed: u64) {
            assert_partition(&[permutation(examples, seed)], examples);
        }
    }
}
