//! The demo: trains a whole fleet on one machine while you watch. It is for trying Skiff out, not for production.
//!
//! All parts are real. The embedded broker ([`crate::broker`]) and the coordinator run in this process; each agent is a
//! process `skiff-agent run`; they talk over MQTT. Modules, in the order of a demo: [`Options`], `folder` (files of the
//! demo), `shares` (training data), `agents` (processes), `outcome` (result). The run looks as in `skiff run watch`.
//!
//! However the demo ends, the agents are stopped and the folder is removed. The agents also end when this process is killed.

mod agents;
pub mod broker;
mod folder;
mod options;
mod outcome;
mod shares;
mod stop;

pub use options::Options;

use crate::broker::{Access, EmbeddedBroker, random_password};
use agents::{Agents, Common};
use anyhow::{Context, bail, ensure};
use folder::RunFolder;
use outcome::Outcome;
use shares::{Dealing, Shares};
use skiff_api::progress::{Phase, Presence};
use skiff_cli::watch::Watch;
use skiff_coordinator::board::Follower;
use skiff_coordinator::config::Config;
use skiff_coordinator::serve::Coordinator;
use skiff_models::pack::{BuildOptions, Manifest, build};
use skiff_protocol::DeviceId;
use skiff_screen::live::Live;
use skiff_screen::output::width;
use skiff_screen::text::fold;
use skiff_screen::units::{count, counted};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;
use stop::Stop;
use tokio::select;
use tokio::time::{Instant, interval, timeout};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

const FLEET: &str = "demo";
const COORDINATOR: &str = "coordinator";
const STOPPED: u8 = 130;
/// Number of stages of the set-up: data, pack, broker with coordinator, agents.
const STAGES: u64 = 4;
/// Maximum time from the start of the agents until the coordinator knows them all.
const ARRIVAL: Duration = Duration::from_secs(180);
/// Time between two checks that the agents are running.
const WATCH: Duration = Duration::from_millis(250);
/// Path of the ONNX Runtime that `cross/fetch` downloads.
const FETCHED_ONNXRUNTIME: &str = ".cache/onnxruntime/libonnxruntime.so";

