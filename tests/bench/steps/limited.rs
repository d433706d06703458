//! DeBERTaV2-xxlarge's shape with half of its layers. The kernel limits the process to 2 GiB and kills it if a step needs more.

use crate::packs::{STORED, THREADS, pack, scratch};
use crate::process::{agent, labelled, last_line};
use rustix::fs::Advice;
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_tests::{checkpoints, results};
use std::fs::File;
use std::path::Path;
use std::process::Command;

const LIMIT_BYTES: u64 = 2 << 30;
const LAYERS: &str = "24";

/// The part of `skiff-agent bench --json`'s output that the table shows.
#[derive(Deserialize)]
struct Found {
    step_seconds: f64,
    open_seconds: f64,
    peak_rss_bytes: f64,
    anonymous_bytes: f64,
    file_bytes: f64,
}

/// Prints the table and returns it.
pub(crate) fn measure() -> Vec<Value> {
    let limit = limit();
    match &limit {
        Ok(prefix) => println!("DeBERTaV2-xxlarge's shape under a hard limit of 2 GiB: {}", prefix.join(" ")),
        Err(problem) => println!("DeBERTaV2-xxlarge's shape WITHOUT a limit of memory: {problem}"),
    }
    println!("{:<11} {:>9} {:>9} {:>8} {:>8} {:>8}", "program", "step s", "set-up s", "peak MB", "anon MB", "file MB");
    let folder = scratch();
    let checkpoint = folder.path().join("checkpoint");
    checkpoints::write(&checkpoints::deberta_xxlarge(), &checkpoint).unwrap();
    let mut measured = Vec::new();
    for stored in STORED {
        let pack = pack(&checkpoint, stored, &["a", "b"].map(str::to_owned), folder.path());
        forget(&pack.join("frozen.safetensors")).unwrap();
        match last_line(&mut skiff(&pack, limit.as_deref().unwrap_or_default())) {
            Ok(line) => {
                Found::deserialize(&line).unwrap().print(stored.0);
                let limit = limit.as_ref().ok().map(|_| LIMIT_BYTES);
                measured.push(labelled(
                    line,
                    json!({ "program": "Skiff", "model": "DeBERTaV2-xxlarge", "storage": stored.0, "limit_bytes": limit }),
                ));
            }
            Err(error) => println!("Skiff {:<5} {error}", stored.0),
        }
        std::fs::remove_dir_all(pack).unwrap();
    }
    println!(
        "\n48 x 1536, random weights, LoRA r=8 on query and value, {LAYERS} layers, batches of 4 x 64 random tokens, {THREADS} threads, policy keep;\n\
         step s is the median. The pack was not in the page cache: what is read of it counts towards the limit.\n"
    );
    measured
}

/// Returns the words before a command that limit it to [`LIMIT_BYTES`], or the reason why there are none.
fn limit() -> Result<Vec<String>, String> {
    if let Some(folder) = results::argument("--cgroup") {
        return joined(&folder);
    }
    let mut prefix = vec!["systemd-run", "--scope", "--quiet", "--property=MemoryMax=2G", "--property=MemorySwapMax=0"];
    if !rustix::process::geteuid().is_root() {
        prefix.push("--user");
    }
    // systemd may accept the properties although the kernel does not enforce them.
    let probe = r#"cat "/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/memory.max""#;
    let output = Command::new(prefix[0]).args(&prefix[1..]).args(["sh", "-c", probe]).output();
    let problem = match output {
        Ok(output) if output.stdout.trim_ascii() == LIMIT_BYTES.to_string().as_bytes() => {
            return Ok(prefix.into_iter().map(str::to_owned).collect());
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("it sets no limit").to_owned(),
        Err(error) => error.to_string(),
    };
    Err(format!(
        "systemd-run cannot set one here ({problem}); make a memory cgroup with one and name it, CGROUP=FOLDER"
    ))
}

/// An existing cgroup, of either version.
fn joined(folder: &str) -> Result<Vec<String>, String> {
    let read = |name: &str| std::fs::read_to_string(Path::new(folder).join(name)).ok();
    let limit = read("memory.max").or_else(|| read("memory.limit_in_bytes"));
    let bytes = limit.as_deref().and_then(|text| text.trim().parse().ok());
    match bytes {
        Some(LIMIT_BYTES) => {
            let join = r#"echo $$ > "$0"/cgroup.procs && exec "$@""#;
            Ok(["sh", "-c", join, folder].map(str::to_owned).to_vec())
        }
        _ => Err(format!("{folder} is no memory cgroup with a limit of {LIMIT_BYTES} bytes")),
    }
}

/// Takes a file out of the page cache. Cached pages are charged to their first reader, so they would not count here.
fn forget(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

fn skiff(pack: &Path, prefix: &[String]) -> Command {
    let agent = agent();
    let mut command = match prefix {
        [] => agent,
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(agent.get_program());
            command
        }
    };
    command.arg("bench").arg("--pack").arg(pack).args([
        "--batch",
        "4",
        "--tokens",
        "64",
        "--threads",
        THREADS,
        "--json",
    ]);
    command.args(["--steps", "4", "--active", LAYERS]);
    command
}

impl Found {
    fn print(&self, storage: &str) {
        let [peak, anonymous, file] =
            [self.peak_rss_bytes, self.anonymous_bytes, self.file_bytes].map(|bytes| bytes / 1e6);
        let Self { step_seconds, open_seconds, .. } = self;
        println!(
            "{:<11} {step_seconds:>9.3} {open_seconds:>9.3} {peak:>8.0} {anonymous:>8.0} {file:>8.0}",
            format!("Skiff {storage}")
        );
    }
}
