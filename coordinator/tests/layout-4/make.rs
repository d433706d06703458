//! Makes the state folders beside this file with the version that wrote layout 4 (commit da61575).
//!
//! Check that commit out, build its programs, copy this file to `tests/examples/layout_4.rs` there, and run
//! `cargo run -p skiff-tests --example layout_4 -- OUT`, with `SKIFF_ONNXRUNTIME` set. Every run has three agents and a
//! BERT of three layers with random weights (the golden checkpoint). Times and names differ from one run to the next.
#![allow(clippy::unwrap_used, missing_docs, reason = "a program for one use")]

use serde_json::json;
use skiff_coordinator::broker::{Access, EmbeddedBroker};
use skiff_coordinator::explain::explain;
use skiff_api::progress::Progress;
use skiff_coordinator::round::{Ledger, Phase};
use skiff_coordinator::store::Store;
use skiff_protocol::{RunId, Timestamp};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const DEVICES: [&str; 3] = ["kitchen", "hall", "attic"];

struct World {
    work: PathBuf,
    url: String,
    agents: Vec<Child>,
    serve: Option<Child>,
}

fn program(name: &str) -> Command {
    Command::new(Path::new("target/debug").join(name).canonicalize().unwrap())
}

fn main() {
    let out = PathBuf::from(std::env::args().nth(1).expect("the folder to write to"));
    let folder = tempfile::tempdir().unwrap();
    let broker = EmbeddedBroker::start_anywhere(Access::Anybody).unwrap();
    let pack = folder.path().join("pack");
    let mut build = program("skiff-pack");
    build.args(["build", "--checkpoint", "tests/golden/bert/checkpoint", "--labels", "2", "--rank", "2", "--out"]);
    assert!(build.arg(&pack).status().unwrap().success());
    let text = |at: usize| format!("{{\"label\":\"{}\",\"text\":\"a b {at}\"}}\n", at % 2);
    fs::write(folder.path().join("data.jsonl"), (0..12).map(text).collect::<String>()).unwrap();
    let url = format!("mqtt://{}", broker.address());
    let mut world = World { work: folder.path().to_owned(), url, agents: Vec::new(), serve: None };

    let adam = "merge={server={adam={rate=0.02}}}";
    let settings = ["--rounds", "400", "--devices", "2", "--over-selection", "1", "--quorum", "1", "--asynchronous", "--bandit"];
    world.state("asynchronous");
    world.start(&[&settings[..], &["--steps", "3", "--batch", "2", "--set", adam, "--set", "evaluate_examples=12"]].concat());
    world.wait(|progress| progress.run.as_ref().is_some_and(|run| run.closed.len() >= 3));
    // In the middle of a round: an update is stored, another is waited for.
    loop {
        world.kill();
        let ledger = world.ledgers().pop().unwrap();
        if let Phase::Train(training) = &ledger.phase {
            if !training.updates.is_empty() && training.pending().next().is_some() {
                break;
            }
        }
        world.serve();
        std::thread::sleep(Duration::from_millis(1500));
    }
    world.save(&out);

    world.state("personal-layers");
    let personal = "sharing={least_important=1}";
    let short = ["--devices", "3", "--quorum", "3", "--steps", "2", "--batch", "2", "--dropout", "0.3"];
    world.start(&[&short[..], &["--rounds", "60", "--set", personal, "--set", "evaluate_examples=12"]].concat());
    world.wait(|progress| progress.run.as_ref().is_some_and(|run| run.closed.len() >= 2));
    fs::write(
        world.work.join("policy.toml"),
        "sharing = { least_important = 2 }\n[[groups]]\nname = 'lab'\nclass = 'lab'\nsharing = { layers = [0] }\nrank = 1\n",
    )
    .unwrap();
    let policy = world.work.join("policy.toml");
    assert!(world.skiff(&["policy", "set", policy.to_str().unwrap()]).status.success());
    world.wait(|progress| progress.run.as_ref().is_some_and(|run| run.closed.len() >= 4));
    world.kill();
    world.save(&out);

    // Two runs: a finished one, and before it one that an operator stopped.
    world.state("finished");
    world.start(&[&short[..], &["--rounds", "60"]].concat());
    world.wait(|progress| progress.run.as_ref().is_some_and(|run| run.closed.len() >= 2));
    assert!(world.skiff(&["run", "stop"]).status.success());
    world.wait(|progress| progress.run.as_ref().is_some_and(|run| run.phase.is_end()));
    world.start_run(&[&short[..], &["--rounds", "3", "--set", "evaluate_examples=12"]].concat());
    world.wait(|progress| progress.run.as_ref().is_some_and(|run| run.phase.is_end() && run.closed.len() == 3));
    world.kill();
    world.save(&out);
}

