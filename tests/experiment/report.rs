//! Results over all runs: a report with plots for people, CSV for their tools, JSON for programs.
//!
//! | number | how |
//! |---|---|
//! | final accuracy | a mean over a run's last [`LAST`] measurements |
//! | target | [`TARGET`] of FedLoRA's final personal accuracy in that part, of the same seed |
//! | seconds to target | the first time that the mean of [`SMOOTHED`] measurements in a row is at the target, between measurements on a line |
//! | interval | 95 %, of Student's t over seeds |

use crate::fleets::{CLASSES, Fleet, RADIO_WATTS};
use crate::methods;
use crate::plot::{Curve, curves};
use crate::simulation::{Outcome, Point};
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const LAST: usize = 3;
const SMOOTHED: usize = 3;
const TARGET: f64 = 0.98;
/// Method that the others are compared with.
const BASELINE: &str = "fedlora";

/// Runs of one fleet and one kind of data, by method in the order of the tables, then by seed.
struct Part<'a> {
    fleet: &'a str,
    data: &'a str,
    alpha: f64,
    methods: Vec<(&'static str, Vec<&'a Outcome>)>,
}

/// A number over seeds.
#[derive(Clone, Copy)]
struct Over {
    mean: f64,
    /// Half of the interval; `None` for a single seed.
    half: Option<f64>,
}

impl Over {
    fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let mean = (count > 0).then(|| values.iter().sum::<f64>() / count as f64)?;
        let spread = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let half = (count > 1).then(|| {
            let deviation = (spread / (count - 1) as f64).sqrt();
            student(count - 1) * deviation / (count as f64).sqrt()
        });
        Some(Self { mean, half })
    }

    fn shown(self, scale: f64, digits: usize) -> String {
        let mean = self.mean * scale;
        match self.half {
            Some(half) => format!("{mean:.digits$} ± {:.digits$}", half * scale),
            None => format!("{mean:.digits$}"),
        }
    }
}

/// Returns the 97.5 % point of Student's t for a number of degrees of freedom.
fn student(freedom: usize) -> f64 {
    const POINTS: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    // Beyond the table a little wide, never narrow.
    POINTS.get(freedom.saturating_sub(1)).copied().unwrap_or(POINTS[POINTS.len() - 1])
}

fn last(outcome: &Outcome, of: impl Fn(&Point) -> f64) -> f64 {
    let points = &outcome.points[outcome.points.len().saturating_sub(LAST)..];
    points.iter().map(of).sum::<f64>() / points.len().max(1) as f64
}

/// Returns the first time at which the smoothed personal accuracy is at `target`.
fn seconds_to(outcome: &Outcome, target: f64) -> Option<f64> {
    let smooth: Vec<(f64, f64)> = outcome
        .points
        .windows(SMOOTHED)
        .map(|window| {
            let personal = window.iter().map(|point| point.personal).sum::<f64>() / SMOOTHED as f64;
            (window[SMOOTHED - 1].seconds, personal)
        })
        .collect();
    let at = smooth.iter().position(|&(_, accuracy)| accuracy >= target)?;
    let (seconds, accuracy) = smooth[at];
    let Some(&(earlier, lower)) = at.checked_sub(1).and_then(|before| smooth.get(before)) else { return Some(seconds) };
    Some(earlier + (seconds - earlier) * (target - lower) / (accuracy - lower))
}

impl<'a> Part<'a> {
    fn all(outcomes: &'a [Outcome]) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        let sets: BTreeSet<&str> = outcomes.iter().map(|outcome| outcome.cell.data.as_str()).collect();
        for fleet in Fleet::ALL.map(Fleet::name) {
            for &data in &sets {
                let here = |outcome: &&Outcome| outcome.cell.fleet == fleet && outcome.cell.data == data;
                let mut alphas: Vec<f64> = outcomes.iter().filter(here).map(|outcome| outcome.cell.alpha).collect();
                alphas.sort_by(f64::total_cmp);
                alphas.dedup_by(|a, b| (*a - *b).abs() < 1e-9);
                for alpha in alphas {
                    let runs_of = |name: &str| {
                        let mut runs: Vec<&Outcome> = outcomes
                            .iter()
                            .filter(here)
                            .filter(|outcome| outcome.cell.method == name && (outcome.cell.alpha - alpha).abs() < 1e-9)
                            .collect();
                        runs.sort_by_key(|outcome| outcome.cell.seed);
                        runs
                    };
                    let methods = methods::all().into_iter().map(|method| (method.name, runs_of(method.name)));
                    let methods = methods.filter(|(_, runs)| !runs.is_empty()).collect();
                    parts.push(Self { fleet, data, alpha, methods });
                }
            }
        }
        parts
    }

