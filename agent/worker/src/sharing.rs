//! The layers that a device shares, and the layers that it keeps: personalised layer sharing, our interpretation of DropPEFT's
//! abstract.

use skiff_protocol::messages::SharingPlan;
use std::cmp::Ordering;

/// Returns the layers to share, in ascending order. `importance` has a value for each candidate.
///
/// Among layers of equal importance, the lowest comes first. A layer that never ran has an importance of 0 and nothing to share.
/// It comes last, whether the least or the most important layers come first; so does a layer whose importance is NaN. A `k`
/// larger than the number of layers shares all. A fixed layer that does not exist is left out.
#[must_use]
pub(crate) fn shared_layers(plan: &SharingPlan, importance: &[f32]) -> Vec<u32> {
    let all = || (0..).take(importance.len());
    match plan {
        SharingPlan::All => all().collect(),
        SharingPlan::Fixed { layers } => all().filter(|layer| layers.contains(layer)).collect(),
        SharingPlan::LeastImportant { k } => first(*k, importance, f32::total_cmp),
        SharingPlan::MostImportant { k } => first(*k, importance, |a, b| b.total_cmp(a)),
    }
}

/// Returns the first `k` layers by `order` of their importance. Layers that never ran come after all others.
fn first(k: u32, importance: &[f32], order: impl Fn(&f32, &f32) -> Ordering) -> Vec<u32> {
    let mut ranked: Vec<(u32, f32)> = (0..).zip(importance.iter().copied()).collect();
    let never_ran = |value: f32| value.is_nan() || value <= 0.0;
    ranked.sort_by(|(_, a), (_, b)| match (never_ran(*a), never_ran(*b)) {
        (false, false) => order(a, b),
        (a, b) => a.cmp(&b),
    });
    let mut layers: Vec<u32> = ranked.into_iter().take(k as usize).map(|(layer, _)| layer).collect();
    layers.sort_unstable();
    layers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    const IMPORTANCE: [f32; 4] = [3.0, 1.0, 4.0, 2.0];

    #[test]
    fn least_and_most_important_layers_are_chosen() {
        assert_eq!(shared_layers(&SharingPlan::LeastImportant { k: 2 }, &IMPORTANCE), [1, 3]);
        assert_eq!(shared_layers(&SharingPlan::MostImportant { k: 2 }, &IMPORTANCE), [0, 2]);
        assert_eq!(shared_layers(&SharingPlan::LeastImportant { k: 0 }, &IMPORTANCE), [0_u32; 0]);
    }

    #[test]
    fn equal_importance_goes_by_the_lowest_layer() {
        assert_eq!(shared_layers(&SharingPlan::LeastImportant { k: 1 }, &[1.0; 3]), [0]);
        assert_eq!(shared_layers(&SharingPlan::MostImportant { k: 1 }, &[1.0; 3]), [0]);
    }

    #[test]
    fn layers_that_never_ran_are_shared_last() {
        let importance = [0.0, 3.0, f32::NAN, 1.0, 0.0];
        for (k, least, most) in [(1, vec![3], vec![1]), (2, vec![1, 3], vec![1, 3]), (3, vec![0, 1, 3], vec![0, 1, 3])]
        {
            assert_eq!(shared_layers(&SharingPlan::LeastImportant { k }, &importance), least);
            assert_eq!(shared_layers(&SharingPlan::MostImportant { k }, &importance), most);
        }
    }

    #[test]
    fn fixed_layers_are_shared_where_they_exist() {
        assert_eq!(shared_layers(&SharingPlan::Fixed { layers: vec![0, 3, 9] }, &IMPORTANCE), [0, 3]);
    }

    proptest! {
        #[test]
        fn prop_k_layers_ascending_and_least_complements_most(
            importance in proptest::collection::vec(0.1_f32..10.0, 0..20), k in 0_u32..25,
        ) {
            let count = u32::try_from(importance.len()).unwrap();
            let least = shared_layers(&SharingPlan::LeastImportant { k }, &importance);
            prop_assert_eq!(least.len() as u32, k.min(count));
            prop_assert!(least.is_sorted_by(|a, b| a < b));
            let shared = least.iter().map(|&l| importance[l as usize]).fold(0.0, f32::max);
            let kept = (0..count).filter(|l| !least.contains(l)).map(|l| importance[l as usize]);
            prop_assert!(kept.fold(f32::INFINITY, f32::min) >= shared || least.is_empty());
        }
    }
}
