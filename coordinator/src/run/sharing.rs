//! Checks that a device's update contains the layers that the device was ordered to share.
//!
//! The plans come from the policy (`skiff_api::policy`), which is part of the run's settings and therefore journalled. The record
//! of each order holds the layers that the device was ordered to share.

use skiff_protocol::messages::{SharingPlan, TrainReport};

/// Checks that a report follows the order.
///
/// `layers` is the number of layers of the model, `most_examples` the largest number of distinct examples that the ordered
/// steps can use.
///
/// # Errors
/// The fault of the report, in words for the device's operator.
pub fn check(report: &TrainReport, plan: &SharingPlan, layers: u32, most_examples: u64) -> Result<(), String> {
    let shared = &report.shared_layers;
    if !is_ascending(shared) || shared.last().is_some_and(|&last| last >= layers) {
        return Err(format!("shared_layers {shared:?} are not ascending layers below {layers}"));
    }
    let as_planned = match plan {
        SharingPlan::All => shared.len() == layers as usize,
        SharingPlan::LeastImportant { k } | SharingPlan::MostImportant { k } => shared.len() == *k as usize,
        SharingPlan::Fixed { layers } => shared == layers,
    };
    if !as_planned {
        return Err(format!("shared_layers {shared:?} do not follow the plan {plan:?}"));
    }
    if !(1..=most_examples).contains(&report.examples) {
        return Err(format!("{} examples, expected 1 to {most_examples}", report.examples));
    }
    let numbers = report.importance.iter().chain([&report.mean_loss, &report.mean_active_layers, &report.step_ms]);
    if report.importance.len() != layers as usize || !numbers.into_iter().all(|number| number.is_finite()) {
        return Err(format!(
            "the report must hold the importance of each of the {layers} layers, and only finite numbers"
        ));
    }
    Ok(())
}

fn is_ascending(layers: &[u32]) -> bool {
    layers.is_sorted_by(|a, b| a < b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_protocol::samples;

    fn report(shared_layers: Vec<u32>) -> TrainReport {
        TrainReport { examples: 80, shared_layers, importance: vec![1.0; 4], ..samples::train_report() }
    }

    #[test]
    fn an_update_that_keeps_to_the_plan_passes() {
        assert_eq!(check(&report(vec![0, 1, 2, 3]), &SharingPlan::All, 4, 80), Ok(()));
        assert_eq!(check(&report(vec![1, 3]), &SharingPlan::LeastImportant { k: 2 }, 4, 80), Ok(()));
        assert_eq!(check(&report(vec![2]), &SharingPlan::Fixed { layers: vec![2] }, 4, 80), Ok(()));
    }

    #[test]
    fn an_update_that_does_not_is_told_why() {
        let shared = |layers: &[u32], plan: SharingPlan| check(&report(layers.to_vec()), &plan, 4, 80).unwrap_err();
        assert!(shared(&[0, 1, 2], SharingPlan::All).contains("All"));
        assert!(shared(&[1, 0], SharingPlan::LeastImportant { k: 2 }).contains("ascending"));
        assert!(shared(&[1, 4], SharingPlan::LeastImportant { k: 2 }).contains("below 4"));
        assert!(shared(&[1], SharingPlan::Fixed { layers: vec![2] }).contains("Fixed"));
        let altered = |change: fn(&mut TrainReport)| {
            let mut report = report(vec![0, 1, 2, 3]);
            change(&mut report);
            check(&report, &SharingPlan::All, 4, 80).unwrap_err()
        };
        assert!(altered(|r| r.examples = 0).contains("expected 1 to 80"));
        assert!(altered(|r| r.examples = 81).contains("expected 1 to 80"));
        assert!(altered(|r| r.importance = vec![1.0]).contains("importance of each of the 4"));
        assert!(altered(|r| r.mean_loss = f32::NAN).contains("finite"));
        assert!(altered(|r| r.importance[2] = f32::INFINITY).contains("finite"));
    }
}
