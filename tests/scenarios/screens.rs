//! Every screen at 60, 80, 120 and 200 columns, drawn by the real programs on terminals and read back from an emulator.
//!
//! `make screens` writes the ones at 80 columns to `docs/screens`. Otherwise the test compares the form of each screen with its
//! file. If a row begins with another word, the screen must be written again.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_tests::brokers::{Broker, password};
use skiff_tests::fleet::{FLEET, Fleet};
use skiff_tests::places::{binary, minilm, tree};
use skiff_tests::terminal::{Screen, Terminal};
use skiff_tests::wait::eventually;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const WIDTHS: [u16; 4] = [60, 80, 120, 200];
/// The width of the screens in `docs/screens`.
const KEPT: u16 = 80;
const DEVICES: [&str; 2] = ["kitchen", "hall"];
/// Texts for `predict`: a short one, a long one, and one in another script.
const LINES: &str = "turn on the light in the kitchen\n\
    could you please remind me tomorrow morning at half past seven that the bins must be at the street before eight\n\
    今天天气怎么样\n";
/// Name of ONNX Runtime in the folder of the programs.
const ONNXRUNTIME: &str = "./libonnxruntime.so";
/// Exit status after Ctrl-C.
const INTERRUPTED: i32 = 130;

/// A redrawn line begins with one of these.
const SPINNERS: &str = "⠁⠂⠄⡀⢀⠠⠐⠈⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏";

fn command(program: &str, line: &str, folder: &Path) -> Command {
    let mut command = Command::new(binary(program));
    command.args(line.split_whitespace()).current_dir(folder);
    command.env("SKIFF_ONNXRUNTIME", ONNXRUNTIME);
    command
}

/// Links ONNX Runtime into the folder, so that no screen names a path of this machine.
fn link_onnxruntime(folder: &Path) {
    let cached = || tree().join(".cache/onnxruntime/libonnxruntime.so");
    let library = std::env::var_os("SKIFF_ONNXRUNTIME").map_or_else(cached, PathBuf::from);
    symlink(fs::canonicalize(library).unwrap(), folder.join(ONNXRUNTIME)).unwrap();
}

/// Checks a screen that stays: no row is wider than the terminal, and no redrawn line is left.
fn check(line: &str, columns: u16, screen: &Screen) {
    let text = screen.rows.join("\n");
    assert!(screen.broken.is_empty(), "{line} at {columns}: too wide: {:?}\n{text}", screen.broken);
    assert!(!screen.rows.iter().any(|row| row.starts_with(|at| SPINNERS.contains(at))), "{line} at {columns}:\n{text}");
}

/// Runs a program at a width, and returns its screen.
fn fits(program: &str, line: &str, folder: &Path, columns: u16) -> Screen {
    let (status, screen) = Terminal::start(command(program, line, folder), columns).end();
    assert!(status.success(), "{program} {line} at {columns}:\n{}", screen.rows.join("\n"));
    check(line, columns, &screen);
    screen
}

/// Runs a program at every width, and keeps its screen at 80 columns.
fn try_widths(name: &str, program: &str, line: &str, folder: &Path) {
    for columns in WIDTHS {
        let screen = fits(program, line, folder, columns);
        if columns == KEPT {
            keep(name, &format!("{program} {line}"), &screen);
        }
    }
}

/// Returns true if the screens are written and not compared.
fn writes() -> bool {
    std::env::var_os("SKIFF_WRITE_SCREENS").is_some()
}

/// Writes a screen to `docs/screens`, or compares its form with the file there.
fn keep(name: &str, line: &str, screen: &Screen) {
    let path = tree().join(format!("docs/screens/{name}.txt"));
    let text = format!("$ {line}\n{}\n", screen.rows.join("\n"));
    if writes() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        return fs::write(path, text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}: `make screens`", path.display()));
    assert_eq!(form(&text), form(&kept), "{} is stale: `make screens` writes it anew\n{text}", path.display());
}

/// Returns the first word of each row that begins with one: names of facts, headings, devices.
fn form(text: &str) -> Vec<&str> {
    let first = |row| str::split(row, ' ').next().filter(|word| !word.is_empty());
    let is_word = |word: &&str| word.chars().all(char::is_alphabetic);
    let mut words: Vec<&str> = text.lines().filter_map(first).filter(is_word).collect();
    words.dedup();
    words
}

