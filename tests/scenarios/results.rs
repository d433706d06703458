//! Tuned weights come out, from a coordinator and from a device, as adapters that others read.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use serde_json::Value;
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_coordinator::results::{Choice, find_run, read_weights};
use skiff_coordinator::run::{Entry, Merged, Record, RunSettings, Start};
use skiff_coordinator::store::{SqliteStore, Store as _, Traffic};
use skiff_models::Pack;
use skiff_models::pack::BuildOptions;
use skiff_models::tensors::NamedTensors;
use skiff_protocol::{Digest, RunId};
use skiff_tests::brokers::Broker;
use skiff_tests::compare::{CLOSE, Tensors, assert_close, read};
use skiff_tests::fleet::{FLEET, Fleet};
use skiff_tests::packs::{Case, made};
use skiff_tests::places;
use skiff_trainer::inputs::read_batch;
use skiff_trainer::{Batch, LayerMask, Trainer};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const RUN: RunId = RunId(0xa1);

/// Writes a state folder with a finished run of one round that merged `weights`.
fn finished_run(pack: &Pack, weights: &[u8], state: &Path) {
    let blobs = DiskBlobs::open(state.join("blobs"), 1 << 30).unwrap();
    let mut store = SqliteStore::open(state, &blobs).unwrap();
    let (digest, merged) = (Digest(pack.digest()), blobs.put(weights).unwrap());
    let settings = Box::new(RunSettings { rounds: 1, ..RunSettings::default() });
    let layers = pack.manifest().layers as u32;
    let start = Start {
        run: RUN,
        name: None,
        settings,
        layers,
        pack: digest,
        schema: Digest(pack.schema().hash()),
        weights: digest,
        task: None,
    };
    let records = [
        Record::RunStarted(start),
        Record::Merged(Merged { weights: merged, moments: None }),
        Record::RunEnded { stopped: None },
    ];
    let entries = records.map(|record| Entry { at_ms: 1, record });
    store.append(RUN, &entries, 1, Traffic::default()).unwrap();
}

/// Runs a program and returns the JSON object that it printed.
fn printed(command: &mut Command) -> Value {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn adapter(folder: &Path) -> Tensors {
    read(&std::fs::read(folder.join("adapter_model.safetensors")).unwrap())
}

fn in_double(weights: &NamedTensors) -> Tensors {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.mapv(f64::from))).collect()
}

/// The weights and the scores of each case are PyTorch's, and its adapter was written by PEFT (tests/golden/make.py).
#[test]
fn an_exported_run_is_the_adapter_that_peft_wrote_and_gives_pytorchs_scores() {
    for name in ["bert/sequence-lora", "roberta/token-lora", "llama/causal-lora-every"] {
        let case = Case::open(name);
        let folder = tempfile::tempdir().unwrap();
        let pack = case.pack(folder.path());
        let weights = case.read("weights.safetensors");
        let state = folder.path().join("state");
        finished_run(&pack, &weights, &state);
        let out = folder.path().join("adapter");
        let export = |run: &str| {
            let mut command = Command::new(places::binary("skiff"));
            command.args(["run", "export", run, "--last", "--json"]).arg("--state").arg(&state);
            command.arg("--pack").arg(folder.path().join("pack")).arg("--out").arg(&out);
            command
        };
        assert!(!export("a1").output().unwrap().status.success(), "{name}: its name does not begin with a1");
        let told = printed(&mut export("00000000000000a1"));
        assert_eq!((told["round"].as_u64(), told["kind"].as_str()), (Some(1), Some("adapter")), "{told}");
        assert_eq!(adapter(&out), adapter(&case.folder.join("adapter")), "{name}: not a bit differs from PEFT's file");

        let options = BuildOptions { adapter: Some(out), ..case.options(&folder.path().join("again")) };
        let again = made(&options);
        let sequences = read_batch(&case.read("batch.safetensors"), &again.manifest().layout).unwrap();
        let layers = again.manifest().layers;
        let mut trainer = Trainer::open(&places::runtime(), Arc::new(again)).unwrap();
        let batch = Batch::new(&sequences, trainer.form()).unwrap();
        let logits = trainer.logits(&batch, &LayerMask::all(layers)).unwrap().mapv(f64::from).into_dyn();
        let expected = read(&case.read("expected.safetensors")).remove("all/logits").unwrap();
        let named = |logits| Tensors::from([("logits".to_owned(), logits)]);
        assert_close(name, &named(logits), &named(expected), CLOSE);
    }
}