    fn runs(&self, method: &str) -> &[&'a Outcome] {
        self.methods.iter().find(|(name, _)| *name == method).map_or(&[], |(_, runs)| runs)
    }

    /// The accuracy to reach, a mean over seeds; `None` without FedLoRA.
    fn target(&self) -> Option<f64> {
        let finals: Vec<f64> = self.runs(BASELINE).iter().map(|run| last(run, |point| point.personal)).collect();
        Over::of(&finals).map(|over| TARGET * over.mean)
    }

    /// Returns FedLoRA's run of the same seed.
    fn same(&self, run: &Outcome) -> Option<&'a Outcome> {
        self.runs(BASELINE).iter().find(|other| other.cell.seed == run.cell.seed).copied()
    }

    /// Time at which the run reached its target.
    fn reached(&self, run: &Outcome) -> Option<f64> {
        seconds_to(run, TARGET * last(self.same(run)?, |point| point.personal))
    }

    fn title(&self) -> String {
        format!("{} fleet, {}, Dirichlet {}", self.fleet, self.data, self.alpha)
    }

    fn plot(&self) -> String {
        format!("{}-{}-{}.svg", self.data, self.alpha, self.fleet)
    }

    /// Returns FedLoRA's seconds divided by each method's, for the same seeds; above 1 the method is faster.
    fn speedup(&self, runs: &[&Outcome]) -> Option<Over> {
        let ratio = |run: &&Outcome| Some(self.reached(self.same(run)?)? / self.reached(run)?);
        Over::of(&runs.iter().filter_map(ratio).collect::<Vec<_>>())
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let row = |(name, runs): &'_ (&'static str, Vec<&'a Outcome>)| {
            let over = |of: &dyn Fn(&Outcome) -> f64| Over::of(&runs.iter().map(|run| of(run)).collect::<Vec<_>>());
            let reached: Vec<f64> = runs.iter().filter_map(|run| self.reached(run)).collect();
            Row {
                name,
                seeds: runs.len(),
                reached: reached.len(),
                seconds: Over::of(&reached),
                speedup: self.speedup(runs),
                personal: over(&|run| last(run, |point| point.personal)),
                global: over(&|run| last(run, |point| point.global)),
                peak: runs.iter().map(|run| run.peak_memory_bytes).max().unwrap_or(0),
                small_peak: runs.iter().filter_map(|run| run.small_peak_memory_bytes).max(),
                bytes: over(&|run| (run.bytes_up + run.bytes_down) as f64),
                joules: over(&|run| run.joules),
                active: over(&|run| run.active_layers),
                whole_seconds: over(&|run| run.points.last().map_or(0.0, |point| point.seconds)),
                left_out: runs.iter().map(|run| run.left_out).max().unwrap_or(0),
                part: self,
            }
        };
        self.methods.iter().map(row).collect()
    }

    fn draw(&self, path: &Path) -> anyhow::Result<()> {
        let curve = |(name, runs): &(&'static str, Vec<&Outcome>)| {
            let count = runs.iter().map(|run| run.points.len()).min().unwrap_or(0);
            let mean = |of: &dyn Fn(&Point) -> f64, at: usize| {
                runs.iter().map(|run| of(&run.points[at])).sum::<f64>() / runs.len() as f64
            };
            let point = |at| (mean(&|point| point.seconds, at), 100.0 * mean(&|point| point.personal, at));
            Curve { name: (*name).to_owned(), points: (0..count).map(point).collect() }
        };
        let all: Vec<Curve> = self.methods.iter().map(curve).collect();
        curves(path, &self.title(), &all, self.target().map(|target| 100.0 * target))
    }
}

/// A method in a part, over its seeds.
struct Row<'a> {
    part: &'a Part<'a>,
    name: &'static str,
    seeds: usize,
    reached: usize,
    seconds: Option<Over>,
    speedup: Option<Over>,
    personal: Option<Over>,
    global: Option<Over>,
    peak: u64,
    small_peak: Option<u64>,
    bytes: Option<Over>,
    joules: Option<Over>,
    active: Option<Over>,
    whole_seconds: Option<Over>,
    left_out: usize,
}