/// Runs the demo to its end, or until SIGINT or SIGTERM.
///
/// # Errors
/// The demo cannot start or finish; the text names the remedy.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    check(options)?;
    let folder = RunFolder::make(options.keep.as_deref())?;
    start_log(&folder.path().join("demo.log"))?;
    let live = Live::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let outcome = runtime.block_on(async {
        let stop = Stop::listen()?;
        play(options, &folder, &live, stop, started).await
    });
    live.clear();
    let outcome = outcome?;
    let Some(outcome) = outcome else {
        live.print("stopped: every process has ended\n")?;
        return Ok(ExitCode::from(STOPPED));
    };
    live.print(&format!("\n{}", outcome.facts().text(width())))?;
    if let Some(path) = &options.json {
        outcome.write(path)?;
    }
    if let Some(kept) = &options.keep {
        live.print(&format!("kept in {}\n", kept.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks the options and files, so that the user learns of a mistake at once and not minutes later.
fn check(options: &Options) -> anyhow::Result<()> {
    agents::program()?;
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let path = options.checkpoint.join(file);
        ensure!(
            path.is_file(),
            "{} is missing; `make demo` fetches the model, or name its folder with --checkpoint",
            path.display()
        );
    }
    if let Some(library) = onnxruntime() {
        ensure!(
            library.is_file(),
            "SKIFF_ONNXRUNTIME names {}, which is not a file; set it to the path of libonnxruntime.so, or unset it and run `make demo`, which fetches one",
            library.display()
        );
    }
    if let Some(json) = &options.json {
        let folder = json.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(
            folder.is_dir(),
            "the folder of {} is missing; make it, or name another file with --json",
            json.display()
        );
    }
    Ok(())
}

/// Sends the log to a file, because the screen shows the table.
fn start_log(path: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
    let usual = || Targets::new().with_default(LevelFilter::INFO).with_target("rumqttd", LevelFilter::OFF);
    let wanted = std::env::var("SKIFF_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer().with_writer(Mutex::new(file)).with_ansi(false);
    let log = tracing_subscriber::registry().with(lines.with_filter(wanted.unwrap_or_else(usual)));
    log.try_init().map_err(|error| anyhow::anyhow!("starting the log: {error}"))
}

/// Runs the demo. Returns `None` if the user stopped it.
async fn play(
    options: &Options,
    folder: &RunFolder,
    live: &Live,
    mut stop: Stop,
    started: Instant,
) -> anyhow::Result<Option<Outcome>> {
    // The thread cannot be cancelled, and it needs the folder. So wait the few seconds until it ends.
    let (prepared, manifest) = prepare(options, folder, live).await?;
    if stop.is_asked() {
        return Ok(None);
    }
    live.print(&format!("{}\n\n", fold(&described(&prepared), 0, width())))?;
    live.count("starting the broker and the coordinator", 2, STAGES);
    let mut agents = Agents::default();
    let settings = options.run_settings(prepared.test_examples(), prepared.mean_text_bytes());
    settings.check(manifest.layers as u32)?;
    let (coordinator, common, passwords) = start_coordinator(options, folder).await?;
    let conducted = select! {
        outcome = async {
            for (device, password) in &passwords {
                agents.start(&common, device.clone(), password, &folder.agent(device.as_str()))?;
            }
            await_arrival(&mut agents, coordinator.progress(), passwords.len(), live).await?;
            coordinator.start_run(&settings).await?;
            conduct(&mut agents, coordinator.progress(), live, started).await
        } => outcome.map(Some),
        () = stop.asked() => Ok(None),
    };
    live.clear();
    agents.stop().await;
    // If the coordinator failed, that is the cause of all other failures.
    coordinator.shutdown().await.context("the coordinator failed")?;
    conducted
}

/// Distributes the data to the agents and makes the pack.
async fn prepare(options: &Options, folder: &RunFolder, live: &Live) -> anyhow::Result<(Shares, Manifest)> {
    let (options, live, path) = (options.clone(), live.clone(), folder.path().to_owned());
    let work = move || {
        live.count("distributing the data", 0, STAGES);
        let dealing = Dealing { devices: options.agents as usize, alpha: options.alpha, seed: options.seed };
        let shares = shares::prepare(options.data().map(PathBuf::as_path), dealing)?;
        for (at, (train, test)) in shares.train.iter().zip(&shares.test).enumerate() {
            let folder = path.join(name(at));
            fs::create_dir(&folder).with_context(|| format!("making the folder {}", folder.display()))?;
            shares::write(&folder.join("train.jsonl"), train)?;
            shares::write(&folder.join("test.jsonl"), test)?;
        }
        let mut wanted = BuildOptions::new(&options.checkpoint, &path.join("pack"), shares.labels.clone());
        wanted.seed = options.seed;
        let built = build(&wanted, &mut |at| live.count(&format!("making the pack: {}", at.doing), 1, STAGES))
            .with_context(|| format!("making a pack from {}", options.checkpoint.display()))?;
        anyhow::Ok((shares, built.manifest))
    };
    tokio::task::spawn_blocking(work).await.context("preparing")?
}

fn name(agent: usize) -> String {
    format!("agent-{}", agent + 1)
}

fn described(shares: &Shares) -> String {
    let sizes: Vec<String> = shares.train.iter().map(|share| share.len().to_string()).collect();
    let all = |parts: &[Vec<_>]| count(parts.iter().map(Vec::len).sum());
    format!(
        "{}: {}, {} training examples in shares of {}, {} test examples",
        shares.name,
        counted(shares.labels.len(), "label"),
        all(&shares.train),
        sizes.join(", "),
        all(&shares.test)
    )
}

async fn start_coordinator(
    options: &Options,
    folder: &RunFolder,
) -> anyhow::Result<(Coordinator, Common, Vec<(DeviceId, String)>)> {
    let devices: Vec<(DeviceId, String)> = (0..options.agents as usize)
        .map(|at| (name(at).parse().expect("our names are names"), random_password()))
        .collect();
    let own = random_password();
    let mut accounts: BTreeMap<String, String> =
        devices.iter().map(|(device, password)| (device.to_string(), password.clone())).collect();
    accounts.insert(COORDINATOR.to_owned(), own.clone());
    let broker = EmbeddedBroker::start_anywhere(Access::Accounts(accounts))?;

    let fleet = FLEET.parse().expect("our fleet's name is a name");
    let pack = folder.path().join("pack");
    let mut config = Config::new(fleet, pack.clone(), folder.path().join(COORDINATOR), &broker.url());
    config.broker.user = Some(COORDINATOR.to_owned());
    config.broker.password = Some(own.into());
    let coordinator = Coordinator::start(config).await?;
    let common = Common {
        program: agents::program()?,
        broker: broker.url(),
        fleet: FLEET.to_owned(),
        coordinator_key: coordinator.public_key().to_owned(),
        pack,
        onnxruntime: onnxruntime(),
    };
    Ok((coordinator, common, devices))
}

/// Returns the path of ONNX Runtime: the path that the user set, otherwise the downloaded library; `None` for the system's
/// library.
fn onnxruntime() -> Option<PathBuf> {
    let named = std::env::var_os("SKIFF_ONNXRUNTIME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = named.or_else(|| Some(PathBuf::from(FETCHED_ONNXRUNTIME)).filter(|path| path.is_file()))?;
    Some(std::path::absolute(&path).unwrap_or(path))
}

/// Waits until `expected` agents are connected.
async fn await_arrival(
    agents: &mut Agents,
    mut progress: Follower,
    expected: usize,
    live: &Live,
) -> anyhow::Result<()> {
    let arrived = async {
        let mut watch = interval(WATCH);
        loop {
            watch.tick().await;
            agents.check()?;
            let seen = progress.newest();
            let here = seen.devices.iter().filter(|device| device.presence == Presence::Here).count();
            live.count(&format!("{here} of {expected} agents are connected"), 3, STAGES);
            if here >= expected {
                return anyhow::Ok(());
            }
        }
    };
    let in_time = timeout(ARRIVAL, arrived).await;
    in_time.unwrap_or_else(|_| {
        bail!("the agents did not reach the coordinator in {} s; see their logs with --keep FOLDER", ARRIVAL.as_secs())
    })
}

/// Shows the run until it ends.
async fn conduct(
    agents: &mut Agents,
    mut progress: Follower,
    live: &Live,
    started: Instant,
) -> anyhow::Result<Outcome> {
    let mut shown = Watch::new(live.clone());
    let mut watch = interval(WATCH);
    loop {
        select! {
            changed = progress.changed() => {
                changed.context("the coordinator ended early; see demo.log with --keep FOLDER")?;
            }
            _ = watch.tick() => agents.check()?,
        }
        let seen = progress.newest();
        shown.update(seen)?;
        let Some(run) = &seen.run else { continue };
        if let (None, Some(reason)) = (run.accuracy_before, run.closed.first().and_then(|first| first.skipped.as_ref()))
        {
            bail!("no round can run: {reason}");
        }
        if !run.phase.is_end() {
            continue;
        }
        if matches!(run.phase, Phase::Stopped | Phase::Failed) {
            bail!("the run ended early: {}", run.reason.as_deref().unwrap_or("no reason given"));
        }
        return Outcome::new(run, &seen.devices, started.elapsed())
            .context("no agent reported an accuracy before or after the run; see the agents' logs with --keep FOLDER");
    }
}
