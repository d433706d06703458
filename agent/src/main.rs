//! The program `skiff-agent`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    skiff_agent::program::main()
}