#[test]
fn a_fleets_run_and_a_devices_own_model_come_out_while_everything_runs() {
    let broker = Broker::mosquitto(FLEET, &["oak"]);
    let mut fleet = Fleet::prepare(&broker, &["oak"], 24);
    fleet.start_coordinator();
    fleet.start_agent("oak");
    let settings = "--rounds 2 --devices 1 --quorum 1 --steps 3 --batch 4 --set sharing={least_important=4} \
        --set evaluate_examples=10 --set final_examples=10";
    fleet.start_run(&settings.split_whitespace().collect::<Vec<_>>());
    fleet.watch("the end of the run", |_, run| run.phase.is_end());

    let pack = Pack::open(&fleet.path("minilm")).unwrap();
    let state = fleet.path("coordinator");
    let out = fleet.path("adapter");
    let told = printed(fleet.skiff(&["run", "export", "--last", "--json"]).arg("--out").arg(&out));
    assert_eq!(told["round"].as_u64(), Some(2), "{told}");
    let store = SqliteStore::open_existing(&state).unwrap();
    let blobs = DiskBlobs::of_another(state.join("blobs"));
    let row = find_run(&store, "last").unwrap();
    let last = read_weights(&store, &blobs, &row, Choice::Last).unwrap();
    let global = in_double(&pack.schema().read(&last.bytes).unwrap());
    assert_eq!(adapter(&out), global);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    for fact in ["library_name: peft", "| round | 2 of 2 |", "| devices | 1 |", "| updates | 2 |", "\nmetrics:\n"] {
        assert!(card.contains(fact), "{fact} is missing: {card}");
    }
    assert!(!card.contains("oak"), "a card names no device: {card}");
    let merged = fleet.path("merged");
    let told = printed(fleet.skiff(&["run", "export", "--merged", "--json"]).arg("--out").arg(&merged));
    assert_eq!(told["kind"].as_str(), Some("merged"), "{told}");
    assert!(merged.join("model.safetensors").is_file() && merged.join("config.json").is_file());

    let out = fleet.path("own");
    let mut export = Command::new(places::binary("skiff-agent"));
    export.args(["export", "--broker", &broker.url(), "--fleet", FLEET, "--device", "oak", "--allow-unsigned", "true"]);
    export.arg("--pack").arg(fleet.path("minilm")).arg("--state").arg(fleet.path("oak/state"));
    export.arg("--train").arg(fleet.path("oak/train.jsonl")).arg("--json").arg("--out").arg(&out);
    let told = printed(&mut export);
    let personal: Vec<u64> = told["personal_layers"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert_eq!(personal.len(), 2, "6 layers, of which 4 are shared: {told}");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("| personal layers | 2 of 6,") && !card.contains("oak"), "{card}");
    let own = adapter(&out);
    assert_eq!(own.keys().collect::<Vec<_>>(), global.keys().collect::<Vec<_>>());
    for (name, tensor) in &own {
        let is_personal = personal.iter().any(|layer| name.contains(&format!(".layer.{layer}.")));
        assert_eq!(is_personal, *tensor != global[name], "{name}");
    }
    the_own_model_is_judged_and_asked(&fleet, &broker, &out);
}

/// Compares the device's own model, as `--own` finds it, with its export in `adapter`.
fn the_own_model_is_judged_and_asked(fleet: &Fleet, broker: &Broker, adapter: &Path) {
    let settings = fleet.path("oak/own.toml");
    let text = format!(
        "broker = {:?}\nfleet = {FLEET:?}\ndevice = \"oak\"\nallow_unsigned = true\npack = {:?}\nstate = \"state\"\ntest = \"train.jsonl\"\n",
        broker.url(),
        fleet.path("minilm")
    );
    std::fs::write(&settings, text).unwrap();
    let agent = |verb: &str| {
        let mut command = Command::new(places::binary("skiff-agent"));
        command.args([verb, "--threads", "1", "--json"]);
        command
    };
    let of_export = || {
        let mut command = agent("evaluate");
        command.arg("--pack").arg(fleet.path("minilm")).arg("--weights").arg(adapter);
        command.arg("--test").arg(fleet.path("oak/train.jsonl"));
        printed(&mut command)
    };
    let told = printed(agent("evaluate").arg("--own").arg("--config").arg(&settings));
    assert!(told["weights"].as_str().is_some_and(|weights| weights.contains("its own")), "{told}");
    let exported = of_export();
    assert_eq!((&told["loss"], &told["accuracy"]), (&exported["loss"], &exported["accuracy"]));
    let texts = fleet.path("oak/asked.txt");
    std::fs::write(&texts, "turn on the lamp\n").unwrap();
    let answer = printed(agent("predict").arg("--own").arg("--config").arg(&settings).arg(&texts));
    assert_eq!(answer["text"].as_str(), Some("turn on the lamp"), "{answer}");
}

/// The folder was written by the version before journals had migrations (coordinator/tests/layout-4/README.md).
#[test]
fn an_old_state_folder_is_migrated_checked_shown_and_exported_without_a_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let old = places::tree().join("coordinator/tests/layout-4/finished");
    let copied = Command::new("cp").arg("-r").args([&old, &state]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let skiff = |arguments: &[&str]| {
        let done = Command::new(places::binary("skiff")).args(arguments).arg("--state").arg(&state).output().unwrap();
        (done.status.success(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (listed, _, advice) = skiff(&["run", "list"]);
    assert!(!listed && advice.contains("skiff store migrate"), "{advice}");
    let (tried, text, _) = skiff(&["store", "migrate", "--dry-run"]);
    assert!(tried && text.contains("would be migrated"), "{text}");
    assert!(!skiff(&["run", "list"]).0, "a dry run changes nothing");
    assert!(skiff(&["store", "migrate"]).0);
    let (good, text, faults) = skiff(&["store", "check"]);
    assert!(good, "{text}{faults}");
    assert!(skiff(&["store", "gc", "--dry-run"]).0);
    let (_, runs, _) = skiff(&["run", "list", "--json"]);
    let runs: Vec<Value> = runs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(runs.len(), 2);
    let (_, shown, _) = skiff(&["run", "show", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["run"], &shown["accuracy_after"]), (&runs[1]["run"], &runs[1]["accuracy_after"]), "{shown}");
    assert!(!shown["devices"].as_array().unwrap().is_empty(), "{shown}");
    assert_eq!(shown["closed"].as_array().unwrap().len() as u64, shown["rounds"].as_u64().unwrap());
    let (shown, text, _) = skiff(&["run", "show"]);
    // The settings are one fact on one line, which only a terminal folds.
    let mut others = text.lines().filter(|line| !line.starts_with("settings"));
    assert!(shown && others.all(|line| line.chars().count() <= 80), "{text}");
}
