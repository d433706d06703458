//! PyTorch and PEFT, run by the scripts in `tests/bench/peers`.

use crate::process::last_line;
use serde_json::Value;
use skiff_tests::{places, results};
use std::process::Command;

/// A Python that has the packages.
pub(crate) struct Peers {
    python: String,
}

impl Peers {
    /// Finds what `--peers` names. If no Python is given, or a package is missing, prints a sentence.
    pub(crate) fn find() -> Option<Self> {
        let Some(python) = results::argument("--peers") else {
            println!(
                "PyTorch and PEFT beside Skiff: make bench PEERS=PYTHON, a Python with torch, transformers and peft (`make golden` makes .cache/golden/bin/python).\n"
            );
            return None;
        };
        let found = Self { python };
        match found.problem() {
            None => Some(found),
            Some(problem) => {
                println!("PyTorch is left out: {problem}.\n");
                None
            }
        }
    }

    fn problem(&self) -> Option<String> {
        let python = &self.python;
        let imported = Command::new(python).args(["-c", "import torch, transformers, peft"]).output();
        match imported {
            Err(error) => Some(format!("{python} does not start: {error}")),
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Some(format!("{python} lacks a package ({})", said.lines().last().unwrap_or_default()))
            }
        }
    }

    /// Returns the result of `script` with these arguments. A failure prints a sentence only, because the benchmark is Skiff's.
    pub(crate) fn run(&self, script: &str, arguments: &[&str]) -> Option<Value> {
        let mut command = Command::new(&self.python);
        command
            .arg(places::tree().join("tests/bench/peers").join(script))
            .args(arguments)
            .args(["--threads", crate::packs::THREADS]);
        // Fetches nothing, and keeps warnings out of the table.
        command.env("HF_HUB_OFFLINE", "1");
        last_line(&mut command).map_err(|error| println!("PyTorch has no line here: {error}")).ok()
    }
}
