//! Translates records between the engine's types and the journal's.

use super::journal::{self, RecordFault};
use crate::run::configurator::{Choice, DropoutRates};
use crate::run::{Assignment, Entry, Evaluation, Merged, ModelTask, Record, Start};
use skiff_api::names::BadRunName;
use skiff_api::policy::{Group, Policy, Share, Sharing};
use skiff_models::task::Task;
use skiff_protocol::DeviceId;
use skiff_protocol::messages::{Probe, SharingPlan, TrainReport};
use skiff_protocol::metrics::{
    Cell, ClassCounts, Classification, Language, Regression, SpanCounts, TaskMetrics, Tokens,
};
use std::collections::BTreeMap;

impl From<&Entry> for journal::Entry {
    fn from(entry: &Entry) -> Self {
        Self { at_ms: entry.at_ms, record: (&entry.record).into() }
    }
}

impl TryFrom<journal::Entry> for Entry {
    type Error = RecordFault;

    fn try_from(entry: journal::Entry) -> Result<Self, RecordFault> {
        Ok(Self { at_ms: entry.at_ms, record: entry.record.try_into()? })
    }
}

impl From<&Record> for journal::Record {
    fn from(record: &Record) -> Self {
        match record.clone() {
            Record::RunStarted(Start { run, name, settings, layers, pack, schema, weights, task }) => {
                let task =
                    task.map(|ModelTask { task, labels }| journal::ModelTask { task: task.name().to_owned(), labels });
                let settings = serde_json::to_string(&*settings).expect("settings are plain values with text keys");
                let start = journal::Start { run, settings, layers, pack, schema, weights, task };
                match name {
                    None => Self::RunStarted(start),
                    Some(name) => Self::NamedRunStarted { start, name: name.into() },
                }
            }
            Record::Resumed => Self::Resumed,
            Record::TrainingStarted { epoch, assignments } => {
                let assignments = assignments.into_iter().map(|(device, order)| (device, order.into())).collect();
                Self::TrainingStarted { epoch, assignments }
            }
            Record::UpdateStored { device, update, report, distance } => {
                Self::UpdateStored { device, update, report: report.into(), distance }
            }
            Record::DeviceOut { device, reason } => Self::DeviceOut { device, reason },
            Record::Collected => Self::Collected,
            Record::Merged(Merged { weights, moments }) => Self::Merged { weights, moments },
            Record::Skipped { reason } => Self::Skipped { reason },
            Record::EvaluationStarted { epoch, examples } => Self::EvaluationStarted { epoch, examples },
            Record::Evaluated(Evaluation { devices, examples, correct, loss_sum, metrics, left_out }) => {
                if metrics == TaskMetrics::Unknown && left_out.is_empty() {
                    return Self::Evaluated { devices, examples, correct, loss_sum };
                }
                let evaluation = journal::Evaluation { devices, examples, correct, loss_sum };
                Self::Measured { evaluation, metrics: (&metrics).into(), left_out }
            }
            Record::RunEnded { stopped } => Self::RunEnded { stopped },
            Record::PolicySet(policy) => Self::PolicySet(policy.into()),
        }
    }
}

impl TryFrom<journal::Start> for Start {
    type Error = RecordFault;

    fn try_from(start: journal::Start) -> Result<Self, RecordFault> {
        let journal::Start { run, settings, layers, pack, schema, weights, task } = start;
        let task = task.map(ModelTask::try_from).transpose()?;
        let settings = serde_json::from_str(&settings);
        let settings = settings.map_err(|error| RecordFault::Unreadable(error.to_string()))?;
        Ok(Self { run, name: None, settings, layers, pack, schema, weights, task })
    }
}

impl TryFrom<journal::Record> for Record {
    type Error = RecordFault;

    fn try_from(record: journal::Record) -> Result<Self, RecordFault> {
        Ok(match record {
            journal::Record::RunStarted(start) => Self::RunStarted(start.try_into()?),
            journal::Record::NamedRunStarted { start, name } => {
                let name = name.parse().map_err(|bad: BadRunName| RecordFault::Unreadable(bad.to_string()))?;
                Self::RunStarted(Start { name: Some(name), ..start.try_into()? })
            }
            journal::Record::Resumed => Self::Resumed,
            journal::Record::TrainingStarted { epoch, assignments } => {
                let orders = assignments.into_iter().map(|(device, order)| Ok((device, order.try_into()?)));
                Self::TrainingStarted { epoch, assignments: orders.collect::<Result<_, RecordFault>>()? }
            }
            journal::Record::UpdateStored { device, update, report, distance } => {
                Self::UpdateStored { device, update, report: report.into(), distance }
            }
            journal::Record::DeviceOut { device, reason } => Self::DeviceOut { device, reason },
            journal::Record::Collected => Self::Collected,
            journal::Record::Merged { weights, moments } => Self::Merged(Merged { weights, moments }),
            journal::Record::Skipped { reason } => Self::Skipped { reason },
            journal::Record::EvaluationStarted { epoch, examples } => Self::EvaluationStarted { epoch, examples },
            journal::Record::Evaluated { devices, examples, correct, loss_sum } => {
                Self::Evaluated(Evaluation { devices, examples, correct, loss_sum, ..Evaluation::default() })
            }
            journal::Record::Measured { evaluation, metrics, left_out } => {
                Self::Evaluated(measured(&evaluation, &metrics, left_out)?)
            }
            journal::Record::RunEnded { stopped } => Self::RunEnded { stopped },
            journal::Record::PolicySet(policy) => Self::PolicySet(policy.into()),
        })
    }
}

