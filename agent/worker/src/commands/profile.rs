//! The time of a step by operator, added up from ONNX Runtime's traces.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use skiff_screen::table::{Column, Table};
use std::collections::BTreeMap;
use std::path::Path;

/// The time of a process's steps by operator.
#[derive(Serialize)]
pub(super) struct Profile {
    /// Number of all steps, warm-up included.
    steps: usize,
    /// Mean time of a step.
    step_seconds: f64,
    /// The operators, slowest first.
    operators: Vec<Operator>,
    /// Time in ONNX Runtime outside of operators, for each step.
    runtime_seconds: f64,
    /// Time in Skiff, for each step: the optimizer, the sum of gradients, the batch.
    outside_seconds: f64,
}

/// One kind of operator.
#[derive(Serialize)]
struct Operator {
    name: String,
    /// Number of calls in a step.
    calls: f64,
    /// Time in a step.
    seconds: f64,
}

/// The fields of a trace's event that the profile uses.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    name: String,
    /// Duration in microseconds.
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Deserialize, Default)]
struct Arguments {
    #[serde(default)]
    op_name: String,
}

/// Creates the folder for traces, and refuses one that is not empty.
pub(super) fn prepare(folder: &Path) -> anyhow::Result<()> {
    let named = || format!("--profile {}", folder.display());
    std::fs::create_dir_all(folder).with_context(named)?;
    let mut entries = std::fs::read_dir(folder).with_context(named)?;
    ensure!(entries.next().is_none(), "{}: the folder is not empty; name a new one", named());
    Ok(())
}

impl Profile {
    /// Reads the traces in `folder`, which cover `steps` steps with a total of `seconds`.
    pub(super) fn read(folder: &Path, steps: usize, seconds: f64) -> anyhow::Result<Self> {
        let per_step = |microseconds: f64| microseconds / 1e6 / steps.max(1) as f64;
        let mut operators = BTreeMap::<String, (usize, f64)>::new();
        let mut runs = 0.0;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let events: Vec<Event> =
                serde_json::from_slice(&text).with_context(|| format!("reading the trace {}", path.display()))?;
            for Event { cat, name, dur, args } in events {
                if cat == "Node" && name.ends_with("_kernel_time") {
                    let (calls, all) = operators.entry(args.op_name).or_default();
                    *calls += 1;
                    *all += dur;
                } else if name == "model_run" {
                    runs += dur;
                }
            }
        }
        ensure!(!operators.is_empty(), "{} holds no trace of a step", folder.display());
        let inside: f64 = operators.values().map(|(_, all)| all).sum();
        let operator = |(name, (calls, all)): (String, (usize, f64))| Operator {
            name,
            calls: calls as f64 / steps.max(1) as f64,
            seconds: per_step(all),
        };
        let mut operators: Vec<Operator> = operators.into_iter().map(operator).collect();
        operators.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
        let step_seconds = seconds / steps.max(1) as f64;
        Ok(Self {
            steps,
            step_seconds,
            operators,
            runtime_seconds: per_step(runs - inside),
            outside_seconds: step_seconds - per_step(runs),
        })
    }

    /// Returns the profile as a table.
    pub(super) fn table(&self) -> Table {
        let columns = ["calls", "ms a step", "share"].map(Column::number);
        let mut table = Table::new(std::iter::once(Column::text("operator")).chain(columns));
        let share = |seconds: f64| format!("{:.1}%", 100.0 * seconds / self.step_seconds);
        let ms = |seconds: f64| format!("{:.2}", 1000.0 * seconds);
        for Operator { name, calls, seconds } in &self.operators {
            table.add([name.clone(), format!("{calls:.0}"), ms(*seconds), share(*seconds)]);
        }
        let rest = [("(ONNX Runtime itself)", self.runtime_seconds), ("(outside of it)", self.outside_seconds)];
        for (name, seconds) in rest {
            table.add([name.to_owned(), String::new(), ms(seconds), share(seconds)]);
        }
        table.add(["all".to_owned(), String::new(), ms(self.step_seconds), String::new()]);
        table
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn operators_are_added_up_over_graphs_and_the_rest_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let trace = |graph: &str, kernels: &[(&str, u32)], run: u32| {
            let node = |(op, dur): &(&str, u32)| {
                format!(r#"{{"cat":"Node","name":"x_kernel_time","dur":{dur},"args":{{"op_name":"{op}"}}}},"#)
            };
            let nodes: String = kernels.iter().map(node).collect();
            let text = format!(r#"[{nodes}{{"cat":"Session","name":"model_run","dur":{run},"args":{{}}}}]"#);
            std::fs::write(folder.path().join(graph), text).unwrap();
        };
        trace("one", &[("Gemm", 3_000_000), ("Add", 500_000)], 4_000_000);
        trace("two", &[("Gemm", 1_000_000)], 1_000_000);
        let profile = Profile::read(folder.path(), 2, 6.0).unwrap();
        let found: Vec<(&str, f64, f64)> =
            profile.operators.iter().map(|line| (line.name.as_str(), line.calls, line.seconds)).collect();
        assert_eq!(found, [("Gemm", 1.0, 2.0), ("Add", 0.5, 0.25)]);
        let times = [profile.step_seconds, profile.runtime_seconds, profile.outside_seconds];
        assert_eq!(times.map(f64::to_bits), [3.0, 0.25, 0.5].map(f64::to_bits));
        assert!(profile.table().text(None).contains("66.7%"));
    }

    #[test]
    fn a_folder_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        prepare(&folder.path().join("new")).unwrap();
        assert!(prepare(folder.path()).unwrap_err().to_string().contains("not empty"));
        assert!(Profile::read(&folder.path().join("new"), 1, 1.0).is_err());
    }
}