impl Row<'_> {
    /// Describes the time to the target; if not every seed reached it, how many did.
    fn time(&self) -> String {
        match self.seconds {
            _ if self.reached == 0 => "not reached".to_owned(),
            Some(seconds) if self.reached == self.seeds => seconds.shown(1.0, 0),
            Some(seconds) => format!("{} ({} of {})", seconds.shown(1.0, 0), self.reached, self.seeds),
            None => "-".to_owned(),
        }
    }

    fn json(&self) -> Value {
        let mean = |over: Option<Over>| over.map(|over| over.mean);
        let half = |over: Option<Over>| over.and_then(|over| over.half);
        json!({
            "name": self.name,
            "fleet": self.part.fleet,
            "data": self.part.data,
            "alpha": self.part.alpha,
            "seeds": self.seeds,
            "target_accuracy": self.part.target(),
            "reached": self.reached,
            "seconds_to_target": mean(self.seconds),
            "seconds_to_target_interval": half(self.seconds),
            "speedup": mean(self.speedup),
            "final_accuracy": mean(self.global),
            "final_accuracy_interval": half(self.global),
            "personal_accuracy": mean(self.personal),
            "personal_accuracy_interval": half(self.personal),
            "peak_memory_bytes": self.peak,
            "small_peak_memory_bytes": self.small_peak,
            "bytes": mean(self.bytes),
            "joules": mean(self.joules),
            "active_layers": mean(self.active),
            "left_out": self.left_out,
        })
    }
}

/// Describes a finished run in a line.
pub(crate) fn line(outcome: &Outcome) -> String {
    let cell = &outcome.cell;
    let seconds = outcome.points.last().map_or(0.0, |point| point.seconds);
    format!(
        "{:<14} {:<8} alpha {:<4} {:<20} seed {}: personal {:.1} %, global {:.1} %, {seconds:.0} virtual seconds, {:.1} layers",
        cell.fleet,
        cell.data,
        cell.alpha,
        cell.method,
        cell.seed,
        100.0 * last(outcome, |point| point.personal),
        100.0 * last(outcome, |point| point.global),
        outcome.active_layers,
    )
}

/// Returns the tables for a terminal.
pub(crate) fn short(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for part in Part::all(outcomes) {
        let target = part.target().map_or_else(String::new, |target| format!(" (target {:.1} %)", 100.0 * target));
        let _ = writeln!(text, "\n{}{target}", part.title());
        let _ = writeln!(
            text,
            "  {:<20} {:>20} {:>14} {:>14} {:>10}",
            "method", "s to target", "personal %", "global %", "peak MB"
        );
        for row in part.rows() {
            let shown = |over: Option<Over>| over.map_or_else(|| "-".to_owned(), |over| over.shown(100.0, 1));
            let (time, personal, global) = (row.time(), shown(row.personal), shown(row.global));
            let peak = row.peak as f64 / 1e6;
            let _ = writeln!(text, "  {:<20} {time:>20} {personal:>14} {global:>14} {peak:>10.0}", row.name);
        }
    }
    text
}

/// Writes everything into `out`; returns the files.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn write(out: &Path, outcomes: &[Outcome], json: Option<&Path>) -> anyhow::Result<Vec<PathBuf>> {
    let parts = Part::all(outcomes);
    let mut files = Vec::new();
    let mut put = |path: PathBuf, text: String| -> anyhow::Result<()> {
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        files.push(path);
        Ok(())
    };
    put(out.join("report.md"), markdown(&parts))?;
    put(out.join("results.csv"), results_csv(&parts))?;
    put(out.join("points.csv"), points_csv(outcomes))?;
    if let Some(path) = json {
        let methods: Vec<Value> =
            parts.iter().flat_map(|part| part.rows().iter().map(Row::json).collect::<Vec<_>>()).collect();
        put(path.to_owned(), format!("{:#}\n", json!({ "methods": methods })))?;
    }
    for part in &parts {
        let path = out.join(part.plot());
        part.draw(&path)?;
        files.push(path);
    }
    Ok(files)
}