impl TryFrom<journal::ModelTask> for ModelTask {
    type Error = RecordFault;

    fn try_from(journal::ModelTask { task, labels }: journal::ModelTask) -> Result<Self, RecordFault> {
        let known = Task::ALL.into_iter().find(|known| known.name() == task);
        let task = known.ok_or_else(|| RecordFault::Unreadable(format!("the task {task:?} is unknown")))?;
        Ok(Self { task, labels })
    }
}

/// Builds an evaluation from its parts in the journal.
pub(super) fn measured(
    evaluation: &journal::Evaluation,
    metrics: &journal::Metrics,
    left_out: BTreeMap<DeviceId, String>,
) -> Result<Evaluation, RecordFault> {
    let journal::Evaluation { devices, examples, correct, loss_sum } = *evaluation;
    Ok(Evaluation { devices, examples, correct, loss_sum, metrics: metrics.try_into()?, left_out })
}

impl From<&TaskMetrics> for journal::Metrics {
    fn from(metrics: &TaskMetrics) -> Self {
        match metrics {
            TaskMetrics::Unknown => Self::Unknown,
            TaskMetrics::Classification(counts) => {
                let class = |class: &ClassCounts| [class.truth, class.predicted, class.correct];
                let cells =
                    |cells: &[Cell]| cells.iter().map(|cell| (cell.truth, cell.predicted, cell.count)).collect();
                let classes = counts.classes().iter().map(class).collect();
                Self::Classification { classes, confusion: counts.confusion().map(cells) }
            }
            TaskMetrics::Tokens(counts) => {
                let span = |span: &SpanCounts| (span.name.clone(), [span.truth, span.predicted, span.correct]);
                let Tokens { tokens, correct_tokens, .. } = *counts;
                Self::Tokens { tokens, correct_tokens, spans: counts.spans().iter().map(span).collect() }
            }
            TaskMetrics::Regression(Regression { pairs, sum_x, sum_y, sum_xx, sum_yy, sum_xy, squared_error }) => {
                Self::Regression { pairs: *pairs, sums: [*sum_x, *sum_y, *sum_xx, *sum_yy, *sum_xy, *squared_error] }
            }
            TaskMetrics::Language(Language { tokens, loss_sum }) => {
                Self::Language { tokens: *tokens, loss_sum: *loss_sum }
            }
        }
    }
}

impl TryFrom<&journal::Metrics> for TaskMetrics {
    type Error = RecordFault;

    fn try_from(metrics: &journal::Metrics) -> Result<Self, RecordFault> {
        let unreadable =
            || RecordFault::Unreadable("the counts of an evaluation do not agree with each other".to_owned());
        Ok(match metrics {
            journal::Metrics::Unknown => Self::Unknown,
            journal::Metrics::Classification { classes, confusion } => {
                let class = |&[truth, predicted, correct]: &[u64; 3]| ClassCounts { truth, predicted, correct };
                let cell = |&(truth, predicted, count): &(u16, u16, u64)| Cell { truth, predicted, count };
                let classes = classes.iter().map(class).collect();
                let confusion = confusion.as_ref().map(|cells| cells.iter().map(cell).collect());
                Self::Classification(Classification::of_counts(classes, confusion).ok_or_else(unreadable)?)
            }
            journal::Metrics::Tokens { tokens, correct_tokens, spans } => {
                let mut counts = Tokens::default();
                (counts.tokens, counts.correct_tokens) = (*tokens, *correct_tokens);
                for (name, [truth, predicted, correct]) in spans {
                    let (name, truth, predicted, correct) = (name.clone(), *truth, *predicted, *correct);
                    counts.add_spans(&SpanCounts { name, truth, predicted, correct }).map_err(|_| unreadable())?;
                }
                Self::Tokens(counts)
            }
            journal::Metrics::Regression { pairs, sums: [sum_x, sum_y, sum_xx, sum_yy, sum_xy, squared_error] } => {
                Self::Regression(Regression {
                    pairs: *pairs,
                    sum_x: *sum_x,
                    sum_y: *sum_y,
                    sum_xx: *sum_xx,
                    sum_yy: *sum_yy,
                    sum_xy: *sum_xy,
                    squared_error: *squared_error,
                })
            }
            journal::Metrics::Language { tokens, loss_sum } => {
                Self::Language(Language { tokens: *tokens, loss_sum: *loss_sum })
            }
        })
    }
}

