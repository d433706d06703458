//! `skiff-experiment`: compares federated fine-tuning methods on virtual fleets. Training is real, time is virtual.
//!
//! - [`methods`]: the compared methods
//! - [`fleets`], [`data`]: devices and texts
//! - [`plan`]: the combinations to run
//! - [`simulation`]: one run
//! - [`report`], [`plot`]: results over all runs

mod data;
mod fleets;
mod methods;
mod plan;
mod plot;
mod report;
mod simulation;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use data::{Data, Source, labels_of};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use methods::{Method, Tuning};
use plan::{Narrowed, Planned};
use simulation::{Opened, Outcome, Task, simulate};
use skiff_base::files::{self, Access};
use skiff_base::lock::{Lock, LockError};
use skiff_coordinator::merge::model::Model;
use skiff_models::Pack;
use skiff_models::pack::{BuildOptions, build};
use skiff_tests::places;
use skiff_trainer::Runtime;
use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Compares federated fine-tuning methods on virtual fleets: training is real, time is virtual.
///
/// Every finished run is kept in the output folder, so that an interrupted experiment resumes: give the same command
/// again. All runs give report.md, results.csv, points.csv and plots.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 110)]
struct Options {
    /// Take only a few minutes: few rounds, three methods, the memory-bound fleet
    #[arg(long)]
    quick: bool,
    /// Folder for the results
    #[arg(long, value_name = "FOLDER", default_value = "target/experiment")]
    out: PathBuf,
    /// Your data sets: folders, each with a training and a test file (CSV, TSV or JSON Lines). The first one gets the table's
    /// main part, the others a short one. Without it, commands to a home assistant that the experiment writes itself
    #[arg(long, value_name = "FOLDERS", value_delimiter = ',')]
    data: Vec<PathBuf>,
    /// Write a summary for programs to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these methods (see --list)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    methods: Vec<String>,
    /// Only these fleets (see --list)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    fleets: Vec<String>,
    /// Only these concentrations of Dirichlet's distribution: 0.1, 1, 10
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    alphas: Vec<f64>,
    /// Run every combination of the options above, including those that the table leaves out
    #[arg(long)]
    every: bool,
    /// Number of seeds of each combination, from 1
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Length of a run, in rounds of a tx2 that trains every layer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=10_000))]
    rounds: Option<u32>,
    /// Number of steps of a device in a round
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: Option<u32>,
    /// AdamW's learning rate
    #[arg(long, value_name = "NUMBER")]
    learning_rate: Option<f32>,
    /// Number of runs at a time; all cores if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Print the runs that would be done, and stop
    #[arg(long)]
    list: bool,
    /// Write the report from the finished runs, and stop
    #[arg(long)]
    report: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let sources = Source::all(&options.data)?;
    let planned = plan::cells(&Narrowed {
        quick: options.quick,
        every: options.every,
        methods: &options.methods,
        fleets: &options.fleets,
        sets: &sources,
        alphas: &options.alphas,
        seeds: if options.quick { options.seeds.min(2) } else { options.seeds },
        rounds: options.rounds,
        steps: options.steps,
        learning_rate: options.learning_rate,
    })?;
    if options.list {
        return say(&plan::told(&planned));
    }
    let runs = options.out.join("runs");
    std::fs::create_dir_all(&runs).with_context(|| format!("making {}", runs.display()))?;
    let (mut done, mut open) = (Vec::new(), VecDeque::new());
    for planned in planned {
        match kept(&runs, &planned)? {
            Some(outcome) => done.push(outcome),
            None => open.push_back(planned),
        }
    }
    if !options.report && !open.is_empty() {
        done.extend(carry_out(options, &sources, &runs, open, done.len())?);
    }
    if done.is_empty() {
        bail!("there are no runs in {} yet; leave --report out to make them", runs.display());
    }
    let files = report::write(&options.out, &done, options.json.as_deref())?;
    say(&report::short(&done))?;
    say(&format!("\n{}", files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join("\n")))
}

/// Returns a run's result if it was carried out before with the same plan.
fn kept(runs: &Path, planned: &Planned) -> anyhow::Result<Option<Outcome>> {
    let path = runs.join(planned.file());
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    // A result of another version or other settings is computed again.
    Ok(serde_json::from_slice::<Outcome>(&text).ok().filter(|outcome| outcome.cell == planned.cell))
}

fn keep(runs: &Path, planned: &Planned, outcome: &Outcome) -> anyhow::Result<()> {
    let path = runs.join(planned.file());
    let text = serde_json::to_vec_pretty(outcome)?;
    files::replace(&path, &text, Access::Shared).with_context(|| format!("writing {}", path.display()))
}

/// Values that all runs of a data set share.
struct Prepared {
    data: BTreeMap<String, Data>,
    packs: BTreeMap<(String, Tuning), Opened>,
}