fn markdown(parts: &[Part<'_>]) -> String {
    let mut text = String::from("# Federated fine-tuning methods on virtual fleets\n\n");
    let Some(scale) = parts.iter().find_map(|part| part.methods.first()).map(|(_, runs)| runs[0].cell.scale) else {
        return text;
    };
    let _ = writeln!(
        text,
        "Training is real (MiniLM-L6, Skiff's trainer and coordinator in one process); time is virtual (simulated, see below). \
         There are {} devices, and {} of them train in a round. Every run lasts as long as {} rounds of a tx2 with every layer. \
         A round has {} steps of {} texts, with AdamW at {}. Accuracy is measured {} times in a run, outside of the virtual time. \
         The figures are means over seeds, with 95 % intervals of Student's t.\n\n\
         The target is {:.0} % of FedLoRA's final personal accuracy with the same fleet, data and seed; *s to target* is the first time that the mean of {SMOOTHED} \
         measurements in a row reaches it; *x* is FedLoRA's time divided by the method's, for the same seeds. *Personal* is the mean \
         accuracy over all devices, also those left out, each with its own layers on {} texts of its own mix of classes. *Global* is \
         the accuracy of the global model on 400 texts in the data set's own mix. *Peak* is the predicted memory of the largest step \
         with its process; *of small* is the same over devices that hold only some of the layers.",
        scale.devices,
        scale.trained,
        scale.rounds,
        scale.steps,
        scale.batch,
        scale.learning_rate,
        scale.measured,
        100.0 * TARGET,
        24,
    );
    for part in parts {
        let target = part.target().map_or_else(|| "none".to_owned(), |target| format!("{:.1} %", 100.0 * target));
        let _ = writeln!(text, "\n## {}\n\nTarget: {target}.\n\n![{}]({})\n", part.title(), part.title(), part.plot());
        text += "| method | s to target | x | personal % | global % | layers | peak MB | of small | MB sent | kJ | s in all | left out |\n";
        text += "|---|---|---|---|---|---|---|---|---|---|---|---|\n";
        for row in part.rows() {
            let shown = |over: Option<Over>, scale, digits| {
                over.map_or_else(|| "-".to_owned(), |over| over.shown(scale, digits))
            };
            let small = row.small_peak.map_or_else(|| "-".to_owned(), |bytes| format!("{:.0}", bytes as f64 / 1e6));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {:.0} | {small} | {} | {} | {} | {} |",
                row.name,
                row.time(),
                shown(row.speedup, 1.0, 2),
                shown(row.personal, 100.0, 1),
                shown(row.global, 100.0, 1),
                row.active.map_or_else(String::new, |over| format!("{:.1}", over.mean)),
                row.peak as f64 / 1e6,
                row.bytes.map_or_else(String::new, |over| format!("{:.0}", over.mean / 1e6)),
                row.joules.map_or_else(String::new, |over| format!("{:.1}", over.mean / 1e3)),
                row.whole_seconds.map_or_else(String::new, |over| format!("{:.0}", over.mean)),
                row.left_out,
            );
        }
        if let Some([fastest, leanest]) = part.methods.first().map(|(_, runs)| runs[0].whole_memory_bytes) {
            let _ = writeln!(
                text,
                "\nA step with every layer takes {:.0} MB in the fastest way, {:.0} MB in the leanest.",
                fastest as f64 / 1e6,
                leanest as f64 / 1e6
            );
        }
    }
    text += "\n## Methods\n\n| method | what |\n|---|---|\n";
    for method in methods::all() {
        let _ = writeln!(text, "| {} | {} |", method.name, method.what);
    }
    text += "\n## Fleets\n\n| fleet | what |\n|---|---|\n";
    for fleet in Fleet::ALL {
        let _ = writeln!(text, "| {} | {} |", fleet.name(), fleet.what());
    }
    text += "\n## Assumptions\n\n| class | GFLOP/s of a training step | link, Mbit/s | W while training | rank in fedhetlora |\n|---|---|---|---|---|\n";
    for class in CLASSES {
        let rank = if class.rank == 0 { "8".to_owned() } else { class.rank.to_string() };
        let _ = writeln!(text, "| {} | {} | {} | {} | {rank} |", class.name, class.gflops, class.mbits, class.watts);
    }
    let _ = writeln!(
        text,
        "\nThe time of a step is the matrix products of its active layers, divided by the class's speed. It is longer if the agent's memory \
         plan does the step in parts. Measuring a gain (before and after the training, 16 texts, every layer) takes time, merging takes \
         none. The time of a transfer is the size of the trainable tensors, divided by the link's speed. Energy is the class's power \
         while it computes, and {RADIO_WATTS} W while it transfers. A method that needs every layer leaves out devices without the \
         memory or the time for it."
    );
    text
}