/// Implements the conversion in both directions between two types with the same fields.
macro_rules! same_fields {
    ($one:path, $other:path, { $($field:ident),+ }) => {
        impl From<$one> for $other {
            fn from(value: $one) -> Self {
                Self { $($field: same_fields!(@ value, $field)),+ }
            }
        }
        impl From<$other> for $one {
            fn from(value: $other) -> Self {
                Self { $($field: same_fields!(@ value, $field)),+ }
            }
        }
    };
    (@ $value:ident, plan) => { $value.plan.into() };
    (@ $value:ident, probe) => { $value.probe.map(Into::into) };
    (@ $value:ident, $field:ident) => { $value.$field };
}

impl From<Assignment> for journal::Assignment {
    fn from(Assignment { choice, share }: Assignment) -> Self {
        let Choice { rates, most_active, arm, class, explores, probe_examples, reason } = choice;
        let rates = rates.into();
        let choice = journal::Choice { rates, most_active, arm, class, explores, probe_examples, reason };
        Self { choice, share: share.into() }
    }
}

impl TryFrom<journal::Assignment> for Assignment {
    type Error = RecordFault;

    fn try_from(journal::Assignment { choice, share }: journal::Assignment) -> Result<Self, RecordFault> {
        let journal::Choice { rates, most_active, arm, class, explores, probe_examples, reason } = choice;
        let rates = DropoutRates::new(rates).map_err(|bad| RecordFault::Unreadable(bad.to_string()))?;
        let choice = Choice { rates, most_active, arm, class, explores, probe_examples, reason };
        Ok(Self { choice, share: share.into() })
    }
}

same_fields!(Share, journal::Share, { group, plan, rank });
same_fields!(Probe, journal::Probe, { examples, loss_before, loss_after, correct_before, correct_after });
same_fields!(TrainReport, journal::Report, {
    examples, tokens, steps, mean_loss, shared_layers, importance, mean_active_layers, train_ms, step_ms, peak_rss_bytes, probe
});

impl From<SharingPlan> for journal::Plan {
    fn from(plan: SharingPlan) -> Self {
        match plan {
            SharingPlan::All => Self::All,
            SharingPlan::LeastImportant { k } => Self::LeastImportant { k },
            SharingPlan::MostImportant { k } => Self::MostImportant { k },
            SharingPlan::Fixed { layers } => Self::Fixed { layers },
        }
    }
}

impl From<journal::Plan> for SharingPlan {
    fn from(plan: journal::Plan) -> Self {
        match plan {
            journal::Plan::All => Self::All,
            journal::Plan::LeastImportant { k } => Self::LeastImportant { k },
            journal::Plan::MostImportant { k } => Self::MostImportant { k },
            journal::Plan::Fixed { layers } => Self::Fixed { layers },
        }
    }
}

impl From<Sharing> for journal::Sharing {
    fn from(sharing: Sharing) -> Self {
        match sharing {
            Sharing::All => Self::All,
            Sharing::LeastImportant(k) => Self::LeastImportant(k),
            Sharing::MostImportant(k) => Self::MostImportant(k),
            Sharing::Layers(layers) => Self::Layers(layers),
        }
    }
}

impl From<journal::Sharing> for Sharing {
    fn from(sharing: journal::Sharing) -> Self {
        match sharing {
            journal::Sharing::All => Self::All,
            journal::Sharing::LeastImportant(k) => Self::LeastImportant(k),
            journal::Sharing::MostImportant(k) => Self::MostImportant(k),
            journal::Sharing::Layers(layers) => Self::Layers(layers),
        }
    }
}

impl From<Policy> for journal::Policy {
    fn from(Policy { sharing, groups }: Policy) -> Self {
        let group = |Group { name, class, region, labels, sharing, rank }| {
            let sharing = sharing.map(Into::into);
            journal::Group { name, class, region, labels, sharing, rank }
        };
        Self { sharing: sharing.into(), groups: groups.into_iter().map(group).collect() }
    }
}

impl From<journal::Policy> for Policy {
    fn from(journal::Policy { sharing, groups }: journal::Policy) -> Self {
        let group = |journal::Group { name, class, region, labels, sharing, rank }| {
            let sharing = sharing.map(Into::into);
            Group { name, class, region, labels, sharing, rank }
        };
        Self { sharing: sharing.into(), groups: groups.into_iter().map(group).collect() }
    }
}