/// Returns the settings file of a device.
fn settings_of(device: &str, broker: &str, coordinator_key: &str) -> String {
    format!(
        "broker = \"{broker}\"\nfleet = \"{FLEET}\"\ndevice = \"{device}\"\npassword = \"{}\"\n\
         coordinator_key = \"{coordinator_key}\"\npack = \"minilm\"\nstate = \"{device}/state\"\n\
         train = \"{device}/train.jsonl\"\ntest = \"{device}/test.jsonl\"\n",
        password(device)
    )
}

/// Checks that a program ends quietly when its reader has left, with the status that a shell expects.
fn leave_early(program: &str, line: &str, folder: &Path) {
    let mut child = command(program, line, folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(141), ""), "{line}");
}

#[test]
fn packs_and_devices_alone_fit_every_width() {
    let broker = Broker::embedded(&DEVICES);
    let fleet = Fleet::prepare(&broker, &DEVICES, 40);
    let folder = fleet.path("");
    link_onnxruntime(&folder);
    try_widths("pack-inspect", "skiff-pack", "inspect minilm", &folder);
    try_widths("pack-verify", "skiff-pack", "verify minilm", &folder);
    try_widths("pack-export", "skiff-pack", "export --pack minilm --out adapter", &folder);
    try_widths("agent-bench", "skiff-agent", "bench --pack minilm --batch 2 --tokens 16 --steps 1 --table", &folder);
    let train = "train --pack minilm --train kitchen/train.jsonl --test kitchen/test.jsonl --steps 3 --evaluate 8";
    try_widths("agent-train", "skiff-agent", train, &folder);
    let evaluate = "evaluate --pack minilm --test kitchen/test.jsonl --examples 8";
    try_widths("agent-evaluate", "skiff-agent", evaluate, &folder);
    fs::write(folder.join("texts.txt"), LINES).unwrap();
    try_widths("agent-predict", "skiff-agent", "predict --pack minilm texts.txt", &folder);
    symlink(minilm(), folder.join("checkpoint")).unwrap();
    let build = "build --checkpoint checkpoint --out pack --labels-from kitchen/train.jsonl";
    try_widths("pack-build", "skiff-pack", build, &folder);
    leave_early("skiff-pack", "inspect minilm", &folder);
    leave_early("skiff-agent", "bench --pack minilm --batch 1 --tokens 8 --steps 1 --active 1", &folder);
}

/// Waits until the screen shows a device that trains.
fn sees_training(terminal: &Terminal) -> Screen {
    terminal.wait_for("a device that trains", |screen| screen.shows("hall") && screen.shows("training,"))
}