fn results_csv(parts: &[Part<'_>]) -> String {
    let mut text = String::from(
        "fleet,data,alpha,method,seeds,target,reached,seconds_to_target,interval,speedup,personal,personal_interval,global,\
         global_interval,peak_memory_bytes,small_peak_memory_bytes,bytes,joules,active_layers,left_out\n",
    );
    let cell = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value}"));
    for row in parts.iter().flat_map(Part::rows) {
        let pair = |over: Option<Over>| {
            format!("{},{}", cell(over.map(|over| over.mean)), cell(over.and_then(|over| over.half)))
        };
        let mean = |over: Option<Over>| cell(over.map(|over| over.mean));
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            row.part.fleet,
            row.part.data,
            row.part.alpha,
            row.name,
            row.seeds,
            cell(row.part.target()),
            row.reached,
            pair(row.seconds),
            mean(row.speedup),
            pair(row.personal),
            pair(row.global),
            row.peak,
            row.small_peak.map_or_else(String::new, |bytes| bytes.to_string()),
            mean(row.bytes),
            mean(row.joules),
            mean(row.active),
            row.left_out,
        );
    }
    text
}

fn points_csv(outcomes: &[Outcome]) -> String {
    let mut text = String::from("fleet,data,alpha,method,seed,round,seconds,personal,global\n");
    for outcome in outcomes {
        let cell = &outcome.cell;
        for Point { round, seconds, global, personal } in &outcome.points {
            let (fleet, data, method) = (&cell.fleet, &cell.data, &cell.method);
            let _ = writeln!(
                text,
                "{fleet},{data},{},{method},{},{round},{seconds},{personal},{global}",
                cell.alpha, cell.seed
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::simulation::{Cell, Scale};

    fn outcome(method: &str, seed: u64, accuracies: &[f64]) -> Outcome {
        let scale = Scale { devices: 4, trained: 2, rounds: 4, steps: 2, batch: 4, learning_rate: 1e-3, measured: 4 };
        let text = str::to_owned;
        let (fleet, data, settings) = (text("roomy"), text("hwu64"), String::new());
        let point = |(at, &personal): (usize, &f64)| Point {
            round: at as u32,
            seconds: 10.0 * at as f64,
            global: personal,
            personal,
        };
        Outcome {
            cell: Cell { method: text(method), fleet, data, texts: String::new(), alpha: 1.0, seed, scale, settings },
            points: accuracies.iter().enumerate().map(point).collect(),
            peak_memory_bytes: 1,
            small_peak_memory_bytes: None,
            whole_memory_bytes: [2, 1],
            bytes_up: 1,
            bytes_down: 1,
            joules: 1.0,
            active_layers: 6.0,
            skipped_rounds: 0,
            left_out: 0,
            weights: String::new(),
        }
    }

    #[test]
    fn the_time_to_a_target_lies_between_measurements() {
        let run = outcome("fedlora", 1, &[0.0, 0.0, 0.0, 0.3, 0.6]);
        // Means of three: 0, 0.1, 0.3 at 20, 30, 40 s.
        assert!((seconds_to(&run, 0.2).unwrap() - 35.0).abs() < 1e-9);
        assert_eq!(seconds_to(&run, 0.31), None);
    }

    #[test]
    fn an_interval_is_students() {
        let over = Over::of(&[1.0, 2.0, 3.0]).unwrap();
        assert!((over.mean - 2.0).abs() < 1e-12 && (over.half.unwrap() - 4.303 / 3f64.sqrt()).abs() < 1e-9);
        assert_eq!(Over::of(&[1.0]).unwrap().half, None);
        assert!(Over::of(&[]).is_none());
    }

    #[test]
    fn methods_are_compared_with_fedlora_of_the_same_seed() {
        let slow = [0.0, 0.0, 0.2, 0.4, 0.6, 0.6, 0.6];
        let fast = [0.0, 0.3, 0.6, 0.6, 0.6, 0.6, 0.6];
        let outcomes = [outcome("fedlora", 1, &slow), outcome("droppeft", 1, &fast), outcome("droppeft", 2, &fast)];
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("summary.json");
        let files = write(folder.path(), &outcomes, Some(&json)).unwrap();
        assert!(files.iter().all(|file| file.metadata().unwrap().len() > 100));
        let summary: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let droppeft = &summary["methods"][1];
        assert_eq!((droppeft["name"].as_str(), droppeft["reached"].as_u64()), (Some("droppeft"), Some(1)));
        assert!(droppeft["speedup"].as_f64().unwrap() > 1.3, "{droppeft}");
    }
}