fn prepare(options: &Options, sources: &[Source], open: &VecDeque<Planned>) -> anyhow::Result<Prepared> {
    let texts = options.out.join("texts");
    let folders = sources.iter().map(|source| Ok((source.name.clone(), source.ready(&texts)?)));
    let folders: BTreeMap<String, PathBuf> = folders.collect::<anyhow::Result<_>>()?;
    let mut prepared = Prepared { data: BTreeMap::new(), packs: BTreeMap::new() };
    for Planned { cell, method, .. } in open {
        let key = (cell.data.clone(), method.tuning);
        let set = &folders[&cell.data];
        if !prepared.packs.contains_key(&key) {
            let out = options.out.join("packs").join(format!("{}-{}", cell.data, method.tuning.name()));
            prepared.packs.insert(key.clone(), opened(&out, set, method)?);
        }
        if !prepared.data.contains_key(&cell.data) {
            prepared.data.insert(cell.data.clone(), Data::load(set, &prepared.packs[&key].pack)?);
        }
    }
    Ok(prepared)
}

fn opened(out: &Path, set: &Path, method: &Method) -> anyhow::Result<Opened> {
    let options =
        BuildOptions { peft: method.tuning.peft(), ..BuildOptions::new(&places::minilm(), out, labels_of(set)?) };
    std::fs::create_dir_all(out.parent().unwrap_or(out))?;
    build(&options, &mut |_| {})?;
    Ok(Opened { pack: Pack::open(out)?.into(), model: Model::open(out)? })
}

/// Folder for the blobs of runs, without the blobs of a killed experiment, and the lock that keeps a second experiment out.
fn room(out: &Path) -> anyhow::Result<(Lock, PathBuf)> {
    let lock = Lock::file(&out.join("lock")).map_err(|error| match error {
        LockError::InUse { .. } => {
            anyhow!("another experiment works in {}; wait for it, or choose another --out", out.display())
        }
        LockError::Io { .. } => error.into(),
    })?;
    let scratch = out.join("scratch");
    match std::fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("emptying {}", scratch.display()));
        }
        Ok(()) | Err(_) => {}
    }
    std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    Ok((lock, scratch))
}

/// Carries out runs, several at a time, and keeps each as soon as it is done.
fn carry_out(
    options: &Options,
    sources: &[Source],
    runs: &Path,
    open: VecDeque<Planned>,
    done: usize,
) -> anyhow::Result<Vec<Outcome>> {
    let (_lock, scratch) = room(&options.out)?;
    let prepared = prepare(options, sources, &open)?;
    let library = places::tree().join(".cache/onnxruntime/libonnxruntime.so");
    let named = std::env::var_os("SKIFF_ONNXRUNTIME").is_none().then_some(library.as_path());
    // Each run has one thread: two runs at a time are faster than one run with two threads.
    let runtime = Runtime::load(named, 1)?;
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let jobs = options.jobs.map_or(cores, usize::from).min(open.len());
    let bar = bar(open.iter().map(|planned| u64::from(planned.cell.scale.measured)).sum());
    bar.println(format!("{} runs, {done} of them done before; {jobs} at a time", open.len() + done));
    let (queue, outcomes, failed) = (Mutex::new(open), Mutex::new(Vec::new()), AtomicBool::new(false));
    let work = || -> anyhow::Result<()> {
        while !failed.load(Ordering::Relaxed) {
            let Some(planned) = locked(&queue).pop_front() else { break };
            let Planned { cell, method, fleet } = &planned;
            let scratch = tempfile::tempdir_in(&scratch)?;
            let (data, opened) = (&prepared.data[&cell.data], &prepared.packs[&(cell.data.clone(), method.tuning)]);
            let mut watch = || {
                bar.inc(1);
                if failed.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let task = Task { cell, method, fleet: *fleet, data, opened };
            let outcome = simulate(task, &runtime, scratch.path(), &mut watch).with_context(|| planned.file())?;
            keep(runs, &planned, &outcome)?;
            tell(&bar, &report::line(&outcome))?;
            locked(&outcomes).push(outcome);
        }
        Ok(())
    };
    let guarded = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(guarded)).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a run panicked")));
        ended.collect::<Vec<_>>().into_iter().collect::<anyhow::Result<()>>()
    })?;
    bar.finish_and_clear();
    Ok(outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn bar(measurements: u64) -> ProgressBar {
    let is_live = std::io::stderr().is_terminal();
    let target = if is_live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = "{spinner} {bar:32.cyan} {percent} %, {eta} left";
    let style = ProgressStyle::with_template(style).expect("our templates are well-formed").progress_chars("━━─");
    ProgressBar::with_draw_target(Some(measurements), target).with_style(style)
}

/// Prints a permanent line, above the bar if there is one.
fn tell(bar: &ProgressBar, line: &str) -> anyhow::Result<()> {
    if bar.is_hidden() {
        return say(line);
    }
    bar.println(line);
    Ok(())
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    Ok(writeln!(out, "{text}").and_then(|()| out.flush())?)
}
