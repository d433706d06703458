//! The pages are true: the commands of `docs/first-fleet.md` run as they are written, and every file that a page links to exists.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_tests::brokers::Port;
use skiff_tests::{PATIENCE, places, wait::eventually};
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The port that the page and the example of Mosquitto's settings name.
const PORT: &str = "8883";

/// Commands of a page in one fenced block of shell.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Instruction to this test, from a comment `<!-- test: ... -->` above the block.
    instruction: String,
    commands: String,
}

/// Returns the blocks of shell in a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut instruction = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("<!-- test: ") {
            instruction = rest.strip_suffix(" -->").expect("a comment of one line").to_owned();
        } else if line == "```sh" {
            let commands: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { instruction: std::mem::take(&mut instruction), commands: commands.join("\n") });
        }
    }
    blocks
}

/// Returns one script of all blocks. A block for another terminal runs in the background, with the variables and the folder that the
/// blocks before it have set.
fn script(blocks: &[Block]) -> String {
    let mut script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n".to_owned();
    for (number, Block { instruction, commands }) in blocks.iter().enumerate() {
        let (kind, until) = instruction.split_once(", until ").unwrap_or((instruction, ""));
        match kind {
            "skipped" => continue,
            "background" => {
                let command = commands.lines().next().unwrap();
                assert_eq!(command, commands, "a terminal of its own runs one command");
                let _ = writeln!(script, "exec {{log}}>terminal-{number}.log\n{command} >&$log 2>&1 &\nprocess=$!");
            }
            "" => {
                let _ = writeln!(script, "cat <<'BLOCK'\n$ {commands}\nBLOCK\n{commands}");
            }
            other => panic!("the page has an unknown instruction: {other}"),
        }
        let check = until
            .strip_prefix("the port ")
            .and_then(|rest| rest.strip_suffix(" listens"))
            .map_or_else(|| until.to_owned(), |port| format!("(exec 3<>/dev/tcp/127.0.0.1/{port})"));
        if !check.is_empty() {
            let _ = writeln!(
                script,
                "until {check} >/dev/null 2>&1; do\nkill -0 $process || {{ cat terminal-{number}.log; exit 1; }}\nsleep 0.1\ndone"
            );
        }
    }
    script
}

/// A clone as the page expects it: the tree's own files, with the port and the programs of this test.
fn clone(folder: &Path, port: &str) -> PathBuf {
    let clone = folder.join("clone");
    std::fs::create_dir_all(clone.join("cross")).unwrap();
    std::fs::create_dir_all(clone.join("target")).unwrap();
    let runtime = std::env::var_os("SKIFF_ONNXRUNTIME")
        .map_or_else(|| places::tree().join(".cache/onnxruntime/libonnxruntime.so"), PathBuf::from);
    std::fs::create_dir_all(clone.join(".cache/onnxruntime")).unwrap();
    symlink(runtime, clone.join(".cache/onnxruntime/libonnxruntime.so")).unwrap();
    symlink(places::minilm(), clone.join(".cache/minilm")).unwrap();
    symlink(places::binary("skiff").parent().unwrap(), clone.join("target/release")).unwrap();
    let name = "cross/mosquitto.conf.example";
    let mut settings = std::fs::read_to_string(places::tree().join(name)).unwrap().replace(PORT, port);
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        // Otherwise Mosquitto becomes a user who may not read the folder, as the page says.
        settings.push_str("\nuser root\n");
    }
    std::fs::write(clone.join(name), settings).unwrap();
    clone
}

/// A script with everything that it started, which ends with this value.
struct Shell(Child);

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

#[test]
fn the_first_fleet_works_as_written() {
    let page = std::fs::read_to_string(places::tree().join("docs/first-fleet.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let reserved = Port::reserve().unwrap();
    let port = reserved.number().to_string();
    let clone = clone(folder.path(), &port);
    let log_path = folder.path().join("log");
    let log = std::fs::File::create(&log_path).unwrap();
    let mut command = Command::new("bash");
    command.arg("-c").arg(script(&blocks(&page.replace(PORT, &port)))).current_dir(clone).process_group(0);
    command.env_clear().env("HOME", folder.path()).env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut shell = Shell(command.spawn().unwrap());
    let mut status = None;
    let ended = eventually(|| {
        status = shell.0.try_wait().unwrap();
        status.is_some()
    });
    let fleet = folder.path().join("fleet");
    let said = || {
        let mut said = std::fs::read_to_string(&log_path).unwrap();
        for entry in std::fs::read_dir(&fleet).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".log") {
                let _ =
                    write!(said, "\n--- {:?}\n{}", entry.file_name(), std::fs::read_to_string(entry.path()).unwrap());
            }
        }
        said
    };
    assert!(ended, "the page's commands do not end within {PATIENCE:?}:\n{}", said());
    assert!(status.is_some_and(|status| status.success()), "a command of the page fails:\n{}", said());
    for file in ["adapter_config.json", "adapter_model.safetensors", "README.md"] {
        assert!(fleet.join("adapter").join(file).is_file(), "the adapter has no {file}:\n{}", said());
    }
    let accounts = std::fs::metadata(fleet.join("kitchen.password")).unwrap();
    assert_eq!(accounts.mode() & 0o777, 0o600, "only the owner reads a password");
}

/// Returns the pages that users read: those in the tree's folder, in `docs` and in `cross`.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/experiments", "docs/screens", "docs/decisions", "cross"] {
        for entry in std::fs::read_dir(places::tree().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

#[test]
fn every_file_that_a_page_links_to_exists() {
    let mut missing = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#', ' ']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !page.parent().unwrap().join(target).exists() {
                missing.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "these links lead nowhere: {missing:#?}");
}

#[test]
fn every_file_of_the_tree_that_a_page_names_exists() {
    let mut missing = Vec::new();
    // A decision and the changelog describe the tree of their day.
    let of_today = |page: &&PathBuf| !page.ends_with("CHANGELOG.md") && !page.parent().unwrap().ends_with("decisions");
    for page in pages().iter().filter(of_today) {
        let text = std::fs::read_to_string(page).unwrap();
        // Words between backquotes that begin with a folder of the tree, up to their options.
        for name in text.split('`').skip(1).step_by(2).filter_map(|code| code.split_whitespace().next()) {
            let of_the_tree = ["cross/", "docs/", "tests/", "agent/", "coordinator/", "models/"];
            let is_path =
                of_the_tree.iter().any(|folder| name.starts_with(folder)) && !name.contains(['*', '{', '<', ':']);
            if is_path && !places::tree().join(name).exists() {
                missing.push(format!("{}: {name}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "these files do not exist: {missing:#?}");
}