impl World {
    fn state(&mut self, name: &str) {
        self.stop_agents();
        let _ = fs::remove_dir_all(self.work.join("case"));
        fs::create_dir(self.work.join("case")).unwrap();
        fs::write(self.work.join("case/name"), name).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.join("case").join(name)
    }

    fn serve(&mut self) {
        let mut command = program("skiff");
        command.args(["serve", "--fleet", "home", "--broker", &self.url, "--pack"]).arg(self.work.join("pack"));
        command.arg("--state").arg(self.path("state")).stdout(Stdio::null()).stderr(Stdio::null());
        self.serve = Some(command.spawn().unwrap());
        while !self.skiff(&["run", "list"]).status.success() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn start(&mut self, settings: &[&str]) {
        self.serve();
        let key = fs::read_to_string(self.path("state/coordinator.pub")).unwrap();
        for device in DEVICES {
            let mut command = program("skiff-agent");
            command.args(["run", "--exit-with-parent", "--threads", "1", "--fleet", "home", "--device", device]);
            command.args(["--broker", &self.url, "--coordinator-key", key.trim(), "--pack"]).arg(self.work.join("pack"));
            command.arg("--train").arg(self.work.join("data.jsonl")).arg("--test").arg(self.work.join("data.jsonl"));
            command.arg("--state").arg(self.path(device)).stdout(Stdio::null()).stderr(Stdio::null());
            command.args(["--class", if device == "attic" { "lab" } else { "home" }]);
            self.agents.push(command.spawn().unwrap());
        }
        self.wait(|progress| progress.devices.len() == DEVICES.len());
        self.start_run(settings);
    }

    fn start_run(&self, settings: &[&str]) {
        let started = self.skiff(&[&["run", "start"], settings].concat());
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    }

    fn wait(&self, wanted: impl Fn(&Progress) -> bool) {
        loop {
            let told = self.skiff(&["fleet", "--json"]);
            if serde_json::from_slice(&told.stdout).is_ok_and(|progress| wanted(&progress)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn skiff(&self, arguments: &[&str]) -> Output {
        program("skiff").args(arguments).arg("--state").arg(self.path("state")).output().unwrap()
    }

    fn kill(&mut self) {
        let mut serve = self.serve.take().unwrap();
        serve.kill().and_then(|()| serve.wait()).unwrap();
    }

    fn stop_agents(&mut self) {
        for mut agent in self.agents.drain(..) {
            agent.kill().and_then(|()| agent.wait()).unwrap();
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.path("state")).unwrap()
    }

    fn ledgers(&self) -> Vec<Ledger> {
        let store = self.store();
        let runs = store.runs().unwrap();
        runs.iter().map(|&run| Ledger::replay(&store.entries(run).unwrap()).unwrap()).collect()
    }

    /// Saves what this version knows of its runs. Dropping the store moves the write-ahead log into the database.
    fn save(&mut self, out: &Path) {
        self.stop_agents();
        let name = fs::read_to_string(self.path("name")).unwrap();
        let folder = out.join(&name);
        let store = self.store();
        let summary = |run: RunId| {
            let entries = store.entries(run).unwrap();
            let ledger = Ledger::replay(&entries).unwrap();
            let explained: Vec<_> = explain(&entries, None, Some(ledger.closed.len() as u32)).unwrap();
            let (resumed, _) = store.resume(run, Timestamp(ledger.last_ms)).unwrap();
            let traffic: Vec<_> = store.traffic(run).unwrap().iter().map(|(round, t)| json!([round, t.up, t.down])).collect();
            json!({
                "run": run.to_string(), "records": entries.len(), "round": ledger.round, "epoch": ledger.epoch,
                "phase": format!("{:?}", ledger.phase).split(['(', ' ']).next(),
                "weights": ledger.weights.to_string(), "moments": ledger.moments.map(|moments| moments.to_string()),
                "version": ledger.version, "last_ms": ledger.last_ms, "policy": ledger.policy,
                "needed": ledger.needed().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "progress": resumed.progress(Timestamp(ledger.last_ms)), "traffic": traffic,
                "settings": ledger.start.settings, "explained": explained,
            })
        };
        let runs: Vec<_> = store.runs().unwrap().into_iter().map(summary).collect();
        drop(store);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("blobs/blobs")).unwrap();
        fs::copy(self.path("state/journal.sqlite"), folder.join("journal.sqlite")).unwrap();
        for blob in fs::read_dir(self.path("state/blobs/blobs")).unwrap() {
            let blob = blob.unwrap();
            fs::copy(blob.path(), folder.join("blobs/blobs").join(blob.file_name())).unwrap();
        }
        assert!(!self.path("state/journal.sqlite-wal").exists());
        fs::write(folder.join("expected.json"), serde_json::to_string_pretty(&runs).unwrap() + "\n").unwrap();
    }
}