#[test]
fn a_fleet_and_its_run_fit_every_width() {
    let broker = Broker::embedded(&DEVICES);
    let mut fleet = Fleet::prepare(&broker, &DEVICES, 40);
    let folder = fleet.path("");
    link_onnxruntime(&folder);
    fleet.start_coordinator();
    DEVICES.iter().for_each(|device| fleet.start_agent(device));
    fleet.hold("kitchen", 1);
    let settings = "--rounds 2 --devices 2 --steps 3 --batch 4 --set evaluate_examples=20 --set final_examples=20";
    let start = format!("run start --state coordinator --name night-3 {settings} --watch");
    let starter = Terminal::start(command("skiff", &start, &folder), KEPT);
    fleet.reached(&["kitchen"], 1);

    let watch = "run watch --state coordinator";
    let watchers = WIDTHS.map(|columns| (columns, Terminal::start(command("skiff", watch, &folder), columns)));
    let piped = command("skiff", watch, &folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for (columns, terminal) in &watchers {
        let screen = sees_training(terminal);
        // Heading, figures before the run, the wait, two devices, status: a line that is too wide would take more rows.
        assert!(screen.rows.len() <= 7, "{watch} at {columns}:\n{}", screen.rows.join("\n"));
        assert_eq!(
            screen.rows.iter().filter(|row| row.contains("round 1 of 2: training")).count(),
            1,
            "one status line"
        );
        if *columns == KEPT {
            keep("run-watch", &format!("skiff {watch}"), &screen);
        }
    }
    let (_, another) = Terminal::start(command("skiff", "fleet --state coordinator", &folder), 200).end();
    assert!(another.shows("kitchen"), "{another:?}");
    let interrupted = Terminal::start(command("skiff", watch, &folder), WIDTHS[3]);
    let _ = sees_training(&interrupted);
    interrupted.interrupt();
    let (status, screen) = interrupted.end();
    check(watch, WIDTHS[3], &screen);
    assert_eq!(status.code(), Some(INTERRUPTED));
    assert!(screen.shows("continues without this watcher; to stop it: skiff run stop --state"), "{screen:?}");
    try_widths("fleet", "skiff", "fleet --state coordinator", &folder);

    fleet.release("kitchen", 1);
    let (status, screen) = starter.end();
    assert!(status.success(), "{screen:?}");
    check(&start, KEPT, &screen);
    keep("run-start", &format!("skiff {start}"), &screen);
    for (columns, terminal) in watchers {
        let (status, screen) = terminal.end();
        assert!(status.success() && screen.shows("completed; accuracy"), "{screen:?}");
        check(watch, columns, &screen);
    }
    let piped = piped.wait_with_output().unwrap();
    assert!(!piped.stdout.contains(&b'\x1b') && !piped.stderr.contains(&b'\x1b'), "a pipe gets no escape codes");

    try_widths("run-list", "skiff", "run list --state coordinator", &folder);
    try_widths("run-show", "skiff", "run show night --state coordinator", &folder);
    try_widths("explain", "skiff", "explain --state coordinator --round 1 --device hall", &folder);
    try_widths("policy-show", "skiff", "policy show --state coordinator", &folder);
    fs::write(folder.join("policy.toml"), "sharing = { least_important = 3 }\n").unwrap();
    try_widths("policy-diff", "skiff", "policy diff policy.toml --state coordinator", &folder);
    try_widths("run-export", "skiff", "run export --state coordinator --pack minilm --out adapter", &folder);
    leave_early("skiff", "run list --state coordinator", &folder);
    // Its screen names the machine, so it is not kept.
    WIDTHS.iter().for_each(|columns| drop(fits("skiff", "device show hall --state coordinator", &folder, *columns)));
    fleet.stop_agents();
    let remove = "device remove hall --by ann --reason sold --state coordinator";
    assert!(eventually(|| command("skiff", remove, &folder).output().unwrap().status.success()), "a device that left");
    try_widths("device-removed", "skiff", "device list --removed --state coordinator", &folder);
    try_widths("agent-sent", "skiff-agent", "sent --state kitchen/state", &folder);
    let key = fs::read_to_string(folder.join("coordinator/coordinator.pub")).unwrap();
    fs::write(folder.join("kitchen.toml"), settings_of("kitchen", &broker.url(), key.trim())).unwrap();
    try_widths("agent-export", "skiff-agent", "export --config kitchen.toml --out kitchens-model", &folder);
    // Both name the machine.
    WIDTHS.iter().for_each(|columns| drop(fits("skiff-agent", "doctor --config kitchen.toml", &folder, *columns)));
    let doctor = "doctor --state coordinator --fleet test --pack minilm --broker";
    let url = broker.url();
    let (status, screen) =
        Terminal::start(command("skiff", &format!("{doctor} {url} --user nobody"), &folder), KEPT).end();
    assert_eq!(status.code(), Some(1), "{screen:?}");
    check(doctor, KEPT, &screen);
    fleet.kill_coordinator();
    try_widths("store-check", "skiff", "store check --state coordinator", &folder);
    try_widths("store-gc", "skiff", "store gc --dry-run --state coordinator", &folder);
}

#[test]
fn the_demo_fits_its_terminal_and_ends_with_the_result() {
    let short = if writes() { "--rounds 6" } else { "--rounds 2 --agents 2 --steps 2 --batch 2" };
    let library = std::env::var_os("SKIFF_ONNXRUNTIME");
    let mut demo = command("skiff-demo", short, tree());
    match library {
        Some(library) => demo.env("SKIFF_ONNXRUNTIME", library),
        None => demo.env_remove("SKIFF_ONNXRUNTIME"),
    };
    let (status, screen) = Terminal::start(demo, KEPT).end();
    assert!(status.success(), "{screen:?}");
    check("skiff-demo", KEPT, &screen);
    assert!(screen.shows("accuracy     ") && screen.shows("on the wire"), "{screen:?}");
    keep("demo", format!("skiff-demo {short}").trim(), &screen);
    if writes() {
        fs::write(tree().join("docs/demo.svg"), screen.svg(KEPT)).unwrap();
    }
}
