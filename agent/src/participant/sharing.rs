//! Which layers a device hands in, and which it keeps: DropPEFT's personalised layer sharing.

use skiff_protocol::messages::SharingPlan;

/// The layers to share, ascending, out of those that `importance` has a value for.
///
/// Layers of equal importance are taken from the lowest; a value that is no number counts as the least. A `k` larger
/// than the number of layers shares all; a fixed layer that does not exist is left out.
#[must_use]
pub fn shared_layers(plan: &SharingPlan, importance: &[f32]) -> Vec<u32> {
    let all = || (0..).take(importance.len());
    match plan {
        SharingPlan::All => all().collect(),
        SharingPlan::Fixed { layers } => all().filter(|layer| layers.contains(layer)).collect(),
        SharingPlan::LeastImportant { k } => first(*k, by_importance(importance)),
        SharingPlan::MostImportant { k } => {
            let mut ranked = by_importance(importance);
            ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            first(*k, ranked)
        }
    }
}

fn by_importance(importance: &[f32]) -> Vec<(u32, f32)> {
    let value = |&value: &f32| if value.is_nan() { f32::NEG_INFINITY } else { value };
    let mut ranked: Vec<(u32, f32)> = (0..).zip(importance.iter().map(value)).collect();
    ranked.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    ranked
}

fn first(k: u32, ranked: Vec<(u32, f32)>) -> Vec<u32> {
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
        assert_eq!(shared_layers(&SharingPlan::LeastImportant { k: 1 }, &[1.0, f32::NAN]), [1]);
    }

    #[test]
    fn fixed_layers_are_shared_where_they_exist() {
        assert_eq!(shared_layers(&SharingPlan::Fixed { layers: vec![0, 3, 9] }, &IMPORTANCE), [0, 3]);
    }

    proptest! {
        #[test]
        fn prop_k_layers_ascending_and_least_complements_most(
            importance in proptest::collection::vec(0.0_f32..10.0, 0..20), k in 0_u32..25,
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
