//! Collects facts about the weights of a round from the journal, for the model card of an export.

use skiff_api::measures::Figures;
use skiff_api::policy::Sharing;
use skiff_coordinator::run::{Entry, Record, RunSettings};
use skiff_coordinator::store::{RunRow, Store};
use skiff_models::pack::{About, Figure};
use std::collections::BTreeSet;

/// Collects the facts about the weights that `round` made. The facts name no device.
///
/// # Errors
/// The journal cannot be read.
pub(super) fn about(store: &dyn Store, row: &RunRow, round: u32) -> anyhow::Result<About> {
    // The records of a damaged run are missing from its card.
    let entries = match store.entries(row.run) {
        Err(error) if row.damage.is_some() && error.is_of_one_run() => Vec::new(),
        entries => entries?,
    };
    let work = Work::until(round, &entries);
    let settings = match entries.first() {
        Some(Entry { record: Record::RunStarted(start), .. }) => Some(&start.settings),
        Some(_) | None => None,
    };
    let mut training = vec![("run", row.run.to_string()), ("round", format!("{round} of {}", row.summary.rounds))];
    let mut data = Vec::new();
    if work.updates > 0 {
        training.push(("devices", work.devices.len().to_string()));
        training.push(("updates", work.updates.to_string()));
        data.push(("devices with data of their own", work.devices.len().to_string()));
        data.push(("training examples, each counted as often as it was used", work.examples.to_string()));
        data.push(("training tokens, counted likewise", work.tokens.to_string()));
    }
    training.extend(settings.into_iter().flat_map(|settings| chosen(settings)));
    let figures = figures(row, round);
    if let Some(figures) = &figures {
        data.push(("examples of the last evaluation, apart from training", figures.examples.to_string()));
        if settings.is_some_and(|settings| settings.sharing != Sharing::All) {
            let which =
                "of each device, with the layers that it keeps to itself; these weights alone may score otherwise";
            data.push(("evaluated model", which.to_owned()));
        }
    }
    let results = figures.iter().flat_map(results).collect();
    Ok(About { base_model: None, is_federated: true, training, data, results })
}

/// The work behind the weights of a round.
#[derive(Default)]
struct Work {
    devices: BTreeSet<String>,
    updates: u64,
    examples: u64,
    tokens: u64,
}

impl Work {
    /// Counts the updates that arrived before `round` was closed.
    fn until(round: u32, entries: &[Entry]) -> Self {
        let (mut work, mut closed) = (Self::default(), 0);
        for entry in entries.iter() {
            match &entry.record {
                Record::UpdateStored { device, report, .. } if closed < round => {
                    work.devices.insert(device.to_string());
                    work.updates += 1;
                    work.examples = work.examples.saturating_add(report.examples);
                    work.tokens = work.tokens.saturating_add(report.tokens);
                }
                Record::Merged(_) | Record::Skipped { .. } => closed += 1,
                Record::UpdateStored { .. }
                | Record::RunStarted(_)
                | Record::Resumed
                | Record::TrainingStarted { .. }
                | Record::DeviceOut { .. }
                | Record::Collected
                | Record::EvaluationStarted { .. }
                | Record::Evaluated(_)
                | Record::RunEnded { .. }
                | Record::PolicySet(_) => {}
            }
        }
        work
    }
}

fn chosen(settings: &RunSettings) -> Vec<(&'static str, String)> {
    vec![
        ("steps of a device in a round", settings.steps.to_string()),
        ("batch", settings.batch.to_string()),
        ("longest text, in tokens", settings.max_tokens.to_string()),
        ("learning rate", settings.learning_rate.to_string()),
        ("seed", settings.seed.to_string()),
    ]
}

/// Returns the figures of the evaluation of the weights that `round` made, if the journal has them.
fn figures(row: &RunRow, round: u32) -> Option<Figures> {
    let kept = [&row.summary.best, &row.summary.last].into_iter().flatten().find(|kept| kept.round == round);
    kept.and_then(|kept| kept.metrics)
}

fn results(figures: &Figures) -> Vec<Figure> {
    let all = [
        ("accuracy", "accuracy", figures.accuracy),
        ("macro F1", "f1", figures.macro_f1),
        ("F1 of spans", "f1", figures.span_f1),
        ("mean squared error", "mse", figures.mse),
        ("Pearson's r", "pearsonr", figures.pearson_r),
        ("perplexity", "perplexity", figures.perplexity),
    ];
    let known = all.into_iter().filter_map(|(name, metric, value)| Some((name, metric, value?)));
    known.map(|(name, metric, value)| Figure { name, metric, value: format!("{value:.4}") }).collect()
}
