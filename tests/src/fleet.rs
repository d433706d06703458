//! A coordinator and agents as processes of their own, as an operator would start them.

use crate::brokers::{Broker, COORDINATOR, password};
use crate::places::Build;
use crate::wait::eventually;
use crate::{PATIENCE, packs, places};
use skiff_api::progress::{Progress, RunProgress};
use skiff_data::corpus::{GenerateOptions, generate};
use skiff_models::pack::BuildOptions;
use skiff_models::task::Task;
use skiff_trainer::clock::monotonic;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

/// The name of the fleet.
pub const FLEET: &str = "test";
/// Name of the folder in which workers announce that they train, and tests hold them.
const BARRIER: &str = "barrier";

/// A folder with a pack for the demo's corpus and each device's share of it, and the processes that use them.
#[derive(Debug)]
pub struct Fleet {
    folder: tempfile::TempDir,
    url: String,
    coordinator: Option<Child>,
    coordinators_build: Build,
    agents: BTreeMap<String, Child>,
}

impl Fleet {
    /// Prepares a MiniLM pack and `examples` training examples for each of `devices`; starts nothing yet.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn prepare(broker: &Broker, devices: &[&str], examples: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = GenerateOptions { seed: 1, train: examples * devices.len(), test: 20 * devices.len() };
        let corpus = generate(&options).expect("the demo's corpus");
        let labels = skiff_data::labels(&corpus.train);
        drop(packs::minilm(&labels.iter().map(String::as_str).collect::<Vec<_>>(), folder.path()));
        for (at, device) in devices.iter().enumerate() {
            let share = |all: &[skiff_data::Example], size: usize| all[at * size..(at + 1) * size].to_vec();
            let share =
                skiff_data::corpus::Corpus { train: share(&corpus.train, examples), test: share(&corpus.test, 20) };
            let place = folder.path().join(device);
            std::fs::create_dir(&place).expect("a writable folder");
            share.write(&place).expect("a writable folder");
        }
        std::fs::create_dir(folder.path().join(BARRIER)).expect("a writable folder");
        Self {
            folder,
            url: broker.url(),
            coordinator: None,
            coordinators_build: Build::Present,
            agents: BTreeMap::new(),
        }
    }

    /// Prepares a MiniLM pack that marks names of people and places, and texts for each of `devices`; starts nothing yet.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn prepare_spans(broker: &Broker, devices: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"].map(str::to_owned).to_vec();
        let options = BuildOptions::new(&places::minilm(), &folder.path().join("minilm"), labels);
        drop(packs::made(&BuildOptions { task: Task::TokenClassification, ..options }));
        let names = [["Ada Lovelace", "New York"], ["Grace Hopper", "Sankt Gallen"], ["Alan Turing", "Rio Grande"]];
        let row = |at: usize| {
            let [person, place] = names[at % names.len()].map(|name| name.split(' ').collect::<Vec<_>>());
            let tokens = [&person[..], &["moved", "to"], &place[..]].concat();
            format!(
                "{{\"tokens\": {tokens:?}, \"labels\": [\"B-PER\", \"I-PER\", \"O\", \"O\", \"B-LOC\", \"I-LOC\"]}}\n"
            )
        };
        for device in devices {
            let place = folder.path().join(device);
            std::fs::create_dir(&place).expect("a writable folder");
            for (file, rows) in [("train.jsonl", 60), ("test.jsonl", 20)] {
                std::fs::write(place.join(file), (0..rows).map(row).collect::<String>()).expect("a writable folder");
            }
        }
        Self {
            folder,
            url: broker.url(),
            coordinator: None,
            coordinators_build: Build::Present,
            agents: BTreeMap::new(),
        }
    }

    /// Starts `skiff serve`, and waits until it takes requests.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_coordinator(&mut self) {
        self.start_coordinator_of(Build::Present);
    }

    /// Starts `skiff serve` of `build`, and waits until it takes requests.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_coordinator_of(&mut self, build: Build) {
        self.coordinators_build = build;
        let mut command = self.skiff(&["serve", "--fleet", FLEET]);
        command.arg("--pack").arg(self.path("minilm")).args(["--broker", &self.url, "--user", COORDINATOR]);
        // Earlier versions know only the second name.
        command.env("SKIFF_PASSWORD", password(COORDINATOR)).env("SKIFF_BROKER_PASSWORD", password(COORDINATOR));
        self.coordinator = Some(self.spawn(command, "coordinator"));
        let ready =
            || self.skiff(&["fleet"]).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        assert!(eventually(ready), "the coordinator does not answer: {}", self.log("coordinator"));
    }

    /// Returns the standard output of `skiff doctor`, with further options.
    ///
    /// # Panics
    /// If the program does not start.
    #[must_use]
    pub fn coordinators_doctor(&self, options: &[&str]) -> String {
        let mut command = self.skiff(&["doctor", "--fleet", FLEET, "--broker", &self.url, "--user", COORDINATOR]);
        command.arg("--pack").arg(self.path("minilm")).args(options).env("SKIFF_PASSWORD", password(COORDINATOR));
        String::from_utf8_lossy(&command.output().expect("skiff starts").stdout).into_owned()
    }

    /// Starts another `skiff serve` of this fleet, with the state folder `name`.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_other_coordinator(&self, name: &str) -> Child {
        let mut command = Command::new(Build::Present.program("skiff"));
        command.args(["serve", "--fleet", FLEET, "--broker", &self.url, "--user", COORDINATOR]);
        command.arg("--state").arg(self.path(name)).arg("--pack").arg(self.path("minilm"));
        command.env("SKIFF_PASSWORD", password(COORDINATOR));
        self.spawn(command, name)
    }

    /// Sends SIGTERM to another coordinator and waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop_other_coordinator(&self, mut other: Child) {
        let stopped = Command::new("kill").arg(other.id().to_string()).status();
        assert!(stopped.is_ok_and(|status| status.success()), "SIGTERM could not be sent");
        assert!(eventually(|| other.try_wait().is_ok_and(|ended| ended.is_some())), "a coordinator does not stop");
    }

    /// Starts the agent of `device`.
    ///
    /// # Panics
    /// If there is no coordinator's key yet.
    pub fn start_agent(&mut self, device: &str) {
        self.start_agent_of(Build::Present, device);
    }

    /// Starts the agent of `device` from `build`; it starts the worker beside it.
    ///
    /// # Panics
    /// If there is no coordinator's key yet.
    pub fn start_agent_of(&mut self, build: Build, device: &str) {
        let mut command = self.agent(build, device, &["run", "--exit-with-parent", "--telemetry-seconds", "1"]);
        // The agent's worker inherits it.
        command.env("SKIFF_WORKER_BARRIER", self.path(BARRIER));
        let child = self.spawn(command, device);
        self.agents.insert(device.to_owned(), child);
    }

    /// Returns the standard output of `skiff-agent doctor` for `device`, with further options.
    ///
    /// # Panics
    /// If there is no coordinator's key yet, or the program does not start.
    #[must_use]
    pub fn doctor(&self, device: &str, options: &[&str]) -> String {
        let output =
            self.agent(Build::Present, device, &[&["doctor"], options].concat()).output().expect("skiff-agent starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns the standard output of an owner's verb of `skiff-agent` for `device`: pause, resume, leave or sent.
    ///
    /// # Panics
    /// If the verb fails.
    #[must_use]
    pub fn owner(&self, device: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(Build::Present.program("skiff-agent"));
        command.args(arguments).arg("--state").arg(self.path(device).join("state"));
        let output = command.output().expect("skiff-agent starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits for the end of an agent, and returns true if its status is 0.
    pub fn ended_well(&mut self, device: &str) -> bool {
        let Some(mut agent) = self.agents.remove(device) else { return false };
        eventually(|| agent.try_wait().is_ok_and(|ended| ended.is_some()))
            && agent.wait().is_ok_and(|end| end.success())
    }

    /// Runs the agent of `device` to its end, and returns its exit status and standard error.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn run_again(&self, device: &str) -> (Option<i32>, String) {
        let output = self.agent(Build::Present, device, &["run"]).output().expect("skiff-agent starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Returns a command of `skiff-agent` with the settings of `device`.
    fn agent(&self, build: Build, device: &str, arguments: &[&str]) -> Command {
        let share = self.path(device);
        let key =
            std::fs::read_to_string(self.path("coordinator/coordinator.pub")).expect("the coordinator's public key");
        let mut command = Command::new(build.program("skiff-agent"));
        command.args(arguments).args(["--broker", &self.url, "--fleet", FLEET, "--device", device]);
        command.args(["--password", &password(device), "--coordinator-key", key.trim(), "--threads", "1"]);
        command.arg("--pack").arg(self.path("minilm"));
        command.arg("--train").arg(share.join("train.jsonl")).arg("--test").arg(share.join("test.jsonl"));
        command.arg("--state").arg(share.join("state"));
        let cached = places::tree().join(".cache/onnxruntime/libonnxruntime.so");
        if std::env::var_os("SKIFF_ONNXRUNTIME").is_none() {
            command.env("SKIFF_ONNXRUNTIME", cached);
        }
        command
    }

    /// Makes the worker of `device` stand still after its first step in `round`, until [`Fleet::release`].
    ///
    /// # Panics
    /// If the folder is not writable.
    pub fn hold(&self, device: &str, round: u32) {
        let reached = self.barrier(device, round, "reached");
        assert!(!reached.exists(), "{device} already trained in round {round}");
        std::fs::write(self.barrier(device, round, "hold"), "").expect("a writable folder");
    }

    /// Waits until one of `devices` has done its first step in `round`.
    ///
    /// # Panics
    /// If that takes too long, with the logs.
    pub fn reached(&self, devices: &[&str], round: u32) {
        let is_there = || devices.iter().any(|device| self.barrier(device, round, "reached").exists());
        assert!(eventually(is_there), "none of {devices:?} trains in round {round}\n{}", self.logs());
    }

    /// Lets the worker of `device` continue its training in `round`.
    ///
    /// # Panics
    /// If it is not held.
    pub fn release(&self, device: &str, round: u32) {
        std::fs::remove_file(self.barrier(device, round, "hold")).expect("the worker is held");
    }

    fn barrier(&self, device: &str, round: u32, suffix: &str) -> PathBuf {
        self.path(BARRIER).join(format!("{device}-{round}.{suffix}"))
    }

    /// Sends SIGKILL to an agent.
    ///
    /// # Panics
    /// If it had ended on its own.
    pub fn kill_agent(&mut self, device: &str) {
        let mut agent = self.agents.remove(device).expect("the agent was started");
        assert!(agent.try_wait().is_ok_and(|ended| ended.is_none()), "{device} had ended: {}", self.log(device));
        agent.kill().and_then(|()| agent.wait().map(drop)).expect("a child can be killed");
    }

    /// Sends SIGKILL to an agent's worker, as the system does when memory runs out.
    ///
    /// # Panics
    /// If there is none.
    pub fn kill_worker(&self, device: &str) {
        let agent = self.agents.get(device).expect("the agent was started").id().to_string();
        let works = |process: &PathBuf| {
            // Fields of the line: the process's number, its name in brackets, its state, its parent's number.
            let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)) == Some(&agent)
        };
        let mut processes =
            std::fs::read_dir("/proc").expect("a list of processes").map(|entry| entry.expect("one").path());
        let worker = processes.find(works).expect("a worker");
        let name = worker.file_name().expect("its number").to_owned();
        let killed = Command::new("kill").arg("-KILL").arg(name).status();
        assert!(killed.is_ok_and(|status| status.success()), "SIGKILL could not be sent");
    }

    /// Sends SIGKILL to the coordinator.
    ///
    /// # Panics
    /// If it had ended on its own.
    pub fn kill_coordinator(&mut self) {
        let mut coordinator = self.coordinator.take().expect("the coordinator was started");
        assert!(coordinator.try_wait().is_ok_and(|ended| ended.is_none()), "it had ended: {}", self.log("coordinator"));
        coordinator.kill().and_then(|()| coordinator.wait().map(drop)).expect("a child can be killed");
    }

    /// Runs `skiff run start` with `settings` (flags and values).
    ///
    /// # Panics
    /// If it is refused.
    pub fn start_run(&self, settings: &[&str]) {
        let done = self.skiff(&["run", "start"]).args(settings).output().expect("skiff runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Watches the run until `wanted` holds and returns what it saw then.
    ///
    /// # Panics
    /// If that takes too long or the coordinator ends; the message has the logs.
    pub fn watch(&self, what: &str, wanted: impl Fn(&Progress, &RunProgress) -> bool) -> (Progress, RunProgress) {
        let mut watcher = self.skiff(&["run", "watch", "--json"]).stdout(Stdio::piped()).spawn().expect("skiff runs");
        let lines = lines(watcher.stdout.take().expect("its output is piped"));
        let begun = monotonic();
        let seen = loop {
            match lines.recv_timeout((begun + PATIENCE).saturating_sub(monotonic())) {
                Ok(line) => {
                    let progress: Progress = serde_json::from_str(&line).expect("a line of JSON");
                    if let Some(run) = progress.run.clone()
                        && wanted(&progress, &run)
                    {
                        break Some((progress, run));
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break None,
            }
        };
        let _ = watcher.kill();
        let _ = watcher.wait();
        seen.unwrap_or_else(|| panic!("never saw {what}\n{}", self.logs()))
    }

    /// Returns the last 4,000 bytes that a process has written.
    #[must_use]
    pub fn log(&self, process: &str) -> String {
        let text = std::fs::read(self.path(&format!("{process}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4000)..]).into_owned()
    }

    /// Sends SIGTERM to every agent. Returns true if every agent ended with status 0.
    ///
    /// # Panics
    /// If one does not end.
    pub fn stop_agents(&mut self) -> bool {
        let agents = std::mem::take(&mut self.agents);
        for agent in agents.values() {
            let stopped = Command::new("kill").arg(agent.id().to_string()).status();
            assert!(stopped.is_ok_and(|status| status.success()), "SIGTERM could not be sent");
        }
        agents.into_values().all(|mut agent| {
            assert!(eventually(|| agent.try_wait().is_ok_and(|ended| ended.is_some())), "an agent does not stop");
            agent.wait().is_ok_and(|status| status.success())
        })
    }

    /// Returns the path of `name` in the folder of this fleet.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a command of `skiff` with this coordinator's state folder.
    #[must_use]
    pub fn skiff(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.coordinators_build.program("skiff"));
        command.args(arguments).arg("--state").arg(self.path("coordinator"));
        command
    }

    fn logs(&self) -> String {
        let names = self.agents.keys().map(String::as_str).chain(["coordinator"]);
        names.map(|name| format!("--- {name}\n{}\n", self.log(name))).collect()
    }

    fn spawn(&self, mut command: Command, name: &str) -> Child {
        let log = log_file(&self.path(&format!("{name}.log")));
        let second = log.try_clone().expect("a file handle");
        command.stdin(Stdio::null()).stdout(log).stderr(second).env("SKIFF_LOG", "info").env("NO_COLOR", "1");
        command.spawn().unwrap_or_else(|error| panic!("starting {name}: {error}"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for mut child in self.coordinator.take().into_iter().chain(std::mem::take(&mut self.agents).into_values()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn log_file(path: &Path) -> File {
    File::options().create(true).append(true).open(path).expect("a writable folder")
}

fn lines(from: std::process::ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let _ = BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
    });
    receiver
}
