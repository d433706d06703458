//! `skiff-manual FOLDER`: writes manual pages and completions for the packages.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return fail("usage: skiff-manual FOLDER");
    };
    match skiff_manual::write(&folder) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

#[expect(clippy::print_stderr, reason = "the only message of this program")]
fn fail(text: &str) -> ExitCode {
    eprintln!("skiff-manual: {text}");
    ExitCode::FAILURE
}
