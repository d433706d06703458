//! Stands in for the worker: a deterministic, cheap change of the weights instead of training. It is a simulation and says so; real
//! training is in `tests/experiment` and in the scenarios.

use skiff_contract::{Job, Trained, Work};
use skiff_models::tensors::{self, NamedTensors, Schema};
use skiff_protocol::Digest;
use skiff_protocol::messages::{EvaluationReport, SharingPlan, TrainReport};
use skiff_protocol::metrics::TaskMetrics;

/// Replacement of an honest update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lie {
    /// A value that is not a number.
    NotANumber,
    /// Values that are far too large.
    Huge,
    /// A tensor too few.
    Incomplete,
    /// Bytes that are no tensors.
    Garbage,
}

impl Lie {
    /// Every kind.
    pub(crate) const ALL: [Self; 4] = [Self::NotANumber, Self::Huge, Self::Incomplete, Self::Garbage];
}

/// Returns the layers that a plan shares; the importance of a layer is its number.
fn shared(plan: &SharingPlan, layers: u32) -> Vec<u32> {
    match plan {
        SharingPlan::All => (0..layers).collect(),
        SharingPlan::LeastImportant { k } => (0..*k).collect(),
        SharingPlan::MostImportant { k } => (layers - k..layers).collect(),
        SharingPlan::Fixed { layers } => layers.clone(),
    }
}

/// Changes the weights by a number that depends on device, round and tensor.
pub(crate) fn train(
    schema: &Schema,
    layers: u32,
    weights: &[u8],
    work: &Work,
    device: usize,
    lie: Option<Lie>,
) -> Trained {
    let Job::Train(order) = &work.job else { panic!("not an order to train: {work:?}") };
    let mut trained = schema.read(weights).expect("weights that were checked before");
    for (at, values) in trained.values_mut().enumerate() {
        let step = ((device * 7 + work.round as usize * 3 + at) % 11) as f32 / 100.0 - 0.05;
        values.mapv_inplace(|value| value + step);
    }
    let shared_layers = shared(&order.sharing, layers);
    let is_shared = |name: &str| {
        let spec = schema.tensors.iter().find(|spec| spec.name == name).expect("a tensor of the schema");
        spec.layer.is_none_or(|layer| shared_layers.contains(&(layer as u32)))
    };
    let (mut update, personal): (NamedTensors, NamedTensors) =
        trained.into_iter().partition(|(name, _)| is_shared(name));
    let kept: Vec<u32> = (0..layers).filter(|layer| !shared_layers.contains(layer)).collect();
    let write = |tensors: &NamedTensors| tensors::write(tensors).expect("plain tensors");
    match lie {
        Some(Lie::NotANumber) => update.values_mut().for_each(|values| values.fill(f32::NAN)),
        Some(Lie::Huge) => update.values_mut().for_each(|values| values.fill(1e30)),
        Some(Lie::Incomplete) => drop(update.pop_first()),
        Some(Lie::Garbage) | None => {}
    }
    let bytes = if lie == Some(Lie::Garbage) { vec![7; 100] } else { write(&update) };
    let report = TrainReport {
        examples: 10 + device as u64,
        tokens: 100,
        steps: order.steps,
        mean_loss: 1.0 / f32::from(u16::try_from(work.round).unwrap_or(u16::MAX).saturating_add(1)),
        shared_layers,
        importance: (0..layers).map(|layer| layer as f32).collect(),
        mean_active_layers: layers as f32,
        train_ms: 100,
        step_ms: 10.0,
        peak_rss_bytes: 1 << 20,
        probe: None,
    };
    Trained { update: bytes, personal: (!kept.is_empty()).then(|| (kept, write(&personal))), report }
}

/// Evaluates nothing, and reports a number that depends on the weights.
pub(crate) fn evaluate(weights: Digest, examples: u64) -> EvaluationReport {
    let correct = u64::from(weights.0[0]) % (examples + 1);
    let metrics = TaskMetrics::Unknown;
    EvaluationReport { examples, correct, loss_sum: 0.5 * examples as f64, evaluate_ms: 5, peak_rss_bytes: 1, metrics }
}
